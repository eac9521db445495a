"""Data sets by name: configured, found, fetched, loaded; and the real ones, where IADD_DATA has them."""

from __future__ import annotations

import os

import numpy as np
import platformdirs
import pytest
import torch
import torchvision.datasets

from iadd_lab.data.sets import DATASETS, DataConfig, cache_root, data_root, fetch_data, load_data, locate
from iadd_lab.errors import InputError
from tests.samples import assert_refused, counts, load, make_idx, make_tree, three


def test_roots_come_from_the_environment_or_the_platform(tmp_path, monkeypatch):
    monkeypatch.setenv("IADD_DATA", str(tmp_path))
    assert data_root() == tmp_path
    make_tree(tmp_path / "covid19")
    assert load("covid19").classes == ("cat", "dog")
    monkeypatch.delenv("IADD_DATA")
    monkeypatch.delenv("IADD_CACHE")
    assert data_root() == platformdirs.user_cache_path("iadd-lab") / "data"
    assert cache_root() == platformdirs.user_cache_path("iadd-lab") / "decoded"


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
    assert_refused(
        r"CIFAR-10 could not be fetched into .* \(no network\)", fetch_data, "cifar10", root=tmp_path
    )


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
    assert_refused(message, DataConfig, **{"name": "digits", **options})


def test_bad_names():
    data = load("digits")
    assert data.split("test") is data.test
    for wrong in (
        lambda: data.split("tset"),
        lambda: locate("x"),
        lambda: fetch_data("x"),
        lambda: load_data("x"),
    ):
        assert_refused("unknown", wrong)


def test_the_registry():
    assert {name for name, spec in DATASETS.items() if "flip" not in spec.augment} == {
        "digits",
        "mnist",
        "covid19",
    }
    assert {len(spec.augment) for spec in DATASETS.values()} == {5, 6}


def real(name, **options):
    if "IADD_DATA" not in os.environ:
        pytest.skip("IADD_DATA is not set")
    if locate(name) is None:
        pytest.skip(f"no {name} under IADD_DATA")
    return load(name, **options)


def test_real_cifar10():
    data = real("cifar10")
    assert [counts(split) for split in three(data)] == [[4500] * 10, [500] * 10, [1000] * 10]
    assert data.classes[:3] == ("airplane", "automobile", "bird")
    assert data.train.images.shape[1:] == (3, 32, 32)
    mean = data.train.images.float().mean((0, 2, 3)) / 255
    assert torch.allclose(mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=0.01)  # as everybody finds


def test_real_fashion_mnist():
    data = real("fashion_mnist")
    assert [counts(split) for split in three(data)] == [[5400] * 10, [600] * 10, [1000] * 10]
    assert abs(data.train.images.float().mean() / 255 - 0.286) < 0.002


def test_real_tiny_imagenet():
    data = real("tiny_imagenet")
    assert len(data.classes) == len(set(data.classes))
    per_class = [450, 50, 50]
    assert [counts(split) for split in three(data)] == [[count] * len(data.classes) for count in per_class]
    assert data.train.images.shape[1:] == (3, 64, 64)


def test_real_covid19():
    data = real("covid19")
    assert np.sum([counts(split) for split in three(data)], axis=0).tolist() == [124, 500, 500]
    assert counts(data.test) == [31, 125, 125]
    assert data.train.images.shape[1:] == (1, 112, 112)
