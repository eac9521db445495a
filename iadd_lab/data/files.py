"""What people have on disk: class folders, archives of them, .npz, tables beside pictures, and Parquet."""

import hashlib
import importlib
import inspect
import json
import os
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from iadd_lab.data.arrays import USUAL_SIZE
from iadd_lab.data.decoded import Request, Tree
from iadd_lab.data.folders import LeftOut, is_text, listed, pictures
from iadd_lab.data.labels import indexed, one_each
from iadd_lab.data.pixels import LARGEST_SIZE, is_grey, open_picture
from iadd_lab.data.readers import RawData, find_tree, image_file, read_tree
from iadd_lab.data.sources import (
    TEST_FRACTION,
    Part,
    by_role,
    find_column,
    parts_in_memory,
    parts_of_arrays,
    parts_of_columns,
    raw_data,
)
from iadd_lab.errors import InputError, choose, require

_PEEKED = 50  # pictures whose headers are looked at
_UNPACKED = (2**30, 50)  # an archive may unpack to so many bytes, or to so many times its own
_TABLES = ("metadata.jsonl", "metadata.csv")  # what Hugging Face's image folders have in them
_FILE = r"(file|image|img|picture|photo)?_?(file_?)?(name|path|id)?s?"  # how a column of files may be called
_SPLITS = {  # names of what torchvision calls split=, best first
    "train": ("train", "trainval", "train-standard"),
    "validation": ("val", "valid"),
    "test": ("test", "val", "valid"),
}


def read_files(request: Request) -> RawData:
    """Pictures in any form in which they lie on disk, at `request.folder`; see `load_data`."""
    path = request.folder
    if path.is_dir():
        return _read_folder(request)
    endings = "".join(path.suffixes[-2:]).lower()
    ending = endings if endings in FILE_READERS else path.suffix.lower()
    reader = choose("kind of file", ending, FILE_READERS)
    with _readable(path):
        return reader(request)


class _readable:
    """A file that a parser can't read becomes an `InputError` that names it."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        passed = (InputError, OSError, MemoryError)
        if isinstance(error, Exception) and not isinstance(error, passed):
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"{self.path} can't be read ({reason}): is it damaged?") from error


def _read_folder(request: Request) -> RawData:
    """A folder: of Parquet, of pictures with a table, or of class folders."""
    folder = request.folder
    if shards := [path for path in sorted(folder.rglob("*.parquet")) if path.is_file()]:
        with _readable(folder):
            return _read_shards(shards, request)
    tables = [folder / name for name in _TABLES if (folder / name).is_file()]
    if not any(path.is_dir() and not path.name.startswith(".") for path in folder.iterdir()):
        tables = tables or [path for path in sorted(folder.iterdir()) if path.suffix in (".csv", ".tsv")]
        several = f"{folder} has several tables ({listed(path.name for path in tables)})"
        require(len(tables) < 2, f"{several}: pass the path of one of them.")
    if tables:
        return _read_table(replace(request, folder=tables[0]))
    tree = find_tree(folder, validation=True)
    return _read_pictures(_ordered(tree, request.config.classes), request)


def _ordered(tree: Tree, classes: Sequence[str] | None) -> Tree:
    """The tree with its classes in the order given."""
    if classes is None:
        return tree
    odd = listed(set(classes) ^ set(tree.classes))
    told = f"classes of {tree.left.root} are {listed(tree.classes)}, unlike classes={listed(classes)}"
    require(not odd, f"{told} in {odd}: give all of them.")
    parts = {
        name: [file._replace(label=classes.index(tree.classes[file.label])) for file in files]
        for name, files in tree.parts.items()
    }
    return Tree(tree.left, tuple(classes), parts)


def _read_pictures(tree: Tree, request: Request, **options: Any) -> RawData:
    """Files of pictures, of their own size if they have one, and in colour if one of some is."""
    few = [file.path for file in tree.files[:: -(-len(tree.files) // _PEEKED)]]
    sizes = set()
    for path in few:
        with suppress(Exception), open_picture(path) as image:  # decoding meets it again, and names it
            sizes.add(image.size)
    own = min(*min(sizes), LARGEST_SIZE) if len(sizes) == 1 else USUAL_SIZE
    channels = request.channels or (1 if all(map(is_grey, few)) else 3)
    request = replace(request, size=request.size or own, channels=channels)
    return read_tree(tree, request, test_fraction=TEST_FRACTION, **options)


def _read_npz(request: Request) -> RawData:
    """Named arrays, as MedMNIST and Keras store them, or images and labels."""
    path = request.folder
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    parts = parts_of_arrays(arrays, request.config, path.name)
    return raw_data(parts, request, source=path.name)


def _read_table(request: Request) -> RawData:
    """A table whose rows name pictures below its folder, and their classes; maybe their part and group."""
    path, config = request.folder, request.config
    table = _columns(path)
    require(len(next(iter(table.values()), [])) > 0, f"{path} has no rows: give it some.")
    left = LeftOut(path.parent)
    files, unnamed = _files_of(path, table, config.image_column, left)
    asked = {"label": config.label_column, "split": config.split_column}
    asked["group"] = config.groups if config.groups in table else None
    columns = {kind: find_column(kind, table, given) for kind, given in asked.items()}
    told = f"{path} has no column of labels among {listed(table)}: name it by label_column=."
    require(columns["label"] is not None, told)
    labels = one_each(_numbers(table[columns["label"]]), str(path))
    rows = {"all": np.arange(len(labels))}
    if columns["split"] is not None:
        words = np.array(table[columns["split"]])
        rows = {word: np.flatnonzero(words == word) for word in np.unique(words).tolist()}
    rows, notes = by_role(rows, path.name)
    own, chosen = {part: labels[each] for part, each in rows.items()}, config.classes
    classes, indices, _ = indexed(own, chosen, chosen=chosen is not None)
    parts = {
        part: [image_file(files[row], label) for row, label in zip(each, indices[part].tolist(), strict=True)]
        for part, each in rows.items()
    }
    left.names["in no row of the table"] = unnamed
    left.names["no picture"].discard(path.name)
    groups = table.get(columns["group"])
    if groups is not None:
        names = [Path(file).relative_to(path.parent).as_posix() for file in files]
        groups = dict(zip(names, groups, strict=True))
    remark = "; ".join([f"read from {path.name}", *notes])
    return _read_pictures(
        Tree(left, classes, parts), replace(request, folder=path.parent), remark=remark, groups=groups
    )


def _columns(path: Path) -> dict[str, list[str]]:
    """The columns of a table as text."""
    import pandas as pd  # takes a second to import, and other sources don't need it

    if path.suffix == ".jsonl":
        table = pd.read_json(path, lines=True, dtype=False)
        table = table.map(lambda value: value if isinstance(value, list) else str(value))
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    return {str(name): table[name].tolist() for name in table}


def _numbers(words: list) -> list:
    """Words as whole numbers, or as numbers, where all of them are: "10" comes after "9"."""
    if all(re.fullmatch(r"-?(0|[1-9]\d*)", str(word)) for word in words):
        return [int(word) for word in words]
    decimal = all(re.fullmatch(r"-?\d+\.\d*(e[+-]?\d+)?", str(word)) for word in words)
    return [float(word) for word in words] if decimal else words


def _files_of(path: Path, table: Mapping, given: str | None, left: LeftOut) -> tuple[list[str], set[str]]:
    """The picture of each row, and names of those that no row names.

    Rows name them by their paths below the table's folder, or by names of files with or without an ending.
    """
    known: dict[str, set[str]] = {}
    found = pictures(path.parent, left)
    for file in found:
        name = Path(file).relative_to(path.parent).as_posix()
        for word in {name, os.path.basename(name), Path(name).stem, os.path.splitext(name)[0]}:
            known.setdefault(word, set()).add(file)
    if given is not None:
        choose("column", given, table)
    names = (
        [given] if given else [name for name in table if any(word in known for word in map(str, table[name]))]
    )
    told = f"{path} has no column that names pictures in {path.parent} (columns: {listed(table)})"
    called = [name for name in table if re.fullmatch(_FILE, name.lower())]
    names = names or called[:1]
    require(bool(names), f"{told}: put it beside them, or name the column by image_column=.")
    words = {name: [str(word).removeprefix("./") for word in table[name]] for name in names}
    places = {name: [known.get(word, set()) for word in each] for name, each in words.items()}
    several = f"the columns {listed(names)} of {path} name pictures, and other ones"
    require(all(each == places[names[0]] for each in places.values()), f"{several}: choose by image_column=.")
    rows = list(zip(words[names[0]], places[names[0]], strict=True))
    absent = [word for word, place in rows if not place]
    told = f"{path} names {len(absent)} pictures that are not in {path.parent} ({listed(absent)})"
    require(not absent, f"{told}: put them there, or take these rows out.")
    twice = [word for word, place in rows if len(place) > 1]
    require(not twice, f"{path} names {listed(twice)}, of which there are several: give their folders too.")
    files = [next(iter(place)) for _, place in rows]
    repeated = [file for file, count in Counter(files).items() if count > 1]
    told = f"{path} names {listed(map(os.path.basename, repeated))} more than once"
    require(not repeated, f"{told}, as of several labels per picture: keep one row of each.")
    return files, {os.path.relpath(file, path.parent) for file in {*found} - {*files}}


def _read_parquet(request: Request) -> RawData:
    return _read_shards([request.folder], request)


def _read_shards(shards: Sequence[Path], request: Request) -> RawData:
    """Parquet as `datasets` writes it: pictures are their files' bytes; the part is in a shard's name."""
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        told = f"{request.folder} is Parquet, which pyarrow reads: pip install 'iadd-lab[parquet]'."
        raise InputError(told) from error
    arrow = importlib.import_module("pyarrow")
    of_parts: dict[str, list[Path]] = {}
    for shard in shards:
        folder = "" if shard.parent == request.folder else shard.parent.name
        word = re.split(r"[-.\d]", shard.name)[0] or "all"
        of_parts.setdefault(folder or (word if len(shards) > 1 else "all"), []).append(shard)
    parts: dict[str, Part] = {}
    for name, files in of_parts.items():
        table = arrow.concat_tables([parquet.read_table(file, memory_map=True) for file in files])
        said = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
        types = said.get("info", {}).get("features") or {}
        columns = {each: _Cells(table[each]) for each in table.column_names}
        images = [each.name for each in table.schema if _is_image(each.type, arrow)]
        types = {each: {"_type": "Image"} for each in images} | types
        made = parts_of_columns(columns, request.config, types, str(request.folder))
        parts |= made if len(of_parts) == 1 else {name: next(iter(made.values()))}
    return raw_data(parts, request, source=request.folder.name)


def _is_image(kind: Any, arrow: Any) -> bool:
    """Whether a column may hold the bytes of pictures."""
    binary = (arrow.types.is_binary(kind), arrow.types.is_large_binary(kind))
    return any(binary) or (arrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)


class _Cells(Sequence):
    """A column of Arrow's, of which each value is made when it is asked for."""

    def __init__(self, column: Any):
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, number: int) -> Any:
        return self.column[int(number)].as_py()


def _read_archive(request: Request) -> RawData:
    """An archive, unpacked once into the cache, under its content's name, and read as a folder."""
    with request.folder.open("rb") as file:
        mark = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    target = request.cache / f"unpacked-{mark}"
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpacking-") as folder:
            _unpack(request.folder, Path(folder) / "whole")
            with suppress(OSError):  # another process was faster
                (Path(folder) / "whole").rename(target)
    return read_files(replace(request, folder=target))


def _unpack(path: Path, target: Path) -> None:
    """Write the files of an archive below `target`; links and names that lead out of it are refused."""
    size, (least, times) = path.stat().st_size, _UNPACKED
    left, room = max(least, times * size), shutil.disk_usage(target.parent).free
    target.mkdir()
    for name, length, stream in _members(path):
        plain = PureWindowsPath(name)  # knows / as well as \ and drives
        inside = not (plain.is_absolute() or plain.drive or plain.root) and ".." not in plain.parts
        require(inside and is_text(name), f"{path} names {name!r}, which leads out of it: make it anew.")
        left, room = left - length, room - length
        require(left >= 0, f"{path} unpacks to more than {times} times its size: unpack it by hand.")
        require(room >= 0, f"{path} needs more room than {target.parent} has: make room, or set IADD_CACHE.")
        place = target.joinpath(*plain.parts)
        place.parent.mkdir(parents=True, exist_ok=True)
        with stream() as source, place.open("xb") as file:
            shutil.copyfileobj(source, file)


def _members(path: Path) -> Iterator[tuple[str, int, Callable]]:
    """Names, lengths and contents of the files in an archive."""
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path) as archive:
            for each in archive.infolist():
                link = stat.S_ISLNK(each.external_attr >> 16)
                require(not link, f"{path} has a link in it ({each.filename}): put the files themselves in.")
                if not each.is_dir():
                    yield each.filename, each.file_size, lambda each=each: archive.open(each)
        return
    with tarfile.open(path) as archive:
        for each in archive:
            odd = not (each.isreg() or each.isdir())
            require(not odd, f"{path} has a link or device in it ({each.name}): put files themselves in.")
            if each.isreg():
                yield each.name, each.size, lambda each=each: archive.extractfile(each)


def _torchvision_kind(name: str) -> Callable:
    module = importlib.import_module("torchvision.datasets")
    kinds = {each: getattr(module, each) for each in module.__all__}
    own = {each: kind for each, kind in kinds.items() if "root" in inspect.signature(kind).parameters}
    return choose("data set of torchvision", name, own)


def _torchvision_parts(word: str, root: Path, **options: Any) -> dict[str, Any]:
    """The parts of a set NAME or NAME/SPLIT of torchvision's in `root`, as its data sets."""
    name, _, split = word.partition("/")
    kind, module = _torchvision_kind(name), importlib.import_module("torchvision.datasets")
    known = inspect.signature(kind).parameters
    options = options if "download" in known or issubclass(kind, module.MNIST) else {}
    if "train" in known or issubclass(kind, module.MNIST):
        needs = known.get("split") and known["split"].default is inspect.Parameter.empty and not split
        require(
            not needs, f"torchvision:{name} has several splits: name one, as in torchvision:{name}/letters."
        )
        chosen = {"split": split} if split else {}
        require(not split or "split" in known, f"torchvision:{name} has no splits: leave /{split} out.")
        return {part: kind(root, train=part == "train", **chosen, **options) for part in ("train", "test")}
    if "split" not in known or split:
        require(not split or "split" in known, f"torchvision:{name} has no splits: leave /{split} out.")
        return {"all": kind(root, **({"split": split} if split else {}), **options)}
    parts, used = {}, set()
    for part, words in _SPLITS.items():
        for word in (word for word in words if word not in used):
            with suppress(_UnknownSplit):
                parts[part] = _with_split(kind, root, word, options)
                used.add(word)
                break
    return parts


class _UnknownSplit(Exception):
    pass


def _with_split(kind: Callable, root: Path, word: str, options: Mapping[str, Any]) -> Any:
    try:
        return kind(root, split=word, **options)
    except ValueError as error:  # torchvision's own check of the word
        if "Unknown value" in str(error):
            raise _UnknownSplit from error
        raise


def read_torchvision_set(word: str, request: Request) -> RawData:
    """A set NAME or NAME/SPLIT of torchvision's, below `request.folder` or in a folder of its name there."""
    name = word.partition("/")[0]
    places, error = [request.folder, request.folder / name, request.folder / name.lower()], None
    for place in places:
        try:
            parts = _torchvision_parts(word, place, **{"download": False})
        except (InputError, MemoryError):
            raise
        except Exception as met:  # a set that is not there, or damaged, may raise almost anything
            error = error or met
            continue
        made = parts_in_memory(parts, request.config)
        return raw_data(made, request, source=f"torchvision:{word}")
    reason = " ".join(str(error).split()) or type(error).__name__
    told = f"torchvision:{word} was looked for in {request.folder}, but can't be read there ({reason})"
    raise InputError(f"{told}: fetch it with `iadd-lab data fetch torchvision:{word}`.") from error


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
