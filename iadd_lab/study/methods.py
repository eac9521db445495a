"""The rows of a table: every method that is compared, in one registry."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from iadd_lab.baselines.features import match_distributions
from iadd_lab.baselines.gradients import match_gradients
from iadd_lab.baselines.real_images import herding, random_draws, whole_set
from iadd_lab.data.augment import AugmentConfig
from iadd_lab.data.distilled import DistilledSet
from iadd_lab.data.preprocess import Preprocess, preprocess_fingerprint
from iadd_lab.data.sets import ImageData
from iadd_lab.device import Execution
from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.matching import Learned, Matching, Pruned, Uniform
from iadd_lab.errors import require
from iadd_lab.study.settings import Setting
from iadd_lab.training.teachers import Teachers


class Ingredients(Protocol):
    """What a method is made from: a `Study` has it."""

    how: Execution

    def data(self, setting: Setting) -> ImageData: ...
    def preprocess(self, setting: Setting) -> Preprocess: ...
    def teachers(self, setting: Setting) -> Teachers: ...
    def folder(self, setting: Setting, method: str, *parts: object) -> Path: ...


# Makes what the networks of one evaluation are trained on: one set for all, or one for each of them.
MakeSets = Callable[[Ingredients, Setting, int], Sequence[DistilledSet]]


@dataclass(frozen=True)
class Method:
    """One row of a table: give it `matching` if it matches parameters, else `sets`.

    Args:
        title: its name in tables and pictures, as published tables have it.
        matching: what it matches parameters by, as that follows from a setting.
        sets: makes the distilled set of a number, for a method that matches no parameters.
        competes: whether it may be the best of its column; the whole training set does not.
        counted: what stands behind a number, with {sets} and {networks} of each to fill in.
        epochs: the field of a setting that says how long networks train on it.
        iterations: the field of a setting that is None where the method is left out; "" for none.
        teacher_each: whether every set takes a teacher of its own.
        seeded: whether another seed makes another set; where it does not, one set stands for all.
        changes: fields of the setting that it has of its own, where it matches parameters.
    """

    title: str
    matching: Callable[[Setting], Matching] | None = None
    sets: MakeSets | None = None
    competes: bool = True
    counted: str = "{sets} × {networks}"
    epochs: str = "evaluation_epochs"
    iterations: str = ""
    teacher_each: bool = False
    seeded: bool = True
    changes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        sentence = f"method {self.title!r} needs either matching or sets: give it one of them."
        require((self.matching is None) != (self.sets is None), sentence)

    @property
    def needs_teachers(self) -> bool:
        """Whether its sets are made with teachers."""
        return self.matching is not None or self.teacher_each

    def seeds(self, setting: Setting) -> int:
        """How many sets a cell of the setting is measured on."""
        return setting.seeds if self.seeded else 1

    def left_out(self, setting: Setting) -> bool:
        """Whether the setting does without this method."""
        return bool(self.iterations) and getattr(setting, self.iterations) is None

    def distillation(self, setting: Setting, *, number: int = 0) -> DistillConfig:
        """Matching parameters by this method, for the distilled set `number`."""
        return replace(setting, **self.changes).distillation(self.matching(setting), number=number)

    def check(self, setting: Setting) -> None:
        """Raise an `InputError` unless the setting has what the method needs."""
        seeds, teachers = setting.seeds, setting.teacher_count
        sentence = f"seeds is {seeds}, but {self.title} takes a teacher for each set, and teacher_count is"
        sentence += f" {teachers}: lower seeds, or raise teacher_count."
        require(not self.teacher_each or seeds <= teachers, sentence)
        if self.matching is not None:
            self.distillation(setting)


def _random(study: Ingredients, setting: Setting, number: int) -> list[DistilledSet]:
    # Another draw for each network: the spread covers the choice as well.
    draws = {"ipc": setting.ipc, "count": setting.evaluation_networks, "seed": setting.seed + number}
    return random_draws(study.data(setting), study.preprocess(setting), **draws)


def _herding(study: Ingredients, setting: Setting, number: int) -> list[DistilledSet]:
    # The features of another teacher for every seed: nothing else about it is random.
    options = {"ipc": setting.ipc, "teacher": number, "how": study.how}
    return [herding(study.data(setting), study.teachers(setting), **options)]


def _whole(study: Ingredients, setting: Setting, number: int) -> list[DistilledSet]:
    return [whole_set(study.data(setting), study.preprocess(setting))]


def _descended(
    study: Ingredients, setting: Setting, number: int, *, name: str, make: Callable, config: Callable
) -> list[DistilledSet]:
    """A set that `make` distils, on networks of its own, as `config` makes it of the setting."""
    data, preprocess, network = study.data(setting), study.preprocess(setting), setting.network()
    own = config(setting, number=number)
    folder = study.folder(setting, name, own, network, preprocess_fingerprint(preprocess))
    return [make(data, preprocess, network, own, folder=folder, how=study.how)]


def _by_gradients(title: str, name: str, augment: AugmentConfig | None) -> Method:
    config = partial(Setting.gradient_matching, augment=augment)
    sets = partial(_descended, name=name, make=match_gradients, config=config)
    return Method(title, sets=sets, iterations="gradient_matching_iterations")


def _learned(title: str, **options: object) -> Method:
    """IADD at the setting's rate, with `options`; what is a function makes its value of the setting."""

    def matching(setting: Setting) -> Learned:
        own = {name: make(setting) if callable(make) else make for name, make in options.items()}
        return Learned(**{"rate": setting.weight_rate} | own)

    return Method(title, matching)


def _mtt(title: str, **changes: object) -> Method:
    return Method(title, lambda setting: Uniform(), changes=changes)


def _half_way(setting: Setting) -> int:
    return setting.iterations // 2


def _tenfold(setting: Setting) -> float:
    return 10 * setting.weight_rate


_BY_MEANS = partial(_descended, name="dm", make=match_distributions, config=Setting.distribution_matching)

_OWN = "{networks}, own number of epochs"

METHODS: dict[str, Method] = {
    "random": Method("Random", sets=_random, counted="{all} draws, a network on each"),
    "herding": Method("Herding", sets=_herding, teacher_each=True),
    "dc": _by_gradients("DC", "dc", AugmentConfig(operations=())),
    "dsa": _by_gradients("DSA", "dsa", None),
    "dm": Method("DM", sets=_BY_MEANS, iterations="distribution_matching_iterations"),
    "mtt": _mtt("MTT"),
    "mtt_adam": _mtt("MTT, Adam", image_optimizer="adam", image_rate=0.1),
    "mtt_average": _mtt("MTT, average", average=0.99),
    "mtt_soft": _mtt("MTT, soft labels", labels="soft"),
    "mtt_formation": _mtt("MTT, multi-formation", factor=2),
    "recipe": _mtt("MTT, multi-formation, Adam", factor=2, image_optimizer="adam", image_rate=0.1),
    "ddpp": Method("DDPP", lambda setting: Pruned(fraction=setting.prune_fraction)),
    "iadd": _learned("IADD"),
    "iadd_literal": _learned("IADD, literal loss", normalised=False),
    "iadd_tensor": _learned("IADD, per tensor", granularity="tensor"),
    "iadd_frozen": _learned("IADD, frozen half-way", learn_until=_half_way),
    "iadd_late": _learned("IADD, learned from half-way", learn_from=_half_way),
    # A division, since times 0.1 has another last digit, and so another fingerprint.
    "iadd_slow": _learned("IADD, a tenth of the rate", rate=lambda setting: setting.weight_rate / 10),
    "iadd_fast": _learned("IADD, ten times the rate", rate=_tenfold),
    "iadd_band": _learned("IADD, ten times the rate, within 1.5", rate=_tenfold, limit=1.5),
    "iadd_ascent": _learned("IADD, ascent", ascend=True),
    "iadd_relative": _learned("IADD, relative to the movement", relative=True),
    "iadd_within": _learned("IADD, within tensors", mean_over="tensor"),
    "whole": Method("Whole", sets=_whole, competes=False, seeded=False, epochs="whole_epochs", counted=_OWN),
}
