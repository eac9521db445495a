"""Every data set in its real on-disk format, made small; each bad input's message."""

import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets

from iadd_lab.data.sets import locate
from tests.samples import assert_refused, counts, load, make_idx, make_tree, noise, save, three, write_idx


def test_digits_are_the_known_set():
    data = load("digits")
    assert data.classes == tuple("0123456789")
    assert (data.name, data.channels, data.size) == ("digits", 1, 8)
    assert (sum(map(len, three(data))), len(data.test)) == (1797, round(1797 / 4))
    assert set(data.train.images.unique().tolist()) == {round(value * 255 / 16) for value in range(17)}


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_idx_files(tmp_path, name, folder):
    raw = make_idx(tmp_path, folder)
    data = load(name, tmp_path)
    assert data.classes == tuple(getattr(torchvision.datasets, folder).classes)
    assert (data.train.images.shape, counts(data.validation)) == ((20, 1, 28, 28), [1] * 10)
    assert np.array_equal(data.test.images[:, 0].numpy(), noise((20, 28, 28), seed=2))
    assert data.test.labels.tolist() == np.repeat(np.arange(10), 2).tolist()
    assert locate(name, root=tmp_path) == raw
    resized = load(name, tmp_path, size=32, channels=3)
    assert resized.test.images.shape == (20, 3, 32, 32)
    assert torch.equal(resized.test.images[:, 0], resized.test.images[:, 2])


def test_damaged_idx_files(tmp_path):
    raw = make_idx(tmp_path)
    path = raw / "train-images-idx3-ubyte"
    whole = path.read_bytes()
    for damaged in (whole[:-5], whole[:2], b"", b"\xff" * 40):
        path.write_bytes(damaged)
        assert_refused(r"MNIST in .* is incomplete or damaged.*data fetch mnist", load, "mnist", tmp_path)
    path.write_bytes(whole)
    write_idx(raw / "train-labels-idx1-ubyte", np.repeat(np.arange(10, dtype=np.uint8), 2))
    assert_refused("damaged", load, "mnist", tmp_path)
    write_idx(raw / "train-labels-idx1-ubyte", np.repeat(np.arange(1, 11, dtype=np.uint8), 3))
    assert_refused("label 10, but 10 classes", load, "mnist", tmp_path)
    path.unlink()
    assert_refused("incomplete", load, "mnist", tmp_path)


def write_pickle(path: Path, content) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


def make_cifar(root: Path, monkeypatch, kind, classes=10):
    """The pickles of CIFAR, small; torchvision is told their checksums. Returns their folder."""
    folder = root / kind.base_folder
    key = "labels" if classes == 10 else "fine_labels"
    labels, sums = np.repeat(range(classes), 3).tolist(), {}
    for number, (name, _) in enumerate(kind.train_list + kind.test_list):
        content = {"data": noise((3 * classes, 3072), seed=number), key: labels}
        sums[name] = write_pickle(folder / name, content)
    names = {kind.meta["key"]: [f"thing {label}" for label in range(classes)]}
    meta = {**kind.meta, "md5": write_pickle(folder / kind.meta["filename"], names)}
    monkeypatch.setattr(kind, "meta", meta)
    for field in ("train_list", "test_list"):
        monkeypatch.setattr(kind, field, [[name, sums[name]] for name, _ in getattr(kind, field)])
    return folder


@pytest.mark.parametrize(("classes", "total"), [(10, 150), (100, 300)])
def test_cifar_pickles(tmp_path, monkeypatch, classes, total):
    kind = getattr(torchvision.datasets, f"CIFAR{classes}")
    make_cifar(tmp_path, monkeypatch, kind, classes)
    data = load(f"cifar{classes}", tmp_path)
    assert data.classes == tuple(f"thing {label}" for label in range(classes))
    assert len(data.train) + len(data.validation) == total
    assert len(data.test) == 3 * classes
    pixels = noise((3 * classes, 3072), seed=len(kind.train_list)).reshape(-1, 3, 32, 32)
    assert np.array_equal(data.test.images.numpy(), pixels)
    assert data.remark == ""


class Trap(str):
    """Unpickling it makes a folder of that name."""

    def __reduce__(self):
        return os.mkdir, (str(self),)


@pytest.mark.parametrize("victim", ["data_batch_2", "batches.meta"])
def test_a_tampered_pickle_is_refused_unopened(tmp_path, monkeypatch, victim):
    folder = make_cifar(tmp_path, monkeypatch, torchvision.datasets.CIFAR10)
    write_pickle(folder / victim, Trap(str(tmp_path / "sprung")))
    assert_refused(r"CIFAR-10 in .* is incomplete or damaged", load, "cifar10", tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_cifar10_tree_and_its_remark(tmp_path, monkeypatch):
    classes = [f"c{label}" for label in range(10)]
    for part, count in (("train", 3), ("test", 1)):
        make_tree(tmp_path / "cifar10" / part, classes, count=count, shape=(32, 32, 3), seed=count)
    data = load("cifar10", tmp_path)
    assert (data.remark, data.classes, counts(data.train)) == ("", tuple(classes), [2] * 10)
    assert np.array_equal(data.test.images[1].numpy().transpose(1, 2, 0), noise((32, 32, 3), seed=1001))
    save(tmp_path / "cifar10/test/c0/more.JPG", noise((32, 32, 3)), format="JPEG")
    assert "lossy JPEGs" in load("cifar10", tmp_path).remark
    folder = make_cifar(tmp_path, monkeypatch, torchvision.datasets.CIFAR10)
    assert locate("cifar10", root=tmp_path) == folder
    assert load("cifar10", tmp_path).remark == ""


def make_tiny(root: Path):
    folder = root / "tiny-imagenet-200"
    pictures = {"classes": ("images",), "count": 4, "shape": (64, 64, 3), "suffix": ".JPEG"}
    for label, identifier in enumerate(["n02", "n01"]):
        make_tree(folder / "train" / identifier, **pictures, seed=100 * label)
        grey = noise((64, 64), seed=label)  # as some of the official ones are
        save(folder / "train" / identifier / "images" / "000.JPEG", grey)
        (folder / "train" / identifier / f"{identifier}_boxes.txt").write_text("001.JPEG\t0\t0\t1\t1\n")
    make_tree(folder / "train", ("n03",), count=1)  # there, but not listed
    make_tree(folder / "val", **pictures, seed=200)
    lines = [
        f"00{index}.JPEG\t{name}\t0\t0\t62\t62\n" for index, name in enumerate(("n01", "n02", "n03", "n01"))
    ]
    (folder / "wnids.txt").write_text("n02\nn01\n")
    (folder / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tnail\nn09\tother\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return folder


def test_tiny_imagenet(tmp_path, monkeypatch):
    folder = make_tiny(tmp_path)
    data = load("tiny_imagenet", tmp_path)
    assert (data.classes, data.channels, data.size) == (("nail", "goldfish"), 3, 64)
    assert (data.test.labels.tolist(), counts(data.train)) == ([1, 0, 1], [3, 3])
    assert data.remark == "Tiny ImageNet with 2 of its 200 classes"
    (folder / "words.txt").unlink()
    assert load("tiny_imagenet", tmp_path).classes == ("n02", "n01")
    monkeypatch.setattr("iadd_lab.data.readers.TINY_CLASSES", 2)
    assert load("tiny_imagenet", tmp_path).remark == ""


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("val/val_annotations.txt", "absent.JPEG\tn01\n", "absent.JPEG is missing, though line 1"),
        ("val/val_annotations.txt", "000.JPEG n01\n", "line 1 .* names no class"),
        ("val/val_annotations.txt", 2 * "000.JPEG\tn01\n", "line 2 .* names 000.JPEG a second time"),
        ("wnids.txt", "", "empty"),
        ("wnids.txt", "n01\nn01\n", "twice"),
        ("wnids.txt", "n01\nn77\n", "n77 is missing"),
        ("wnids.txt", None, r"can't be read .*wnids\.txt"),
    ],  # names that lead elsewhere are in test_corruption
)
def test_tiny_imagenets_lists_are_checked(tmp_path, file, text, message):
    path = make_tiny(tmp_path) / file
    path.unlink() if text is None else path.write_text(text)
    assert_refused(message, load, "tiny_imagenet", tmp_path)


def test_covid19_flat_and_kaggle_layouts_agree(tmp_path):
    flat = make_tree(tmp_path / "one" / "covid19", ("COVID", "Normal"), count=8, shape=(30, 24))
    kaggle = tmp_path / "two" / "COVID-19_Radiography_Dataset"
    for name in ("COVID", "Normal"):
        make_tree(kaggle / name, ("masks",), count=8, shape=(30, 24))
        (kaggle / name / "images").mkdir()
        for path in (flat / name).iterdir():
            (kaggle / name / "images" / path.name).write_bytes(path.read_bytes())
    (kaggle / "README.md.txt").write_text("about")
    first, second = (load("covid19", tmp_path / root) for root in ("one", "two"))
    assert first.fingerprint == second.fingerprint
    assert (first.channels, first.size, counts(first.test)) == (1, 112, [2, 2])
    other = load("covid19", tmp_path / "one", seed=5)
    assert torch.equal(first.test.images, other.test.images)


def test_image_folder_both_ways(tmp_path):
    tree = make_tree(tmp_path / "tree", count=10, shape=(32, 32, 3))
    data = load("image_folder", tree)
    assert (data.classes, data.channels, data.size) == (("cat", "dog"), 3, 32)
    assert counts(data.test) == [2, 2]
    for part in ("train", "test"):
        make_tree(tmp_path / "parts" / part, count=4 if part == "train" else 2)
    data = load("image_folder", tmp_path / "parts")
    assert [len(split) for split in three(data)] == [6, 2, 4]


def test_linked_files_and_classes_and_nested_folders_are_read(tmp_path):
    plain = make_tree(tmp_path / "plain")
    root = tmp_path / "mine"
    (root / "cat" / "deeper").mkdir(parents=True)
    for path in (plain / "cat").iterdir():
        (root / "cat" / "deeper" / path.name).symlink_to(path)
    (root / "dog").symlink_to(plain / "dog")
    assert load("image_folder", root).fingerprint == load("image_folder", plain).fingerprint


def test_class_folders_must_agree_and_have_images(tmp_path):
    make_tree(tmp_path / "cifar10" / "train")
    assert_refused("cifar10 needs a folder train and a folder test", load, "cifar10", tmp_path)
    make_tree(tmp_path / "cifar10" / "test", ("cat", "fox"))
    assert_refused(r"only one of train and test \(dog, fox\)", load, "cifar10", tmp_path)
    root = make_tree(tmp_path / "mine")
    (root / "fox").mkdir()
    assert_refused("fox has no images", load, "image_folder", root)
    assert_refused("0 class folders", load, "image_folder", root / "fox")
