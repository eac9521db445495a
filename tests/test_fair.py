"""DD-Ranking's scores: by hand, in their ranges, and with every set at the rate that suits it."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iadd_lab.baselines.real_images import random_real
from iadd_lab.errors import DivergenceError, InputError
from iadd_lab.evaluation.fair import FairConfig, FairScores, evaluate_fairly, label_robust_score, tune
from iadd_lab.evaluation.protocol import EvaluateConfig, Evaluation
from iadd_lab.training.networks import NetworkConfig
from tests.conftest import AUGMENT

CONFIG = EvaluateConfig(network=NetworkConfig(width=4, depth=2), networks=2, epochs=4, augment=AUGMENT)


def evaluation(*right: int, rate: float = 0.01, method: str = "learned", **changes) -> Evaluation:
    """Of networks that have so many of 100 images right."""
    halves = [(count // 2, count - count // 2) for count in right]
    rows = [[[first, 50 - first], [50 - second, second]] for first, second in halves]
    return Evaluation(torch.tensor(rows), ("a", "b"), method, replace(CONFIG, rate=rate, **changes))


def test_the_scores_follow_from_accuracies_by_hand():
    scores = FairScores(evaluation(60, 70), evaluation(50, 40), evaluation(90, 80))
    assert scores.hard_label_recovery.tolist() == pytest.approx([0.3, 0.1])
    assert scores.improvement_over_random.tolist() == pytest.approx([0.1, 0.3])
    # a = 0.5 · 0.1 − 0.5 · 0.3 = −0.1, and 0.1; (e^a − e^−1) / (e − e^−1) with e^−1 = 0.36788, e = 2.71828
    expected = [(0.904837 - 0.367879) / 2.350402, (1.105171 - 0.367879) / 2.350402]
    assert scores.label_robust_score.tolist() == pytest.approx(expected, abs=1e-6)
    row = scores.summary()
    assert row["accuracy"] == pytest.approx(0.65)
    assert row["HLR"] == pytest.approx(0.2)
    assert row["HLR std"] == pytest.approx(math.sqrt(0.02))
    assert "HLR 0.200 ± 0.141, IOR 0.200 ± 0.141, LRS 0.271 ± 0.060" in str(scores)


def test_the_weight_chooses_between_the_two_aspects_and_the_scale_has_ends():
    parts = evaluation(60, 60), evaluation(50, 50), evaluation(90, 90)
    recovery = FairScores(*parts, weight=0.0).label_robust_score
    improvement = FairScores(*parts, weight=1.0).label_robust_score
    scale = math.e - math.exp(-1)
    assert recovery.tolist() == pytest.approx([(math.exp(-0.3) - math.exp(-1)) / scale] * 2)
    assert improvement.tolist() == pytest.approx([(math.exp(0.1) - math.exp(-1)) / scale] * 2)
    one = torch.tensor(1.0, dtype=torch.float64)
    ends = [label_robust_score(-sign * one, sign * one).item() for sign in (1, -1, 0)]
    assert ends == pytest.approx([1, 0, (1 - math.exp(-1)) / scale])


shares = st.floats(0, 1)


@settings(derandomize=True, deadline=None, database=None, max_examples=50)
@given(shares, shares, shares, st.floats(0.01, 0.99), st.floats(0.001, 0.2))
def test_the_score_is_a_share_and_rises_with_the_sets_own_accuracy(made, random, whole, weight, better):
    low, high = (
        label_robust_score(torch.tensor(whole - own), torch.tensor(own - random), weight=weight).item()
        for own in (made, min(made + better, 1.0))
    )
    assert -1e-6 <= low <= high + 1e-6
    assert high <= 1 + 1e-6


def test_evaluations_that_do_not_compare_are_refused():
    for first, split in (((60, 70), "test"), ((60,), "validation")):
        with pytest.raises(InputError, match="different splits, networks or classes"):
            FairScores(evaluation(*first, split=split), evaluation(50), evaluation(90))
    with pytest.raises(InputError, match="weight is 2"):
        FairScores(evaluation(60), evaluation(50), evaluation(90), weight=2)


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
        with pytest.raises(InputError, match=mend):
            evaluate_fairly(made, toy_data, replace(CONFIG, **change), progress=False)
    bad = (
        ("rates", ()),
        ("rates", (0.1, -1.0)),
        ("tuning_networks", 0),
        ("whole_epochs", 0),
        ("weight", 2.0),
    )
    for name, value in bad:
        with pytest.raises(InputError, match=name):
            FairConfig(**{name: value})
