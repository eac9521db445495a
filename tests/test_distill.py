"""The distillation loop: what it updates, that it repeats and resumes bit for bit, and what it refuses."""

import shutil
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch

from iadd_lab.data.distilled import DistilledSet
from iadd_lab.data.parametrisation import MultiFormation
from iadd_lab.device import Execution
from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.loop import Distillation, distill, distillation_flops
from iadd_lab.distillation.matching import Learned, Pruned, Uniform
from iadd_lab.distillation.result import DistillResult
from iadd_lab.distillation.segments import draw_place, draw_segment
from iadd_lab.distillation.unroll import ENGINES, Variables
from iadd_lab.errors import DivergenceError
from iadd_lab.seeds import generator
from iadd_lab.training.fast.compiling import Kernels, flops
from iadd_lab.training.fast.losses import CapturedStudentLoss, FusedStudentLoss, student_loss
from iadd_lab.training.student import StudentLoss
from iadd_lab.training.teachers import open_teachers
from tests.conftest import AUGMENT
from tests.samples import assert_refused, load

SCALE = {"ipc": 2, "iterations": 6, "student_steps": 3, "teacher_epochs": 1, "batch": 3, "snapshots": 3}
RATES = {"image_rate": 10.0, "alpha_rate": 1e-4, "alpha": 0.05, "matching": Learned(rate=0.05)}
CONFIG = DistillConfig(**SCALE, **RATES, max_start_epoch=2, augment=AUGMENT)


@pytest.fixture(scope="module")
def result(toy_data, toy_teachers):
    return distill(toy_data, toy_teachers, CONFIG, progress=False)


def assert_same(found: DistillResult, expected: DistillResult, *, clock: bool = False) -> None:
    stored, other = (
        made.history.tensors() | {name: getattr(made, name) for name in ("images", "labels", "importance")}
        for made in (found, expected)
    )
    assert (found.alpha, stored.keys()) == (expected.alpha, other.keys())
    for name in stored.keys() - (set() if clock else {"history/seconds"}):
        assert torch.equal(stored[name], other[name]), name


def test_images_alpha_and_importance_are_all_learned(result):
    history = result.history
    assert result.images.shape == (4, 1, 8, 8)
    assert result.labels.tolist() == [0, 0, 1, 1]
    assert not torch.equal(history.snapshot_images[0], result.images)
    assert len(set(history.alpha)) == CONFIG.iterations
    assert result.importance.min() < 1 < result.importance.max()
    assert torch.isclose(result.importance.square().mean(), torch.tensor(1.0))
    for series in (history.loss, history.alpha, history.seconds, history.importance_share):
        assert len(series) == CONFIG.iterations
    assert history.snapshot_iterations == [0, 3, 6]
    assert torch.equal(history.snapshot_images[-1], result.images)
    assert torch.equal(history.snapshot_importance[-1], result.importance)
    assert torch.equal(history.snapshot_importance[0], torch.ones_like(result.importance))


def test_images_start_as_real_ones_of_their_class_or_as_noise(result, toy_data, toy_teachers):
    real = toy_teachers.preprocess.apply(toy_data.train.images)
    for image, label in zip(result.history.snapshot_images[0], result.labels, strict=True):
        assert set(toy_data.train.labels[(real == image).flatten(1).all(1)].tolist()) == {label.item()}
    # Noise needs none of that number.
    noisy = replace(CONFIG, initial_images="noise", iterations=1, ipc=1000, batch=4)
    assert distill(toy_data, toy_teachers, noisy, progress=False).images.shape == (2000, 1, 8, 8)


def test_learning_nothing_about_importance_is_uniform(toy_data, toy_teachers):
    uniform = distill(toy_data, toy_teachers, replace(CONFIG, matching=Uniform()), progress=False)
    for matching in (Learned(rate=0.0), Learned(rate=0.0, normalised=False), Pruned(fraction=0.0)):
        same = distill(toy_data, toy_teachers, replace(CONFIG, matching=matching), progress=False)
        assert torch.equal(same.images, uniform.images)
        assert same.history.loss == uniform.history.loss


class Killed(Exception):
    """Stands for a kill: nothing in the loop handles it."""


RESUMED = {
    "learned": {},
    "adam": {"image_optimizer": "adam", "image_rate": 0.1},
    "uniform": {"matching": Uniform(), "batch": None},
    "pruned": {"matching": Pruned(fraction=0.3)},
    "literal": {"matching": Learned(rate=0.05, normalised=False, granularity="tensor", learn_until=3)},
    "segments": {"segments": 2},
    "frozen": {"gradient": "frozen", "momentum": 0.0, "initial_images": "noise"},
    "averaged formations": {"average": 0.8, "parametrisation": MultiFormation(2), "batch": 5},
    "soft labels": {"labels": "soft", "label_rate": 50.0, "average": 0.5},
    "backed off": {"alpha_rate": 1.5e-3, "alpha": 0.002, "iterations": 12},
}
STEEP = replace(CONFIG, **RESUMED["backed off"])  # α falls below zero without a back-off


@pytest.mark.parametrize("change", RESUMED)
@pytest.mark.parametrize("stop_at", [1, 2, 5])
def test_resumed_equals_uninterrupted(toy_data, toy_teachers, tmp_path, change, stop_at):
    config = replace(CONFIG, **RESUMED[change])
    whole = distill(toy_data, toy_teachers, config, progress=False)

    def kill(iteration, history):
        if iteration == stop_at + 1:
            raise Killed

    options = {"folder": tmp_path, "progress": False, "checkpoint_seconds": 0.0}
    with pytest.raises(Killed):
        distill(toy_data, toy_teachers, config, on_iteration=kill, **options)
    sentence, other = "is of a run with another configuration", replace(config, seed=1)
    assert_refused(sentence, distill, toy_data, toy_teachers, other, **options)
    seen = []
    resumed = distill(toy_data, toy_teachers, config, on_iteration=lambda i, h: seen.append(i), **options)
    assert sorted(set(seen)) == list(range(stop_at + 1, config.iterations + 1))
    assert_same(resumed, whole)
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_segments_are_averaged(toy_data, toy_teachers):
    """One iteration with two segments moves the images by the mean of what each alone asks for."""
    change = {"matching": Pruned(0.3, "difference"), "momentum": 0.0, "seed": 1}
    config = replace(CONFIG, iterations=1, segments=2, **change)
    found = distill(toy_data, toy_teachers, config, progress=False)
    random = generator(config.seed, "segments")
    start = found.history.snapshot_images[0]
    variables = Variables(start, found.labels, torch.tensor(config.alpha), torch.zeros(0))
    loss, parts, plain, targets = StudentLoss(toy_teachers.network(0)), [], [], []
    for _ in range(2):
        place = draw_place(toy_teachers, config, random)
        segment = draw_segment(toy_teachers, config, start, random, *place)
        ends = {"start": segment.start, "target": segment.target, "layout": loss.layout}
        objective = partial(config.matching.loss, **ends)
        parts.append(ENGINES["full"](loss, segment, variables, objective))
        plain.append(Uniform().loss(parts[-1].end, variables.raw, **ends).item())
        targets.append(segment.target)
    assert not torch.equal(*targets)
    one, other = (part.loss.item() for part in parts)
    assert one != other
    assert found.history.loss == pytest.approx([(one + other) / 2], rel=1e-4)
    assert found.history.unweighted_loss == pytest.approx([sum(plain) / 2], rel=1e-4)
    # W is that of the last segment.
    place = {"end": parts[-1].end, "target": targets[-1], "layout": loss.layout}
    assert torch.equal(found.importance, config.matching.weights(variables.raw, **place))
    moved = -config.image_rate * (parts[0].images + parts[1].images) / 2
    torch.testing.assert_close(found.images - start, moved, rtol=1e-3, atol=1e-5)


def test_the_average_of_the_images_is_the_result(toy_data, toy_teachers):
    """Nothing else changes: it is that of the images which a run without it goes through."""
    plain, averaged = (
        distill(toy_data, toy_teachers, replace(CONFIG, snapshots=7, average=decay), progress=False)
        for decay in (0.0, 0.8)
    )
    assert (plain.history.loss, plain.alpha) == (averaged.history.loss, averaged.alpha)
    first, *later = plain.history.snapshot_images
    average = first.double()
    for images, shown in zip(later, averaged.history.snapshot_images[1:], strict=True):
        average = 0.8 * average + 0.2 * images
        torch.testing.assert_close(shown.double(), average, rtol=1e-5, atol=1e-5)
    assert torch.equal(averaged.images, averaged.history.snapshot_images[-1])
    away = (plain.images - averaged.images).norm() / plain.images.norm()
    assert averaged.history.average_distance[-1] == pytest.approx(away.item(), rel=1e-5) != 0
    assert len(averaged.history.average_distance) == CONFIG.iterations
    assert not plain.history.average_distance


def test_every_teacher_and_start_epoch_is_drawn_and_snapshots_are_spaced_evenly(toy_data, toy_teachers):
    random = generator(0)
    drawn = {draw_place(toy_teachers, CONFIG, random) for _ in range(60)}
    assert drawn == {(teacher, epoch) for teacher in range(2) for epoch in range(CONFIG.max_start_epoch)}
    ten = replace(CONFIG, iterations=10, snapshots=4)
    run = Distillation(toy_data, toy_teachers, ten, Execution(device="cpu", compile="never"))
    assert run.snapshot_at == {0, 3, 7, 10}  # rounded, not cut off


@pytest.mark.parametrize("gradient", ["adjoint", "frozen"])
def test_fused_layers_tell_the_same_story(toy_data, toy_teachers, monkeypatch, gradient):
    """With the fused layers as they are compiled, but for the compiling."""
    config = replace(CONFIG, gradient=gradient)
    expected = distill(toy_data, toy_teachers, config, progress=False)
    module = sys.modules["iadd_lab.distillation.loop"]
    monkeypatch.setattr(module, "choose_kernels", lambda *_, **__: Kernels(compiled=True, transforms=True))
    monkeypatch.setattr("iadd_lab.training.fast.winograd.FEWEST_CHANNELS", 2)
    found = distill(toy_data, toy_teachers, config, progress=False)
    assert found.history.loss == pytest.approx(expected.history.loss, rel=1e-3)
    assert not torch.equal(found.images, expected.images)  # other rounding: it was another way


def test_what_pays_for_compiling_is_the_work_of_the_whole_run(toy_data, toy_teachers):
    network = toy_teachers.network(0)
    work = distillation_flops(network, toy_data, CONFIG)
    assert work == 11 * 3 * 3 * 6 * flops(network, channels=1, size=8)
    assert distillation_flops(network, toy_data, replace(CONFIG, segments=2)) == 2 * work
    assert distillation_flops(network, toy_data, replace(CONFIG, batch=None)) == work / 3 * 4
    assert distillation_flops(network, toy_data, replace(CONFIG, gradient="full")) == 0
    assert_refused("sometimes", distill, toy_data, toy_teachers, CONFIG, compile="sometimes")


def test_a_finished_run_is_read_back_and_that_of_another_configuration_or_teachers_refused(
    toy_data, toy_teachers, tmp_path, result
):
    made = distill(toy_data, toy_teachers, CONFIG, folder=tmp_path, progress=False)
    assert_same(made, result)
    called, options = [], {"folder": tmp_path, "progress": False}
    options["on_iteration"] = lambda *given: called.append(given)
    again = distill(toy_data, toy_teachers, CONFIG, **options)
    assert not called
    assert_same(again, made, clock=True)
    assert again.config == CONFIG
    assert again.teacher_config == toy_teachers.config
    assert DistilledSet.load(tmp_path / "distilled.safetensors").alpha == made.alpha
    fewer = tmp_path / "fewer"
    shutil.copytree(toy_teachers.folder, fewer)
    (fewer / "teacher_001.safetensors").unlink()
    for teachers, config in ((toy_teachers, replace(CONFIG, seed=5)), (open_teachers(fewer), CONFIG)):
        assert_refused("another configuration", distill, toy_data, teachers, config, **options)


def test_the_matching_loss_falls(toy_data, toy_teachers):
    config = replace(CONFIG, iterations=60, matching=Uniform(), max_start_epoch=1, batch=None)
    loss = distill(toy_data, toy_teachers, config, progress=False).history.loss
    assert sum(loss[-10:]) < 0.9 * sum(loss[:10])


def test_alpha_at_zero_stops_with_the_last_good_state(toy_data, toy_teachers, tmp_path):
    steep = replace(CONFIG, alpha_rate=0.05, iterations=50, back_offs=0)
    sentence, checkpoints = r"alpha would fall .* lower alpha_rate .* kept in", set()
    for _ in range(2):  # another try starts from the kept state and stops at the very same place
        with pytest.raises(DivergenceError, match=sentence) as stopped:
            distill(toy_data, toy_teachers, steep, folder=tmp_path, progress=False)
        assert stopped.value.result.alpha > 0
        assert not stopped.value.result.history.back_off_rates
        assert torch.isfinite(stopped.value.result.images).all()
        checkpoints.add((tmp_path / "checkpoint.safetensors").read_bytes())
    assert len(checkpoints) == 1


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("rate", [1e20, 1e38])
def test_the_state_kept_is_one_whose_loss_was_finite(toy_data, toy_teachers, tmp_path, rate):
    wild = replace(CONFIG, image_rate=rate, iterations=20, back_offs=0)
    with pytest.raises(DivergenceError, match="image_rate") as stopped:
        distill(toy_data, toy_teachers, wild, folder=tmp_path, progress=False)
    kept = stopped.value.result
    assert kept.images.abs().max() < 100
    assert len(kept.history.alpha) == len(kept.history.loss) == kept.history.snapshot_iterations[-1] == 0
    wild = replace(CONFIG, alpha=1e30, student_steps=5)
    with pytest.raises(DivergenceError, match=r"not finite \(\S+\): lower alpha .*, image_rate"):
        distill(toy_data, toy_teachers, wild, progress=False)


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_back_off_halves_the_rate_at_fault_and_goes_on(toy_data, toy_teachers, caplog):
    history = distill(toy_data, toy_teachers, STEEP, progress=False).history
    assert len(history.loss) == STEEP.iterations
    assert min(history.alpha) > 0
    assert 1 <= len(history.back_off_rates) <= STEEP.back_offs
    share = 0.5 ** len(history.back_off_rates)
    assert (history.share_of("alpha_rate"), history.share_of("image_rate")) == (share, 1.0)
    assert "alpha would fall" in caplog.text
    assert "halved alpha_rate" in caplog.text
    # A loss that is not finite takes the step before back.
    wild = replace(CONFIG, image_rate=1e30, iterations=8, back_offs=100)
    history = distill(toy_data, toy_teachers, wild, progress=False).history
    assert len(history.loss) == wild.iterations
    assert torch.isfinite(torch.tensor(history.loss)).all()
    assert 0 < history.share_of("image_rate") < 1


UNFIT = [
    ("max_start_epoch", 4, "max_start_epoch 4 and teacher_epochs 1 reach epoch 4, but .* 3 epochs: lower"),
    ("teacher_epochs", 9, "teacher_epochs 9 reach epoch 10"),
    ("ipc", 5000, r"ipc is 5000, but class '\d' has only \d+ training images: lower ipc"),
    ("batch", 5, "batch is 5, but there are only 4 distilled images"),
    ("parametrisation", MultiFormation(3), "factor is 3, but images have 8 pixels a side: choose a divisor"),
    ("parametrisation", MultiFormation(8), r"ipc is 128, but class '\d' has only \d+ training images"),
]


@pytest.mark.parametrize(("field", "value", "sentence"), UNFIT)
def test_what_does_not_fit_together_is_refused(toy_data, toy_teachers, field, value, sentence):
    config = replace(CONFIG, **{field: value})
    assert_refused(sentence, distill, toy_data, toy_teachers, config, progress=False)
    sentence = r"were trained on .* but the data is .*: load that data, or train"
    assert_refused(sentence, distill, load("digits"), toy_teachers, config, progress=False)


BAD = [
    ("student_steps", -1, "student_steps is -1; it must be a whole number of at least 1"),
    ("batch", 0, "batch is 0"),
    ("image_rate", 1e39, r"image_rate is 1e\+39; .* above 0 and at most 3.4e\+38"),
    ("alpha", 0.0, "alpha is 0.0; it must be a finite number above 0"),
    ("alpha_rate", -1e-9, "alpha_rate is -1e-09"),
    ("image_optimizer", "sdg", "did you mean 'sgd'"),
    ("gradient", "adjiont", "did you mean 'adjoint'"),
    ("initial_images", "fake", "unknown initial_images 'fake'"),
    ("snapshots", 1, "snapshots is 1"),
    ("matching", "learned", "it must be a Matching"),
    ("parametrisation", "pixels", r"it must be a Parametrisation, as in Pixels\(\) or MultiFormation\(\)"),
    ("labels", "soft labels", "unknown labels 'soft labels'"),
    ("label_rate", -1.0, "label_rate is -1.0"),
    ("label_momentum", 1.0, "label_momentum is 1.0"),
    ("average", 1.0, "average is 1.0; it must be .* at most 0.99999"),
]


@pytest.mark.parametrize(("field", "value", "sentence"), BAD)
def test_configs_name_the_bad_value(field, value, sentence):
    assert_refused(sentence, replace, CONFIG, **{field: value})


def test_graphs_are_replayed_where_they_are_wanted(toy_data, toy_teachers):
    """On every GPU unless refused; a refusal holds for compiled kernels as well."""
    how = Execution(device="cpu", compile="never")
    assert type(Distillation(toy_data, toy_teachers, CONFIG, how).loss) is FusedStudentLoss
    kernels = Kernels(compiled=True, graphs=True)
    network = toy_teachers.network(0)
    assert isinstance(student_loss(network, kernels), CapturedStudentLoss)
    assert not isinstance(student_loss(network, replace(kernels, graphs=False)), CapturedStudentLoss)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_graphs_change_nothing(toy_data, toy_teachers):
    config = replace(CONFIG, iterations=4, student_steps=12, alpha_rate=1e-6)  # all augmentations are drawn
    options = {"device": "cuda", "progress": False}
    expected = distill(toy_data, toy_teachers, config, cuda_graphs=False, **options)
    found = distill(toy_data, toy_teachers, config, cuda_graphs=True, **options)
    torch.testing.assert_close(found.images, expected.images, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("compile", ["never", "always"])
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_gpu_tells_the_same_story(toy_data, toy_teachers, compile, cuda_graphs):
    expected = distill(toy_data, toy_teachers, CONFIG, progress=False)
    options = {"compile": compile, "cuda_graphs": cuda_graphs}
    found = distill(toy_data, toy_teachers, CONFIG, device="cuda", progress=False, **options)
    assert found.history.loss == pytest.approx(expected.history.loss, rel=1e-3)
    assert found.alpha == pytest.approx(expected.alpha, rel=1e-3)
