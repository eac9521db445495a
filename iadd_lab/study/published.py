"""What the literature reports: test accuracies in per cent, each with the publication that it was read in."""

import csv
from collections.abc import Sequence
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
    for ipc in ipcs or ():
        check_whole("ipcs", ipc, minimum=1)
    for method in methods or ():
        choose("published method", method, known)
    values = []
    for name in data:
        title, own = choose("data set", name, DATASETS).title, [e for e in entries if e["dataset"] == name]
        reported = dict.fromkeys(int(entry["ipc"]) for entry in own if entry["ipc"])
        for entry in own if methods is None else [entry for entry in own if entry["method"] in methods]:
            mean, std, competes = float(entry["accuracy"]), float(entry["std"]), bool(entry["ipc"])
            for ipc in [int(entry["ipc"])] if competes else reported:
                column = ("published", title, f"IPC {ipc}")
                if ipcs is None or ipc in ipcs:
                    values.append(Value(entry["method"], column, mean, std, entry["source"], False, competes))
    return values


def read_published() -> list[dict[str, str]]:
    """The rows of `published.csv`: method, dataset, ipc (empty for the whole set), accuracy, std, source."""
    text = files("iadd_lab.study").joinpath("published.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
