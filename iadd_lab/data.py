"""Data sets as plain tensors: found on disk, decoded, split, and given a fingerprint.

`load_data("cifar10")` returns an `ImageData`; `DATASETS` lists what it knows. Nothing here downloads,
except `fetch_data`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

import numpy as np
import platformdirs
import safetensors
import safetensors.torch
import torch
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from iadd_lab.errors import InputError, check_number, check_whole, choose, require

logger = logging.getLogger(__name__)

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
HIDDEN = (".", "__MACOSX")  # what unpacking leaves behind
# Only these parsers ever see a file: Pillow's full list holds ones that start other programs (EPS).
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF")
GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
TEST_SEED = 20_240  # a set without a test part of its own always gets the same one
PICKLES = "cifar-10-batches-py"  # torchvision's name for the folder of the original CIFAR-10
CACHE_VERSION = 1  # raise it when decoding changes, so that older caches are passed over
FILES_PER_TASK = 64  # a thread's task: one tiny JPEG costs less than handing it over

ALL_OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")
# A mirrored digit is another sign, and a mirrored chest has its heart on the wrong side.
UNMIRRORED = tuple(operation for operation in ALL_OPERATIONS if operation != "flip")


@dataclass(frozen=True)
class DataConfig:
    """What to load. Stored with every artefact.

    Args:
        name: a key of `DATASETS`.
        size: side in pixels; None is the set's own. Other sizes are resized (antialiased, bilinear); of an
            image that is not square, the shorter side is resized and the middle is kept.
        channels: 1 (grey) or 3 (colour); None is the set's own.
        validation_fraction: share of the training part held out for validation, in (0, 0.5].
        seed: of the validation split and of `train_limit`. Test images never depend on it.
        train_limit: at most so many training images, drawn by class after validation was held out.

    Raises:
        InputError: a value outside these ranges.
    """

    name: str
    size: int | None = None
    channels: int | None = None
    validation_fraction: float = 0.1
    seed: int = 0
    train_limit: int | None = None

    def __post_init__(self) -> None:
        choose("data set", self.name, DATASETS)
        if self.size is not None:
            check_whole("size", self.size, minimum=1)
        require(self.channels in (None, 1, 3), f"channels is {self.channels!r}; it must be 1 or 3.")
        check_number("validation_fraction", self.validation_fraction, maximum=0.5, above=True)
        check_whole("seed", self.seed, minimum=0)
        if self.train_limit is not None:
            check_whole("train_limit", self.train_limit, minimum=1)


@dataclass(frozen=True, eq=False)
class Split:
    """Images (count, channels, height, width) uint8 with their labels (count,) int64."""

    images: torch.Tensor
    labels: torch.Tensor

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        fits = images.ndim == 4 and labels.shape == images.shape[:1]
        require(
            fits and images.dtype == torch.uint8 and labels.dtype == torch.int64,
            f"a split has images {tuple(images.shape)} {images.dtype} and labels {tuple(labels.shape)} "
            f"{labels.dtype}; it needs (count, channels, height, width) uint8 and (count,) int64.",
        )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> Split:
        """The images at `indices` (count,), in that order, copied."""
        where = torch.from_numpy(indices)
        return Split(self.images[where], self.labels[where])


@dataclass(frozen=True, eq=False)
class ImageData:
    """A loaded data set.

    Attributes:
        config: as it was asked for.
        classes: their names; a label is an index into them.
        train, validation, test: disjoint; each has every class. Images keep the order of the files.
        fingerprint: 16 hex digits over classes, images and labels of the three splits.
        remark: what must be said beside a number measured on this copy; else empty.
    """

    config: DataConfig
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    fingerprint: str
    remark: str = ""

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def size(self) -> int:
        return self.train.images.shape[-1]

    def split(self, name: str) -> Split:
        """The split called "train", "validation" or "test"; InputError for another name."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return choose("split", name, splits)


@dataclass(frozen=True)
class Request:
    """What a reader is asked for; `channels` None means the files' own."""

    name: str
    title: str
    root: Path
    folder: Path
    size: int
    channels: int | None
    progress: bool


@dataclass(frozen=True, eq=False)
class RawData:
    """What a reader returns: the data before validation is held out."""

    classes: tuple[str, ...]
    train: Split
    test: Split
    remark: str = ""


@dataclass(frozen=True)
class DatasetSpec:
    """One entry of `DATASETS`.

    Attributes:
        title: its name in text.
        size, channels: defaults; channels None means those of the files.
        folders: where it may lie under the data root, best first.
        reader: decodes it.
        where: one clause that says how to get it.
        augment: the siamese augmentations that keep the meaning of its images.
        fetcher: downloads it into a data root; None if nothing can.
        describe: a few words for a listing.
    """

    title: str
    size: int
    channels: int | None
    folders: tuple[str, ...]
    reader: Callable[[Request], RawData]
    where: str
    augment: tuple[str, ...] = ALL_OPERATIONS
    fetcher: Callable[[Path], object] | None = None
    describe: str = ""


# Where things lie ---------------------------------------------------------------------------------------


def data_root() -> Path:
    """The folder of the data sets: `IADD_DATA`, else the platform's cache folder."""
    return _folder_from("IADD_DATA", "data")


def cache_root() -> Path:
    """The folder of decoded images: `IADD_CACHE`, else the platform's cache folder."""
    return _folder_from("IADD_CACHE", "decoded")


def _folder_from(variable: str, leaf: str) -> Path:
    given = os.environ.get(variable)
    return Path(given).expanduser() if given else platformdirs.user_cache_path("iadd-lab") / leaf


def _base(root: Path | None) -> Path:
    return (data_root() if root is None else Path(root).expanduser()).absolute()


def locate(name: str, *, root: Path | None = None) -> Path | None:
    """The folder in which data set `name` lies under `root`, or None if there is none.

    `root` None is `data_root()`; for "image_folder", which has no fixed place, it is None again.
    """
    spec = choose("data set", name, DATASETS)
    if root is None and spec.reader is read_image_folder:
        return None
    base = _base(root)
    return next((base / folder for folder in spec.folders if (base / folder).is_dir()), None)


def fetch_data(name: str, *, root: Path | None = None) -> Path:
    """Download data set `name` into `root` (None: `data_root()`) unless it is there; return its folder.

    Raises:
        InputError: it can't be fetched by a program (the message says where to get it), or the download
            failed.
    """
    spec = choose("data set", name, DATASETS)
    if spec.fetcher is None:
        raise InputError(f"{spec.title} can't be fetched: {spec.where}.")
    base = _base(root)
    try:
        spec.fetcher(base)
    except (OSError, RuntimeError, ValueError, AssertionError, EOFError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{spec.title} could not be fetched into {base} ({reason}).") from error
    return _find(name, base)


def _find(name: str, root: Path | None) -> Path:
    spec = DATASETS[name]
    if root is None and spec.reader is read_image_folder:
        raise InputError(f"{name} needs a folder: pass the one that holds your images as root.")
    folder = locate(name, root=root)
    if folder is None:
        tried = " or ".join(str(_base(root) / leaf) for leaf in spec.folders)
        raise InputError(f"{spec.title} was looked for in {tried}, which is not there: {spec.where}.")
    return folder


# Loading ------------------------------------------------------------------------------------------------


def load_data(config: DataConfig | str, *, root: Path | None = None, progress: bool = True) -> ImageData:
    """Load a data set from disk and split it.

    Args:
        config: what to load; a bare name means its defaults.
        root: the folder that holds the data sets (None: `data_root()`); for "image_folder", the images' own.
        progress: show a bar while image files are decoded.

    Raises:
        InputError: the set is missing, damaged or incomplete, or has too few images of a class.
    """
    config = DataConfig(config) if isinstance(config, str) else config
    spec = DATASETS[config.name]
    request = Request(
        name=config.name,
        title=spec.title,
        root=_base(root),
        folder=_find(config.name, root),
        size=config.size or spec.size,
        channels=config.channels or spec.channels,
        progress=progress,
    )
    try:
        raw = spec.reader(request)
    except OSError as error:
        raise InputError(f"{spec.title} in {request.folder} can't be read ({error}).") from error
    return _split(raw, config, spec.title)


def _split(raw: RawData, config: DataConfig, title: str) -> ImageData:
    """Hold validation out, apply `train_limit`, check the classes and fingerprint the outcome."""
    train, validation = _hold_out(raw.train, config.validation_fraction, seed=[config.seed, 0])
    if config.train_limit is not None and config.train_limit < len(train):
        enough = config.train_limit >= len(raw.classes)
        least = f"at least the number of classes, {len(raw.classes)}"
        require(enough, f"train_limit is {config.train_limit}; for {title} it must be {least}.")
        generator = np.random.default_rng([config.seed, 1])
        train = train.take(_draw(train.labels.numpy(), config.train_limit, generator))
    splits = {"train": train, "validation": validation, "test": raw.test}
    _check_classes(title, raw.classes, splits)
    return ImageData(
        config=config,
        classes=raw.classes,
        **splits,
        fingerprint=_fingerprint(raw.classes, splits.values()),
        remark=raw.remark,
    )


def _check_classes(title: str, classes: tuple[str, ...], splits: Mapping[str, Split]) -> None:
    counts = {part: torch.bincount(split.labels, minlength=len(classes)) for part, split in splits.items()}
    for label, name in enumerate(classes):
        found = ", ".join(f"{int(count[label])} {part}" for part, count in counts.items())
        complete = all(count[label] > 0 for count in counts.values())
        require(complete, f"{title}: class {name!r} has {found} images; add images, each split needs one.")


def _fingerprint(classes: tuple[str, ...], splits: Iterable[Split]) -> str:
    digest = hashlib.sha256(json.dumps(classes).encode())
    for split in splits:
        digest.update(json.dumps(list(split.images.shape)).encode())
        digest.update(split.images.contiguous().numpy().reshape(-1))
        digest.update(split.labels.contiguous().numpy().reshape(-1))
    return digest.hexdigest()[:16]


def _hold_out(split: Split, fraction: float, *, seed: list[int]) -> tuple[Split, Split]:
    """Part `split` by class into what stays and the `fraction` held out, at least one image of a class."""
    labels = split.labels.numpy()
    count = max(round(fraction * len(labels)), len(np.unique(labels)))
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[_draw(labels, count, np.random.default_rng(seed))] = True
    return split.take(np.flatnonzero(~chosen)), split.take(np.flatnonzero(chosen))


def _draw(labels: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
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


# Pixels -------------------------------------------------------------------------------------------------


def _decode_file(path: str, size: int, channels: int) -> np.ndarray:
    """The image file as (channels, size, size) uint8; InputError if Pillow can't make sense of it."""
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            if min(image.size) >= 4 * size:
                # A large JPEG is decoded at a half to an eighth: faster, and still twice what is kept.
                image.draft(None, (2 * size, 2 * size))
            image.load()
            with contextlib.suppress(Exception):  # damaged EXIF says nothing against the pixels
                ImageOps.exif_transpose(image, in_place=True)
            return _planes(image, size, channels)
    except InputError:
        raise
    except Exception as error:  # whatever a parser met; Pillow promises no common class
        reason = " ".join(str(error).split())
        raise InputError(f"{path} can't be decoded ({reason}): remove or replace it.") from error


def _planes(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """`image` as (channels, size, size) uint8: 8 bits, opaque, resized to cover the square and cropped."""
    image = _eight_bits(image)
    if {"A", "a"} & set(image.getbands()) or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, "white")  # what lies under transparent pixels is arbitrary
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), method=Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(size, size, channels).transpose(2, 0, 1)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey images of more than 8 bits scaled by their full 16-bit range; Pillow alone would clip them."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    sixteen = image.mode != "F" and values.min() >= 0 and values.max() <= 65_535
    name = getattr(image, "filename", "an image")
    require(bool(sixteen), f"{name} has pixels beyond 16 bits: save it with 8 or 16 bits, or remove it.")
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _from_arrays(
    images: np.ndarray, labels: np.ndarray | torch.Tensor | list[int], request: Request
) -> Split:
    """A split from (count, height, width) or (count, height, width, 3) uint8 and their labels."""
    size, channels = request.size, request.channels
    native = images.reshape(*images.shape[:3], -1)  # (count, height, width, channels)
    if native.shape[1:] == (size, size, channels):
        planes = native.transpose(0, 3, 1, 2)
    else:
        planes = np.empty((len(images), channels, size, size), dtype=np.uint8)
        for plane, image in zip(planes, images, strict=True):
            plane[:] = _planes(Image.fromarray(image), size, channels)
    return Split(
        torch.from_numpy(np.ascontiguousarray(planes)),  # (count, channels, size, size)
        torch.as_tensor(labels, dtype=torch.int64),  # (count,)
    )


# Sets that come as arrays -------------------------------------------------------------------------------


def read_digits(request: Request) -> RawData:
    """scikit-learn's 1,797 digits, values 0..16 stretched to 0..255; a quarter is the test part."""
    from sklearn.datasets import load_digits  # takes a second to import, and only this set needs it

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8)
    train, test = _hold_out(_from_arrays(images, digits.target, request), 0.25, seed=[TEST_SEED])
    return RawData(tuple(str(name) for name in digits.target_names), train, test)


def read_torchvision(dataset: str, request: Request) -> RawData:
    """A set that `torchvision.datasets` reads, by the name of its class there.

    torchvision compares the MD5 sums of CIFAR's pickles before it opens them; that is what makes it safe.
    """
    kind = _torchvision_class(dataset)
    try:
        parts = [kind(request.root, train=train, download=False) for train in (True, False)]
        classes = tuple(parts[0].classes)
        train, test = (_from_arrays(np.asarray(part.data), part.targets, request) for part in parts)
        highest = int(torch.cat([train.labels, test.labels]).max())
    except (RuntimeError, ValueError, TypeError, AssertionError, LookupError) as error:
        again = f"delete that folder, then `iadd-lab data fetch {request.name}`"
        raise InputError(f"{request.title} in {request.folder} is incomplete or damaged: {again}.") from error
    known = highest < len(classes)
    require(known, f"{request.title} in {request.folder} has a label {highest}, but {len(classes)} classes.")
    return RawData(classes, train, test)


def _download(dataset: str, root: Path) -> None:
    _torchvision_class(dataset)(root, train=True, download=True)


def _torchvision_class(name: str) -> Callable:
    import torchvision.datasets  # takes two seconds to import, which only its own sets should cost

    return getattr(torchvision.datasets, name)


# Sets that come as trees of image files -----------------------------------------------------------------


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


def read_cifar10(request: Request) -> RawData:
    """CIFAR-10 from torchvision's pickles, or from a tree {train,test}/<class>/*.jpg|png."""
    if request.folder.name == PICKLES:
        return read_torchvision("CIFAR10", request)
    tree = _split_tree(request.folder)
    lossy = any(file.path.lower().endswith((".jpg", ".jpeg")) for file in tree.files)
    raw = _read_tree(tree, request)
    return replace(raw, remark="CIFAR-10 from a tree of lossy JPEGs" if lossy else "")


def read_covid19(request: Request) -> RawData:
    """Chest X-rays in a folder per class, masks aside; a quarter is the test part."""
    return _read_tree(_one_tree(request.folder), request, test_fraction=0.25)


def read_image_folder(request: Request) -> RawData:
    """A user's images: {train,test}/<class>/..., or <class>/... of which a fifth is the test part.

    Beside train and test, other folders are left alone.
    """
    parts = [(request.folder / part).is_dir() for part in ("train", "test")]
    require(
        all(parts) or not any(parts),
        f"{request.folder} has only one of train and test: give both, or a folder per class.",
    )
    tree = _split_tree(request.folder) if all(parts) else _one_tree(request.folder)
    if request.channels is None:
        request = replace(request, channels=1 if _is_grey(tree) else 3)
    return _read_tree(tree, request, test_fraction=0.2)


def read_tiny_imagenet(request: Request) -> RawData:
    """Tiny ImageNet in its official layout; its validation images, which have labels, are the test part."""
    folder = request.folder
    listed = folder / "wnids.txt"
    identifiers = [_plain_name(line, listed) for line in _read_text(listed).split()]
    twice = len(set(identifiers)) < len(identifiers)
    require(bool(identifiers) and not twice, f"{listed} is empty or names a class twice: unpack it again.")
    train = [
        file
        for label, identifier in enumerate(identifiers)
        for file in _class_files(folder / "train" / identifier, label)
    ]
    tree = Tree(_tiny_names(folder, identifiers), {"train": train, "test": _tiny_test(folder, identifiers)})
    return _read_tree(tree, request)


def _tiny_names(folder: Path, identifiers: list[str]) -> tuple[str, ...]:
    """Class names: the first word of words.txt for each identifier, else the identifier itself."""
    words = {}
    if (folder / "words.txt").is_file():
        for line in _read_text(folder / "words.txt").splitlines():
            identifier, _, names = line.partition("\t")
            words[identifier.strip()] = names.split(",")[0].strip()
    return tuple(words.get(identifier) or identifier for identifier in identifiers)


def _tiny_test(folder: Path, identifiers: list[str]) -> list[ImageFile]:
    """The files that val_annotations.txt gives to one of `identifiers`."""
    labels = {identifier: label for label, identifier in enumerate(identifiers)}
    notes = folder / "val" / "val_annotations.txt"
    files = []
    for number, line in enumerate(_read_text(notes).splitlines(), start=1):
        name, _, rest = line.partition("\t")
        identifier = rest.split("\t")[0].strip()
        if identifier in labels:
            path = folder / "val" / "images" / _plain_name(name.strip(), notes)
            require(path.is_file(), f"{path} is missing, though line {number} of {notes} names it.")
            status = path.stat()
            files.append(ImageFile(str(path), labels[identifier], status.st_size, status.st_mtime_ns))
        else:
            require(
                bool(identifier) or not line.strip(),
                f"line {number} of {notes} is {line!r}; it names no class.",
            )
    return files


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _plain_name(name: str, source: Path) -> str:
    """`name`, unless it could lead out of its folder."""
    plain = name not in ("", ".", "..") and PureWindowsPath(name).name == name and "/" not in name
    require(plain, f"{source} names {name!r}; it must be a plain name without a path.")
    return name


def _split_tree(folder: Path) -> Tree:
    """The tree {train,test}/<class>/...; both parts must have the same classes."""
    for part in ("train", "test"):
        require((folder / part).is_dir(), f"{folder / part} is missing: {folder} needs train and test.")
    trees = {part: _one_tree(folder / part) for part in ("train", "test")}
    odd = sorted(set(trees["train"].classes) ^ set(trees["test"].classes))
    names = ", ".join(odd)
    require(not odd, f"{folder} has class folders in only one of train and test ({names}): give both.")
    return Tree(trees["train"].classes, {part: tree.parts["all"] for part, tree in trees.items()})


def _one_tree(folder: Path) -> Tree:
    """The tree <class>/..., classes by name."""
    with os.scandir(folder) as entries:
        classes = sorted(
            entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(HIDDEN)
        )
    require(len(classes) >= 2, f"{folder} has {len(classes)} class folders; it needs at least two.")
    files = [file for label, name in enumerate(classes) for file in _class_files(folder / name, label)]
    return Tree(tuple(classes), {"all": files})


def _class_files(folder: Path, label: int) -> list[ImageFile]:
    """The images of a class folder, sorted; only those in `images` if it has that (masks lie beside)."""
    require(folder.is_dir(), f"the class folder {folder} is missing: unpack the set again.")
    inner = folder / "images"
    files = sorted(_walk(str(inner if inner.is_dir() else folder), label))
    extensions = " ".join(IMAGE_EXTENSIONS)
    require(bool(files), f"the class folder {folder} has no images ({extensions}): fill it or remove it.")
    return files


def _walk(folder: str, label: int) -> Iterator[ImageFile]:
    """Image files below `folder`, hidden ones aside; linked folders are not entered, they might be loops."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(HIDDEN):
                continue
            if entry.is_dir():
                if not entry.is_symlink():
                    yield from _walk(entry.path, label)
            elif entry.name.lower().endswith(IMAGE_EXTENSIONS):
                status = entry.stat()
                yield ImageFile(entry.path, label, status.st_size, status.st_mtime_ns)


def _is_grey(tree: Tree) -> bool:
    """Whether at most 50 files, evenly spread over the classes, are all grey."""
    files = tree.files
    for file in files[:: -(-len(files) // 50)]:
        try:
            with Image.open(file.path, formats=IMAGE_FORMATS) as image:
                if image.mode not in GREY_MODES:
                    return False
        except Exception:  # decoding meets it again, and names it
            continue
    return True


def _read_tree(tree: Tree, request: Request, *, test_fraction: float = 0.0) -> RawData:
    """Decode a tree, or take it from the cache; where it has no test part, hold `test_fraction` out."""
    splits = _decode_cached(tree, request)
    if "all" in splits:
        splits["train"], splits["test"] = _hold_out(splits["all"], test_fraction, seed=[TEST_SEED])
    return RawData(tree.classes, splits["train"], splits["test"])


def _decode_cached(tree: Tree, request: Request) -> dict[str, Split]:
    side = (request.channels, request.size, request.size)
    path = _cache_path(tree, request)
    images = _read_cache(path, {part: (len(files), *side) for part, files in tree.parts.items()})
    if images is None:
        lengths = [len(part) for part in tree.parts.values()]
        images = dict(zip(tree.parts, _decode_files(tree.files, request).split(lengths), strict=True))
        _write_cache(path, images)
    return {
        part: Split(images[part], torch.tensor([file.label for file in files], dtype=torch.int64))
        for part, files in tree.parts.items()
    }


def _decode_files(files: list[ImageFile], request: Request) -> torch.Tensor:
    """All `files` decoded, (count, channels, size, size) uint8, by a pool of threads."""
    shape = (len(files), request.channels, request.size, request.size)
    images = np.empty(shape, dtype=np.uint8)

    def decode(start: int) -> int:
        stop = min(start + FILES_PER_TASK, len(files))
        for index in range(start, stop):
            images[index] = _decode_file(files[index].path, request.size, request.channels)
        return stop - start

    pool = ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1))
    bar = tqdm(total=len(files), desc=request.name, unit="image", disable=not request.progress)
    with bar:
        try:
            for count in pool.map(decode, range(0, len(files), FILES_PER_TASK)):
                bar.update(count)
        finally:  # after the first bad file, don't decode the rest before saying so
            pool.shutdown(cancel_futures=True)
    return torch.from_numpy(images)


# The cache of decoded trees: never needed, so that no failure of it is an error -------------------------


def _cache_path(tree: Tree, request: Request) -> Path:
    """The file for exactly these images: their paths, sizes and times, at this size, in these channels."""
    kind = f"{request.name}-{request.channels}x{request.size}x{request.size}"
    key = json.dumps([CACHE_VERSION, kind, tree.classes, tree.parts])
    return cache_root() / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:20]}.safetensors"


def _read_cache(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor] | None:
    """The cached images if they are all there, of the right shapes and unharmed; else None."""
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            checksum = (file.metadata() or {}).get("checksum")
            # Copied: a tensor that stays mapped would change or crash when somebody else rewrites the file.
            images = {part: file.get_tensor(part).clone() for part in shapes}
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        logger.warning("%s is unreadable and will be written anew (%s)", path, error)
        return None
    right = all(
        images[part].shape == shape and images[part].dtype == torch.uint8 for part, shape in shapes.items()
    )
    if right and checksum == _checksum(images):
        return images
    logger.warning("%s does not hold what it should and will be written anew", path)
    return None


def _write_cache(path: Path, images: Mapping[str, torch.Tensor]) -> None:
    """Write under another name, then rename: nobody ever sees half a file."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
        os.close(handle)
        safetensors.torch.save_file(dict(images), temporary, metadata={"checksum": _checksum(images)})
        os.replace(temporary, path)
    except (OSError, safetensors.SafetensorError) as error:
        logger.warning("decoded images can't be kept in %s (%s)", path.parent, error)
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _checksum(images: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for part in sorted(images):
        digest.update(images[part].numpy().reshape(-1))
    return digest.hexdigest()


# The registry -------------------------------------------------------------------------------------------

DATASETS: dict[str, DatasetSpec] = {
    "digits": DatasetSpec(
        title="Digits",
        size=8,
        channels=1,
        # An absolute path stays itself when joined to a data root: this set comes with scikit-learn.
        folders=(str(Path(importlib.util.find_spec("sklearn").origin).parent / "datasets" / "data"),),
        reader=read_digits,
        where="it comes with scikit-learn, install that again",
        augment=UNMIRRORED,
        fetcher=lambda root: None,
        describe="1,797 handwritten digits that come with scikit-learn",
    ),
    "mnist": DatasetSpec(
        title="MNIST",
        size=28,
        channels=1,
        folders=("MNIST/raw",),
        reader=partial(read_torchvision, "MNIST"),
        where="fetch it with `iadd-lab data fetch mnist`",
        augment=UNMIRRORED,
        fetcher=partial(_download, "MNIST"),
        describe="70,000 handwritten digits",
    ),
    "fashion_mnist": DatasetSpec(
        title="Fashion-MNIST",
        size=28,
        channels=1,
        folders=("FashionMNIST/raw",),
        reader=partial(read_torchvision, "FashionMNIST"),
        where="fetch it with `iadd-lab data fetch fashion_mnist`",
        fetcher=partial(_download, "FashionMNIST"),
        describe="70,000 pieces of clothing",
    ),
    "cifar10": DatasetSpec(
        title="CIFAR-10",
        size=32,
        channels=3,
        folders=(PICKLES, "cifar10"),
        reader=read_cifar10,
        where="fetch it with `iadd-lab data fetch cifar10`",
        fetcher=partial(_download, "CIFAR10"),
        describe="60,000 photographs of 10 things",
    ),
    "cifar100": DatasetSpec(
        title="CIFAR-100",
        size=32,
        channels=3,
        folders=("cifar-100-python",),
        reader=partial(read_torchvision, "CIFAR100"),
        where="fetch it with `iadd-lab data fetch cifar100`",
        fetcher=partial(_download, "CIFAR100"),
        describe="60,000 photographs of 100 things",
    ),
    "tiny_imagenet": DatasetSpec(
        title="Tiny ImageNet",
        size=64,
        channels=3,
        folders=("tiny-imagenet-200",),
        reader=read_tiny_imagenet,
        where="unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip there",
        describe="110,000 photographs of 200 things, or of those that wnids.txt lists",
    ),
    "covid19": DatasetSpec(
        title="COVID-19 Radiography Database",
        size=112,
        channels=1,
        folders=("covid19", "COVID-19_Radiography_Dataset"),
        reader=read_covid19,
        where="unpack https://www.kaggle.com/datasets/tawsifurrahman/covid19-radiography-database there, "
        "or put a folder of chest X-rays per class there",
        augment=UNMIRRORED,
        describe="chest X-rays, a folder per class",
    ),
    "image_folder": DatasetSpec(
        title="The image folder",
        size=32,
        channels=None,
        folders=(".",),
        reader=read_image_folder,
        where="pass a folder of your own, with train and test inside or a folder per class",
        describe="your own images, a folder per class",
    ),
}
