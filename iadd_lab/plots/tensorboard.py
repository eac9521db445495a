"""A distillation watched in TensorBoard: its curves, its images and W while it runs."""

import logging
import math
import os
import re
import time
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from iadd_lab.data.distilled import displayable
from iadd_lab.data.parametrisation import PIXELS, Parametrisation
from iadd_lab.data.preprocess import Preprocess
from iadd_lab.distillation.history import History
from iadd_lab.errors import check_whole, require
from iadd_lab.plots.tiles import tile
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
_MOST = 10  # columns, and rows, of the image; more distilled images than that are not shown


class TensorBoard(AbstractContextManager):
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
        parametrisation: of the run, by which images are stored.

    Raises:
        InputError: tensorboard is not installed, nothing can be written in `folder`, or, at the first
            iteration, it holds the points of another run.
    """

    def __init__(
        self,
        folder: Path | str,
        preprocess: Preprocess,
        *,
        ipc: int = 1,
        parametrisation: Parametrisation = PIXELS,
    ):
        check_whole("ipc", ipc, minimum=1)
        sentence = "watching a run needs the package tensorboard, not found here: pip install tensorboard."
        require(find_spec("tensorboard") is not None, sentence)
        self.folder, self.ipc = check_folder(Path(folder)), ipc
        self.preprocess, self.form = preprocess, parametrisation
        self._writer, self._next = None, 0  # the iteration to write next; 0 is before the first

    def __exit__(self, *_: object) -> None:
        """Write what still waits in memory."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __call__(self, iteration: int, history: History) -> None:
        """Write all points up to `iteration` that are not there yet."""
        if self._writer is None:
            self._open(iteration, history)
        elif iteration < self._next - 1:  # the run diverged and went back
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog

            self._next, taken_back = iteration + 1, SessionLog(status=SessionLog.START)
            self._writer.file_writer.add_event(Event(session_log=taken_back), step=self._next)
        for number in range(self._next, iteration + 1):
            for tag, name in SCALARS.items() if number else ():
                self._writer.add_scalar(tag, getattr(history, name)[number - 1], number)
            if number in history.snapshot_iterations:
                self._add_snapshot(number, history)
        self._next = iteration + 1

    def _open(self, iteration: int, history: History) -> None:
        """Go on after the points that lie in the folder, which are required to be this run's."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.summary.writer import event_file_writer
        from torch.utils.tensorboard import SummaryWriter

        logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it names every point that was taken back
        events, tag = EventAccumulator(str(self.folder), {"scalars": 0}).Reload(), next(iter(SCALARS))
        points = events.Scalars(tag) if tag in events.Tags()["scalars"] else []
        # The iteration just done may be one done again: on a GPU with other roundings, which grew.
        for point, own in zip(points, history.loss[: max(iteration - 1, 1)], strict=False):
            found = f"a loss of {point.value:.6g} in iteration {point.step}, not {own:.6g}"
            sentence = f"{self.folder} holds points of another run ({found}): choose another folder."
            require(math.isclose(point.value, own, rel_tol=1e-4), sentence)
        # A kill may have left the last iteration without some of its points.
        known = min(len(points), iteration)
        self._next = known if known > 1 else 0
        # Files are read in the order of their names, which start with the second in which they were made: the
        # new one must be the last, also where less than a second has gone by, or the clock went back.
        names = " ".join(os.listdir(self.folder))
        seconds = [int(found) + 1 for found in re.findall(r"\.tfevents\.(\d+)\.", names)]
        clock = SimpleNamespace(time=lambda: max([time.time(), *seconds]))
        with mock.patch.object(event_file_writer, "time", clock):
            self._writer = SummaryWriter(str(self.folder), flush_secs=10, purge_step=self._next)

    def _add_snapshot(self, iteration: int, history: History) -> None:
        """The images and W of `iteration`: a row for each class, or ten classes where each has one image."""
        place = history.snapshot_iterations.index(iteration)
        pictures = displayable(self.form.pixels(history.snapshot_images[place], self.preprocess))
        columns = min(len(pictures) if self.ipc == 1 else self.ipc, _MOST)
        shown = pictures.unflatten(0, (-1, self.ipc))[:, :columns].flatten(0, 1)[: columns * _MOST]
        self._writer.add_image(IMAGES, tile(shown, columns=columns), iteration, dataformats="HWC")
        if history.snapshot_importance:
            self._writer.add_histogram(WEIGHTS, history.snapshot_importance[place], iteration)
