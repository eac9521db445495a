"""Learned soft labels: where they start, how they move, and that they go where the set goes."""

from dataclasses import replace
from functools import partial

import pytest
import torch

import iadd_lab
from iadd_lab.data.distilled import DistilledSet
from iadd_lab.data.mtt_format import IMAGES, LABELS, import_mtt
from iadd_lab.data.parametrisation import MultiFormation
from iadd_lab.device import Execution
from iadd_lab.distillation.loop import Distillation, distill
from iadd_lab.distillation.result import DistillResult
from iadd_lab.distillation.segments import draw_place, draw_segment
from iadd_lab.distillation.unroll import ENGINES, Variables
from iadd_lab.errors import DivergenceError
from iadd_lab.evaluation.export import export_set
from iadd_lab.seeds import generator
from iadd_lab.training.student import StudentLoss
from tests.test_distill import CONFIG, RESUMED

SOFT = replace(CONFIG, **RESUMED["soft labels"])


@pytest.fixture(scope="module")
def made(toy_data, toy_teachers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("soft")
    return folder, distill(toy_data, toy_teachers, SOFT, folder=folder, progress=False)


def test_they_start_as_the_mean_logits_of_the_teachers_that_are_right(toy_data, toy_teachers):
    config = replace(SOFT, ipc=4, initial_images="noise", seed=3)
    run = Distillation(toy_data, toy_teachers, config, Execution(device="cpu", compile="never"))
    loss = StudentLoss(toy_teachers.network(0))
    said = [loss.logits(toy_teachers.snapshot(number, 3), run.images) for number in range(2)]
    cases = set()
    for row, label in enumerate(run.labels.tolist()):
        right = [each[row] for each in said if each[row].argmax() == label]
        cases.add(len(right))
        mean = torch.stack(right or [each[row] for each in said]).mean(0)
        expected = mean if right else mean.flip(0)  # of two classes, they change places
        torch.testing.assert_close(run.soft_labels[row], expected)
    assert cases == {0, 1, 2}
    assert torch.equal(run.soft_labels.argmax(1), run.labels)


def test_an_iteration_moves_the_logits_by_the_gradient_through_the_softmax(toy_data, toy_teachers):
    change = {"iterations": 1, "snapshots": 2, "average": 0.0, "parametrisation": MultiFormation(2)}
    config = replace(SOFT, **change, batch=6)
    result = distill(toy_data, toy_teachers, config, progress=False)
    images, logits = result.history.snapshot_images[0], result.history.snapshot_soft_labels[0]
    assert logits.shape == (16, 2)  # of what networks see
    seen, random = config.parametrisation.decode(images), generator(config.seed, "segments")
    place = draw_place(toy_teachers, config, random)
    segment, loss = (
        draw_segment(toy_teachers, config, seen, random, *place),
        StudentLoss(toy_teachers.network(0)),
    )
    point = logits.clone().requires_grad_()
    labels, alpha = point.softmax(1), torch.tensor(config.alpha)
    variables = Variables(seen, labels.detach(), alpha, torch.zeros_like(result.raw))
    ends = {"start": segment.start, "target": segment.target, "layout": loss.layout}
    found = ENGINES["full"](loss, segment, variables, partial(config.matching.loss, **ends))
    (slope,) = torch.autograd.grad(labels, point, found.soft)
    moved = result.distilled.soft_labels - logits
    assert moved.abs().max() > 1e-4
    torch.testing.assert_close(moved, -config.label_rate * slope, rtol=1e-3, atol=1e-6)


def test_the_set_keeps_the_average_of_its_logits_and_networks_are_trained_on_them(made):
    folder, result = made
    assert torch.equal(result.distilled.soft_labels, result.history.snapshot_soft_labels[-1])
    assert not torch.equal(*result.history.snapshot_soft_labels[:2])
    back = iadd_lab.load(folder)
    assert torch.equal(back.targets, result.distilled.soft_labels.softmax(1))
    assert result.distilled.storage == 4 * 64 + 4 * 2
    kept = DistillResult.load(folder / "distilled.safetensors")
    assert torch.equal(kept.distilled.soft_labels, result.distilled.soft_labels)


def test_a_rate_of_nothing_leaves_them_and_hard_ones_are_the_default(toy_data, toy_teachers):
    still = distill(toy_data, toy_teachers, replace(SOFT, label_rate=0.0), progress=False)
    first, *_, last = still.history.snapshot_soft_labels
    torch.testing.assert_close(first, last, rtol=1e-5, atol=1e-6)
    assert distill(toy_data, toy_teachers, CONFIG, progress=False).distilled.soft_labels is None


def test_a_set_in_a_peer_s_layout_goes_out_and_in_unchanged(made, toy_data, tmp_path):
    folder, result = made
    export_set(folder, "mtt", tmp_path / "out", measure=False)
    images, logits, rate = (torch.load(tmp_path / "out" / name) for name in (IMAGES, LABELS, "lr_best.pt"))
    assert torch.equal(images, result.images)
    assert torch.equal(logits, result.distilled.soft_labels)
    assert rate == result.alpha
    back = import_mtt(tmp_path / "out", toy_data, preprocess="standardise")
    assert torch.equal(back.soft_labels, logits)
    assert back.alpha == result.alpha
    assert DistilledSet.load(back.save(tmp_path / "again.safetensors")).fingerprint == back.fingerprint


def test_a_rate_of_labels_that_is_too_high_is_the_one_at_fault(toy_data, toy_teachers, monkeypatch):
    original = Distillation.gradients

    def steep(run):
        found, *rest = original(run)
        return replace(found, soft=found.soft * 1e30), *rest

    monkeypatch.setattr(Distillation, "gradients", steep)
    wild = replace(SOFT, label_rate=1e20, back_offs=0)
    with pytest.raises(
        DivergenceError, match=r"not be finite in iteration 1: lower label_rate \(now 1e\+20\)"
    ):
        distill(toy_data, toy_teachers, wild, progress=False)
    history = distill(toy_data, toy_teachers, replace(wild, back_offs=200), progress=False).history
    assert history.share_of("label_rate") < 1e-10 < 1.0 == history.share_of("image_rate")
