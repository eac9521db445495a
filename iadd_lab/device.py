"""Where tensors live."""

from __future__ import annotations

import torch

from iadd_lab.errors import InputError, require


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`; "auto" is a CUDA GPU where there is one, else the CPU.

    Raises:
        InputError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device is {name!r}: expected auto, cpu, cuda or cuda:N.") from error
    require(device.type in ("cpu", "cuda"), f"device is {name!r}: expected auto, cpu, cuda or cuda:N.")
    available = device.type == "cpu" or (device.index or 0) < torch.cuda.device_count()
    require(
        available,
        f"device is {name!r}, but PyTorch sees {torch.cuda.device_count()} CUDA devices: use --device cpu.",
    )
    return device
