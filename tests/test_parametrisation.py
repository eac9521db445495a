"""How distilled images are stored: decoding, its transpose, and sets that hold less than networks see."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional

import iadd_lab
from iadd_lab.data.distilled import DistilledSet
from iadd_lab.data.parametrisation import PARAMETRISATIONS, MultiFormation, Pixels
from iadd_lab.distillation.loop import distill
from iadd_lab.distillation.result import DistillResult
from iadd_lab.distillation.segments import draw_place, draw_segment
from iadd_lab.distillation.unroll import ENGINES, Variables, walk
from iadd_lab.evaluation.card import data_card
from iadd_lab.evaluation.export import export_set, reread
from iadd_lab.evaluation.protocol import EvaluateConfig, Evaluation, evaluate
from iadd_lab.seeds import generator
from iadd_lab.store.artefacts import load_artefact, save_artefact
from iadd_lab.training.student import StudentLoss
from tests.conftest import AUGMENT
from tests.samples import assert_refused, randn
from tests.test_distill import CONFIG
from tests.test_unroll import make_problem, relative, replaced

FORMATION = replace(CONFIG, parametrisation=MultiFormation(2))


@pytest.fixture(scope="module")
def made(toy_data, toy_teachers, tmp_path_factory):
    """The folder of a finished distillation whose stored images hold four each."""
    folder = tmp_path_factory.mktemp("made")
    distill(toy_data, toy_teachers, FORMATION, folder=folder, progress=False)
    return folder


@pytest.mark.parametrize("factor", [2, 4])
def test_each_small_image_is_enlarged_bilinearly(factor):
    form, stored, side = MultiFormation(factor), randn(3, 2, 8, 8), 8 // factor
    seen = form.decode(stored)
    assert seen.shape == (3 * form.views, 2, 8, 8)
    for number, image in enumerate(seen):
        which, row, column = number // form.views, number % form.views // factor, number % factor
        places = (slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side))
        small = stored[(slice(which, which + 1), slice(None), *places)]
        expected = functional.interpolate(small, size=8, mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(image, expected, rtol=0, atol=1e-14)
    # What was small already comes back when it is made small by area.
    flat = randn(3 * form.views, 2, 1, 1).expand(-1, -1, 8, 8).contiguous()
    torch.testing.assert_close(form.decode(form.encode(flat)), flat, rtol=0, atol=1e-14)
    means = form.encode(seen)[0, :, :1, :1], seen[0, :, :factor, :factor].mean((1, 2), keepdim=True)
    torch.testing.assert_close(*means)


FORMS = {"pixels": Pixels(), "multi_formation": MultiFormation(2)}


@pytest.mark.parametrize("name", PARAMETRISATIONS)
def test_decoding_is_linear_and_the_transpose_is_its_own(name):
    form, one, other = FORMS[name], randn(2, 3, 8, 8), randn(2, 3, 8, 8, seed=2)
    assert relative(form.decode(one + 3 * other), form.decode(one) + 3 * form.decode(other)) < 1e-14
    sent = randn(2 * form.views, 3, 8, 8, seed=3)
    back = form.transpose(sent, stored=one)
    assert back.shape == one.shape
    assert relative((back * one).sum(), (form.decode(one) * sent).sum()) < 1e-13


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_of_stored_images_equal_the_full_unroll_through_the_decoding(engine):
    """And finite differences; `frozen` is exact where there is but one step."""
    form, steps = MultiFormation(2), 1 if engine == "frozen" else 3
    loss, segment, variables, objective = make_problem(steps=steps, batch=5, operations=("crop",))
    labels = variables.labels.repeat_interleave(form.views)
    stored = variables.images.clone().requires_grad_()
    seen = replace(variables, images=form.decode(stored), labels=labels)
    found = ENGINES[engine](loss, segment, replaced(seen, "images", seen.images.detach()), objective)
    own = form.transpose(found.images, stored=stored)

    flat = segment.start.clone().requires_grad_()
    for step in segment.steps:  # one graph, from the stored images on
        value = loss(flat, step.augmentation(seen.images[step.rows]), labels[step.rows])
        flat = flat - seen.alpha * torch.autograd.grad(value, flat, create_graph=True)[0]
    (expected,) = torch.autograd.grad(objective(flat, seen.raw), stored)
    assert relative(own, expected) < 1e-10

    def at(images):
        moved = replace(seen, images=form.decode(images.detach()))
        return objective(walk(loss, segment, moved)[-1], seen.raw)

    direction = randn(*stored.shape, seed=5)
    slope = (at(stored + 1e-6 * direction) - at(stored - 1e-6 * direction)) / 2e-6
    assert relative(slope, (own * direction).sum()) < 1e-6


def test_an_iteration_moves_the_stored_images_by_the_transpose(toy_data, toy_teachers):
    config = replace(FORMATION, iterations=1, momentum=0.0, snapshots=2, batch=6)
    result = distill(toy_data, toy_teachers, config, progress=False)
    start, random = result.history.snapshot_images[0], generator(config.seed, "segments")
    # Four real images of its class in each stored one, made small.
    real = functional.avg_pool2d(toy_teachers.preprocess.apply(toy_data.train.images), 2)
    for image, label in zip(start, result.labels, strict=True):
        for part in image.unfold(1, 4, 4).unfold(2, 4, 4).flatten(1, 2).unbind(1):
            same = (real == part).flatten(1).all(1)
            assert set(toy_data.train.labels[same].tolist()) == {label.item()}
    seen = config.parametrisation.decode(start)
    place = draw_place(toy_teachers, config, random)
    segment = draw_segment(toy_teachers, config, seen, random, *place)
    assert max(step.rows.max().item() for step in segment.steps) >= len(start)
    variables = Variables(
        seen, result.labels.repeat_interleave(4), torch.tensor(config.alpha), torch.zeros_like(result.raw)
    )
    loss = StudentLoss(toy_teachers.network(0))
    ends = {"start": segment.start, "target": segment.target, "layout": loss.layout}
    found = ENGINES["full"](loss, segment, variables, partial(config.matching.loss, **ends))
    moved = -config.image_rate * config.parametrisation.transpose(found.images, stored=start)
    torch.testing.assert_close(result.images - start, moved, rtol=1e-3, atol=1e-5)


def test_a_set_keeps_what_is_stored_and_networks_see_what_it_decodes_to(made, toy_data, tmp_path):
    result = DistillResult.load(made / "distilled.safetensors")
    stored = iadd_lab.DistilledSet.load(made / "distilled.safetensors")
    assert stored.parametrisation == result.config.parametrisation == MultiFormation(2)
    assert (stored.ipc, stored.images.shape, stored.storage) == (2, (4, 1, 8, 8), 4 * 64 + 4)
    plain = replace(stored, parametrisation=Pixels())
    assert (plain.decoded, plain.fingerprint == stored.fingerprint) == (plain, False)
    assert torch.equal(stored.pictures(result.history.snapshot_images[-1]), stored.pictures())
    seen = stored.decoded
    assert (seen.ipc, seen.labels.tolist()) == (8, [0] * 8 + [1] * 8)
    assert torch.equal(seen.images, MultiFormation(2).decode(stored.images))
    to_train = iadd_lab.load(made)
    assert torch.equal(to_train.images, seen.images)
    assert torch.equal(to_train.targets, seen.labels)
    config = EvaluateConfig(network=result.teacher_config.network, networks=2, epochs=3, augment=AUGMENT)
    found, expected = (evaluate(each, toy_data, config, progress=False) for each in (stored, seen))
    assert torch.equal(found.confusion, expected.confusion)
    assert str(found).endswith("(2 × convnet), a set of 260 numbers")
    assert Evaluation.load(found.save(tmp_path / "evaluation.safetensors")).storage == 260
    assert "numbers" not in str(replace(found, storage=0))


@pytest.mark.parametrize("to", ["mtt", "png16", "safetensors"])
def test_exports_hold_what_networks_see_and_the_card_says_the_storage(made, tmp_path, to):
    stored = DistilledSet.load(made / "distilled.safetensors")
    said = export_set(made, to, tmp_path / "out", measure=False)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "each holds 4 images, which networks see enlarged (MultiFormation, factor 2)" in card
    assert "storage: 260 numbers" in card
    if to == "safetensors":
        assert DistilledSet.load(tmp_path / "out" / "distilled.safetensors").fingerprint == stored.fingerprint
        return
    back = reread(tmp_path / "out")
    assert "16 images are what networks see of 4 stored ones: 1,040 numbers; the set itself is 260" in said
    torch.testing.assert_close(back.images, stored.decoded.images, rtol=0, atol=1e-3)
    assert (back.parametrisation, back.labels.tolist()) == (Pixels(), stored.decoded.labels.tolist())


def test_what_does_not_fit_is_refused(made, tmp_path):
    assert_refused("factor is 1; it must be a whole number of at least 2", MultiFormation, 1)
    artefact = load_artefact(made / "distilled.safetensors", kind="distilled")
    for wrong in ({"kind": "MultiFormation", "factor": 3}, {"kind": "Fourier"}):
        metadata = artefact.metadata | {"parametrisation": wrong}
        path = tmp_path / "distilled.safetensors"
        save_artefact(path, kind="distilled", tensors=artefact.tensors, metadata=metadata)
        assert_refused("distilled.safetensors", DistilledSet.load, path)


def test_the_card_of_plain_images_says_no_word_of_them(made, tmp_path):
    stored = DistilledSet.load(made / "distilled.safetensors")
    path = replace(stored, parametrisation=Pixels()).save(tmp_path / "distilled.safetensors")
    assert "networks see" not in data_card(path)
