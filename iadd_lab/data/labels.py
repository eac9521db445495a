"""Labels as people have them (numbers, text, one-hot rows), as indices into the names of classes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from iadd_lab.data.folders import listed
from iadd_lab.errors import InputError, require

_MISSING = ("", "nan", "None")  # of text and of mixed values; a number is missing where it is negative or NaN


def one_each(labels: Any, where: str) -> np.ndarray:
    """One label for each picture, (count,): whole numbers, or text; from (count,), (count, 1) or one-hot.

    Raises:
        InputError: labels are missing, several per picture, or numbers to regress; `where` says of what.
    """
    several = f"{where} has several labels per picture: give one class each."
    try:
        values = np.asarray(labels.cpu() if isinstance(labels, torch.Tensor) else labels)
    except ValueError as error:  # lists of different lengths
        raise InputError(several) from error
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim == 2:
        hot = values.dtype.kind in "biuf" and bool(((values == 0) | (values == 1)).all())
        require(hot, f"{where} has labels {values.shape} that are not 0 and 1: give one class each.")
        require(bool((values.sum(1) < 2).all()), several)
        values = np.where(values.sum(1) == 1, values.argmax(1), -1)
    require(values.ndim == 1, f"{where} has labels {values.shape}: give (count,), one class each.")
    if values.dtype.kind in "biuf":
        absent = np.isnan(values) | (values < 0)
    else:
        lists = any(isinstance(each, (list, tuple, Mapping, set, np.ndarray)) for each in values)
        require(not lists, several)
        values = np.array([str(each) for each in values], dtype=object)
        absent = np.isin(values, _MISSING)
    told = f"{where} has {absent.sum()} pictures without a label (first number {absent.argmax()})"
    require(not absent.any(), f"{told}: leave them out.")
    if values.dtype.kind == "f":
        odd = [*values[values != np.floor(values)][:1]]
        require(not odd, f"{where} has the labels {odd} …; numbers to regress are no classes: give classes.")
    return values if values.dtype.kind == "O" else values.astype(np.int64)


def indexed(
    labels: Mapping[str, np.ndarray], names: Sequence[str] | None, *, chosen: bool
) -> tuple[tuple[str, ...], dict[str, torch.Tensor], str]:
    """Labels of the parts of a set as indices into the names of its classes.

    Args:
        labels: by part, as `one_each` returns them.
        names: of the classes in the order of their numbers; None takes the labels themselves, sorted.
        chosen: whether the user gave the names; else those that no picture has are left out.

    Returns:
        the names, the indices (count,) int64 by part, and what must be said.

    Raises:
        InputError: a label has no name, there is only one class, or there are nearly as many as pictures.
    """
    found = np.unique(np.concatenate([*labels.values()])).tolist()
    keys = found if names is None else [*range(len(names))] if isinstance(found[0], int) else [*names]
    names = [*map(str, found)] if names is None else [*names]
    odd = listed({str(each) for each in found} - {str(each) for each in keys})
    told = f"there are labels {odd}, but the classes are {listed(names)}"
    require(not odd, f"{told}: name all of them; numbers count from 0.")
    total = sum(map(len, labels.values()))
    require(len(found) > 1, f"all pictures are of one class ({found[0]}): at least two are needed.")
    few = f"{total} pictures have {len(found)} different labels"
    require(2 * len(found) <= total, f"{few}; several of each are needed, and numbers to regress are none.")
    unused = [] if chosen else sorted(set(keys) - set(found))
    said = f"no picture is of {listed(names[keys.index(each)] for each in unused)}" if unused else ""
    kept = [(key, name) for key, name in zip(keys, names, strict=True) if key not in unused]
    place = {key: index for index, (key, _) in enumerate(kept)}
    indices = {part: torch.tensor([place[each] for each in own.tolist()]) for part, own in labels.items()}
    return tuple(name for _, name in kept), indices, said
