"""Labels as people have them (numbers, text, one-hot rows), as indices into the names of classes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from iadd_lab.data.folders import is_text, listed
from iadd_lab.errors import InputError, require

_MISSING = ("", "nan", "None")  # of text and of mixed values; a number is missing where it is negative or NaN


def one_each(labels: Any, where: str) -> np.ndarray:
    """One label for each picture, (count,): whole numbers, or text; from (count,), (count, 1) or one-hot.

    Raises:
        InputError: labels are missing, several per picture, or numbers to regress; `where` says of what.
    """
    try:
        values = np.asarray(labels.cpu() if isinstance(labels, torch.Tensor) else labels)
    except (ValueError, TypeError) as error:  # lists of different lengths
        raise InputError(f"{where} has several labels per picture: one class each is needed.") from error
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim == 2:
        values = _hot(values, where)
    require(values.ndim == 1, f"{where} has labels {values.shape}; one per picture is needed: (count,).")
    numbers = values.dtype.kind in "biuf"
    text = values if numbers else np.array([str(each) for each in values], dtype=object)
    absent = np.isnan(values) | (values < 0) if numbers else np.isin(text, _MISSING)
    told = f"{where} has {absent.sum()} pictures without a label (the first: number {absent.argmax()})"
    require(not absent.any(), f"{told}: leave them out.")
    if values.dtype.kind == "f":
        odd = values[values != np.floor(values)]
        told = f"{where} has the label {odd[0]:g}" if len(odd) else ""
        require(not told, f"{told}; numbers to regress are no classes: give whole numbers or names.")
    collected = any(isinstance(each, (list, tuple, dict, set, np.ndarray)) for each in values[:1000])
    require(not collected, f"{where} has several labels per picture: one class each is needed.")
    return values.astype(np.int64) if numbers else text


def _hot(values: np.ndarray, where: str) -> np.ndarray:
    """The column of the only 1 in each row of `values` (count, classes)."""
    shape = f"{where} has labels {values.shape}"
    fits = values.dtype.kind in "biuf" and bool(((values == 0) | (values == 1)).all())
    require(fits, f"{shape} which are not 0 and 1: give one class for each picture.")
    ones = values.sum(1)
    require(bool((ones > 0).all()), f"{shape}, and rows without a 1: leave pictures without a label out.")
    require(bool((ones == 1).all()), f"{shape}, and several labels per picture: one class each is needed.")
    return values.argmax(1)


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
    found = np.unique(np.concatenate([*labels.values()]))
    numbers = found.dtype.kind == "i"
    if names is None:
        names = [str(each) for each in found]
    elif numbers:
        last, known = int(found[-1]), f"0 to {len(names) - 1}"
        told = f"a label is {last}, but {len(names)} classes are named, whose labels are {known}"
        require(last < len(names), f"{told}: name all, or number from 0.")
        found = np.arange(len(names))
    else:
        lacking = listed(set(found) - set(names))
        require(not lacking, f"pictures are of {lacking}, which is none of the classes {listed(names)}.")
        found = np.array(names, dtype=object)
    total = sum(map(len, labels.values()))
    few = f"{total} pictures have {len(names)} different labels"
    several = "classes have several pictures each, and numbers to regress are none"
    require(len(names) >= 2, f"all pictures are of one class ({listed(names)}): at least two are needed.")
    require(chosen or 2 * len(names) <= total, f"{few}; {several}: give the column or array of the classes.")
    for name in names:
        require(is_text(name, controls=True), f"a class is called {name!r}, which is no Unicode: rename it.")
    place = {each: index for index, each in enumerate(found.tolist())}
    rows = {part: [place[each] for each in own.tolist()] for part, own in labels.items()}
    indices = {part: torch.tensor(row, dtype=torch.int64) for part, row in rows.items()}
    used = torch.cat([*indices.values()]).unique()
    if chosen or len(used) == len(names):
        return tuple(names), indices, ""
    unused = listed(set(names) - {names[index] for index in used})
    indices = {part: torch.searchsorted(used, own) for part, own in indices.items()}
    return tuple(names[index] for index in used), indices, f"no picture is of {unused}"
