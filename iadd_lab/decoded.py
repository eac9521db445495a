"""Trees of image files, decoded by a pool of threads and kept in a cache, which may fail without harm."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from tqdm.auto import tqdm

from iadd_lab.errors import InputError, require
from iadd_lab.pixels import decode_file
from iadd_lab.splits import Split
from iadd_lab.store import fingerprint, load_artefact, save_artefact

logger = logging.getLogger(__name__)

KIND = "decoded images"
CACHE_VERSION = 1  # raise it when decoding changes, so that older caches are passed over
FILES_PER_TASK = 64  # a thread's task: one tiny JPEG costs less than handing it over


class ImageFile(NamedTuple):
    """One image file: where it is, its class, and what changes when it does."""

    path: str
    label: int
    size: int
    modified: int


@dataclass(frozen=True)
class Tree:
    """The files of a set's parts ("train" and "test", or "all" if it has no split of its own)."""

    classes: tuple[str, ...]
    parts: dict[str, list[ImageFile]]

    @property
    def files(self) -> list[ImageFile]:
        """Those of all parts, in order."""
        return [file for part in self.parts.values() for file in part]


def decode_tree(
    tree: Tree, *, name: str, size: int, channels: int, cache: Path, progress: bool
) -> dict[str, Split]:
    """The parts of `tree`, decoded, or from the folder `cache` if that has them as the files are now.

    Args:
        tree: the files.
        name: of the data set, for the bar and the name of the cached file.
        size, channels: of the decoded images.
        cache: where decoded images are kept; one that can't be read or written is only logged.
        progress: show a bar while decoding.

    Raises:
        InputError: a file can't be decoded.
    """
    variant = f"{name}-{channels}x{size}x{size}"
    key = fingerprint(CACHE_VERSION, variant, tree.classes, tree.parts)  # paths, sizes and times included
    path = cache / f"{variant}-{key}.safetensors"
    images = _from_cache(path, key)
    if images is None:
        bar = tqdm(total=len(tree.files), desc=name, unit="image", disable=not progress)
        lengths = [len(files) for files in tree.parts.values()]
        decoded = _decode_files([file.path for file in tree.files], size, channels, bar)
        images = dict(zip(tree.parts, decoded.split(lengths), strict=True))
        _to_cache(path, key, images)
    return {
        part: Split(images[part], torch.tensor([file.label for file in files], dtype=torch.int64))
        for part, files in tree.parts.items()
    }


def _decode_files(paths: list[str], size: int, channels: int, bar: tqdm) -> torch.Tensor:
    """All files decoded, (count, channels, size, size) uint8, by a pool of threads."""
    images = np.empty((len(paths), channels, size, size), dtype=np.uint8)

    def decode(start: int) -> int:
        stop = min(start + FILES_PER_TASK, len(paths))
        for index in range(start, stop):
            images[index] = decode_file(paths[index], size, channels)
        return stop - start

    pool = ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1))
    with bar:
        try:
            for count in pool.map(decode, range(0, len(paths), FILES_PER_TASK)):
                bar.update(count)
        finally:  # after the first bad file, don't decode the rest before saying so
            pool.shutdown(cancel_futures=True)
    return torch.from_numpy(images)


def _from_cache(path: Path, key: str) -> dict[str, torch.Tensor] | None:
    """The images cached under `key` by part, unharmed; else None.

    They stay mapped: whoever writes the file anew puts another in its place and leaves the mapped one be.
    """
    try:
        if not path.is_file():
            return None
        cached = load_artefact(path, kind=KIND)
        require(cached.metadata == {"key": key}, f"{path} holds other images: delete it.")
    except (InputError, OSError) as error:
        logger.warning("cached images will be decoded anew (%s)", error)
        return None
    return cached.tensors


def _to_cache(path: Path, key: str, images: dict[str, torch.Tensor]) -> None:
    try:
        save_artefact(path, kind=KIND, tensors=images, metadata={"key": key})
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
        logger.warning("decoded images can't be kept in %s (%s)", path.parent, error)
