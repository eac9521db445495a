"""Tasks on Dask workers: the same bits as in this process, whatever becomes of a worker."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from iadd_lab.data.cluster import IN_PROCESS, open_engine

from iadd_lab.baselines.real_images import random_draws
from iadd_lab.data.augment import AugmentConfig
from iadd_lab.errors import InputError
from iadd_lab.evaluation.protocol import EvaluateConfig, evaluate_each
from iadd_lab.notebooks.batch import reproduce
from iadd_lab.store.resumable import Checkpoint
from iadd_lab.study.study import Study
from iadd_lab.training.networks import NetworkConfig
from iadd_lab.training.teachers import TeacherConfig, train_teachers
from tests.samples import load
from tests.test_interrupt import check_stopped, start
from tests.test_kill import content, runs_on, spare, wait_until
from tests.test_reproduce import outputs, write_notebook
from tests.test_study import TINY

NETWORK = NetworkConfig(width=4, depth=2)
TEACHER = TeacherConfig(network=NETWORK, epochs=12, batch=64, augment=AugmentConfig(), momentum=0.9)
EVALUATE = EvaluateConfig(network=NETWORK, networks=3, epochs=30, rate=0.01)
SECONDS = 60  # after which something hangs


@pytest.fixture(scope="module")
def data():
    return load("digits")


@pytest.fixture(scope="module")
def engine():
    """Two local workers, processes of one thread, that the tests of this module share."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OMP_NUM_THREADS", "1")
        with open_engine("local:2") as engine:
            yield engine


def workers(engine) -> list[int]:
    # The scheduler may not know yet that one is gone: that one is left out.
    return list(engine.client.run(os.getpid, on_error="ignore").values())


def teach(data, folder, engine):
    train_teachers(data, TEACHER, folder, count=3, progress=False, checkpoint_seconds=0.0, engine=engine)
    return content(folder)


def test_teachers_have_the_same_bits(data, engine, tmp_path):
    assert teach(data, tmp_path / "there", engine) == teach(data, tmp_path / "here", IN_PROCESS)
    assert not spare(tmp_path)


def test_a_killed_worker_costs_its_task_only(data, engine, tmp_path):
    expected, folder = teach(data, tmp_path / "here", IN_PROCESS), tmp_path / "there"
    before, killed = workers(engine), []

    def kill():
        wait_until(lambda: list(folder.glob("checkpoint_*")))
        killed.append(before[0])
        os.kill(before[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    found = teach(data, folder, engine)
    killer.join()
    assert killed
    assert found == expected
    assert not spare(folder)
    wait_until(lambda: len(workers(engine)) == 2)
    assert killed[0] not in workers(engine)


def test_evaluation_networks_have_the_same_bits(data, engine, tmp_path):
    teachers = train_teachers(data, replace(TEACHER, epochs=1), tmp_path / "t", count=1, progress=False)
    sets = random_draws(data, teachers.preprocess, ipc=1, count=3, seed=0)

    def measured(engine, name):
        path = tmp_path / name / "evaluation.safetensors"
        found = evaluate_each(sets, data, EVALUATE, progress=False, save_to=path, engine=engine)
        assert [each.name for each in path.parent.iterdir()] == [path.name]
        return found

    there, here = measured(engine, "there"), measured(IN_PROCESS, "here")
    assert torch.equal(there.confusion, here.confusion)
    assert torch.equal(there.losses, here.losses)


def test_a_piece_that_is_done_is_not_done_again(data, tmp_path, monkeypatch):
    """Where the process that waits for all pieces is killed, theirs are found by the next one."""
    teachers = train_teachers(data, replace(TEACHER, epochs=1), tmp_path / "t", count=1, progress=False)
    sets = random_draws(data, teachers.preprocess, ipc=1, count=2, seed=0)
    path, epochs = tmp_path / "evaluation.safetensors", []
    expected = evaluate_each(sets, data, EVALUATE, progress=False).confusion

    class InPieces(type(IN_PROCESS)):
        def pieces(self, count, size):
            return [range(number, number + 1) for number in range(count)]

    def stop(checkpoint, *rest):
        epochs.append(checkpoint.path.name)
        if len(epochs) == EVALUATE.epochs + 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "keep", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate_each(sets, data, EVALUATE, progress=False, save_to=path, engine=InPieces())
        epochs.clear()
        patched.setattr(Checkpoint, "keep", lambda checkpoint, *rest: epochs.append(checkpoint.path.name))
        found = evaluate_each(sets, data, EVALUATE, progress=False, save_to=path, engine=InPieces())
    assert set(epochs) == {"evaluation.1.checkpoint"}
    assert torch.equal(found.confusion, expected)
    assert not list(tmp_path.glob("*.checkpoint"))


def test_cells_have_the_same_bits(engine, tmp_path):
    def cells(engine, name):
        options = {"device": "cpu", "threads": 1, "progress": False, "engine": engine}
        found = Study(tmp_path / name, **options).cells([TINY], ["mtt", "random", "herding"])
        return [(cell.method, cell.evaluation.confusion.tolist()) for cell in found]

    assert cells(engine, "there") == cells(IN_PROCESS, "here")
    assert content(tmp_path / "there") == content(tmp_path / "here")


def test_a_cell_that_diverges_is_left_out(engine, tmp_path):
    options = {"device": "cpu", "threads": 1, "progress": False, "engine": engine}
    study, wild = Study(tmp_path, **options), replace(TINY, alpha_rate=1e6)
    assert [cell.method for cell in study.cells([wild], ["mtt", "random"])] == ["random"]
    assert "MTT diverged" in study.notes([wild])[-1]


CELLS = """
import os
from iadd_lab.study.study import Study
from tests.test_study import TINY
study = Study(runs_dir, device="cpu", threads=1, progress=False)
print(bool(os.environ.get("IADD_CLUSTER")), type(study.engine).__name__)
print([cell.evaluation.accuracies.tolist() for cell in study.cells([TINY], ["random"])])
"""


@pytest.fixture
def by_hand(tmp_path, monkeypatch):
    """The address of a scheduler with one worker, processes that were started by hand."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))  # kernels import from the tests
    address, dask = tmp_path / "scheduler.json", [sys.executable, "-m", "dask"]
    scheduler = ["scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    worker = ["worker", "--nthreads", "1", "--no-dashboard", "--local-directory", str(tmp_path)]
    with (tmp_path / "log.txt").open("w") as log:
        options = {"env": os.environ | {"OMP_NUM_THREADS": "1"}, "stderr": log}
        started = [
            subprocess.Popen([*dask, *words, "--scheduler-file", str(address)], **options)
            for words in (scheduler, worker)
        ]
    wait_until(address.exists)
    wait_until(lambda: re.search(r"tcp://[0-9.:]+", address.read_text()))
    yield re.search(r"tcp://[0-9.:]+", address.read_text())[0]
    for process in reversed(started):
        process.terminate()
        process.wait(SECONDS)


def test_notebooks_on_workers_that_were_started_by_hand(by_hand, tmp_path):
    (tmp_path / "notebooks").mkdir()
    parameters = 'figures_dir = ""\nruns_dir = ""'
    write_notebook(tmp_path / "notebooks" / "cells.ipynb", CELLS, parameters=parameters)
    folders = {name: tmp_path / "there" / name for name in ("figures", "runs")}
    with open_engine(by_hand) as engine:
        failed = reproduce(notebooks=tmp_path / "notebooks", progress=False, engine=engine, **folders)
    assert failed == [], (tmp_path / "log.txt").read_text()
    study = Study(tmp_path / "here" / "runs", device="cpu", threads=1, progress=False)
    (cell,) = study.cells([TINY], ["random"])
    said = "".join(outputs(folders["figures"] / "quick" / "cells.ipynb")).splitlines()
    assert said == ["True Cluster", str([cell.evaluation.accuracies.tolist()])]
    assert content(tmp_path / "there") == content(tmp_path / "here")


TEACH = "teach --data digits --width 4 --teachers 2 --epochs 2000 --device cpu --cluster local:2 --out {out}"


def test_an_interrupted_command_leaves_no_workers(tmp_path):
    errors = tmp_path / "stderr.txt"
    process = start(TEACH.format(out=tmp_path / "out").split(), errors)
    wait_until(lambda: re.search(r" [1-9][0-9]*/", errors.read_text()))  # its bar moves
    children = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    assert len(children) >= 2
    os.killpg(process.pid, signal.SIGINT)
    check_stopped(process, errors)
    assert "dashboard of the cluster: http://127.0.0.1:" in errors.read_text()
    wait_until(lambda: not any(runs_on(child) for child in children))


def test_a_scheduler_that_is_not_there_is_said_at_once():
    started = time.monotonic()
    with (
        pytest.raises(InputError, match=r"no scheduler answers at tcp://127\.0\.0\.1:9: start one"),
        open_engine("tcp://127.0.0.1:9"),
    ):
        pass
    assert time.monotonic() - started < 15


@pytest.mark.parametrize("name", ["here", "local:0", "local:many", "tcp://host", "host:8786"])
def test_another_name_is_refused(name):
    with pytest.raises(InputError, match=r"expected local, local:N or tcp://HOST:PORT"), open_engine(name):
        pass


def test_without_dask_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install distributed bokeh"), open_engine("local:2"):
        pass
