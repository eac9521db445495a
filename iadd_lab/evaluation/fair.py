"""Scores that compare a distilled set fairly: with random images and the whole set, trained as well as it.

DD-Ranking (Li et al., "DD-Ranking: Rethinking the Evaluation of Dataset Distillation", arXiv 2505.13300)
defines, of accuracies as shares in [0, 1]:

- hard-label recovery, HLR = accuracy on the whole set − accuracy on the distilled one; lower is better;
- improvement over random, IOR = accuracy on the distilled set − accuracy on as many random images;
- label-robust score, LRS = (e^a − e^−1) / (e − e^−1) with a = w·IOR − (1 − w)·HLR and w = 0.5.

All labels here are hard ones (of soft labels the largest), so the accuracies on the distilled set in HLR and
in IOR are the same.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from iadd_lab.baselines.real_images import random_draws, whole_set
from iadd_lab.data.distilled import DistilledSet
from iadd_lab.data.sets import ImageData
from iadd_lab.device import DEFAULT, Execution, executes
from iadd_lab.errors import check_number, check_whole, require
from iadd_lab.evaluation.protocol import (
    EvaluateConfig,
    Evaluation,
    evaluate_each,
    spread,
    validation_accuracies,
)


@dataclass(frozen=True)
class FairConfig:
    """How the three sets are made comparable.

    Args:
        rates: learning rates to choose from on the validation split, and the distilled set's own α; the same
            ones for each of the three sets.
        tuning_networks: networks trained at each of them.
        whole_epochs: epochs on the whole training set; it has more steps in each.
        weight: w of the label-robust score, in [0, 1].
    """

    rates: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1)
    tuning_networks: int = 2
    whole_epochs: int = 50
    weight: float = 0.5

    def __post_init__(self):
        fits = isinstance(self.rates, (tuple, list)) and len(self.rates) > 0
        require(fits, f"rates is {self.rates!r}; it must be a list of at least one learning rate.")
        for rate in self.rates:
            check_number("rates", rate, above=True)
        for name in ("tuning_networks", "whole_epochs"):
            check_whole(name, getattr(self, name), minimum=1)
        check_number("weight", self.weight, maximum=1.0)


@dataclass(frozen=True, eq=False)
class FairScores:
    """DD-Ranking's scores of a distilled set, from three evaluations of as many networks on one split.

    Network by network: those of one number start from the same parameters in all three evaluations.
    """

    distilled: Evaluation
    random: Evaluation
    whole: Evaluation
    weight: float = 0.5

    def __post_init__(self):
        parts = (self.distilled, self.random, self.whole)
        protocols = {(each.config.split, each.config.network, len(each.confusion)) for each in parts}
        said = f"the evaluations have different splits, networks or classes ({protocols})"
        alike = len(protocols) == len({each.classes for each in parts}) == 1
        require(alike, f"{said}: evaluate all three in the same way.")
        check_number("weight", self.weight, maximum=1.0)

    @property
    def hard_label_recovery(self) -> Tensor:
        """HLR of each network: (networks,) in [−1, 1], lower is better."""
        return self.whole.accuracies - self.distilled.accuracies

    @property
    def improvement_over_random(self) -> Tensor:
        """IOR of each network: (networks,) in [−1, 1]."""
        return self.distilled.accuracies - self.random.accuracies

    @property
    def label_robust_score(self) -> Tensor:
        """LRS of each network: (networks,) in [0, 1]."""
        weight = self.weight
        combined = weight * self.improvement_over_random - (1 - weight) * self.hard_label_recovery
        return (combined.exp() - math.exp(-1)) / (math.e - math.exp(-1))

    def summary(self) -> dict[str, float | str]:
        """Means and standard deviations over the networks as a row of a table; shares, not per cent."""
        columns = {"accuracy": self.distilled.accuracies, "HLR": self.hard_label_recovery}
        columns |= {"IOR": self.improvement_over_random, "LRS": self.label_robust_score}
        row: dict[str, float | str] = {"method": self.distilled.method}
        for name, values in columns.items():
            row |= {name: values.mean().item(), f"{name} std": spread(values)}
        rates = {"rate": self.distilled, "random rate": self.random, "whole rate": self.whole}
        return row | {name: each.config.rate for name, each in rates.items()}

    def __str__(self) -> str:
        row = self.summary()
        names = ("accuracy", "HLR", "IOR", "LRS")
        numbers = ", ".join(f"{name} {row[name]:z.3f} ± {row[f'{name} std']:.3f}" for name in names)
        chosen = f"{row['rate']:.3g}, random real {row['random rate']:.3g}, whole set {row['whole rate']:.3g}"
        return f"{self.distilled.method}, fairly: {numbers} (rates chosen on validation: {chosen})"


def check_fair(config: EvaluateConfig) -> None:
    """Require that `config` leaves the rates to be chosen on the validation split, and tests on another."""
    require(config.rate is None, f"rate is {config.rate}, but fair evaluation chooses rates: leave it out.")
    sentence = f"split is {config.split!r}, but rates are chosen on the validation split: use 'test'."
    require(config.split == "test", sentence)


@executes
def evaluate_fairly(
    distilled: DistilledSet,
    data: ImageData,
    config: EvaluateConfig,
    fair: FairConfig = FairConfig(),
    *,
    folder: Path | None = None,
    how: Execution = DEFAULT,
) -> FairScores:
    """Evaluate a distilled set, random real images and the whole set, each at the rate that suits it best.

    Args:
        distilled: the set; the two others are preprocessed as it is.
        data: the real set.
        config: as of `evaluate`; its rate must be None, since rates are chosen here, and its split the test.
        fair: what there is to choose from.
        folder: where each evaluation is stored, so that an interrupted run goes on; None keeps nothing.
        how: where it is computed, and what is shown and kept meanwhile.
        options: fields of `Execution` by name, as in `device="cpu"`.

    Raises:
        InputError: a rate is set, the split is not the test split, or a class has too few images.
        DivergenceError: the training of one of the sets diverged at every rate.
    """
    check_fair(config)
    count = max(config.networks, fair.tuning_networks)
    draws = {"ipc": distilled.ipc, "count": count, "seed": config.seed}
    random, whole = random_draws(data, distilled.preprocess, **draws), whole_set(data, distilled.preprocess)
    distilled = replace(distilled, soft_labels=None)
    sets = {"distilled": [distilled] * count, "random": random, "whole": [whole] * count}
    rates = sorted({*fair.rates, float(distilled.alpha)})

    def run(name: str, own: EvaluateConfig) -> Evaluation:
        path = Path(folder) / f"{name}_{own.split}_{own.rate!r}.safetensors" if folder else None
        return evaluate_each(sets[name][: own.networks], data, own, save_to=path, how=how)

    protocols = dict.fromkeys(sets, config) | {"whole": replace(config, epochs=fair.whole_epochs)}
    options = {"rates": rates, "networks": fair.tuning_networks}
    scored = {name: tune(partial(run, name), own, **options) for name, own in protocols.items()}
    return FairScores(**scored, weight=fair.weight)


def tune(
    run: Callable[[EvaluateConfig], Evaluation], config: EvaluateConfig, rates: Sequence[float], networks: int
) -> Evaluation:
    """`run` at the one of `rates` with the best mean accuracy on the validation split (the lowest of equals).

    Raises:
        DivergenceError: training diverges at all of them.
    """
    accuracies = validation_accuracies(run, config, rates, networks=networks)
    return run(replace(config, rate=max(accuracies, key=accuracies.get)))
