"""The student's J steps, and the gradient of the matching loss through them.

Three engines, one signature. With θ̃_{j+1} = θ̃_j − α ∇ℓ(x_j; θ̃_j) and λ_J = ∂L/∂θ̃_J:

- `full`: one graph over all J steps, backpropagated once, as MTT's code does. Memory grows with J × batch.
- `adjoint`: exact, in memory that does not grow with J but for the J+1 stored parameter vectors. It walks
  back with one scalar per step, s_j = ⟨∇_θ ℓ(x_j; θ̃_j), λ_{j+1}⟩, whose derivatives are all that is needed:
  ∂L/∂α −= s_j,  ∂L/∂x_j = −α ∇_x s_j,  λ_j = λ_{j+1} − α ∇_θ s_j.
- `frozen`: λ_j ≡ λ_J, as TESLA's code does (Cui et al., ICML 2023). It drops the curvature term ∇_θ s_j: an
  approximation, kept for study.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from iadd_lab.data.augment import Augmentation
from iadd_lab.training.student import StudentLoss, leaf

# (θ̃_J, raw) -> the matching loss L; see `Matching.loss`.
Objective = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Step:
    """One step of the student: which distilled images it sees, and how they are augmented."""

    rows: Tensor  # (batch,) int64 indices into the distilled set
    augmentation: Augmentation


@dataclass(frozen=True, eq=False)
class Segment:
    """What one iteration drew: a piece of a teacher's trajectory, and the student's steps."""

    start: Tensor  # θ_i, (P,)
    target: Tensor  # θ_{i+K}, (P,)
    steps: tuple[Step, ...]  # J of them


@dataclass(frozen=True, eq=False)
class Variables:
    """What is optimised: images, alpha, raw and, where they are probabilities, labels."""

    images: Tensor  # as networks see them, (count, channels, height, width)
    labels: Tensor  # (count,) int64, or (count, classes) probabilities
    alpha: Tensor  # (), the student's learning rate
    raw: Tensor  # the matching's learnable values, (0,) where there are none

    @property
    def soft(self) -> Tensor:
        """The labels where they are probabilities, else (0,)."""
        return self.labels if self.labels.is_floating_point() else self.images.new_zeros(0)


@dataclass(frozen=True, eq=False)
class Gradients:
    """The matching loss, its gradient with respect to each variable, and where the student arrived."""

    loss: Tensor  # ()
    images: Tensor
    alpha: Tensor
    raw: Tensor
    soft: Tensor  # (count, classes), up to a constant in each row, as rows sum to 1; else (0,)
    end: Tensor  # θ̃_J, (P,)


Engine = Callable[[StudentLoss, Segment, Variables, Objective], Gradients]


def full(loss: StudentLoss, segment: Segment, variables: Variables, objective: Objective) -> Gradients:
    """Exact gradients from one graph over all steps; memory grows with J × batch."""
    own = variables.images, variables.alpha, variables.raw, variables.soft
    learned = images, alpha, raw, soft = [leaf(each) for each in own]
    labels = soft if len(soft) else variables.labels
    flat = leaf(segment.start)
    for step in segment.steps:
        batch = step.augmentation(images[step.rows])  # (batch, channels, height, width)
        value = loss(flat, batch, labels[step.rows])
        (slope,) = torch.autograd.grad(value, flat, create_graph=True)  # (P,)
        flat = flat - alpha * slope
    value = objective(flat, raw)
    slopes = torch.autograd.grad(value, learned, allow_unused=True, materialize_grads=True)
    return Gradients(value.detach(), *slopes, flat.detach())


def adjoint(
    loss: StudentLoss, segment: Segment, variables: Variables, objective: Objective, *, curvature: bool = True
) -> Gradients:
    """Exact gradients step by step backwards; memory constant in J but for J+1 parameter vectors.

    `curvature=False` leaves λ as it is at the end (the `frozen` approximation).
    """
    path = walk(loss, segment, variables)  # (J + 1, P)
    end, raw = leaf(path[-1]), leaf(variables.raw)
    value = objective(end, raw)
    # λ_J (P,), and the shape of raw
    costate, raw_gradient = torch.autograd.grad(value, (end, raw), allow_unused=True, materialize_grads=True)

    images_gradient, alpha_gradient = torch.zeros_like(variables.images), torch.zeros_like(variables.alpha)
    soft_gradient = torch.zeros_like(variables.soft)
    for flat, step in zip(reversed(path[:-1]), reversed(segment.steps), strict=True):
        batch, labels = variables.images[step.rows], variables.labels[step.rows]
        found = loss.along(flat, costate, batch, labels, step.augmentation, curvature=curvature)
        scalar, batch_gradient, flat_gradient = found
        alpha_gradient -= scalar
        # α as a tensor: reading it would make a GPU wait in every step.
        images_gradient.index_add_(0, step.rows, -variables.alpha * batch_gradient)
        if len(soft_gradient):
            rise = tangent(loss, flat, costate, step.augmentation(batch))  # −∂s_j/∂y, times the batch
            soft_gradient.index_add_(0, step.rows, variables.alpha * rise / len(batch))
        if curvature:
            costate = costate - variables.alpha * flat_gradient
    return Gradients(value.detach(), images_gradient, alpha_gradient, raw_gradient, soft_gradient, path[-1])


def tangent(loss: StudentLoss, flat: Tensor, direction: Tensor, images: Tensor) -> Tensor:
    """How fast the logits of the images rise as θ moves along `direction`: (batch, classes)."""
    return torch.func.jvp(lambda point: loss.logits(point, images), (flat,), (direction,))[1]


def walk(loss: StudentLoss, segment: Segment, variables: Variables) -> list[Tensor]:
    """The student's parameters before the first step and after each: J + 1 vectors of shape (P,)."""
    path = [segment.start.detach()]
    for step in segment.steps:
        batch, labels = variables.images[step.rows], variables.labels[step.rows]
        slope = loss.slope(path[-1], batch, labels, step.augmentation)
        path.append(path[-1] - variables.alpha * slope)
    return path


ENGINES: dict[str, Engine] = {"adjoint": adjoint, "full": full, "frozen": partial(adjoint, curvature=False)}
