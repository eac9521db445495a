"""Two processes on the same runs: one computes, the other waits and reads; a killed one is replaced."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from iadd_lab.cli import app
from iadd_lab.distillation.result import DistillResult
from iadd_lab.evaluation.protocol import Evaluation
from tests.test_cli import DISTILL, TEACH

ROOT = Path(__file__).parents[1]
EVALUATE = "evaluate --epochs 3 --networks 2 --device cpu"

# Each artefact that a process writes is a line in the file of its first argument.
_COUNTED = """
import sys
from pathlib import Path
from iadd_lab.store import artefacts as store

def counted(path, real=store.atomic_path):
    with open(sys.argv[1], "a") as log:
        log.write(Path(path).name + "\\n")
    return real(path)

store.atomic_path = counted
"""
_COMMANDS = """
from iadd_lab.cli import app
for command in sys.argv[2:]:
    app(command.split(), standalone_mode=False)
"""
_STUDY = """
from tests.test_study import TINY
from iadd_lab.study.study import Study
study = Study(sys.argv[2], device="cpu", threads=1, progress=False)
for method in ("iadd", "dm", "herding"):
    print(study.cell(TINY, method).evaluation.confusion.flatten().tolist())
"""
# Arguments: teachers, folder, and the iteration after which to stop for ever.
_RUN = """
import sys, time
from pathlib import Path
from iadd_lab import distill, open_teachers
from iadd_lab.data.sets import load_data
from iadd_lab.distillation.config import DistillConfig

def on_iteration(iteration, history):
    if iteration == int(sys.argv[3]):
        print("in the middle", flush=True)
        time.sleep(600)

trained = open_teachers(Path(sys.argv[1]))
config = DistillConfig(iterations=5, student_steps=2, teacher_epochs=1, alpha=0.02, alpha_rate=1e-6)
distill(load_data(trained.data), trained, config, folder=Path(sys.argv[2]), on_iteration=on_iteration,
        checkpoint_seconds=0, progress=False)
"""


def start(script: str, *arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def both(script: str, log: Path, *arguments: object) -> tuple[list[str], str]:
    """Two processes with the same script at once: what each printed, and all that they complained of."""
    started = [start(_COUNTED + script, log, *arguments) for _ in range(2)]
    ended = [process.communicate(timeout=120) for process in started]
    errors = "".join(error for _, error in ended)
    assert [process.returncode for process in started] == [0, 0], errors
    return [printed for printed, _ in ended], errors


def written(log: Path) -> dict[str, int]:
    """How often each artefact was written; pictures and tables are made anew by whoever wants to see them."""
    names = Counter(log.read_text().split())
    return {name: count for name, count in names.items() if name.endswith(".safetensors")}


def commands(folder: Path) -> list[str]:
    teachers, run = folder / "teachers", folder / "run"
    return [
        f"{TEACH} --out {teachers}",
        f"{DISTILL} --teachers {teachers} --out {run}",
        f"{EVALUATE} {run} --no-random",
    ]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """The folder of one process that nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for command in commands(folder):
        app(command.split(), standalone_mode=False)
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """What the result in `folder` is, but for the seconds that it took."""
    result = DistillResult.load(folder / "distilled.safetensors")
    return {
        "images": result.images,
        "importance": result.importance,
        "loss": torch.tensor(result.history.loss),
    }


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_commands_on_one_folder_compute_once(undisturbed, tmp_path):
    _, errors = both(_COMMANDS, tmp_path / "log", *commands(tmp_path))
    counts = written(tmp_path / "log")
    assert {"teacher_000.safetensors", "teacher_001.safetensors", "distilled.safetensors"} < counts.keys()
    assert set(counts.values()) == {1}, counts
    assert "waiting for another process that computes" in errors
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]  # neither locks nor leftovers
    assert_same(tensors(tmp_path / "run"), tensors(undisturbed / "run"))
    ((made,), (alone,)) = (
        (folder / "run").glob("evaluation_*.safetensors") for folder in (tmp_path, undisturbed)
    )
    assert torch.equal(Evaluation.load(made).confusion, Evaluation.load(alone).confusion)


def test_two_studies_on_one_folder_compute_once(tmp_path):
    (first, second), errors = both(_STUDY, tmp_path / "log", tmp_path / "runs")
    assert first == second
    assert first.count("\n") == 3
    counts = written(tmp_path / "log")
    # Two distilled sets: one by trajectories, one by features.
    assert counts.pop("distilled.safetensors") == 2, counts
    assert set(counts.values()) == {1}, counts
    assert len(counts) == 1 + 2 + 3  # what teachers share, teachers, evaluations
    assert "Traceback" not in errors
    assert not list((tmp_path / "runs").rglob("*.lock"))


def test_who_waits_takes_over_from_a_killed_process(undisturbed, tmp_path):
    teachers = undisturbed / "teachers"
    owner = start(_RUN, teachers, tmp_path / "run", 3)
    other = start(_RUN, teachers, tmp_path / "alone", 0)
    assert owner.stdout.readline() == "in the middle\n", owner.communicate()[1]
    waiting = start(_RUN, teachers, tmp_path / "run", 0)
    said = ""
    while "waiting for another process that computes" not in said:
        said = waiting.stderr.readline()
        assert said or waiting.poll() is None
    assert str(tmp_path / "run") in said
    assert not (tmp_path / "run" / "distilled.safetensors").exists()
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    _, errors = waiting.communicate(timeout=60)
    other.communicate(timeout=60)
    assert (waiting.returncode, other.returncode) == (0, 0), errors
    assert_same(tensors(tmp_path / "run"), tensors(tmp_path / "alone"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["distilled.safetensors"]


def test_what_is_finished_is_read_where_nothing_can_be_written(undisturbed, tmp_path, monkeypatch):
    """A lock is not asked for more than a result would be."""

    def refuse(path, *arguments, real=os.open, **options):
        if str(path).endswith(".lock"):
            raise OSError(30, "Read-only file system", str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    from iadd_lab import distill, open_teachers
    from iadd_lab.data.sets import load_data

    result = DistillResult.load(undisturbed / "run" / "distilled.safetensors")
    trained = open_teachers(undisturbed / "teachers")
    again = distill(
        load_data(trained.data), trained, result.config, folder=undisturbed / "run", progress=False
    )
    assert torch.equal(again.images, result.images)
