"""Nearest real images: what a search over every pair finds, by pixels and by features."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import iadd_lab.study.neighbours
from iadd_lab.errors import InputError
from iadd_lab.study.neighbours import Neighbours


def brute_force(images, real, count):
    """Rows and distances by NumPy, one pair after another."""
    images, real = (values.reshape(len(values), -1).astype(np.float64) for values in (images, real))
    distances = np.array([[np.linalg.norm(image - other) for other in real] for image in images])
    rows = np.argsort(distances, axis=1, kind="stable")[:, :count]
    return rows, np.take_along_axis(distances, rows, axis=1)


@pytest.fixture
def neighbours(toy_data, toy_teachers):
    return Neighbours(toy_data, toy_teachers.preprocess, teachers=toy_teachers)


@pytest.fixture(scope="module")
def some(toy_data, toy_teachers):
    """Three images that look like no real one: test images with noise, preprocessed."""
    noise = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return toy_teachers.preprocess.apply(toy_data.test.images[:3]) + noise


@pytest.mark.parametrize("chunk", [7, 1024])
def test_by_pixels_images_are_compared_as_they_look(neighbours, toy_data, some, monkeypatch, chunk):
    monkeypatch.setattr(iadd_lab.study.neighbours, "_CHUNK", chunk)
    found = neighbours.of(some, count=6)
    looks = neighbours.preprocess.invert(some).numpy()
    rows, distances = brute_force(looks, toy_data.train.images.numpy() / np.float32(255), 6)
    assert found.rows.tolist() == rows.tolist()
    np.testing.assert_allclose(found.distances.numpy(), distances, rtol=1e-6)


def test_by_features_they_are_compared_as_the_trained_teacher_sees_them(
    neighbours, toy_data, toy_teachers, some
):
    network = toy_teachers.network(0)
    network.load_state_dict(toy_teachers.layout.split(toy_teachers.trajectory(0)[-1]))
    with torch.no_grad():
        mine = network.embed(some).numpy()
        real = network.embed(toy_teachers.preprocess.apply(toy_data.train.images)).numpy()
    rows, distances = brute_force(mine, real, 6)
    found = neighbours.of(some, by="features", count=6)
    assert found.rows.tolist() == rows.tolist()
    np.testing.assert_allclose(found.distances.numpy(), distances, rtol=1e-5)
    assert found.rows.tolist() != neighbours.of(some, count=6).rows.tolist()


def test_a_real_image_is_its_own_nearest_neighbour_and_the_first_of_equals(neighbours, toy_data):
    real = neighbours.preprocess.apply(toy_data.train.images[5:8])
    for space in neighbours.spaces:
        found = neighbours.of(real, by=space, count=1)
        assert found.rows.flatten().tolist() == [5, 6, 7]
        assert found.distances.max() < 1e-5
    rows, train = [5, 4, 5, 5], toy_data.train
    alike = replace(toy_data, train=replace(train, images=train.images[rows], labels=train.labels[rows]))
    alike = Neighbours(alike, neighbours.preprocess)
    assert alike.of(real[:1], count=3).rows.tolist() == [[0, 2, 3]]


def test_a_small_set_has_no_more_neighbours_than_images(neighbours, toy_data, some):
    assert neighbours.of(some, count=10**6).rows.shape == (3, len(toy_data.train))


def test_without_teachers_there_are_pixels_alone(toy_data, toy_teachers, some):
    alone = Neighbours(toy_data, toy_teachers.preprocess)
    assert alone.spaces == ("pixels",)
    with pytest.raises(InputError, match="need a trained network, and there are no teachers"):
        alone.of(some, by="features")


def test_what_does_not_fit_is_said_in_one_sentence(neighbours, toy_data, toy_teachers, some):
    with pytest.raises(InputError, match=r"shape \(3, 1, 7, 8\); it must be \(images, 1, 8, 8\)"):
        neighbours.of(some[:, :, 1:])
    with pytest.raises(InputError, match=r"unknown space .pixel. .did you mean .pixels."):
        neighbours.of(some, by="pixel")
    with pytest.raises(InputError, match="count is 0"):
        neighbours.of(some, count=0)
    other = replace(toy_data, fingerprint="another")
    with pytest.raises(InputError, match="take teachers of this"):
        Neighbours(other, toy_teachers.preprocess, teachers=toy_teachers)
