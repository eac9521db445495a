"""What the gradient engines cost: time, peak memory, and the share of the machine's matrix-product rate.

Each measurement runs in a process of its own, one after the other, so that peaks of memory and settings of
the allocator do not mix. The reference for all ratios is the full unroll with PyTorch's standard layers and
the default allocator, as the authors of MTT run it.
"""

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from iadd_lab.data.augment import AugmentConfig, draw_augmentation
from iadd_lab.device import PRECISIONS, Execution, pick_device, set_precision
from iadd_lab.distillation.loop import ADJOINT_PASSES
from iadd_lab.distillation.matching import Uniform
from iadd_lab.distillation.segments import on_device
from iadd_lab.distillation.unroll import ENGINES, Engine, Gradients, Segment, Step, Variables
from iadd_lab.errors import check_flag, check_whole, choose, require
from iadd_lab.training.fast.compiling import PLAIN, compiled_kernels, flops
from iadd_lab.training.fast.losses import student_loss
from iadd_lab.training.fast.memory import reuse_freed_memory
from iadd_lab.training.networks import NetworkConfig, build_network
from iadd_lab.training.sgd import Training
from iadd_lab.training.student import StudentLoss

CLASSES = 10
Work = Callable[[], Any]  # what is timed, again and again


class Variant(NamedTuple):
    """A way to get the gradients: an engine, compiled or not."""

    title: str
    engine: str
    compiled: bool = False
    plain: bool = False  # with the default allocator, as a script of PyTorch has it
    graphs: bool = False  # replayed as CUDA graphs


VARIANTS = {
    "full": Variant("full unroll (plain PyTorch)", "full", plain=True),
    "full_reusing": Variant("full unroll, freed memory reused", "full"),
    "adjoint": Variant("adjoint, not compiled", "adjoint"),
    "compiled": Variant("adjoint, compiled", "adjoint", compiled=True),
    "frozen": Variant("frozen, not compiled", "frozen"),
    "graphs": Variant("adjoint, CUDA graphs", "adjoint", graphs=True),
    "compiled_graphs": Variant("adjoint, compiled, CUDA graphs", "adjoint", compiled=True, graphs=True),
}
ENGINES_OF = {  # by kind of device
    "cpu": ("full", "adjoint", "compiled", "frozen"),
    "cuda": ("full", "adjoint", "graphs", "compiled_graphs"),
}


@dataclass(frozen=True)
class BenchConfig:
    """What to measure; the defaults are the full measure, some ten minutes on two cores.

    Args:
        width: filters per block of the ConvNet.
        depth: its blocks; None goes by the images' size.
        size: side of the images in pixels, in colour.
        images: distilled images per student step.
        steps: J, the student's steps.
        iterations: measured after a warm-up; their median counts.
        engines: keys of `VARIANTS`; None takes those that the device is for.
        training: whether to measure teachers and evaluation as well.
        device: "auto", "cpu", "cuda" or "cuda:N". Peak memory is then the GPU's.
        precision: inside products; see `iadd_lab.device.set_precision`.
        kept_megabytes: of what the student's steps compute; see `iadd_lab.device.Execution`.
    """

    width: int = 128
    depth: int | None = None
    size: int = 32
    images: tuple[int, ...] = (10, 100)
    steps: tuple[int, ...] = (5, 20, 50)
    iterations: int = 3
    engines: tuple[str, ...] | None = None
    training: bool = True
    device: str = "cpu"
    precision: str = "float32"
    kept_megabytes: float | None = None

    def __post_init__(self):
        kind = pick_device(self.device).type
        choose("precision", self.precision, PRECISIONS)
        numbers = [("iterations", self.iterations), ("width", self.width)]
        for name in ("images", "steps", "engines"):
            listed = ENGINES_OF[kind] if (name, self.engines) == ("engines", None) else getattr(self, name)
            fits = isinstance(listed, (tuple, list)) and len(listed) > 0
            require(fits, f"{name} is {listed!r}; it must be a list of at least one.")
            object.__setattr__(self, name, tuple(listed))  # a list, as JSON and YAML give it
            numbers += [(name, each) for each in listed if name != "engines"]
        for name, value in numbers:
            check_whole(name, value, minimum=1)
        for engine in self.engines:
            possible = not choose("engine", engine, VARIANTS).graphs or kind == "cuda"
            require(possible, f"engine {engine!r} needs a CUDA device, and this is {kind}: leave it out.")
        check_flag("training", self.training)
        self.network(0)
        self.how  # noqa: B018  refuses what it must

    @property
    def how(self) -> Execution:
        """Where and how the engines run."""
        return Execution(device=self.device, kept_megabytes=self.kept_megabytes)

    def network(self, seed: int) -> torch.nn.Module:
        """The ConvNet."""
        config = NetworkConfig(width=self.width, depth=self.depth)
        return build_network(config, channels=3, size=self.size, classes=CLASSES, seed=seed)


def measure(config: BenchConfig, *, progress: bool = True) -> dict[str, Any]:
    """All of `config`, as a JSON-serialisable mapping; a full unroll too large for the memory is left out.

    Returns:
        "machine", "config", "matmul_gflops", "convolution_gflops" (the larger is the machine's limit);
        "engines": a record for each engine and setting with "engine",
        "title", "images", "steps", "seconds" (per iteration), "peak_mb", "conv_gflops" (the operations per
        second of its convolutions, counted as direct ones), "warm_up_seconds" and "iterations"; and
        "training": records with "task", "way" and "seconds".
    """
    device, records = pick_device(config.device), {kind: [] for kind in MEASURES}
    for kind, job in tqdm(list(_jobs(config)), desc="bench", leave=None, disable=not progress):
        records[kind].append(job | _in_process(kind, job, config))
    name = str(device) if device.type == "cpu" else torch.cuda.get_device_name(device)
    machine = {"processor": processor(), "threads": torch.get_num_threads()}
    machine |= {"torch": torch.__version__, "device": name}
    rates = {"matmul_gflops": matmul_gflops(device), "convolution_gflops": convolution_gflops(device)}
    return {"machine": machine, "config": asdict(config)} | rates | records


def processor() -> str:
    """The processor's name, as Linux knows it, or else its kind."""
    known = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", known.read_text()) if known.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def matmul_gflops(device: torch.device | None = None, *, size: int = 2048, repeats: int = 7) -> float:
    """The best rate of a float32 product of two (size, size) matrices, in 10⁹ operations per second."""
    first, second = torch.rand(2, size, size, device=device)
    times = [_timed(lambda: first @ second, device) for _ in range(repeats)]
    return 2 * size**3 / min(times) / 1e9


def convolution_gflops(device: torch.device | None = None, *, images: int = 50, repeats: int = 7) -> float:
    """The best rate of float32 3×3 convolutions of 128 channels and 16 px, channels last, as above."""
    maps, weight = torch.rand(images, 128, 16, 16, device=device), torch.rand(128, 128, 3, 3, device=device)
    maps = maps.contiguous(memory_format=torch.channels_last)
    convolve = partial(torch.nn.functional.conv2d, maps, weight, padding=1)
    times = [_timed(convolve, device) for _ in range(repeats)]
    return 2 * 9 * 128**2 * images * 16**2 / min(times) / 1e9


def _jobs(config: BenchConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    for images, steps, engine in product(config.images, config.steps, config.engines):
        if VARIANTS[engine].engine != "full" or _fits(config, images, steps):
            yield "engines", {"engine": engine, "images": images, "steps": steps}
    if config.training:
        yield from (("training", {"task": task, "way": way}) for task, way in product(TASKS, WAYS))


def _fits(config: BenchConfig, images: int, steps: int) -> bool:
    """Whether the full unroll fits into two thirds of the machine's memory; if not, it is left out."""
    device = pick_device(config.device)
    if device.type == "cuda":
        available = torch.cuda.get_device_properties(device).total_memory
    else:
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # Measured: seven times the first feature map for every image and step.
    return 7 * images * steps * config.width * config.size**2 * 4 < available * 2 / 3


def _in_process(kind: str, job: dict[str, Any], config: BenchConfig) -> dict[str, Any]:
    """One measurement in a fresh interpreter."""
    command = [sys.executable, "-m", __name__, kind, json.dumps(job), json.dumps(asdict(config))]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        # The out-of-memory killer leaves no message.
        reason = (done.stderr.strip().splitlines() or [f"killed (exit code {done.returncode})"])[-1]
        raise RuntimeError(f"measuring {job} failed: {reason}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_engine(config: BenchConfig, *, engine: str, images: int, steps: int) -> dict[str, Any]:
    """Time and peak memory of one engine in this process; see `measure`."""
    variant = VARIANTS[engine]
    if not variant.plain:
        reuse_freed_memory()
    network, device = config.network(0), pick_device(config.device)
    kernels = compiled_kernels(str(device)) or PLAIN if variant.compiled else PLAIN
    loss = student_loss(network, replace(kernels, graphs=variant.graphs), plain=variant.engine != "full")
    engine = partial(ENGINES[variant.engine], budget=config.how.budget)
    iterate = _iteration(config, loss, engine, images, steps)
    # Graphs are captured when an operation of the augmentation is first drawn.
    warm_up = sum(_timed(iterate, device) for _ in range(5 if variant.graphs else 1))
    seconds = statistics.median(_timed(iterate, device) for _ in range(config.iterations))
    # Forward passes that the engine's convolutions amount to, per image and step.
    passes = ADJOINT_PASSES if variant.engine == "adjoint" else 9
    rate = passes * images * steps * flops(network, channels=3, size=config.size) / seconds / 1e9
    times = {"seconds": seconds, "warm_up_seconds": warm_up, "iterations": config.iterations}
    return {"title": variant.title, "conv_gflops": rate, "peak_mb": peak_memory(device) / 1e6} | times


def _iteration(config: BenchConfig, loss: StudentLoss, engine: Engine, images: int, steps: int) -> Work:
    """A function that takes the gradients of one iteration, each time with other augmentation."""
    device, random = pick_device(config.device), torch.Generator().manual_seed(0)
    start = loss.layout.flatten(config.network(0).parameters()).detach().to(device)
    target = start + 0.01 * torch.randn(start.shape, generator=random).to(device)
    pictures = torch.randn(images, 3, config.size, config.size, generator=random)
    values = pictures, torch.arange(images) % CLASSES, torch.tensor(0.01), torch.zeros(0)
    variables = Variables(*(value.to(device) for value in values))
    sizes = {"batch": images, "height": config.size, "width": config.size}
    draw = partial(draw_augmentation, AugmentConfig(), generator=random, **sizes)
    objective = partial(Uniform().loss, start=start, target=target, layout=loss.layout)

    def iterate() -> Gradients:
        drawn = on_device((Step(torch.arange(images), draw()) for _ in range(steps)), device)
        return engine(loss, Segment(start, target, drawn), variables, objective)

    return iterate


def peak_memory(device: torch.device | None = None) -> int:
    """The most memory that this process has had, in bytes: its own, or that which PyTorch took of a GPU's."""
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    status = Path("/proc/self/status")
    if status.exists():  # Linux, whose getrusage counts what the parent had as well
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) * 1024
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Task(NamedTuple):
    """Networks to train: how many, on how many images, in which batches."""

    networks: int
    images: int
    batch: int
    epochs: int  # measured, after one that warms up


TASKS = {
    "teacher, an epoch of 2,560 images": Task(networks=1, images=2560, batch=256, epochs=2),
    "evaluation of 5 networks, IPC 1": Task(networks=5, images=10, batch=256, epochs=40),
    "evaluation of 5 networks, IPC 10": Task(networks=5, images=100, batch=256, epochs=6),
}
_SGD = {"momentum": 0.9, "weight_decay": 5e-4}


def measure_training(config: BenchConfig, *, task: str, way: str) -> dict[str, Any]:
    """Seconds per epoch of all networks of a task, trained in one of `WAYS`, in this process."""
    known, device, seconds = TASKS[task], pick_device(config.device), 0.0
    images = torch.randn(known.images, 3, config.size, config.size).to(device)
    for epoch in WAYS[way](config, known, images, torch.arange(known.images, device=device) % CLASSES):
        epoch()
        seconds += statistics.median(_timed(epoch, device) for _ in range(known.epochs))
    return {"seconds": seconds}


def _own_epochs(config: BenchConfig, task: Task, images: Tensor, labels: Tensor) -> Iterator[Work]:
    """An epoch of as many networks side by side as evaluation trains, for each such group."""
    kernels = compiled_kernels(str(images.device)) or PLAIN
    loss = student_loss(config.network(0), kernels)
    at_once = loss.networks_at_once(images, batch=min(task.batch, task.images))
    for seeds in torch.arange(task.networks).split(at_once):
        networks = [config.network(int(seed)).to(images.device) for seed in seeds]
        sets = [images] * len(seeds), [labels] * len(seeds)
        options = {"rates": [0.01] * len(seeds), "augment": AugmentConfig(), "kernels": kernels, **_SGD}
        options["generators"] = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        yield Training(networks, *sets, batch=task.batch, **options).advance


def _plain_epochs(config: BenchConfig, task: Task, images: Tensor, labels: Tensor) -> Iterator[Work]:
    """The loop that everybody writes: standard layers, one network after another, the default allocator."""
    draw = partial(draw_augmentation, AugmentConfig(), height=config.size, width=config.size)

    def epoch(network: torch.nn.Module, optimizer: torch.optim.SGD, random: torch.Generator) -> None:
        for rows in torch.randperm(len(images), generator=random).split(task.batch):
            augmentation = draw(batch=len(rows), generator=random)
            value = torch.nn.functional.cross_entropy(network(augmentation(images[rows])), labels[rows])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()

    for seed in range(task.networks):
        network = config.network(seed).to(images.device)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, **_SGD)
        yield partial(epoch, network, optimizer, torch.Generator())


WAYS = {"plain loop": _plain_epochs, "iadd-lab": _own_epochs}


def _timed(function: Work, device: torch.device | None) -> float:
    # Not by torch.utils.benchmark: its Timer warms up twice before each measurement and gives means, and its
    # clock starts CUDA wherever there is a GPU, which would count as peak memory of a measurement on the CPU.
    started = time.perf_counter()
    function()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


MEASURES = {"engines": measure_engine, "training": measure_training}


if __name__ == "__main__":
    kind, job, fields = sys.argv[1], *map(json.loads, sys.argv[2:])
    config = BenchConfig(**fields)
    set_precision(config.precision)
    print(json.dumps(MEASURES[kind](config, **job)))
