"""The same pictures given in nine ways are one data set; what is not pictures and labels is one sentence."""

import csv
import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
import torchvision.datasets
from PIL import Image
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from iadd_lab.data.sets import ALL_OPERATIONS, UNMIRRORED, DataConfig, load_data
from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.loop import distill
from iadd_lab.training.networks import NetworkConfig
from iadd_lab.training.teachers import TeacherConfig, open_teachers, train_teachers
from tests.conftest import REAL_DATA
from tests.processes import complete, ended
from tests.samples import assert_refused, counts, load, make_idx, make_tree, noise, rows, save, three

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


def test_a_subset_and_what_is_joined_keep_the_names_of_classes():
    images, labels = make_parts()["train"]
    whole = Pairs(images, labels)
    joined = ConcatDataset([Subset(whole, range(10)), Subset(whole, range(10, 24))])
    assert given(joined).fingerprint == given((images, labels), classes=CLASSES).fingerprint
    few = given(Subset(whole, [*range(8), *range(16, 24)]))
    assert (few.classes, "no picture is of oak" in few.remark) == (("ash", "yew"), True)


@pytest.mark.parametrize(
    "shaped",
    [
        lambda images: images.astype(np.float32) / 255,
        lambda images: torch.from_numpy(images / 255.0).to(torch.float32),
        lambda images: images.astype(np.int64),
        lambda images: [*images],
        lambda images: images.transpose(0, 3, 1, 2),
    ],
)
def test_readings_of_the_same_bytes_are_the_same(shaped):
    images, labels = make_parts()["train"]
    data = given((shaped(images), labels.astype(str)), size=8)
    assert data.fingerprint == given((images, labels)).fingerprint
    assert data.folds == 5


def test_what_is_read_is_a_copy_of_any_number_of_channels_and_says_what_it_did():
    images = np.linspace(0, 16, 30 * 64 * 5).reshape(30, 5, 8, 8)
    before = given(
        (images, np.arange(30) % 2), range=(0, 16), layout="channels_first", validation_fraction=0.2
    )
    assert (before.channels, before.size, before.config.range) == (5, 8, (0.0, 16.0))
    assert "values from 0 to 16 became 0 to 255" in before.remark
    kept = before.train.images.clone()
    images[:] = 0
    assert torch.equal(before.train.images, kept)
    assert int(kept.max()) > 250


def test_digits_as_arrays_are_the_built_in_ones():
    from sklearn.datasets import load_digits

    digits, named = load_digits(), load("digits")
    data = given((digits.images, digits.target), range=(0, 16))
    assert torch.cat([split.images for split in three(data)]).sum() == sum(
        s.images.sum() for s in three(named)
    )
    assert (data.classes, data.train.images.shape[1:]) == (named.classes, named.train.images.shape[1:])


def test_groups_stay_together(tmp_path):
    images, labels, groups = noise((60, 8, 8)), np.arange(60) % 2, np.arange(60) // 6
    np.savez(tmp_path / "a.npz", images=images, labels=labels, groups=groups)
    data = given(tmp_path / "a.npz")
    parts = [set(split.groups) for split in three(data)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 10
    for number, image in enumerate(images):
        save(tmp_path / "pictures" / f"{number}.png", image)
    lines = [
        f'{{"file_name": "pictures/{n}.png", "label": "{n % 2}", "patient": "p{n // 6}"}}' for n in range(60)
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    table = given(tmp_path)
    assert table.fingerprint == data.fingerprint
    assert len(set.union(*(set(split.groups) for split in three(table)))) == 10


def test_keras_pairs_and_their_names(tmp_path):
    parts = make_parts()
    pairs = (parts["train"], parts["test"])
    names = dict(zip(("x_train", "y_train", "x_test", "y_test"), (*pairs[0], *pairs[1]), strict=True))
    np.savez(tmp_path / "keras.npz", **names)
    prints = {given(each).fingerprint for each in (pairs, names, str(tmp_path / "keras.npz"))}
    assert len(prints) == 1


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tgz"])
def test_tar_and_names_that_lead_out_of_an_archive(tmp_path, suffix):
    trees = make_tree(tmp_path / "trees", CLASSES)
    archive = tmp_path / f"trees.{suffix}"
    with tarfile.open(archive, "w" if suffix == "tar" else "w:gz") as file:
        file.add(trees, "trees")
    assert given(archive).fingerprint == given(archive).fingerprint == given(trees).fingerprint
    for name, kind in (
        ("../out.png", tarfile.REGTYPE),
        ("/out.png", tarfile.REGTYPE),
        ("in", tarfile.SYMTYPE),
    ):
        with tarfile.open(archive, "w" if suffix == "tar" else "w:gz") as file:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc"
            file.addfile(member)
        assert_refused("has links, or names that lead out of it", given, archive)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("../out.png", b"")
    assert_refused("names that lead out", given, tmp_path / "bomb.zip")
    assert not (tmp_path.parent / "out.png").exists()


def test_an_archive_that_unpacks_to_far_more_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("iadd_lab.data.files._UNPACKED", (1000, 50))
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.png", bytes(10**6))
    assert_refused("unpacks to 1000000 bytes, more than 50 times", given, tmp_path / "bomb.zip")


IMAGES, LABELS = noise((12, 8, 8, 3)), np.arange(12) % 2
NOT_SAME = np.random.default_rng(0)


class Random(Pairs):
    def __getitem__(self, number):
        return NOT_SAME.random((8, 8)), 0


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ((noise((12, 3, 8, 3)), LABELS), {}, "channels, first or last. Say layout='channels_first' or"),
        ((noise((12, 40, 8, 20)), LABELS), {}, "first or last"),
        ((noise((12, 4, 8, 8, 3)), LABELS), {}, r"as videos have"),
        ((noise((12, 64)), LABELS), {}, r"images have the shape \(12, 64\): give"),
        ((IMAGES.astype(float) / 255 * 16, LABELS), {}, r"reach from 0 to 16, .* as in range=\(0, 16\)"),
        ((IMAGES.astype(float) - 100, LABELS), {}, "reach from -100 to 155"),
        ((IMAGES.astype(float) * np.nan, LABELS), {}, "NaN or infinite"),
        ((IMAGES.astype(complex), LABELS), {}, "images are of complex128: give real"),
        ((IMAGES, LABELS), {"range": (0, 100)}, r"leaves range=\(0.0, 100.0\)"),
        ((IMAGES, LABELS), {"range": (5, 5)}, "range is .*black and white"),
        ((IMAGES, LABELS), {"layout": "NHWC"}, "unknown layout 'NHWC'"),
        ((IMAGES, LABELS), {"sise": 8}, "unknown option 'sise' .did you mean 'size'"),
        ((IMAGES, LABELS[:5]), {}, "12, 'label': 5"),
        ((IMAGES, LABELS + 0.5), {}, "numbers to regress are no classes"),
        ((IMAGES, np.arange(12)), {}, "12 pictures have 12 different labels; .*regress"),
        ((IMAGES, LABELS - 1), {}, "6 pictures without a label"),
        ((IMAGES, [None, *LABELS[1:]]), {}, "1 pictures without a label"),
        ((IMAGES, np.where(LABELS, np.nan, 1.0)), {}, "6 pictures without a label"),
        ((IMAGES, np.ones((12, 3))), {}, "several labels per picture"),
        ((IMAGES, np.zeros((12, 3))), {}, "12 pictures without a label"),
        ((IMAGES, [[0, 1], [0]] * 6), {}, "several labels per picture"),
        ((IMAGES, LABELS), {"classes": ("a",)}, "must be different names, two or more"),
        ((IMAGES, LABELS + 1), {"classes": ("a", "b")}, "labels 2, but the classes are a, b.*count from 0"),
        ((IMAGES, LABELS * 0), {}, "all pictures are of one class"),
        (
            {"train": (IMAGES, LABELS), "val": (IMAGES, LABELS), "valid": (IMAGES, LABELS)},
            {},
            "several parts val",
        ),
        ({"train": (IMAGES, LABELS), "other": (IMAGES, LABELS)}, {}, "one to train and one to test on"),
        (
            {"images": IMAGES, "x": IMAGES, "labels": LABELS},
            {},
            "images, x may all be the column of the image",
        ),
        ({"images": IMAGES}, {}, "has no labels among images"),
        (
            TensorDataset(*torch.zeros(3, 4, 3, 8, 8)),
            {},
            "item 0 is a tuple of 3",
        ),
        (TensorDataset(torch.rand(4, 3, 8, 8), torch.rand(4, 2)), {}, "not 0 and 1"),
        (Random(IMAGES, LABELS), {}, "another picture each time"),
        (iter([1]), {}, "data is a list_iterator: give a name"),
        (torch.utils.data.DataLoader([1]), {}, "of a DataLoader its .dataset"),
        ("cifar", {}, "unknown data set 'cifar' .did you mean 'cifar10'"),
        ("no/such/place", {}, "no/such/place, which is not there: check the path"),
        ("torchvision:", {}, "write torchvision:NAME"),
        (DataConfig("memory"), {}, "were in memory, .* load them again"),
    ],
)
def test_what_is_not_pictures_and_labels_is_one_sentence(source, options, message):
    assert_refused(message, given, source, **options)


def test_tables_that_do_not_fit(tmp_path):
    for number in range(6):
        save(tmp_path / "images" / f"{number}.png", noise((8, 8)))
    table = tmp_path / "labels.csv"

    def refused(text, message, **options):
        table.write_text(text)
        assert_refused(message, given, table, **options)

    body = "".join(f"{number}.png,{number % 2},{number % 3}\n" for number in range(6))
    refused("file,label,class\n" + body, "class, label may all be the column of the label: .*label_column=")
    refused("file,a,b\n" + body, "has no labels among")
    refused("file,label\n0.png,1\n7.png,1\n8.png,0\n", r"2 pictures that are not in .* \(7.png, 8.png\)")
    refused("file,label\n0.png,1\n0.png,0\n", "called 0.png: keep one row")
    refused("file,label\n0.png,1\n1.png,\n2.png,0\n", "1 pictures without a label")
    refused("file,label\n0.png,0.25\n1.png,0.5\n2.png,0.75\n", "numbers to regress")
    refused("a,label\nx,u\ny,v\n", "no column that names pictures")
    refused(
        "left,right,label\n0,1,a\n2,3,b\n",
        "left, right of .* all name pictures",
    )
    refused("", "can't be read")
    table.write_text("file,label,x\n" + body)
    assert given(table, validation_fraction=0.5).classes == ("0", "1")


def test_files_that_do_not_fit(tmp_path):
    for name, message in (
        ("a.npz", "a.npz can't be read"),
        ("a.zip", "can't be read"),
        ("a.pt", "unknown kind"),
    ):
        (tmp_path / name).write_bytes(b"nothing")
        assert_refused(message, given, tmp_path / name)
    np.savez(tmp_path / "b.npz", images=np.array([None]), labels=LABELS)
    assert_refused("b.npz can't be read .*allow_pickle", given, tmp_path / "b.npz")
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"image": [png(IMAGES[0])] * 4}), tmp_path / "c.parquet")
    assert_refused(r"c.parquet .* has no labels among image", given, tmp_path / "c.parquet")
    parquet.write_table(arrow.table({"image": [b"x"] * 4, "label": [0, 1, 0, 1]}), tmp_path / "c.parquet")
    assert_refused("a picture of 1 bytes can't be decoded", given, tmp_path / "c.parquet")
    assert_refused("give one of them", given, tmp_path / "b.npz", root=tmp_path)


def test_two_ways_distil_to_the_same_bits(tmp_path):
    parts, made = make_parts(), []
    for way in ("class folders", "npz", "Dataset"):
        data = given(WAYS[way](tmp_path, parts), **OPTIONS.get(way, {}))
        config = TeacherConfig(network=NetworkConfig(width=4, depth=1), epochs=3, batch=8)
        teachers = train_teachers(data, config, tmp_path / f"teachers {way}", count=1, progress=False)
        settings = DistillConfig(ipc=1, iterations=2, student_steps=2, teacher_epochs=1, max_start_epoch=2)
        made.append(distill(data, teachers, settings, progress=False).distilled)
    assert all(torch.equal(made[0].images, each.images) for each in made[1:])
    assert {each.fingerprint for each in made} == {made[0].fingerprint}
    assert [each.data.name for each in made] == ["files", "files", "memory"]
    assert made[1].remark == "read from trees.npz"


def write_svhn(root: Path, monkeypatch) -> dict[str, int]:
    kind, sums = torchvision.datasets.SVHN, {}
    for split, count in {"train": 40, "test": 30}.items():
        pixels, labels = noise((32, 32, 3, count), seed=count), np.arange(count)[:, None] % 10
        labels[labels == 0] = 10  # as the files have zero
        scipy.io.savemat(root / f"{split}_32x32.mat", {"X": pixels, "y": labels})
        digest = hashlib.md5((root / f"{split}_32x32.mat").read_bytes()).hexdigest()
        sums[split] = [*kind.split_list[split][:2], digest]
    monkeypatch.setattr(kind, "split_list", kind.split_list | sums)
    return {"train": 30, "validation": 10, "test": 30}


def write_stl10(root: Path, monkeypatch) -> dict[str, int]:
    kind, folder = torchvision.datasets.STL10, root / "stl10_binary"
    folder.mkdir()
    for part, count in {"train": 40, "test": 30, "unlabeled": 2}.items():
        noise((count, 3, 96, 96), seed=count).tofile(folder / f"{part}_X.bin")
        (np.arange(count) % 10 + 1).astype(np.uint8).tofile(folder / f"{part}_y.bin")
    (folder / kind.class_names_file).write_text("\n".join(f"thing {label}" for label in range(10)) + "\n")
    for name in ("train_list", "test_list"):
        sums = {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in folder.iterdir()}
        known = [[file, sums.get(file, md5)] for file, md5 in getattr(kind, name)]
        monkeypatch.setattr(kind, name, known)
    return {"train": 30, "validation": 10, "test": 30}


def write_eurosat(root: Path, monkeypatch) -> dict[str, int]:
    make_tree(root / "eurosat" / "2750", CLASSES, count=10, shape=(64, 64, 3), suffix=".jpg")
    return {"train": 21, "validation": 3, "test": 6}


@pytest.mark.parametrize("write", [write_svhn, write_stl10, write_eurosat])
def test_sets_of_torchvision_in_their_formats(write, tmp_path, monkeypatch):
    name = {write_svhn: "SVHN", write_stl10: "STL10", write_eurosat: "EuroSAT"}[write]
    word = f"torchvision:{name}"
    assert_refused(f"fetch it with `iadd-lab data fetch {word}`", load, word, tmp_path)
    expected = write(tmp_path, monkeypatch)
    data = load(word, tmp_path)
    assert len(data.test) == expected["test"]
    assert sum(map(len, three(data))) == sum(expected.values())
    assert data.config.spec.augment == (UNMIRRORED if name == "SVHN" else ALL_OPERATIONS)
    if name != "EuroSAT":
        alone = load(f"{word}/test", tmp_path)
        assert sum(map(len, three(alone))) == expected["test"]


def test_names_of_torchvision_s_sets(tmp_path):
    make_idx(tmp_path, "FashionMNIST")
    both = [load(name, tmp_path) for name in ("torchvision:FashionMNIST", "fashion_mnist")]
    assert both[0].fingerprint == both[1].fingerprint
    assert_refused("unknown .* 'SVNH' .did you mean 'SVHN'", load, "torchvision:SVNH", tmp_path)
    assert_refused("missing 1 required positional argument: 'split'", load, "torchvision:EMNIST", tmp_path)


def test_fashion_mnist_of_torchvision_is_the_built_in_set(load_real):
    built_in = load_real("fashion_mnist")
    other = load("torchvision:FashionMNIST", REAL_DATA)
    assert (other.fingerprint, other.classes) == (built_in.fingerprint, built_in.classes)


def test_the_command_line_takes_paths_and_remembers_them(tmp_path):
    path, at = write_npz(tmp_path / "trees.npz", make_parts()), {"at": tmp_path}
    names = " ".join(f"--classes {name}" for name in CLASSES)
    said = complete(f"data check {{at}}/trees.npz {names}", **at).stdout
    assert given(path, classes=CLASSES).fingerprint in said
    assert "ash" in said
    small = "--width 4 --depth 1 --teachers 1 --epochs 3 --batch 8"
    complete(f"teach --data {{at}}/trees.npz {names} {small} --out {{at}}/t", **at)
    teachers = open_teachers(tmp_path / "t")
    assert (teachers.data.name, teachers.classes) == ("files", CLASSES)
    short = "--iterations 2 --student-steps 2 --teacher-epochs 1 --max-start-epoch 2"
    complete(f"distill --teachers {{at}}/t --ipc 1 {short} --out {{at}}/d", **at)
    assert "read from trees.npz" in complete("evaluate {at}/d --epochs 2 --networks 2", **at).stdout


def test_what_was_in_memory_is_asked_for_again(tmp_path):
    parts = make_parts()
    config = TeacherConfig(network=NetworkConfig(width=4, depth=1), epochs=3, batch=8)
    teachers = train_teachers(given(parts), config, tmp_path / "t", count=1, progress=False)
    assert "were in memory" in ended(2, "distill --teachers {} --out {}", tmp_path / "t", tmp_path / "d")
    others = {part: (255 - images, labels) for part, (images, labels) in parts.items()}
    settings = DistillConfig(ipc=1, iterations=2, student_steps=2, teacher_epochs=1, max_start_epoch=2)
    assert_refused("but the data is", distill, given(others), teachers, settings, progress=False)
