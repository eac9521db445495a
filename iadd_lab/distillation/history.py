"""What happened during a distillation, iteration by iteration."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import mean

import torch

from iadd_lab.errors import choose
from iadd_lab.store.resumable import under

logger = logging.getLogger(__name__)

ALL_RATES = "all rates"
RATES = ("image_rate", "alpha_rate", "rate of W", ALL_RATES, "label_rate")  # what a back-off may halve


@dataclass
class History:
    """What happened, one value per iteration, and states at chosen iterations for later plots."""

    loss: list[float] = field(default_factory=list)  # the matching loss L
    unweighted_loss: list[float] = field(default_factory=list)  # L with W ≡ 1, for comparison
    alpha: list[float] = field(default_factory=list)  # after the update
    seconds: list[float] = field(default_factory=list)  # wall-clock of the iteration
    importance_min: list[float] = field(default_factory=list)
    importance_max: list[float] = field(default_factory=list)
    importance_share: list[float] = field(default_factory=list)  # `effective_share` of W
    # ‖images − their average‖ / ‖images‖, where the average is the result.
    average_distance: list[float] = field(default_factory=list)
    snapshot_iterations: list[int] = field(default_factory=list)
    # Each as stored, (classes * ipc, c, h, w); the average, where that is the result.
    snapshot_images: list[torch.Tensor] = field(default_factory=list)
    snapshot_soft_labels: list[torch.Tensor] = field(default_factory=list)  # (count, classes), or none
    snapshot_importance: list[torch.Tensor] = field(default_factory=list)  # each (P,), or none at all
    back_off_iterations: list[int] = field(default_factory=list)  # after which rates were halved
    back_off_rates: list[int] = field(default_factory=list)  # which: an index into `RATES`

    def tensors(self) -> dict[str, torch.Tensor]:
        """Named tensors for an artefact."""
        return {f"history/{name}": _as_tensor(values) for name, values in vars(self).items() if values}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> History:
        """The history among an artefact's tensors."""
        stored = under("history/", tensors).items()
        states = {"snapshot_images", "snapshot_importance", "snapshot_soft_labels"}
        return cls(**{n: list(t.unbind()) if n in states else t.flatten().tolist() for n, t in stored})

    def append(self, **values: float | torch.Tensor) -> None:
        """One more value for each of these series."""
        for name, value in values.items():
            getattr(self, name).append(value)

    def back_off(self, rate: str, *, reason: str, limit: int) -> bool:
        """Halve a rate, one of `RATES`, after the last iteration, and say so in the log.

        Args:
            rate: which.
            reason: for the log, a sentence.
            limit: how often that may happen in all; once more, False is returned and nothing is done.
        """
        if len(self.back_off_rates) >= limit:
            return False
        self.append(back_off_iterations=len(self.loss), back_off_rates=RATES.index(rate))
        logger.warning("%s Went back to iteration %d and halved %s.", reason, len(self.loss), rate)
        return True

    def share_of(self, rate: str) -> float:
        """What back-offs have left of a rate, in (0, 1]."""
        return 0.5 ** sum(RATES[index] in (rate, ALL_RATES) for index in self.back_off_rates)

    def settled(self, name: str, *, share: float = 0.1) -> float:
        """The mean of the series `name` over the last `share` of the iterations: segments differ.

        Raises:
            InputError: there is no such series.
        """
        values = choose("series", name, self._series())
        return mean(values[-max(round(share * len(values)), 1) :])

    def keep(self, iterations: int) -> None:
        """Take back what came after so many iterations, as if it had not been; back-offs stay."""
        for values in self._series().values():
            del values[iterations:]
        kept = sum(iteration <= iterations for iteration in self.snapshot_iterations)
        for name, snapshots in vars(self).items():
            if name.startswith("snapshot"):
                del snapshots[kept:]

    def _series(self) -> dict[str, list[float]]:
        """What has one value per iteration, by name."""
        return {name: v for name, v in vars(self).items() if not name.startswith(("snapshot", "back_off"))}


def _as_tensor(values: list) -> torch.Tensor:
    if isinstance(values[0], torch.Tensor):
        return torch.stack(values)
    return torch.tensor(values, dtype=torch.int64 if isinstance(values[0], int) else torch.float64)
