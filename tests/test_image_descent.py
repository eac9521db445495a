"""The loop of gradient and distribution matching: what it updates, repeats, resumes, reads and refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from iadd_lab.baselines import descent as image_descent
from iadd_lab.baselines.descent import Descent, DescentConfig, descend
from iadd_lab.baselines.features import DistributionMatchingConfig, match_distributions
from iadd_lab.baselines.gradients import GradientMatchingConfig, match_gradients
from iadd_lab.data.augment import AugmentConfig
from iadd_lab.data.distilled import DistilledSet
from iadd_lab.device import Execution
from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.history import History
from iadd_lab.distillation.loop import distill
from iadd_lab.distillation.result import DistillResult
from iadd_lab.errors import DivergenceError, InputError
from iadd_lab.evaluation.protocol import EvaluateConfig, evaluate
from iadd_lab.seeds import generator
from iadd_lab.store.artefacts import load_artefact
from iadd_lab.store.configs import describe
from iadd_lab.training.networks import NetworkConfig
from tests.conftest import AUGMENT

NETWORK = NetworkConfig(width=4, depth=2)
QUIET = Execution(device="cpu", progress=False)


@dataclass(frozen=True)
class Method:
    """A method as the tests call it."""

    run: Callable[..., DistilledSet]
    config: DescentConfig

    def __call__(self, data, teachers, *, network=NETWORK, folder=None, **change):
        loop = {
            key: change.pop(key) for key in ("on_iteration", "checkpoint_seconds", "device") if key in change
        }
        config = replace(self.config, **change)
        return self.run(data, teachers.preprocess, network, config, folder=folder, progress=False, **loop)


METHODS = {
    "gradients": Method(
        match_gradients,
        GradientMatchingConfig(
            ipc=2, iterations=4, matches_per_network=2, network_steps=2, real_batch=8, augment=AUGMENT
        ),
    ),
    "distributions": Method(
        match_distributions,
        DistributionMatchingConfig(ipc=2, iterations=4, image_rate=0.2, real_batch=8, augment=AUGMENT),
    ),
}


@pytest.fixture(params=METHODS)
def method(request) -> Method:
    return METHODS[request.param]


def stored_history(folder) -> History:
    return History.from_tensors(load_artefact(folder / "distilled.safetensors", kind="distilled").tensors)


def test_images_move_from_real_ones_and_nothing_else_does(method, toy_data, toy_teachers):
    made = method(toy_data, toy_teachers)
    assert made.labels.tolist() == [0, 0, 1, 1]
    assert made.images.shape == (4, 1, 8, 8)
    assert (made.alpha, made.ipc, made.method) == (0.01, 2, method.config.method)
    start = DistillConfig(ipc=2, iterations=1, student_steps=1, image_rate=1e-30, augment=AUGMENT)
    first = distill(toy_data, toy_teachers, start, progress=False).history.snapshot_images[0]
    moved = (made.images - first).flatten(1).norm(dim=1)
    assert (moved > 1e-3).all()
    real = toy_teachers.preprocess.apply(toy_data.train.images)
    assert all((real == image).flatten(1).all(1).any() for image in first)  # `distill` starts from the same


def test_noise_start_needs_no_real_images_of_that_number(method, toy_data, toy_teachers):
    made = method(toy_data, toy_teachers, initial_images="noise", ipc=400, iterations=1, image_rate=1e-6)
    assert made.images.shape == (800, 1, 8, 8)
    assert abs(made.images.std().item() - 1) < 0.02


def test_same_seed_same_bits_whatever_the_global_generator(method, toy_data, toy_teachers):
    first = method(toy_data, toy_teachers)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    assert torch.equal(method(toy_data, toy_teachers).images, first.images)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(method(toy_data, toy_teachers, seed=1).images, first.images)


class Killed(Exception):
    """Stands for a kill: nothing in the loop handles it."""


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("stop_at", [1, 3])
def test_resumed_equals_uninterrupted(method, toy_data, toy_teachers, tmp_path, stop_at, momentum):
    whole = method(toy_data, toy_teachers, folder=tmp_path / "whole", momentum=momentum)

    def kill(iteration, history):
        if iteration == stop_at + 1:
            raise Killed

    options = {"folder": tmp_path / "cut", "checkpoint_seconds": 0.0, "momentum": momentum}
    with pytest.raises(Killed):
        method(toy_data, toy_teachers, on_iteration=kill, **options)
    seen = []
    resumed = method(toy_data, toy_teachers, on_iteration=lambda i, h: seen.append(i), **options)
    assert seen == list(range(stop_at + 1, 5))
    assert torch.equal(resumed.images, whole.images)
    assert stored_history(tmp_path / "cut").loss == stored_history(tmp_path / "whole").loss
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["distilled.safetensors"]


def test_a_checkpoint_of_another_run_is_refused(method, toy_data, toy_teachers, tmp_path):
    def kill(iteration, history):
        if iteration == 2:
            raise Killed

    with pytest.raises(Killed):
        method(toy_data, toy_teachers, folder=tmp_path, checkpoint_seconds=0.0, on_iteration=kill)
    with pytest.raises(InputError, match=r"checkpoint.safetensors is of a run with another configuration"):
        method(toy_data, toy_teachers, folder=tmp_path, seed=1)


def test_a_finished_run_is_read_back(method, toy_data, toy_teachers, tmp_path):
    made = method(toy_data, toy_teachers, folder=tmp_path)
    called = []
    again = method(toy_data, toy_teachers, folder=tmp_path, on_iteration=lambda *given: called.append(given))
    assert not called
    for back in (again, DistilledSet.load(tmp_path / "distilled.safetensors")):
        assert torch.equal(back.images, made.images)
        assert torch.equal(back.labels, made.labels)
        assert (back.method, back.alpha, back.data) == (made.method, made.alpha, made.data)
    history = stored_history(tmp_path)
    assert len(history.loss) == len(history.seconds) == 4
    assert min(history.seconds) > 0


def test_the_artefact_says_how_it_was_made_and_is_no_distillation(method, toy_data, toy_teachers, tmp_path):
    method(toy_data, toy_teachers, folder=tmp_path)
    path = tmp_path / "distilled.safetensors"
    metadata = load_artefact(path, kind="distilled").metadata
    assert metadata["baseline"] == describe(method.config)
    assert metadata["network"] == describe(NETWORK)
    assert "config" not in metadata
    with pytest.raises(InputError, match="holds a set without a distillation"):
        DistillResult.load(path)


def test_a_result_of_anything_else_is_refused(method, toy_data, toy_teachers, tmp_path):
    method(toy_data, toy_teachers, folder=tmp_path)
    other_data = replace(toy_data, fingerprint="other")
    preprocess = toy_teachers.preprocess
    shifted = replace(toy_teachers, preprocess=type(preprocess)(preprocess.mean + 1, preprocess.deviation))
    for data, teachers, change in (
        (toy_data, toy_teachers, {"seed": 5}),
        (toy_data, toy_teachers, {"augment": AugmentConfig(operations=())}),
        (toy_data, toy_teachers, {"network": NetworkConfig(width=5, depth=2)}),
        (other_data, toy_teachers, {}),
        (toy_data, shifted, {}),
    ):
        with pytest.raises(InputError, match=r"is the result of another configuration: choose another fol"):
            method(data, teachers, folder=tmp_path, **change)


def test_one_methods_result_is_not_anothers_nor_a_distillations(toy_data, toy_teachers, tmp_path):
    METHODS["gradients"](toy_data, toy_teachers, folder=tmp_path / "gradients")
    config = DistillConfig(iterations=1, student_steps=1, augment=AUGMENT)
    distill(toy_data, toy_teachers, config, folder=tmp_path / "distill", progress=False)
    for folder in ("gradients", "distill"):
        with pytest.raises(InputError, match="another configuration"):
            METHODS["distributions"](toy_data, toy_teachers, folder=tmp_path / folder)


def test_an_imbalanced_set_is_matched_and_evaluated(method, toy_data, toy_teachers):
    ones = torch.nonzero(toy_data.train.labels == 1).flatten()
    zeros = torch.nonzero(toy_data.train.labels == 0).flatten()
    train = toy_data.train.take(torch.cat([ones[:3], zeros]).numpy())
    data = replace(toy_data, train=train)
    made = method(data, toy_teachers, ipc=3)
    assert made.labels.tolist() == [0, 0, 0, 1, 1, 1]
    config = EvaluateConfig(network=NETWORK, networks=1, epochs=2, augment=AUGMENT, split="validation")
    assert evaluate(made, data, config, progress=False).confusion.sum() == len(data.validation)
    with pytest.raises(InputError, match=r"ipc is 4, but class '1' has only 3 training images: lower ipc"):
        method(data, toy_teachers, ipc=4)


def test_a_network_too_deep_is_refused_before_anything_is_written(method, toy_data, toy_teachers, tmp_path):
    with pytest.raises(InputError, match=r"depth is 9, too deep for images of 8 px"):
        method(toy_data, toy_teachers, network=NetworkConfig(depth=9), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_diverges_ends_with_the_last_good_images(method, toy_data, toy_teachers):
    start = method(toy_data, toy_teachers, image_rate=1e-30, iterations=1).images
    with pytest.raises(
        DivergenceError, match=r"loss is nan.* in iteration \d: lower image_rate \(now 1e\+36\)"
    ) as stopped:
        method(toy_data, toy_teachers, image_rate=1e36, iterations=9)
    assert torch.equal(stopped.value.result.images, start)


def test_a_back_off_halves_the_rate_and_goes_on(toy_data, toy_teachers, tmp_path, caplog):
    def overshoot(task, images, optimizer, random):
        rate = optimizer.param_groups[0]["lr"]
        images.add_(1.0 if rate < 1 or images.max() < 3 else torch.inf)
        return torch.tensor(2.0)

    config = replace(METHODS["distributions"].config, iterations=6, image_rate=1.0)
    task = Descent(toy_data, toy_teachers.preprocess, NETWORK, config, QUIET)
    made = descend(task, overshoot, folder=tmp_path)
    torch.testing.assert_close(made.images, task.initial_images() + 6)
    assert "halved image_rate" in caplog.text


def test_images_that_a_finite_loss_makes_unusable_are_not_kept(toy_data, toy_teachers):
    def overshoot(task, images, optimizer, random):
        images.add_(1.0 if images.max() < 3 else torch.inf)
        return torch.tensor(2.0)

    config = METHODS["distributions"].config
    task = Descent(toy_data, toy_teachers.preprocess, NETWORK, config, QUIET)
    with pytest.raises(
        DivergenceError, match=r"images are not finite any more\..* in iteration 3"
    ) as stopped:
        descend(replace(task, config=replace(config, iterations=9, back_offs=0)), overshoot)
    assert torch.equal(stopped.value.result.images, task.initial_images() + 1 + 1)


# One augmentation for both batches


def test_the_real_and_the_distilled_batch_share_one_augmentation(method, toy_data, toy_teachers, monkeypatch):
    calls: dict[int, list[int]] = {}

    def spy(*given, **options):
        drawn = image_descent_draw(*given, **options)

        def augmentation(images):
            calls.setdefault(id(augmentation), []).append(len(images))
            kept.append(augmentation)
            return drawn(images)

        return augmentation

    kept: list[object] = []  # alive, so that no id comes back
    image_descent_draw = image_descent.draw_augmentation
    monkeypatch.setattr(image_descent, "draw_augmentation", spy)
    method(toy_data, toy_teachers, iterations=2)
    matches = getattr(method.config, "matches_per_network", 1)
    assert list(calls.values()) == [[8, 2]] * (2 * matches * 2)  # iterations × matches × classes


def test_matching_all_real_images_with_themselves_leaves_nothing_to_do(method, toy_data, toy_teachers):
    # Under two augmentations the batches would differ. The order of the sums is all that does.
    count = int(torch.bincount(toy_data.train.labels).min())
    kept = torch.cat([torch.nonzero(toy_data.train.labels == label).flatten()[:count] for label in range(2)])
    data = replace(toy_data, train=toy_data.train.take(kept.numpy()))
    losses = []
    for ipc in (count, 1):
        method(
            data,
            toy_teachers,
            ipc=ipc,
            real_batch=count,
            image_rate=1e-9,
            iterations=3,
            on_iteration=lambda iteration, history: losses.append(history.loss[-1]),
        )
    same, single = losses[:3], losses[3:]
    assert max(same) < 1e-5 * min(single)


def test_pairs_differ_from_draw_to_draw_and_keep_to_their_class(toy_data, toy_teachers):
    config = replace(METHODS["distributions"].config, augment=AugmentConfig(operations=()))
    task = Descent(toy_data, toy_teachers.preprocess, NETWORK, config, QUIET)
    random = generator(0)
    distilled = torch.zeros(2, 1, 8, 8)
    first, second = (task.pair(1, distilled, random).real for _ in range(2))
    assert not torch.equal(first, second)
    ones = toy_teachers.preprocess.apply(toy_data.train.images[toy_data.train.labels == 1])
    for batch in (first, second):
        rows = [(ones == image).flatten(1).all(1).nonzero().flatten()[0].item() for image in batch]
        assert len(set(rows)) == 8


def test_networks_and_augmentations_are_new_in_every_iteration(method, toy_data, toy_teachers, monkeypatch):
    drawn, networks = [], []
    draw, build = image_descent.draw_augmentation, image_descent.network_for

    def spy_draw(*given, **options):
        drawn.append(draw(*given, **options))
        return drawn[-1]

    def spy_build(*given, **options):
        networks.append(build(*given, **options).features[0].weight.detach().clone())
        return build(*given, **options)

    monkeypatch.setattr(image_descent, "draw_augmentation", spy_draw)
    monkeypatch.setattr(image_descent, "network_for", spy_build)
    method(toy_data, toy_teachers, iterations=4)
    assert {augmentation.batch for augmentation in drawn} == {1}
    assert len({augmentation.operation for augmentation in drawn}) > 1
    assert len({tuple(weight.flatten().tolist()) for weight in networks[1:]}) == 4  # the first was a check


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("ipc", 0, "ipc is 0; it must be a whole number of at least 1"),
        ("iterations", 1.5, "iterations is 1.5"),
        ("image_rate", 0.0, "image_rate is 0.0; it must be a finite number above 0"),
        ("momentum", 1.0, "momentum is 1.0"),
        ("real_batch", -1, "real_batch is -1"),
        ("initial_images", "fake", "unknown initial_images 'fake'"),
        ("seed", -1, "seed is -1"),
    ],
)
def test_configs_name_the_bad_value(method, field, value, sentence):
    with pytest.raises(InputError, match=sentence):
        replace(method.config, **{field: value})
