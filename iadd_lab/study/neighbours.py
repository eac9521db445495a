"""Which real images a distilled one is nearest to: by pixels, or by what a trained network makes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from tqdm import tqdm

from iadd_lab.data.preprocess import Preprocess, as_float
from iadd_lab.data.sets import ImageData
from iadd_lab.errors import check_whole, choose, require
from iadd_lab.training.teachers import Teachers

SPACES = ("pixels", "features")
_CHUNK = 1024  # real images that are compared or embedded at a time: bounds memory on large sets
_SHOWN_AFTER = 2.0  # seconds, from which on a progress bar is worth its line


@dataclass(frozen=True, eq=False)
class Nearest:
    """The real training images nearest to each of some images, the nearest one first."""

    rows: torch.Tensor  # (images, count) int64, of the training split
    distances: torch.Tensor  # (images, count), Euclidean, ascending


def nearest(
    images: torch.Tensor,
    real: torch.Tensor,
    *,
    count: int,
    prepare: Callable[[torch.Tensor], torch.Tensor] | None = None,
    progress: bool = False,
) -> Nearest:
    """The `count` rows of `real` with the smallest Euclidean distance to each of `images`.

    Every pair is compared, `real` in chunks. Of equally near ones the first come first.

    Args:
        images: (images, …).
        real: (real, …); after `prepare`, and flattened, as long as the flattened `images`.
        count: at least 1 and at most as many as there are real ones.
        prepare: what to make of a chunk of `real` before it is compared; None takes it as it is.
        progress: whether to show a progress bar where it takes longer than two seconds.

    Raises:
        InputError: `count` is out of range, or the shapes do not fit.
    """
    check_whole("count", count, minimum=1, maximum=len(real))
    wanted = images.flatten(1).double()  # (images, dimensions)
    parts = []
    for chunk in _with_bar(real, "nearest real images", progress):
        made = (prepare(chunk) if prepare else chunk).flatten(1).double()  # (chunk, dimensions)
        require(
            made.shape[1] == wanted.shape[1],
            f"an image has {wanted.shape[1]} values and a real one {made.shape[1]}: compare images of one "
            "size and as many channels.",
        )
        # Exactly, and not through products: an image that is a real one has the distance 0.
        parts.append(torch.cdist(wanted, made, compute_mode="donot_use_mm_for_euclid_dist"))
    distances, rows = torch.cat(parts, 1).sort(dim=1, stable=True)  # (images, real) each
    return Nearest(rows[:, :count].clone(), distances[:, :count].clone())


def _with_bar(images: torch.Tensor, title: str, progress: bool) -> tqdm:
    return tqdm(images.split(_CHUNK), desc=title, delay=_SHOWN_AFTER, leave=False, disable=not progress)


class Neighbours:
    """Nearest real training images, for distilled ones of the same data set.

    By pixels, images are compared as they look, in [0, 1], with the preprocessing undone. By features, they
    are compared as the trained teacher's linear layer sees them; those of all real images are computed once.

    Args:
        data: the real set.
        preprocess: of the distilled set.
        teachers: whose features to take; None leaves pixels alone.
        teacher: the number of the one whose last snapshot gives the features.
        device: where features are computed.
        progress: whether to show a progress bar for what takes longer than two seconds.

    Raises:
        InputError: `teacher` is out of range, or the teachers are of other data.
    """

    def __init__(
        self,
        data: ImageData,
        preprocess: Preprocess,
        *,
        teachers: Teachers | None = None,
        teacher: int = 0,
        device: torch.device | str = "cpu",
        progress: bool = True,
    ):
        if teachers is not None:
            check_whole("teacher", teacher, minimum=0, maximum=len(teachers) - 1)
            require(
                data.fingerprint == teachers.data_fingerprint,
                f"the teachers in {teachers.folder} were trained on {teachers.data} (fingerprint "
                f"{teachers.data_fingerprint}), but the data is {data.config} (fingerprint "
                f"{data.fingerprint}): load that data, or take teachers of this.",
            )
        self.data, self.preprocess, self.progress = data, preprocess, progress
        self._teachers, self._teacher, self._device = teachers, teacher, torch.device(device)
        self._network: torch.nn.Module | None = None
        self._features: torch.Tensor | None = None  # (training images, dimensions)

    @property
    def spaces(self) -> tuple[str, ...]:
        """Where images can be compared: members of `SPACES`."""
        return SPACES if self._teachers is not None else SPACES[:1]

    def of(self, images: torch.Tensor, *, by: str = "pixels", count: int = 8) -> Nearest:
        """The `count` real training images nearest to each of `images`; all, where there are fewer.

        Args:
            images: (images, channels, height, width), preprocessed, as a distilled set has them.
            by: "pixels" or "features".
            count: how many.

        Raises:
            InputError: a value is out of range, the shapes do not fit, or there is no teacher for features.
        """
        check_whole("count", count, minimum=1)
        choose("space", by, dict.fromkeys(SPACES))
        require(
            by in self.spaces,
            "neighbours by features need a trained network, and there are no teachers: pass teachers=, or "
            "take pixels.",
        )
        real = self.data.train.images
        require(
            images.ndim == 4 and images.shape[1:] == real.shape[1:],
            f"images has the shape {tuple(images.shape)}; it must be (images, "
            f"{', '.join(map(str, real.shape[1:]))}), as the real ones are.",
        )
        count = min(count, len(real))
        if by == "pixels":
            seen = self.preprocess.invert(images)
            return nearest(seen, real, count=count, prepare=as_float, progress=self.progress)
        return nearest(self._embed(images), self._real_features(), count=count, progress=self.progress)

    def _real_features(self) -> torch.Tensor:
        """What the teacher's linear layer sees of all training images: (count, dimensions)."""
        if self._features is None:
            chunks = _with_bar(self.data.train.images, "features of the real images", self.progress)
            self._features = torch.cat([self._embed(self.preprocess.apply(chunk)) for chunk in chunks])
        return self._features

    @torch.no_grad()
    def _embed(self, images: torch.Tensor) -> torch.Tensor:
        if self._network is None:
            teachers, network = self._teachers, self._teachers.network(0)
            trained = teachers.snapshot(self._teacher, teachers.config.epochs)
            network.load_state_dict(teachers.layout.split(trained))
            self._network = network.to(self._device)
        return self._network.embed(images.to(self._device)).cpu()
