"""Splits: disjoint, stratified, nested, reproducible, and refused where a class is too small."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from iadd_lab.data.splits import Split, draw, hold_out
from tests.samples import assert_refused, counts, load, make_tree, noise, rows, save, three


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
            (split,) = (split for split in three(data) if pixels in rows(split))
            assert split.labels[rows(split).index(pixels)] == label


def test_a_split_checks_what_it_holds():
    images, labels = torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    assert len(Split(images, labels)) == 2
    wrongs = (images.float(), labels), (images, labels.int()), (images[0], labels), (images, labels[:1])
    for wrong in wrongs:
        assert_refused("a split has images", Split, *wrong)


def test_draws_are_proportional_and_each_begins_the_next():
    labels = np.repeat([0, 1, 2], [100, 50, 4])
    draws = [set(draw(labels, count, np.random.default_rng(0)).tolist()) for count in range(3, 155)]
    assert [len(drawn) for drawn in draws] == list(range(3, 155))
    assert all(small < large for small, large in pairwise(draws))
    assert sorted(labels[list(draws[0])].tolist()) == [0, 1, 2]
    half = np.bincount(labels[list(draws[77 - 3])])
    assert np.abs(half - np.array([50, 25, 2])).max() <= 1


def test_what_is_held_out_is_taken_away():
    images = torch.arange(40, dtype=torch.uint8).reshape(40, 1, 1, 1)
    split = Split(images, torch.arange(40) % 4)
    kept, held = hold_out(split, 0.25, seed=[7])
    assert sorted(torch.cat([kept.images, held.images]).flatten().tolist()) == list(range(40))
    assert len(held) == 10
    for part in (kept, held):
        assert torch.equal(part.images.flatten() % 4, part.labels)
    kept.images.zero_()
    assert torch.equal(split.images.flatten(), torch.arange(40, dtype=torch.uint8))  # parts are copies


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.5])
def test_validation_takes_its_fraction_of_every_class(fraction):
    data = load("digits", validation_fraction=fraction)
    whole = np.add(counts(data.train), counts(data.validation))
    assert np.abs(np.array(counts(data.validation)) - fraction * whole).max() < 1


def test_the_seed_alone_moves_validation_and_never_test():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = load("digits", seed=3), load("digits", seed=3), load("digits", seed=4)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert torch.equal(first.test.images, other.test.images)
    assert not torch.equal(first.validation.images, other.validation.images)


def test_each_fold_tests_other_images_and_the_first_is_the_usual_one(tmp_path):
    root = make_tree(tmp_path / "mine", ("a", "b", "c"), count=20)
    for path in sorted((root / "c").iterdir())[10:]:
        path.unlink()
    folds = [load("image_folder", root, size=8, test_fold=fold) for fold in range(5)]
    assert [counts(each.test) for each in folds] == [[4, 4, 2]] * 5
    assert len({row for each in folds for row in rows(each.test)}) == 50
    assert folds[0].fingerprint == load("image_folder", root, size=8).fingerprint
    assert folds[0].folds == 5
    refused = "test_fold of .* is 5; it must be a whole number of at least 0 and at most 4"
    assert_refused(refused, load, "image_folder", root, size=8, test_fold=5)
    for part in ("train", "test"):
        make_tree(tmp_path / "own" / part)
    assert load("image_folder", tmp_path / "own").folds == 1
    assert_refused("at most 0", load, "image_folder", tmp_path / "own", test_fold=1)


def test_train_limit_is_stratified_nested_and_only_of_train():
    full, hundred, ten = load("digits"), load("digits", train_limit=100), load("digits", train_limit=10)
    assert len(hundred.train) == 100
    assert max(counts(hundred.train)) - min(counts(hundred.train)) <= 1
    assert counts(ten.train) == [1] * 10
    assert set(rows(ten.train)) <= set(rows(hundred.train)) <= set(rows(full.train))
    assert torch.equal(full.validation.images, hundred.validation.images)
    assert load("digits", train_limit=10_000).fingerprint == full.fingerprint
    assert_refused(r"train_limit is 9; for Digits it must be at least .* 10", load, "digits", train_limit=9)


def test_a_rare_class_reaches_every_split_or_is_named(tmp_path):
    root = make_tree(tmp_path / "mine", ("common",), count=40)
    make_tree(root, ("rare",), count=3)
    assert [counts(split)[1] for split in three(load("image_folder", root))] == [1, 1, 1]
    (root / "rare" / "000.png").unlink()
    message = "class 'rare' has 0 train, 1 validation, 1 test images"
    assert_refused(message, load, "image_folder", root)


def test_fingerprint_follows_pixels_labels_and_classes(tmp_path):
    root = make_tree(tmp_path / "mine")
    prints = [load("image_folder", root, size=8).fingerprint for _ in range(2)]
    assert len(prints[0]) == 16
    save(root / "cat" / "000.png", noise((8, 8, 3), seed=99))
    prints.append(load("image_folder", root, size=8).fingerprint)
    (root / "dog").rename(root / "wolf")
    prints.append(load("image_folder", root, size=8).fingerprint)
    assert len(set(prints)) == 3
