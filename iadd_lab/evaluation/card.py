"""Data cards: what a distilled set is, how it was made, how well it does, and whose data it came from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iadd_lab.data.distilled import KIND, DistilledSet
from iadd_lab.data.sets import DATASETS
from iadd_lab.errors import InputError
from iadd_lab.evaluation.protocol import Evaluation
from iadd_lab.store.artefacts import read_metadata
from iadd_lab.store.configs import fingerprint

_SHOWN = ("ipc", "iterations", "student_steps", "teacher_epochs", "max_start_epoch", "initial_images", "seed")


def data_card(path: Path, *, notes: Sequence[str] = ()) -> str:
    """The card of the distilled set in the file `path` as Markdown, with the evaluations that lie beside it.

    Args:
        path: the file of the set.
        notes: sentences on the copy that the card goes with.

    Raises:
        InputError: the set can't be read.
    """
    distilled, metadata = DistilledSet.load(path), read_metadata(path, kind=KIND)
    title = DATASETS[distilled.data.name].title
    parts = [f"# {title}, distilled to {_count(distilled.ipc, 'image')} per class", *notes]
    parts += ["## What it is", _bullets(_what(distilled))]
    parts += ["## How it was made", _bullets(_how(distilled, metadata))]
    parts += ["## Accuracy", _accuracy(path, distilled)]
    licence = DATASETS[distilled.data.name].licence
    parts += [
        "## Licence of the source data",
        f"{title}: {licence}. A distilled set is made from these images.",
    ]
    parts += ["Written by iadd-lab, https://arxiv.org/abs/2401.15863 being the method's paper."]
    return "\n\n".join(parts) + "\n"


def _what(distilled: DistilledSet) -> list[str]:
    shape = " × ".join(map(str, distilled.images.shape[1:]))
    kind = distilled.preprocess.kind
    return [
        f"{_count(len(distilled.images), 'image')} of {shape} (channels, height, width), preprocessed",
        f"classes, in the order of their labels: {', '.join(distilled.classes)}",
        f"train on it by plain SGD with a learning rate of {distilled.alpha:.6g}",
        f"preprocessing: {kind}, fitted on the real training images; test images need the same",
        f"fingerprint {distilled.fingerprint}",
    ]


def _how(distilled: DistilledSet, metadata: dict[str, Any]) -> list[str]:
    spec, data = DATASETS[distilled.data.name], distilled.data
    held_out = f"{100 * data.validation_fraction:g} % of the training part held out for validation"
    lines = [
        f"from {spec.title} ({spec.describe}), {held_out}, seed {data.seed}, fingerprint "
        f"{distilled.data_fingerprint}",
        f"method: {distilled.method}",
    ]
    config, teachers = metadata.get("config"), metadata.get("teachers")
    if config:
        settings = ", ".join(f"{name} {config[name]}" for name in _SHOWN if config.get(name) is not None)
        lines.append(f"{config['kind']}: {settings}")
    if teachers:
        network = teachers["config"]["network"]
        named = ", ".join(
            f"{key} {value}" for key, value in network.items() if key != "kind" and value is not None
        )
        lines.append(f"teachers: {teachers.get('count', 'several')} networks ({named})")
    if metadata.get("source"):
        lines.append(f"source: {metadata['source']}")
    return lines


def _accuracy(path: Path, distilled: DistilledSet) -> str:
    found = evaluations_beside(path, distilled)
    if not found:
        return f"Not measured: no evaluation of it lies beside {path.name} (`iadd-lab evaluate` makes one)."
    rows = [
        "| network | split | epochs | networks | accuracy, % | balanced accuracy, % |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for each in found:
        row, epochs = each.summary(), each.config.epochs
        rows.append(
            f"| {row['network']} | {row['split']} | {epochs} | {row['networks']} "
            f"| {row['accuracy']:.1f} ± {row['std']:.1f} "
            f"| {row['balanced accuracy']:.1f} ± {row['balanced std']:.1f} |"
        )
    remarks = [f"{each.config.network.title}: {each.remark}" for each in found if each.remark]
    return "\n".join([*rows, *([""] if remarks else []), *remarks])


def evaluations_beside(path: Path, distilled: DistilledSet) -> list[Evaluation]:
    """The evaluations in the folder of `path` that are of this very set, by their fingerprints."""
    found = []
    for each in sorted(Path(path).parent.glob("evaluation*.safetensors")):
        try:
            evaluation = Evaluation.load(each)
        except InputError:  # a damaged neighbour is no reason to have no card
            continue
        sets = [distilled.fingerprint] * len(evaluation.confusion)
        if evaluation.identity == fingerprint(sets, evaluation.config, distilled.data_fingerprint):
            found.append(evaluation)
    return found


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
