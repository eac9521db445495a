"""When to compile, and what: the kernels of `iadd_lab.training.fast.kernels`, made fast by `torch.compile`.

Compiling takes up to a minute the first time and seconds from its disk cache later. `"auto"` compiles only
runs that are long enough to earn that back. It depends on the size of the work and not on a clock, so that an
interrupted run goes on exactly as it began.
"""

import copy
import functools
import inspect
import logging
import math
import os
import shlex
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from iadd_lab.training.fast import kernels, patches, winograd

logger = logging.getLogger(__name__)

# Floating-point operations of a run from which on compiling pays: some three minutes on two cores. That for
# a GPU is an estimate, from half a minute of compiling and 120 or 67 ms for an iteration of ten images.
WORTH_COMPILING = {"cpu": 2e13, "cuda": 5e14}
_SHAPES = 64  # how many kinds of layer a process may compile each kernel for


@dataclass(frozen=True)
class Kernels:
    """Functions of `iadd_lab.training.fast.kernels`, `winograd` and `patches`, as they are or compiled."""

    norm: Callable[..., tuple[Tensor, ...]] = kernels.norm
    norm_backward: Callable[..., tuple[Tensor, ...]] = kernels.norm_backward
    norm_along: Callable[..., tuple[Tensor, ...]] = kernels.norm_along
    norm_backward_along: Callable[..., tuple[Tensor, ...]] = kernels.norm_backward_along
    input_tiles: Callable[..., Tensor] = winograd.input_tiles
    input_maps: Callable[..., Tensor] = winograd.input_maps
    output_maps: Callable[..., Tensor] = winograd.output_maps
    output_tiles: Callable[..., Tensor] = winograd.output_tiles
    add_patches: Callable[..., Tensor] = patches.add_patches
    compiled: bool = False
    transforms: bool = False  # whether convolutions go by `winograd` and `patches`, as is fast on a CPU
    graphs: bool = False  # whether steps are replayed as CUDA graphs


PLAIN = Kernels()


@functools.cache
def compiled_kernels(device: str) -> Kernels | None:
    """The compiled kernels for that device; None, with a line in the log, where there can be none."""
    _keep_code_where_it_is_found()
    try:
        sample, parameter = torch.ones(1, 1, 2, 2, device=device), torch.ones(1, 1, 1, 1, device=device)
        limit = _room_for_shapes()
        plain = {field.name: field.default for field in fields(Kernels) if callable(field.default)}
        functions = {name: torch.compile(plain[name], dynamic=False, **limit) for name in plain}
        with torch.no_grad():
            functions["norm"](sample, parameter, parameter, 1e-5, True, True)
    except Exception as error:  # whatever a missing or broken compiler raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        logger.warning("not compiling, so runs take longer: torch.compile does not work here (%s)", reason)
        return None
    kind = torch.device(device).type
    return Kernels(**functions, compiled=True, transforms=kind == "cpu", graphs=kind == "cuda")


def _keep_code_where_it_is_found() -> None:
    """Give what PyTorch compiles a folder that its compiler can bear, and each instruction set its own.

    PyTorch takes code of another instruction set for its own, and then overwrites memory (seen in 2.14).
    """
    place = (
        os.environ.get("TORCHINDUCTOR_CACHE_DIR") or f"{tempfile.gettempdir()}/torchinductor_{os.getuid()}"
    )
    if (
        shlex.quote(place + tempfile.gettempdir()) != place + tempfile.gettempdir()
    ):  # it parts paths at blanks
        os.environ["TMPDIR"] = tempfile.tempdir = "/tmp"
        place = f"/tmp/torchinductor_{os.getuid()}"
    own = torch.backends.cpu.get_cpu_capability().lower()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = place if place.endswith(f"/{own}") else f"{place}/{own}"


def _room_for_shapes() -> dict[str, int]:
    """Options of `torch.compile` by which a kernel is compiled for `_SHAPES` kinds of layer, not eight."""
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        return {"recompile_limit": _SHAPES}
    # Older versions have one setting for the process. In newer ones it is the thread's own, and on a GPU the
    # kernels of a backward pass are called in another thread.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _SHAPES)
    return {}


def choose_kernels(compile: str, *, work: float, device: torch.device | str = "cpu") -> Kernels:
    """The kernels for a run of `work` floating-point operations.

    Args:
        compile: "always", "never", or "auto": where `work` is at least `WORTH_COMPILING`.
        work: see `flops`.
        device: where it runs.
    """
    enough = WORTH_COMPILING.get(torch.device(device).type, math.inf)
    wanted = compile == "always" or (compile == "auto" and work >= enough)
    return (compiled_kernels(str(device)) if wanted else None) or PLAIN


def flops(network: nn.Module, *, channels: int, size: int) -> int:
    """Floating-point operations of one forward pass of one image (channels, size, size)."""
    on_meta = copy.deepcopy(network).eval().to("meta")  # without memory: only its shapes are of interest
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        on_meta(torch.empty(1, channels, size, size, device="meta"))
    return counter.get_total_flops()
