"""One distillation shared by several processes (ranks), as torchrun starts them: each computes its segments.

Every rank holds the same images, α and W and draws the same segments, but differentiates only its own. What
they find is gathered in the order of the segments, and averaged on every rank alike. So the run is that of
one process, bit for bit where both have as many threads; the number of ranks is no part of its configuration,
and may change at a restart. Every rank reads the run's files, rank 0 alone writes them, and shows progress.
"""

import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as process_group

from iadd_lab.distillation.segments import ALONE, Ranks
from iadd_lab.errors import DivergenceError, require

logger = logging.getLogger(__name__)


class LostRankError(ConnectionError):
    """Another rank of the run has ended, or can't be reached any more."""


@dataclass(frozen=True)
class SharedRanks(Ranks):
    """Rank `number` of `count`, whose process group is there."""

    patience: float = 10.0  # torchrun leaves its processes 30 seconds between SIGTERM and SIGKILL
    number: int = 0
    count: int = 1

    def agree(self, what: str) -> None:
        """Wait for all ranks, and require that they come with the same `what`.

        Raises:
            InputError: one comes with something else.
            LostRankError: another rank is gone. So does `gather`.
        """
        found: list[Any] = [None] * self.count
        _exchange(lambda: process_group.all_gather_object(found, what))
        other = next((number for number, one in enumerate(found) if one != found[0]), None)
        said = f"rank {other} has another configuration, other teachers or another checkpoint than rank 0"
        require(other is None, f"{said}: start all ranks with the same options and the same folders.")

    def own(self, segments: int) -> range:
        """The numbers of the segments that this rank computes, out of so many.

        Raises:
            InputError: the ranks can't share them evenly.
        """
        share, left = divmod(segments, self.count)
        said = f"segments is {segments}, which {self.count} processes can't share evenly"
        require(not left, f"{said}: set it to a multiple of {self.count}, or start as many as can.")
        return range(self.number * share, (self.number + 1) * share)

    def gather(self, rows: Sequence[Sequence[torch.Tensor]]) -> list[list[torch.Tensor]]:
        """The rows of all ranks, in the order of the ranks; each has equally many, of equal shapes."""
        packed = torch.stack([torch.cat([tensor.reshape(-1) for tensor in row]) for row in rows])
        found = [torch.empty_like(packed) for _ in range(self.count)]
        _exchange(lambda: process_group.all_gather(found, packed))
        sizes = [tensor.numel() for tensor in rows[0]]
        return [
            [part.view_as(like) for part, like in zip(row.split(sizes), rows[0], strict=True)]
            for row in torch.cat(found)
        ]


def local_device(name: str) -> str:
    """The device's name for this process: "auto" and "cuda" are a GPU for each of the machine's ranks."""
    if _launched() and torch.cuda.is_available() and name in ("auto", "cuda"):
        return f"cuda:{_told('LOCAL_RANK')}"
    return name


def _told(name: str) -> int:
    """The whole number that a launcher has set as `name` in the environment; 0 where there is none."""
    text = os.environ.get(name) or "0"
    require(text.isdecimal(), f"${name} is {text!r}; it must be a whole number: unset it, or use torchrun.")
    return int(text)


def _launched() -> bool:
    """Whether a launcher such as torchrun has started this process as one of several."""
    place = map(os.environ.get, ("RANK", "MASTER_ADDR", "MASTER_PORT"))
    return _told("WORLD_SIZE") > 1 and all(place)


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """The ranks that torchrun started, connected while the block runs; `ALONE` in a process of its own.

    What all ranks stop for alike is rank 0's to say: the others end in silence, with the same exit code.

    Args:
        device: where this rank computes; NCCL connects GPUs (not tested so far), gloo CPUs.

    Raises:
        LostRankError: not all ranks came. Once it was raised, here or in the block, SIGTERM is ignored.
    """
    count = _told("WORLD_SIZE")
    if not _launched():
        if count > 1:
            logger.warning("WORLD_SIZE is %d, but torchrun did not start this: it works alone", count)
        yield ALONE
        return
    for name, limit in (("RANK", count), ("MASTER_PORT", 2**16)):
        require(_told(name) < limit, f"${name} is {_told(name)}; it must be below {limit}: use torchrun.")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    _share_cores()
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # torchrun's own processes all come
        logger.warning("waiting for %d processes, as WORLD_SIZE says: unset it if there are no others", count)
    _exchange(lambda: process_group.init_process_group("nccl" if device.type == "cuda" else "gloo"))
    number = process_group.get_rank()
    ranks = SharedRanks(first=number == 0, number=number, count=process_group.get_world_size())
    if not ranks.first:
        logging.getLogger("iadd_lab").setLevel(logging.ERROR)  # rank 0 warns for all
    try:
        yield ranks
    except LostRankError:
        # torchrun ends this rank as well now: not before it could say why.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise
    except (KeyboardInterrupt, DivergenceError) as error:
        if ranks.first:
            raise
        raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 1) from None
    finally:
        process_group.destroy_process_group()


def _share_cores() -> None:
    """As many threads as each of the machine's ranks can have, unless the user asked for some."""
    # torchrun sets 1 where nothing is set.
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(cores // max(_told("LOCAL_WORLD_SIZE"), 1), 1))


def _exchange(collective: Callable[[], object]) -> None:
    try:
        collective()
    except RuntimeError as error:  # the back ends' word for a closed connection
        raise LostRankError("another rank of this run has ended, or can't be reached any more.") from error
