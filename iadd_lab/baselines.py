"""What a distilled set has to beat."""

from __future__ import annotations

from iadd_lab.data import ImageData
from iadd_lab.distilled import DistilledSet
from iadd_lab.errors import check_whole
from iadd_lab.preprocess import Preprocess
from iadd_lab.sampling import check_class_sizes, draw_rows
from iadd_lab.seeds import generator


def random_real(
    data: ImageData, preprocess: Preprocess, *, ipc: int, seed: int, alpha: float = 0.01
) -> DistilledSet:
    """`ipc` random training images of each class, as they are.

    Args:
        data: the real set.
        preprocess: fitted on its training images.
        ipc: images per class, at least 1 and at most the smallest class.
        seed: of the choice.
        alpha: the learning rate to train with; 0.01 is the field's.

    Raises:
        InputError: `ipc` is out of range.
    """
    check_whole("ipc", ipc, minimum=1)
    check_class_sizes(data, ipc)
    rows = draw_rows(data, ipc, generator(seed, "random real"))
    return DistilledSet(
        images=preprocess.apply(data.train.images[rows]),
        labels=data.train.labels[rows],
        alpha=alpha,
        preprocess=preprocess,
        classes=data.classes,
        data=data.config,
        data_fingerprint=data.fingerprint,
        method="random real",
    )
