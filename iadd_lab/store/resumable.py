"""A run's state on disk: saved now and then, and when the user stops the run.

Ctrl-C (SIGINT), and SIGTERM as batch systems send it, are heeded where a state is whole: at the end of an
iteration or epoch. The second one stops the run wherever it is; what was saved last is still there then.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from tqdm import tqdm

from iadd_lab.errors import check_number, require
from iadd_lab.store.artefacts import Artefact, load_artefact, save_artefact
from iadd_lab.store.ranks import ALONE, Ranks

KIND = "checkpoint"
# The time between two saves, as a multiple of what a save takes: they stay under 2 % of a run.
_SPARING = 60
_HEEDED = (signal.SIGINT, signal.SIGTERM)

# Named tensors and JSON metadata.
State = tuple[Mapping[str, torch.Tensor], Mapping[str, Any]]


class Checkpoint:
    """The one checkpoint of a run, and a context in which Ctrl-C waits until it can be saved.

    Args:
        path: where it is; None saves nothing, and leaves Ctrl-C as it is.
        run: identifies the run; the checkpoint of another one is refused.
        unit: what the run counts, as in "iteration".
        seconds: at most so many seconds of work are lost to a kill, or sixty times what saving takes; 0 saves
            after every unit, whatever it costs.
        ranks: which process of a shared run this is: asked to stop is one of them, they stop together.

    Raises:
        InputError: `seconds` is not a number of at least 0.
    """

    def __init__(self, path: Path | str | None, *, run: str, unit: str, seconds: float, ranks: Ranks = ALONE):
        check_number("checkpoint_seconds", seconds)
        self.path = Path(path) if path is not None else None
        self.run, self.unit, self.seconds, self.ranks = run, unit, seconds, ranks
        self.saved, self.cost = time.monotonic(), 0.0
        self._asked: int | None = None  # the signal that asked the run to stop
        self._before: dict[int, Any] = {}  # the handlers that were there

    def __enter__(self) -> Checkpoint:
        heeds = self.path is not None or self.ranks.count > 1
        # Python lets only the main thread handle signals.
        if heeds and threading.current_thread() is threading.main_thread():
            for number in _HEEDED:
                # A script that starts commands in the background has them ignore Ctrl-C.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        self._put_back()
        if kind is None and self._asked is not None:  # asked in the very last moment: all is done and kept
            self._raise(
                f"it had just ended, and its result is beside {self.path}; run the same again to go on."
            )

    def load(self) -> Artefact | None:
        """What was saved last, or None where nothing was.

        Raises:
            InputError: it is damaged, or of another run.
        """
        if self.path is None:
            return None
        # Each kill in the middle of a save leaves a file; the run's lock is held, so it is nobody else's.
        for left in self.path.parent.glob(f".{self.path.name}.*"):
            left.unlink(missing_ok=True)
        if not self.path.exists():
            return None
        artefact = load_artefact(self.path, kind=KIND)
        require(
            artefact.metadata.get("run") == self.run,
            f"{self.path} is of a run with another configuration: choose another folder, or delete it.",
        )
        return artefact

    def keep(self, count: int, state: Callable[[], State]) -> None:
        """Save the state after `count` units of work if it is time to, or if the user wants to stop.

        Raises:
            KeyboardInterrupt: the user stopped the run; the message says how to go on.
            SystemExit: something else did (SIGTERM); exit code 143.
            LostRankError: another rank is gone.
        """
        # A signal reaches the ranks in different iterations: they stop after the same one.
        asked = self.ranks.largest(self._asked or 0)
        wait = max(self.seconds, _SPARING * self.cost) if self.seconds else 0.0
        if self.path is not None and (asked or time.monotonic() - self.saved >= wait):
            self.save(state)
            if self.ranks.count == 1:
                asked = self._asked  # it may have come meanwhile
        if asked:
            self._asked = asked
            self._raise(
                f"the state after {self.unit} {count} is kept in {self.path}; run the same again to go on."
            )

    def save(self, state: Callable[[], State]) -> None:
        """Write the state, atomically."""
        started = time.monotonic()
        tensors, metadata = state()
        save_artefact(self.path, kind=KIND, tensors=tensors, metadata={"run": self.run, **metadata})
        self.saved = time.monotonic()
        self.cost = self.saved - started

    def remove(self) -> None:
        """Delete it: the run has ended, and its result is stored."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked is not None:
            self._put_back()
            raise KeyboardInterrupt(f"stopped at once; the last state saved may be in {self.path}.")
        self._asked = number
        if self.ranks.first:
            with suppress(RuntimeError):  # the signal came in the middle of another write
                tqdm.write(f"stopping after this {self.unit}; Ctrl-C again stops at once", file=sys.stderr)

    def _put_back(self) -> None:
        for number, handler in self._before.items():
            # None stands for a handler that was not installed from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _raise(self, message: str) -> None:
        if self._asked == signal.SIGTERM:
            if self.ranks.first:
                tqdm.write(f"stopped: {message}", file=sys.stderr)
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt(message)
