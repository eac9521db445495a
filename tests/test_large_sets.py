"""Large sets: batches are preprocessed when they are needed, with the same results, and copied little."""

from dataclasses import replace

import torch

from iadd_lab.baselines.features import DistributionMatchingConfig, match_distributions
from iadd_lab.baselines.real_images import herding
from iadd_lab.data.preprocess import Standardise
from iadd_lab.evaluation.protocol import EvaluateConfig, evaluate
from iadd_lab.study.luck import repeat_segments
from iadd_lab.training.teachers import train_teachers
from tests.soak.large_sets import measured

QUIET = {"progress": False, "device": "cpu"}


def work(data, config, folder):
    """The results of all that looks at real images."""
    teachers = train_teachers(data, replace(config, epochs=2), folder, count=1, **QUIET)
    again = repeat_segments(teachers, data, start_epochs=1, epochs=2, **QUIET)[0].again
    picked = herding(data, teachers, ipc=3, **QUIET).images
    few = DistributionMatchingConfig(ipc=1, iterations=2, real_batch=16)
    made = match_distributions(data, teachers.preprocess, config.network, few, **QUIET)
    tested = evaluate(made, data, EvaluateConfig(networks=1, epochs=3, network=config.network), **QUIET)
    accuracy = torch.tensor(teachers.history(0)["validation_accuracy"])
    return teachers.trajectory(0), accuracy, again, picked, made.images, tested.confusion


def test_results_are_bit_for_bit_those_of_floats_kept(toy_data, toy_config, tmp_path, monkeypatch):
    kept = work(toy_data, toy_config, tmp_path / "kept")
    monkeypatch.setattr(Standardise, "kept", 0)
    monkeypatch.setattr(Standardise, "prepare", spy := Spy(Standardise.prepare))
    batches = work(toy_data, toy_config, tmp_path / "batches")
    assert spy.lazy == 6  # training, its validation, luck, herding, matching and evaluation
    for one, other in zip(kept, batches, strict=True):
        assert torch.equal(one, other)


class Spy:
    """Counts what is not kept as floats."""

    def __init__(self, function):
        self.function, self.lazy = function, 0

    def __get__(self, preprocess, _):
        def prepare(images):
            found = self.function(preprocess, images)
            self.lazy += not isinstance(found, torch.Tensor)
            return found

        return prepare


def test_reading_takes_two_copies_of_the_bytes_at_most():
    found = measured("reading", count=6000, size=64, width=1, batch=1)
    assert found.read - found.before < 2.2 * found.pictures + 30e6
