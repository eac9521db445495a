"""What is found on disk for a data set, read: arrays that libraries hand over, and trees of image files."""

import importlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath

import numpy as np
import torch

from iadd_lab.data.decoded import Decoded, ImageFile, Request, Tree, decode_tree
from iadd_lab.data.folders import LeftOut, class_folders, innermost, is_text, listed, pictures, split_folders
from iadd_lab.data.pixels import channels_of, resize_arrays
from iadd_lab.data.splits import Split, group, hold_out
from iadd_lab.errors import InputError, require

logger = logging.getLogger(__name__)

TEST_SEED = 20_240  # a set without a test part of its own always gets the same one
TINY_CLASSES = 200  # of the whole of Tiny ImageNet
PICKLES = "cifar-10-batches-py"  # torchvision's name for the folder of the original CIFAR-10


@dataclass(frozen=True, eq=False)
class RawData:
    """What a reader returns: the data before validation is held out.

    `white` is the value that became 255 in pictures of more than 8 bits, if there are any. `validation` is
    the source's own, which nothing of `train` then is held out for.
    """

    classes: tuple[str, ...]
    train: Split
    test: Split
    remark: str = ""
    folds: int = 1  # of test images: how often others can be held out; 1 for a set's own test part
    white: int | None = None
    validation: Split | None = None


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
        deeper = request.folder / request.folder.name
        folder = deeper if deeper.is_dir() else request.folder
        root = folder.parents[1 if folder.name == "raw" else 0]  # torchvision adds the rest
        parts = [kind(root, train=train, download=False) for train in (True, False)]
        classes = tuple(parts[0].classes)
        train, test = (_from_arrays(np.asarray(part.data), part.targets, request) for part in parts)
        highest = int(torch.cat([train.labels, test.labels]).max())
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a parser that meets damaged files may raise almost anything
        again = f"delete that folder, then `iadd-lab data fetch {request.config.name}`"
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
    tree = find_tree(request.folder)
    require(len(tree.parts) == 2, f"{request.folder} needs a folder train and a folder test.")
    lossy = any(file.path.lower().endswith((".jpg", ".jpeg")) for file in tree.files)
    return read_tree(tree, request, remark="CIFAR-10 from a tree of lossy JPEGs" if lossy else "")


def read_covid19(request: Request) -> RawData:
    """Chest X-rays in a folder per class, masks aside; a quarter is the test part, if there is none."""
    return read_tree(find_tree(request.folder), request, test_fraction=0.25)


def read_image_folder(request: Request) -> RawData:
    """A user's images: {train,test}/<class>/..., or <class>/... of which a fifth is the test part."""
    tree = find_tree(request.folder)
    if request.channels is None:
        few = tree.files[:: -(-len(tree.files) // 50)]  # evenly spread over the classes
        request = replace(request, channels=max(channels_of(file.path) for file in few))
    return read_tree(tree, request, test_fraction=0.2)


def read_tiny_imagenet(request: Request) -> RawData:
    """Tiny ImageNet; its validation images, which have labels, are the test part.

    Their labels are in val_annotations.txt, as in the official layout, or they lie in a folder per class.
    """
    left = LeftOut(request.folder)
    folder = innermost(request.folder, left)
    listing = folder / "wnids.txt"
    identifiers = [_plain_name(line, listing) for line in _read_text(listing).split()]
    twice = len(set(identifiers)) < len(identifiers)
    require(bool(identifiers) and not twice, f"{listing} is empty or names a class twice: unpack it again.")

    def files(place: Path) -> list[ImageFile]:
        return _class_files({name: [place / name] for name in identifiers}, left)

    places = (folder / "val", folder / "val" / "images")
    place = next((place for place in places if (place / identifiers[0]).is_dir()), None)
    test = files(place) if place else _tiny_test(folder, identifiers)
    parts = {"train": files(folder / "train"), "test": test}
    left.names["no picture"] = {name for name in left.names["no picture"] if not name.endswith("_boxes.txt")}
    # Fewer classes are easier to tell apart: published numbers are of all of them.
    count = len(identifiers)
    remark = f"Tiny ImageNet with {count} of its {TINY_CLASSES} classes" if count < TINY_CLASSES else ""
    return read_tree(Tree(left, _tiny_names(folder, identifiers), parts), request, remark=remark)


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
            files[str(path)] = image_file(str(path), identifiers.index(identifier))
    return list(files.values())


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _plain_name(name: str, source: Path) -> str:
    """`name`, unless it could lead out of its folder."""
    alone = name not in ("", ".", "..") and PureWindowsPath(name).name == name and "/" not in name
    require(alone and is_text(name), f"{source} names {name!r}; it must be a plain name without a path.")
    return name


def find_tree(root: Path, *, validation: bool = False) -> Tree:
    """The images below `root`, in {train,test}/<class>/... or <class>/..., and what is there beside them.

    A folder of validation images is left out, if they are not asked for.
    """
    left = LeftOut(root)
    folder = innermost(root, left)
    parts = split_folders(folder, left, validation=validation) or {"all": folder}
    folders = {part: class_folders(path, left) for part, path in parts.items()}
    names = [set(each) for each in folders.values()]
    odd = listed(set.union(*names) - set.intersection(*names))
    only = " and ".join(("some of train, validation" if len(names) > 2 else "only one of train", "test"))
    require(not odd, f"{folder} has class folders in {only} ({odd}): give both.")
    files = {part: _class_files(each, left) for part, each in folders.items()}
    return Tree(left, tuple(next(iter(folders.values()))), files)


def _class_files(classes: Mapping[str, Sequence[Path]], left: LeftOut) -> list[ImageFile]:
    """The images in each class's folders, sorted."""
    files: list[ImageFile] = []
    for label, folders in enumerate(classes.values()):
        require(folders[0].is_dir(), f"the class folder {folders[0]} is missing: unpack the set again.")
        paths = [path for folder in folders for path in pictures(folder, left)]
        if not paths:
            inside = listed(os.listdir(folders[0])) or "nothing in it"
            raise InputError(f"the class folder {folders[0]} has no images ({inside}): fill it or remove it.")
        files += [image_file(path, label) for path in paths]
    return files


def image_file(path: str, label: int) -> ImageFile:
    """The file at `path`, of the class with this index, as it is now."""
    status = (os.stat if os.path.exists(path) else os.lstat)(path)  # decoding names a link to nothing
    return ImageFile(path, label, status.st_size, status.st_mtime_ns)


def read_tree(
    tree: Tree,
    request: Request,
    *,
    test_fraction: float = 0.0,
    remark: str = "",
    groups: Mapping[str, str] | None = None,
) -> RawData:
    """Decode a tree, or take it from the cache; where it has no test part, hold `test_fraction` out.

    `groups` are those of the files, by their names below the tree's folder, where a table says them.
    """
    decoded = decode_tree(tree, request)
    skipped = _say_skipped(tree, decoded) if decoded.skipped else ""
    white = f"{decoded.white} is white in pictures of more than 8 bits" if decoded.white else ""
    parts = decoded.parts
    if groups is not None:
        parts = {
            name: replace(part, groups=np.array([groups[file] for file in part.names]))
            for name, part in parts.items()
        }
    elif rule := request.config.groups:
        parts = {name: group(part, rule, tree.left.root) for name, part in parts.items()}
        tree.left.names["outside of the class folders"].discard(rule)  # that file is used
    said = "; ".join(filter(None, (skipped, white, str(tree.left), remark)))
    raw = parted(tree.classes, parts, request, fraction=test_fraction, remark=said)
    return replace(raw, white=decoded.white)


def parted(
    classes: tuple[str, ...], parts: Mapping[str, Split], request: Request, *, fraction: float, remark: str
) -> RawData:
    """Raw data of a set's "train" and "test", "validation" too; or of "all", a `fraction` of it to test."""
    given = (parts.get("train"), parts.get("test"))
    train, test = given if "test" in parts else _hold_out_test(parts["all"], fraction, request)
    folds = 1 if "test" in parts else round(1 / fraction)
    return RawData(classes, train, test, remark, folds, validation=parts.get("validation"))


def _hold_out_test(split: Split, fraction: float, request: Request) -> tuple[Split, Split]:
    return hold_out(split, fraction, seed=[TEST_SEED], fold=request.config.test_fold)


def _say_skipped(tree: Tree, decoded: Decoded) -> str:
    """Log which images were skipped, and return the same as a remark.

    Raises:
        InputError: no image of a class is left in a part.
    """
    names = [os.path.relpath(path, tree.left.root) for path in decoded.skipped]
    said = f"{len(names)} of {len(tree.files)} images can't be decoded ({listed(names)})"
    for part, split in decoded.parts.items():
        for label in sorted({file.label for file in tree.parts[part]} - set(split.labels.tolist())):
            emptied = f"{tree.left.root} has no good image left of class {tree.classes[label]!r}"
            raise InputError(f"{emptied}: {said}; replace them.")
    telephone = any("pillow-heif" in reason for reason in decoded.skipped.values())
    said += " and were skipped" + (": install pillow-heif to read HEIC and AVIF" if telephone else "")
    logger.warning("%s: %s", tree.left.root, said)
    return said
