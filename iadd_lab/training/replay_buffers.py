"""Expert trajectories of others: MTT's `replay_buffer_N.pt` files, read safely and made our own."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from tqdm import tqdm

from iadd_lab.data.mtt_format import warn_of_class_order
from iadd_lab.data.sets import ImageData
from iadd_lab.device import DEFAULT, Execution, executes
from iadd_lab.errors import require
from iadd_lab.store.foreign_files import load_safely
from iadd_lab.store.locks import locked_folder
from iadd_lab.training.networks import NetworkConfig, ParameterLayout, network_for
from iadd_lab.training.student import StudentLoss
from iadd_lab.training.teachers import TeacherConfig, Teachers, open_teachers, prepare_teachers

logger = logging.getLogger(__name__)


def read_replay_buffer(path: Path) -> list[list[list[torch.Tensor]]]:
    """Others' expert trajectories, as MTT's code stores them in `replay_buffer_N.pt`.

    Returns:
        trajectories, each a list of snapshots, each a list of parameter tensors in the network's order.

    Raises:
        InputError: the file is missing, not such a buffer, or holds anything but tensors. It is read by
            PyTorch's weights-only loader, so no code in it ever runs.
    """
    buffer = load_safely(path, expected="a replay_buffer_N.pt")
    fits = _is_nested(buffer, 3)
    require(fits, f"{path} is not a list of trajectories of lists of tensors: expected MTT's format.")
    return buffer


def _is_nested(value: object, levels: int) -> bool:
    """Whether these are tensors in lists in lists …, none of which is empty."""
    if levels == 0:
        return isinstance(value, torch.Tensor)
    return isinstance(value, list) and bool(value) and all(_is_nested(inner, levels - 1) for inner in value)


@executes
@locked_folder("folder")
def import_replay_buffers(
    paths: Sequence[Path], data: ImageData, config: TeacherConfig, folder: Path, *, how: Execution = DEFAULT
) -> Teachers:
    """Convert others' `replay_buffer_N.pt` files into teachers of our own, in `folder`.

    Each one's last snapshot is tried on the validation images, and its accuracy is stored as that of teachers
    trained here. It shows whether they fit, no more: others trained on those images as well. A warning is
    logged where most are near chance.

    Args:
        paths: the files, all of one network, or folders whose `replay_buffer_N.pt` files are taken.
        data: the real set that they were trained on.
        config: the network and preprocessing that they were trained with; its `epochs` is replaced by the
            length of the shortest trajectory, to which all others are cut.
        folder: where the teachers go.
        how: where the last snapshots are tried, and whether there are progress bars.
        options: fields of `Execution` by name, as in `device="cpu"`.

    Raises:
        InputError: as `read_replay_buffer`, or the parameters do not fit the network, or do not move.
    """
    paths = [file for path in paths for file in _buffers_at(Path(path))]
    require(len(paths) > 0, "no replay buffers were given: pass at least one replay_buffer_N.pt.")
    is_new = not list(Path(folder).glob("teacher_*"))
    require(is_new, f"{folder} holds teachers already: import into a folder of its own.")
    # Every file is checked before the first trajectory is written.
    checked = tqdm(paths, desc="check", disable=not how.progress)
    layout = ParameterLayout.of(network_for(data, config.network, seed=0))
    lengths = [length for path in checked for length in _checked_lengths(path, layout, config.network)]
    least, most = min(lengths), max(lengths)
    if least < most:
        logger.warning(f"the trajectories have from {least} to {most} snapshots: the first {least} are kept.")
    # Others fitted on all training images or took constants (see `mtt_format.FITS`), but the teachers'
    # identity says nothing of the fitted numbers: two fits would pass for one wherever results are reused.
    teachers = prepare_teachers(data, replace(config, epochs=least - 1), Path(folder))
    warn_of_class_order(data)
    images = teachers.preprocess.prepare(data.validation.images.to(how.place))
    loss, accuracies = StudentLoss(teachers.network(0)), []
    named = ((path.name, trajectory[:least]) for path in paths for trajectory in read_replay_buffer(path))
    bar = tqdm(named, total=len(lengths), desc="import", unit="teacher", disable=not how.progress)
    for index, (source, trajectory) in enumerate(bar):
        stacked = torch.stack([layout.flatten(s) for s in trajectory]).float()  # (epochs + 1, P)
        # Batch norm goes by the batch here: the files hold no running statistics.
        last = stacked[-1].detach().to(images.device)
        right = loss.predict(last, images) == data.validation.labels
        accuracies.append(right.double().mean().item())
        history = {"source": source, "validation_accuracy": accuracies[-1]}
        teachers.save(index, stacked.detach(), history=history)
    _warn_near_chance(accuracies, chance=1 / len(data.classes))
    return open_teachers(folder)


def _warn_near_chance(accuracies: Sequence[float], *, chance: float) -> None:
    limit = chance + min(chance / 2, 0.1)  # 0.75 of two classes would be far from guessing
    near = sum(accuracy < limit for accuracy in accuracies)
    if 2 * near > len(accuracies):
        logger.warning(
            f"{near} of {len(accuracies)} imported teachers have less than {100 * limit:.1f} % validation "
            f"accuracy, and guessing {100 * chance:.1f} %: classes or preprocessing of the buffers may "
            "differ from ours; compare the order of the classes, and import again if they were trained with "
            "another preprocess."
        )


def _buffers_at(path: Path) -> list[Path]:
    """The file, or those of a folder in the order of their numbers, without what else lies there."""
    found = path.glob("replay_buffer_*.pt") if path.is_dir() else [path]
    return sorted(found, key=lambda file: (len(file.name), file.name))


def _checked_lengths(path: Path, layout: ParameterLayout, network: NetworkConfig) -> list[int]:
    """The number of snapshots of every trajectory, each required to fit the network and to move."""
    buffer = read_replay_buffer(path)
    for snapshot in (snapshot for trajectory in buffer for snapshot in trajectory):
        shapes = tuple(tuple(tensor.shape) for tensor in snapshot)
        require(
            shapes == layout.shapes,
            f"{path} does not fit the network {network}: its {len(shapes)} tensors start "
            f"with {shapes[:2]}, expected {len(layout.shapes)} starting with {layout.shapes[:2]}; pass the "
            "network that the teachers were trained with.",
        )
        finite = all(bool(tensor.isfinite().all()) for tensor in snapshot)
        mend = "that training diverged, leave the file out"
        require(finite, f"{path} holds parameters that are not finite: {mend}.")
    for number, trajectory in enumerate(buffer):
        where = f"trajectory {number} of {path}"
        require(len(trajectory) > 1, f"{where} has one snapshot: record the start and the end of each epoch.")
        still = any(all(map(torch.equal, *pair)) for pair in pairwise(trajectory))
        why = "p.detach().cpu() copies nothing on a CPU, so that all become the last one"
        require(not still, f"{where} repeats a snapshot ({why}): record it again with .clone().")
    return [len(trajectory) for trajectory in buffer]
