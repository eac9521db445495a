"""A distillation watched in TensorBoard: its curves, its images and W while it runs."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iadd_lab.data.distilled import displayable
from iadd_lab.data.preprocess import Preprocess
from iadd_lab.distillation.history import History
from iadd_lab.errors import InputError, check_whole, require
from iadd_lab.store.artefacts import check_folder

# The curves: what TensorBoard calls them, and the series of a `History` that they show.
SCALARS = {
    "loss/weighted": "loss",
    "loss/unweighted": "unweighted_loss",
    "alpha": "alpha",
    "importance/effective_share": "importance_share",
    "importance/smallest": "importance_min",
    "importance/largest": "importance_max",
    "seconds": "seconds",
}
IMAGES, WEIGHTS = "distilled", "importance/weights"  # written for each snapshot
_COLUMNS = _ROWS = 10  # of the image; more distilled images than that are not shown
_SAME = 1e-4  # relative: an iteration done again on a GPU may round otherwise


class TensorBoard:
    """A callback, as in `distill(..., on_iteration=watch)`: every iteration is a point of each curve, once.

        with TensorBoard("runs/tensorboard", teachers.preprocess) as watch:
            distill(data, teachers, config, folder="runs/ipc1", on_iteration=watch)

    A run that goes on from its checkpoint goes on in the same curves: points of iterations that are done
    again are taken back, and those that a kill kept from the disk are written from the history. The images
    and W are those of the run's snapshots.

    Args:
        folder: where the files for TensorBoard go; each run needs one of its own.
        preprocess: of the teachers, to show images as pictures.
        ipc: distilled images per class: they get a row of their own for each.

    Raises:
        InputError: tensorboard is not installed, nothing can be written in `folder`, or, at the first
            iteration, it holds the points of another run.
    """

    def __init__(self, folder: Path | str, preprocess: Preprocess, *, ipc: int = 1):
        check_whole("ipc", ipc, minimum=1)
        _summary_writer()
        self.folder = check_folder(Path(folder))
        self.preprocess, self.ipc = preprocess, ipc
        self._writer: Any = None
        self._written = 0  # iterations whose points are on their way to the disk

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write what still waits in memory."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __call__(self, iteration: int, history: History) -> None:
        """Write all points up to `iteration` that are not there yet."""
        if self._writer is None:
            self._open(iteration, history)
        elif iteration < self._written:  # the run diverged and went back
            self._take_back(after=iteration)
        for number in range(self._written + 1, iteration + 1):
            for tag, name in SCALARS.items():
                self._writer.add_scalar(tag, getattr(history, name)[number - 1], number)
            self._snapshot(number, history)
        self._written = iteration

    def _open(self, iteration: int, history: History) -> None:
        """A file that goes on where the points on disk are both known and this run's."""
        stored = stored_points(self.folder)
        self._check(stored, iteration, history)
        known = next((number for number in range(iteration) if number + 1 not in stored), iteration)
        self._written = max(known - 1, 0)  # a kill may have left some curves without their last point
        first = self._written + 1 if self._written else 0  # before iteration 1 there are images as well
        _wait_for_a_later_name(self.folder)
        self._writer = _summary_writer()(log_dir=str(self.folder), flush_secs=10, purge_step=first)
        if first == 0:
            self._snapshot(0, history)

    def _check(self, stored: dict[int, float], iteration: int, history: History) -> None:
        """Require that the points on disk are of this run, as far as both have them."""
        # The iteration just done may be one done again, with other roundings that grew.
        both = history.loss[: max(iteration - 1, 1)]
        for number, own in enumerate(both, start=1):
            found = stored.get(number, own)
            require(
                math.isclose(found, own, rel_tol=_SAME),
                f"{self.folder} holds the points of another run (the loss of iteration {number} is "
                f"{found:.6g} there and {own:.6g} here): choose another folder for TensorBoard.",
            )

    def _take_back(self, *, after: int) -> None:
        """Have TensorBoard forget the points after iteration `after`."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        again = SessionLog(status=SessionLog.START)
        self._writer.file_writer.add_event(Event(session_log=again), step=after + 1)
        self._written = min(self._written, after)

    def _snapshot(self, iteration: int, history: History) -> None:
        """The images and W of `iteration`, where the history kept them."""
        if iteration not in history.snapshot_iterations:
            return
        place = history.snapshot_iterations.index(iteration)
        images = self.preprocess.invert(history.snapshot_images[place])
        self._writer.add_image(IMAGES, _tiled(displayable(images), self.ipc), iteration, dataformats="HWC")
        if history.snapshot_importance:
            self._writer.add_histogram(WEIGHTS, history.snapshot_importance[place], iteration)


@contextmanager
def watched(folder: Path | None, preprocess: Preprocess, *, ipc: int) -> Iterator[TensorBoard | None]:
    """A `TensorBoard` that is closed in the end, or None where no `folder` is given."""
    if folder is None:
        yield None
        return
    with TensorBoard(folder, preprocess, ipc=ipc) as watch:
        yield watch


def stored_points(folder: Path | str) -> dict[int, float]:
    """The matching loss that TensorBoard's files in `folder` have, by iteration."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not _event_files(Path(folder)):
        return {}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 1, "histograms": 1})
    with _quiet(logging.getLogger("tensorboard")):  # it names every point that was taken back
        events.Reload()
    tag = next(iter(SCALARS))
    known = tag in events.Tags()["scalars"]
    return {point.step: point.value for point in events.Scalars(tag)} if known else {}


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _event_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("events.out.tfevents.*"))


def _wait_for_a_later_name(folder: Path) -> None:
    """Files are read in the order of their names, which start with the second in which they were made."""
    files = _event_files(folder)
    newest = max((int(file.name.split(".")[3]) for file in files), default=0)
    while int(time.time()) == newest:
        time.sleep(0.05)


def _tiled(pictures: torch.Tensor, ipc: int) -> np.ndarray:
    """Pictures as one, (height, width, 3) uint8: a row for each class, or ten classes where each has one."""
    from iadd_lab.plots.tiles import tile  # drawing takes a second to import, and most runs are not watched

    columns = min(len(pictures) if ipc == 1 else ipc, _COLUMNS)
    classes = pictures.unflatten(0, (-1, ipc))[:, :columns]  # (classes, columns, channels, height, width)
    shown = classes.flatten(0, 1)[: columns * _ROWS]
    return tile(shown, columns=columns, rows=-(-len(shown) // columns))


def _summary_writer() -> type:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            "watching a run in TensorBoard needs the package tensorboard, which is not installed: "
            "pip install tensorboard."
        ) from error
    return SummaryWriter
