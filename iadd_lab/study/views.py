"""A stored run opened to be looked at: its snapshots, W, and the real images that it came from."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from iadd_lab.data.distilled import KIND, DistilledSet
from iadd_lab.data.preprocess import preprocess_fingerprint
from iadd_lab.data.sets import ImageData, load_data
from iadd_lab.distillation.history import History
from iadd_lab.distillation.result import DistillResult
from iadd_lab.errors import InputError
from iadd_lab.evaluation.training_set import set_file
from iadd_lab.store.artefacts import load_artefact, read_metadata, unpacking
from iadd_lab.store.configs import describe, fingerprint, restore
from iadd_lab.store.runs import stored
from iadd_lab.study.neighbours import Neighbours
from iadd_lab.training.networks import ParameterLayout, build_network
from iadd_lab.training.teachers import TeacherConfig, Teachers, open_teachers


@dataclass(frozen=True, eq=False)
class View:
    """A distilled set with whatever of its run is at hand.

    Attributes:
        title: above its pictures.
        distilled: the set.
        history: of its run; parts of it may be missing, and so may all snapshots.
        made: how it was distilled and by which teachers, as stored; empty where W has no part in it.
        neighbours: the search for nearest real images; None where these are not at hand.
        remark: why real images or teachers are missing; else empty.
    """

    title: str
    distilled: DistilledSet
    history: History
    made: dict[str, Any]
    neighbours: Neighbours | None = None
    remark: str = ""

    @classmethod
    def of(
        cls,
        result: DistillResult,
        *,
        title: str = "",
        data: ImageData | None = None,
        teachers: Teachers | None = None,
    ) -> View:
        """A finished distillation; `data` and `teachers` are those that it was made with."""
        made, distilled = {"config": describe(result.config), "teachers": result.teachers}, result.distilled
        neighbours = data and Neighbours(data, distilled.preprocess, teachers)
        return cls(title or distilled.method, distilled, result.history, made, neighbours)

    @cached_property
    def iterations(self) -> list[int]:
        """Those of its snapshots, ascending; the last one alone where there are none."""
        return list(self.history.snapshot_iterations) or [len(self.history.loss)]

    def place(self, iteration: int) -> int:
        """The latest snapshot until `iteration`: an index into `iterations`."""
        return max(bisect(self.iterations, iteration) - 1, 0)

    def images(self, place: int) -> torch.Tensor:
        """(classes * ipc, channels, height, width) of a snapshot, preprocessed."""
        return self.history.snapshot_images[place] if self.history.snapshot_images else self.distilled.images

    @cached_property
    def layout(self) -> ParameterLayout:
        """Which parameter of W belongs to which tensor."""
        config, made = restore(TeacherConfig, self.made["teachers"]["config"]).network, self.distilled
        _, channels, _, size = made.images.shape
        network = build_network(config, channels=channels, size=size, classes=len(made.classes), seed=0)
        return ParameterLayout.of(network)

    def row(self, label: int, number: int) -> int:
        """Where image `number` of a class lies; its last one where it has fewer."""
        return int((self.distilled.labels == label).nonzero()[: number + 1][-1])

    def number(self, image: int) -> tuple[int, int]:
        """The class of an image, and which of the class's images it is."""
        label = int(self.distilled.labels[image])
        return label, int((self.distilled.labels[:image] == label).sum())


def open_run(folder: Path, *, runs: Path, title: str = "", data_root: Path | None = None) -> View:
    """The distilled set stored in `folder`, with its real images, and with teachers that lie among `runs`.

    Where either is not at hand, the view's remark says so.

    Raises:
        InputError: the set can't be read.
    """
    path = set_file(folder)
    artefact = load_artefact(path, kind=KIND)
    with unpacking(path):
        distilled = DistilledSet.from_parts(artefact.tensors, artefact.metadata)
        history = History.from_tensors(artefact.tensors)
    view = View(title or Path(folder).name, distilled, history, _made(artefact.metadata))
    try:
        data = load_data(distilled.data, root=data_root)
        distilled.check_data(data)
    except InputError:
        return replace(view, remark="the real images that it was made of are not at hand")
    teachers = find_teachers(runs, view)
    remark = "" if teachers else "no stored teacher gives features for them"
    return replace(view, neighbours=Neighbours(data, distilled.preprocess, teachers), remark=remark)


def find_teachers(runs: Path, view: View) -> Teachers | None:
    """The first teacher among `runs` that a set was made with, or whose data and preprocessing it shares."""
    made, distilled = view.made, view.distilled
    fitted = preprocess_fingerprint(distilled.preprocess)
    for path, about in _finished(runs, "teachers"):
        same_data = about["data_fingerprint"] == distilled.data_fingerprint
        if same_data and (not made or about["config"] == made["teachers"]["config"]):
            teachers = open_teachers(path, count=1)
            if preprocess_fingerprint(teachers.preprocess) == fitted:
                return teachers
    return None


def stored_runs(runs: Path, *, without: Sequence[View] = ()) -> dict[str, Path]:
    """The finished distilled sets below `runs`, by a name for each that says what sets it apart.

    Args:
        runs: a folder of runs.
        without: runs that are not wanted once more.

    Raises:
        InputError: it is no folder of runs.
    """
    named, known = {}, [fingerprint(view.made) for view in without if view.made]
    for path, about in _finished(runs, KIND):
        config = about.get("config") or about.get("baseline") or {}
        stem, _, mark = path.name.rpartition("-")
        parts = [f"{key} {config[key]}" for key in ("iterations", "seed") if key in config]
        if fingerprint(_made(about)) not in known:
            named[", ".join([stem, *parts, mark[:4]])] = path
    return named


def _finished(runs: Path, kind: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The finished runs of a kind: their folders, and what they say of themselves."""
    for found in stored(runs):
        if (found.kind, found.state) == (kind, "finished"):
            yield found.path, read_metadata(found.path / f"{kind}.safetensors", kind=kind)


def _made(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """How a stored set was distilled, and by which teachers; empty for what was made otherwise."""
    return {name: metadata[name] for name in ("config", "teachers")} if "config" in metadata else {}
