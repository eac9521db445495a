"""Teachers: what is stored, how precisely, in how much memory, that nothing in it moves, what is refused."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from iadd_lab.data.sets import load_data
from iadd_lab.device import Execution
from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.loop import distill
from iadd_lab.errors import DivergenceError, InputError
from iadd_lab.seeds import derive_seed
from iadd_lab.store.artefacts import open_artefact, save_artefact
from iadd_lab.store.configs import describe, fingerprint
from iadd_lab.training import teachers as module
from iadd_lab.training.fast.compiling import PLAIN, flops
from iadd_lab.training.networks import NetworkConfig
from iadd_lab.training.sgd import Training, predict
from iadd_lab.training.teachers import (
    STORE_DTYPES,
    TeacherConfig,
    open_teachers,
    prepare_teachers,
    train_teacher,
    train_teachers,
)
from tests.conftest import AUGMENT
from tests.test_evaluate import Killed, killed_once

STORED = Path(__file__).parent / "golden" / "stored"
LARGE = TeacherConfig(network=NetworkConfig(width=128, depth=2), epochs=33)  # 21 MB each
in_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")

# Each prints peaks of the memory that is the process's own, in MB: mapped files are the system's cache.
_OWN = """
import re, sys, torch
torch.set_num_threads(1)
from pathlib import Path
from iadd_lab.data.sets import load_data
from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.loop import distill
from iadd_lab.training import teachers
from iadd_lab.training.networks import NetworkConfig
data, peak = load_data("digits", progress=False), []
def note():
    peak.append(int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024)
"""
_DISTIL = """
trained = teachers.open_teachers(sys.argv[1], count=int(sys.argv[2]))
config = DistillConfig(iterations=40, student_steps=1, teacher_epochs=1, max_start_epoch=30,
                       image_rate=1e-3, alpha_rate=0)
note()
distill(data, trained, config, progress=False, on_iteration=lambda *_: note())
print(len(trained), max(peak))
"""
_TRAIN = """
teachers.Training.advance = lambda self: note() or setattr(self, "epoch", self.epoch + 1) or [0.5]
teachers.predict = lambda *_, **__: note() or data.validation.labels
config = teachers.TeacherConfig(network=NetworkConfig(width=128, depth=2), epochs=101, batch=2048)
for name, teachers._LARGE in (("file", 0), ("memory", 2**40)):
    peak.clear()
    folder = Path(sys.argv[1]) / name
    teachers.train_teachers(data, config, folder, count=1, progress=False, checkpoint_seconds=1e9)
    note()
    print(max(peak) - peak[1])
"""


def output(code: str, *arguments: object) -> list[float]:
    """What a process of its own prints: numbers."""
    command = [sys.executable, "-c", _OWN + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    return [float(word) for word in done.stdout.split()]


@pytest.fixture
def copied(toy_teachers, tmp_path) -> Path:
    """A folder of teachers that a test may damage."""
    return Path(shutil.copytree(toy_teachers.folder, tmp_path / "teachers"))


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Iterator[Path]:
    """Twelve synthetic trajectories of 21 MB each."""
    folder = tmp_path_factory.mktemp("many")
    teachers = prepare_teachers(load_data("digits", progress=False), LARGE, folder)
    start = teachers.layout.flatten(teachers.network(0).parameters()).detach()
    away = torch.randn(len(start), generator=torch.Generator().manual_seed(0))
    for number in range(12):
        steps = torch.arange(LARGE.epochs + 1)[:, None] * 0.01
        teachers.save(number, start + steps * away.roll(number), history={})
    yield folder
    shutil.rmtree(folder)  # pytest would keep those 250 MB


def test_a_trajectory_starts_at_the_initialisation_and_moves_every_epoch(toy_teachers, toy_config):
    initial = toy_teachers.network(derive_seed(toy_config.seed, "teacher", 1))
    assert torch.equal(toy_teachers.snapshot(1, 0), toy_teachers.layout.flatten(initial.parameters()))
    snapshots = [toy_teachers.snapshot(1, epoch) for epoch in range(toy_config.epochs + 1)]
    for earlier, later in itertools.pairwise(snapshots):
        assert (earlier != later).double().mean() > 0.5  # no alias of the live weights


def test_teachers_differ_and_learn(toy_data, toy_teachers, toy_config):
    assert len(toy_teachers) == 2
    assert not torch.equal(toy_teachers.snapshot(0, 3), toy_teachers.snapshot(1, 3))
    split = toy_data.validation
    for teacher in range(2):
        history, network = toy_teachers.history(teacher), toy_teachers.network(0)
        network.load_state_dict(toy_teachers.layout.split(toy_teachers.snapshot(teacher, 3)))
        right = predict(network, toy_teachers.preprocess.apply(split.images)) == split.labels
        assert history["validation_accuracy"] == right.double().mean()
        assert len(history["train_loss"]) == toy_config.epochs
        assert history["train_loss"][-1] < history["train_loss"][0]
        assert history["validation_accuracy"] > 0.8


def test_more_teachers_join_and_the_old_ones_stay(toy_data, toy_config, copied, toy_teachers):
    stamp = (copied / "teacher_000.safetensors").stat().st_mtime_ns
    (copied / "teacher_001.safetensors").unlink()  # as if the run had been killed there
    more = train_teachers(toy_data, toy_config, copied, count=3, progress=False)
    assert len(more) == 3
    assert (copied / "teacher_000.safetensors").stat().st_mtime_ns == stamp
    assert torch.equal(more.snapshot(1, 3), toy_teachers.snapshot(1, 3))


def test_each_teacher_can_be_trained_by_itself(toy_data, toy_config, toy_teachers, tmp_path, monkeypatch):
    teachers = prepare_teachers(toy_data, toy_config, tmp_path)
    with pytest.raises(InputError, match=r"were trained on .* but the data is"):
        train_teacher(replace(toy_data, fingerprint="of others"), teachers, 1, progress=False)
    train_teacher(toy_data, teachers, 1, progress=False)
    assert teachers.missing(3) == [0, 2]
    assert torch.equal(teachers.trajectory(0), toy_teachers.trajectory(1))  # the first that is there
    monkeypatch.setattr(Training, "advance", None)  # nothing is trained
    train_teacher(toy_data, teachers, 1, progress=False)
    names = ["teacher_001.safetensors", "teachers.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_folder_of_other_settings_is_refused(toy_data, toy_config, copied):
    other = replace(toy_config, network=NetworkConfig(width=8, depth=2), preprocess="zca")
    network, preprocess = "network.width is 4 there, 8", "preprocess is 'standardise' there, 'zca'"
    sentence = rf"other settings \(config.{network} asked for; config.{preprocess} asked for\)"
    with pytest.raises(InputError, match=sentence):
        train_teachers(toy_data, other, copied, count=1, progress=False)
    with pytest.raises(InputError, match="data_fingerprint"):
        train_teachers(load_data("digits", progress=False), toy_config, copied, count=1, progress=False)


def test_foreign_and_missing_trajectories_are_named(copied, toy_teachers):
    first, path = copied / "teacher_000.safetensors", copied / "teacher_001.safetensors"
    whole = path.read_bytes()
    open_teachers(copied).save(1, torch.zeros(3, toy_teachers.layout.count), history={})
    with pytest.raises(InputError, match=r"teacher_001.safetensors holds \(3, \d+\), expected \(4, \d+\)"):
        open_teachers(copied)
    tensors = {"trajectory": torch.zeros(4, toy_teachers.layout.count)}
    save_artefact(path, kind="trajectory", tensors=tensors, metadata={"teachers": "other"})
    with pytest.raises(InputError, match="another set of teachers"):
        open_teachers(copied)
    first.write_bytes(whole)
    with pytest.raises(InputError, match=r"teacher_000.safetensors holds teacher 1, by another name"):
        open_teachers(copied)
    with pytest.raises(InputError, match=r"no teachers in .*: train them with `iadd-lab teach"):
        open_teachers(copied.parent)


def test_a_bad_count_and_a_network_too_deep_are_refused_before_training(toy_data, toy_config, tmp_path):
    for count in (0, -1, 1.5):
        with pytest.raises(InputError, match="count is"):
            train_teachers(toy_data, toy_config, tmp_path, count=count, progress=False)
    deep = replace(toy_config, network=NetworkConfig(width=4, depth=6))
    with pytest.raises(InputError, match="depth"):
        train_teachers(toy_data, deep, tmp_path, count=1, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_diverging_teacher_says_what_to_lower(toy_data, toy_config, tmp_path):
    with pytest.raises(DivergenceError, match="lower the rate"):
        train_teachers(toy_data, replace(toy_config, rate=1e30), tmp_path, count=1, progress=False)


def test_each_teacher_has_an_order_of_its_own_and_compiles_by_all_its_epochs(
    toy_data, toy_teachers, monkeypatch
):
    def choose(mode, *, work, device):
        works.append(work)
        return PLAIN

    works = []
    monkeypatch.setattr(module, "choose_kernels", choose)
    both = [module._Teacher(toy_teachers, n, toy_data, Execution(device="cpu")) for n in range(2)]
    first, second = (each.training.generators[0].get_state() for each in both)
    assert not torch.equal(first, second)
    passes = 3 * toy_teachers.config.epochs * len(toy_data.train)
    assert works == 2 * [passes * flops(toy_teachers.network(0), channels=1, size=8)]


def test_a_teacher_whose_last_step_leaves_no_numbers_is_not_stored(
    toy_data, toy_config, tmp_path, monkeypatch
):
    advance = Training.advance

    def spoil(training):
        losses = advance(training)
        next(training.networks[0].parameters()).detach().fill_(torch.nan)
        return losses

    monkeypatch.setattr(Training, "advance", spoil)
    with pytest.raises(DivergenceError, match="teacher 0 ended with parameters that are not finite"):
        train_teachers(toy_data, replace(toy_config, epochs=1), tmp_path, count=1, progress=False)
    assert not list(tmp_path.glob("teacher_*"))


@pytest.mark.parametrize(
    ("momentum", "epoch", "store_dtype", "large"),
    [(0.0, 1, "float32", 2**40), (0.9, 2, "float32", 0), (0.9, 1, "float16", 2**40),
     (0.0, 2, "float16", 0), (0.9, 1, "bfloat16", 0), (0.0, 2, "bfloat16", 2**40)],
)  # fmt: skip
def test_a_killed_teacher_goes_on_bit_for_bit(
    toy_data, toy_config, tmp_path, monkeypatch, momentum, epoch, store_dtype, large
):
    """Where its trajectory is kept in memory, and in a mapped file; in every precision."""
    config = replace(toy_config, momentum=momentum)
    whole = train_teachers(toy_data, config, tmp_path / "whole", count=2, progress=False)
    monkeypatch.setattr(module, "_LARGE", large)
    seen = killed_once(monkeypatch, epoch + 1)
    options = {"count": 2, "progress": False, "checkpoint_seconds": 0.0}
    config, cut = replace(config, store_dtype=store_dtype), tmp_path / "cut"
    with pytest.raises(Killed):
        train_teachers(toy_data, config, cut, **options)
    resumed = train_teachers(toy_data, config, cut, **options)
    assert seen == [*range(epoch + 1), *range(epoch, 3), 0, 1, 2]
    dtype = STORE_DTYPES[store_dtype]
    for number in range(2):
        # Rounded once, when it is stored: training itself stays float32.
        assert torch.equal(resumed.trajectory(number), whole.trajectory(number).to(dtype).float())
        assert resumed.history(number) == whole.history(number)
        with open_artefact(resumed.path(number)) as file:
            assert file.get_tensor("trajectory").dtype == dtype
    assert {path.name for path in cut.iterdir()} == {path.name for path in whole.folder.iterdir()}


@in_proc
def test_many_stored_teachers_take_no_more_memory_than_three(many):
    few, all_of_them = (output(_DISTIL, many, count) for count in (3, 12))
    assert (few[0], all_of_them[0]) == (3, 12)
    assert all_of_them[1] == pytest.approx(few[1], rel=0.05)


@in_proc
def test_a_large_trajectory_is_not_kept_in_memory_while_it_comes_to_be(tmp_path):
    """63 MB: in memory it is seen there, in a mapped file it is not."""
    mapped, kept = output(_TRAIN, tmp_path)
    assert kept > 50
    assert mapped < 15


def test_half_the_bytes_and_nearly_the_same_loss(toy_data, toy_config, toy_teachers, tmp_path):
    config = replace(toy_config, store_dtype="float16")
    half = train_teachers(toy_data, config, tmp_path, count=2, progress=False)
    size, exact = half.path(0).stat().st_size, toy_teachers.path(0).stat().st_size
    values = toy_teachers.layout.count * (toy_config.epochs + 1)
    assert exact - size == pytest.approx(2 * values, abs=100)
    assert half.fingerprint != toy_teachers.fingerprint
    run = DistillConfig(iterations=1, student_steps=3, teacher_epochs=1, max_start_epoch=2, augment=AUGMENT)
    half_loss, loss = (
        distill(toy_data, each, run, progress=False).history.loss[0] for each in (half, toy_teachers)
    )
    assert half_loss != loss
    assert half_loss == pytest.approx(loss, rel=1e-3)
    # The precision is part of what teachers are, but for the default.
    assert open_teachers(tmp_path).config.store_dtype == "float16"
    with pytest.raises(InputError, match=re.escape("config.store_dtype is 'float16' there")):
        train_teachers(toy_data, toy_config, tmp_path, count=1, progress=False)
    assert "store_dtype" not in describe(TeacherConfig())
    assert fingerprint(TeacherConfig(store_dtype="float16")) != fingerprint(TeacherConfig())
    with pytest.raises(InputError, match=r"unknown store_dtype 'float61' .*'float16'"):
        TeacherConfig(store_dtype="float61")


def test_teachers_of_the_revision_before_rooms_are_read(toy_data, toy_config, tmp_path, monkeypatch):
    """Finished ones are, and one that was stopped after two of its three epochs goes on."""
    expected = json.loads((STORED / "expected.json").read_text(encoding="utf-8"))
    finished = Path(shutil.copytree(STORED / "teachers", tmp_path / "teachers"))
    half = Path(shutil.copytree(STORED / "half_taught", tmp_path / "half"))
    seen = killed_once(monkeypatch, 0)  # never
    there = train_teachers(toy_data, toy_config, finished, count=2, progress=False)
    assert there.fingerprint == expected["teachers"]
    resumed = train_teachers(toy_data, toy_config, half, count=1, progress=False)
    assert seen == [2]
    # The last epoch is this processor's.
    assert torch.allclose(resumed.trajectory(0), there.trajectory(0), atol=1e-3)
    assert torch.equal(resumed.trajectory(0)[:3], there.trajectory(0)[:3])
