"""A column of a table: everything that its methods share, as flat values that a notebook can hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from iadd_lab.baselines.features import DistributionMatchingConfig
from iadd_lab.baselines.gradients import GradientMatchingConfig
from iadd_lab.data.augment import AugmentConfig
from iadd_lab.data.sets import DATASETS, DataConfig
from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.matching import Learned, Matching, Pruned, Uniform
from iadd_lab.errors import check_whole, choose, require
from iadd_lab.evaluation.protocol import EvaluateConfig
from iadd_lab.training.networks import NetworkConfig
from iadd_lab.training.teachers import TeacherConfig

# How each member of the family of parameter matching follows from a setting.
MATCHING_OF: dict[str, Callable[[Setting], Matching]] = {
    "mtt": lambda setting: Uniform(),
    "ddpp": lambda setting: Pruned(fraction=setting.prune_fraction),
    "iadd": lambda setting: Learned(rate=setting.weight_rate),
    "iadd_literal": lambda setting: Learned(rate=setting.weight_rate, normalised=False),
    "iadd_tensor": lambda setting: Learned(rate=setting.weight_rate, granularity="tensor"),
    "iadd_frozen": lambda setting: Learned(rate=setting.weight_rate, learn_until=setting.iterations // 2),
    "iadd_late": lambda setting: Learned(rate=setting.weight_rate, learn_from=setting.iterations // 2),
    "iadd_slow": lambda setting: Learned(rate=setting.weight_rate / 10),
    "iadd_fast": lambda setting: Learned(rate=setting.weight_rate * 10),
    "iadd_band": lambda setting: Learned(rate=setting.weight_rate * 10, limit=1.5),
    "iadd_ascent": lambda setting: Learned(rate=setting.weight_rate, ascend=True),
    "iadd_within": lambda setting: Learned(rate=setting.weight_rate, mean_over="tensor"),
}


@dataclass(frozen=True)
class Setting:
    """Data, teachers, scale and evaluation of one column; the defaults are MTT's for CIFAR-10 at IPC 1.

    The names are those of the notebooks' parameters. Each value is checked by the configuration that it
    becomes a part of.

    Args:
        data_name: a key of `DATASETS`.
        size: side in pixels; None is the set's own.
        train_limit: use so many training images at most.
        width: filters per block of the ConvNet.
        depth: its blocks; None goes by the images' size.
        preprocess: "standardise" or "zca".
        teacher_count: how many teachers.
        teacher_training_epochs: how long each is trained.
        teacher_rate: their learning rate.
        teacher_batch: their batch.
        ipc: distilled images per class.
        iterations: of matching parameters.
        student_steps: J.
        teacher_epochs: K.
        max_start_epoch: start epochs are drawn below it.
        batch: distilled images per student step; None takes all.
        gradient: the engine, a key of `unroll.ENGINES`.
        image_rate: learning rate of the images.
        alpha: the student's learning rate at the start.
        alpha_rate: learning rate of that learning rate.
        weight_rate: of the descent on W.
        prune_fraction: of the parameters that DDPP drops.
        gradient_matching_iterations: of DC and DSA, each with a fresh network; None leaves both out.
        gradient_matches: of DC and DSA per network; None is the papers' number at this IPC.
        gradient_network_steps: of DC's and DSA's network between two matches; None is the papers' number.
        gradient_image_rate: learning rate of DC's and DSA's images.
        distribution_matching_iterations: of DM, each with a fresh network; None leaves it out.
        distribution_image_rate: learning rate of DM's images.
        real_batch: real images of a class per match of DC, DSA and DM.
        evaluation_networks: fresh networks per distilled set.
        evaluation_epochs: that each is trained on the set.
        evaluation_rate: their learning rate on every set; None takes the set's own α.
        whole_epochs: as much on the whole training set.
        seeds: how many distilled sets.
        seed: the first of them.
    """

    data_name: str = "cifar10"
    size: int | None = None
    train_limit: int | None = None
    width: int = 128
    depth: int | None = None
    preprocess: str = "standardise"
    teacher_count: int = 100
    teacher_training_epochs: int = 50
    teacher_rate: float = 0.01
    teacher_batch: int = 256
    ipc: int = 1
    iterations: int = 5000
    student_steps: int = 50
    teacher_epochs: int = 2
    max_start_epoch: int = 2
    batch: int | None = None
    gradient: str = "adjoint"
    image_rate: float = 100.0
    alpha: float = 0.01
    alpha_rate: float = 1e-7
    weight_rate: float = 3e-3
    prune_fraction: float = 0.1
    gradient_matching_iterations: int | None = 1000
    gradient_matches: int | None = None
    gradient_network_steps: int | None = None
    gradient_image_rate: float = 0.1
    distribution_matching_iterations: int | None = 20000
    distribution_image_rate: float = 1.0
    real_batch: int = 256
    evaluation_networks: int = 5
    evaluation_epochs: int = 1000
    evaluation_rate: float | None = None
    whole_epochs: int = 50
    seeds: int = 1
    seed: int = 0

    def __post_init__(self):
        check_whole("teacher_count", self.teacher_count, minimum=1)
        check_whole("whole_epochs", self.whole_epochs, minimum=1)
        check_whole("seeds", self.seeds, minimum=1)
        check_whole("seed", self.seed, minimum=0)
        check_whole("width", self.width, minimum=1)
        for method in MATCHING_OF:
            self.distillation(method)
        for part in (self.data, self.teachers, self.evaluation):
            part()
        if self.gradient_matching_iterations is not None:
            self.gradient_matching(AugmentConfig())
        if self.distribution_matching_iterations is not None:
            self.distribution_matching()
        used = self.max_start_epoch - 1 + self.teacher_epochs
        require(
            used <= self.teacher_training_epochs,
            f"max_start_epoch {self.max_start_epoch} and teacher_epochs {self.teacher_epochs} reach epoch "
            f"{used}, but teacher_training_epochs is {self.teacher_training_epochs}: "
            "raise it, or lower either.",
        )

    @property
    def title(self) -> str:
        """What it is, for headings: "CIFAR-10, IPC 1"."""
        return f"{self.data_title}, IPC {self.ipc}"

    @property
    def data_title(self) -> str:
        """The data set's name in text, with the number of pixels where it is not the usual one."""
        spec = DATASETS[self.data_name]
        return spec.title if self.size in (None, spec.size) else f"{spec.title} ({self.size} px)"

    @property
    def data_key(self) -> str:
        """The same for files and columns of data: "cifar10", or "cifar10_16px"."""
        usual = self.size in (None, DATASETS[self.data_name].size)
        return self.data_name if usual else f"{self.data_name}_{self.size}px"

    def data(self) -> DataConfig:
        """What is loaded. It does not depend on `seed`: all seeds share one validation split."""
        return DataConfig(self.data_name, size=self.size, train_limit=self.train_limit)

    def network(self) -> NetworkConfig:
        """The ConvNet of teachers, students and evaluation."""
        return NetworkConfig(width=self.width, depth=self.depth)

    def teachers(self) -> TeacherConfig:
        """How teachers are trained. It does not depend on `seed`: all seeds share the teachers."""
        return TeacherConfig(
            network=self.network(),
            preprocess=self.preprocess,
            epochs=self.teacher_training_epochs,
            rate=self.teacher_rate,
            batch=self.teacher_batch,
        )

    def distillation(self, method: str, *, number: int = 0) -> DistillConfig:
        """Parameter matching by `method` (a key of `MATCHING_OF`), for the distilled set `number`."""
        return DistillConfig(
            ipc=self.ipc,
            iterations=self.iterations,
            student_steps=self.student_steps,
            teacher_epochs=self.teacher_epochs,
            max_start_epoch=self.max_start_epoch,
            batch=self.batch,
            gradient=self.gradient,
            image_rate=self.image_rate,
            alpha=self.alpha,
            alpha_rate=self.alpha_rate,
            matching=choose("method of parameter matching", method, MATCHING_OF)(self),
            seed=self.seed + number,
        )

    def gradient_matching(self, augment: AugmentConfig | None, *, number: int = 0) -> GradientMatchingConfig:
        """DC without augmentation, DSA with it, for the distilled set `number`."""
        return GradientMatchingConfig(
            ipc=self.ipc,
            iterations=self.gradient_matching_iterations,
            matches_per_network=self.gradient_matches,
            network_steps=self.gradient_network_steps,
            image_rate=self.gradient_image_rate,
            real_batch=self.real_batch,
            augment=augment,
            seed=self.seed + number,
        )

    def distribution_matching(self, *, number: int = 0) -> DistributionMatchingConfig:
        """DM, for the distilled set `number`."""
        return DistributionMatchingConfig(
            ipc=self.ipc,
            iterations=self.distribution_matching_iterations,
            image_rate=self.distribution_image_rate,
            real_batch=self.real_batch,
            seed=self.seed + number,
        )

    def evaluation(
        self, *, network: NetworkConfig | None = None, split: str = "test", number: int = 0
    ) -> EvaluateConfig:
        """How the distilled set `number` is evaluated; None is the ConvNet distilled with."""
        return EvaluateConfig(
            network=network or self.network(),
            networks=self.evaluation_networks,
            epochs=self.evaluation_epochs,
            rate=self.evaluation_rate,
            split=split,
            seed=self.seed + number,
        )


def columns(*, only: Sequence[int] | None = None, **values: Any) -> tuple[Setting, ...]:
    """One setting for each column: a list holds one value for each, anything else is shared by all.

    `columns(data_name="cifar10", ipc=[1, 10], student_steps=[50, 30])` is two settings.

    Args:
        only: positions, from 0, of the columns to give; None gives all.
        values: fields of `Setting`.

    Raises:
        InputError: a name is not a field of `Setting`, lists differ in length, a value is out of range, two
            columns have the same data and IPC, or `only` has something else than positions of columns.
    """
    fields = {field.name: field for field in dataclasses.fields(Setting)}
    for name in values:
        choose("parameter of a setting", name, fields)
    lengths = {name: len(value) for name, value in values.items() if isinstance(value, (list, tuple))}
    require(
        len(set(lengths.values())) <= 1 and 0 not in lengths.values(),
        "parameters with one value per column must all have as many: "
        + ", ".join(f"{name} has {length}" for name, length in lengths.items())
        + ".",
    )
    count = max(lengths.values(), default=1)
    chosen = range(count) if only is None else only
    require(
        isinstance(chosen, (range, list, tuple)) and len(chosen) > 0 and set(chosen) <= set(range(count)),
        f"only is {only!r}; it must be a list of positions from 0 to {count - 1}.",
    )
    made = {
        index: Setting(**{name: value[index] if name in lengths else value for name, value in values.items()})
        for index in chosen
    }
    _check_apart(made)
    return tuple(made.values())


def _check_apart(settings: dict[int, Setting]) -> None:
    """Tables and files name a column by its data and IPC alone."""
    seen: dict[tuple[str, int], int] = {}
    for index, setting in settings.items():
        first = seen.setdefault((setting.data_key, setting.ipc), index)
        require(
            first == index,
            f"columns {first} and {index} are both {setting.title}: give ipc or data_name a value for each, "
            "or pick one of them with only_columns.",
        )
