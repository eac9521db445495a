"""Training networks by plain SGD, and asking them for predictions: the one loop that all others use."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from iadd_lab.data.augment import AugmentConfig, draw_augmentation
from iadd_lab.data.preprocess import Preprocessed
from iadd_lab.data.sets import ImageData
from iadd_lab.device import to_device
from iadd_lab.errors import DivergenceError
from iadd_lab.seeds import derive_seed, seeded
from iadd_lab.training.fast.compiling import PLAIN, Kernels, flops
from iadd_lab.training.fast.losses import student_loss
from iadd_lab.training.fast.memory import reuse_freed_memory
from iadd_lab.training.networks import is_plain

_FEW = 256  # images at once, for networks whose feature maps may be large

_LARGEST_MAP = 2**27  # bytes


def train(network: nn.Module, images: Tensor, labels: Tensor, *, epochs: int, **options: Any) -> list[float]:
    """Train `network` in place; returns the mean training loss of every epoch.

    Args:
        network: on the device of `images`.
        images: preprocessed, (count, channels, height, width).
        labels: (count,) int64, or probabilities (count, classes).
        epochs: passes over the images.
        options: those of `Training`, among them one rate and one generator.

    Raises:
        DivergenceError: the loss of an epoch is not finite.
    """
    training = Training([network], [images], [labels], **options)
    return [training.advance()[0] for _ in range(epochs)]


@dataclass(eq=False, repr=False)
class Training:
    """Networks of one architecture on their way, side by side; each epoch leaves them up to date.

    None knows of the others: with plain kernels each ends with the very bits that it has when trained alone.

    Args:
        networks: on the device of their images; trained in place.
        images: a set for each network, all of one shape (count, channels, height, width), preprocessed or
            `Preprocessed`.
        labels: (count,) int64 each, or probabilities (count, classes).
        batch: images per step and network; the last batch of an epoch may be smaller.
        rates: learning rates of SGD, times 0.1 from epoch `decay_at` on.
        augment: drawn anew for every batch.
        generators: a CPU generator for each network's order and augmentation.
        momentum: of SGD.
        weight_decay: of SGD.
        decay_at: see `rates`; None never lowers them.
        warm_up: so many epochs at first, the rates grow in equal steps.
        kernels: see `iadd_lab.training.fast.compiling`.
    """

    networks: Sequence[nn.Module]
    images: Sequence[Tensor | Preprocessed]
    labels: Sequence[Tensor]
    _: KW_ONLY
    batch: int
    rates: Sequence[float]
    augment: AugmentConfig
    generators: Sequence[Generator]
    momentum: float = 0.0
    weight_decay: float = 0.0
    decay_at: int | None = None
    warm_up: int = 0
    kernels: Kernels = PLAIN

    def __post_init__(self):
        reuse_freed_memory()
        self.epoch = 0
        self.loss = student_loss(self.networks[0], self.kernels)
        self.parameters = [list(network.parameters()) for network in self.networks]
        if self.loss.joint:
            # All networks as one tensor (networks, P), whose rows are the optimiser's parameters.
            self.flats = torch.stack([self.loss.layout.flatten(part).detach() for part in self.parameters])
            self.parameters = [[row.requires_grad_()] for row in self.flats.unbind()]
        options = {"momentum": self.momentum, "weight_decay": self.weight_decay}
        groups = [
            {"params": part, "lr": rate} for part, rate in zip(self.parameters, self.rates, strict=True)
        ]
        # Fused is one pass over memory instead of three, with other rounding.
        self.optimizer = torch.optim.SGD(groups, lr=0.0, **options, fused=self.loss.joint or None)

    def advance(self) -> list[float]:
        """One pass over the images, in a new random order; returns each network's mean loss.

        Raises:
            DivergenceError: a mean is not finite.
        """
        decayed = self.decay_at is not None and self.epoch >= self.decay_at
        share = 0.1 if decayed else min((self.epoch + 1) / max(self.warm_up, 1), 1.0)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * share
        count = len(self.images[0])
        totals = torch.zeros(len(self.networks), device=self.images[0].device)
        orders = [self._batches(torch.randperm(count, generator=each)) for each in self.generators]
        for step, chosen in enumerate(zip(*orders, strict=True)):
            batches = [self._batch(number, rows) for number, rows in enumerate(chosen)]
            losses = self._differentiate(*zip(*batches, strict=True), step=step)
            self.optimizer.step()
            totals += losses * len(chosen[0])
        means = (totals / count).tolist()
        for mean, rate in zip(means, self.rates, strict=True):
            if not math.isfinite(mean):
                sentence = f"the training loss is {mean} in epoch {self.epoch + 1}: lower the rate {rate:g}."
                raise DivergenceError(sentence)
        self._update_networks()
        self.epoch += 1
        return means

    def _batches(self, order: Tensor) -> list[Tensor]:
        """The rows of each batch. Batch norm knows no variance of one image: it joins the batch before."""
        *first, last = order.split(self.batch)
        alone = len(last) == 1 and first and not self.loss.plain
        return [*first[:-1], torch.cat([first[-1], last])] if alone else [*first, last]

    def _batch(self, number: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The augmented images at `rows` of a network's set, and their labels."""
        images, generator = self.images[number], self.generators[number]
        size = dict(zip(("height", "width"), images.shape[2:], strict=True))
        augmentation = draw_augmentation(self.augment, batch=len(rows), **size, generator=generator)
        rows = to_device(rows, images.device)
        return augmentation(images[rows]), self.labels[number][rows]

    def _differentiate(self, images: Sequence[Tensor], labels: Sequence[Tensor], *, step: int) -> Tensor:
        """The losses of a batch of each network, (networks,); the parameters have their gradients then."""
        if self.loss.joint:
            losses, slopes = self.loss.slopes(self.flats, torch.stack(images), torch.stack(labels))
            for (row,), slope in zip(self.parameters, slopes, strict=True):
                row.grad = slope
            return losses
        losses = []
        for number, network in enumerate(self.networks):
            network.train()
            with self._drawing(number, step, images[number].device):
                loss = functional.cross_entropy(network(images[number]), labels[number])
            network.zero_grad()
            loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses)

    def _drawing(self, number: int, step: int, device: torch.device) -> AbstractContextManager:
        """What layers that draw at random, as dropout does, draw from: a stream of its own for each step."""
        if self.loss.plain:
            return nullcontext()
        own = self.generators[number].initial_seed()
        return seeded(derive_seed(own, "layers", self.epoch, step), device)

    @torch.no_grad()
    def _update_networks(self) -> None:
        """Copy what was trained into the networks, where they were not trained themselves."""
        if self.loss.joint:
            for network, flat in zip(self.networks, self.flats, strict=True):
                _fill(list(network.parameters()), flat)

    def state(self) -> dict[str, Tensor]:
        """Copies of all that an epoch changes; `restore` continues from it bit for bit on the CPU."""
        state = {"parameters": _rows(self.parameters), "epoch": torch.tensor(self.epoch)}
        state["generators"] = torch.stack([each.get_state() for each in self.generators])
        buffers = self.optimizer.state
        moving = [[buffers[p].get("momentum_buffer") for p in part] for part in self.parameters]
        # There is none before the first step, without momentum, or of parameters that have no gradient.
        if any(each is not None for part in moving for each in part):
            pairs = [zip(*each, strict=True) for each in zip(self.parameters, moving, strict=True)]
            state["momentum"] = _rows(
                [[torch.zeros_like(p) if m is None else m for p, m in own] for own in pairs]
            )
        return state | {f"buffers/{name}": tensor.cpu().clone() for name, tensor in self._buffers()}

    def _buffers(self) -> Iterator[tuple[str, Tensor]]:
        """What the networks keep besides parameters, as the statistics of batch norm; with their numbers."""
        for number, network in enumerate(self.networks):
            for name, tensor in network.named_buffers():
                yield f"{number}/{name}", tensor

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned, for networks and options that are the same."""
        self.epoch = int(state["epoch"])
        for each, stored in zip(self.generators, state["generators"], strict=True):
            each.set_state(stored.clone())  # PyTorch misreads a row of a larger tensor
        for part, row in zip(self.parameters, state["parameters"], strict=True):
            _fill(part, row)
        for part, row in zip(self.parameters, state.get("momentum", ()), strict=False):
            empty = ((self.optimizer.state[p], torch.empty_like(p)) for p in part)
            _fill([own.setdefault("momentum_buffer", buffer) for own, buffer in empty], row)
        for name, tensor in self._buffers():
            tensor.copy_(state[f"buffers/{name}"])
        self._update_networks()


def _rows(parts: Sequence[Sequence[Tensor]]) -> Tensor:
    """The tensors of every network as one row each, (networks, P), on the CPU."""
    return torch.stack([torch.cat([t.detach().flatten() for t in part]) for part in parts]).cpu()


def _fill(tensors: Sequence[Tensor], row: Tensor) -> None:
    """Copy a row (P,) into the tensors of one network."""
    for tensor, values in zip(tensors, row.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(values.view_as(tensor))


def training_flops(network: nn.Module, data: ImageData, *, images: int, epochs: int) -> float:
    """Floating-point operations of training on so many images of `data` for so many epochs."""
    if not is_plain(network):
        return 0.0  # nothing is compiled for these
    # One pass forward, two back.
    return 3.0 * images * epochs * flops(network, channels=data.channels, size=data.size)


def predict(
    network: nn.Module,
    images: Tensor | Preprocessed,
    *,
    batch: int = 1024,
    kernels: Kernels = PLAIN,
) -> Tensor:
    """The predicted class of every image, in batches of at most `batch`: (count,) int64 on the CPU."""
    if images.device.type == "cpu":
        # A feature map of the first convolution, of the whole batch, is to stay small.
        width = next((each.shape[0] for each in network.parameters() if each.ndim == 4), 1)
        batch = max(min(_LARGEST_MAP // (4 * width * math.prod(images.shape[2:])), batch), 1)
    if is_plain(network):
        loss = student_loss(network, kernels)
        return loss.predict(loss.layout.flatten(network.parameters()).detach(), images, batch=batch)
    was_training, parts = network.training, images.split(min(batch, _FEW))
    network.eval()
    with torch.no_grad():
        found = [network(part.clone()).argmax(1) for part in parts]  # in which it may write
    network.train(was_training)
    return torch.cat(found).cpu()
