"""Distilled images by plain gradient descent on a loss of each class: the loop of the matching baselines.

Gradient matching and distribution matching differ in that loss, and in what the network does between two
steps: their configurations have both. Real images, fresh networks, siamese augmentation, the steps,
checkpoints and results are here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from iadd_lab.data.augment import AugmentConfig, draw_augmentation
from iadd_lab.data.distilled import KIND, DistilledSet
from iadd_lab.data.preprocess import Preprocess, Preprocessed, preprocess_fingerprint
from iadd_lab.data.sampling import INITIAL_IMAGES, check_class_sizes
from iadd_lab.data.sets import ImageData
from iadd_lab.device import DEFAULT, Execution, executes, finite
from iadd_lab.distillation.config import check_images
from iadd_lab.distillation.history import History
from iadd_lab.errors import DivergenceError, check_whole
from iadd_lab.seeds import generator
from iadd_lab.store.artefacts import Artefact, load_artefact, unpacking
from iadd_lab.store.configs import added_field, describe, fingerprint
from iadd_lab.store.locks import locked_folder
from iadd_lab.store.resumable import State, check_result, complete, under
from iadd_lab.training.fast.memory import reuse_freed_memory
from iadd_lab.training.networks import NetworkConfig, as_network, network_for
from iadd_lab.training.own_networks import known_network

ALPHA = 0.01  # the rate to train with on the images; the field's, and that of `random_real`


@dataclass(frozen=True)
class DescentConfig:
    """The fields that every such baseline has; the subclass documents them, and has defaults of its own.

    It also has `method`, the name of the method in tables; `distance(network, pair)`, the scalar that is to
    fall for each class; and, where it has several matches per network, `between(network, images, labels,
    generator)`: what happens to the network between two of them.
    """

    matches_per_network: ClassVar[int | None] = 1  # steps of the images in an iteration

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
        check_images(self)
        check_whole("real_batch", self.real_batch, minimum=1)

    def resolved(self, data: ImageData) -> Self:
        """Nothing left to defaults: the augmentation of `data`, among others."""
        return replace(self, augment=data.augmentation(self.augment))


@dataclass(frozen=True, eq=False)
class Pair:
    """A real and a distilled batch of one class, under one and the same augmentation."""

    label: int
    real: Tensor  # (count, channels, height, width), count at most the configuration's real_batch
    distilled: Tensor  # (ipc, channels, height, width), differentiable in the distilled images


@executes
@locked_folder("folder")
def descend(
    data: ImageData,
    preprocess: Preprocess,
    network: NetworkConfig,
    config: DescentConfig,
    *,
    folder: Path | None = None,
    how: Execution = DEFAULT,
    on_iteration: Callable[[int, History], None] | None = None,
) -> DistilledSet:
    """Distil `data` as `config` says, from its initial images or a checkpoint in `folder` on.

    Args:
        data: the real set; only its training images are used.
        preprocess: fitted on them.
        network: the architecture that sees real and distilled images, freshly initialised again and again.
        config: everything else that the result depends on.
        folder: where `distilled.safetensors`, with the history, and the checkpoint go. A finished run is read
            from there, an interrupted one goes on, on the CPU bit for bit. None keeps nothing.
        how: where it runs, and what is shown and kept meanwhile.
        on_iteration: called with (iteration, history) after every iteration; its loss is the mean over the
            matches of one network.
        options: fields of `Execution` by name, as in `device="cpu"`.

    Raises:
        InputError: the data has too few images, the network does not fit them, or `folder` holds another run.
        DivergenceError: the loss or the images are not finite. The error's `result` is the set with the last
            images whose loss was finite.
    """
    target = Path(folder) / "distilled.safetensors" if folder is not None else None
    path = target and target.with_name("checkpoint.safetensors")
    run = Descent(data, preprocess, network, config.resolved(data), how.place)
    if target and target.exists():
        path.unlink(missing_ok=True)  # left by a kill between writing the result and removing it
        artefact = load_artefact(target, kind=KIND)
        check_result(target, artefact.metadata.get("run"), run.identity)
        with unpacking(target):
            return DistilledSet.from_parts(artefact.tensors, artefact.metadata)
    reuse_freed_memory()
    hooks = {
        "on_advance": lambda: on_iteration and on_iteration(run.done, run.history),
        "save": lambda: target and run.save(target),
    }
    complete(run, path=path, identity=run.identity, title=run.config.method, how=how, **hooks)
    return run.result()


class Descent:
    """One descent on its way: the images, and all else that a checkpoint holds. A `Resumable`.

    Args:
        data: the real set.
        preprocess: fitted on it.
        network: the architecture of the fresh networks.
        config: with nothing left to defaults.
        device: where images and networks are.

    Raises:
        InputError: the data has too few images, or the network does not fit them.
    """

    unit = "iteration"

    def __init__(
        self,
        data: ImageData,
        preprocess: Preprocess,
        network: NetworkConfig,
        config: DescentConfig,
        device: torch.device,
    ):
        self.data, self.preprocess, self.config, self.device = data, preprocess, config, device
        self.network = known_network(as_network(network), data)
        check_class_sizes(data, config.ipc if config.initial_images == "real" else 1)
        self.fresh_network(0)  # before anything expensive: does it fit the images at all?
        preprocessing = preprocess_fingerprint(preprocess)
        self.identity = fingerprint(config, network, data.fingerprint, preprocessing)
        start = generator(config.seed, "initial images")  # those of `distill` with the same seed
        images = INITIAL_IMAGES[config.initial_images](data, preprocess, config.ipc, start)
        self.images = images.to(device)  # (classes * ipc, channels, height, width)
        self.labels = torch.arange(len(data.classes), device=device).repeat_interleave(config.ipc)
        self.optimizer = torch.optim.SGD([self.images], momentum=config.momentum)
        self.done, self.total = 0, config.iterations
        self.history = History()
        self.good = self.tensors()  # the last state that is known to have a finite loss

    @cached_property
    def real(self) -> Tensor | Preprocessed:
        """The preprocessed training images: (count, channels, height, width)."""
        return self.preprocess.prepare(self.data.train.images.to(self.device))

    @cached_property
    def rows(self) -> list[Tensor]:
        """The rows of each class among them: (count of that class,) each."""
        return [torch.nonzero(self.data.train.labels == n).flatten() for n in range(len(self.data.classes))]

    def fresh_network(self, seed: int) -> nn.Module:
        """A network with an initialisation of its own.

        Raises:
            InputError: it does not fit the images.
        """
        return network_for(self.data, self.network, seed=seed).to(self.device)

    def pair(self, label: int, distilled: Tensor, random: torch.Generator) -> Pair:
        """`distilled` beside as many real images of its class as the configuration says, newly drawn."""
        own, (height, width) = self.rows[label], distilled.shape[2:]
        size = {"batch": 1, "height": height, "width": width}
        augmentation = draw_augmentation(self.config.augment, **size, generator=random)
        rows = own[torch.randperm(len(own), generator=random)[: self.config.real_batch]]
        return Pair(label, augmentation(self.real[rows.to(self.device)]), augmentation(distilled))

    def advance(self) -> dict[str, str]:
        """One iteration, with a random stream of its own: all that goes from one to the next is kept here.

        Raises:
            DivergenceError: the loss, or the images after it, are not finite. The run is then back in the
                last state whose loss was finite.
        """
        started, before = time.perf_counter(), self.tensors()
        config, number = self.config, self.done
        self.optimizer.param_groups[0]["lr"] = config.image_rate * self.history.share_of("image_rate")
        # Iterations that are done again after a back-off draw something else.
        redone = len(self.history.back_off_rates)
        random = generator(config.seed, "image descent", number, *([redone] if redone else []))
        try:
            loss = self.iterate(random).item()
            if not math.isfinite(loss):
                raise DivergenceError(f"the matching loss is {loss}.")
            self.good = before  # as its loss shows
            if not finite(self.images):
                raise DivergenceError("the images are not finite any more.")
        except DivergenceError as error:
            self.restore(self.good)
            mend = f"lower image_rate (now {config.image_rate:g})"
            raise DivergenceError(f"{error} This was in iteration {number + 1}: {mend}.") from None
        self.done += 1
        self.history.append(loss=loss, seconds=time.perf_counter() - started)
        return {"loss": f"{loss:.4g}"}

    def iterate(self, random: torch.Generator) -> Tensor:
        """The steps with one fresh network; their mean loss."""
        network = self.fresh_network(int(torch.randint(2**62, (), generator=random)))
        losses = [self.step(network, random)]
        while len(losses) < self.config.matches_per_network:
            self.config.between(network, self.images, self.labels, random)
            losses.append(self.step(network, random))
        return torch.stack(losses).mean()

    def step(self, network: nn.Module, random: torch.Generator) -> Tensor:
        """One step of the images on the sum of the distances of all classes; returns that sum.

        A class's distance depends on its own images alone, so the graph of one class is in memory at a time.
        """
        total, gradients = torch.zeros((), device=self.images.device), []
        for label, own in enumerate(self.images.split(self.config.ipc)):
            own = own.clone().requires_grad_()  # (ipc, channels, height, width)
            loss = self.config.distance(network, self.pair(label, own, random))
            gradients += torch.autograd.grad(loss, own)
            total += loss.detach()
        self.images.grad = torch.cat(gradients)
        self.optimizer.step()
        return total

    def back_off(self, reason: str) -> bool:
        """Halve the rate, and say so; False where that was done as often as it may be."""
        return self.history.back_off("image_rate", reason=reason, limit=self.config.back_offs)

    def tensors(self) -> dict[str, Tensor]:
        """Copies of all that an iteration changes, but for the history."""
        tensors = {"images": self.images, "iteration": torch.tensor(self.done)}
        momentum = self.optimizer.state[self.images].get("momentum_buffer")
        if momentum is not None:
            tensors["momentum"] = momentum
        return {name: tensor.clone() for name, tensor in tensors.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to what `tensors` returned."""
        self.images.copy_(tensors["images"])
        self.optimizer.state[self.images].clear()
        if "momentum" in tensors:
            momentum = tensors["momentum"].to(self.images).clone()
            self.optimizer.state[self.images]["momentum_buffer"] = momentum
        self.done = int(tensors["iteration"])
        self.history.keep(self.done)

    def result(self) -> DistilledSet:
        """What there is now."""
        parts = {"images": self.images.cpu().clone(), "labels": self.labels.cpu(), "alpha": ALPHA}
        return DistilledSet.of(self.data, self.preprocess, **parts, method=self.config.method)

    def save(self, path: Path) -> None:
        """Store the set, how it was made, and the history."""
        # Not "config": that key says that the set is a `DistillResult`'s.
        made = {"baseline": describe(self.config), "network": describe(self.network)}
        made |= {"run": self.identity, "made_by": "descent"}
        self.result().save(path, more_tensors=self.history.tensors(), more_metadata=made)

    def state(self) -> State:
        """All that a checkpoint holds."""
        good = {f"good/{name}": tensor for name, tensor in self.good.items()}
        return self.tensors() | good | self.history.tensors(), {}

    def load(self, artefact: Artefact) -> None:
        """Go on from a checkpoint, on the CPU bit for bit."""
        self.history = History.from_tensors(artefact.tensors)
        self.restore(artefact.tensors)
        self.good = under("good/", artefact.tensors)
