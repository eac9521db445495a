"""Nothing is lost to a kill: what is killed at any moment, and run again, ends with the same bits.

`pytest tests/test_kill.py --kills 50` kills fifty times. The runs are processes forked from one that has
imported everything, so that kills hit the work and not the imports.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

import psutil
import pytest
import torch
from safetensors import safe_open
from torch.optim.optimizer import register_optimizer_step_post_hook
from tqdm import tqdm
from typer.testing import CliRunner

import iadd_lab
from iadd_lab import DistillConfig, EvaluateConfig, GradientMatchingConfig, NetworkConfig, TeacherConfig
from iadd_lab.cli import app
from iadd_lab.notebooks.batch import reproduce
from tests.conftest import AUGMENT
from tests.samples import load
from tests.test_reproduce import write_notebook

NETWORK = NetworkConfig(width=4, depth=2)
TEACHER = TeacherConfig(network=NETWORK, epochs=15, momentum=0.9, weight_decay=1e-4)
DISTILL = DistillConfig(
    iterations=25,
    student_steps=3,
    teacher_epochs=1,
    max_start_epoch=4,
    segments=2,
    batch=4,
    image_rate=10.0,
    alpha=0.02,
    alpha_rate=1e-6,
    augment=AUGMENT,
    snapshots=7,
)
MATCH = GradientMatchingConfig(iterations=10, real_batch=16, augment=AUGMENT)
EVALUATE = EvaluateConfig(network=NETWORK, networks=3, epochs=20, batch=4, augment=AUGMENT)
SHORT = replace(DISTILL, ipc=2, iterations=2)
# Optimiser steps between two checkpoints: 1213 images in batches of 256; images and α; images; 10 images in
# batches of 4. A kill may cost no more.
BETWEEN = {"teach": 5, "distill": 2, "match": 1, "evaluate": 3}
PATIENCE = 60  # seconds after which something hangs


def work(folder: Path, ready=None) -> None:
    """Teach, distil, match gradients and evaluate in `folder`, saved as often as can be."""
    _redirect(folder / "output.txt")
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own, between processes, is left to the system by a kill
    data = load("digits")
    stage = _count_steps(folder / "steps.txt")
    if ready is not None:
        ready.send(True)
    often = {"progress": False, "checkpoint_seconds": 0.0}
    teachers = iadd_lab.train_teachers(data, TEACHER, folder / "teachers", count=3, **often)
    stage.append("distill")
    result = iadd_lab.distill(data, teachers, DISTILL, folder=folder / "run", **often)
    stage.append("match")
    preprocess = teachers.preprocess
    iadd_lab.match_gradients(data, preprocess, NETWORK, MATCH, folder=folder / "match", **often)
    stage.append("evaluate")
    path = folder / "evaluation.safetensors"
    iadd_lab.evaluate(result.distilled, data, EVALUATE, save_to=path, **often)


def _redirect(path: Path) -> None:
    """Everything that this process writes from now on goes into `path`."""
    output = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)


def _count_steps(path: Path) -> list[str]:
    """Append the last of the returned stages to `path` whenever any optimiser makes a step."""
    stages = ["teach"]
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    register_optimizer_step_post_hook(lambda *_: os.write(file, f"{stages[-1]}\n".encode()))
    return stages


@pytest.fixture(scope="module")
def forks():
    """Processes that need not import anything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "sklearn.datasets", "torch._dynamo"])
    return context


def attempt(forks, folder: Path, *, patience: float) -> tuple[bool, float]:
    """Work in `folder`, killed after so many seconds; whether it ended before, and how long it took."""
    mine, its = forks.Pipe(duplex=False)
    process = forks.Process(target=work, args=(folder, its))
    process.start()
    its.close()  # or its end would not be heard of
    assert mine.poll(PATIENCE)
    started = time.monotonic()
    process.join(patience)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), (folder / "output.txt").read_text()
    return process.exitcode == 0, time.monotonic() - started


def finish(forks, folder: Path, patiences: Iterable[float]) -> int:
    """Work in `folder` till the end, killed after each of so many seconds before; how many kills it took."""
    folder.mkdir()
    for kills, patience in enumerate(patiences):
        ended, _ = attempt(forks, folder, patience=patience)
        if ended:
            return kills
    pytest.fail(f"it has not ended after {patience} s")


def steps(folder: Path) -> Counter:
    """How many optimiser steps each stage took, those that a kill took back included."""
    return Counter((folder / "steps.txt").read_text().split())


def content(folder: Path) -> dict[str, tuple]:
    """Text and tensors of every artefact; not how long its iterations took."""
    found = {}
    for path in sorted(folder.rglob("[!.]*.safetensors")):
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["iadd_lab"])
            names = sorted(set(file.keys()) - {"history/seconds"})
            tensors = {name: file.get_tensor(name).numpy().tobytes() for name in names}
        found[str(path.relative_to(folder))] = (header["content"], tensors)
    return found


def spare(folder: Path) -> list[str]:
    """Checkpoints and locks, which nobody needs when all has ended."""
    names = [path.name for path in folder.rglob("*") if path.is_file()]
    return [
        name for name in names if name.endswith(".lock") or re.match(r"[^.].*checkpoint|checkpoint", name)
    ]


def temporary(folder: Path) -> list[str]:
    """What was being written when it was killed; `iadd-lab runs prune` deletes it."""
    return [path.name for path in folder.rglob(".*") if path.suffix != ".lock"]


@pytest.fixture(scope="module")
def undisturbed(forks, tmp_path_factory):
    """The folder of a run that nobody killed, and how long it took."""
    folder = tmp_path_factory.mktemp("undisturbed")
    ended, seconds = attempt(forks, folder, patience=PATIENCE)
    assert ended
    assert not spare(folder) + temporary(folder)
    return folder, seconds


def test_killed_at_random_moments_and_run_again_it_ends_with_the_same_bits(
    forks, undisturbed, tmp_path, request
):
    reference, seconds = undisturbed
    moments, wanted, kills, lost = random.Random(0), request.config.getoption("--kills"), 0, Counter()
    while kills < wanted:
        folder = tmp_path / f"after_{kills}"
        patiences = [moments.uniform(0, seconds / 3) for _ in range(wanted - kills)]
        survived = finish(forks, folder, [*patiences, PATIENCE])
        assert content(folder) == content(reference)
        assert "Traceback" not in (folder / "output.txt").read_text()
        assert not spare(folder)
        assert len(temporary(folder)) <= survived
        done, needed = steps(folder), steps(reference)
        for stage, between in BETWEEN.items():
            assert needed[stage] <= done[stage] <= needed[stage] + survived * between
        kills, lost = kills + survived, lost + (done - needed)
    print(f"{kills} kills, {seconds:.1f} s undisturbed, steps done twice: {dict(lost)}")


def test_killed_between_result_and_checkpoint_nothing_spare_stays(toy_data, tmp_path, monkeypatch):
    """The result is stored first, so that nothing is lost; what runs again tidies up."""
    often = {"progress": False, "checkpoint_seconds": 0.0}

    def both():
        teachers = iadd_lab.train_teachers(toy_data, TEACHER, tmp_path / "teachers", count=1, **often)
        made = iadd_lab.distill(toy_data, teachers, SHORT, folder=tmp_path / "run", **often).distilled
        iadd_lab.evaluate(made, toy_data, EVALUATE, save_to=tmp_path / "evaluation.safetensors", **often)
        preprocess = teachers.preprocess
        iadd_lab.match_gradients(toy_data, preprocess, NETWORK, MATCH, folder=tmp_path / "match", **often)

    with monkeypatch.context() as patched:
        patched.setattr("iadd_lab.store.resumable.Checkpoint.remove", lambda checkpoint: None)
        both()
    before = content(tmp_path)
    for lock in (".evaluation.0.checkpoint.lock", "teachers/.teacher_000.lock"):  # as a kill leaves them
        (tmp_path / lock).touch()
    assert len(spare(tmp_path)) == 6
    both()
    assert not spare(tmp_path)
    assert content(tmp_path) == {name: held for name, held in before.items() if "checkpoint" not in name}


COMMANDS = {
    "teach": "teach --data digits --width 4 --teachers 2 --epochs 60 --rate 0.02 --momentum 0.5 --device cpu "
    "--out {out}/teachers",
    "distill": "distill --iterations 100 --student-steps 4 --teacher-epochs 1 --max-start-epoch 5 --batch 5 "
    "--alpha 0.02 --alpha-rate 1e-6 --device cpu --teachers {given}/teachers --out {out}/run",
    "evaluate": "evaluate {given}/run --epochs 100 --networks 2 --device cpu --out {out}/scores",
}


def command(name: str, out: Path, given: Path) -> list[str]:
    """The words of a command that writes into `out` and reads what others made in `given`."""
    return COMMANDS[name].format(out=out, given=given).split()


def complete(words: list[str]) -> None:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output


@cache
def make(folder: Path) -> Path:
    """`folder`, in which the three commands made something; only once for all modules."""
    for name in COMMANDS:
        complete(command(name, folder, folder))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What the three commands make."""
    return make(tmp_path_factory.getbasetemp() / "made")


def test_a_command_that_is_killed_ends_with_the_same_bits(made, tmp_path):
    words = command("distill", tmp_path / "out", made)
    path = tmp_path / "stderr.txt"
    with path.open("w") as errors:
        process = subprocess.Popen([sys.executable, "-m", "iadd_lab", *words], stderr=errors)
        wait_until(lambda: re.search(r" [1-9][0-9]*/", path.read_text()))  # its bar moves
        time.sleep(random.Random(0).uniform(0, 0.2))
        process.kill()
    assert process.wait() == -signal.SIGKILL
    assert "Traceback" not in path.read_text()
    complete(words)
    expected = {key: held for key, held in content(made).items() if (tmp_path / "out" / key).exists()}
    assert content(tmp_path / "out") == expected


def wait_until(condition) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


SLOW = """
import os, pathlib, time
folder = pathlib.Path(runs_dir, "slow")
folder.mkdir(parents=True, exist_ok=True)
pathlib.Path(folder, f"{os.getpid()}.pid").touch()
for number in range(30):
    if not (folder / str(number)).exists():
        time.sleep(0.05)
        (folder / str(number)).touch()
pathlib.Path(figures_dir, "slow_names.txt").write_text(" ".join(sorted(map(str, range(30)))))
print(len(list(folder.glob("[0-9]*"))) > 30)
"""


def test_a_batch_that_is_killed_ends_with_the_same_files(tmp_path):
    expected, killed = batch_in(tmp_path / "undisturbed"), batch_in(tmp_path / "killed")
    assert reproduce(progress=False, **expected) == []
    words = [word for name, folder in killed.items() for word in (f"--{name}", str(folder))]
    process = subprocess.Popen(
        [sys.executable, "-m", "iadd_lab", "reproduce", *words],
        stderr=subprocess.DEVNULL,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    wait_until((killed["runs"] / "slow" / "3").exists)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    (kernel,) = (int(path.stem) for path in killed["runs"].rglob("*.pid"))
    wait_until(lambda: not runs_on(kernel))
    first = killed["figures"] / "quick" / "quickstart.ipynb"
    stamp = first.stat().st_mtime_ns
    assert reproduce(progress=False, **killed) == []
    assert first.stat().st_mtime_ns == stamp  # what was done is not done again
    assert files_in(killed["figures"]) == files_in(expected["figures"])


def batch_in(root: Path) -> dict[str, Path]:
    """Folders of a batch of a quick notebook and a slow one."""
    folders = {name: root / name for name in ("notebooks", "figures", "runs")}
    folders["notebooks"].mkdir(parents=True)
    parameters = 'figures_dir = ""\nruns_dir = ""'
    for name, source in (("quickstart", "print(1 + 1)"), ("slow", SLOW)):
        path = write_notebook(folders["notebooks"] / f"{name}.ipynb", source, parameters=parameters)
        content = json.loads(path.read_text())
        for place, cell in enumerate(content["cells"]):  # else random
            cell["id"] = f"cell-{place}"
        path.write_text(json.dumps(content))
    return folders


def runs_on(pid: int) -> bool:
    """Whether the process still runs; one that nobody has asked for its exit code yet does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
