"""Distilled sets: for the eye, and stored without their preprocessing."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from iadd_lab.baselines.real_images import random_real
from iadd_lab.data.distilled import KIND, DistilledSet, displayable, made_by
from iadd_lab.data.preprocess import fit_preprocess
from iadd_lab.data.sets import DataConfig, load_data
from iadd_lab.store.artefacts import read_metadata
from tests.samples import assert_refused
from tests.test_readers import make_tiny


def test_real_pictures_stay_as_they_are():
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images[1] = 0.0
    images[2] = 1.0
    assert torch.allclose(displayable(images), images, atol=1e-6)


def test_wild_pictures_come_into_range_and_keep_their_order():
    generator = torch.Generator().manual_seed(0)
    levels = torch.tensor([0, 5, -300, 300.0])[:, None, None, None]
    images = 50 * torch.randn(4, 1, 16, 16, generator=generator) + levels
    shown = displayable(images)
    assert 0 <= shown.min() <= shown.max() <= 1
    for picture, image in zip(shown.flatten(1), images.flatten(1), strict=True):
        assert (picture.diff()[image.diff() > 0] >= 0).all()
        clipped = ((picture <= 0) | (picture >= 1)).double().mean()
        assert clipped <= 0.04
        assert picture.std() > 0.02


@pytest.fixture(scope="module")
def whitened():
    data = load_data("digits")
    return random_real(data, fit_preprocess("zca", data.train.images), ipc=1, seed=0)


def test_whitening_that_was_left_out_is_fitted_anew_on_the_same_images_or_not_at_all(whitened, tmp_path):
    whole, small = whitened.save(tmp_path / "whole"), whitened.save(tmp_path / "small", refit=True)
    assert small.stat().st_size < whole.stat().st_size / 3
    assert {DistilledSet.load(path).fingerprint for path in (whole, small)} == {whitened.fingerprint}
    other = replace(whitened, data_fingerprint="0" * 16).save(tmp_path / "other", refit=True)
    message = "fitted on digits .fingerprint 0000000000000000., but the copy here"
    assert_refused(message, DistilledSet.load, other)


def test_preprocessing_is_fitted_where_the_real_set_lies(tmp_path, monkeypatch):
    make_tiny(tmp_path / "here")
    data = load_data(DataConfig("tiny_imagenet", size=4), root=tmp_path / "here")
    made = random_real(data, fit_preprocess("standardise", data.train.images), ipc=1, seed=0)
    path = made.save(tmp_path / "small", refit=True)
    assert DistilledSet.load(path, root=tmp_path / "here").fingerprint == made.fingerprint
    monkeypatch.setenv("IADD_DATA", str(tmp_path / "elsewhere"))
    assert_refused(r"^Tiny ImageNet was looked for in .*elsewhere", DistilledSet.load, path)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, "set"),
        ({"baseline": {}}, "descent"),
        ({"config": {}, "teachers": {}}, "distillation"),
        ({"made_by": "descent", "config": {}}, "descent"),
    ],
)
def test_what_made_a_set_is_stored_and_inferred_of_older_files(whitened, tmp_path, metadata, expected):
    assert made_by(metadata) == expected
    path = whitened.save(tmp_path / "set", more_metadata=metadata)
    assert read_metadata(path, kind=KIND)["made_by"] == expected


@pytest.mark.parametrize(
    ("file", "expected"),
    [("learned/distilled", "distillation"), ("dm/distilled", "descent"), ("random", "set")],
)
def test_sets_stored_by_earlier_versions_stay_readable(file, expected):
    path = Path(__file__).parent / "golden" / "stored" / f"{file}.safetensors"
    assert made_by(read_metadata(path, kind=KIND)) == expected
    found = DistilledSet.load(path)
    assert len(found.images) == len(found.labels) == found.ipc * len(found.classes)
    assert found.pictures().isfinite().all()
