"""Atomic, self-describing artefacts: safetensors files that carry their kind, configuration and checksum."""

import errno
import hashlib
import json
import os
import re
import secrets
import tempfile
from collections import Counter
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from iadd_lab.device import computed_with
from iadd_lab.errors import InputError, OtherVersionError, require
from iadd_lab.store.configs import FORMAT_VERSION
from iadd_lab.store.locks import UNSUPPORTED, expanded

_HEADER = "iadd_lab"  # the one key that this package writes into a safetensors header
_MENDS = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room on its disk")
_MENDS |= dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit of open files (ulimit -n)")
# Not the file's fault, which may be read another time.
PASSING = {errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM, errno.ESTALE, errno.ENOTCONN, errno.EACCES}
_PARTS = {"content", "computed_with", "text_digest", "sha256"}  # what is under that key


@dataclass(frozen=True)
class Artefact:
    """What a file holds: named tensors and JSON metadata, and what of the machine they were computed with."""

    path: Path
    kind: str
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, Any]
    computed_with: str  # see `device.computed_with`; empty for older files


def tensor_fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """16 hex digits over the names, dtypes, shapes and bytes of `tensors`."""
    return _checksum(tensors, "")[:16]


def _checksum(tensors: Mapping[str, torch.Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def user_folder(variable: str, leaf: str) -> Path:
    """The folder that the environment's `variable` names, else `leaf` in the user's cache folder.

    Where a user has no home, as in many containers, that is in the folder of temporary files.

    Raises:
        InputError: the variable begins with ~, and there is no home folder.
    """
    if given := os.environ.get(variable):
        return expanded(given)
    with suppress(RuntimeError):  # which there is where there is no home
        return platformdirs.user_cache_path("iadd-lab").expanduser() / leaf
    return Path(tempfile.gettempdir(), f"iadd-lab-{os.getuid()}", leaf)


def check_folder(path: Path | str) -> Path:
    """`path`, made if it was not there, after a file was really written in it.

    Raises:
        InputError: it is a file, or nothing can be written there.
    """
    path = expanded(path)
    sentence = f"{path} is a file, but a folder is needed: choose another name."
    require(path.is_dir() or not path.exists(), sentence)
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise InputError(f"{path} can't be written to ({error.strerror}): choose another folder.") from error
    return path


@contextmanager
def atomic_path(path: Path):
    """A temporary path beside `path` that takes its place only if the block ends well.

    Raises:
        OSError: `path` could not be written. The message is one sentence, which says why and how to mend it.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{path.suffix}")
        temporary.open("xb").close()
        mode = temporary.stat().st_mode  # that every new file gets here
        try:
            yield temporary
            _sync(temporary)
            with suppress(OSError):  # safetensors puts a private file in its place; some mounts refuse this
                temporary.chmod(mode)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Have the file on the disk before its name is; some mounts know no such thing."""
    with path.open("rb+") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise


@contextmanager
def writing(path: Path):
    """What keeps `path` from being written becomes an OSError of one sentence, with its cause's number."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = _number(error)
        mend = _MENDS.get(number, "see to it that it can be written")
        reason = os.strerror(number) if number else str(error)
        told = OSError(f"{path} could not be written ({reason}): {mend}, then run the same again.")
        told.errno = number
        raise told from error


def _number(error: Exception) -> int | None:
    """What kept a file from being used, where it was the system; safetensors has it in its text."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else getattr(error, "errno", None)


def save_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with atomic_path(Path(path)) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_artefact(
    path: Path, *, kind: str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]
) -> Path:
    """Write an artefact atomically: a reader sees the old file or the whole new one, never a part.

    Args:
        path: where to; its folder is made.
        kind: what the file is, as in "trajectory"; a reader that expects another kind refuses it.
        tensors: named tensors of any real dtype, on any device; stored bit for bit.
        metadata: JSON values; the format version and a SHA-256 over everything are added, and beside it what
            the machine computes with, which is no part of what identifies the file.
    """
    path = Path(path)
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    owners = Counter(tensor.untyped_storage().data_ptr() for tensor in stored.values())
    # safetensors refuses tensors that share memory; others may be large, and are not copied.
    shared = {name for name, tensor in stored.items() if owners[tensor.untyped_storage().data_ptr()] > 1}
    stored |= {name: stored[name].clone() for name in shared}
    text = json.dumps({"format": FORMAT_VERSION, "kind": kind, "metadata": dict(metadata)}, sort_keys=True)
    header = {"content": text, "computed_with": computed_with(), "sha256": _checksum(stored, text)}
    # One digest over all, and one over the texts alone, for readers that leave the tensors on disk.
    header["text_digest"] = _checksum({}, text + header["computed_with"])
    with atomic_path(path) as temporary:
        save_file(stored, temporary, metadata={_HEADER: json.dumps(header)})
    return path


def read_metadata(path: Path, *, kind: str) -> dict[str, Any]:
    """The metadata of the artefact at `path`, without reading its tensors.

    Raises:
        InputError: the file is missing, truncated, not ours, of another format version or of another kind,
            or its header is damaged.
    """
    with open_artefact(path) as file:
        return json.loads(_header(path, file, kind)["content"])["metadata"]


def read_checksum(path: Path, *, kind: str) -> str:
    """The SHA-256 that the artefact at `path` carries, without reading its tensors.

    Raises:
        InputError: as `read_metadata`.
    """
    with open_artefact(path) as file:
        return _header(path, file, kind)["sha256"]


def load_artefact(path: Path, *, kind: str) -> Artefact:
    """Read and verify the artefact at `path`.

    Raises:
        InputError: as `read_metadata`, or the checksum does not fit the content.
    """
    path = expanded(path)
    with open_artefact(path) as file:
        header = _header(path, file, kind)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    sentence = f"{path} is damaged (its checksum does not fit its content): delete it and make it again."
    require(_checksum(tensors, header["content"]) == header["sha256"], sentence)
    metadata = json.loads(header["content"])["metadata"]
    return Artefact(path, kind, tensors, metadata, header["computed_with"])


@contextmanager
def open_artefact(path: Path):
    """The safetensors file at `path`, memory-mapped; an `InputError` where it cannot be read as one."""
    path = expanded(path)
    require(path.is_file(), f"{path} is not there: check the path, or make the file first.")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError) as error:
        if (number := _number(error)) in PASSING:
            mend, cause = _MENDS.get(number, "see to it that it can be read"), OSError(number, str(error))
            raise InputError(f"{path} can't be read ({os.strerror(number)}): {mend}.") from cause
        told = f"{path} is not a whole safetensors file ({error}): delete it and make it again."
        raise InputError(told) from error


@contextmanager
def unpacking(path: Path):
    """Where a file's content is taken apart: what is missing or wrong in it is an `InputError` naming `path`.

    A checksum shows that a file is as it was written, not that its writer knew what belongs into it.
    """
    try:
        yield
    except (OSError, MemoryError, torch.OutOfMemoryError):  # not the file's fault
        raise
    except Exception as error:  # foreign content may fail in any way
        text = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        reason = " ".join(text.split()).rstrip(".")
        raise InputError(f"{path} can't be used ({reason}): delete it and make it again.") from error


def _header(path: Path, file: Any, kind: str) -> dict[str, str]:
    foreign = f"{path} was not written by iadd-lab: expected a {kind} file of its own."
    try:
        header = json.loads((file.metadata() or {})[_HEADER])
        content, machine = json.loads(header["content"]), header.setdefault("computed_with", "")
        text_digest = _checksum({}, header["content"] + machine)
        found = content["format"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(foreign) from error
    if found != FORMAT_VERSION:
        versions = f"format version {found}, but this iadd-lab reads version {FORMAT_VERSION}"
        raise OtherVersionError(f"{path} has {versions}: make it again.")
    require(header.keys() == _PARTS and {"kind", "metadata"} <= content.keys(), foreign)
    damaged = f"{path} is damaged (its header does not fit its checksum): delete it and make it again."
    require(header["text_digest"] == text_digest, damaged)
    other = f"{path} is of kind {content['kind']!r}, but {kind!r} was expected: pass the right file."
    require(content["kind"] == kind, other)
    return header
