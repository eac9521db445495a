"""Folders of pictures as they really are: what in them is a picture, a class, a split, or none of these."""

import itertools
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from iadd_lab.data.pixels import is_picture
from iadd_lab.errors import require

NAMED = 10  # files are named up to so many
_DEEPEST = 4  # folders that an archive may be unpacked too deep
_CIRCLE = "links that go round in circles"

# What systems, storage boxes, archives and cameras leave between pictures, beside what a dot hides.
_STREWN = {"__macosx", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "picasa.ini"}
_STREWN |= {"@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "$recycle.bin", "recycler"}
_STREWN |= {"system volume information", "lost+found", "found.000", "zbthumbnail.info"}
_PARTIAL = (".thm", ".part", ".crdownload", ".tmp")  # cameras' thumbnails of videos, half downloads
_MASKS = re.compile(r"(segmentation|ground.?truth|annotation|mask|label)s?", re.IGNORECASE)

# How the folders of splits are called, as a word of their names; of the last three the first is to test on.
_SPLITS = {"train": "train(ing)?", "test": "test(ing)?", "evaluation": "eval(uation)?"}
_SPLITS |= {"validation": "val(id|idation)?|dev"}


def strewn(name: str) -> bool:
    """Whether no user put a file or folder of this name among the pictures."""
    return name.startswith((".", "~$")) or name.casefold() in _STREWN or name.lower().endswith(_PARTIAL)


def is_text(name: str) -> bool:
    """Whether `name` can be shown and stored: no control characters, no bytes that are not Unicode."""
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in name)


def listed(names: Iterable[str]) -> str:
    """The first of `names`, sorted, and how many more there are."""
    shown = [name if is_text(name) else repr(name) for name in sorted(names)]
    return ", ".join(shown[:NAMED]) + (f" and {len(shown) - NAMED} more" if len(shown) > NAMED else "")


class LeftOut:
    """What is passed over below `root`: counted and named, by the reason; and other notes on its folders."""

    def __init__(self, root: Path):
        self.root, self.names, self.notes = root, defaultdict(set), []

    def add(self, reason: str, path: Path | str) -> None:
        """Note a file, or a folder with the number of its files."""
        count = 0 if os.path.islink(path) else sum(len(files) for _, _, files in os.walk(path))
        name = os.path.relpath(path, self.root)
        self.names[reason].add(f"{name} with {count} files" if count else name)

    def forget(self, ending: str) -> None:
        """What belongs where it lies."""
        for names in self.names.values():
            names -= {name for name in names if name.endswith(ending)}

    def __str__(self) -> str:
        found = [
            f"{len(names)} {reason} ({listed(names)})"
            for reason, names in sorted(self.names.items())
            if names
        ]
        return "; ".join([*self.notes, *([f"left out: {', '.join(found)}"] if found else [])])

    def around(self, folder: Path) -> set[Path]:
        """The real places at and above `folder` and the root: a link to one of them is a circle."""
        return {place for path in (folder.resolve(), self.root.resolve()) for place in (path, *path.parents)}


def pictures(folder: Path, left: LeftOut) -> list[str]:
    """Paths of the pictures below `folder`, sorted; linked folders are entered, each real one once.

    Hidden and strewn files are none, nor are masks in a folder of their own beside the pictures.
    """
    found, folders, seen = [], [str(folder)], {str(place) for place in left.around(folder)}
    while folders:  # not by recursion, which a deep tree would exhaust
        with os.scandir(folders.pop()) as entries:
            inside = [entry for entry in entries if _kept(entry, left)]
        for entry in inside:
            if not (entry.is_dir(follow_symlinks=False) or os.path.isdir(entry.path)):
                if is_picture(entry.path):
                    found.append(entry.path)
                else:
                    left.add("files that are no pictures", entry.path)
            elif _MASKS.fullmatch(entry.name) and len(inside) > 1:
                left.add("folders of masks", entry.path)
            elif (real := os.path.realpath(entry.path)) in seen:
                left.add(_CIRCLE, entry.path)
            else:
                seen.add(real)
                folders.append(entry.path)
    return sorted(found)


def _kept(entry: os.DirEntry | Path, left: LeftOut) -> bool:
    if strewn(entry.name):
        left.add("hidden or system files", entry)
    return not strewn(entry.name)


def _folders(folder: Path) -> dict[str, Path]:
    """Folders in `folder` by name; of names that differ in their Unicode form only, the last."""
    inside = sorted(path for path in folder.iterdir() if not strewn(path.name) and path.is_dir())
    return {unicodedata.normalize("NFC", path.name): path for path in inside}


def class_folders(folder: Path, left: LeftOut) -> dict[str, list[Path]]:
    """The class folders in `folder` by name, sorted; names that differ in their Unicode form only are one."""
    found, around = defaultdict(list), left.around(folder)
    for path in (path for path in sorted(folder.iterdir()) if _kept(path, left)):
        if not path.is_dir():
            left.add("files outside of the class folders", path)
        elif path.resolve() in around:
            left.add(_CIRCLE, path)
        else:
            found[unicodedata.normalize("NFC", path.name)].append(path)
    require(len(found) >= 2, f"{folder} has {len(found)} class folders; it needs at least two.")
    for name in found:
        require(is_text(name), f"{folder} has a class folder {name!r}, which is no plain text: rename it.")
    return dict(sorted(found.items()))


def innermost(folder: Path) -> Path:
    """`folder`, or the one below it in which the classes lie: an archive may be unpacked too deep."""
    for _ in range(_DEEPEST):
        inside = list(_folders(folder).values())
        if len(inside) != 1 or not _folders(inside[0]) or any(map(_is_picture_file, inside[0].iterdir())):
            break
        (folder,) = inside
    return folder


def _is_picture_file(path: Path) -> bool:
    return path.is_file() and not strewn(path.name) and is_picture(str(path))


def _role(name: str) -> str:
    """The key of `_SPLITS` whose word a folder's name has, as Training, test_set or seg_train have."""
    words = re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower()
    ends = "(set|data|images?)?(?![a-z])"
    return next((role for role, word in _SPLITS.items() if re.search(f"(?<![a-z])({word}){ends}", words)), "")


def _exact(path: Path) -> bool:
    return any(re.fullmatch(word, path.name.lower()) for word in _SPLITS.values())


def split_folders(folder: Path, left: LeftOut) -> dict[str, Path]:
    """The folders "train" and "test" in `folder`, by any usual name, or none where it has a folder per class.

    Without one to test on that has the classes, that of validation is; other folders are left out. A class
    may be called train or test too: splits hold folders, some of the same names.

    Raises:
        InputError: it cannot be told which folders are the splits, or one of the two is missing.
    """
    roles: dict[str, list[Path]] = defaultdict(list)
    inside = list(_folders(folder).values())
    for path in (path for path in inside if _role(path.name)):
        roles[_role(path.name)].append(path)
    roles = {role: [path for path in paths if _exact(path)] or paths for role, paths in roles.items()}
    classes = {path: _folders(innermost(path)).keys() for paths in roles.values() for path in paths}
    train, ends = roles.get("train", []), [roles[role] for role in [*_SPLITS][1:] if role in roles]
    for test in ends:
        pairs = [pair for pair in itertools.product(train, test) if classes[pair[0]] & classes[pair[1]]]
        several = f"{folder} has several folders to train or to test on ({listed(p.name for p in inside)})"
        require(len(pairs) <= 1, f"{several}: keep one of each.")
        for pair in pairs:
            for path in set(inside) - set(pair):
                left.add("folders beside those to train and to test on", path)
            if _role(pair[1].name) != "test":
                left.notes.append(f"{pair[1].name} is the test part")
            return {part: innermost(path) for part, path in zip(("train", "test"), pair, strict=True)}
    named = [path for path in (*train, *itertools.chain(*ends)) if _exact(path)]
    nested = [path for path in named if classes[path] and not any(map(_is_picture_file, path.iterdir()))]
    require(
        not nested and (len(named) < 2 or len(named) < len(inside)),
        f"{folder} has only one of train and test with a folder per class in it "
        f"({listed(path.name for path in named)}): give both the same class folders, or a folder per class.",
    )
    return {}
