"""Two processes on the same runs: one computes, the other waits and reads; a killed one is replaced."""

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from iadd_lab import distill, open_teachers
from iadd_lab.data.sets import load_data
from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.result import DistillResult
from iadd_lab.store import artefacts
from iadd_lab.study.study import Study
from tests.processes import content, exit_code, fork, invoke, says, wait_until
from tests.test_cli import DISTILL, TEACH
from tests.test_study import TINY

WAITING = "waiting for another process that computes"
EVALUATE = "evaluate --epochs 3 --networks 2 --no-random --device cpu"
CONFIG = DistillConfig(iterations=5, student_steps=2, teacher_epochs=1, alpha=0.02, alpha_rate=1e-6)
METHODS = ("iadd", "dm", "herding")


def commands(folder: Path) -> None:
    """Teach, distil and evaluate in `folder` by the command line."""
    assert invoke(f"{TEACH} --out {{out}}/teachers", out=folder) == 0
    assert invoke(f"{DISTILL} --teachers {{out}}/teachers --out {{out}}/run", out=folder) == 0
    assert invoke(f"{EVALUATE} {{out}}/run", out=folder) == 0


def cells(folder: Path) -> None:
    """Cells of a study, printed."""
    study = Study(folder, device="cpu", threads=1, progress=False)
    for method in METHODS:
        print(study.cell(TINY, method).evaluation.confusion.flatten().tolist(), flush=True)


def noted(work: Callable, folder: Path, place: Path) -> None:
    """Do the work, and note every artefact that is written; whoever comes first waits for one who waits."""
    real = artefacts.atomic_path

    def atomic_path(path):
        with (place / "log").open("a") as log:
            log.write(f"{Path(path).name}\n")
        if not (place / "first").exists():
            (place / "first").touch()
            wait_until(lambda: any(says(output, WAITING)() for output in place.glob("*.txt")))
        return real(path)

    artefacts.atomic_path = atomic_path
    work(folder)


def both(work: Callable, folder: Path, place: Path) -> tuple[list[str], dict[str, int]]:
    """Two processes do the same at once: what each printed, and how often each artefact was written."""
    outputs = [place / "one.txt", place / "other.txt"]
    started = [fork(noted, work, folder, place, output=output) for output in outputs]
    codes, printed = [exit_code(process) for process in started], [output.read_text() for output in outputs]
    assert codes == [0, 0], printed
    assert "Traceback" not in "".join(printed)
    assert WAITING in "".join(printed)
    names = Counter((place / "log").read_text().split())
    # Pictures and tables are made anew by whoever wants to see them.
    return printed, {name: count for name, count in names.items() if name.endswith(".safetensors")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """The folder of one process that nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    commands(folder)
    return folder


def test_two_commands_on_one_folder_compute_once(undisturbed, tmp_path):
    made = tmp_path / "made"
    _, counts = both(commands, made, tmp_path)
    assert {"teacher_000.safetensors", "teacher_001.safetensors", "distilled.safetensors"} < counts.keys()
    assert set(counts.values()) == {1}, counts
    assert not [path for path in made.rglob(".*") if path.is_file()]  # neither locks nor leftovers
    assert content(made) == content(undisturbed)


def test_two_studies_on_one_folder_compute_once(tmp_path):
    printed, counts = both(cells, tmp_path / "runs", tmp_path)
    first, second = ([line for line in text.splitlines() if line.startswith("[")] for text in printed)
    assert first == second
    assert len(first) == len(METHODS)
    # Two distilled sets: one by trajectories, one by features.
    assert counts.pop("distilled.safetensors") == 2, counts
    assert set(counts.values()) == {1}, counts
    assert len(counts) == 1 + 2 + 3  # what teachers share, teachers, evaluations
    assert not list((tmp_path / "runs").rglob("*.lock"))


def distil(teachers: Path, folder: Path, last: int = 0) -> None:
    """Distil in `folder`, and stop for ever after the iteration `last`, in the middle of the run."""

    def on_iteration(iteration, history):
        if iteration == last:
            print("in the middle", flush=True)
            signal.pause()

    trained = open_teachers(teachers)
    options = {"on_iteration": on_iteration, "checkpoint_seconds": 0, "progress": False}
    distill(load_data(trained.data), trained, CONFIG, folder=folder, **options)


def test_who_waits_takes_over_from_a_killed_process(undisturbed, tmp_path):
    teachers, run, outputs = undisturbed / "teachers", tmp_path / "run", [tmp_path / "a", tmp_path / "b"]
    owner = fork(distil, teachers, run, 3, output=outputs[0])
    wait_until(lambda: says(outputs[0], "in the middle")() or not owner.is_alive())
    waiting = fork(distil, teachers, run, output=outputs[1])
    wait_until(lambda: says(outputs[1], f"{WAITING} {run}")() or not waiting.is_alive())
    assert not (run / "distilled.safetensors").exists()
    owner.kill()
    assert exit_code(owner) == -signal.SIGKILL
    assert exit_code(waiting) == 0, outputs[1].read_text()
    distil(teachers, tmp_path / "alone")
    assert content(run) == content(tmp_path / "alone")
    assert [path.name for path in run.iterdir()] == ["distilled.safetensors"]


def test_what_is_finished_is_read_where_nothing_can_be_written(undisturbed, monkeypatch):
    """A lock is not asked for more than a result would be."""

    def refuse(path, *arguments, real=os.open, **options):
        if str(path).endswith(".lock"):
            raise OSError(30, "Read-only file system", str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    result = DistillResult.load(undisturbed / "run" / "distilled.safetensors")
    trained = open_teachers(undisturbed / "teachers")
    options = {"folder": undisturbed / "run", "progress": False}
    again = distill(load_data(trained.data), trained, result.config, **options)
    assert torch.equal(again.images, result.images)
