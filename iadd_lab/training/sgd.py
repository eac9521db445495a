"""Training networks by plain SGD, and asking them for predictions: the one loop that all others use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional

from iadd_lab.data.augment import AugmentConfig, draw_augmentation
from iadd_lab.data.sets import ImageData
from iadd_lab.device import to_device
from iadd_lab.errors import DivergenceError
from iadd_lab.training.fast.compiling import PLAIN, Kernels, flops
from iadd_lab.training.fast.losses import student_loss
from iadd_lab.training.fast.memory import reuse_freed_memory
from iadd_lab.training.student import StudentLoss


def train(
    network: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    rate: float,
    generator: torch.Generator,
    **options,
) -> Iterator[float]:
    """Train `network` in place; yields the mean training loss after every epoch.

    Args:
        network: on the device of `images`.
        images: preprocessed, (count, channels, height, width).
        labels: (count,) int64.
        rate: learning rate of SGD, times 0.1 from epoch `decay_at` on.
        generator: a CPU generator for order and augmentation.
        options: as of `train_together` and `Training`.

    Raises:
        DivergenceError: the loss of an epoch is not finite.
    """
    for losses in train_together(
        [network], [images], [labels], rates=[rate], generators=[generator], **options
    ):
        yield losses[0]


def train_together(
    networks: Sequence[nn.Module],
    images: Sequence[torch.Tensor],
    labels: Sequence[torch.Tensor],
    *,
    epochs: int,
    **options,
) -> Iterator[list[float]]:
    """Train networks of one architecture side by side, in place; yields their mean losses after every epoch.

    Args:
        networks, images, labels, options: as of `Training`.
        epochs: passes over the images.

    Raises:
        DivergenceError: the loss of an epoch is not finite.
    """
    training = Training(networks, images, labels, **options)
    for _ in range(epochs):
        yield training.advance()


class Training:
    """Networks of one architecture on their way, side by side; each epoch leaves them up to date.

    None knows of the others: with plain kernels each ends with the very bits that it has when trained alone.

    Args:
        networks: on the device of their images; trained in place.
        images: a set for each network, all of one shape (count, channels, height, width), preprocessed.
        labels: (count,) int64 each.
        batch: images per step and network; the last batch of an epoch may be smaller.
        rates: learning rates of SGD, times 0.1 from epoch `decay_at` on.
        augment: drawn anew for every batch.
        generators: a CPU generator for each network's order and augmentation.
        momentum: of SGD.
        weight_decay: of SGD.
        decay_at: see `rates`; None never lowers them.
        kernels: see `iadd_lab.training.fast.compiling`.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        images: Sequence[torch.Tensor],
        labels: Sequence[torch.Tensor],
        *,
        batch: int,
        rates: Sequence[float],
        augment: AugmentConfig,
        generators: Sequence[torch.Generator],
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        decay_at: int | None = None,
        kernels: Kernels = PLAIN,
    ):
        reuse_freed_memory()
        self.networks, self.images, self.labels = networks, images, labels
        self.batch, self.rates, self.augment = batch, rates, augment
        self.generators, self.decay_at, self.epoch = generators, decay_at, 0
        loss = student_loss(networks[0], kernels)
        self.trained = (_Jointly if loss.joint else _OneByOne)(networks, loss)
        self.optimizer = torch.optim.SGD(
            [{"params": part, "lr": rate} for part, rate in zip(self.trained.parameters, rates, strict=True)],
            lr=0.0,
            momentum=momentum,
            weight_decay=weight_decay,
            # One pass over memory instead of three, with other rounding.
            fused=isinstance(self.trained, _Jointly) or None,
        )

    def advance(self) -> list[float]:
        """One pass over the images, in a new random order; returns each network's mean loss.

        Raises:
            DivergenceError: a mean is not finite.
        """
        decayed = self.decay_at is not None and self.epoch >= self.decay_at
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * 0.1 if decayed else rate
        count = len(self.images[0])
        totals = torch.zeros(len(self.networks), device=self.images[0].device)
        orders = [torch.randperm(count, generator=each).split(self.batch) for each in self.generators]
        for chosen in zip(*orders, strict=True):
            given = zip(self.images, self.labels, chosen, self.generators, strict=True)
            batches = [_batch(*parts, self.augment) for parts in given]
            losses = self.trained.differentiate(*zip(*batches, strict=True))
            self.optimizer.step()
            totals += losses * len(chosen[0])
        means = (totals / count).tolist()
        _check(means, self.epoch, self.rates)
        self.trained.put_back()
        self.epoch += 1
        return means

    def state(self) -> dict[str, torch.Tensor]:
        """Copies of all that an epoch changes; `restore` continues from it bit for bit on the CPU."""
        state = {
            "parameters": self._joined(list),
            "generators": torch.stack([each.get_state() for each in self.generators]),
            "epoch": torch.tensor(self.epoch),
        }
        if self.optimizer.state:  # filled by the first step
            buffers = self.optimizer.state
            moving = [buffers[p].get("momentum_buffer") for part in self.trained.parameters for p in part]
            if moving[0] is not None:
                state["momentum"] = self._joined(lambda part: [buffers[p]["momentum_buffer"] for p in part])
        return state

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `state` returned, for networks and options that are the same."""
        self.epoch = int(state["epoch"])
        for each, stored in zip(self.generators, state["generators"], strict=True):
            each.set_state(stored.clone())  # PyTorch misreads a row of a larger tensor
        with torch.no_grad():
            for part, row in zip(self.trained.parameters, state["parameters"], strict=True):
                for parameter, values in _pieces(part, row):
                    parameter.copy_(values)
        for part, row in zip(self.trained.parameters, state.get("momentum", ()), strict=False):
            for parameter, values in _pieces(part, row):
                self.optimizer.state[parameter]["momentum_buffer"] = values.to(parameter.device).clone()
        self.trained.put_back()

    def _joined(self, tensors: Callable[[list[torch.Tensor]], list[torch.Tensor]]) -> torch.Tensor:
        """The tensors of every network's parameters as one row each, (networks, P), on the CPU."""
        rows = (torch.cat([t.detach().flatten() for t in tensors(part)]) for part in self.trained.parameters)
        return torch.stack(list(rows)).cpu()


def _pieces(
    parameters: Sequence[torch.Tensor], row: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The parameters of one network, each with its piece of a row (P,)."""
    pieces = row.split([parameter.numel() for parameter in parameters])
    return ((p, piece.view_as(p)) for p, piece in zip(parameters, pieces, strict=True))


class _OneByOne:
    """Networks differentiated as they are, by autograd."""

    def __init__(self, networks: Sequence[nn.Module], loss: StudentLoss):
        self.networks = networks
        self.parameters = [list(network.parameters()) for network in networks]

    def differentiate(self, images: Sequence[torch.Tensor], labels: Sequence[torch.Tensor]) -> torch.Tensor:
        """The losses, (networks,); the parameters have their gradients then."""
        losses = []
        for network, batch, targets in zip(self.networks, images, labels, strict=True):
            loss = functional.cross_entropy(network(batch), targets)
            network.zero_grad()
            loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses)

    def put_back(self) -> None:
        """Bring the networks up to date: they are."""


class _Jointly:
    """Networks as the rows of one tensor (networks, P), differentiated at once."""

    def __init__(self, networks: Sequence[nn.Module], loss: StudentLoss):
        self.networks, self.loss = networks, loss
        self.flats = torch.stack([loss.layout.flatten(network.parameters()).detach() for network in networks])
        # Views of the one tensor, each a parameter of its own for the optimiser.
        self.parameters = [[row.requires_grad_()] for row in self.flats.unbind()]

    def differentiate(self, images: Sequence[torch.Tensor], labels: Sequence[torch.Tensor]) -> torch.Tensor:
        """As `_OneByOne.differentiate`."""
        losses, slopes = self.loss.slopes(self.flats, torch.stack(images), torch.stack(labels))
        for (row,), slope in zip(self.parameters, slopes, strict=True):
            row.grad = slope
        return losses

    @torch.no_grad()
    def put_back(self) -> None:
        """Bring the networks up to date."""
        for network, flat in zip(self.networks, self.flats, strict=True):
            values = self.loss.layout.split(flat).values()
            for parameter, value in zip(network.parameters(), values, strict=True):
                parameter.copy_(value)


def _batch(
    images: torch.Tensor,
    labels: torch.Tensor,
    rows: torch.Tensor,
    generator: torch.Generator,
    augment: AugmentConfig,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The augmented images at `rows`, and their labels."""
    height, width = images.shape[2:]
    augmentation = draw_augmentation(
        augment, batch=len(rows), height=height, width=width, generator=generator
    )
    rows = to_device(rows, images.device)
    return augmentation(images[rows]), labels[rows]


def _check(losses: list[float], epoch: int, rates: Sequence[float]) -> None:
    for mean, rate in zip(losses, rates, strict=True):
        if not torch.isfinite(torch.tensor(mean)):
            raise DivergenceError(
                f"the training loss is {mean} in epoch {epoch + 1}: lower the rate {rate:g}."
            )


def training_flops(network: nn.Module, data: ImageData, *, images: int, epochs: int) -> float:
    """Floating-point operations of training on so many images of `data` for so many epochs."""
    # One pass forward, two back.
    return 3.0 * images * epochs * flops(network, channels=data.channels, size=data.size)


def predict(
    network: nn.Module, images: torch.Tensor, *, batch: int = 1024, kernels: Kernels = PLAIN
) -> torch.Tensor:
    """The predicted class of every image: (count,) int64 on the CPU."""
    loss = student_loss(network, kernels)
    return loss.predict(loss.layout.flatten(network.parameters()).detach(), images, batch=batch)
