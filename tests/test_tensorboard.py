"""What TensorBoard is given, read back from its files: every iteration once, whatever happened to the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from iadd_lab.distillation.loop import distill
from iadd_lab.distillation.result import DistillResult
from iadd_lab.errors import InputError
from iadd_lab.plots.tensorboard import IMAGES, SCALARS, WEIGHTS, TensorBoard
from tests.processes import complete
from tests.test_distill import CONFIG, STEEP, Killed


def events(folder) -> EventAccumulator:
    """All that TensorBoard shows of `folder`."""
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "histograms": 0})
    return found.Reload()


def points(folder) -> list[int]:
    """The iterations whose loss lies in `folder`."""
    return [point.step for point in events(folder).Scalars("loss/weighted")]


def assert_watched(folder, history):
    """Every value of every curve is the history's, once, in order; images and W are of the snapshots."""
    found = events(folder)
    assert set(found.Tags()["scalars"]) == set(SCALARS)
    for tag, name in SCALARS.items():
        stored = [(point.step, point.value) for point in found.Scalars(tag)]
        assert stored == [(i, np.float32(v)) for i, v in enumerate(getattr(history, name), start=1)], tag
    for kind, tag in ((found.Images, IMAGES), (found.Histograms, WEIGHTS)):
        assert [event.step for event in kind(tag)] == history.snapshot_iterations


def kill_at(count, watch):
    """A callback that watches, and ends the run without warning in iteration `count`."""

    def on_iteration(iteration, history):
        watch(iteration, history)
        if iteration == count:
            raise Killed

    return on_iteration


def test_every_iteration_is_a_point_of_each_curve(toy_data, toy_teachers, tmp_path):
    with TensorBoard(tmp_path, toy_teachers.preprocess, ipc=2) as watch:
        result = distill(toy_data, toy_teachers, CONFIG, progress=False, on_iteration=watch)
    assert_watched(tmp_path, result.history)
    image = events(tmp_path).Images(IMAGES)[-1]
    assert image.width == image.height == 65  # two classes below each other, two images each


@pytest.mark.parametrize(("killed", "seconds"), [(4, 0.0), (1, 0.0), (4, 60.0)])
def test_a_killed_run_goes_on_without_a_point_twice(toy_data, toy_teachers, tmp_path, killed, seconds):
    """From a checkpoint just before the kill, or from none: then all points are taken back."""
    options = {"folder": tmp_path / "run", "progress": False, "checkpoint_seconds": seconds}
    with TensorBoard(tmp_path / "watch", toy_teachers.preprocess) as watch, pytest.raises(Killed):
        distill(toy_data, toy_teachers, CONFIG, on_iteration=kill_at(killed, watch), **options)
    assert len(points(tmp_path / "watch")) == killed
    with TensorBoard(tmp_path / "watch", toy_teachers.preprocess) as watch:
        result = distill(toy_data, toy_teachers, CONFIG, on_iteration=watch, **options)
    assert_watched(tmp_path / "watch", result.history)


def test_what_a_kill_kept_from_the_disk_is_written_from_the_history(toy_data, toy_teachers, tmp_path):
    with TensorBoard(tmp_path / "whole", toy_teachers.preprocess) as watch:
        result = distill(toy_data, toy_teachers, CONFIG, progress=False, on_iteration=watch)
        watch(CONFIG.iterations, result.history)  # nothing is missing: nothing is written
    (whole,) = (tmp_path / "whole").iterdir()
    for share in (0.3, 0.7, 0.95):
        folder = tmp_path / f"{share}"
        folder.mkdir()
        content = whole.read_bytes()
        (folder / whole.name).write_bytes(content[: int(share * len(content))])
        with TensorBoard(folder, toy_teachers.preprocess) as watch:
            watch(CONFIG.iterations, result.history)
        assert_watched(folder, result.history)
    assert_watched(tmp_path / "whole", result.history)


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("config", [STEEP, replace(CONFIG, image_rate=1e30, iterations=8, back_offs=100)])
def test_points_of_a_state_that_diverged_are_taken_back(toy_data, toy_teachers, tmp_path, config):
    """Where the run goes back to its last good state, and where an iteration is undone."""
    with TensorBoard(tmp_path, toy_teachers.preprocess) as watch:
        history = distill(toy_data, toy_teachers, config, progress=False, on_iteration=watch).history
    assert history.back_off_iterations
    assert_watched(tmp_path, history)


def test_a_folder_of_another_run_is_refused(toy_data, toy_teachers, tmp_path):
    for seed in (0, 1):
        config = replace(CONFIG, iterations=2, seed=seed)
        with TensorBoard(tmp_path, toy_teachers.preprocess) as watch:
            if seed == 0:
                distill(toy_data, toy_teachers, config, progress=False, on_iteration=watch)
            else:
                with pytest.raises(InputError, match=r"points of another run \(the loss of iteration 1 is "):
                    distill(toy_data, toy_teachers, config, progress=False, on_iteration=watch)
    assert points(tmp_path) == [1, 2]


def test_without_tensorboard_one_sentence_says_what_to_install(toy_teachers, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(InputError, match="pip install tensorboard"):
        TensorBoard(tmp_path / "watch", toy_teachers.preprocess)
    assert not (tmp_path / "watch").exists()


DISTILL = (
    "distill --iterations 40 --student-steps 2 --teacher-epochs 1 --max-start-epoch 2 --alpha 0.02 "
    "--alpha-rate 1e-6 --device cpu --compile never"
)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """The folder of two teachers on all ten digits."""
    folder = tmp_path_factory.mktemp("watched")
    command = "teach --data digits --width 4 --teachers 2 --epochs 2 --device cpu --out"
    complete([*command.split(), str(folder)])
    return folder


def test_a_command_stopped_and_run_again_has_one_point_per_iteration(teachers, tmp_path):
    paths = {"teachers": teachers, "out": tmp_path / "run", "tensorboard": tmp_path / "watch"}
    command = [
        *DISTILL.split(),
        *(piece for name, path in paths.items() for piece in (f"--{name}", str(path))),
    ]
    stopping = (  # presses Ctrl-C after the tenth iteration
        "import os, signal, sys; import iadd_lab.plots.tensorboard as t; write = t.TensorBoard.__call__\n"
        "def stop(self, iteration, history):\n"
        "    write(self, iteration, history)\n"
        "    iteration == 10 and os.kill(os.getpid(), signal.SIGINT)\n"
        "t.TensorBoard.__call__ = stop\n"
        "from iadd_lab.__main__ import main; sys.argv = ['iadd-lab', *sys.argv[1:]]; main()"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", stopping, *command], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 128 + signal.SIGINT, done.stderr
    assert points(tmp_path / "watch") == list(range(1, 11))
    for _ in range(2):  # the second time, the finished run is only read
        complete(command)
        history = DistillResult.load(tmp_path / "run" / "distilled.safetensors").history
        assert_watched(tmp_path / "watch", history)
