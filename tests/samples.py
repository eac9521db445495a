"""What the tests of the data modules share: noise in folders and IDX files, and ways to look at splits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from iadd_lab.data.sets import DataConfig, load_data
from iadd_lab.data.splits import Split
from iadd_lab.errors import InputError
from iadd_lab.evaluation.protocol import EvaluateConfig, Evaluation
from iadd_lab.study.study import Cell

# For `parametrize`: where there is no GPU, its cases are skipped.
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=on_gpu)]


def randn(*shape, seed=1, dtype=torch.float64):
    """Normal noise, drawn in double precision whatever the dtype."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def load(name, root=None, **options):
    return load_data(DataConfig(name, **options), root=root, progress=False)


def assert_refused(message, function, *arguments, **options):
    """`function` refuses to be called so, and its sentence matches `message`."""
    with pytest.raises(InputError, match=message):
        function(*arguments, **options)


def make_cell(method, confusion, setting, network=None, *, losses=None, diverged=""):
    """A cell of a table of two classes, with these counts of each of its networks."""
    network = network or setting.network()
    config = EvaluateConfig(networks=len(confusion), network=network)
    found = Evaluation(torch.tensor(confusion), ("zero", "one"), "learned", config, losses=losses)
    return Cell(setting, method, network, None if diverged else found, ("lossy",), diverged)


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)


def make_tree(folder: Path, classes=("cat", "dog"), count=6, shape=(8, 8, 3), suffix=".png", seed=0):
    """A folder per class; every image differs from every other, and from those of another hundred as seed."""
    for label, name in enumerate(classes):
        for index in range(count):
            save(folder / name / f"{index:03}{suffix}", noise(shape, seed=1000 * label + index + seed))
    return folder


def rows(split: Split) -> list[bytes]:
    return [image.tobytes() for image in split.images.numpy()]


def counts(split: Split) -> list[int]:
    return torch.bincount(split.labels).tolist()


def three(data):
    """The three splits of `data`."""
    return data.train, data.validation, data.test


def write_idx(path: Path, values: np.ndarray):
    header = (0x0800 | values.ndim).to_bytes(4, "big")
    header += b"".join(length.to_bytes(4, "big") for length in values.shape)
    path.write_bytes(header + values.tobytes())


def make_idx(root: Path, folder="MNIST", size=28):
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for part, each in (("train", 3), ("t10k", 2)):
        labels = np.repeat(np.arange(10, dtype=np.uint8), each)
        write_idx(raw / f"{part}-images-idx3-ubyte", noise((len(labels), size, size), seed=each))
        write_idx(raw / f"{part}-labels-idx1-ubyte", labels)
    return raw


def make_small_imagenet(root: Path) -> Path:
    """Tiny ImageNet's layout with two classes of two images."""
    folder = root / "tiny-imagenet-200"
    make_tree(folder / "train", ("n01", "n02"), count=2)
    make_tree(folder / "val", ("images",), count=2)
    (folder / "wnids.txt").write_text("n01\nn02\n")
    (folder / "words.txt").write_text("n01\tgoldfish\n")
    (folder / "val" / "val_annotations.txt").write_text("000.png\tn01\t0\n001.png\tn02\t0\n")
    return folder
