"""Gradient matching: images whose gradients on a network being trained are those of real ones.

Dataset condensation, DC (Zhao, Mopuri, Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021), and
with siamese augmentation DSA (Zhao & Bilen, ICML 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import wraps

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from iadd_lab.baselines.descent import DescentConfig, Pair, descend
from iadd_lab.data.distilled import DistilledSet
from iadd_lab.data.sets import ImageData
from iadd_lab.errors import check_number, check_whole
from iadd_lab.training.sgd import train

# Rows of gradients with a smaller norm count for less: their direction is rounding.
_SMALL = 1e-6


@dataclass(frozen=True)
class GradientMatchingConfig(DescentConfig):
    """One run of DC or DSA, by default at the papers' rates; images start from real ones, as in DSA.

    Args:
        ipc: distilled images per class.
        iterations: each with a freshly initialised network.
        image_rate: learning rate of the images.
        momentum: of SGD on the images, in [0, 1).
        real_batch: real images of a class per match, at most; all where there are fewer.
        initial_images: "real" (drawn from the training images) or "noise".
        augment: siamese augmentation, one draw for the real and the distilled batch of a class; None takes
            the data set's own (DSA), one without operations is DC.
        seed: of initial images, networks, batches and augmentation.
        matches_per_network: steps of the images in an iteration; None takes the papers' by IPC: 1 at 1, 10 at
            10, 50 at 50 and more.
        network_steps: epochs of the network on the distilled images between two matches, one step each unless
            they fill more than one batch; None takes the papers' by IPC: 1 at 1, 50 at 10, 10 at 50 and more.
        network_rate: learning rate of those steps.
        network_batch: distilled images per step at most.
    """

    matches_per_network: int | None = None
    network_steps: int | None = None
    network_rate: float = 0.01
    network_batch: int = 256

    def __post_init__(self):
        super().__post_init__()
        for name in ("matches_per_network", "network_steps"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), minimum=1)
        check_number("network_rate", self.network_rate, above=True)
        check_whole("network_batch", self.network_batch, minimum=1)

    @property
    def method(self) -> str:
        """The name of the method in tables: "gradient matching" is DC, "gradient matching, siamese" DSA."""
        siamese = self.augment is None or self.augment.operations
        return "gradient matching, siamese" if siamese else "gradient matching"

    def resolved(self, data: ImageData) -> GradientMatchingConfig:
        """Nothing left to defaults: the augmentation of `data`, and the papers' loops by IPC.

        Between the papers' 1, 10 and 50 images per class there are as many matches as images, and the
        product of matches and network steps stays 500, but for the 50 steps that are the most.
        """
        matches = min(self.ipc, 50)
        steps = 1 if self.ipc == 1 else min(50, 500 // matches)
        loops = {"matches_per_network": self.matches_per_network or matches}
        loops["network_steps"] = self.network_steps or steps
        return replace(super().resolved(data), **loops)

    def distance(self, network: nn.Module, pair: Pair) -> Tensor:
        """How far the gradients on a class's distilled batch are from those on its real one: a scalar."""
        real = weight_gradients(network, pair.real, pair.label)
        distilled = weight_gradients(network, pair.distilled, pair.label, create_graph=True)
        return gradient_distance(real, distilled)

    def between(self, network: nn.Module, images: Tensor, labels: Tensor, random: Generator) -> None:
        """Train the network on the distilled images."""
        options = {"batch": self.network_batch, "rates": [self.network_rate], "augment": self.augment}
        train(network, images, labels, epochs=self.network_steps, generators=[random], **options)


@wraps(descend, assigned=())
def match_gradients(*given: object, **options: object) -> DistilledSet:
    """Images on which `network`, on its way from a fresh initialisation, has the gradients of real ones.

    Args: those of `iadd_lab.baselines.descent.descend`, with a `GradientMatchingConfig`.
    """
    return descend(*given, **options)


def weight_gradients(
    network: nn.Module, images: Tensor, label: int, *, create_graph: bool = False
) -> tuple[Tensor, ...]:
    """The gradients of the mean cross-entropy on images of class `label`, one per weight of ≥ 2 dimensions.

    Biases and the parameters of norms, which have one dimension, are left out as in the paper.
    """
    weights = [parameter for parameter in network.parameters() if parameter.ndim >= 2]
    labels = torch.full((len(images),), label, device=images.device)
    loss = functional.cross_entropy(network(images), labels)
    return torch.autograd.grad(loss, weights, create_graph=create_graph)


def gradient_distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """The sum over layers and output rows of 1 − cosine between the rows: a scalar, at most 2 per row.

    A row holds what leads to one output of the layer: gradients (outputs, inputs, ...) are flattened to
    (outputs, rest). A row that is zero in both counts nothing, in one of them a half.
    """
    distances = []
    for pair in zip(first, second, strict=True):
        one, other = (functional.normalize(layer.flatten(1), dim=1, eps=_SMALL) for layer in pair)
        # Half the squared distance of the directions, which does not lose digits where they agree.
        distances.append((0.5 * (one - other).square().sum(1)).sum())  # of (outputs,)
    return sum(distances)
