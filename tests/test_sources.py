"""The same pictures given in nine ways are one data set; what is not pictures and labels is one sentence."""

import csv
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from iadd_lab.data.sets import load_data
from tests.samples import counts, noise, rows, save, three

CLASSES = ("ash", "oak", "yew")
PER_CLASS = {"train": 8, "validation": 2, "test": 3}
MEDMNIST = {"train": "train", "validation": "val", "test": "test"}


def given(source, **options):
    return load_data(source, progress=False, **options)


def make_parts() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Noise (count, 8, 8, 3) and labels of each part, class by class, as folders are read."""
    return {
        part: (noise((3 * each, 8, 8, 3), seed=each), np.repeat(np.arange(3), each))
        for part, each in PER_CLASS.items()
    }


class Pairs(torch.utils.data.Dataset):
    """PIL's pictures with labels, as torchvision's data sets give them."""

    classes = CLASSES

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, number):
        return Image.fromarray(self.images[number]), int(self.labels[number])


def png(pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def write_folders(root: Path, parts) -> Path:
    for part, (images, labels) in parts.items():
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            save(root / part / CLASSES[label] / f"{number:04}.png", image)
    return root


def write_zip(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, file.relative_to(folder.parent))
    return path


def write_npz(path: Path, parts) -> Path:
    arrays = {f"{MEDMNIST[part]}_images": images for part, (images, _) in parts.items()}
    arrays |= {f"{MEDMNIST[part]}_labels": labels[:, None] for part, (_, labels) in parts.items()}
    np.savez(path, **arrays)
    return path


def write_table(folder: Path, parts) -> Path:
    lines = []
    for part, (images, labels) in parts.items():
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            save(folder / "images" / f"{part}{number}.png", image)
            lines.append((f"{part}{number}", CLASSES[label], part))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "tree", "split"), *lines])
    return folder / "labels.csv"


def write_parquet(folder: Path, parts) -> Path:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    names = {"label": {"names": list(CLASSES), "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    said = {"huggingface": json.dumps({"info": {"features": names}})}
    folder.mkdir()
    for part, (images, labels) in parts.items():
        cells = [{"bytes": png(image), "path": None} for image in images]
        table = arrow.table({"image": cells, "label": labels.tolist()}).replace_schema_metadata(said)
        parquet.write_table(table, folder / f"{part}-00000-of-00001.parquet")
    return folder


def hugging_face(parts):
    datasets = pytest.importorskip("datasets")
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
    made = {
        part: datasets.Dataset.from_dict(
            {"image": [Image.fromarray(image) for image in images], "label": labels.tolist()},
            features=datasets.Features(kinds),
        )
        for part, (images, labels) in parts.items()
    }
    return datasets.DatasetDict(made)


def tensors(parts):
    """Channels first, from −1 to 1, as `Normalize(0.5, 0.5)` leaves them; labels one-hot."""
    return {
        part: (
            torch.from_numpy(images).movedim(3, 1).float() / 127.5 - 1,
            torch.nn.functional.one_hot(torch.from_numpy(labels)),
        )
        for part, (images, labels) in parts.items()
    }


WAYS = {
    "class folders": lambda at, parts: write_folders(at / "trees", parts),
    "zip": lambda at, parts: write_zip(at / "trees.zip", write_folders(at / "trees", parts)),
    "arrays": lambda at, parts: parts,
    "tensors": lambda at, parts: tensors(parts),
    "Dataset": lambda at, parts: {part: Pairs(*each) for part, each in parts.items()},
    "npz": lambda at, parts: write_npz(at / "trees.npz", parts),
    "table": lambda at, parts: write_table(at, parts),
    "Parquet": lambda at, parts: write_parquet(at / "shards", parts),
    "DatasetDict": lambda at, parts: hugging_face(parts),
}
OPTIONS = {"arrays": {"classes": CLASSES}, "tensors": {"classes": CLASSES}, "npz": {"classes": CLASSES}}
OPTIONS["table"] = {"label_column": "tree"}


@pytest.mark.parametrize("way", WAYS)
def test_the_same_pictures_are_one_set_in_whatever_way_they_are_given(way, tmp_path):
    parts = make_parts()
    data = given(WAYS[way](tmp_path, parts), **OPTIONS.get(way, {}))
    assert data.classes == CLASSES
    assert data.train.images.dtype == torch.uint8
    for split, each in zip(three(data), PER_CLASS.values(), strict=True):
        assert counts(split) == [each] * 3
    assert data.fingerprint == given(parts, classes=CLASSES).fingerprint
    assert rows(data.test) == [image.tobytes() for image in parts["test"][0].transpose(0, 3, 1, 2)]
