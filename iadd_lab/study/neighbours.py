"""Which real images a distilled one is nearest to: by pixels, or by what a trained network makes of them."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from tqdm import tqdm

from iadd_lab.data.preprocess import Preprocess, as_float
from iadd_lab.data.sets import ImageData
from iadd_lab.errors import check_whole, choose, require
from iadd_lab.training.networks import embed
from iadd_lab.training.teachers import Teachers

SPACES = ("pixels", "features")
_CHUNK = 1024  # real images that are compared or embedded at a time: bounds memory on large sets


class Nearest(NamedTuple):
    """The real training images nearest to each of some images, the nearest one first."""

    rows: torch.Tensor  # (images, count) int64, of the training split
    distances: torch.Tensor  # (images, count), Euclidean, ascending


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Nearest real training images, for distilled ones of the same data set.

    By pixels, images are compared as they look, in [0, 1], with the preprocessing undone. By features, they
    are compared as the first teacher's linear layer sees them at the end of its training; those of all real
    images are computed once.

    Args:
        data: the real set.
        preprocess: of the distilled set.
        teachers: whose features to take; None leaves pixels alone.

    Raises:
        InputError: the teachers are of other data.
    """

    data: ImageData
    preprocess: Preprocess
    teachers: Teachers | None = None

    def __post_init__(self) -> None:
        if self.teachers is not None:
            self.teachers.check_data(self.data)

    @property
    def spaces(self) -> tuple[str, ...]:
        """Where images can be compared: members of `SPACES`."""
        return SPACES[:1] if self.teachers is None else SPACES

    def of(self, images: torch.Tensor, *, by: str = "pixels", count: int = 8) -> Nearest:
        """The `count` real training images nearest to each of `images`; all, where there are fewer.

        Every pair is compared. Of equally near ones the first come first.

        Args:
            images: (images, channels, height, width), preprocessed, as a distilled set has them.
            by: "pixels" or "features".
            count: how many.

        Raises:
            InputError: a value is out of range, the shapes do not fit, or there is no teacher for features.
        """
        check_whole("count", count, minimum=1)
        choose("space", by, dict.fromkeys(SPACES))
        require(by in self.spaces, "neighbours by features need teachers: pass teachers=, or take pixels.")
        given, real = tuple(images.shape[1:]), tuple(self.data.train.images.shape[1:])
        require(given == real, f"an image has the shape {given}, but a real one {real}: give images alike.")
        pixels = by == "pixels"
        known = self.data.train.images if pixels else self._features  # (real, …)
        seen = self.preprocess.invert(images) if pixels else embed(self._network, images)
        seen = seen.flatten(1).double()
        chunks = (as_float(chunk).flatten(1).double() for chunk in known.split(_CHUNK))
        # Exactly, and not through products: an image that is a real one has the distance 0.
        parts = [torch.cdist(seen, chunk, compute_mode="donot_use_mm_for_euclid_dist") for chunk in chunks]
        distances, rows = torch.cat(parts, 1).sort(dim=1, stable=True)  # (images, real) each
        return Nearest(rows[:, :count], distances[:, :count])

    @cached_property
    def _features(self) -> torch.Tensor:
        """What the teacher's linear layer sees of all training images: (count, dimensions)."""
        chunks = self.data.train.images.split(_CHUNK)
        bar = tqdm(chunks, desc="features of the real images", delay=2.0, leave=False)
        return torch.cat([embed(self._network, self.preprocess.apply(chunk)) for chunk in bar])

    @cached_property
    def _network(self) -> torch.nn.Module:
        return self.teachers.network_after(0, self.teachers.config.epochs).requires_grad_(False)
