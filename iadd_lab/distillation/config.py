"""Everything that the result of a distillation depends on, besides the data and the teachers."""

from dataclasses import dataclass
from typing import Any

import torch

from iadd_lab.data.augment import AugmentConfig
from iadd_lab.data.parametrisation import Parametrisation, Pixels
from iadd_lab.data.sampling import INITIAL_IMAGES
from iadd_lab.distillation.matching import Learned, Matching
from iadd_lab.distillation.unroll import ENGINES
from iadd_lab.errors import check_kind, check_number, check_rate, check_whole, choose, require
from iadd_lab.store.configs import added_field

# Of the images; their rate is set before every step.
OPTIMIZERS = {
    "sgd": lambda images, momentum: torch.optim.SGD([images], momentum=momentum),
    "adam": lambda images, momentum: torch.optim.Adam([images]),
}


@dataclass(frozen=True)
class DistillConfig:
    """One distillation; the defaults are MTT's for CIFAR-10 at IPC 1, with learned importance.

    Args:
        ipc: distilled images per class.
        iterations: updates of images, α and W.
        student_steps: J, the student's steps on the distilled set in each iteration.
        teacher_epochs: K, the teacher's epochs that those J steps are to match.
        max_start_epoch: start epochs are drawn from [0, max_start_epoch).
        segments: pieces of trajectories in each iteration; gradients and losses are their means.
        batch: distilled images per student step, in an order drawn anew in each iteration; None takes all.
        image_rate: learning rate of the images.
        image_optimizer: "sgd" (with `momentum`; the field's) or "adam".
        alpha_rate: learning rate of α (SGD with `momentum`); 0 keeps α as it is.
        alpha: α before the first iteration.
        momentum: of SGD, in [0, 1).
        matching: `Uniform()` (MTT), `Pruned()` (DDPP) or `Learned()` (IADD).
        gradient: the engine, "adjoint", "full" or "frozen"; see `iadd_lab.distillation.unroll`.
        initial_images: "real" (drawn from the training images) or "noise".
        augment: differentiable siamese augmentation of every student batch; None takes the data set's own.
        back_offs: how often a loss that is not finite, or an update that would not be, may be answered by
            going back to the last good state and halving the rate at fault. After that, or at once where it
            is 0, the run stops.
        snapshots: how many states of images and W to keep, evenly spaced, first and last included.
        seed: of initial images, segments, batches and augmentation.
        parametrisation: how images are stored: `Pixels()`, or `MultiFormation()` (IDC), where networks see
            several images of each stored one. `batch` counts what networks see.
        average: decay of the average of the images over the iterations, in [0, 1), which then is the result,
            as in FTD (Du et al., CVPR 2023) and ATT; 0 takes the last images. The literature's is 0.999 to
            0.9999 for thousands of iterations.
        labels: "hard", or "soft": logits of all classes for every image that networks see, learned with the
            images, from those of the teachers that classify it rightly (DATM; Guo et al., ICLR 2024).
        label_rate: learning rate of soft labels (DATM: 5 at IPC 1, 2 at more); 0 keeps them as they are.
        label_momentum: of their SGD, in [0, 1).
    """

    ipc: int = 1
    iterations: int = 5000
    student_steps: int = 50
    teacher_epochs: int = 2
    max_start_epoch: int = 2
    segments: int = 1
    batch: int | None = None
    image_rate: float = 100.0
    image_optimizer: str = "sgd"
    alpha_rate: float = 1e-7
    alpha: float = 0.01
    momentum: float = 0.5
    matching: Matching = Learned()
    gradient: str = "adjoint"
    initial_images: str = "real"
    augment: AugmentConfig | None = None
    back_offs: int = added_field(5)
    snapshots: int = 11
    seed: int = 0
    parametrisation: Parametrisation = added_field(Pixels())
    average: float = added_field(0.0)
    labels: str = added_field("hard")
    label_rate: float = added_field(5.0)
    label_momentum: float = added_field(0.9)

    def __post_init__(self):
        check_images(self)
        for name in ("student_steps", "teacher_epochs", "max_start_epoch", "segments"):
            check_whole(name, getattr(self, name), minimum=1)
        if self.batch is not None:
            check_whole("batch", self.batch, minimum=1)
        check_rate("alpha_rate", self.alpha_rate, above=False)
        check_rate("label_rate", self.label_rate, above=False)
        check_number("label_momentum", self.label_momentum, maximum=0.999)
        choose("labels", self.labels, dict.fromkeys(("hard", "soft")))
        check_rate("alpha", self.alpha)
        choose("image_optimizer", self.image_optimizer, OPTIMIZERS)
        choose("gradient", self.gradient, ENGINES)
        check_whole("snapshots", self.snapshots, minimum=2)
        check_number("average", self.average, maximum=0.99999)
        for name, kind in {"matching": Matching, "parametrisation": Parametrisation}.items():
            value, known = (
                getattr(self, name),
                " or ".join(f"{each.__name__}()" for each in kind.__subclasses__()),
            )
            fits = isinstance(value, kind) and type(value) is not kind
            require(fits, f"{name} is {value!r}; it must be a {kind.__name__}, as in {known}.")

    @property
    def shown_ipc(self) -> int:
        """Images per class that networks see: those of the `ipc` stored ones."""
        return self.ipc * self.parametrisation.views


def check_images(config: Any) -> None:
    """Check the fields that every configuration of a descent of images has.

    Raises:
        InputError: naming one and its value.
    """
    for name, minimum in {"ipc": 1, "iterations": 1, "back_offs": 0, "seed": 0}.items():
        check_whole(name, getattr(config, name), minimum=minimum)
    check_rate("image_rate", config.image_rate)
    check_number("momentum", config.momentum, maximum=0.999)
    choose("initial_images", config.initial_images, INITIAL_IMAGES)
    check_kind("augment", config.augment, AugmentConfig, optional=True)
