"""Files of others, written by `torch.save`: read without running any code in them."""

import zipfile
from pathlib import Path
from typing import Any

import torch

from iadd_lab.errors import InputError, require
from iadd_lab.store.artefacts import PASSING


def load_safely(path: Path, *, expected: str) -> Any:
    """What `torch.save` put into the file at `path`, on the CPU.

    Args:
        path: the file.
        expected: what it should be, for the message where it is not there.

    Raises:
        InputError: the file is missing or damaged, or holds anything but tensors in plain containers.
            PyTorch's weights-only loader reads it, so no code in it ever runs.
    """
    path = Path(path)
    require(path.is_file(), f"{path} is not there: pass the path of {expected}.")
    try:
        _check_sums(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # a loader that meets a foreign file may raise almost anything
        if getattr(error, "errno", None) in PASSING:
            raise
        why = "it is damaged, or a pickle that holds more than tensors, which could run code"
        raise InputError(f"{path} is refused: {why}: get it again from a source that you trust.") from error


def _check_sums(path: Path) -> None:
    """Compare the checksums that PyTorch writes into its files, but does not look at when it reads them."""
    if zipfile.is_zipfile(path):  # its format since 1.6; the one before has none
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        sentence = f"{path} is refused: {damaged} in it does not fit its checksum; get it again."
        require(damaged is None, sentence)
