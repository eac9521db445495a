"""Teachers: networks trained on the real set, and the trajectories that their parameters took."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from iadd_lab.data.augment import AugmentConfig
from iadd_lab.data.preprocess import (
    PREPROCESSES,
    Preprocess,
    check_preprocess,
    fit_preprocess,
    preprocess_from_tensors,
    preprocess_tensors,
)
from iadd_lab.data.sets import DataConfig, ImageData
from iadd_lab.device import DEFAULT, Execution, executes
from iadd_lab.errors import DivergenceError, check_kind, check_number, check_whole, choose, require
from iadd_lab.seeds import derive_seed, generator
from iadd_lab.store import artefacts
from iadd_lab.store.configs import added_field, describe, fingerprint, restore_fields
from iadd_lab.store.locks import PREPROCESSING, locked, locked_folder
from iadd_lab.store.resumable import State, complete
from iadd_lab.training.fast.compiling import choose_kernels
from iadd_lab.training.networks import NetworkConfig, ParameterLayout, as_network, network_for
from iadd_lab.training.own_networks import check_student, known_network
from iadd_lab.training.sgd import Training, predict, training_flops

_MANIFEST = "teachers.safetensors"
_DESCRIBED = ("config", "data", "data_fingerprint", "classes", "channels", "size")  # fields, as metadata
_BUFFERS = "buffers/"  # before the names of what a network keeps besides its parameters
_LARGE = 2**28  # bytes of a trajectory that is not kept in memory while it comes to be
STORE_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class TeacherConfig:
    """How teachers are trained; the defaults are the field's (MTT; Cazenavette et al., CVPR 2022).

    Args:
        network: the architecture of teacher and student: a `NetworkConfig`, or a name or function for one.
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

    network: NetworkConfig = NetworkConfig()  # or the name or the function of one
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
        choose("preprocess", self.preprocess, PREPROCESSES)
        check_number("rate", self.rate, above=True)
        check_training(self)
        choose("store_dtype", self.store_dtype, STORE_DTYPES)


def check_training(config: Any) -> None:
    """Require possible values of what every training of networks has: see `TeacherConfig`."""
    object.__setattr__(config, "network", as_network(config.network))
    for name in ("epochs", "batch"):
        check_whole(name, getattr(config, name), minimum=1)
    check_number("momentum", config.momentum, maximum=0.999)
    check_number("weight_decay", config.weight_decay)
    check_kind("augment", config.augment, AugmentConfig, optional=True)
    check_whole("seed", config.seed, minimum=0)


def training_options(config: Any) -> dict[str, Any]:
    """What of such a configuration `Training` takes by the same name."""
    return {name: getattr(config, name) for name in ("batch", "momentum", "weight_decay", "augment")}


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
        checksums = [artefacts.read_checksum(path, kind="trajectory") for path in self.paths]
        return fingerprint(self.identity, checksums)

    def __len__(self) -> int:
        return len(self.paths)

    def network(self, seed: int) -> nn.Module:
        """A fresh network of the teachers' architecture."""
        return network_for(self, self.config.network, seed=seed)

    def network_after(self, teacher: int, epoch: int) -> nn.Module:
        """The network of `teacher` after `epoch` epochs, with its running statistics of then, to be asked."""
        network = self.network(0)
        own = self.layout.split(self.snapshot(teacher, epoch))
        with artefacts.open_artefact(self.paths[teacher]) as file:
            for name in set(file.keys()) - {"trajectory"}:
                own[name.removeprefix(_BUFFERS)] = file.get_slice(name)[epoch]
        network.load_state_dict(own, strict=False)
        return network.eval()

    def training(
        self, data: ImageData, network: nn.Module, order: Generator, *, epochs: int, how: Execution
    ) -> Training:
        """The training of `network` as one of the teachers, from its parameters as they are.

        Args:
            data: the real set.
            network: of the teachers' architecture; it goes to the device, and is trained in place.
            order: of the images, and what augmentations are drawn from.
            epochs: how long it will be trained; they decide whether compiling pays.
            how: where it is trained.
        """
        config, device = self.config, how.place
        # By one teacher's work: how many there are must not matter.
        work = training_flops(network, data, images=len(data.train), epochs=epochs)
        images, labels = self.preprocess.prepare(data.train.images.to(device)), data.train.labels.to(device)
        options = training_options(config) | {"rates": [config.rate], "generators": [order]}
        kernels = choose_kernels(how.compile, work=work, device=device)
        return Training([network.to(device)], [images], [labels], kernels=kernels, **options)

    def snapshot(self, teacher: int, epoch: int) -> Tensor:
        """θ of `teacher` after `epoch` epochs (0 is its initialisation): (P,) float32 on the CPU."""
        with artefacts.open_artefact(self.paths[teacher]) as file:
            # A copy, or the whole file would stay mapped.
            return file.get_slice("trajectory")[epoch].to(torch.float32, copy=True)

    def trajectory(self, teacher: int) -> Tensor:
        """θ of `teacher` at its initialisation and after every epoch: (epochs + 1, P) float32 on the CPU."""
        return torch.stack([self.snapshot(teacher, epoch) for epoch in range(self.config.epochs + 1)])

    def history(self, teacher: int) -> dict[str, object]:
        """What was noted while training: "train_loss" per epoch, "validation_accuracy" at the end."""
        return artefacts.read_metadata(self.paths[teacher], kind="trajectory")["history"]

    def missing(self, count: int) -> list[int]:
        """The numbers below `count` of the teachers that are not trained to their end."""
        return [teacher for teacher in range(count) if not self.path(teacher).exists()]

    def path(self, teacher: int) -> Path:
        """Where the trajectory of `teacher` is, or will be."""
        return self.folder / f"teacher_{teacher:03d}.safetensors"

    def check_data(self, data: ImageData) -> None:
        """Require that `data` is the very set that the teachers are trained on."""
        given, own = data.fingerprint, self.data_fingerprint
        trained = f"the teachers in {self.folder} were trained on {self.data} (fingerprint {own})"
        mend = "load that data, or train teachers on this"
        require(given == own, f"{trained}, but the data is {data.config} (fingerprint {given}): {mend}.")

    def save(
        self,
        teacher: int,
        trajectory: Tensor,
        *,
        history: dict[str, object],
        buffers: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Store a trajectory of shape (epochs + 1, P) and what was noted while training.

        `buffers` are those of the network by name, each with a first dimension of epochs + 1.
        """
        metadata = {"teachers": self.identity, "teacher": teacher, "history": history}
        tensors = {"trajectory": trajectory.to(STORE_DTYPES[self.config.store_dtype])}
        tensors |= {f"{_BUFFERS}{name}": tensor for name, tensor in (buffers or {}).items()}
        artefacts.save_artefact(self.path(teacher), kind="trajectory", tensors=tensors, metadata=metadata)

    def _verify(self, path: Path) -> None:
        artefact = artefacts.load_artefact(path, kind="trajectory")
        ours = artefact.metadata.get("teachers") == self.identity
        require(ours, f"{path} is of another set of teachers than {self.folder / _MANIFEST}: remove it.")
        with artefacts.unpacking(path):
            number, shape = artefact.metadata["teacher"], tuple(artefact.tensors["trajectory"].shape)
            named = path == self.path(number)
        require(named, f"{path} holds teacher {number}, by another name than its own: rename it.")
        expected = (self.config.epochs + 1, self.layout.count)
        sentence = f"{path} holds {shape}, expected {expected} (epochs + 1, parameters): remove it."
        require(shape == expected, sentence)


@executes
@locked_folder("folder")
def train_teachers(
    data: ImageData, config: TeacherConfig, folder: Path, *, count: int, how: Execution = DEFAULT
) -> Teachers:
    """Train teachers 0 … count − 1 into `folder`; those already there are verified and kept.

    Each teacher depends on the seed and its own number alone, so more can be added later. An interrupted run
    goes on where it was, on the CPU bit for bit.

    Args:
        data: the real set.
        config: how they are trained.
        folder: where they are stored.
        count: how many there shall be.
        how: where they are trained, and what is shown and kept meanwhile. "auto" compiles by the work of one
            teacher.
        options: fields of `Execution` by name, as in `device="cpu"`.

    Raises:
        InputError: `folder` holds teachers of other settings, or a damaged file.
        DivergenceError: a training loss is not finite.
    """
    check_whole("count", count, minimum=1)
    teachers = prepare_teachers(data, config, Path(folder))
    _ = teachers.paths  # a damaged file is named now, not after hours of training
    for index in range(count):
        train_teacher(data, teachers, index, how=how)
    return open_teachers(folder, count=count, network=config.network)


@executes
def train_teacher(data: ImageData, teachers: Teachers, index: int, *, how: Execution = DEFAULT) -> None:
    """Train the teacher of that number into its folder, unless it is there already.

    Processes may train different teachers of one folder side by side; whoever asks for one that another
    process trains waits for it.

    Args:
        data: the real set.
        teachers: as from `prepare_teachers`.
        index: the number of the teacher.
        how: as in `train_teachers`, and so is what this raises.
        options: fields of `Execution` by name.
    """
    teachers.check_data(data)
    path, title = teachers.path(index), f"teacher {index}"
    checkpoint = path.with_name(f"checkpoint_{index:03d}.safetensors")
    # A process that was given up may still be at it.
    with locked(path.with_name(f".{path.stem}.lock"), f"{title} in {teachers.folder}"):
        if path.exists():
            # Left by a kill between writing the trajectory and removing it.
            checkpoint.unlink(missing_ok=True)
            return
        teacher, identity = _Teacher(teachers, index, data, how), fingerprint(teachers.identity, index)
        complete(teacher, path=checkpoint, identity=identity, title=title, how=how, save=teacher.save)


class _Teacher:
    """A teacher on its way: a `Resumable`."""

    unit = "epoch"

    def __init__(self, teachers: Teachers, index: int, data: ImageData, how: Execution):
        self.teachers, self.index, self.data, self.device = teachers, index, data, how.place
        seed, self.total = teachers.config.seed, teachers.config.epochs
        self.network = teachers.network(derive_seed(seed, "teacher", index))
        order = generator(seed, "teacher", index, "order")
        self.training = teachers.training(data, self.network, order, epochs=self.total, how=how)
        self.losses: list[float] = []  # of each epoch
        self.trajectory = _empty_trajectory(teachers)  # (epochs + 1, P)
        # Of batch norm: (epochs + 1, ...) each. They are kept to ask the teacher, and never matched.
        named = dict(self.network.named_buffers()).items()
        self.buffers = {name: torch.stack([each.cpu()] * (self.total + 1)) for name, each in named}
        self.note()

    @property
    def done(self) -> int:
        return self.training.epoch

    def advance(self) -> dict[str, object]:
        self.losses += self.training.advance()
        self.note()
        return {"loss": f"{self.losses[-1]:.3f}"}

    def note(self) -> None:
        """Keep a copy of θ as it is now: it must not follow the live weights."""
        self.trajectory[self.done] = self.teachers.layout.flatten(self.network.parameters()).detach()
        for name, buffer in self.network.named_buffers():
            self.buffers[name][self.done] = buffer

    def state(self) -> State:
        tensors = self.training.state() | {"trajectory": self.trajectory[: self.done + 1]}
        tensors |= {f"kept/{name}": tensor[: self.done + 1] for name, tensor in self.buffers.items()}
        return tensors, {"losses": self.losses}

    def load(self, artefact: artefacts.Artefact) -> None:
        self.training.restore(artefact.tensors)
        self.trajectory[: self.done + 1] = artefact.tensors["trajectory"]
        for name, tensor in self.buffers.items():
            tensor[: self.done + 1] = artefact.tensors[f"kept/{name}"]
        self.losses = artefact.metadata["losses"]

    def save(self) -> None:
        """Store the trajectory at its end, beside losses and the accuracy on validation images.

        Raises:
            DivergenceError: the parameters are not finite.
        """
        if not torch.isfinite(self.trajectory[-1]).all():  # the last step came after the last loss
            sentence = f"teacher {self.index} ended with parameters that are not finite: lower the rate."
            raise DivergenceError(sentence)
        validation = self.data.validation
        images = self.teachers.preprocess.prepare(validation.images.to(self.device))
        right = predict(self.network, images, kernels=self.training.kernels) == validation.labels
        history = {"train_loss": self.losses, "validation_accuracy": right.double().mean().item()}
        self.teachers.save(self.index, self.trajectory, history=history, buffers=self.buffers)


def _empty_trajectory(teachers: Teachers) -> Tensor:
    """Room for a trajectory, (epochs + 1, P): a large one in a mapped file that goes with the tensor."""
    shape = (teachers.config.epochs + 1, teachers.layout.count)
    dtype, count = STORE_DTYPES[teachers.config.store_dtype], shape[0] * shape[1]
    # Without this call there is no telling whether the disk has room, nor may an open file be mapped.
    if count * dtype.itemsize < _LARGE or not hasattr(os, "posix_fallocate"):
        return torch.empty(shape, dtype=dtype)
    with (
        artefacts.writing(teachers.folder / ".trajectory"),
        tempfile.NamedTemporaryFile(dir=teachers.folder, prefix=".trajectory.") as file,
    ):
        # A disk that is full must be an error now: once mapped, it would be the process's death.
        os.posix_fallocate(file.fileno(), 0, count * dtype.itemsize)
        return torch.from_file(file.name, shared=True, size=count, dtype=dtype).view(shape)


def open_teachers(folder: Path, *, count: int | None = None, network: Any = None) -> Teachers:
    """Open the teachers stored in `folder`; every trajectory is verified.

    Args:
        folder: where `train_teachers` put them.
        count: use the first so many only; None takes all.
        network: the function that made their network, where they are of one's own: it is not stored.

    Raises:
        InputError: there are none, a file is damaged or belongs to other teachers, or `network` is missing
            or makes another one than theirs.
    """
    folder = Path(folder)
    check_whole("count", 1 if count is None else count, minimum=1)
    mend = f"train them with `iadd-lab teach --out {folder}`"
    require((folder / _MANIFEST).is_file(), f"no teachers in {folder} (it has no {_MANIFEST}): {mend}.")
    teachers = _from_manifest(artefacts.load_artefact(folder / _MANIFEST, kind="teachers"), count)
    own = teachers.config.network
    if network is not None and own.is_own:
        found = known_network(replace(own, function=as_network(network).function), teachers)
        teachers = replace(teachers, config=replace(teachers.config, network=found))
    require(len(teachers) > 0, f"{folder} holds no finished teacher yet: run `iadd-lab teach` to the end.")
    return teachers


def _from_manifest(artefact: artefacts.Artefact, count: int | None = None) -> Teachers:
    """The teachers of a folder, of which there may be none yet."""
    with artefacts.unpacking(artefact.path):
        about, folder = restore_fields(Teachers, _DESCRIBED, artefact.metadata), artefact.path.parent
        preprocess, identity = preprocess_from_tensors(artefact.tensors), fingerprint(artefact.metadata)
        check_preprocess(preprocess, channels=about["channels"], size=about["size"])
        return Teachers(folder=folder, preprocess=preprocess, count=count, identity=identity, **about)


@locked_folder("folder", file=PREPROCESSING)
def prepare_teachers(data: ImageData, config: TeacherConfig, folder: Path) -> Teachers:
    """A folder that is ready for trajectories: what they are of, and the fitted preprocessing, are stored.

    Raises:
        InputError: the network does not fit the images, or `folder` holds teachers of other settings.
    """
    # Resolved here, so that the artefact says what was done.
    own = {"network": known_network(config.network, data), "augment": data.augmentation(config.augment)}
    config = replace(config, **own)
    values = (config, data.config, data.fingerprint, data.classes, data.channels, data.size)
    metadata = describe(dict(zip(_DESCRIBED, values, strict=True)))
    manifest = Path(folder) / _MANIFEST
    if not manifest.exists():
        # Before anything expensive: can this network be built for these images at all, and be matched?
        check_student(config.network, data)
        tensors = preprocess_tensors(fit_preprocess(config.preprocess, data.train.images))
        artefacts.save_artefact(manifest, kind="teachers", tensors=tensors, metadata=metadata)
    stored = artefacts.load_artefact(manifest, kind="teachers")
    differences = "; ".join(sorted(_differences("", stored.metadata, metadata)))
    sentence = f"{folder} holds teachers of other settings ({differences}): choose another folder."
    require(not differences, sentence)
    return replace(_from_manifest(stored), config=config)  # with the function that is not stored


def _differences(prefix: str, there: object, asked: object) -> Iterator[str]:
    if isinstance(there, dict) and isinstance(asked, dict):
        for key in there.keys() | asked.keys():
            yield from _differences(f"{prefix}.{key}" if prefix else key, there.get(key), asked.get(key))
    elif there != asked:
        yield f"{prefix} is {there!r} there, {asked!r} asked for"
