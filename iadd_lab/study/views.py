"""A stored run opened to be looked at: its snapshots, W, and the real images that it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

import iadd_lab
from iadd_lab.data.distilled import KIND, DistilledSet
from iadd_lab.data.preprocess import preprocess_fingerprint
from iadd_lab.data.sets import ImageData
from iadd_lab.distillation.history import History
from iadd_lab.distillation.result import DistillResult
from iadd_lab.errors import InputError, require
from iadd_lab.evaluation.training_set import set_file
from iadd_lab.store.artefacts import load_artefact, read_metadata, unpacking
from iadd_lab.store.configs import describe, fingerprint
from iadd_lab.store.runs import stored
from iadd_lab.study.neighbours import Nearest, Neighbours
from iadd_lab.training.networks import NetworkConfig, ParameterLayout, build_network
from iadd_lab.training.teachers import Teachers, open_teachers


@dataclass(frozen=True, eq=False)
class View:
    """A distilled set with whatever of its run is at hand.

    Attributes:
        title: above its pictures.
        distilled: the set.
        history: of its run; parts of it may be missing, and so may all snapshots.
        network: whose parameters W belongs to; None where there is no W.
        data: the real set; None leaves out its nearest images.
        teachers: whose features images are compared by; None leaves out features.
        remark: why data or teachers are missing; else empty.
        identity: equal for runs that are configured alike; empty where that is not known.
    """

    title: str
    distilled: DistilledSet
    history: History
    network: NetworkConfig | None = None
    data: ImageData | None = None
    teachers: Teachers | None = None
    remark: str = ""
    identity: str = ""

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
        return cls(
            title=title or result.distilled.method,
            distilled=result.distilled,
            history=result.history,
            network=result.teacher_config.network,
            data=data,
            teachers=teachers,
            identity=_identity({"config": describe(result.config), "teachers": result.teachers}),
        )

    @cached_property
    def iterations(self) -> list[int]:
        """Those of its snapshots, ascending; the last one alone where there are none."""
        return list(self.history.snapshot_iterations) or [len(self.history.loss)]

    def place(self, iteration: int) -> int:
        """The latest snapshot until `iteration`: an index into `iterations`."""
        return max(int(np.searchsorted(self.iterations, iteration, side="right")) - 1, 0)

    def images(self, place: int) -> torch.Tensor:
        """(classes * ipc, channels, height, width) of a snapshot, preprocessed."""
        return self.history.snapshot_images[place] if self.history.snapshot_images else self.distilled.images

    def pictures(self, place: int) -> torch.Tensor:
        """The same for the eye, in [0, 1]."""
        return self.distilled.pictures(self.images(place))

    def change(self, place: int) -> torch.Tensor:
        """What a snapshot's images differ by from the first one's, without preprocessing."""
        invert = self.distilled.preprocess.invert
        return invert(self.images(place)) - invert(self.images(0))

    @cached_property
    def largest_change(self) -> float:
        """What one pixel of 200 in the last snapshot exceeds, as the mean over its channels."""
        return float(np.quantile(self.change(len(self.iterations) - 1).mean(1).abs().numpy(), 0.995))

    @property
    def has_importance(self) -> bool:
        """Whether W is known, and can be anything but ones."""
        return bool(self.history.snapshot_importance)

    def importance(self, place: int) -> torch.Tensor:
        """W at a snapshot, (P,)."""
        return self.history.snapshot_importance[place]

    @cached_property
    def layout(self) -> ParameterLayout:
        """Which parameter W belongs to which tensor."""
        channels, size = self.distilled.images.shape[1], self.distilled.images.shape[3]
        network = build_network(
            self.network, channels=channels, size=size, classes=len(self.distilled.classes), seed=0
        )
        return ParameterLayout.of(network)

    def row(self, label: int, number: int) -> int:
        """Where image `number` of a class lies; its last one where it has fewer."""
        rows = torch.nonzero(self.distilled.labels == label).flatten().tolist()
        return rows[min(number, len(rows) - 1)]

    def number(self, image: int) -> tuple[int, int]:
        """The class of an image, and which of the class's images it is."""
        label = int(self.distilled.labels[image])
        return label, int((self.distilled.labels[:image] == label).sum())

    @cached_property
    def neighbours(self) -> Neighbours | None:
        """The search for nearest real images, where the real set is at hand."""
        if self.data is None:
            return None
        return Neighbours(self.data, self.distilled.preprocess, teachers=self.teachers)

    @property
    def spaces(self) -> tuple[str, ...]:
        """In which the nearest real images can be found; perhaps none."""
        return self.neighbours.spaces if self.neighbours else ()

    def nearest(self, place: int, image: int, *, by: str, count: int) -> Nearest:
        """The real images nearest to one image of a snapshot; see `Neighbours.of`."""
        require(
            self.neighbours is not None,
            f"{self.title} has no real images at hand: open it with data.",
        )
        return self.neighbours.of(self.images(place)[image : image + 1], by=by, count=count)


def open_run(folder: Path, *, runs: Path, title: str = "", data_root: Path | None = None) -> View:
    """The distilled set stored in `folder`, with its real images, and with teachers that lie among `runs`.

    Where either is not at hand, the view's remark says so.

    Raises:
        InputError: the set can't be read.
    """
    path = set_file(folder)
    metadata = read_metadata(path, kind=KIND)
    title = title or Path(folder).name
    if "config" in metadata:
        view = View.of(DistillResult.load(path), title=title)
    else:  # a set of gradient or distribution matching: no teachers, no snapshots
        artefact = load_artefact(path, kind=KIND)
        with unpacking(path):
            made = DistilledSet.from_parts(artefact.tensors, artefact.metadata)
            view = View(title, made, History.from_tensors(artefact.tensors))
    try:
        data = iadd_lab.load_data(view.distilled.data, root=data_root)
        view.distilled.check_data(data)
    except InputError:
        return replace(view, remark="the real images that it was made of are not at hand")
    teachers = find_teachers(runs, view.distilled, config=metadata.get("teachers", {}).get("config"))
    remark = "" if teachers else "no stored teacher gives features for them"
    return replace(view, data=data, teachers=teachers, remark=remark)


def find_teachers(
    runs: Path, distilled: DistilledSet, *, config: Mapping[str, Any] | None = None
) -> Teachers | None:
    """The first teacher among `runs` of the set's own data and preprocessing; None if there is none.

    Args:
        runs: a folder of runs.
        distilled: the set.
        config: of the teachers that it was made with, as stored; None takes any.
    """
    for found in stored(runs):
        if found.kind != "teachers" or found.state != "finished":
            continue
        metadata = read_metadata(found.path / "teachers.safetensors", kind="teachers")
        if metadata["data_fingerprint"] != distilled.data_fingerprint:
            continue
        if config is None or metadata["config"] == config:
            teachers = open_teachers(found.path, count=1)
            if preprocess_fingerprint(teachers.preprocess) == preprocess_fingerprint(distilled.preprocess):
                return teachers
    return None


def stored_runs(runs: Path, *, without: frozenset[str] = frozenset()) -> dict[str, Path]:
    """The finished distilled sets below `runs`, by a name for each that says what sets it apart.

    Args:
        runs: a folder of runs.
        without: identities of views that are not wanted once more.

    Raises:
        InputError: it is no folder of runs.
    """
    named: dict[str, Path] = {}
    for found in stored(runs):
        if found.kind != "distilled" or found.state != "finished":
            continue
        metadata = read_metadata(set_file(found.path), kind=KIND)
        config = metadata.get("config") or metadata.get("baseline") or {}
        if _identity(metadata) in without:
            continue
        stem, _, mark = found.name.rpartition("-")
        parts = [stem, *(f"{key} {config[key]}" for key in ("iterations", "seed") if key in config)]
        name = ", ".join(parts)
        named[f"{name} ({mark[:4]})" if name in named else name] = found.path
    return named


def _identity(metadata: Mapping[str, Any]) -> str:
    """Of a run's metadata: equal for equal configurations and teachers; empty for what has neither."""
    if "config" not in metadata:
        return ""
    return fingerprint(metadata["config"], metadata["teachers"]["fingerprint"])
