"""Sets of real images: herding against brute force, and the whole set, also where classes differ in size."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from iadd_lab.baselines.real_images import herd, herding, random_real, whole_set
from iadd_lab.data.distilled import DistilledSet
from iadd_lab.data.sets import ImageData
from iadd_lab.evaluation.protocol import EvaluateConfig, evaluate
from iadd_lab.training.networks import NetworkConfig
from tests.conftest import AUGMENT
from tests.samples import assert_refused, load

NETWORK = NetworkConfig(width=4, depth=2)
EVALUATE = EvaluateConfig(NETWORK, networks=1, epochs=2, augment=AUGMENT, split="validation")


@pytest.fixture(scope="module")
def imbalanced(toy_data) -> ImageData:
    """The toy data with five ones left, and an odd number of images in all."""
    labels = toy_data.train.labels
    kept = torch.cat([torch.nonzero(labels == 1).flatten()[:5], torch.nonzero(labels == 0).flatten()[:40]])
    train = toy_data.train.take(kept.sort().values.numpy())
    return replace(toy_data, train=train, fingerprint="imbalanced")


def seen_by_the_classifier(data, teachers, teacher: int) -> torch.Tensor:
    """The features of all training images, as the last layer of a network rebuilt here reads them."""
    network = teachers.network(7)
    trained = teachers.layout.split(teachers.snapshot(teacher, teachers.config.epochs))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(trained[name])
    seen = []
    network.classifier.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        network(teachers.preprocess.apply(data.train.images))
    return seen[0].double()


def brute_force(features: np.ndarray, count: int) -> list[int]:
    """Every candidate's mean written out, from the definition."""
    chosen: list[int] = []
    for _ in range(count):
        candidates = [row for row in range(len(features)) if row not in chosen]
        gaps = [np.linalg.norm(features.mean(0) - features[[*chosen, row]].mean(0)) for row in candidates]
        chosen.append(candidates[int(np.argmin(gaps))])
    return chosen


@pytest.mark.parametrize("teacher", [0, 1])
def test_herding_is_the_greedy_choice_in_the_trained_teachers_features(toy_data, toy_teachers, teacher):
    made = herding(toy_data, toy_teachers, ipc=6, teacher=teacher)
    assert made.labels.tolist() == [0] * 6 + [1] * 6
    assert (made.method, made.ipc, made.alpha) == ("herding", 6, 0.01)
    features = seen_by_the_classifier(toy_data, toy_teachers, teacher).numpy()
    real = toy_teachers.preprocess.apply(toy_data.train.images)
    for label in range(2):
        rows = np.flatnonzero(toy_data.train.labels == label)
        expected = rows[brute_force(features[rows], 6)]
        assert torch.equal(made.images[made.labels == label], real[expected])
        # They stand for their class better than random ones.
        own = features[rows]
        drawn = (np.random.default_rng(seed).permutation(own)[:6] for seed in range(20))
        gaps = [np.linalg.norm(some.mean(0) - own.mean(0)) for some in (features[expected], *drawn)]
        assert gaps[0] < min(gaps[1:])


def test_a_row_is_not_picked_again_though_it_would_be_best():
    # The mean is 2, where one image lies: the next best pair with it is 2 and 3, not 2 and 2.
    features = torch.tensor([[-4.0], [2.0], [3.0], [7.0]])
    assert herd(features, 2).tolist() == [1, 2]
    assert sorted(herd(features, 4).tolist()) == [0, 1, 2, 3]


def test_the_whole_set_is_every_training_image_and_may_be_imbalanced(imbalanced, toy_teachers, tmp_path):
    made = whole_set(imbalanced, toy_teachers.preprocess, alpha=0.02)
    assert torch.equal(made.images, toy_teachers.preprocess.apply(imbalanced.train.images))
    assert torch.equal(made.labels, imbalanced.train.labels)
    assert torch.bincount(made.labels).tolist() == [40, 5]
    assert (made.method, made.alpha, made.ipc) == ("whole set", 0.02, 22)
    evaluation = evaluate(made, imbalanced, EVALUATE, progress=False)
    assert (evaluation.confusion.sum(), evaluation.method) == (len(imbalanced.validation), "whole set")
    again = DistilledSet.load(made.save(tmp_path / "whole.safetensors"))
    assert torch.equal(again.labels, made.labels)


def test_herding_an_imbalanced_set_is_bounded_by_the_smallest_class(imbalanced, toy_teachers):
    teachers = replace(toy_teachers, data_fingerprint="imbalanced")
    made = herding(imbalanced, teachers, ipc=5)
    assert len({tuple(image.flatten().tolist()) for image in made.images}) == 10
    assert evaluate(made, imbalanced, EVALUATE, progress=False).confusion.sum() == len(imbalanced.validation)
    sentence = r"ipc is 6, but class '1' has only 5 training images: lower ipc"
    assert_refused(sentence, herding, imbalanced, teachers, ipc=6)


BAD = [
    ({"ipc": 0}, "ipc is 0; it must be a whole number of at least 1"),
    ({"ipc": 999}, "ipc is 999, but class"),
    ({"ipc": 1, "teacher": 2}, "teacher is 2; it must be a whole number of at least 0 and at most 1"),
    ({"ipc": 1, "alpha": 0.0}, "alpha is 0.0; it must be a finite number above 0"),
]


@pytest.mark.parametrize(("options", "sentence"), BAD)
def test_a_bad_value_is_named(toy_data, toy_teachers, options, sentence):
    assert_refused(sentence, herding, toy_data, toy_teachers, **options)


def test_other_data_and_rates_that_nothing_learns_at_are_refused(toy_data, toy_teachers):
    sentence = r"were trained on .* but the data is .*: load that data, or train"
    assert_refused(sentence, herding, load("digits"), toy_teachers, ipc=1)
    for make in (whole_set, partial(random_real, ipc=1, seed=0)):
        assert_refused(r"alpha is -1\.0", make, toy_data, toy_teachers.preprocess, alpha=-1.0)
