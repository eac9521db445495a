"""What notebooks would compute, found by following their own cells without computing anything.

Cells are executed as they are, with this package's own `Study` and configurations. Only the functions that
compute are replaced, by ones that note what they were asked for and return something of the right shape; and
what draws and prints, by `Nothing`. So the list stays right when a notebook changes.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import sys
import tempfile
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import iadd_lab.study.bench
import iadd_lab.study.study
from iadd_lab.baselines.features import DistributionMatchingConfig, match_distributions
from iadd_lab.baselines.gradients import GradientMatchingConfig, match_gradients
from iadd_lab.baselines.real_images import herding, random_draws, random_real, whole_set
from iadd_lab.data.distilled import DistilledSet
from iadd_lab.data.preprocess import Preprocess, Standardise, Zca, preprocess_fingerprint
from iadd_lab.data.sets import DATASETS, DataConfig, ImageData, load_data, locate
from iadd_lab.data.splits import Split
from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.history import History
from iadd_lab.distillation.loop import ADJOINT_PASSES, check_inputs, distill
from iadd_lab.distillation.result import DistillResult
from iadd_lab.distillation.segments import draw_segment
from iadd_lab.distillation.unroll import ENGINES
from iadd_lab.evaluation.protocol import EvaluateConfig, Evaluation, evaluate_each
from iadd_lab.evaluation.training_set import load
from iadd_lab.notebooks.notebook import Notebook, source_of
from iadd_lab.store.artefacts import save_text
from iadd_lab.store.configs import describe, fingerprint
from iadd_lab.study.bench import BenchConfig, measure
from iadd_lab.study.luck import luck_shares, repeat_segments, unmatched_shares
from iadd_lab.study.replay import hardness, one_iteration, replay
from iadd_lab.training.fast.compiling import WORTH_COMPILING, flops
from iadd_lab.training.networks import NetworkConfig, build_network
from iadd_lab.training.teachers import TeacherConfig, Teachers, prepare_teachers, train_teachers

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
_INERT = ("plots", "tables", "cards")  # modules that only show what was computed
_HEADER = 2_500  # bytes of an artefact beside its tensors


class Nothing:
    """Stands for whatever is only drawn, printed or compared: anything can be done with it."""

    __dataclass_fields__: dict[str, Any] = {}  # noqa: RUF012 (`dataclasses.replace` looks for it)

    def __init__(self, *_: object, **__: object):
        pass

    def __getattr__(self, name: str) -> Nothing:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing()

    def __call__(self, *_: object, **__: object) -> Nothing:
        return Nothing()

    __getitem__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __call__
    __rtruediv__ = __neg__ = __lt__ = __le__ = __gt__ = __ge__ = __enter__ = __call__

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[Nothing]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __bool__(self) -> bool:
        return False

    def __float__(self) -> float:
        return 0.0

    __index__ = __int__ = __len__

    def __format__(self, specification: str) -> str:
        return ""


class _Pairs(Nothing):
    """A training set that is only looked at."""

    def __getitem__(self, index: object) -> tuple[Nothing, int]:
        return Nothing(), 0


@dataclass(frozen=True)
class Shape:
    """What of a data set decides how long networks take on it."""

    channels: int
    size: int
    classes: int
    train: int
    test: int


@dataclass(frozen=True)
class Probe:
    """A small piece of real work that can be timed: see `iadd_lab.notebooks.costs`.

    Attributes:
        kind: a key of `costs.PROBES`.
        shape: of the data.
        network: which.
        config: of the run it is a piece of, with nothing in it that does not change the time.
        images: that the piece works on.
        threads: of PyTorch.
        flops: of the piece; 0 where they say nothing about the time.
        compiled: whether the run will be, which the piece is not.
    """

    kind: str
    shape: Shape | None = None
    network: NetworkConfig | None = None
    config: Any = None
    images: int = 0
    threads: int = 0
    flops: float = 0.0
    compiled: bool = False


@dataclass(frozen=True)
class Needed:
    """Something that a notebook needs computed.

    Attributes:
        notebook: the first that needs it.
        kind: "teachers", "distillation", "evaluation" or "engines".
        title: what of that kind.
        count: networks, sets or measurements.
        work: pieces of it and how often each is done.
        disk: bytes that stay in the folder of runs.
        memory: bytes that its process has beyond what it imports, roughly.
        trajectories: of teachers: (count, snapshots, parameters), and the snapshots that are used.
    """

    notebook: str
    kind: str
    title: str
    count: int
    work: tuple[tuple[Probe, float], ...]
    disk: float
    memory: float
    trajectories: tuple[int, int, int] | None = None

    @property
    def flops(self) -> float:
        """Floating-point operations, those of convolutions and products."""
        return sum(probe.flops * times for probe, times in self.work)


@dataclass(frozen=True)
class DryRun:
    """What was found.

    Attributes:
        needed: everything once, in the order of the notebooks.
        used: of each folder of teachers (its place in `needed`), the snapshots that distillations read.
        notebooks: the names of those that were followed.
        unclear: a sentence for each cell that could not be followed; what comes after may be missing.
    """

    needed: tuple[Needed, ...]
    used: Mapping[int, int]
    notebooks: tuple[str, ...]
    unclear: tuple[str, ...]


def follow(notebooks: Sequence[tuple[Notebook, Mapping[str, Any]]]) -> DryRun:
    """Follow notebooks, each with parameters of its own, in their order.

    Raises:
        InputError: a data set is needed of which nothing is known.
    """
    recorder, unclear = _Recorder(), []
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="iadd-lab-plan-") as runs:
        for notebook, parameters in notebooks:
            recorder.notebook = notebook.name
            given = {**parameters, "runs_dir": runs, "figures_dir": ""}
            values = {name: value for name, value in given.items() if name in notebook.defaults}
            hidden = io.StringIO()
            with (
                _replaced(recorder),
                contextlib.redirect_stdout(hidden),
                contextlib.redirect_stderr(hidden),
            ):
                unclear += _execute(notebook, values)
            torch.set_num_threads(threads)
    names = tuple(notebook.name for notebook, _ in notebooks)
    return DryRun(tuple(recorder.needed.values()), recorder.used(), names, tuple(unclear))


def _execute(notebook: Notebook, values: Mapping[str, Any]) -> list[str]:
    """Execute the cells; a sentence for each that fails, as one does that reads what was not computed."""
    scope: dict[str, Any] = {"__name__": "__main__", "display": Nothing(), "get_ipython": Nothing()}
    failed = []
    for number, cell in enumerate(notebook.cells):
        if cell["cell_type"] != "code":
            continue
        try:
            exec(compile(source_of(cell), f"{notebook.name}, cell {number}", "exec"), scope)
        except Exception as error:  # notebooks may contain anything
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            failed.append(f"{notebook.name}: cell {number} could not be followed ({reason})")
        if "parameters" in cell["metadata"].get("tags", []):
            scope.update(values)
    return failed


@contextlib.contextmanager
def _replaced(recorder: _Recorder) -> Iterator[None]:
    """What computes, draws and prints in this package is replaced while the block runs."""
    loaded = [module for name, module in sys.modules.items() if name.split(".")[0] == "iadd_lab" and module]
    substitutes = recorder.substitutes()
    places = [
        (vars(module), name, value)
        for module in loaded
        for name, value in vars(module).items()
        if isinstance(value, types.FunctionType) and value in substitutes
    ]
    for scope, name, value in places:
        scope[name] = substitutes[value]
    engines, package = dict(ENGINES), vars(iadd_lab)
    inert = ["IPython.display", *(f"iadd_lab.{name}" for name in _INERT)]
    modules = {name: sys.modules.get(name) for name in inert}
    attributes = {name: package.get(name) for name in _INERT}
    ENGINES.update(dict.fromkeys(ENGINES, Nothing()))
    sys.modules.update(dict.fromkeys(modules, Nothing()))
    package.update(dict.fromkeys(attributes, Nothing()))
    cluster = os.environ.pop("IADD_CLUSTER", None)
    try:
        yield
    finally:
        for scope, name, value in places:
            scope[name] = value
        ENGINES.update(engines)
        _put_back(sys.modules, modules)
        _put_back(package, attributes)
        if cluster is not None:
            os.environ["IADD_CLUSTER"] = cluster


def _put_back(scope: Any, before: Mapping[str, Any]) -> None:
    for name, value in before.items():
        if value is None:
            scope.pop(name, None)
        else:
            scope[name] = value


class _PlannedTeachers(Teachers):
    """Teachers that nobody trained."""

    @cached_property
    def paths(self) -> tuple[Path, ...]:
        return tuple(self.path(number) for number in range(self.count))

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.identity, self.count)

    def snapshot(self, teacher: int, epoch: int) -> torch.Tensor:
        return torch.zeros(1).expand(self.layout.count)

    def history(self, teacher: int) -> dict[str, object]:
        return {"train_loss": [0.0] * self.config.epochs, "validation_accuracy": 0.0}


@dataclass(frozen=True, eq=False)
class _PlannedSet(DistilledSet):
    """A set that nobody distilled."""

    mark: str = ""

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.mark, float(self.alpha), self.images[0, 0, 0, 0].item())

    def pictures(self, images: torch.Tensor | None = None) -> Any:
        return Nothing()

    def save(self, path: Path, **_: Any) -> Path:
        return path


class _Recorder:
    """Notes what is asked for, everything once."""

    def __init__(self):
        self.notebook = ""
        self.needed: dict[str, Needed] = {}
        self.reads: dict[str, int] = {}  # snapshots of a teacher that are read, by its folder's key
        self.loaded: dict[object, ImageData] = {}
        self.load = load_data  # by another name, under which nobody replaces it

    def used(self) -> dict[int, int]:
        places = {key: place for place, key in enumerate(self.needed)}
        return {places[key]: reads for key, reads in self.reads.items()}

    def substitutes(self) -> dict[Any, Any]:
        """What stands in for each function that computes."""
        return {
            load_data: self.load_data,
            preprocess_fingerprint: _kind,
            prepare_teachers: self.prepare_teachers,
            train_teachers: self.train_teachers,
            distill: self.distill,
            match_gradients: self.match_gradients,
            match_distributions: self.match_distributions,
            evaluate_each: self.evaluate_each,
            random_draws: self.random_draws,
            random_real: self.random_real,
            herding: self.herding,
            whole_set: self.whole_set,
            measure: self.measure,
            replay: Nothing(),
            hardness: Nothing(),
            one_iteration: Nothing(),
            repeat_segments: self.repeat_segments,
            luck_shares: Nothing(),
            unmatched_shares: Nothing(),
            draw_segment: Nothing(),
            save_text: Nothing(),
            load: lambda folder, **_: _Pairs(),
        }

    def note(self, key: str, kind: str, title: str, count: int, **details: Any) -> None:
        if key not in self.needed:
            self.needed[key] = Needed(self.notebook, kind, title, count, **details)

    def load_data(self, config: DataConfig | str, *, root: Path | None = None, **_: Any) -> ImageData:
        config = DataConfig(config) if isinstance(config, str) else config
        if (config, root) not in self.loaded:
            counted = config.name in VARIED and locate(config.name) is not None
            stand_in = config.name in PUBLISHED and not counted
            self.loaded[config, root] = _stand_in(config) if stand_in else self.load(config, root=root)
        return self.loaded[config, root]

    def prepare_teachers(self, data: ImageData, config: TeacherConfig, folder: Path) -> Teachers:
        return self.teachers(data, config, folder, None)

    def teachers(self, data: ImageData, config: TeacherConfig, folder: Path, count: int | None) -> Teachers:
        config = replace(config, augment=data.augmentation(config.augment))
        return _PlannedTeachers(
            folder=Path(folder),
            config=config,
            data=data.config,
            data_fingerprint=data.fingerprint,
            classes=data.classes,
            channels=data.channels,
            size=data.size,
            preprocess=_preprocess(config.preprocess, data),
            count=count,
            identity=fingerprint(str(folder), describe(config), data.fingerprint),
        )

    def train_teachers(
        self, data: ImageData, config: TeacherConfig, folder: Path, *, count: int, **_: Any
    ) -> Teachers:
        teachers = self.teachers(data, config, folder, count)
        config = teachers.config
        network, images = _build(config.network, data), len(data.train)
        epoch = 3.0 * images * _flops(network, data)
        probe = self.probe("training", data, config.network, config, images, epoch, epoch * config.epochs)
        snapshots, parameters = config.epochs + 1, teachers.layout.count
        self.note(
            teachers.identity,
            "teachers",
            f"{_title(data)}, {config.epochs} epochs",
            count,
            work=((probe, count * config.epochs),),
            disk=count * (snapshots * parameters * 4.0 + _HEADER) + _bytes(teachers.preprocess) + _HEADER,
            memory=5.0 * data.train.images.numel() + _activations(network, data, config.batch),
            trajectories=(count, snapshots, parameters),
        )
        return teachers

    def repeat_segments(
        self, teachers: Teachers, data: ImageData, *, start_epochs: int, epochs: int, count: int, **_: Any
    ) -> Nothing:
        config, images, segments = teachers.config, len(data.train), count * start_epochs
        network = _build(config.network, data)
        epoch = 3.0 * images * _flops(network, data)
        probe = self.probe("training", data, config.network, config, images, epoch, epoch * epochs)
        self.note(
            fingerprint("repeats", teachers.identity, epochs),
            "teachers",
            f"{_title(data)}, {epochs} epochs again",
            segments,
            work=((probe, segments * epochs),),
            disk=segments * (teachers.layout.count * 4.0 + _HEADER),
            memory=5.0 * data.train.images.numel() + _activations(network, data, config.batch),
        )
        return Nothing()

    def distill(
        self, data: ImageData, teachers: Teachers, config: DistillConfig, *, folder: Any = None, **_: Any
    ) -> DistillResult:
        config = replace(config, augment=data.augmentation(config.augment))
        check_inputs(data, teachers, config)
        total = config.ipc * len(data.classes)
        batch, steps = min(config.batch or total, total), config.student_steps * config.segments
        network, parameters = _build(teachers.config.network, data), teachers.layout.count
        one = float(ADJOINT_PASSES * batch * steps * _flops(network, data))
        every = one * config.iterations if config.gradient != "full" else 0.0
        plain = replace(config, seed=0, snapshots=2, iterations=1, max_start_epoch=1)
        probe = self.probe("distillation", data, teachers.config.network, plain, batch, one, every)
        mark = fingerprint(teachers.identity, len(teachers), config)
        images, varies = total * data.train.images[0].numel(), config.matching.varies
        snapshots = min(config.snapshots, config.iterations + 1)
        learned = config.matching.initial(teachers.layout).numel()
        floats = (1 + snapshots) * images + (1 + varies * snapshots) * parameters + learned
        fixed = _bytes(teachers.preprocess) + _HEADER
        self.note(
            mark if folder else f"{mark}{len(self.needed)}",
            "distillation",
            f"{config.matching.name}, {_title(data)}, IPC {config.ipc}",
            1,
            work=((probe, config.iterations),),
            disk=bool(folder) * (4.0 * floats + 56.0 * config.iterations + fixed),
            memory=_activations(network, data, batch) + 4.0 * parameters * (steps + 8) + 32.0 * images,
        )
        self.reads[teachers.identity] = max(
            self.reads.get(teachers.identity, 0), config.max_start_epoch + config.teacher_epochs
        )
        return self.result(data, teachers, config, mark, snapshots)

    def result(
        self, data: ImageData, teachers: Teachers, config: DistillConfig, mark: str, snapshots: int
    ) -> DistillResult:
        made = self.set(data, teachers.preprocess, config.ipc, mark, config.matching.name, config.alpha)
        vector = torch.ones(1).expand(teachers.layout.count)
        varying = [vector] * snapshots if config.matching.varies else []
        series = {
            name: [config.alpha] * config.iterations
            for name in ("loss", "unweighted_loss", "alpha", "seconds")
        }
        spaced = torch.linspace(0, config.iterations, snapshots).round().long().tolist()
        shape = made.images.shape
        history = History(
            **series,
            importance_min=series["loss"],
            importance_max=series["loss"],
            importance_share=series["loss"],
            snapshot_iterations=spaced,
            snapshot_images=[torch.tensor(1.0 + place).expand(shape) for place in range(snapshots)],
            snapshot_importance=varying,
        )
        stored = {
            "config": describe(teachers.config),
            "fingerprint": teachers.fingerprint,
            "count": len(teachers),
        }
        raw = config.matching.initial(teachers.layout)
        return DistillResult(made, vector, raw, history, config, stored)

    def match_gradients(
        self,
        data: ImageData,
        preprocess: Preprocess,
        network: NetworkConfig,
        config: GradientMatchingConfig,
        **options: Any,
    ) -> DistilledSet:
        return self.descent(data, preprocess, network, config.resolved(data), options)

    def match_distributions(
        self,
        data: ImageData,
        preprocess: Preprocess,
        network: NetworkConfig,
        config: DistributionMatchingConfig,
        **options: Any,
    ) -> DistilledSet:
        config = replace(config, augment=data.augmentation(config.augment))
        return self.descent(data, preprocess, network, config, options)

    def descent(
        self,
        data: ImageData,
        preprocess: Preprocess,
        network: NetworkConfig,
        config: Any,
        options: Mapping[str, Any],
    ) -> DistilledSet:
        mark = fingerprint(config, network, data.fingerprint, preprocess.kind)
        built = _build(network, data)
        real = min(config.real_batch, len(data.train) // len(data.classes))
        one = float(descent_passes(config, len(data.classes), real) * _flops(built, data))
        plain = replace(config, seed=0, iterations=1)
        probe = self.probe("descent", data, network, plain, config.ipc * len(data.classes), one, 0.0)
        images = config.ipc * len(data.classes) * data.train.images[0].numel()
        stored = 4.0 * images + 16.0 * config.iterations + _bytes(preprocess) + _HEADER
        self.note(
            mark if options.get("folder") else f"{mark}{len(self.needed)}",
            "distillation",
            f"{config.method}, {_title(data)}, IPC {config.ipc}",
            1,
            work=((probe, config.iterations),),
            disk=bool(options.get("folder")) * stored,
            memory=5.0 * data.train.images.numel() + 2 * _activations(built, data, config.real_batch),
        )
        return self.set(data, preprocess, config.ipc, mark, config.method, 0.01)

    def evaluate_each(
        self, sets: Sequence[DistilledSet], data: ImageData, config: EvaluateConfig, **options: Any
    ) -> Evaluation:
        sets, config = list(sets), replace(config, augment=data.augmentation(config.augment))
        save_to = options.get("save_to")
        key = fingerprint([made.fingerprint for made in sets], config)
        network, images = _build(config.network, data), len(sets[0].images)
        forward, tested = _flops(network, data), len(data.split(config.split))
        epoch, every = 3.0 * images * forward, 3.0 * images * forward * config.epochs * len(sets)
        plain = replace(config, seed=0, networks=1, epochs=1, split="test", rate=0.01)
        training = self.probe("training", data, config.network, plain, images, epoch, every)
        testing = self.probe("prediction", data, config.network, None, tested, float(tested * forward), every)
        self.note(
            key if save_to else f"{key}{len(self.needed)}",
            "evaluation",
            f"{config.network.title}, {_title(data)}, {images} images, {config.epochs} epochs",
            len(sets),
            work=((training, len(sets) * config.epochs), (testing, len(sets))),
            disk=bool(save_to) * (len(sets) * len(data.classes) ** 2 * 8.0 + 1_200),
            memory=_activations(network, data, min(config.batch, images)) + 5.0 * data.test.images.numel(),
        )
        counts = torch.bincount(data.split(config.split).labels, minlength=len(data.classes))
        confusion = torch.diag(counts).expand(len(sets), -1, -1)
        return Evaluation(confusion, data.classes, sets[0].method, config, key)

    def random_draws(
        self, data: ImageData, preprocess: Preprocess, *, ipc: int, count: int, seed: int, alpha: float = 0.01
    ) -> list[DistilledSet]:
        marks = [f"random {data.fingerprint} {seed} {number}" for number in range(count)]
        return [self.set(data, preprocess, ipc, mark, "random real", alpha) for mark in marks]

    def random_real(self, data: ImageData, preprocess: Preprocess, *, ipc: int, seed: int, **_: Any) -> Any:
        return self.random_draws(data, preprocess, ipc=ipc, count=1, seed=seed)[0]

    def herding(
        self, data: ImageData, teachers: Teachers, *, ipc: int, teacher: int = 0, **_: Any
    ) -> DistilledSet:
        mark = f"herding {teachers.identity} {teacher}"
        self.reads[teachers.identity] = teachers.config.epochs + 1  # the last snapshot
        return self.set(data, teachers.preprocess, ipc, mark, "herding", 0.01)

    def whole_set(self, data: ImageData, preprocess: Preprocess, **_: Any) -> DistilledSet:
        made = self.set(data, preprocess, 1, f"whole {data.fingerprint}", "whole set", 0.01)
        images = torch.zeros(1).expand(data.train.images.shape)
        return replace(made, images=images, labels=data.train.labels)

    def measure(self, config: BenchConfig, **_: Any) -> dict[str, Any]:
        records = {"engines": [], "training": []}
        for kind, job in iadd_lab.study.bench._jobs(config):
            probe = Probe("process", threads=torch.get_num_threads())
            network = config.network(0)
            batch, steps = job.get("images", 10), job.get("steps", 50)
            full = job.get("engine", "").startswith("full")
            one = float(ADJOINT_PASSES * batch * steps * flops(network, channels=3, size=config.size))
            shape = Shape(3, config.size, iadd_lab.study.bench.CLASSES, 100, 100)
            ipc = max(batch // iadd_lab.study.bench.CLASSES, 1)
            iteration = DistillConfig(
                ipc=ipc, iterations=1, student_steps=steps, snapshots=2, max_start_epoch=1
            )
            engine = Probe(
                "distillation",
                shape,
                NetworkConfig(width=config.width, depth=config.depth),
                iteration,
                batch,
                torch.get_num_threads(),
                one,
            )
            self.note(
                f"engine {len(self.needed)}",
                "engines",
                job.get("engine", job.get("task", "")),
                1,
                work=((probe, 1), (engine, config.iterations + 1)),
                disk=0.0,
                # Only the full unroll keeps all steps.
                memory=7.0 * batch * (steps if full else 1) * config.width * config.size**2 * 4,
            )
            zero = {"seconds": 1.0, "peak_mb": 1.0, "conv_gflops": 1.0, "title": str(job), "engine": "full"}
            records[kind].append({**zero, "images": batch, "steps": steps, **job})
        machine = {"processor": "", "threads": 1, "torch": "", "device": "cpu"}
        return {"machine": machine, "config": {}, "matmul_gflops": 1.0, **records}

    def set(
        self, data: ImageData, preprocess: Preprocess, ipc: int, mark: str, method: str, alpha: float
    ) -> DistilledSet:
        shape = (ipc * len(data.classes), *data.train.images.shape[1:])
        return _PlannedSet(
            images=torch.zeros(1).expand(shape),
            labels=torch.arange(len(data.classes)).repeat_interleave(ipc),
            alpha=alpha,
            preprocess=preprocess,
            classes=data.classes,
            data=data.config,
            data_fingerprint=data.fingerprint,
            method=method,
            mark=mark,
        )

    def probe(
        self,
        kind: str,
        data: ImageData,
        network: NetworkConfig,
        config: Any,
        images: int,
        one: float,
        every: float,
    ) -> Probe:
        shape = Shape(data.channels, data.size, len(data.classes), len(data.train), len(data.test))
        compiled = every >= WORTH_COMPILING["cpu"]  # the assumed gains were measured there
        return Probe(kind, shape, network, config, images, torch.get_num_threads(), one, compiled)


def descent_passes(config: Any, classes: int, real: int) -> int:
    """Forward passes that an iteration of DC, DSA or DM amounts to, with `real` images of each class."""
    if isinstance(config, DistributionMatchingConfig):
        return classes * (real + 3 * config.ipc)
    matches, steps = config.matches_per_network, config.network_steps
    # Real: forward and back; distilled: that, and once more through it; and the network's own steps.
    return classes * (matches * (3 * real + 9 * config.ipc) + (matches - 1) * steps * 3 * config.ipc)


def _stand_in(config: DataConfig) -> ImageData:
    """Images without content, as many as were published."""
    spec, (train, test, classes) = DATASETS[config.name], PUBLISHED[config.name]
    held_out = round(config.validation_fraction * train)
    size, channels = config.size or spec.size, config.channels or spec.channels
    counts = {"train": train - held_out, "validation": held_out, "test": test}
    counts["train"] = min(counts["train"], config.train_limit or counts["train"])
    blank = torch.zeros(1, 1, 1, 1, dtype=torch.uint8)
    splits = {
        name: Split(blank.expand(count, channels, size, size), torch.arange(count) % classes)
        for name, count in counts.items()
    }
    names = tuple(f"class {number}" for number in range(classes))
    return ImageData(config=config, classes=names, fingerprint=fingerprint(config), **splits)


def _preprocess(kind: str, data: ImageData) -> Preprocess:
    """Something of the fitted state's size."""
    if kind == "zca":
        columns = data.train.images[0].numel()
        nothing = torch.zeros(1)
        return Zca(nothing.expand(columns), nothing.expand(columns), nothing.expand(columns, columns))
    return Standardise(torch.zeros(data.channels), torch.ones(data.channels))


def _kind(preprocess: Preprocess) -> str:
    return preprocess.kind


def _bytes(preprocess: Preprocess) -> int:
    return 4 * sum(tensor.numel() for tensor in preprocess.tensors().values())


def _build(config: NetworkConfig, data: ImageData) -> torch.nn.Module:
    return _network(config, data.channels, data.size, len(data.classes))


@functools.lru_cache(maxsize=64)
def _network(config: NetworkConfig, channels: int, size: int, classes: int) -> torch.nn.Module:
    """The architecture, without memory for its parameters."""
    return build_network(config, channels=channels, size=size, classes=classes, seed=0).to("meta")


@functools.lru_cache(maxsize=64)
def _operations(network: torch.nn.Module, channels: int, size: int) -> int:
    return flops(network, channels=channels, size=size)


def _flops(network: torch.nn.Module, data: ImageData) -> int:
    return _operations(network, data.channels, data.size)


def _activations(network: torch.nn.Module, data: ImageData, batch: int) -> float:
    """Bytes of a batch's feature maps and their gradients, roughly: seven times the first map."""
    first = next(layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d))
    side = network.enlarge_to or data.size
    return 7.0 * batch * first.out_channels * side**2 * 4


def _title(data: ImageData) -> str:
    return f"{DATASETS[data.name].title} {data.size} px"
