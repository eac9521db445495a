"""The evaluation protocol: fresh networks, final states, the set's own preprocessing."""

import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from iadd_lab.baselines.real_images import random_real
from iadd_lab.data.distilled import DistilledSet
from iadd_lab.evaluation.protocol import (
    EvaluateConfig,
    Evaluation,
    doubts,
    evaluate,
    evaluate_each,
    evaluate_random,
    pooled,
)
from iadd_lab.seeds import derive_seed, generator
from iadd_lab.store.artefacts import load_artefact, save_artefact
from iadd_lab.training.fast.compiling import Kernels
from iadd_lab.training.fast.losses import FusedStudentLoss
from iadd_lab.training.networks import NetworkConfig, network_for
from iadd_lab.training.sgd import Training
from tests.conftest import AUGMENT
from tests.samples import assert_refused, load

CONFIG = EvaluateConfig(network=NetworkConfig(width=4, depth=2), networks=3, epochs=40, augment=AUGMENT)
FUSED = Kernels(compiled=True, transforms=True)  # the layers as they are compiled, but for the compiling
STORED = Path(__file__).parent / "golden" / "stored"
MODULE = "iadd_lab.evaluation.protocol"


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


def test_networks_learn_and_differ_and_see_every_test_image_once(toy_data, evaluation):
    assert evaluation.confusion.shape == (3, 2, 2)
    assert torch.equal(evaluation.confusion.sum(2), torch.bincount(toy_data.test.labels).expand(3, 2))
    assert evaluation.accuracies.mean() > 0.7
    assert len({tuple(c.flatten().tolist()) for c in evaluation.confusion}) > 1


def test_accuracies_follow_from_the_confusion():
    confusion = torch.tensor([[[8, 2], [1, 1]], [[10, 0], [2, 0]]])
    made = Evaluation(confusion, ("a", "b"), "by hand", CONFIG)
    assert made.accuracies.tolist() == pytest.approx([9 / 12, 10 / 12])
    assert made.balanced_accuracies.tolist() == pytest.approx([(0.8 + 0.5) / 2, 0.5])
    assert list(made.summary().values())[:4] == ["by hand", "convnet", "test", 3]
    assert str(made).startswith("by hand: 79.2 ± 5.9 % test accuracy, 57.5 ± 10.6 % balanced (2 × convnet)")


def hits(*shares, method="learned", classes=2, images=10):
    """Networks that have these shares right of so many images of each class."""
    rows = []
    for share in shares:
        right = round(share * images)
        wrong = (images - right) // (classes - 1)
        rows.append(torch.eye(classes) * (right - wrong) + wrong)
    names = tuple("abc"[:classes])
    losses = torch.zeros(len(shares), dtype=torch.float64)
    return Evaluation(torch.stack(rows).long(), names, method, CONFIG, losses=losses)


def test_the_interval_covers_few_images_and_few_networks():
    half = hits(0.5, 0.5, 0.5)
    assert half.interval == pytest.approx((0.5, 0.29930, 0.70070), abs=1e-5)  # Wilson's of 10 in 20
    # Student's t of two networks, 12.706 · 0.1 / √2 with a deviation of √2 · 0.1, added in squares
    many = hits(0.4, 0.6, images=5000)
    _, low, high = many.interval
    assert (low, high) == pytest.approx((0, 1))
    assert hits(0.49, 0.51, images=5000).interval[1] == pytest.approx(0.5 - 0.12706, abs=1e-3)
    assert hits(1.0, 1.0).interval == pytest.approx((1, 0.83888, 1), abs=1e-4)


@pytest.mark.parametrize(
    ("made", "random", "said"),
    [
        (
            hits(0.6, 0.6),
            hits(0.1, 0.1),
            "(95 % interval 38.7 to 78.1) on 20 test images cannot be told from chance (50.0 %).",
        ),
        (hits(0.9, 0.9), hits(0.8, 0.8), "cannot be told from random real images (80.0 %)."),
        (
            hits(0.1, 0.1),
            hits(0.9, 0.9),
            "is below chance (50.0 %) and is below random real images (90.0 %).",
        ),
        (hits(0.9, 0.9), None, ""),
        (hits(0.9, 0.9), hits(0.2, 0.2), ""),
    ],
)
def test_what_cannot_be_told_from_chance_or_random_images_says_so(made, random, said):
    found = doubts(made, random)
    assert found.endswith(said)
    assert bool(found) == bool(said)


def test_chance_is_the_same_however_uneven_the_classes_are():
    always = torch.tensor([[[90, 0], [10, 0]]])
    assert "cannot be told from chance (50.0 %)" in doubts(Evaluation(always, ("a", "b"), "learned", CONFIG))


def test_splits_are_pooled_with_all_their_images_and_networks(tmp_path):
    joint = pooled([hits(0.6, 0.8), hits(0.8, 1.0), hits(0.6, 0.6)])
    assert joint.tested.tolist() == [30, 30]
    mean, low, _ = joint.interval
    student = 2.5706 * joint.balanced_accuracies.std().item() / 6**0.5  # of six networks
    wilson = 0.73333 - 0.60991  # of 44 in 60
    assert (mean, low) == pytest.approx((0.73333, 0.73333 - math.hypot(wilson, student)), abs=1e-4)
    back = Evaluation.load(joint.save(tmp_path / "pooled.safetensors"))
    assert (back.splits, back.interval, str(back)) == (3, joint.interval, str(joint))
    assert doubts(pooled([hits(0.6, 0.6)] * 9)) == ""  # what twenty images leave open, many tell


def test_last_training_losses_are_kept(toy_data, random_set, evaluation):
    training = Training(
        [network_for(toy_data, CONFIG.network, seed=derive_seed(0, "evaluation", 1))],
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
    assert (len(evaluation.losses), evaluation.losses[1].item()) == (3, losses[0])


def test_networks_that_had_not_learned_their_set_are_told(toy_data, random_set):
    long = evaluate(random_set, toy_data, replace(CONFIG, epochs=120, rate=0.03), progress=False)
    assert (long.unfitted, long.remark) == (0, "")
    short = evaluate(random_set, toy_data, replace(CONFIG, epochs=1, rate=1e-6), progress=False)
    assert short.remark == (
        "3 of 3 networks had not learned their set when training ended (above half the loss of guessing): "
        "their accuracy depends on how fast they learn, and on chance; train for more epochs than 1."
    )
    mixed = replace(short, losses=torch.tensor([0.1, 0.34, 0.35], dtype=torch.float64))  # ln 2 is 0.693
    assert mixed.unfitted == 1


def test_a_network_depends_on_seed_number_set_and_rate_alone(toy_data, toy_teachers, random_set, evaluation):
    torch.manual_seed(5)
    one = replace(CONFIG, networks=1)
    for same in (one, replace(one, rate=random_set.alpha)):  # the set's own, unless it is given
        again = evaluate(random_set, toy_data, same, progress=False)
        assert torch.equal(again.confusion, evaluation.confusion[:1])
    other = evaluate(random_set, toy_data, replace(one, rate=1e-6), progress=False)
    assert not torch.equal(other.confusion, evaluation.confusion[:1])
    sets = [random_real(toy_data, toy_teachers.preprocess, ipc=3, seed=seed) for seed in range(3)]
    assert not torch.equal(sets[0].images, sets[1].images)
    each = evaluate_each([random_set, *sets[1:]], toy_data, CONFIG, progress=False)
    assert torch.equal(each.confusion[0], evaluation.confusion[0])
    assert not torch.equal(each.confusion, evaluation.confusion)


def test_random_real_images_are_drawn_anew_for_each_network_and_seed(toy_data, toy_teachers):
    first, again, other = (
        evaluate_random(toy_data, toy_teachers.preprocess, replace(CONFIG, seed=seed), ipc=3, progress=False)
        for seed in (0, 0, 1)
    )
    assert first.method == "random real"
    assert torch.equal(first.confusion, again.confusion)
    assert not torch.equal(first.confusion, other.confusion)


@pytest.mark.parametrize("name", ["alexnet", "vgg11", "resnet18"])
def test_any_network_evaluates_on_any_split(toy_data, random_set, name):
    config = replace(CONFIG, network=NetworkConfig(name=name), networks=1, epochs=2, split="validation")
    made = evaluate(random_set, toy_data, config, progress=False)
    assert made.confusion.sum() == len(toy_data.validation)


def test_sets_of_other_data_or_of_different_preprocessing_are_refused(toy_data, random_set):
    sentence = r"this set was made from .* but the data given is"
    assert_refused(sentence, evaluate, random_set, load("digits"), CONFIG)
    fitted = random_set.preprocess
    other = replace(random_set, preprocess=replace(fitted, mean=fitted.mean + 1))
    assert_refused("different preprocessing", evaluate_each, [random_set, other], toy_data, CONFIG)


def test_bad_values_are_named_before_training(toy_data, random_set):
    bad = {"networks": 0, "epochs": -1, "rate": 0.0, "momentum": 1.0, "weight_decay": -1.0, "batch": 0}
    for field, value in bad.items():
        assert_refused(f"{field} is {value}", replace, CONFIG, **{field: value})
    assert_refused(r"unknown split 'tset'.*did you mean 'test'", replace, CONFIG, split="tset")
    assert_refused("sometimes", evaluate, random_set, toy_data, CONFIG, compile="sometimes")


def test_networks_trained_side_by_side_are_as_good(toy_data, random_set, evaluation, monkeypatch):
    monkeypatch.setattr(sys.modules[MODULE], "choose_kernels", lambda *_, **__: FUSED)
    two = 4 * 64 * 4 * 2 * 6  # bytes
    monkeypatch.setattr("iadd_lab.training.fast.losses.CHUNK_BYTES", two)
    joint = evaluate(random_set, toy_data, CONFIG, progress=False)
    assert joint.confusion.shape == evaluation.confusion.shape
    assert joint.accuracies.tolist() == pytest.approx(evaluation.accuracies.tolist(), abs=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("compile", ["never", "always"])
def test_networks_are_as_good_on_a_gpu(toy_data, random_set, evaluation, compile):
    found = evaluate(random_set, toy_data, CONFIG, device="cuda", compile=compile, progress=False)
    assert found.accuracies.tolist() == pytest.approx(evaluation.accuracies.tolist(), abs=0.05)


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


@pytest.mark.parametrize("kernels", [None, FUSED], ids=["one by one", "side by side"])
@pytest.mark.parametrize("stop", [1, 5, 7])
def test_a_killed_evaluation_goes_on_bit_for_bit(toy_data, random_set, tmp_path, monkeypatch, kernels, stop):
    if kernels is not None:
        monkeypatch.setattr(sys.modules[MODULE], "choose_kernels", lambda *_, **__: kernels)
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
    (tmp_path / "e.checkpoint").touch()  # as a kill leaves it
    evaluate(random_set, toy_data, config, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["e.safetensors"]


def test_evaluations_and_sets_are_stored_whole(tmp_path, evaluation, random_set):
    back = Evaluation.load(evaluation.save(tmp_path / "evaluation.safetensors"))
    assert torch.equal(back.confusion, evaluation.confusion)
    assert (back.classes, back.method, back.config) == (evaluation.classes, "random real", CONFIG)
    again = DistilledSet.load(random_set.save(tmp_path / "set.safetensors"))
    assert again.fingerprint == random_set.fingerprint
    assert torch.equal(again.pictures(), random_set.pictures())
    assert (again.classes, again.data) == (random_set.classes, random_set.data)
    for wrong in ({"losses": torch.zeros(2)}, {"classes": ("a",)}):
        path = replace(evaluation, **wrong).save(tmp_path / "wrong.safetensors")
        assert_refused(r"its counts \(3, 2, 2\) are not of . classes, or its losses", Evaluation.load, path)


@pytest.mark.parametrize("older", [{}, {"losses": None}, {"losses": None, "identity": ""}])
def test_a_stored_evaluation_is_read_and_another_is_refused(
    toy_data, random_set, tmp_path, monkeypatch, older
):
    """Also those of before there were losses, and of before there were identities."""
    config, options = replace(CONFIG, epochs=1), {"save_to": tmp_path / "e.safetensors", "progress": False}
    first = evaluate(random_set, toy_data, config, **options)
    replace(first, **older).save(options["save_to"])
    monkeypatch.setattr(Training, "advance", None)  # nothing is trained
    again = evaluate(random_set, toy_data, config, **options)
    assert torch.equal(again.confusion, first.confusion)
    if older:
        assert (again.losses, again.unfitted, again.remark) == (None, 0, "")
    sentence, other = "is the evaluation of another set or protocol", replace(config, seed=1)
    assert_refused(sentence, evaluate, random_set, toy_data, other, **options)


def test_evaluations_and_checkpoints_of_the_revision_before_rooms_are_read(toy_data, tmp_path, monkeypatch):
    learned = DistilledSet.load(STORED / "learned" / "distilled.safetensors")
    config = replace(CONFIG, networks=2, epochs=5)
    half = load_artefact(STORED / "half_evaluated.checkpoint", kind="checkpoint")
    without = {name: tensor for name, tensor in half.tensors.items() if name != "losses"}  # older still
    for name, tensors in {"half": half.tensors, "older": without}.items():
        path = tmp_path / f"{name}.checkpoint"
        save_artefact(path, kind=half.kind, tensors=tensors, metadata=half.metadata)
    shutil.copy(STORED / "evaluation.safetensors", tmp_path)
    seen = killed_once(monkeypatch, 0)  # never
    whole, resumed, older = (
        evaluate(learned, toy_data, config, save_to=tmp_path / f"{name}.safetensors", progress=False)
        for name in ("evaluation", "half", "older")
    )
    assert seen == [3, 4] * 2  # of the second network: the first one and three epochs of it are kept
    assert whole.identity == resumed.identity == older.identity
    # The last epochs are this processor's.
    assert resumed.accuracies.tolist() == pytest.approx(whole.accuracies.tolist(), abs=0.02)
    assert resumed.losses.tolist() == pytest.approx(whole.losses.tolist(), rel=1e-3)
    assert torch.equal(older.confusion, resumed.confusion)
    assert older.losses is None  # not all are known
