"""What is found on disk for a data set, read: arrays that libraries hand over, and trees of image files."""

import importlib
import logging
import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath

import numpy as np
import torch

from iadd_lab.data.decoded import Decoded, ImageFile, Request, Tree, decode_tree
from iadd_lab.data.pixels import is_grey, resize_arrays
from iadd_lab.data.splits import Split, hold_out
from iadd_lab.errors import InputError, require

logger = logging.getLogger(__name__)

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
HIDDEN = (".", "__MACOSX")  # what unpacking leaves behind
NAMED = 10  # skipped images are named up to so many
TEST_SEED = 20_240  # a set without a test part of its own always gets the same one
TINY_CLASSES = 200  # of the whole of Tiny ImageNet
PICKLES = "cifar-10-batches-py"  # torchvision's name for the folder of the original CIFAR-10


@dataclass(frozen=True, eq=False)
class RawData:
    """What a reader returns: the data before validation is held out."""

    classes: tuple[str, ...]
    train: Split
    test: Split
    remark: str = ""
    folds: int = 1  # of test images: how often others can be held out; 1 for a set's own test part


def read_digits(request: Request) -> RawData:
    """scikit-learn's 1,797 digits, values 0..16 stretched to 0..255; a quarter is the test part."""
    from sklearn.datasets import load_digits  # takes a second to import, and only this set needs it

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8)
    parts = _hold_out_test(_from_arrays(images, digits.target, request), 0.25, request)
    return RawData(tuple(str(name) for name in digits.target_names), *parts, folds=4)


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
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a parser that meets damaged files may raise almost anything
        again = f"delete that folder, then `iadd-lab data fetch {request.name}`"
        raise InputError(f"{request.title} in {request.folder} is incomplete or damaged: {again}.") from error
    known = highest < len(classes)
    require(known, f"{request.title} in {request.folder} has a label {highest}, but {len(classes)} classes.")
    return RawData(classes, train, test)


def download_torchvision(dataset: str, root: Path) -> None:
    """Have torchvision download the set of that class into `root`, where it is not there yet."""
    _torchvision_class(dataset)(root, train=True, download=True)


def _from_arrays(images: np.ndarray, labels: Sequence[int] | torch.Tensor, request: Request) -> Split:
    planes = resize_arrays(images, request.size, request.channels)
    return Split(torch.from_numpy(planes), torch.as_tensor(labels, dtype=torch.int64))


def _torchvision_class(name: str) -> Callable:
    # It takes two seconds to import, which only its own sets should cost.
    return getattr(importlib.import_module("torchvision.datasets"), name)


def read_cifar10(request: Request) -> RawData:
    """CIFAR-10 from torchvision's pickles, or from a tree {train,test}/<class>/*.jpg|png."""
    if request.folder.name == PICKLES:
        return read_torchvision("CIFAR10", request)
    tree = _split_tree(request.folder)
    lossy = any(file.path.lower().endswith((".jpg", ".jpeg")) for file in tree.files)
    return _read_tree(tree, request, remark="CIFAR-10 from a tree of lossy JPEGs" if lossy else "")


def read_covid19(request: Request) -> RawData:
    """Chest X-rays in a folder per class, masks aside; a quarter is the test part."""
    return _read_tree(_one_tree(request.folder), request, test_fraction=0.25)


def read_image_folder(request: Request) -> RawData:
    """A user's images: {train,test}/<class>/..., or <class>/... of which a fifth is the test part.

    Beside train and test, other folders are left alone.
    """
    parts = [(request.folder / part).is_dir() for part in ("train", "test")]
    odd = f"{request.folder} has only one of train and test: give both, or a folder per class."
    require(all(parts) or not any(parts), odd)
    tree = _split_tree(request.folder) if all(parts) else _one_tree(request.folder)
    if request.channels is None:
        few = tree.files[:: -(-len(tree.files) // 50)]  # evenly spread over the classes
        request = replace(request, channels=1 if all(is_grey(file.path) for file in few) else 3)
    return _read_tree(tree, request, test_fraction=0.2)


def read_tiny_imagenet(request: Request) -> RawData:
    """Tiny ImageNet in its official layout; its validation images, which have labels, are the test part."""
    folder = request.folder
    listed = folder / "wnids.txt"
    identifiers = [_plain_name(line, listed) for line in _read_text(listed).split()]
    twice = len(set(identifiers)) < len(identifiers)
    require(bool(identifiers) and not twice, f"{listed} is empty or names a class twice: unpack it again.")
    parts = {"train": _class_files(folder / "train", identifiers), "test": _tiny_test(folder, identifiers)}
    # Fewer classes are easier to tell apart: published numbers are of all of them.
    count = len(identifiers)
    remark = f"Tiny ImageNet with {count} of its {TINY_CLASSES} classes" if count < TINY_CLASSES else ""
    return _read_tree(Tree(_tiny_names(folder, identifiers), parts), request, remark=remark)


def _tiny_names(folder: Path, identifiers: list[str]) -> tuple[str, ...]:
    """Class names: the first word of words.txt for each identifier, else the identifier itself."""
    listed = folder / "words.txt"
    lines = _read_text(listed).splitlines() if listed.is_file() else []
    words = {line.partition("\t")[0].strip(): line.partition("\t")[2] for line in lines}
    return tuple(words.get(each, "").split(",")[0].strip() or each for each in identifiers)


def _tiny_test(folder: Path, identifiers: list[str]) -> list[ImageFile]:
    """The files that val_annotations.txt gives to one of `identifiers`."""
    notes = folder / "val" / "val_annotations.txt"
    files: dict[str, ImageFile] = {}
    for number, line in enumerate(_read_text(notes).splitlines(), start=1):
        name, identifier = (part.strip() for part in [*line.split("\t"), ""][:2])
        here = f"line {number} of {notes}"
        require(bool(identifier) or not line.strip(), f"{here} is {line!r}; it names no class.")
        if identifier in identifiers:
            path = folder / "val" / "images" / _plain_name(name, notes)
            require(path.is_file(), f"{path} is missing, though {here} names it.")
            require(str(path) not in files, f"{here} names {path.name} a second time.")
            files[str(path)] = _image_file(str(path), identifiers.index(identifier))
    return list(files.values())


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _plain_name(name: str, source: Path) -> str:
    """`name`, unless it could lead out of its folder."""
    alone = name not in ("", ".", "..") and PureWindowsPath(name).name == name and "/" not in name
    require(alone and _is_text(name), f"{source} names {name!r}; it must be a plain name without a path.")
    return name


def _is_text(name: str) -> bool:
    """Whether `name` can be shown and stored: no control characters, no bytes that are not Unicode."""
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in name)


def _split_tree(folder: Path) -> Tree:
    """The tree {train,test}/<class>/...; both parts must have the same classes."""
    for part in ("train", "test"):
        require((folder / part).is_dir(), f"{folder / part} is missing: {folder} needs train and test.")
    train, test = (_one_tree(folder / part) for part in ("train", "test"))
    odd = ", ".join(sorted(set(train.classes) ^ set(test.classes)))
    require(not odd, f"{folder} has class folders in only one of train and test ({odd}): give both.")
    return Tree(train.classes, {"train": train.files, "test": test.files})


def _one_tree(folder: Path) -> Tree:
    """The tree <class>/..., classes by name."""
    classes = sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(HIDDEN)
    )
    require(len(classes) >= 2, f"{folder} has {len(classes)} class folders; it needs at least two.")
    for name in classes:
        require(_is_text(name), f"{folder} has a class folder {name!r}, which is no plain text: rename it.")
    return Tree(tuple(classes), {"all": _class_files(folder, classes)})


def _class_files(root: Path, classes: Sequence[str]) -> list[ImageFile]:
    """The images of each class's folder below `root`, sorted; only those in its `images`, if it has that."""
    files: list[ImageFile] = []
    extensions = " ".join(IMAGE_EXTENSIONS)
    for label, folder in enumerate(root / name for name in classes):
        require(folder.is_dir(), f"the class folder {folder} is missing: unpack the set again.")
        inner = folder / "images"  # masks lie beside it
        paths = sorted(image_paths(inner if inner.is_dir() else folder))
        require(bool(paths), f"the class folder {folder} has no images ({extensions}): fill it or remove it.")
        files += [_image_file(path, label) for path in paths]
    return files


def image_paths(folder: Path) -> Iterator[str]:
    """Image files below `folder`, hidden ones aside; linked folders are not entered, they might be loops."""
    folders = [str(folder)]
    while folders:  # not by recursion, which a deep tree would exhaust
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.name.startswith(HIDDEN):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif entry.name.lower().endswith(IMAGE_EXTENSIONS) and not entry.is_dir():
                    yield entry.path


def _image_file(path: str, label: int) -> ImageFile:
    status = os.stat(path)
    require(Path(path).is_file(), f"{path} is no regular file: remove it.")  # a pipe would wait for ever
    return ImageFile(path, label, status.st_size, status.st_mtime_ns)


def _read_tree(tree: Tree, request: Request, *, test_fraction: float = 0.0, remark: str = "") -> RawData:
    """Decode a tree, or take it from the cache; where it has no test part, hold `test_fraction` out."""
    decoded = decode_tree(tree, request)
    skipped = _say_skipped(tree, decoded, request) if decoded.skipped else ""
    parts, folds = decoded.parts.values(), 1
    if len(parts) == 1:
        parts, folds = _hold_out_test(*parts, test_fraction, request), round(1 / test_fraction)
    return RawData(tree.classes, *parts, "; ".join(filter(None, (skipped, remark))), folds)


def _hold_out_test(split: Split, fraction: float, request: Request) -> tuple[Split, Split]:
    return hold_out(split, fraction, seed=[TEST_SEED], fold=request.test_fold)


def _say_skipped(tree: Tree, decoded: Decoded, request: Request) -> str:
    """Log which images were skipped, and return the same as a remark.

    Raises:
        InputError: no image of a class is left in a part.
    """
    names = [os.path.relpath(path, request.folder) for path in decoded.skipped]
    shown = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    said = f"{len(names)} of {len(tree.files)} images can't be decoded ({shown})"
    for part, split in decoded.parts.items():
        for label in sorted({file.label for file in tree.parts[part]} - set(split.labels.tolist())):
            emptied = f"{request.folder} has no good image left of class {tree.classes[label]!r}"
            raise InputError(f"{emptied}: {said}; replace them.")
    logger.warning("%s: %s and were skipped", request.folder, said)
    return f"{said} and were skipped"
