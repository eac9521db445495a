"""From a folder of pictures to a distilled set: what to choose by the data's size, and sample pictures."""

import contextlib
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from iadd_lab.data.augment import AugmentConfig
from iadd_lab.data.folders import LeftOut, on_one_line, pictures
from iadd_lab.data.pixels import open_picture
from iadd_lab.data.sampling import check_class_sizes
from iadd_lab.data.sets import SPLITS, UNMIRRORED, DataConfig, ImageData
from iadd_lab.distillation.config import DistillConfig
from iadd_lab.errors import check_flag, check_whole, require
from iadd_lab.evaluation.protocol import EvaluateConfig
from iadd_lab.training.networks import SMALLEST_SIZE, NetworkConfig
from iadd_lab.training.teachers import TeacherConfig

LARGEST_SIDE = 32  # chosen by itself; larger pictures take longer and are asked for
# Digits that are easily taken for each other, and how many of each: classes are seldom of one size.
SAMPLE_CLASSES = {"eight": (8, 30), "nine": (9, 20), "three": (3, 10)}
_PEEKED = 50  # pictures whose sizes are looked at
_TESTED = 100  # test images, at least, where that can be: a share of fewer is told within 10 points at best
_STEPS = 200  # of a teacher, about, however few images there are
# Gentle: few images and small teachers' steps make α run away at the rates of large sets.
_GENTLE = {"image_rate": 100.0, "alpha": 0.005, "alpha_rate": 1e-6}
_SHORT = {"iterations": 100, "student_steps": 15, "teacher_epochs": 2}


def sample_pictures(folder: Path) -> Path:
    """`folder`, with 60 of scikit-learn's digits as PNGs in it, in three class folders of different sizes.

    A folder that is there already stays as it is.
    """
    from sklearn.datasets import load_digits  # takes a second to import, and only samples need it

    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        return folder
    digits = load_digits()
    for name, (digit, count) in SAMPLE_CLASSES.items():
        (folder / name).mkdir(parents=True)
        for number, image in enumerate(digits.images[digits.target == digit][:count]):
            pixels = np.rint(image * (255 / 16)).astype(np.uint8)  # (8, 8), values 0 to 16 stretched
            Image.fromarray(pixels).save(folder / name / f"{number:03}.png")
    return folder


def suggest_size(folder: Path) -> int:
    """A side in pixels for the pictures below `folder`: their own, in steps of 8 from 8 to 32.

    It goes by the median of the shorter sides of at most 50 of them.

    Raises:
        InputError: there is no picture.
    """
    found = pictures(folder, LeftOut(folder)) if Path(folder).is_dir() else []
    require(bool(found), f"{folder} has no pictures: name another folder.")
    sides = []
    for path in found[:: -(-len(found) // _PEEKED)]:
        # Reading meets a file without a header again, and names it.
        with contextlib.suppress(Exception), open_picture(path) as image:
            sides.append(min(image.size))
    side = int(statistics.median(sides or [LARGEST_SIDE]))
    return max(min(side, LARGEST_SIDE) // 8 * 8, SMALLEST_SIZE)


@dataclass(frozen=True)
class Suggestion:
    """What suits a data set of some size: a start, not an optimum; every value can be replaced."""

    teachers: TeacherConfig
    teacher_count: int
    distillation: DistillConfig
    evaluation: EvaluateConfig


def suggest(
    data: ImageData, *, ipc: int | None = None, width: int = 32, mirror: bool = True, seed: int = 0
) -> Suggestion:
    """Settings for `data` that fit its size, in time as well.

    Few images make small batches and many epochs, such that a teacher takes some 200 steps in any case. The
    distilled set has `ipc` images of every class however many real ones a class has, so that it is balanced.

    Args:
        data: the real set.
        ipc: images per class, at most the smallest class's; None takes a tenth of that class, 1 to 10.
        width: filters per block of the ConvNet.
        mirror: whether a mirrored picture means the same; False leaves mirroring out of the augmentation.
        seed: of everything random.

    Raises:
        InputError: `ipc` is out of range.
    """
    check_flag("mirror", mirror)
    smallest = int(torch.bincount(data.train.labels, minlength=len(data.classes)).min())
    ipc = max(1, min(smallest // 10, 10)) if ipc is None else ipc
    check_whole("ipc", ipc, minimum=1)
    check_class_sizes(data, ipc)
    largest = len(data.train) // 16
    batch = max(8, min(256, 1 << largest.bit_length() >> 1))  # the largest power of two up to a 16th
    steps = -(-len(data.train) // batch)  # in an epoch
    epochs = max(6, min(30, round(_STEPS / steps)))
    augment = data.augmentation(None if mirror else AugmentConfig(operations=UNMIRRORED))
    common = {"augment": augment, "seed": seed}
    drawn = {"ipc": ipc, "batch": 100 if ipc * len(data.classes) > 100 else None}
    drawn["max_start_epoch"] = max(2, epochs * 3 // 10)  # later, teachers of few images hardly move
    network = NetworkConfig(width=width)
    return Suggestion(
        teachers=TeacherConfig(network=network, epochs=epochs, batch=batch, **common),
        teacher_count=3,
        distillation=DistillConfig(**_SHORT, **_GENTLE, **drawn, **common),
        evaluation=EvaluateConfig(network=network, networks=5, epochs=200, **common),
    )


def class_table(data: ImageData) -> str:
    """How many images each class has in each split, as lines of text."""
    counts = [torch.bincount(data.split(s).labels, minlength=len(data.classes)).tolist() for s in SPLITS]
    names = [on_one_line(name)[:24] for name in data.classes]
    rows = [("class", *SPLITS), *zip(names, *counts, strict=True), ("all", *map(sum, counts))]
    return "\n".join(f"{name:24}{train:>12}{held:>12}{test:>12}" for name, train, held, test in rows)


def folds_for(data: ImageData) -> int:
    """How many folds bring a hundred test images together; all that there are, where these bring fewer."""
    return min(data.folds, -(-_TESTED // len(data.test)))


def folder_config(folder: Path, *, size: int | None = None, seed: int = 0) -> DataConfig:
    """What to load of a folder of pictures; damaged ones are left out and named in the data's remark."""
    side = suggest_size(folder) if size is None else size
    return DataConfig("image_folder", size=side, seed=seed, bad_images="skip")
