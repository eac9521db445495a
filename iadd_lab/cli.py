"""The command line: `iadd-lab teach | distill | evaluate | export | import-set | reproduce | ...`."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from iadd_lab.cli_sets import COMMANDS
from iadd_lab.data import sets as datasets
from iadd_lab.data.augment import AugmentConfig
from iadd_lab.data.cluster import Engine, open_engine
from iadd_lab.data.distilled import KIND, DistilledSet
from iadd_lab.data.sampling import check_class_sizes
from iadd_lab.data.sets import DATASETS, DataConfig, fetch_data, load_data, locate
from iadd_lab.device import PRECISIONS, pick_device, set_precision
from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.loop import distill as run_distill
from iadd_lab.distillation.matching import MATCHINGS, Learned, Matching, Pruned
from iadd_lab.distillation.result import DistillResult
from iadd_lab.errors import DivergenceError, InputError, choose, require
from iadd_lab.evaluation.fair import FairConfig, check_fair, evaluate_fairly
from iadd_lab.evaluation.protocol import EvaluateConfig, evaluate_random
from iadd_lab.evaluation.protocol import evaluate as run_evaluate
from iadd_lab.notebooks.batch import reproduce as run_reproduce
from iadd_lab.notebooks.plan_batch import PROFILES
from iadd_lab.options import options_of
from iadd_lab.plots.tensorboard import watched
from iadd_lab.ranks import joined, local_device
from iadd_lab.store.artefacts import check_folder, read_metadata, save_text
from iadd_lab.store.configs import RESULT_VERSION, fingerprint
from iadd_lab.store.runs import Criteria, Stored, prune, stored
from iadd_lab.study.bench import VARIANTS, BenchConfig, measure
from iadd_lab.study.study import runs_root
from iadd_lab.training.networks import NETWORKS, NetworkConfig
from iadd_lab.training.replay_buffers import import_replay_buffers
from iadd_lab.training.teachers import TeacherConfig, Teachers, open_teachers, train_teachers


class _FriendlyGroup(typer.core.TyperGroup):
    """Bad input ends with one sentence and exit code 2, what stops a run with one and 1; no traceback."""

    def invoke(self, context):
        try:
            return super().invoke(context)
        except InputError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from None
        except DivergenceError as error:
            typer.echo(f"stopped: {error}", err=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt as error:
            typer.echo(f"stopped: {str(error) or 'run the same again to go on.'}", err=True)
            raise typer.Exit(130) from None
        except OSError as error:
            typer.echo(f"stopped: {error}", err=True)
            raise typer.Exit(1) from None
        except (MemoryError, torch.OutOfMemoryError) as error:
            reason = (str(error).splitlines() or ["no memory left"])[0]
            typer.echo(f"stopped: {reason} Lower batch or ipc, or use --gradient adjoint.", err=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_FriendlyGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Distil a data set into a few images per class by matching network parameters, each with its own "
    "importance (IADD, arXiv 2401.15863).\n\nThe usual order: teach, distill, evaluate. "
    "Data sets are looked for under $IADD_DATA.",
)
data_app = typer.Typer(no_args_is_help=True, help="List, fetch and check data sets.")
app.add_typer(data_app, name="data")
runs_app = typer.Typer(
    no_args_is_help=True, help="List what is stored in a folder of runs, and delete of it."
)
app.add_typer(runs_app, name="runs")

DataRoot = Annotated[Path | None, typer.Option(help="Where the data lies; $IADD_DATA if not given.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Compile = Annotated[str, typer.Option(help="auto (runs that are long enough), always or never.")]
Precision = Annotated[str, typer.Option(help=f"Inside products: {', '.join(PRECISIONS)}.")]
Seed = Annotated[int, typer.Option(help="Of the validation split.")]
Augment = Annotated[
    str | None,
    typer.Option(help="Operations of differentiable siamese augmentation, comma-separated, or 'none'; "
                 "if not given, those of the distilled or the real set."),
]  # fmt: skip
BadImages = Annotated[str, typer.Option(help="Damaged image files: refuse or skip.")]
ClusterName = Annotated[
    str | None,
    typer.Option("--cluster", help="Independent tasks run on Dask: local[:WORKERS] or tcp://HOST:PORT."),
]
Width = Annotated[int | None, typer.Option(help="Filters per block of the ConvNet (128).")]
Depth = Annotated[int | None, typer.Option(help="Blocks of the ConvNet (by image size).")]


@data_app.command("list")
def data_list(data_root: DataRoot = None) -> None:
    """Show every data set and where it was found."""
    for name, spec in DATASETS.items():
        place = "part of scikit-learn" if name == "digits" else locate(name, root=data_root) or "not found"
        typer.echo(f"{name:14} {spec.size:>4} px  {spec.title:32} {place}")
    typer.echo(f"\nLooked under {data_root or datasets.data_root()} (set IADD_DATA to change it).")


@data_app.command("fetch")
def data_fetch(name: str, data_root: DataRoot = None) -> None:
    """Download a data set (the only command that uses the network)."""
    typer.echo(f"{name} lies in {fetch_data(name, root=data_root)}")


@data_app.command("check")
def data_check(
    name: str,
    data_root: DataRoot = None,
    size: Annotated[int | None, typer.Option(help="Side in pixels.")] = None,
    seed: Seed = 0,
    bad_images: BadImages = DataConfig.bad_images,
) -> None:
    """Load a data set in full and show what is in it."""
    started = time.perf_counter()
    data = load_data(DataConfig(name=name, size=size, seed=seed, bad_images=bad_images), root=data_root)
    shape = " × ".join(map(str, data.train.images.shape[1:]))
    typer.echo(
        f"{name}: {shape}, read in {time.perf_counter() - started:.1f} s, fingerprint {data.fingerprint}"
    )
    counts = [torch.bincount(data.split(s).labels, minlength=len(data.classes)) for s in _SPLITS]
    typer.echo(f"{'class':24}" + "".join(f"{split:>12}" for split in _SPLITS))
    for index, label in enumerate(data.classes):
        typer.echo(f"{label[:24]:24}" + "".join(f"{count[index].item():12}" for count in counts))
    typer.echo(f"{'all':24}" + "".join(f"{count.sum().item():12}" for count in counts))
    if data.remark:
        typer.echo(f"Note: {data.remark}")


_SPLITS = ("train", "validation", "test")


@app.command()
@options_of(TeacherConfig, leave_out=("network", "augment"))
def teach(
    context: typer.Context,
    data: Annotated[str, typer.Option(help=f"Data set: {', '.join(DATASETS)}.")],
    out: Annotated[Path, typer.Option(help="Folder of the teachers.")],
    teachers: Annotated[int, typer.Option(help="How many; more can join later.")] = 5,
    size: Annotated[int | None, typer.Option(help="Side of the images in pixels (the set's own).")] = None,
    train_limit: Annotated[int | None, typer.Option(help="Use so many training images at most.")] = None,
    data_seed: Annotated[int, typer.Option(help="Of the validation split.")] = DataConfig.seed,
    bad_images: BadImages = DataConfig.bad_images,
    data_root: DataRoot = None,
    network: Annotated[str, typer.Option(help=f"{', '.join(NETWORKS)}.")] = NetworkConfig.name,
    width: Width = None,
    depth: Depth = None,
    augment: Augment = None,
    device: Device = "auto",
    compile: Compile = "auto",
    precision: Precision = "float32",
    import_buffers: Annotated[
        list[Path] | None,
        typer.Option(help="Convert others' replay_buffer_N.pt instead of training; may be repeated."),
    ] = None,
    cluster: ClusterName = None,
    *,
    fields: dict[str, Any],
) -> None:
    """Train teachers on the real set and store their trajectories.

    Interrupted, it goes on with the first missing teacher when run again.
    """
    if import_buffers:
        _refuse_training_options(context)
    place = pick_device(device)
    set_precision(precision)
    check_folder(out)
    architecture = NetworkConfig(name=network, width=width, depth=depth)
    config = TeacherConfig(network=architecture, augment=_augment(augment), **fields)
    wanted = DataConfig(name=data, size=size, train_limit=train_limit, seed=data_seed, bad_images=bad_images)
    images = load_data(wanted, root=data_root)
    if import_buffers:
        trained = import_replay_buffers(import_buffers, images, config, out, device=place)
    else:
        options = {"device": place, "compile": compile, "engine": _engine(context, cluster, data_root)}
        trained = train_teachers(images, config, out, count=teachers, **options)
    accuracies = [trained.history(n).get("validation_accuracy") for n in range(len(trained))]
    known = [100 * accuracy for accuracy in accuracies if accuracy is not None]
    note = f", {sum(known) / len(known):.1f} % mean validation accuracy" if known else ""
    typer.echo(f"{len(trained)} teachers of {trained.config.epochs} epochs{note}, in {out}")


_ONLY_TRAINING = (
    "teachers", "epochs", "rate", "batch", "momentum", "weight_decay", "augment", "seed",
    "compile", "cluster",
)  # fmt: skip


def _refuse_training_options(context: typer.Context) -> None:
    """Refuse what would be ignored beside --import-buffers, or stored as how others trained."""
    given = [name for name in _ONLY_TRAINING if context.get_parameter_source(name).name != "DEFAULT"]
    options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
    require(
        not given,
        f"{options} would do nothing beside --import-buffers, which trains no teachers: leave it out.",
    )


@app.command()
@options_of(DistillConfig, leave_out=("matching", "augment"))
def distill(
    teachers: Annotated[Path, typer.Option(help="Folder of the teachers.")],
    out: Annotated[Path, typer.Option(help="Folder of the result.")],
    matching: Annotated[str, typer.Option(help=f"{', '.join(MATCHINGS)}.")] = Learned.name,
    weight_rate: Annotated[
        float | None, typer.Option(help=f"learned: rate of the descent on W ({Learned.rate}).")
    ] = None,
    literal: Annotated[bool, typer.Option(help="learned: the paper's unnormalised loss.")] = False,
    granularity: Annotated[
        str | None, typer.Option(help="learned: a weight per parameter (default) or tensor.")
    ] = None,
    mean_over: Annotated[
        str | None, typer.Option(help="learned: W² has mean 1 over the network (default) or each tensor.")
    ] = None,
    prune: Annotated[
        float | None, typer.Option(help=f"pruned: share of parameters to drop ({Pruned.fraction}).")
    ] = None,
    augment: Augment = None,
    device: Device = "auto",
    compile: Compile = "auto",
    precision: Precision = "float32",
    cuda_graphs: Annotated[
        bool | None,
        typer.Option(help="Replay the student's steps as CUDA graphs; on every GPU if not given."),
    ] = None,
    data_root: DataRoot = None,
    data: Annotated[str | None, typer.Option(help="Require teachers of this data set.")] = None,
    network: Annotated[str | None, typer.Option(help="Require teachers of this network.")] = None,
    preprocess: Annotated[str | None, typer.Option(help="Require teachers with this preprocessing.")] = None,
    tensorboard: Annotated[
        Path | None, typer.Option(help="Folder for TensorBoard: the curves, images and W while it runs.")
    ] = None,
    *,
    fields: dict[str, Any],
) -> None:
    """Distil the teachers' data set; goes on from its checkpoint when run again after an interruption.

    Several processes share the segments: torchrun --nproc-per-node N -m iadd_lab distill ...
    """
    place = pick_device(local_device(device))
    set_precision(precision)
    check_folder(out)
    options = {"rate": weight_rate, "granularity": granularity, "mean_over": mean_over, "fraction": prune}
    chosen = _matching(matching, options | {"normalised": False if literal else None})
    trained = open_teachers(teachers)
    _require_teachers(trained, data=data, network=network, preprocess=preprocess)
    config = DistillConfig(matching=chosen, augment=_augment(augment), **fields)
    with (
        joined(place) as ranks,
        watched(tensorboard if ranks.first else None, trained.preprocess, ipc=config.ipc) as watch,
    ):
        images = load_data(trained.data, root=data_root, progress=ranks.first)
        result = run_distill(
            images,
            trained,
            config,
            folder=out,
            device=place,
            compile=compile,
            cuda_graphs=cuda_graphs,
            precision=precision,
            ranks=ranks,
            on_iteration=watch,
        )
        if watch is not None:
            watch(config.iterations, result.history)  # a finished run was only read
    if not ranks.first:
        return

    from iadd_lab.plots import before_after, history_plot, image_grid, save_figure

    made = result.distilled
    save_figure(image_grid(made.pictures(), made.labels, made.classes), out, "distilled")
    save_figure(before_after(result), out, "before_after")
    save_figure(history_plot(result.history), out, "history")
    losses = _describe_history(result.history.loss)
    typer.echo(f"α {result.alpha:.4g}, {losses}; in {out / 'distilled.safetensors'}")


@app.command()
@options_of(EvaluateConfig, leave_out=("network", "augment"))
def evaluate(
    context: typer.Context,
    distilled: Annotated[Path, typer.Argument(help="A distilled.safetensors, or the folder that holds it.")],
    network: Annotated[str | None, typer.Option(help=f"{', '.join(NETWORKS)} (the teachers').")] = None,
    width: Width = None,
    depth: Depth = None,
    random: Annotated[bool, typer.Option(help="Also random real images, as many of them.")] = True,
    fair: Annotated[
        bool,
        typer.Option(
            "--fair",
            help="Also DD-Ranking's scores (HLR, IOR, LRS), beside random images and the whole set, the "
            "learning rate of each chosen on the validation split; takes several times as long.",
        ),
    ] = False,
    whole_epochs: Annotated[
        int, typer.Option(help="--fair: epochs on the whole training set.")
    ] = FairConfig.whole_epochs,
    augment: Augment = None,
    device: Device = "auto",
    compile: Compile = "auto",
    precision: Precision = "float32",
    data_root: DataRoot = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results (beside the set).")] = None,
    cluster: ClusterName = None,
    *,
    fields: dict[str, Any],
) -> None:
    """Train fresh networks on a distilled set and test them on real images."""
    place = pick_device(device)
    set_precision(precision)
    distilled = distilled / "distilled.safetensors" if distilled.is_dir() else distilled
    made = DistilledSet.load(distilled, root=data_root)
    folder = check_folder(out or distilled.parent)
    architecture = _evaluation_network(distilled, network, width, depth)
    config = EvaluateConfig(network=architecture, augment=_augment(augment) or made.augment, **fields)
    real = load_data(made.data, root=data_root)
    if random or fair:
        check_class_sizes(real, made.ipc)
    if fair:
        check_fair(config)
    # All that it depends on is part of the name: another set, network or number of epochs is another file.
    suffix = fingerprint(RESULT_VERSION, made.fingerprint, config)[:8]
    name = f"evaluation_{config.network.name}_{config.split}_{suffix}"
    options = {"device": place, "compile": compile, "engine": _engine(context, cluster, data_root)}
    results = [run_evaluate(made, real, config, save_to=folder / f"{name}.safetensors", **options)]
    if random:
        path = folder / f"{name}_random.safetensors"
        results.append(evaluate_random(real, made.preprocess, config, ipc=made.ipc, save_to=path, **options))

    from iadd_lab.plots import accuracy_bars, confusion_matrix, save_figure

    save_figure(accuracy_bars(results), folder, f"{name}_accuracy")
    save_figure(confusion_matrix(results[0]), folder, f"{name}_confusion")
    for result in results:
        typer.echo(str(result))
        if result.remark:
            typer.echo(f"Note: {result.remark}")
    if fair:
        settings = FairConfig(whole_epochs=whole_epochs)
        runs = folder / f"fair_{fingerprint(RESULT_VERSION, made.fingerprint, config, whole_epochs)[:8]}"
        scores = evaluate_fairly(made, real, config, settings, folder=runs, **options)
        typer.echo(str(scores))
    if real.remark:
        typer.echo(f"Note: {real.remark}")
    typer.echo(f"in {folder}/{name}*")


for _name, _command in COMMANDS.items():
    app.command(_name)(_command)


class _PairsCommand(typer.core.TyperCommand):
    """A command to which `-p NAME VALUE`, as papermill has it, means `-p NAME=VALUE`."""

    def parse_args(self, ctx, args):
        return super().parse_args(ctx, _join_pairs(args))


def _join_pairs(arguments: Sequence[str]) -> list[str]:
    """`arguments` with the VALUE of each `-p NAME VALUE` joined to its NAME."""
    left, joined = list(arguments), []
    while left:
        joined.append(left.pop(0))
        if joined[-1] in _PAIR_OPTIONS and left:
            joined.append(left.pop(0))
            # A value may be a negative number; another option is none.
            if "=" not in joined[-1] and left and not (left[0] in _PAIR_OPTIONS or left[0].startswith("--")):
                joined[-1] += f"={left.pop(0)}"
    return joined


_PAIR_OPTIONS = ("-p", "--parameter")


@app.command(cls=_PairsCommand)
def reproduce(
    context: typer.Context,
    profile: Annotated[
        str, typer.Option(help="; ".join(f"{name}: {what}" for name, what in PROFILES.items()) + ".")
    ] = "quick",
    only: Annotated[list[str] | None, typer.Option(help="A notebook's name; may be repeated.")] = None,
    jobs: Annotated[int, typer.Option(help="Notebooks executed at once.")] = 1,
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            *reversed(_PAIR_OPTIONS),
            metavar="NAME VALUE",
            help="For every notebook that has such a parameter, also as NAME=VALUE; may be repeated.",
        ),
    ] = None,
    notebooks: Annotated[Path, typer.Option(help="Folder of the notebooks.")] = Path("notebooks"),
    figures: Annotated[Path, typer.Option(help="Folder of what they make.")] = Path("figures"),
    runs: Annotated[Path, typer.Option(help="Folder of what is computed only once.")] = Path("runs"),
    again: Annotated[bool, typer.Option("--again", help="Execute also what is up to date.")] = False,
    cluster: ClusterName = None,
) -> None:
    """Execute the notebooks that are not up to date, and collect what they make in figures/PROFILE."""
    failed = run_reproduce(
        profile=profile,
        only=tuple(only or ()),
        parameters=dict(_name_and_value(text) for text in parameter or ()),
        notebooks=notebooks,
        figures=figures,
        runs=runs,
        jobs=jobs,
        again=again,
        engine=_engine(context, cluster, None),
    )
    if failed:
        typer.echo(f"failed: {', '.join(failed)}", err=True)
        raise typer.Exit(1)


@app.command(cls=_PairsCommand)
def plan(
    profile: Annotated[str, typer.Option(help=f"{', '.join(PROFILES)}.")] = "quick",
    only: Annotated[list[str] | None, typer.Option(help="A notebook's name; may be repeated.")] = None,
    jobs: Annotated[int, typer.Option(help="Notebooks executed at once.")] = 1,
    parameter: Annotated[
        list[str] | None,
        typer.Option(*reversed(_PAIR_OPTIONS), metavar="NAME VALUE", help="As of reproduce."),
    ] = None,
    notebooks: Annotated[Path, typer.Option(help="Folder of the notebooks.")] = Path("notebooks"),
    device: Device = "auto",
) -> None:
    """Show what reproduce would compute from an empty folder of runs: tasks, operations, hours, disk, memory.

    Nothing of it is computed; small pieces of the real work are timed on this machine.
    """
    from iadd_lab.notebooks.costs import describe_costs, plan_costs

    costs = plan_costs(
        profile=profile,
        only=tuple(only or ()),
        parameters=dict(_name_and_value(text) for text in parameter or ()),
        notebooks=notebooks,
        jobs=jobs,
        device=device,
    )
    typer.echo(describe_costs(costs))


@app.command()
def bench(
    json: Annotated[Path | None, typer.Option(help="Write all that was measured to this file.")] = None,
    engine: Annotated[list[str] | None, typer.Option(help=f"{', '.join(VARIANTS)}; may be repeated.")] = None,
    images: Annotated[list[int] | None, typer.Option(help="Distilled images; may be repeated.")] = None,
    steps: Annotated[list[int] | None, typer.Option(help="J, student steps; may be repeated.")] = None,
    width: Annotated[int, typer.Option(help="Filters per block of the ConvNet.")] = BenchConfig.width,
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = BenchConfig.size,
    iterations: Annotated[int, typer.Option(help="Measured after a warm-up.")] = BenchConfig.iterations,
    training: Annotated[bool, typer.Option(help="Measure teachers and evaluation as well.")] = True,
    device: Device = BenchConfig.device,
    precision: Precision = BenchConfig.precision,
) -> None:
    """Time and peak memory of the gradient engines, side by side; some ten minutes in full on two cores."""
    config = BenchConfig(
        width=width,
        size=size,
        iterations=iterations,
        training=training,
        engines=engine or BenchConfig.engines,
        images=images or BenchConfig.images,
        steps=steps or BenchConfig.steps,
        device=device,
        precision=precision,
    )
    if json is not None:
        check_folder(json.parent)
    measured = measure(config)
    if json is not None:
        save_text(json, dumps(measured, indent=1) + "\n")
    typer.echo(f"matrix products run at {measured['matmul_gflops']:.0f} GFLOP/s")
    for record in measured["engines"]:
        typer.echo(
            f"{record['title']:36} {record['images']:>4} images, J = {record['steps']:<3} "
            f"{record['seconds']:8.3f} s  {record['peak_mb']:7.0f} MB  {record['conv_gflops']:6.0f} GFLOP/s"
        )
    for record in measured["training"]:
        typer.echo(f"{record['task']:36} {record['way']:12} {record['seconds']:8.3f} s an epoch")


RunsFolder = Annotated[
    Path | None, typer.Option(help="Folder of runs; $IADD_RUNS, or the one in the cache folder.")
]


@runs_app.command("list")
def runs_list(
    runs: RunsFolder = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read everything and compare checksums.")] = False,
) -> None:
    """Show what is stored: kind, size, last change, state, name and what it is."""
    root = runs or runs_root()
    found = stored(root, verify=verify)
    for each in found:
        typer.echo(_line(each))
    typer.echo(f"{_sum(found)}, in {root}")


@runs_app.command("prune")
def runs_prune(
    runs: RunsFolder = None,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Only checkpoints, and what interrupted processes left.")
    ] = False,
    damaged: Annotated[
        bool, typer.Option("--damaged", help="Only what can't be read (reads everything).")
    ] = False,
    older_than: Annotated[
        float | None, typer.Option(help="Only what did not change for so many days.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Only names that fit a pattern, as in 'digits-*-dc-*'.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete it; otherwise only shown.")] = False,
) -> None:
    """Delete what fits all criteria given; without --yes, only show it."""
    root = runs or runs_root()
    criteria = Criteria(unfinished=unfinished, damaged=damaged, older_than=older_than, name=name)
    pruned = prune(root, criteria, delete=yes)
    for each in pruned:
        typer.echo(_line(each.stored) + (f" - kept: {each.kept}" if each.kept else ""))
    gone = [each.stored for each in pruned if not each.kept]
    done = "deleted" if yes else "would be deleted: --yes deletes"
    typer.echo(f"{_sum(gone)}, in {root} {done}")


def _line(found: Stored) -> str:
    changed = time.strftime("%Y-%m-%d %H:%M", time.localtime(found.changed))
    state = "in use" if found.busy else "" if found.state in ("finished", "foreign") else found.state
    line = f"{found.kind:11} {_bytes(found.size):>9}  {changed}  {state:10}  {found.name}"
    return f"{line}: {found.about}" if found.about else line


def _sum(found: Sequence[Stored]) -> str:
    noun = "entry" if len(found) == 1 else "entries"
    return f"{len(found)} {noun}, {_bytes(sum(each.size for each in found))}"


def _bytes(count: float) -> str:
    power = next((power for power in (1, 2, 3) if count < 1000 ** (power + 1)), 4)
    return f"{count} B" if count < 1000 else f"{count / 1000**power:.1f} {'kMGT'[power - 1]}B"


def _name_and_value(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    require(bool(name and equals), f"parameter {text!r} has no value: write -p NAME VALUE or -p NAME=VALUE.")
    return name, value


def _engine(context: typer.Context, cluster: str | None, data_root: Path | None) -> Engine:
    """The engine called `cluster`, open until the command ends, in whatever way."""
    return context.with_resource(open_engine(cluster, data_root=data_root))


def _augment(text: str | None) -> AugmentConfig | None:
    if text is None:
        return None
    return AugmentConfig(operations=() if text == "none" else tuple(text.split(",")))


def _matching(name: str, options: dict[str, Any]) -> Matching:
    """The matching called `name` with the options that were given; one that it lacks is refused."""
    kind = choose("matching", name, MATCHINGS)
    given = {option: value for option, value in options.items() if value is not None}
    known = {field.name for field in dataclasses.fields(kind)}
    for option in given.keys() - known:
        owners = [other for other, owner in MATCHINGS.items() if hasattr(owner, option)]
        raise InputError(
            f"{_OPTIONS[option]} was given, but matching {name!r} has no such setting: "
            f"leave it out, or use --matching {' or '.join(owners)}."
        )
    return kind(**given)


_OPTIONS = {
    "rate": "--weight-rate",
    "normalised": "--literal",
    "granularity": "--granularity",
    "mean_over": "--mean-over",
    "fraction": "--prune",
}


def _require_teachers(teachers: Teachers, **expected: str | None) -> None:
    found = {
        "data": teachers.data.name,
        "network": teachers.config.network.name,
        "preprocess": teachers.config.preprocess,
    }
    for name, value in expected.items():
        require(
            value is None or value == found[name],
            f"--{name} is {value!r}, but the teachers in {teachers.folder} have {found[name]!r}: "
            f"train teachers with --{name} {value}, or leave the option out.",
        )


def _evaluation_network(path: Path, name: str | None, width: int | None, depth: int | None) -> NetworkConfig:
    """The network asked for; what was not asked for is as in the teachers' network."""
    given = {field: value for field, value in (("width", width), ("depth", depth)) if value is not None}
    if "config" not in read_metadata(path, kind=KIND):  # a set that was not distilled here has no teachers
        return NetworkConfig(name=name or NetworkConfig.name, **given)
    own = DistillResult.load(path).teacher_config.network
    return replace(own, **given) if name in (None, own.name) else NetworkConfig(name=name, **given)


def _describe_history(loss: list[float]) -> str:
    tenth = max(len(loss) // 10, 1)
    return f"matching loss {sum(loss[:tenth]) / tenth:.3f} at first, {sum(loss[-tenth:]) / tenth:.3f} at last"


def main() -> None:
    """The entry point of `iadd-lab` and `python -m iadd_lab`."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # `iadd_lab._start` had it till now
    app()
