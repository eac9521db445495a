"""The accuracy of fresh networks trained on a distilled set: the one protocol that every method shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Tensor, nn

from iadd_lab.baselines.real_images import random_draws
from iadd_lab.data.augment import AugmentConfig
from iadd_lab.data.distilled import DistilledSet
from iadd_lab.data.preprocess import Preprocess, preprocess_fingerprint
from iadd_lab.data.sets import SPLITS, ImageData
from iadd_lab.device import DEFAULT, Execution, executes
from iadd_lab.errors import DivergenceError, check_number, check_whole, choose, require
from iadd_lab.seeds import derive_seed, generator
from iadd_lab.store.artefacts import Artefact, load_artefact, save_artefact, unpacking
from iadd_lab.store.configs import describe, fingerprint, restore_fields
from iadd_lab.store.locks import locked_folder
from iadd_lab.store.resumable import State, complete
from iadd_lab.training.fast.compiling import choose_kernels
from iadd_lab.training.fast.losses import student_loss
from iadd_lab.training.networks import NetworkConfig, network_for
from iadd_lab.training.own_networks import known_network
from iadd_lab.training.sgd import Training, predict, training_flops
from iadd_lab.training.teachers import check_training, training_options

_DESCRIBED = ("classes", "method", "config", "identity", "splits", "storage", "tried")  # fields, as metadata
RATES = (0.003, 0.01, 0.03, 0.1)  # from which that of a network of one's own is found
WARM_UP = 0.05  # of its epochs
FITTED = 0.5  # of the loss of guessing: a network that ends above it has not learned what it was trained on
UNLEARNED = "had not learned their set when training ended (above half the loss of guessing)"
UNSETTLED = "their accuracy depends on how fast they learn, and on chance"


@dataclass(frozen=True)
class EvaluateConfig:
    """How fresh networks are trained and tested; the defaults are the field's (MTT, DC-BENCH).

    Args:
        network: any architecture, the one distilled with or another: a `NetworkConfig`, a name or a function.
        networks: how many, each with an initialisation of its own.
        epochs: on the distilled set.
        rate: learning rate of SGD, times 0.1 at half time; None takes the set's own α. For a network that is
            not of `NETWORKS`, it is found on validation images: see `evaluate_each`.
        momentum: of SGD, in [0, 1).
        weight_decay: of SGD.
        batch: images per step at most.
        augment: differentiable siamese augmentation of every batch; None takes the data set's own.
        split: "test", or "validation" for choosing anything at all.
        seed: of initialisations, order and augmentation.
    """

    network: NetworkConfig = NetworkConfig()
    networks: int = 5
    epochs: int = 1000
    rate: float | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch: int = 256
    augment: AugmentConfig | None = None
    split: str = "test"
    seed: int = 0

    def __post_init__(self):
        check_training(self)
        check_whole("networks", self.networks, minimum=1)
        choose("split", self.split, dict.fromkeys(SPLITS))
        if self.rate is not None:
            check_number("rate", self.rate, above=True)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What the networks got right, from their final states."""

    confusion: Tensor  # (networks, classes, classes) int64: [n, true, predicted] counts
    classes: tuple[str, ...]
    method: str
    config: EvaluateConfig
    identity: str = ""  # 16 hex digits over all that it depends on: sets, protocol and real images
    # (networks,) float64: each one's mean training loss in its last epoch; None where an older file has none
    losses: Tensor | None = None
    splits: int = 1  # of the real set; as many networks were tested on each of them, see `pooled`
    storage: int = 0  # how many numbers each network's set is; 0 where an older file does not say it
    # Accuracies on validation images, by the rates from which the configuration's was found; empty if given.
    tried: Mapping[str, float] = field(default_factory=dict)

    @property
    def unfitted(self) -> int:
        """How many networks ended with a training loss above `FITTED` of that of guessing; 0 if not known.

        Their accuracies depend on how fast they learn, and on chance, more than on what the set is worth.
        """
        limit = FITTED * math.log(len(self.classes))
        return 0 if self.losses is None else int((self.losses > limit).sum())

    @property
    def remark(self) -> str:
        """What must be said beside the accuracy; empty for nothing."""
        networks = f"{self.unfitted} of {len(self.confusion)} networks {UNLEARNED}"
        mend = f"train for more epochs than {self.config.epochs}"
        return f"{networks}: {UNSETTLED}; {mend}." if self.unfitted else ""

    @property
    def accuracies(self) -> Tensor:
        """The share of images classified correctly by each network: (networks,) in [0, 1]."""
        return self.confusion.diagonal(dim1=1, dim2=2).sum(1).double() / self.confusion.sum((1, 2))

    @property
    def balanced_accuracies(self) -> Tensor:
        """The mean of the classes' recalls for each network: (networks,) in [0, 1]."""
        return (self.confusion.diagonal(dim1=1, dim2=2).double() / self.confusion.sum(2)).mean(1)

    @property
    def tested(self) -> Tensor:
        """How many images of each class were tested, in all splits together: (classes,) int64."""
        return self.confusion[:: len(self.confusion) // self.splits].sum((0, 2))

    @property
    def interval(self) -> tuple[float, float, float]:
        """The mean balanced accuracy, and the ends of its 95 % interval, in [0, 1].

        Two independent errors, added in squares. Few test images: Wilson's interval of a share of so many
        (it holds for a dozen of them, and at 0 and 1), unequal classes counting as their harmonic mean each.
        Few networks: Student's t over them. Where few splits share many networks, a t over splits would have
        too few values to tell anything; what their images do is in Wilson's part.
        """
        values, classes = self.balanced_accuracies, len(self.classes)
        mean, count = values.mean().item(), len(values)
        images = max(round(classes**2 / (1 / self.tested).sum().item()), 1)
        wilson = stats.binomtest(round(mean * images), images).proportion_ci(method="wilson")
        error = stats.t.ppf(0.975, max(count - 1, 1)) * spread(values) / math.sqrt(count)
        low, high = math.hypot(mean - wilson.low, error), math.hypot(wilson.high - mean, error)
        return mean, max(mean - low, 0.0), min(mean + high, 1.0)

    def summary(self) -> dict[str, float | int | str]:
        """Means and standard deviations over the networks, in per cent, as a row of a table."""
        row = {"method": self.method, "network": self.config.network.name}
        row |= {name: getattr(self.config, name) for name in ("split", "networks")}
        for kind, values in (("", self.accuracies), ("balanced ", self.balanced_accuracies)):
            row |= {f"{kind}accuracy": 100 * values.mean().item(), f"{kind}std": 100 * spread(values)}
        return row

    def __str__(self) -> str:
        row = self.summary()
        plain = f"{row['accuracy']:.1f} ± {row['std']:.1f} % {row['split']} accuracy"
        balanced = f"{row['balanced accuracy']:.1f} ± {row['balanced std']:.1f} % balanced"
        stored = f", a set of {self.storage:,} numbers" if self.storage else ""
        found = f", at rate {self.config.rate:g}, found on validation images" if self.tried else ""
        return f"{self.method}: {plain}, {balanced} ({len(self.confusion)} × {row['network']}{found}){stored}"

    def save(self, path: Path) -> Path:
        """Store the evaluation at `path`, atomically."""
        metadata = {name: describe(getattr(self, name)) for name in _DESCRIBED}
        tensors = {"confusion": self.confusion} | ({} if self.losses is None else {"losses": self.losses})
        return save_artefact(path, kind="evaluation", tensors=tensors, metadata=metadata)

    @classmethod
    def load(cls, path: Path) -> Evaluation:
        """Read and verify the evaluation at `path`.

        Raises:
            InputError: the file is missing, damaged, or no evaluation.
        """
        artefact = load_artefact(path, kind="evaluation")
        with unpacking(path):
            # Older files have none of these.
            stored = {"identity": "", "splits": 1, "storage": 0, "tried": {}, **artefact.metadata}
            about = restore_fields(cls, _DESCRIBED, stored)
            confusion, losses = artefact.tensors["confusion"], artefact.tensors.get("losses")
            shape, classes = tuple(confusion.shape), len(about["classes"])
            fits = confusion.dtype == torch.int64 and shape[1:] == (classes, classes)
            fits = fits and (losses is None or losses.shape == shape[:1]) and shape[0] % about["splits"] == 0
            require(fits, f"its counts {shape} are not of {classes} classes, or its losses of other networks")
            return cls(confusion, losses=losses, **about)


def spread(values: Tensor) -> float:
    """The sample standard deviation; 0 for a single value."""
    return values.std().item() if len(values) > 1 else 0.0


def pooled(parts: Sequence[Evaluation]) -> Evaluation:
    """Evaluations on several splits of one real set, by one protocol, as one; it passes for the first's."""
    joint = {name: torch.cat([getattr(part, name) for part in parts]) for name in ("confusion", "losses")}
    return replace(parts[0], **joint, splits=len(parts))


def doubts(made: Evaluation, random: Evaluation | None = None) -> str:
    """A sentence where `made` can't be told from chance, or from `random` real images; else empty.

    It goes by balanced accuracies, of which guessing has 1/classes whatever the classes' sizes. The interval
    of the difference is Newcombe's: the errors of both, added in squares.
    """
    (mean, low, high), chance = made.interval, 1 / len(made.classes)
    said, rivals = [], {"chance": (chance, chance, chance)}
    if random is not None:
        rivals["random real images"] = random.interval
    for name, (other, least, most) in rivals.items():
        if mean - other <= math.hypot(mean - low, most - other):
            below = other - mean > math.hypot(high - mean, other - least)
            said.append(f"{'is below' if below else 'cannot be told from'} {name} ({100 * other:.1f} %)")
    numbers = f"{100 * mean:.1f} % (95 % interval {100 * low:.1f} to {100 * high:.1f})"
    where = f"on {made.tested.sum()} {made.config.split} images"
    return f"{made.method}: balanced accuracy {numbers} {where} {' and '.join(said)}." if said else ""


def evaluate(
    distilled: DistilledSet,
    data: ImageData,
    config: EvaluateConfig | None = None,
    *,
    network: Any = None,
    **options: Any,
) -> Evaluation:
    """Train fresh networks on `distilled` and test them on real images of `config.split`.

    Args:
        distilled: what networks are trained on.
        data: the real set; it goes through the set's own preprocessing.
        config: how they are trained, and what they are tested on.
        network: in place of the configuration's: "torchvision:resnet18", or a function of your own, as in
            `lambda channels, size, classes: my_network(classes)`.
        options: as of `evaluate_each`: `save_to`, `how`, and the fields of `Execution` by name.

    Raises:
        InputError: `data` is not the real set that `distilled` stands for, or the split is unknown.
        DivergenceError: a training loss is not finite.
    """
    config = config or EvaluateConfig()
    config = config if network is None else replace(config, network=network)
    return evaluate_each([distilled] * config.networks, data, config, **options)


@executes
def evaluate_random(
    data: ImageData,
    preprocess: Preprocess,
    config: EvaluateConfig,
    *,
    ipc: int,
    save_to: Path | None = None,
    how: Execution = DEFAULT,
) -> Evaluation:
    """What random real images are worth: `ipc` per class, another draw for each network.

    They are trained on at `config.rate`, or at the field's 0.01 where that is None and none is found.
    `save_to`, `how` and `options` are those of `evaluate_each`.

    Raises:
        InputError: a class has fewer than `ipc` training images.
    """
    draws = {"ipc": ipc, "count": config.networks, "seed": config.seed}
    sets = random_draws(data, preprocess, **draws, alpha=config.rate or 0.01)
    return evaluate_each(sets, data, config, save_to=save_to, how=how)


@executes
@locked_folder("save_to")
def evaluate_each(
    sets: Iterable[DistilledSet],
    data: ImageData,
    config: EvaluateConfig,
    *,
    save_to: Path | None = None,
    how: Execution = DEFAULT,
) -> Evaluation:
    """As `evaluate`, with a set of its own for each network: for methods that are random themselves.

    `config.networks` is not used. The spread then covers the sets' randomness as well.

    A network that is not of `NETWORKS` warms up for a twentieth of its epochs. If no rate is given, one of
    `RATES` is found for it: the one at which a network on the first set is best on the validation images.
    `Evaluation.config` and `Evaluation.tried` say what was found. Images that are too small for it are
    enlarged, see `iadd_lab.training.own_networks`.

    Args:
        sets: one for each network.
        data: the real set.
        config: how networks are trained, and what they are tested on.
        save_to: a file to store the evaluation in. One that is there already is read; an interrupted one
            goes on from a checkpoint beside it, on the CPU bit for bit. None keeps nothing.
        how: where it is computed, and what is shown and kept meanwhile. Compiled, small sets train several
            networks side by side.
        options: fields of `Execution` by name, as in `device="cpu"`.

    Raises:
        InputError: as `evaluate`, or `save_to` is the evaluation of something else.
        DivergenceError: a training loss is not finite.
    """
    sets = list(sets)
    for distilled in sets:
        distilled.check_data(data)
    states = {preprocess_fingerprint(p) for p in {id(s.preprocess): s.preprocess for s in sets}.values()}
    require(len(states) == 1, "the sets have different preprocessing: evaluate them one at a time.")
    known = known_network(config.network, data)
    config = replace(config, network=known, augment=data.augmentation(config.augment))
    identity = fingerprint([made.fingerprint for made in sets], config, data.fingerprint)
    path = save_to and Path(save_to)
    if path and path.exists():
        return _finished(path, identity, config)
    tried: dict[str, float] = {}
    if known.is_own and config.rate is None:
        config, tried = _found_rate(sets[0], data, config, path, how)
    networks = _FreshNetworks(sets, data, config, how)
    kept = {"path": path and path.with_name(f"{path.stem}.checkpoint"), "identity": identity}
    save = path and (lambda: networks.evaluation(identity, tried).save(path))
    complete(networks, **kept, title=f"evaluate {sets[0].method}", how=how, save=save)
    for rate in tried if path else ():
        _trial(path, rate).unlink(missing_ok=True)
    return networks.evaluation(identity, tried)


def _trial(path: Path, rate: str) -> Path:
    """The file of the trial at that rate, until the evaluation at `path` is ready."""
    return path.with_name(f"{path.stem}_rate_{rate}.safetensors")


def _found_rate(
    made: DistilledSet, data: ImageData, config: EvaluateConfig, path: Path | None, how: Execution
) -> tuple[EvaluateConfig, dict[str, float]]:
    """The configuration at the best of `RATES`, and the accuracy at each of them on validation images."""

    def run(own: EvaluateConfig) -> Evaluation:
        return evaluate_each([made], data, own, save_to=path and _trial(path, f"{own.rate:g}"), how=how)

    accuracies = validation_accuracies(run, config, RATES, networks=1)
    best = max(accuracies, key=accuracies.get)
    return replace(config, rate=best), {f"{rate:g}": accuracy for rate, accuracy in accuracies.items()}


def validation_accuracies(
    run: Callable[[EvaluateConfig], Evaluation],
    config: EvaluateConfig,
    rates: Sequence[float],
    *,
    networks: int,
) -> dict[float, float]:
    """The mean accuracy of `run` on the validation split at each of `rates`, in their order.

    Rates at which training diverges are left out.

    Raises:
        DivergenceError: training diverges at all of them.
    """
    accuracies = {}
    for rate in sorted(rates):
        with suppress(DivergenceError):
            tried = run(replace(config, rate=rate, split="validation", networks=networks))
            accuracies[rate] = tried.accuracies.mean().item()
    if not accuracies:
        raise DivergenceError(f"training diverges at each of the rates {list(rates)}: lower them.")
    return accuracies


def _finished(path: Path, identity: str, config: EvaluateConfig) -> Evaluation:
    """The evaluation stored at `path`, required to be this one; what a kill left beside it goes."""
    path.with_name(f"{path.stem}.checkpoint").unlink(missing_ok=True)
    evaluation = Evaluation.load(path)
    # Evaluations of before there were identities go by their protocol; the name of the file says the rest.
    same = evaluation.identity == identity if evaluation.identity else evaluation.config == config
    require(same, f"{path} is the evaluation of another set or protocol: choose another name, or delete it.")
    for rate in evaluation.tried:
        _trial(path, rate).unlink(missing_ok=True)
    return replace(evaluation, config=replace(evaluation.config, network=config.network))


class _FreshNetworks:
    """Networks on their way through training and test, as many side by side as is fast: a `Resumable`."""

    unit = "epoch"  # of a single network

    def __init__(self, sets: list[DistilledSet], data: ImageData, config: EvaluateConfig, how: Execution):
        self.storage, self.device = sets[0].storage, how.place
        self.sets, self.data, self.config = [made.decoded for made in sets], data, config
        self.total = len(sets) * config.epochs
        # (count, channels, height, width)
        self.real = sets[0].preprocess.prepare(data.split(config.split).images.to(self.device))
        network, images, classes = self.fresh(0), len(self.sets[0].images), len(data.classes)
        work = training_flops(network, data, images=images, epochs=self.total)
        self.kernels = choose_kernels(how.compile, work=work, device=self.device)
        loss = student_loss(network, self.kernels)
        self.at_once = loss.networks_at_once(self.real, batch=min(config.batch, images))
        # Of networks that are ready: [network, true, predicted] counts, and the losses of their last epoch.
        self.confusion = torch.zeros(0, classes, classes, dtype=torch.int64)
        self.losses = torch.zeros(0, dtype=torch.float64)
        self.training: Training | None = None  # of the networks that are on their way

    @property
    def done(self) -> int:
        underway = self.training.epoch * len(self.training.networks) if self.training else 0
        return len(self.confusion) * self.config.epochs + underway

    def advance(self) -> None:
        """One epoch of the networks on their way, and at the end their test."""
        if self.training is None:
            self.training = self.begin(min(self.at_once, len(self.sets) - len(self.confusion)))
        losses = self.training.advance()
        if self.training.epoch == self.config.epochs:
            self.confusion = torch.cat([self.confusion, *map(self.test, self.training.networks)])
            self.losses = torch.cat([self.losses, torch.tensor(losses, dtype=torch.float64)])
            self.training = None

    def fresh(self, number: int) -> nn.Module:
        """The network of that number at its start."""
        seed = derive_seed(self.config.seed, "evaluation", number)
        return network_for(self.data, self.config.network, seed=seed)

    def begin(self, count: int) -> Training:
        """The training of the next `count` networks."""
        config, first = self.config, len(self.confusion)
        numbers, sets = range(first, first + count), self.sets[first : first + count]
        return Training(
            [self.fresh(number).to(self.device) for number in numbers],
            [distilled.images.to(self.device) for distilled in sets],
            [distilled.targets.to(self.device) for distilled in sets],
            rates=[config.rate or distilled.alpha for distilled in sets],
            decay_at=max(config.epochs // 2, 1),
            warm_up=math.ceil(WARM_UP * config.epochs) if config.network.is_own else 0,
            generators=[generator(config.seed, "evaluation", number, "order") for number in numbers],
            kernels=self.kernels,
            **training_options(config),
        )

    def test(self, network: nn.Module) -> Tensor:
        """[true, predicted] counts on the split, (1, classes, classes)."""
        predicted = predict(network, self.real, kernels=self.kernels)
        true, classes = self.data.split(self.config.split).labels, len(self.data.classes)
        return torch.bincount(true * classes + predicted, minlength=classes**2).view(1, classes, classes)

    def evaluation(self, identity: str, tried: dict[str, float]) -> Evaluation:
        """What all of them got right."""
        first, known = self.sets[0], None if self.losses.isnan().any() else self.losses
        about = {"losses": known, "storage": self.storage, "tried": tried}
        return Evaluation(self.confusion, first.classes, first.method, self.config, identity, **about)

    def state(self) -> State:
        tensors = {} if self.training is None else self.training.state()
        return tensors | {"confusions": self.confusion, "losses": self.losses}, {}

    def load(self, artefact: Artefact) -> None:
        tensors = artefact.tensors
        self.confusion = tensors["confusions"]
        # Checkpoints of before there were losses have none.
        unknown = torch.full((len(self.confusion),), math.nan, dtype=torch.float64)
        self.losses = tensors.get("losses", unknown)
        if "parameters" in tensors:
            self.training = self.begin(len(tensors["parameters"]))
            self.training.restore(tensors)
