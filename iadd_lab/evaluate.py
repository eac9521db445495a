"""The accuracy of fresh networks trained on a distilled set: the one protocol that every method shares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from iadd_lab.augment import AugmentConfig
from iadd_lab.baselines import random_draws
from iadd_lab.compiling import Kernels, choose_kernels
from iadd_lab.data import ImageData
from iadd_lab.distilled import DistilledSet
from iadd_lab.errors import check_number, check_whole, choose, require
from iadd_lab.networks import NetworkConfig, build_network
from iadd_lab.preprocess import Preprocess, preprocess_fingerprint
from iadd_lab.seeds import derive_seed, generator
from iadd_lab.store import describe, load_artefact, restore, save_artefact
from iadd_lab.student import student_loss
from iadd_lab.training import predict, train_together, training_flops

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class EvaluateConfig:
    """How fresh networks are trained and tested; the defaults are the field's (MTT, DC-BENCH).

    Args:
        network: any architecture, the one distilled with or another.
        networks: how many, each with an initialisation of its own.
        epochs: on the distilled set.
        rate: learning rate of SGD, times 0.1 at half time; None takes the set's own α.
        momentum: of SGD, in [0, 1).
        weight_decay: of SGD.
        batch: images per step at most.
        augment: differentiable siamese augmentation of every batch; None takes the data set's own.
        split: "test", or "validation" for choosing anything at all.
        seed: of initialisations, order and augmentation.
    """

    network: NetworkConfig = NetworkConfig()
    networks: int = 5
    epochs: int = 1000
    rate: float | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch: int = 256
    augment: AugmentConfig | None = None
    split: str = "test"
    seed: int = 0

    def __post_init__(self):
        check_whole("networks", self.networks, minimum=1)
        check_whole("epochs", self.epochs, minimum=1)
        if self.rate is not None:
            check_number("rate", self.rate, above=True)
        choose("split", self.split, dict.fromkeys(SPLITS))
        check_number("momentum", self.momentum, maximum=0.999)
        check_number("weight_decay", self.weight_decay)
        check_whole("batch", self.batch, minimum=1)
        check_whole("seed", self.seed, minimum=0)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What the networks got right, from their final states."""

    confusion: torch.Tensor  # (networks, classes, classes) int64: [n, true, predicted] counts
    classes: tuple[str, ...]
    method: str
    config: EvaluateConfig

    @property
    def accuracies(self) -> torch.Tensor:
        """The share of images classified correctly by each network: (networks,) in [0, 1]."""
        correct = self.confusion.diagonal(dim1=1, dim2=2).sum(1)
        return correct.double() / self.confusion.sum((1, 2))

    @property
    def balanced_accuracies(self) -> torch.Tensor:
        """The mean of the classes' recalls for each network: (networks,) in [0, 1]."""
        recalls = self.confusion.diagonal(dim1=1, dim2=2).double() / self.confusion.sum(2)
        return recalls.mean(1)

    def summary(self) -> dict[str, float | int | str]:
        """Means and standard deviations over the networks, in per cent, as a row of a table."""
        return {
            "method": self.method,
            "network": self.config.network.name,
            "split": self.config.split,
            "networks": self.config.networks,
            "accuracy": 100 * self.accuracies.mean().item(),
            "std": 100 * spread(self.accuracies),
            "balanced accuracy": 100 * self.balanced_accuracies.mean().item(),
            "balanced std": 100 * spread(self.balanced_accuracies),
        }

    def __str__(self) -> str:
        row = self.summary()
        return (
            f"{self.method}: {row['accuracy']:.1f} ± {row['std']:.1f} % {row['split']} accuracy, "
            f"{row['balanced accuracy']:.1f} ± {row['balanced std']:.1f} % balanced "
            f"({row['networks']} × {row['network']})"
        )

    def save(self, path: Path) -> Path:
        """Store the evaluation at `path`, atomically."""
        metadata = {"classes": list(self.classes), "method": self.method, "config": describe(self.config)}
        return save_artefact(
            path, kind="evaluation", tensors={"confusion": self.confusion}, metadata=metadata
        )

    @classmethod
    def load(cls, path: Path) -> Evaluation:
        """Read and verify the evaluation at `path`."""
        artefact = load_artefact(path, kind="evaluation")
        stored: dict[str, Any] = artefact.metadata
        return cls(
            confusion=artefact.tensors["confusion"],
            classes=tuple(stored["classes"]),
            method=stored["method"],
            config=restore(EvaluateConfig, stored["config"]),
        )


def spread(values: torch.Tensor) -> float:
    """The sample standard deviation; 0 for a single value."""
    return values.std().item() if len(values) > 1 else 0.0


def evaluate(
    distilled: DistilledSet,
    data: ImageData,
    config: EvaluateConfig,
    *,
    device: torch.device | str = "cpu",
    compile: str = "auto",
    progress: bool = True,
) -> Evaluation:
    """Train fresh networks on `distilled` and test them on real images of `config.split`.

    The real images go through the set's own preprocessing. `compile` is "auto", "always" or "never": see
    `iadd_lab.compiling`. Compiled, small sets train several networks side by side.

    Raises:
        InputError: `data` is not the real set that `distilled` stands for, or the split is unknown.
        DivergenceError: a training loss is not finite.
    """
    return evaluate_each(
        [distilled] * config.networks, data, config, device=device, compile=compile, progress=progress
    )


def evaluate_random(
    data: ImageData,
    preprocess: Preprocess,
    config: EvaluateConfig,
    *,
    ipc: int,
    device: torch.device | str = "cpu",
    compile: str = "auto",
    progress: bool = True,
) -> Evaluation:
    """What random real images are worth: `ipc` per class, another draw for each network.

    They are trained on at `config.rate`, or at the field's 0.01 where that is None.

    Raises:
        InputError: a class has fewer than `ipc` training images.
    """
    rate = config.rate or 0.01
    sets = random_draws(data, preprocess, ipc=ipc, count=config.networks, seed=config.seed, alpha=rate)
    return evaluate_each(sets, data, config, device=device, compile=compile, progress=progress)


def evaluate_each(
    sets: Iterable[DistilledSet],
    data: ImageData,
    config: EvaluateConfig,
    *,
    device: torch.device | str = "cpu",
    compile: str = "auto",
    progress: bool = True,
) -> Evaluation:
    """As `evaluate`, with a set of its own for each network: for methods that are random themselves.

    `config.networks` is not used. The spread then covers the sets' randomness as well.
    """
    sets = list(sets)
    config = replace(config, augment=data.augmentation(config.augment))
    for distilled in sets:
        distilled.check_data(data)
    states = {preprocess_fingerprint(p) for p in {id(s.preprocess): s.preprocess for s in sets}.values()}
    require(len(states) == 1, "the sets have different preprocessing: evaluate them one at a time.")
    split = data.split(config.split)
    real = sets[0].preprocess.apply(split.images.to(device))  # (count, channels, height, width)
    network = _fresh(data, config, 0)
    work = len(sets) * training_flops(network, data, images=len(sets[0].images), epochs=config.epochs)
    kernels = choose_kernels(compile, work=work)
    batch = min(config.batch, len(sets[0].images))
    together = student_loss(network, kernels).together(real, batch=batch)
    confusions = []
    total = len(sets) * config.epochs
    with tqdm(
        total=total, desc=f"evaluate {sets[0].method}", unit="epoch", leave=None, disable=not progress
    ) as bar:
        for first in range(0, len(sets), together):
            numbered = dict(enumerate(sets[first : first + together], start=first))
            for network in _trained(numbered, config, data, torch.device(device), kernels, bar):
                predicted = predict(network, real, kernels=kernels)
                confusions.append(_confusion(split.labels, predicted, len(data.classes)))
    return Evaluation(torch.stack(confusions), data.classes, sets[0].method, config)


def _fresh(data: ImageData, config: EvaluateConfig, index: int) -> nn.Module:
    return build_network(
        config.network,
        channels=data.channels,
        size=data.size,
        classes=len(data.classes),
        seed=derive_seed(config.seed, "evaluation", index),
    )


def _trained(
    sets: Mapping[int, DistilledSet],
    config: EvaluateConfig,
    data: ImageData,
    device: torch.device,
    kernels: Kernels,
    bar: tqdm,
) -> list[nn.Module]:
    """A network for each set, by its number."""
    networks = [_fresh(data, config, index).to(device) for index in sets]
    for _ in train_together(
        networks,
        [distilled.images.to(device) for distilled in sets.values()],
        [distilled.labels.to(device) for distilled in sets.values()],
        epochs=config.epochs,
        batch=config.batch,
        rates=[config.rate or distilled.alpha for distilled in sets.values()],
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        decay_at=max(config.epochs // 2, 1),
        augment=config.augment,
        generators=[generator(config.seed, "evaluation", index, "order") for index in sets],
        kernels=kernels,
    ):
        bar.update(len(sets))
    return networks


def _confusion(true: torch.Tensor, predicted: torch.Tensor, classes: int) -> torch.Tensor:
    flat = torch.bincount(true * classes + predicted, minlength=classes * classes)
    return flat.view(classes, classes)  # [true, predicted]
