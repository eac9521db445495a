"""What people have in memory (arrays, tensors, data sets of PyTorch and of Hugging Face) as raw data."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from iadd_lab.data.arrays import Reading, as_array
from iadd_lab.data.decoded import Request, check_room
from iadd_lab.data.folders import listed, split_role
from iadd_lab.data.labels import indexed, one_each
from iadd_lab.data.pixels import open_bytes
from iadd_lab.data.readers import RawData, parted
from iadd_lab.data.splits import Split
from iadd_lab.errors import choose, require

TEST_FRACTION = 0.2  # of a source without a test part
PEEKED = 50  # pictures that are looked at before all are read
# How columns and arrays are called; of Hugging Face's features the type says it.
_NAMES = {
    "image": r"images?|imgs?|pictures?|photos?|pixels|x|data",
    "label": r"(.*_)?(labels?|class(es)?|targets?|categor(y|ies))(_(names?|ids?))?|y",
    "group": r"groups?|patients?|patient_id",
    "split": r"split|part|partition|subset",
}
_TYPES = {"image": "Image", "label": "ClassLabel"}
Types = Mapping[str, Any]  # Hugging Face's features by column, as dicts


@dataclass(frozen=True, eq=False)
class Part:
    """Pictures of one part of a source, before they are read.

    Attributes:
        images: an array (count, …), or something with a length that gives pictures by their numbers.
        labels: as they are; None where `images` gives (picture, label) pairs.
        names: of the classes, in the order of their numbers, where the source says them.
        groups: what belongs together, where the source says it.
    """

    images: Any
    labels: Any
    names: Sequence[str] | None = None
    groups: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> "Part":
        """The pictures of these numbers."""
        array = isinstance(self.images, np.ndarray)
        images = self.images[rows] if array else [self.images[row] for row in rows]
        groups = self.groups if self.groups is None else self.groups[rows]
        return replace(self, images=images, labels=as_array(self.labels)[rows], groups=groups)


def find_column(kind: str, columns: Iterable[str], given: str | None, types: Types) -> str | None:
    """The column of a kind in `_NAMES`: the one given, or of that type, or called so; None if there is none.

    Raises:
        InputError: several fit, or the one given is not there.
    """
    names = dict.fromkeys(columns)
    if given is not None:
        choose("column", given, names)
        return given
    of_type = [name for name in names if kind in _TYPES and _type(types, name) == _TYPES[kind]]
    fitting = of_type or [name for name in names if re.fullmatch(_NAMES[kind], name.lower())]
    several = f"{listed(fitting)} may all be the column of the {kind}"
    require(len(fitting) < 2, f"{several}: name it, as in {kind}_column={listed(fitting[:1])!r}.")
    return next(iter(fitting), None)


def _type(types: Types, name: str) -> str | None:
    return types[name].get("_type") if isinstance(types.get(name), Mapping) else None  # lists have none


def parts_of_columns(
    columns: Mapping[str, Sequence], config: Any, where: str, types: Types | None = None
) -> dict[str, Part]:
    """The parts of columns or arrays of the same length, as a column of parts says, else "all".

    Raises:
        InputError: that of the images or of the labels is missing, or several fit, or lengths differ.
    """
    types = types or {}
    asked = {kind: getattr(config, f"{kind}_column", None) for kind in _NAMES}
    asked["group"] = config.groups if config.groups in columns else None
    found = {kind: find_column(kind, columns, given, types) for kind, given in asked.items()}
    for kind in ("image", "label"):
        told = f"{where} has no {kind}s among {listed(columns)}"
        require(found[kind] is not None, f"{told}: name the column or array, as in {kind}_column='…'.")
    own = {kind: columns[name] for kind, name in found.items() if name is not None}
    lengths = {kind: len(each) for kind, each in own.items()}
    require(len({*lengths.values()}) == 1, f"{where} has other numbers of each: {lengths}.")
    groups = np.array([*map(str, own["group"])]) if "group" in own else None
    label = found["label"]
    names = types[label]["names"] if _type(types, label) == "ClassLabel" else None
    whole = Part(own["image"], own["label"], names, groups)
    words = np.array([*map(str, own.get("split", ()))])
    rows = {word: np.flatnonzero(words == word) for word in np.unique(words).tolist()}
    return {word: whole.take(each) for word, each in rows.items()} or {"all": whole}


def by_role(parts: Mapping[str, Part], source: str) -> tuple[dict[str, Part], list[str]]:
    """`parts` by their roles, "train" and "test", "validation" too, or "all"; and what must be said.

    Raises:
        InputError: two have one role, one to train or to test on is missing, or one is empty.
    """
    if len(parts) == 1:
        parts, notes = {"all": next(iter(parts.values()))}, []
    else:
        roles = {name: split_role(name) for name in parts}
        found, notes = {}, [f"left out: the part {name}" for name, role in roles.items() if not role]
        for name, role in roles.items():
            require(role not in found, f"{source} has several parts {role} ({listed(parts)}): keep one.")
            found |= {role: parts[name]} if role else {}
        if "validation" in found and "test" not in found:
            found["test"] = found.pop("validation")
            notes.append("the validation part is the test part")
        fits = {"train", "test"} <= found.keys()
        require(fits, f"{source} has the parts {listed(parts)}: give one to train and one to test on.")
        parts = found
    require(all(len(part.images) for part in parts.values()), f"{source} has no pictures in a part: fill it.")
    return parts, [f"read from {source}", *notes]


def labelled(
    parts: Mapping[str, Part], config: Any, source: str
) -> tuple[tuple[str, ...], dict[str, torch.Tensor], str]:
    """The classes of the parts, their labels (count,) by part, and what must be said; see `indexed`."""
    said = {tuple(map(str, part.names)) for part in parts.values() if part.names is not None}
    require(len(said) < 2 or config.classes, f"the parts of {source} have other classes each: give classes=.")
    names = config.classes or next(iter(said), None)
    labels = {name: one_each(part.labels, source) for name, part in parts.items()}
    return indexed(labels, names, chosen=config.classes is not None)


def raw_data(parts: Mapping[str, Part], request: Request, *, source: str) -> RawData:
    """The parts of a source, read and checked, as raw data; a fifth is the test part if there is none.

    Labels and shapes are checked before pictures are decoded, where they are known.

    Raises:
        InputError: pictures or labels are not what can be read, or more than one reading fits.
    """
    config, (parts, notes) = request.config, by_role(parts, source)
    if all(part.labels is not None for part in parts.values()):
        labelled(parts, config, source)
    reading = Reading.of([each for part in parts.values() for each in _samples(part, source)], config)
    planes, total = {}, sum(len(part.images) for part in parts.values())
    check_room(replace(request, size=reading.size, channels=reading.channels), total)
    with tqdm(total=total, desc=source[:40], unit="image", disable=not request.progress) as bar:
        for name in [*parts]:
            planes[name], parts[name] = _read(parts[name], reading, bar.update)
    classes, indices, unused = labelled(parts, config, source)
    splits = {
        name: Split(torch.from_numpy(planes.pop(name)), indices[name], groups=part.groups)
        for name, part in parts.items()
    }
    if reading.ends not in (None, (0.0, 255.0)):
        notes.append("values from {:g} to {:g} became 0 to 255".format(*reading.ends))
    remark = "; ".join(filter(None, [*notes, unused]))
    return parted(classes, splits, request, fraction=TEST_FRACTION, remark=remark)


def _samples(part: Part, source: str) -> list[Any]:
    """What shows how the pictures of a part are to be read: a whole array, or some of them."""
    if isinstance(part.images, np.ndarray) and part.images.dtype != object:
        return [part.images]
    paired, step = part.labels is None, -(-len(part.images) // PEEKED)
    found = [part.images[number] for number in (0, *range(0, len(part.images), step))]
    if paired:
        one_each([_label(label) for _, label in found], source)
        found = [image for image, _ in found]
    pictures = [picture(each) for each in found]
    random = f"{source} gives another picture each time that it is asked: take random transforms out of it."
    require(np.array_equal(*map(np.asarray, pictures[:2])), random)
    return [each if isinstance(each, Image.Image) else each[None] for each in pictures]


def _read(part: Part, reading: Reading, advance: Callable) -> tuple[np.ndarray, Part]:
    """A part as bytes (count, channels, size, size), and the part with its labels, its pictures freed."""
    planes = np.empty((len(part.images), reading.channels, reading.size, reading.size), dtype=np.uint8)
    labels = []
    for number in range(len(planes)):
        image = part.images[number]
        if part.labels is None:
            image, label = image
            labels.append(_label(label))
        planes[number] = reading.planes(picture(image), number)
        advance(1)
    return planes, replace(part, images=(), labels=labels if part.labels is None else part.labels)


def _label(label: Any) -> Any:
    return label.tolist() if isinstance(label, (np.ndarray, torch.Tensor)) else label


def picture(value: Any) -> Any:
    """One picture as an array or one of PIL: of these, a tensor, the bytes of a file, or {bytes, path}.

    Raises:
        InputError: it is something else, or can't be decoded.
    """
    if isinstance(value, Mapping) and {"bytes", "path"} & value.keys():  # as Hugging Face stores pictures
        value = value.get("bytes") or Path(value["path"] or "").read_bytes()
    if isinstance(value, bytes):
        return open_bytes(value)
    fits = isinstance(value, (Image.Image, np.ndarray, torch.Tensor, list))
    require(fits, f"a picture is a {type(value).__name__}: give an array, a tensor or one of PIL.")
    return value if isinstance(value, Image.Image) else as_array(value)


def parts_in_memory(source: Any, config: Any) -> dict[str, Part]:
    """The parts of what was given in memory: see `load_data`.

    Raises:
        InputError: it is none of what can be read.
    """
    if isinstance(source, Mapping):
        if all(isinstance(each, (np.ndarray, torch.Tensor)) for each in source.values()):
            return parts_of_arrays(source, config, "memory")
        parts = {str(name): _part(value, config) for name, value in source.items()}
        require(all(len(each) == 1 for each in parts.values()), "parts are split again by a column: drop it.")
        return {name: next(iter(each.values())) for name, each in parts.items()}
    nested = isinstance(source, tuple) and all(isinstance(each, tuple) for each in source)
    if nested and len(source) == 2:  # as Keras's load_data() gives
        return parts_in_memory({"train": source[0], "test": source[1]}, config)
    return _part(source, config)


def parts_of_arrays(arrays: Mapping[str, Any], config: Any, where: str) -> dict[str, Part]:
    """The parts of named arrays: images and labels, or such of train, val and test (train_images, x_train).

    Raises:
        InputError: as `parts_of_columns`.
    """
    columns: dict[str, dict[str, Any]] = {}
    for name in arrays:
        words = name.lower().split("_")
        role = next((word for word in words if split_role(word)), "") if len(words) > 1 else ""
        own = "_".join(word for word in words if word != role) if role else name
        columns.setdefault(role, {})[own] = as_array(arrays[name])
    if len(columns) > 1:
        columns.pop("", None)
    found = {
        role: parts_of_columns(each, config, f"{where} {role}".rstrip()) for role, each in columns.items()
    }
    return found[""] if "" in found else {role: each["all"] for role, each in found.items()}


def _part(source: Any, config: Any) -> dict[str, Part]:
    """One part of what was given in memory, or several where a column says which."""
    if hasattr(source, "features") and hasattr(source, "to_pandas"):  # of Hugging Face's `datasets`
        frame, types = source.with_format(None).to_pandas(), source.features.to_dict()
        return parts_of_columns({name: frame[name].to_numpy() for name in frame}, config, "memory", types)
    told = f"data is a {type(source).__name__}: give a name, a path, (images, labels) or a map-style Dataset"
    if isinstance(source, (tuple, list)):
        pair = len(source) == 2 and all(hasattr(each, "__len__") for each in source)
        require(pair, f"{told}; (images, labels) are two.")
        images = source[0] if isinstance(source[0], list) else as_array(source[0])
        return parts_of_columns({"image": images, "label": source[1]}, replace(config, **_UNNAMED), "memory")
    items = hasattr(source, "__getitem__") and hasattr(source, "__len__")
    require(items, f"{told}{'; of a DataLoader its .dataset' if hasattr(source, 'dataset') else ''}.")
    return {"all": Part(_Pairs(source, config), None, _classes(source))}


_UNNAMED = dict.fromkeys(("image_column", "label_column", "split_column"))


@dataclass(frozen=True)
class _Pairs:
    """(picture, label) of a map-style data set by number; its items may be dicts."""

    source: Any
    config: Any

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        item = self.source[int(number)]
        if isinstance(item, Mapping):
            columns = {kind: getattr(self.config, f"{kind}_column") for kind in ("image", "label")}
            named = [find_column(kind, item, given, {}) for kind, given in columns.items()]
            require(None not in named, f"an item has {listed(item)}: give image_column= and label_column=.")
            return item[named[0]], item[named[1]]
        pair = isinstance(item, (tuple, list)) and len(item) == 2
        length = f" of {len(item)}" if isinstance(item, (tuple, list)) else ""
        told = f"item {number} is a {type(item).__name__}{length}"
        require(pair, f"{told}: give (picture, label), or a dict of them.")
        return item


def _classes(source: Any) -> list[str] | None:
    """The names of the classes of a data set, or of that of which it is a part."""
    if hasattr(source, "classes"):
        return [*map(str, source.classes)]
    inner = getattr(source, "datasets", None) or [each for each in [getattr(source, "dataset", None)] if each]
    said = [_classes(each) for each in inner] or [None]
    require(all(each == said[0] for each in said), "the data sets that are joined have other classes each.")
    return said[0]
