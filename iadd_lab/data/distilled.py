"""A distilled set: what is needed to train on it, and to test on real images in the same way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from iadd_lab.data.augment import AugmentConfig, usual_augmentation
from iadd_lab.data.parametrisation import Parametrisation, Pixels
from iadd_lab.data.preprocess import (
    Preprocess,
    check_preprocess,
    fit_preprocess,
    preprocess_fingerprint,
    preprocess_from_tensors,
    preprocess_tensors,
)
from iadd_lab.data.sets import DataConfig, ImageData, load_data
from iadd_lab.errors import check_number, require
from iadd_lab.store.artefacts import load_artefact, save_artefact, tensor_fingerprint, unpacking
from iadd_lab.store.configs import describe, fingerprint, restore, restore_fields

KIND = "distilled"
_UNLESS_SET = {"remark": "", "parametrisation": Pixels()}  # are left out of the metadata
# Fields, as metadata; older files lack the last three.
_DESCRIBED = ("alpha", "classes", "data", "data_fingerprint", "method", "augment", *_UNLESS_SET)
REFIT = "refit"  # names, in the metadata, the preprocessing that was left out


def made_by(metadata: Mapping[str, Any]) -> str:
    """What made a stored set, by its metadata: "distillation" (the file holds a `DistillResult`), "descent"
    (of images alone: DC, DSA or DM), or "set" (anything else, real images among them).

    Files of earlier versions do not say it: there it shows in the name of the configuration that they carry.
    """
    inferred = "distillation" if "config" in metadata else "descent" if "baseline" in metadata else "set"
    return metadata.get("made_by", inferred)


def displayable(images: torch.Tensor) -> torch.Tensor:
    """Images (count, channels, height, width) of any range as pictures in [0, 1]; see `pictures`."""
    flat = images.flatten(1)  # (count, channels * height * width)
    low, high = flat.quantile(torch.tensor([0.01, 0.99]).to(flat), dim=1).clamp(-1e6, 1e6)  # (count,) each
    mean = flat.mean(1)
    centre = mean.clamp(0.2, 0.8)  # a picture all outside the range is shifted into it
    # A real picture's mean and quantiles lie in [0, 1] already: nothing is to be lowered.
    above = (1 - centre) / (high - mean).clamp_min(1e-6)
    below = centre / (mean - low).clamp_min(1e-6)
    inside = (low >= 0) & (high <= 1)
    factor = torch.where(inside, 1.0, torch.minimum(above, below).clamp_max(1.0))
    moved = (flat - mean[:, None]) * factor[:, None] + torch.where(inside, mean, centre)[:, None]
    return moved.clamp(0, 1).view(images.shape)


def are_shares(soft: torch.Tensor) -> bool:
    """Whether soft labels (count, classes) are probabilities, not logits."""
    return bool((soft >= 0).all()) and bool(((soft.sum(1) - 1).abs() < 1e-4).all())


@dataclass(frozen=True, eq=False)
class DistilledSet:
    """A few images per class, with the preprocessing without which they mean nothing.

    Real test images go through `preprocess` before a network trained on `images` sees them; `evaluate`
    does that by itself.
    """

    images: torch.Tensor  # as stored, (classes * ipc, channels, height, width) float32, preprocessed
    labels: torch.Tensor  # of the stored images, (classes * ipc,) int64
    alpha: float  # the learning rate to train with
    preprocess: Preprocess
    classes: tuple[str, ...]
    data: DataConfig  # of the real set
    data_fingerprint: str
    method: str  # how it was made, as in "learned" or "random real"
    augment: AugmentConfig | None = None  # what it was made for; None: the operations of the real set
    remark: str = ""  # of the real set, on the copy that it was made from
    # Of what networks see, (classes * ipc * views, classes) float32: logits, or shares that sum to 1.
    soft_labels: torch.Tensor | None = None
    parametrisation: Parametrisation = Pixels()  # by which `images` are decoded to what networks see

    def __post_init__(self):
        check_number("alpha", self.alpha, above=True)

    @classmethod
    def of(cls, data: ImageData, preprocess: Preprocess, **parts: Any) -> DistilledSet:
        """A set that stands for `data`; `parts` are the fields that neither it nor `preprocess` has."""
        source = {"classes": data.classes, "data": data.config, "data_fingerprint": data.fingerprint}
        return cls(preprocess=preprocess, remark=data.remark, **source, **parts)

    @property
    def ipc(self) -> int:
        """Stored images per class."""
        return len(self.images) // len(self.classes)

    @cached_property
    def decoded(self) -> DistilledSet:
        """The set as networks see it: its images are all decoded, (classes * ipc * views, ...)."""
        form = self.parametrisation
        if form == Pixels():
            return self
        seen = {"images": form.decode(self.images), "labels": self.labels.repeat_interleave(form.views)}
        return replace(self, **seen, parametrisation=Pixels())

    @property
    def storage(self) -> int:
        """How many numbers the set is: those of its stored images, and its labels."""
        labels = self.labels if self.soft_labels is None else self.soft_labels
        return self.images.numel() + labels.numel()

    @property
    def augmentation(self) -> AugmentConfig:
        """What networks that train on it see of it: the operations that it was made for."""
        return self.augment or usual_augmentation(self.data.spec.augment, self.images.shape[1])

    @property
    def targets(self) -> torch.Tensor:
        """What networks are trained towards by cross-entropy, of a `decoded` set: labels, or probabilities
        (count, classes).

        Soft labels are logits whose softmax counts, as in TESLA, DATM and PAD, unless they are shares.
        """
        if self.soft_labels is None:
            return self.labels
        return self.soft_labels if are_shares(self.soft_labels) else self.soft_labels.softmax(1)

    def _tensors(self) -> dict[str, torch.Tensor]:
        soft = {} if self.soft_labels is None else {"soft_labels": self.soft_labels}
        return {"images": self.images, "labels": self.labels, **soft}

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over all that training on the set, and testing beside it, depends on."""
        state, content = preprocess_fingerprint(self.preprocess), tensor_fingerprint(self._tensors())
        form = [self.parametrisation] if self.parametrisation != Pixels() else []
        return fingerprint(content, float(self.alpha), state, self.data_fingerprint, *form)

    def pictures(self, images: torch.Tensor | None = None) -> torch.Tensor:
        """For the eye: the stored images (or others like them), without preprocessing, in [0, 1].

        Distilled pixels leave the range of real ones. The contrast of a picture is lowered about its mean,
        as far as it takes for 98 % of its values to fit; real images stay as they are.
        """
        stored = self.images if images is None else images
        return displayable(self.parametrisation.pixels(stored, self.preprocess))

    def check_data(self, data: ImageData) -> None:
        """Require that `data` is the real set, split as it was, that this set stands for."""
        require(
            data.fingerprint == self.data_fingerprint,
            f"this set was made from {self.data} (fingerprint {self.data_fingerprint}), but the data given "
            f"is {data.config} (fingerprint {data.fingerprint}): load the data that the set was made from.",
        )

    def save(
        self,
        path: Path,
        *,
        refit: bool = False,
        more_tensors: Mapping[str, torch.Tensor] | None = None,
        more_metadata: Mapping[str, Any] | None = None,
    ) -> Path:
        """Store the set at `path`, atomically, with whatever else describes how it was made.

        Args:
            path: of the file.
            refit: leave the fitted preprocessing out (whitening is 38 MB at 32 × 32 pixels in colour). Who
                loads the file needs the real set as well: it is fitted anew, in half a minute.
            more_tensors: stored beside the set's own.
            more_metadata: likewise.
        """
        tensors = self._tensors() | dict(more_tensors or {})
        said = [name for name in _DESCRIBED if getattr(self, name) != _UNLESS_SET.get(name, ...)]
        metadata = {name: describe(getattr(self, name)) for name in said} | dict(more_metadata or {})
        metadata["made_by"] = made_by(metadata)
        metadata |= {REFIT: self.preprocess.kind} if refit else {}
        tensors |= {} if refit else preprocess_tensors(self.preprocess)
        return save_artefact(path, kind=KIND, tensors=tensors, metadata=metadata)

    @classmethod
    def from_parts(cls, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> DistilledSet:
        """The set among the tensors and metadata of an artefact.

        Raises:
            InputError: images, labels and classes do not belong together.
        """
        images, labels = tensors["images"], tensors["labels"]
        found = f"images {tuple(images.shape)} {images.dtype} and labels {tuple(labels.shape)}"
        fit = images.ndim == 4 and images.is_floating_point() and labels.shape == images.shape[:1]
        needs = "it needs (count, channels, height, width) floats and (count,)"
        require(fit, f"a distilled set has {found}; {needs}.")
        about = restore_fields(cls, _DESCRIBED, {"augment": None, **describe(_UNLESS_SET), **metadata})
        form = about["parametrisation"]
        form.check(images.shape[3])
        soft, shape = tensors.get("soft_labels"), (len(images) * form.views, len(metadata["classes"]))
        fits = soft is None or (tuple(soft.shape) == shape and soft.is_floating_point())
        require(fits, f"soft labels of a distilled set must be {shape} floats: make it again.")
        preprocess = preprocess_from_tensors(tensors)
        check_preprocess(preprocess, channels=images.shape[1], size=images.shape[3])
        return cls(images=images, labels=labels, soft_labels=soft, preprocess=preprocess, **about)

    @classmethod
    def load(cls, path: Path, *, root: Path | None = None) -> DistilledSet:
        """Read and verify the set at `path`, whoever of this package wrote it.

        Args:
            path: of the file.
            root: where the real set lies, for a file without its preprocessing; None for the usual place.

        Raises:
            InputError: the file is missing, damaged, or not a distilled set; or its preprocessing was left
                out, and the real set to fit it on is not there.
        """
        artefact = load_artefact(path, kind=KIND)
        tensors, metadata = artefact.tensors, artefact.metadata
        if REFIT in metadata:
            with unpacking(path):
                config, made_from = restore(DataConfig, metadata["data"]), metadata["data_fingerprint"]
            data = load_data(config, root=root)
            needs = f"{path} leaves its preprocessing to be fitted on {config.name} (fingerprint {made_from})"
            mend = f"the copy here has fingerprint {data.fingerprint}: point IADD_DATA at the right one"
            require(data.fingerprint == made_from, f"{needs}, but {mend}.")
            tensors = tensors | preprocess_tensors(fit_preprocess(metadata[REFIT], data.train.images))
        with unpacking(path):
            return cls.from_parts(tensors, metadata)
