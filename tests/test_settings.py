"""Settings: flat values become checked configurations, and lists become columns."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iadd_lab.distillation.matching import Learned, Pruned, Uniform
from iadd_lab.errors import InputError
from iadd_lab.study.methods import METHODS, matching_methods
from iadd_lab.study.settings import Setting, columns


def test_the_defaults_are_the_literature_s_for_cifar10_at_ipc_1():
    setting = Setting()
    config = setting.distillation(Uniform())
    assert (config.student_steps, config.teacher_epochs, config.max_start_epoch) == (50, 2, 2)
    assert (config.image_rate, config.alpha_rate, config.alpha) == (100.0, 1e-7, 0.01)
    assert (setting.teacher_count, setting.teachers().batch) == (100, 256)
    assert (setting.evaluation().networks, setting.evaluation().epochs) == (5, 1000)


def test_a_list_holds_a_value_for_each_column():
    one, ten = columns(data_name="digits", ipc=[1, 10], batch=[None, 20], width=8)
    assert (one.ipc, one.batch, one.width, one.data_name) == (1, None, 8, "digits")
    assert (ten.ipc, ten.batch, ten.width, ten.data_name) == (10, 20, 8, "digits")
    assert columns(ipc=[3]) == (Setting(ipc=3),)
    assert columns() == (Setting(),)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=5, unique=True), st.integers(1, 9))
def test_columns_are_the_transposed_values(ipcs, networks):
    made = columns(ipc=ipcs, evaluation_networks=networks)
    assert [setting.ipc for setting in made] == ipcs
    assert {setting.evaluation_networks for setting in made} == {networks}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"ipcs": 1}, "unknown parameter of a setting 'ipcs'.*did you mean 'ipc'"),
        ({"ipc": [1, 2], "batch": [1, 2, 3]}, "ipc has 2, batch has 3"),
        ({"ipc": []}, "ipc has 0"),
        ({"ipc": 0}, "ipc is 0"),
        ({"data_name": "digit"}, "unknown data set 'digit'.*did you mean 'digits'"),
        ({"teacher_count": 0}, "teacher_count is 0"),
        ({"weight_rate": -1.0}, "rate is -1.0"),
        ({"evaluation_epochs": 0}, "epochs is 0"),
        ({"evaluation_rate": 0.0}, r"rate is 0\.0"),
        ({"preprocess": "zcaa"}, "unknown preprocess 'zcaa'"),
        ({"gradient_matching_iterations": 0}, "iterations is 0"),
        ({"seeds": 0}, "seeds is 0"),
        ({"max_start_epoch": 50}, "reach epoch 51, but teacher_training_epochs is 50"),
    ],
)
def test_bad_values_are_named(values, sentence):
    with pytest.raises(InputError, match=sentence):
        columns(**values)


def test_columns_that_a_table_could_not_tell_apart_are_named():
    both = {"data_name": ["digits", "mnist", "digits"], "ipc": 10}
    with pytest.raises(InputError, match=r"columns 0 and 2 are both Digits, IPC 10: give ipc or data_name"):
        columns(**both)
    assert len(columns(**both, only=[0, 1])) == 2


def test_some_columns_alone():
    values = {"data_name": "digits", "ipc": [1, 5, 10]}
    assert columns(**values, only=[2, 0]) == (columns(**values)[2], columns(**values)[0])
    for wrong in ([3], [-1], [], 1, "0", [None]):
        with pytest.raises(InputError, match=r"only is .*; it must be a list of positions from 0 to 2"):
            columns(**values, only=wrong)


def test_every_method_of_the_family_follows_from_a_setting():
    setting = Setting(weight_rate=0.5, prune_fraction=0.3, iterations=10)
    kinds = {name: METHODS[name].matching(setting) for name in matching_methods()}
    assert kinds["mtt"] == Uniform()
    assert kinds["ddpp"] == Pruned(fraction=0.3)
    assert kinds["iadd"] == Learned(rate=0.5)
    assert kinds["iadd_literal"] == Learned(rate=0.5, normalised=False)
    assert kinds["iadd_tensor"] == Learned(rate=0.5, granularity="tensor")
    assert kinds["iadd_frozen"] == Learned(rate=0.5, learn_until=5)
    assert kinds["iadd_late"] == Learned(rate=0.5, learn_from=5)
    assert kinds["iadd_slow"] == Learned(rate=0.05)
    assert kinds["iadd_fast"] == Learned(rate=5.0)
    assert kinds["iadd_band"] == Learned(rate=5.0, limit=1.5)
    assert kinds["iadd_ascent"] == Learned(rate=0.5, ascend=True)
    assert kinds["iadd_within"] == Learned(rate=0.5, mean_over="tensor")


def test_only_what_belongs_to_a_seed_depends_on_it():
    first, second = Setting(seed=0), Setting(seed=1)
    assert first.data() == second.data()
    assert first.teachers() == second.teachers()
    assert first.distillation(Learned(), number=1) == second.distillation(Learned())
    assert first.distillation(Learned()) != second.distillation(Learned())
    assert first.evaluation(number=1) == second.evaluation()


def test_every_field_reaches_a_configuration():
    """A field that no configuration shows would be a parameter without effect."""
    changed = {
        "data_name": "mnist", "preprocess": "zca", "size": 16, "train_limit": 99, "depth": 2, "batch": 7,
        "gradient": "full", "gradient_matches": 3, "gradient_network_steps": 4, "evaluation_rate": 0.1,
    }  # fmt: skip
    own = {"teacher_count", "whole_epochs", "seeds"}  # used by the study itself
    for field in dataclasses.fields(Setting):
        if field.name in own:
            continue
        value = changed.get(field.name)
        if value is None:
            value = field.default * 2 if isinstance(field.default, float) else field.default + 1
        assert _configurations(Setting(**{field.name: value})) != _configurations(Setting()), field.name


def _configurations(setting):
    from iadd_lab.data.augment import AugmentConfig

    return (
        setting.data(),
        setting.teachers(),
        *(setting.distillation(METHODS[name].matching(setting)) for name in matching_methods()),
        setting.gradient_matching(AugmentConfig()),
        setting.distribution_matching(),
        setting.evaluation(),
    )
