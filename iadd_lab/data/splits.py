"""Labelled images, and how they are parted: stratified, seeded, each class in every part."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from iadd_lab.errors import require


@dataclass(frozen=True, eq=False)
class Split:
    """Images (count, channels, height, width) uint8 with their labels (count,) int64."""

    images: torch.Tensor
    labels: torch.Tensor

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        shapes = images.ndim == 4 and labels.shape == images.shape[:1]
        fits = shapes and (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
        found, counts = (f"{tuple(each.shape)} {each.dtype}" for each in (images, labels))
        needs = "it needs (count, channels, height, width) uint8 and (count,) int64"
        require(fits, f"a split has images {found} and labels {counts}; {needs}.")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> Split:
        """The images at `indices` (count,), in that order, copied."""
        where = torch.from_numpy(indices)
        return Split(self.images[where], self.labels[where])


def hold_out(split: Split, fraction: float, *, seed: list[int], fold: int = 0) -> tuple[Split, Split]:
    """Part `split` by class into what stays and the `fraction` held out, at least one image of a class.

    Each of the first 1/`fraction` folds holds out other images, as far as a class has enough of them.
    """
    labels = split.labels.numpy()
    count = max(round(fraction * len(labels)), len(np.unique(labels)))
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[draw(labels, count, np.random.default_rng(seed), skip=fold * fraction)] = True
    return split.take(np.flatnonzero(~chosen)), split.take(np.flatnonzero(chosen))


def draw(labels: np.ndarray, count: int, generator: np.random.Generator, skip: float = 0.0) -> np.ndarray:
    """Sorted indices (count,) drawn at random in the classes' proportions, at least one of each class.

    `skip` is the share of each class that is passed over at first.

    Own code, because scikit-learn's `train_test_split` leaves rare classes out and refuses parts that are
    smaller than the number of classes. Here a smaller draw is part of a larger one.
    """
    order = generator.permutation(len(labels))
    rank = np.empty(len(labels))  # how far into its own class's queue an image stands, in (0, 1)
    for label in np.unique(labels):
        queue = order[labels[order] == label]
        queue = np.roll(queue, -round(skip * len(queue)))
        rank[queue] = (np.arange(len(queue)) + 0.5) / len(queue)
        rank[queue[0]] = -1.0
    return np.sort(np.argsort(rank, kind="stable")[:count])


def check_classes(title: str, classes: tuple[str, ...], splits: Mapping[str, Split]) -> None:
    """Require an image of every class in each of `splits`, which are keyed by name."""
    counts = {part: torch.bincount(split.labels, minlength=len(classes)) for part, split in splits.items()}
    for label, name in enumerate(classes):
        found = ", ".join(f"{int(count[label])} {part}" for part, count in counts.items())
        complete = all(count[label] > 0 for count in counts.values())
        require(complete, f"{title}: class {name!r} has {found} images; add images, each split needs one.")


def fingerprint_splits(classes: tuple[str, ...], splits: Iterable[Split]) -> str:
    """16 hex digits over the names of the classes and the images and labels of `splits`, in their order."""
    digest = hashlib.sha256(json.dumps(classes).encode())
    for split in splits:
        digest.update(json.dumps(list(split.images.shape)).encode())
        digest.update(split.images.contiguous().numpy().reshape(-1))
        digest.update(split.labels.contiguous().numpy().reshape(-1))
    return digest.hexdigest()[:16]
