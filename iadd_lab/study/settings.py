"""A column of a table: everything that its methods share, as flat values that a notebook can hold."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from iadd_lab.baselines.features import DistributionMatchingConfig
from iadd_lab.baselines.gradients import GradientMatchingConfig
from iadd_lab.data.augment import AugmentConfig
from iadd_lab.data.parametrisation import MultiFormation, Parametrisation, Pixels
from iadd_lab.data.sets import DATASETS, DataConfig
from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.matching import Learned, Matching, Pruned
from iadd_lab.errors import check_whole, require
from iadd_lab.evaluation.protocol import EvaluateConfig
from iadd_lab.training.networks import NetworkConfig
from iadd_lab.training.teachers import TeacherConfig


def _goes(default: Any, *same: str, **renamed: str) -> Any:
    """A field, and the parts of a setting that it goes into: under the `same` name, or under another one."""
    return dataclasses.field(default=default, metadata=dict.fromkeys(same) | renamed)


@dataclass(frozen=True)
class Setting:
    """Data, teachers, scale and evaluation of one column; the defaults are MTT's for CIFAR-10 at IPC 1.

    Each value is declared once, with the configurations that it goes into, which check it.

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
        segments: pieces of trajectories in each iteration, whose gradients are averaged.
        batch: distilled images per student step; None takes all.
        gradient: the engine, a key of `unroll.ENGINES`.
        image_rate: learning rate of the images.
        image_optimizer: "sgd" or "adam".
        average: decay of the average of the images; 0 takes the last images.
        labels: "hard" or "soft".
        label_rate: learning rate of soft labels.
        factor: small images along a side of a stored one (`MultiFormation`); 1 stores pixels.
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

    data_name: str = _goes("cifar10", data="name")
    size: int | None = _goes(None, "data")
    train_limit: int | None = _goes(None, "data")
    width: int = _goes(128, "network")
    depth: int | None = _goes(None, "network")
    preprocess: str = _goes("standardise", "teachers")
    teacher_count: int = 100
    teacher_training_epochs: int = _goes(50, teachers="epochs")
    teacher_rate: float = _goes(0.01, teachers="rate")
    teacher_batch: int = _goes(256, teachers="batch")
    ipc: int = _goes(1, "distillation", "gradients", "features")
    iterations: int = _goes(5000, "distillation")
    student_steps: int = _goes(50, "distillation")
    teacher_epochs: int = _goes(2, "distillation")
    max_start_epoch: int = _goes(2, "distillation")
    segments: int = _goes(1, "distillation")
    batch: int | None = _goes(None, "distillation")
    gradient: str = _goes("adjoint", "distillation")
    image_rate: float = _goes(100.0, "distillation")
    image_optimizer: str = _goes("sgd", "distillation")
    average: float = _goes(0.0, "distillation")
    labels: str = _goes("hard", "distillation")
    label_rate: float = _goes(5.0, "distillation")
    factor: int = 1
    alpha: float = _goes(0.01, "distillation")
    alpha_rate: float = _goes(1e-7, "distillation")
    weight_rate: float = 3e-3
    prune_fraction: float = 0.1
    gradient_matching_iterations: int | None = _goes(1000, gradients="iterations")
    gradient_matches: int | None = _goes(None, gradients="matches_per_network")
    gradient_network_steps: int | None = _goes(None, gradients="network_steps")
    gradient_image_rate: float = _goes(0.1, gradients="image_rate")
    distribution_matching_iterations: int | None = _goes(20000, features="iterations")
    distribution_image_rate: float = _goes(1.0, features="image_rate")
    real_batch: int = _goes(256, "gradients", "features")
    evaluation_networks: int = _goes(5, evaluation="networks")
    evaluation_epochs: int = _goes(1000, evaluation="epochs")
    evaluation_rate: float | None = _goes(None, evaluation="rate")
    whole_epochs: int = 50
    seeds: int = 1
    seed: int = _goes(0, "distillation", "gradients", "features", "evaluation")

    def __post_init__(self):
        for name in ("teacher_count", "whole_epochs", "seeds", "width", "factor"):
            check_whole(name, getattr(self, name), minimum=1)
        check_whole("seed", self.seed, minimum=0)
        self.distillation(Learned(rate=self.weight_rate))
        self.distillation(Pruned(fraction=self.prune_fraction))
        for part in (self.data, self.teachers, self.evaluation):
            part()
        if self.gradient_matching_iterations is not None:
            self.gradient_matching(AugmentConfig())
        if self.distribution_matching_iterations is not None:
            self.distribution_matching()
        reached, epochs = self.max_start_epoch - 1 + self.teacher_epochs, self.teacher_training_epochs
        sentence = f"max_start_epoch and teacher_epochs reach epoch {reached}, but teacher_training_epochs is"
        require(reached <= epochs, f"{sentence} {epochs}: raise it, or lower either.")

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
        return DataConfig(**self._part("data"))

    def network(self) -> NetworkConfig:
        """The ConvNet of teachers, students and evaluation."""
        return NetworkConfig(**self._part("network"))

    def teachers(self) -> TeacherConfig:
        """How teachers are trained. It does not depend on `seed`: all seeds share the teachers."""
        return TeacherConfig(network=self.network(), **self._part("teachers"))

    def distillation(self, matching: Matching, *, number: int = 0) -> DistillConfig:
        """Matching parameters with `matching`, for the distilled set `number`."""
        own = self._part("distillation", number)
        return DistillConfig(matching=matching, parametrisation=self.parametrisation, **own)

    @property
    def parametrisation(self) -> Parametrisation:
        """How images are stored that are made by matching parameters."""
        return Pixels() if self.factor == 1 else MultiFormation(self.factor)

    def gradient_matching(self, augment: AugmentConfig | None, *, number: int = 0) -> GradientMatchingConfig:
        """DC without augmentation, DSA with it, for the distilled set `number`."""
        return GradientMatchingConfig(augment=augment, **self._part("gradients", number))

    def distribution_matching(self, *, number: int = 0) -> DistributionMatchingConfig:
        """DM, for the distilled set `number`."""
        return DistributionMatchingConfig(**self._part("features", number))

    def evaluation(
        self, *, network: NetworkConfig | None = None, split: str = "test", number: int = 0
    ) -> EvaluateConfig:
        """How the distilled set `number` is evaluated; None is the ConvNet distilled with."""
        own = self._part("evaluation", number)
        return EvaluateConfig(network=network or self.network(), split=split, **own)

    def _part(self, part: str, number: int = 0) -> dict[str, Any]:
        """The values that go into `part`, by their names there; the seed is that of the set `number`."""
        check_whole("number", number, minimum=0)
        own = [field for field in dataclasses.fields(self) if part in field.metadata]
        values = {field.metadata[part] or field.name: getattr(self, field.name) for field in own}
        return values | {"seed": self.seed + number} if "seed" in values else values
