"""What happened during a distillation, iteration by iteration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import mean

import torch

from iadd_lab.errors import choose

ALL_RATES = "all rates"
RATES = ("image_rate", "alpha_rate", "rate of W", ALL_RATES)  # what a back-off may halve


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
    snapshot_iterations: list[int] = field(default_factory=list)
    snapshot_images: list[torch.Tensor] = field(default_factory=list)  # each (classes * ipc, c, h, w)
    snapshot_importance: list[torch.Tensor] = field(default_factory=list)  # each (P,), or none at all
    back_off_iterations: list[int] = field(default_factory=list)  # after which rates were halved
    back_off_rates: list[int] = field(default_factory=list)  # which: an index into `RATES`

    def tensors(self) -> dict[str, torch.Tensor]:
        """Named tensors for an artefact."""
        return {
            f"history/{name}": torch.stack(values)
            if isinstance(values[0], torch.Tensor)
            else torch.tensor(values, dtype=torch.int64 if isinstance(values[0], int) else torch.float64)
            for name, values in vars(self).items()
            if values
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> History:
        """The history among an artefact's tensors."""
        stored = {name[8:]: tensor for name, tensor in tensors.items() if name.startswith("history/")}
        return cls(
            **{
                name: list(tensor.unbind()) if tensor.ndim > 1 else tensor.tolist()
                for name, tensor in stored.items()
            }
        )

    def back_off(self, rate: str) -> None:
        """Note that after the last iteration the rate was halved: one of `RATES`."""
        self.back_off_iterations.append(len(self.loss))
        self.back_off_rates.append(RATES.index(rate))

    def share_of(self, rate: str) -> float:
        """What back-offs have left of a rate, in (0, 1]."""
        return 0.5 ** sum(RATES[index] in (rate, ALL_RATES) for index in self.back_off_rates)

    def settled(self, name: str, *, share: float = 0.1) -> float:
        """The mean of the series `name` over the last `share` of the iterations: segments differ.

        Raises:
            InputError: there is no such series.
        """
        series = {
            key: values for key, values in vars(self).items() if not key.startswith(("snapshot", "back_off"))
        }
        values = choose("series", name, series)
        return mean(values[-max(round(share * len(values)), 1) :])

    def forget_last(self) -> None:
        """Take the last iteration back, as if it had not been."""
        iteration = len(self.loss)
        for name in ("loss", "unweighted_loss", "alpha", "seconds", *_IMPORTANCE):
            getattr(self, name).pop()
        if self.snapshot_iterations[-1] == iteration:
            for snapshots in (self.snapshot_iterations, self.snapshot_images, self.snapshot_importance):
                if snapshots:
                    snapshots.pop()


_IMPORTANCE = ("importance_min", "importance_max", "importance_share")
