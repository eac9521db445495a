"""Data cards: what a distilled set is, how it was made, how well it does, and whose data it came from."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from iadd_lab.data.distilled import KIND, DistilledSet, made_by
from iadd_lab.data.folders import on_one_line
from iadd_lab.errors import InputError
from iadd_lab.evaluation.protocol import Evaluation, doubts
from iadd_lab.store.artefacts import Artefact, load_artefact
from iadd_lab.store.configs import describe, fingerprint

_SHOWN = (
    "ipc",
    "iterations",
    "student_steps",
    "teacher_epochs",
    "max_start_epoch",
    "initial_images",
    "average",
    "seed",
)


def data_card(path: Path, *, notes: Sequence[str] = ()) -> str:
    """The card of the distilled set in the file `path` as Markdown, with the evaluations that lie beside it.

    Args:
        path: the file of the set.
        notes: sentences on the copy that the card goes with.

    Raises:
        InputError: the set can't be read.
    """
    distilled, artefact = DistilledSet.load(path), load_artefact(path, kind=KIND)
    spec = distilled.data.spec
    parts = [
        f"# {spec.title}, distilled to {_images(distilled.ipc)} per class",
        *notes,
        "## What it is",
        _bullets(_what(distilled)),
        "## How it was made",
        _bullets(_how(distilled, artefact)),
        "## Accuracy",
        _accuracy(path, distilled),
        "## Licence of the source data",
        f"{spec.title}: {spec.licence}. A distilled set is made from these images.",
        "Written by iadd-lab, https://arxiv.org/abs/2401.15863 being the method's paper.",
    ]
    return "\n\n".join(parts) + "\n"


def _what(distilled: DistilledSet) -> Iterator[str]:
    shape, kind = " × ".join(map(str, distilled.images.shape[1:])), distilled.preprocess.kind
    yield f"{_images(len(distilled.images))} of {shape} (channels, height, width), preprocessed"
    if distilled.parametrisation.views > 1:
        many, form = distilled.parametrisation.views, describe(distilled.parametrisation)
        yield f"each holds {many} images, which networks see enlarged ({form.pop('kind')}, {_named(form)})"
    yield f"storage: {distilled.storage:,} numbers (images and labels); compare accuracies at equal storage"
    yield f"classes, in the order of their labels: {', '.join(map(on_one_line, distilled.classes))}"
    if distilled.soft_labels is not None:
        yield "labels: soft, for cross-entropy; where one is needed, the largest"
    yield f"train on it by plain SGD with a learning rate of {distilled.alpha:.6g}"
    yield f"preprocessing: {kind}, fitted on the real training images; test images need the same"
    yield f"fingerprint {distilled.fingerprint}"


def _how(distilled: DistilledSet, artefact: Artefact) -> Iterator[str]:
    spec, data, metadata = distilled.data.spec, distilled.data, artefact.metadata
    held_out = f"{100 * data.validation_fraction:g} % of the training part held out for validation"
    source = f"from {spec.title} ({spec.describe}), {held_out}, seed {data.seed}"
    yield f"{source}, fingerprint {distilled.data_fingerprint}"
    if distilled.remark:
        yield f"the copy that it was made from: {distilled.remark}"
    yield f"method: {distilled.method}"
    if made_by(metadata) == "distillation":
        config, teachers = metadata["config"], metadata["teachers"]
        yield f"{config['kind']}: {_named({name: config.get(name) for name in _SHOWN})}"
        network = {name: value for name, value in teachers["config"]["network"].items() if name != "kind"}
        yield f"teachers: {teachers.get('count', 'several')} networks ({_named(network)})"
    if metadata.get("source"):
        yield f"source: {metadata['source']}"
    if artefact.computed_with:
        yield f"written with {artefact.computed_with}"


def _accuracy(path: Path, distilled: DistilledSet) -> str:
    found = evaluations_beside(path, distilled)
    if not found:
        return f"Not measured: no evaluation of it lies beside {path.name} (`iadd-lab evaluate` makes one)."
    lines = ["| network | split | epochs | networks | accuracy, % | balanced accuracy, % |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for each in found:
        row = each.summary()
        lines.append(
            f"| {row['network']} | {row['split']} | {each.config.epochs} | {len(each.confusion)} "
            f"| {row['accuracy']:.1f} ± {row['std']:.1f} "
            f"| {row['balanced accuracy']:.1f} ± {row['balanced std']:.1f} |"
        )
    for each, random in found.items():
        splits = f"mean of {each.splits} splits, each with a set of its own" if each.splits > 1 else ""
        said = filter(None, (splits, each.remark, doubts(each, random)))
        lines += [f"\n{each.config.network.title}: {sentence}" for sentence in said]
    return "\n".join(lines)


def evaluations_beside(path: Path, distilled: DistilledSet) -> dict[Evaluation, Evaluation | None]:
    """The evaluations in the folder of `path` that are of this very set, by their fingerprints.

    Each with that of random real images which was stored with it, as `NAME_random.safetensors`, if any.
    """
    stored: dict[str, Evaluation] = {}
    for file in sorted(Path(path).parent.glob("evaluation*.safetensors")):
        with suppress(InputError):  # a damaged neighbour is no reason to have no card
            stored[file.stem] = Evaluation.load(file)
    found = {}
    for name, each in stored.items():
        sets = [distilled.fingerprint] * (len(each.confusion) // each.splits)
        if each.identity == fingerprint(sets, each.config, distilled.data_fingerprint):
            found[each] = stored.get(f"{name}_random")
    return found


def _named(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def _bullets(lines: Iterator[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"
