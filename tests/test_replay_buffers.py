"""Files of others: read without running code in them, refused with their name, used like our own."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from iadd_lab.training.networks import NetworkConfig
from iadd_lab.training.replay_buffers import import_replay_buffers, read_replay_buffer
from tests.processes import ended
from tests.samples import assert_refused


@pytest.fixture
def path(toy_teachers, tmp_path):
    """The file that MTT's code would have written: lists of lists of parameter tensors."""
    split, path = toy_teachers.layout.split, tmp_path / "replay_buffer_0.pt"
    snapshots = [[split(toy_teachers.snapshot(t, epoch)).values() for epoch in range(4)] for t in range(2)]
    torch.save([[[p.clone() for p in snapshot] for snapshot in each] for each in snapshots], path)
    return path


@pytest.fixture
def imported(path, toy_data, toy_config, tmp_path):
    """Imports the file, or several, with other data or another configuration where it is given."""

    def call(*paths, data=toy_data, config=toy_config):
        return import_replay_buffers(paths or [path], data, config, tmp_path / "imported", progress=False)

    return call


def test_replay_buffers_of_others_become_teachers(path, imported, toy_config, toy_teachers, caplog):
    teachers = imported(path, path, config=replace(toy_config, epochs=99))  # not known before a file is read
    assert len(teachers) == 4
    assert teachers.config.epochs == 3
    assert torch.equal(teachers.snapshot(3, 2), toy_teachers.snapshot(1, 2))
    noted = [teachers.history(n)["validation_accuracy"] for n in range(4)]
    assert noted == 2 * [toy_teachers.history(n)["validation_accuracy"] for n in range(2)]
    assert_refused("holds teachers already", imported)
    assert not caplog.records


def test_classes_in_another_order_are_warned_of(path, imported, toy_teachers, caplog):
    buffer, whole = torch.load(path), path.rename(path.with_name("whole.pt"))
    for snapshot in (s for trajectory in buffer for s in trajectory):
        snapshot[-2:] = [tensor.flip(0) for tensor in snapshot[-2:]]  # the classifier's rows and biases
    torch.save(buffer, path)
    teachers = imported(path, path, whole)
    for teacher in range(2):
        right = toy_teachers.history(teacher)["validation_accuracy"]
        assert teachers.history(teacher)["validation_accuracy"] == pytest.approx(1 - right)
    (record,) = caplog.records
    sentence = "4 of 6 imported teachers have less than 60.0 % validation accuracy, and guessing 50.0 %"
    assert f"{sentence}: classes or preprocessing of the buffers may differ" in record.getMessage()


def test_the_order_of_tiny_imagenets_classes_is_warned_of(imported, toy_data, caplog):
    imported(data=replace(toy_data, config=replace(toy_data.config, name="tiny_imagenet")))
    assert "sorted folder names, this package as in wnids.txt" in caplog.text


def test_options_of_training_are_refused_beside_buffers(tmp_path):
    options = "--compile never --cluster local --seed 1 --augment none --weight-decay 0.1 --momentum 0.5 "
    options += "--batch 8 --rate 0.1 --epochs 50 --teachers 3"  # defaults too, where they were asked for
    command = f"teach --data digits --width 4 --device cpu --import-buffers {{}} --out {{}} {options}"
    sentence = ended(2, command, tmp_path / "replay_buffer_0.pt", tmp_path / "out")
    named = "--teachers, --epochs, --rate, --batch, --momentum, --weight-decay, --augment, --seed, --compile"
    assert sentence.startswith(f"error: {named}, --cluster would do nothing beside --import-buffers")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_parameters_on_devices_that_are_not_here_are_fine_too(path, imported, legacy, toy_teachers):
    buffer = [[[*map(nn.Parameter, snapshot)] for snapshot in trajectory] for trajectory in torch.load(path)]
    with pytest.MonkeyPatch.context() as elsewhere:
        elsewhere.setattr(torch.serialization, "location_tag", lambda storage: "cuda:7")
        torch.save(buffer, path, _use_new_zipfile_serialization=not legacy)
    assert b"cuda:7" in path.read_bytes()
    assert torch.equal(imported().trajectory(1), toy_teachers.trajectory(1))


def test_a_folder_of_buffers_is_taken_by_number_and_cut_to_the_shortest(path, imported, toy_teachers, caplog):
    buffer, folder = torch.load(path), path.parent / "buffers"
    folder.mkdir()
    for number, trajectory in ((10, buffer[0]), (9, buffer[1][:3])):
        torch.save([trajectory], folder / f"replay_buffer_{number}.pt")
    for strewn in (".DS_Store", "._replay_buffer_9.pt", "Thumbs.db", "log.txt"):
        (folder / strewn).write_bytes(b"x")
    teachers = imported(folder)
    assert [teachers.history(n)["source"] for n in range(2)] == ["replay_buffer_9.pt", "replay_buffer_10.pt"]
    for number in range(2):
        assert torch.equal(teachers.trajectory(number), toy_teachers.trajectory(1 - number)[:3])
    assert "have from 3 to 4 snapshots: the first 3 are kept" in caplog.text


def test_trajectories_that_do_not_move_are_refused(path, imported):
    first, second = torch.load(path)
    for still, told in (([second[0]], "has one snapshot"), (4 * [second[3]], "repeats a snapshot")):
        torch.save([first, still], path)
        assert_refused(rf"trajectory 1 of .*replay_buffer_0.pt {told}", imported)
    torch.save([first, [[p + torch.inf for p in snapshot] for snapshot in second]], path)
    assert_refused("replay_buffer_0.pt holds parameters that are not finite", imported)
    torch.save([first, [*second[:3], second[2]]], path)
    assert_refused(r"p.detach\(\).cpu\(\) copies nothing on a CPU.*\.clone\(\)", imported)


def test_a_replay_buffer_of_another_network_is_refused(imported, toy_config):
    wider = replace(toy_config, network=NetworkConfig(width=8, depth=2))
    assert_refused("does not fit the network", imported, config=wider)


@pytest.mark.parametrize("content", [{"a": 1}, [], [[]], [[1]], [[[1]]], torch.ones(2)])
def test_files_that_are_no_replay_buffers_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "replay_buffer_0.pt")
    assert_refused("is not a list of traj", read_replay_buffer, tmp_path / "replay_buffer_0.pt")
