"""Folders of pictures as people have them: names of splits, strewn files, links, formats, twins, groups."""

import re
import shutil
import struct
import sys
import types
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import iadd_lab
from iadd_lab.baselines.real_images import random_real
from iadd_lab.data import pixels
from iadd_lab.data.preprocess import Standardise
from iadd_lab.data.sets import load_data, locate
from iadd_lab.evaluation.card import data_card
from tests.processes import complete
from tests.samples import assert_refused, load, make_tree, noise, rows, save, three
from tests.test_readers import make_tiny


def grow(root: Path, folders: str) -> Path:
    """Six pictures in each of the folders, no two alike."""
    for number, folder in enumerate(folders.split()):
        for index in range(6):
            save(root / folder / f"{index:03}.png", noise((8, 8, 3), seed=100 * number + index))
    return root


@pytest.mark.parametrize(
    ("folders", "classes", "tested", "remark"),
    [
        ("bus car train", "bus car train", 4, ""),
        ("bus test train", "bus test train", 4, ""),
        ("bus/images car/images train/images", "bus car train", 4, ""),
        ("bus train train/more/deep", "bus train", 4, ""),
        ("positive_test negative_test", "negative_test positive_test", 2, ""),
        ("valid invalid", "invalid valid", 2, ""),
        ("Training/a Training/b Testing/a Testing/b", "a b", 12, ""),
        ("TrainingSet/a TrainingSet/b mri-test/a mri-test/b", "a b", 12, ""),
        ("x_train/x_train/a x_train/x_train/b x_test/x_test/a x_test/x_test/b", "a b", 12, ""),
        ("train/a train/b Val/a Val/b", "a b", 12, "Val is the test part"),
        (
            "train/a train/b test valid/a valid/b",
            *(
                "a b",
                12,
                "valid is the test part; left out: 1 outside of the class folders (test with 6 files)",
            ),
        ),
        (
            "train/a train/b test/a test/b validation/a",
            *("a b", 12, "left out: 1 outside of the class folders (validation with 6 files)"),
        ),
        ("train/a train/b", "a b", 2, ""),
        ("sets/pets/a sets/pets/b", "a b", 2, ""),
    ],
)
def test_splits_are_known_by_their_folders_and_classes_may_be_called_so(
    tmp_path, folders, classes, tested, remark
):
    data = load("image_folder", grow(tmp_path / "mine", folders))
    assert (data.classes, len(data.test), data.remark) == (tuple(classes.split()), tested, remark)
    (tmp_path / "mine").rename(tmp_path / "covid19")  # other readers of trees see them as well
    assert load("covid19", tmp_path).classes == data.classes


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ("train/a train/b test", r"only one of train and test .*\(test, train\): give both"),
        ("train/a train/b other", r"only one of train and test .*\(other, train\): give both"),
        ("train/images train/labels test/images test/labels", "only one of train and test"),
        ("a/train a/test b/train b/test", r"splits in its classes \(a, b\): put these into train and test"),
        ("train test", "only one of train and test with a folder per class"),
        ("train/a train/b test/c test/d", "only one of train and test"),
        ("train_x/a train_x/b train_y/a train_y/b test/a test/b", "several folders to train or to test on"),
        ("train/a train/b train/c test/a test/b", r"class folders in only one of train and test \(c\)"),
    ],
)
def test_splits_that_cannot_be_told_are_refused(tmp_path, folders, message):
    assert_refused(message, load, "image_folder", grow(tmp_path, folders))


def test_whatever_is_left_out_is_counted_and_named_also_on_the_card(tmp_path):
    root = grow(tmp_path / "mine", "cat cat/images cat/more/deep cat/masks dog dog/@eaDir __MACOSX")
    for name in ("cat/.DS_Store", "cat/._000.png", "cat/Thumbs.db", "cat/notes.txt", "dog/a.CR2", "list.csv"):
        shutil.copy(root / "cat" / "000.png", root / name)
    (root / "cat" / "notes.txt").write_text("cats")
    data = load("image_folder", root)
    assert sum(map(len, three(data))) == 24
    assert data.remark == (
        "left out: 5 hidden or of a system (__MACOSX with 6 files, cat/.DS_Store, cat/._000.png, "
        "cat/Thumbs.db, dog/@eaDir with 6 files), 2 no picture (cat/notes.txt, dog/a.CR2), "
        "1 of masks (cat/masks with 6 files), 1 outside of the class folders (list.csv)"
    )
    made = random_real(data, Standardise.fit(data.train.images), ipc=1, seed=0)
    assert data.remark in data_card(made.save(tmp_path / "distilled.safetensors"))


def test_linked_folders_are_read_once_and_links_in_circles_or_to_nothing_are_named(tmp_path):
    root, other = grow(tmp_path / "mine", "cat dog"), make_tree(tmp_path / "other", seed=300)
    links = {"cat/up": root, "cat/self": root / "cat", "cat/more": other / "cat", "cat/again": other / "cat"}
    for name, target in (links | {"all": root, "gone": root / "nowhere"}).items():
        (root / name).symlink_to(target)
    data = load("image_folder", root)
    assert sum(map(len, three(data))) == 18
    assert data.remark == (
        "left out: 3 linked again or in circles (cat/more, cat/self, cat/up), "
        "2 outside of the class folders (all, gone)"
    )
    (root / "cat" / "dead.jpg").symlink_to(root / "nowhere")
    assert_refused(r"dead\.jpg is no regular file, or a link to none", load, "image_folder", root)
    assert "(cat/dead.jpg) and were skipped" in load("image_folder", root, bad_images="skip").remark


# Formats -------------------------------------------------------------------------------------------------

FORMATS = {
    "jfif": "JPEG",
    "JPG_large": "JPEG",
    "": "PNG",
    "gif": "GIF",
    "tga": "TGA",
    "ppm": "PPM",
    "pcx": "PCX",
}
FORMATS |= {"ico": "ICO", "jp2": "JPEG2000", "sgi": "SGI", "dib": "DIB", "txt": "WEBP"}


def test_every_format_is_known_by_its_content(tmp_path):
    root = grow(tmp_path, "cat dog")
    for number, (ending, name) in enumerate(FORMATS.items()):
        image = noise((16, 16, 3), seed=500 + number)
        save(root / "cat" / f"x{number}.{ending}".rstrip("."), image, format=name)
    data = load("image_folder", root)
    assert (sum(map(len, three(data))), data.remark) == (12 + len(FORMATS), "")
    (root / "cat" / "figure.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    assert "figure.eps" in load("image_folder", root).remark


@pytest.mark.parametrize("name", ["IMG_1.HEIC", "IMG_1.jpg", "IMG_1"])
def test_a_telephones_picture_is_named_whatever_it_is_called(tmp_path, name):
    root = grow(tmp_path, "cat dog")
    (root / "cat" / name).write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(400))
    told = "it is a HEIC or AVIF picture, whatever its name; install pillow-heif"
    assert_refused(told, load, "image_folder", root)
    skipped = load("image_folder", root, bad_images="skip")
    assert f"(cat/{name}) and were skipped: install pillow-heif" in skipped.remark


def test_pillow_heif_reads_it_where_it_is_installed(tmp_path, monkeypatch):
    """Another picture's parser stands for it here."""

    def parse(file, name):
        file.close()
        return Image.new("L", (8, 8), 77)

    def register():
        Image.register_open("HEIF", parse, lambda head: b"heic" in head)

    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))
    monkeypatch.setattr(Image, "ID", [*Image.ID])
    monkeypatch.setattr(Image, "OPEN", {**Image.OPEN})
    pixels._parsers.cache_clear()
    (tmp_path / "IMG_1.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    try:
        assert (pixels.decode_file(str(tmp_path / "IMG_1.jpg"), 8, 1) == 77).all()
    finally:
        pixels._parsers.cache_clear()


def save_colour_16(path: Path, values: np.ndarray) -> None:
    """A PNG of 16 bits for each of three channels, which Pillow cannot write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    header = struct.pack(">IIBBBBB", *values.shape[1::-1], 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize("bits", [9, 12, 16])
def test_grey_pictures_of_more_bits_have_one_scale_that_is_said_and_stored(tmp_path, bits):
    random, white = np.random.default_rng(0), 2**bits - 1
    names = [f"{name}/{number}.png" for name in ("ill", "well") for number in range(6)]
    values = {name: random.integers(0, 400, (8, 8)) for name in names}
    values["ill/1.png"][0, 0] = white - 5  # the set's largest
    for name, pixels_of_it in values.items():
        save(tmp_path / "ct" / name, pixels_of_it.astype(np.uint16))
    save(tmp_path / "ct" / "well" / "byte.png", noise((8, 8)))  # stays as it is
    data = load("image_folder", tmp_path / "ct", size=8)
    assert data.remark == f"{white} is white in pictures of more than 8 bits"
    assert data.config.white == (None if bits == 16 else white)
    for split in three(data):
        for name, image in zip(split.names, split.images, strict=True):
            expected = np.rint(values[name] * (255 / white)) if name in values else noise((8, 8))
            assert np.array_equal(image[0], expected)
    again = load_data(data.config, root=tmp_path / "ct", progress=False)
    assert (again.config, again.fingerprint) == (data.config, data.fingerprint)
    made = random_real(data, Standardise.fit(data.train.images), ipc=1, seed=0)
    training = iadd_lab.load(made.save(tmp_path / "distilled.safetensors"))
    with Image.open(tmp_path / "ct" / data.test.names[0]) as picture:  # as the set's own were read
        assert torch.equal(training.transform(picture), made.preprocess.apply(data.test.images[:1])[0])


def test_colour_pictures_of_more_bits_are_not_nearly_black(tmp_path):
    for number in range(12):
        path = tmp_path / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        save_colour_16(path, np.random.default_rng(number).integers(0, 4096, (8, 8, 3)))
    data = load("image_folder", tmp_path, size=8)
    assert data.config.white == 4095
    assert data.train.images.max() == round(15 * 257 * 255 / 4095)  # Pillow keeps the upper 8 bits of 16


# Names, archives, layouts --------------------------------------------------------------------------------


def test_names_in_two_unicode_forms_are_one(tmp_path):
    names = [unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD")]
    for number, (part, name) in enumerate(zip(("train", "test"), names, strict=True)):
        make_tree(tmp_path / "parts" / part, (name, "tea"), seed=100 * number)
        make_tree(tmp_path / "mine", (name, "tea"), seed=100 * number)
    for root, count in (("parts", 24), ("mine", 18)):
        data = load("image_folder", tmp_path / root)
        assert data.classes == (names[0], "tea")
        assert sum(map(len, three(data))) == count


def test_archives_may_be_unpacked_one_folder_too_deep(tmp_path):
    name = "COVID-19_Radiography_Dataset"
    grow(tmp_path / name / name, "COVID/images COVID/masks Normal/images")
    assert load("covid19", tmp_path).classes == ("COVID", "Normal")
    (tmp_path / "cifar10" / "cifar-10-batches-py").mkdir(parents=True)
    assert locate("cifar10", root=tmp_path).name == "cifar-10-batches-py"
    inner = make_tiny(tmp_path / "tiny-imagenet-200")
    assert load("tiny_imagenet", tmp_path).classes == ("nail", "goldfish")
    assert inner.parent.name == inner.name


@pytest.mark.parametrize("layout", ["val/{}", "val/{}/images", "val/images/{}"])
def test_tiny_imagenets_validation_images_may_lie_in_class_folders(tmp_path, layout):
    folder = make_tiny(tmp_path)
    official = load("tiny_imagenet", tmp_path)
    for line in (folder / "val" / "val_annotations.txt").read_text().splitlines():
        name, identifier = line.split()[:2]
        (folder / layout.format(identifier)).mkdir(parents=True, exist_ok=True)
        (folder / "val" / "images" / name).rename(folder / layout.format(identifier) / name)
    (folder / "val" / "val_annotations.txt").unlink()
    data = load("tiny_imagenet", tmp_path)
    assert data.remark == official.remark
    assert sorted(rows(data.test)) == sorted(rows(official.test))
    assert data.test.labels.tolist() == [0, 1, 1]


# The same picture twice, and pictures that belong together -------------------------------------------------


def test_the_same_picture_twice_is_counted_and_named(tmp_path):
    root = grow(tmp_path, "train/a train/b test/a test/b")
    assert load("image_folder", root).remark == ""
    with Image.open(root / "train/a/000.png") as picture:
        picture.save(root / "test/b/same.bmp")  # other bytes, equal pixels
    shutil.copy(root / "train/a/001.png", root / "train/b/x.png")
    shutil.copy(root / "test/a/002.png", root / "test/a/y.png")
    kept, dropped = (load("image_folder", root, seen_test_images=each) for each in ("keep", "drop"))
    tested = "1 of 14 test images are the same as training images (test/b/same.bmp = train/a/000.png)"
    others = (
        "2 images are in several classes (test/b/same.bmp = train/a/000.png, "
        "train/b/x.png = train/a/001.png); "
        "1 images are the same as another of their class (test/a/y.png = test/a/002.png)"
    )
    assert kept.remark == f"{tested}; {others}"
    assert dropped.remark == f"{tested}, and are left out; {others}"
    assert (len(kept.test), len(dropped.test)) == (14, 13)
    assert "test/b/same.bmp" not in dropped.test.names
    for path in (root / "test" / "a").iterdir():
        shutil.copy(root / "train" / "a" / "000.png", path)
    message = "class 'a' has 5 train, 1 validation, 0 test images"
    assert_refused(message, load, "image_folder", root, seen_test_images="drop")


def test_the_command_line_says_it_and_has_the_options(tmp_path):
    root = grow(tmp_path, "train/a train/b test/a test/b")
    shutil.copy(root / "train" / "a" / "000.png", root / "test" / "a" / "000.png")
    check = "data check image_folder --data-root {} --seen-test-images drop --groups {}"
    said = complete(check, root, r"(\d+)\.").stdout
    assert re.search(
        r"^Note: 1 of 12 test images are the same as .*, and are left out; 6 groups", said, re.MULTILINE
    )
    assert re.search(r"^all +10 +2 +11$", said, re.MULTILINE)


def test_groups_are_never_parted(tmp_path):
    root = tmp_path / "scans"
    for number, name in enumerate(
        f"{part}/patient{n}_{k}" for part in "ab" for n in range(8) for k in range(4)
    ):
        save(root / f"{name}.png", noise((8, 8, 3), seed=number))
    (root / "b" / "patient0_0.png").rename(root / "b" / unicodedata.normalize("NFD", "patient0_\u00e9.png"))
    by_name = load("image_folder", root, groups=r"(patient\d+)_", size=8)
    owners = [{name[2:10] for name in split.names} for split in three(by_name)]
    assert set.union(*owners) == {f"patient{n}" for n in range(8)}
    assert sum(map(len, owners)) == 8
    assert len(by_name.test) == 16  # two patients of eight: a fifth at least
    listed = "".join(f"{path.relative_to(root)},{path.name[:8]}\n" for path in root.rglob("*.png"))
    listed = unicodedata.normalize("NFC", listed)
    (root / "groups.csv").write_text(f"file,group\n{listed}")
    by_file = load("image_folder", root, groups="groups.csv", size=8)
    assert (by_file.fingerprint, by_file.remark) == (by_name.fingerprint, "")
    message = r"by groups, 'p_', 64 images have no group \(a/patient0_0"
    assert_refused(message, load, "image_folder", root, groups="p_")
    assert_refused(r"groups is '\('; as a regular expression", load, "image_folder", root, groups="(")
    assert_refused("groups are of image files, which Digits has not", load, "digits", groups="a")
    for part in ("train", "test"):
        shutil.copytree(root / "a", tmp_path / "parts" / part / "a")
        shutil.copytree(root / "b", tmp_path / "parts" / part / "b")
    told = "8 groups are in the training and in the test part (patient0, "
    assert told in load("image_folder", tmp_path / "parts", groups=r"(patient\d+)_").remark
