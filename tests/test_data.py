"""Every data set in its real on-disk format, made small; the splits' properties; each bad input's message."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import platformdirs
import pytest
import safetensors.torch
import torch
import torchvision.datasets
from PIL import Image

from iadd_lab import data as module
from iadd_lab.data import DATASETS, DataConfig, Split, data_root, fetch_data, load_data, locate
from iadd_lab.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("IADD_CACHE", str(folder))
    return folder


def load(name, root=None, **options):
    return load_data(DataConfig(name, **options), root=root, progress=False)


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)


def make_tree(folder: Path, classes=("cat", "dog"), count=6, shape=(8, 8, 3), suffix=".png"):
    """A folder per class; every image differs from every other."""
    for label, name in enumerate(classes):
        for index in range(count):
            save(folder / name / f"{index:03}{suffix}", noise(shape, seed=1000 * label + index))
    return folder


def rows(split: Split) -> list[bytes]:
    return [image.tobytes() for image in split.images.numpy()]


def counts(split: Split) -> list[int]:
    return torch.bincount(split.labels).tolist()


# Splits -------------------------------------------------------------------------------------------------


def test_digits_are_the_known_set():
    data = load("digits")
    assert data.classes == tuple("0123456789")
    assert (data.name, data.channels, data.size) == ("digits", 1, 8)
    assert len(data.train) + len(data.validation) + len(data.test) == 1797
    assert len(data.test) == round(1797 / 4)
    assert data.train.images.dtype == torch.uint8
    assert data.train.labels.dtype == torch.int64
    assert int(data.train.images.max()) == 255
    assert set(data.train.images.unique().tolist()) == {round(value * 255 / 16) for value in range(17)}


def test_splits_are_disjoint_exhaustive_and_stratified(tmp_path):
    root = make_tree(tmp_path / "mine", ("a", "b", "c"), count=20)
    data = load("image_folder", root, size=8)
    everything = rows(data.train) + rows(data.validation) + rows(data.test)
    assert len(set(everything)) == len(everything) == 60
    assert counts(data.test) == [4, 4, 4]
    assert sorted(counts(data.validation)) == [1, 2, 2]  # a tenth of 48, by class
    for label, name in enumerate(data.classes):
        for path in (root / name).iterdir():
            pixels = np.asarray(Image.open(path)).transpose(2, 0, 1).tobytes()
            places = [
                split.labels[rows(split).index(pixels)] for split in _splits(data) if pixels in rows(split)
            ]
            assert places == [label]


def _splits(data):
    return data.split("train"), data.split("validation"), data.split("test")


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.5])
def test_validation_takes_its_fraction_of_every_class(fraction):
    data = load("digits", validation_fraction=fraction)
    whole = np.add(counts(data.train), counts(data.validation))
    assert np.abs(np.array(counts(data.validation)) - fraction * whole).max() < 1


def test_the_seed_moves_validation_but_not_test():
    first, again, other = load("digits", seed=3), load("digits", seed=3), load("digits", seed=4)
    assert first.fingerprint == again.fingerprint
    assert torch.equal(first.validation.images, again.validation.images)
    assert torch.equal(first.test.images, other.test.images)
    assert not torch.equal(first.validation.images, other.validation.images)
    assert first.fingerprint != other.fingerprint


def test_splitting_leaves_the_global_generators_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    load("digits", train_limit=50)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_train_limit_is_stratified_nested_and_only_of_train():
    full, hundred, ten = load("digits"), load("digits", train_limit=100), load("digits", train_limit=10)
    assert len(hundred.train) == 100
    assert max(counts(hundred.train)) - min(counts(hundred.train)) <= 1
    assert counts(ten.train) == [1] * 10
    assert set(rows(ten.train)) <= set(rows(hundred.train)) <= set(rows(full.train))
    assert torch.equal(full.validation.images, hundred.validation.images)
    assert load("digits", train_limit=10_000).fingerprint == full.fingerprint
    with pytest.raises(InputError, match=r"train_limit is 9; for Digits it must be at least .* 10"):
        load("digits", train_limit=9)


def test_a_rare_class_reaches_every_split(tmp_path):
    root = make_tree(tmp_path / "mine", ("common",), count=40)
    make_tree(root, ("common", "rare"), count=3)
    data = load("image_folder", root)
    assert [counts(split)[1] for split in _splits(data)] == [1, 1, 1]


def test_a_class_too_small_to_split_is_named(tmp_path):
    root = make_tree(tmp_path / "mine", ("common",), count=9)
    make_tree(root, ("rare",), count=2)
    with pytest.raises(InputError, match="class 'rare' has 0 train, 1 validation, 1 test images"):
        load("image_folder", root)


def test_fingerprint_follows_pixels_labels_and_classes(tmp_path):
    root = make_tree(tmp_path / "mine")
    prints = [load("image_folder", root, size=8).fingerprint]
    assert prints[0] == load("image_folder", root, size=8, seed=0).fingerprint
    assert len(prints[0]) == 16
    save(root / "cat" / "000.png", noise((8, 8, 3), seed=99))
    prints.append(load("image_folder", root, size=8).fingerprint)
    (root / "dog").rename(root / "wolf")
    prints.append(load("image_folder", root, size=8).fingerprint)
    assert len(set(prints)) == 3


# Arrays: IDX files and pickles --------------------------------------------------------------------------


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


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_idx_files(tmp_path, name, folder):
    raw = make_idx(tmp_path, folder)
    data = load(name, tmp_path)
    assert data.classes == tuple(getattr(torchvision.datasets, folder).classes)
    assert data.train.images.shape == (20, 1, 28, 28)
    assert counts(data.validation) == [1] * 10
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
        with pytest.raises(InputError, match=r"MNIST in .* is incomplete or damaged.*data fetch mnist"):
            load("mnist", tmp_path)
    path.write_bytes(whole)
    write_idx(raw / "train-labels-idx1-ubyte", np.repeat(np.arange(10, dtype=np.uint8), 2))
    with pytest.raises(InputError, match="damaged"):
        load("mnist", tmp_path)
    write_idx(raw / "train-labels-idx1-ubyte", np.repeat(np.arange(1, 11, dtype=np.uint8), 3))
    with pytest.raises(InputError, match="label 10, but 10 classes"):
        load("mnist", tmp_path)
    path.unlink()
    with pytest.raises(InputError, match="incomplete"):
        load("mnist", tmp_path)


def write_pickle(path: Path, content) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


def make_cifar(root: Path, monkeypatch, kind, classes=10):
    """The pickles of CIFAR, small; torchvision is told their checksums. Returns their folder."""
    folder = root / kind.base_folder
    key = "labels" if classes == 10 else "fine_labels"
    sums = {}
    for number, (name, _) in enumerate(kind.train_list + kind.test_list):
        labels = [label for label in range(classes) for _ in range(3)]
        sums[name] = write_pickle(
            folder / name, {"data": noise((3 * classes, 3072), seed=number), key: labels}
        )
    names = {kind.meta["key"]: [f"thing {label}" for label in range(classes)]}
    meta = {**kind.meta, "md5": write_pickle(folder / kind.meta["filename"], names)}
    monkeypatch.setattr(kind, "meta", meta)
    for field in ("train_list", "test_list"):
        monkeypatch.setattr(kind, field, [[name, sums[name]] for name, _ in getattr(kind, field)])
    return folder


@pytest.mark.parametrize(("name", "classes", "total"), [("cifar10", 10, 150), ("cifar100", 100, 300)])
def test_cifar_pickles(tmp_path, monkeypatch, name, classes, total):
    kind = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    make_cifar(tmp_path, monkeypatch, kind, classes)
    data = load(name, tmp_path)
    assert data.classes == tuple(f"thing {label}" for label in range(classes))
    assert len(data.train) + len(data.validation) == total
    assert len(data.test) == 3 * classes
    pixels = noise((3 * classes, 3072), seed=len(kind.train_list)).reshape(-1, 3, 32, 32)
    assert np.array_equal(data.test.images.numpy(), pixels)
    assert data.remark == ""


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("victim", ["data_batch_2", "batches.meta"])
def test_a_tampered_pickle_is_refused_unopened(tmp_path, monkeypatch, victim):
    folder = make_cifar(tmp_path, monkeypatch, torchvision.datasets.CIFAR10)
    write_pickle(folder / victim, Trap(str(tmp_path / "sprung")))
    with pytest.raises(InputError, match=r"CIFAR-10 in .* is incomplete or damaged"):
        load("cifar10", tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_cifar10_tree_and_its_remark(tmp_path, monkeypatch):
    classes = [f"c{label}" for label in range(10)]
    for part, count in (("train", 3), ("test", 1)):
        make_tree(tmp_path / "cifar10" / part, classes, count=count, shape=(32, 32, 3))
    data = load("cifar10", tmp_path)
    assert data.remark == ""
    assert data.classes == tuple(classes)
    assert counts(data.train) == [2] * 10
    assert np.array_equal(data.test.images[1].numpy().transpose(1, 2, 0), noise((32, 32, 3), seed=1000))
    save(tmp_path / "cifar10/test/c0/more.JPG", noise((32, 32, 3)), format="JPEG")
    assert "lossy JPEGs" in load("cifar10", tmp_path).remark
    folder = make_cifar(tmp_path, monkeypatch, torchvision.datasets.CIFAR10)
    assert locate("cifar10", root=tmp_path) == folder
    assert load("cifar10", tmp_path).remark == ""


def test_class_folders_must_agree(tmp_path):
    make_tree(tmp_path / "cifar10" / "train")
    with pytest.raises(InputError, match="test is missing"):
        load("cifar10", tmp_path)
    make_tree(tmp_path / "cifar10" / "test", ("cat", "fox"))
    with pytest.raises(InputError, match=r"only one of train and test \(dog, fox\)"):
        load("cifar10", tmp_path)


# Tiny ImageNet ------------------------------------------------------------------------------------------


def make_tiny(root: Path):
    folder = root / "tiny-imagenet-200"
    identifiers = ["n02", "n01"]
    for label, identifier in enumerate(identifiers):
        for index in range(4):
            shape = (64, 64) if index == 0 else (64, 64, 3)  # some of the official ones are grey
            name = f"{identifier}_{index}.JPEG"
            save(folder / "train" / identifier / "images" / name, noise(shape, seed=10 * label + index))
        (folder / "train" / identifier / f"{identifier}_boxes.txt").write_text("n02_0.JPEG\t0\t0\t1\t1\n")
    make_tree(folder / "train", ("n03",), count=1)  # there, but not listed
    lines = []
    for index, identifier in enumerate(["n01", "n02", "n03", "n01"]):
        save(folder / "val" / "images" / f"val_{index}.JPEG", noise((64, 64, 3), seed=50 + index))
        lines.append(f"val_{index}.JPEG\t{identifier}\t0\t0\t62\t62\n")
    (folder / "wnids.txt").write_text("".join(f"{identifier}\n" for identifier in identifiers))
    (folder / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tnail\nn09\tother\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return folder


def test_tiny_imagenet(tmp_path):
    folder = make_tiny(tmp_path)
    data = load("tiny_imagenet", tmp_path)
    assert data.classes == ("nail", "goldfish")
    assert (data.channels, data.size) == (3, 64)
    assert data.test.labels.tolist() == [1, 0, 1]
    assert counts(data.train) == [3, 3]
    (folder / "words.txt").unlink()
    assert load("tiny_imagenet", tmp_path).classes == ("n02", "n01")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("../../wnids.txt\tn01\n", "plain name"),
        ("/etc/image.png\tn01\n", "plain name"),
        ("..\\image.png\tn01\n", "plain name"),
        ("absent.JPEG\tn01\n", "absent.JPEG is missing, though line 5"),
        ("val_0.JPEG n01\n", "line 5 .* names no class"),
    ],
)
def test_tiny_imagenet_annotations_are_checked(tmp_path, line, message):
    notes = make_tiny(tmp_path) / "val" / "val_annotations.txt"
    notes.write_text(notes.read_text() + line)
    with pytest.raises(InputError, match=message):
        load("tiny_imagenet", tmp_path)


def test_tiny_imagenet_class_list_is_checked(tmp_path):
    folder = make_tiny(tmp_path)
    wrong = {
        "": "empty",
        "n01\nn01\n": "twice",
        "n01\n../n02\n": "plain name",
        "n01\nn77\n": "n77 is missing",
    }
    for text, message in wrong.items():
        (folder / "wnids.txt").write_text(text)
        with pytest.raises(InputError, match=message):
            load("tiny_imagenet", tmp_path)
    (folder / "wnids.txt").unlink()
    with pytest.raises(InputError, match=r"can't be read .*wnids\.txt"):
        load("tiny_imagenet", tmp_path)


# Chest X-rays -------------------------------------------------------------------------------------------


def test_covid19_flat_and_kaggle_layouts_agree(tmp_path):
    flat = make_tree(tmp_path / "one" / "covid19", ("COVID", "Normal"), count=8, shape=(30, 24))
    kaggle = tmp_path / "two" / "COVID-19_Radiography_Dataset"
    for name in ("COVID", "Normal"):
        make_tree(kaggle / name, ("masks",), count=8, shape=(30, 24))
        (kaggle / name / "images").mkdir()
        for path in (flat / name).iterdir():
            (kaggle / name / "images" / path.name).write_bytes(path.read_bytes())
    (kaggle / "README.md.txt").write_text("about")
    first, second = load("covid19", tmp_path / "one"), load("covid19", tmp_path / "two")
    assert first.fingerprint == second.fingerprint
    assert (first.channels, first.size) == (1, 112)
    assert counts(first.test) == [2, 2]
    other = load("covid19", tmp_path / "one", seed=5)
    assert torch.equal(first.test.images, other.test.images)


# A user's own folder, and all kinds of images -----------------------------------------------------------


def only_image(tmp_path, pixels, *, name="image.png", size=4, channels=None, **options):
    """`pixels` as the one test image, loaded: (channels, size, size)."""
    root = tmp_path / "mine"
    for part, count in (("train", 2), ("test", 1)):
        make_tree(root / part, ("grey", "other"), count=count, shape=(4, 4), suffix=".bmp")
    (root / "test/grey/000.bmp").unlink()
    save(root / "test" / "grey" / name, pixels, **options)
    return load("image_folder", root, size=size, channels=channels).test.images[0].numpy()


def test_image_folder_both_ways(tmp_path):
    tree = make_tree(tmp_path / "tree", count=10, shape=(32, 32, 3))
    data = load("image_folder", tree)
    assert (data.classes, data.channels, data.size) == (("cat", "dog"), 3, 32)
    assert counts(data.test) == [2, 2]
    for part in ("train", "test"):
        make_tree(tmp_path / "parts" / part, count=4 if part == "train" else 2)
    data = load("image_folder", tmp_path / "parts")
    assert [len(split) for split in _splits(data)] == [6, 2, 4]
    (tmp_path / "parts" / "test").rename(tmp_path / "parts" / "val")
    with pytest.raises(InputError, match="only one of train and test"):
        load("image_folder", tmp_path / "parts")


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.array([[0, 128, 129, 257], [1000, 25_700, 30_000, 32_768], [65_535] * 4, [40_000] * 4])
    got = only_image(tmp_path, values.astype(np.uint16), channels=1)
    assert np.array_equal(got[0], np.rint(values / 257))
    assert only_image(tmp_path / "b", values.astype(np.uint16)).shape == (1, 4, 4)  # grey by itself


def test_pixels_of_unknown_range_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"image\.tif has pixels beyond 16 bits"):
        only_image(tmp_path, np.full((4, 4), 1e6, dtype=np.float32), name="image.tif")
    with pytest.raises(InputError, match=r"image\.tif has pixels beyond 16 bits"):
        only_image(tmp_path / "b", np.full((4, 4), 70_000, dtype=np.int32), name="image.tif")


def test_transparent_pixels_are_white(tmp_path):
    pixels = np.zeros((4, 4, 4), dtype=np.uint8)
    pixels[..., 0] = 200
    pixels[:2, :, 3] = 255
    got = only_image(tmp_path, pixels)
    assert (got[:, :2] == np.array([200, 0, 0]).reshape(3, 1, 1)).all()
    assert (got[:, 2:] == 255).all()


@pytest.mark.parametrize("transparent", [False, True])
def test_palette_images(tmp_path, transparent):
    image = Image.fromarray(np.array([[0, 1], [1, 0]], dtype=np.uint8).repeat(2, 0).repeat(2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    options = {"transparency": bytes([255, 0])} if transparent else {}
    got = only_image(tmp_path, image, **options)
    assert got[:, 0, 0].tolist() == [10, 20, 30]
    assert got[:, 0, 3].tolist() == ([255, 255, 255] if transparent else [200, 100, 50])


def test_one_bit_and_colour_to_grey(tmp_path):
    image = Image.fromarray(np.eye(4, dtype=np.uint8) * 255).convert("1")
    assert np.array_equal(only_image(tmp_path, image)[0], np.eye(4) * 255)
    red = np.zeros((4, 4, 3), dtype=np.uint8)
    red[..., 0] = 255
    assert (only_image(tmp_path / "b", red, channels=1) == 76).all()  # ITU-R 601 luma


def test_the_middle_of_an_oblong_image_is_kept(tmp_path):
    wide = np.zeros((8, 24), dtype=np.uint8)
    wide[:, 8:16] = 200
    assert (only_image(tmp_path, wide, size=8) == 200).all()
    assert (only_image(tmp_path / "b", wide.T.copy(), size=8) == 200).all()
    half = only_image(tmp_path / "c", noise((8, 24)), size=4)[0].astype(int)
    expected = np.asarray(Image.fromarray(noise((8, 24))).resize((12, 4), Image.Resampling.BILINEAR))[:, 4:8]
    assert np.abs(half[:, 1:3] - expected[:, 1:3]).max() <= 1  # the filter's support ends at the crop


def test_a_large_jpeg_is_reduced_faithfully(tmp_path):
    ramp = np.linspace(0, 255, 512).astype(np.uint8)
    got = only_image(tmp_path, np.tile(ramp, (512, 1)), name="image.jpg", size=16)[0].astype(int)
    assert np.abs(got - np.linspace(8, 247, 16)).max() < 4


def test_exif_orientation_is_honoured(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter clockwise
    pixels = np.zeros((4, 4), dtype=np.uint8)
    pixels[0] = 255
    got = only_image(tmp_path, pixels, exif=exif)
    assert np.array_equal(got[0], np.rot90(pixels, -1))


def test_damaged_exif_does_not_matter(tmp_path):
    exif = b"Exif\x00\x00nonsense"
    assert only_image(tmp_path, noise((4, 4)), name="image.jpg", exif=exif).shape == (1, 4, 4)


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".png", ".bmp", ".tif", ".tiff", ".webp"])
def test_every_image_type(tmp_path, suffix):
    got = only_image(tmp_path, np.full((4, 4, 3), 90, dtype=np.uint8), name=f"image{suffix}")
    assert np.abs(got.astype(int) - 90).max() <= 3


def test_what_is_not_an_image_is_ignored(tmp_path):
    root = make_tree(tmp_path / "mine")
    before = load("image_folder", root).fingerprint
    (root / "cat" / ".000.png").write_text("hidden")
    (root / "cat" / "notes.txt").write_text("text")
    (root / "__MACOSX").mkdir()
    (root / ".git").mkdir()
    assert load("image_folder", root).fingerprint == before


def test_links_and_nested_folders_are_read(tmp_path):
    plain = make_tree(tmp_path / "plain")
    root = tmp_path / "mine"
    (root / "cat" / "deeper").mkdir(parents=True)
    for path in (plain / "cat").iterdir():
        (root / "cat" / "deeper" / path.name).symlink_to(path)
    (root / "dog").symlink_to(plain / "dog")
    (root / "cat" / "loop").symlink_to(root / "cat")
    assert load("image_folder", root).fingerprint == load("image_folder", plain).fingerprint


@pytest.mark.parametrize(
    "content", [b"", b"not an image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_an_undecodable_image_is_named(tmp_path, content):
    root = make_tree(tmp_path / "mine")
    (root / "cat" / "bad.jpg").write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.jpg can't be decoded .*remove or replace it"):
        load("image_folder", root)


def test_truncated_and_oversized_images_and_dead_links_are_named(tmp_path, monkeypatch):
    root = make_tree(tmp_path / "mine", shape=(64, 64, 3))
    path = root / "cat" / "003.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2000])
    with pytest.raises(InputError, match=r"003\.png can't be decoded"):
        load("image_folder", root)
    path.write_bytes(whole)
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        with pytest.raises(InputError, match=r"can't be decoded .*decompression bomb"):
            load("image_folder", root)
    (root / "cat" / "dead.png").symlink_to(root / "nowhere.png")
    with pytest.raises(InputError, match=r"dead\.png"):
        load("image_folder", root)


def test_empty_class_folders_are_named(tmp_path):
    root = make_tree(tmp_path / "mine")
    (root / "fox").mkdir()
    with pytest.raises(InputError, match="fox has no images"):
        load("image_folder", root)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="0 class folders"):
        load("image_folder", tmp_path / "empty")


# The cache ----------------------------------------------------------------------------------------------


@pytest.fixture
def decodes(monkeypatch):
    """Paths of the files that were decoded."""
    seen = []
    decode = module._decode_file
    monkeypatch.setattr(module, "_decode_file", lambda path, *rest: seen.append(path) or decode(path, *rest))
    return seen


def test_the_cache_is_used_and_equal(tmp_path, cache, decodes):
    root = make_tree(tmp_path / "mine")
    first = load("image_folder", root)
    assert len(decodes) == 12
    second = load("image_folder", root)
    assert len(decodes) == 12
    assert first.fingerprint == second.fingerprint
    for one, two in zip(_splits(first), _splits(second), strict=True):
        assert torch.equal(one.images, two.images)
    assert len(list(cache.iterdir())) == 1  # nothing half-written beside it
    load("image_folder", root, seed=7, validation_fraction=0.3)
    assert len(decodes) == 12
    load("image_folder", root, size=8)
    load("image_folder", root, channels=1)
    assert len(decodes) == 36


def test_a_changed_file_is_decoded_again(tmp_path, decodes):
    root = make_tree(tmp_path / "mine")
    load("image_folder", root)
    path = root / "cat" / "000.png"
    times = path.stat()
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    load("image_folder", root)
    assert len(decodes) == 24


def _flip_last(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def _foreign(content: bytes) -> bytes:
    return safetensors.torch.save({"weights": torch.zeros(3)})


@pytest.mark.parametrize("harm", [lambda content: b"", lambda content: content[:-9], _flip_last, _foreign])
def test_a_harmed_cache_heals(tmp_path, cache, decodes, harm):
    root = make_tree(tmp_path / "mine")
    first = load("image_folder", root)
    (path,) = cache.iterdir()
    path.write_bytes(harm(path.read_bytes()))
    assert load("image_folder", root).fingerprint == first.fingerprint
    assert len(decodes) == 24
    assert load("image_folder", root).fingerprint == first.fingerprint
    assert len(decodes) == 24


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, cache, decodes, caplog):
    root = make_tree(tmp_path / "mine")
    cache.write_text("a file where the folder should be")
    first, second = load("image_folder", root), load("image_folder", root)
    assert first.fingerprint == second.fingerprint
    assert len(decodes) == 24
    assert "can't be kept" in caplog.text


def test_a_failed_write_leaves_nothing(tmp_path, cache, monkeypatch):
    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(module.os, "replace", fail)
    load("image_folder", make_tree(tmp_path / "mine"))
    assert list(cache.iterdir()) == []


# Finding and fetching -----------------------------------------------------------------------------------


def test_roots_come_from_the_environment_or_the_platform(tmp_path, monkeypatch):
    monkeypatch.setenv("IADD_DATA", str(tmp_path))
    assert data_root() == tmp_path
    make_tree(tmp_path / "covid19")
    assert load("covid19").classes == ("cat", "dog")
    monkeypatch.delenv("IADD_DATA")
    monkeypatch.delenv("IADD_CACHE")
    assert data_root() == platformdirs.user_cache_path("iadd-lab") / "data"
    assert module.cache_root() == platformdirs.user_cache_path("iadd-lab") / "decoded"


@pytest.mark.parametrize("name", [name for name in DATASETS if name not in ("digits", "image_folder")])
def test_a_missing_set_says_where_and_how(tmp_path, name):
    assert locate(name, root=tmp_path) is None
    with pytest.raises(InputError) as caught:
        load(name, tmp_path)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert (f"`iadd-lab data fetch {name}`" in message) == (DATASETS[name].fetcher is not None)
    assert DATASETS[name].where in message


def test_image_folder_needs_its_folder(tmp_path):
    assert locate("image_folder") is None
    with pytest.raises(InputError, match="image_folder needs a folder: pass"):
        load("image_folder")
    with pytest.raises(InputError, match="nowhere, which is not there"):
        load("image_folder", tmp_path / "nowhere")


def test_fetching(tmp_path, monkeypatch):
    raw = make_idx(tmp_path)
    assert fetch_data("mnist", root=tmp_path) == raw  # there already: no network
    assert fetch_data("digits") == locate("digits")
    with pytest.raises(InputError, match="can't be fetched: unpack http://cs231n"):
        fetch_data("tiny_imagenet", root=tmp_path)

    def fail(self):
        raise RuntimeError("no\nnetwork")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", fail)
    with pytest.raises(InputError, match=r"CIFAR-10 could not be fetched into .* \(no network\)"):
        fetch_data("cifar10", root=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "cifar"}, "unknown data set 'cifar' .did you mean 'cifar10'"),
        ({"size": 0}, "size is 0"),
        ({"channels": 2}, "channels is 2; it must be 1 or 3"),
        ({"validation_fraction": 0.0}, "validation_fraction is 0.0"),
        ({"validation_fraction": 0.6}, "validation_fraction is 0.6"),
        ({"seed": -1}, "seed is -1"),
        ({"train_limit": 0}, "train_limit is 0"),
    ],
)
def test_bad_configurations(options, message):
    with pytest.raises(InputError, match=message):
        DataConfig(**{"name": "digits", **options})


def test_bad_names_and_splits():
    data = load("digits")
    assert data.split("test") is data.test
    for wrong in (
        lambda: data.split("tset"),
        lambda: locate("x"),
        lambda: fetch_data("x"),
        lambda: load_data("x"),
    ):
        with pytest.raises(InputError, match="unknown"):
            wrong()
    with pytest.raises(InputError, match="a split has images"):
        Split(torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64))


def test_the_registry():
    assert {name for name, spec in DATASETS.items() if "flip" not in spec.augment} == {
        "digits",
        "mnist",
        "covid19",
    }
    assert {len(spec.augment) for spec in DATASETS.values()} == {5, 6}


# The real sets ------------------------------------------------------------------------------------------


def real(name, **options):
    if "IADD_DATA" not in os.environ:
        pytest.skip("IADD_DATA is not set")
    if locate(name) is None:
        pytest.skip(f"no {name} under IADD_DATA")
    return load(name, **options)


def test_real_cifar10():
    data = real("cifar10")
    assert [counts(split) for split in _splits(data)] == [[4500] * 10, [500] * 10, [1000] * 10]
    assert data.classes[:3] == ("airplane", "automobile", "bird")
    assert data.train.images.shape[1:] == (3, 32, 32)
    mean = data.train.images.float().mean((0, 2, 3)) / 255
    assert torch.allclose(mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=0.01)  # as everybody finds


def test_real_fashion_mnist():
    data = real("fashion_mnist")
    assert [counts(split) for split in _splits(data)] == [[5400] * 10, [600] * 10, [1000] * 10]
    assert abs(data.train.images.float().mean() / 255 - 0.286) < 0.002


def test_real_tiny_imagenet():
    data = real("tiny_imagenet")
    assert len(data.classes) == len(set(data.classes))
    per_class = [450, 50, 50]
    assert [counts(split) for split in _splits(data)] == [[count] * len(data.classes) for count in per_class]
    assert data.train.images.shape[1:] == (3, 64, 64)


def test_real_covid19():
    data = real("covid19")
    assert np.sum([counts(split) for split in _splits(data)], axis=0).tolist() == [124, 500, 500]
    assert counts(data.test) == [31, 125, 125]
    assert data.train.images.shape[1:] == (1, 112, 112)
