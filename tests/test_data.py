"""Data sets by name: configured, found, fetched, loaded; and the real ones, where IADD_DATA has them."""

import re

import numpy as np
import platformdirs
import pytest
import torchvision.datasets

from iadd_lab.data.sets import DATASETS, DataConfig, cache_root, data_root, fetch_data, load_data, locate
from tests.samples import assert_refused, counts, load, make_idx, make_tree, three

PLACELESS = ("digits", "image_folder", "files", "memory")


def test_roots_come_from_the_environment_or_the_platform(tmp_path, monkeypatch):
    monkeypatch.setenv("IADD_DATA", str(tmp_path))
    assert data_root() == tmp_path
    make_tree(tmp_path / "covid19")
    assert load("covid19").classes == ("cat", "dog")
    monkeypatch.delenv("IADD_DATA")
    monkeypatch.delenv("IADD_CACHE")
    assert data_root() == platformdirs.user_cache_path("iadd-lab") / "data"
    assert cache_root() == platformdirs.user_cache_path("iadd-lab") / "decoded"


@pytest.mark.parametrize("name", [name for name in DATASETS if name not in PLACELESS])
def test_a_missing_set_says_where_and_how(tmp_path, name):
    assert locate(name, root=tmp_path) is None
    how = f"fetch it with `iadd-lab data fetch {name}`" if DATASETS[name].fetcher else DATASETS[name].where
    assert_refused(f"{tmp_path}.*: {re.escape(how)}", load, name, tmp_path)


def test_image_folder_needs_its_folder(tmp_path):
    assert locate("image_folder") is None
    assert_refused("image_folder needs a folder: pass", load, "image_folder")
    assert_refused("nowhere, which is not there", load, "image_folder", tmp_path / "nowhere")


def test_fetching(tmp_path, monkeypatch):
    raw = make_idx(tmp_path)
    assert fetch_data("mnist", root=tmp_path) == raw  # there already: no network
    assert fetch_data("digits") == locate("digits")
    assert_refused("can't be fetched: unpack http://cs231n", fetch_data, "tiny_imagenet", root=tmp_path)

    def fail(self):
        raise RuntimeError("no\nnetwork")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", fail)
    message = r"CIFAR-10 could not be fetched into .* \(no network\)"
    assert_refused(message, fetch_data, "cifar10", root=tmp_path)


def test_names_and_the_registry():
    without_flip = {name for name, spec in DATASETS.items() if "flip" not in spec.augment}
    assert without_flip == {"digits", "mnist", "covid19"}
    assert {len(spec.augment) for spec in DATASETS.values()} == {5, 6}
    assert_refused("unknown data set 'cifar' .did you mean 'cifar10'", DataConfig, "cifar")
    assert_refused("channels is 17; .* at most 16", DataConfig, "digits", channels=17)
    assert_refused("images have 1 channels, not 2", load, "digits", channels=2)
    data = load("digits")
    assert data.split("test") is data.test
    for function, wrong in ((data.split, "tset"), (locate, "x"), (fetch_data, "x"), (load_data, "x")):
        assert_refused("unknown", function, wrong)


@pytest.mark.parametrize(
    ("name", "images", "sums"),  # of all classes: in training, for validation, to test
    [
        ("cifar10", (3, 32, 32), (45_000, 5_000, 10_000)),
        ("fashion_mnist", (1, 28, 28), (54_000, 6_000, 10_000)),
        ("covid19", (1, 112, 112), None),
        ("tiny_imagenet", (3, 64, 64), None),
    ],
)
def test_real_sets_are_whole(name, images, sums, load_real):
    data = load_real(name)
    assert data.train.images.shape[1:] == images
    parts = np.array([counts(split) for split in three(data)])  # (3, classes)
    assert parts.shape[1] == len(data.classes) == len(set(data.classes))
    if name == "covid19":
        assert parts.sum(0).tolist() == [124, 500, 500]
        assert parts[2].tolist() == [31, 125, 125]
        return
    assert (parts == parts[:, :1]).all()  # as many of each class
    assert parts.sum(1).tolist() == list(sums) if sums else parts[:, 0].tolist() == [450, 50, 50]
    mean = data.train.images.float().mean((0, 2, 3)) / 255
    expected = {"cifar10": [0.4914, 0.4822, 0.4465], "fashion_mnist": [0.286]}.get(name, mean.tolist())
    assert mean.tolist() == pytest.approx(expected, abs=0.01)  # as everybody finds
