"""Is what a student does not match mere luck? A teacher's epochs trained again, in another order.

Two teachers that go on from the same parameters end in different places, since batches and augmentations
are drawn anew. How far apart they end, beside how far they went, is the share of a teacher's way that is
luck: no student can be asked for it. What is left of a student's difference beyond it is signal that the
distilled images do not carry.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from tqdm import tqdm

from iadd_lab.data.sets import ImageData
from iadd_lab.device import DEFAULT, Execution, executes
from iadd_lab.errors import check_whole, require
from iadd_lab.seeds import generator
from iadd_lab.store.artefacts import load_artefact, save_artefact
from iadd_lab.store.locks import locked_folder
from iadd_lab.study.replay import ReplayedSegment
from iadd_lab.training.networks import ParameterLayout
from iadd_lab.training.teachers import Teachers

_KIND = "repeat"


@dataclass(frozen=True, eq=False)
class Repeat:
    """One stretch of a teacher's way, and the same stretch trained again."""

    start: Tensor  # θ_i, (P,)
    target: Tensor  # θ_{i+K}, (P,)
    again: Tensor  # where K epochs from θ_i in another order end, (P,)


@executes
@locked_folder("folder")
def repeat_segments(
    teachers: Teachers,
    data: ImageData,
    *,
    start_epochs: int,
    epochs: int,
    count: int | None = None,
    seed: int = 0,
    folder: Path | None = None,
    how: Execution = DEFAULT,
) -> list[Repeat]:
    """Train `epochs` epochs again from each stored epoch below `start_epochs`, in another order.

    Args:
        teachers: trained without momentum, whose state is not stored.
        data: what they were trained on.
        start_epochs: as `max_start_epoch` of a distillation; at least 1.
        epochs: K; at least 1.
        count: so many of the teachers, the first ones; None takes all.
        seed: of the other order.
        folder: where each repeat is kept as soon as it is there, and read from later: a folder for these
            teachers, epochs and seed alone. None keeps none.
        how: where they are trained, and whether a bar is shown.
        options: fields of `Execution` by name, as in `device="cpu"`.

    Raises:
        InputError: a value out of range, teachers with momentum, or another data set than theirs.
    """
    count, most = len(teachers) if count is None else count, teachers.config.epochs
    check_whole("count", count, minimum=1, maximum=len(teachers))
    check_whole("epochs", epochs, minimum=1, maximum=most)
    check_whole("seed", seed, minimum=0)
    check_whole("start_epochs", start_epochs, minimum=1, maximum=most - epochs + 1)
    given = f"the teachers' momentum is {teachers.config.momentum:g}"
    require(teachers.config.momentum == 0, f"{given}; only those without one can be continued.")
    teachers.check_data(data)
    places = [(teacher, start) for teacher in range(count) for start in range(start_epochs)]
    found = []
    for teacher, start in tqdm(places, desc="teachers again", unit="segment", disable=not how.progress):
        file = Path(folder) / f"again_{teacher:03d}_{start:03d}.safetensors" if folder else None
        if file and file.exists():
            again = load_artefact(file, kind=_KIND).tensors["again"]
        else:
            again = _train_again(teachers, data, (teacher, start), epochs, seed, how)
            made_of = {"teacher": teacher, "start_epoch": start}
            if file:
                save_artefact(file, kind=_KIND, tensors={"again": again}, metadata=made_of)
        ends = teachers.snapshot(teacher, start), teachers.snapshot(teacher, start + epochs)
        found.append(Repeat(*ends, again))
    return found


def luck_shares(repeats: Sequence[Repeat], layout: ParameterLayout) -> dict[str, float]:
    """The share of the teachers' squared movement that is luck, by tensor and, as "all", of all parameters.

    Two ends of the same start differ by two independent draws of luck: half of their squared distance
    estimates its variance. Tensors that never move have no share.
    """
    luck = _squares(each.again - each.target for each in repeats) / 2
    moved = _squares(end - each.start for each in repeats for end in (each.target, each.again)) / 2
    return _shares(luck, moved, layout)


def unmatched_shares(replayed: Sequence[ReplayedSegment], layout: ParameterLayout) -> dict[str, float]:
    """‖θ̃_{i,J} − θ_{i+K}‖² over ‖θ_i − θ_{i+K}‖², by tensor and, as "all", of all parameters.

    0 where students end with their teachers, 1 where they come no nearer than they were at the start.
    """
    left, moved = (_squares(getattr(each, of) for each in replayed) for of in ("difference", "movement"))
    return _shares(left, moved, layout)


def _squares(vectors: Iterable[Tensor]) -> Tensor:
    """The sum of the squares of all vectors, parameter by parameter: (P,) float64."""
    return sum((vector.double().square() for vector in vectors), start=0.0)


def _shares(part: Tensor, whole: Tensor, layout: ParameterLayout) -> dict[str, float]:
    parts, wholes = ({"all": each} | layout.split(each) for each in (part, whole))
    # What moves by rounding alone, as biases ahead of a norm do, has no share.
    moving = [name for name, each in wholes.items() if each.sum() > 1e-10 * whole.sum()]
    return {name: (parts[name].sum() / wholes[name].sum()).item() for name in moving}


def _train_again(
    teachers: Teachers, data: ImageData, place: tuple[int, int], epochs: int, seed: int, how: Execution
) -> Tensor:
    """Where `epochs` epochs in an order of their own end, (P,)."""
    network, order = teachers.network(0), generator(teachers.config.seed, "again", seed, *place)
    vector_to_parameters(teachers.snapshot(*place), network.parameters())
    training = teachers.training(data, network, order, epochs=epochs, how=how)
    for _ in range(epochs):
        training.advance()
    return parameters_to_vector(network.parameters()).detach().cpu()
