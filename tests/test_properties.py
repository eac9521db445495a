"""For all values: bad ones are refused by name, good ones come back equal, and readers never just crash."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import math
import pickle
import types
import typing

import numpy as np
import pytest
import torch
import torchvision.datasets
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from iadd_lab.baselines.features import DistributionMatchingConfig
from iadd_lab.baselines.gradients import GradientMatchingConfig
from iadd_lab.data.augment import OPERATIONS, AugmentConfig
from iadd_lab.data.distilled import DistilledSet
from iadd_lab.data.parametrisation import MultiFormation, Parametrisation, Pixels
from iadd_lab.data.preprocess import Standardise
from iadd_lab.data.sets import DATASETS, DataConfig
from iadd_lab.device import Execution
from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.history import History
from iadd_lab.distillation.matching import Learned, Matching, Pruned, Uniform
from iadd_lab.errors import InputError
from iadd_lab.evaluation.fair import FairConfig
from iadd_lab.evaluation.protocol import EvaluateConfig
from iadd_lab.store.artefacts import load_artefact, save_artefact, tensor_fingerprint
from iadd_lab.store.configs import describe, fingerprint, restore
from iadd_lab.store.runs import Criteria
from iadd_lab.study.bench import BenchConfig
from iadd_lab.study.settings import Setting
from iadd_lab.training.networks import NETWORKS, NetworkConfig
from iadd_lab.training.teachers import TeacherConfig
from tests.samples import load, make_idx, make_small_imagenet, make_tree, noise, three

repeatable = settings(max_examples=20)

# Bad values ----------------------------------------------------------------------------------------------

CONFIGS = (AugmentConfig, BenchConfig, DataConfig, DistillConfig, DistributionMatchingConfig, EvaluateConfig)
CONFIGS += (GradientMatchingConfig, Learned, NetworkConfig, Pruned, Setting, TeacherConfig, Uniform)
GIVEN = {DataConfig: {"name": "digits"}, BenchConfig: {"width": 4, "size": 8}}
VALID = {kind: GIVEN.get(kind, {}) for kind in (*CONFIGS, Execution, FairConfig)}
VALID[Criteria] = {"name": "*"}

# What a message calls a field by another name than its own or, of a setting, than the end of its own.
CALLED = {
    (NetworkConfig, "name"): "network",
    (DataConfig, "name"): "data set",
    (AugmentConfig, "operations"): "operation",
    (BenchConfig, "engines"): "engine",
    (Setting, "data_name"): "data set",
    (Setting, "gradient_matches"): "matches_per_network",
}

# Numbers just outside; every other whole number must be at least 1, and no number may be negative.
OUTSIDE = {
    "momentum": [1, 1.0],
    "scale": [0.99],
    "rotate": [180.1],
    "validation_fraction": [0.0, 0.51],
    "size": [225],
    "white": [65_536],
    "channels": [17, 3.0],
    **{name: [1.0] for name in ("fraction", "prune_fraction", "limit")},
    **{name: [1.1] for name in ("flip", "crop", "cutout", "weight")},
}
MAY_BE_ZERO = {"back_offs", "seed", "learn_from", "learn_until", "threads", "test_fold"}
MUST_BE_POSITIVE = {"image_rate", "alpha", "network_rate", "teacher_rate", "gradient_image_rate"}
MUST_BE_POSITIVE |= {"evaluation_rate"}
STRANGE = [None, True, math.nan, math.inf, -math.inf, 10**400, 1j, object(), b"1", "1", "", "é\n", int]
STRANGE += [[], [1], (), {}, {"kind": "Uniform"}, {1}, [[]], [None], np.arange(3), torch.ones(2)]
STRANGE += [NetworkConfig(), AugmentConfig(), Learned(), Matching()]
NEGATIVE = st.floats(max_value=0, exclude_max=True) | st.integers(max_value=-1)
JUNK = st.sampled_from(STRANGE) | st.text(max_size=5) | NEGATIVE
FIELDS = [(config, field.name) for config in VALID for field in dataclasses.fields(config)]
FIELDS.remove((Execution, "device"))  # checked where it is used: the machine may be another one
FIELDS.remove((Criteria, "name"))
# Both come with a network of one's own, see tests/test_own_networks.py; they are not given by hand.
OWN = {(NetworkConfig, "fingerprint"), (NetworkConfig, "function")}
FIELDS = [field for field in FIELDS if field not in OWN]


def fits(value: object, hint: object) -> bool:
    """Whether `value` is of the declared type, in range or not."""
    if isinstance(hint, types.UnionType):
        return any(fits(value, choice) for choice in typing.get_args(hint))
    if hint is types.NoneType:
        return value is None
    if hint in (int, float):
        number = isinstance(value, (int, float) if hint is float else int) and not isinstance(value, bool)
        return number and 0 <= value < 1e300
    if typing.get_origin(hint) is tuple:
        (item, _) = typing.get_args(hint)
        return isinstance(value, (tuple, list)) and all(fits(each, item) for each in value)
    return isinstance(value, hint) and type(value) is not Matching


def assert_refused(config: type, name: str, value: object) -> None:
    with pytest.raises(InputError) as refused:
        config(**VALID[config] | {name: value})
    message = str(refused.value)
    ends = [name.split("_", words)[-1] for words in range(name.count("_") + 1 if config is Setting else 1)]
    assert any(called in message for called in [CALLED.get((config, name), name), *ends]), message


@pytest.mark.parametrize(("config", "name"), FIELDS, ids=lambda part: getattr(part, "__name__", part))
def test_bad_values_of_a_field_are_refused_by_its_name(config, name):
    hint = typing.get_type_hints(config)[name]

    @given(JUNK)
    @repeatable
    def refused(value):
        assume(not fits(value, hint) or (hint is str and value not in ("cifar10",)))
        assert_refused(config, name, value)

    refused()
    for value in OUTSIDE.get(name, []):
        assert_refused(config, name, value)
    numbers = {hint, *typing.get_args(hint)}
    if (int in numbers and name not in MAY_BE_ZERO) or name in MUST_BE_POSITIVE:
        assert_refused(config, name, [0] if typing.get_origin(hint) is tuple else 0)


# Round trips ---------------------------------------------------------------------------------------------

# Of fields that choose by a name, or of a few numbers.
NAMES = {
    "channels": [1, 3, 16],
    "name": [*DATASETS, *NETWORKS],
    "data_name": [*DATASETS],
    "preprocess": ["standardise", "zca"],
    "image_optimizer": ["sgd", "adam"],
    "gradient": ["adjoint", "full", "frozen"],
    "initial_images": ["real", "noise"],
    "measure": ["similarity", "difference"],
    "granularity": ["parameter", "tensor"],
    "split": ["test", "validation"],
    "bad_images": ["refuse", "skip"],
    "seen_test_images": ["keep", "drop"],
    "groups": ["groups.csv", r"(\d+)"],
    "store_dtype": ["float32", "float16"],
    "mean_over": ["network", "tensor"],
    "device": ["auto", "cpu"],
    "precision": ["float32", "bf16"],
    "compile": ["auto", "never"],
    "instructions": ["own", "avx2"],
    "operations": [*OPERATIONS],
    "engines": ["full", "adjoint", "frozen"],
    "classes": ["cat", "dog", "bird"],
    "layout": ["channels_first", "channels_last"],
    "labels": ["hard", "soft"],
}

LARGEST = {BenchConfig: 10}  # it builds the networks, to see whether they fit


@st.composite
def configurations(draw, kind: type):
    """Any valid configuration: each field in turn takes a drawn value, unless it is refused."""
    made = kind(**VALID.get(kind, {}))
    for field in (field for field in dataclasses.fields(kind) if (kind, field.name) not in OWN):
        value = draw(values(typing.get_type_hints(kind)[field.name], field.name, LARGEST.get(kind, 10**6)))
        with contextlib.suppress(InputError):
            made = dataclasses.replace(made, **{field.name: value})
    return made


def values(hint: object, name: str, largest: int) -> st.SearchStrategy:
    """Values of a field of this type and name, most of them valid."""
    if hint is int and name not in NAMES:
        return st.integers(0, 10) | st.integers(0, 2**63 - 1 if name == "seed" else largest)
    if hint is float:
        return st.floats(0, 0.99) | st.floats(1, 9) | st.floats(0, 1e9)
    if hint is Parametrisation:
        return st.one_of(configurations(kind) for kind in (Pixels, MultiFormation))
    if hint is Matching:
        return st.one_of(configurations(kind) for kind in (Uniform, Pruned, Learned))
    if dataclasses.is_dataclass(hint):
        return configurations(hint)
    if typing.get_origin(hint) is tuple:
        (item, _) = typing.get_args(hint)
        return st.lists(values(item, name, largest), unique=True, max_size=3).map(tuple)
    if isinstance(hint, types.UnionType):
        return st.one_of(values(choice, name, largest) for choice in typing.get_args(hint))
    if hint is bool:
        return st.booleans()
    return st.none() if hint is types.NoneType else st.sampled_from(NAMES.get(name, [""]))


@pytest.mark.parametrize("kind", VALID, ids=lambda kind: kind.__name__)
def test_configurations_come_back_equal_and_each_field_moves_the_fingerprint(kind):
    moved = set()

    @given(configurations(kind), configurations(kind))
    @repeatable
    def hold(one, other):
        stored = json.loads(json.dumps(describe(one)))
        found = restore(Matching if isinstance(one, Matching) else kind, stored)
        assert type(found) is kind
        assert found == one
        assert fingerprint(found) == fingerprint(one) == fingerprint(stored)
        assert (fingerprint(one) == fingerprint(other)) == (one == other)
        for field in dataclasses.fields(one):
            # A pair of values may not go together, such as vgg11 and a width.
            with contextlib.suppress(InputError):
                changed = dataclasses.replace(one, **{field.name: getattr(other, field.name)})
                assert (fingerprint(one) == fingerprint(changed)) == (one == changed), field.name
                moved.update({field.name} if changed != one else ())

    hold()
    own = {*OWN, (NetworkConfig, "enlarge_to")}
    fields = {field.name for field in dataclasses.fields(kind) if (kind, field.name) not in own}
    assert moved == fields  # a choice may be missing in NAMES


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
KINDS = [DataConfig, NetworkConfig, AugmentConfig, TeacherConfig, DistillConfig, EvaluateConfig, Matching]


@given(data=st.data())
@settings(max_examples=100)
def test_any_description_is_restored_or_refused(data):
    kind = data.draw(st.sampled_from(KINDS))
    whole = describe(Learned() if kind is Matching else kind(**VALID.get(kind, {})))
    changes = data.draw(st.dictionaries(st.sampled_from([*whole, "new"]), json_values, max_size=2))
    with contextlib.suppress(InputError):
        assert isinstance(restore(kind, data.draw(st.sampled_from([whole | changes, changes, whole]))), kind)


DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(data=st.data())
@settings(max_examples=10)
def test_tensors_of_every_type_and_shape_come_back_bit_for_bit(dtype, data, tmp_path_factory):
    shape = data.draw(st.lists(st.integers(0, 3), max_size=4).map(tuple))
    length, top = math.prod(shape) * dtype.itemsize, 1 if dtype is torch.bool else 255
    raw = data.draw(st.lists(st.integers(0, top), min_size=length, max_size=length))
    tensor = torch.tensor(raw, dtype=torch.uint8).view(dtype).view(shape)
    metadata = data.draw(st.dictionaries(st.text(max_size=3), json_values, max_size=3))
    path = tmp_path_factory.getbasetemp() / "typed.safetensors"
    save_artefact(path, kind="toy", tensors={"t": tensor, "empty": tensor[None][:0]}, metadata=metadata)
    found = load_artefact(path, kind="toy")
    assert (found.tensors["t"].dtype, found.tensors["t"].shape) == (dtype, shape)
    assert found.tensors["empty"].shape == (0, *shape)
    assert found.tensors["t"].reshape(-1).view(torch.uint8).tolist() == raw
    assert json.dumps(found.metadata, sort_keys=True) == json.dumps(metadata, sort_keys=True)


series = st.lists(st.floats(), max_size=4)


@given(
    loss=series, alpha=series, moments=st.lists(st.integers(0, 10**9), max_size=3), classes=st.integers(2, 3)
)
@repeatable
def test_histories_and_distilled_sets_come_back(loss, alpha, moments, classes, tmp_path_factory):
    images = [torch.full((classes, 1, 2, 2), float(moment)) for moment in moments]
    history = History(loss=loss, alpha=alpha, snapshot_iterations=moments, snapshot_images=images)
    pixels, labels = torch.linspace(0, 1, 4 * classes).view(-1, 1, 2, 2), torch.arange(classes)
    state, names = Standardise(torch.zeros(1), torch.ones(1)), tuple(map(str, range(classes)))
    made = DistilledSet(
        pixels, labels, 0.25, state, names, DataConfig("digits", bad_images="skip"), "0", "toy"
    )
    path = made.save(tmp_path_factory.getbasetemp() / "set.safetensors", more_tensors=history.tensors())
    found = DistilledSet.load(path)
    assert found.fingerprint == made.fingerprint
    assert (found.classes, found.data, found.method) == (made.classes, made.data, made.method)
    again = History.from_tensors(load_artefact(path, kind="distilled").tensors)
    assert tensor_fingerprint(again.tensors()) == tensor_fingerprint(history.tensors())
    assert again.snapshot_iterations == moments


# Readers -------------------------------------------------------------------------------------------------


@st.composite
def harmed(draw, whole: bytes) -> bytes:
    """`whole` with bytes replaced, cut out or put in; or any bytes at all."""
    if draw(st.integers(0, 7)) == 0:
        return draw(st.binary(max_size=64))
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        near = st.integers(0, min(len(content), 64))  # headers are at the start
        place = draw(near | st.integers(0, len(content)))
        content[place : place + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(content[: draw(st.just(len(content)) | st.integers(0, len(content)))])


def assert_read_or_refused(name: str, root, **options) -> None:
    with contextlib.suppress(InputError):
        data = load(name, root, **options)
        for split in three(data):  # a split requires bytes
            assert split.images.shape[1:] == (data.channels, data.size, data.size)
            assert set(split.labels.tolist()) <= set(range(len(data.classes)))


def read_with(path, content: bytes, name: str, root, **options) -> None:
    """Read the data set where that is in the file; the file is put back."""
    whole = path.read_bytes()
    path.write_bytes(content)
    try:
        assert_read_or_refused(name, root, **options)
    finally:
        path.write_bytes(whole)


@given(data=st.data())
@settings(max_examples=80)
def test_any_idx_file_is_read_or_refused(data, tmp_path_factory):
    root = tmp_path_factory.getbasetemp() / "idx"
    if not root.exists():
        make_idx(root, size=8)
    path = data.draw(st.sampled_from(sorted((root / "MNIST" / "raw").iterdir())))
    read_with(path, data.draw(harmed(path.read_bytes())), "mnist", root, size=8)


anything = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)
pixels = st.sampled_from([noise((20, 3072)), noise((20, 3071)), noise((2, 3072)), np.zeros((20, 3072))])
labels = st.lists(st.integers(0, 9), min_size=20, max_size=20) | st.just(list(range(10)) * 2)


@given(
    entry=st.fixed_dictionaries({"data": pixels | anything, "labels": labels | anything}) | anything,
    meta=st.just({"label_names": list("abcdefghij")}) | st.dictionaries(st.just("label_names"), anything),
)
@repeatable
def test_any_content_of_cifar_pickles_is_read_or_refused(entry, meta, tmp_path_factory):
    """Even with the right checksum."""
    root, kind = tmp_path_factory.getbasetemp() / "cifar", torchvision.datasets.CIFAR10
    folder = root / kind.base_folder
    folder.mkdir(parents=True, exist_ok=True)
    sums = {}
    for name, content in [("batch", entry), ("meta", meta)]:
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    listed = [["batch", sums["batch"]]]
    about = {"filename": "meta", "key": "label_names", "md5": sums["meta"]}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"train_list": listed, "test_list": listed, "meta": about}.items():
            patch.setattr(kind, name, value)
        assert_read_or_refused("cifar10", root)


@functools.cache
def picture(suffix: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise((8, 8, 3))).save(file, format={"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix))
    return file.getvalue()


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp", "gif"])
@pytest.mark.filterwarnings("ignore")  # Pillow's, about what it found
@given(data=st.data())
@settings(max_examples=40)
def test_any_image_file_is_read_or_refused_or_skipped(suffix, data, tmp_path_factory):
    root = tmp_path_factory.getbasetemp() / f"images_{suffix}"
    if not root.exists():
        make_tree(root, count=4)
    extension = "png" if suffix == "gif" else suffix  # known by its content, whatever its name
    path = root / "cat" / f"odd.{extension}"
    path.write_bytes(picture(suffix))
    for options in ({"channels": 3}, {"bad_images": data.draw(st.sampled_from(["refuse", "skip"]))}):
        read_with(path, data.draw(harmed(picture(suffix))), "image_folder", root, size=8, **options)


words = (
    ["000.png", "001.png", "n01", "n02", "../n01", "é", "", "a\x00b", "x" * 300],
    ["\t", " ", ",", "\n", "\t\t", "\r"],
    ["n01", "n02", "n03", "", "0", "\udc80"],
)
lines = st.lists(st.tuples(*map(st.sampled_from, words)).map("".join), max_size=5).map("\n".join)


@given(
    names=st.sampled_from(["wnids.txt", "words.txt", "val/val_annotations.txt"]),
    text=lines.map(lambda text: text.encode(errors="surrogateescape")) | st.binary(max_size=40),
)
@settings(max_examples=100)
def test_any_list_of_tiny_imagenet_is_read_or_refused(names, text, tmp_path_factory):
    root = tmp_path_factory.getbasetemp() / "tiny"
    folder = root / "tiny-imagenet-200"
    if not folder.exists():
        make_small_imagenet(root)
    read_with(folder / names, text, "tiny_imagenet", root, size=8)
