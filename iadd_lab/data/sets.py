"""Data sets as plain tensors: which there are, where they lie, and how one is loaded.

`load_data("cifar10")` returns an `ImageData`; `DATASETS` lists what it knows. Nothing here downloads,
except `fetch_data`.
"""

import importlib.util
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from iadd_lab.data import readers
from iadd_lab.data.augment import OPERATIONS, AugmentConfig
from iadd_lab.data.pixels import LARGEST_SIZE, WHITE
from iadd_lab.data.readers import RawData, Request
from iadd_lab.data.splits import Split, check_classes, draw, find_repeats, fingerprint_splits, hold_out
from iadd_lab.errors import InputError, check_kind, check_number, check_whole, choose, require
from iadd_lab.store.artefacts import expanded, user_folder
from iadd_lab.store.configs import added_field

SPLITS = ("train", "validation", "test")
ANYWHERE = (".",)  # the folders of what lies wherever the user says
ALL_OPERATIONS = tuple(OPERATIONS)
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
        bad_images: "refuse", or "skip" to leave image files out that are damaged or no images: a warning
            and the data's remark then say how many and which.
        test_fold: which images are the test part, where a set has none of its own; 0 is the usual one. Folds
            0 to 4 of a folder (a fifth each), 0 to 3 of digits and X-rays (a quarter each) share none.
        seen_test_images: "keep", or "drop" to leave test images out whose pixels are those of a training
            image; the data's remark counts and names them in either case. For image files.
        groups: keeps images that belong together, such as those of one patient or video, in one part when
            test and validation images are drawn: a CSV file in the folder with rows of file and group, or a
            regular expression on the files' names, whose first parenthesis is the group.
        white: the value, up to 65,535, that becomes 255 in images of more than 8 bits; None takes the largest
            number of bits that a value in the set has. Loaded data say which it was.

    Raises:
        InputError: a value outside these ranges.
    """

    name: str
    size: int | None = None
    channels: int | None = None
    validation_fraction: float = 0.1
    seed: int = 0
    train_limit: int | None = None
    bad_images: str = added_field("refuse")
    test_fold: int = added_field(0)
    seen_test_images: str = added_field("keep")
    groups: str | None = added_field(None)
    white: int | None = added_field(None)

    def __post_init__(self) -> None:
        choose("data set", self.name, DATASETS)
        if self.size is not None:
            check_whole("size", self.size, minimum=1, maximum=LARGEST_SIZE)
        known = self.channels is None or (type(self.channels) is int and self.channels in (1, 3))  # not True
        require(known, f"channels is {self.channels!r}; it must be 1 or 3.")
        check_number("validation_fraction", self.validation_fraction, maximum=0.5, above=True)
        check_whole("seed", self.seed, minimum=0)
        if self.train_limit is not None:
            check_whole("train_limit", self.train_limit, minimum=1)
        choose("bad_images", self.bad_images, dict.fromkeys(("refuse", "skip")))
        check_whole("test_fold", self.test_fold, minimum=0)
        choose("seen_test_images", self.seen_test_images, dict.fromkeys(("keep", "drop")))
        check_kind("groups", self.groups, str, optional=True)
        try:
            re.compile(self.groups or "")
        except re.error as error:
            raise InputError(f"groups is {self.groups!r}; as a regular expression it has {error}.") from error
        if self.white is not None:
            check_whole("white", self.white, minimum=1, maximum=WHITE)


@dataclass(frozen=True, eq=False)
class ImageData:
    """A loaded data set.

    Attributes:
        config: as it was asked for; with `white`, where the images have more than 8 bits, but not all 16.
        classes: their names; a label is an index into them.
        train, validation, test: disjoint; each has every class. Images keep the order of the files.
        fingerprint: 16 hex digits over classes, images and labels of the three splits.
        remark: what must be said beside a number measured on this copy; else empty.
        folds: how many `test_fold` of its configuration there are.
    """

    config: DataConfig
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    fingerprint: str
    remark: str = ""
    folds: int = 1

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def size(self) -> int:
        return self.train.images.shape[-1]

    def augmentation(self, given: AugmentConfig | None) -> AugmentConfig:
        """`given`, or the operations that keep the meaning of these images where it is None."""
        return given or AugmentConfig(operations=DATASETS[self.name].augment)

    def split(self, name: str) -> Split:
        """The split called "train", "validation" or "test"; InputError for another name."""
        return choose("split", name, {part: getattr(self, part) for part in SPLITS})


@dataclass(frozen=True)
class DatasetSpec:
    """One entry of `DATASETS`.

    Attributes:
        title: its name in text.
        size, channels: defaults; channels None means those of the files.
        folders: where it may lie under the data root, best first; "." for what has no place of its own.
        reader: decodes it.
        where: one clause that says how to get it; empty where a command fetches it.
        augment: the siamese augmentations that keep the meaning of its images.
        fetcher: downloads it into a data root; None if nothing can.
        describe: a few words for a listing.
        licence: what the source itself says; where that was not looked up, who to ask.
    """

    title: str
    size: int
    channels: int | None
    folders: tuple[str, ...]
    reader: Callable[[Request], RawData]
    where: str = ""
    augment: tuple[str, ...] = ALL_OPERATIONS
    fetcher: Callable[[Path], object] | None = None
    describe: str = ""
    licence: str = "see the source"


def data_root() -> Path:
    """The folder of the data sets: `IADD_DATA`, else the platform's cache folder."""
    return user_folder("IADD_DATA", "data")


def cache_root() -> Path:
    """The folder of decoded images: `IADD_CACHE`, else the platform's cache folder."""
    return user_folder("IADD_CACHE", "decoded")


def _base(root: Path | None) -> Path:
    return (data_root() if root is None else expanded(root)).absolute()


def locate(name: str, *, root: Path | None = None) -> Path | None:
    """The folder in which data set `name` lies under `root`, or None if there is none.

    `root` None is `data_root()`; for "image_folder", which has no fixed place, it is None again.
    """
    folders = choose("data set", name, DATASETS).folders
    if root is None and folders == ANYWHERE:
        return None
    # Some programs keep a set in a folder of its name, and archives may be unpacked one folder too deep.
    places = (_base(root) / top / leaf for leaf in folders for top in ("", name, leaf.split("/")[0]))
    return next((place for place in places if place.is_dir()), None)


def fetch_data(name: str, *, root: Path | None = None) -> Path:
    """Download data set `name` into `root` (None: `data_root()`) unless it is there; return its folder.

    Raises:
        InputError: it can't be fetched by a program (the message says where to get it), or the download
            failed.
    """
    spec, base = choose("data set", name, DATASETS), _base(root)
    require(spec.fetcher is not None, f"{spec.title} can't be fetched: {spec.where}.")
    try:
        spec.fetcher(base)
    except (OSError, RuntimeError, ValueError, AssertionError, EOFError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{spec.title} could not be fetched into {base} ({reason}).") from error
    return require_data(name, root=base)


def require_data(name: str, *, root: Path | None = None) -> Path:
    """The folder in which data set `name` lies; what `load_data` would need, without reading it.

    Raises:
        InputError: the name is unknown, or the set is not there.
    """
    folder, spec = locate(name, root=root), DATASETS[name]
    given = root is not None or spec.folders != ANYWHERE
    require(given, f"{name} needs a folder: pass it as root, or set it in the notebook your_data.")
    tried = " or ".join(str(_base(root) / leaf) for leaf in spec.folders)
    where = spec.where or f"fetch it with `iadd-lab data fetch {name}`"
    require(folder is not None, f"{spec.title} was looked for in {tried}, which is not there: {where}.")
    return folder


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
    spec, folder = DATASETS[config.name], require_data(config.name, root=root)
    request = Request(
        config=config,
        title=spec.title,
        folder=folder,
        cache=cache_root(),
        size=config.size or spec.size,
        channels=config.channels or spec.channels,
        progress=progress and sys.stderr is not None,
    )
    try:
        raw = spec.reader(request)
    except OSError as error:
        raise InputError(f"{spec.title} in {folder} can't be read ({error}).") from error
    check_whole(f"test_fold of {spec.title}", config.test_fold, minimum=0, maximum=raw.folds - 1)
    named, test = raw.train.names is not None, raw.test
    require(named or config.groups is None, f"groups are of image files, which {spec.title} has not.")
    seen, said = find_repeats(raw.train, test) if named else ([], [])
    if config.seen_test_images == "drop" and len(seen):
        test = test.take(np.delete(np.arange(len(test)), seen))
        said[0] += ", and are left out"
    splits = dict(zip(SPLITS, (*_hold_out(raw, config, spec.title), test), strict=True))
    check_classes(spec.title, raw.classes, splits)
    mark = fingerprint_splits(raw.classes, splits.values())
    config = config if raw.white in (None, WHITE) else replace(config, white=raw.white)
    said = "; ".join(filter(None, [raw.remark, *said]))
    return ImageData(config, raw.classes, **splits, fingerprint=mark, remark=said, folds=raw.folds)


def _hold_out(raw: RawData, config: DataConfig, title: str) -> tuple[Split, Split]:
    """What is to train on, at most `train_limit` images, and what is held out for validation."""
    train, validation = hold_out(raw.train, config.validation_fraction, seed=[config.seed, 0])
    limit, classes = config.train_limit, len(raw.classes)
    if limit is not None and limit < len(train):
        enough = f"it must be at least the number of classes, {classes}"
        require(limit >= classes, f"train_limit is {limit}; for {title} {enough}.")
        train = train.take(draw(train.labels.numpy(), limit, np.random.default_rng([config.seed, 1])))
    return train, validation


def _spec(place: tuple, about: tuple[str, str], **more: Any) -> DatasetSpec:
    """The entry of a title, side, channels, folders (and reader), and words on the set and its licence."""
    return DatasetSpec(*place, describe=about[0], licence=about[1], **more)


def _torchvision(kind: str, place: tuple, about: tuple[str, str], **more: Any) -> DatasetSpec:
    """A set that `torchvision.datasets` reads and downloads, by the name of its class there."""
    reader, fetcher = partial(readers.read_torchvision, kind), partial(readers.download_torchvision, kind)
    return _spec(place, about, **{"reader": reader, "fetcher": fetcher} | more)


# An absolute path stays itself when joined to a data root: this set comes with scikit-learn.
_SKLEARN = str(Path(importlib.util.find_spec("sklearn").origin).parent / "datasets" / "data")
_UCI = "see the source, https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits"
_ZALANDO = "https://github.com/zalandoresearch/fashion-mnist/blob/master/LICENSE"
_CIFAR = "see the source, https://www.cs.toronto.edu/~kriz/cifar.html"
_TINY = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_KAGGLE = "https://www.kaggle.com/datasets/tawsifurrahman/covid19-radiography-database"

DATASETS: dict[str, DatasetSpec] = {
    "digits": _spec(
        ("Digits", 8, 1, (_SKLEARN,), readers.read_digits),
        (
            "1,797 handwritten digits that come with scikit-learn",
            f"part of scikit-learn, from UCI's Optical Recognition of Handwritten Digits: {_UCI}",
        ),
        where="it comes with scikit-learn, install that again",
        augment=UNMIRRORED,
        fetcher=lambda root: None,
    ),
    "mnist": _torchvision(
        "MNIST",
        ("MNIST", 28, 1, ("MNIST/raw",)),
        ("70,000 handwritten digits", "see the source, http://yann.lecun.com/exdb/mnist/"),
        augment=UNMIRRORED,
    ),
    "fashion_mnist": _torchvision(
        "FashionMNIST",
        ("Fashion-MNIST", 28, 1, ("FashionMNIST/raw",)),
        ("70,000 pieces of clothing", f"MIT licence, copyright Zalando SE ({_ZALANDO})"),
    ),
    "cifar10": _torchvision(
        "CIFAR10",
        ("CIFAR-10", 32, 3, (readers.PICKLES, "cifar10")),
        ("60,000 photographs of 10 things", _CIFAR),
        reader=readers.read_cifar10,
    ),
    "cifar100": _torchvision(
        "CIFAR100",
        ("CIFAR-100", 32, 3, ("cifar-100-python",)),
        ("60,000 photographs of 100 things", _CIFAR),
    ),
    "tiny_imagenet": _spec(
        ("Tiny ImageNet", 64, 3, ("tiny-imagenet-200",), readers.read_tiny_imagenet),
        (
            "110,000 photographs of 200 things, or of those that wnids.txt lists",
            f"see the source, {_TINY}, and ImageNet, https://www.image-net.org/download",
        ),
        where=f"unpack {_TINY} there",
    ),
    "covid19": _spec(
        ("COVID-19 X-rays", 112, 1, ("covid19", "COVID-19_Radiography_Dataset"), readers.read_covid19),
        ("chest X-rays, a folder per class", f"see the source of the copy used, as in {_KAGGLE}"),
        where=f"unpack {_KAGGLE} there, or put a folder of chest X-rays per class there",
        augment=UNMIRRORED,
    ),
    "image_folder": _spec(
        ("The image folder", 32, None, ANYWHERE, readers.read_image_folder),
        ("your own images, a folder per class", "that of the pictures in the folder: see their source"),
        where="pass a folder of your own, with train and test inside or a folder per class",
    ),
}
