"""Distilled images by plain gradient descent on a loss of each class: the loop of the matching baselines.

Gradient matching and distribution matching differ in that loss and in what else an iteration does. Real
images, fresh networks, siamese augmentation, the step on the images, checkpoints and results are here.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from iadd_lab.data.augment import AugmentConfig, draw_augmentation
from iadd_lab.data.distilled import KIND, DistilledSet
from iadd_lab.data.preprocess import Preprocess, preprocess_fingerprint
from iadd_lab.data.sampling import INITIAL_IMAGES, check_class_sizes
from iadd_lab.data.sets import ImageData
from iadd_lab.distillation.history import History
from iadd_lab.errors import (
    DivergenceError,
    check_kind,
    check_number,
    check_rate,
    check_whole,
    choose,
    require,
)
from iadd_lab.seeds import generator
from iadd_lab.store.artefacts import Artefact, load_artefact, unpacking
from iadd_lab.store.configs import added_field, describe, fingerprint
from iadd_lab.store.locks import locked_folder
from iadd_lab.store.resumable import Checkpoint, State
from iadd_lab.training.fast.memory import reuse_freed_memory
from iadd_lab.training.networks import NetworkConfig, build_network

logger = logging.getLogger(__name__)

_ALPHA = 0.01  # the rate to train with on the images; the field's, and that of `random_real`


@dataclass(frozen=True)
class DescentConfig:
    """The fields that every such baseline has; the subclass documents them, and has defaults of its own."""

    ipc: int = 1
    iterations: int = 1000
    image_rate: float = 0.1
    momentum: float = 0.5
    real_batch: int = 256
    initial_images: str = "real"
    augment: AugmentConfig | None = None
    back_offs: int = added_field(5)
    seed: int = 0

    def __post_init__(self):
        for name in ("ipc", "iterations", "real_batch"):
            check_whole(name, getattr(self, name), minimum=1)
        check_rate("image_rate", self.image_rate)
        check_number("momentum", self.momentum, maximum=0.999)
        choose("initial_images", self.initial_images, INITIAL_IMAGES)
        check_whole("back_offs", self.back_offs, minimum=0)
        check_kind("augment", self.augment, AugmentConfig, optional=True)
        check_whole("seed", self.seed, minimum=0)

    @property
    def method(self) -> str:
        """The name of the method in tables."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Pair:
    """A real and a distilled batch of one class, under one and the same augmentation."""

    label: int
    real: torch.Tensor  # (count, channels, height, width), count at most the configuration's real_batch
    distilled: torch.Tensor  # (ipc, channels, height, width), differentiable in the distilled images


@dataclass(frozen=True, eq=False)
class Task:
    """What distilled images are to stand for, and how: the same throughout a run."""

    data: ImageData
    preprocess: Preprocess
    network: NetworkConfig
    config: DescentConfig  # with `augment` resolved
    device: torch.device

    @cached_property
    def identity(self) -> str:
        """16 hex digits over all that the result depends on."""
        return fingerprint(
            self.config, self.network, self.data.fingerprint, preprocess_fingerprint(self.preprocess)
        )

    @cached_property
    def labels(self) -> torch.Tensor:
        """The classes of the distilled images: (classes * ipc,) int64."""
        classes = torch.arange(len(self.data.classes), device=self.device)
        return classes.repeat_interleave(self.config.ipc)

    @cached_property
    def real(self) -> tuple[torch.Tensor, ...]:
        """The preprocessed training images of each class: (count, channels, height, width) each."""
        train = self.data.train
        return tuple(
            self.preprocess.apply(train.images[train.labels == label].to(self.device))
            for label in range(len(self.data.classes))
        )

    def fresh_network(self, seed: int) -> nn.Module:
        """A network with an initialisation of its own.

        Raises:
            InputError: it does not fit the images.
        """
        data = self.data
        network = build_network(
            self.network, channels=data.channels, size=data.size, classes=len(data.classes), seed=seed
        )
        return network.to(self.device)

    def initial_images(self) -> torch.Tensor:
        """Where the images start; the same as `distill`'s of the same seed."""
        config = self.config
        start = generator(config.seed, "initial images")
        return INITIAL_IMAGES[config.initial_images](self.data, self.preprocess, config.ipc, start).to(
            self.device
        )

    def pair(self, label: int, distilled: torch.Tensor, random: torch.Generator) -> Pair:
        """`distilled` beside as many real images of its class as the configuration says, newly drawn."""
        real, (height, width) = self.real[label], distilled.shape[2:]
        augmentation = draw_augmentation(
            self.config.augment, batch=1, height=height, width=width, generator=random
        )
        rows = torch.randperm(len(real), generator=random)[: self.config.real_batch]
        return Pair(label, augmentation(real[rows.to(self.device)]), augmentation(distilled))


# An iteration: it is given the task, the images, their optimizer and a generator of its own, steps with
# `step_images` and returns the loss, a scalar. Whatever it keeps to itself would be lost in an interruption.
Iterate = Callable[[Task, torch.Tensor, torch.optim.Optimizer, torch.Generator], torch.Tensor]


def step_images(
    task: Task,
    images: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    random: torch.Generator,
    loss_of: Callable[[Pair], torch.Tensor],
) -> torch.Tensor:
    """One step of the images on the sum of `loss_of` over the classes; returns that sum, a scalar.

    A class's loss depends on its own images alone, so the graph of one class is in memory at a time.
    """
    total, gradients = torch.zeros((), device=images.device), []
    for label, own in enumerate(images.detach().split(task.config.ipc)):
        own = own.clone().requires_grad_()  # (ipc, channels, height, width)
        loss = loss_of(task.pair(label, own, random))
        gradients += torch.autograd.grad(loss, own)
        total += loss.detach()
    images.grad = torch.cat(gradients)
    optimizer.step()
    return total


@locked_folder("folder")
def descend(
    task: Task,
    iterate: Iterate,
    *,
    folder: Path | None,
    progress: bool,
    on_iteration: Callable[[int, History], None] | None,
    checkpoint_seconds: float,
) -> DistilledSet:
    """Iterate from the initial images to the end, from a checkpoint in `folder` on, or read what is done.

    Raises:
        InputError: the data has too few images, the network does not fit them, or `folder` holds another run.
        DivergenceError: the loss or the images are not finite. The error's `result` is the set with the last
            images whose loss was finite.
    """
    check_class_sizes(task.data, task.config.ipc if task.config.initial_images == "real" else 1)
    task.fresh_network(0)  # before anything expensive: does it fit the images at all?
    target = Path(folder) / "distilled.safetensors" if folder is not None else None
    path = target.with_name("checkpoint.safetensors") if target is not None else None
    if target is not None and target.exists():
        path.unlink(missing_ok=True)  # left by a kill between writing the result and removing it
        return _finished(target, task)
    reuse_freed_memory()
    run = _Run(task, iterate)
    with (
        Checkpoint(path, run=task.identity, unit="iteration", seconds=checkpoint_seconds) as checkpoint,
        tqdm(total=task.config.iterations, desc=task.config.method, leave=None, disable=not progress) as bar,
    ):
        stored = checkpoint.load()
        if stored is not None:
            run.load(stored)
        while run.iteration < task.config.iterations:
            _advance_or_keep(run, checkpoint)
            bar.update(run.iteration - bar.n)
            if run.history.loss:
                bar.set_postfix(loss=f"{run.history.loss[-1]:.4g}", refresh=False)
            if on_iteration is not None:
                on_iteration(run.iteration, run.history)
            checkpoint.keep(run.iteration, run.stored)
        result = run.result(run.images)
        if target is not None:
            result.save(target, more_tensors=run.history.tensors(), more_metadata=_made_by(task))
        checkpoint.remove()
    return result


def _advance_or_keep(run: _Run, checkpoint: Checkpoint) -> None:
    """One iteration, or a back-off; one too many leaves the last good images on disk and in the error."""
    try:
        run.advance()
    except DivergenceError as error:
        if run.back_off(str(error)):
            return
        if checkpoint.path is not None:
            checkpoint.save(run.stored)
        raise DivergenceError(str(error), result=run.result(run.images)) from None


def _made_by(task: Task) -> dict[str, object]:
    # Not "config": that key says that the set is a `DistillResult`'s.
    return {
        "baseline": describe(task.config),
        "network": describe(task.network),
        "run": task.identity,
    }


def _finished(path: Path, task: Task) -> DistilledSet:
    artefact = load_artefact(path, kind=KIND)
    require(
        artefact.metadata.get("run") == task.identity,
        f"{path} is the result of another configuration: choose another folder, or delete it.",
    )
    with unpacking(path):
        return DistilledSet.from_parts(artefact.tensors, artefact.metadata)


class _Run:
    """The mutable state of one descent: all that a checkpoint holds."""

    def __init__(self, task: Task, iterate: Iterate):
        self.task, self.iterate = task, iterate
        config = task.config
        self.images = task.initial_images()  # (classes * ipc, channels, height, width)
        self.optimizer = torch.optim.SGD([self.images], lr=config.image_rate, momentum=config.momentum)
        self.iteration = 0
        self.history = History()
        self.good = self.state()  # the last one that is known to have a finite loss

    def advance(self) -> None:
        """One iteration, with a random stream of its own: all that goes from one to the next is kept here.

        Raises:
            DivergenceError: the loss, or the images after it, are not finite. The run is then back in the
                last state whose loss was finite.
        """
        started = time.perf_counter()
        before = self.state()
        config, number = self.task.config, self.iteration
        self.optimizer.param_groups[0]["lr"] = config.image_rate * self.history.share_of("image_rate")
        # Iterations that are done again after a back-off draw something else.
        redone = len(self.history.back_off_rates)
        random = generator(config.seed, "image descent", number, *([redone] if redone else []))
        try:
            loss = self.iterate(self.task, self.images, self.optimizer, random).item()
            self.check(loss, before)
        except DivergenceError as error:
            self.restore(self.good)
            raise DivergenceError(
                f"{error} This was in iteration {number + 1}: lower image_rate (now {config.image_rate:g})."
            ) from None
        self.iteration += 1
        self.history.loss.append(loss)
        self.history.seconds.append(time.perf_counter() - started)

    def back_off(self, reason: str) -> bool:
        """Halve the rate, and say so; False where that was done as often as it may be."""
        if len(self.history.back_off_rates) >= self.task.config.back_offs:
            return False
        self.history.back_off("image_rate")
        logger.warning("%s Went back to iteration %d and halved image_rate.", reason, self.iteration)
        return True

    def check(self, loss: float, before: dict[str, torch.Tensor]) -> None:
        """Require a finite loss, which shows that the state `before` was good, and finite images."""
        if not math.isfinite(loss):
            raise DivergenceError(f"the matching loss is {loss}.")
        self.good = before
        if not torch.isfinite(self.images).all():
            raise DivergenceError("the images are not finite any more.")

    def state(self) -> dict[str, torch.Tensor]:
        """Copies of all that an iteration changes, but for the history."""
        tensors = {"images": self.images, "iteration": torch.tensor(self.iteration)}
        momentum = self.optimizer.state[self.images].get("momentum_buffer")
        if momentum is not None:
            tensors["momentum"] = momentum
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go back to what `state` returned."""
        self.images.copy_(state["images"])
        momentum = state.get("momentum")
        self.optimizer.state[self.images].clear()
        if momentum is not None:
            self.optimizer.state[self.images]["momentum_buffer"] = momentum.to(self.images).clone()
        self.iteration = int(state["iteration"])
        for series in (self.history.loss, self.history.seconds):
            del series[self.iteration :]

    def result(self, images: torch.Tensor) -> DistilledSet:
        task = self.task
        return DistilledSet(
            images=images.detach().cpu().clone(),
            labels=task.labels.cpu(),
            alpha=_ALPHA,
            preprocess=task.preprocess,
            classes=task.data.classes,
            data=task.data.config,
            data_fingerprint=task.data.fingerprint,
            method=task.config.method,
        )

    def stored(self) -> State:
        """All that a checkpoint holds."""
        good = {f"good/{name}": tensor for name, tensor in self.good.items()}
        return self.state() | good | self.history.tensors(), {}

    def load(self, artefact: Artefact) -> None:
        """Go on from a checkpoint, on the CPU bit for bit."""
        tensors = artefact.tensors
        with unpacking(artefact.path):
            self.history = History.from_tensors(tensors)
            self.restore(tensors)
            self.good = {n.removeprefix("good/"): t for n, t in tensors.items() if n.startswith("good/")}
