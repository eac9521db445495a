"""Distribution matching, DM: images whose mean features are those of real ones, in any random network.

After Zhao & Bilen, "Dataset Condensation with Distribution Matching" (WACV 2023).
"""

from dataclasses import dataclass
from functools import wraps
from typing import ClassVar

import torch
from torch import nn

from iadd_lab.baselines.descent import DescentConfig, Pair, descend
from iadd_lab.data.distilled import DistilledSet
from iadd_lab.training.networks import embed


@dataclass(frozen=True)
class DistributionMatchingConfig(DescentConfig):
    """One run of DM; the defaults are the paper's.

    Args:
        ipc: distilled images per class.
        iterations: each with a freshly initialised network and one step of the images.
        image_rate: learning rate of the images.
        momentum: of SGD on the images, in [0, 1).
        real_batch: real images of a class per iteration, at most; all where there are fewer.
        initial_images: "real" (drawn from the training images) or "noise".
        augment: siamese augmentation, one draw for the real and the distilled batch of a class; None takes
            the data set's own.
        seed: of initial images, networks, batches and augmentation.
    """

    iterations: int = 20000
    image_rate: float = 1.0
    method: ClassVar[str] = "distribution matching"  # its name in tables

    def distance(self, network: nn.Module, pair: Pair) -> torch.Tensor:
        """The squared distance between the mean features of a class's real and distilled batch: a scalar."""
        with torch.no_grad():
            real = embed(network, pair.real).mean(0)  # (features,)
        return (real - embed(network, pair.distilled).mean(0)).square().sum()


@wraps(descend, assigned=())
def match_distributions(*given: object, **options: object) -> DistilledSet:
    """Images whose mean features, class by class, are those of real ones in freshly initialised networks.

    Args: those of `iadd_lab.baselines.descent.descend`, with a `DistributionMatchingConfig`. The features are
    those that the linear layer of `network` sees.
    """
    return descend(*given, **options)
