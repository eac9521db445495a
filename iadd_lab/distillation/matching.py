"""How the student's parameters are compared with the teacher's: uniform, pruned or learned importance.

All of them are one loss (IADD, arXiv 2401.15863), with importance weights W of their own:

    L = ‖W ⊙ θ̃_{i,J} − W ⊙ θ_{i+K}‖² / ‖θ_i − θ_{i+K}‖²

A matching is a frozen dataclass without state. What it learns is one `raw` vector that the distillation
keeps, differentiates and hands back to `learn`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from iadd_lab.device import root
from iadd_lab.errors import check_flag, check_number, check_whole, choose, require
from iadd_lab.store.configs import added_field
from iadd_lab.training.networks import ParameterLayout

MATCHINGS: dict[str, type[Matching]] = {}  # by name


@dataclass(frozen=True)
class Matching:
    """What every matching shares: the loss, and nothing to learn."""

    name: ClassVar[str]
    varies: ClassVar[bool] = True  # whether W can be anything but ones

    def __init_subclass__(cls) -> None:
        """A matching joins `MATCHINGS` where it is defined."""
        MATCHINGS[cls.name] = cls

    def initial(self, layout: ParameterLayout) -> Tensor:
        """The learnable values before the first iteration, shape (0,) where there are none."""
        return torch.zeros(0)

    def weights(self, raw: Tensor, *, end: Tensor, target: Tensor, layout: ParameterLayout) -> Tensor:
        """The importance W of every parameter, shape (P,), non-negative, differentiable in `raw`."""
        raise NotImplementedError

    def loss(
        self, end: Tensor, raw: Tensor, *, start: Tensor, target: Tensor, layout: ParameterLayout
    ) -> Tensor:
        """The matching loss L, a scalar, differentiable in `end` and `raw`.

        Args:
            end: θ̃_{i,J}, where the student arrived, shape (P,).
            raw: the learnable values, as `initial` and `learn` return them.
            start: θ_i, where teacher and student began, shape (P,).
            target: θ_{i+K}, where the teacher arrived, shape (P,).
            layout: which parameter belongs to which tensor.
        """
        weights = self.weights(raw, end=end.detach(), target=target, layout=layout)  # (P,)
        # W ⊙ (θ̃ − θ) is W ⊙ θ̃ − W ⊙ θ with one rounding less.
        return (weights * (end - target)).square().sum() / (start - target).square().sum()

    def learn(self, raw: Tensor, gradient: Tensor, *, layout: ParameterLayout, iteration: int) -> Tensor:
        """`raw` after one update along `gradient` = ∂L/∂raw."""
        return raw


@dataclass(frozen=True)
class Uniform(Matching):
    """W ≡ 1: plain trajectory matching (MTT; Cazenavette et al., CVPR 2022)."""

    name: ClassVar[str] = "uniform"
    varies: ClassVar[bool] = False

    def weights(self, raw, *, end, target, layout):
        """Ones, shape (P,)."""
        return torch.ones_like(end)


@dataclass(frozen=True)
class Pruned(Matching):
    """W ∈ {0, 1}: the pairs that match worst are dropped (DDPP; Li et al., IEICE Trans. E107-A, 2024).

    The similarity of a student's parameter a and a teacher's b is 2ab / (a² + b²): 1 when equal, falling
    with their ratio in either direction, −1 when opposite. Which pairs are dropped is decided anew in
    every iteration.

    Args:
        fraction: of the parameters to drop, in [0, 1).
        measure: what makes a pair hard: low "similarity" (the ratio above), or a large "difference" |a − b|.
    """

    fraction: float = 0.1
    measure: str = "similarity"
    name: ClassVar[str] = "pruned"

    def __post_init__(self):
        check_number("fraction", self.fraction, maximum=0.99)
        choose("measure", self.measure, DIFFICULTIES)

    def weights(self, raw, *, end, target, layout):
        """One for the parameters kept, zero for the round(fraction · P) hardest ones, shape (P,)."""
        difficulty = DIFFICULTIES[self.measure](end, target)
        hardest = difficulty.topk(round(self.fraction * layout.count)).indices
        return torch.ones_like(end).index_fill(0, hardest, 0.0)


def _dissimilarity(student: Tensor, teacher: Tensor) -> Tensor:
    scale = student.square() + teacher.square()
    # 0/0 is a pair of zeros: equal, so not hard at all.
    return torch.where(scale > 0, 1 - 2 * student * teacher / scale, 0.0)


DIFFICULTIES = {
    "similarity": _dissimilarity,
    "difference": lambda student, teacher: (student - teacher).abs(),
}


@dataclass(frozen=True)
class Learned(Matching):
    """W starts at 1 and is learned by gradient descent on L (IADD; Li et al., Neural Networks 172, 2024).

    The loss alone is smallest at W = 0. So, by default, W² is a softmax over the parameters scaled to
    mean 1: the loss stays a weighted average of squared differences, comparable with `Uniform`, and a
    parameter that is harder to match than the average loses weight to the others.

    The gradient of each value is divided by its share of the parameters, so that `rate` means the same in
    a network of any size.

    Args:
        rate: of the descent on log W² (normalised) or W (literal); 0 keeps W at 1.
        normalised: False gives the paper's literal loss, whose trivial minimiser is W = 0.
        granularity: "parameter" (the paper) or "tensor" (one weight for each weight matrix, bias, ...).
        limit: before normalisation W stays within [1/limit, limit]; above 1. Not used in the literal loss.
        learn_from: first iteration that updates W.
        learn_until: W is frozen from this iteration on; None never freezes it.
        ascend: climb the loss instead, so that what is harder to match than the average gains weight. The
            opposite of the paper's reading, for comparison.
        mean_over: what the mean of W² is 1 over: the "network", or each "tensor". With the first, weight goes
            from tensors whose parameters move far, and so differ much, to the others; with the second every
            tensor keeps its part of the loss, and W chooses within it.
        relative: divide by the teacher's movement weighted alike, L = ‖W ⊙ (θ̃ − θ_{i+K})‖² /
            ‖W ⊙ (θ_i − θ_{i+K})‖², as released code of PAD, EDF and HoP-TM does with masks. No W makes
            that nothing, and weight leaves what is hard for how far the teacher moves it, whatever its scale.
    """

    rate: float = 3e-3
    normalised: bool = True
    granularity: str = "parameter"
    limit: float = 10.0
    learn_from: int = 0
    learn_until: int | None = None
    ascend: bool = added_field(False)
    mean_over: str = added_field("network")
    relative: bool = added_field(False)
    name: ClassVar[str] = "learned"

    def __post_init__(self):
        check_number("rate", self.rate)
        check_flag("normalised", self.normalised)
        check_flag("ascend", self.ascend)
        check_flag("relative", self.relative)
        choose("granularity", self.granularity, dict.fromkeys(("parameter", "tensor")))
        choose("mean_over", self.mean_over, dict.fromkeys(("network", "tensor")))
        fits = self.mean_over == "network" or (self.normalised and self.granularity == "parameter")
        goes = "goes only with granularity 'parameter' and normalised True: set both"
        require(fits, f"mean_over is {self.mean_over!r}, which {goes}.")
        check_number("limit", self.limit, minimum=1.0, above=True)
        check_whole("learn_from", self.learn_from, minimum=0)
        if self.learn_until is not None:
            check_whole("learn_until (not before learn_from)", self.learn_until, minimum=self.learn_from)

    def initial(self, layout):
        """Zeros for log W² (normalised), ones for W itself (literal)."""
        count = layout.count if self.granularity == "parameter" else len(layout.sizes)
        return torch.zeros(count) if self.normalised else torch.ones(count)

    def weights(self, raw, *, end, target, layout):
        """W of every parameter, shape (P,); mean W² is 1 when normalised."""
        if not self.normalised:
            return self._spread(raw, layout)
        if self.mean_over == "tensor":
            return torch.cat([_scaled(_relative(part)) for part in raw.split(layout.sizes)])
        return _scaled(self._spread(_relative(raw), layout))

    def loss(self, end, raw, *, start, target, layout):
        """The matching loss L, a scalar, differentiable in `end` and `raw`."""
        if not self.relative:
            return super().loss(end, raw, start=start, target=target, layout=layout)
        weights = self.weights(raw, end=end.detach(), target=target, layout=layout)  # (P,)
        return (weights * (end - target)).square().sum() / (weights * (start - target)).square().sum()

    def learn(self, raw, gradient, *, layout, iteration):
        """One step of preconditioned gradient descent (or ascent) on `raw`, kept within its bounds."""
        if iteration < self.learn_from or (self.learn_until is not None and iteration >= self.learn_until):
            return raw
        shared = 1 if self.granularity == "parameter" else torch.tensor(layout.sizes).to(raw)
        step = self.rate * (layout.count / shared) * gradient
        moved = raw + step if self.ascend else raw - step
        bound = 2 * math.log(self.limit)
        return moved.clamp(-bound, bound) if self.normalised else moved.clamp_min(0)

    def _spread(self, values: Tensor, layout: ParameterLayout) -> Tensor:
        if self.granularity == "parameter":
            return values
        sizes = torch.tensor(layout.sizes, device=values.device)
        return values.repeat_interleave(sizes, output_size=layout.count)  # (P,)


def _relative(raw: Tensor) -> Tensor:
    """W up to a factor: relative to the largest, so that exp cannot overflow; exactly 1 for equal values."""
    return ((raw - raw.detach().max()) / 2).exp()


def _scaled(weights: Tensor) -> Tensor:
    return weights / root(weights.square().mean())


def effective_share(weights: Tensor) -> float:
    """(ΣW²)² / (P · ΣW⁴), in (0, 1]: the share of the parameters over which the importance is spread.

    1 for uniform weights; 1/P when one parameter has all. 0 for weights that are all zero.
    """
    squares = weights.double().square()
    total = squares.square().sum()
    # Rounding may exceed 1 by its last digit.
    return min((squares.sum().square() / (squares.numel() * total)).item(), 1.0) if total > 0 else 0.0
