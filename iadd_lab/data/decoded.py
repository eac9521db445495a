"""Trees of image files, decoded by a pool of threads and kept in a cache, which may fail without harm."""

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from iadd_lab.data.folders import LeftOut
from iadd_lab.data.pixels import MoreBits, decode_file
from iadd_lab.data.splits import Split
from iadd_lab.errors import InputError, require
from iadd_lab.store.artefacts import load_artefact, save_artefact, unpacking
from iadd_lab.store.configs import fingerprint

logger = logging.getLogger(__name__)

KIND = "decoded images"
CACHE_VERSION = 2  # raise it when decoding changes, so that older caches are passed over
FILES_PER_TASK = 64  # a thread's task: one tiny JPEG costs less than handing it over


@dataclass(frozen=True)
class Request:
    """What a reader is asked for.

    `config` is the `DataConfig`, `channels` None means the files' own, `cache` is for decoded images.
    """

    config: Any
    title: str
    folder: Path
    cache: Path
    size: int
    channels: int | None
    progress: bool


class ImageFile(NamedTuple):
    """One image file: where it is, its class, and what changes when it does."""

    path: str
    label: int
    size: int
    modified: int


class Decoded(NamedTuple):
    """What `decode_tree` returns: the parts of the tree, why which paths were skipped, and which value is
    white in pictures of more than 8 bits, if there are any.
    """

    parts: dict[str, Split]
    skipped: dict[str, str]
    white: int | None


@dataclass(frozen=True)
class Tree:
    """The files of a set's parts ("train" and "test", or "all" if it has no such split), and what is none."""

    left: LeftOut
    classes: tuple[str, ...]
    parts: dict[str, list[ImageFile]]

    @property
    def files(self) -> list[ImageFile]:
        """Those of all parts, in order."""
        return [file for part in self.parts.values() for file in part]


def check_room(request: Request, count: int) -> None:
    """Say, where progress is shown, what memory so many images will need; the channels must be known.

    Raises:
        InputError: this machine has less.
    """
    shape = f"{request.channels} × {request.size} × {request.size}"
    needs = 2 * count * request.channels * request.size**2
    # There are two copies while the images are parted.
    said = f"{request.title}: {count:,} images of {shape} bytes need {needs / 1e9:.2f} GB of memory"
    has = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else needs
    require(needs <= has, f"{said}, but this machine has {has / 1e9:.2f} GB: choose a smaller size.")
    if request.progress:
        tqdm.write(said, file=sys.stderr)


def decode_tree(tree: Tree, request: Request) -> Decoded:
    """The parts of `tree`, decoded, or from the folder `request.cache` if that has them as the files are now.

    A cache that can't be read or written is only logged. The request's channels must be known.

    Raises:
        InputError: a file can't be decoded, or not even read.
    """
    variant = f"{request.config.name}-{request.channels}x{request.size}x{request.size}"
    # Paths, sizes and times of the files are in it.
    key = fingerprint(CACHE_VERSION, variant, request.config.white, tree.classes, tree.parts)
    path = request.cache / f"{variant}-{key}.safetensors"
    decoded = _from_cache(path, key, tree)
    if decoded is None or (decoded.skipped and request.config.bad_images == "refuse"):
        decoded = _decode_files(tree, request)
        images = {part: split.images for part, split in decoded.parts.items()}
        metadata = {"key": key, "skipped": decoded.skipped, "white": decoded.white}
        try:
            save_artefact(path, kind=KIND, tensors=images, metadata=metadata)
        except OSError as error:
            logger.warning("decoded images can't be kept in %s (%s)", path.parent, error)
    return decoded


def _labelled(tree: Tree, images: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> Decoded:
    """`images` (by part, those of the files that were not skipped) with the files' labels and names."""
    parts, root = {}, len(os.path.join(tree.left.root, ""))
    for part, files in tree.parts.items():
        kept = [file for file in files if file.path not in about["skipped"]]
        names = [file.path[root:].replace(os.sep, "/") for file in kept]
        labels = torch.tensor([file.label for file in kept], dtype=torch.int64)
        parts[part] = Split(images[part], labels, np.array(names, dtype=object))
    return Decoded(parts, about["skipped"], about["white"])


def _decode_files(tree: Tree, request: Request) -> Decoded:
    """The files decoded, (count, channels, size, size) uint8 for each part, by threads.

    Those of more than 8 bits come last, on one scale: to the largest number of bits that a value of them has.
    """
    files, white = tree.files, None
    check_room(request, len(files))
    images = np.empty((len(files), request.channels, request.size, request.size), dtype=np.uint8)
    reasons: dict[int, str] = {}
    deep: dict[int, int] = {}  # their largest values

    def decode(numbers: Sequence[int]) -> int:
        for number in numbers:
            try:
                images[number] = decode_file(files[number].path, request.size, request.channels, white)
            except MoreBits as found:
                (deep[number],) = found.args
            except InputError as error:
                if request.config.bad_images == "refuse" or _passing(error):
                    raise
                reasons[number] = str(error)
        return len(numbers)

    tasks = np.array_split(np.arange(len(files)), -(-len(files) // FILES_PER_TASK))
    bar = tqdm(total=len(files), desc=request.config.name, unit="image", disable=not request.progress)
    with bar, ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        # After the first bad file, `map` cancels the rest: its message does not wait for them.
        for count in pool.map(decode, tasks):
            bar.update(count)
        if deep:
            white = request.config.white or 2 ** max(max(deep.values()).bit_length(), 8) - 1
            list(pool.map(decode, [[number] for number in deep]))
    good = np.delete(images, list(reasons), axis=0) if reasons else images
    skipped = {files[number].path: reasons[number] for number in sorted(reasons)}
    lengths = [sum(file.path not in skipped for file in part) for part in tree.parts.values()]
    parts = dict(zip(tree.parts, torch.from_numpy(good).split(lengths), strict=True))
    return _labelled(tree, parts, {"skipped": skipped, "white": white})


def _passing(error: InputError) -> bool:
    """Whether not the file is to blame but the machine, which may read it another time."""
    cause = error.__cause__
    return isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno is not None)


def _from_cache(path: Path, key: str, tree: Tree) -> Decoded | None:
    """What is cached under `key`, unharmed; else None.

    Images stay mapped: whoever writes the file anew puts another in its place and leaves the mapped one be.
    """
    try:
        if not path.is_file():
            return None
        cached = load_artefact(path, kind=KIND)
        with unpacking(path):
            require(cached.metadata["key"] == key, "it holds other images")
            return _labelled(tree, cached.tensors, cached.metadata)
    except (InputError, OSError) as error:
        logger.warning("cached images will be decoded anew (%s)", " ".join(str(error).split()))
        return None
