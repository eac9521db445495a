"""What people have on disk: class folders, archives of them, .npz, tables beside pictures, Parquet."""

import contextlib
import hashlib
import importlib
import inspect
import json
import os
import re
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from iadd_lab.data.arrays import USUAL_SIZE
from iadd_lab.data.decoded import Request, Tree
from iadd_lab.data.folders import LeftOut, listed, pictures
from iadd_lab.data.pixels import LARGEST_SIZE, channels_of, open_picture
from iadd_lab.data.readers import RawData, find_tree, image_file, read_tree
from iadd_lab.data.sources import (
    PEEKED,
    TEST_FRACTION,
    by_role,
    labelled,
    parts_in_memory,
    parts_of_arrays,
    parts_of_columns,
    raw_data,
)
from iadd_lab.errors import InputError, choose, require

_UNPACKED = (2**30, 50)  # an archive may unpack to so many bytes, or to so many times its own
_TABLES = ("metadata.jsonl", "metadata.csv")  # what Hugging Face's image folders have in them
_FILE = r"(file|image|img|picture|photo)?_?(file_?)?(name|path|id)?s?"  # how a column of files may be called
# What torchvision's sets call their parts, best first.
_SPLITS = {"train": ("train", "trainval"), "validation": ("val", "valid"), "test": ("test", "val", "valid")}


def read_files(request: Request) -> RawData:
    """Pictures in any form in which they lie on disk, at `request.folder`; see `load_data`."""
    path = request.folder
    if path.is_dir():
        return _read_folder(request)
    ending = re.search(r"(\.tar)?\.\w+$|$", path.name.lower())[0]
    reader = choose("kind of file", ending, FILE_READERS)
    with _readable(path):
        return reader(request)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Where a file is read: what a parser can't make sense of is an `InputError` that names it."""
    try:
        yield
    except (InputError, OSError, MemoryError):
        raise
    except Exception as error:  # a parser that meets damaged files may raise almost anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} can't be read ({reason}): is it damaged?") from error


def _read_folder(request: Request) -> RawData:
    """A folder: of Parquet, of pictures with a table, or of class folders."""
    folder, classes = request.folder, request.config.classes
    if shards := sorted(folder.rglob("*.parquet")):
        with _readable(folder):
            return _read_parquet(request, shards)
    tables = [folder / name for name in _TABLES if (folder / name).is_file()]
    if tables:
        return _read_table(replace(request, folder=tables[0]))
    tree = find_tree(folder, validation=True)
    if classes is not None:
        told = f"{folder} has the classes {listed(tree.classes)}, not {listed(classes)}: name all of them."
        require(set(classes) == set(tree.classes), told)
        place = [classes.index(name) for name in tree.classes]
        moved = [[file._replace(label=place[file.label]) for file in part] for part in tree.parts.values()]
        tree = Tree(tree.left, classes, dict(zip(tree.parts, moved, strict=True)))
    return _read_pictures(tree, request)


def _read_pictures(tree: Tree, request: Request, **options: Any) -> RawData:
    """Files of pictures, of their own size if they have one, and in colour if one of some is."""
    few, sizes = [file.path for file in tree.files[:: -(-len(tree.files) // PEEKED)]], set()
    for path in few:
        with contextlib.suppress(Exception), open_picture(path) as image:  # decoding meets it again
            sizes.add(image.size)
    own = min(*sizes.pop(), LARGEST_SIZE) if len(sizes) == 1 else USUAL_SIZE
    channels = request.channels or max(map(channels_of, few))
    request = replace(request, size=request.size or own, channels=channels)
    return read_tree(tree, request, test_fraction=TEST_FRACTION, **options)


def _read_npz(request: Request) -> RawData:
    """Named arrays, as MedMNIST and Keras store them, or images and labels."""
    name = request.folder.name
    with np.load(request.folder, allow_pickle=False) as file:
        # Nobody else knows the parts: what has been read of them is freed.
        return raw_data(parts_of_arrays(dict(file), request.config, name), request, source=name)


def _read_table(request: Request) -> RawData:
    """A table whose rows name pictures below its folder, and their classes; maybe their part and group."""
    import pandas as pd  # takes a second to import, and other sources don't need it

    path, config, left = request.folder, request.config, LeftOut(request.folder.parent)
    if path.suffix == ".jsonl":
        table = pd.read_json(path, lines=True, dtype=False)
    else:
        kind = {"sep": "\t" if path.suffix == ".tsv" else ",", "dtype": str, "encoding": "utf-8-sig"}
        table = pd.read_csv(path, keep_default_na=False, **kind)
    words = {str(name): [*map(str, table[name])] for name in table}
    named, files = _files_of(path, words, config.image_column, left)
    columns = {str(name): table[name].to_numpy() for name in table if name != named} | {"image": files}
    for name in columns:
        with contextlib.suppress(ValueError, TypeError):  # numbers are sorted as such
            columns[name] = pd.to_numeric(columns[name])
    parts = parts_of_columns(columns, replace(config, image_column="image"), path.name)
    parts, notes = by_role(parts, path.name)
    classes, indices, _ = labelled(parts, config, path.name)
    found = {name: [*map(image_file, part.images, indices[name].tolist())] for name, part in parts.items()}
    groups = {
        os.path.relpath(file, path.parent): group
        for part in parts.values()
        for file, group in zip(part.images, () if part.groups is None else part.groups, strict=False)
    }
    request, remark = replace(request, folder=path.parent), "; ".join(notes)
    return _read_pictures(Tree(left, classes, found), request, remark=remark, groups=groups or None)


def _files_of(
    path: Path, table: Mapping[str, list[str]], given: str | None, left: LeftOut
) -> tuple[str, np.ndarray]:
    """The column of files, and the picture of each row; pictures that no row names are noted in `left`.

    Rows name them by their paths below the table's folder, or by names of files with or without an ending.
    """
    known: dict[str, set[str]] = {}
    every = pictures(path.parent, left)
    for file in every:
        below = os.path.relpath(file, path.parent)
        for word in (below, os.path.basename(below)):
            for each in (word, os.path.splitext(word)[0]):
                known.setdefault(each, set()).add(file)
    found = {
        name: [known.get(os.path.normpath(word), set()) for word in words] for name, words in table.items()
    }
    fitting = [name for name, places in found.items() if any(places)]
    called = [name for name in table if re.fullmatch(_FILE, name.lower())]
    names = [choose("column", given, {name: name for name in table})] if given else fitting or called[:1]
    told = f"{path} has no column that names pictures in {path.parent} (columns: {listed(table)})"
    require(bool(names) and bool(found[names[0]]), f"{told}: put it beside them, or give image_column=.")
    places, words = found[names[0]], table[names[0]]
    several = f"the columns {listed(names)} of {path} all name pictures, but not the same"
    require(all(found[name] == places for name in names), f"{several}: choose by image_column=.")
    absent = [word for word, place in zip(words, places, strict=True) if not place]
    told = f"{path} names {len(absent)} pictures that are not in {path.parent} ({listed(absent)})"
    require(not absent, f"{told}: put them there, or take the rows out.")
    twice = {word for word, place in zip(words, places, strict=True) if len(place) > 1}
    twice |= {word for word, count in Counter(words).items() if count > 1}
    told = f"several rows of {path} or several files are called {listed(twice)}"
    require(not twice, f"{told}: keep one row for each picture, and give its folder.")
    files = np.array([next(iter(place)) for place in places], dtype=object)
    for file in {*every} - {*files}:
        left.add("in no row of the table", file)
    left.names["no picture"].discard(path.name)
    return names[0], files


def _read_parquet(request: Request, shards: Sequence[Path] = ()) -> RawData:
    """Parquet as `datasets` writes it: pictures as the bytes of files; shards are named by their part."""
    import pandas as pd

    shards, parts = shards or [request.folder], {}
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        told = f"{request.folder} is Parquet, which pyarrow reads: pip install 'iadd-lab[parquet]'."
        raise InputError(told) from error
    of_part: dict[str, list[Path]] = {}
    for shard in shards:
        word = shard.parent.name if shard.parent != request.folder else re.split(r"[-.]", shard.name)[0]
        of_part.setdefault(word, []).append(shard)
    for word, files in of_part.items():
        said = json.loads((parquet.read_schema(files[0]).metadata or {}).get(b"huggingface", b"{}"))
        frame = pd.concat(map(pd.read_parquet, files))
        columns = {str(name): frame[name].to_numpy() for name in frame}
        types = said.get("info", {}).get("features")
        own = parts_of_columns(columns, request.config, f"{request.folder.name} ({word})", types)
        parts |= own if len(of_part) == 1 else {word: next(iter(own.values()))}
    return raw_data(parts, request, source=request.folder.name)


def _read_archive(request: Request) -> RawData:
    """An archive, unpacked once into the cache, under its content's name, and read as a folder.

    zipfile and tarfile keep what they unpack inside of the folder that they are given.
    """
    path = request.folder
    with path.open("rb") as file:
        target = request.cache / f"unpacked-{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"
    if not target.is_dir():
        request.cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=request.cache) as folder:
            _unpack(path, Path(folder) / "whole")
            with contextlib.suppress(OSError):  # another process was faster
                (Path(folder) / "whole").rename(target)
    return _read_folder(replace(request, folder=target))


def _unpack(path: Path, target: Path) -> None:
    """Write the files of an archive into `target`, if they are not far larger than it; links are refused."""
    zipped = zipfile.is_zipfile(path)
    with zipfile.ZipFile(path) if zipped else tarfile.open(path) as archive:
        members = archive.infolist() if zipped else archive.getmembers()
        names = [each.filename if zipped else each.name for each in members]
        odd = [name for name in names if re.search(r"(^|[/\\])\.\.([/\\]|$)|^[/\\]|^\w:", name)]
        odd += [] if zipped else [each.name for each in members if not (each.isfile() or each.isdir())]
        told = f"{path} has links, or names that lead out of it ({listed(odd)})"
        require(not odd, f"{told}: make it of files alone.")
        total, (least, times) = sum(each.file_size if zipped else each.size for each in members), _UNPACKED
        told = f"{path} unpacks to {total} bytes, more than {times} times its own"
        require(total <= max(least, times * path.stat().st_size), f"{told}: unpack it by hand.")
        archive.extractall(target, **({} if zipped else {"filter": "data"}))


def _torchvision_parts(word: str, root: Path, *, download: bool) -> dict[str, Any]:
    """The parts of a set NAME or NAME/SPLIT of torchvision's in `root`, as its data sets."""
    name, _, split = word.partition("/")
    module = importlib.import_module("torchvision.datasets")
    kinds = {each: getattr(module, each) for each in module.__all__}
    kind = choose("data set of torchvision", name, kinds)
    known, like_mnist = inspect.signature(kind).parameters, issubclass(kind, module.MNIST)
    options = {"download": download} if "download" in known or like_mnist else {}
    options |= {"split": split} if split else {}
    if "train" in known or like_mnist:
        return {part: kind(root, train=part == "train", **options) for part in ("train", "test")}
    if "split" not in known or split:
        return {"all": kind(root, **options)}
    parts, used = {}, set()
    for part, words in _SPLITS.items():
        for each in (each for each in words if part not in parts and each not in used):
            with contextlib.suppress(ValueError):  # it has no such part
                parts[part] = kind(root, split=each, **options)
                used.add(each)
    return parts


def read_torchvision_set(word: str, request: Request) -> RawData:
    """A set NAME or NAME/SPLIT of torchvision's, in `request.folder` or in a folder of its name there."""
    name, found = word.partition("/")[0], []
    for place in (request.folder, request.folder / name, request.folder / name.lower()):
        try:
            parts = _torchvision_parts(word, place, download=False)
        except (InputError, MemoryError):
            raise
        except Exception as error:  # a set that is not there, or damaged, may raise almost anything
            found.append(error)
        else:
            return raw_data(parts_in_memory(parts, request.config), request, source=f"torchvision:{word}")
    reason = " ".join(str(found[0]).split())
    told = f"torchvision:{word} can't be read in {request.folder} ({reason})"
    raise InputError(f"{told}: fetch it with `iadd-lab data fetch torchvision:{word}`.") from found[0]


def download_torchvision_set(word: str, root: Path) -> None:
    """Have torchvision download the set NAME or NAME/SPLIT into `root`, where it is not there yet."""
    _torchvision_parts(word, root, download=True)


_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
FILE_READERS: dict[str, Callable[[Request], RawData]] = {
    ".npz": _read_npz,
    **dict.fromkeys((".csv", ".tsv", ".jsonl"), _read_table),
    ".parquet": _read_parquet,
    **dict.fromkeys(_ARCHIVES, _read_archive),
}
