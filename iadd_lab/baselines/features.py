"""Distribution matching, DM: images whose mean features are those of real ones, in any random network.

After Zhao & Bilen, "Dataset Condensation with Distribution Matching" (WACV 2023).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from iadd_lab.baselines.descent import DescentConfig, Pair, descend
from iadd_lab.data.distilled import DistilledSet
from iadd_lab.data.preprocess import Preprocess
from iadd_lab.data.sets import ImageData
from iadd_lab.device import Execution
from iadd_lab.distillation.history import History
from iadd_lab.training.networks import NetworkConfig


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


def match_distributions(
    data: ImageData,
    preprocess: Preprocess,
    network: NetworkConfig,
    config: DistributionMatchingConfig,
    *,
    folder: Path | None = None,
    how: Execution | None = None,
    on_iteration: Callable[[int, History], None] | None = None,
    **options: object,
) -> DistilledSet:
    """Images whose mean features, class by class, are those of real ones in freshly initialised networks.

    Args:
        data: the real set; only its training images are used.
        preprocess: fitted on them.
        network: the architecture whose features, those that its linear layer sees, are matched.
        config: everything else that the result depends on.
        folder: where `distilled.safetensors`, with the history, and the checkpoint go. A finished run is read
            from there, an interrupted one goes on, on the CPU bit for bit. None keeps nothing.
        how: where it runs, and what is shown and kept meanwhile.
        on_iteration: called with (iteration, history) after every iteration.
        options: fields of `Execution` by name, as in `device="cpu"`.

    Raises:
        InputError: data, network and config do not fit together, or `folder` holds another run.
        DivergenceError: the loss is not finite. The error's `result` is the set with the last good images.
    """
    config = replace(config, augment=data.augmentation(config.augment))
    given = {"folder": folder, "how": Execution.of(how, options), "on_iteration": on_iteration}
    return descend(data, preprocess, network, config, pair_distance, **given)


def pair_distance(network: nn.Module, pair: Pair) -> torch.Tensor:
    """The squared distance between the mean features of a class's real and distilled batch: a scalar."""
    with torch.no_grad():
        real = network.embed(pair.real).mean(0)  # (features,)
    return (real - network.embed(pair.distilled).mean(0)).square().sum()
