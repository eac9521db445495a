"""A finished distillation looked at again: the same draws, the same steps, and every number by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.loop import distill
from iadd_lab.distillation.matching import Learned, Pruned, Uniform
from iadd_lab.distillation.segments import draw_place, draw_segment
from iadd_lab.distillation.unroll import StudentLoss, Variables, full, walk
from iadd_lab.errors import InputError
from iadd_lab.seeds import generator
from iadd_lab.study.replay import SegmentPath, hardness, one_iteration, replay
from iadd_lab.training.teachers import open_teachers
from tests.conftest import AUGMENT

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
    snapshots=3,
)


@pytest.fixture(scope="module")
def learned(toy_data, toy_teachers):
    return distill(toy_data, toy_teachers, CONFIG, progress=False)


@pytest.fixture(scope="module")
def uniform(toy_data, toy_teachers):
    return distill(toy_data, toy_teachers, replace(CONFIG, matching=Uniform(), seed=1), progress=False)


@pytest.fixture(scope="module")
def paths(learned, toy_teachers):
    return replay(learned, toy_teachers, segments=5)


def drawn(result, teachers, seed, index):
    """What `replay` draws for one segment: the place, the segment, and the finished variables."""
    stream = generator(seed, "replay", index)
    teacher, epoch = draw_place(teachers, result.config, stream)
    segment = draw_segment(teachers, result.config, result.images, stream, teacher=teacher, start_epoch=epoch)
    alpha = torch.tensor(result.alpha)
    return teacher, epoch, segment, Variables(result.images, result.labels, alpha, result.raw)


def test_a_replay_walks_as_the_student_does(learned, toy_teachers):
    loss = StudentLoss(toy_teachers.network(0))
    paths = replay(learned, toy_teachers, segments=4, seed=7)
    assert len(paths) == 4
    for index, path in enumerate(paths):
        teacher, epoch, segment, variables = drawn(learned, toy_teachers, 7, index)
        assert (path.teacher, path.start_epoch, path.target_epoch) == (teacher, epoch, epoch + 2)
        expected = walk(loss, segment, variables)
        assert torch.equal(path.student, torch.stack(expected))
        assert torch.equal(path.end, expected[-1])
        assert torch.equal(path.student[0], toy_teachers.snapshot(teacher, epoch))
        assert torch.equal(path.target, toy_teachers.snapshot(teacher, epoch + 2))
        assert torch.equal(path.movement, segment.target - segment.start)
        assert torch.equal(path.difference, expected[-1] - segment.target)
        for at in range(4):
            assert torch.equal(path.trajectory[at], toy_teachers.snapshot(teacher, at))


def test_segments_differ_and_follow_the_seed(learned, toy_teachers, paths):
    longer = replay(learned, toy_teachers, segments=6)
    for path, again in zip(paths, longer, strict=False):  # the first five do not depend on how many follow
        assert torch.equal(path.student, again.student)
    ends = torch.stack([path.end for path in longer])
    assert len(ends.unique(dim=0)) == 6
    assert not torch.equal(replay(learned, toy_teachers, segments=1, seed=1)[0].end, ends[0])


def test_two_results_are_replayed_on_the_same_segments(learned, uniform, toy_teachers, paths):
    others = replay(uniform, toy_teachers, segments=5)
    for path, other in zip(paths, others, strict=True):
        assert (path.teacher, path.start_epoch) == (other.teacher, other.start_epoch)
        assert torch.equal(path.student[0], other.student[0])
        assert not torch.equal(path.end, other.end)
    # With the same images it is the same walk: rows and augmentations are drawn alike too.
    swapped = replace(uniform, distilled=learned.distilled)
    for path, other in zip(paths, replay(swapped, toy_teachers, segments=5), strict=True):
        assert torch.equal(path.student, other.student)


def test_a_replay_needs_a_segment(learned, toy_teachers):
    with pytest.raises(InputError, match="segments is 0"):
        replay(learned, toy_teachers, segments=0)


def root_mean_square(vectors):
    """By a loop, in float64: (P,)."""
    columns = torch.stack(list(vectors)).double().T.tolist()
    return torch.tensor(
        [math.sqrt(sum(v * v for v in column) / len(column)) for column in columns], dtype=torch.float64
    )


def test_hardness_is_the_root_mean_square_of_the_difference(paths):
    expected = root_mean_square(path.student[-1] - path.trajectory[path.start_epoch + 2] for path in paths)
    assert torch.allclose(hardness(paths).double(), expected, rtol=1e-5, atol=1e-9)


def test_relative_hardness_is_a_share_of_the_movement(paths):
    moved = root_mean_square(
        path.trajectory[path.start_epoch + 2] - path.trajectory[path.start_epoch] for path in paths
    )
    moving = moved > 1e-6 * moved.max()
    found = hardness(paths, relative=True)
    assert torch.isfinite(found).all()
    assert moving.sum() > len(moved) / 2
    expected = hardness(paths)[moving].double() / moved[moving]
    assert torch.allclose(found[moving].double(), expected, rtol=1e-5)


def test_what_the_teacher_does_not_move_is_not_hard():
    trajectory = torch.zeros(3, 4)
    trajectory[2] = torch.tensor([2.0, 0.0, 1e-9, -4.0])
    student = torch.stack([trajectory[0], torch.tensor([1.0, 0.5, 1e-8, -4.0])])
    path = SegmentPath(0, 0, 2, student, trajectory)
    assert hardness([path], relative=True).tolist() == pytest.approx([0.5, 0.0, 0.0, 0.0])
    assert hardness([path]).tolist() == pytest.approx([1.0, 0.5, 9e-9, 0.0])
    still = replace(path, trajectory=torch.zeros(3, 4))
    assert hardness([still], relative=True).tolist() == [0.0] * 4


@pytest.mark.parametrize("seed", [0, 3])
def test_without_weights_the_loss_is_a_ratio_of_distances(uniform, toy_teachers, seed):
    iteration = one_iteration(uniform, toy_teachers, real_images=10, seed=seed)
    (path,) = replay(uniform, toy_teachers, segments=1, seed=seed)
    ratio = (iteration.end_distance / iteration.start_distance) ** 2
    assert iteration.loss == pytest.approx(ratio, rel=1e-5)
    assert iteration.unweighted_loss == pytest.approx(ratio, rel=1e-5)
    assert iteration.end_distance == pytest.approx(path.difference.double().norm().item(), rel=1e-5)
    assert iteration.start_distance == pytest.approx(path.movement.double().norm().item(), rel=1e-5)
    assert (iteration.teacher, iteration.start_epoch) == (path.teacher, path.start_epoch)
    assert iteration.target_epoch == path.target_epoch
    assert iteration.importance_gradient == 0


@pytest.mark.parametrize("matching", [Learned(rate=0.3), Pruned(fraction=0.2)])
def test_with_weights_the_loss_is_the_matchings(learned, toy_teachers, matching):
    result = replace(learned, config=replace(CONFIG, matching=matching))
    iteration = one_iteration(result, toy_teachers, real_images=10, seed=2)
    _, _, segment, variables = drawn(result, toy_teachers, 2, 0)
    loss = StudentLoss(toy_teachers.network(0))
    end = walk(loss, segment, variables)[-1]
    places = {"start": segment.start, "target": segment.target, "layout": toy_teachers.layout}
    assert iteration.loss == pytest.approx(matching.loss(end, result.raw, **places).item(), rel=1e-6)
    plain = (end - segment.target).square().sum() / (segment.start - segment.target).square().sum()
    assert iteration.unweighted_loss == pytest.approx(plain.item(), rel=1e-5)
    assert abs(iteration.loss - iteration.unweighted_loss) > 1e-3 * iteration.loss
    # One graph over all steps has the same gradients as the adjoint engine of the configuration.
    gradients = full(loss, segment, variables, lambda end, raw: matching.loss(end, raw, **places))
    assert iteration.image_gradient == pytest.approx(gradients.images.norm().item(), rel=1e-3)
    assert iteration.alpha_gradient == pytest.approx(gradients.alpha.item(), rel=1e-3)
    assert iteration.importance_gradient == pytest.approx(gradients.raw.norm().item(), rel=1e-3)
    assert (iteration.importance_gradient > 0) == isinstance(matching, Learned)


def test_an_iteration_uses_the_engine_of_the_run(learned, toy_teachers):
    frozen = replace(learned, config=replace(CONFIG, gradient="frozen"))
    exact = one_iteration(learned, toy_teachers, real_images=10)
    rough = one_iteration(frozen, toy_teachers, real_images=10)
    assert rough.loss == exact.loss
    assert rough.image_gradient != exact.image_gradient


def test_an_iteration_describes_its_run(learned, toy_teachers):
    iteration = one_iteration(learned, toy_teachers, real_images=123, seed=4)
    _, _, segment, _ = drawn(learned, toy_teachers, 4, 0)
    assert iteration.augmentations == tuple(step.augmentation.operation for step in segment.steps)
    assert len(iteration.augmentations) == iteration.student_steps == 3
    assert (iteration.real_images, iteration.teachers) == (123, 2)
    assert iteration.classes == learned.distilled.classes
    assert iteration.alpha == learned.alpha
    assert torch.equal(iteration.importance, learned.importance)
    assert torch.equal(iteration.pictures, learned.distilled.pictures())
    assert iteration.layout == toy_teachers.layout


@pytest.mark.parametrize("look", [replay, lambda r, t: one_iteration(r, t, real_images=10)])
def test_other_teachers_are_refused(learned, toy_teachers, look):
    fewer = open_teachers(toy_teachers.folder, count=1)
    with pytest.raises(InputError) as caught:
        look(learned, fewer)
    message = str(caught.value)
    assert f"have fingerprint {fewer.fingerprint}" in message
    assert f"distilled from {toy_teachers.fingerprint}" in message


def test_looking_changes_nothing(learned, toy_teachers, tmp_path):
    before = learned.save(tmp_path / "before.safetensors").read_bytes()
    versions = [t._version for t in (learned.images, learned.labels, learned.raw, learned.importance)]
    state, alpha = torch.get_rng_state(), learned.alpha
    for _ in range(2):
        replay(learned, toy_teachers, segments=2)
        one_iteration(learned, toy_teachers, real_images=10)
    assert learned.save(tmp_path / "after.safetensors").read_bytes() == before
    assert [t._version for t in (learned.images, learned.labels, learned.raw, learned.importance)] == versions
    assert learned.alpha == alpha
    assert torch.equal(torch.get_rng_state(), state)
    assert not learned.images.requires_grad
    assert not learned.raw.requires_grad
