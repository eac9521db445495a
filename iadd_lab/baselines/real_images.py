"""What a distilled set has to beat: real images, chosen at random, chosen well, or all of them."""

import torch

from iadd_lab.data.distilled import DistilledSet
from iadd_lab.data.preprocess import Preprocess
from iadd_lab.data.sampling import check_class_sizes, draw_rows
from iadd_lab.data.sets import ImageData
from iadd_lab.device import DEFAULT, Execution, executes
from iadd_lab.errors import check_number, check_whole
from iadd_lab.seeds import derive_seed, generator
from iadd_lab.training.networks import embed
from iadd_lab.training.teachers import Teachers


def random_real(
    data: ImageData, preprocess: Preprocess, *, ipc: int, seed: int, alpha: float = 0.01
) -> DistilledSet:
    """`ipc` random training images of each class, as they are.

    Args:
        data: the real set.
        preprocess: fitted on its training images.
        ipc: images per class, at least 1 and at most the smallest class.
        seed: of the choice.
        alpha: the learning rate to train with; 0.01 is the field's.

    Raises:
        InputError: `ipc` is out of range.
    """
    check_whole("ipc", ipc, minimum=1)
    check_class_sizes(data, ipc)
    rows = draw_rows(data, ipc, generator(seed, "random real"))
    return _real_set(data, preprocess, rows, alpha=alpha, method="random real")


def random_draws(
    data: ImageData, preprocess: Preprocess, *, ipc: int, count: int, seed: int, alpha: float = 0.01
) -> list[DistilledSet]:
    """`count` sets of random real images, each drawn anew: one for each network of an evaluation.

    Args:
        count: how many, at least 1.
        seed: of all draws; the rest is as in `random_real`.
    """
    check_whole("count", count, minimum=1)
    seeds = [derive_seed(seed, "random real", index) for index in range(count)]
    return [random_real(data, preprocess, ipc=ipc, seed=own, alpha=alpha) for own in seeds]


@executes
@torch.no_grad()
def herding(
    data: ImageData,
    teachers: Teachers,
    *,
    ipc: int,
    teacher: int = 0,
    alpha: float = 0.01,
    how: Execution = DEFAULT,
) -> DistilledSet:
    """The `ipc` training images of each class whose mean stays closest to the class's, as they are.

    Herding (Welling, ICML 2009), as iCaRL uses it (Rebuffi et al., CVPR 2017), in the features that the
    trained teacher's linear layer sees: one image after another, each the one that brings the mean of those
    chosen so far nearest to the mean of the class. Nothing is random, so another set needs another teacher.

    Args:
        data: the real set.
        teachers: trained on that very set; their preprocessing is the set's.
        ipc: images per class, at least 1 and at most the smallest class.
        teacher: the number of the one whose last snapshot gives the features.
        alpha: the learning rate to train with; 0.01 is the field's.
        how: where the features are computed.
        options: fields of `Execution` by name, as in `device="cpu"`.

    Raises:
        InputError: `ipc` or `teacher` is out of range, or the teachers are of other data.
    """
    check_whole("ipc", ipc, minimum=1)
    check_whole("teacher", teacher, minimum=0, maximum=len(teachers) - 1)
    teachers.check_data(data)
    check_class_sizes(data, ipc)
    network = teachers.network_after(teacher, teachers.config.epochs).to(how.place)
    images = teachers.preprocess.prepare(data.train.images)
    # What the linear layer sees: (count, dimensions), on the CPU.
    chunks = images.split(1024)
    features = torch.cat([embed(network, chunk.to(how.place)).detach().cpu() for chunk in chunks])
    own = [torch.nonzero(data.train.labels == label).flatten() for label in range(len(data.classes))]
    chosen = torch.cat([rows[herd(features[rows], ipc)] for rows in own])
    return _real_set(data, teachers.preprocess, chosen, alpha=alpha, method="herding")


def herd(features: torch.Tensor, count: int) -> torch.Tensor:
    """The rows that herding picks, in its order, each at most once: (count,) int64.

    Args:
        features: (images, dimensions); the mean to stay close to is theirs.
        count: at most as many as there are images.
    """
    features = features.to(torch.float64, copy=True)
    mean, chosen_sum = features.mean(0), torch.zeros_like(features[0])  # (dimensions,) each
    picks: list[int] = []
    for number in range(1, count + 1):
        # ‖mean − (chosen_sum + x) / k‖ is smallest for the x that is nearest to k · mean − chosen_sum.
        distances = (features - (number * mean - chosen_sum)).square().sum(1)  # (images,)
        picks.append(int(distances.argmin()))
        chosen_sum += features[picks[-1]]
        features[picks[-1]] = torch.inf  # nearest to nothing any more
    return torch.tensor(picks)


def whole_set(data: ImageData, preprocess: Preprocess, *, alpha: float = 0.01) -> DistilledSet:
    """All training images: what a distilled set can hardly do better than.

    Where classes differ in size so do they here, and `ipc` is the whole part of their mean size.

    Args:
        data: the real set.
        preprocess: fitted on its training images.
        alpha: the learning rate to train with; 0.01 is the field's.
    """
    return _real_set(data, preprocess, torch.arange(len(data.train)), alpha=alpha, method="whole set")


def _real_set(
    data: ImageData, preprocess: Preprocess, rows: torch.Tensor, *, alpha: float, method: str
) -> DistilledSet:
    """The training images at `rows`, as a set to train on."""
    check_number("alpha", alpha, above=True)
    images, labels = preprocess.apply(data.train.images[rows]), data.train.labels[rows]
    return DistilledSet.of(data, preprocess, images=images, labels=labels, alpha=alpha, method=method)
