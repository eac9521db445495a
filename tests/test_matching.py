"""Importance weights against their definitions, and what learning them does."""

import itertools
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from iadd_lab.distillation.matching import MATCHINGS, Learned, Pruned, Uniform, effective_share
from iadd_lab.training.networks import ParameterLayout
from tests.samples import assert_refused

LAYOUT = ParameterLayout(("weight", "bias", "scale"), ((2, 3), (3,), ()))
COUNT = 10
LEARNED = {
    "parameter": Learned(),
    "parameter literal": Learned(normalised=False),
    "tensor": Learned(granularity="tensor"),
    "tensor literal": Learned(normalised=False, granularity="tensor"),
    "within tensors": Learned(mean_over="tensor"),
}
RELATIVE = [Learned(relative=True), Learned(relative=True, normalised=False, granularity="tensor")]


def flat(count):
    """The layout of one vector."""
    return ParameterLayout(("flat",), ((count,),))


def points(*, seed=0, count=COUNT, dtype=torch.float64):
    """Start, target and end of a segment, unrelated."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, count, generator=generator, dtype=torch.float64).to(dtype).unbind()


def loss_of(matching, raw, end, *, start, target, layout=LAYOUT):
    return matching.loss(end, raw, start=start, target=target, layout=layout)


def weights_of(matching, raw, *, end=None, target=None, layout=LAYOUT):
    end = torch.zeros(layout.count) if end is None else end
    return matching.weights(raw, end=end, target=end if target is None else target, layout=layout)


def descended(matching, raw, end, *, start, target, layout=LAYOUT, iteration=0):
    """`raw` after one iteration in which the student arrived at `end`."""
    raw = raw.clone().requires_grad_()
    loss = loss_of(matching, raw, end, start=start, target=target, layout=layout)
    (gradient,) = torch.autograd.grad(loss, raw)
    return matching.learn(raw.detach(), gradient, layout=layout, iteration=iteration)


def vectors(low, high, *, shortest=1, longest=40):
    """Vectors of whole multiples of 1/8: exact in float32, with zeros and ties among them."""
    eighths = st.integers(round(8 * low), round(8 * high))
    lists = st.lists(eighths, min_size=shortest, max_size=longest)
    return lists.map(lambda values: torch.tensor(values, dtype=torch.float32) / 8)


# The loss ------------------------------------------------------------------------------------------------


def test_a_matching_is_registered_where_it_is_defined():
    assert {"uniform": Uniform, "pruned": Pruned, "learned": Learned} == MATCHINGS

    @dataclass(frozen=True)
    class Squared(Uniform):
        name = "squared"

    assert MATCHINGS.pop("squared") is Squared


@pytest.mark.parametrize("matching", [Uniform(), Pruned(0.3), *LEARNED.values()], ids=str)
def test_the_loss_is_the_weighted_distance_over_the_teachers(matching):
    start, target, end = points()
    raw = matching.initial(LAYOUT).double()
    raw = raw + torch.linspace(0.1, 0.9, len(raw), dtype=raw.dtype)
    weights = weights_of(matching, raw, end=end, target=target).numpy()
    expected = np.linalg.norm(weights * end.numpy() - weights * target.numpy()) ** 2
    expected /= np.linalg.norm((start - target).numpy()) ** 2
    found = loss_of(matching, raw, end, start=start, target=target).item()
    assert found == pytest.approx(expected, rel=1e-12)
    # A student that stayed has loss one, and one that arrived zero.
    raw = matching.initial(LAYOUT).double()
    if matching != Pruned(0.3):
        assert loss_of(matching, raw, start, start=start, target=target) == 1
    assert loss_of(matching, raw, target, start=start, target=target) == 0


FIXED = [Uniform(), Pruned(0.3), Pruned(0.3, "difference")]


@pytest.mark.parametrize("matching", [*FIXED, *LEARNED.values(), *RELATIVE], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_of_the_loss_is_exact_in_end_and_raw(matching, seed):
    """The choice of what to prune is no part of the gradient."""
    start, target, end = points(seed=seed)
    raw = matching.initial(LAYOUT).double()
    raw = raw + torch.rand(raw.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    learned = [raw.requires_grad_()] if len(raw) else []

    def loss(end, *given):
        return loss_of(matching, *given or [raw], end, start=start, target=target)

    assert torch.autograd.gradcheck(loss, (end.requires_grad_(), *learned))
    if matching in FIXED:
        assert raw.shape == (0,)
        assert matching.learn(raw, raw, layout=LAYOUT, iteration=3) is raw


@pytest.mark.parametrize("matching", RELATIVE, ids=str)
def test_the_relative_loss_has_no_trivial_minimiser_and_no_scale(matching):
    """A ratio of distances: at W = 1 the uniform loss, blind to W's size, never below the least ratio."""
    start, target, end = points()
    raw, place = matching.initial(LAYOUT).double(), {"start": start, "target": target}
    assert torch.equal(loss_of(matching, raw, end, **place), loss_of(Uniform(), raw, end, **place))
    raw = raw + torch.linspace(0.1, 0.9, len(raw), dtype=raw.dtype)
    weights = weights_of(matching, raw).numpy()
    away, moved = (np.linalg.norm(weights * (at - target).numpy()) for at in (end, start))
    found = loss_of(matching, raw, end, **place).detach()
    assert found.item() == pytest.approx((away / moved) ** 2, rel=1e-12)
    other = raw + 1 if matching.normalised else 3 * raw
    torch.testing.assert_close(loss_of(matching, other, end, **place), found, rtol=1e-12, atol=0)
    scale = torch.linspace(0.1, 5, COUNT, dtype=end.dtype)  # another unit for each parameter
    scaled = {"start": target + scale * (start - target), "target": target}
    ratios = ((end - target) / (start - target)).square()
    if matching.granularity == "parameter":
        for each, point in ((end, place), (target + scale * (end - target), scaled)):
            moved = descended(matching, torch.zeros_like(end), each, **point)
            loss = loss_of(Uniform(), torch.zeros(0), each, **point)
            assert torch.equal(moved < 0, ratios > loss)  # weight leaves what is hard for how far it goes
    least = (
        ratios.min()
        if matching.granularity == "parameter"
        else min(
            part.norm() ** 2 / own.norm() ** 2
            for part, own in zip(
                (end - target).split([6, 3, 1]), (start - target).split([6, 3, 1]), strict=True
            )
        )
    )
    for iteration in range(300):
        raw = descended(replace(matching, rate=0.1), raw, end, **place, iteration=iteration)
    assert least < loss_of(matching, raw, end, **place) < found


# Uniform and pruned --------------------------------------------------------------------------------------


def hardness(measure, student, teacher):
    """By the definitions, one pair at a time."""
    if measure == "difference":
        return abs(student - teacher)
    similarity = 1.0 if student == teacher == 0 else 2 * student * teacher / (student**2 + teacher**2)
    return -similarity


MEASURES = ["similarity", "difference"]


@example(pairs=torch.tensor([0.0, 1.0, 0.0, 0.5]), fraction=0.5, measure="similarity")
@given(pairs=vectors(-4, 4, shortest=2), fraction=st.floats(0, 0.99), measure=st.sampled_from(MEASURES))
def test_pruned_drops_the_hardest_pairs(pairs, fraction, measure):
    end, target = pairs[: 2 * (len(pairs) // 2)].view(2, -1)
    matching, layout = Pruned(fraction, measure), flat(len(end))
    found = weights_of(matching, torch.zeros(0), end=end, target=target, layout=layout)
    assert set(found.tolist()) <= {0.0, 1.0}
    assert (found == 0).sum() == round(fraction * len(end))
    hard = [hardness(measure, a, b) for a, b in zip(end.tolist(), target.tolist(), strict=True)]
    hard = torch.tensor(hard, dtype=torch.float64)
    if 0 < found.sum() < len(found):
        assert hard[found == 0].min() >= hard[found == 1].max() - 1e-6


@pytest.mark.parametrize("measure", MEASURES)
def test_pruning_nothing_is_uniform_bit_for_bit(measure):
    start, target, end = points(dtype=torch.float32)
    none = torch.zeros(0)
    for matching in (Uniform(), Pruned(0.0, measure)):
        assert torch.equal(weights_of(matching, none, end=end, target=target), torch.ones(COUNT))
        assert weights_of(matching, none, end=end.double(), target=target.double()).dtype == torch.float64
    found = loss_of(Pruned(0.0, measure), none, end, start=start, target=target)
    assert torch.equal(found, loss_of(Uniform(), none, end, start=start, target=target))


# Learned: what W is --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("layout", [LAYOUT, flat(1), flat(3), flat(100_003)], ids=lambda it: str(it.count))
def test_learned_weights_start_at_exactly_one(name, layout):
    matching = LEARNED[name]
    raw = matching.initial(layout)
    assert len(raw) == (layout.count if matching.granularity == "parameter" else len(layout.names))
    assert torch.equal(weights_of(matching, raw, layout=layout), torch.ones(layout.count))


@given(raw=vectors(-9, 9), shift=st.integers(-50, 50))
def test_normalised_weights_have_mean_square_one(raw, shift):
    raw = raw.double()
    found = weights_of(Learned(), raw, layout=flat(len(raw)))
    assert (found >= 0).all()
    assert found.square().mean().item() == pytest.approx(1, rel=1e-12)
    expected = np.exp(raw.numpy())  # W² is the softmax of raw, times their number
    assert found.square().numpy() == pytest.approx(expected / expected.sum() * len(raw), rel=1e-9)
    assert torch.equal(weights_of(Learned(), raw + shift, layout=flat(len(raw))), found)


@given(raw=vectors(-9, 9, shortest=3, longest=3))
def test_one_weight_per_tensor_is_shared_by_all_of_it(raw):
    raw = raw.double()
    found = weights_of(LEARNED["tensor"], raw)
    parts = LAYOUT.split(found)
    assert all((part == part.reshape(-1)[0]).all() for part in parts.values())
    assert found.square().mean().item() == pytest.approx(1, rel=1e-12)  # over parameters, not tensors
    first = torch.stack([part.reshape(-1)[0] for part in parts.values()])
    assert (first / first[0]).log().numpy() == pytest.approx((raw - raw[0]).numpy() / 2, abs=1e-12)


@given(raw=vectors(-9, 9, shortest=COUNT, longest=COUNT), shifts=st.tuples(*[st.integers(-50, 50)] * 3))
def test_within_tensors_each_is_normalised_by_itself(raw, shifts):
    raw, matching = raw.double(), LEARNED["within tensors"]
    found = weights_of(matching, raw)
    for part, values in zip(found.split(LAYOUT.sizes), raw.split(LAYOUT.sizes), strict=True):
        assert torch.equal(part, weights_of(Learned(), values, layout=flat(len(values))))
    shift = torch.tensor(shifts).repeat_interleave(torch.tensor(LAYOUT.sizes))
    assert torch.equal(weights_of(matching, raw + shift), found)


@given(raw=vectors(0, 9, shortest=3, longest=3))
def test_literal_weights_are_the_raw_values(raw):
    spread = raw.repeat_interleave(torch.tensor([6, 3, 1]))
    assert torch.equal(weights_of(LEARNED["tensor literal"], raw), spread)
    assert torch.equal(weights_of(LEARNED["parameter literal"], raw, layout=flat(3)), raw)


# Learned: how W moves ------------------------------------------------------------------------------------


@given(differences=vectors(-4, 4, shortest=2, longest=20), seed=st.integers(0, 9))
def test_harder_than_the_weighted_average_falls_and_easier_rises(differences, seed):
    layout = flat(len(differences))
    target = torch.zeros(layout.count, dtype=torch.float64)
    raw = torch.rand(layout.count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    end = differences.double()
    moved = descended(Learned(), raw, end, start=target + 1, target=target, layout=layout)
    mean = (weights_of(Learned(), raw, layout=layout).square() * end.square()).mean()
    easier = mean - end.square()
    clear = easier.abs() > 1e-9
    assert torch.equal((moved - raw)[clear].sign(), easier[clear].sign())


@pytest.mark.parametrize("name", LEARNED)
def test_learning_lowers_the_loss_and_only_the_literal_one_to_nothing(name):
    """A weighted average of squares cannot be smaller than the least of them; the literal loss can."""
    start, target, end = points()
    matching = replace(LEARNED[name], rate=0.01 if "literal" in name else 0.1)
    raw, losses = matching.initial(LAYOUT).double(), []
    for iteration in range(200):
        losses.append(loss_of(matching, raw, end, start=start, target=target).item())
        before, raw = raw, descended(matching, raw, end, start=start, target=target, iteration=iteration)
        assert matching.normalised or ((raw < before) | (raw == 0)).all()
    least = COUNT * (end - target).square().min() / (start - target).square().sum()
    assert all(later < earlier for earlier, later in itertools.pairwise(losses))
    assert losses[-1] > least if matching.normalised else losses[-1] < 0.05 * losses[0]


def test_ascent_is_descent_the_other_way():
    """What is harder to match than the average loses weight in descent, and gains as much in ascent."""
    start, target, end = points()
    lower, higher = (
        descended(matching, torch.zeros_like(end), end, start=start, target=target)
        for matching in (Learned(rate=0.1), Learned(rate=0.1, ascend=True))
    )
    assert torch.equal(higher, -lower)
    squares = (end - target).square()
    assert torch.equal(higher > 0, squares > squares.mean())


@pytest.mark.parametrize("limit", [1.5, 10.0])
def test_the_limit_bounds_weights_before_normalisation_and_no_literal_ones(limit):
    matching = Learned(rate=1.0, limit=limit)
    slope, ones = torch.linspace(-1, 1, COUNT), torch.ones(COUNT)
    raw = matching.initial(LAYOUT)
    for iteration in range(50):
        raw = matching.learn(raw, slope, layout=LAYOUT, iteration=iteration)
    assert torch.allclose((raw / 2).exp()[[0, -1]], torch.tensor([limit, 1 / limit]))
    weights = weights_of(matching, raw)
    assert (weights.max() / weights.min()).item() == pytest.approx(limit**2, rel=1e-5)
    assert weights.square().mean().item() == pytest.approx(1, rel=1e-5)
    for slope, expected in ((-1.0, 11.0), (1e6, 0.0)):  # literal ones stop at zero
        matching = Learned(rate=1.0, limit=limit, normalised=False)
        found = matching.learn(ones, slope * ones, layout=LAYOUT, iteration=0)
        assert torch.equal(found, expected * ones)


@pytest.mark.parametrize("name", LEARNED)
def test_weights_move_only_from_learn_from_until_learn_until_and_at_a_rate(name):
    raw = LEARNED[name].initial(LAYOUT)
    slope = torch.ones_like(raw)

    def moved(**change):
        matching = replace(LEARNED[name], rate=0.01, **change)
        found = [matching.learn(raw, slope, layout=LAYOUT, iteration=i) for i in range(8)]
        return [i for i in range(8) if not torch.equal(found[i], raw)]

    assert moved() == list(range(8))
    for first, until in ((0, 4), (2, 5), (3, 3), (0, 0), (3, 8)):
        assert moved(learn_from=first, learn_until=until) == list(range(first, until))
    assert moved(learn_from=3) == list(range(3, 8))
    frozen = replace(LEARNED[name], rate=0)
    assert torch.equal(frozen.learn(raw, slope, layout=LAYOUT, iteration=0), raw)


@pytest.mark.parametrize("name", LEARNED)
def test_the_rate_means_the_same_in_a_network_of_any_size(name):
    """Every parameter seven times: each copy moves as the one did."""
    matching = LEARNED[name]
    start, target, end = points()
    raw = matching.initial(LAYOUT).double()
    raw = raw + torch.linspace(0, 0.3, len(raw), dtype=raw.dtype)
    expected = descended(matching, raw, end, start=start, target=target)
    assert (expected - raw).abs().max() > 1e-5
    side_by_side = ParameterLayout(LAYOUT.names * 7, LAYOUT.shapes * 7)
    wider = ParameterLayout(LAYOUT.names, tuple((7, *shape) for shape in LAYOUT.shapes))
    within = repeated_within if matching.granularity == "parameter" else lambda raw: raw
    cases = [(side_by_side, repeated, repeated), (wider, repeated_within, within)]
    for layout, copies, copies_of_raw in cases:
        place = {"start": copies(start), "target": copies(target), "layout": layout}
        found = descended(matching, copies_of_raw(raw), copies(end), **place)
        assert torch.allclose(found, copies_of_raw(expected), rtol=1e-12, atol=1e-14)


def repeated(vector):
    return vector.repeat(7)


def repeated_within(vector):
    return torch.cat([part.repeat(7) for part in vector.split(LAYOUT.sizes)])


# Effective share -----------------------------------------------------------------------------------------


@given(weights=vectors(0, 9))
def test_the_effective_share_lies_between_one_parameter_and_all(weights):
    share = effective_share(weights)
    if (weights == 0).all():
        assert share == 0
        return
    assert 1 / len(weights) - 1e-12 <= share <= 1 + 1e-12
    assert share == pytest.approx(effective_share(weights.flip(0) * 4), rel=1e-12)
    assert share < 1 - 1e-6 or len(set(weights.tolist())) == 1


def test_the_effective_share_of_known_weights():
    known = {(1, 1, 1, 1): 1.0, (0.5, 0.5): 1.0, (1, 1, 0, 0): 0.5, (0, 0, 3, 0): 0.25}
    for weights, share in (known | {(1, 2): 25 / 34, (0, 0): 0.0, (7,): 1.0}).items():
        assert effective_share(torch.tensor(weights, dtype=torch.float32)) == pytest.approx(share, rel=1e-15)


# What is refused -----------------------------------------------------------------------------------------


WITHIN = "mean_over is 'tensor', which goes only with granularity 'parameter' and normalised True: set both."
MEASURE = "unknown measure 'similarty' (did you mean 'similarity'?): choose one of difference, similarity."
REFUSED = [
    (
        Pruned,
        {"fraction": 1.0},
        "fraction is 1.0; it must be a finite number of at least 0 and at most 0.99.",
    ),
    (Pruned, {"measure": "similarty"}, MEASURE),
    (Learned, {"rate": -1e-3}, "rate is -0.001; it must be a finite number of at least 0."),
    (Learned, {"normalised": 1}, "normalised is 1; it must be True or False."),
    (Learned, {"relative": "no"}, "relative is 'no'; it must be True or False."),
    (Learned, {"ascend": "yes"}, "ascend is 'yes'; it must be True or False."),
    (Learned, {"limit": 1.0}, "limit is 1.0; it must be a finite number above 1."),
    (Learned, {"learn_from": -1}, "learn_from is -1; it must be a whole number of at least 0."),
    (
        Learned,
        {"learn_from": 9, "learn_until": 8},
        "(not before learn_from) is 8; it must be a whole number of",
    ),
    (Learned, {"granularity": "layer"}, "unknown granularity 'layer': choose one of parameter, tensor."),
    (Learned, {"mean_over": "layer"}, "unknown mean_over 'layer': choose one of network, tensor."),
    (Learned, {"mean_over": "tensor", "granularity": "tensor"}, WITHIN),
    (Learned, {"mean_over": "tensor", "normalised": False}, WITHIN),
]


@pytest.mark.parametrize(("kind", "options", "sentence"), REFUSED)
def test_a_bad_value_is_refused_in_one_sentence(kind, options, sentence):
    assert_refused(re.escape(sentence), kind, **options)
