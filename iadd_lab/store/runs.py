"""What lies in a folder of runs: what each run is, whether it is whole, and how to delete what nobody needs.

Only what this package wrote is ever deleted, nothing that another process works on, and nothing that a
symbolic link leads to.
"""

from __future__ import annotations

import fnmatch
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iadd_lab.errors import InputError, OtherVersionError, check_number, require
from iadd_lab.store.artefacts import load_artefact, read_metadata
from iadd_lab.store.locks import PREPROCESSING, is_held, lock_of, try_lock

LEFTOVER_SECONDS = 3600.0  # a temporary file that is older belongs to no process that still writes
_TEACHERS, _DISTILLED, _CHECKPOINT = "teachers.safetensors", "distilled.safetensors", "checkpoint.safetensors"
# All that is ever written into the folder of a run.
_OURS = re.compile(
    r"(teacher|checkpoint)_.*\.safetensors|evaluation_.*\.[psc].*|(\..*)?\.lock"
    r"|(distilled|before_after|history|checkpoint|teachers)\.[ps].*"
)
# Checkpoints of a teacher, and of an evaluation.
_UNDERWAY = re.compile(r"checkpoint_.*\.safetensors|.*\.checkpoint")
# What `store.atomic_path` writes first: the name between a dot and eight letters, then its suffix again.
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}(?P<suffix>\.\w+)?")
_WORKED_ON = "another process works on it"


@dataclass(frozen=True)
class Stored:
    """One thing in a folder of runs.

    Attributes:
        name: its path below the folder of runs.
        path: where it is.
        kind: "teachers", "distilled", "evaluations", "records", "lock", "leftover" or, not ours, "other".
        about: what it is, as far as it says so itself.
        state: "finished", "unfinished", "damaged", or "foreign" where it is not to be touched.
        size: of its files, in bytes.
        changed: when the last of them was written, in seconds since 1970.
        busy: whether another process works on it.
    """

    name: str
    path: Path
    kind: str
    about: str
    state: str
    size: int
    changed: float
    busy: bool = False


@dataclass(frozen=True)
class Criteria:
    """What to delete: all that is given must hold, and something must be given.

    Args:
        unfinished: only checkpoints, runs that hold no result, temporary files and locks that nobody holds.
        damaged: only what can't be read; everything is read in full to know.
        older_than: only what was not changed for so many days.
        name: only what a pattern with * and ? fits; evaluations are called evaluations/….
    """

    unfinished: bool = False
    damaged: bool = False
    older_than: float | None = None
    name: str | None = None

    def __post_init__(self):
        if self.older_than is not None:
            check_number("older_than", self.older_than)
        require(
            self.unfinished or self.damaged or self.older_than is not None or self.name is not None,
            "nothing says what to delete: give --unfinished, --damaged, --older-than DAYS or --name PATTERN.",
        )

    def fit(self, found: Stored, now: float) -> bool:
        """Whether `found` is to be deleted at the time `now`."""
        return (
            found.state != "foreign"
            and (not self.unfinished or found.state == "unfinished")
            and (not self.damaged or found.state == "damaged")
            and (self.older_than is None or now - found.changed > self.older_than * 86400)
            and (self.name is None or fnmatch.fnmatchcase(found.name, self.name))
        )


@dataclass(frozen=True)
class Pruned:
    """What became of one thing that was to be deleted: `kept` says why it was not, or is empty."""

    stored: Stored
    kept: str = ""


def stored(root: Path | str, *, verify: bool = False) -> list[Stored]:
    """What lies in the folder of runs `root`; all evaluations of a folder are one entry.

    Args:
        root: the folder of runs.
        verify: read every file in full and compare checksums; otherwise only what runs say of themselves.

    Raises:
        InputError: `root` is no folder, or is a run itself.
    """
    found = []
    for path, parts in _parts(root, verify):
        found += [_summary(Path(root), path, parts)] if parts and _holds_evaluations(path) else parts
    return found


def prune(root: Path | str, criteria: Criteria, *, delete: bool = False) -> list[Pruned]:
    """What in the folder of runs `root` the criteria fit, each evaluation by itself; deleted if `delete`.

    Raises:
        InputError: `root` is no folder, or is a run itself.
    """
    now, there = time.time(), [each for _, parts in _parts(root, criteria.damaged) for each in parts]
    found = [each for each in there if criteria.fit(each, now)]
    if not delete:
        return [Pruned(each, _WORKED_ON if each.busy else "") for each in found]
    # Whoever distils reads teachers all the time, but holds another lock.
    in_use = any(each.busy for each in there)
    return [Pruned(each, _delete(each, in_use)) for each in found]


def is_temporary(path: Path) -> bool:
    """Whether `path` is what an interrupted atomic write leaves."""
    match = _TEMPORARY.fullmatch(path.name)
    return match is not None and Path(match["name"]).suffix == (match["suffix"] or "")


# What is there ---------------------------------------------------------------------------------------------


def _parts(root: Path | str, verify: bool) -> Iterator[tuple[Path, list[Stored]]]:
    """Every path in the folder of runs, with all that is found there; links are not followed."""
    root = Path(root)
    require(root.is_dir(), f"{root} is no folder: pass a folder of runs with --runs.")
    own = _result(root)
    require(not own, f"{root} is a run itself (it holds {own}): pass the folder that it lies in.")
    for path in sorted(root.iterdir()):
        if path.is_dir() and not path.is_symlink():
            busy = any(map(is_held, _locks_of(path)))
            runs = _evaluations if _holds_evaluations(path) else _run
            yield path, [*runs(root, path, verify, busy), *_leftovers(root, path, busy)]
        elif is_temporary(path) and not path.is_symlink():
            yield path, [_leftover(root, path)]
        else:
            about = f"link to {os.readlink(path)}" if path.is_symlink() else ""
            yield path, [_entry(root, path, "other", "foreign", about)]


def _result(folder: Path) -> str:
    """The name of the file that makes the folder a run, if any."""
    names = (_TEACHERS, _DISTILLED, _CHECKPOINT)
    return next((name for name in names if (folder / name).exists()), "")


def _holds_evaluations(path: Path) -> bool:
    if path.is_symlink() or not path.is_dir() or _result(path):
        return False
    return path.name == "evaluations" or any(path.glob("evaluation_*.safetensors"))


def _locks_of(path: Path) -> list[Path]:
    """What is locked while the run or evaluation `path` is made."""
    # Preprocessing is fitted under a lock of its own.
    return [lock_of(path), *([] if path.suffix else [path / PREPROCESSING])]


def _entry(root: Path, path: Path, kind: str, state: str, about: str = "", busy: bool = False) -> Stored:
    return Stored(str(path.relative_to(root)), path, kind, about, state, *_measure(path), busy)


def _measure(path: Path) -> tuple[int, float]:
    """Bytes of the files of `path`, but for locks, and when the last was written; a link is itself."""
    whole = path.is_dir() and not path.is_symlink()
    found = [each.lstat() for each in (_files(path) if whole else [path])]
    changed = max((each.st_mtime for each in found), default=path.lstat().st_mtime)
    return sum(each.st_size for each in found), changed


def _files(folder: Path) -> list[Path]:
    """All files below `folder`, but for locks; links are not followed."""
    found = (Path(place) / name for place, _, names in os.walk(folder) for name in names)
    return [path for path in found if not path.name.endswith(".lock")]


def _leftover(root: Path, path: Path, busy: bool = False) -> Stored:
    """A temporary file; one that was written just now may still get its place."""
    is_old = time.time() - path.lstat().st_mtime > LEFTOVER_SECONDS
    return _entry(root, path, "leftover", "unfinished" if is_old else "foreign", busy=busy)


def _leftovers(root: Path, folder: Path, busy: bool) -> Iterator[Stored]:
    """What interrupted processes left in `folder`."""
    is_finished = (folder / _DISTILLED).exists()
    for path in sorted(folder.iterdir()):
        if path.is_symlink():
            continue
        if is_temporary(path):
            yield _leftover(root, path, busy)
        elif path.name.endswith(".lock"):
            held = is_held(path)
            yield _entry(root, path, "lock", "foreign" if held else "unfinished", busy=held)
        # Killed between writing the result and removing the checkpoint.
        elif _UNDERWAY.fullmatch(path.name) or (is_finished and path.name == _CHECKPOINT):
            yield _entry(root, path, "leftover", "unfinished", "a checkpoint", busy)


def _evaluations(root: Path, folder: Path, verify: bool, _: bool) -> Iterator[Stored]:
    # Without `verify` none is opened: there may be thousands.
    for path in sorted(folder.glob("[!.]*.safetensors")):
        if not path.is_symlink():
            checked = _examine({path: "evaluation"}, verify) if verify else ("finished", "")
            yield _entry(root, path, "evaluations", *checked, is_held(lock_of(path)))


def _summary(root: Path, folder: Path, parts: list[Stored]) -> Stored:
    """One entry for all evaluations of a folder."""
    damaged = [part.path.name for part in parts if part.state == "damaged"]
    files = sum(part.kind == "evaluations" for part in parts)
    about = f"{files} files"
    if files < len(parts):
        about += f", {len(parts) - files} left over"
    if damaged:
        about += f", {len(damaged)} damaged, as {damaged[0]}"
    state, busy = "damaged" if damaged else "finished", any(part.busy for part in parts)
    return _entry(root, folder, "evaluations", state, about, busy)


def _run(root: Path, folder: Path, verify: bool, busy: bool) -> Iterator[Stored]:
    """A folder that one run was made in."""
    result, files = _result(folder), [path for path in _files(folder) if not is_temporary(path)]
    kind, state, about = "other", "foreign", ""
    if result:
        teachers = dict.fromkeys(sorted(folder.glob("teacher_*.safetensors")), "trajectory")
        kind, is_teachers = Path(result).stem, result == _TEACHERS
        state, about = _examine({folder / result: kind} | (teachers if is_teachers else {}), verify)
        if state == "finished" and (result == _CHECKPOINT or (is_teachers and not teachers)):
            state = "unfinished"
        kind = "distilled" if result == _CHECKPOINT else kind
    elif not files:
        kind, state, about = "distilled", "unfinished", "nothing yet"
    elif folder.name == "reproduce" and all(path.suffix == ".json" for path in files):
        kind, state, about = "records", "finished", f"of {len(files)} notebooks"
    yield _entry(root, folder, kind, state, about, busy)


def _examine(parts: dict[Path, str], verify: bool) -> tuple[str, str]:
    """The state of files of given kinds, and what the first one's metadata, or the first damage, says."""
    about = ""
    for path, kind in parts.items():
        try:
            metadata = load_artefact(path, kind=kind).metadata if verify else read_metadata(path, kind=kind)
            about = about or _ABOUT[kind](metadata, len(parts) - 1)
        except InputError as error:
            # Another iadd-lab, or another user, may still need it.
            foreign = isinstance(error, OtherVersionError) or isinstance(error.__cause__, PermissionError)
            reason = str(error).removeprefix(f"{path} ").split(":")[0]
            return "foreign" if foreign else "damaged", f"{path.name}: {reason}"
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            return "foreign", f"{path.name} says nothing of itself that is known here ({error!r})"
    return "finished", about


def _about_teachers(metadata: dict[str, Any], count: int) -> str:
    config, network = metadata["config"], metadata["config"]["network"]
    width = "" if network.get("width") is None else f" of width {network['width']}"
    teachers = "no teacher yet" if not count else f"{count} teacher{'s' if count > 1 else ''}"
    return f"{metadata['data']['name']}, {teachers}, {config['epochs']} epochs, {network['name']}{width}"


def _about_set(metadata: dict[str, Any], _: int) -> str:
    config = metadata.get("config") or metadata.get("baseline") or {}
    ipc = f", IPC {config['ipc']}" if "ipc" in config else ""
    iterations = f", {config['iterations']} iterations" if "iterations" in config else ""
    return f"{metadata['data']['name']}{ipc}, {metadata['method']}{iterations}"


_ABOUT: dict[str, Callable[[dict[str, Any], int], str]] = {
    "teachers": _about_teachers,
    "distilled": _about_set,
    "checkpoint": lambda metadata, _: f"only a checkpoint, after {metadata['iteration']} iterations",
    "evaluation": lambda metadata, _: "",
}


# What is deleted -------------------------------------------------------------------------------------------


def _delete(found: Stored, in_use: bool) -> str:
    """Delete it; what keeps it or a part of it, if anything does."""
    if found.kind == "teachers" and in_use:
        return "another process works in this folder of runs, and may need these teachers"
    with ExitStack() as held:
        if not all(held.enter_context(try_lock(lock)) for lock in _locks_for(found)):
            return f"{_WORKED_ON}, or it can't be locked"
        try:
            size, changed = _measure(found.path)
            # The folder of nothing but locks changes with them.
            if size != found.size or (size and changed > found.changed):
                return "another process has changed it meanwhile"
            return _remove_run(found) if found.path.is_dir() else _remove_file(found)
        except OSError as error:
            return f"it can't be deleted ({error.strerror})"


def _locks_for(found: Stored) -> list[Path]:
    if found.kind == "lock":
        return [found.path]
    own, *more = _locks_of(found.path.parent if found.kind == "leftover" else found.path)
    return [own, *(lock for lock in more if lock.exists())]


def _remove_file(found: Stored) -> str:
    for path in found.path.parent.glob(f"{found.path.stem}_*") if found.kind == "evaluations" else ():
        if path.suffix in (".png", ".pdf") and not path.is_symlink():
            path.unlink()
    found.path.unlink()
    return ""


def _remove_run(found: Stored) -> str:
    """Delete what this package wrote; what is left, if anything is."""
    files = [Path(place) / name for place, _, names in os.walk(found.path) for name in names]
    # What says that it is a run goes last: if this is interrupted, the rest is still known for one.
    for path in sorted(files, key=lambda path: path.name in (_TEACHERS, _DISTILLED)):
        is_record = found.kind == "records" and path.suffix == ".json"
        if is_record or is_temporary(path) or _OURS.fullmatch(path.name):
            path.unlink()
    for place, _, _ in os.walk(found.path, topdown=False):
        if not os.listdir(place):
            os.rmdir(place)
    left = sorted(path.name for path in found.path.iterdir()) if found.path.exists() else []
    return f"all but {', '.join(left)}, which iadd-lab did not write" if left else ""
