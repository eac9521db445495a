"""What one method gains over another: differences in pairs, with their 95 % intervals, and tidy measurements.

Cells of one setting share teachers, first images, segments and the initialisations of the evaluation
networks, seed by seed. Their difference is therefore taken seed by seed too: what all methods owe to a lucky
draw cancels, and what is left scatters less than either accuracy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from operator import attrgetter

import pandas as pd
import torch
from scipy import stats

from iadd_lab.errors import require
from iadd_lab.study.methods import METHODS
from iadd_lab.study.published import read_published
from iadd_lab.study.study import Cell
from iadd_lab.training.networks import TITLES, NetworkConfig


@dataclass(frozen=True)
class PairedDifference:
    """The accuracy of `method_a` less that of `method_b`, plain or balanced, in percentage points."""

    title: str  # of the setting
    dataset: str  # its `data_key`
    ipc: int
    network: str  # that was trained on the distilled sets
    method_a: str  # keys of `METHODS`
    method_b: str
    difference: float  # mean over the seeds
    low95: float  # of Student's t interval over the seeds; NaN for a single one
    high95: float
    each: tuple[float, ...]  # the difference of every seed
    measure: str = "accuracy"  # or "balanced accuracy"

    @property
    def seeds(self) -> int:
        """How many pairs there are."""
        return len(self.each)

    @property
    def is_sure(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low95 > 0 or self.high95 < 0

    @property
    def place(self) -> str:
        """Where it was measured: "CIFAR-10, IPC 1, ResNet18"; the usual network goes unsaid."""
        usual = self.network == NetworkConfig().name
        return self.title if usual else f"{self.title}, {self.network_title}"

    @property
    def network_title(self) -> str:
        """The network's name in text."""
        return TITLES.get(self.network, self.network)

    @property
    def titles(self) -> tuple[str, str]:
        """The names of the two methods."""
        return METHODS[self.method_a].title, METHODS[self.method_b].title

    @property
    def heading(self) -> str:
        """What is compared where: "CIFAR-10, IPC 1, ResNet18: IADD − MTT"."""
        measure = "" if self.measure == "accuracy" else f", {self.measure}"
        return f"{self.place}: {' − '.join(self.titles)}{measure}"

    def __str__(self) -> str:
        if math.isnan(self.low95):
            return f"{self.heading}: {self.difference:+z.1f} points (one seed, so no interval)"
        interval = f"95 % interval {self.low95:+z.1f} to {self.high95:+z.1f}"
        return f"{self.heading}: {self.difference:+z.1f} points ({interval}, {self.seeds} seeds)"


def compare(first: Cell, second: Cell, *, balanced: bool = False) -> PairedDifference:
    """The paired difference of two cells of one setting and network, of balanced accuracies if `balanced`.

    A seed's accuracy is the mean over its evaluation networks: these share a distilled set, so that they
    are no further independent draws.

    Raises:
        InputError: the cells are of different settings, networks or splits.
    """
    for name in ("setting", "network", "seeds", "evaluation.config.split"):
        one, other = map(attrgetter(name), (first, second))
        what = f"{name.split('.')[-1]} ({one} and {other})"
        require(one == other, f"the cells differ in their {what}: compare like with like.")
    one, other = (seed_accuracies(cell, balanced=balanced) for cell in (first, second))
    each = tuple((100 * (one - other)).tolist())  # a difference for each seed
    setting, measure = first.setting, "balanced accuracy" if balanced else "accuracy"
    place = setting.title, setting.data_key, setting.ipc, first.network.name
    return PairedDifference(*place, first.method, second.method, *mean_with_interval(each), each, measure)


def seed_accuracies(cell: Cell, *, balanced: bool = False) -> torch.Tensor:
    """The mean accuracy of each seed's networks, plain or balanced: shape (seeds,), in [0, 1]."""
    found = cell.evaluation.balanced_accuracies if balanced else cell.evaluation.accuracies
    return found.view(cell.seeds, -1).mean(1)


def mean_with_interval(values: Sequence[float], *, level: float = 0.95) -> tuple[float, float, float]:
    """The mean of independent values, and the ends of Student's t interval around it.

    The ends are NaN where there is but one value, and the mean itself where all are equal.
    """
    mean, error = sum(values) / len(values), stats.sem(values) if len(values) > 1 else math.nan
    low, high = (float(mean + error * end) for end in stats.t.interval(level, len(values) - 1))
    return mean, low, high


# What the study asks: does importance beat none, and does learning it beat pruning?
PAIRS = (("iadd", "mtt"), ("iadd", "ddpp"), ("ddpp", "mtt"))


def paired_differences(
    cells: Sequence[Cell], *, pairs: Sequence[tuple[str, str]] = PAIRS, balanced: bool = False
) -> list[PairedDifference]:
    """The first method of each pair compared with the second, wherever both were measured.

    Args:
        cells: those of one setting and network are compared, where both were measured.
        pairs: keys of `METHODS`.
        balanced: whether balanced accuracies are compared.
    """
    found: dict[tuple, dict[str, Cell]] = {}
    for cell in cells:
        there = found.setdefault((cell.setting, cell.network), {})
        there |= {cell.method: cell} if cell.evaluation else {}
    measured = [(there[a], there[b]) for there in found.values() for a, b in pairs if {a, b} <= {*there}]
    return [compare(one, other, balanced=balanced) for one, other in measured]


def difference_frame(differences: Sequence[PairedDifference]) -> pd.DataFrame:
    """One row per difference, unrounded: the fields of `PairedDifference` but `title`, `seeds` for `each`."""
    names = [field.name for field in fields(PairedDifference)]
    frame = pd.DataFrame(differences, columns=names).drop(columns="title").rename(columns={"each": "seeds"})
    return frame.assign(seeds=frame["seeds"].map(len))


def measurement_frame(
    cells: Sequence[Cell], *, profile: str, balanced: bool = False, published_data: Sequence[str] = ()
) -> pd.DataFrame:
    """One row per accuracy in per cent, unrounded, with `COLUMNS`.

    `source` begins with "measured here" or "published"; a published row leaves `network` and `seeds` empty,
    and the whole set's row `ipc`.

    Args:
        cells: those that were measured have rows.
        profile: that they were measured on.
        balanced: whether a row of balanced accuracy goes below each.
        published_data: keys of `DATASETS` whose published accuracies go below, at the cells' IPC.
    """
    measures = ("accuracy", "balanced accuracy")[: 1 + balanced]
    records = [_measured(cell, profile, measure) for cell in cells if cell.evaluation for measure in measures]
    ipcs = {str(cell.setting.ipc) for cell in cells} | {""}
    for entry in read_published():
        if entry["dataset"] in published_data and entry["ipc"] in ipcs:
            names = entry["dataset"], int(entry["ipc"] or 0) or None, None, entry["method"]
            numbers = float(entry["accuracy"]), float(entry["std"]), None
            records.append((*names, *numbers, f"published: {entry['source']}", "accuracy"))
    return pd.DataFrame(records, columns=list(COLUMNS)).astype({"ipc": "Int64", "seeds": "Int64"})


COLUMNS = ("dataset", "ipc", "network", "method", "mean", "std", "seeds", "source", "measure")


def _measured(cell: Cell, profile: str, measure: str) -> tuple[object, ...]:
    summary, setting = cell.evaluation.summary(), cell.setting
    width = f", width {cell.network.width}" if cell.network.width else ""
    source = f"measured here: {cell.origin(profile)}{width}, {summary['split']} images"
    std = summary[measure.replace("accuracy", "std")]
    names = setting.data_key, setting.ipc, cell.network.name, cell.method
    return *names, summary[measure], std, cell.seeds, source, measure
