"""Expert trajectories of others: MTT's `replay_buffer_N.pt` files, read safely and made our own."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from iadd_lab.data.mtt_format import warn_of_class_order
from iadd_lab.data.sets import ImageData
from iadd_lab.device import DEFAULT, Execution, executes
from iadd_lab.errors import require
from iadd_lab.store.foreign_files import load_safely
from iadd_lab.store.locks import locked_folder
from iadd_lab.training.sgd import predict
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
        paths: the files, all of one network and one length.
        data: the real set that they were trained on.
        config: the network and preprocessing that they were trained with; its `epochs` is replaced by the
            length of the trajectories found.
        folder: where the teachers go.
        how: where the last snapshots are tried, and whether there are progress bars.
        options: fields of `Execution` by name, as in `device="cpu"`.

    Raises:
        InputError: as `read_replay_buffer`, or the parameters do not fit the network.
    """
    require(len(paths) > 0, "no replay buffers were given: pass at least one replay_buffer_N.pt.")
    is_new = not list(Path(folder).glob("teacher_*"))
    require(is_new, f"{folder} holds teachers already: import into a folder of its own.")
    epochs = len(read_replay_buffer(paths[0])[0]) - 1
    # Others fitted on all training images or took constants (see `mtt_format.FITS`), but the teachers'
    # identity says nothing of the fitted numbers: two fits would pass for one wherever results are reused.
    teachers = prepare_teachers(data, replace(config, epochs=epochs), Path(folder))
    # Every file is checked before the first trajectory is written.
    checked = tqdm(paths, desc="check", disable=not how.progress)
    count = sum(_check_buffer(path, read_replay_buffer(path), teachers) for path in checked)
    warn_of_class_order(data)
    images = teachers.preprocess.apply(data.validation.images.to(how.place))
    accuracies: list[float] = []
    named = ((Path(path).name, trajectory) for path in paths for trajectory in read_replay_buffer(path))
    bar = tqdm(named, total=count, desc="import", unit="teacher", disable=not how.progress)
    for index, (source, trajectory) in enumerate(bar):
        stacked = torch.stack([teachers.layout.flatten(s) for s in trajectory]).float()  # (epochs + 1, P)
        network = teachers.network(0).to(images.device)
        network.load_state_dict(teachers.layout.split(stacked[-1].detach()))
        right = predict(network, images) == data.validation.labels
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


def _check_buffer(path: Path, buffer: list[list[list[torch.Tensor]]], teachers: Teachers) -> int:
    """Require that every trajectory fits `teachers`; returns how many there are."""
    epochs, layout = teachers.config.epochs, teachers.layout
    for trajectory in buffer:
        found = f"{path} has a trajectory of {len(trajectory)} snapshots, but the first one has {epochs + 1}"
        require(len(trajectory) == epochs + 1, f"{found}: import them into folders of their own.")
    for snapshot in (snapshot for trajectory in buffer for snapshot in trajectory):
        shapes = tuple(tuple(tensor.shape) for tensor in snapshot)
        require(
            shapes == layout.shapes,
            f"{path} does not fit the network {teachers.config.network}: its {len(shapes)} tensors start "
            f"with {shapes[:2]}, expected {len(layout.shapes)} starting with {layout.shapes[:2]}; pass the "
            "network that the teachers were trained with.",
        )
        finite = all(bool(tensor.isfinite().all()) for tensor in snapshot)
        mend = "that training diverged, leave the file out"
        require(finite, f"{path} holds parameters that are not finite: {mend}.")
    return len(buffer)
