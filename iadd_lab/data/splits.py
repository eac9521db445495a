"""Labelled images, and how they are parted: stratified, seeded, each class in every part."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from iadd_lab.data.folders import listed
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


def hold_out(split: Split, fraction: float, *, seed: list[int]) -> tuple[Split, Split]:
    """Part `split` by class into what stays and the `fraction` held out, at least one image of a class."""
    chosen = held_out(split.labels.numpy(), fraction, seed=seed)
    return split.take(np.flatnonzero(~chosen)), split.take(np.flatnonzero(chosen))


def held_out(
    labels: np.ndarray, fraction: float, *, seed: list[int], groups: np.ndarray | None = None
) -> np.ndarray:
    """Which of `labels` (count,) are held out: the `fraction` of every class, at least one image.

    `groups` (count,) keeps images of one number together: then whole groups are drawn, till each class has
    its fraction.
    """
    chosen, generator = np.zeros(len(labels), dtype=bool), np.random.default_rng(seed)
    classes, counts = np.unique(labels, return_counts=True)
    if groups is None:
        chosen[draw(labels, max(round(fraction * len(labels)), len(classes)), generator)] = True
        return chosen
    order = generator.permutation(np.unique(groups))
    for label in classes[np.argsort(counts, kind="stable")]:  # rare ones first: they have the least choice
        own = labels == label
        for group in order[np.isin(order, groups[own])]:
            if chosen[own].mean() < fraction:
                chosen |= groups == group
    return chosen


def groups_of(rule: str, folder: Path, names: Sequence[str]) -> np.ndarray:
    """A number (count,) for the group of each of the files `names`, such as the pictures of one patient.

    Args:
        rule: a CSV file in `folder` with rows of a file (below the folder) and its group; or a regular
            expression on the names, whose first parenthesis, or whole match, is the group.
        folder: of the data set.
        names: of image files below it, with forward slashes.

    Raises:
        InputError: a file has no group.
    """
    if (folder / rule).is_file():
        with (folder / rule).open(newline="", encoding="utf-8-sig") as file:
            table = {row[0]: row[1] for row in csv.reader(file) if len(row) > 1}
        found = [table.get(name, "") for name in names]
    else:
        found = [next(iter(re.findall(rule, name)), "") for name in names]
    lacking = [name for name, group in zip(names, found, strict=True) if not group]
    lack = f"by groups, {rule!r}, {len(lacking)} images have no group ({listed(lacking)})"
    require(not lacking, f"{lack}: name a CSV file in {folder}, or give a rule for all of their names.")
    return np.unique(found, return_inverse=True)[1]


def find_repeats(parts: Sequence[Split], names: Sequence[Sequence[str]]) -> tuple[list[int], list[str]]:
    """Images with equal pixels, within and across the training and the test part, whose files are `names`.

    Returns:
        the rows of the test part that are training images too, and what must be said.
    """
    places: dict[bytes, list[tuple[int, int]]] = defaultdict(list)  # part and row, by pixels
    for part, split in enumerate(parts):
        for row, image in enumerate(split.images.numpy()):
            places[hashlib.blake2b(image, digest_size=16).digest()].append((part, row))
    tested: dict[int, str] = {}
    classes, copies = [], []
    for same in (same for same in places.values() if len(same) > 1):
        own = [(part, int(parts[part].labels[row]), row, names[part][row]) for part, row in same]
        tested |= {row: f"{name} = {own[0][3]}" for part, _, row, name in own if part > own[0][0]}
        firsts = {label: name for _, label, _, name in reversed(own)}
        classes += [" = ".join(firsts.values())] if len(firsts) > 1 else []
        once = {(part, label): name for part, label, _, name in reversed(own)}
        copies += [
            f"{name} = {once[part, label]}" for part, label, _, name in own if once[part, label] != name
        ]
    said = {
        f"of {len(parts[1])} test images are the same as training images": tested.values(),
        "images are in several classes": classes,
        "images are the same as another of their class": copies,
    }
    return [*tested], [f"{len(each)} {what} ({listed(each)})" for what, each in said.items() if each]


def draw(labels: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Sorted indices (count,) drawn at random in the classes' proportions, at least one of each class.

    Own code, because scikit-learn's `train_test_split` leaves rare classes out and refuses parts that are
    smaller than the number of classes. Here a smaller draw is part of a larger one.
    """
    order = generator.permutation(len(labels))
    rank = np.empty(len(labels))  # how far into its own class's queue an image stands, in (0, 1)
    for label in np.unique(labels):
        queue = order[labels[order] == label]
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
