"""Distil a data set into a few images per class by matching network parameters, each with its own importance
(IADD, arXiv 2401.15863).

The usual order: teach, distill, evaluate. Data sets are looked for under $IADD_DATA.
"""

# One function per command. What `--help` shows are docstrings: the one above, those of the commands, and the
# `Args:` of the configurations that the commands fill.
# ruff: noqa: B008 (the configurations are frozen: they are safe as defaults)

import json as jsons
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import torch
from cyclopts import App, ArgumentCollection, CycloptsError, Group, Parameter
from tqdm import tqdm

import iadd_lab as lab
from iadd_lab import (
    DATASETS,
    EXPORTS,
    MATCHINGS,
    NETWORKS,
    PARAMETRISATIONS,
    DataConfig,
    Execution,
    ImageData,
    NetworkConfig,
)
from iadd_lab.data import sets
from iadd_lab.data.distilled import KIND, made_by
from iadd_lab.data.mtt_format import FITS, RATES, has_companion
from iadd_lab.data.sampling import check_class_sizes
from iadd_lab.errors import choose, require
from iadd_lab.evaluation.export import CARD, reread
from iadd_lab.evaluation.fair import check_fair
from iadd_lab.evaluation.protocol import doubts
from iadd_lab.evaluation.training_set import FILE, set_file
from iadd_lab.ranks import joined, local_device
from iadd_lab.store.artefacts import check_folder, read_metadata, save_text, unpacking
from iadd_lab.store.configs import RESULT_VERSION, fingerprint
from iadd_lab.store.runs import Criteria, Stored, prune, stored
from iadd_lab.study import own_data
from iadd_lab.study.bench import VARIANTS, BenchConfig, measure
from iadd_lab.study.study import runs_root
from iadd_lab.training.replay_buffers import import_replay_buffers
from iadd_lab.training.teachers import prepare_teachers, train_teacher


def only_numbers(arguments: ArgumentCollection) -> None:
    """Refuse 1.5 where a whole number is expected, which cyclopts would round, and nan and inf."""
    for argument in arguments:
        kind = re.search(r"\bint\b|\bfloat\b", str(argument.hint))
        for token in argument.tokens if kind else ():
            what, form = _NUMBERS[kind[0]]
            fits = re.fullmatch(form, token.value, flags=re.IGNORECASE) is not None
            require(fits, f"{token.keyword} is {token.value!r}; it must be a {what} number.")


def note_given(arguments: ArgumentCollection) -> None:
    """Remember the fields and options that were given: --suggest and --method leave them as they are."""
    given = [argument for argument in arguments if argument.tokens]
    _GIVEN.clear()
    _GIVEN.update(one.keys[-1] if one.keys else one.field_info.name for one in given)


def only_imported(arguments: ArgumentCollection) -> None:
    """Refuse what would be ignored beside --import-buffers, or stored as how others trained."""
    given = {argument.name for argument in arguments if argument.tokens}
    idle = ", ".join(f"--{name}" for name in _ONLY_TRAINING.split() if f"--{name}" in given)
    sentence = "would do nothing beside --import-buffers, which trains no teachers: leave it out."
    require("--import-buffers" not in given or not idle, f"{idle} {sentence}")


_GIVEN: set[str] = set()
_NUMBERS = {"int": ("whole", r"[+-]?\d+|none"), "float": ("finite", r"[+-]?[\d.]+(e[+-]?\d+)?|none")}
_ONLY_TRAINING = "teachers epochs rate batch momentum weight-decay augment seed compile cluster suggest"

app = App(
    name="iadd-lab",
    version=lab.__version__,
    help=__doc__,
    # Of an option given twice, the last one counts; of a list, all.
    default_parameter=Parameter(allow_repeating=True, negative_iterable=()),
    group_parameters=Group("Options", validator=(only_numbers, note_given)),
    suppress_keyboard_interrupt=False,
)
app.command(data_app := App(name="data", help="List, fetch and check data sets."))
app.command(runs_app := App(name="runs", help="List what is stored in a folder of runs, and delete of it."))

_REGISTRIES = {"data_sets": DATASETS, "networks": NETWORKS, "matchings": MATCHINGS, "formats": EXPORTS}
_REGISTRIES |= {"parametrisations": PARAMETRISATIONS, "presets": lab.PRESETS}
_REGISTRIES |= {"fits": FITS, "rates": RATES, "engines": VARIANTS}
_CHOICES = {name: ", ".join(registry) for name, registry in _REGISTRIES.items()}


def command(group: App, **options: Any) -> Callable[[Callable], Callable]:
    """A command of `group`; names in braces in its docstring stand for the choices that there are."""

    def add(function: Callable) -> Callable:
        function.__doc__ = (function.__doc__ or "").format(**_CHOICES)
        return group.command(function, **options)

    return add


def options_of(*left_out: str, **names: str) -> Parameter:
    """The fields of a configuration as options of their own, but for some; `names` gives others to some."""
    return Parameter(
        name="*",
        parse=re.compile(rf"^(?!({'|'.join(left_out)})$)"),
        name_transform=lambda field: names.get(field, field.replace("_", "-")),
    )


_CHOSEN = ("matching", "parametrisation", "augment")  # fields that have options of their own
_UNASKED = ("progress", "checkpoint_seconds", "instructions")
How = Annotated[Execution, options_of(*_UNASKED, "cuda_graphs")]
Student = Annotated[Execution, options_of(*_UNASKED)]
DataRoot = Annotated[Path | None, Parameter(help="where the data lies; $IADD_DATA if not given.")]
Cluster = Annotated[str | None, Parameter(help="tasks run on Dask: local[:WORKERS] or tcp://HOST:PORT.")]
RunsFolder = Annotated[Path | None, Parameter(help="folder of runs ($IADD_RUNS, or in the cache folder).")]
Suggest = Annotated[bool, Parameter(help="settings that fit the data's size, but for those given.")]
_PAIRS = ("--parameter", "-p")
_ROOT = "data_root.json"  # in a folder of teachers or of a set: where the images lie that it was made from


@command(data_app, name="list")
def data_list(*, data_root: DataRoot = None) -> None:
    """Show every data set and where it was found."""
    for name, spec in DATASETS.items():
        place = "part of scikit-learn" if name == "digits" else sets.locate(name, root=data_root)
        print(f"{name:14} {spec.size or '':>4} px  {spec.title:32} {place or 'not found'}")
    print(f"\nLooked under {data_root or sets.data_root()} (set IADD_DATA to change it).")


@command(data_app, name="fetch")
def data_fetch(name: str, /, *, data_root: DataRoot = None) -> None:
    """Download a data set (the only command that uses the network).

    Args:
        name: one of {data_sets}; or torchvision:NAME.
    """
    print(f"{name} lies in {sets.fetch_data(name, root=data_root)}")


@command(data_app, name="check")
def data_check(
    name: str,
    /,
    *,
    data_root: DataRoot = None,
    size: int | None = None,
    seed: int = DataConfig.seed,
    bad_images: str = DataConfig.bad_images,
    seen_test_images: str = DataConfig.seen_test_images,
    groups: str | None = None,
    range: tuple[float, float] | None = None,
    layout: str | None = None,
    classes: tuple[str, ...] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
) -> None:
    """Load a data set in full and show what is in it.

    Args:
        name: one of {data_sets}; torchvision:NAME; or a path: a folder, an archive, .npz, a table, Parquet.
        size: side in pixels (the set's own).
        seed: of the validation split.
        bad_images: damaged image files: refuse or skip.
        seen_test_images: test images that are training images too: keep or drop.
        groups: what stays together in test and validation images: a column, a CSV file in the folder with
            rows of file and group, or a regular expression on the files' names.
        range: black and white in arrays.
        layout: of arrays: channels_first or channels_last.
        classes: their names in the order of their labels; one each time.
        image_column: column or array of the pictures.
        label_column: column or array of the classes.
        split_column: column of the parts.
    """
    started, given = time.perf_counter(), {"seen_test_images": seen_test_images, "groups": groups}
    given |= {"range": range, "layout": layout, "classes": classes, "image_column": image_column}
    given |= {"label_column": label_column, "split_column": split_column}
    data = lab.load_data(name, root=data_root, size=size, seed=seed, bad_images=bad_images, **given)
    shape, seconds = " × ".join(map(str, data.train.images.shape[1:])), time.perf_counter() - started
    print(f"{name}: {shape}, read in {seconds:.1f} s, fingerprint {data.fingerprint}")
    print(own_data.class_table(data))
    if data.remark:
        print(f"Note: {data.remark}")


@command(app, group_parameters=Group("Options", validator=(only_numbers, note_given, only_imported)))
def teach(
    *,
    data: Annotated[DataConfig, options_of(name="data", seed="data-seed")],
    out: Path,
    teachers: int = 5,
    config: Annotated[lab.TeacherConfig, options_of("network", "augment")] = lab.TeacherConfig(),
    network: Annotated[
        NetworkConfig, options_of("function", "fingerprint", name="network")
    ] = NetworkConfig(),
    augment: str | None = None,
    how: How = Execution(),
    data_root: DataRoot = None,
    import_buffers: list[Path] | None = None,
    cluster: Cluster = None,
    suggest: Suggest = False,
) -> None:
    """Train teachers on the real set and store their trajectories.

    Interrupted, it goes on with the first missing teacher when run again.

    Args:
        data.name: the data set: {data_sets}; torchvision:NAME; or a path: a folder, an archive, .npz, a
            table, Parquet.
        data.seed: of the validation split.
        out: folder of the teachers.
        teachers: how many; more can join later.
        network.name: one of {networks}, or torchvision:NAME or timm:NAME for one of theirs.
        network.width: filters per block of the ConvNet (128).
        network.depth: blocks of the ConvNet (by image size).
        augment: operations of differentiable siamese augmentation, comma-separated, or 'none' (those of the
            real set).
        import_buffers: convert others' replay_buffer_N.pt, or all in a folder, instead of training; may be
            repeated.
    """
    lab.pick_device(how.device)  # refused before images are read
    check_folder(out)
    config = replace(config, network=network, augment=_augment(augment))
    data, data_root = sets.settle(data, data_root)
    data_root = _known_root(data_root, out)
    own = data.name in ("image_folder", sets.FILES) and data.size is None
    if suggest and own and data_root and data_root.is_dir():
        data = replace(data, size=own_data.suggest_size(data_root))
    images = lab.load_data(data, root=data_root)
    _note_root(data_root, out)
    if suggest:
        config = _suggested("teachers", config, images)
    if import_buffers:
        trained = import_replay_buffers(import_buffers, images, config, out, how=how)
    else:
        if cluster:
            given = prepare_teachers(images, config, out.absolute())
            train = partial(train_teacher, teachers=given, how=replace(how, progress=False))
            _computed([partial(train, index=n) for n in given.missing(teachers)], images, data_root, cluster)
        trained = lab.train_teachers(images, config, out, count=teachers, how=how)
    accuracies = [trained.history(n).get("validation_accuracy") for n in range(len(trained))]
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    note = f", {100 * fmean(known):.1f} % mean validation accuracy" if known else ""
    print(f"{len(trained)} teachers of {trained.config.epochs} epochs{note}, in {out}")


def _suggested(part: str, config: Any, images: ImageData) -> Any:
    """What is suggested for the images, but for what was given."""
    own = getattr(own_data.suggest(images, mirror=False, seed=config.seed), part)
    usual = vars(type(config)())
    given = {name: value for name, value in vars(config).items() if name in _GIVEN or value != usual[name]}
    chosen = replace(own, **given)
    print(f"suggested: {chosen}")
    return chosen


def _known_root(given: Path | None, folder: Path) -> Path | None:
    """Where the data lie: as given, or as an earlier command noted in `folder`."""
    noted = folder / _ROOT
    if given is None and noted.is_file():
        with unpacking(noted):
            return Path(jsons.loads(noted.read_text(encoding="utf-8")))
    return given


def _note_root(root: Path | None, folder: Path) -> None:
    if root is not None:
        save_text(folder / _ROOT, jsons.dumps(str(root.expanduser().absolute())))


def _computed(parts: Sequence[Callable], images: ImageData, root: Path | None, cluster: str | None) -> list:
    """What each of the parts makes of the images, here or on a cluster's workers, which load them anew."""
    if not cluster:
        return [part(images) for part in parts]
    from iadd_lab.notebooks.dask import open_runner

    tasks, made = [(images.config, root and root.absolute(), part) for part in parts], {}
    with open_runner(cluster) as runner:
        for number, outcome in tqdm(runner.map(_computed_there, tasks), f"on {cluster}", len(tasks)):
            if isinstance(outcome, BaseException):
                raise outcome
            made[number] = outcome
    return [made[number] for number in range(len(tasks))]


def _computed_there(data: DataConfig, root: Path | None, part: Callable) -> Any:
    return part(lab.load_data(data, root=root, progress=False))


@command(app)
def distill(
    *,
    teachers: Path,
    out: Path,
    method: str | None = None,
    matching: str = lab.Learned.name,
    learned: Annotated[lab.Learned | None, options_of("normalised", rate="weight-rate")] = None,
    literal: bool = False,
    pruned: Annotated[lab.Pruned | None, options_of(fraction="prune")] = None,
    parametrisation: str = lab.Pixels.name,
    formation: Annotated[lab.MultiFormation | None, options_of()] = None,
    config: Annotated[lab.DistillConfig, options_of(*_CHOSEN)] = lab.DistillConfig(),
    augment: str | None = None,
    how: Student = Execution(),
    data_root: DataRoot = None,
    data: str | None = None,
    network: str | None = None,
    preprocess: str | None = None,
    tensorboard: Path | None = None,
    suggest: Suggest = False,
) -> None:
    """Distil the teachers' data set; goes on from its checkpoint when run again after an interruption.

    Several processes share the segments: torchrun --nproc-per-node N -m iadd_lab distill ...

    Args:
        teachers: folder of the teachers.
        out: folder of the result.
        method: options of a published method, but for those given: one of {presets}.
        matching: one of {matchings}.
        literal: the paper's unnormalised loss, whose trivial minimiser is W = 0.
        pruned.fraction: share of the parameters to drop.
        parametrisation: how images are stored, one of {parametrisations}.
        augment: operations of differentiable siamese augmentation, comma-separated, or 'none' (those of the
            real set).
        data: require teachers of this data set.
        network: require teachers of this network.
        preprocess: require teachers with this preprocessing.
        tensorboard: folder for TensorBoard: the curves, images and W while it runs.
    """
    how = replace(how, device=local_device(how.device))
    place = lab.pick_device(how.device)
    check_folder(out)
    matching, parametrisation, own = _of_method(method, matching, parametrisation)
    if literal:
        learned = replace(learned or lab.Learned(), normalised=False)
    chosen = _chosen("matching", matching, MATCHINGS, learned, pruned)
    form = _chosen("parametrisation", parametrisation, PARAMETRISATIONS, formation)
    trained = lab.open_teachers(teachers)
    _require_teachers(trained, {"data": data, "network": network, "preprocess": preprocess})
    config = replace(config, matching=chosen, parametrisation=form, augment=_augment(augment), **own)
    data_root = _known_root(data_root, teachers)
    if suggest:
        config = _suggested("distillation", config, lab.load_data(trained.data, root=data_root))
    stored = {"ipc": config.ipc, "parametrisation": form}
    watched = partial(lab.TensorBoard, tensorboard, trained.preprocess, **stored)
    with joined(place) as ranks, watched() if tensorboard and ranks.first else nullcontext() as watch:
        images = lab.load_data(trained.data, root=data_root, progress=ranks.first)
        folder = out if ranks.first else None
        result = lab.distill(images, trained, config, folder=folder, how=how, on_iteration=watch, ranks=ranks)
        if watch is not None:
            watch(config.iterations, result.history)  # a finished run was only read
    if ranks.first:
        _note_root(data_root, out)
        _show_distilled(result, out)


def _of_method(method: str | None, matching: str, parametrisation: str) -> tuple[str, str, dict[str, Any]]:
    """The names of matching and parametrisation, and other options: of `method`, where none was given."""
    bundle = choose("method", method, lab.PRESETS).options if method is not None else {}
    own = {name: value for name, value in bundle.items() if name not in _GIVEN}
    named = {"matching": matching, "parametrisation": parametrisation}
    return *(own.pop(kind).name if kind in own else name for kind, name in named.items()), own


def _show_distilled(result: lab.DistillResult, out: Path) -> None:
    from iadd_lab.plots import before_after, history_plot, image_grid, save_figure

    made, loss = result.distilled, result.history.loss
    save_figure(image_grid(made.pictures(), made.labels, made.classes), out, "distilled")
    save_figure(before_after(result), out, "before_after")
    save_figure(history_plot(result.history), out, "history")
    tenth = max(len(loss) // 10, 1)
    losses = f"matching loss {fmean(loss[:tenth]):.3f} at first, {fmean(loss[-tenth:]):.3f} at last"
    print(f"α {result.alpha:.4g}, {losses}; in {out / FILE}")


@command(app)
def evaluate(
    distilled: Path,
    /,
    *,
    network: str | None = None,
    width: int | None = None,
    depth: int | None = None,
    random: bool = True,
    fair: bool = False,
    settings: Annotated[lab.FairConfig, options_of("rates", "tuning_networks", "weight")] = lab.FairConfig(),
    config: Annotated[lab.EvaluateConfig, options_of("network", "augment")] = lab.EvaluateConfig(),
    augment: str | None = None,
    how: How = Execution(),
    data_root: DataRoot = None,
    out: Path | None = None,
    cluster: Cluster = None,
    suggest: Suggest = False,
) -> None:
    """Train fresh networks on a distilled set and test them on real images.

    Args:
        distilled: a distilled.safetensors, or the folder that holds it.
        network: one of {networks}, or torchvision:NAME or timm:NAME for one of theirs (the teachers').
        width: filters per block of the ConvNet (128).
        depth: blocks of the ConvNet (by image size).
        random: also random real images, as many of them.
        fair: also DD-Ranking's scores (HLR, IOR, LRS), beside random images and the whole set, the learning
            rate of each chosen on the validation split; takes several times as long.
        settings.whole_epochs: --fair: epochs on the whole training set.
        augment: operations of differentiable siamese augmentation, comma-separated, or 'none' (those of the
            distilled set).
        out: folder of the results (beside the set).
    """
    lab.pick_device(how.device)  # refused before images are read
    distilled = set_file(distilled)
    data_root = _known_root(data_root, distilled.parent)
    made = lab.DistilledSet.load(distilled, root=data_root)
    folder = check_folder(out or distilled.parent)
    architecture = _evaluation_network(distilled, network, width, depth)
    config = replace(config, network=architecture, augment=_augment(augment) or made.augment)
    real = lab.load_data(made.data, root=data_root)
    if suggest:
        config = _suggested("evaluation", config, real)
    if random or fair:
        check_class_sizes(real, made.ipc)
    if fair:
        check_fair(config)
    # All that it depends on is part of the name: another set, network or number of epochs is another file.
    name = f"evaluation_{config.network.name.replace(':', '_')}_{config.split}_{_short(made, config)}"
    at, kept = folder.absolute(), {"config": config, "how": replace(how, progress=not cluster)}
    parts = [partial(lab.evaluate, made, save_to=at / f"{name}.safetensors", **kept)]
    if random:
        drawn = partial(lab.evaluate_random, preprocess=made.preprocess, ipc=made.ipc, **kept)
        parts.append(partial(drawn, save_to=at / f"{name}_random.safetensors"))
    _show_evaluations(_computed(parts, real, data_root, cluster), folder, name)
    if fair:
        runs = at / f"fair_{_short(made, config, settings.whole_epochs)}"
        part = partial(lab.evaluate_fairly, made, fair=settings, folder=runs, **kept)
        print(*_computed([part], real, data_root, cluster))
    _show_notes(real)
    print(f"in {folder}/{name}*")


def _show_notes(real: ImageData) -> None:
    if real.remark:
        print(f"Note: {real.remark}")
    if own_data.folds_for(real) > 1:
        few = f"{len(real.test)} test images are few"
        print(f"Note: {few}; `teach --test-fold 1` to {real.folds - 1} keeps others aside for the test.")


def _short(made: lab.DistilledSet, *more: object) -> str:
    return fingerprint(RESULT_VERSION, made.fingerprint, *more)[:8]


def _show_evaluations(results: Sequence[lab.Evaluation], folder: Path, name: str) -> None:
    from iadd_lab.plots import accuracy_bars, confusion_matrix, save_figure

    save_figure(accuracy_bars(results), folder, f"{name}_accuracy")
    save_figure(confusion_matrix(results[0]), folder, f"{name}_confusion")
    for result in results:
        print(result)
        if result.remark:
            print(f"Note: {result.remark}")
    if doubted := doubts(*results):
        print(f"Note: {doubted}")


@command(app)
def export(
    distilled: Path,
    /,
    *,
    to: str,
    out: Path,
    measure: bool = True,
    how: How = Execution(),
    data_root: DataRoot = None,
) -> None:
    """Write a distilled set for other programs, with a data card, and say what the format loses.

    Args:
        distilled: a distilled.safetensors, or the folder that holds it.
        to: one of {formats}.
        out: folder of the export; empty, or not there yet.
        measure: also train networks on exported pictures, as for each evaluation beside the set.
    """
    root = _known_root(data_root, set_file(distilled).parent)
    print(lab.export_set(distilled, to, out, measure=measure, root=root, how=how))
    print(f"in {out}, described in {out / CARD}")


@command(app)
def import_set(
    folder: Path,
    /,
    *,
    out: Path,
    data: str | None = None,
    preprocess: str | None = None,
    alpha: float | None = None,
    size: int | None = None,
    data_seed: int = DataConfig.seed,
    method: str = "imported",
    data_root: DataRoot = None,
) -> None:
    """Make a released set of MTT or a successor one of our own, for `iadd-lab evaluate`, soft labels too.

    A set that `iadd-lab export --to mtt` wrote knows its data and preprocessing: neither is to be given then.

    Args:
        folder: folder of images_best.pt and labels_best.pt (MTT's format).
        out: folder of the distilled.safetensors to make.
        data: real set that it was made from: {data_sets}.
        preprocess: how its makers preprocessed images: {fits}.
        alpha: learning rate to train with (from one of {rates} beside the images, else 0.01).
        size: side of the images in pixels (the set's own).
        data_seed: of the validation split.
        method: its name in tables.
    """
    check_folder(out)
    target = out / FILE
    require(not target.exists(), f"{target} is there already: choose another folder.")
    if has_companion(folder):
        given = {"data": data, "preprocess": preprocess, "alpha": alpha, "size": size}
        named = " and ".join(f"--{name}" for name, value in given.items() if value is not None)
        require(not named, f"{named} was given, but {folder} says that itself: leave it out.")
        made = reread(folder)
    else:
        said = f"--data is {data!r} and --preprocess {preprocess!r}, but {folder} says neither: give both."
        require(data is not None and preprocess is not None, said)
        config, data_root = sets.settle(data, data_root, size=size, seed=data_seed)
        images = lab.load_data(config, root=data_root)
        made = lab.import_mtt(folder, images, preprocess=preprocess, alpha=alpha, method=method)
    _note_root(data_root, out)
    made.save(target, more_metadata={"source": f"{folder.resolve().name}, in the format of MTT"})
    count = f"{len(made.images)} images of {len(made.classes)} classes"
    print(f"{count}, preprocessing {made.preprocess.kind}, α {made.alpha:.4g}; in {target}")


@dataclass(frozen=True)
class Selection:
    """Which notebooks, with which parameters.

    Args:
        profile: quick (embedded real data, minutes on two cores), cpu (real image data at reduced scale,
            hours on two cores), paper (the literature's full hyper-parameters, for a GPU), or a YAML file.
        only: a notebook's name; may be repeated.
        jobs: notebooks executed at once.
        parameter: NAME VALUE, for every notebook that has such a parameter, also as NAME=VALUE; may be
            repeated.
        notebooks: folder of the notebooks; the ones that came with this package if not given.
    """

    profile: str = "quick"
    only: Annotated[tuple[str, ...], Parameter(show_default=False)] = ()
    jobs: int = 1
    parameter: Annotated[tuple[str, ...], Parameter(name=_PAIRS, show_default=False)] = ()
    notebooks: Path | None = None

    def parameters(self) -> dict[str, str]:
        """The values by their names."""
        parted = [text.partition("=") for text in self.parameter]
        for name, equals, value in parted:
            said = f"parameter {name + equals + value!r} has no value"
            require(bool(name and equals), f"{said}: write -p NAME VALUE or -p NAME=VALUE.")
        return {name: value for name, _, value in parted}


Chosen = Annotated[Selection, options_of()]


@command(app)
def reproduce(
    *,
    selection: Chosen = Selection(),
    figures: Path = Path("build/figures"),
    runs: Path = Path("runs"),
    again: bool = False,
    keep: bool = False,
    cluster: Cluster = None,
) -> int:
    """Execute the notebooks that are not up to date, and collect what they make in FIGURES/PROFILE.

    Args:
        figures: folder of what they make.
        runs: folder of what is computed only once.
        again: execute also what is up to date.
        keep: copy what they made to figures/PROFILE, to be committed; not where a notebook failed.
    """
    from iadd_lab.notebooks import batch

    where = {"profile": selection.profile, "notebooks": selection.notebooks, "figures": figures, "runs": runs}
    how = {"only": selection.only, "jobs": selection.jobs, "again": again, "cluster": cluster}
    failed = batch.reproduce(parameters=selection.parameters(), **where, **how)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    elif keep:
        print(f"copied to {batch.keep(**where)}")
    return int(bool(failed))


@command(app)
def plan(
    *, selection: Chosen = Selection(), device: str = Execution.device, runs: Path = Path("runs")
) -> None:
    """Show what reproduce would compute from an empty folder of runs: tasks, operations, hours, disk, memory.

    Nothing of it is computed; small pieces of the real work are timed on this machine. Then which cells of
    tables and figures RUNS has already, and which are missing.

    Args:
        device: auto, cpu, cuda or cuda:N.
        runs: folder of what is computed only once.
    """
    from iadd_lab.notebooks.batch import chosen_pages
    from iadd_lab.study import plan as plans

    where = {"profile": selection.profile, "notebooks": selection.notebooks}
    pages = chosen_pages(selection.only, selection.parameters(), **where)
    found, cells = plans.plan(pages, device=device), plans.stored_cells(pages, runs=runs, device=device)
    print(plans.describe(found, cells, notebooks=len(pages), jobs=selection.jobs))


@command(app)
def notebooks(folder: Path, /) -> None:
    """Lay the notebooks out in a folder of your own, to open them in JupyterLab.

    Args:
        folder: where to.
    """
    from iadd_lab.notebooks.notebook import lay_out

    for path in lay_out(folder):
        print(path)


@command(app)
def bench(
    *, json: Path | None = None, config: Annotated[BenchConfig | None, options_of(engines="engine")] = None
) -> None:
    """Time and peak memory of the gradient engines, side by side; some ten minutes in full on two cores.

    Args:
        json: write all that was measured to this file.
        config.engines: one of {engines}; may be repeated.
        config.images: distilled images per student step; may be repeated.
        config.steps: J, the student's steps; may be repeated.
    """
    if json is not None:
        check_folder(json.parent)
    measured = measure(config or BenchConfig())
    if json is not None:
        save_text(json, jsons.dumps(measured, indent=1) + "\n")
    print(f"matrix products run at {measured['matmul_gflops']:.0f} GFLOP/s")
    for record in measured["engines"]:
        what = f"{record['title']:36} {record['images']:>4} images, J = {record['steps']:<3}"
        cost = f"{record['seconds']:8.3f} s  {record['peak_mb']:7.0f} MB"
        print(f"{what} {cost}  {record['conv_gflops']:6.0f} GFLOP/s")
    for record in measured["training"]:
        print(f"{record['task']:36} {record['way']:12} {record['seconds']:8.3f} s an epoch")


@command(runs_app, name="list")
def runs_list(*, runs: RunsFolder = None, verify: bool = False) -> None:
    """Show what is stored: kind, size, last change, state, name and what it is.

    Args:
        verify: read everything and compare checksums.
    """
    root = runs or runs_root()
    found = stored(root, verify=verify)
    print(*map(_line, found), f"{_sum(found)}, in {root}", sep="\n")


@command(runs_app, name="prune")
def runs_prune(
    *, runs: RunsFolder = None, criteria: Annotated[Criteria | None, options_of()] = None, yes: bool = False
) -> None:
    """Delete what fits all criteria given; without --yes, only show it.

    Args:
        yes: delete it; otherwise only shown.
    """
    root = runs or runs_root()
    pruned = prune(root, criteria or Criteria(), delete=yes)
    for found, kept in pruned:
        print(_line(found) + (f" - kept: {kept}" if kept else ""))
    gone = [found for found, kept in pruned if not kept]
    print(f"{_sum(gone)}, in {root} {'deleted' if yes else 'would be deleted: --yes deletes'}")


def _line(found: Stored) -> str:
    changed = time.strftime("%Y-%m-%d %H:%M", time.localtime(found.changed))
    state = "in use" if found.busy else "" if found.state in ("finished", "foreign") else found.state
    line = f"{found.kind:11} {_bytes(found.size):>9}  {changed}  {state:10}  {found.name}"
    return f"{line}: {found.about}" if found.about else line


def _sum(found: Sequence[Stored]) -> str:
    noun = "entry" if len(found) == 1 else "entries"
    return f"{len(found)} {noun}, {_bytes(sum(each.size for each in found))}"


def _bytes(count: int) -> str:
    power = min(len(str(count)) - 1, 14) // 3
    return f"{count / 1000**power:.1f} {'kMGT'[power - 1]}B" if power else f"{count} B"


def _augment(text: str | None) -> lab.AugmentConfig | None:
    if text is None:
        return None
    return lab.AugmentConfig(operations=() if text == "none" else tuple(text.split(",")))


def _chosen(what: str, name: str, registry: dict[str, Any], *settings: Any) -> Any:
    """The matching (or `what` it is) called `name`, with the settings given; those of another are refused."""
    kind = choose(what, name, registry)
    given = [one for one in settings if one is not None]
    for one in given:
        said = f"settings of {what} {one.name!r} were given, but {what} {name!r} has no such settings"
        require(type(one) is kind, f"{said}: leave them out, or use --{what} {one.name}.")
    return given[0] if given else kind()


def _require_teachers(teachers: lab.Teachers, expected: dict[str, str | None]) -> None:
    config = teachers.config
    found = {"data": teachers.data.name, "network": config.network.name, "preprocess": config.preprocess}
    for name, value in expected.items():
        said = f"--{name} is {value!r}, but the teachers in {teachers.folder} have {found[name]!r}"
        require(value in (None, found[name]), f"{said}: train others, or leave the option out.")


def _evaluation_network(path: Path, name: str | None, width: int | None, depth: int | None) -> NetworkConfig:
    """The network asked for; what was not asked for is as in the teachers' network."""
    given = {field: value for field, value in (("width", width), ("depth", depth)) if value is not None}
    if made_by(read_metadata(path, kind=KIND)) == "distillation":
        own = lab.DistillResult.load(path).teacher_config.network
        if name in (None, own.name):
            return replace(own, **given)
    return NetworkConfig(name=name or NetworkConfig.name, **given)


def join_pairs(words: Sequence[str]) -> list[str]:
    """`words` with the VALUE of each `-p NAME VALUE`, as papermill has it, joined to its NAME."""
    left, joint = list(words), []
    while left:
        joint.append(left.pop(0))
        if joint[-1] in _PAIRS and left:
            joint.append(left.pop(0))
            # A value may be a negative number; another option is none.
            if "=" not in joint[-1] and left and left[0] not in _PAIRS and not left[0].startswith("--"):
                joint[-1] += f"={left.pop(0)}"
    return joint


def run(words: Sequence[str]) -> int:
    """Carry out the command that `words` are, without `iadd-lab` before them.

    Bad input ends with one sentence on stderr, and so does what stops a run; neither with a traceback.

    Returns:
        The exit code: 0 done, 1 stopped or failed, 2 bad input, 130 Ctrl-C.

    Raises:
        SystemExit: something else than Ctrl-C stopped a computation (SIGTERM; exit code 143).
    """
    if list(words) in ([], ["data"], ["runs"]):
        app.help_print(list(words))
        return 2
    # A shell leaves the ~ of --out=~/run as it stands.
    home = re.compile("^(--[a-z-]+=|)(~.+)")
    words = [home.sub(lambda found: found[1] + os.path.expanduser(found[2]), word) for word in words]
    options = {"exit_on_error": False, "print_error": False, "result_action": "return_value"}
    try:
        return app(join_pairs(words), **options) or 0
    except (lab.InputError, CycloptsError) as error:
        # A check of ours may have been what failed while options were read.
        ours = isinstance(error.__cause__, lab.InputError) and isinstance(error, CycloptsError)
        code, said = 2, f"error: {error.__cause__ if ours else error}"
    except KeyboardInterrupt as error:
        code, said = 130, f"stopped: {str(error) or 'run the same again to go on.'}"
    except (lab.DivergenceError, OSError) as error:
        code, said = 1, f"stopped: {error}"
    except (MemoryError, torch.OutOfMemoryError) as error:
        reason = (str(error).splitlines() or ["no memory left"])[0]
        code, said = 1, f"stopped: {reason} Lower batch or ipc, or use --gradient adjoint."
    with suppress(OSError):  # nobody may be there to read it
        print(said, file=sys.stderr)
    return code
