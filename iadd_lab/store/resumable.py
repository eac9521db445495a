"""A computation that can stop and go on: its state on disk, saved now and then, and when the user stops it.

Ctrl-C (SIGINT), and SIGTERM as batch systems send it, are heeded where a state is whole: at the end of an
iteration or epoch. Ctrl-C after that stops the run wherever it is; what was saved last is still there then.
A command heeds whatever asks it to end in the same way: see `heed`.
"""

import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from tqdm import tqdm

from iadd_lab.device import Execution, computed_with
from iadd_lab.errors import DivergenceError, require
from iadd_lab.store.artefacts import Artefact, load_artefact, save_artefact, unpacking

KIND = "checkpoint"
# The time between two saves, as a multiple of what a save takes: they stay under 2 % of a run.
_SPARING = 60
_HEEDED = (signal.SIGINT, signal.SIGTERM)
# A closed terminal or lost connection, and what batch systems send before they kill.
_ENDING = ("SIGHUP", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGXCPU")

# Named tensors and JSON metadata.
State = tuple[Mapping[str, torch.Tensor], Mapping[str, Any]]


def heed() -> None:
    """Have this process, a command, end in order on every signal that asks it to; ignored ones stay so."""
    for name in _ENDING:
        number = getattr(signal, name, None)  # Windows lacks some
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # some come again every second
    _say(f"stopped: {signal.Signals(number).name} asked for it; run the same again to go on.")
    raise SystemExit(128 + number)


def _say(sentence: str) -> None:
    with suppress(RuntimeError, OSError):  # in the middle of another write; where nobody reads any more
        tqdm.write(sentence, file=sys.stderr)


def under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


class Resumable(Protocol):
    """A computation in equal units of work, whose state between two of them is all that it needs to go on.

    One that can diverge and try again has two more methods. `back_off(reason) -> bool` changes what led to a
    `DivergenceError` of `advance` and says so, or returns False where it gave up; it is called in the last
    good state, to which `advance` went back. `result()` is what the error then carries.
    """

    unit: str  # what is counted, as in "iteration"
    done: int  # how many units of work are done; a back-off may take some back
    total: int  # how many there are

    def advance(self) -> dict[str, str] | None:
        """One unit of work; returns what to show beside the progress bar.

        Raises:
            DivergenceError: nothing good can come after this.
            ConnectionError: another process that takes part is gone; the state is as before.
        """

    def state(self) -> State:
        """All that a checkpoint holds."""

    def load(self, artefact: Artefact) -> None:
        """Go on from what `state` returned."""


def check_result(path: Path, found: str | None, identity: str) -> None:
    """Require that the result stored at `path`, which says that it is of `found`, is that of `identity`."""
    sentence = f"{path} is the result of another configuration: choose another folder, or delete it."
    require(found == identity, sentence)


def complete(
    run: Resumable,
    *,
    path: Path | None,
    identity: str,
    title: str,
    how: Execution,
    on_advance: Callable[[], None] | None = None,
    save: Callable[[], object] | None = None,
    writes: bool = True,
) -> None:
    """Bring `run` to its end, from its checkpoint on if there is one.

    Args:
        run: what is to be done.
        path: where its checkpoint is; None keeps nothing, and leaves Ctrl-C as it is.
        identity: of the run; the checkpoint of another one is refused.
        title: in front of the progress bar.
        how: whether there is a bar, and how often a checkpoint is written.
        on_advance: called after each unit of work.
        save: stores the result at the end. Ctrl-C waits for it, and the checkpoint goes after it. Without it
            the checkpoint stays, for the caller to remove.
        writes: False only reads the checkpoint, which another process that takes part in the run writes.

    Raises:
        InputError: the checkpoint is damaged, or of another run.
        DivergenceError: the run diverged, and does not or may no more back off. If it backs off at all, the
            last good state is in the checkpoint, and the error's `result` is the run's.
        ConnectionError: another process that takes part is gone; the state before is in the checkpoint.
        KeyboardInterrupt: by Ctrl-C, after the state was saved; SystemExit by SIGTERM, with code 143.
    """
    checkpoint = Checkpoint(run, path, identity, seconds=how.checkpoint_seconds, writes=writes)
    with checkpoint:
        checkpoint.load()
        shown = {"total": run.total, "initial": run.done, "unit": run.unit, "desc": title}
        bar = tqdm(**shown, leave=None, disable=not how.progress)
        try:
            while run.done < run.total:
                bar.set_postfix(checkpoint.advance(), refresh=False)
                with suppress(OSError):  # the connection dropped: nobody looks any more
                    bar.update(run.done - bar.n)
                if on_advance is not None:
                    on_advance()
                checkpoint.keep()
        finally:
            with suppress(OSError):
                bar.close()
        if save is not None and writes:
            save()
            checkpoint.remove()


class Checkpoint:
    """The one checkpoint of a run, and a context in which Ctrl-C waits until it can be saved.

    Args:
        run: what it is of.
        path: where it is; None saves nothing, and leaves Ctrl-C as it is.
        identity: of the run; the checkpoint of another one is refused.
        seconds: at most so many seconds of work are lost to a kill, or sixty times what saving takes; 0 saves
            after every unit, whatever it costs.
        writes: False only reads it.
    """

    def __init__(self, run: Resumable, path: Path | None, identity: str, *, seconds: float, writes: bool):
        self.run, self.path, self.identity, self.seconds = run, path, identity, seconds
        self.writes = writes and path is not None
        self.saved, self.cost = time.monotonic(), 0.0
        self._asked: int | None = None  # the signal that asked the run to stop
        self._before = ExitStack()  # the handlers that were there

    def __enter__(self) -> None:
        # Python lets only the main thread handle signals.
        if self.path is not None and threading.current_thread() is threading.main_thread():
            for number in signal.valid_signals():
                before = signal.getsignal(number)
                # A script that starts commands in the background has them ignore Ctrl-C.
                if before is _stop or (number in _HEEDED and before is not signal.SIG_IGN):
                    signal.signal(number, self._ask)
                    # None stands for a handler that was not installed from Python.
                    self._before.callback(signal.signal, number, before or signal.SIG_DFL)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        self._before.close()
        if kind is None and self._asked is not None:  # asked in the very last moment: all is done and kept
            self._raise(f"it had just ended, and its result is beside {self.path}")

    def load(self) -> None:
        """Bring the run to what was saved last, if anything was.

        Raises:
            InputError: it is damaged, or of another run.
        """
        if self.writes:
            # Each kill in the middle of a save leaves a file; the run's lock is held: it is nobody else's.
            for left in self.path.parent.glob(f".{self.path.name}.*"):
                left.unlink(missing_ok=True)
        if self.path is not None and self.path.exists():
            artefact = load_artefact(self.path, kind=KIND)
            sentence = "is of a run with another configuration: choose another folder, or delete it."
            require(artefact.metadata.get("run") == self.identity, f"{self.path} {sentence}")
            then, now = artefact.computed_with, computed_with()
            if self.writes and then not in ("", now):
                said = f"the run was begun with {then}, and goes on with {now}: last digits may differ"
                tqdm.write(said, file=sys.stderr)
            with unpacking(self.path):
                self.run.load(artefact)

    def advance(self) -> dict[str, str]:
        """One unit of work, or a back-off; whatever ends the run leaves the last good state on disk."""
        try:
            return self.run.advance() or {}
        except DivergenceError as error:
            if not hasattr(self.run, "back_off"):
                raise
            if self.run.back_off(str(error)):
                return {}
            raise DivergenceError(f"{error}{self._kept()}", result=self.run.result()) from None
        except ConnectionError as error:
            raise type(error)(f"{error}{self._kept()} Run the same again to go on.") from error

    def keep(self) -> None:
        """Save the state if it is time to, or if the user wants to stop.

        Raises:
            KeyboardInterrupt: the user stopped the run; the message says how to go on.
            SystemExit: something else did, as SIGTERM; the exit code is 128 and its number.
        """
        asked = self._asked
        wait = max(self.seconds, _SPARING * self.cost) if self.seconds else 0.0
        if self.writes and (asked or time.monotonic() - self.saved >= wait):
            self.save()
            asked = self._asked  # it may have come meanwhile
        if asked:
            self._raise(f"the state after {self.run.unit} {self.run.done} is kept in {self.path}")

    def save(self) -> None:
        """Write the state, atomically."""
        started = time.monotonic()
        tensors, metadata = self.run.state()
        save_artefact(self.path, kind=KIND, tensors=tensors, metadata={"run": self.identity, **metadata})
        self.saved = time.monotonic()
        self.cost = self.saved - started

    def remove(self) -> None:
        """Delete it: the run has ended, and its result is stored."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _kept(self) -> str:
        """Save the state, where this process may, and say so in a sentence."""
        if not self.writes:
            return ""
        self.save()
        return f" The state after {self.run.done} {self.run.unit}s is kept in {self.path}."

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked is not None and number == signal.SIGINT:
            self._before.close()
            raise KeyboardInterrupt(f"stopped at once; the last state saved may be in {self.path}.")
        if self._asked is None and self.writes:
            _say(f"stopping after this {self.run.unit}; Ctrl-C again stops at once")
        self._asked = self._asked or number  # others may follow: a closed session sends two

    def _raise(self, state: str) -> None:
        message = f"{state}; run the same again to go on."
        if self._asked != signal.SIGINT:
            if self.writes:
                _say(f"stopped: {message}")
            raise SystemExit(128 + self._asked)
        raise KeyboardInterrupt(message)
