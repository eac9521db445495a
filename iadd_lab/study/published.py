"""What the literature reports: test accuracies in per cent, each with the publication that it was read in."""

import csv
from collections.abc import Iterator, Sequence
from importlib.resources import files

from iadd_lab.data.sets import DATASETS
from iadd_lab.errors import check_whole, choose
from iadd_lab.study.tables import Value


def published(
    *, data: Sequence[str], ipcs: Sequence[int] | None = None, methods: Sequence[str] | None = None
) -> list[Value]:
    """The published accuracies in per cent, as values for a table: mean and standard deviation.

    Their columns are ("published", the data set's title, "IPC n"). The whole set's accuracy stands in each
    of its data set's columns and does not compete there.

    Args:
        data: keys of `DATASETS`; one that nothing was published on adds no value.
        ipcs: images per class; None takes all.
        methods: names as `published.csv` prints them; None takes all.

    Raises:
        InputError: a data set or a method is unknown, or an IPC is not a whole number of at least 1.
    """
    entries = read_published()
    known = dict.fromkeys(entry["method"] for entry in entries)
    for name in data:
        choose("data set", name, DATASETS)
    for ipc in ipcs or ():
        check_whole("ipcs", ipc, minimum=1)
    for method in methods or ():
        choose("published method", method, known)
    return [
        _value(entry, ipc)
        for name in data
        for entry in entries
        if entry["dataset"] == name and (methods is None or entry["method"] in methods)
        for ipc in _columns(entry, entries)
        if ipcs is None or ipc in ipcs
    ]


def read_published() -> list[dict[str, str]]:
    """The rows of `published.csv`: method, dataset, ipc (empty for the whole set), accuracy, std, source."""
    text = files("iadd_lab.study").joinpath("published.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def _columns(entry: dict[str, str], entries: Sequence[dict[str, str]]) -> Iterator[int]:
    """The IPC of `entry`; for the whole set, which has none, every IPC reported on its data set."""
    same_data = dict.fromkeys(other["ipc"] for other in entries if other["dataset"] == entry["dataset"])
    return (int(ipc) for ipc in ([entry["ipc"]] if entry["ipc"] else same_data) if ipc)


def _value(entry: dict[str, str], ipc: int) -> Value:
    column = ("published", DATASETS[entry["dataset"]].title, f"IPC {ipc}")
    mean, std, kind = float(entry["accuracy"]), float(entry["std"]), {"competes": bool(entry["ipc"])}
    return Value(entry["method"], column, mean, std, entry["source"], measured=False, **kind)
