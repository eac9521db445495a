"""DD-Ranking's scores: by hand, in their ranges, and with every set at the rate that suits it."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iadd_lab.baselines.real_images import random_real
from iadd_lab.errors import DivergenceError
from iadd_lab.evaluation.fair import FairConfig, FairScores, evaluate_fairly, tune
from iadd_lab.evaluation.protocol import EvaluateConfig, Evaluation
from iadd_lab.training.networks import NetworkConfig
from tests.conftest import AUGMENT
from tests.samples import assert_refused

CONFIG = EvaluateConfig(network=NetworkConfig(width=4, depth=2), networks=2, epochs=4, augment=AUGMENT)


def evaluation(*right: int, rate: float = 0.01, method: str = "learned", **changes) -> Evaluation:
    """Of networks that have so many of 100 images right."""
    halves = [(count // 2, count - count // 2) for count in right]
    rows = [[[first, 50 - first], [50 - second, second]] for first, second in halves]
    return Evaluation(torch.tensor(rows), ("a", "b"), method, replace(CONFIG, rate=rate, **changes))


def robust(made: int, random: int, whole: int, weight: float = 0.5) -> float:
    """LRS of sets whose networks have so many of 100 images right."""
    parts = (evaluation(right) for right in (made, random, whole))
    return FairScores(*parts, weight=weight).label_robust_score.item()


def test_the_scores_follow_from_accuracies_by_hand():
    scores = FairScores(evaluation(60, 70), evaluation(50, 40), evaluation(90, 80))
    assert scores.hard_label_recovery.tolist() == pytest.approx([0.3, 0.1])
    assert scores.improvement_over_random.tolist() == pytest.approx([0.1, 0.3])
    # a = 0.5 · 0.1 − 0.5 · 0.3 = −0.1, and 0.1; (e^a − e^−1) / (e − e^−1) with e^−1 = 0.36788, e = 2.71828
    expected = [(0.904837 - 0.367879) / 2.350402, (1.105171 - 0.367879) / 2.350402]
    assert scores.label_robust_score.tolist() == pytest.approx(expected, abs=1e-6)
    assert "accuracy 0.650 ± 0.071, HLR 0.200 ± 0.141, IOR 0.200 ± 0.141, LRS 0.271 ± 0.060" in str(scores)


def test_the_weight_chooses_between_the_two_aspects_and_the_scale_has_ends():
    scale = math.e - math.exp(-1)
    assert robust(60, 50, 90, weight=0.0) == pytest.approx((math.exp(-0.3) - math.exp(-1)) / scale)
    assert robust(60, 50, 90, weight=1.0) == pytest.approx((math.exp(0.1) - math.exp(-1)) / scale)
    ends = [robust(100, 0, 0), robust(0, 100, 100), robust(50, 50, 50)]
    assert ends == pytest.approx([1, 0, (1 - math.exp(-1)) / scale])


right = st.integers(0, 100)


@given(st.tuples(right, right).map(sorted), right, right, st.floats(0.01, 0.99))
def test_the_score_is_a_share_and_rises_with_the_sets_own_accuracy(made, random, whole, weight):
    low, high = (robust(own, random, whole, weight=weight) for own in made)
    assert -1e-6 <= low <= high <= 1 + 1e-6


def test_evaluations_that_do_not_compare_are_refused():
    made, others = evaluation(60), (evaluation(50), evaluation(90))
    odd = [evaluation(60, 70), evaluation(60, split="validation"), replace(made, classes=("a", "c"))]
    for each in odd:
        assert_refused("different splits, networks or classes", FairScores, each, *others)
    assert_refused("weight is 2", FairScores, made, *others, weight=2)


def test_the_rate_is_chosen_on_validation_and_divergence_is_passed_over():
    asked = []

    def run(config):
        asked.append((config.rate, config.split, config.networks))
        if config.rate > 1:
            raise DivergenceError("too high")
        right = {0.1: 50, 0.2: 80, 0.3: 80}[config.rate]
        return evaluation(right, rate=config.rate, split=config.split)

    made = tune(run, CONFIG, [0.3, 5.0, 0.2, 0.1], networks=1)
    assert made.config.rate == 0.2  # the lowest of equals
    assert asked[-1] == (0.2, "test", 2)
    assert {split for _, split, _ in asked[:-1]} == {"validation"}
    with pytest.raises(DivergenceError, match=r"diverges at each of the rates \[5\.0\]"):
        tune(run, CONFIG, [5.0], networks=1)


def test_all_three_sets_choose_among_the_same_rates(toy_data, toy_teachers, tmp_path):
    made = random_real(toy_data, toy_teachers.preprocess, ipc=2, seed=1, alpha=0.02)
    fair = FairConfig(rates=(0.001, 0.05), tuning_networks=1, whole_epochs=1)
    scores = evaluate_fairly(made, toy_data, CONFIG, fair, folder=tmp_path, progress=False)
    assert {each.config.split for each in (scores.distilled, scores.random, scores.whole)} == {"test"}
    assert {path.name for path in tmp_path.glob("*_validation_*")} == {
        f"{name}_validation_{rate}.safetensors"
        for name in ("distilled", "random", "whole")
        for rate in ("0.001", "0.02", "0.05")
    }
    again = evaluate_fairly(made, toy_data, CONFIG, fair, folder=tmp_path, progress=False)
    assert again.summary() == scores.summary()
    assert torch.equal(scores.label_robust_score, again.label_robust_score)


def test_bad_values_and_a_rate_or_split_of_ones_own_are_refused(toy_data, toy_teachers):
    made = random_real(toy_data, toy_teachers.preprocess, ipc=2, seed=1)
    for change, mend in (({"rate": 0.1}, "leave it out"), ({"split": "validation"}, "use 'test'")):
        assert_refused(mend, evaluate_fairly, made, toy_data, replace(CONFIG, **change))
    bad = {"tuning_networks": [0], "whole_epochs": [0], "weight": [2.0], "rates": [(), (0.1, -1.0)]}
    for name, value in ((name, value) for name, values in bad.items() for value in values):
        assert_refused(name, FairConfig, **{name: value})
