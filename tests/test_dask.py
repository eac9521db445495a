"""Tasks on Dask workers: the same bits as in this process, whatever becomes of a worker."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest
import torch

from iadd_lab.errors import DivergenceError
from iadd_lab.notebooks.batch import reproduce
from iadd_lab.notebooks.dask import named_runner, open_runner
from iadd_lab.study.study import Study
from tests.notebook_files import outputs, write_notebook
from tests.processes import PATIENCE, content, runs_on, spare, wait_until
from tests.samples import assert_refused
from tests.test_study import TINY

HOW = {"device": "cpu", "threads": 1, "progress": False}


@pytest.fixture(scope="module")
def runner():
    """Two local workers, processes of one thread, that the tests of this module share."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OMP_NUM_THREADS", "1")
        with open_runner("local:2") as runner:
            yield runner


# Tasks; workers find them by their names here.


def _told(*names: str) -> tuple:
    environment = [os.environ.get(name) for name in names]
    return signal.getsignal(signal.SIGINT) is signal.SIG_IGN, torch.get_num_threads(), environment


def _fail_on(number: int, bad: int) -> int:
    if number == bad:
        raise DivergenceError(f"{number} is bad")
    return number**2


def _die(folder: Path, times: int) -> int:
    """The process that carries it out; so many of them are killed before."""
    (folder / f"{os.getpid()}.pid").touch()
    if len(list(folder.glob("*.pid"))) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def _wait_for(folder: Path, name: str, number: int) -> None:
    (folder / f"{number}.started").touch()
    wait_until((folder / name).exists)


def test_values_and_errors_come_with_their_numbers(runner):
    found = dict(runner.map(_fail_on, [(number, 3) for number in range(6)], at_once=2))
    assert isinstance(found[3], DivergenceError)
    assert str(found.pop(3)) == "3 is bad"
    assert found == {number: number**2 for number in (0, 1, 2, 4, 5)}


def test_workers_find_the_same_images_and_leave_ctrl_c_to_others(runner, tmp_path, monkeypatch):
    """Where the caller has them now, not where it had them when it started its workers."""
    monkeypatch.chdir(tmp_path)
    cache = os.environ["IADD_CACHE"]
    for data, expected in (("data", str(tmp_path / "data")), ("other", str(tmp_path / "other")), ("", "")):
        monkeypatch.setenv("IADD_DATA", data)
        ((_, told),) = runner.map(_told, [("IADD_DATA", "IADD_CACHE")])
        assert told == (True, 1, [expected, cache])


def test_a_killed_worker_costs_its_task_only(runner, tmp_path):
    (tmp_path / "others").mkdir()
    found = dict(runner.map(_die, [(tmp_path, 1), *[(tmp_path / "others", 0)] * 4]))
    assert len(list(tmp_path.glob("*.pid"))) == 2  # the one that was killed, and the one that took its task
    assert all(isinstance(found[number], int) for number in range(5))
    wait_until(lambda: runner.workers == 2)


def test_a_task_that_kills_its_workers_is_given_up(runner, tmp_path, monkeypatch):
    monkeypatch.setattr(runner.client.cluster.scheduler, "allowed_failures", 0)
    ((_, error),) = runner.map(_die, [(tmp_path, 1000)])
    assert isinstance(error, OSError)
    assert re.match(r"each worker that was given die-\w+-0 died, perhaps for want of memory", str(error))
    wait_until(lambda: runner.workers == 2)


def test_no_more_are_under_way_than_wanted_and_none_when_nobody_waits(runner, tmp_path):
    drawn = []
    tasks = ((drawn.append(number) or number, -1) for number in range(4))
    assert [next(found) for found in [runner.map(_fail_on, tasks, at_once=1)]] == [(0, 0)]
    assert drawn == [0]
    (tmp_path / "now").touch()
    ended = runner.map(_wait_for, [(tmp_path, "later" if n else "now", n) for n in range(9)])
    assert next(ended) == (0, None)
    ended.close()
    (tmp_path / "later").touch()
    assert dict(runner.map(_fail_on, [(2, 0)])) == {0: 4}  # workers are free for others
    assert not (tmp_path / "8.started").exists()


def test_teachers_and_cells_have_the_same_bits(runner, tmp_path):
    def cells(runner, name):
        study = Study(tmp_path / name, runner=runner, **HOW)
        found = study.cells([TINY], ["mtt", "random", "herding"])
        return [(cell.method, cell.evaluation.confusion.tolist()) for cell in found]

    assert cells(runner, "there") == cells(None, "here")
    assert content(tmp_path / "there") == content(tmp_path / "here")
    assert not spare(tmp_path)


CELLS = """
import os
from iadd_lab.notebooks.dask import named_runner
from iadd_lab.study.study import Study
from tests.test_study import TINY
study = Study(runs_dir, device="cpu", threads=1, progress=False, runner=named_runner())
print(bool(os.environ.get("IADD_CLUSTER")), os.environ["IADD_DATA"], type(study.runner).__name__)
print([cell.evaluation.accuracies.tolist() for cell in study.cells([TINY], ["random"])])
"""


@pytest.fixture
def by_hand(tmp_path, monkeypatch):
    """The address of a scheduler with one worker, started by hand; the worker has data of its own."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))  # kernels import from the tests
    address, dask = tmp_path / "scheduler.json", [sys.executable, "-m", "dask"]
    scheduler = ["scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    worker = ["worker", "--nthreads", "1", "--no-dashboard", "--local-directory", str(tmp_path)]
    with (tmp_path / "log.txt").open("w") as log:
        options = {"env": os.environ | {"OMP_NUM_THREADS": "1", "IADD_DATA": "/own"}, "stderr": log}
        started = [
            subprocess.Popen([*dask, *words, "--scheduler-file", str(address)], **options)
            for words in (scheduler, worker)
        ]
    wait_until(address.exists)
    wait_until(lambda: re.search(r"tcp://[0-9.:]+", address.read_text()))
    yield re.search(r"tcp://[0-9.:]+", address.read_text())[0]
    for process in reversed(started):
        process.terminate()
        process.wait(PATIENCE)


def test_notebooks_and_their_cells_are_tasks_of_one_cluster(by_hand, tmp_path, monkeypatch):
    """The one thread of the one worker is free for the cells while a notebook waits for them."""
    folders = {name: tmp_path / name for name in ("notebooks", "figures", "runs")}
    folders["notebooks"].mkdir()
    parameters = 'runs_dir = ""\nfigures_dir = ""'
    write_notebook(folders["notebooks"] / "cells.ipynb", CELLS, parameters=parameters)
    write_notebook(folders["notebooks"] / "bad.ipynb", "1 / 0", parameters=parameters)
    monkeypatch.setenv("IADD_DATA", str(tmp_path))
    assert reproduce(progress=False, cluster=by_hand, **folders) == ["bad"]
    (cell,) = Study(tmp_path / "here", **HOW).cells([TINY], ["random"])
    said = "".join(outputs(folders["figures"] / "quick" / "cells.ipynb")).splitlines()
    assert said == ["True /own DaskRunner", str([cell.evaluation.accuracies.tolist()])]
    assert content(folders["runs"]) == content(tmp_path / "here")
    monkeypatch.delenv("IADD_CLUSTER", raising=False)
    assert named_runner() is None
    monkeypatch.setenv("IADD_CLUSTER", by_hand)
    assert named_runner() is named_runner()
    named_runner().client.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_local_workers_end_with_the_process_that_started_them(tmp_path, number):
    code = f"""
from pathlib import Path
from iadd_lab.notebooks.dask import open_runner
from tests.test_dask import _wait_for
with open_runner("local:2") as runner:
    list(runner.map(_wait_for, [(Path({str(tmp_path)!r}), "never", 0)]))
"""
    said = tmp_path / "said.txt"
    with said.open("w") as file:
        process = subprocess.Popen([sys.executable, "-c", code], stderr=file, start_new_session=True)
    wait_until(lambda: (tmp_path / "0.started").exists() or process.poll() is not None)
    children = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    assert len(children) >= 2, said.read_text()
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)  # Ctrl-C reaches them all
    process.wait(PATIENCE)
    wait_until(lambda: not any(runs_on(child) for child in children))
    assert "dashboard of the cluster: http://127.0.0.1:" in said.read_text()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        *((name, "expected local, local:N or tcp://HOST:PORT") for name in ("here", "local:0", "tcp://host")),
        ("tcp://127.0.0.1:9", r"no scheduler answers at tcp://127\.0\.0\.1:9: start one"),
    ],
)
def test_what_is_no_cluster_is_refused(name, sentence):
    assert_refused(sentence, open_runner(name).__enter__)


def test_a_cluster_that_can_not_start_says_what_the_machine_may_be_short_of(monkeypatch):
    monkeypatch.setattr("distributed.Client", Mock(side_effect=RuntimeError("Nanny failed to start.")))
    told = r"no local cluster can be started \(Nanny failed to start\): make room in /dev/shm .*-n\)\.$"
    with pytest.raises(OSError, match=told), open_runner("local:2"):
        pass


def test_without_dask_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert_refused("pip install distributed bokeh", open_runner("local:2").__enter__)
    with open_runner(None) as runner:
        assert runner is None
