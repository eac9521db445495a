"""The same number of real images from every class: balanced, distinct, reproducible, or refused."""

import pytest
import torch

from iadd_lab.data.sampling import INITIAL_IMAGES, check_class_sizes, draw_rows
from iadd_lab.data.sets import ImageData
from iadd_lab.data.splits import Split
from iadd_lab.seeds import generator
from tests.samples import assert_refused


def train_of(labels: list[int], classes=("cat", "dog", "fox")) -> ImageData:
    """Data whose training labels are `labels`; only these matter here."""
    split = Split(torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8), torch.tensor(labels))
    return ImageData(None, classes, split, split, split, fingerprint="toy")


@pytest.mark.parametrize("ipc", [1, 5, 50])
def test_rows_are_distinct_come_class_after_class_and_follow_the_generator_alone(toy_data, ipc):
    before = torch.get_rng_state()
    drawn = draw_rows(toy_data, ipc, generator(0))
    assert drawn.dtype == torch.int64
    assert toy_data.train.labels[drawn].tolist() == [0] * ipc + [1] * ipc
    assert len(drawn.unique()) == 2 * ipc
    assert torch.equal(drawn, draw_rows(toy_data, ipc, generator(0)))
    assert not torch.equal(drawn, draw_rows(toy_data, ipc, generator(1)))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(drawn[:ipc], draw_rows(toy_data, 60, generator(0))[:ipc])  # begins a larger draw


def test_every_row_of_a_class_can_be_drawn():
    data = train_of([0, 1, 2, 1, 0, 2])
    drawn = draw_rows(data, 2, generator(0))
    assert sorted(drawn.tolist()) == list(range(6))
    seen = {row for seed in range(50) for row in draw_rows(data, 1, generator(seed)).tolist()}
    assert seen == set(range(6))


def test_the_smallest_class_bounds_ipc():
    message = "ipc is 2, but class 'dog' has only 1 training images: lower ipc"
    assert_refused(message, check_class_sizes, train_of([0, 0, 0, 1, 2, 2]), 2)
    assert_refused("'fox' has only 0 training images", check_class_sizes, train_of([0, 1, 1]), 1)
    check_class_sizes(train_of([0, 0, 1, 1, 2, 2]), 2)


def test_real_initial_images_are_the_rows_drawn_and_noise_follows_the_generator_alone(toy_data, toy_teachers):
    preprocess = toy_teachers.preprocess
    images = INITIAL_IMAGES["real"](toy_data, preprocess, 3, generator(0))
    rows = draw_rows(toy_data, 3, generator(0))
    assert torch.equal(images, preprocess.apply(toy_data.train.images[rows]))
    noise = INITIAL_IMAGES["noise"]  # needs no preprocessing
    first, again, other = (noise(toy_data, None, 900, generator(seed)) for seed in (0, 0, 1))
    assert first.shape == (1800, 1, 8, 8)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert abs(first.mean().item()) < 0.02
    assert abs(first.std().item() - 1) < 0.02
