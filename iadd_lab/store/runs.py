"""What lies in a folder of runs: what each run is, whether it is whole, and how to delete what nobody needs.

Only what this package wrote is ever deleted, nothing that another process works on, and nothing that a
symbolic link leads to.
"""

import fnmatch
import os
import re
import time
from contextlib import ExitStack, suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from iadd_lab.errors import InputError, OtherVersionError, check_flag, check_number, require
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
_LOCK = re.compile(r"\.((preprocess|teacher_\d+|.+\.(safetensors|checkpoint))\.)?lock")
_FOLDER = re.compile(r".*-[0-9a-f]{16}|reproduce")  # as `run_folder` and the batch name them
# What `store.atomic_path` writes first: the name between a dot and eight letters, then its suffix again; and
# what safetensors writes beside that.
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}(?P<suffix>\.\w+)?|\.tmp[A-Za-z0-9]{6}")
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
        for name in ("unfinished", "damaged"):
            check_flag(name, getattr(self, name))
        if self.older_than is not None:
            check_number("older_than", self.older_than)
        require(
            astuple(self) != (False, False, None, None),
            "nothing says what to delete: give --unfinished, --damaged, --older-than DAYS or --name PATTERN.",
        )

    def fit(self, found: Stored, now: float) -> bool:
        """Whether `found` is to be deleted at the time `now`."""
        asked = [state for state in ("unfinished", "damaged") if getattr(self, state)]
        return (
            all(found.state == state for state in asked)
            and found.state != "foreign"
            and (self.older_than is None or now - found.changed > self.older_than * 86400)
            and (self.name is None or fnmatch.fnmatchcase(found.name, self.name))
        )


def stored(root: Path | str, *, verify: bool = False, together: bool = True) -> list[Stored]:
    """What lies in the folder of runs `root`.

    Args:
        root: the folder of runs.
        verify: read every file in full and compare checksums; otherwise only what runs say of themselves.
        together: all evaluations of a folder, and what was left there, are one entry.

    Raises:
        InputError: `root` is no folder, or is a run itself.
    """
    root = Path(root)
    require(root.is_dir(), f"{root} is no folder: pass a folder of runs with --runs.")
    own = _result(root)
    require(not own, f"{root} is a run itself (it holds {own}): pass the folder that it lies in.")
    found = []
    for path in sorted(root.iterdir()):
        if path.is_dir() and not path.is_symlink():
            found += _folder(root, path, verify, together)
        elif is_temporary(path):
            found.append(_leftover(root, path))
        else:
            about = f"link to {os.readlink(path)}" if path.is_symlink() else ""
            found.append(_entry(root, path, "other", "foreign", about))
    return found


def prune(root: Path | str, criteria: Criteria, *, delete: bool = False) -> list[tuple[Stored, str]]:
    """What in the folder of runs `root` the criteria fit, each evaluation by itself; deleted if `delete`.

    Returns:
        Each with what keeps it or a part of it from being deleted; "" where nothing does.

    Raises:
        InputError: `root` is no folder, or is a run itself.
    """
    now, there = time.time(), stored(root, verify=criteria.damaged, together=False)
    found = [each for each in there if criteria.fit(each, now)]
    if not delete:
        return [(each, _WORKED_ON if each.busy else "") for each in found]
    # Whoever distils reads teachers all the time, but holds another lock.
    in_use = any(each.busy for each in there)
    return [(each, _delete(each, in_use)) for each in found]


def is_temporary(path: Path) -> bool:
    """Whether `path` is what an interrupted atomic write leaves."""
    match = _TEMPORARY.fullmatch(path.name)
    is_own = bool(match) and Path(match["name"] or "").suffix == (match["suffix"] or "")
    return is_own and not path.is_symlink()


# What is there ---------------------------------------------------------------------------------------------


def _result(folder: Path) -> str:
    """The name of the file that makes the folder a run, if any."""
    names = (_TEACHERS, _DISTILLED, _CHECKPOINT)
    return next((name for name in names if (folder / name).exists()), "")


def _folder(root: Path, folder: Path, verify: bool, together: bool) -> list[Stored]:
    """A run or evaluations, and what interrupted processes left beside them; links are not followed."""
    busy = any(map(is_held, (lock_of(folder), folder / PREPROCESSING)))
    is_for_evaluations = folder.name == "evaluations" or any(folder.glob("evaluation_*"))
    run = None if is_for_evaluations and not _result(folder) else _run(root, folder, verify, busy)
    # In a folder that is not ours, nothing is.
    paths = [] if run and run.kind == "other" else sorted(folder.iterdir())
    left = list(filter(None, (_leftover(root, path, busy) for path in paths)))
    if run:
        return [run, *left]
    paths = [path for path in sorted(folder.glob("[!.]*.safetensors")) if not path.is_symlink()]
    parts = [*(_evaluation(root, path, verify) for path in paths), *left]
    return [_summary(root, folder, parts)] if together and parts else parts


def _entry(root: Path, path: Path, kind: str, state: str, about: str = "", busy: bool = False) -> Stored:
    return Stored(str(path.relative_to(root)), path, kind, about, state, *_measure(path), busy)


def _measure(path: Path) -> tuple[int, float]:
    """Bytes of the files of `path`, but for locks, and when the last was written; a link is itself."""
    found = [each.lstat() for each in _files(path) if not each.name.endswith(".lock")]
    changed = max((each.st_mtime for each in found), default=path.lstat().st_mtime)
    return sum(each.st_size for each in found), changed


def _files(path: Path) -> list[Path]:
    """All files below the folder `path`, or a file or link itself; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        return [path]
    return [Path(place) / name for place, _, names in os.walk(path) for name in names]


def _leftover(root: Path, path: Path, busy: bool = False) -> Stored | None:
    """What an interrupted process left, if `path` is that."""
    if is_temporary(path):  # one that was written just now may still get its place
        is_old = time.time() - path.lstat().st_mtime > LEFTOVER_SECONDS
        return _entry(root, path, "leftover", "unfinished" if is_old else "foreign", busy=busy)
    if _LOCK.fullmatch(path.name) and not path.is_symlink():
        held = is_held(path)
        return _entry(root, path, "lock", "foreign" if held else "unfinished", busy=held)
    # Killed between writing the result and removing the checkpoint.
    is_spare = path.name == _CHECKPOINT and (path.parent / _DISTILLED).exists()
    if (is_spare or _UNDERWAY.fullmatch(path.name)) and not path.is_symlink():
        return _entry(root, path, "leftover", "unfinished", "a checkpoint", busy)
    return None


def _evaluation(root: Path, path: Path, verify: bool) -> Stored:
    # Without `verify` none is opened: there may be thousands.
    checked = _examine({path: "evaluation"} if verify else {}, verify)
    return _entry(root, path, "evaluations", *checked, is_held(lock_of(path)))


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


def _run(root: Path, folder: Path, verify: bool, busy: bool) -> Stored:
    """A folder that one run was made in."""
    result = _result(folder)
    locks = [path for path in _files(folder) if _LOCK.fullmatch(path.name)]
    files = [path for path in _files(folder) if path not in locks and not is_temporary(path)]
    kind, state, about = "other", "foreign", ""
    if result:
        kind, teachers = Path(result).stem, sorted(folder.glob("teacher_*.safetensors"))
        state, about = _examine({folder / result: kind} | dict.fromkeys(teachers, "trajectory"), verify)
        if state == "finished" and (result == _CHECKPOINT or (result == _TEACHERS and not teachers)):
            state = "unfinished"
        kind = "distilled" if result == _CHECKPOINT else kind
    elif not files and (locks or _FOLDER.fullmatch(folder.name)):
        kind, state, about = "distilled", "unfinished", "nothing yet"
    elif folder.name == "reproduce" and all(path.suffix == ".json" for path in files):
        kind, state, about = "records", "finished", f"of {len(files)} notebooks"
    return _entry(root, folder, kind, state, about, busy)


def _examine(parts: dict[Path, str], verify: bool) -> tuple[str, str]:
    """The state of files of given kinds, and what the first one's metadata, or the first damage, says."""
    about = ""
    for path, kind in parts.items():
        try:
            metadata = load_artefact(path, kind=kind).metadata if verify else read_metadata(path, kind=kind)
            about = about or _about(kind, metadata, len(parts) - 1)
        except InputError as error:
            # Another iadd-lab may still need it, or another user, or the machine may read it another time.
            foreign = isinstance(error, OtherVersionError) or isinstance(error.__cause__, OSError)
            reason = str(error).removeprefix(f"{path} ").split(":")[0]
            return "foreign" if foreign else "damaged", f"{path.name}: {reason}"
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            return "foreign", f"{path.name} says nothing of itself that is known here ({error!r})"
    return "finished", about


def _about(kind: str, metadata: dict[str, Any], count: int) -> str:
    """What the metadata of a run says of it; `count` teachers are there."""
    if kind == "checkpoint":
        return f"only a checkpoint, after {metadata['iteration']} iterations"
    if kind not in ("teachers", "distilled"):
        return ""
    config, said = metadata.get("config") or metadata.get("baseline") or {}, [metadata["data"]["name"]]
    if kind == "teachers":
        network = config["network"]
        width = "" if network.get("width") is None else f" of width {network['width']}"
        teachers = f"{count} teacher{'s' if count > 1 else ''}" if count else "no teacher yet"
        return ", ".join([*said, teachers, f"{config['epochs']} epochs", f"{network['name']}{width}"])
    said += [f"IPC {config['ipc']}"] if "ipc" in config else []
    said += [metadata["method"]]
    said += [f"{config['iterations']} iterations"] if "iterations" in config else []
    return ", ".join(said)


# What is deleted -------------------------------------------------------------------------------------------


def _delete(found: Stored, in_use: bool) -> str:
    """Delete it; what keeps it or a part of it, if anything does."""
    if found.kind == "teachers" and in_use:
        return "another process works in this folder of runs, and may need these teachers"
    if not found.path.exists():  # it went with its folder
        return ""
    place = found.path.parent if found.kind == "leftover" else found.path
    locks = [found.path] if found.kind == "lock" else [lock_of(place), *place.glob(PREPROCESSING)]
    with ExitStack() as held:
        if not all(held.enter_context(try_lock(lock)) for lock in locks):
            return f"{_WORKED_ON}, or it can't be locked"
        try:
            size, changed = _measure(found.path)
            # The folder of nothing but locks changes with them.
            if size != found.size or (size and changed > found.changed):
                return "another process has changed it meanwhile"
            return _remove(found)
        except OSError as error:
            return f"it can't be deleted ({error.strerror})"


def _remove(found: Stored) -> str:
    """Delete what this package wrote; what is left, if anything is."""
    # What says that it is a run goes last: if this is interrupted, the rest is still known for one.
    files = sorted(_files(found.path), key=lambda path: path.name in (_TEACHERS, _DISTILLED))
    if found.kind == "evaluations":
        pictures = found.path.parent.glob(f"{found.path.stem}_*.p[dn][fg]")
        files = [path for path in pictures if not path.is_symlink()] + files
    emptied = {found.path}
    for path in files:
        is_record = found.kind == "records" and path.suffix == ".json"
        if not found.path.is_dir() or is_record or is_temporary(path) or _OURS.fullmatch(path.name):
            path.unlink()
            emptied |= {path.parent}
    for place in sorted(emptied, reverse=True) if found.path.is_dir() else ():
        with suppress(OSError):  # it holds more
            place.rmdir()
    left = sorted(path.name for path in found.path.iterdir()) if found.path.exists() else []
    return f"all but {', '.join(left)}, which iadd-lab did not write" if left else ""
