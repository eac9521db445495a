"""Executing notebooks with papermill, one after another or several at once."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iadd_lab.data.cluster import IN_PROCESS, Engine, Report
from iadd_lab.notebooks.notebook import without_paths
from iadd_lab.notebooks.plan_batch import Task
from iadd_lab.notebooks.profiles import PATHS_SET_BY_BATCH
from iadd_lab.notebooks.record import file_clock

_ERROR_TAG = "papermill-error-cell-tag"  # papermill's own, on the cells in which it says what failed
_TIMES = ("start_time", "end_time", "duration")


@dataclass(frozen=True)
class Outcome:
    """How an execution ended.

    Attributes:
        failure: one sentence that says what went wrong; empty after success.
        since: `file_clock` when it started.
        seconds: how long it took.
    """

    failure: str
    since: int = 0
    seconds: float = 0.0


def execute(task: Task, copy: Path, *, progress: bool, cluster: str = "") -> Outcome:
    """Execute the notebook of `task` into `copy`, which after a failure holds what was executed till then."""
    # Late, since they take over a second to import, which a batch with nothing to do need not spend.
    from papermill import PapermillExecutionError, execute_notebook

    failure, since, start = "", file_clock(task.folder), time.perf_counter()
    try:
        with _kernel_environment({"IADD_CLUSTER": cluster} if cluster else {}):
            execute_notebook(
                task.source.absolute(),
                copy,
                parameters=task.parameters,
                kernel_name="python3",
                language="python",
                cwd=task.source.parent.absolute(),
                progress_bar=progress,
                coalesce_streams=True,  # of a progress bar, keep the last state
                extra_arguments=["--log-level=CRITICAL"],  # a kernel's log would tear our own bars
            )
    except PapermillExecutionError as error:
        reason = f"{error.ename}: {error.evalue}".splitlines()[0]
        failure = f"{task.source.name} failed in cell [{error.exec_count}]: {reason}"
    except Exception as error:  # a kernel that died, or whatever else: on to the next notebook
        reason = " ".join(str(error).split()) or type(error).__name__
        failure = f"{task.source.name} could not be executed: {reason}"
    return Outcome(failure, since, time.perf_counter() - start)


@dataclass(frozen=True)
class Hooks:
    """What `execute_all` calls, always in the process that called it.

    Attributes:
        started: with each task when it starts.
        ended: with each task, the copy that was executed, and the outcome.
        waiting: about once a second while several tasks run.
    """

    started: Callable[[Task], None]
    ended: Callable[[Task, Path, Outcome], None]
    waiting: Callable[[], None]


@contextmanager
def _kernel_environment(more: Mapping[str, str]) -> Iterator[None]:
    """What kernels are to find in their environment, for as long as the block lasts."""
    # A kernel runs in the notebooks' folder, from where a relative path means something else.
    names = [name for name in ("IADD_DATA", "IADD_CACHE") if os.environ.get(name)]
    changed = {name: str(Path(os.environ[name]).expanduser().absolute()) for name in names} | dict(more)
    # Progress bars without times, or an executed notebook would change whenever it is executed again.
    changed["TQDM_BAR_FORMAT"] = "{l_bar}{bar}| {n_fmt}/{total_fmt}{postfix}"
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def execute_all(
    tasks: Sequence[Task],
    scratch: Path,
    hooks: Hooks,
    *,
    jobs: int,
    progress: bool,
    engine: Engine = IN_PROCESS,
) -> None:
    """Execute `tasks`, so many `jobs` at once.

    Args:
        tasks: in this order.
        scratch: an empty folder for the copies being executed.
        hooks: told of each start and end.
        jobs: how many at once. More than one run in processes of their own: papermill changes the working
            directory, which all threads of a process share.
        progress: with one job, show papermill's bar of the notebook's cells.
        engine: a cluster, on which as many notebooks at once are executed as it has workers, or this process.
    """
    if engine.address:
        _execute_on(engine, tasks, scratch, hooks)
        return
    if jobs == 1 or len(tasks) == 1:
        for task in tasks:
            hooks.started(task)
            copy = scratch / task.executed.name
            hooks.ended(task, copy, execute(task, copy, progress=progress))
        return
    others = set(multiprocessing.active_children())
    lanes = [_lane() for _ in range(min(jobs, len(tasks)))]
    try:
        _execute_in(lanes, tasks, scratch, hooks)
    except BaseException:  # above all Ctrl-C: kernels must not run on
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()
        raise
    finally:
        for lane in lanes:
            lane.shutdown(cancel_futures=True)


def _execute_on(engine: Engine, tasks: Sequence[Task], scratch: Path, hooks: Hooks) -> None:
    def shown() -> Iterator[tuple[Task, Path, str]]:
        for task in tasks:
            hooks.started(task)
            yield task.anywhere(), scratch / task.executed.name, engine.address

    outcomes = engine.run(_execute_there, shown(), at_once=engine.workers, releasing=True)
    for outcome in outcomes:
        task = tasks[outcome.number]
        hooks.ended(task, scratch / task.executed.name, outcome.value)


def _execute_there(task: Task, copy: Path, address: str, *, report: Report) -> Outcome:
    """Execute a notebook on a worker; the cells of its tables become tasks of the same cluster."""
    report(0)
    return execute(task, copy, progress=False, cluster=address)


def _execute_in(lanes: list[ProcessPoolExecutor], tasks: Sequence[Task], scratch: Path, hooks: Hooks) -> None:
    queue, free, running = deque(tasks), deque(range(len(lanes))), {}
    while queue or running:
        while queue and free:
            task, place = queue.popleft(), free.popleft()
            copy = scratch / task.executed.name
            running[_submit(lanes, place, task, copy)] = task, copy, place
            hooks.started(task)
        done, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)
        hooks.waiting()
        for future in done:
            task, copy, place = running.pop(future)
            free.append(place)
            hooks.ended(task, copy, _outcome(task, future))


def _submit(lanes: list[ProcessPoolExecutor], place: int, task: Task, copy: Path) -> Future:
    try:
        return lanes[place].submit(execute, task, copy, progress=False)
    except BrokenProcessPool:  # its worker died, with the task before or since
        lanes[place] = _lane()
        return lanes[place].submit(execute, task, copy, progress=False)


def _lane() -> ProcessPoolExecutor:
    """A pool of one worker. When the worker of a larger pool dies, nobody knows what it was executing."""
    context = multiprocessing.get_context("spawn")  # forking after PyTorch made threads may hang
    return ProcessPoolExecutor(1, mp_context=context, initializer=_prepare_worker)


def _prepare_worker() -> None:
    # Ctrl-C reaches all processes of a terminal; the batch alone decides, and stops its workers with SIGTERM,
    # which here unwinds papermill, which stops the kernel.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    threading.Thread(target=_end_with_batch, daemon=True).start()


def _end_with_batch() -> None:
    """Wait for the batch to end, by a kill perhaps: then nobody wants what this worker computes.

    Its kernel ends by itself, as it sees its parent gone.
    """
    multiprocessing.parent_process().join()
    os._exit(1)


def _outcome(task: Task, future: Future) -> Outcome:
    error = future.exception()
    if error is None:
        return future.result()
    died = "its process died, perhaps for want of memory (then fewer --jobs help)"
    reason = died if isinstance(error, BrokenProcessPool) else str(error)
    return Outcome(f"{task.source.name} could not be executed: {reason}")


def tidy(copy: Path, task: Task, *, failure: str = "") -> str:
    """The executed notebook `copy` without times, random ids and paths of this machine.

    Executed again, a notebook whose outputs are the same is the same file, wherever the batch's folders lay;
    and run by hand, it goes by its own defaults instead of folders that may be of another machine.

    Args:
        copy: as papermill wrote it.
        task: that was executed.
        failure: what to say at the top, unless papermill did.

    Raises:
        ValueError: the copy is not a whole notebook.
    """
    content = json.loads(copy.read_text(encoding="utf-8"))
    noted, cells = content["metadata"].get("papermill", {}), content["cells"]
    noted.update(input_path=task.executed.name, output_path=task.executed.name)
    given = noted.get("parameters", {})
    given.update(dict.fromkeys(given.keys() & set(PATHS_SET_BY_BATCH), ""))
    if failure and not any(_ERROR_TAG in cell["metadata"].get("tags", []) for cell in cells):
        message = {"cell_type": "markdown", "metadata": {"tags": [_ERROR_TAG]}, "source": [failure]}
        cells.insert(0, message)
    known = {cell.get("id") for cell in json.loads(task.source.read_text(encoding="utf-8"))["cells"]}
    for place, cell in enumerate(cells):
        cell["metadata"].pop("execution", None)
        without_paths(cell, PATHS_SET_BY_BATCH)
        _drop_times(cell["metadata"].get("papermill", {}))
        if cell.get("id") is None or cell["id"] not in known:
            cell["id"] = f"made-{place}"
    _drop_times(noted)
    content["nbformat_minor"] = max(content["nbformat_minor"], 5)  # the first in which cells have ids
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _drop_times(noted: dict[str, Any]) -> None:
    for name in _TIMES:
        noted.pop(name, None)
