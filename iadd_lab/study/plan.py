"""What a profile costs, before any of it is computed: tasks, operations, hours, disk, memory; what is there.

Settings, methods and seeds say what is computed, and everything is computed once. Operations are counted;
how many of them a second are done, is measured on this machine in a few steps of each network.
"""

import functools
import re
from collections import namedtuple
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from timeit import Timer
from types import SimpleNamespace
from typing import Any

import pandas as pd
import torch

from iadd_lab.data.augment import AugmentConfig
from iadd_lab.data.preprocess import Zca
from iadd_lab.data.sets import DATASETS, DataConfig, ImageData, load_data, locate
from iadd_lab.data.splits import Split
from iadd_lab.device import Execution
from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.loop import ADJOINT_PASSES
from iadd_lab.errors import InputError, check_whole, require
from iadd_lab.evaluation.training_set import FILE
from iadd_lab.study.bench import peak_memory
from iadd_lab.study.methods import METHODS
from iadd_lab.study.settings import Setting
from iadd_lab.study.study import Study
from iadd_lab.training.fast.compiling import WORTH_COMPILING, flops
from iadd_lab.training.networks import NetworkConfig, network_for
from iadd_lab.training.own_networks import known_network
from iadd_lab.training.sgd import Training
from iadd_lab.training.teachers import Teachers

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
_HEADER = 625  # what an artefact holds beside its tensors, as so many numbers of four bytes


# What of a data set decides how long networks take on it: how many images and classes, and their shape.
Shape = namedtuple("Shape", "train test classes channels size")


def plan(pages: Mapping[str, tuple[Any, str]], *, device: str = "auto") -> pd.DataFrame:
    """What notebooks would compute from an empty folder of runs, everything once, and how long.

    What a notebook computes by other means than a study, as a bench, is a matter of minutes: it is left out.

    Args:
        pages: of each notebook, what it shows (its `settings`, `methods`, fields of `Execution` as `how`, and
            what only it knows as `own`; None if nothing is known), and the source of its cells, which says
            whether sets and snapshots are evaluated.
        device: where they compute.

    Returns:
        One row for each thing: `notebook`, the first that needs it; kind ("teachers", "distillation" or
        "evaluation") and title; count, of the networks where it is an evaluation; flops; seconds, where it
        has the machine for itself; bytes of disk in the folder of runs, and of memory, roughly.

    Raises:
        InputError: a data set of which nothing is published is missing, or a value is impossible.
    """
    found: dict[tuple, dict[str, Any]] = {}
    for notebook, (shown, source) in pages.items():
        how = Execution.of(None, {**(shown.how if shown else {}), "device": device})
        how.hold()  # before anything is computed
        for setting in shown.settings if shown else ():
            shape = _shape(setting.data())
            for key, needed in _needed(setting, shape, shown, source):
                row = {"notebook": notebook} | _row(shape, how, **needed)
                found.setdefault((row["kind"], setting.data(), setting.teachers(), key), row)
    columns = ["notebook", "kind", "title", "count", "flops", "seconds", "disk", "memory"]
    return pd.DataFrame(list(found.values()), columns=columns)


def _row(shape: Shape, how: Execution, network: NetworkConfig, images: int, **needed: Any) -> dict[str, Any]:
    """What it costs to train or match `network` with so many images at once."""
    forward, parameters, rate = _measured(network, shape, images, how)
    row = {"count": 1, "vectors": 0} | needed
    row["flops"] = row["count"] * row["passes"] * forward
    compiled = row["flops"] >= WORTH_COMPILING[how.place.type]
    row["seconds"] = row["flops"] / rate * (COMPILED_SHARE[row["kind"]] if compiled else 1.0)
    row["disk"] = 4.0 * row["count"] * (row["floats"] + row["vectors"] * parameters)
    # A batch's feature maps and their gradients are seven times the first map, four bytes each.
    maps = 28.0 * images * (network.width or 128) * shape.size**2
    pictures = shape.train * shape.channels * shape.size**2  # bytes, of which there are two copies in between
    return row | {"memory": maps + 2.0 * pictures + min(4.0 * pictures, Zca.kept)}


def _needed(setting: Setting, shape: Shape, shown: Any, source: str) -> Iterator[tuple[Any, dict]]:
    """What else than images and teachers tells each thing from others, and what it needs.

    Each of a `count` needs forward `passes` of an image, and on disk numbers and `vectors` of all parameters.
    """
    methods = {name: METHODS[name] for name in shown.methods if not METHODS[name].left_out(setting)}
    if any(method.needs_teachers for method in methods.values()):
        epochs, network = setting.teacher_training_epochs, setting.network()
        needed = {"kind": "teachers", "title": f"{setting.data_title}, {epochs} epochs", "network": network}
        needed |= {"images": setting.teacher_batch, "passes": 3.0 * shape.train * epochs}
        needed |= {"floats": _HEADER, "vectors": epochs + 1}
        yield from ((number, needed) for number in range(setting.teacher_count))
    for name, method in methods.items():
        for number in range(method.seeds(setting)):
            if method.matching or method.iterations:  # others only choose images
                yield _distillation(setting, shape, name, number)
            if "cells(" in source or "evaluate(" in source:
                yield from _evaluations(setting, shape, name, number, shown.own)
        if method.matching and "snapshots(" in source:
            snapshots = min(DistillConfig.snapshots, setting.iterations + 1)
            yield from _evaluations(setting, shape, name, 0, {}, sets=snapshots)


def _evaluations(
    setting: Setting, shape: Shape, name: str, number: int, own: Mapping[str, Any], sets: int = 1
) -> Iterator[tuple[Any, dict]]:
    for network in _networks(setting, own):
        method, config = METHODS[name], setting.evaluation(network=network, number=number)
        images = setting.ipc * shape.classes if method.competes else shape.train
        images *= method.distillation(setting).parametrisation.views if method.matching else 1
        epochs = own.get("network_epochs", {}).get(network.name, getattr(setting, method.epochs))
        title = f"{network.title}, {setting.data_title}, {images} images, {epochs} epochs"
        needed = {"kind": "evaluation", "title": title, "count": sets * config.networks, "network": network}
        needed |= {"images": min(config.batch, images), "passes": 3.0 * images * epochs + shape.test}
        needed |= {"floats": 2 * shape.classes**2 + _HEADER / 2 / config.networks}
        made_by = method.competes and replace(setting, seeds=1)  # the whole set is one for all IPC
        yield (name, made_by, config, epochs, sets), needed


def _distillation(setting: Setting, shape: Shape, name: str, number: int) -> tuple[Any, dict]:
    method, total = METHODS[name], setting.ipc * shape.classes
    floats, vectors = total * shape.channels * shape.size**2, 0
    images = min(setting.real_batch, shape.train // shape.classes)  # of a class
    if method.matching:
        config = method.distillation(setting, number=number)
        images = config.batch or total * config.parametrisation.views
        states = 1 + min(config.snapshots, config.iterations + 1)
        floats, vectors = floats * states, 1 + config.matching.varies * states
        passes = ADJOINT_PASSES * images * config.student_steps * config.segments
    elif name == "dm":
        config = setting.distribution_matching(number=number)
        passes = shape.classes * images + 3 * total
    else:
        # Of the images themselves, only how many channels they have counts.
        unread = torch.empty(0, shape.channels, shape.size, shape.size, dtype=torch.uint8)
        nothing = Split(unread, torch.empty(0, dtype=torch.int64))
        unseen = ImageData(setting.data(), (), *[nothing] * 3, "")
        config = setting.gradient_matching(None, number=number).resolved(unseen)
        matches, steps = config.matches_per_network, config.network_steps
        # Real: forward and back; distilled: that, and once more through it; and the network's own steps.
        passes = matches * (3 * shape.classes * images + 9 * total) + (matches - 1) * steps * 3 * total
    needed = {"kind": "distillation", "title": f"{method.title}, {setting.title}", "images": images}
    needed |= {"network": setting.network(), "passes": float(passes) * config.iterations}
    needed |= {"floats": floats + 14 * config.iterations + _HEADER, "vectors": vectors}
    return (name, config, setting.teacher_count), needed


@functools.cache
def _shape(config: DataConfig) -> Shape:
    if config.name not in PUBLISHED or (config.name in VARIED and locate(config.name) is not None):
        data = load_data(config, progress=False)
        return Shape(len(data.train), len(data.test), len(data.classes), data.channels, data.size)
    spec, (train, test, classes) = DATASETS[config.name], PUBLISHED[config.name]
    kept = min(train - round(config.validation_fraction * train), config.train_limit or train)
    return Shape(kept, test, classes, config.channels or spec.channels, config.size or spec.size)


@functools.cache
def _measured(config: NetworkConfig, shape: Shape, images: int, how: Execution) -> tuple[int, int, float]:
    """Operations of an image's forward pass; parameters; operations a second with so many images at once."""
    *_, classes, channels, size = shape
    like = SimpleNamespace(channels=channels, size=size, classes=range(classes))
    network = network_for(like, known_network(config, like), seed=0).to(how.place)
    forward = flops(network, channels=channels, size=size)
    count = max(min(images, int(_TIMED / 3 / forward)), 1)
    pictures = torch.randn(count, channels, size, size, device=how.place)
    labels = torch.arange(count, device=how.place) % classes
    options = {"rates": [1e-4], "augment": AugmentConfig(), "generators": [torch.Generator()]}
    training = Training([network], [pictures], [labels], batch=count, **options)
    with how.environment():
        timer = Timer(training.advance)
        timer.timeit(1)  # warms up
        steps = max(2, int(_SECONDS / timer.timeit(1)))
        rate = 3.0 * forward * count * steps / timer.timeit(steps)
    return forward, sum(tensor.numel() for tensor in network.parameters()), rate


class _Stored(Study):
    """A study that only reads: what would have to be computed is an `InputError`."""

    def _folder(self, name: str, *parts: object) -> Path:
        folder = super()._folder(name, *parts)
        require((folder / ("teachers.safetensors" if name == "teachers" else FILE)).exists(), "not there.")
        return folder

    def teachers(self, setting: Setting) -> Teachers:
        require(not self._prepared(setting).missing(setting.teacher_count), "not there.")
        return super().teachers(setting)

    def _evaluation(self, *made: Any) -> Path:
        path = super()._evaluation(*made)
        require(path.exists(), "not there.")
        return path


def stored_cells(pages: Mapping[str, tuple[Any, str]], *, runs: Path, device: str = "auto") -> pd.DataFrame:
    """How many cells of notebooks' studies lie in the folder of runs, whole, so that they are only read.

    Args:
        pages: as of `plan`.
        runs: the folder; it may be missing.
        device: where they would be computed.

    Returns:
        One row for each `notebook` and `setting`: how many methods of it are `there`, `of` how many, and the
        titles of those `missing`. What a notebook computes by other means than a study has none.
    """
    rows = []
    for notebook, (shown, source) in pages.items():
        if shown and re.search(r"\b(cells|snapshots|result|distilled)\(", source):
            how = Execution.of(None, shown.how | {"device": device, "progress": False})
            study = _Stored(runs, how=how) if runs.is_dir() else None
            for setting in shown.settings:
                asked = [name for name in shown.methods if not METHODS[name].left_out(setting)]
                there = [name for name in asked if study and _there(study, setting, name, shown.own, source)]
                missing = ", ".join(METHODS[name].title for name in asked if name not in there)
                rows.append((notebook, setting.title, len(there), len(asked), missing))
    return pd.DataFrame(rows, columns=["notebook", "setting", "there", "of", "missing"])


def _there(study: Study, setting: Setting, name: str, own: Mapping[str, Any], source: str) -> bool:
    """Whether the sets of a method in a setting are stored, and the evaluations that the source asks for."""
    splits, longer = re.findall(r'split="(\w+)"', source), own.get("network_epochs", {})
    try:
        for number in range(METHODS[name].seeds(setting)):
            study.sets(setting, name, number=number)
        if "snapshots(" in source and METHODS[name].matching:
            study.snapshots(setting, name, split=[*splits, "test"][0])
        for split, network in product(("test", *splits), _networks(setting, own)):
            if "cells(" in source:
                epochs = longer.get(network.name, setting.evaluation_epochs)
                study.cell(replace(setting, evaluation_epochs=epochs), name, network=network, split=split)
    except InputError:
        return False
    return True


def _networks(setting: Setting, own: Mapping[str, Any]) -> list[NetworkConfig]:
    """What sets are evaluated on."""
    return [setting.network(), *map(NetworkConfig, own.get("other_networks", ()))]


def describe(found: pd.DataFrame, cells: pd.DataFrame, *, notebooks: int, jobs: int = 1) -> str:
    """The plan as lines of text, notebook by notebook, for so many of them, so many `jobs` at once.

    Args:
        found: what `plan` found.
        cells: what `stored_cells` found.
        notebooks: how many there are.
        jobs: how many of them at once.

    Raises:
        InputError: `jobs` is no whole number of at least 1.
    """
    check_whole("jobs", jobs, minimum=1)
    shown = found.assign(PFLOP=found["flops"] / 1e15, hours=found["seconds"] / 3600)
    tasks = shown.groupby(["notebook", "kind", "title"], sort=False)[["count", "PFLOP", "hours"]].sum()
    hours, alone = shown.groupby("notebook")["hours"].sum(), _NOTEBOOK / 3600
    total = hours.sum() + notebooks * alone
    longest = max([total / jobs, *(hours + alone)])  # one notebook can't be shared between jobs
    trajectories = found.loc[found["kind"] == "teachers", "disk"].sum()
    return f"""{notebooks} notebooks, {jobs} at once; what is computed is computed once for all of them

{tasks.to_string(float_format="{:,.4f}".format)}

time    {longest:,.2f} h with {jobs} at once; {total:,.2f} h one after another
disk    {found["disk"].sum() / 1e6:,.1f} MB of runs, {trajectories / 1e6:,.1f} MB of it trajectories
memory  {(peak_memory() + max([0, *found["memory"]])) / 1e9:,.1f} GB per worker, roughly

cells that are there already, and those missing

{cells.to_string(index=False) if len(cells) else "none are asked for"}"""
