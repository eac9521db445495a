"""What people have in memory (arrays, tensors, data sets of PyTorch and of Hugging Face) as raw data."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from iadd_lab.data.arrays import Reading, as_array, is_array
from iadd_lab.data.decoded import Request
from iadd_lab.data.folders import listed, split_role
from iadd_lab.data.labels import indexed, one_each
from iadd_lab.data.pixels import open_bytes
from iadd_lab.data.readers import RawData, parted
from iadd_lab.data.splits import Split
from iadd_lab.errors import InputError, choose, require

TEST_FRACTION = 0.2  # of a source without a test part
_PEEKED = 50  # pictures of a data set that are looked at before all are
# How columns and arrays are called that hold pictures, labels, groups and parts.
_NAMES = {
    "image": r"images?|imgs?|pictures?|photos?|pixels|x|data",
    "label": r"(.*_)?(labels?|class(es)?|targets?|categor(y|ies))(_(names?|ids?))?|y",
    "group": r"(groups?|patients?|patient_id)",
    "split": r"split|part|partition|subset|fold",
}
_TYPES = {"image": "Image", "label": "ClassLabel"}  # of Hugging Face's features


@dataclass(frozen=True, eq=False)
class Part:
    """Pictures of one part of a source, before they are read.

    Attributes:
        count: how many.
        images: an array (count, …), or a function that gets a picture (of PIL, bytes or an array) by number.
        labels: as they are; None where `images` gets (picture, label) pairs.
        names: of the classes, in the order of their numbers, where the source says them.
        groups: what belongs together, where the source says it.
    """

    count: int
    images: Any
    labels: Any
    names: Sequence[str] | None = None
    groups: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> "Part":
        """The pictures of these numbers."""
        get = self.images
        images = get[rows] if is_array(get) else lambda number: get(rows[number])
        groups = self.groups if self.groups is None else self.groups[rows]
        return replace(
            self, count=len(rows), images=images, labels=np.asarray(self.labels)[rows], groups=groups
        )


def find_column(
    kind: str, columns: Iterable[str], given: str | None, types: Mapping[str, Any] | None = None
) -> str | None:
    """The column of a kind in `_NAMES`: the one given, or of that type, or called so; None if there is none.

    Raises:
        InputError: several fit, or the one given is not there.
    """
    columns, types = list(columns), types or {}
    if given is not None:
        return choose("column", given, dict.fromkeys(columns, given)) and given
    typed = [name for name in columns if _type(types, name) == _TYPES.get(kind, "none")]
    fitting = typed or [name for name in columns if re.fullmatch(_NAMES[kind], name.lower())]
    several = f"the columns {listed(fitting)} may all be those of the {kind}"
    require(len(fitting) < 2, f"{several}: name one, as in {kind}_column={fitting[:1]}.")
    return next(iter(fitting), None)


def _type(types: Mapping[str, Any], name: str) -> str | None:
    """The kind of a column among Hugging Face's features, of which lists have none."""
    return types[name].get("_type") if isinstance(types.get(name), Mapping) else None


def parts_of_columns(
    columns: Mapping[str, Any], config: Any, types: Mapping[str, Any], where: str
) -> dict[str, Part]:
    """The parts of what has columns of the same length; those of pictures are arrays or lists of pictures.

    Raises:
        InputError: a column of pictures or labels is missing, or several fit, or lengths differ.
    """
    asked = {kind: getattr(config, f"{kind}_column", None) for kind in ("image", "label", "split")}
    asked["group"] = config.groups
    found = {kind: find_column(kind, columns, asked.get(kind), types) for kind in _NAMES}
    for kind in ("image", "label"):
        told = f"{where} has no column or array of {kind}s among {listed(columns)}"
        require(found[kind] is not None, f"{told}: name it by {kind}_column=.")
    images, labels = columns[found["image"]], columns[found["label"]]
    require(len(images) == len(labels), f"{where} has {len(images)} images, but {len(labels)} labels.")
    groups = None if found["group"] is None else np.array([str(each) for each in columns[found["group"]]])
    names = types[found["label"]].get("names") if _type(types, found["label"]) == "ClassLabel" else None
    get = as_array(images) if is_array(images) else images.__getitem__
    whole = Part(len(images), get, labels, names, groups)
    return {"all": whole} if found["split"] is None else split_by(whole, columns[found["split"]])


def split_by(whole: Part, words: Sequence[Any]) -> dict[str, Part]:
    """The parts that a column of words, such as "train" and "test", makes of a whole."""
    words = np.array([str(each) for each in words])
    return {word: whole.take(np.flatnonzero(words == word)) for word in np.unique(words).tolist()}


def raw_data(parts: Mapping[str, Part], request: Request, *, source: str) -> RawData:
    """The parts of a source, read and checked, as raw data; a fifth is the test part if there is none.

    Labels and shapes are checked before pictures are decoded, where they are known.

    Raises:
        InputError: pictures or labels are not what can be read, or more than one reading fits.
    """
    config, (parts, notes) = request.config, by_role(parts, source)
    for name, part in parts.items():
        require(part.count > 0, f"the part {name} of {source} is empty: leave it out.")
    labels = {name: one_each(part.labels, source) for name, part in parts.items() if part.labels is not None}
    chosen, names = config.classes is not None, config.classes or _names(parts.values(), source)
    if len(labels) == len(parts):
        indexed(labels, names, chosen=chosen)
    reading = Reading.of([each for part in parts.values() for each in _samples(part, source)], config)
    planes = {}
    total = sum(part.count for part in parts.values())
    with tqdm(total=total, desc=source[:40], unit="image", disable=not request.progress) as bar:
        for name, part in parts.items():
            planes[name], found = _decoded(part, reading, bar.update)
            labels[name] = labels[name] if found is None else one_each(found, source)
    classes, indices, unused = indexed(labels, names, chosen=chosen)
    splits = {
        name: Split(torch.from_numpy(planes[name]), indices[name], groups=part.groups)
        for name, part in parts.items()
    }
    if reading.ends not in (None, (0.0, 255.0)):
        notes.append("values from {:g} to {:g} became 0 to 255".format(*reading.ends))
    notes = [f"read from {source}", *filter(None, [*notes, unused])]
    return parted(classes, splits, request, fraction=TEST_FRACTION, remark="; ".join(notes))


def by_role(parts: Mapping[str, Any], source: str) -> tuple[dict[str, Any], list[str]]:
    """`parts` by their roles, "train" and "test", "validation" too, or "all"; and what must be said.

    Raises:
        InputError: two have one role, or one to train or to test on is missing.
    """
    if len(parts) == 1:
        return {"all": next(iter(parts.values()))}, []
    roles = {name: split_role(name) for name in parts}
    shown = listed(map(str, parts))
    for role in ("train", "validation", "test"):
        several = [name for name in parts if roles[name] == role]
        require(len(several) < 2, f"{source} has several parts {role} ({listed(several)}): keep one of each.")
    found = {role: parts[name] for name, role in roles.items() if role}
    notes = [f"left out: the part {name}" for name, role in roles.items() if not role]
    if "validation" in found and "test" not in found:
        found["test"] = found.pop("validation")
        notes.append("the validation part is the test part")
    fits = {"train", "test"} <= found.keys()
    require(fits, f"{source} has the parts {shown}; it needs one to train and one to test on, or a whole.")
    return found, notes


def _names(parts: Iterable[Part], source: str) -> tuple[str, ...] | None:
    """The names of classes that all of the parts say, if they do."""
    said = {tuple(map(str, part.names)) for part in parts if part.names is not None}
    require(len(said) < 2, f"the parts of {source} have other classes each: give them one list of classes=.")
    return next(iter(said), None)


def _samples(part: Part, source: str) -> list[Any]:
    """What shows how the pictures of a part are to be read: a whole array, or some of them."""
    if is_array(part.images):
        return [part.images]
    some, paired = range(0, part.count, -(-part.count // _PEEKED)), part.labels is None
    found = [part.images(number) for number in some]
    first, again = (picture(each[0] if paired else each) for each in (found[0], part.images(0)))
    told = f"{source} gives another picture each time that it is asked"
    require(bool(np.array_equal(first, again)), f"{told}: take random transforms out of it.")
    if paired:
        one_each([_label(label) for _, label in found], source)
        found = [each for each, _ in found]
    pictures = [picture(each) for each in found]
    return [each if isinstance(each, Image.Image) else each[None] for each in pictures]


def _decoded(part: Part, reading: Reading, advance: Callable) -> tuple[np.ndarray, list | None]:
    """Pictures of a part as bytes, and their labels where they come with them."""
    if is_array(part.images):
        return reading.array(part.images, advance), None
    if part.labels is not None:
        return reading.planes(part.count, lambda number: picture(part.images(number)), advance), None
    labels = []

    def get(number: int) -> Any:
        image, label = part.images(number)
        labels.append(_label(label))
        return picture(image)

    return reading.planes(part.count, get, advance), labels


def _label(label: Any) -> Any:
    return label.tolist() if is_array(label) else label


def picture(value: Any) -> Any:
    """One picture as an array or one of PIL: of an array or tensor, of PIL, or of the bytes of a file.

    Raises:
        InputError: it is something else, or can't be decoded.
    """
    if isinstance(value, Mapping) and "bytes" in value:  # as Hugging Face stores pictures
        told = f"a picture has no bytes, only a path ({value.get('path')}): embed them, or give a table."
        require(value["bytes"] is not None, told)
        value = value["bytes"]
    if isinstance(value, bytes):
        return open_bytes(value)
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, (list, np.ndarray, torch.Tensor)):
        return np.asarray(as_array(value) if is_array(value) else value)
    raise InputError(f"a picture is a {type(value).__name__}; it must be an array, a tensor or one of PIL.")


def parts_in_memory(source: Any, config: Any) -> dict[str, Part]:
    """The parts of what was given in memory: see `load_data`.

    Raises:
        InputError: it is none of what can be read.
    """
    if isinstance(source, Mapping) and all(map(is_array, source.values())):
        return parts_of_arrays(source, config, "the arrays")
    if isinstance(source, Mapping):
        parts = {str(name): _part(value, config) for name, value in source.items()}
        require(bool(parts), "the dict is empty: give it parts, as in {'train': …, 'test': …}.")
        whole = len(parts) == 1 or all(len(each) == 1 for each in parts.values())
        require(whole, "the parts of a dict have a column that splits them again: drop it.")
        return {name: next(iter(each.values())) for name, each in parts.items()}
    pairs = isinstance(source, (tuple, list)) and len(source) == 2
    if pairs and all(isinstance(each, (tuple, list)) and len(each) == 2 for each in source):
        first, second = (_part(each, config)["all"] for each in source)  # as Keras's load_data() gives
        return {"train": first, "test": second}
    return _part(source, config)


def parts_of_arrays(arrays: Mapping[str, Any], config: Any, where: str) -> dict[str, Part]:
    """The parts of named arrays: images and labels, or such of train, val and test (train_images, x_train).

    Raises:
        InputError: as `parts_of_columns`.
    """
    columns: dict[str, dict[str, Any]] = {}
    for name in arrays:
        words = re.split(r"[_\W]+", name.lower())
        role = next(filter(None, map(split_role, words)), "all") if len(words) > 1 else "all"
        own = "_".join(word for word in words if role == "all" or not split_role(word))
        own = name if name in (config.image_column, config.label_column, config.groups) else own
        if own == name or re.fullmatch("|".join(_NAMES.values()), own):
            columns.setdefault(role, {})[own] = arrays[name]
    some = {name: each for name, each in columns.items() if name != "all" or len(columns) == 1}
    told = f"{where} has {listed(arrays) or 'nothing'}; name images and labels, or train_images, train_labels"
    require(bool(some), f"{told}, test_images, test_labels.")
    found = {name: parts_of_columns(each, config, {}, f"{where}, {name},") for name, each in some.items()}
    if len(found) == 1:
        return next(iter(found.values()))
    return {name: next(iter(each.values())) for name, each in found.items()}


def _part(source: Any, config: Any) -> dict[str, Part]:
    """One part of what was given in memory, or several where a column says which."""
    if hasattr(source, "features") and hasattr(source, "with_format"):  # of Hugging Face's `datasets`
        return parts_of_columns(_Columns(source), config, source.features.to_dict(), "the data set")
    if isinstance(source, (tuple, list)):
        pair = len(source) == 2 and all(hasattr(each, "__len__") for each in source)
        told = f"a {type(source).__name__} of {len(source)} was given"
        require(pair, f"{told}; in memory (images, labels) are two, in this order.")
        images, labels = source
        require(len(images) == len(labels), f"there are {len(images)} images, but {len(labels)} labels.")
        if isinstance(images, list):
            return {"all": Part(len(images), images.__getitem__, labels)}
        require(is_array(images), f"images are a {type(images).__name__}; they must be an array or tensor.")
        return {"all": Part(len(images), as_array(images), labels)}
    told = f"data is a {type(source).__name__}; it must be a name, a path, (images, labels) or a Dataset"
    hint = ": pass its .dataset" if hasattr(source, "batch_size") else ""
    require(hasattr(source, "__getitem__") and hasattr(source, "__len__"), f"{told}{hint}.")
    return {"all": Part(len(source), _pairs(source, config), None, _classes(source))}


def _pairs(source: Any, config: Any) -> Callable[[int], tuple[Any, Any]]:
    """A function that gets (picture, label) of a map-style data set, whose items may be dicts."""

    def get(number: int) -> tuple[Any, Any]:
        item = source[int(number)]
        if isinstance(item, Mapping):
            asked = {"image": config.image_column, "label": config.label_column}
            found = [find_column(kind, item, given) for kind, given in asked.items()]
            require(None not in found, f"an item has {listed(item)}: name image_column= and label_column=.")
            return item[found[0]], item[found[1]]
        pair = isinstance(item, (tuple, list)) and len(item) == 2
        told = f"item {number} of the data set is a {type(item).__name__}"
        told += f" of {len(item)}" if isinstance(item, (tuple, list)) else ""
        require(pair, f"{told}; each must be (picture, label), or a dict of them.")
        return item

    return get


def _classes(source: Any) -> Sequence[str] | None:
    """The names of the classes of a data set, or of that of which it is a part."""
    if hasattr(source, "classes"):
        return [str(name) for name in source.classes]
    inner = getattr(source, "datasets", None) or [getattr(source, "dataset", None)]
    if inner == [None]:
        return None
    said = [_classes(each) for each in inner]
    require(all(each == said[0] for each in said), "the data sets that are joined have other classes each.")
    return said[0]


class _Columns(Mapping):
    """The columns of a data set of Hugging Face's: pictures one by one, all else as lists."""

    def __init__(self, source: Any):
        self.source, self.plain = source, source.with_format(None)

    def __iter__(self):
        return iter(self.source.column_names)

    def __len__(self) -> int:
        return len(self.source.column_names)

    def __getitem__(self, name: str) -> Sequence[Any]:
        column, kind = self.plain.select_columns([name]), type(self.source.features[name]).__name__
        return _Column(column, name) if kind == "Image" or kind.startswith("Array") else column[:][name]


class _Column(Sequence):
    """One column of a data set, of which each value is decoded when it is asked for."""

    def __init__(self, source: Any, name: str):
        self.source, self.name = source, name

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, number: int) -> Any:
        return self.source[int(number)][self.name]
