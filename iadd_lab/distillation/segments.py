"""Drawing what one iteration of a distillation sees: a piece of a trajectory, and the student's steps."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from iadd_lab.data.augment import draw_augmentation
from iadd_lab.device import all_to_device, to_device
from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.unroll import Segment, Step
from iadd_lab.training.teachers import Teachers


@dataclass(frozen=True)
class Ranks:
    """Which part of a distillation this process computes: all of it. `iadd_lab.ranks` has one for several."""

    first: bool = True  # whether this process writes the files, and shows progress
    patience: float = float("inf")  # seconds of work that may be lost at most

    def agree(self, what: str) -> None:
        """Wait for all processes, and require that they come with the same `what`."""

    def own(self, segments: int) -> range:
        """The numbers of the segments that this process computes, out of so many."""
        return range(segments)

    def gather(self, rows: Sequence[Sequence[Tensor]]) -> Sequence[Sequence[Tensor]]:
        """A row of tensors for each own segment becomes a row for each segment, in their order."""
        return rows


ALONE = Ranks()


def draw_place(teachers: Teachers, config: DistillConfig, generator: torch.Generator) -> tuple[int, int]:
    """A teacher's number and a start epoch below `config.max_start_epoch`, both equally likely."""
    teacher = int(torch.randint(len(teachers), (), generator=generator))
    return teacher, int(torch.randint(config.max_start_epoch, (), generator=generator))


def draw_segment(
    teachers: Teachers,
    config: DistillConfig,
    images: Tensor,
    generator: torch.Generator,
    teacher: int,
    start_epoch: int,
) -> Segment:
    """θ_i and θ_{i+K} of `teacher` with i = `start_epoch`, and the student's J steps.

    The steps go over the distilled set pass after pass, each in a new order, and draw an augmentation each.

    Args:
        teachers: whose trajectory it is.
        config: its `augment` must be resolved, as in every stored configuration.
        images: the distilled set, (classes * ipc, channels, height, width); its shape and device are used.
        generator: a CPU generator.
        teacher: the number of the teacher.
        start_epoch: i, at most the teachers' epochs − K.
    """
    count, _, height, width = images.shape
    draw = partial(draw_augmentation, config.augment, height=height, width=width, generator=generator)
    batches: list[Tensor] = []
    while len(batches) < config.student_steps:
        batches += torch.randperm(count, generator=generator).split(config.batch or count)
    steps = (Step(rows, draw(batch=len(rows))) for rows in batches[: config.student_steps])
    epochs = start_epoch, start_epoch + config.teacher_epochs
    start, target = (to_device(teachers.snapshot(teacher, epoch), images.device) for epoch in epochs)
    return Segment(start, target, on_device(steps, images.device))


def on_device(steps: Iterable[Step], device: torch.device) -> tuple[Step, ...]:
    """The steps with all that they drew on `device`, where it goes at once: a GPU waits for each journey."""
    steps = tuple(steps)
    drawn = [tensor for step in steps for tensor in (step.rows, *step.augmentation.tensors())]
    moved = iter(all_to_device(drawn, device))
    return tuple(
        Step(next(moved), step.augmentation.with_tensors([next(moved) for _ in step.augmentation.tensors()]))
        for step in steps
    )
