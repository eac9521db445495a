"""Every random stream from one seed: no global state, and no stream depends on what ran before it."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Let the generators of the CPU and of `device`, from which layers draw, begin at `seed` meanwhile.

    They are as before after that.
    """
    on_gpu = device is not None and device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        # Not torch.manual_seed, which would reseed all other accelerators' generators too.
        torch.random.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
