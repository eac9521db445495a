"""What a profile costs, before any of it is computed: tasks, operations, hours, disk and memory.

Settings, methods and seeds say what is computed, and everything is computed once. Operations are counted;
how many of them a second are done, is measured on this machine in a few steps of each network.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pandas as pd
import torch

from iadd_lab.baselines.features import DistributionMatchingConfig
from iadd_lab.data.augment import AugmentConfig
from iadd_lab.data.sets import DATASETS, DataConfig, ImageData, load_data, locate
from iadd_lab.device import Execution
from iadd_lab.distillation.loop import ADJOINT_PASSES
from iadd_lab.errors import check_whole
from iadd_lab.study.bench import peak_memory
from iadd_lab.study.methods import METHODS
from iadd_lab.study.settings import Setting
from iadd_lab.training.fast.compiling import WORTH_COMPILING, flops
from iadd_lab.training.networks import NetworkConfig, build_network
from iadd_lab.training.sgd import Training

# Training and test images and classes of the sets as published: to plan needs no copy of them.
PUBLISHED = {
    "mnist": (60_000, 10_000, 10),
    "fashion_mnist": (60_000, 10_000, 10),
    "cifar10": (50_000, 10_000, 10),
    "cifar100": (50_000, 10_000, 100),
    "tiny_imagenet": (100_000, 10_000, 200),
    "covid19": (16_932, 4_233, 4),  # the Kaggle radiography database, a fifth of it for testing
}
# Of these, people keep parts or other collections: where one lies, it is counted itself.
VARIED = ("tiny_imagenet", "covid19")
# What compiling leaves of the time: measured on two cores, see the README's tables of `iadd-lab bench`.
COMPILED_SHARE = {"teachers": 0.45, "distillation": 0.6, "evaluation": 0.45}
_NOTEBOOK = 10.0  # seconds of a notebook that only reads: kernel, imports, figures
_TIMED = 1e10  # operations of a step that is timed as it is; of larger ones, fewer images are
_SECONDS = 0.1  # that each network is timed for
_HEADER = 2_500.0  # bytes of an artefact beside its tensors


class Shape(NamedTuple):
    """What of a data set decides how long networks take on it."""

    train: int
    test: int
    classes: int
    channels: int
    size: int

    @property
    def pixels(self) -> int:
        """Values of one image."""
        return self.channels * self.size**2


class Work(NamedTuple):
    """One thing that is needed, `count` times.

    Attributes:
        kind: a key of `COMPILED_SHARE`.
        title: what of that kind; {data} stands for the images.
        count: networks or sets.
        flops: floating-point operations of each, those of convolutions and products.
        network: that is trained, or distilled with.
        images: that it works on at once.
        disk: bytes of each that stay in the folder of runs.
        key: what else tells it from others of the same images and teachers.
        memory: bytes beside images and feature maps.
        epochs, used: bytes of all epochs of trajectories in single precision, and of those used.
    """

    kind: str
    title: str
    count: int
    flops: float
    network: NetworkConfig
    images: int
    disk: float
    key: Any = None
    memory: float = 0.0
    epochs: float = 0.0
    used: float = 0.0


def plan(pages: Mapping[str, tuple[Any, str]], *, device: str = "auto") -> pd.DataFrame:
    """What notebooks would compute from an empty folder of runs, everything once, and how long.

    What a notebook computes by other means than a study, as a bench, is a matter of minutes: it is left out.

    Args:
        pages: of each notebook, what it shows (its `settings`, `methods`, fields of `Execution` as `how`, and
            what only it knows as `own`; None if nothing is known), and the source of its cells, which says
            whether sets and snapshots are evaluated.
        device: where they compute.

    Returns:
        One row for each thing: `notebook`, the first that needs it; kind, title and count; flops; seconds,
        where it has the machine for itself; bytes of disk, memory, epochs and used (see `Work`), in all.

    Raises:
        InputError: a data set of which nothing is published is missing, or a value is impossible.
    """
    found: dict[Any, dict[str, Any]] = {}
    for notebook, (shown, source) in pages.items():
        how = Execution.of(None, {**(shown.how if shown else {}), "device": device})
        for setting in shown.settings if shown else ():
            for work in _needed(setting, shown, source):
                key = work.kind, setting.data(), setting.teachers(), setting.teacher_count, work.key
                if key not in found:
                    found[key] = {"notebook": notebook, **_row(work, setting, how)}
    columns = ["notebook", "kind", "title", "count", "flops", "seconds", "disk", "memory", "epochs", "used"]
    return pd.DataFrame(list(found.values()), columns=columns)


def _row(work: Work, setting: Setting, how: Execution) -> dict[str, Any]:
    shape = _shape(setting.data())
    run = work.flops * (setting.evaluation_networks if work.kind == "evaluation" else 1)  # all at once
    share = COMPILED_SHARE[work.kind] if run >= WORTH_COMPILING[how.place.type] else 1.0
    first = next(m for m in _network(work.network, shape).modules() if isinstance(m, torch.nn.Conv2d))
    # A batch's feature maps and their gradients are seven times the first map, four bytes each.
    maps = 28.0 * work.images * first.out_channels * shape.size**2
    return {
        "kind": work.kind,
        "title": work.title.format(data=f"{DATASETS[setting.data_name].title} {shape.size} px"),
        "count": work.count,
        "flops": work.count * work.flops,
        "seconds": work.count * work.flops / _rate(work.network, shape, work.images, how) * share,
        "disk": work.count * work.disk,
        "memory": maps + 5.0 * shape.train * shape.pixels + work.memory,
        "epochs": work.count * work.epochs,
        "used": work.count * work.used,
    }


def _needed(setting: Setting, shown: Any, source: str) -> Iterator[Work]:
    evaluated, snapshots = re.search(r"\b(cells|evaluate)\(", source), "snapshots(" in source
    others = [NetworkConfig(network) for network in shown.own.get("other_networks", ())]
    longer = shown.own.get("network_epochs", {})
    methods = {name: METHODS[name] for name in shown.methods if not METHODS[name].left_out(setting)}
    if any(method.needs_teachers for method in methods.values()):
        yield _teachers(setting)
    for name, method in methods.items():
        if method.matching or method.iterations:  # others only choose images
            yield _distillation(setting, name)
        for network in [setting.network(), *others] if evaluated else ():
            yield _evaluation(setting, name, network, longer.get(network.name))
        if method.matching and snapshots:
            config = setting.distillation(method.matching(setting))
            kept = min(config.snapshots, config.iterations + 1)
            yield _evaluation(setting, name, setting.network(), None, snapshots=kept)


def _teachers(setting: Setting) -> Work:
    shape, config = _shape(setting.data()), setting.teachers()
    forward, parameters = _counts(config.network, shape)
    used = min(setting.max_start_epoch + setting.teacher_epochs, config.epochs + 1)
    stored = [4.0 * parameters * epochs for epochs in (config.epochs + 1, used)]
    title, work = f"{{data}}, {config.epochs} epochs", 3.0 * shape.train * config.epochs * forward
    how = (config.network, config.batch, stored[0] + _HEADER)
    return Work("teachers", title, setting.teacher_count, work, *how, epochs=stored[0], used=stored[1])


def _distillation(setting: Setting, name: str) -> Work:
    shape, network, method = _shape(setting.data()), setting.network(), METHODS[name]
    (forward, parameters), total = _counts(network, shape), setting.ipc * shape.classes
    if method.matching:
        config = setting.distillation(method.matching(setting))
        passes = ADJOINT_PASSES * (config.batch or total) * config.student_steps * config.segments
        kept = min(config.snapshots, config.iterations + 1)
        floats = (1 + kept) * total * shape.pixels + (1 + config.matching.varies * (1 + kept)) * parameters
        images, memory = config.batch or total, 4.0 * parameters * (config.student_steps + 8)
    else:
        if name == "dm":
            config = setting.distribution_matching()
        else:
            config = setting.gradient_matching(None).resolved(ImageData(setting.data(), (), *[None] * 3, ""))
        images, floats, memory = config.real_batch, total * shape.pixels, 0.0
        passes = descent_passes(config, shape.classes, shape.train // shape.classes)
    title, count = f"{method.title}, {{data}}, IPC {setting.ipc}", method.seeds(setting)
    work, disk = (
        float(passes) * config.iterations * forward,
        4.0 * floats + 56.0 * config.iterations + _HEADER,
    )
    return Work("distillation", title, count, work, network, images, disk, (name, count, config), memory)


def _evaluation(
    setting: Setting, name: str, network: NetworkConfig, epochs: int | None, *, snapshots: int = 0
) -> Work:
    shape, config, method = _shape(setting.data()), setting.evaluation(network=network), METHODS[name]
    images = setting.ipc * shape.classes if method.competes else shape.train
    epochs = epochs or getattr(setting, method.epochs)
    work = (3.0 * images * epochs + shape.test) * _counts(network, shape)[0]
    title = f"{network.title}, {{data}}, {images} images, {epochs} epochs"
    count = config.networks * (snapshots or method.seeds(setting))
    key = (name, setting, network, epochs, snapshots)
    disk = shape.classes**2 * 8.0 + _HEADER / 2 / config.networks  # one file for all of them
    return Work("evaluation", title, count, work, network, min(config.batch, images), disk, key)


def descent_passes(config: Any, classes: int, most: int) -> int:
    """Forward passes that an iteration of DC, DSA or DM is, with at most `most` real images of a class."""
    real = min(config.real_batch, most)
    if isinstance(config, DistributionMatchingConfig):
        return classes * (real + 3 * config.ipc)
    matches, steps = config.matches_per_network, config.network_steps
    # Real: forward and back; distilled: that, and once more through it; and the network's own steps.
    return classes * (matches * (3 * real + 9 * config.ipc) + (matches - 1) * steps * 3 * config.ipc)


@functools.cache
def _shape(config: DataConfig) -> Shape:
    if config.name not in PUBLISHED or (config.name in VARIED and locate(config.name) is not None):
        data = load_data(config, progress=False)
        return Shape(len(data.train), len(data.test), len(data.classes), data.channels, data.size)
    spec, (train, test, classes) = DATASETS[config.name], PUBLISHED[config.name]
    kept = min(train - round(config.validation_fraction * train), config.train_limit or train)
    return Shape(kept, test, classes, config.channels or spec.channels, config.size or spec.size)


def _network(config: NetworkConfig, shape: Shape) -> torch.nn.Module:
    shapes = {"channels": shape.channels, "size": shape.size, "classes": shape.classes}
    return build_network(config, **shapes, seed=0)


@functools.cache
def _counts(config: NetworkConfig, shape: Shape) -> tuple[int, int]:
    """Operations of a forward pass of one image, and parameters."""
    network = _network(config, shape)
    parameters = sum(tensor.numel() for tensor in network.parameters())
    return flops(network, channels=shape.channels, size=shape.size), parameters


@functools.cache
def _rate(config: NetworkConfig, shape: Shape, images: int, how: Execution) -> float:
    """Floating-point operations that are done a second where so many images are trained on at once."""
    one, place = 3.0 * _counts(config, shape)[0], how.place
    count = max(min(images, int(_TIMED / one)), 1)
    pictures = torch.randn(count, shape.channels, shape.size, shape.size, device=place)
    labels, network = torch.arange(count, device=place) % shape.classes, _network(config, shape).to(place)
    options = {"rates": [1e-4], "augment": AugmentConfig(), "generators": [torch.Generator().manual_seed(0)]}
    training, steps = Training([network], [pictures], [labels], batch=count, **options), 0
    with how.environment():
        training.advance()  # warms up; what it gives back, it has waited for
        started = time.perf_counter()
        while steps < 2 or time.perf_counter() - started < _SECONDS:
            training.advance()
            steps += 1
        return steps * one * count / (time.perf_counter() - started)


def describe(found: pd.DataFrame, *, notebooks: int, jobs: int = 1) -> str:
    """The plan as lines of text, for so many notebooks, so many `jobs` at once.

    Raises:
        InputError: `jobs` is no whole number of at least 1.
    """
    check_whole("jobs", jobs, minimum=1)
    lines = [f"{notebooks} notebooks, {jobs} at once; what is computed is computed once for all of them", ""]
    lines += [f"{'task':58} {'count':>6} {'PFLOP':>11} {'hours':>9}"]
    for kind, mine in found.groupby("kind", sort=False):
        lines += [_line(kind, mine)]
        lines += [_line(f"  {title}", of_title) for title, of_title in mine.groupby("title", sort=False)]
    each = found.groupby("notebook", sort=False)["seconds"].sum()
    total, free = each.sum() + notebooks * _NOTEBOOK, [0.0] * jobs
    for seconds in [*(each + _NOTEBOOK), *[_NOTEBOOK] * (notebooks - len(each))]:
        free[free.index(min(free))] += seconds
    rest = pd.DataFrame({"count": [notebooks], "flops": 0.0, "seconds": notebooks * _NOTEBOOK})
    lines += [_line("notebooks: kernels, imports, figures", rest), ""]
    lines += [f"time    {_duration(max(free))} with {jobs} at once; {_duration(total)} one after another"]
    lines += [f"disk    {_bytes(found['disk'].sum())} of runs"]
    pairs = [(f"{n}, {e}", found[c].sum() * share) for n, share in _WIDTHS for e, c in _EPOCHS]
    lines += ["        of it trajectories: " + "; ".join(f"{_bytes(size)} as {how}" for how, size in pairs)]
    memory = peak_memory() + (found["memory"].max() if len(found) else 0)
    return "\n".join([*lines, f"memory  {_bytes(memory)} per worker, roughly"])


_WIDTHS, _EPOCHS = (("float32", 1.0), ("float16", 0.5)), (("all epochs", "epochs"), ("used epochs", "used"))


def _line(title: str, rows: pd.DataFrame) -> str:
    count, work, seconds = (rows[name].sum() for name in ("count", "flops", "seconds"))
    return f"{title[:58]:58} {count:6,} {work / 1e15:11,.4f} {seconds / 3600:9,.3f}"


def _duration(seconds: float) -> str:
    whole = f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return whole if seconds < 3600 else f"{seconds / 3600:,.1f} h"


def _bytes(count: float) -> str:
    power = next((power for power in (1, 2, 3) if count < 1000 ** (power + 1)), 4)
    return f"{count / 1000**power:.1f} {'kMGT'[power - 1]}B"
