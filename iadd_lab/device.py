"""How a thing runs: where its tensors live, how precisely they are multiplied, what is shown and kept."""

from __future__ import annotations

import functools
import getpass
import inspect
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from iadd_lab.errors import InputError, check_flag, check_kind, check_number, check_whole, choose, require

MODES = ("auto", "always", "never")  # when to compile; see `iadd_lab.training.fast.compiling`
# What may stand in for float32 inside matrix products and convolutions, in PyTorch's words for it.
PRECISIONS = {"float32": "highest", "tf32": "high", "bf16": "medium"}
# What PyTorch, oneDNN and MKL are told, so that they give the same bytes on every x86-64 processor with AVX2.
INSTRUCTIONS = {
    "own": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "COMPATIBLE"},
}


def name_user() -> None:
    """Give a name to a user who has none, as in many containers: without one, PyTorch's optimisers fail."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"user{os.getuid()}"


name_user()


@dataclass(frozen=True)
class Execution:
    """How a thing runs. On a CPU only `precision` and `instructions` change what is computed.

    Everything that computes takes one as `how`, and its fields by name as well: `distill(…, device="cpu")`.

    Args:
        device: "auto" (a CUDA GPU where there is one, else the CPU), "cpu", "cuda" or "cuda:N".
        precision: inside products: "float32", "tf32" or "bf16"; see `set_precision`.
        compile: "auto" (where the run is long enough to pay for it), "always" or "never"; see
            `iadd_lab.training.fast.compiling`.
        threads: of PyTorch on the CPU; 0 leaves PyTorch's own choice.
        progress: whether to show a progress bar.
        checkpoint_seconds: at most so many seconds of work are lost to a kill, or sixty times what saving
            takes; 0 saves after every unit of work.
        cuda_graphs: whether a student's steps are replayed as CUDA graphs, which changes nothing but the
            time; None does so on every GPU.
        kept_megabytes: the most memory for what a student's steps compute and their gradients need again:
            memory for time, and nothing else. None takes a quarter of what is free, at most 4,000; 0 keeps
            nothing.
        instructions: of an x86-64 processor: "own", all that it has; or "avx2", so that with one thread every
            such processor gives the same last digits; see `hold`.

    Raises:
        InputError: a field is not one of these.
    """

    device: str = "auto"
    precision: str = "float32"
    compile: str = "auto"
    threads: int = 0
    progress: bool = True
    checkpoint_seconds: float = 60.0
    cuda_graphs: bool | None = None
    instructions: str = "own"
    kept_megabytes: float | None = None

    def __post_init__(self):
        choose("precision", self.precision, PRECISIONS)
        choose("compile", self.compile, dict.fromkeys(MODES))
        choose("instructions", self.instructions, INSTRUCTIONS)
        check_whole("threads", self.threads, minimum=0, maximum=4096)
        check_flag("progress", self.progress)
        if sys.stderr is None:  # as in a service: there is nowhere to show it
            object.__setattr__(self, "progress", False)
        check_number("checkpoint_seconds", self.checkpoint_seconds)
        if self.cuda_graphs is not None:
            check_flag("cuda_graphs", self.cuda_graphs)
        if self.kept_megabytes is not None:
            check_number("kept_megabytes", self.kept_megabytes)

    @property
    def place(self) -> torch.device:
        """The device.

        Raises:
            InputError: there is no such device here.
        """
        return pick_device(self.device)

    @property
    def graphs(self) -> bool:
        """Whether CUDA graphs are used: as asked, and else wherever they can be.

        Raises:
            InputError: they can't be, but were asked for.
        """
        kind = self.place.type
        sentence = f"cuda_graphs needs a CUDA device, and this is {kind}: leave it out."
        require(kind == "cuda" or not self.cuda_graphs, sentence)
        return kind == "cuda" if self.cuda_graphs is None else self.cuda_graphs

    @property
    def budget(self) -> float:
        """`kept_megabytes` in bytes, for this machine."""
        if self.kept_megabytes is not None:
            return self.kept_megabytes * 1e6
        return min(free_memory(self.place) / 4, 4e9)

    def hold(self) -> None:
        """Keep this process, and those that it starts, to these instructions from now on.

        The libraries ask once, when they first compute: where that is over, a line on stderr says so.
        """
        if self.instructions == "own" or platform.machine() not in ("x86_64", "AMD64"):
            return
        os.environ.update(INSTRUCTIONS[self.instructions])
        found = torch.backends.cpu.get_cpu_capability().lower()
        if found != self.instructions:
            said = f"instructions is {self.instructions!r}, but this process computes with {found} already"
            print(f"{said}: last digits will differ; start Python or the kernel anew.", file=sys.stderr)

    @contextmanager
    def environment(self) -> Iterator[None]:
        """Where to compute: PyTorch's threads and precision are these in the block, and put back after it."""
        self.hold()
        with ExitStack() as after:
            after.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            after.callback(setattr, torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
            set_precision(self.precision)
            if self.threads:
                after.callback(torch.set_num_threads, torch.get_num_threads())
                torch.set_num_threads(self.threads)
            yield

    @classmethod
    def of(cls, how: Execution | None, options: Mapping[str, object]) -> Execution:
        """`how`, or the defaults, with the fields that `options` names.

        Raises:
            InputError: an option is not a field, or its value is impossible.
        """
        check_kind("how", how, Execution, optional=True)
        for name in options:
            choose("option", name, {field.name: field for field in fields(cls)})
        return replace(how or cls(), **options)


DEFAULT = Execution()


def executes(function: Callable) -> Callable:
    """Decorate a function that computes as its keyword `how` says, with the environment of that around it.

    Callers may leave `how` out or give None, and name fields of `Execution` beside the function's options.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def executing(*positional, how: Execution | None = None, **named):
        options = {name: named.pop(name) for name in [*named] if name not in signature.parameters}
        how = Execution.of(how, options)
        with how.environment():
            return function(*positional, how=how, **named)

    options = inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)
    executing.__signature__ = signature.replace(parameters=[*signature.parameters.values(), options])
    return executing


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
    count = torch.cuda.device_count()
    missing = f"device is {name!r}, but PyTorch sees {count} CUDA devices: use --device cpu."
    require(device.type == "cpu" or (device.index or 0) < count, missing)
    return device


def free_memory(device: torch.device) -> int:
    """Bytes that nobody uses, of a GPU's memory or the machine's; of that all, where the system won't say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    known = Path("/proc/meminfo")
    if known.exists():
        return int(re.search(r"MemAvailable:\s*(\d+)", known.read_text())[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0


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


def computed_with() -> str:
    """What last digits may depend on, beside a GPU: versions, the CPU's instructions, and what holds them."""
    versions = [f"iadd-lab {version('iadd-lab')}", f"PyTorch {torch.__version__}"]
    held = [f"{name}={os.environ[name]}" for name in INSTRUCTIONS["avx2"] if name in os.environ]
    return ", ".join([*versions, torch.backends.cpu.get_cpu_capability(), *held])


def finite(*tensors: Tensor) -> bool:
    """Whether every value of every tensor is finite; one wait for the device."""
    return bool(torch.stack([torch.isfinite(tensor).all() for tensor in tensors]).all())


def all_to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The tensors on `device`. To a GPU they go as one of each dtype: every transfer costs a launch."""
    if device.type == "cpu":
        return [to_device(tensor, device) for tensor in tensors]
    return joined(tensors, lambda tensor: to_device(tensor, device))


def joined(tensors: Sequence[Tensor], move: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """What `move` makes of the tensors, called once for all those of a dtype; it must keep their elements."""
    moved: dict[int, Tensor] = {}
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        places = [place for place, tensor in enumerate(tensors) if tensor.dtype == dtype]
        joint = move(torch.cat([tensors[place].flatten() for place in places]))
        pieces = joint.split([tensors[place].numel() for place in places])
        moved |= {place: piece.view_as(tensors[place]) for place, piece in zip(places, pieces, strict=True)}
    return [moved[place] for place in range(len(tensors))]


def root(values: Tensor) -> Tensor:
    """The square root by operations that round alike on all processors, as those of `Tensor.sqrt` do not.

    MKL's starts from the processor's own approximation of 1/√x: one value in ten is a last digit away.
    """
    return values.rsqrt().reciprocal()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`; on its way to a GPU through pinned memory, so that nobody waits for it."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
