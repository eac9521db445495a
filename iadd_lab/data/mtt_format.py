"""Distilled sets in MTT's format, `images_best.pt` and `labels_best.pt`: others' read, our own written.

The format holds preprocessed images and their labels, and nothing about the preprocessing. MTT's code
(Cazenavette et al., CVPR 2022) either whitens by ZCA, fitted on all training images, or standardises by
constants; its successors keep that. Some of them (TESLA, DATM, PAD) have soft labels, as logits, and a
learned rate in a file of its own. A set that this package writes carries `iadd_lab.safetensors` as well, with
the fitted preprocessing and α, so that reading it back gives the very same set.
"""

import logging
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn import functional

from iadd_lab.data.distilled import DistilledSet
from iadd_lab.data.preprocess import Preprocess, Standardise, Zca, as_float
from iadd_lab.data.sets import ImageData
from iadd_lab.errors import check_number, choose, require
from iadd_lab.store.artefacts import atomic_path
from iadd_lab.store.foreign_files import load_safely

logger = logging.getLogger(__name__)

IMAGES, LABELS = "images_best.pt", "labels_best.pt"
COMPANION = "iadd_lab.safetensors"  # what the format has no place for
RATES = ("lr_best.pt", "syn_lr_best.pt")  # where some of MTT's successors keep the learned rate
FIELD_RATE = 0.01  # to train with where nothing is said

# What MTT's code standardises with (the deviations of CIFAR are smaller than those of all pixels).
_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CONSTANTS = {"cifar10": _CIFAR, "cifar100": _CIFAR, "tiny_imagenet": _IMAGENET}

_SAMPLE = 1000  # real images that statistics are taken from
_GRID = 4  # what is coarse in an image: the means over so many cells by as many


def _standardise(data: ImageData) -> Preprocess:
    """MTT's constants, or for sets that it does not know what all training images give."""
    if data.channels == 3 and data.name in CONSTANTS:
        return Standardise(*map(torch.tensor, CONSTANTS[data.name]))
    return Standardise.fit(_training_images(data))


def _training_images(data: ImageData) -> torch.Tensor:
    """All training images: those held out here for validation were among others' training images."""
    return torch.cat([data.train.images, data.validation.images])


# How the makers of a foreign set preprocessed the real images, by the name of the option.
FITS = {"standardise": _standardise, "zca": lambda data: Zca.fit(_training_images(data))}


def export_mtt(distilled: DistilledSet, folder: Path) -> None:
    """Write `distilled` into `folder` in MTT's format, with a companion that holds what the format lacks."""
    files = {IMAGES: distilled.images.detach().cpu().clone(), LABELS: distilled.labels.detach().cpu().clone()}
    if distilled.soft_labels is not None:
        files |= {LABELS: distilled.soft_labels.detach().cpu().clone(), RATES[0]: distilled.alpha}
    for name, content in files.items():
        with atomic_path(Path(folder) / name) as temporary:
            torch.save(content, temporary)
    nothing = {"images": distilled.images[:0], "labels": distilled.labels[:0], "soft_labels": None}
    replace(distilled, **nothing).save(Path(folder) / COMPANION)


def has_companion(folder: Path) -> bool:
    """Whether the set in `folder` was written by this package, and says all about itself."""
    return (Path(folder) / COMPANION).is_file()


def reread_mtt(folder: Path) -> DistilledSet:
    """The set that `export_mtt` wrote into `folder`, bit for bit.

    Raises:
        InputError: a file is missing, damaged or refused, or they do not belong together.
    """
    folder = Path(folder)
    stored = DistilledSet.load(folder / COMPANION)
    return replace(stored, **_read(folder, tuple(stored.images.shape[1:]), stored.classes))


def import_mtt(
    folder: Path, data: ImageData, *, preprocess: str, alpha: float | None = None, method: str = "imported"
) -> DistilledSet:
    """A released set of MTT or a successor, as one that `evaluate` takes.

    What the images' statistics say against `preprocess` is logged as a warning.

    Args:
        folder: holds images_best.pt and labels_best.pt, (count,) labels or (count, classes) soft ones.
        data: the real set, all of its training images.
        preprocess: a key of `FITS`: how the makers preprocessed images.
        alpha: the learning rate to train with; None takes lr_best.pt where it is there, else 0.01.
        method: its name in tables.

    Raises:
        InputError: a file is missing, damaged or refused, or does not fit `data`.
    """
    fit = choose("preprocess", preprocess, FITS)
    whole = data.config.train_limit is None
    require(whole, "train_limit is set, but others fitted on all training images: load the data without it.")
    found = _read(Path(folder), (data.channels, data.size, data.size), data.classes)
    likely = likely_preprocess(found["images"], data)
    if likely != preprocess:
        look = f"the images look as if their preprocessing was {likely!r}, but {preprocess!r} was given"
        logger.warning("%s: if the accuracy is poor, import them again with the other one.", look)
    warn_of_class_order(data)
    rate = _rate(Path(folder)) if alpha is None else alpha
    check_number("alpha", rate, above=True)
    return DistilledSet.of(data, fit(data), **found, alpha=float(rate), method=method)


def _read(folder: Path, shape: tuple[int, ...], classes: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Images and labels that fit images of `shape` and `classes`, checked: fields of `DistilledSet`."""
    expected, at, named = f"{IMAGES} and {LABELS} as MTT's code writes them", folder / IMAGES, folder / LABELS
    images, labels = (load_safely(path, expected=expected) for path in (at, named))
    tensors = isinstance(images, torch.Tensor) and isinstance(labels, torch.Tensor)
    require(tensors, f"{folder} holds no single tensors: expected {expected}.")
    needs = f"this data set needs floats (count, {', '.join(map(str, shape))})"
    fit = images.ndim == 4 and images.is_floating_point() and tuple(images.shape[1:]) == shape
    require(fit, f"{at} holds {tuple(images.shape)} {images.dtype}; {needs}: name the data set and its size.")
    require(bool(images.isfinite().all()), f"{at} holds values that are not finite: get it again.")
    count, soft = len(images), labels.is_floating_point()
    needs = f"{count} whole numbers or ({count}, {len(classes)}) logits are needed"
    fit = count > 0 and labels.shape == ((count, len(classes)) if soft else (count,))
    require(fit, f"{named} holds {tuple(labels.shape)} {labels.dtype}; {needs}: pass those of these images.")
    found = {"images": images.detach().float().contiguous()}
    if soft:
        finite = bool(labels.isfinite().all())
        require(finite, f"{named} holds values that are not finite: get it again.")
        return found | {"labels": labels.argmax(1), "soft_labels": labels.detach().float().contiguous()}
    inside = labels.min() >= 0 and labels.max() < len(classes)
    outside = f"{named} has labels outside of 0 to {len(classes) - 1}"
    require(bool(inside), f"{outside}: name the data set it was made from.")
    counts = torch.bincount(labels.long(), minlength=len(classes))
    uneven = f"{named} has from {counts.min()} to {counts.max()} images of a class"
    require(len(counts.unique()) == 1, f"{uneven}; each class of its data set needs as many.")
    return found | {"labels": labels.detach().long()}


def _rate(folder: Path) -> float:
    found = next((folder / name for name in RATES if (folder / name).is_file()), None)
    if found is None:
        return FIELD_RATE
    rate = load_safely(found, expected="a learning rate")
    single = isinstance(rate, (int, float)) or (isinstance(rate, torch.Tensor) and rate.numel() == 1)
    require(single, f"{found} holds no single number: pass alpha, the learning rate to train with.")
    return float(rate)


def coarseness(images: torch.Tensor) -> float:
    """The spread of the means over a 4×4 grid, in spreads of single pixels: low where images are whitened.

    Whatever contrast distillation gave the images divides out.
    """
    means = functional.adaptive_avg_pool2d(images, _GRID)
    return (means.std() / images.std().clamp_min(1e-9)).item()


def likely_preprocess(images: torch.Tensor, data: ImageData) -> str:
    """The key of `FITS` whose real images are as coarse as `images`, nearest on a logarithmic scale."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(data.train), generator=generator)[:_SAMPLE]
    real = as_float(data.train.images[rows])
    expected = {"standardise": Standardise.fit(real).apply(real), "zca": _whitened(real)}
    logarithms = {kind: torch.tensor(coarseness(each)).log() for kind, each in expected.items()}
    found = torch.tensor(coarseness(images)).log()
    return min(logarithms, key=lambda kind: abs(found - logarithms[kind]).item())


def _whitened(real: torch.Tensor) -> torch.Tensor:
    """A sample whitened by its own covariance, as `Zca` does; the sample's rank bounds the work."""
    columns = real.flatten(1)
    left, scales, right = torch.linalg.svd(columns - columns.mean(0), full_matrices=False)
    variances = scales.square() / max(len(real) - 1, 1)
    whitened = (left * (scales * (variances + Zca.regularisation).rsqrt())) @ right
    return whitened.view(real.shape)


def warn_of_class_order(data: ImageData) -> None:
    """Log a warning where MTT's code, and with it whatever it made, numbers classes otherwise than ours."""
    if data.name == "tiny_imagenet":
        logger.warning(
            f"MTT numbers the classes of {data.config.spec.title} by sorted folder names, this package as "
            "in wnids.txt: where these differ, labels name other classes."
        )
