"""The study: a cell of a table is one setting and one method, computed once and kept by what it depends on.

Everything lies under one folder of runs:

- `teachers-…`: trajectories, shared by all cells that are trained on the same data in the same way;
- `<data>-ipc1-<method>-…`: one distilled set, named by a fingerprint of its whole configuration, the real
  images and the teachers' trajectories;
- `evaluations/`: one file for each evaluation, named by the content of the sets and the protocol.

A changed field changes the name, and so does `RESULT_VERSION`, which stands for the code that computes:
nothing stale is shown.
"""

import functools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import starmap
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm

from iadd_lab.data.distilled import DistilledSet
from iadd_lab.data.preprocess import Preprocess, preprocess_tensors
from iadd_lab.data.sets import ImageData, load_data
from iadd_lab.device import Execution
from iadd_lab.distillation.loop import distill
from iadd_lab.distillation.result import DistillResult
from iadd_lab.errors import DivergenceError, choose, require
from iadd_lab.evaluation.protocol import EvaluateConfig, Evaluation, evaluate_each
from iadd_lab.store.artefacts import check_folder, expanded, user_folder
from iadd_lab.store.configs import RESULT_VERSION, fingerprint, run_folder
from iadd_lab.study.luck import Repeat, repeat_segments
from iadd_lab.study.methods import METHODS, Method
from iadd_lab.study.settings import Setting
from iadd_lab.training.networks import NetworkConfig
from iadd_lab.training.teachers import Teachers, prepare_teachers, train_teacher, train_teachers

_SMALL = 2**20  # bytes of preprocessing that a set beside a table may bring


class Runner(Protocol):
    """Where independent tasks run, when not one after the other in this process."""

    def map(self, function: Callable[..., Any], tasks: Iterable[tuple]) -> Iterator[tuple[int, Any]]:
        """`function(*task)` for each of `tasks`, in any order: its number, and its value or exception."""


def runs_root(given: Path | str = "") -> Path:
    """The folder of runs: the one `given`, else `IADD_RUNS`, else one in the platform's cache folder."""
    return expanded(given) if given else user_folder("IADD_RUNS", "runs")


@dataclass(frozen=True, eq=False)
class Cell:
    """One cell of a table, measured or not to be had.

    Attributes:
        setting: its column.
        method: its row, a key of `METHODS`.
        network: what was evaluated on.
        evaluation: of all networks on all distilled sets; None where the method diverged.
        notes: what must be said beside it.
        diverged: why there is no evaluation; empty where there is one.
    """

    setting: Setting
    method: str
    network: NetworkConfig
    evaluation: Evaluation | None
    notes: tuple[str, ...] = ()
    diverged: str = ""

    @property
    def title(self) -> str:
        """The method's name."""
        return METHODS[self.method].title

    @property
    def competes(self) -> bool:
        """Whether it may be the best of its column."""
        return METHODS[self.method].competes

    @property
    def seeds(self) -> int:
        """How many sets were measured, one for each seed."""
        return METHODS[self.method].seeds(self.setting)

    def origin(self, profile: str) -> str:
        """What stands behind the number, as a table says it."""
        numbers = {"sets": self.seeds, "networks": self.setting.evaluation_networks}
        counts = {name: f"{n} {name if n > 1 else name[:-1]}" for name, n in numbers.items()}
        counted = METHODS[self.method].counted.format(**counts, all=math.prod(numbers.values()))
        return f"{profile} profile, {counted}"


class Study:
    """Computes cells, or reads those that were computed before.

    Args:
        runs_dir: the folder of runs; empty for `runs_root()`.
        how: on which device, how precisely, with what progress; what is computed with less than float32 is
            kept apart. `options` are its fields by name.
        data_root: where data sets lie; None for the usual place.
        runner: where teachers and cells are computed; None for this process. See `notebooks.dask`.

    Raises:
        InputError: nothing can be written in `runs_dir`, or the device is not there.
    """

    def __init__(
        self,
        runs_dir: Path | str = "",
        *,
        how: Execution | None = None,
        data_root: Path | None = None,
        runner: Runner | None = None,
        **options: Any,
    ):
        self.how = Execution.of(how, options)
        self.how.hold()  # before anything is computed
        _ = self.how.place  # refused now, where it is not there
        self.runs = check_folder(runs_root(runs_dir))
        self.data_root, self.runner = data_root and expanded(data_root), runner
        # Part of the name of whatever is computed with less than full precision.
        self._less = () if self.how.precision == "float32" else (self.how.precision,)
        self._data: dict[object, ImageData] = {}
        self._teachers: dict[object, Teachers] = {}

    def data(self, setting: Setting) -> ImageData:
        """The real set, loaded once."""
        config = setting.data()
        if config not in self._data:
            self._data[config] = load_data(config, root=self.data_root, progress=self.how.progress)
        return self._data[config]

    def preprocess(self, setting: Setting) -> Preprocess:
        """The preprocessing that all methods of the setting share, fitted once; trains nothing."""
        return self._prepared(setting).preprocess

    def _prepared(self, setting: Setting) -> Teachers:
        """The folder of the setting's teachers, ready for them."""
        with self.how.environment():
            return prepare_teachers(self.data(setting), setting.teachers(), self._teacher_folder(setting))

    def teachers(self, setting: Setting) -> Teachers:
        """The setting's teachers, trained once for all settings that can share them."""
        known = folder, count = self._teacher_folder(setting), setting.teacher_count
        if known not in self._teachers:
            options = {"count": count, "how": self.how}
            self._teachers[known] = train_teachers(self.data(setting), setting.teachers(), folder, **options)
        return self._teachers[known]

    def _teacher_folder(self, setting: Setting) -> Path:
        # Not the number of teachers: a cell that wants more of them adds to those that are there.
        return self._folder("teachers", self.data(setting).fingerprint, setting.teachers())

    def folder(self, setting: Setting, method: str, *parts: object) -> Path:
        """Where a distilled set lies that depends on `parts` and the real images."""
        name = f"{setting.data_name}-ipc{setting.ipc}-{method}"
        return self._folder(name, self.data(setting).fingerprint, *parts)

    def _folder(self, name: str, *parts: object) -> Path:
        return run_folder(self.runs, name, *parts, *self._less)

    def result(self, setting: Setting, method: str, *, number: int = 0) -> DistillResult:
        """The distilled set `number` by a method of parameter matching, with W."""
        matching = {name: found for name, found in METHODS.items() if found.matching}
        chosen = choose("method of parameter matching", method, matching)
        config = chosen.distillation(setting, number=number)
        data, teachers = self.data(setting), self.teachers(setting)
        folder = self.folder(setting, method, config, teachers.fingerprint)
        return distill(data, teachers, config, folder=folder, how=self.how)

    def sets(self, setting: Setting, method: str, *, number: int = 0) -> list[DistilledSet]:
        """What each of the setting's evaluation networks is trained on, for the distilled set `number`."""
        chosen = choose("method", method, METHODS)
        with self.how.environment():
            if chosen.matching:
                made = [self.result(setting, method, number=number).distilled]
            else:
                made = list(chosen.sets(self, setting, number))
        return made if len(made) > 1 else made * setting.evaluation_networks

    def distilled(self, setting: Setting, method: str, *, number: int = 0) -> DistilledSet:
        """The first of `sets`: the one to look at."""
        return self.sets(setting, method, number=number)[0]

    def evaluate(self, sets: Sequence[DistilledSet], setting: Setting, config: EvaluateConfig) -> Evaluation:
        """The accuracy of one network for each of `sets`, computed once for this content and protocol."""
        data = self.data(setting)
        config = replace(config, augment=data.augmentation(config.augment))
        return evaluate_each(sets, data, config, how=self.how, save_to=self._evaluation(sets, config))

    def _evaluation(self, sets: Sequence[DistilledSet], config: EvaluateConfig) -> Path:
        key = fingerprint(RESULT_VERSION, [made.fingerprint for made in sets], config, *self._less)
        return self.runs / "evaluations" / f"{key}.safetensors"

    def cell(
        self, setting: Setting, method: str, *, network: NetworkConfig | None = None, split: str = "test"
    ) -> Cell:
        """All seeds of one method, evaluated on fresh networks.

        Args:
            setting: the column.
            method: a key of `METHODS`.
            network: what to evaluate on; None is the ConvNet distilled with.
            split: "test", or "validation" to choose anything.

        Raises:
            DivergenceError: a loss is not finite any more.
        """
        chosen, parts = choose("method", method, METHODS), []
        for number in range(chosen.seeds(setting)):
            config = setting.evaluation(network=network, split=split, number=number)
            config = replace(config, epochs=getattr(setting, chosen.epochs))
            parts.append(self.evaluate(self.sets(setting, method, number=number), setting, config))
        confusion = torch.cat([part.confusion for part in parts])  # (seeds * networks, classes, classes)
        known = [part.losses for part in parts if part.losses is not None]
        losses = torch.cat(known) if len(known) == len(parts) else None
        pooled = replace(parts[0], confusion=confusion, losses=losses, method=chosen.title)
        return Cell(setting, method, pooled.config.network, pooled, self._notes(setting))

    def _notes(self, setting: Setting) -> tuple[str, ...]:
        return tuple(filter(None, [self.data(setting).remark]))

    def cells(
        self,
        settings: Iterable[Setting],
        methods: Iterable[str],
        *,
        networks: Iterable[NetworkConfig | None] = (None,),
        split: str = "test",
    ) -> list[Cell]:
        """Every method in every setting on every network, with one bar over all of them.

        A method that a setting does without has no cell. One that diverges has a cell that says so; the
        others are computed all the same.

        Raises:
            InputError: a method is unknown or a data set is missing, before anything is computed.
        """
        require(not isinstance(methods, str), f"methods is {methods!r}; it must be a list like ['iadd'].")
        settings, networks = tuple(settings), tuple(networks)
        chosen = {name: choose("method", name, METHODS) for name in methods}
        self._check(settings, chosen.values())
        columns = [(s, name) for s in settings for name, method in chosen.items() if not method.left_out(s)]
        wanted = [(setting, name, network) for setting, name in columns for network in networks]
        # Not one network after the other, or several workers would wait for one and the same distilled set.
        tasks = sorted(wanted, key=lambda task: networks.index(task[2]))
        computed = self._each(self._attempt, [(*task, split) for task in tasks])
        shown = tqdm(computed, total=len(tasks), unit="cell", disable=not self.how.progress)
        found = {tasks[number]: cell for number, cell in shown}
        return [found[task] for task in wanted]

    def _check(self, settings: Sequence[Setting], methods: Collection[Method]) -> None:
        """Find whatever can be known to be wrong before it costs time, and train what workers share."""
        for setting in settings:
            self.data(setting)
            for method in methods:
                method.check(setting)
            # Before the cells that share them, or workers would wait for one another.
            if self.runner is not None and any(method.needs_teachers for method in methods):
                missing = self._prepared(setting).missing(setting.teacher_count)
                list(self._each(self._train_teacher, [(setting, number) for number in missing]))

    def _attempt(self, setting: Setting, method: str, network: NetworkConfig | None, split: str) -> Cell:
        """The cell, or one that says why it diverged."""
        try:
            return self.cell(setting, method, network=network, split=split)
        except DivergenceError as error:
            place = network or setting.network()
            return Cell(setting, method, place, None, self._notes(setting), str(error))

    def _train_teacher(self, setting: Setting, number: int) -> None:
        train_teacher(self.data(setting), self._prepared(setting), number, how=self.how)

    def _each(self, method: Callable, calls: Sequence[tuple]) -> Iterator[tuple[int, Any]]:
        """What a method of this study gives for each of the calls, here or where the runner computes."""
        computed = self.runner.map(method, calls) if self.runner else enumerate(starmap(method, calls))
        for number, outcome in computed:
            if isinstance(outcome, BaseException):
                raise outcome
            yield number, outcome

    def __reduce__(self) -> tuple:
        """On a worker it is a study of the worker's own, which shows no bars and sends nothing further."""
        root = self.data_root and Path(self.data_root).absolute()
        return _study_of, (self.runs.absolute(), replace(self.how, progress=False), root)

    def repeats(self, setting: Setting, *, count: int, seed: int = 0) -> list[Repeat]:
        """The segments of the setting's first `count` teachers, trained again in another order."""
        teachers, epochs = self.teachers(setting), setting.teacher_epochs
        folder = self._folder("repeats", teachers.fingerprint, epochs, seed)
        drawn = {"start_epochs": setting.max_start_epoch, "epochs": epochs, "count": count, "seed": seed}
        return repeat_segments(teachers, self.data(setting), **drawn, folder=folder, how=self.how)

    def save_sets(self, cells: Iterable[Cell], folder: Path | str, name: str) -> list[Path]:
        """Write the first set of each cell that matches parameters, for `iadd_lab.load`; return the files.

        Each is `folder`/`name`_DATA_ipcN_METHOD.safetensors. An empty `folder` writes nothing. A large
        whitening matrix (38 MB at 32 × 32 pixels in colour) is left out; loading fits it anew.
        """
        paths, kept = [], [cell for cell in cells if cell.evaluation and METHODS[cell.method].matching]
        for cell in kept if folder else ():
            made = self.distilled(cell.setting, cell.method)
            whitening = sum(tensor.nbytes for tensor in preprocess_tensors(made.preprocess).values())
            file = f"{name}_{cell.setting.data_key}_ipc{cell.setting.ipc}_{cell.method}.safetensors"
            paths.append(made.save(Path(folder) / file, refit=whitening > _SMALL))
        return paths

    def snapshots(
        self, setting: Setting, method: str, *, split: str = "test", number: int = 0
    ) -> tuple[list[int], torch.Tensor]:
        """The accuracy of a run's snapshots: their iterations, and (snapshots, networks) in [0, 1].

        No snapshot is chosen by it: the last one is the result.
        """
        result = self.result(setting, method, number=number)
        history, config = result.history, setting.evaluation(split=split, number=number)
        iterations, alphas = list(history.snapshot_iterations), [result.config.alpha, *history.alpha]
        shown = {"desc": f"snapshots of {METHODS[method].title}", "disable": not self.how.progress}
        accuracies = []
        labels = history.snapshot_soft_labels or [None] * len(iterations)
        snapshots = zip(tqdm(iterations, **shown), history.snapshot_images, labels, strict=True)
        for iteration, images, soft in snapshots:
            # Of the rates, the first is that of before the first iteration.
            made = replace(result.distilled, images=images, soft_labels=soft, alpha=alphas[iteration])
            accuracies.append(self.evaluate([made] * config.networks, setting, config).accuracies)
        return iterations, torch.stack(accuracies)


@functools.lru_cache(maxsize=1)
def _study_of(runs: Path, how: Execution, root: Path | None) -> Study:
    """A study on a worker, kept for the next task."""
    return Study(runs, how=how, data_root=root)
