"""Nearest real images: what a search over every pair finds, by pixels and by features."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

import iadd_lab.study.neighbours
from iadd_lab.study.neighbours import Neighbours
from tests.samples import assert_refused


@pytest.fixture
def neighbours(toy_data, toy_teachers):
    return Neighbours(toy_data, toy_teachers.preprocess, teachers=toy_teachers)


@pytest.fixture(scope="module")
def some(toy_data, toy_teachers):
    """Three images that look like no real one: test images with noise, preprocessed."""
    noise = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return toy_teachers.preprocess.apply(toy_data.test.images[:3]) + noise


@pytest.mark.parametrize("space", ["pixels", "features"])
@pytest.mark.parametrize("chunk", [7, 1024])
def test_nearest_are_those_of_a_search_over_every_pair(
    neighbours, toy_data, toy_teachers, some, monkeypatch, space, chunk
):
    """Images are compared as they look, or as the teacher sees them at the end of its training."""
    monkeypatch.setattr(iadd_lab.study.neighbours, "_CHUNK", chunk)
    mine, real = neighbours.preprocess.invert(some), toy_data.train.images / 255
    if space == "features":
        network = toy_teachers.network(0)
        network.load_state_dict(toy_teachers.layout.split(toy_teachers.trajectory(0)[-1]))
        pair = some, neighbours.preprocess.apply(toy_data.train.images)
        mine, real = (network.embed(images).detach() for images in pair)
    distances = cdist(mine.flatten(1).double(), real.flatten(1).double())
    found = neighbours.of(some, by=space, count=6)
    assert found.rows.tolist() == distances.argsort(kind="stable")[:, :6].tolist()
    np.testing.assert_allclose(found.distances.numpy(), np.sort(distances)[:, :6], rtol=1e-5)
    assert neighbours.of(some, by=space, count=10**6).rows.shape == (3, len(toy_data.train))


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


def test_what_does_not_fit_is_said_in_one_sentence(neighbours, toy_data, some):
    alone = replace(neighbours, teachers=None)
    assert alone.spaces == ("pixels",)
    assert_refused("by features need teachers", alone.of, some, by="features")
    assert_refused(r"the shape \(1, 7, 8\), but a real one \(1, 8, 8\)", neighbours.of, some[:, :, 1:])
    assert_refused(r"unknown space .pixel. .did you mean .pixels.", neighbours.of, some, by="pixel")
    assert_refused("count is 0", neighbours.of, some, count=0)
    assert_refused("or train teachers on this", replace, neighbours, data=replace(toy_data, fingerprint="x"))
