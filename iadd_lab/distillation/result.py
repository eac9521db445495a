"""What a distillation made: the set, W, and how it went."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from iadd_lab.data.distilled import KIND, DistilledSet
from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.history import History
from iadd_lab.errors import require
from iadd_lab.store.artefacts import load_artefact, unpacking
from iadd_lab.store.configs import describe, restore
from iadd_lab.training.teachers import TeacherConfig


@dataclass(frozen=True, eq=False)
class DistillResult:
    """What a distillation made, and how."""

    distilled: DistilledSet
    importance: torch.Tensor  # W at the end, (P,); ones where nothing is learned
    raw: torch.Tensor  # the matching's learned values behind W, (0,) where there are none
    history: History
    config: DistillConfig
    teachers: dict[str, Any]  # the teachers' configuration, fingerprint and count, as stored

    @property
    def images(self) -> torch.Tensor:
        """The distilled images as they are stored, (classes * ipc, channels, height, width), preprocessed."""
        return self.distilled.images

    @property
    def labels(self) -> torch.Tensor:
        """Their classes, (classes * ipc,)."""
        return self.distilled.labels

    @property
    def alpha(self) -> float:
        """The student's learning rate."""
        return self.distilled.alpha

    @property
    def teacher_config(self) -> TeacherConfig:
        """How the teachers were trained, their network and preprocessing included."""
        return restore(TeacherConfig, self.teachers["config"])

    def save(self, path: Path) -> Path:
        """Store everything in one file, from which `DistilledSet.load` reads the set alone."""
        tensors = self.history.tensors() | {"importance": self.importance, "raw": self.raw}
        made = {"config": describe(self.config), "teachers": self.teachers, "made_by": "distillation"}
        return self.distilled.save(path, more_tensors=tensors, more_metadata=made)

    @classmethod
    def load(cls, path: Path) -> DistillResult:
        """Read and verify the result at `path`.

        Raises:
            InputError: the file is missing, damaged, or holds a set that was not distilled here.
        """
        artefact = load_artefact(path, kind=KIND)
        sentence = f"{path} holds a set without a distillation: use DistilledSet.load."
        require("config" in artefact.metadata, sentence)
        tensors, metadata = artefact.tensors, artefact.metadata
        with unpacking(path):
            distilled, history = DistilledSet.from_parts(tensors, metadata), History.from_tensors(tensors)
            config = restore(DistillConfig, metadata["config"])
            raw, importance, teachers = tensors["raw"], tensors["importance"], metadata["teachers"]
            restore(TeacherConfig, teachers["config"])
            return cls(distilled, importance, raw, history, config, teachers)
