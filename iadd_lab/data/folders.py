"""Folders of pictures as they really are: what in them is a picture, a class, a split, or none of these."""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from itertools import chain, product
from pathlib import Path

from iadd_lab.data.pixels import is_picture
from iadd_lab.errors import require

NAMED = 10  # files are named up to so many
_DEEPEST = 4  # so many folders too deep an archive may be unpacked

# What systems, storage boxes, archives and cameras leave between pictures; .thm are videos' thumbnails.
_STREWN = re.compile(
    r"\..*|~\$.*|.*\.(thm|part|crdownload|tmp)|__macosx|__pycache__|(eh)?thumbs\.db|desktop\.ini|icon\r"
    r"|picasa\.ini|zbthumbnail\.info|@(eadir|recycle|recently-snapshot)|#(recycle|snapshot)|\$recycle\.bin"
    r"|recycler|system volume information|lost\+found|found\.\d+",
    re.IGNORECASE | re.DOTALL,
)
_MASKS = re.compile(r"(segmentation|ground.?truth|annotation|mask|label)s?", re.IGNORECASE)
_NO_CLASS = re.compile(rf"images?|{_MASKS.pattern}", re.IGNORECASE)
# How the folders of splits are called, in a word of their names; of the last three one is to test on.
_SPLITS = {"train": "train(ing)?", "test": "test(ing)?", "eval": "eval(uation)?", "val": "val(id|idation)?"}


def is_text(name: str, *, controls: bool = False) -> bool:
    """Whether `name` can be stored: no bytes that are not Unicode, nor control characters if not allowed."""
    refused = ("Cs",) if controls else ("Cc", "Cs")
    return not any(unicodedata.category(character) in refused for character in name)


def on_one_line(name: str) -> str:
    """`name` as text can show it: an escape for what breaks lines, turns the direction, or is no Unicode."""
    odd = "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
    return re.sub(odd, lambda found: ascii(found[0])[1:-1], name)


def listed(names: Iterable[str]) -> str:
    """The first of `names`, sorted, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(on_one_line, names[:NAMED])) + more


class LeftOut:
    """What is passed over below `root`: counted and named, by the reason; and notes on its folders."""

    def __init__(self, root: Path):
        self.root, self.names, self.notes = root, defaultdict(set), []

    def add(self, reason: str, path: Path | str) -> None:
        """Note a file, or a folder with the number of its files."""
        count = 0 if os.path.islink(path) else sum(len(files) for _, _, files in os.walk(path))
        name = os.path.relpath(path, self.root)
        self.names[reason].add(f"{name} with {count} files" if count else name)

    def add_beside(self, folder: Path, read: Iterable[Path]) -> None:
        """Note what is in `folder` beside the folders that are `read`."""
        for path in set(_visible(folder, self)) - {str(path) for path in read}:
            self.add("outside of the class folders", path)

    def __str__(self) -> str:
        some = sorted((reason, names) for reason, names in self.names.items() if names)
        found = [f"{len(names)} {reason} ({listed(names)})" for reason, names in some]
        return "; ".join([*self.notes, *([f"left out: {', '.join(found)}"] if found else [])])


def _visible(folder: Path | str, left: LeftOut) -> list[str]:
    """Paths of what is in `folder`, sorted, but for what is hidden or strewn."""
    paths = [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
    for path in (path for path in paths if _STREWN.fullmatch(os.path.basename(path))):
        left.add("hidden or of a system", path)
    return [path for path in paths if not _STREWN.fullmatch(os.path.basename(path))]


def _at_and_above(folder: Path) -> set[str]:
    """Real places that a link in `folder` must not lead to: it would go round in circles."""
    return {str(path) for path in (folder.resolve(), *folder.resolve().parents)}


def pictures(folder: Path, left: LeftOut) -> list[str]:
    """Paths of the pictures below `folder`, sorted; linked folders are entered, each real one once.

    Masks in a folder of their own beside the pictures are none.
    """
    found, folders, seen = [], [str(folder)], _at_and_above(folder)
    while folders:  # not by recursion, which a deep tree would exhaust
        inside = _visible(folders.pop(), left)
        for path in inside:
            if not os.path.isdir(path):
                if is_picture(path):
                    found.append(path)
                else:
                    left.add("no picture", path)
            elif _MASKS.fullmatch(os.path.basename(path)) and len(inside) > 1:
                left.add("of masks", path)
            elif (real := os.path.realpath(path)) in seen:
                left.add("linked again or in circles", path)
            else:
                seen.add(real)
                folders.append(path)
    return sorted(found)


def class_folders(folder: Path, left: LeftOut) -> dict[str, list[Path]]:
    """The class folders in `folder` by name, sorted; names that differ in their Unicode form only are one."""
    found, inside = defaultdict(list), _folders(folder, left)
    left.add_beside(folder, inside)
    for path in inside:
        found[_name(path)].append(path)
    require(len(found) >= 2, f"{folder} has {len(found)} class folders; it needs at least two.")
    for name in found:
        said = f"{folder} has a class folder {name!r}, which is no Unicode: rename it."
        require(is_text(name, controls=True), said)
    return dict(sorted(found.items()))


def _folders(folder: Path, left: LeftOut) -> list[Path]:
    """Folders in `folder`, but for links to itself or above it."""
    inside, above = filter(os.path.isdir, _visible(folder, left)), _at_and_above(folder)
    return [Path(path) for path in inside if os.path.realpath(path) not in above]


def _name(path: Path) -> str:
    """Its name in one Unicode form: that of a folder from a Mac is another than that from Linux."""
    return unicodedata.normalize("NFC", path.name)


def _class_names(folder: Path, left: LeftOut) -> set[str]:
    """Names of the folders in `folder` that may be classes: images and their masks may lie in two folders."""
    return {name for name in map(_name, _folders(folder, left)) if not _NO_CLASS.fullmatch(name)}


def innermost(folder: Path, left: LeftOut) -> Path:
    """`folder`, or the one below it in which the classes lie: an archive may be unpacked too deep."""
    for _ in range(_DEEPEST):
        inside = _folders(folder, left)
        if len(inside) != 1 or not _folders(inside[0], left):
            break
        left.add_beside(folder, inside)
        (folder,) = inside
    return folder


def _role(name: str) -> str:
    """The key of `_SPLITS` whose word a folder's name has, as Training, test_set or seg_train have; or ""."""
    words = re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower()
    ends = "(set|data|images?)?(?![a-z])"
    return next((role for role, word in _SPLITS.items() if re.search(f"(?<![a-z])({word}){ends}", words)), "")


def split_role(name: str) -> str:
    """The part of a set that a usual name stands for: "train", "validation", "test"; or "" for none."""
    role = _role(name)
    return "validation" if role in ("val", "eval") else role


def split_folders(folder: Path, left: LeftOut, *, validation: bool = False) -> dict[str, Path]:
    """The folders "train" and "test" in `folder`, by any usual name, or none where it has a folder per class.

    Where that to test on has no classes, that of validation is taken. Other folders are left out, but for one
    of `validation` where that is asked for. A class may be called train or test too: splits hold folders,
    some of the same names.

    Raises:
        InputError: it cannot be told which folders are the splits, or one of the two is missing.
    """
    inside = _folders(folder, left)
    roles = {role: [path for path in inside if _role(path.name) == role] for role in _SPLITS}
    train, *others = roles.values()
    unsaid = LeftOut(folder)  # they may be classes, whose files are no part of what is left out
    classes = {path: _class_names(innermost(path, unsaid), unsaid) for path in chain(train, *others)}
    shown = listed(map(_name, inside))
    for role, test in zip([*roles][1:], others, strict=True):
        pairs = [(one, other) for one, other in product(train, test) if classes[one] & classes[other]]
        several = f"{folder} has several folders to train or to test on ({shown})"
        require(len(pairs) < 2, f"{several}: keep one of each.")
        for pair in pairs:
            more = [path for path in roles["val"] if validation and path not in pair and classes[path]][:1]
            left.add_beside(folder, [*pair, *more])
            left.notes += [f"{pair[1].name} is the test part"] if role != "test" else []
            named = zip(("train", "test", "validation"), [*pair, *more], strict=False)
            return {part: innermost(path, left) for part, path in named}
    bare = [path for path in classes if not any(map(is_picture, _visible(path, left)))]
    mistaken = any(classes[path] for path in bare) or (train and any(others) and len(classes) == len(inside))
    lack = f"{folder} has only one of train and test with a folder per class in it ({shown})"
    require(not mistaken, f"{lack}: give both, with the same classes, or a folder per class.")
    within = ({_role(each.name) for each in _folders(path, left)} for path in inside)
    swapped = bool(inside) and all({"train", "test"} <= roles for roles in within)
    require(not swapped, f"{folder} has splits in its classes ({shown}): put these into train and test.")
    return {}
