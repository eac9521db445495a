"""What a profile costs, before any of it is computed: tasks, operations, hours, disk and memory.

Settings, methods and seeds say what is computed, and everything is computed once. Operations are counted;
how many of them a second are done, is measured on this machine in a few steps of each network.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
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
        where it has the machine for itself; bytes of disk in the folder of runs; of memory,
        roughly; of all `epochs` of trajectories in single precision, and of those `used`.

    Raises:
        InputError: a data set of which nothing is published is missing, or a value is impossible.
    """
    found: dict[Any, dict[str, Any]] = {}
    for notebook, (shown, source) in pages.items():
        how = Execution.of(None, {**(shown.how if shown else {}), "device": device})
        for setting in shown.settings if shown else ():
            for key, needed in _needed(setting, shown, source):
                key = needed["kind"], setting.data(), setting.teachers(), key
                before = found.get(key, {"notebook": notebook, "count": 0})
                if needed["count"] > before["count"]:  # of more seeds, the first are the same
                    found[key] = _row(setting, how, **needed, notebook=before["notebook"])
    columns = ["notebook", "kind", "title", "count", "flops", "seconds", "disk", "memory", "epochs", "used"]
    return pd.DataFrame(list(found.values()), columns=columns)


def _row(setting: Setting, how: Execution, *, network: NetworkConfig, images: int, **needed: Any) -> dict:
    """All that is needed of one kind and title: so many of what each has, for so many images at once."""
    shape, count, kind, work = _shape(setting.data()), needed["count"], needed["kind"], needed["flops"]
    run = work * (setting.evaluation_networks if kind == "evaluation" else 1)
    share = COMPILED_SHARE[kind] if run >= WORTH_COMPILING[how.place.type] else 1.0
    first = next(m for m in _network(network, shape).modules() if isinstance(m, torch.nn.Conv2d))
    # A batch's feature maps and their gradients are seven times the first map, four bytes each.
    maps = 28.0 * images * first.out_channels * shape.size**2 + 5.0 * shape.train * shape.pixels
    of_each = {name: count * needed.get(name, 0.0) for name in ("flops", "disk", "epochs", "used")}
    memory, seconds = maps + needed.get("memory", 0.0), count * work / _rate(network, shape, images, how)
    title = needed["title"].format(data=f"{DATASETS[setting.data_name].title} {shape.size} px")
    return needed | of_each | {"title": title, "seconds": seconds * share, "memory": memory}


def _needed(setting: Setting, shown: Any, source: str) -> Iterator[tuple[Any, dict]]:
    """What else tells each thing from others of the same images and teachers, and what one of it needs."""
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


def _teachers(setting: Setting) -> tuple[Any, dict]:
    shape, config, count = _shape(setting.data()), setting.teachers(), setting.teacher_count
    forward, parameters = _counts(config.network, shape)
    epochs, used = config.epochs + 1, min(setting.max_start_epoch + setting.teacher_epochs, config.epochs + 1)
    work, stored = 3.0 * shape.train * config.epochs * forward, {"epochs": 4.0 * parameters * epochs}
    stored |= {"used": 4.0 * parameters * used, "disk": stored["epochs"] + _HEADER}
    needed = {"kind": "teachers", "title": f"{{data}}, {config.epochs} epochs", "count": count, "flops": work}
    return None, needed | stored | {"network": config.network, "images": config.batch}


def _distillation(setting: Setting, name: str) -> tuple[Any, dict]:
    shape, network, method = _shape(setting.data()), setting.network(), METHODS[name]
    (forward, parameters), total = _counts(network, shape), setting.ipc * shape.classes
    floats, memory = total * shape.pixels, 0.0
    if method.matching:
        config = setting.distillation(method.matching(setting))
        images, kept = config.batch or total, min(config.snapshots, config.iterations + 1)
        passes = ADJOINT_PASSES * images * config.student_steps * config.segments
        floats = (1 + kept) * floats + (1 + config.matching.varies * (1 + kept)) * parameters
        memory = 4.0 * parameters * (config.student_steps + 8)
    else:
        unseen = ImageData(setting.data(), (), *[None] * 3, "")
        by_features = name == "dm"
        config = (
            setting.distribution_matching()
            if by_features
            else setting.gradient_matching(None).resolved(unseen)
        )
        images = config.real_batch
        passes = descent_passes(config, shape.classes, shape.train // shape.classes)
    needed = {"kind": "distillation", "title": f"{method.title}, {{data}}, IPC {setting.ipc}"}
    needed |= {"count": method.seeds(setting), "flops": float(passes) * config.iterations * forward}
    needed |= {"disk": 4.0 * floats + 56.0 * config.iterations + _HEADER, "memory": memory}
    return (name, config, setting.teacher_count), needed | {"network": network, "images": images}


def _evaluation(
    setting: Setting, name: str, network: NetworkConfig, epochs: int | None, *, snapshots: int = 0
) -> tuple[Any, dict]:
    shape, config, method = _shape(setting.data()), setting.evaluation(network=network), METHODS[name]
    images, epochs = setting.ipc * shape.classes, epochs or getattr(setting, method.epochs)
    images = images if method.competes else shape.train
    work = (3.0 * images * epochs + shape.test) * _counts(network, shape)[0]
    title = f"{network.title}, {{data}}, {images} images, {epochs} epochs"
    needed = {"kind": "evaluation", "title": title, "count": config.networks, "flops": work}
    needed["count"] *= snapshots or method.seeds(setting)
    needed["disk"] = shape.classes**2 * 8.0 + _HEADER / 2 / config.networks  # one file for all of them
    key = (name, replace(setting, seeds=1), network, epochs, snapshots)
    return key, needed | {"network": network, "images": min(config.batch, images)}


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
    lines += [
        f"time    {max(free) / 3600:,.2f} h with {jobs} at once; {total / 3600:,.2f} h one after another"
    ]
    lines += [f"disk    {found['disk'].sum() / 1e6:,.1f} MB of runs"]
    pairs = [(f"{n}, {e}", found[c].sum() * share) for n, share in _WIDTHS for e, c in _EPOCHS]
    lines += [
        "        of it trajectories: " + "; ".join(f"{size / 1e6:,.1f} MB as {how}" for how, size in pairs)
    ]
    memory = peak_memory() + (found["memory"].max() if len(found) else 0)
    return "\n".join([*lines, f"memory  {memory / 1e9:,.1f} GB per worker, roughly"])


_WIDTHS, _EPOCHS = (("float32", 1.0), ("float16", 0.5)), (("all epochs", "epochs"), ("used epochs", "used"))


def _line(title: str, rows: pd.DataFrame) -> str:
    count, work, seconds = (rows[name].sum() for name in ("count", "flops", "seconds"))
    return f"{title[:58]:58} {count:6,} {work / 1e15:11,.4f} {seconds / 3600:9,.3f}"
