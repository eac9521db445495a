"""Every random stream from one seed: no global state, and no stream depends on what ran before it."""

import hashlib

import torch

from iadd_lab.errors import check_whole


def derive_seed(seed: int, *stream: str | int) -> int:
    """A 63-bit seed for the stream named by `stream`, as in `derive_seed(0, "teacher", 3)`.

    Raises:
        InputError: `seed` is no whole number of at least 0.
    """
    check_whole("seed", seed, minimum=0)
    text = "/".join(map(str, (seed, *stream)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *stream: str | int) -> torch.Generator:
    """A CPU generator for the stream; drawing on the CPU gives the same values on every device."""
    return torch.Generator().manual_seed(derive_seed(seed, *stream))
