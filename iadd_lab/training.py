"""Training one network by plain SGD, and asking it for predictions: the one loop that all others use."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional

from iadd_lab.augment import AugmentConfig, draw
from iadd_lab.errors import DivergenceError
from iadd_lab.memory import reuse_freed_memory


def train(
    network: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    epochs: int,
    batch: int,
    rate: float,
    augment: AugmentConfig,
    generator: torch.Generator,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    decay_at: int | None = None,
) -> Iterator[float]:
    """Train `network` in place; yields the mean training loss after every epoch.

    Args:
        network: on the device of `images`.
        images: preprocessed, (count, channels, height, width).
        labels: (count,) int64.
        epochs: passes over the images, each in a new random order.
        batch: images per step; the last batch of an epoch may be smaller.
        rate: learning rate of SGD, times 0.1 from epoch `decay_at` on.
        augment: drawn anew for every batch.
        generator: a CPU generator for order and augmentation.

    Raises:
        DivergenceError: the loss of an epoch is not finite.
    """
    reuse_freed_memory()
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=momentum, weight_decay=weight_decay)
    height, width = images.shape[2:]
    for epoch in range(epochs):
        if epoch == decay_at:
            optimizer.param_groups[0]["lr"] = rate * 0.1
        total = torch.zeros((), device=images.device)
        for rows in torch.randperm(len(images), generator=generator).split(batch):
            rows = rows.to(images.device)
            augmentation = draw(augment, batch=len(rows), height=height, width=width, generator=generator)
            loss = functional.cross_entropy(network(augmentation(images[rows])), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(rows)
        mean = total.item() / len(images)
        if not torch.isfinite(total):
            raise DivergenceError(
                f"the training loss is {mean} in epoch {epoch + 1}: lower the rate {rate:g}."
            )
        yield mean


@torch.no_grad()
def predict(network: nn.Module, images: torch.Tensor, *, batch: int = 1024) -> torch.Tensor:
    """The predicted class of every image: (count,) int64 on the CPU."""
    return torch.cat([network(chunk).argmax(1) for chunk in images.split(batch)]).cpu()
