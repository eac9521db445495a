"""Independent tasks on the workers of a Dask cluster: teachers, cells of a table, whole notebooks.

Nothing below this room knows of Dask. Whoever has a list of such tasks, as `Study` has, is given a runner and
calls its `map`. What tasks make goes into the shared folder of runs; a task whose worker died is done again
by another, which goes on from the checkpoint.
"""

import atexit
import functools
import importlib.util
import itertools
import logging
import os
import re
import sys
import threading
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from iadd_lab.errors import InputError, require
from iadd_lab.notebooks.execute import leave_to_batch
from iadd_lab.store.artefacts import expanded

_PATIENCE = 5.0  # seconds in which a scheduler that is there answers
_SHORT_OF = "make room in /dev/shm (shared memory) and $TMPDIR, or raise the limit of open files (ulimit -n)"
_ASK_AGAIN = "then run the same again to go on."
_FOLDERS = ("IADD_DATA", "IADD_CACHE")


def folders_of_images() -> dict[str, str]:
    """$IADD_DATA and $IADD_CACHE as far as they are set, as a process in another folder must have them."""
    given = {name: os.environ.get(name) for name in _FOLDERS}
    return {name: str(expanded(folder).absolute()) for name, folder in given.items() if folder}


_own = folders_of_images()  # a worker's, as it was started; none of a local one, see `dask_setup`


class DaskRunner:
    """Tasks go to the workers of a Dask cluster; one whose worker dies is done again by another.

    Args:
        client: connected to the scheduler.
    """

    def __init__(self, client: Any):
        self.client = client

    @property
    def workers(self) -> int:
        """How many tasks run at once."""
        return max(len(self.client.scheduler_info(n_workers=-1)["workers"]), 1)

    def map(
        self, function: Callable, tasks: Iterable[tuple], *, at_once: int | None = None
    ) -> Iterator[tuple]:
        """Call `function(*task)` for each of `tasks`, and yield (number, value or exception) when it ends.

        Args:
            function: of a module, or a method, so that it can be pickled.
            tasks: the arguments of each; they are pickled.
            at_once: give workers no more than so many at the same time; None gives them all.
        """
        from distributed import as_completed

        call = functools.partial(_perform, function, folders_of_images())
        name, waiting = f"{function.__name__.strip('_')}-{uuid.uuid4().hex}", enumerate(tasks)
        running, ended = {}, as_completed(raise_errors=False)

        def submit(several: int | None) -> None:
            for number, task in itertools.islice(waiting, several):
                # First come, first served: a later list of tasks must not wait for an earlier one.
                options = {"key": f"{name}-{number}", "pure": False, "fifo_timeout": "0 ms"}
                running[future := self.client.submit(call, task, **options)] = number
                ended.add(future)

        try:
            submit(at_once)
            for future in ended:
                yield running.pop(future), _value(future)
                submit(1)
        finally:
            self.client.cancel(list(running))


def _perform(function: Callable[..., Any], folders: Mapping[str, str], task: tuple) -> Any:
    # A worker elsewhere may have folders of its own; else they are the caller's, and unset where it has none.
    os.environ.update(dict.fromkeys(_FOLDERS, "") | folders | _own)
    return function(*task)


def _value(future: Any) -> Any:
    """What the task gave, or the exception that ended it."""
    from distributed import CancelledError, KilledWorker

    try:
        return future.result()
    except KilledWorker as error:
        died = f"each worker that was given {error.task} died, perhaps for want of memory"
        return OSError(f"{died}: start workers with more of it, {_ASK_AGAIN}")
    except CancelledError:
        return OSError(f"the cluster's scheduler is gone: start it again, {_ASK_AGAIN}")
    except Exception as error:
        return error


@contextmanager
def open_runner(cluster: str | None, *, announce: bool = True) -> Iterator[DaskRunner | None]:
    """The runner called `cluster` while the block runs; None, for this process, where it is None or empty.

    Args:
        cluster: "local" (a worker for each core), "local:N" (N workers), or the address of a scheduler, as in
            "tcp://host:8786".
        announce: whether to print the dashboard's address.

    Raises:
        InputError: it is something else, `distributed` is not installed, or no scheduler answers.
    """
    if not cluster:
        yield None
        return
    local = re.fullmatch(r"local(?::([1-9][0-9]{0,3}))?", cluster)
    known = local or re.fullmatch(r"(tcp|tls|ws|wss)://\S+:[0-9]+", cluster)
    require(bool(known), f"cluster is {cluster!r}: expected local, local:N or tcp://HOST:PORT.")
    there = importlib.util.find_spec("distributed") is not None
    require(there, f"--cluster {cluster} needs Dask, which is not installed: pip install distributed bokeh.")
    for name in ("distributed", "distributed.nanny", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what matters is raised
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*(Sending large graph|Port .* is already in use).*")
        with _client(cluster, local) as client:
            found = client.scheduler_info(n_workers=-1)
            if announce and "dashboard" in found.get("services", {}):
                print(f"dashboard of the cluster: {client.dashboard_link}", file=sys.stderr)
            if not found["workers"]:
                join = f"as with `dask worker {cluster} --nthreads 1`"
                print(f"{cluster} has no workers yet: tasks wait until some join, {join}", file=sys.stderr)
            yield DaskRunner(client)


def _client(cluster: str, local: re.Match[str] | None) -> Any:
    """A client of a scheduler somewhere, or of workers on this machine: processes that end with it."""
    from dask.system import CPU_COUNT
    from distributed import Client

    if not local:
        try:
            return Client(cluster, timeout=_PATIENCE)
        except (OSError, ValueError) as error:
            said = f"no scheduler answers at {cluster}"
            raise InputError(f"{said}: start one with `dask scheduler`, or check host and port.") from error
    workers = int(local[1] or CPU_COUNT)
    with patch.dict(os.environ):  # which Dask changes for the workers, and which is put back
        os.environ.setdefault("OMP_NUM_THREADS", str(max(CPU_COUNT // workers, 1)))  # Dask's own choice is 1
        try:
            return Client(
                n_workers=workers,
                threads_per_worker=1,  # that take tasks
                memory_limit=0,  # Dask pauses and kills by limits of its own
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
                preload=[__name__],  # see `dask_setup`
            )
        except (OSError, RuntimeError) as error:
            said = f"no local cluster can be started ({str(error).rstrip('.')}): {_SHORT_OF}."
            raise OSError(said) from error


def dask_setup(worker: object) -> None:
    """What Dask calls in each local worker when it starts: what a terminal sends to all is not its.

    Workers end when the process that started them ends them. Nor are the folders that it inherited: the
    caller may name others later.
    """
    _own.clear()
    if threading.current_thread() is threading.main_thread():
        leave_to_batch()


def named_runner() -> DaskRunner | None:
    """The runner that `$IADD_CLUSTER` names, connected once; None where it names none."""
    return _open_until_the_end(os.environ.get("IADD_CLUSTER"))


@functools.cache
def _open_until_the_end(cluster: str | None) -> DaskRunner | None:
    opened = ExitStack()
    atexit.register(opened.close)
    return opened.enter_context(open_runner(cluster, announce=False))  # no notebook may print an address
