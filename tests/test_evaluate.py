"""The evaluation protocol: fresh networks, final states, the set's own preprocessing."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import pytest
import torch

from iadd_lab.baselines.real_images import random_real
from iadd_lab.data.distilled import DistilledSet
from iadd_lab.data.sets import load_data
from iadd_lab.errors import InputError
from iadd_lab.evaluation.protocol import EvaluateConfig, Evaluation, evaluate, evaluate_each, evaluate_random
from iadd_lab.seeds import derive_seed, generator
from iadd_lab.training.fast.compiling import Kernels
from iadd_lab.training.fast.losses import FusedStudentLoss
from iadd_lab.training.networks import NetworkConfig, build_network
from iadd_lab.training.sgd import Training
from tests.conftest import AUGMENT

CONFIG = EvaluateConfig(network=NetworkConfig(width=4, depth=2), networks=3, epochs=40, augment=AUGMENT)


@pytest.fixture(scope="module")
def random_set(toy_data, toy_teachers):
    return random_real(toy_data, toy_teachers.preprocess, ipc=3, seed=0)


@pytest.fixture(scope="module")
def evaluation(toy_data, random_set):
    return evaluate(random_set, toy_data, CONFIG, progress=False)


def test_random_real_images_are_training_images_of_their_class(toy_data, toy_teachers, random_set):
    assert random_set.ipc == 3
    assert random_set.labels.tolist() == [0, 0, 0, 1, 1, 1]
    real = toy_teachers.preprocess.apply(toy_data.train.images)
    rows = [(real == image).flatten(1).all(1).nonzero().flatten()[0].item() for image in random_set.images]
    assert len(set(rows)) == 6
    assert torch.equal(toy_data.train.labels[rows], random_set.labels)


def test_every_test_image_is_counted_once_per_network(toy_data, evaluation):
    assert evaluation.confusion.shape == (3, 2, 2)
    expected = torch.bincount(toy_data.test.labels)
    assert torch.equal(evaluation.confusion.sum(2), expected.expand(3, 2))


def test_accuracies_follow_from_the_confusion():
    confusion = torch.tensor([[[8, 2], [1, 1]], [[10, 0], [2, 0]]])
    made = Evaluation(confusion, ("a", "b"), "by hand", CONFIG)
    assert made.accuracies.tolist() == pytest.approx([9 / 12, 10 / 12])
    assert made.balanced_accuracies.tolist() == pytest.approx([(0.8 + 0.5) / 2, 0.5])
    row = made.summary()
    assert row["accuracy"] == pytest.approx(100 * (9 + 10) / 24)
    assert row["std"] == pytest.approx(100 * (1 / 12) / 2**0.5)
    assert "by hand: 79.2 ± 5.9 % test accuracy" in str(made)


def test_networks_learn_and_differ(evaluation):
    assert evaluation.accuracies.mean() > 0.7
    assert len({tuple(c.flatten().tolist()) for c in evaluation.confusion}) > 1


def test_last_training_losses_are_kept(toy_data, random_set, evaluation):
    network = build_network(
        CONFIG.network,
        channels=toy_data.channels,
        size=toy_data.size,
        classes=2,
        seed=derive_seed(0, "evaluation", 1),
    )
    training = Training(
        [network],
        [random_set.images],
        [random_set.labels],
        batch=256,
        rates=[random_set.alpha],
        augment=AUGMENT,
        generators=[generator(0, "evaluation", 1, "order")],
        momentum=0.9,
        weight_decay=5e-4,
        decay_at=20,
    )
    for _ in range(40):
        losses = training.advance()
    assert evaluation.losses[1].item() == losses[0]
    assert evaluation.losses.shape == (3,)


def test_networks_that_had_not_learned_their_set_are_told(toy_data, random_set, evaluation):
    long = evaluate(random_set, toy_data, replace(CONFIG, epochs=120, rate=0.03), progress=False)
    assert long.losses.max() < 0.5 * math.log(2)
    assert (long.unfitted, long.remark) == (0, "")
    short = evaluate(random_set, toy_data, replace(CONFIG, epochs=1, rate=1e-6), progress=False)
    assert short.unfitted == 3
    assert short.remark.startswith("3 of 3 networks had not learned their set")
    assert short.remark.endswith("train for more epochs than 1.")
    mixed = replace(short, losses=torch.tensor([0.1, 0.34, 0.35], dtype=torch.float64))  # ln 2 is 0.693
    assert mixed.unfitted == 1


def test_evaluations_of_before_there_were_losses_are_read(tmp_path, evaluation):
    back = Evaluation.load(replace(evaluation, losses=None).save(tmp_path / "evaluation.safetensors"))
    assert (back.losses, back.unfitted, back.remark) == (None, 0, "")
    wrong = replace(evaluation, losses=torch.zeros(2, dtype=torch.float64)).save(
        tmp_path / "wrong.safetensors"
    )
    with pytest.raises(InputError, match="its losses are not those of 3 networks"):
        Evaluation.load(wrong)


class Killed(Exception):
    """Stands for a kill in the middle of training."""


def killed_once(monkeypatch, number):
    """The epoch of that number, counted over all trainings, is killed; returns the list of those begun."""
    advance, seen = Training.advance, []

    def kill(self):
        seen.append(self.epoch)
        if len(seen) == number:
            raise Killed
        return advance(self)

    monkeypatch.setattr(Training, "advance", kill)
    return seen


def test_a_checkpoint_of_before_there_were_losses_goes_on(
    toy_data, random_set, tmp_path, monkeypatch, evaluation
):
    module = sys.modules["iadd_lab.evaluation.protocol"]
    restored = module._Run.restore

    def without(self, tensors):
        restored(self, {name: value for name, value in tensors.items() if name != "losses"})

    monkeypatch.setattr(module._Run, "restore", without)
    killed_once(monkeypatch, 60)  # in the second network
    options = {"save_to": tmp_path / "e.safetensors", "checkpoint_seconds": 0.0, "progress": False}
    with pytest.raises(Killed):
        evaluate(random_set, toy_data, CONFIG, **options)
    resumed = evaluate(random_set, toy_data, CONFIG, **options)
    assert torch.equal(resumed.confusion, evaluation.confusion)
    assert resumed.losses is None  # not all are known


def test_same_seed_same_bits(toy_data, random_set, evaluation):
    torch.manual_seed(5)
    again = evaluate(random_set, toy_data, CONFIG, progress=False)
    assert torch.equal(again.confusion, evaluation.confusion)
    fewer = evaluate(random_set, toy_data, replace(CONFIG, networks=1), progress=False)
    assert torch.equal(fewer.confusion, evaluation.confusion[:1])  # a network depends on its own number alone


def test_the_rate_is_the_sets_own_unless_given(toy_data, random_set, evaluation):
    given = evaluate(random_set, toy_data, replace(CONFIG, rate=random_set.alpha), progress=False)
    assert torch.equal(given.confusion, evaluation.confusion)
    other = evaluate(random_set, toy_data, replace(CONFIG, rate=1e-6), progress=False)
    assert not torch.equal(other.confusion, evaluation.confusion)


def test_validation_split_is_another_split(toy_data, random_set):
    made = evaluate(random_set, toy_data, replace(CONFIG, split="validation", epochs=1), progress=False)
    assert made.confusion[0].sum() == len(toy_data.validation)


def test_each_network_may_have_its_own_set(toy_data, toy_teachers, evaluation):
    sets = [random_real(toy_data, toy_teachers.preprocess, ipc=3, seed=seed) for seed in range(3)]
    assert not torch.equal(sets[0].images, sets[1].images)
    made = evaluate_each(sets, toy_data, CONFIG, progress=False)
    assert torch.equal(made.confusion[0], evaluation.confusion[0])  # the same first set and first network


def test_random_real_images_are_drawn_anew_for_each_network_and_seed(toy_data, toy_teachers):
    first, again, other = (
        evaluate_random(toy_data, toy_teachers.preprocess, replace(CONFIG, seed=seed), ipc=3, progress=False)
        for seed in (0, 0, 1)
    )
    assert first.method == "random real"
    assert torch.equal(first.confusion, again.confusion)
    assert not torch.equal(first.confusion, other.confusion)


@pytest.mark.parametrize("name", ["alexnet", "vgg11", "resnet18"])
def test_any_network_evaluates(toy_data, random_set, name):
    config = replace(CONFIG, network=NetworkConfig(name=name), networks=1, epochs=2, split="validation")
    made = evaluate(random_set, toy_data, config, progress=False)
    assert made.confusion.sum() == len(toy_data.validation)


def test_a_set_of_other_data_is_refused(random_set):
    with pytest.raises(InputError, match=r"this set was made from .* but the data given is"):
        evaluate(random_set, load_data("digits", progress=False), CONFIG, progress=False)


def test_sets_of_different_preprocessing_do_not_mix(toy_data, random_set):
    standardise = type(random_set.preprocess)(random_set.preprocess.mean + 1, random_set.preprocess.deviation)
    other = replace(random_set, preprocess=standardise)
    with pytest.raises(InputError, match="different preprocessing"):
        evaluate_each([random_set, other], toy_data, CONFIG, progress=False)


def test_evaluations_and_sets_are_stored_whole(tmp_path, evaluation, random_set):
    back = Evaluation.load(evaluation.save(tmp_path / "evaluation.safetensors"))
    assert torch.equal(back.confusion, evaluation.confusion)
    assert (back.classes, back.method, back.config) == (evaluation.classes, "random real", CONFIG)
    again = DistilledSet.load(random_set.save(tmp_path / "set.safetensors"))
    assert torch.equal(again.images, random_set.images)
    assert torch.equal(again.pictures(), random_set.pictures())
    assert (again.alpha, again.classes, again.data) == (0.01, random_set.classes, random_set.data)
    with pytest.raises(InputError, match="is of kind 'evaluation', but 'distilled' was expected"):
        DistilledSet.load(tmp_path / "evaluation.safetensors")


@pytest.mark.parametrize(
    ("field", "value"),
    [("networks", 0), ("epochs", -1), ("rate", 0.0), ("momentum", 1.0), ("weight_decay", -1.0), ("batch", 0)],
)
def test_configs_name_the_bad_value(field, value):
    with pytest.raises(InputError, match=f"{field} is {value}"):
        replace(CONFIG, **{field: value})


def test_an_unknown_split_is_named_before_training():
    with pytest.raises(InputError, match=r"unknown split 'tset'.*did you mean 'test'"):
        replace(CONFIG, split="tset")


def test_more_random_images_than_a_class_has_is_refused(toy_data, toy_teachers):
    with pytest.raises(InputError, match="ipc is 999, but class"):
        random_real(toy_data, toy_teachers.preprocess, ipc=999, seed=0)


def test_networks_trained_side_by_side_are_as_good(toy_data, random_set, evaluation, monkeypatch):
    """With the fused layers as they are compiled, but for the compiling."""
    module = sys.modules["iadd_lab.evaluation.protocol"]
    monkeypatch.setattr(module, "choose_kernels", lambda *_, **__: Kernels(compiled=True, transforms=True))
    monkeypatch.setattr(
        "iadd_lab.training.fast.losses.CHUNK_BYTES", 4 * 64 * 4 * 2 * 6
    )  # two networks at once
    joint = evaluate(random_set, toy_data, CONFIG, progress=False)
    assert joint.confusion.shape == evaluation.confusion.shape
    assert joint.accuracies.tolist() == pytest.approx(evaluation.accuracies.tolist(), abs=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("compile", ["never", "always"])
def test_networks_are_as_good_on_a_gpu(toy_data, random_set, evaluation, compile):
    found = evaluate(random_set, toy_data, CONFIG, device="cuda", compile=compile, progress=False)
    assert found.accuracies.tolist() == pytest.approx(evaluation.accuracies.tolist(), abs=0.05)


def test_an_unknown_way_of_compiling_is_named(toy_data, random_set):
    with pytest.raises(InputError, match="sometimes"):
        evaluate(random_set, toy_data, CONFIG, compile="sometimes", progress=False)


@pytest.mark.parametrize(
    "kernels", [None, Kernels(compiled=True, transforms=True)], ids=["one by one", "side by side"]
)
@pytest.mark.parametrize("stop", [1, 5, 7])
def test_a_killed_evaluation_goes_on_bit_for_bit(toy_data, random_set, tmp_path, monkeypatch, kernels, stop):
    module = sys.modules["iadd_lab.evaluation.protocol"]
    if kernels is not None:
        monkeypatch.setattr(module, "choose_kernels", lambda *_, **__: kernels)
        monkeypatch.setattr(FusedStudentLoss, "networks_at_once", lambda *_, **__: 2)
    config = replace(CONFIG, epochs=4)
    whole = evaluate(random_set, toy_data, config, progress=False)
    seen = killed_once(monkeypatch, stop + 1)
    options = {"save_to": tmp_path / "e.safetensors", "checkpoint_seconds": 0.0, "progress": False}
    with pytest.raises(Killed):
        evaluate(random_set, toy_data, config, **options)
    resumed = evaluate(random_set, toy_data, config, **options)
    assert torch.equal(resumed.confusion, whole.confusion)
    assert torch.equal(resumed.losses, whole.losses)
    assert torch.equal(Evaluation.load(options["save_to"]).losses, whole.losses)
    assert len(seen) == 1 + (2 * 4 if kernels is not None else 3 * 4)  # nothing was done twice
    assert [path.name for path in tmp_path.iterdir()] == ["e.safetensors"]


def test_a_stored_evaluation_is_read_and_another_is_refused(toy_data, random_set, tmp_path, monkeypatch):
    config, options = replace(CONFIG, epochs=1), {"save_to": tmp_path / "e.safetensors", "progress": False}
    first = evaluate(random_set, toy_data, config, **options)
    monkeypatch.setattr(Training, "advance", None)  # nothing is trained
    assert torch.equal(evaluate(random_set, toy_data, config, **options).confusion, first.confusion)
    with pytest.raises(InputError, match=r"is the evaluation of another set or protocol: choose another"):
        evaluate(random_set, toy_data, replace(config, seed=1), **options)


def test_evaluations_of_before_there_were_identities_are_read(toy_data, random_set, tmp_path, monkeypatch):
    config, path = replace(CONFIG, epochs=1), tmp_path / "e.safetensors"
    first = evaluate(random_set, toy_data, config, save_to=path, progress=False)
    path.unlink()
    replace(first, identity="").save(path)
    monkeypatch.setattr(Training, "advance", None)  # nothing is trained
    again = evaluate(random_set, toy_data, config, save_to=path, progress=False)
    assert torch.equal(again.confusion, first.confusion)
    with pytest.raises(InputError, match="is the evaluation of another set or protocol"):
        evaluate(random_set, toy_data, replace(config, seed=1), save_to=path, progress=False)
