"""What is refused, and that every refusal is one helpful sentence."""

import math
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iadd_lab.baselines import real_images
from iadd_lab.distillation.matching import Learned
from iadd_lab.errors import DivergenceError, InputError, check_number, check_whole, choose, require
from iadd_lab.evaluation.export import load
from iadd_lab.evaluation.protocol import EvaluateConfig, evaluate_random
from iadd_lab.study.luck import repeat_segments
from iadd_lab.study.own_data import own_config, suggest
from iadd_lab.study.settings import Setting
from iadd_lab.training.teachers import open_teachers, train_teachers
from tests.samples import assert_refused


def test_bad_input_is_a_value_error_and_divergence_is_not():
    assert issubclass(InputError, ValueError)
    assert issubclass(DivergenceError, RuntimeError)
    assert not issubclass(DivergenceError, InputError)
    require(True, "fine.")
    with pytest.raises(InputError, match=r"^x is 3; it must be 2\.$"):
        require(False, "x is 3; it must be 2.")


def test_choose_returns_the_value_even_a_false_one():
    for value in (0, None):
        assert choose("thing", "name", {"name": value}) is value


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("convnett", "'convnett' (did you mean 'convnet'?)"),
        ("AlexNet", "'AlexNet' (did you mean 'alexnet'?)"),
        *((name, repr(name)) for name in ("zzz", "", None, 3)),
        (["convnet"], "['convnet'] (did you mean 'convnet'?)"),
    ],
)
def test_choose_lists_the_choices_and_the_closest(name, told):
    with pytest.raises(InputError, match=r"^unknown network") as caught:
        choose("network", name, {"convnet": 1, "alexnet": 2})
    assert str(caught.value) == f"unknown network {told}: choose one of alexnet, convnet."


@given(value=st.integers(), minimum=st.integers(-5, 5))
def test_a_whole_number_passes_exactly_from_its_minimum(value, minimum):
    if value >= minimum:
        check_whole("epochs", value, minimum=minimum)
    else:
        with pytest.raises(InputError):
            check_whole("epochs", value, minimum=minimum)


@pytest.mark.parametrize("value", [True, False, 1.0, 1.5, "3", None, [3], math.nan, math.inf, 0, -1])
def test_what_is_no_whole_number_of_at_least_one_is_refused(value):
    with pytest.raises(InputError) as caught:
        check_whole("epochs", value, minimum=1)
    assert str(caught.value) == f"epochs is {value!r}; it must be a whole number of at least 1."


@given(
    value=st.floats(-4, 4) | st.integers(-4, 4),
    bounds=st.tuples(st.integers(-3, 3), st.integers(-3, 3)),
    above=st.booleans(),
)
def test_a_number_passes_exactly_within_its_bounds(value, bounds, above):
    low, high = sorted(bounds)
    if low <= value <= high and not (above and value == low):
        check_number("rate", value, minimum=low, maximum=high, above=above)
    else:
        with pytest.raises(InputError):
            check_number("rate", value, minimum=low, maximum=high, above=above)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "0.1", None, [1.0], 1j, -1, 10**400])
def test_what_is_no_finite_number_is_refused(value):
    with pytest.raises(InputError) as caught:
        check_number("rate", value)
    assert str(caught.value) == f"rate is {value!r}; it must be a finite number of at least 0."


CALLS = {
    "random_real": ("ipc", "seed", "alpha"),
    "random_draws": ("ipc", "count", "seed", "alpha"),
    "herding": ("ipc", "teacher", "alpha"),
    "whole_set": ("alpha",),
    "train_teachers": ("count",),
    "open_teachers": ("count",),
    "repeat_segments": ("start_epochs", "epochs", "count", "seed"),
    "evaluate_random": ("ipc",),
    "fit": ("epochs", "rate", "momentum", "weight_decay", "batch", "seed"),
    "load": ("channels",),
    "suggest": ("ipc", "width", "seed", "mirror"),
    "own_config": ("size", "seed"),
    "distillation": ("number",),
}


@pytest.fixture
def functions(toy_data, toy_teachers, tmp_path):
    """Each of `CALLS` with all but what it refuses."""
    data, preprocess = toy_data, toy_teachers.preprocess
    real_images.random_real(data, preprocess, ipc=1, seed=0).save(tmp_path / "distilled.safetensors")
    quick = EvaluateConfig(toy_teachers.config.network, networks=1, epochs=1)
    return {
        "random_real": partial(real_images.random_real, data, preprocess, ipc=1, seed=0),
        "random_draws": partial(real_images.random_draws, data, preprocess, ipc=1, count=1, seed=0),
        "herding": partial(real_images.herding, data, toy_teachers, ipc=1),
        "whole_set": partial(real_images.whole_set, data, preprocess),
        "train_teachers": partial(train_teachers, data, toy_teachers.config, toy_teachers.folder),
        "open_teachers": partial(open_teachers, toy_teachers.folder),
        "repeat_segments": partial(repeat_segments, toy_teachers, data, start_epochs=1, epochs=1),
        "evaluate_random": partial(evaluate_random, data, preprocess, quick),
        "fit": partial(load(tmp_path).fit, toy_teachers.network(0)),
        "load": partial(load, tmp_path),
        "suggest": partial(suggest, data),
        "own_config": partial(own_config, tmp_path, size=8),
        "distillation": partial(Setting("digits").distillation, Learned()),
    }


@pytest.mark.parametrize("bad", [math.nan, math.inf, True, "3"])
@pytest.mark.parametrize(
    ("function", "name"), [(call, name) for call, names in CALLS.items() for name in names]
)
def test_functions_refuse_what_is_no_number_by_its_name(functions, function, name, bad):
    if (name, bad) != ("mirror", True):
        assert_refused(rf"^{name} is {bad!r}; it must be [^\n]*$", functions[function], **{name: bad})


@pytest.mark.parametrize(
    ("bounds", "told"),
    [
        ({"above": True}, "above 0"),
        ({"maximum": 0.5}, "of at least 0 and at most 0.5"),
        ({"minimum": 1, "maximum": 9, "above": True}, "above 1 and at most 9"),
    ],
)
def test_the_sentence_names_the_bounds(bounds, told):
    with pytest.raises(InputError) as caught:
        check_number("rate", -2, **bounds)
    assert str(caught.value) == f"rate is -2; it must be a finite number {told}."
