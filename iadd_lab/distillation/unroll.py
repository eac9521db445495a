"""The student's J steps, and the gradient of the matching loss through them.

Three engines, one signature. With θ̃_{j+1} = θ̃_j − α ∇ℓ(x_j; θ̃_j) and λ_J = ∂L/∂θ̃_J:

- `full`: one graph over all J steps, backpropagated once, as MTT's code does. Memory grows with J × batch.
- `adjoint`: exact, in memory that does not grow with J but for the J+1 stored parameter vectors. It walks
  back with one scalar per step, s_j = ⟨∇_θ ℓ(x_j; θ̃_j), λ_{j+1}⟩, whose derivatives are all that is needed:
  ∂L/∂α −= s_j,  ∂L/∂x_j = −α ∇_x s_j,  λ_j = λ_{j+1} − α ∇_θ s_j.
- `frozen`: λ_j ≡ λ_J, as TESLA's code does (Cui et al., ICML 2023). It drops the curvature term ∇_θ s_j: an
  approximation, kept for study.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from iadd_lab.data.augment import Augmentation
from iadd_lab.training.student import Kept, StudentLoss, leaf

# (θ̃_J, raw) -> the matching loss L; see `Matching.loss`.
Objective = Callable[[Tensor, Tensor], Tensor]

_BLOCK = 2**19  # numbers of images that are augmented at once; more only cost memory


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


Engine = Callable[..., Gradients]


def full(
    loss: StudentLoss, segment: Segment, variables: Variables, objective: Objective, *, budget: float = 0
) -> Gradients:
    """Exact gradients from one graph over all steps; memory grows with J × batch, whatever the budget."""
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
    loss: StudentLoss,
    segment: Segment,
    variables: Variables,
    objective: Objective,
    *,
    curvature: bool = True,
    budget: float = 0,
) -> Gradients:
    """Exact gradients step by step backwards; memory constant in J but for J+1 parameter vectors.

    `budget` is how many bytes of what the steps compute may be kept besides, to save computing it again.
    `curvature=False` leaves λ as it is at the end (the `frozen` approximation).
    """
    path, kept, seen = _walk(loss, segment, variables, budget)
    end, raw = leaf(path[-1]), leaf(variables.raw)
    value = objective(end, raw)
    # λ_J (P,), and the shape of raw
    costate, raw_gradient = torch.autograd.grad(value, (end, raw), allow_unused=True, materialize_grads=True)

    images_gradient, alpha_gradient = torch.zeros_like(variables.images), torch.zeros_like(variables.alpha)
    soft_gradient = torch.zeros_like(variables.soft)
    for block in reversed(_blocks(segment.steps, variables.images)):
        (source, batches, labels), sent, seen = seen or _seen(block, variables), [], None
        for step, batch, targets in zip(reversed(block), reversed(batches), reversed(labels), strict=True):
            given = path[len(kept) - 1], costate, batch, targets, kept.pop()
            scalar, batch_gradient, flat_gradient, fall = loss.along(*given, curvature=curvature)
            alpha_gradient -= scalar
            sent.append(batch_gradient)
            if fall is not None:
                soft_gradient.index_add_(0, step.rows, fall)
            if curvature:
                # α as a tensor: reading it would make a GPU wait in every step.
                costate = torch.addcmul(costate, variables.alpha, flat_gradient, value=-1)
        images_gradient += torch.autograd.grad(batches[::-1], source, sent)[0]
    images_gradient *= -variables.alpha
    soft_gradient *= -variables.alpha
    return Gradients(value.detach(), images_gradient, alpha_gradient, raw_gradient, soft_gradient, path[-1])


def walk(loss: StudentLoss, segment: Segment, variables: Variables) -> list[Tensor]:
    """The student's parameters before the first step and after each: J + 1 vectors of shape (P,)."""
    return _walk(loss, segment, variables, 0)[0]


def _walk(
    loss: StudentLoss, segment: Segment, variables: Variables, budget: float
) -> tuple[list[Tensor], list[Kept | None], tuple[Tensor, list[Tensor], list[Tensor]]]:
    """The same; what of each step is kept for `StudentLoss.along`, in about `budget` bytes; and what the last
    block of steps has seen."""
    path, kept = [segment.start.detach()], []
    for block in _blocks(segment.steps, variables.images):
        seen = _seen(block, variables)
        for batch, labels in zip(*seen[1:], strict=True):
            slope, found = loss.step(path[-1], batch.detach(), labels)
            path.append(torch.addcmul(path[-1], variables.alpha, slope, value=-1))
            budget -= found.nbytes() if found and budget > 0 else 0
            kept.append(found if budget > 0 else None)
    return path, kept, seen


def _blocks(steps: Sequence[Step], images: Tensor) -> list[Sequence[Step]]:
    """The steps, as many together as see `_BLOCK` numbers of images."""
    size = max(_BLOCK // (len(steps[0].rows) * images[0].numel()), 1)
    return [steps[start : start + size] for start in range(0, len(steps), size)]


def _seen(steps: Sequence[Step], variables: Variables) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The images as a variable, and what the network sees of them in each step, with the labels.

    Steps that drew the same operation are augmented by one call.
    """
    images, batches = leaf(variables.images), {}
    for name in dict.fromkeys(step.augmentation.operation for step in steps):
        alike = [step for step in steps if step.augmentation.operation == name]
        drawn = zip(*(step.augmentation.tensors() for step in alike), strict=True)
        joint = alike[0].augmentation.with_tensors(map(torch.cat, drawn))
        rows = torch.cat([step.rows for step in alike])
        images_seen = replace(joint, batch=len(rows))(images[rows])
        batches |= zip(map(id, alike), images_seen.split([len(step.rows) for step in alike]), strict=True)
    labels = variables.labels[torch.cat([step.rows for step in steps])]
    labels = labels.split([len(step.rows) for step in steps])
    return images, [batches[id(step)] for step in steps], list(labels)


ENGINES: dict[str, Engine] = {"adjoint": adjoint, "full": full, "frozen": partial(adjoint, curvature=False)}
