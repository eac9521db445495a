"""Drawing the same number of images for every class: real ones, or noise to start from."""

import torch

from iadd_lab.data.preprocess import Preprocess
from iadd_lab.data.sets import ImageData
from iadd_lab.errors import require


def check_class_sizes(data: ImageData, ipc: int) -> None:
    """Require at least `ipc` training images in every class.

    Raises:
        InputError: naming the smallest class.
    """
    counts = torch.bincount(data.train.labels, minlength=len(data.classes))
    smallest = int(counts.argmin())
    name, count = data.classes[smallest], int(counts[smallest])
    require(ipc <= count, f"ipc is {ipc}, but class {name!r} has only {count} training images: lower ipc.")


def draw_rows(data: ImageData, ipc: int, generator: torch.Generator) -> torch.Tensor:
    """`ipc` random training rows of each class, class after class: (classes * ipc,) int64."""
    by_class = [torch.nonzero(data.train.labels == label).flatten() for label in range(len(data.classes))]
    return torch.cat([rows[torch.randperm(len(rows), generator=generator)[:ipc]] for rows in by_class])


def real_images(
    data: ImageData, preprocess: Preprocess, ipc: int, generator: torch.Generator
) -> torch.Tensor:
    """`ipc` random training images of each class, preprocessed: (classes * ipc, channels, height, width)."""
    return preprocess.apply(data.train.images[draw_rows(data, ipc, generator)])


def noise_images(
    data: ImageData, preprocess: Preprocess, ipc: int, generator: torch.Generator
) -> torch.Tensor:
    """Standard normal noise of the shape of `real_images`; the preprocessing is not used."""
    shape = (len(data.classes) * ipc, data.channels, data.size, data.size)
    return torch.randn(shape, generator=generator)


# What distilled images start from, by the name that configurations use.
INITIAL_IMAGES = {"real": real_images, "noise": noise_images}
