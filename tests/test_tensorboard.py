"""What TensorBoard is given, read back from its files: every iteration once, whatever happened to the run."""

import signal
import sys
import time
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from iadd_lab.distillation.loop import distill
from iadd_lab.distillation.result import DistillResult
from iadd_lab.plots.tensorboard import IMAGES, SCALARS, WEIGHTS, TensorBoard
from tests.processes import complete, run
from tests.samples import assert_refused
from tests.test_distill import CONFIG, STEEP, Killed


def events(folder) -> EventAccumulator:
    """All that TensorBoard shows of `folder`."""
    return EventAccumulator(str(folder), {"scalars": 0, "images": 0, "histograms": 0}).Reload()


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


@pytest.fixture
def watched(toy_data, toy_teachers, tmp_path):
    """Distil into a folder under the eyes of TensorBoard; the history, or, after a kill, None."""

    def run(config=CONFIG, *, watch_in=tmp_path, kill_at=None, ipc=1, **options):
        with TensorBoard(watch_in, toy_teachers.preprocess, ipc=ipc) as watch:

            def on_iteration(iteration, history):
                watch(iteration, history)
                if iteration == kill_at:
                    raise Killed

            options |= {"progress": False, "on_iteration": on_iteration}
            with nullcontext() if kill_at is None else pytest.raises(Killed):
                return distill(toy_data, toy_teachers, config, **options).history

    return run


@pytest.mark.parametrize(("killed", "seconds"), [(4, 0.0), (1, 0.0), (4, 60.0)])
def test_a_killed_run_goes_on_without_a_point_twice(watched, tmp_path, killed, seconds):
    """From a checkpoint just before the kill, or from none: then all points are taken back."""
    places = {"watch_in": tmp_path / "watch", "folder": tmp_path / "run"}
    assert watched(kill_at=killed, checkpoint_seconds=seconds, **places) is None
    assert len(points(tmp_path / "watch")) == killed
    assert_watched(tmp_path / "watch", watched(checkpoint_seconds=seconds, **places))


def test_a_clock_that_goes_back_loses_no_point(watched, tmp_path, monkeypatch):
    places = {"watch_in": tmp_path / "watch", "folder": tmp_path / "run", "checkpoint_seconds": 0.0}
    now = time.time()
    for killed, hours in ((2, 0), (3, 5), (None, 9)):  # iteration at which it is killed, hours back by then
        monkeypatch.setattr(time, "time", lambda hours=hours: now - 3600 * hours)
        history = watched(kill_at=killed, **places)
    assert_watched(tmp_path / "watch", history)


def test_what_a_kill_kept_from_the_disk_is_written_from_the_history(watched, toy_teachers, tmp_path):
    history = watched(ipc=2, watch_in=tmp_path / "whole")
    image = events(tmp_path / "whole").Images(IMAGES)[-1]
    assert image.width == image.height == 65  # two classes below each other, two images each
    (whole,) = (tmp_path / "whole").iterdir()
    content = whole.read_bytes()
    for share in (0.3, 0.7, 0.95, 1):
        folder = tmp_path / f"{share}"
        folder.mkdir()
        (folder / whole.name).write_bytes(content[: int(share * len(content))])
        with TensorBoard(folder, toy_teachers.preprocess) as watch:
            watch(CONFIG.iterations, history)
        assert_watched(folder, history)


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("config", [STEEP, replace(CONFIG, image_rate=1e30, iterations=8, back_offs=100)])
def test_points_of_a_state_that_diverged_are_taken_back(watched, tmp_path, config):
    """Where the run goes back to its last good state, and where an iteration is undone."""
    history = watched(config)
    assert history.back_off_iterations
    assert_watched(tmp_path, history)


def test_a_folder_of_another_run_is_refused(watched, tmp_path):
    config = replace(CONFIG, iterations=2)
    watched(config)
    sentence = r"points of another run \(a loss of .* in iteration 1, not "
    assert_refused(sentence, watched, replace(config, seed=1))
    assert points(tmp_path) == [1, 2]


def test_without_tensorboard_one_sentence_says_what_to_install(toy_teachers, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert_refused("pip install tensorboard", TensorBoard, tmp_path / "watch", toy_teachers.preprocess)
    assert not (tmp_path / "watch").exists()


TEACH = "teach --data digits --width 4 --teachers 2 --epochs 2 --device cpu --out {teachers}"
DISTILL = (
    "distill --iterations 40 --student-steps 2 --teacher-epochs 1 --max-start-epoch 2 --alpha 0.02 "
    "--alpha-rate 1e-6 --device cpu --compile never --teachers {teachers} --out {out} --tensorboard {watch}"
)


def test_a_command_stopped_and_run_again_has_one_point_per_iteration(tmp_path, monkeypatch):
    paths = {name: tmp_path / name for name in ("teachers", "out", "watch")}
    complete(TEACH, **paths)

    def ctrl_c(self, iteration, history, write=TensorBoard.__call__):
        write(self, iteration, history)
        if iteration == 10:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(TensorBoard, "__call__", ctrl_c)
        assert run(DISTILL, **paths).code == 128 + signal.SIGINT
    assert points(paths["watch"]) == list(range(1, 11))
    for _ in range(2):  # the second time, the finished run is only read
        complete(DISTILL, **paths)
        history = DistillResult.load(paths["out"] / "distilled.safetensors").history
        assert_watched(paths["watch"], history)
