"""Settings: flat values become checked configurations."""

import dataclasses

import pytest

from iadd_lab.data.augment import AugmentConfig
from iadd_lab.data.parametrisation import MultiFormation
from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.matching import Learned, Pruned, Uniform
from iadd_lab.distillation.presets import PRESETS
from iadd_lab.store.configs import fingerprint
from iadd_lab.study.methods import METHODS
from iadd_lab.study.settings import Setting
from tests.samples import assert_refused


def test_the_defaults_are_the_literature_s_for_cifar10_at_ipc_1():
    setting = Setting()
    config = setting.distillation(Uniform())
    assert (config.student_steps, config.teacher_epochs, config.max_start_epoch) == (50, 2, 2)
    assert (config.image_rate, config.alpha_rate, config.alpha) == (100.0, 1e-7, 0.01)
    assert (setting.teacher_count, setting.teachers().batch) == (100, 256)
    assert (setting.evaluation().networks, setting.evaluation().epochs) == (5, 1000)


BAD = [
    ("ipc", 0, "ipc is 0"),
    ("data_name", "digit", "unknown data set 'digit'.*did you mean 'digits'"),
    ("teacher_count", 0, "teacher_count is 0"),
    ("weight_rate", -1.0, "rate is -1.0"),
    ("evaluation_epochs", 0, "epochs is 0"),
    ("evaluation_rate", 0.0, r"rate is 0\.0"),
    ("preprocess", "zcaa", "unknown preprocess 'zcaa'"),
    ("gradient_matching_iterations", 0, "iterations is 0"),
    ("seeds", 0, "seeds is 0"),
    ("max_start_epoch", 50, "reach epoch 51, but teacher_training_epochs is 50"),
]


@pytest.mark.parametrize(("field", "value", "sentence"), BAD)
def test_bad_values_are_named(field, value, sentence):
    assert_refused(sentence, Setting, **{field: value})


def test_every_method_of_the_family_follows_from_a_setting():
    setting = Setting(weight_rate=0.5, prune_fraction=0.3, iterations=10)
    kinds = {name: method.matching(setting) for name, method in METHODS.items() if method.matching}
    assert {kinds.pop(name) for name in [*kinds] if name.startswith(("mtt_", "recipe"))} == {Uniform()}
    assert (kinds.pop("mtt"), kinds.pop("ddpp")) == (Uniform(), Pruned(fraction=0.3))
    learned = {"": {}, "_literal": {"normalised": False}, "_tensor": {"granularity": "tensor"}}
    learned |= {"_frozen": {"learn_until": 5}, "_late": {"learn_from": 5}, "_slow": {"rate": 0.05}}
    learned |= {"_fast": {"rate": 5.0}, "_band": {"rate": 5.0, "limit": 1.5}, "_ascent": {"ascend": True}}
    learned |= {"_within": {"mean_over": "tensor"}, "_relative": {"relative": True}}
    assert kinds == {f"iadd{name}": Learned(**{"rate": 0.5} | more) for name, more in learned.items()}


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
        "image_optimizer": "adam", "average": 0.9, "labels": "soft",
    }  # fmt: skip
    own = {"teacher_count", "whole_epochs", "seeds"}  # used by the study itself
    for field in (field for field in dataclasses.fields(Setting) if field.name not in own):
        value = changed.get(field.name)
        if value is None:
            value = field.default * 2 if isinstance(field.default, float) else field.default + 1
        assert _configurations(Setting(**{field.name: value})) != _configurations(Setting()), field.name


def _configurations(setting):
    matchings = [method.matching(setting) for method in METHODS.values() if method.matching]
    made = [setting.distillation(matching) for matching in matchings]
    made += [setting.gradient_matching(AugmentConfig()), setting.distribution_matching()]
    return [*made, setting.data(), setting.teachers(), setting.evaluation()]


def test_a_method_changes_what_is_its_own_and_presets_are_configurations():
    setting = Setting(iterations=7, image_rate=3.0)
    plain, recipe = (METHODS[name].distillation(setting, number=2) for name in ("mtt", "recipe"))
    changes = {"image_optimizer": "adam", "image_rate": 0.1, "parametrisation": MultiFormation(2)}
    assert recipe == dataclasses.replace(plain, **changes)
    assert METHODS["mtt_average"].distillation(setting).average == 0.99
    for name, preset in PRESETS.items():
        config = preset.config(ipc=3, label_momentum=0.5)
        assert (config.ipc, config.label_momentum) == (3, 0.5), name
        assert {field: getattr(config, field) for field in preset.options} == preset.options
    assert PRESETS["tesla"].config(label_rate=1.0).label_rate == 1.0
    assert fingerprint(PRESETS["iadd"].config()) == fingerprint(DistillConfig())
