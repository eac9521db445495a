"""Settings: flat values become checked configurations."""

from __future__ import annotations

import dataclasses

import pytest

from iadd_lab.distillation.matching import Learned, Pruned, Uniform
from iadd_lab.errors import InputError
from iadd_lab.study.methods import METHODS, matching_methods
from iadd_lab.study.settings import Setting


def test_the_defaults_are_the_literature_s_for_cifar10_at_ipc_1():
    setting = Setting()
    config = setting.distillation(Uniform())
    assert (config.student_steps, config.teacher_epochs, config.max_start_epoch) == (50, 2, 2)
    assert (config.image_rate, config.alpha_rate, config.alpha) == (100.0, 1e-7, 0.01)
    assert (setting.teacher_count, setting.teachers().batch) == (100, 256)
    assert (setting.evaluation().networks, setting.evaluation().epochs) == (5, 1000)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
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
        Setting(**values)


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
