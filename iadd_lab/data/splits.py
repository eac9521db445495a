"""Labelled images, and how they are parted: stratified, seeded, each class in every part."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from iadd_lab.data.folders import listed
from iadd_lab.errors import require


@dataclass(frozen=True, eq=False)
class Split:
    """Images (count, channels, height, width) uint8 with their labels (count,) int64.

    Of image files it has the `names` (count,), below the set's folder, and the `groups` (count,) where images
    of one group must stay together.
    """

    images: torch.Tensor
    labels: torch.Tensor
    names: np.ndarray | None = None
    groups: np.ndarray | None = None

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
        named = [each if each is None else each[indices] for each in (self.names, self.groups)]
        return Split(self.images[where], self.labels[where], *named)


def hold_out(split: Split, fraction: float, *, seed: list[int], fold: int = 0) -> tuple[Split, Split]:
    """Part `split` by class into what stays and the `fraction` held out, at least one image of a class.

    Where it has groups, whole ones are drawn, till each class has its fraction. Each of the first
    1/`fraction` folds holds out other images or groups, as far as a class has enough of them.
    """
    labels, generator = split.labels.numpy(), np.random.default_rng(seed)
    chosen, (classes, counts) = np.zeros(len(labels), dtype=bool), np.unique(labels, return_counts=True)
    if split.groups is None:
        count = max(round(fraction * len(labels)), len(classes))
        chosen[draw(labels, count, generator, skip=fold * fraction)] = True
    else:
        order = generator.permutation(np.unique(split.groups))
        order = np.roll(order, -round(fold * fraction * len(order)))
        for label in classes[np.argsort(counts, kind="stable")]:  # the rarest has the least choice
            own = labels == label
            for group in order[np.isin(order, split.groups[own])]:
                if chosen[own].mean() < fraction:
                    chosen |= split.groups == group
    return split.take(np.flatnonzero(~chosen)), split.take(np.flatnonzero(chosen))


def group(split: Split, rule: str, folder: Path) -> Split:
    """`split` with the group of each of its image files, such as the patient whom it shows.

    Args:
        split: with names.
        rule: a CSV file in `folder` with rows of a file's name and its group; or a regular expression on the
            names, whose first parenthesis, or whole match, is the group.
        folder: of the data set.

    Raises:
        InputError: a file has no group.
    """
    names = [unicodedata.normalize("NFC", name) for name in split.names]
    if (folder / rule).is_file():
        text = unicodedata.normalize("NFC", (folder / rule).read_text(encoding="utf-8-sig", errors="replace"))
        table = {row[0]: row[1] for row in csv.reader(text.splitlines()) if len(row) > 1}
        found = [table.get(name, "") for name in names]
    else:
        matches = [re.search(rule, name) for name in names]
        found = [match and match[match.re.groups > 0] for match in matches]
    lacking = [name for name, group in zip(names, found, strict=True) if not group]
    lack = f"by groups, {rule!r}, {len(lacking)} images have no group ({listed(lacking)})"
    require(not lacking, f"{lack}: name a CSV file in {folder}, or give a rule for all of their names.")
    return replace(split, groups=np.array(found))


def find_repeats(train: Split, test: Split) -> tuple[np.ndarray, list[str]]:
    """Image files that have equal pixels, within and across the training and the test part.

    Returns:
        the rows of `test` that are training images too, and what must be said.
    """
    import pandas as pd  # takes a second to import, and arrays don't need it

    parts = []
    for split in (train, test):
        pixels = [hashlib.blake2b(image, digest_size=16).digest() for image in split.images.numpy()]
        parts.append(pd.DataFrame({"pixels": pixels, "label": split.labels, "name": split.names}))
    table = pd.concat(parts, keys=["train", "test"], names=["part"]).reset_index()
    same = table.groupby("pixels")
    seen = (table.part == "test") & table.pixels.isin(parts[0].pixels)
    later = table.name != same.name.transform("first")
    pairs = table.name + " = " + same.name.transform("first")
    kinds = {
        f"of {len(test)} test images are the same as training images": seen,
        "images are in several classes": later & (same.label.transform("nunique") > 1),
        "images are the same as another of their class": table.duplicated(["part", "pixels", "label"]),
    }
    said = [f"{rows.sum()} {what} ({listed(pairs[rows])})" for what, rows in kinds.items() if rows.any()]
    if train.groups is not None and (shared := set(train.groups) & set(test.groups)):
        said.append(f"{len(shared)} groups are in the training and in the test part ({listed(shared)})")
    return np.flatnonzero(seen[table.part == "test"]), said


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
