"""Trajectories: what is stored, that nothing in it moves, and what is refused."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from iadd_lab.data.sets import load_data
from iadd_lab.errors import DivergenceError, InputError
from iadd_lab.seeds import derive_seed
from iadd_lab.store.artefacts import save_artefact
from iadd_lab.training.networks import NetworkConfig
from iadd_lab.training.sgd import Training
from iadd_lab.training.teachers import open_teachers, train_teachers


@pytest.fixture
def copied(toy_teachers, tmp_path) -> Path:
    """A folder of teachers that a test may damage."""
    return Path(shutil.copytree(toy_teachers.folder, tmp_path / "teachers"))


def test_a_trajectory_starts_at_the_initialisation_and_moves_every_epoch(toy_teachers, toy_config):
    initial = toy_teachers.network(derive_seed(toy_config.seed, "teacher", 1))
    assert torch.equal(toy_teachers.snapshot(1, 0), toy_teachers.layout.flatten(initial.parameters()))
    snapshots = [toy_teachers.snapshot(1, epoch) for epoch in range(toy_config.epochs + 1)]
    for earlier, later in itertools.pairwise(snapshots):
        assert (earlier != later).double().mean() > 0.5  # no alias of the live weights


def test_teachers_differ_and_learn(toy_teachers, toy_config):
    assert len(toy_teachers) == 2
    assert not torch.equal(toy_teachers.snapshot(0, 3), toy_teachers.snapshot(1, 3))
    for teacher in range(2):
        history = toy_teachers.history(teacher)
        assert len(history["train_loss"]) == toy_config.epochs
        assert history["train_loss"][-1] < history["train_loss"][0]
        assert history["validation_accuracy"] > 0.8


def test_a_biased_convolution_before_instance_norm_never_moves(toy_teachers):
    """A fact that measures of importance must live with: its gradient is zero but for rounding."""
    first, last = (toy_teachers.layout.split(toy_teachers.snapshot(0, epoch)) for epoch in (0, 3))
    name = next(name for name in toy_teachers.layout.names if name.endswith("bias"))
    assert torch.allclose(first[name], last[name], atol=1e-6)


def test_more_teachers_join_and_the_old_ones_stay(toy_data, toy_config, copied, toy_teachers):
    stamp = (copied / "teacher_000.safetensors").stat().st_mtime_ns
    (copied / "teacher_001.safetensors").unlink()  # as if the run had been killed there
    more = train_teachers(toy_data, toy_config, copied, count=3, progress=False)
    assert len(more) == 3
    assert (copied / "teacher_000.safetensors").stat().st_mtime_ns == stamp
    assert torch.equal(more.snapshot(1, 3), toy_teachers.snapshot(1, 3))


def test_a_folder_of_other_settings_is_refused(toy_data, toy_config, copied):
    wider = replace(toy_config, network=NetworkConfig(width=8, depth=2))
    with pytest.raises(InputError, match=r"other settings \(config.network.width is 4 there, 8 asked for\)"):
        train_teachers(toy_data, wider, copied, count=1, progress=False)
    zca = replace(toy_config, preprocess="zca")
    with pytest.raises(InputError, match=r"config.preprocess is 'standardise' there, 'zca' asked for"):
        train_teachers(toy_data, zca, copied, count=1, progress=False)
    with pytest.raises(InputError, match="data_fingerprint"):
        train_teachers(load_data("digits", progress=False), toy_config, copied, count=1, progress=False)


def test_damaged_and_foreign_trajectories_are_named(copied, toy_teachers):
    path = copied / "teacher_001.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"teacher_001.safetensors is not a whole"):
        open_teachers(copied)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match=r"teacher_001.safetensors is damaged"):
        open_teachers(copied)
    tensors = {"trajectory": torch.zeros(4, toy_teachers.layout.count)}
    save_artefact(path, kind="trajectory", tensors=tensors, metadata={"teachers": "other"})
    with pytest.raises(InputError, match="another set of teachers"):
        open_teachers(copied)


def test_an_empty_folder_says_how_to_train(tmp_path):
    with pytest.raises(InputError, match=r"no teachers in .*: train them with `iadd-lab teach"):
        open_teachers(tmp_path)


@pytest.mark.parametrize("count", [0, -1, 1.5])
def test_a_bad_count_is_named(toy_data, toy_config, tmp_path, count):
    with pytest.raises(InputError, match="count is"):
        train_teachers(toy_data, toy_config, tmp_path, count=count, progress=False)


def test_a_network_too_deep_is_refused_before_training(toy_data, toy_config, tmp_path):
    deep = replace(toy_config, network=NetworkConfig(width=4, depth=6))
    with pytest.raises(InputError, match="depth"):
        train_teachers(toy_data, deep, tmp_path, count=1, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_diverging_teacher_says_what_to_lower(toy_data, toy_config, tmp_path):
    with pytest.raises(DivergenceError, match="lower the rate"):
        train_teachers(toy_data, replace(toy_config, rate=1e30), tmp_path, count=1, progress=False)


class Killed(Exception):
    """Stands for a kill in the middle of training."""


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("epoch", [1, 2])
def test_a_killed_teacher_goes_on_bit_for_bit(toy_data, toy_config, tmp_path, monkeypatch, momentum, epoch):
    config = replace(toy_config, momentum=momentum, epochs=3)
    whole = train_teachers(toy_data, config, tmp_path / "whole", count=2, progress=False)
    advance, seen = Training.advance, []

    def kill(self):
        seen.append(self.epoch)
        if seen == list(range(epoch + 1)):
            raise Killed
        return advance(self)

    monkeypatch.setattr(Training, "advance", kill)
    options = {"count": 2, "progress": False, "checkpoint_seconds": 0.0}
    with pytest.raises(Killed):
        train_teachers(toy_data, config, tmp_path / "cut", **options)
    resumed = train_teachers(toy_data, config, tmp_path / "cut", **options)
    assert seen == [*range(epoch + 1), *range(epoch, 3), 0, 1, 2]
    for number in range(2):
        assert torch.equal(resumed.trajectory(number), whole.trajectory(number))
        assert resumed.history(number) == whole.history(number)
    assert not list(tmp_path.glob("cut/checkpoint*"))


def test_a_teacher_by_another_name_is_refused(toy_teachers, tmp_path):
    shutil.copytree(toy_teachers.folder, tmp_path / "copy")
    first, second = (tmp_path / "copy" / f"teacher_00{number}.safetensors" for number in range(2))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    with pytest.raises(InputError, match=r"teacher_000.safetensors holds teacher 1, by another name"):
        open_teachers(tmp_path / "copy")
