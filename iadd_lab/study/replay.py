"""A finished distillation looked at again: where its student goes, and how far from the teacher it ends.

Everything here is recomputed from the stored result and the teachers, on segments drawn from a seed of their
own: two results distilled from the same teachers are compared on the same segments.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor

from iadd_lab.device import DEFAULT, Execution, executes, root
from iadd_lab.distillation.result import DistillResult
from iadd_lab.distillation.segments import draw_place, draw_segment
from iadd_lab.distillation.unroll import ENGINES, Gradients, Segment, Variables, walk
from iadd_lab.errors import check_whole, require
from iadd_lab.seeds import generator
from iadd_lab.training.fast.compiling import PLAIN
from iadd_lab.training.fast.losses import student_loss
from iadd_lab.training.networks import ParameterLayout
from iadd_lab.training.teachers import Teachers


@dataclass(frozen=True, eq=False)
class ReplayedSegment:
    """One segment: the student's steps beside the epochs of the teacher that it started from."""

    teacher: int
    start_epoch: int  # i
    target_epoch: int  # i + K
    student: Tensor  # θ̃_{i,0} … θ̃_{i,J}, (J + 1, P)
    trajectory: Tensor  # the teacher's θ_0 … θ_epochs, (epochs + 1, P)

    @property
    def end(self) -> Tensor:
        """θ̃_{i,J}, where the student arrived: (P,)."""
        return self.student[-1]

    @property
    def target(self) -> Tensor:
        """θ_{i+K}, where the teacher arrived: (P,)."""
        return self.trajectory[self.target_epoch]

    @property
    def difference(self) -> Tensor:
        """θ̃_{i,J} − θ_{i+K}, parameter by parameter: (P,)."""
        return self.end - self.target

    @property
    def movement(self) -> Tensor:
        """θ_{i+K} − θ_i, how the teacher moved, parameter by parameter: (P,)."""
        return self.target - self.trajectory[self.start_epoch]


@executes
def replay(
    result: DistillResult, teachers: Teachers, *, segments: int = 8, seed: int = 0, how: Execution = DEFAULT
) -> list[ReplayedSegment]:
    """Where a student goes with the finished images and α, on `segments` segments drawn from `seed`.

    Args:
        result: a finished distillation.
        teachers: the ones it was distilled from.
        segments: how many, at least 1; the first ones do not depend on how many follow.
        seed: of the segments.
        how: where the student runs.
        options: fields of `Execution` by name, as in `device="cpu"`.

    Raises:
        InputError: the result was distilled from other teachers.
    """
    check_whole("segments", segments, minimum=1)
    again = _Again(result, teachers, how.place)
    trajectory = cache(teachers.trajectory)  # one copy for all segments of a teacher: it may be large
    replayed = []
    for index in range(segments):
        place, segment = again.draw(seed, index)
        student = torch.stack(walk(again.loss, segment, again.variables)).cpu()  # (J + 1, P)
        replayed.append(ReplayedSegment(*place, student, trajectory(place[0])))
    return replayed


def hardness(replayed: Sequence[ReplayedSegment], *, relative: bool = False) -> Tensor:
    """How hard each parameter is to match: the root mean square of its difference over `replayed`, (P,).

    `relative` divides it by the root mean square of what the teacher moved in that dimension: 1 then means
    that the student comes no nearer than it was at the start. A parameter that the teacher never moves, but
    for rounding, is not hard: it has 0.
    """
    difference = root(torch.stack([each.difference for each in replayed]).square().mean(0))  # (P,)
    if not relative:
        return difference
    movement = root(torch.stack([each.movement for each in replayed]).square().mean(0))  # (P,)
    # Biases ahead of a norm have no gradient; what is left of them is rounding, in student and teacher.
    still = movement <= 1e-6 * movement.max()
    return torch.where(still, 0.0, difference / movement.masked_fill(still, 1.0))


@dataclass(frozen=True, eq=False)
class Iteration:
    """One iteration as it would follow the finished run: every number that a diagram of it needs."""

    result: DistillResult  # of the run
    teacher: int
    start_epoch: int
    target_epoch: int
    teachers: int  # how many there are
    augmentations: tuple[str, ...]  # the operation drawn for each of the J steps
    real_images: int  # training images of the real set
    loss: float
    unweighted_loss: float
    image_gradient: float  # ‖∂L/∂images‖
    alpha_gradient: float  # ∂L/∂α
    importance_gradient: float  # ‖∂L/∂W‖ in the form in which W is learned; 0 where it is not
    start_distance: float  # ‖θ_i − θ_{i+K}‖
    end_distance: float  # ‖θ̃_{i,J} − θ_{i+K}‖
    layout: ParameterLayout


@executes
def one_iteration(
    result: DistillResult, teachers: Teachers, *, real_images: int, seed: int = 0, how: Execution = DEFAULT
) -> Iteration:
    """Draw one segment and differentiate it as the distillation does, without updating anything.

    Args:
        result: a finished distillation.
        teachers: the ones it was distilled from.
        real_images: how many training images the real set has.
        seed: of the segment.
        how: where the student runs.
        options: fields of `Execution` by name, as in `device="cpu"`.

    Raises:
        InputError: the result was distilled from other teachers.
    """
    again = _Again(result, teachers, how.place)
    place, segment = again.draw(seed, 0)
    gradients = again.differentiate(segment, again.variables, result.config.gradient)
    start, end = ((at - segment.target).norm() for at in (segment.start, gradients.end))
    return Iteration(
        result,
        *place,
        teachers=len(teachers),
        augmentations=tuple(step.augmentation.operation for step in segment.steps),
        real_images=real_images,
        loss=gradients.loss.item(),
        unweighted_loss=(end / start).square().item(),
        image_gradient=again.form.transpose(gradients.images, stored=result.images).norm().item(),
        alpha_gradient=gradients.alpha.item(),
        importance_gradient=gradients.raw.norm().item(),
        start_distance=start.item(),
        end_distance=end.item(),
        layout=again.loss.layout,
    )


def engine_errors(result: DistillResult, teachers: Teachers, *, seed: int = 0) -> dict[str, float]:
    """How far each engine's gradient of the images is from the full unroll's, as a share of its norm.

    All take the same segment, in double precision, so that rounding does not blur the comparison.

    Args:
        result: a finished distillation.
        teachers: the ones it was distilled from.
        seed: of the segment.
    """
    again = _Again(result, teachers, torch.device("cpu"))
    variables, (_, drawn) = again.variables, again.draw(seed, 0)
    segment = replace(drawn, start=drawn.start.double(), target=drawn.target.double())
    doubled = {name: getattr(variables, name).double() for name in ("images", "alpha", "raw")}
    labels = variables.soft.double() if len(variables.soft) else variables.labels
    variables = replace(variables, **doubled, labels=labels)
    found = {name: again.differentiate(segment, variables, name).images for name in ENGINES}
    full = found["full"]
    return {name: ((images - full).norm() / full.norm()).item() for name, images in found.items()}


class _Again:
    """What a finished distillation ended with, on `device`, from where its iterations are computed again."""

    def __init__(self, result: DistillResult, teachers: Teachers, device: torch.device):
        found, own = teachers.fingerprint, result.teachers["fingerprint"]
        given = f"{teachers.folder} holds teachers of fingerprint {found}"
        require(found == own, f"{given}, but the result was distilled from {own}: open those.")
        self.config, self.teachers = result.config, teachers
        self.loss = student_loss(teachers.network(0), PLAIN, plain=True)
        self.form = result.config.parametrisation
        seen = result.distilled.decoded
        learned = (seen.images, seen.targets, torch.tensor(result.alpha), result.raw)
        self.variables = Variables(*(each.to(device) for each in learned))

    def draw(self, seed: int, index: int) -> tuple[tuple[int, int, int], Segment]:
        """A segment: the teacher, i and i + K, and what an iteration sees of it."""
        stream = generator(seed, "replay", index)
        teacher, epoch = draw_place(self.teachers, self.config, stream)
        segment = draw_segment(self.teachers, self.config, self.variables.images, stream, teacher, epoch)
        return (teacher, epoch, epoch + self.config.teacher_epochs), segment

    def differentiate(self, segment: Segment, variables: Variables, engine: str) -> Gradients:
        places = {"start": segment.start, "target": segment.target, "layout": self.loss.layout}
        objective = partial(self.config.matching.loss, **places)
        return ENGINES[engine](self.loss, segment, variables, objective)
