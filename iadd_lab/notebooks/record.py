"""What a notebook made when it was last executed, so that it need not be executed again.

Records lie among the runs, which nobody commits, and not beside the pictures, which are committed: in a
fresh clone nothing is up to date, and `iadd-lab reproduce` really reproduces.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from iadd_lab.notebooks.notebook import natural_order
from iadd_lab.notebooks.plan_batch import Task
from iadd_lab.store.artefacts import save_text

logger = logging.getLogger(__name__)

KIND = "notebook record"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Record:
    """The last good execution of a notebook.

    Attributes:
        inputs: fingerprint of what it was executed with.
        made: SHA-256 of each file that it made, by file name.
        seconds: how long it took.
        changed: the parameters that were given in place of the profile's.
    """

    inputs: str
    made: dict[str, str]
    seconds: float
    changed: dict[str, Any]


def read_record(path: Path) -> Record | None:
    """The record in `path`; None if there is none, or, with a warning, none that is whole and current.

    A damaged record costs one more execution of its notebook, which finds its results among the runs.
    """
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_bytes())
        record = Record(**stored["record"])
        whole = path.read_bytes() == _text(record).encode()  # every byte, format and checksum included
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        whole = False
    if not whole:
        logger.warning("%s is damaged or of another version: its notebook counts as not executed", path)
    return record if whole else None


def save_record(path: Path, record: Record) -> None:
    """Write `record`, with its kind, format version and checksum, atomically."""
    save_text(path, _text(record))


def _text(record: Record) -> str:
    values = asdict(record)
    content = {"kind": KIND, "format": FORMAT_VERSION, "record": values}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps(content | {"sha256": digest}, indent=1) + "\n"


def is_up_to_date(task: Task) -> bool:
    """Whether `task` was executed with the same inputs, and all that it made is still there unchanged."""
    record = read_record(task.record)
    if record is None or record.inputs != task.inputs or task.executed.name not in record.made:
        return False
    paths = {task.folder / name: digest for name, digest in record.made.items()}
    return all(path.is_file() and _digest(path) == digest for path, digest in paths.items())


def write_record(task: Task, *, names: Iterable[str], since: int, seconds: float) -> None:
    """Record what `task` made.

    Args:
        task: that was executed.
        names: of all notebooks; see `files_of`.
        since: `file_clock` at the start; older files were made by an earlier version of the notebook.
        seconds: how long it took.
    """
    files = [path for path in files_of(task.name, names, task.folder) if path.stat().st_mtime_ns >= since]
    made = {path.name: _digest(path) for path in files}
    record = Record(inputs=task.inputs, made=made, seconds=round(seconds, 2), changed=task.changed)
    save_record(task.record, record)


def files_of(name: str, names: Iterable[str], folder: Path) -> list[Path]:
    """The files in `folder` that belong to notebook `name`: `name`.* and `name`_*, in natural order.

    What begins with the longer name of another notebook is that one's: table1_all.png is not of table1 where
    there is a notebook table1_all.
    """
    longer = [other for other in names if _begins_with(other, name) and other != name]
    mine = (
        path
        for path in folder.glob("*")
        if _begins_with(path.name, name) and not any(_begins_with(path.name, other) for other in longer)
    )
    return sorted((path for path in mine if path.is_file()), key=lambda path: natural_order(path.name))


def _begins_with(file: str, name: str) -> bool:
    return file == name or file.startswith((f"{name}.", f"{name}_"))


def file_clock(folder: Path) -> int:
    """The time in ns that a file written to `folder` now gets; its clock may be another than ours."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime_ns


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
