"""Where tensors live, and how precisely they are multiplied there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from iadd_lab.errors import InputError, choose, require

# What may stand in for float32 inside matrix products and convolutions, in PyTorch's words for it.
PRECISIONS = {"float32": "highest", "tf32": "high", "bf16": "medium"}


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`; "auto" is a CUDA GPU where there is one, else the CPU.

    Raises:
        InputError: there is no such device here.
    """
    sentence = f"device is {name!r}: expected auto, cpu, cuda or cuda:N."
    require(isinstance(name, str | torch.device), sentence)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(sentence) from error
    require(device.type in ("cpu", "cuda"), sentence)
    available = device.type == "cpu" or (device.index or 0) < torch.cuda.device_count()
    require(
        available,
        f"device is {name!r}, but PyTorch sees {torch.cuda.device_count()} CUDA devices: use --device cpu.",
    )
    return device


def set_precision(name: str = "float32") -> None:
    """Allow less than float32 inside products, for this process: faster, and not exact any more.

    Args:
        name: "float32"; "tf32" (10 bits of mantissa, on GPUs that have it); or "bf16" (7 bits, wherever
            PyTorch has it). Sums, parameters and images stay float32.

    Raises:
        InputError: it is none of them.
    """
    torch.set_float32_matmul_precision(choose("precision", name, PRECISIONS))
    # Convolutions have a switch of their own, which PyTorch leaves on.
    torch.backends.cudnn.allow_tf32 = name != "float32"


def all_to_device(tensors: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """The tensors on `device`. To a GPU they go as one of each dtype: every transfer costs a launch."""
    if device.type == "cpu":
        return [to_device(tensor, device) for tensor in tensors]
    return joined(tensors, lambda tensor: to_device(tensor, device))


def joined(
    tensors: Sequence[torch.Tensor], move: Callable[[torch.Tensor], torch.Tensor]
) -> list[torch.Tensor]:
    """What `move` makes of the tensors, called once for all those of a dtype; it must keep their elements."""
    moved: dict[int, torch.Tensor] = {}
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        places = [place for place, tensor in enumerate(tensors) if tensor.dtype == dtype]
        joint = move(torch.cat([tensors[place].flatten() for place in places]))
        pieces = joint.split([tensors[place].numel() for place in places])
        moved |= {place: piece.view_as(tensors[place]) for place, piece in zip(places, pieces, strict=True)}
    return [moved[place] for place in range(len(tensors))]


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on `device`; on its way to a GPU through pinned memory, so that nobody waits for it."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
