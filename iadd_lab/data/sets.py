"""Data sets as plain tensors: which there are, where they lie, and how one is loaded.

`load_data("cifar10")` returns an `ImageData`; `DATASETS` lists what it knows by name. It takes paths, arrays
and data sets of PyTorch as well. Nothing here downloads, except `fetch_data`.
"""

import importlib.util
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from iadd_lab.data import files, readers
from iadd_lab.data.arrays import LAYOUTS
from iadd_lab.data.augment import OPERATIONS, AugmentConfig, usual_augmentation
from iadd_lab.data.pixels import LARGEST_SIZE, MOST_CHANNELS, WHITE
from iadd_lab.data.readers import RawData, Request
from iadd_lab.data.sources import parts_in_memory, raw_data
from iadd_lab.data.splits import Split, check_classes, draw, find_repeats, fingerprint_splits, hold_out
from iadd_lab.errors import InputError, check_kind, check_number, check_whole, choose, require
from iadd_lab.store.artefacts import expanded, user_folder
from iadd_lab.store.configs import added_field

SPLITS = ("train", "validation", "test")
ANYWHERE = (".",)  # the folders of what lies wherever the user says
FILES, MEMORY, TORCHVISION = "files", "memory", "torchvision:"  # names of what has no name of its own
ALL_OPERATIONS = tuple(OPERATIONS)
# A mirrored digit is another sign, and a mirrored chest has its heart on the wrong side.
UNMIRRORED = tuple(operation for operation in ALL_OPERATIONS if operation != "flip")


@dataclass(frozen=True)
class DataConfig:
    """What to load. Stored with every artefact.

    Args:
        name: a key of `DATASETS`; "torchvision:NAME" or "torchvision:NAME/SPLIT", for a set that torchvision
            reads; or a path, which `load_data` takes apart: what is stored has the name "files" for it.
        size: side in pixels; None is the set's own. Other sizes are resized (antialiased, bilinear); of an
            image that is not square, the shorter side is resized and the middle is kept.
        channels: 1 (grey), 3 (colour), or up to 16 as arrays and TIFFs have them; None is the set's own.
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
        range: the values that are black and white in arrays; None where only one usual range fits.
        layout: of arrays, "channels_first" or "channels_last"; None where only one fits.
        classes: their names, in the order of their labels; None takes those of the source.
        image_column: the column of a table, or the name of an array, that holds the pictures; None where only
            one fits. Of a table, `groups` may be a column too.
        label_column: the same, of the classes.
        split_column: the same, of the part (training, validation, test) that each picture is in.

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
    range: tuple[float, float] | None = added_field(None)
    layout: str | None = added_field(None)
    classes: tuple[str, ...] | None = added_field(None)
    image_column: str | None = added_field(None)
    label_column: str | None = added_field(None)
    split_column: str | None = added_field(None)

    def __post_init__(self) -> None:
        if not is_path(self.name):
            spec_of(self.name)
        if self.size is not None:
            check_whole("size", self.size, minimum=1, maximum=LARGEST_SIZE)
        if self.channels is not None:
            check_whole("channels", self.channels, minimum=1, maximum=MOST_CHANNELS)
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
        self._check_source()

    def _check_source(self) -> None:
        """Require possible values of what says how a source is read, and make lists of them tuples."""
        for name in ("range", "classes"):
            if isinstance(value := getattr(self, name), (list, tuple)):
                object.__setattr__(self, name, tuple(value))
        if self.range is not None:
            numbers = isinstance(self.range, tuple) and len(self.range) == 2
            numbers = numbers and all(isinstance(end, (int, float)) and abs(end) < 1e30 for end in self.range)
            told = f"range is {self.range!r}; it must be two numbers, black and white, as in (0, 16)."
            require(numbers and self.range[0] < self.range[1], told)
            object.__setattr__(self, "range", tuple(map(float, self.range)))
        if self.layout is not None:
            choose("layout", self.layout, dict.fromkeys(LAYOUTS))
        if self.classes is not None:
            names = isinstance(self.classes, tuple) and all(isinstance(name, str) for name in self.classes)
            names = names and len(set(self.classes)) == len(self.classes) > 1
            require(names, f"classes is {self.classes!r}; it must be different names, two or more.")
        for name in ("image_column", "label_column", "split_column"):
            check_kind(name, getattr(self, name), str, optional=True)

    @property
    def spec(self) -> "DatasetSpec":
        """What is known of the set by its name."""
        return spec_of(self.name)


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
        return given or usual_augmentation(self.config.spec.augment, self.channels)

    def split(self, name: str) -> Split:
        """The split called "train", "validation" or "test"; InputError for another name."""
        return choose("split", name, {part: getattr(self, part) for part in SPLITS})


@dataclass(frozen=True)
class DatasetSpec:
    """One entry of `DATASETS`.

    Attributes:
        title: its name in text.
        size, channels: defaults; None means those of the files.
        folders: where it may lie under the data root, best first; "." for what has no place of its own.
        reader: decodes it.
        where: one clause that says how to get it; empty where a command fetches it.
        augment: the siamese augmentations that keep the meaning of its images.
        fetcher: downloads it into a data root; None if nothing can.
        describe: a few words for a listing.
        licence: what the source itself says; where that was not looked up, who to ask.
    """

    title: str
    size: int | None
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


def is_path(name: object) -> bool:
    """Whether `name` is no name of a data set, but the path of one: it is there, or has a separator."""
    if isinstance(name, os.PathLike):
        return True
    if not isinstance(name, str) or name in DATASETS or name.startswith(TORCHVISION):
        return False
    return "/" in name or os.sep in name or (bool(name) and os.path.exists(name))


def spec_of(name: str) -> DatasetSpec:
    """What is known of the data set of that name; InputError if there is none.

    Names of torchvision's are only looked at: to see whether it has such a set would take two seconds.
    """
    if not (isinstance(name, str) and name.startswith(TORCHVISION)):
        return choose("data set", name, DATASETS)
    word = name.removeprefix(TORCHVISION)
    told = f"data set {name!r} is none of torchvision's: write torchvision:NAME or torchvision:NAME/SPLIT."
    require(re.fullmatch(r"\w+(/[\w-]+)?", word) is not None, told)
    return DatasetSpec(
        f"{word} of torchvision",
        None,
        None,
        ("",),
        partial(files.read_torchvision_set, word),
        augment=UNMIRRORED if re.match(_SIGNS, word) else ALL_OPERATIONS,
        fetcher=partial(files.download_torchvision_set, word),
        describe="as torchvision reads it",
        licence="see its source, which https://docs.pytorch.org/vision/stable/datasets.html names",
    )


def settle(source: Any, root: Path | None = None, **options: Any) -> tuple[DataConfig, Path | None]:
    """What to load, and where it lies: what `load_data` makes of its arguments.

    Raises:
        InputError: an option is unknown, or a path was given and `root` as well.
    """
    known = {field.name for field in fields(DataConfig)} - {"name"}
    for option in options:
        choose("option", option, dict.fromkeys(known))
    if isinstance(source, (DataConfig, str, os.PathLike)):
        name = source.name if isinstance(source, DataConfig) else source
        path = expanded(name).absolute() if is_path(name) else None
        told = f"the data is the path {name}, and its root {root} was given too: give one of them."
        require(path is None or root is None, told)
        name, root = (FILES, path) if path is not None else (name, root)
        if isinstance(source, DataConfig):
            return replace(source, name=name, **options), root
        return DataConfig(name, **options), root
    require(root is None, f"root is {root}, but the data is in memory: leave it out.")
    return DataConfig(MEMORY, **options), None


def locate(name: str, *, root: Path | None = None) -> Path | None:
    """The folder in which data set `name` lies under `root`, or None if there is none.

    `root` None is `data_root()`; for "image_folder" and "files", which have no fixed place, it is None again.
    For "files" it is a folder or a file.
    """
    folders = spec_of(name).folders
    if root is None and folders == ANYWHERE:
        return None
    # Some programs keep a set in a folder of its name, and archives may be unpacked one folder too deep.
    places = (_base(root) / top / leaf for leaf in folders for top in ("", name, leaf.split("/")[0]))
    exists = Path.exists if name == FILES else Path.is_dir
    return next(filter(exists, places), None)


def fetch_data(name: str, *, root: Path | None = None) -> Path:
    """Download data set `name` into `root` (None: `data_root()`) unless it is there; return its folder.

    Raises:
        InputError: it can't be fetched by a program (the message says where to get it), or the download
            failed.
    """
    spec, base = spec_of(name), _base(root)
    require(spec.fetcher is not None, f"{spec.title} can't be fetched: {spec.where}.")
    try:
        spec.fetcher(base)
    except InputError:
        raise
    except (OSError, RuntimeError, ValueError, AssertionError, EOFError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{spec.title} could not be fetched into {base} ({reason}).") from error
    return require_data(name, root=base)


def require_data(name: str, *, root: Path | None = None) -> Path:
    """The folder in which data set `name` lies; what `load_data` would need, without reading it.

    Raises:
        InputError: the name is unknown, or the set is not there.
    """
    folder, spec = locate(name, root=root), spec_of(name)
    again = "its pictures were in memory, where nobody else finds them: load them again in Python"
    require(name != MEMORY, f"{again}, as in lab.load_data((images, labels)), and pass that as the data.")
    given = root is not None or spec.folders != ANYWHERE
    require(given, f"{name} needs a folder: pass it as root, or set it in the notebook your_data.")
    tried = " or ".join(str(_base(root) / leaf) for leaf in spec.folders)
    where = spec.where or f"fetch it with `iadd-lab data fetch {name}`"
    require(folder is not None, f"{spec.title} was looked for in {tried}, which is not there: {where}.")
    return folder


def load_data(source: Any, *, root: Path | None = None, progress: bool = True, **options: Any) -> ImageData:
    """Load a data set, and split it.

    Parts that the source has are honoured, validation images too; else they are drawn by class, or by group.

    Args:
        source: one of these.

            - a name, such as "cifar10" or "torchvision:SVHN"; or a `DataConfig`. Both are read from disk.
            - the path of a folder (a folder per class, also in train, validation and test; Parquet; pictures
              with a metadata.jsonl or .csv); of a .npz, .parquet, .zip or .tar; or of a table (.csv, .tsv,
              .jsonl) whose rows name pictures below its folder. A name wins over a path that is called so.
            - `(images, labels)`: arrays or tensors, of images (count, height, width), or with channels first
              or last; bytes, or numbers from 0 to 1, −1 to 1 or 0 to 255. Labels (count,) or (count, 1) are
              whole numbers or names, or one-hot (count, classes).
            - any map-style `Dataset` of (picture, label), or one of Hugging Face's `datasets`.
            - a dict of such, by part, as in `{"train": …, "test": …}`; or of arrays, as in a .npz.
        root: the folder that holds named data sets (None: `data_root()`); for "image_folder" and "files",
            where these pictures are.
        progress: show a bar while pictures are decoded.
        options: fields of `DataConfig` by name, as in `size=32, classes=("cat", "dog")`.

    Raises:
        InputError: the set is missing, damaged or incomplete, more than one reading of it fits, or it has too
            few images of a class.
    """
    config, root = settle(source, root, **options)
    in_memory = config.name == MEMORY and not isinstance(source, (DataConfig, str))
    spec, folder = config.spec, Path() if in_memory else require_data(config.name, root=root)
    request = Request(
        config=config,
        title=spec.title,
        folder=folder,
        cache=cache_root(),
        size=config.size or spec.size,
        channels=config.channels or spec.channels,
        progress=progress and sys.stderr is not None,
    )
    if in_memory:
        return _split(raw_data(parts_in_memory(source, config), request, source="memory"), config)
    try:
        raw = spec.reader(request)
    except OSError as error:
        raise InputError(f"{spec.title} in {folder} can't be read ({error}).") from error
    return _split(raw, config)


def _split(raw: RawData, config: DataConfig) -> ImageData:
    """Raw data with validation images, those of its own or held out."""
    title = config.spec.title
    check_whole(f"test_fold of {title}", config.test_fold, minimum=0, maximum=raw.folds - 1)
    named, test = raw.train.names is not None, raw.test
    grouped = named or raw.train.groups is not None or config.groups is None
    require(grouped, f"groups are of image files, which {title} has not.")
    seen, said = find_repeats(raw.train, test) if named else ([], [])
    if config.seen_test_images == "drop" and len(seen):
        test = test.take(np.delete(np.arange(len(test)), seen))
        said[0] += ", and are left out"
    splits = dict(zip(SPLITS, (*_hold_out(raw, config, title), test), strict=True))
    check_classes(title, raw.classes, splits)
    mark = fingerprint_splits(raw.classes, splits.values())
    config = config if raw.white in (None, WHITE) else replace(config, white=raw.white)
    said = "; ".join(filter(None, [raw.remark, *said]))
    return ImageData(config, raw.classes, **splits, fingerprint=mark, remark=said, folds=raw.folds)


def _hold_out(raw: RawData, config: DataConfig, title: str) -> tuple[Split, Split]:
    """What is to train on, at most `train_limit` images, and what is held out for validation."""
    train, validation = raw.train, raw.validation
    if validation is None:
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
_OWN = "that of the pictures: see their source"
_SIGNS = "(EMNIST|GTSRB|KMNIST|MNIST|Omniglot|QMNIST|RenderedSST2|SEMEION|SVHN|USPS)"  # of torchvision's
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
        ("your own images, a folder per class", _OWN),
        where="pass a folder of your own, with train and test inside or a folder per class",
    ),
    FILES: _spec(
        ("Your pictures", None, None, ANYWHERE, files.read_files),
        ("what lies at a path: class folders, an archive, .npz, a table, Parquet", _OWN),
        where="check the path",
    ),
    MEMORY: _spec(
        ("Your pictures", None, None, ANYWHERE, files.read_files),
        ("arrays or a data set in memory", _OWN),
    ),
}
