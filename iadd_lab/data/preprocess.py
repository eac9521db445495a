"""Standardising and ZCA-whitening, with inverses; the fitted state travels with every artefact."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import ClassVar

import torch
from torch.nn import functional

from iadd_lab.device import root
from iadd_lab.errors import InputError, choose, require
from iadd_lab.store.artefacts import tensor_fingerprint

_CHUNK = 4096  # images converted to float at a time at most,
_LARGEST, _SMALL = 2**24, 2**20  # and values, for products and for sums: bounds memory on large sets
_FEWEST = 64  # rows of a product, below which libraries round it in another way
_ZCA_LIMIT = 3 * 64 * 64  # the whitening matrix has this many columns at most: 600 MB


def as_float(images: torch.Tensor) -> torch.Tensor:
    """Images as floats in [0, 1]: uint8 is divided by 255 in float32, floating point is taken as it is."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def _chunks(images: torch.Tensor, values: int = _LARGEST) -> Iterator[torch.Tensor]:
    size = min(_CHUNK, max(values // max(images[:1].numel(), 1), 1))
    return (as_float(chunk) for chunk in images.split(size))


def _joined(parts: Iterable[torch.Tensor]) -> torch.Tensor:
    """The parts as one; a single one is not copied."""
    first, *rest = parts
    return torch.cat([first, *rest]) if rest else first


@dataclass(frozen=True, eq=False)
class Preprocess:
    """What all kinds have: `fit`, `apply`, `invert`, and a fitted state whose tensors are their fields."""

    kind: ClassVar[str]
    kept: ClassVar[int]  # bytes of floats up to which `prepare` makes them once for all

    def prepare(self, images: torch.Tensor) -> torch.Tensor | Preprocessed:
        """All of `images` (uint8) as network input, to take batches of: in memory they may stay bytes."""
        few = images.numel() * torch.float32.itemsize <= self.kept
        return self.apply(images) if few else Preprocessed(self, images)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The fitted state, for `preprocess_from_tensors`."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, eq=False)
class Preprocessed:
    """Bytes of images that become network input, four times as large, when a batch is asked for.

    It stands for the tensor that `preprocess.apply(images)` is, where that is only indexed and split.
    """

    preprocess: Preprocess
    images: torch.Tensor  # (count, channels, height, width) uint8

    @property
    def shape(self) -> torch.Size:
        return self.images.shape

    @property
    def device(self) -> torch.device:
        return self.images.device

    def element_size(self) -> int:
        return torch.float32.itemsize

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice | torch.Tensor) -> torch.Tensor:
        """The network input of those rows, which does not depend on how many they are."""
        chosen = self.images[rows]
        filled = functional.pad(chosen, (0, 0, 0, 0, 0, 0, 0, max(_FEWEST - len(chosen), 0)))
        return self.preprocess.apply(filled)[: len(chosen)]

    def split(self, size: int) -> Iterator[torch.Tensor]:
        """Batches of so many, in order; the last one may be smaller."""
        return (self[start : start + size] for start in range(0, len(self), size))


@dataclass(frozen=True, eq=False)
class Standardise(Preprocess):
    """Each channel to mean 0 and standard deviation 1 over the training images."""

    mean: torch.Tensor  # (channels,)
    deviation: torch.Tensor  # (channels,)
    kind: ClassVar[str] = "standardise"
    kept: ClassVar[int] = 2**24  # elsewhere it costs nothing beside a step of training

    @classmethod
    def fit(cls, images: torch.Tensor) -> Standardise:
        """Fit on images of shape (count, channels, height, width), uint8 or float in [0, 1]."""
        count = images.numel() // images.shape[1]
        mean = sum(chunk.double().sum((0, 2, 3)) for chunk in _chunks(images, _SMALL)) / count
        centred = (chunk.double() - mean[:, None, None] for chunk in _chunks(images, _SMALL))
        deviation = root(sum(chunk.square().sum((0, 2, 3)) for chunk in centred) / count)
        # A constant channel carries nothing; dividing by a tiny number would only blow up rounding.
        return cls(mean=mean.float(), deviation=deviation.float().clamp_min(1e-3))

    def apply(self, images: torch.Tensor) -> torch.Tensor:
        """Images (uint8, or float in [0, 1]) to network input of the same shape, float, on their device."""
        mean, deviation = self._columns(images.device)
        return _joined((chunk - mean) / deviation for chunk in _chunks(images))

    def invert(self, images: torch.Tensor) -> torch.Tensor:
        """Network input back to images whose real ones lie in [0, 1]; distilled ones may lie outside."""
        mean, deviation = self._columns(images.device)
        return images * deviation + mean

    def _columns(self, device: torch.device) -> Iterator[torch.Tensor]:
        """Mean and deviation, (channels, 1, 1) each."""
        return (each.to(device)[:, None, None] for each in (self.mean, self.deviation))


@dataclass(frozen=True, eq=False)
class Zca(Preprocess):
    """Centre and decorrelate all pixels in [0, 1] with the symmetric whitening matrix (C + 0.1·I)^(-1/2).

    Pixels are not standardised first, and 0.1 is added to the eigenvalues of their covariance C: MTT and its
    successors do so, and their learning rates of images belong to that scale.
    """

    centre: torch.Tensor  # (channels * height * width,)
    eigenvalues: torch.Tensor  # (channels * height * width,), of C
    eigenvectors: torch.Tensor  # (channels * height * width,) squared, in columns
    kind: ClassVar[str] = "zca"
    kept: ClassVar[int] = 2**30  # a product with a large matrix for each batch is not for nothing
    regularisation: ClassVar[float] = 0.1

    @classmethod
    def fit(cls, images: torch.Tensor) -> Zca:
        """Fit on images of shape (count, channels, height, width), uint8 or float in [0, 1].

        Raises:
            InputError: the images are too large for a dense whitening matrix.
        """
        columns = images[0].numel()
        needs = f"ZCA of {tuple(images.shape[1:])} images needs a {columns}×{columns} matrix"
        most = f"at most {_ZCA_LIMIT} values per image are supported"
        require(columns <= _ZCA_LIMIT, f"{needs}; {most}: use preprocess 'standardise' or smaller images.")
        total = sum(chunk.flatten(1).double().sum(0) for chunk in _chunks(images))
        centre = (total / len(images)).float()
        covariance = torch.zeros(columns, columns, dtype=torch.float64)
        for chunk in _chunks(images):
            centred = chunk.float().flatten(1) - centre  # (chunk, columns)
            covariance += (centred.T @ centred).double()
        eigenvalues, eigenvectors = torch.linalg.eigh((covariance / max(len(images) - 1, 1)).float())
        return cls(centre, eigenvalues.clamp_min(0), eigenvectors.contiguous())

    @cached_property
    def _whiten(self) -> torch.Tensor:
        scale = (self.eigenvalues + self.regularisation).rsqrt()
        return (self.eigenvectors * scale) @ self.eigenvectors.T

    @cached_property
    def _colour(self) -> torch.Tensor:
        scale = root(self.eigenvalues + self.regularisation)
        return (self.eigenvectors * scale) @ self.eigenvectors.T

    def apply(self, images: torch.Tensor) -> torch.Tensor:
        """Images (uint8, or float in [0, 1]) to whitened network input of the same shape."""
        flat = (chunk.flatten(1) for chunk in _chunks(images))  # (chunk, channels * height * width) each
        whitened = ((each - self.centre.to(each)) @ self._whiten.to(each) for each in flat)
        return _joined(whitened).view(images.shape)

    def invert(self, images: torch.Tensor) -> torch.Tensor:
        """Whitened network input back to images whose real ones lie in [0, 1]."""
        columns = images.flatten(1) @ self._colour.to(images) + self.centre.to(images)
        return columns.view(images.shape)


def check_preprocess(preprocess: Preprocess, *, channels: int, size: int) -> None:
    """Require that `preprocess` was fitted on images (channels, size, size).

    Raises:
        InputError: its tensors are not floats, or have other shapes.
    """
    values = channels if isinstance(preprocess, Standardise) else channels * size * size
    for name, tensor in preprocess.tensors().items():
        shape, found = (values, values) if name == "eigenvectors" else (values,), tuple(tensor.shape)
        need = f"images of {channels} channels and {size} px need {shape} floats"
        sentence = f"{name} of the preprocessing has {found} {tensor.dtype}; {need}: fit it on such images."
        require(tensor.is_floating_point() and found == shape, sentence)


PREPROCESSES: dict[str, type[Preprocess]] = {kind.kind: kind for kind in (Standardise, Zca)}


def fit_preprocess(kind: str, images: torch.Tensor) -> Preprocess:
    """Fit the preprocessing named `kind` (a key of `PREPROCESSES`) on training images.

    Raises:
        InputError: `kind` is unknown, or the images are too large for it.
    """
    return choose("preprocess", kind, PREPROCESSES).fit(images)


def preprocess_tensors(preprocess: Preprocess) -> dict[str, torch.Tensor]:
    """The state as it is stored in an artefact: every name starts with `preprocess/<kind>/`."""
    return {f"preprocess/{preprocess.kind}/{name}": tensor for name, tensor in preprocess.tensors().items()}


def preprocess_from_tensors(tensors: Mapping[str, torch.Tensor]) -> Preprocess:
    """The preprocessing that `preprocess_tensors` put among an artefact's tensors.

    Raises:
        InputError: there is none, or a part of it is missing.
    """
    stored = {tuple(name.split("/")[1:]): t for name, t in tensors.items() if name.startswith("preprocess/")}
    try:
        (kind,) = {key[0] for key in stored} & PREPROCESSES.keys()
        return PREPROCESSES[kind](**{key[1]: tensor for key, tensor in stored.items()})
    except (ValueError, LookupError, TypeError) as error:
        raise InputError("the artefact carries no complete preprocessing: make it again.") from error


def preprocess_fingerprint(preprocess: Preprocess) -> str:
    """16 hex digits that identify the fitted state."""
    return tensor_fingerprint(preprocess_tensors(preprocess))
