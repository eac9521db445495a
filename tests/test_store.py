"""Artefacts: what goes in comes out bit for bit, whole or not at all; configurations come back equal."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from iadd_lab.data.augment import OPERATIONS, AugmentConfig
from iadd_lab.data.sets import DATASETS, DataConfig
from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.matching import Learned, Matching, Pruned, Uniform
from iadd_lab.errors import InputError
from iadd_lab.evaluation.protocol import EvaluateConfig
from iadd_lab.store import artefacts as store
from iadd_lab.store.artefacts import (
    atomic_path,
    load_artefact,
    open_artefact,
    read_metadata,
    save_artefact,
    save_text,
    tensor_fingerprint,
)
from iadd_lab.store.configs import describe, fingerprint, restore, run_folder
from iadd_lab.training.networks import NetworkConfig
from iadd_lab.training.teachers import TeacherConfig

repeatable = settings(derandomize=True, deadline=None, database=None, max_examples=40)

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
]
TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "b/c": torch.tensor([True, False, True]),
    "none": torch.zeros(0, 3),
    "scalar": torch.tensor(5),
}
METADATA = {"x": 1, "y": [1, 2.5, None, "é"]}


# Configurations ------------------------------------------------------------------------------------------

count = st.integers(1, 10**6)
seed = st.integers(0, 2**63 - 1)
share = st.floats(0, 0.99)
positive = st.floats(1e-12, 1e12)
networks = st.builds(NetworkConfig, width=st.none() | count, depth=st.none() | st.integers(1, 6)) | st.builds(
    NetworkConfig, st.sampled_from(["alexnet", "vgg11", "resnet18"])
)
augments = st.builds(
    AugmentConfig,
    operations=st.lists(st.sampled_from(sorted(OPERATIONS)), unique=True).map(tuple),
    flip=share,
    scale=st.floats(1, 3),
    rotate=st.floats(0, 180),
    crop=share,
    cutout=share,
    brightness=st.floats(0, 9),
    saturation=st.floats(0, 9),
    contrast=st.floats(0, 9),
)
matchings = st.one_of(
    st.builds(Uniform),
    st.builds(Pruned, fraction=share, measure=st.sampled_from(["similarity", "difference"])),
    st.builds(
        Learned,
        rate=st.floats(0, 1e9),
        normalised=st.booleans(),
        granularity=st.sampled_from(["parameter", "tensor"]),
        limit=st.floats(1.5, 1e6),
        learn_from=st.integers(0, 50),
        learn_until=st.none() | st.integers(50, 10**6),
    ),
)
CONFIGS = {
    "data": st.builds(
        DataConfig,
        name=st.sampled_from(sorted(DATASETS)),
        size=st.none() | st.integers(1, 224),
        channels=st.sampled_from([None, 1, 3]),
        validation_fraction=st.floats(0.01, 0.5),
        seed=seed,
        train_limit=st.none() | count,
    ),
    "network": networks,
    "augment": augments,
    "teacher": st.builds(
        TeacherConfig,
        network=networks,
        preprocess=st.sampled_from(["standardise", "zca"]),
        epochs=count,
        rate=positive,
        batch=count,
        momentum=share,
        weight_decay=st.floats(0, 1),
        augment=augments,
        seed=seed,
    ),
    "distill": st.builds(
        DistillConfig,
        ipc=count,
        iterations=count,
        student_steps=count,
        teacher_epochs=count,
        max_start_epoch=count,
        batch=st.none() | count,
        image_rate=positive,
        image_optimizer=st.sampled_from(["sgd", "adam"]),
        alpha_rate=st.floats(0, 1),
        alpha=positive,
        momentum=share,
        matching=matchings,
        gradient=st.sampled_from(["adjoint", "full", "frozen"]),
        initial_images=st.sampled_from(["real", "noise"]),
        augment=augments,
        snapshots=st.integers(2, 99),
        seed=seed,
    ),
    "evaluate": st.builds(
        EvaluateConfig,
        network=networks,
        networks=count,
        epochs=count,
        rate=st.none() | positive,
        momentum=share,
        weight_decay=st.floats(0, 1),
        batch=count,
        augment=augments,
        split=st.sampled_from(["test", "validation"]),
        seed=seed,
    ),
    "matching": matchings,
}


def through_json(value):
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("name", CONFIGS)
@given(data=st.data())
@repeatable
def test_restore_inverts_describe(name, data):
    config = data.draw(CONFIGS[name])
    stored = through_json(describe(config))
    found = restore(Matching if name == "matching" else type(config), stored)
    assert type(found) is type(config)
    assert found == config
    assert fingerprint(found) == fingerprint(config) == fingerprint(stored)


@pytest.mark.parametrize("name", CONFIGS)
@given(data=st.data())
@repeatable
def test_each_field_moves_the_fingerprint(name, data):
    one, other = data.draw(CONFIGS[name]), data.draw(CONFIGS[name])
    assert (fingerprint(one) == fingerprint(other)) == (one == other)
    assume(type(one) is type(other))
    for field in dataclasses.fields(one):
        try:
            changed = dataclasses.replace(one, **{field.name: getattr(other, field.name)})
        except InputError:
            continue  # a pair that does not go together, such as vgg11 and a width
        assert (fingerprint(one) == fingerprint(changed)) == (one == changed), field.name


def test_a_fingerprint_ignores_the_order_of_keys_and_keeps_that_of_parts():
    assert fingerprint({"a": 1, "b": [2, 3]}) == fingerprint({"b": [2, 3], "a": 1})
    assert fingerprint(1, 2) != fingerprint(2, 1)
    assert fingerprint(1, 2) != fingerprint([1, 2])
    assert fingerprint((1, 2)) == fingerprint([1, 2])


def test_fingerprints_stay_the_same_between_releases():
    """Stored runs are found again by them."""
    assert fingerprint("teachers", 3, 0.25, {"x": None}) == "9df5f41c42e2788f"


def test_a_run_folder_is_told_by_its_parts(tmp_path):
    folder = run_folder(tmp_path, "toy", Pruned(0.25), 3)
    assert folder == run_folder(str(tmp_path), "toy", Pruned(0.25), 3)
    assert folder.parent == tmp_path
    assert (
        len(
            {
                folder,
                run_folder(tmp_path, "toy", Pruned(0.5), 3),
                run_folder(tmp_path, "toy", Pruned(0.25), 4),
            }
        )
        == 3
    )


@pytest.mark.parametrize("base", [Matching, Pruned])
def test_the_stored_kind_names_the_subclass(base):
    assert restore(base, {"kind": "Pruned", "fraction": 0.5, "measure": "difference"}) == Pruned(
        0.5, "difference"
    )


def test_left_out_fields_take_their_defaults():
    assert restore(Pruned, {"kind": "Pruned", "measure": "difference"}) == Pruned(measure="difference")


def test_an_unknown_field_is_refused_by_name():
    stored = describe(DistillConfig())
    stored["matching"]["sharpness"] = 2
    with pytest.raises(
        InputError, match=r"^Learned has no field sharpness: it was written by another version\.$"
    ):
        restore(DistillConfig, stored)


@pytest.mark.parametrize(
    "stored",
    [{"kind": "Uniform"}, {"ipc": 1}, {}, None, "DistillConfig", ["kind"], {"kind": ["DistillConfig"]}],
)
def test_another_kind_is_refused(stored):
    with pytest.raises(InputError, match=r"^a stored DistillConfig was expected, but .* was found\.$"):
        restore(DistillConfig, stored)


def test_a_matching_of_another_family_is_refused():
    with pytest.raises(InputError, match=r"^a stored Matching was expected"):
        restore(DistillConfig, describe(DistillConfig()) | {"matching": describe(NetworkConfig())})


def test_a_stored_value_out_of_range_is_refused():
    with pytest.raises(InputError, match=r"^fraction is 2"):
        restore(Pruned, {"kind": "Pruned", "fraction": 2})


# Round trips ---------------------------------------------------------------------------------------------


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


@given(data=st.data())
@repeatable
def test_tensors_return_bit_for_bit(data, tmp_path_factory):
    """Any bytes at all: NaN payloads, negative zeros and infinities are values like others."""
    shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
    specs = data.draw(
        st.dictionaries(st.text("ab/é", min_size=1), st.tuples(st.sampled_from(DTYPES), shapes), max_size=5)
    )
    tensors = {}
    for name, (dtype, shape) in specs.items():
        length = torch.Size(shape).numel() * torch.zeros((), dtype=dtype).element_size()
        values = st.integers(0, 1 if dtype is torch.bool else 255)
        raw = data.draw(st.lists(values, min_size=length, max_size=length))
        tensors[name] = torch.tensor(raw, dtype=torch.uint8).view(dtype).view(shape)
    path = tmp_path_factory.getbasetemp() / "round_trip.safetensors"
    found = load_artefact(save_artefact(path, kind="toy", tensors=tensors, metadata={}), kind="toy").tensors
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert bits(found[name]) == bits(tensor)
    assert tensor_fingerprint(found) == tensor_fingerprint(tensors)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(metadata=st.dictionaries(st.text(max_size=4), json_values, max_size=4))
@repeatable
def test_metadata_returns_as_it_was(metadata, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "metadata.safetensors"
    save_artefact(path, kind="toy", tensors={"t": torch.ones(2)}, metadata=metadata)
    assert read_metadata(path, kind="toy") == metadata
    assert load_artefact(path, kind="toy").metadata == metadata


def test_an_artefact_knows_its_path_and_kind(tmp_path):
    path = tmp_path / "new" / "folder" / "a.safetensors"
    assert save_artefact(str(path), kind="toy", tensors=TENSORS, metadata=METADATA) == path
    found = load_artefact(str(path), kind="toy")
    assert (found.path, found.kind, found.metadata) == (path, "toy", METADATA)


def test_views_are_stored_apart_and_live_tensors_stay_live(tmp_path):
    live = torch.arange(6.0).view(2, 3).requires_grad_()
    tensors = {"whole": live, "row": live[1], "transposed": live.T, "again": live}
    path = save_artefact(tmp_path / "a.safetensors", kind="toy", tensors=tensors, metadata={})
    assert live.requires_grad
    with torch.no_grad():
        live.fill_(-1)
    found = load_artefact(path, kind="toy").tensors
    expected = torch.arange(6.0).view(2, 3)
    found["whole"].fill_(-2)
    assert torch.equal(found["row"], expected[1])
    assert torch.equal(found["transposed"], expected.T)
    assert torch.equal(found["again"], expected)


def test_loaded_tensors_and_the_file_do_not_touch_each_other(tmp_path):
    path = save_artefact(tmp_path / "a.safetensors", kind="toy", tensors=TENSORS, metadata={})
    first = load_artefact(path, kind="toy").tensors
    save_artefact(path, kind="toy", tensors={"a": torch.zeros(2, 3)}, metadata={})
    assert torch.equal(first["a"], TENSORS["a"])
    first["a"].fill_(9)
    assert torch.equal(load_artefact(path, kind="toy").tensors["a"], torch.zeros(2, 3))


@pytest.mark.parametrize(
    "changed",
    [
        {"b": torch.tensor([1.0, 2.0])},
        {"a": torch.tensor([1.0, 3.0])},
        {"a": torch.tensor([1.0, 2.0], dtype=torch.float64)},
        {"a": torch.tensor([[1.0, 2.0]])},
        {"a": torch.tensor([1.0, 2.0]).view(torch.int32)},
        {},
    ],
)
def test_a_tensor_fingerprint_sees_names_values_dtypes_and_shapes(changed):
    assert tensor_fingerprint(changed) != tensor_fingerprint({"a": torch.tensor([1.0, 2.0])})


def test_a_tensor_fingerprint_ignores_order_and_strides():
    one, other = torch.arange(6.0).view(2, 3), torch.ones(2)
    rearranged = {"b": other, "a": one.T.contiguous().T}
    assert tensor_fingerprint(rearranged) == tensor_fingerprint({"a": one, "b": other})


# Atomic writing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_the_old_file_alone(error, tmp_path):
    path = tmp_path / "a.txt"
    save_text(path, "old")
    with pytest.raises(error), atomic_path(path) as temporary:  # noqa: PT012
        temporary.write_text("half of the ne")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_first_write_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="stop"), atomic_path(tmp_path / "a.txt") as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise ValueError("stop")
    assert list(tmp_path.iterdir()) == []


def test_the_old_file_is_there_until_the_block_ends(tmp_path):
    path = tmp_path / "a.txt"
    save_text(path, "old")
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent  # a rename within one file system is atomic
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_artefact_whole(tmp_path, monkeypatch):
    path = save_artefact(tmp_path / "a.safetensors", kind="toy", tensors=TENSORS, metadata={"run": 1})

    def half(tensors, filename, metadata):
        save_file(tensors, filename, metadata=metadata)
        content = Path(filename).read_bytes()
        Path(filename).write_bytes(content[: len(content) // 2])
        raise OSError("No space left on device")

    monkeypatch.setattr(store, "save_file", half)
    with pytest.raises(OSError, match="No space left"):
        save_artefact(path, kind="toy", tensors=TENSORS, metadata={"run": 2})
    assert load_artefact(path, kind="toy").metadata == {"run": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_metadata_that_is_not_json_leaves_no_file(tmp_path):
    with pytest.raises(TypeError):
        save_artefact(tmp_path / "a.safetensors", kind="toy", tensors=TENSORS, metadata={"x": object()})
    assert list(tmp_path.iterdir()) == []


def test_others_may_read_what_was_written(tmp_path):
    artefact = save_artefact(tmp_path / "a.safetensors", kind="toy", tensors=TENSORS, metadata={})
    save_text(tmp_path / "a.txt", "text")
    for path in (artefact, tmp_path / "a.txt"):
        assert path.stat().st_mode & 0o777 == 0o644


# Damaged and foreign files -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    """The bytes of an artefact of kind "toy"."""
    path = tmp_path_factory.mktemp("whole") / "a.safetensors"
    return save_artefact(path, kind="toy", tensors=TENSORS, metadata=METADATA).read_bytes()


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> Path:
    """Where to put a damaged copy."""
    return tmp_path_factory.mktemp("damaged") / "b.safetensors"


def assert_refused(path, *, kind="toy", match=""):
    """Both readers raise `InputError`, in one sentence that names the file."""
    for read in (load_artefact, read_metadata):
        with pytest.raises(InputError, match=match) as caught:
            read(path, kind=kind)
        sentence = str(caught.value)
        assert sentence.startswith(str(path))
        assert sentence.endswith(".")
        assert "\n" not in sentence


def write(path, tensors=None, **header):
    """A safetensors file with this header, written by hand."""
    save_file(TENSORS if tensors is None else tensors, path, metadata=header)
    return path


def content(**changes):
    return json.dumps({"format": store.FORMAT_VERSION, "kind": "toy", "metadata": {}} | changes)


def test_the_copy_that_gets_damaged_is_readable_when_whole(whole, damaged):
    damaged.write_bytes(whole)
    assert load_artefact(damaged, kind="toy").metadata == METADATA


def test_a_file_cut_anywhere_is_refused(whole, damaged):
    for length in (*range(0, len(whole), 11), *range(len(whole) - 10, len(whole))):
        damaged.write_bytes(whole[:length])
        assert_refused(damaged, match="not a whole safetensors file")


def test_a_file_with_something_behind_it_is_refused(whole, damaged):
    damaged.write_bytes(whole + b"\0")
    assert_refused(damaged, match="not a whole safetensors file")


@pytest.mark.parametrize("part", ["length", "header", "tensors"])
@given(data=st.data())
@settings(repeatable, max_examples=60)
def test_a_flipped_bit_anywhere_is_noticed(part, whole, damaged, data):
    start = 8 + int.from_bytes(whole[:8], "little")
    first, last = {"length": (0, 7), "header": (8, start - 1), "tensors": (start, len(whole) - 1)}[part]
    flipped = bytearray(whole)
    flipped[data.draw(st.integers(first, last))] ^= 1 << data.draw(st.integers(0, 7))
    damaged.write_bytes(flipped)
    with pytest.raises(InputError) as caught:
        load_artefact(damaged, kind="toy")
    assert str(damaged) in str(caught.value)


@pytest.mark.parametrize("key", [b"iadd_lab", b"content", b"sha256", b"format", b"kind"])
def test_a_header_with_another_key_is_refused(key, whole, damaged):
    assert whole.count(key) == 1
    damaged.write_bytes(whole.replace(key, key.upper()))
    assert_refused(damaged, match="was not written by iadd-lab")


@pytest.mark.parametrize(
    ("old", "new"), [(b"2.5", b"3.5"), (b'"a":{"dtype"', b'"b":{"dtype"'), (b"[2,3]", b"[3,2]")]
)
def test_a_changed_header_is_noticed(old, new, whole, damaged):
    assert whole.count(old) == 1
    damaged.write_bytes(whole.replace(old, new))
    with pytest.raises(InputError, match="is damaged"):
        load_artefact(damaged, kind="toy")


@pytest.mark.parametrize(
    "text", [b"", b"\0" * 8, b"not a safetensors file at all", b"PK\x03\x04" + b"\xff" * 99]
)
def test_a_file_of_another_format_is_refused(text, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(text)
    assert_refused(path, match="not a whole safetensors file")


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"format": "pt"},
        {"iadd_lab": ""},
        {"iadd_lab": "{"},
        {"iadd_lab": "[1]"},
        {"iadd_lab": "3"},
        {"iadd_lab": json.dumps({"sha256": "0"})},
        {"iadd_lab": json.dumps({"content": None, "sha256": "0"})},
        {"iadd_lab": json.dumps({"content": "[]", "sha256": "0"})},
        {"iadd_lab": json.dumps({"content": json.dumps({"format": store.FORMAT_VERSION}), "sha256": "0"})},
    ],
)
def test_a_safetensors_file_of_others_is_refused(header, tmp_path):
    path = write(tmp_path / "a.safetensors", **header)
    assert_refused(path, match=r"was not written by iadd-lab: expected a toy file of its own\.$")


def test_a_newer_format_is_refused(tmp_path):
    header = json.dumps({"content": content(format=store.FORMAT_VERSION + 1), "sha256": "0"})
    path = write(tmp_path / "a.safetensors", iadd_lab=header)
    assert_refused(
        path, match=f"has format version {store.FORMAT_VERSION + 1}, but this iadd-lab reads version"
    )


def test_another_kind_of_file_is_refused(tmp_path):
    path = save_artefact(tmp_path / "a.safetensors", kind="toy", tensors=TENSORS, metadata={})
    assert_refused(path, kind="trajectory", match="toy.* but .*trajectory.* was expected")


def test_a_file_that_the_system_cannot_read_is_refused(tmp_path, monkeypatch):
    path = save_artefact(tmp_path / "a.safetensors", kind="toy", tensors=TENSORS, metadata={})

    def unreadable(*args, **options):
        raise PermissionError("Permission denied")

    monkeypatch.setattr(store, "safe_open", unreadable)
    assert_refused(path, match="Permission denied")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert_refused(tmp_path / "a.safetensors", match="is not there")
    assert_refused(tmp_path / "a.safetensors" / "b", match="is not there")
    assert_refused(tmp_path, match="is not there")


def test_an_open_artefact_yields_single_tensors(tmp_path):
    path = save_artefact(tmp_path / "a.safetensors", kind="toy", tensors=TENSORS, metadata={})
    with open_artefact(path) as file:
        assert set(file.keys()) == set(TENSORS)
        assert torch.equal(file.get_tensor("a"), TENSORS["a"])
        assert torch.equal(file.get_slice("a")[1], TENSORS["a"][1])


def test_metadata_is_verified_without_the_tensors(tmp_path):
    path = save_artefact(
        tmp_path / "toy.safetensors", kind="toy", tensors={"t": torch.ones(2)}, metadata={"epochs": 50}
    )
    whole = path.read_bytes()
    for old, new in ((b"metadata\\", b"metadatb\\"), (b"50", b"10")):
        path.write_bytes(whole.replace(old, new))
        with pytest.raises(InputError, match=r"toy\.safetensors"):
            read_metadata(path, kind="toy")


def test_equal_configs_are_described_alike():
    assert fingerprint(TeacherConfig(rate=1)) == fingerprint(TeacherConfig(rate=1.0))
    assert fingerprint(Learned(rate=0.0)) == fingerprint(Learned(rate=-0.0))
    assert fingerprint({"a": Learned()}) == fingerprint({"a": describe(Learned())})


@pytest.mark.parametrize(
    ("kind", "description"),
    [
        (DataConfig, {"kind": "DataConfig"}),
        (AugmentConfig, {"kind": "AugmentConfig", "operations": 5}),
    ],
)
def test_incomplete_descriptions_are_refused(kind, description):
    with pytest.raises(InputError, match=kind.__name__):
        restore(kind, description)


@dataclasses.dataclass(frozen=True)
class _Rates:
    rates: tuple[float, ...] = (1.0, 0.5)


def test_a_tuple_of_numbers_is_described_and_comes_back():
    assert restore(_Rates, describe(_Rates())) == _Rates()
    assert fingerprint(_Rates((1, 0))) == fingerprint(_Rates((1.0, -0.0))) != fingerprint(_Rates((1.0, 0.5)))
