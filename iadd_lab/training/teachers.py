"""Teachers: networks trained on the real set, and the trajectories that their parameters took."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from iadd_lab.data.augment import AugmentConfig
from iadd_lab.data.cluster import IN_PROCESS, Engine, Report, share_data
from iadd_lab.data.preprocess import (
    PREPROCESSES,
    Preprocess,
    check_preprocess,
    fit_preprocess,
    preprocess_from_tensors,
    preprocess_tensors,
)
from iadd_lab.data.sets import DataConfig, ImageData
from iadd_lab.errors import DivergenceError, check_kind, check_number, check_whole, choose, require
from iadd_lab.seeds import derive_seed, generator
from iadd_lab.store.artefacts import (
    load_artefact,
    open_artefact,
    read_checksum,
    read_metadata,
    save_artefact,
    unpacking,
    writing,
)
from iadd_lab.store.configs import added_field, describe, fingerprint, restore
from iadd_lab.store.locks import PREPROCESSING, locked, locked_folder, sweep
from iadd_lab.store.resumable import Checkpoint, State
from iadd_lab.training.fast.compiling import Kernels, choose_kernels
from iadd_lab.training.networks import NetworkConfig, ParameterLayout, build_network
from iadd_lab.training.sgd import Training, predict, training_flops

_MANIFEST = "teachers.safetensors"
_LARGE = 2**28  # bytes of a trajectory that is not kept in memory while it comes to be
STORE_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class TeacherConfig:
    """How teachers are trained; the defaults are the field's (MTT; Cazenavette et al., CVPR 2022).

    Args:
        network: the architecture of teacher and student.
        preprocess: "standardise" or "zca", fitted on the training images.
        epochs: of each teacher; train no more than max_start_epoch + teacher_epochs of the distillation.
        rate: learning rate of SGD.
        batch: images per step.
        momentum: of SGD, in [0, 1).
        weight_decay: of SGD.
        augment: differentiable siamese augmentation of every batch; None takes the data set's own.
        seed: of initialisations, order and augmentation; each teacher has streams of its own.
        store_dtype: how trajectories are stored: "float32" (exactly), "float16" (half as large, with weights
            rounded to 11 bits) or "bfloat16" (to 8 bits, often more than an epoch moves them by).
    """

    network: NetworkConfig = NetworkConfig()
    preprocess: str = "standardise"
    epochs: int = 50
    rate: float = 0.01
    batch: int = 256
    momentum: float = 0.0
    weight_decay: float = 0.0
    augment: AugmentConfig | None = None
    seed: int = 0
    store_dtype: str = added_field("float32")

    def __post_init__(self):
        check_kind("network", self.network, NetworkConfig)
        choose("preprocess", self.preprocess, PREPROCESSES)
        check_whole("epochs", self.epochs, minimum=1)
        check_number("rate", self.rate, above=True)
        check_whole("batch", self.batch, minimum=1)
        check_number("momentum", self.momentum, maximum=0.999)
        check_number("weight_decay", self.weight_decay)
        check_kind("augment", self.augment, AugmentConfig, optional=True)
        check_whole("seed", self.seed, minimum=0)
        choose("store_dtype", self.store_dtype, STORE_DTYPES)


@dataclass(frozen=True, eq=False)
class Teachers:
    """A folder of trajectories of one architecture on one preprocessed data set.

    Trajectories stay on disk, memory-mapped; `snapshot` reads one parameter vector.
    """

    folder: Path
    config: TeacherConfig
    data: DataConfig
    data_fingerprint: str
    classes: tuple[str, ...]
    channels: int
    size: int
    preprocess: Preprocess
    count: int | None  # how many of the trajectories to use; None takes all that are there
    identity: str  # of the settings above: what a trajectory must have been made for

    @cached_property
    def layout(self) -> ParameterLayout:
        """Which parameter of a snapshot belongs to which tensor."""
        return ParameterLayout.of(self.network(0))

    @cached_property
    def paths(self) -> tuple[Path, ...]:
        """The verified trajectory files, in order of the teachers' numbers."""
        paths = tuple(sorted(self.folder.glob("teacher_*.safetensors")))[: self.count]
        for path in paths:
            self._verify(path)
        return paths

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over the settings and every trajectory: equal for interchangeable teachers."""
        return fingerprint(self.identity, [read_checksum(path, kind="trajectory") for path in self.paths])

    def __len__(self) -> int:
        return len(self.paths)

    def network(self, seed: int) -> nn.Module:
        """A fresh network of the teachers' architecture."""
        return build_network(
            self.config.network, channels=self.channels, size=self.size, classes=len(self.classes), seed=seed
        )

    def snapshot(self, teacher: int, epoch: int) -> torch.Tensor:
        """θ of `teacher` after `epoch` epochs (0 is its initialisation): (P,) float32 on the CPU."""
        with open_artefact(self.paths[teacher]) as file:
            row = file.get_slice("trajectory")[epoch]
            return row.to(torch.float32, copy=True)  # a copy, or the whole file would stay mapped

    def trajectory(self, teacher: int) -> torch.Tensor:
        """θ of `teacher` at its initialisation and after every epoch: (epochs + 1, P) float32 on the CPU."""
        return torch.stack([self.snapshot(teacher, epoch) for epoch in range(self.config.epochs + 1)])

    def history(self, teacher: int) -> dict[str, object]:
        """What was noted while training: "train_loss" per epoch, "validation_accuracy" at the end."""
        return read_metadata(self.paths[teacher], kind="trajectory")["history"]

    def path(self, teacher: int) -> Path:
        """Where the trajectory of `teacher` is, or will be."""
        return self.folder / f"teacher_{teacher:03d}.safetensors"

    def checkpoint(self, teacher: int) -> Path:
        """Where the state of `teacher` is while it is trained."""
        return self.folder / f"checkpoint_{teacher:03d}.safetensors"

    def lock(self, teacher: int) -> Path:
        """What is locked while `teacher` is trained: a worker that was given up may still be at it."""
        return self.folder / f".teacher_{teacher:03d}.lock"

    def check_data(self, data: ImageData) -> None:
        """Require that `data` is the very set that the teachers were trained on."""
        require(
            data.fingerprint == self.data_fingerprint,
            f"the teachers in {self.folder} were trained on {self.data} (fingerprint "
            f"{self.data_fingerprint}), but the data is {data.config} (fingerprint {data.fingerprint}): "
            "load that data, or train teachers on this.",
        )

    def save(self, teacher: int, trajectory: torch.Tensor, *, history: dict[str, object]) -> None:
        """Store a trajectory of shape (epochs + 1, P) and what was noted while training."""
        metadata = {"teachers": self.identity, "teacher": teacher, "history": history}
        tensors = {"trajectory": trajectory.to(STORE_DTYPES[self.config.store_dtype])}
        save_artefact(self.path(teacher), kind="trajectory", tensors=tensors, metadata=metadata)

    def _verify(self, path: Path) -> None:
        artefact = load_artefact(path, kind="trajectory")
        require(
            artefact.metadata.get("teachers") == self.identity,
            f"{path} is of another set of teachers than {self.folder / _MANIFEST}: remove it.",
        )
        with unpacking(path):
            number, shape = artefact.metadata["teacher"], tuple(artefact.tensors["trajectory"].shape)
            named = path == self.path(number)
        require(
            named,
            f"{path} holds teacher {number}, by another name than its own: rename it.",
        )
        expected = (self.config.epochs + 1, self.layout.count)
        require(
            shape == expected,
            f"{path} holds {shape}, expected {expected} (epochs + 1, parameters): remove it.",
        )


@locked_folder("folder")
def train_teachers(
    data: ImageData,
    config: TeacherConfig,
    folder: Path,
    *,
    count: int,
    device: torch.device | str = "cpu",
    compile: str = "auto",
    progress: bool = True,
    checkpoint_seconds: float = 60.0,
    engine: Engine = IN_PROCESS,
) -> Teachers:
    """Train teachers 0 … count − 1 into `folder`; those already there are verified and kept.

    Each teacher depends on the seed and its own number alone, so more can be added later. An interrupted run
    goes on where it was, on the CPU bit for bit.

    Args:
        data: the real set.
        config: how they are trained.
        folder: where they are stored.
        count: how many there shall be.
        device: where they are trained.
        compile: "auto" (by the work of one teacher), "always" or "never"; see `training.fast.compiling`.
        progress: whether to show a progress bar.
        checkpoint_seconds: at most so many seconds of work are lost to a kill.
        engine: where each of them is trained; see `iadd_lab.data.cluster`.

    Raises:
        InputError: `folder` holds teachers of other settings, or a damaged file.
        DivergenceError: a training loss is not finite.
    """
    check_whole("count", count, minimum=1)
    teachers = prepare_teachers(data, config, Path(folder))
    _ = teachers.paths  # a damaged file is named now, not after hours of training
    missing = [index for index in range(count) if not teachers.path(index).exists()]
    for index in set(range(count)) - set(missing):
        # Left by a kill between writing the trajectory and removing them.
        teachers.checkpoint(index).unlink(missing_ok=True)
        sweep(teachers.lock(index))
    if missing:
        # By one teacher's work: which of them are missing must not matter.
        work = training_flops(teachers.network(0), data, images=len(data.train), epochs=config.epochs)
        job = _Job(str(device), compile, work, checkpoint_seconds)
        there = teachers.folder.absolute(), job.device, share_data(engine, data)
        ready = engine.share(lambda: _ready(teachers, job.device, data), _ready_in, *there)
        total = len(missing) * config.epochs
        with tqdm(total=total, desc="teachers", unit="epoch", leave=None, disable=not progress) as bar:
            for _ in engine.run(_train_alone, [(job, index, ready) for index in missing], bar=bar):
                pass  # it is in the folder
    return open_teachers(folder, count=count)


@dataclass(frozen=True)
class _Job:
    """How all teachers of a folder are trained, beyond what decides about their bits."""

    device: str
    compile: str
    work: float  # see `choose_kernels`
    seconds: float  # between two checkpoints


@dataclass(frozen=True, eq=False)
class _Ready:
    """What all teachers of a folder are trained on."""

    teachers: Teachers
    data: ImageData
    images: torch.Tensor  # (count, channels, height, width), preprocessed, on the device
    labels: torch.Tensor


def _ready(teachers: Teachers, device: str, data: ImageData) -> _Ready:
    images = teachers.preprocess.apply(data.train.images.to(device))
    return _Ready(teachers, data, images, data.train.labels.to(device))


def _ready_in(folder: Path, device: str, data: ImageData) -> _Ready:
    return _ready(_read_manifest(folder), device, data)


def _train_alone(job: _Job, index: int, ready: _Ready, *, report: Report) -> None:
    """Train the teacher of that number, unless another process did so while this one waited for it."""
    teachers = ready.teachers
    with locked(teachers.lock(index), f"teacher {index} in {teachers.folder}"):
        if not teachers.path(index).exists():
            _train_one(job, index, ready, report)


def _train_one(job: _Job, index: int, ready: _Ready, report: Report) -> None:
    teachers, images = ready.teachers, ready.images
    config, device = teachers.config, images.device
    kernels = choose_kernels(job.compile, work=job.work, device=device)
    network = teachers.network(derive_seed(config.seed, "teacher", index)).to(device)
    training = Training(
        [network],
        [images],
        [ready.labels],
        batch=config.batch,
        rates=[config.rate],
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        augment=config.augment,
        generators=[generator(config.seed, "teacher", index, "order")],
        kernels=kernels,
    )
    trajectory, losses = _room(teachers), []  # (epochs + 1, P)
    trajectory[0] = _snapshot(teachers, network)
    run = fingerprint(teachers.identity, index)
    with Checkpoint(teachers.checkpoint(index), run=run, unit="epoch", seconds=job.seconds) as checkpoint:
        stored = checkpoint.load()
        if stored is not None:
            with unpacking(stored.path):
                training.restore(stored.tensors)
                trajectory[: training.epoch + 1] = stored.tensors["trajectory"]
                losses = stored.metadata["losses"]
        report(training.epoch)
        while training.epoch < config.epochs:
            losses += training.advance()
            trajectory[training.epoch] = _snapshot(teachers, network)
            report(training.epoch, teacher=index, loss=f"{losses[-1]:.3f}")
            checkpoint.keep(training.epoch, partial(_state, training, trajectory, losses))
        if not torch.isfinite(trajectory[-1]).all():  # the last step came after the last loss
            raise DivergenceError(
                f"teacher {index} ended with parameters that are not finite: lower the rate."
            )
        accuracy = _accuracy(network, teachers, ready.data, kernels)
        history = {"train_loss": losses, "validation_accuracy": accuracy}
        teachers.save(index, trajectory, history=history)
        checkpoint.remove()


def _room(teachers: Teachers) -> torch.Tensor:
    """Room for a trajectory, (epochs + 1, P): a large one in a mapped file that goes with the tensor."""
    shape = (teachers.config.epochs + 1, teachers.layout.count)
    dtype, count = STORE_DTYPES[teachers.config.store_dtype], shape[0] * shape[1]
    # Without this call there is no telling whether the disk has room, nor may an open file be mapped.
    if count * dtype.itemsize < _LARGE or not hasattr(os, "posix_fallocate"):
        return torch.empty(shape, dtype=dtype)
    with (
        writing(teachers.folder / ".trajectory"),
        tempfile.NamedTemporaryFile(dir=teachers.folder, prefix=".trajectory.") as file,
    ):
        # A disk that is full must be an error now: once mapped, it would be the process's death.
        os.posix_fallocate(file.fileno(), 0, count * dtype.itemsize)
        return torch.from_file(file.name, shared=True, size=count, dtype=dtype).view(shape)


def _state(training: Training, trajectory: torch.Tensor, losses: list[float]) -> State:
    return training.state() | {"trajectory": trajectory[: training.epoch + 1]}, {"losses": losses}


def _accuracy(network: nn.Module, teachers: Teachers, data: ImageData, kernels: Kernels) -> float:
    """The share of validation images that the network classifies correctly."""
    device = next(network.parameters()).device
    predicted = predict(
        network, teachers.preprocess.apply(data.validation.images.to(device)), kernels=kernels
    )
    return (predicted == data.validation.labels).double().mean().item()


def _snapshot(teachers: Teachers, network: nn.Module) -> torch.Tensor:
    # `flatten` copies: a snapshot must not follow the live weights.
    return teachers.layout.flatten(network.parameters()).detach().cpu()  # (P,)


def open_teachers(folder: Path, *, count: int | None = None) -> Teachers:
    """Open the teachers stored in `folder`; every trajectory is verified.

    Args:
        folder: where `train_teachers` put them.
        count: use the first so many only; None takes all.

    Raises:
        InputError: there are none, or a file is damaged or belongs to other teachers.
    """
    folder = Path(folder)
    require(
        (folder / _MANIFEST).is_file(),
        f"no teachers in {folder} (it has no {_MANIFEST}): train them with `iadd-lab teach --out {folder}`.",
    )
    teachers = _read_manifest(folder, count)
    require(len(teachers) > 0, f"{folder} holds no finished teacher yet: run `iadd-lab teach` to the end.")
    return teachers


def _read_manifest(folder: Path, count: int | None = None) -> Teachers:
    """The teachers of `folder`, of which there may be none yet."""
    artefact = load_artefact(folder / _MANIFEST, kind="teachers")
    with unpacking(folder / _MANIFEST):
        preprocess = preprocess_from_tensors(artefact.tensors)
        return _from_manifest(folder, artefact.metadata, preprocess, count)


def _from_manifest(
    folder: Path, metadata: dict, preprocess: Preprocess, count: int | None = None
) -> Teachers:
    check_preprocess(preprocess, channels=metadata["channels"], size=metadata["size"])
    return Teachers(
        folder=folder,
        config=restore(TeacherConfig, metadata["config"]),
        data=restore(DataConfig, metadata["data"]),
        data_fingerprint=metadata["data_fingerprint"],
        classes=tuple(metadata["classes"]),
        channels=metadata["channels"],
        size=metadata["size"],
        preprocess=preprocess,
        count=count,
        identity=fingerprint(metadata),
    )


@locked_folder("folder", file=PREPROCESSING)
def prepare_teachers(data: ImageData, config: TeacherConfig, folder: Path) -> Teachers:
    """A folder that is ready for trajectories: what they are of, and the fitted preprocessing, are stored.

    Raises:
        InputError: the network does not fit the images, or `folder` holds teachers of other settings.
    """
    # Resolved here, so that the artefact says what was done.
    config = replace(config, augment=data.augmentation(config.augment))
    metadata = {
        "config": describe(config),
        "data": describe(data.config),
        "data_fingerprint": data.fingerprint,
        "classes": list(data.classes),
        "channels": data.channels,
        "size": data.size,
    }
    # Before anything expensive: can this network be built for these images at all?
    build_network(config.network, channels=data.channels, size=data.size, classes=len(data.classes), seed=0)
    manifest = folder / _MANIFEST
    if manifest.exists():
        stored = load_artefact(manifest, kind="teachers")
        differences = sorted(_differences("", stored.metadata, metadata))
        require(
            not differences,
            f"{folder} holds teachers of other settings ({'; '.join(differences)}): choose another folder.",
        )
        with unpacking(manifest):
            return _from_manifest(folder, stored.metadata, preprocess_from_tensors(stored.tensors))
    preprocess = fit_preprocess(config.preprocess, data.train.images)
    save_artefact(manifest, kind="teachers", tensors=preprocess_tensors(preprocess), metadata=metadata)
    return _from_manifest(folder, metadata, preprocess)


def _differences(prefix: str, there: object, asked: object) -> Iterator[str]:
    if isinstance(there, dict) and isinstance(asked, dict):
        for key in there.keys() | asked.keys():
            yield from _differences(f"{prefix}.{key}" if prefix else key, there.get(key), asked.get(key))
    elif there != asked:
        yield f"{prefix} is {there!r} there, {asked!r} asked for"
