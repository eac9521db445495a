"""Whatever happens to a file, it is refused by name, or, if it is a cache, made anew; never used as it is.

Each kind of file is harmed 200 times at random places. Then: what a file from outside must not be able to do.
"""

import errno
import functools
import io
import json
import logging
import os
import pickle
import random
import re
import socket
import struct
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import torchvision.datasets

from iadd_lab.baselines.features import DistributionMatchingConfig, match_distributions
from iadd_lab.data.distilled import DistilledSet
from iadd_lab.data.sets import DataConfig, fetch_data
from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.loop import distill
from iadd_lab.errors import InputError
from iadd_lab.evaluation.protocol import EvaluateConfig, Evaluation, evaluate
from iadd_lab.notebooks.notebook import Record, read_record
from iadd_lab.store import artefacts as store
from iadd_lab.store.artefacts import load_artefact, open_artefact, save_artefact, tensor_fingerprint
from iadd_lab.store.configs import fingerprint
from iadd_lab.training.networks import NetworkConfig
from iadd_lab.training.replay_buffers import read_replay_buffer
from iadd_lab.training.teachers import TeacherConfig, open_teachers, train_teachers
from tests.processes import ended
from tests.samples import assert_refused, load, make_idx, make_small_imagenet, make_tree

TIMES = 210  # the seven ways, thirty times each
NETWORK = NetworkConfig(width=2, depth=1)
CONFIG = DistillConfig(
    iterations=2, student_steps=1, teacher_epochs=1, max_start_epoch=1, alpha_rate=0.0, snapshots=2
)
EVALUATE = EvaluateConfig(network=NETWORK, networks=1, epochs=1)
MATCHED = DistributionMatchingConfig(iterations=1, real_batch=8)


@dataclass(frozen=True)
class Subject:
    """A file to harm.

    Attributes:
        path: where it is read from.
        read: reads it as the package does; returns a fingerprint of what it holds.
        others: other files of the same kind; none where any file of the kind is as good.
        ours: whether it is an artefact, whose every byte counts.
        heals: whether it is made anew where it is damaged.
    """

    path: Path
    read: Callable[[], str]
    others: tuple[bytes, ...] = ()
    ours: bool = True
    heals: bool = False


# Ways to harm -------------------------------------------------------------------------------------------


def flipped(whole: bytes, chance: random.Random) -> bytes:
    """A few bits; half of the times in the first kilobyte, where the headers of large files are."""
    harmed, reach = bytearray(whole), min(len(whole), chance.choice([len(whole), 1024]))
    for place in chance.sample(range(reach), chance.choice([1, 1, 2, 8])):
        harmed[place] ^= 1 << chance.randrange(8)
    return bytes(harmed)


def zeroed(whole: bytes, chance: random.Random) -> bytes:
    """A lost block, as after a power cut."""
    start = chance.randrange(len(whole) - 1)
    length = min(chance.randint(1, 512), len(whole) - start)
    return whole[:start] + bytes(length) + whole[start + length :]


HARMS = {
    "truncated": lambda whole, chance: whole[: chance.randrange(len(whole))],
    "flipped": flipped,
    "flipped again": flipped,
    "extended": lambda whole, chance: whole + chance.randbytes(chance.randint(1, 64)),
    "zeroed": zeroed,
    "foreign": lambda whole, chance: chance.randbytes(chance.randint(1, 2 * len(whole))),
    "empty": lambda whole, chance: b"",
}


def forgeries(subject: Subject, folder: Path) -> list[bytes]:
    """The artefact with sound checksums, but of another format version, another kind, or without content."""
    if not subject.ours:
        return []
    with open_artefact(subject.path) as file:
        kind = json.loads(json.loads(file.metadata()["iadd_lab"])["content"])["kind"]
    whole = load_artefact(subject.path, kind=kind)

    def forged(**change) -> bytes:
        parts = {"kind": kind, "tensors": whole.tensors, "metadata": whole.metadata}
        return save_artefact(folder / "forged", **parts | change).read_bytes()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "FORMAT_VERSION", store.FORMAT_VERSION + 1)
        newer = forged()
    zeros = {name: torch.zeros(3) for name in whole.tensors}
    changes = ({"kind": "toy"}, {"metadata": {}}, {"tensors": {}}, {"tensors": zeros})
    return [newer, *(forged(**change) for change in changes)]


# What is harmed -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Teachers, distilled sets, checkpoints and evaluations of two seeds."""
    folder = tmp_path_factory.mktemp("runs")
    for seed, (teachers, name) in enumerate((("teachers", "run"), ("others", "other_run"))):
        config = TeacherConfig(network=NETWORK, epochs=1, batch=32, seed=seed)
        train_teachers(small_data(), config, folder / teachers, count=2, progress=False)
        distil(folder, folder / name, seed=seed)
        with pytest.raises(InterruptedError):
            distil(folder, folder / f"half_{name}", seed=seed, stop=True)
        match(folder, folder / f"matched_{name}", seed=seed)
        evaluate_in(folder, folder / f"{name}.safetensors", seed=seed)
    return folder


@functools.cache
def small_data():
    return load("digits", train_limit=40)


@functools.cache
def teachers_in(runs: Path):
    return open_teachers(runs / "teachers")


def distil(runs: Path, folder: Path, *, seed: int = 0, stop: bool = False):
    """Distil into `folder`, or read what is there; with `stop` only a checkpoint is left there."""

    def kill(iteration, history):
        if stop and iteration == 2:
            raise InterruptedError

    options = {"on_iteration": kill, "checkpoint_seconds": 0, "progress": False}
    return distill(small_data(), teachers_in(runs), replace(CONFIG, seed=seed), folder=folder, **options)


def match(runs: Path, folder: Path, *, seed: int = 0) -> DistilledSet:
    """Distil by distribution matching into `folder`, or read what is there."""
    preprocess, config = teachers_in(runs).preprocess, replace(MATCHED, seed=seed)
    return match_distributions(small_data(), preprocess, NETWORK, config, folder=folder, progress=False)


def evaluate_in(runs: Path, path: Path, *, seed: int = 0) -> Evaluation:
    """Evaluate what is in `runs`, or read what is at `path`."""
    made = DistilledSet.load(runs / "run" / "distilled.safetensors")
    return evaluate(made, small_data(), replace(EVALUATE, seed=seed), save_to=path, progress=False)


def of_teachers(runs: Path, *names: str) -> Subject:
    """The first of these files; the rest are others."""

    def read() -> str:
        teachers = open_teachers(runs / "teachers")
        parts = [tensor_fingerprint({"θ": teachers.trajectory(number)}) for number in range(len(teachers))]
        return fingerprint(teachers.fingerprint, parts)

    path, *others = (runs / f"{name}.safetensors" for name in names)
    return Subject(path, read, tuple(other.read_bytes() for other in others))


def trajectory(runs: Path) -> Subject:
    return of_teachers(runs, "teachers/teacher_000", "teachers/teacher_001", "others/teacher_000")


def manifest(runs: Path) -> Subject:
    return of_teachers(runs, "teachers/teachers", "others/teachers")


def told(result) -> str:
    """All that a distillation gives, but for the seconds that it took."""
    tensors = result.history.tensors() | {"W": result.importance}
    del tensors["history/seconds"]
    return fingerprint(result.distilled.fingerprint, result.config, tensor_fingerprint(tensors))


def distill_result(runs: Path) -> Subject:
    path, other = (runs / name / "distilled.safetensors" for name in ("run", "other_run"))
    return Subject(path, lambda: told(distil(runs, path.parent)), (other.read_bytes(),))


def distilled_set(runs: Path) -> Subject:
    path, other = (runs / name / "distilled.safetensors" for name in ("matched_run", "matched_other_run"))
    return Subject(path, lambda: match(runs, path.parent).fingerprint, (other.read_bytes(),))


def checkpoint(runs: Path) -> Subject:
    path, other = (runs / name / "checkpoint.safetensors" for name in ("half_run", "half_other_run"))

    def read() -> str:
        path.with_name("distilled.safetensors").unlink(missing_ok=True)  # it goes before the checkpoint
        return told(distil(runs, path.parent))

    return Subject(path, read, (other.read_bytes(),))


def evaluation(runs: Path) -> Subject:
    path = runs / "run.safetensors"

    def read() -> str:
        found = evaluate_in(runs, path)
        confusion = tensor_fingerprint({"confusion": found.confusion})
        return fingerprint(confusion, found.classes, found.method, found.config)

    return Subject(path, read, ((runs / "other_run.safetensors").read_bytes(),))


def decoded_cache(runs: Path) -> Subject:
    cache = Path(os.environ["IADD_CACHE"]) / "harmed"
    os.environ["IADD_CACHE"] = str(cache)  # put back by the test
    paths = []
    for name, shape in (("mine", (8, 8)), ("yours", (8, 8, 3))):
        for part in ("train", "test"):
            make_tree(runs / name / part, count=2, shape=shape)
        load("image_folder", runs / name, channels=1)
        paths += [path for path in cache.iterdir() if path not in paths]

    def read() -> str:
        return load("image_folder", runs / "mine", channels=1).fingerprint

    return Subject(paths[0], read, (paths[1].read_bytes(),), heals=True)


def record(runs: Path) -> Subject:
    path, made = runs / "record.json", Record("a" * 16, {"a.png": "b" * 64}, 1.5)
    path.write_text(made.text)
    # Without a record, a notebook is executed anew, which makes the same one.
    return Subject(path, lambda: fingerprint(vars(read_record(path) or made)), ours=False, heals=True)


def replay_buffer(runs: Path) -> Subject:
    path = runs / "replay_buffer_0.pt"
    draws = torch.Generator().manual_seed(0)
    torch.save([[[torch.randn(3, 4, generator=draws)] for _ in range(2)] for _ in range(2)], path)

    def read() -> str:
        tensors = [epoch[0] for teacher in read_replay_buffer(path) for epoch in teacher]
        return tensor_fingerprint({str(number): tensor for number, tensor in enumerate(tensors)})

    return Subject(path, read, ours=False)


KINDS = (
    trajectory, manifest, distilled_set, distill_result, checkpoint, evaluation, decoded_cache, record,
    replay_buffer,
)  # fmt: skip


@pytest.mark.parametrize("make", KINDS)
def test_two_hundred_corruptions_are_all_noticed(make, runs, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("IADD_CACHE", os.environ["IADD_CACHE"])  # whatever a subject does to it
    subject, chance = make(runs), random.Random(make.__name__)
    whole, before = subject.path.read_bytes(), subject.read()
    subject.path.write_bytes(whole)  # a checkpoint goes with the end of its run
    cases = [("forgery", content) for content in (*forgeries(subject, tmp_path), *subject.others)]
    cases += [(name, harm(whole, chance)) for name, harm in TIMES // len(HARMS) * [*HARMS.items()]]
    for number, (name, harmed) in enumerate(cases):
        if harmed != whole:
            subject.path.write_bytes(harmed)
            try:
                check(subject, before, f"{name} {number}", caplog)
            finally:
                subject.path.write_bytes(whole)
    assert subject.read() == before


def check(subject: Subject, before: str, what: str, caplog) -> None:
    """The harmed file is refused by name, or made anew; one of others may also mean the same as before."""
    caplog.clear()
    try:
        found = subject.read()
    except InputError as error:
        sentence = str(error)
        assert not subject.heals, what
        assert str(subject.path) in sentence, what
        assert "\n" not in sentence, what
        assert sentence.endswith("."), (what, sentence)
        return
    assert found == before, what
    assert subject.heals or not subject.ours, what
    if subject.heals:
        assert len(caplog.messages) == 1, (what, caplog.messages)
        assert str(subject.path) in caplog.messages[0], what
        assert "\n" not in caplog.messages[0], what


@pytest.mark.parametrize("harm", ["truncated", "flipped", "empty", "foreign"])
@pytest.mark.parametrize(
    ("command", "victim"),
    [
        ("evaluate {run} --epochs 1 --networks 1", "run/distilled.safetensors"),
        ("distill --teachers {teachers} --out {run}", "teachers/teacher_001.safetensors"),
        ("distill --teachers {teachers} --out {run}", "teachers/teachers.safetensors"),
        ("distill --teachers {teachers} --out {run} --iterations 2 --student-steps 1 --teacher-epochs 1 "
         "--max-start-epoch 1", "run/distilled.safetensors"),
        ("teach --data digits --train-limit 40 --width 2 --depth 1 --epochs 1 --batch 32 --teachers 2 "
         "--out {teachers}", "teachers/teacher_000.safetensors"),
        ("teach --data digits --train-limit 40 --width 2 --depth 1 --out {out} --import-buffers {buffer}",
         "replay_buffer_0.pt"),
    ],
)  # fmt: skip
def test_the_command_line_names_a_harmed_file_in_one_sentence(command, victim, harm, runs, tmp_path):
    replay_buffer(runs)
    path = runs / victim
    whole = path.read_bytes()
    places = {name: runs / name for name in ("run", "teachers")}
    path.write_bytes(HARMS[harm](whole, random.Random(victim)))
    try:
        assert str(path) in ended(2, f"{command} --device cpu", buffer=path, out=tmp_path / "out", **places)
    finally:
        path.write_bytes(whole)


# Files from outside --------------------------------------------------------------------------------------


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("place", ["alone", "in a list", "as a tensor", "in torch's format"])
def test_a_malicious_replay_buffer_does_nothing(tmp_path, place, protocol):
    trap, path = tmp_path / "sprung", tmp_path / "replay_buffer_0.pt"
    content = {"alone": Trap(trap), "in a list": [Trap(trap)]}.get(place, [[[Trap(trap)]]])
    if place == "in torch's format":
        torch.save(content, path, pickle_protocol=max(protocol, 2))
    else:
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    assert_refused(r"replay_buffer_0\.pt is refused", read_replay_buffer, path)
    assert not trap.exists()


def test_what_the_machine_is_short_of_is_no_fault_of_the_file(tmp_path, monkeypatch):
    path = replay_buffer(tmp_path).path
    monkeypatch.setattr(torch, "load", Mock(side_effect=OSError(errno.EMFILE, "Too many open files")))
    with pytest.raises(OSError, match="Too many open files"):
        read_replay_buffer(path)


def test_an_old_pickle_of_mnist_is_not_unpickled(tmp_path):
    make_idx(tmp_path)
    folder = tmp_path / "MNIST" / "processed"
    folder.mkdir()
    for name in ("training.pt", "test.pt"):
        (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    assert_refused(r"MNIST in .* is incomplete or damaged", load, "mnist", tmp_path)
    assert not (tmp_path / "sprung").exists()


@pytest.fixture
def offline(monkeypatch):
    """Whoever opens a socket fails, and is noted."""
    opened = []

    def refuse(*arguments, **options):
        opened.append(arguments)
        raise OSError("no network")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    return opened


def test_loading_needs_no_network(tmp_path, offline):
    make_idx(tmp_path)
    load("mnist", tmp_path)
    load("digits")
    load("image_folder", make_tree(tmp_path / "mine"))
    for name in ("cifar10", "cifar100", "fashion_mnist", "tiny_imagenet", "covid19"):
        assert_refused("which is not there", load, name, tmp_path)
    assert offline == []
    assert_refused("could not be fetched", fetch_data, "fashion_mnist", root=tmp_path)
    assert offline != []  # the one function that may


def test_an_archive_that_is_not_the_official_one_is_not_unpacked(tmp_path, offline):
    root = tmp_path / "data"
    root.mkdir()
    with tarfile.open(root / torchvision.datasets.CIFAR10.filename, "w:gz") as archive:
        for name in ("../escaped", "cifar-10-batches-py/data_batch_1", str(tmp_path / "absolute")):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
    assert_refused("CIFAR-10 could not be fetched", fetch_data, "cifar10", root=root)
    assert [path.name for path in tmp_path.rglob("*")] == ["data", torchvision.datasets.CIFAR10.filename]


BAD_NAMES = ["../n01", "..", "/etc", "a/../../n01", "..\\n01", "C:n01", "n\x0001", "n\x1b[2J"]


def test_names_in_lists_cannot_lead_out_of_their_folder(tmp_path):
    folder = make_small_imagenet(tmp_path)
    assert len(load("tiny_imagenet", tmp_path).test) == 2
    notes, names = folder / "val" / "val_annotations.txt", folder / "wnids.txt"
    kept = notes.read_text()
    notes.write_text(f"{kept}000.png\tn02\n")
    twice = r"line 3 of .*annotations\.txt names 000\.png a second time"
    assert_refused(twice, load, "tiny_imagenet", tmp_path)
    for name in BAD_NAMES:
        notes.write_text(f"{kept}{name}\tn01\t0\n")
        assert_refused(r"val_annotations\.txt names .* must be a plain name", load, "tiny_imagenet", tmp_path)
        notes.write_text(kept)
        names.write_text(f"n01\n{name}\n")
        assert_refused(r"wnids\.txt names .* must be a plain name", load, "tiny_imagenet", tmp_path)
        names.write_text("n01\nn02\n")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_what_is_no_regular_file_is_not_opened(tmp_path):
    root = make_tree(tmp_path / "mine")
    odd = root / "cat" / "odd.png"
    os.mkfifo(odd)
    assert_refused(r"odd\.png is no regular file", load, "image_folder", root)
    odd.unlink()
    odd.symlink_to(odd.name)
    assert_refused(r"odd\.png", load, "image_folder", root)
    odd.unlink()
    make_tree(root, ("fox\nerror",), count=2)
    assert_refused(r"class folder 'fox\\nerror', which is no plain text", load, "image_folder", root)


# Bad images ----------------------------------------------------------------------------------------------


def bomb(side: int) -> bytes:
    """A PNG whose header promises `side`² pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(10_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


BAD = ("bomb.png", "cut.png", "text.jpg")


def bad_tree(folder: Path) -> Path:
    """Two classes of six images, and three files that are none: too large, cut short, and text."""
    root = make_tree(folder, shape=(32, 32, 3))
    (root / "cat" / "bomb.png").write_bytes(bomb(30_000))
    (root / "cat" / "cut.png").write_bytes((root / "cat" / "000.png").read_bytes()[:-900])
    (root / "dog" / "text.jpg").write_bytes(b"not an image")
    return root


@pytest.mark.parametrize("kept", BAD)
def test_bad_images_are_refused_by_name(tmp_path, kept):
    root = bad_tree(tmp_path / "mine")
    for name in set(BAD) - {kept}:
        next(root.rglob(name)).unlink()
    assert_refused(kept, load, "image_folder", root)
    next(root.rglob(kept)).write_bytes(bomb(8193))  # by its header alone
    told = rf"{kept} has 8193×8193 pixels, but at most \d+ are decoded"
    assert_refused(told, load, "image_folder", root)


def test_bad_images_are_skipped_if_asked_for_and_said_once(tmp_path, caplog):
    plain = load("image_folder", make_tree(tmp_path / "plain", shape=(32, 32, 3)), channels=3)
    root = bad_tree(tmp_path / "mine")
    told = (
        r"3 of 15 images can't be decoded \(.*cat/bomb\.png.*cat/cut\.png.*dog/text\.jpg.*\) and were skipped"
    )
    for _ in range(2):  # decoded, then from the cache
        caplog.clear()
        data = load("image_folder", root, channels=3, bad_images="skip")
        assert data.fingerprint == plain.fingerprint
        assert re.fullmatch(told, data.remark)
        (said,) = (record for record in caplog.records if record.levelno == logging.WARNING)
        assert data.remark in said.getMessage()
    # The cache does not soften it.
    assert_refused("can't be decoded", load, "image_folder", root, channels=3)
    for number in range(12):
        (root / "dog" / f"bad_{number:02}.png").write_bytes(b"x")
    remark = load("image_folder", root, channels=3, bad_images="skip").remark
    assert re.match(r"15 of 27 images .*dog/bad_07\.png and 5 more\)", remark)


def test_a_class_that_would_become_empty_is_refused(tmp_path):
    for part in ("train", "test"):
        make_tree(tmp_path / "mine" / part, count=2)
    for path in (tmp_path / "mine" / "test" / "dog").iterdir():
        path.write_bytes(b"x")
    told = r"has no good image left of class 'dog': 2 of 8 images .*dog/000\.png"
    assert_refused(told, load, "image_folder", tmp_path / "mine", bad_images="skip")


def test_a_machine_in_trouble_is_no_reason_to_skip(tmp_path, monkeypatch):
    root = make_tree(tmp_path / "mine")

    def fail(*arguments, **options):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("PIL.Image.open", fail)
    assert_refused("Too many open files", load, "image_folder", root, channels=3, bad_images="skip")


def test_the_policy_is_stored_only_where_it_was_set_and_does_not_touch_arrays():
    assert fingerprint(DataConfig("image_folder")) == "39211b7f216519a3"  # as before there was such a field
    skipped = load("digits", bad_images="skip")
    assert skipped.remark == ""
    assert torch.equal(skipped.test.images, load("digits").test.images)
