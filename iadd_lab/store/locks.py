"""Locks between processes: two of them never compute the same thing at once, nor write into one folder.

A lock is a file that the operating system locks for its owner, and frees when the owner ends, in whatever
way. The file goes with its last holder. A process that had opened it before learns from filelock that it is
gone, and tries anew: else it and the maker of the next file would both believe that they are alone.
"""

import errno
import functools
import inspect
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from iadd_lab.errors import InputError

PREPROCESSING = ".preprocess.lock"  # in the folder of teachers: nobody need wait for hours of training
# How a file system says that it lacks a thing, such as locks: network and overlay ones, as they are mounted.
UNSUPPORTED = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
# Nor can a result be written where no lock can: whoever tries to will hear of it, who only reads need not.
_NOTHING_WRITTEN = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT}
_without: set[Path] = set()  # folders in which there turned out to be none


def expanded(path: Path | str) -> Path:
    """`path` with the home folder in place of a ~ at its beginning.

    Raises:
        InputError: there is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        told = f"{path} begins with ~, but there is no such home folder: write the path in full."
        raise InputError(told) from error


def lock_of(path: Path | str) -> Path:
    """The file that is locked while the folder `path` is worked in, or the file `path` is made."""
    path = Path(path)
    return path.with_name(f".{path.name}.lock") if path.suffix == ".safetensors" else path / ".lock"


@contextmanager
def locked(lock: Path, what: str) -> Iterator[None]:
    """Hold `lock` while the block runs; wait for another process that has it, and say so in one line.

    A thread that holds it may take it again. Where the file system knows no locks, one line of the process
    says so, and the block runs without; where nothing can be written, it does so in silence.

    Args:
        lock: the file to lock; its folder is made. Both are gone afterwards, unless the folder holds more.
        what: is computed, for the line that is written while waiting.
    """
    holder, is_new = _lock_on(lock, is_singleton=True), not lock.parent.exists()
    _wait_for(holder, lock, what)
    try:
        yield
    finally:
        _release(holder, lock)
        if is_new:  # where nothing was written, as after a refusal, nothing is left
            with suppress(OSError):
                lock.parent.rmdir()


def locked_folder(parameter: str, *, file: str = "") -> Callable[[Callable], Callable]:
    """Decorate a function so that it holds the lock of what it is given as `parameter`, a ~ expanded.

    Args:
        parameter: of the function: the folder that it works in, the file that it makes, or None.
        file: another lock than `lock_of`'s, in that folder.
    """

    def decorate(function: Callable) -> Callable:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def holding(*positional, **named):
            given = signature.bind(*positional, **named)
            path = given.arguments.get(parameter)
            if path:
                path = given.arguments[parameter] = expanded(path)
            lock = path and (path / file if file else lock_of(path))
            with locked(lock, str(path)) if lock else nullcontext():
                return function(*given.args, **given.kwargs)

        return holding

    return decorate


def is_held(lock: Path) -> bool:
    """Whether a process, this one included, holds `lock`; also where that can't be found out.

    Where the file system knows no locks, none does.
    """
    try:
        with _lock_on(lock) if lock.exists() else nullcontext():
            return False
    except OSError as error:
        return error.errno not in UNSUPPORTED and lock.exists()


@contextmanager
def try_lock(lock: Path) -> Iterator[bool]:
    """Hold `lock` while the block runs if nobody has it, without waiting; says whether it is held.

    Its file goes with it: so the one of an owner that was killed, and whom nobody follows, is removed. Where
    the file system knows no locks, one line of the process says so, and nobody has it.
    """
    holder, is_free = _lock_on(lock), True
    try:
        holder.acquire()
    except OSError as error:
        is_free = _tell_without(lock, error)
    try:
        yield is_free
    finally:
        _release(holder, lock)


def _lock_on(lock: Path, *, is_singleton: bool = False) -> FileLock:
    # A soft lock would outlive a killed owner.
    return FileLock(lock.absolute(), 0, is_singleton=is_singleton, fallback_to_soft=False)


def _tell_without(lock: Path, error: OSError) -> bool:
    """Whether `error` says that there are no locks here, which one line of the process then says."""
    if error.errno in UNSUPPORTED:
        if not _without:
            said = f"{lock.parent} can't be locked ({error.strerror}): let no other process compute the same"
            tqdm.write(f"{said} meanwhile", file=sys.stderr)
        _without.add(lock.parent)
    return error.errno in UNSUPPORTED


def _wait_for(holder: FileLock, lock: Path, what: str) -> None:
    """Take the lock, or return without where there can be none."""
    for attempt in itertools.count():
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            with suppress(Timeout, FileNotFoundError):  # its owner may remove the whole folder
                holder.acquire()
                return
        except OSError as error:
            if not _tell_without(lock, error) and error.errno not in _NOTHING_WRITTEN:
                raise
            return
        if attempt == 0:
            # Below a progress bar, not into it.
            tqdm.write(f"waiting for another process that computes {what}", file=sys.stderr)
        time.sleep(0.1)


def _release(holder: FileLock, lock: Path) -> None:
    if holder.lock_counter == 1 or lock.parent in _without:  # the outermost block of this thread
        with suppress(OSError):  # Windows keeps what is open; filelock removes it there
            lock.unlink()
    holder.release()
