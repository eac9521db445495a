"""From pictures of one's own to a distilled set: what to choose by the data's size, folds, and samples."""

import contextlib
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from iadd_lab.data.augment import AugmentConfig
from iadd_lab.data.distilled import DistilledSet
from iadd_lab.data.folders import LeftOut, on_one_line, pictures
from iadd_lab.data.pixels import open_picture
from iadd_lab.data.sampling import check_class_sizes
from iadd_lab.data.sets import SPLITS, UNMIRRORED, DataConfig, ImageData, load_data, settle
from iadd_lab.device import Execution
from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.loop import distill
from iadd_lab.distillation.result import DistillResult
from iadd_lab.errors import check_flag, check_whole, require
from iadd_lab.evaluation.protocol import EvaluateConfig, Evaluation, evaluate, evaluate_random
from iadd_lab.store.configs import fingerprint, run_folder
from iadd_lab.study.study import Study
from iadd_lab.training.networks import SMALLEST_SIZE, NetworkConfig
from iadd_lab.training.own_networks import known_network
from iadd_lab.training.teachers import TeacherConfig, train_teachers

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


def sample_sources(folder: Path) -> dict[str, Any]:
    """300 of scikit-learn's digits in four ways that `load_data` takes; files are written to `folder`.

    Returns:
        By name: arrays, the path of an .npz, that of a table beside pictures, and a PyTorch data set.
    """
    import pandas as pd  # takes a second to import, as below
    from sklearn.datasets import load_digits

    folder, digits = Path(folder), load_digits()
    images, labels = np.rint(digits.images[:300] * (255 / 16)).astype(np.uint8), digits.target[:300]
    table = pd.DataFrame({"file": [f"{number:03}.png" for number in range(300)], "label": labels})
    for name, image in zip(table["file"], images, strict=True):
        Image.fromarray(image).save(folder / name)
    table.to_csv(folder / "digits.csv", index=False)
    np.savez(folder / "digits.npz", images=images, labels=labels)
    pairs = TensorDataset(torch.from_numpy(images)[:, None], torch.from_numpy(labels))
    files = {"npz": folder / "digits.npz", "table": folder / "digits.csv"}
    return {"arrays": (images, labels), **files, "Dataset": pairs}


def suggest_size(source: str | Path, **options: Any) -> int:
    """A side in pixels for what lies at a path or is called so: its own, in steps of 8 from 8 to 32.

    Of a folder of pictures it goes by the median of the shorter sides of at most 50 of them; all else is
    loaded, with these `options` of `load_data`.

    Raises:
        InputError: there is no picture, or `load_data` refuses it.
    """
    place = settle(str(source))[1]
    if place is None or place.is_file() or any(place.rglob("*.parquet")):
        return _fitted(load_data(str(source), progress=False, **options).size)
    found = pictures(place, LeftOut(place)) if place.is_dir() else []
    require(bool(found), f"{place} has no pictures: name another folder.")
    sides = []
    for path in found[:: -(-len(found) // _PEEKED)]:
        # Reading meets a file without a header again, and names it.
        with contextlib.suppress(Exception), open_picture(path) as image:
            sides.append(min(image.size))
    return _fitted(int(statistics.median(sides or [LARGEST_SIDE])))


def _fitted(side: int) -> int:
    return max(min(side, LARGEST_SIDE) // 8 * 8, SMALLEST_SIZE)


def own_config(source: str | Path, *, size: int | None = None, seed: int = 0, **options: Any) -> DataConfig:
    """What to load of pictures of one's own; damaged ones are left out and named in the data's remark.

    Args:
        source: a path of any kind that `load_data` takes, or the name of a set, as torchvision:SVHN.
        size: side in pixels; None is what `suggest_size` says.
        seed: of the validation split.
        options: other fields of `DataConfig`, as in `label_column="kind"`.

    Raises:
        InputError: a value is impossible; where `size` is None also what `load_data` refuses.
    """
    given = {"seed": seed, "bad_images": "skip"} | options
    config = DataConfig(str(source), size=size, **given)
    return config if size is not None else replace(config, size=suggest_size(source, **given))


@dataclass(frozen=True)
class Suggestion:
    """What suits a data set of some size: a start, not an optimum; every value can be replaced."""

    teachers: TeacherConfig
    teacher_count: int
    distillation: DistillConfig
    evaluation: EvaluateConfig

    def summary(self, data: ImageData) -> str:
        """How long teachers and distillation take, and how few images come of how many, in two lines."""
        made, ipc = self.distillation, self.distillation.ipc
        teachers = f"{self.teacher_count} teachers of {self.teachers.epochs} epochs"
        images = f"{ipc * len(data.classes)} images for {len(data.train)}"
        first = f"{teachers}, batches of {self.teachers.batch}"
        return f"{first}\n{made.iterations} iterations on {ipc} per class: {images}"


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


def distil_folds(
    config: DataConfig, chosen: Suggestion, *, folds: int, study: Study
) -> list[tuple[ImageData, DistillResult, Path]]:
    """With each of so many folds as test images: the data, what was distilled of it, and its folder.

    Teachers and results are kept under `study.runs`; what was computed once is read there.
    """
    made, runs, how = [], study.runs, study.how
    for number in range(folds):
        part = load_data(replace(config, test_fold=number))
        folder = run_folder(runs, "your-data-teachers", part.fingerprint, part.config, chosen.teachers)
        teachers = train_teachers(part, chosen.teachers, folder, count=chosen.teacher_count, how=how)
        place = run_folder(runs, "your-data", teachers.fingerprint, chosen.distillation)
        made.append((part, distill(part, teachers, chosen.distillation, folder=place, how=how), place))
    return made


def beside_random(
    made: DistilledSet, data: ImageData, config: EvaluateConfig, *, folder: Path, how: Execution
) -> tuple[Evaluation, Evaluation]:
    """What a distilled set is worth, and what as many random real images are; both are kept in `folder`."""
    key = fingerprint(known_network(config.network, data), config, made.fingerprint)
    learned, random = (folder / f"judged_{key}{end}.safetensors" for end in ("", "_random"))
    return (
        evaluate(made, data, config, save_to=learned, how=how),
        evaluate_random(data, made.preprocess, config, ipc=made.ipc, save_to=random, how=how),
    )
