"""Trajectories on disk: memory does not grow with their number or size; how precisely they are kept."""

from __future__ import annotations

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
from iadd_lab.distillation.loop import distill
from iadd_lab.errors import InputError
from iadd_lab.store.artefacts import open_artefact
from iadd_lab.store.configs import describe, fingerprint
from iadd_lab.training import teachers as module
from iadd_lab.training.networks import NetworkConfig
from iadd_lab.training.teachers import (
    STORE_DTYPES,
    TeacherConfig,
    open_teachers,
    prepare_teachers,
    train_teachers,
)
from tests.test_distill import CONFIG

LARGE = TeacherConfig(network=NetworkConfig(width=128, depth=2), epochs=33)  # 21 MB each

# The peak of memory that belongs to the process alone: pages of mapped files are the system's cache. In MB.
_DISTIL = """
import re, sys, torch
torch.set_num_threads(1)
from iadd_lab.data.sets import load_data
from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.loop import distill
from iadd_lab.training.teachers import open_teachers

def own():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

teachers = open_teachers(sys.argv[1], count=int(sys.argv[2]))
config = DistillConfig(iterations=40, student_steps=1, teacher_epochs=1, max_start_epoch=30,
                       image_rate=1e-3, alpha_rate=0)
peak = [own()]
distill(load_data("digits", progress=False), teachers, config, progress=False,
        on_iteration=lambda *_: peak.append(own()))
print(len(teachers), max(peak))
"""
_TRAIN = """
import re, sys, torch
torch.set_num_threads(1)
from pathlib import Path
from iadd_lab.training import teachers
from iadd_lab.data.sets import load_data
from iadd_lab.training.networks import NetworkConfig

def status(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

own, snapshot, peak = (lambda: status("RssAnon")), teachers._snapshot, []
teachers._snapshot = lambda *given: peak.append(own()) or snapshot(*given)
teachers._accuracy = lambda *_: peak.append(own()) or 0.5
teachers.Training.advance = lambda self: setattr(self, "epoch", self.epoch + 1) or [0.5]
data = load_data("digits", progress=False)
config = teachers.TeacherConfig(network=NetworkConfig(width=128, depth=2), epochs=101, batch=2048)
for name, teachers._LARGE in (("file", 0), ("memory", 2**40)):
    peak.clear()
    folder = Path(sys.argv[1]) / name
    teachers.train_teachers(data, config, folder, count=1, progress=False, checkpoint_seconds=1e9)
    print(max(*peak, own()) - peak[1])
"""


def output(code: str, *arguments: object) -> list[float]:
    """What a process of its own prints: numbers."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [float(word) for word in done.stdout.split()]


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Iterator[Path]:
    """Fifty synthetic trajectories of 21 MB each."""
    folder = tmp_path_factory.mktemp("many")
    teachers = prepare_teachers(load_data("digits", progress=False), LARGE, folder)
    start = teachers.layout.flatten(teachers.network(0).parameters()).detach()
    away = torch.randn(len(start), generator=torch.Generator().manual_seed(0))
    for number in range(50):
        steps = torch.arange(LARGE.epochs + 1)[:, None] * 0.01
        teachers.save(number, start + steps * away.roll(number), history={})
    yield folder
    shutil.rmtree(folder)  # pytest would keep that gigabyte


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_fifty_stored_teachers_take_no_more_memory_than_five(many):
    few, all_of_them = (output(_DISTIL, many, count) for count in (5, 50))
    assert (few[0], all_of_them[0]) == (5, 50)
    assert all_of_them[1] == pytest.approx(few[1], rel=0.05)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_large_trajectory_is_not_kept_in_memory_while_it_comes_to_be(tmp_path):
    """63 MB: in memory it is seen there, in a mapped file it is not."""
    mapped, kept = output(_TRAIN, tmp_path)
    assert kept > 50
    assert mapped < 15


def test_a_mapped_trajectory_is_the_same_and_leaves_nothing_behind(
    toy_data, toy_config, toy_teachers, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "_LARGE", 0)
    made = train_teachers(toy_data, toy_config, tmp_path, count=1, progress=False)
    assert torch.equal(made.trajectory(0), toy_teachers.trajectory(0))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "teacher_000.safetensors",
        "teachers.safetensors",
    ]


class Killed(Exception):
    """Stands for a kill in the middle of training."""


@pytest.mark.parametrize("store_dtype", STORE_DTYPES)
@pytest.mark.parametrize("large", [0, 2**40])
def test_a_killed_teacher_goes_on_in_every_precision(
    toy_data, toy_config, toy_teachers, tmp_path, monkeypatch, store_dtype, large
):
    monkeypatch.setattr(module, "_LARGE", large)
    advance = module.Training.advance

    def kill(self):
        if self.epoch == 2:
            raise Killed
        return advance(self)

    config = replace(toy_config, store_dtype=store_dtype)
    options = {"count": 1, "progress": False, "checkpoint_seconds": 0.0}
    monkeypatch.setattr(module.Training, "advance", kill)
    with pytest.raises(Killed):
        train_teachers(toy_data, config, tmp_path, **options)
    monkeypatch.setattr(module.Training, "advance", advance)
    made = train_teachers(toy_data, config, tmp_path, **options)
    # Rounded once, when it is stored: training itself stays float32.
    exact, dtype = toy_teachers.trajectory(0), STORE_DTYPES[store_dtype]
    assert torch.equal(made.trajectory(0), exact.to(dtype).float())
    assert made.snapshot(0, 1).dtype == torch.float32
    with open_artefact(made.path(0)) as file:
        assert file.get_tensor("trajectory").dtype == dtype


def test_half_the_bytes_and_nearly_the_same_loss(toy_data, toy_config, toy_teachers, tmp_path):
    half = train_teachers(
        toy_data, replace(toy_config, store_dtype="float16"), tmp_path, count=2, progress=False
    )
    size, exact = half.path(0).stat().st_size, toy_teachers.path(0).stat().st_size
    values = toy_teachers.layout.count * (toy_config.epochs + 1)
    assert exact - size == pytest.approx(2 * values, abs=100)
    assert half.fingerprint != toy_teachers.fingerprint
    losses = [
        distill(toy_data, each, CONFIG, progress=False).history.loss[0] for each in (half, toy_teachers)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0] != losses[1]


def test_the_precision_is_part_of_what_teachers_are_but_for_the_default(toy_data, toy_config, tmp_path):
    assert "store_dtype" not in describe(TeacherConfig())
    assert fingerprint(TeacherConfig(store_dtype="float16")) != fingerprint(TeacherConfig())
    train_teachers(toy_data, replace(toy_config, store_dtype="float16"), tmp_path, count=1, progress=False)
    assert open_teachers(tmp_path).config.store_dtype == "float16"
    with pytest.raises(InputError, match=re.escape("config.store_dtype is 'float16' there")):
        train_teachers(toy_data, toy_config, tmp_path, count=1, progress=False)
    with pytest.raises(InputError, match=r"unknown store_dtype 'float61' .*'float16'"):
        TeacherConfig(store_dtype="float61")
