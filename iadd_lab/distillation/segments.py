"""Drawing what one iteration of a distillation sees: a piece of a trajectory, and the student's steps."""

from __future__ import annotations

from collections.abc import Container, Iterable

import torch

from iadd_lab.data.augment import draw_augmentation
from iadd_lab.device import all_to_device, to_device
from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.unroll import Segment, Step
from iadd_lab.training.teachers import Teachers


def draw_place(teachers: Teachers, config: DistillConfig, generator: torch.Generator) -> tuple[int, int]:
    """A teacher's number and a start epoch below `config.max_start_epoch`, both equally likely."""
    teacher = int(torch.randint(len(teachers), (), generator=generator))
    return teacher, int(torch.randint(config.max_start_epoch, (), generator=generator))


def draw_segment(
    teachers: Teachers,
    config: DistillConfig,
    images: torch.Tensor,
    generator: torch.Generator,
    *,
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
    return _read(
        teachers,
        config,
        images,
        teacher=teacher,
        start_epoch=start_epoch,
        steps=_draw_steps(config, images, generator),
    )


def draw_segments(
    teachers: Teachers,
    config: DistillConfig,
    images: torch.Tensor,
    generator: torch.Generator,
    *,
    own: Container[int],
) -> list[Segment]:
    """Those of an iteration's `config.segments` whose numbers are `own`; the others are drawn, not read."""
    segments = []
    for number in range(config.segments):
        teacher, start_epoch = draw_place(teachers, config, generator)
        steps = _draw_steps(config, images, generator)
        if number in own:
            segments.append(
                _read(teachers, config, images, teacher=teacher, start_epoch=start_epoch, steps=steps)
            )
    return segments


def _draw_steps(config: DistillConfig, images: torch.Tensor, generator: torch.Generator) -> tuple[Step, ...]:
    count, _, height, width = images.shape
    batches: list[torch.Tensor] = []
    while len(batches) < config.student_steps:
        batches += torch.randperm(count, generator=generator).split(config.batch or count)
    steps = [
        Step(
            rows,
            draw_augmentation(
                config.augment, batch=len(rows), height=height, width=width, generator=generator
            ),
        )
        for rows in batches[: config.student_steps]
    ]
    return on_device(steps, images.device)


def on_device(steps: Iterable[Step], device: torch.device) -> tuple[Step, ...]:
    """The steps with all that they drew on `device`, where it goes at once: a GPU waits for each journey."""
    steps = tuple(steps)
    drawn = [tensor for step in steps for tensor in (step.rows, *step.augmentation.tensors())]
    moved = iter(all_to_device(drawn, device))
    return tuple(
        Step(next(moved), step.augmentation.with_tensors([next(moved) for _ in step.augmentation.tensors()]))
        for step in steps
    )


def _read(
    teachers: Teachers,
    config: DistillConfig,
    images: torch.Tensor,
    *,
    teacher: int,
    start_epoch: int,
    steps: tuple[Step, ...],
) -> Segment:
    return Segment(
        start=to_device(teachers.snapshot(teacher, start_epoch), images.device),
        target=to_device(teachers.snapshot(teacher, start_epoch + config.teacher_epochs), images.device),
        steps=steps,
    )
