"""Every reader meets files that were changed at random: it gives what can be used, or refuses in a sentence.

Unlike in test_corruption, changed artefacts carry sound checksums: it is their content that is wrong. Each
reader gets 25 files here, and another 1,000 by `pytest tests/test_fuzz.py --hypothesis-profile fuzz`.
"""

import contextlib
import copy
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from iadd_lab.data.distilled import DistilledSet
from iadd_lab.data.mtt_format import export_mtt, import_mtt, reread_mtt
from iadd_lab.distillation.result import DistillResult
from iadd_lab.errors import DivergenceError, InputError
from iadd_lab.evaluation.protocol import Evaluation
from iadd_lab.notebooks import profiles
from iadd_lab.notebooks.notebook import Record, read_record
from iadd_lab.notebooks.profiles import read_profile
from iadd_lab.store.artefacts import load_artefact, save_artefact
from iadd_lab.store.runs import Criteria, prune, stored
from iadd_lab.training.replay_buffers import import_replay_buffers
from iadd_lab.training.teachers import TeacherConfig, open_teachers
from tests.samples import load, make_tree
from tests.test_corruption import NETWORK, distil, runs, small_data  # noqa: F401 (a fixture)

quarter = hypothesis.settings(max_examples=hypothesis.settings.default.max_examples // 4)


# What is changed -----------------------------------------------------------------------------------------

ODD = [None, True, -1, 0, 2, 0.5, 2**63, 10**400, 1e308, float("nan"), float("inf"), "", "x", "\0", "é" * 300]
ODD += [[], {}, [None], [[]], ["x", "x"], {"kind": "x"}, {"x": 1}, "nan", "../x", "/", "2020-01-01"]


def places(content: object) -> Iterator[tuple[dict | list, object]]:
    """Every value within lists and mappings: what holds it, and under which key."""
    keys = (
        [*content] if isinstance(content, dict) else range(len(content) if isinstance(content, list) else 0)
    )
    for key in keys:
        yield content, key
        yield from places(content[key])


@st.composite
def changed(draw, content: object) -> object:
    """Lists and mappings in which one to three values are others, are left out, or have moved."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        there = [*places(content)]
        if not there:
            break
        holder, key = there[draw(st.integers(0, len(there) - 1))]
        other, other_key = there[draw(st.integers(0, len(there) - 1))]
        match draw(st.sampled_from(("odd", "gone", "moved", "twice"))):
            case "odd":
                holder[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
            case "gone":
                del holder[key]
            case "moved":
                holder[key] = copy.deepcopy(other[other_key])
            case "twice":
                holder[key] = [copy.deepcopy(holder[key])] * 2
    return content


SHAPES = {
    "flat": lambda tensor: tensor.flatten(),
    "deeper": lambda tensor: tensor[None],
    "shorter": lambda tensor: tensor[:-1] if tensor.ndim else tensor,
    "none": lambda tensor: tensor[:0] if tensor.ndim else tensor,
    "turned": lambda tensor: tensor.mT if tensor.ndim > 1 else tensor,
    "single": lambda tensor: tensor.flatten()[:1].squeeze(),
    "nan": lambda tensor: tensor.double() * float("nan"),
    "huge": lambda tensor: tensor.double() * 1e300,
    "less": lambda tensor: -1 - tensor.abs() if tensor.dtype != torch.bool else tensor,
}
SHAPES |= {
    str(t): lambda tensor, t=t: tensor.to(t) for t in (torch.bool, torch.int8, torch.int64, torch.float16)
}


# Which of some tensors, and what becomes of it.
CHANGES = st.tuples(st.integers(0, 99), st.sampled_from([*SHAPES, "gone", "renamed", "elsewhere"]))


def reshaped(tensors: dict[str, torch.Tensor], changes: list[tuple[int, str]]) -> dict[str, torch.Tensor]:
    """Named tensors, of which some have other shapes, dtypes, values or names, or are left out."""
    tensors = dict(tensors)
    for number, how in changes:
        if tensors:
            name, other = (sorted(tensors)[place % len(tensors)] for place in (number, number + 1))
            tensor = tensors.pop(name)
            if how in SHAPES:
                tensors[name] = SHAPES[how](tensor).contiguous()
            elif how != "gone":
                tensors[{"renamed": name[:-1], "elsewhere": other}[how]] = tensor
    return tensors


@st.composite
def harmed(draw, whole: bytes) -> bytes:
    """Bytes cut off, changed or put in between."""
    start, length = draw(st.integers(0, len(whole))), draw(st.integers(0, 64))
    return whole[:start] + draw(st.binary(max_size=16)) + (b"" if length > 48 else whole[start + length :])


def tried(read: Callable[[], object]) -> None:
    """What is read may be refused, in one sentence."""
    said = "None."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that are none
        try:
            read()
        except (InputError, DivergenceError) as error:
            said = str(error)
        except OSError as error:
            said = f"{error}."
    assert "\n" not in said
    assert said.endswith(".")


# Artefacts -----------------------------------------------------------------------------------------------


def read_set(path: Path) -> None:
    made = DistilledSet.load(path)
    _ = made.ipc, made.augmentation, made.fingerprint, made.pictures()


def read_result(path: Path) -> None:
    result = DistillResult.load(path)
    _ = result.teacher_config, str(result.config), result.distilled.pictures()


def read_evaluation(path: Path) -> None:
    found = Evaluation.load(path)
    _ = str(found), found.summary(), found.remark


def read_teachers(path: Path) -> None:
    teachers = open_teachers(path.parent)
    _ = teachers.fingerprint, [teachers.trajectory(number) for number in range(len(teachers))]


def go_on(path: Path) -> None:
    distil(path.parent.parent, path.parent)


ARTEFACTS = {
    "set": ("matched_run/distilled", "distilled", read_set),
    "result": ("run/distilled", "distilled", read_result),
    "evaluation": ("run", "evaluation", read_evaluation),
    "teachers": ("teachers/teachers", "teachers", read_teachers),
    "trajectory": ("teachers/teacher_000", "trajectory", read_teachers),
    "checkpoint": ("half_run/checkpoint", "checkpoint", go_on),
}


@pytest.mark.parametrize("name", ARTEFACTS)
def test_artefacts_with_other_content(name, runs):  # noqa: F811
    file, kind, read = ARTEFACTS[name]
    path = runs / f"{file}.safetensors"
    whole, artefact = path.read_bytes(), load_artefact(path, kind=kind)

    @quarter
    @given(metadata=changed({"": artefact.metadata}), changes=st.lists(CHANGES, max_size=2))
    def check(metadata, changes):
        content, tensors = metadata.get("", {}), reshaped(artefact.tensors, changes)
        save_artefact(path, kind=kind, tensors=tensors, metadata=content if isinstance(content, dict) else {})
        tried(lambda: read(path))
        tried(lambda: stored(runs, verify=True))
        (path.parent / "distilled.safetensors").unlink(missing_ok=name != "result")

    try:
        check()
    finally:
        path.write_bytes(whole)


# Files of others -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mtt(runs, tmp_path_factory) -> Path:  # noqa: F811
    """A set in MTT's format, with our companion file."""
    folder = tmp_path_factory.mktemp("mtt")
    export_mtt(DistilledSet.load(runs / "run" / "distilled.safetensors"), folder)
    torch.save(torch.tensor(0.02), folder / "lr_best.pt")
    return folder


@quarter
@given(data=st.data())
def test_sets_in_mtts_format(mtt, data):
    names = ("images_best.pt", "labels_best.pt", "lr_best.pt", "iadd_lab.safetensors")
    wholes = {name: (mtt / name).read_bytes() for name in names}
    tensors = {name: torch.load(mtt / name) for name in names[:3]}
    try:
        if data.draw(st.booleans(), "bytes"):
            name = data.draw(st.sampled_from(names))
            (mtt / name).write_bytes(data.draw(harmed(wholes[name])))
        else:
            content = reshaped(tensors, data.draw(st.lists(CHANGES, max_size=2)))
            content = data.draw(changed(content)) if data.draw(st.booleans(), "objects") else content
            for name in names[:3]:
                (mtt / name).unlink()
                if name in content:
                    torch.save(content[name], mtt / name)
        tried(lambda: import_mtt(mtt, small_data(), preprocess="standardise", method="x").pictures())
        tried(lambda: reread_mtt(mtt).pictures())
    finally:
        for name, whole in wholes.items():
            (mtt / name).write_bytes(whole)


@quarter
@given(data=st.data())
def test_replay_buffers(runs, tmp_path_factory, data):  # noqa: F811
    teachers, place = open_teachers(runs / "teachers"), tmp_path_factory.mktemp("buffers")
    path = place / "replay_buffer_0.pt"
    split = [teachers.layout.split(snapshot) for snapshot in teachers.trajectory(0)]
    buffer = data.draw(changed([[list(snapshot.values()) for snapshot in split]] * 2))
    flat = [(holder, key) for holder, key in places(buffer) if isinstance(holder[key], torch.Tensor)]
    if flat and data.draw(st.booleans(), "tensors"):
        holder, key = flat[data.draw(st.integers(0, len(flat) - 1))]
        holder[key] = SHAPES[data.draw(st.sampled_from([*SHAPES]))](holder[key])
    torch.save(buffer, path)
    if data.draw(st.booleans(), "bytes"):
        path.write_bytes(data.draw(harmed(path.read_bytes())))
    config = TeacherConfig(network=NETWORK)
    tried(lambda: import_replay_buffers([path], small_data(), config, place / "made", progress=False))
    shutil.rmtree(place)


NAMES = ("a.png", "b", "x.JPG", ".c.png", "train", "dog", "Thumbs.db", "é.png", "$.png")


@quarter
@given(data=st.data())
def test_folders_of_pictures(tmp_path_factory, data):
    def pick(*choices):
        return data.draw(st.sampled_from(choices))

    root, suffix = tmp_path_factory.mktemp("pictures"), pick(".png", ".jpg", ".bmp", ".gif", ".tif")
    files = sorted(make_tree(root, count=3, suffix=suffix).rglob("*.*"))
    for path in data.draw(st.lists(st.sampled_from(files), max_size=3, unique=True)):
        name = pick(*NAMES)
        with contextlib.suppress(FileExistsError, IsADirectoryError):  # another file has this name now
            match pick("bytes", "renamed", "up", "folder", "link", "gone"):
                case "bytes":
                    path.write_bytes(data.draw(harmed(path.read_bytes())))
                case "renamed":
                    path.rename(path.with_name(name))
                case "up":
                    path.rename(root / f"{name}{path.suffix}")
                case "folder":
                    (path.parent / name).mkdir(exist_ok=True)
                    path.rename(path.parent / name / path.name)
                case "link":
                    path.unlink()
                    path.symlink_to(pick(root, "nowhere", path.name, files[0]))
                case "gone":
                    path.unlink()
    options = {"size": pick(None, 8, 16), "channels": pick(None, 1, 3), "bad_images": pick("refuse", "skip")}
    tried(lambda: load("image_folder", root, **options))
    shutil.rmtree(root)


# What people write ---------------------------------------------------------------------------------------

QUICK = Path(profiles.__file__).with_name("quick.yaml").read_text(encoding="utf-8")


@quarter
@given(data=st.data())
def test_profiles(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "changed.yaml"
    if data.draw(st.booleans(), "bytes"):
        path.write_bytes(data.draw(harmed(QUICK.encode())))
    else:
        path.write_text(yaml.safe_dump(data.draw(changed(yaml.safe_load(QUICK)))), encoding="utf-8")

    def read() -> None:
        profile = read_profile(str(path))
        for page in profile.pages:
            tried(lambda page=page: profile.page(page))

    tried(read)


@quarter
@given(record=changed(json.loads(Record("a" * 16, {"a.png": "b" * 64}, 1.5).text)))
def test_records_of_notebooks(tmp_path_factory, record):
    path = tmp_path_factory.getbasetemp() / "record.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    assert read_record(path) in (None, Record("a" * 16, {"a.png": "b" * 64}, 1.5))


@quarter
@given(data=st.data())
def test_folders_of_runs(runs, tmp_path_factory, data):  # noqa: F811
    """Files that are harmed, gone, or under other names: all is listed, and nothing foreign is deleted."""
    root = tmp_path_factory.mktemp("listed")
    shutil.copytree(runs, root, dirs_exist_ok=True)
    (root / "mine.txt").write_text("mine")
    files = sorted(path for path in root.rglob("*.safetensors"))
    for path in data.draw(st.lists(st.sampled_from(files), max_size=3, unique=True)):
        match data.draw(st.sampled_from(("bytes", "renamed", "folder", "gone", "swapped"))):
            case "bytes":
                path.write_bytes(data.draw(harmed(path.read_bytes())))
            case "renamed":
                path.rename(
                    path.with_name(
                        data.draw(st.sampled_from([".x", "x.png", "teacher_009.safetensors", ".lock"]))
                    )
                )
            case "folder":
                path.unlink()
                path.mkdir()
            case "gone":
                path.unlink()
            case "swapped":
                shutil.copy(
                    data.draw(st.sampled_from([file for file in files if file.is_file()])),
                    path.with_suffix(".new"),
                )
                path.with_suffix(".new").replace(path)
    for verify in (False, True):
        tried(lambda verify=verify: stored(root, verify=verify))
    tried(lambda: prune(root, Criteria(name="*"), delete=data.draw(st.booleans(), "delete")))
    assert (root / "mine.txt").read_text() == "mine"
    shutil.rmtree(root)
