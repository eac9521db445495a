"""The loop of gradient and distribution matching: what it updates, repeats, resumes, reads and refuses."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from iadd_lab.baselines import descent as image_descent
from iadd_lab.baselines.descent import Descent, DescentConfig, Pair, descend
from iadd_lab.baselines.features import DistributionMatchingConfig, match_distributions
from iadd_lab.baselines.gradients import GradientMatchingConfig, match_gradients
from iadd_lab.data.augment import AugmentConfig
from iadd_lab.data.distilled import DistilledSet
from iadd_lab.device import Execution
from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.history import History
from iadd_lab.distillation.loop import distill
from iadd_lab.distillation.result import DistillResult
from iadd_lab.errors import DivergenceError
from iadd_lab.evaluation.protocol import EvaluateConfig, evaluate
from iadd_lab.seeds import generator
from iadd_lab.store.artefacts import load_artefact
from iadd_lab.store.configs import describe
from iadd_lab.training.networks import NetworkConfig
from tests.conftest import AUGMENT
from tests.samples import assert_refused

NETWORK = NetworkConfig(width=4, depth=2)
OFF = AugmentConfig(operations=())
QUIET = Execution(device="cpu", progress=False)


@dataclass(frozen=True)
class Method:
    """A method as the tests call it."""

    run: Callable[..., DistilledSet]
    config: DescentConfig

    def __call__(self, data, teachers, *, network=NETWORK, folder=None, **change):
        names = {"on_iteration", "checkpoint_seconds", "device"} & change.keys()
        loop = {name: change.pop(name) for name in names}
        config = replace(self.config, **change)
        return self.run(data, teachers.preprocess, network, config, folder=folder, progress=False, **loop)


FEW = {"ipc": 2, "iterations": 4, "real_batch": 8, "augment": AUGMENT}
STEADY = {"iterations": 6, "image_rate": 2.0, "momentum": 0.0, "augment": OFF}
GRADIENTS = GradientMatchingConfig(matches_per_network=2, network_steps=2, **FEW)
MEANS = DistributionMatchingConfig(image_rate=0.2, **FEW)
METHODS = {
    "gradients": Method(match_gradients, GRADIENTS),
    "distributions": Method(match_distributions, MEANS),
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
    # Noise needs no real images of that number.
    noisy = {"initial_images": "noise", "ipc": 400, "iterations": 1, "image_rate": 1e-6}
    made = method(toy_data, toy_teachers, **noisy)
    assert made.images.shape == (800, 1, 8, 8)
    assert abs(made.images.std().item() - 1) < 0.02


@pytest.mark.parametrize("name", METHODS)
def test_two_iterations_are_steps_down_the_distances_of_all_classes(toy_data, toy_teachers, networks, name):
    """With momentum, in float64, one fresh network each, and all real images of a class."""
    method, rate = METHODS[name], {"gradients": 0.1, "distributions": 0.5}[name]
    change, losses, states = {"real_batch": 10_000, "augment": OFF, "momentum": 0.5}, [], []
    change |= {"matches_per_network": 1} if name == "gradients" else {}
    change["on_iteration"] = lambda iteration, history: losses.append(history.loss[-1])
    for image_rate, iterations in ((1e-30, 1), (rate, 1), (rate, 2)):
        made = method(toy_data, toy_teachers, image_rate=image_rate, iterations=iterations, **change)
        states.append(made.images.double())
    first, second = networks[-2:]  # those of the last run; the one before only checked that it fits
    assert not torch.equal(first.features[0].weight, second.features[0].weight)
    real = toy_teachers.preprocess.apply(toy_data.train.images).double()
    images, velocity = states[0], torch.zeros_like(states[0])
    for network, state, loss in ((first, states[1], losses[-2]), (second, states[2], losses[-1])):
        images = images.detach().requires_grad_()
        pairs = [Pair(c, real[toy_data.train.labels == c], images[2 * c : 2 * c + 2]) for c in range(2)]
        total = sum(method.config.distance(network.double(), pair) for pair in pairs)
        velocity = 0.5 * velocity + torch.autograd.grad(total, images)[0]
        images = images - rate * velocity
        assert (rate * velocity).abs().max() > 1e-3  # else the next line says nothing
        assert torch.allclose(state, images, rtol=0, atol=1e-5)
        assert loss == pytest.approx(total.item(), rel=1e-4)


class Killed(Exception):
    """Stands for a kill: nothing in the loop handles it."""


@pytest.mark.parametrize(("stop_at", "momentum"), [(1, 0.5), (3, 0.0)])
def test_resumed_equals_uninterrupted(method, toy_data, toy_teachers, tmp_path, stop_at, momentum):
    whole = method(toy_data, toy_teachers, folder=tmp_path / "whole", momentum=momentum)

    def kill(iteration, history):
        if iteration == stop_at + 1:
            raise Killed

    options = {"folder": tmp_path / "cut", "checkpoint_seconds": 0.0, "momentum": momentum}
    with pytest.raises(Killed):
        method(toy_data, toy_teachers, on_iteration=kill, **options)
    sentence = "checkpoint.safetensors is of a run with another configuration"
    assert_refused(sentence, method, toy_data, toy_teachers, seed=1, **options)
    seen = []
    resumed = method(toy_data, toy_teachers, on_iteration=lambda i, h: seen.append(i), **options)
    assert seen == list(range(stop_at + 1, 5))
    assert torch.equal(resumed.images, whole.images)
    assert stored_history(tmp_path / "cut").loss == stored_history(tmp_path / "whole").loss
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["distilled.safetensors"]


def test_a_finished_run_is_read_back_and_says_how_it_was_made(method, toy_data, toy_teachers, tmp_path):
    made = method(toy_data, toy_teachers, folder=tmp_path)
    called, path = [], tmp_path / "distilled.safetensors"
    again = method(toy_data, toy_teachers, folder=tmp_path, on_iteration=lambda *given: called.append(given))
    assert not called
    for back in (again, DistilledSet.load(path)):
        assert torch.equal(back.images, made.images)
        assert torch.equal(back.labels, made.labels)
        assert (back.method, back.alpha, back.data) == (made.method, made.alpha, made.data)
    history, metadata = stored_history(tmp_path), load_artefact(path, kind="distilled").metadata
    assert len(history.loss) == len(history.seconds) == 4
    assert min(history.seconds) > 0
    assert metadata["baseline"] == describe(method.config)
    assert metadata["network"] == describe(NETWORK)
    assert metadata["made_by"] == "descent"
    assert_refused("holds a set without a distillation", DistillResult.load, path)


def test_a_result_of_anything_else_is_refused(method, toy_data, toy_teachers, tmp_path):
    method(toy_data, toy_teachers, folder=tmp_path)
    preprocess = toy_teachers.preprocess
    shifted = replace(toy_teachers, preprocess=type(preprocess)(preprocess.mean + 1, preprocess.deviation))
    changes = {"seed": 5}, {"augment": OFF}, {"network": NetworkConfig(width=5, depth=2)}
    attempts = [(toy_data, toy_teachers, change) for change in changes]
    attempts += [(replace(toy_data, fingerprint="other"), toy_teachers, {}), (toy_data, shifted, {})]
    for data, teachers, change in attempts:
        sentence = "is the result of another configuration: choose another fol"
        assert_refused(sentence, method, data, teachers, folder=tmp_path, **change)
    config = DistillConfig(iterations=1, student_steps=1, augment=AUGMENT)
    distill(toy_data, toy_teachers, config, folder=tmp_path / "distill", progress=False)
    other = next(one for one in METHODS.values() if one is not method)
    for run, folder in ((other, tmp_path), (method, tmp_path / "distill")):
        assert_refused("another configuration", run, toy_data, toy_teachers, folder=folder)


def test_an_imbalanced_set_is_matched_and_evaluated(method, toy_data, toy_teachers):
    rows = torch.cat(
        [torch.nonzero(toy_data.train.labels == c).flatten()[:count] for c, count in ((0, 999), (1, 3))]
    )
    data = replace(toy_data, train=toy_data.train.take(rows.numpy()))
    made = method(data, toy_teachers, ipc=3)
    assert made.labels.tolist() == [0, 0, 0, 1, 1, 1]
    config = EvaluateConfig(network=NETWORK, networks=1, epochs=2, augment=AUGMENT, split="validation")
    assert evaluate(made, data, config, progress=False).confusion.sum() == len(data.validation)
    sentence = "ipc is 4, but class '1' has only 3 training images: lower ipc"
    assert_refused(sentence, method, data, toy_teachers, ipc=4)


def test_a_network_too_deep_is_refused_before_anything_is_written(method, toy_data, toy_teachers, tmp_path):
    options = {"network": NetworkConfig(depth=9), "folder": tmp_path / "run"}
    assert_refused("depth is 9, too deep for images of 8 px", method, toy_data, toy_teachers, **options)
    assert not (tmp_path / "run").exists()


def test_a_run_that_diverges_ends_with_the_last_good_images(method, toy_data, toy_teachers):
    start = method(toy_data, toy_teachers, image_rate=1e-30, iterations=1).images
    sentence = r"loss is nan.* in iteration \d: lower image_rate \(now 1e\+36\)"
    with pytest.raises(DivergenceError, match=sentence) as stopped:
        method(toy_data, toy_teachers, image_rate=1e36, iterations=9)
    assert torch.equal(stopped.value.result.images, start)


class Overshoot(DistributionMatchingConfig):
    """Every image moves up by its rate, but where `slopes` says otherwise; `seen` are the real batches."""

    def distance(self, network, pair):
        self.seen.append(pair.real)
        return 1 - next(self.slopes, 1.0) * (pair.distilled - pair.distilled.detach()).sum()


def test_images_that_are_unusable_are_taken_back_and_half_the_rate_goes_on(
    toy_data, toy_teachers, tmp_path, caplog
):
    def descent(back_offs, *slopes):
        Overshoot.slopes, Overshoot.seen = iter([1.0, 1.0, *slopes]), []  # the first of the two classes
        own, parts = Overshoot(**FEW | STEADY, back_offs=back_offs), (toy_data, toy_teachers.preprocess)
        return descend(*parts, NETWORK, own, folder=tmp_path / f"{back_offs}{len(slopes)}", how=QUIET)

    start = METHODS["distributions"](toy_data, toy_teachers, iterations=1, image_rate=1e-30).images
    sentence = r"not finite any more\..* in iteration 2.* is kept in"
    with pytest.raises(DivergenceError, match=sentence) as stopped:
        descent(0, 3e38)
    torch.testing.assert_close(stopped.value.result.images, start + 2)
    torch.testing.assert_close(descent(1, 3e38).images, start + 2 + 5 * 1)
    assert "Went back to iteration 1 and halved image_rate" in caplog.text
    # What is done again draws something else, and no more is taken back than may be.
    assert not torch.equal(Overshoot.seen[2], Overshoot.seen[4])
    with pytest.raises(DivergenceError, match=r"loss is nan\..* in iteration 2"):
        descent(1, 3e38, 1.0, float("nan"))


@pytest.mark.parametrize("augment", [OFF, AUGMENT])
@pytest.mark.parametrize(("name", "rate"), [("gradients", 0.5), ("distributions", 2.0)])
def test_the_loss_falls(toy_data, toy_teachers, name, rate, augment):
    change, losses = {"initial_images": "noise", "iterations": 80, "image_rate": rate, "real_batch": 64}, []
    change["on_iteration"] = lambda iteration, history: losses.append(history.loss[-1])
    METHODS[name](toy_data, toy_teachers, augment=augment, **change)
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])


def test_pairs_differ_from_draw_to_draw_and_keep_to_their_class(toy_data, toy_teachers):
    descent = Descent(
        toy_data, toy_teachers.preprocess, NETWORK, replace(MEANS, augment=OFF), torch.device("cpu")
    )
    random = generator(0)
    distilled = torch.zeros(2, 1, 8, 8)
    first, second = (descent.pair(1, distilled, random).real for _ in range(2))
    assert not torch.equal(first, second)
    ones = toy_teachers.preprocess.apply(toy_data.train.images[toy_data.train.labels == 1])
    for batch in (first, second):
        rows = [(ones == image).flatten(1).all(1).nonzero().flatten()[0].item() for image in batch]
        assert len(set(rows)) == 8


def test_what_an_iteration_draws(method, toy_data, toy_teachers, networks, monkeypatch):
    """One augmentation for both batches of a class, another for each pair; a network for each iteration."""
    drawn, seen, draw = [], [], image_descent.draw_augmentation

    def spy_draw(*given, **options):
        drawn.append(draw(*given, **options))
        number = len(drawn)
        return lambda images: seen.append((number, len(images))) or drawn[number - 1](images)

    monkeypatch.setattr(image_descent, "draw_augmentation", spy_draw)
    method(toy_data, toy_teachers, iterations=4)
    pairs = 4 * getattr(method.config, "matches_per_network", 1) * 2  # iterations × matches × classes
    assert seen == [(number, count) for number in range(1, pairs + 1) for count in (8, 2)]
    assert {augmentation.batch for augmentation in drawn} == {1}
    assert len({augmentation.operation for augmentation in drawn}) > 1
    weights = [made.features[0].weight for made in networks[1:]]  # the first was a check
    assert len({tuple(weight.flatten().tolist()) for weight in weights}) == 4


BAD = [
    ("ipc", 0, "ipc is 0; it must be a whole number of at least 1"),
    ("iterations", 1.5, "iterations is 1.5"),
    ("image_rate", 0.0, "image_rate is 0.0; it must be a finite number above 0"),
    ("momentum", 1.0, "momentum is 1.0"),
    ("real_batch", -1, "real_batch is -1"),
    ("seed", -1, "seed is -1"),
]


@pytest.mark.parametrize(("field", "value", "sentence"), BAD)
def test_configs_name_the_bad_value(method, field, value, sentence):
    assert_refused(sentence, replace, method.config, **{field: value})
