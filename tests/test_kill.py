"""Nothing is lost to a kill: what is killed at any moment, and run again, ends with the same bits.

`pytest tests/test_kill.py --kills 50` kills fifty times.
"""

import json
import os
import random
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

from torch.optim.optimizer import register_optimizer_step_post_hook

import iadd_lab
from iadd_lab import (
    DistillConfig,
    EvaluateConfig,
    GradientMatchingConfig,
    ImageData,
    NetworkConfig,
    TeacherConfig,
)
from tests.conftest import AUGMENT
from tests.notebook_files import write_notebook
from tests.processes import (
    check_stopped,
    complete,
    content,
    exit_code,
    fork,
    runs_on,
    spare,
    start,
    temporary,
    wait_until,
)
from tests.samples import load

NETWORK = NetworkConfig(width=4, depth=2)
TEACHER = TeacherConfig(network=NETWORK, epochs=10, momentum=0.9, weight_decay=1e-4)
STUDENT = {"student_steps": 3, "teacher_epochs": 1, "max_start_epoch": 4, "segments": 2, "batch": 4}
RATES = {"image_rate": 10.0, "alpha": 0.02, "alpha_rate": 1e-6}
DISTILL = DistillConfig(iterations=20, snapshots=7, augment=AUGMENT, **STUDENT, **RATES)
MATCH = GradientMatchingConfig(iterations=10, real_batch=16, augment=AUGMENT)
EVALUATE = EvaluateConfig(network=NETWORK, networks=3, epochs=10, batch=4, augment=AUGMENT)
SHORT = replace(DISTILL, ipc=2, iterations=2)
OFTEN = {"progress": False, "checkpoint_seconds": 0.0}
# Optimiser steps between two checkpoints: 1213 images in batches of 256; images and α; images; 10 images in
# batches of 4. A kill may cost no more.
BETWEEN = {"teach": 5, "distill": 2, "match": 1, "evaluate": 3}


def work(folder: Path, moment: tuple[int, float] | None) -> None:
    """All stages in `folder`.

    `moment` is when this process is killed: so many seconds after that optimiser step, or 0, of any stage.
    """
    all_stages(folder, load("digits"), DISTILL, _count_steps(folder / "steps.txt", moment), teachers=2)


def all_stages(folder: Path, data: ImageData, config: DistillConfig, stage: list[str], teachers: int) -> None:
    """Teach, distil, match gradients and evaluate, saved as often as can be; `stage` gets what is done."""
    taught = iadd_lab.train_teachers(data, TEACHER, folder / "teachers", count=teachers, **OFTEN)
    stage.append("distill")
    result = iadd_lab.distill(data, taught, config, folder=folder / "run", **OFTEN)
    stage.append("match")
    iadd_lab.match_gradients(data, taught.preprocess, NETWORK, MATCH, folder=folder / "match", **OFTEN)
    stage.append("evaluate")
    path = folder / "evaluation.safetensors"
    iadd_lab.evaluate(result.distilled, data, EVALUATE, save_to=path, **OFTEN)


def _count_steps(path: Path, moment: tuple[int, float] | None) -> list[str]:
    """Append the last of the returned stages to `path` whenever any optimiser makes a step."""
    stages, made = ["teach"], 0
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(*_) -> None:
        nonlocal made
        os.write(file, f"{stages[-1]}\n".encode())
        made += 1
        arm()

    def arm() -> None:
        if moment is not None and made == moment[0]:
            # The system ends the process wherever it is then, as by SIGKILL: nobody handles this signal.
            signal.setitimer(signal.ITIMER_REAL, max(moment[1], 1e-6))

    register_optimizer_step_post_hook(note)
    arm()
    return stages


def attempt(folder: Path, moment: tuple[int, float] | None) -> bool:
    """Work in `folder`; whether it ended before it was killed."""
    code = exit_code(fork(work, folder, moment, output=folder / "output.txt"))
    assert code in (0, -signal.SIGALRM), (folder / "output.txt").read_text()
    return code == 0


def steps(folder: Path) -> Counter:
    """How many optimiser steps each stage took, those that a kill took back included."""
    return Counter((folder / "steps.txt").read_text().split())


def test_killed_at_random_moments_and_run_again_it_ends_with_the_same_bits(tmp_path, request):
    """The moments are counted in work, not in seconds: a busy machine is killed as often as a quiet one."""
    reference = tmp_path / "undisturbed"
    reference.mkdir()
    assert attempt(reference, None)
    assert not spare(reference) + temporary(reference)
    needed, chance, lost = steps(reference), random.Random(0), Counter()
    wanted, kills, rounds = request.config.getoption("--kills"), 0, 0
    while kills < wanted:
        folder, survived, rounds = tmp_path / f"round_{rounds}", 0, rounds + 1
        folder.mkdir()
        while not attempt(folder, _moment(chance, needed) if kills + survived < wanted else None):
            survived += 1
        assert content(folder) == content(reference)
        assert "Traceback" not in (folder / "output.txt").read_text()
        assert not spare(folder)
        assert len(temporary(folder)) <= survived
        done = steps(folder)
        for stage, between in BETWEEN.items():
            assert needed[stage] <= done[stage] <= needed[stage] + survived * between
        kills, lost = kills + survived, lost + (done - needed)
    print(f"{kills} kills in {rounds} rounds, steps done twice: {dict(lost)}")


def _moment(chance: random.Random, needed: Counter) -> tuple[int, float]:
    """Within the first third of the work: whatever was done before is not done again."""
    return chance.randrange(sum(needed.values()) // 3), chance.uniform(0, 0.03)


def test_killed_between_result_and_checkpoint_nothing_spare_stays(toy_data, tmp_path, monkeypatch):
    """The result is stored first, so that nothing is lost; what runs again tidies up."""
    with monkeypatch.context() as patched:
        patched.setattr("iadd_lab.store.resumable.Checkpoint.remove", lambda checkpoint: None)
        all_stages(tmp_path, toy_data, SHORT, [], teachers=1)
    before = content(tmp_path)
    (tmp_path / "teachers" / ".teacher_000.lock").touch()  # as a kill leaves it
    assert len(spare(tmp_path)) == 5
    all_stages(tmp_path, toy_data, SHORT, [], teachers=1)
    assert not spare(tmp_path)
    assert content(tmp_path) == {name: held for name, held in before.items() if "checkpoint" not in name}


SLOW = """
import os, pathlib, time
folder = pathlib.Path(runs_dir, "slow")
folder.mkdir(parents=True, exist_ok=True)
pathlib.Path(folder, f"{os.getpid()}.pid").touch()
while not pathlib.Path(runs_dir, "go").exists():
    time.sleep(0.05)
pathlib.Path(figures_dir, "slow_names.txt").write_text("slow")
"""


def test_a_batch_that_is_interrupted_or_killed_ends_with_the_same_files(tmp_path):
    """Ctrl-C stops its kernel and says how to go on; a kill stops it too; what was done is not done again."""
    expected, disturbed = batch_in(tmp_path / "undisturbed"), batch_in(tmp_path / "disturbed")
    (expected["runs"] / "go").touch()
    complete(words(expected))
    first, stamps = disturbed["figures"] / "quick" / "quickstart.ipynb", set()
    for number in (signal.SIGINT, signal.SIGKILL):
        output, pids = tmp_path / f"{number}.txt", disturbed["runs"] / "slow"
        process = start(words(disturbed), output)
        wait_until(lambda pids=pids: list(pids.glob("*.pid")))
        (kernel,) = (int(path.stem) for path in pids.iterdir())
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
            assert "run the same again to go on" in check_stopped(process, output)
        else:
            process.kill()
            assert exit_code(process) == -number
        wait_until(lambda kernel=kernel: not runs_on(kernel))
        (pids / f"{kernel}.pid").unlink()
        assert not (disturbed["figures"] / "quick" / "slow.ipynb").exists()
        stamps.add(first.stat().st_mtime_ns)
    (disturbed["runs"] / "go").touch()
    complete(words(disturbed))
    assert stamps == {first.stat().st_mtime_ns}
    assert files_in(disturbed["figures"]) == files_in(expected["figures"])


def batch_in(root: Path) -> dict[str, Path]:
    """Folders of a batch of a quick notebook and of one that waits for a file."""

    folders = {name: root / name for name in ("notebooks", "figures", "runs")}
    for name in ("notebooks", "runs"):
        folders[name].mkdir(parents=True)
    parameters = 'figures_dir = ""\nruns_dir = ""'
    for name, source in (("quickstart", "print(1 + 1)"), ("slow", SLOW)):
        path = write_notebook(folders["notebooks"] / f"{name}.ipynb", source, parameters=parameters)
        found = json.loads(path.read_text())
        for place, cell in enumerate(found["cells"]):  # else random
            cell["id"] = f"cell-{place}"
        path.write_text(json.dumps(found))
    return folders


def words(folders: dict[str, Path]) -> list[str]:
    """The command that executes the batch in these folders."""
    return ["reproduce", *(word for name, path in folders.items() for word in (f"--{name}", str(path)))]


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
