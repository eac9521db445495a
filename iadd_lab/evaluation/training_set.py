"""A distilled set in other people's programs: a PyTorch data set, and the transform for real images."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from iadd_lab.data.augment import AugmentConfig
from iadd_lab.data.distilled import DistilledSet
from iadd_lab.data.pixels import WHITE, planes_of
from iadd_lab.data.preprocess import Preprocess, as_float
from iadd_lab.errors import check_whole, require
from iadd_lab.evaluation.protocol import EvaluateConfig
from iadd_lab.seeds import generator
from iadd_lab.store.artefacts import expanded
from iadd_lab.training.sgd import train
from iadd_lab.training.teachers import training_options

FILE = "distilled.safetensors"  # the name of a set in the folder of its run
_LUMA = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R 601, as Pillow makes colour grey


def set_file(path: Path | str) -> Path:
    """The file of a distilled set, given itself or the folder that holds it."""
    path = expanded(path)
    return path / FILE if path.is_dir() else path


@dataclass(frozen=True, eq=False)
class RealImages:
    """Makes real images what networks trained on a distilled set expect; a torchvision transform.

    It takes a Pillow image, or a tensor (channels, height, width) or (count, channels, height, width) of
    uint8, or of floats in [0, 1]. What is no square of the set's size is resized to cover the square,
    and their middle is kept, as when the set's own data were read.
    """

    preprocess: Preprocess
    channels: int  # of the preprocessing
    size: int
    white: int = WHITE  # of Pillow images of more than 8 bits, as in the set's own
    repeat: int = 1  # so many copies of a grey image as channels, for networks that expect colour

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        """The preprocessed image (channels, size, size), or images with their count before that."""
        if isinstance(image, Image.Image):
            image = torch.from_numpy(np.array(planes_of(image, self.size, self.channels, self.white)))
        _check(image, self.channels)
        batch = image if image.ndim == 4 else image[None]
        batch = _cover(_with_channels(batch, self.channels), self.size)
        ready = self.preprocess.apply(batch).float().repeat(1, self.repeat, 1, 1)
        return ready if image.ndim == 4 else ready[0]


def _check(image: object, channels: int) -> None:
    is_tensor = isinstance(image, Tensor)
    found = f"{tuple(image.shape)} {image.dtype}" if is_tensor else f"a {type(image).__name__}"
    kinds = {1, 3} if channels in (1, 3) else {channels}
    counts = " or ".join(map(str, sorted(kinds)))
    require(
        is_tensor
        and (image.ndim in (3, 4) and image.shape[-3] in kinds)
        and (image.dtype == torch.uint8 or image.is_floating_point()),
        f"a real image is {found}; give a Pillow image, or a tensor (channels, height, width) of {counts} "
        "channels, alone or in a batch, of uint8 or of floats in [0, 1].",
    )


def _with_channels(images: Tensor, channels: int) -> Tensor:
    """Images of grey, of colours, or of `channels` channels with `channels` of them."""
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.repeat(1, 3, 1, 1)
    weights = torch.tensor(_LUMA, device=images.device)[:, None, None]
    return (as_float(images) * weights).sum(1, keepdim=True)


def _cover(images: Tensor, size: int) -> Tensor:
    """Images (count, channels, height, width) resized to cover a square of `size`, their middle kept."""
    scale = size / min(images.shape[2:])
    sides = [max(round(side * scale), size) for side in images.shape[2:]]
    if scale != 1:
        images = functional.interpolate(as_float(images), sides, mode="bilinear", antialias=True)
    top, left = ((side - size) // 2 for side in sides)
    return images[..., top : top + size, left : left + size]


class TrainingSet(Dataset):
    """A distilled set as a PyTorch data set of (image, label); see `load`.

    Where the set has soft labels, what comes with an image is the probability of each class, (classes,).

    Attributes:
        distilled: the set itself, decoded: with all images that networks see.
        images: (classes * ipc, channels, height, width), preprocessed already.
        labels: (classes * ipc,) int64; of soft labels the largest.
        targets: what the loss is computed from: labels, or (classes * ipc, classes) probabilities.
        alpha: the learning rate to train with, by plain SGD.
        classes: their names; a label is an index into them.
        transform: what real images have to go through before a network that was trained on the set sees them.
    """

    def __init__(self, distilled: DistilledSet, *, channels: int | None = None):
        distilled = distilled.decoded
        own = distilled.images.shape[1]
        check_whole("channels", own if channels is None else channels, minimum=1)
        require(
            channels in (None, own) or (own, channels) == (1, 3),
            f"channels is {channels!r}, but the set has {own}: only grey images can be repeated, as 3.",
        )
        repeat, size = (channels or own) // own, distilled.images.shape[-1]
        self.distilled, self.images = distilled, distilled.images.repeat(1, repeat, 1, 1)
        self.labels, self.alpha, self.classes = distilled.labels, distilled.alpha, distilled.classes
        self.targets, white = distilled.targets, distilled.data.white or WHITE
        self.transform = RealImages(distilled.preprocess, own, size, white, repeat)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor]:
        target = self.targets[index]
        return self.images[index], int(target) if target.ndim == 0 else target

    def fit(
        self,
        network: nn.Module,
        *,
        epochs: int = 300,
        rate: float | None = None,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        batch: int = 256,
        augment: AugmentConfig | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> nn.Module:
        """Train any network on the set as `evaluate` does, in place; returns it ready to predict.

        SGD, its rate times 0.1 from half time on, with the siamese augmentation that the set was made for.

        Args:
            network: takes the set's images and returns a score for each of its classes.
            epochs: passes over the set.
            rate: learning rate; None takes the set's α.
            momentum: of SGD.
            weight_decay: of SGD.
            batch: images per step at most.
            augment: another augmentation than the set's own.
            seed: of order and augmentation.
            device: where.

        Raises:
            InputError: a value is impossible.
            DivergenceError: the training loss is not finite.
        """
        asked = {"epochs": epochs, "rate": rate, "momentum": momentum, "weight_decay": weight_decay}
        augment, place = augment or self.distilled.augmentation, torch.device(device)
        config = EvaluateConfig(**asked, batch=batch, augment=augment, seed=seed)
        options = {"rates": [config.rate or self.alpha], "generators": [generator(seed, "fit")]}
        options |= training_options(config) | {"epochs": epochs, "decay_at": max(epochs // 2, 1)}
        train(network.to(place).train(), self.images.to(place), self.targets.to(place), **options)
        return network.eval()
