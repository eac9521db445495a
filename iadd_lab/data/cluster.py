"""Independent tasks, one after another in this process or side by side on the workers of a Dask cluster.

Teachers, cells of a table, evaluation networks and notebooks need nothing of one another. Whoever has a list
of such tasks hands it to an engine: `InProcess` runs them here, `Cluster` sends them to workers. What they
make goes into the shared folder of runs, and a task whose worker died goes on elsewhere from its checkpoint.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import itertools
import logging
import math
import os
import re
import signal
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from tqdm import tqdm

from iadd_lab.data.sets import DataConfig, ImageData, load_data
from iadd_lab.device import PRECISIONS, set_precision
from iadd_lab.errors import InputError, require

Value = TypeVar("Value")

_PATIENCE = 5.0  # seconds in which a scheduler that is there answers
_BETWEEN_REPORTS = 0.2  # seconds
_FOLDERS = ("IADD_DATA", "IADD_CACHE")  # where workers look for images, unless they have been told by others
_WRITTEN = "local, local:N or tcp://HOST:PORT"


class Report(Protocol):
    """How a task says that it has `done` so many units of its work, and what to show beside the bar."""

    def __call__(self, done: int, **shown: object) -> None: ...


# Called with the task's own arguments and the keyword `report`.
Work = Callable[..., Value]


@dataclass(frozen=True)
class Outcome:
    """How the task of that number ended: with a value, or with one of the errors that were expected."""

    number: int
    value: Any = None
    error: Exception | None = None


class Engine(Protocol):
    """Where independent tasks run."""

    workers: int  # tasks at once
    address: str  # of the scheduler; empty for this process

    def share(self, here: Callable[[], Value], there: Callable[..., Value], *arguments: object) -> Any:
        """An argument that many tasks have, made once: `here()`, or `there(*arguments)` on each worker."""

    def pieces(self, count: int, size: int) -> list[range]:
        """How work on `count` things is cut into tasks, where `size` of them are best done together."""

    def run(
        self,
        work: Work,
        tasks: Iterable[tuple],
        *,
        bar: tqdm | None = None,
        expected: tuple[type[Exception], ...] = (),
        at_once: int | None = None,
        releasing: bool = False,
    ) -> Iterator[Outcome]:
        """Call `work(*task, report=...)` for each of `tasks`, and yield each outcome when it is there.

        Args:
            work: a function of a module, so that a worker can find it.
            tasks: the arguments of each.
            bar: moved by what the tasks report.
            expected: errors that become outcomes; any other ends the run.
            at_once: no more than so many at the same time.
            releasing: the tasks wait for tasks of their own: they do not count as work of their workers.
        """


class _Progress:
    """One bar over all tasks: each says how far it is, and after a kill may say less than before."""

    def __init__(self, bar: tqdm | None):
        self.bar, self.done = bar, {}

    def __call__(self, number: int, done: int, **shown: object) -> None:
        if self.bar is None:
            return
        self.done[number] = done
        if shown:
            self.bar.set_postfix(shown, refresh=not done)
        self.bar.update(sum(self.done.values()) - self.bar.n)


class InProcess:
    """Tasks run here, one after another, in their order."""

    workers = 1
    address = ""

    def share(self, here, there, *arguments):
        return here()

    def pieces(self, count, size):
        return [range(count)]

    def run(self, work, tasks, *, bar=None, expected=(), at_once=None, releasing=False):
        progress = _Progress(bar)
        for number, task in enumerate(tasks):
            try:
                value = work(*task, report=partial(progress, number))
            except expected as error:
                yield Outcome(number, error=error)
            else:
                yield Outcome(number, value)


IN_PROCESS = InProcess()


@dataclass(frozen=True)
class _There:
    """An argument that a worker makes for itself, and keeps until other tasks want others."""

    make: Callable[..., Any]
    arguments: tuple

    @property
    def key(self) -> str:
        return f"{self.make.__module__}.{self.make.__qualname__}{self.arguments!r}"


_kept: dict[str, Any] = {}  # of this worker, by key
_KEPT = 3  # images, the same preprocessed, and a study
_making = threading.RLock()  # a worker may have several threads


def _resolved(argument: Any) -> Any:
    if not isinstance(argument, _There):
        return argument
    with _making:
        if argument.key not in _kept:
            made = argument.make(*(_resolved(part) for part in argument.arguments))
            while len(_kept) >= _KEPT:
                del _kept[next(iter(_kept))]
            _kept[argument.key] = made
        return _kept[argument.key]


@dataclass(frozen=True)
class _Job:
    """A task on its way to a worker, with all of this process that its result may depend on."""

    work: Work
    arguments: tuple
    number: int
    topic: str  # on which it reports
    environment: Mapping[str, str]
    precision: str
    threads: int | None  # of PyTorch; None leaves the worker's own
    releasing: bool

    def perform(self) -> tuple[Any, int]:
        """What the worker does: the result, and how many units of work that was."""
        from distributed import get_worker, secede

        for name, value in self.environment.items():
            os.environ.setdefault(name, value)
        set_precision(self.precision)
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        worker = get_worker()
        report = _Messages(worker, worker.get_current_task(), self.topic, self.number)
        if self.releasing:
            secede()
        value = self.work(*(_resolved(argument) for argument in self.arguments), report=report)
        return value, report.done


class _Messages:
    """What a task reports from its worker, a few times a second."""

    def __init__(self, worker: Any, key: str, topic: str, number: int):
        self.worker, self.key, self.topic, self.number = worker, key, topic, number
        self.said, self.done = -math.inf, 0

    def __call__(self, done: int, **shown: object) -> None:
        state = self.worker.state.tasks.get(self.key)
        if state is None or state.state == "cancelled":  # by Ctrl-C, where the task came from
            raise RuntimeError("nobody waits for this task any more")
        self.done, now = done, time.monotonic()
        if now - self.said >= _BETWEEN_REPORTS:
            self.said = now
            self.worker.log_event(self.topic, [self.number, done, shown])


class Cluster:
    """Tasks go to the workers of a Dask cluster; one whose worker dies is done again by another.

    Args:
        client: connected to the scheduler.
        data_root: where workers look for data sets; None for their own usual place.
        threads: of PyTorch in each task; None leaves what the workers were started with.
    """

    def __init__(self, client: Any, *, data_root: Path | None = None, threads: int | None = None):
        self.client, self.threads = client, threads
        self.data_root = str(Path(data_root).expanduser().absolute()) if data_root is not None else None

    @property
    def workers(self) -> int:
        return max(len(self.client.scheduler_info(n_workers=-1)["workers"]), 1)

    @property
    def address(self) -> str:
        return self.client.scheduler.address

    def share(self, here, there, *arguments):
        return _There(there, arguments)

    def pieces(self, count, size):
        return [range(first, min(first + size, count)) for first in range(0, count, size)]

    def run(self, work, tasks, *, bar=None, expected=(), at_once=None, releasing=False):
        topic, progress = f"iadd-lab-{uuid.uuid4().hex}", _Progress(bar)
        jobs = (
            _Job(work, task, number, topic, _environment(), _precision(), self.threads, releasing)
            for number, task in enumerate(tasks)
        )
        self.client.subscribe_topic(topic, lambda event: progress(event[1][0], event[1][1], **event[1][2]))
        try:
            for number, future in self._ended(jobs, at_once):
                outcome, done = _outcome(future, number, expected)
                progress(number, done)
                yield outcome
        finally:
            self.client.unsubscribe_topic(topic)

    def _ended(self, jobs: Iterator[_Job], at_once: int | None) -> Iterator[tuple[int, Any]]:
        """Each job's number and future when it has ended; those that have not are cancelled at the end."""
        from distributed import as_completed

        running, ended = {}, as_completed(raise_errors=False)

        def submit(several: int | None) -> None:
            for job in itertools.islice(jobs, several):
                name = f"{job.work.__name__.strip('_')}-{job.number}-{job.topic}"
                # First come, first served: a later list of tasks must not wait for an earlier one.
                future = self.client.submit(_Job.perform, job, key=name, pure=False, fifo_timeout="0 ms")
                running[future] = job.number
                ended.add(future)

        try:
            submit(at_once)
            for future in ended:
                number = running.pop(future)
                yield number, future
                submit(1)
        finally:
            self.client.cancel(list(running))


def _outcome(future: Any, number: int, expected: tuple[type[Exception], ...]) -> tuple[Outcome, int]:
    """How the job ended, and how many units of work it was."""
    from distributed import CancelledError, KilledWorker

    try:
        value, done = future.result()
        return Outcome(number, value), done
    except expected as error:
        return Outcome(number, error=error), 1
    except KilledWorker as error:
        raise OSError(
            f"each worker that was given {error.task} died, perhaps for want of memory: start workers with "
            "more of it, then run the same again to go on."
        ) from None
    except CancelledError:
        raise OSError(
            "the cluster's scheduler is gone: start it again, then run the same again to go on."
        ) from None


def _environment() -> dict[str, str]:
    folders = {name: os.environ.get(name) for name in _FOLDERS}
    return {name: str(Path(path).expanduser().absolute()) for name, path in folders.items() if path}


def _precision() -> str:
    names = {theirs: ours for ours, theirs in PRECISIONS.items()}
    return names[torch.get_float32_matmul_precision()]


def share_data(engine: Engine, data: ImageData) -> Any:
    """`data` as an argument of tasks: workers load it from their disks, where it must be the same."""
    root = getattr(engine, "data_root", None)
    return engine.share(lambda: data, _loaded, data.config, root, data.fingerprint)


def _loaded(config: DataConfig, root: str | None, expected: str) -> ImageData:
    data = load_data(config, root=Path(root) if root else None, progress=False)
    require(
        data.fingerprint == expected,
        f"a worker found other images as {config} (fingerprint {data.fingerprint}, expected {expected}): "
        "copy the data set to it, or share its folder.",
    )
    return data


@contextmanager
def open_engine(
    cluster: str | None, *, data_root: Path | None = None, announce: bool = True
) -> Iterator[Engine]:
    """The engine called `cluster`, for as long as the block lasts; this process where it is None or empty.

    Args:
        cluster: "local" (a worker for each core), "local:N" (N workers), or the address of a scheduler, as in
            "tcp://host:8786".
        data_root: where data sets lie; None for the usual place.
        announce: whether to print the dashboard's address.

    Raises:
        InputError: it is something else, `distributed` is not installed, or no scheduler answers.
    """
    if not cluster:
        yield IN_PROCESS
        return
    local = re.fullmatch(r"local(?::([1-9][0-9]{0,3}))?", cluster)
    remote = re.fullmatch(r"(tcp|tls|ws|wss)://\S+:[0-9]+", cluster)
    require(bool(local or remote), f"cluster is {cluster!r}: expected {_WRITTEN}.")
    require(
        importlib.util.find_spec("distributed") is not None,
        f"--cluster {cluster} needs Dask, which is not installed: pip install distributed bokeh.",
    )
    for name in ("distributed", "distributed.nanny", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what matters is raised
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*(Sending large graph|Port .* is already in use).*")
        opened = _local_client(local[1]) if local else _remote_client(cluster)
        with opened as (client, threads):
            if announce and "dashboard" in client.scheduler_info(n_workers=-1).get("services", {}):
                _say(f"dashboard of the cluster: {client.dashboard_link}")
            yield Cluster(client, data_root=data_root, threads=threads)


@functools.cache
def _engine_of(cluster: str) -> Engine:
    """The engine called `cluster`, open until this process ends."""
    opened = open_engine(cluster, announce=False)  # an address would be another one in each notebook
    engine = opened.__enter__()
    atexit.register(opened.__exit__, None, None, None)
    return engine


def named_engine() -> Engine:
    """The engine that `$IADD_CLUSTER` names, connected once; this process where it names none."""
    name = os.environ.get("IADD_CLUSTER")
    return _engine_of(name) if name else IN_PROCESS


@contextmanager
def _local_client(count: str | None) -> Iterator[tuple[Any, int]]:
    """A client of workers on this machine, processes that end with the block, and the threads of each."""
    from distributed import Client, LocalCluster

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = int(count or cores)
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(cores // workers, 1))
    before = dict(os.environ)  # Dask changes it for the workers
    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            memory_limit=0,  # Dask pauses and kills by limits of its own
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
            preload=[__name__],  # see `dask_setup`
        ) as cluster,
        Client(cluster) as client,
    ):
        os.environ.clear()
        os.environ.update(before)
        yield client, threads


def dask_setup(worker: object) -> None:
    """What Dask calls in each local worker when it starts: Ctrl-C, which a terminal sends to all, is not its.

    Workers end when the process that started them ends them.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _remote_client(address: str) -> Iterator[tuple[Any, None]]:
    """A client of a scheduler that runs somewhere."""
    from distributed import Client

    try:
        client = Client(address, timeout=_PATIENCE)
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(
            f"no scheduler answers at {address}: start one with `dask scheduler`, or check host and port."
        ) from error
    with client:
        if not client.scheduler_info(n_workers=-1)["workers"]:
            join = f"dask worker {address} --nthreads 1"
            _say(f"{address} has no workers yet: tasks wait until some join, as with `{join}`")
        yield client, None


def _say(sentence: str) -> None:
    tqdm.write(sentence, file=sys.stderr)
