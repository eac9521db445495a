"""The study: a cell of a table is one setting and one method, computed once and kept by what it depends on.

Everything lies under one folder of runs:

- `teachers-…`: trajectories, shared by all cells that are trained on the same data in the same way;
- `<data>-ipc1-<method>-…`: one distilled set, named by a fingerprint of its whole configuration, the real
  images and the teachers' trajectories;
- `evaluations/`: one file for each evaluation, named by the content of the sets and the protocol.

A changed field changes the name, and so does `store.RESULT_VERSION`, which stands for the code that computes:
nothing stale is shown.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import platformdirs
import torch
from tqdm import tqdm

from iadd_lab.baselines.features import match_distributions
from iadd_lab.baselines.gradients import match_gradients
from iadd_lab.baselines.real_images import herding, random_draws, whole_set
from iadd_lab.data.augment import AugmentConfig
from iadd_lab.data.cluster import IN_PROCESS, Engine, Report, named_engine
from iadd_lab.data.distilled import DistilledSet
from iadd_lab.data.preprocess import Preprocess, preprocess_fingerprint, preprocess_tensors
from iadd_lab.data.sets import ImageData, load_data
from iadd_lab.device import MODES, PRECISIONS, pick_device, set_precision
from iadd_lab.distillation.loop import distill
from iadd_lab.distillation.result import DistillResult
from iadd_lab.errors import DivergenceError, check_whole, choose, require
from iadd_lab.evaluation.protocol import UNLEARNED, EvaluateConfig, Evaluation, evaluate_each
from iadd_lab.store.artefacts import check_folder
from iadd_lab.store.configs import RESULT_VERSION, fingerprint, run_folder
from iadd_lab.study.luck import Repeat, repeat_segments
from iadd_lab.study.settings import MATCHING_OF, Setting
from iadd_lab.training.networks import NetworkConfig
from iadd_lab.training.teachers import Teachers, prepare_teachers, train_teachers

_SMALL = 2**20  # bytes of preprocessing that a set beside a table may bring
_THREADS = torch.get_num_threads()  # PyTorch's own choice, before any study changed it


def runs_root(given: Path | str = "") -> Path:
    """The folder of runs: the one `given`, else `IADD_RUNS`, else one in the platform's cache folder."""
    chosen = given or os.environ.get("IADD_RUNS")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("iadd-lab") / "runs"


@dataclass(frozen=True)
class Method:
    """One row of a table.

    Attributes:
        title: its name in tables and pictures, as published tables have it.
        sets: makes what the networks of one evaluation are trained on: one set for all, or one for each.
        competes: whether it may be the best of its column; the whole training set does not.
        counted: what stands behind a number, with {sets} and {networks} of each to fill in.
        epochs: the field of a setting that says how long networks train on it.
        iterations: the field of a setting that is None where the method is left out; "" for none.
        teacher_each: whether every set takes a teacher of its own.
        needs_teachers: whether its sets are made with teachers.
        seeded: whether another seed makes another set; where it does not, one set stands for all.
    """

    title: str
    sets: Callable[[Study, Setting, int], Sequence[DistilledSet]]
    competes: bool = True
    counted: str = "{sets} × {networks}"
    epochs: str = "evaluation_epochs"
    iterations: str = ""
    teacher_each: bool = False
    needs_teachers: bool = False
    seeded: bool = True

    def seeds(self, setting: Setting) -> int:
        """How many sets a cell of the setting is measured on."""
        return setting.seeds if self.seeded else 1

    def left_out(self, setting: Setting) -> bool:
        """Whether the setting does without this method."""
        return bool(self.iterations) and getattr(setting, self.iterations) is None

    def check(self, setting: Setting) -> None:
        """Raise an `InputError` unless the setting has what the method needs."""
        require(
            not self.teacher_each or setting.seeds <= setting.teacher_count,
            f"seeds is {setting.seeds}, but {self.title} takes another teacher for each set, and "
            f"teacher_count is {setting.teacher_count}: lower seeds, or raise teacher_count.",
        )


@dataclass(frozen=True, eq=False)
class Cell:
    """One measured cell of a table."""

    setting: Setting
    method: str  # a key of `METHODS`
    network: NetworkConfig
    evaluation: Evaluation  # of all networks on all distilled sets

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
        sets, networks = self.seeds, self.setting.evaluation_networks
        counts = {
            "sets": _several(sets, "set"),
            "networks": _several(networks, "network"),
            "all": sets * networks,
        }
        return f"{profile} profile, {METHODS[self.method].counted.format(**counts)}"


def _training_rate(setting: Setting) -> str:
    if setting.evaluation_rate is None:
        return "at the learned α on sets of MTT, DDPP and IADD, at 0.01 on the others"
    return f"at {setting.evaluation_rate:g}"


def _left_out(setting: Setting) -> list[str]:
    return [method.title for method in METHODS.values() if method.left_out(setting)]


def _several(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


class Study:
    """Computes cells, or reads those that were computed before.

    Args:
        runs_dir: the folder of runs; empty for `runs_root()`.
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: inside products: "float32", "tf32" or "bf16"; what is made with less than float32 is kept
            apart. See `iadd_lab.device.set_precision`.
        compile: "auto", "always" or "never"; see `iadd_lab.training.fast.compiling`.
        threads: of PyTorch on the CPU; 0 leaves its own choice. The smallest networks run fastest on one.
        data_root: where data sets lie; None for the usual place.
        progress: whether to show progress bars.
        engine: where teachers, cells and evaluation networks are computed; None for the cluster that
            `$IADD_CLUSTER` names, if any, else this process. See `iadd_lab.data.cluster`.

    Raises:
        InputError: nothing can be written in `runs_dir`, or the device is not there.
    """

    def __init__(
        self,
        runs_dir: Path | str = "",
        *,
        device: str = "auto",
        precision: str = "float32",
        compile: str = "auto",
        threads: int = 0,
        data_root: Path | None = None,
        progress: bool = True,
        engine: Engine | None = None,
    ):
        check_whole("threads", threads, minimum=0)
        self.runs = check_folder(runs_root(runs_dir))
        self.device = pick_device(device)
        choose("precision", precision, PRECISIONS)
        self.precision = precision
        # Part of the name of whatever is computed with less than full precision.
        self._less = () if precision == "float32" else (precision,)
        self.compile = choose("compile", compile, {mode: mode for mode in MODES})
        self.data_root = data_root
        self.progress = progress
        self.engine = engine or named_engine()
        self.threads = threads
        torch.set_num_threads(threads or _THREADS)
        self._data: dict[object, ImageData] = {}
        self._teachers: dict[object, Teachers] = {}
        self._diverged: dict[tuple[Setting, str, NetworkConfig], str] = {}
        self._unfitted: dict[tuple[Setting, str, NetworkConfig], Evaluation] = {}

    def data(self, setting: Setting) -> ImageData:
        """The real set, loaded once."""
        config = setting.data()
        if config not in self._data:
            self._data[config] = load_data(config, root=self.data_root, progress=self.progress)
        return self._data[config]

    def notes(self, settings: Iterable[Setting]) -> tuple[str, ...]:
        """What must be said below a table of these settings' cells: its ±, how networks train, the images."""
        settings = tuple(settings)
        epochs = " or ".join(str(n) for n in dict.fromkeys(s.evaluation_epochs for s in settings))
        rates = " or ".join(dict.fromkeys(_training_rate(s) for s in settings))
        remarks = dict.fromkeys(remark for s in settings if (remark := self.data(s).remark))
        return (
            "± is the sample standard deviation over all networks of all sets; the sets of a column share "
            "their teachers. Methods compare in pairs, seed by seed, not by it.",
            f"Networks train for {epochs} epochs: {rates}.",
            *self._unlearned(settings),
            *remarks,
            *(f"Left out of {s.title}: {', '.join(names)}." for s in settings if (names := _left_out(s))),
            *(
                f"{METHODS[method].title} diverged ({setting.title}, {network.title}): {reason}"
                for (setting, method, network), reason in self._diverged.items()
                if setting in settings
            ),
        )

    def _unlearned(self, settings: tuple[Setting, ...]) -> list[str]:
        """At most one note: which networks had not learned their sets, by place."""
        places: dict[tuple[Setting, NetworkConfig], list[str]] = {}
        for (setting, method, network), found in self._unfitted.items():
            if setting in settings:
                share = f"{METHODS[method].title} {found.unfitted} of {len(found.confusion)}"
                places.setdefault((setting, network), []).append(share)
        named = "; ".join(
            f"{setting.title}, {network.title}: {', '.join(shares)}"
            for (setting, network), shares in places.items()
        )
        note = f"Networks that {UNLEARNED}, so that their numbers tell of speed and luck: {named}."
        return [note] if places else []

    def preprocess(self, setting: Setting) -> Preprocess:
        """The preprocessing that all methods of the setting share, fitted once; trains nothing."""
        data, folder = self.data(setting), self._teacher_folder(setting)
        return prepare_teachers(data, setting.teachers(), folder).preprocess

    def teachers(self, setting: Setting) -> Teachers:
        """The setting's teachers, trained once for all settings that can share them."""
        data, folder = self.data(setting), self._teacher_folder(setting)
        key = folder, setting.teacher_count
        if key not in self._teachers:
            set_precision(self.precision)  # of the whole process, which may have other studies
            self._teachers[key] = train_teachers(
                data,
                setting.teachers(),
                folder,
                count=setting.teacher_count,
                device=self.device,
                compile=self.compile,
                progress=self.progress,
                engine=self.engine,
            )
        return self._teachers[key]

    def _teacher_folder(self, setting: Setting) -> Path:
        # Not the number of teachers: a cell that wants more of them adds to those that are there.
        images = self.data(setting).fingerprint
        return run_folder(self.runs, "teachers", images, setting.teachers(), *self._less)

    def result(self, setting: Setting, method: str, *, number: int = 0) -> DistillResult:
        """The distilled set `number` by a method of parameter matching (a key of `MATCHING_OF`), with W."""
        config = setting.distillation(method, number=number)
        data, teachers = self.data(setting), self.teachers(setting)
        folder = self.folder(setting, method, config, teachers.fingerprint)
        set_precision(self.precision)
        return distill(
            data,
            teachers,
            config,
            folder=folder,
            device=self.device,
            compile=self.compile,
            progress=self.progress,
        )

    def folder(self, setting: Setting, method: str, *parts: object) -> Path:
        """Where a distilled set lies that depends on `parts` and the real images."""
        name = f"{setting.data_name}-ipc{setting.ipc}-{method}"
        return run_folder(self.runs, name, self.data(setting).fingerprint, *parts, *self._less)

    def sets(self, setting: Setting, method: str, *, number: int = 0) -> list[DistilledSet]:
        """What each of the setting's evaluation networks is trained on, for the distilled set `number`."""
        set_precision(self.precision)
        made = list(choose("method", method, METHODS).sets(self, setting, number))
        return made if len(made) > 1 else made * setting.evaluation_networks

    def distilled(self, setting: Setting, method: str, *, number: int = 0) -> DistilledSet:
        """The first of `sets`: the one to look at."""
        return self.sets(setting, method, number=number)[0]

    def evaluate(self, sets: Sequence[DistilledSet], setting: Setting, config: EvaluateConfig) -> Evaluation:
        """The accuracy of one network for each of `sets`, computed once for this content and protocol."""
        data = self.data(setting)
        config = replace(config, augment=data.augmentation(config.augment))
        key = fingerprint(RESULT_VERSION, [made.fingerprint for made in sets], config, *self._less)
        path = self.runs / "evaluations" / f"{key}.safetensors"
        set_precision(self.precision)
        return evaluate_each(
            sets,
            data,
            config,
            device=self.device,
            compile=self.compile,
            progress=self.progress,
            save_to=path,
            engine=self.engine,
        )

    def cell(
        self,
        setting: Setting,
        method: str,
        *,
        network: NetworkConfig | None = None,
        split: str = "test",
    ) -> Cell:
        """All seeds of one method, evaluated on fresh networks.

        Args:
            setting: the column.
            method: a key of `METHODS`.
            network: what to evaluate on; None is the ConvNet distilled with.
            split: "test", or "validation" to choose anything.
        """
        parts = []
        for number in range(METHODS[method].seeds(setting)):
            config = setting.evaluation(network=network, split=split, number=number)
            config = replace(config, epochs=getattr(setting, METHODS[method].epochs))
            parts.append(self.evaluate(self.sets(setting, method, number=number), setting, config))
        confusion = torch.cat([part.confusion for part in parts])  # (seeds * networks, classes, classes)
        known = [part.losses for part in parts if part.losses is not None]
        losses = torch.cat(known) if len(known) == len(parts) else None
        pooled = replace(parts[0], confusion=confusion, losses=losses, method=METHODS[method].title)
        return Cell(setting, method, pooled.config.network, pooled)

    def cells(
        self,
        settings: Iterable[Setting],
        methods: Iterable[str],
        *,
        networks: Iterable[NetworkConfig | None] = (None,),
        split: str = "test",
    ) -> list[Cell]:
        """Every method in every setting on every network, with one bar over all of them.

        A run that diverges is left out, and `notes` says so: the other cells are shown all the same. So is a
        method that a setting does without.

        Raises:
            InputError: a method is unknown or a data set is missing, before anything is computed.
        """
        require(
            not isinstance(methods, str), f"methods is {methods!r}; it must be a list, as in ['mtt', 'iadd']."
        )
        settings, methods, networks = tuple(settings), tuple(methods), tuple(networks)
        chosen = [choose("method", method, METHODS) for method in methods]
        for setting in settings:
            self.data(setting)
            for method in chosen:
                method.check(setting)
        self._teach(settings, methods)
        columns = [(s, m) for s in settings for m in methods if not METHODS[m].left_out(s)]
        wanted = [(setting, method, network) for setting, method in columns for network in networks]
        # Not one after the other, or several workers would wait for one and the same distilled set.
        tasks = sorted(wanted, key=lambda cell: networks.index(cell[2]))
        here = self.engine.share(lambda: self, _study_of, self._options())
        arguments = [(here, *task, split) for task in tasks]
        cells = {}
        with tqdm(total=len(tasks), unit="cell", disable=not self.progress) as bar:
            for outcome in self.engine.run(_compute_cell, arguments, bar=bar, expected=(DivergenceError,)):
                setting, method, network = tasks[outcome.number]
                cell = setting, method, network or setting.network()
                if outcome.error is None:
                    cells[tasks[outcome.number]] = outcome.value
                    self._diverged.pop(cell, None)
                    self._remember(cell, outcome.value)
                else:
                    self._diverged[cell] = str(outcome.error)
        return [cells[task] for task in wanted if task in cells]

    def _remember(self, key: tuple[Setting, str, NetworkConfig], cell: Cell) -> None:
        """Keep for `notes` that networks had not learned their set; few epochs on the whole one are meant."""
        self._unfitted.pop(key, None)
        if cell.competes and cell.evaluation.unfitted:
            self._unfitted[key] = cell.evaluation

    def repeats(self, setting: Setting, *, count: int, seed: int = 0) -> list[Repeat]:
        """The segments of the setting's first `count` teachers, trained again in another order."""
        teachers, epochs = self.teachers(setting), setting.teacher_epochs
        set_precision(self.precision)
        return repeat_segments(
            teachers,
            self.data(setting),
            start_epochs=setting.max_start_epoch,
            epochs=epochs,
            count=count,
            seed=seed,
            folder=run_folder(self.runs, "repeats", teachers.fingerprint, epochs, seed, *self._less),
            device=self.device,
            compile=self.compile,
            progress=self.progress,
        )

    def save_sets(self, cells: Iterable[Cell], folder: Path | str, name: str) -> list[Path]:
        """Write the first set of each cell that matches parameters, for `iadd_lab.load`; return the files.

        Each is `folder`/`name`_DATA_ipcN_METHOD.safetensors. An empty `folder` writes nothing. A large
        whitening matrix (38 MB at 32 × 32 pixels in colour) is left out; loading fits it anew.
        """
        paths = []
        for cell in cells:
            if folder and cell.method in MATCHING_OF:
                setting = cell.setting
                made = self.distilled(setting, cell.method)
                whitening = sum(tensor.nbytes for tensor in preprocess_tensors(made.preprocess).values())
                file = f"{name}_{setting.data_key}_ipc{setting.ipc}_{cell.method}.safetensors"
                paths.append(made.save(Path(folder) / file, refit=whitening > _SMALL))
        return paths

    def _teach(self, settings: Sequence[Setting], methods: Sequence[str]) -> None:
        """Train teachers before the cells that share them, or workers would wait for one another."""
        if self.engine.workers > 1 and any(METHODS[method].needs_teachers for method in methods):
            for setting in settings:
                self.teachers(setting)

    def _options(self) -> Options:
        root = str(Path(self.data_root).absolute()) if self.data_root is not None else None
        runs = str(self.runs.absolute())
        return Options(runs, str(self.device), self.precision, self.compile, self.threads, root)

    def snapshots(
        self, setting: Setting, method: str, *, split: str = "test", number: int = 0
    ) -> tuple[list[int], torch.Tensor]:
        """The accuracy of a run's snapshots: their iterations, and (snapshots, networks) in [0, 1].

        No snapshot is chosen by it: the last one is the result.
        """
        result = self.result(setting, method, number=number)
        history, config = result.history, setting.evaluation(split=split, number=number)
        alphas = [result.config.alpha, *history.alpha]  # before the first iteration, and after each
        accuracies = []
        moments = zip(history.snapshot_iterations, history.snapshot_images, strict=True)
        for iteration, images in tqdm(
            list(moments), desc=f"snapshots of {METHODS[method].title}", disable=not self.progress
        ):
            made = replace(result.distilled, images=images, alpha=alphas[iteration])
            accuracies.append(self.evaluate([made] * config.networks, setting, config).accuracies)
        return list(history.snapshot_iterations), torch.stack(accuracies)


@dataclass(frozen=True)
class Options:
    """A study as a worker is told it."""

    runs: str
    device: str
    precision: str
    compile: str
    threads: int
    data_root: str | None


def _study_of(options: Options) -> Study:
    """A study on a worker, whose own tasks run there."""
    return Study(
        options.runs,
        device=options.device,
        precision=options.precision,
        compile=options.compile,
        threads=options.threads or torch.get_num_threads(),
        data_root=Path(options.data_root) if options.data_root else None,
        progress=False,
        engine=IN_PROCESS,
    )


def _compute_cell(
    study: Study, setting: Setting, method: str, network: NetworkConfig | None, split: str, *, report: Report
) -> Cell:
    report(0, cell=f"{setting.title}, {METHODS[method].title}")
    cell = study.cell(setting, method, network=network, split=split)
    report(1)
    return cell


def _random(study: Study, setting: Setting, number: int) -> list[DistilledSet]:
    # Another draw for each network: the spread covers the choice as well.
    return random_draws(
        study.data(setting),
        study.preprocess(setting),
        ipc=setting.ipc,
        count=setting.evaluation_networks,
        seed=setting.seed + number,
    )


def _herding(study: Study, setting: Setting, number: int) -> list[DistilledSet]:
    teachers = study.teachers(setting)
    # The features of another teacher for every seed: nothing else about it is random.
    return [herding(study.data(setting), teachers, ipc=setting.ipc, teacher=number, device=study.device)]


def _whole(study: Study, setting: Setting, number: int) -> list[DistilledSet]:
    return [whole_set(study.data(setting), study.preprocess(setting))]


def _gradients(method: str, augment: AugmentConfig | None) -> Callable:
    def sets(study: Study, setting: Setting, number: int) -> list[DistilledSet]:
        return [
            _described(
                study, setting, method, match_gradients, setting.gradient_matching(augment, number=number)
            )
        ]

    return sets


def _distributions(study: Study, setting: Setting, number: int) -> list[DistilledSet]:
    config = setting.distribution_matching(number=number)
    return [_described(study, setting, "dm", match_distributions, config)]


def _described(study: Study, setting: Setting, method: str, make: Callable, config: object) -> DistilledSet:
    """A set that `make` distils on networks of its own, without teachers."""
    data, preprocess, network = study.data(setting), study.preprocess(setting), setting.network()
    folder = study.folder(setting, method, config, network, preprocess_fingerprint(preprocess))
    return make(
        data,
        preprocess,
        network,
        config,
        folder=folder,
        device=study.device,
        progress=study.progress,
    )


def parameter_matching(method: str) -> Callable[[Study, Setting, int], list[DistilledSet]]:
    """What makes the sets of a `Method` that matches parameters: `method` is a key of `MATCHING_OF`."""

    def sets(study: Study, setting: Setting, number: int) -> list[DistilledSet]:
        return [study.result(setting, method, number=number).distilled]

    return sets


METHODS: dict[str, Method] = {
    "random": Method("Random", _random, counted="{all} draws, a network on each"),
    "herding": Method("Herding", _herding, teacher_each=True, needs_teachers=True),
    "dc": Method(
        "DC", _gradients("dc", AugmentConfig(operations=())), iterations="gradient_matching_iterations"
    ),
    "dsa": Method("DSA", _gradients("dsa", None), iterations="gradient_matching_iterations"),
    "dm": Method("DM", _distributions, iterations="distribution_matching_iterations"),
    "mtt": Method("MTT", parameter_matching("mtt"), needs_teachers=True),
    "ddpp": Method("DDPP", parameter_matching("ddpp"), needs_teachers=True),
    "iadd": Method("IADD", parameter_matching("iadd"), needs_teachers=True),
    "iadd_literal": Method("IADD, literal loss", parameter_matching("iadd_literal"), needs_teachers=True),
    "iadd_tensor": Method("IADD, per tensor", parameter_matching("iadd_tensor"), needs_teachers=True),
    "iadd_frozen": Method("IADD, frozen half-way", parameter_matching("iadd_frozen"), needs_teachers=True),
    "iadd_late": Method("IADD, learned from half-way", parameter_matching("iadd_late"), needs_teachers=True),
    "iadd_slow": Method("IADD, a tenth of the rate", parameter_matching("iadd_slow"), needs_teachers=True),
    "iadd_fast": Method("IADD, ten times the rate", parameter_matching("iadd_fast"), needs_teachers=True),
    "iadd_band": Method(
        "IADD, ten times the rate, within 1.5", parameter_matching("iadd_band"), needs_teachers=True
    ),
    "iadd_ascent": Method("IADD, ascent", parameter_matching("iadd_ascent"), needs_teachers=True),
    "iadd_within": Method("IADD, within tensors", parameter_matching("iadd_within"), needs_teachers=True),
    "whole": Method(
        "Whole",
        _whole,
        competes=False,
        counted="{networks}, own number of epochs",
        epochs="whole_epochs",
        seeded=False,
    ),
}
