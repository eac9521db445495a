"""A finished distillation looked at again: the same draws, the same steps, and every number by hand."""

from dataclasses import replace

import pytest
import torch

from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.loop import distill
from iadd_lab.distillation.matching import Learned, Pruned, Uniform
from iadd_lab.distillation.segments import draw_place, draw_segment
from iadd_lab.distillation.unroll import Variables, full, walk
from iadd_lab.seeds import generator
from iadd_lab.study.replay import ReplayedSegment, hardness, one_iteration, replay
from iadd_lab.training.fast.compiling import PLAIN
from iadd_lab.training.fast.losses import student_loss
from iadd_lab.training.teachers import open_teachers
from tests.conftest import AUGMENT
from tests.samples import assert_refused

CONFIG = DistillConfig(
    ipc=2,
    iterations=4,
    student_steps=3,
    teacher_epochs=2,
    max_start_epoch=2,
    batch=3,
    image_rate=10.0,
    alpha_rate=1e-4,
    alpha=0.05,
    matching=Learned(rate=0.3),
    augment=AUGMENT,
)


@pytest.fixture(scope="module")
def learned(toy_data, toy_teachers):
    return distill(toy_data, toy_teachers, CONFIG, progress=False)


@pytest.fixture(scope="module")
def uniform(toy_data, toy_teachers):
    return distill(toy_data, toy_teachers, replace(CONFIG, matching=Uniform(), seed=1), progress=False)


@pytest.fixture(scope="module")
def replayed(learned, toy_teachers):
    return replay(learned, toy_teachers, segments=5)


def drawn(result, teachers, seed, index):
    """What `replay` draws for one segment: the place, the segment, and the finished variables."""
    stream = generator(seed, "replay", index)
    teacher, epoch = draw_place(teachers, result.config, stream)
    segment = draw_segment(teachers, result.config, result.images, stream, teacher=teacher, start_epoch=epoch)
    alpha = torch.tensor(result.alpha)
    return teacher, epoch, segment, Variables(result.images, result.labels, alpha, result.raw)


def test_a_replay_walks_as_the_student_does(learned, toy_teachers):
    loss = student_loss(toy_teachers.network(0), PLAIN, plain=True)
    replayed = replay(learned, toy_teachers, segments=4, seed=7)
    assert len(replayed) == 4
    for index, each in enumerate(replayed):
        teacher, epoch, segment, variables = drawn(learned, toy_teachers, 7, index)
        assert (each.teacher, each.start_epoch, each.target_epoch) == (teacher, epoch, epoch + 2)
        assert torch.equal(each.student, torch.stack(walk(loss, segment, variables)))
        assert torch.equal(each.student[0], toy_teachers.snapshot(teacher, epoch))
        assert torch.equal(each.end, each.student[-1])
        assert torch.equal(each.target, toy_teachers.snapshot(teacher, epoch + 2))
        assert torch.equal(each.movement, segment.target - segment.start)
        assert torch.equal(each.difference, each.end - segment.target)
        assert torch.equal(each.trajectory, toy_teachers.trajectory(teacher))


def test_segments_differ_and_follow_the_seed(learned, toy_teachers, replayed):
    longer = replay(learned, toy_teachers, segments=6)
    for each, again in zip(replayed, longer, strict=False):  # they do not depend on how many follow
        assert torch.equal(each.student, again.student)
    ends = torch.stack([each.end for each in longer])
    assert len(ends.unique(dim=0)) == 6
    assert not torch.equal(replay(learned, toy_teachers, segments=1, seed=1)[0].end, ends[0])
    assert_refused("segments is 0", replay, learned, toy_teachers, segments=0)


def test_two_results_are_replayed_on_the_same_segments(learned, uniform, toy_teachers, replayed):
    # With the same images it is the same walk: rows and augmentations are drawn alike too.
    swapped = replace(uniform, distilled=learned.distilled)
    others, alike = (replay(each, toy_teachers, segments=5) for each in (uniform, swapped))
    for each, other, same in zip(replayed, others, alike, strict=True):
        assert (each.teacher, each.start_epoch) == (other.teacher, other.start_epoch)
        assert torch.equal(each.student[0], other.student[0])
        assert not torch.equal(each.end, other.end)
        assert torch.equal(each.student, same.student)


def test_hardness_is_the_root_mean_square_of_the_difference(replayed):
    """And relative hardness its share of the movement."""
    pairs = [(e.student[-1], e.trajectory[e.start_epoch]) for e in replayed]
    aims = torch.stack([e.trajectory[e.start_epoch + 2] for e in replayed]).double()
    ends, starts = (torch.stack(each).double() for each in zip(*pairs, strict=True))
    difference, moved = ((aims - each).pow(2).mean(0).pow(0.5) for each in (ends, starts))
    assert torch.allclose(hardness(replayed).double(), difference, rtol=1e-5, atol=1e-9)
    moving, found = moved > 1e-6 * moved.max(), hardness(replayed, relative=True).double()
    assert torch.isfinite(found).all()
    assert moving.sum() > len(moved) / 2
    assert torch.allclose(found[moving], (difference / moved)[moving], rtol=1e-5, atol=1e-9)


def test_what_the_teacher_does_not_move_is_not_hard():
    trajectory = torch.zeros(3, 4)
    trajectory[2] = torch.tensor([2.0, 0.0, 1e-9, -4.0])
    student = torch.stack([trajectory[0], torch.tensor([1.0, 0.5, 1e-8, -4.0])])
    one = ReplayedSegment(0, 0, 2, student, trajectory)
    assert hardness([one], relative=True).tolist() == pytest.approx([0.5, 0.0, 0.0, 0.0])
    assert hardness([one]).tolist() == pytest.approx([1.0, 0.5, 9e-9, 0.0])
    still = replace(one, trajectory=torch.zeros(3, 4))
    assert hardness([still], relative=True).tolist() == [0.0] * 4


@pytest.mark.parametrize("seed", [2, 3])
@pytest.mark.parametrize("matching", [Uniform(), Learned(rate=0.3), Pruned(fraction=0.2)])
def test_an_iterations_numbers_are_those_of_its_segment_and_matching(learned, toy_teachers, matching, seed):
    result = replace(learned, config=replace(CONFIG, matching=matching))
    iteration = one_iteration(result, toy_teachers, real_images=10, seed=seed)
    teacher, epoch, segment, variables = drawn(result, toy_teachers, seed, 0)
    place = (iteration.teacher, iteration.start_epoch, iteration.target_epoch)
    assert place == (teacher, epoch, epoch + 2)
    loss = student_loss(toy_teachers.network(0), PLAIN, plain=True)
    end = walk(loss, segment, variables)[-1]
    left, moved = ((vector - segment.target).double().norm().item() for vector in (end, segment.start))
    distances = (iteration.end_distance, iteration.start_distance, iteration.unweighted_loss)
    assert distances == pytest.approx((left, moved, (left / moved) ** 2), rel=1e-5)
    places = {"start": segment.start, "target": segment.target, "layout": toy_teachers.layout}
    assert iteration.loss == pytest.approx(matching.loss(end, result.raw, **places).item(), rel=1e-6)
    weighted = abs(iteration.loss - iteration.unweighted_loss) > 1e-3 * iteration.loss
    assert weighted == (not isinstance(matching, Uniform))
    # One graph over all steps has the same gradients as the adjoint engine of the configuration.
    gradients = full(loss, segment, variables, lambda end, raw: matching.loss(end, raw, **places))
    assert iteration.image_gradient == pytest.approx(gradients.images.norm().item(), rel=1e-3)
    assert iteration.alpha_gradient == pytest.approx(gradients.alpha.item(), rel=1e-3)
    assert iteration.importance_gradient == pytest.approx(gradients.raw.norm().item(), rel=1e-3)
    assert (iteration.importance_gradient > 0) == isinstance(matching, Learned)


def test_an_iteration_describes_its_run(learned, toy_teachers):
    iteration = one_iteration(learned, toy_teachers, real_images=123, seed=4)
    _, _, segment, _ = drawn(learned, toy_teachers, 4, 0)
    assert iteration.augmentations == tuple(step.augmentation.operation for step in segment.steps)
    assert len(iteration.augmentations) == learned.config.student_steps == 3
    assert (iteration.real_images, iteration.teachers) == (123, 2)
    assert iteration.result is learned
    assert iteration.layout == toy_teachers.layout
    frozen = replace(learned, config=replace(CONFIG, gradient="frozen"))  # the run's engine is used
    rough = one_iteration(frozen, toy_teachers, real_images=123, seed=4)
    assert rough.loss == iteration.loss
    assert rough.image_gradient != iteration.image_gradient


@pytest.mark.parametrize("look", [replay, lambda r, t: one_iteration(r, t, real_images=10)])
def test_other_teachers_are_refused(learned, toy_teachers, look):
    fewer = open_teachers(toy_teachers.folder, count=1)
    sentence = f"of fingerprint {fewer.fingerprint}, but .* distilled from {toy_teachers.fingerprint}"
    assert_refused(sentence, look, learned, fewer)


def test_looking_changes_nothing(learned, toy_teachers, tmp_path):
    before = learned.save(tmp_path / "before.safetensors").read_bytes()
    tensors = (learned.images, learned.labels, learned.raw, learned.importance)
    versions, state = [tensor._version for tensor in tensors], torch.get_rng_state()
    for _ in range(2):
        replay(learned, toy_teachers, segments=2)
        one_iteration(learned, toy_teachers, real_images=10)
    assert learned.save(tmp_path / "after.safetensors").read_bytes() == before
    assert [tensor._version for tensor in tensors] == versions
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(tensor.requires_grad for tensor in tensors)
