"""What lies in a folder of runs: what each run is, whether it is whole, and how to delete what nobody needs.

Only what this package wrote is ever deleted, nothing that another process works on, and nothing that a
symbolic link leads to.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from iadd_lab.errors import InputError, check_number, require
from iadd_lab.store.artefacts import load_artefact, read_metadata
from iadd_lab.store.configs import FORMAT_VERSION
from iadd_lab.store.locks import PREPROCESSING, is_held, lock_of, try_lock

LEFTOVER_SECONDS = 3600.0  # a temporary file that is older belongs to no process that still writes
_DAY = 86400.0
_DISTILLED, _CHECKPOINT, _TEACHERS = (
    f"{name}.safetensors" for name in ("distilled", "checkpoint", "teachers")
)
# All that is ever written into the folder of a run.
_OURS = (
    "teacher_*.safetensors",
    "checkpoint_*.safetensors",
    *(f"{name}.[ps]*" for name in ("distilled", "before_after", "history", "checkpoint", "teachers")),
    "evaluation_*.[psc]*",
    ".lock",
    ".*.lock",
)
# What `store.atomic_path` writes first: the name between a dot and eight letters, then its suffix again.
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}(?P<suffix>\.\w+)?")


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
        given = self.unfinished or self.damaged or self.older_than is not None or self.name is not None
        require(
            given,
            "nothing says what to delete: give --unfinished, --damaged, --older-than DAYS or --name PATTERN.",
        )

    def fit(self, found: Stored, now: float) -> bool:
        """Whether `found` is to be deleted at the time `now`."""
        return (
            found.state != "foreign"
            and (not self.unfinished or found.state == "unfinished")
            and (not self.damaged or found.state == "damaged")
            and (self.older_than is None or now - found.changed > self.older_than * _DAY)
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
    root = _checked(root)
    found = []
    for folder, parts in _grouped(root, verify):
        found.extend(parts if folder is None else [_together(root, folder, parts)] if parts else [])
    return found


def prune(root: Path | str, criteria: Criteria, *, delete: bool = False) -> list[Pruned]:
    """What in the folder of runs `root` the criteria fit, each evaluation by itself; deleted if `delete`.

    Raises:
        InputError: `root` is no folder, or is a run itself.
    """
    root, now = _checked(root), time.time()
    found = [each for each in _each(root, criteria.damaged) if criteria.fit(each, now)]
    if not delete:
        return [Pruned(each, "another process works on it" if each.busy else "") for each in found]
    # Whoever distils reads teachers all the time, but holds another lock.
    in_use = any(each.busy for each in _each(root, False))
    return [_delete(root, each, criteria, in_use) for each in found]


def _checked(root: Path | str) -> Path:
    root = Path(root)
    require(root.is_dir(), f"{root} is no folder: pass a folder of runs with --runs.")
    own = next((name for name in (_TEACHERS, _DISTILLED, _CHECKPOINT) if (root / name).exists()), None)
    require(own is None, f"{root} is a run itself (it holds {own}): pass the folder that it lies in.")
    return root


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def _each(root: Path, verify: bool) -> Iterator[Stored]:
    for _, parts in _grouped(root, verify):
        yield from parts


def _grouped(root: Path, verify: bool) -> Iterator[tuple[Path | None, list[Stored]]]:
    """All there is; with the folder whose evaluations make one entry."""
    for entry in _entries(root):
        if entry.is_symlink() or not entry.is_dir():
            yield None, [_loose(root, entry)]
        elif _holds_evaluations(entry):
            yield entry, [*_evaluations(root, entry, verify), *_leftovers(root, entry)]
        else:
            yield None, [_run(root, entry, verify), *_leftovers(root, entry)]


def _one(root: Path, path: Path, kind: str, state: str, *, about: str = "", busy: bool = False) -> Stored:
    """What a single file is; a symbolic link is itself, not where it leads to."""
    status = path.lstat()
    return Stored(
        str(path.relative_to(root)), path, kind, about, state, status.st_size, status.st_mtime, busy
    )


def _loose(root: Path, path: Path) -> Stored:
    """A file, or a link, among the runs."""
    if path.is_symlink():
        return _one(root, path, "other", "foreign", about=f"link to {os.readlink(path)}")
    return _one(root, path, *(("leftover", _age(path)) if is_temporary(path) else ("other", "foreign")))


def is_temporary(path: Path) -> bool:
    """Whether `path` is what an interrupted atomic write leaves."""
    match = _TEMPORARY.fullmatch(path.name)
    return match is not None and Path(match["name"]).suffix == (match["suffix"] or "")


def _age(path: Path) -> str:
    """A temporary file that was written just now may still get its place."""
    return "unfinished" if time.time() - path.lstat().st_mtime > LEFTOVER_SECONDS else "foreign"


def _leftovers(root: Path, folder: Path) -> Iterator[Stored]:
    busy = _is_busy(folder)
    for path in _entries(folder):
        if not path.is_symlink() and is_temporary(path):
            yield _one(root, path, "leftover", _age(path), busy=busy)
    yield from _locks(root, folder)
    for path in _spare(folder):
        yield _one(root, path, "leftover", "unfinished", busy=busy, about="a checkpoint")


def _spare(folder: Path) -> list[Path]:
    """Checkpoints beside what is finished: of a teacher, or of an evaluation."""
    # Killed between writing the result and removing the checkpoint.
    ended = folder.glob(_CHECKPOINT) if (folder / _DISTILLED).exists() else ()
    underway = (*folder.glob("checkpoint_*.safetensors"), *folder.glob("*.checkpoint"))
    return sorted(path for path in (*ended, *underway) if not path.is_symlink())


def _locks(root: Path, folder: Path) -> Iterator[Stored]:
    for path in _entries(folder):
        if path.name.endswith(".lock") and not path.is_symlink():
            busy = is_held(path)
            yield _one(root, path, "lock", "foreign" if busy else "unfinished", busy=busy)


def _is_busy(path: Path) -> bool:
    return any(is_held(lock) for lock in _locks_of(path))


def _locks_of(path: Path) -> list[Path]:
    """What is locked while the run or evaluation `path` is made."""
    # Preprocessing is fitted under a lock of its own.
    return [lock_of(path), *([] if path.suffix else [path / PREPROCESSING])]


def _holds_evaluations(folder: Path) -> bool:
    if (folder / _TEACHERS).exists() or (folder / _DISTILLED).exists() or (folder / _CHECKPOINT).exists():
        return False
    return folder.name == "evaluations" or any(folder.glob("evaluation_*.safetensors"))


def _evaluations(root: Path, folder: Path, verify: bool) -> Iterator[Stored]:
    # Without `verify` none is opened: there may be thousands.
    for path in _entries(folder):
        if path.suffix == ".safetensors" and not path.name.startswith(".") and not path.is_symlink():
            state, about = _examine([(path, "evaluation")], verify, _nothing) if verify else ("finished", "")
            yield _one(root, path, "evaluations", state, about=about, busy=_is_busy(path))


def _together(root: Path, folder: Path, parts: list[Stored]) -> Stored:
    """One entry for all evaluations of a folder."""
    damaged = [part for part in parts if part.state == "damaged"]
    counts = {
        "files": sum(part.kind == "evaluations" for part in parts),
        "left over": sum(part.kind != "evaluations" for part in parts),
        "damaged": len(damaged),
    }
    about = ", ".join(f"{count} {what}" for what, count in counts.items() if count or what == "files")
    if damaged:
        about += f", as {damaged[0].path.name}"
    return Stored(
        name=str(folder.relative_to(root)),
        path=folder,
        kind="evaluations",
        about=about,
        state="damaged" if damaged else "finished",
        size=sum(part.size for part in parts),
        changed=max((part.changed for part in parts), default=folder.lstat().st_mtime),
        busy=any(part.busy for part in parts),
    )


def _run(root: Path, folder: Path, verify: bool) -> Stored:
    """A folder that one run was made in."""
    kind, state, about = _what(folder, verify)
    files = [path.lstat() for path in _files(folder)]
    return Stored(
        name=str(folder.relative_to(root)),
        path=folder,
        kind=kind,
        about=about,
        state=state,
        size=sum(status.st_size for status in files),
        changed=max((status.st_mtime for status in files), default=folder.lstat().st_mtime),
        busy=_is_busy(folder),
    )


def _files(folder: Path) -> list[Path]:
    """All files below `folder`, but for locks; links are not followed."""
    found = (Path(place) / name for place, _, names in os.walk(folder) for name in names)
    return [path for path in found if not path.name.endswith(".lock")]


def _what(folder: Path, verify: bool) -> tuple[str, str, str]:
    """Kind, state and description of a run."""
    if (folder / _TEACHERS).exists():
        teachers = sorted(folder.glob("teacher_*.safetensors"))
        parts = [(folder / _TEACHERS, "teachers"), *((path, "trajectory") for path in teachers)]
        state, about = _examine(parts, verify, lambda metadata: _about_teachers(metadata, len(teachers)))
        return "teachers", state if teachers or state != "finished" else "unfinished", about
    if (folder / _DISTILLED).exists():
        return "distilled", *_examine([(folder / _DISTILLED, "distilled")], verify, _about_set)
    if (folder / _CHECKPOINT).exists():
        state, about = _examine([(folder / _CHECKPOINT, "checkpoint")], verify, _about_checkpoint)
        return "distilled", "unfinished" if state == "finished" else state, about
    files = [path for path in _files(folder) if not is_temporary(path)]
    if files and folder.name == "reproduce" and all(path.suffix == ".json" for path in files):
        return "records", "finished", f"of {len(files)} notebooks"
    return ("other", "foreign", "") if files else ("distilled", "unfinished", "nothing yet")


def _examine(
    parts: Iterable[tuple[Path, str]], verify: bool, about: Callable[[dict[str, Any]], str]
) -> tuple[str, str]:
    """The state of files of given kinds, and what the first one's metadata, or the first damage, says."""
    text = None
    for path, kind in parts:
        try:
            metadata = load_artefact(path, kind=kind).metadata if verify else read_metadata(path, kind=kind)
            text = about(metadata) if text is None else text
        except InputError as error:
            return ("foreign" if _is_foreign(path) else "damaged"), f"{path.name}: {_reason(path, error)}"
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            return "foreign", f"{path.name} says nothing of itself that is known here ({error!r})"
    return "finished", text or ""


def _is_foreign(path: Path) -> bool:
    """Whether it could be read, but for its version: another iadd-lab may still need it."""
    try:
        with safe_open(path, framework="pt") as file:
            content = json.loads(json.loads(file.metadata()["iadd_lab"])["content"])
        return content["format"] != FORMAT_VERSION
    except PermissionError:
        return True
    except Exception:  # damage may show in any way
        return False


def _reason(path: Path, error: InputError) -> str:
    return str(error).removeprefix(f"{path} ").split(":")[0]


def _about_teachers(metadata: dict[str, Any], count: int) -> str:
    config, data = metadata["config"], metadata["data"]
    network = config["network"]
    width = "" if network.get("width") is None else f" of width {network['width']}"
    teachers = "no teacher yet" if not count else f"{count} teacher{'s' if count > 1 else ''}"
    return f"{data['name']}, {teachers}, {config['epochs']} epochs, {network['name']}{width}"


def _about_set(metadata: dict[str, Any]) -> str:
    config = metadata.get("config") or metadata.get("baseline") or {}
    ipc = f", IPC {config['ipc']}" if "ipc" in config else ""
    iterations = f", {config['iterations']} iterations" if "iterations" in config else ""
    return f"{metadata['data']['name']}{ipc}, {metadata['method']}{iterations}"


def _about_checkpoint(metadata: dict[str, Any]) -> str:
    return f"only a checkpoint, after {metadata['iteration']} iterations"


def _nothing(metadata: dict[str, Any]) -> str:
    return ""


def _delete(root: Path, found: Stored, criteria: Criteria, in_use: bool) -> Pruned:
    if found.kind == "teachers" and in_use:
        return Pruned(found, "another process works in this folder of runs, and may need these teachers")
    with ExitStack() as held:
        for lock in _locks_for(found):
            if not held.enter_context(try_lock(lock)):
                return Pruned(found, "another process works on it, or it can't be locked")
        if _has_changed(root, found, criteria):
            return Pruned(found, "another process has changed it meanwhile")
        try:
            return Pruned(found, _remove(found))
        except OSError as error:
            return Pruned(found, f"it can't be deleted ({error.strerror})")


def _locks_for(found: Stored) -> list[Path]:
    if found.kind == "lock":
        return [found.path]
    own, *more = _locks_of(found.path.parent if found.kind == "leftover" else found.path)
    return [own, *(lock for lock in more if lock.exists())]


def _has_changed(root: Path, found: Stored, criteria: Criteria) -> bool:
    """Whether it is not any more what it was before it was locked."""
    if found.kind == "lock":
        return False
    if not found.path.exists():
        return True
    if found.kind in ("leftover", "evaluations"):
        return found.path.lstat().st_mtime > found.changed
    now = _run(root, found.path, criteria.damaged)
    return now.state != found.state or (now.size > 0 and now.changed > found.changed)


def _remove(found: Stored) -> str:
    """Delete it; what is left, and why, if anything is."""
    if found.kind == "lock":
        return ""  # it goes with its holder, who we are
    if not found.path.is_dir():
        for path in _pictures(found.path) if found.kind == "evaluations" else []:
            path.unlink()
        found.path.unlink()
        return ""
    patterns = (*_OURS, "*.json") if found.kind == "records" else _OURS
    files = [Path(place) / name for place, _, names in os.walk(found.path) for name in names]
    # What says that it is a run goes last: if this is interrupted, the rest is still known for one.
    for path in sorted(files, key=lambda path: path.name in (_TEACHERS, _DISTILLED)):
        if is_temporary(path) or any(fnmatch.fnmatchcase(path.name, pattern) for pattern in patterns):
            path.unlink()
    for place, _, _ in os.walk(found.path, topdown=False):
        if not os.listdir(place):
            os.rmdir(place)
    left = sorted(path.name for path in found.path.iterdir()) if found.path.exists() else []
    return f"all but {', '.join(left)}, which iadd-lab did not write" if left else ""


def _pictures(evaluation: Path) -> list[Path]:
    return [
        path
        for path in evaluation.parent.glob(f"{evaluation.stem}_*")
        if path.suffix in (".png", ".pdf") and not path.is_symlink()
    ]
