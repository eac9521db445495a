"""Distilled sets handed on: to PyTorch, torchvision, and programs that read other formats."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import DataLoader

import iadd_lab
from iadd_lab.baselines.real_images import random_real
from iadd_lab.data.augment import AugmentConfig
from iadd_lab.data.distilled import DistilledSet
from iadd_lab.data.preprocess import Standardise, Zca
from iadd_lab.data.sets import DATASETS, DatasetSpec
from iadd_lab.device import computed_with
from iadd_lab.evaluation.card import data_card
from iadd_lab.evaluation.export import EXPORTS, export_set, folder_names
from iadd_lab.evaluation.protocol import EvaluateConfig, doubts, evaluate, pooled
from iadd_lab.training.networks import NetworkConfig
from tests.conftest import AUGMENT
from tests.processes import complete, ended
from tests.samples import assert_refused, noise, save

EVALUATE = EvaluateConfig(network=NetworkConfig(width=4, depth=2), networks=2, epochs=3, augment=AUGMENT)


@pytest.fixture(scope="module", params=[Standardise, Zca], ids=["standardise", "zca"])
def made(request, toy_data):
    """Six real images, preprocessed in either way."""
    return random_real(toy_data, request.param.fit(toy_data.train.images), ipc=3, seed=0, alpha=0.05)


@pytest.fixture
def stored(made, tmp_path):
    """The folder of that set."""
    return made.save(tmp_path / "run" / "distilled.safetensors").parent


def test_a_set_is_a_data_set_of_images_and_labels(stored):
    training = iadd_lab.load(stored)
    assert isinstance(training, torch.utils.data.Dataset)
    assert (len(training), training.alpha, training.classes) == (6, 0.05, ("0", "1"))
    assert training.labels.tolist() == [0, 0, 0, 1, 1, 1]
    image, label = training[4]
    assert torch.equal(image, training.distilled.images[4])
    assert label == 1
    images, labels = next(iter(DataLoader(training, batch_size=6)))
    assert torch.equal(images, training.images)
    assert torch.equal(labels, training.labels)
    assert len(iadd_lab.load(stored / "distilled.safetensors")) == 6


def test_real_images_are_preprocessed_as_evaluation_does_it(stored, toy_data):
    training = iadd_lab.load(stored)
    test = toy_data.test.images[:5]
    expected = training.distilled.preprocess.apply(test)
    pictures = [Image.fromarray(planes[0].numpy()) for planes in test]
    ways = {
        "picture": torch.stack([training.transform(picture) for picture in pictures]),
        "colour": torch.stack([training.transform(picture.convert("RGB")) for picture in pictures]),
        "bytes": torch.stack([training.transform(planes) for planes in test]),
        "floats": torch.stack([training.transform(planes / 255) for planes in test]),
        "batch": training.transform(test),
    }
    for name, found in ways.items():
        assert found.dtype == torch.float32
        assert torch.allclose(found, expected, atol=1e-5), name


def test_other_sizes_and_channels_become_those_of_the_set(stored):
    transform = iadd_lab.load(stored).transform
    colour = noise((20, 30, 3))
    for image in (Image.fromarray(colour), torch.from_numpy(colour).permute(2, 0, 1), torch.rand(1, 5, 9)):
        assert transform(image).shape == (1, 8, 8)
    assert transform(torch.rand(4, 3, 8, 8)).shape == (4, 1, 8, 8)
    training = iadd_lab.load(stored, channels=3)
    assert training[0][0].shape == training.transform(torch.rand(1, 8, 8)).shape == (3, 8, 8)
    assert_refused("channels is 2, but the set has 1", iadd_lab.load, stored, channels=2)


def test_a_tensor_is_resized_almost_as_a_picture_is(stored):
    transform = iadd_lab.load(stored).transform
    smooth = np.rint(np.linspace(0, 255, 24 * 36)).astype(np.uint8).reshape(24, 36)
    picture, tensor = transform(Image.fromarray(smooth)), transform(torch.from_numpy(smooth)[None])
    assert (picture - tensor).abs().max() < 0.05 * picture.abs().max()


@pytest.mark.parametrize("bad", ["a path", torch.rand(8, 8), torch.rand(2, 8, 8), torch.ones(1, 8, 8).long()])
def test_what_is_no_image_is_refused(stored, bad):
    assert_refused("a real image is .*; give a Pillow image", iadd_lab.load(stored).transform, bad)


def test_a_torchvision_data_set_and_network_take_it(stored, toy_data, tmp_path):
    for label in (0, 1):
        for number, planes in enumerate(toy_data.test.images[toy_data.test.labels == label][:10]):
            save(tmp_path / "real" / str(label) / f"{number}.png", planes[0].numpy())
    training = iadd_lab.load(stored, channels=3)
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=len(training.classes))
    training.fit(network, epochs=60)  # batch norms need as many to know what is usual
    real = torchvision.datasets.ImageFolder(tmp_path / "real", transform=training.transform)
    images, labels = next(iter(DataLoader(real, batch_size=20)))
    with torch.no_grad():
        right = (network(images).argmax(1) == labels).double().mean()
    assert not network.training
    assert right >= 0.7


def test_fitting_is_repeatable(stored):
    training, weights = iadd_lab.load(stored), []
    for _ in range(2):
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
        weights.append(training.fit(network, epochs=3, rate=0.1)[1].weight.detach())
    assert torch.equal(*weights)


def test_fitting_sees_what_the_set_was_made_for(stored, tmp_path, monkeypatch):
    """A set that was made without mirroring is not mirrored behind its owner's back."""
    seen = []

    def train(*_, augment, **__):
        seen.append(augment)
        return ()

    monkeypatch.setattr("iadd_lab.evaluation.training_set.train", train)
    network, made = torch.nn.Flatten(), iadd_lab.load(stored).distilled
    unmirrored = AugmentConfig(operations=("crop",))
    for augment in (None, unmirrored):
        path = replace(made, augment=augment).save(tmp_path / "set.safetensors")
        iadd_lab.load(path).fit(network, epochs=1)
    iadd_lab.load(path).fit(network, epochs=1, augment=AugmentConfig(operations=()))
    assert [config.operations for config in seen] == [DATASETS[made.data.name].augment, ("crop",), ()]


def test_a_folder_of_pngs_holds_the_pictures_in_their_classes(made, stored, tmp_path):
    loss = export_set(stored, "image_folder", tmp_path / "out")
    read = torchvision.datasets.ImageFolder(tmp_path / "out")
    assert read.classes == ["0", "1"]
    assert [label for _, label in read] == [0, 0, 0, 1, 1, 1]
    with Image.open(read.samples[0][0]) as picture:
        assert picture.mode == "L"
        pixels = torch.from_numpy(np.array(picture))
    # Real images have been 8-bit ones: nothing is lost but rounding of the whitening.
    assert (pixels / 255 - made.preprocess.invert(made.images)[0, 0]).abs().max() <= 0.5 / 255 + 1e-4
    assert "by 0.0 % of their norm" in loss


def test_the_loss_of_wild_pictures_is_measured(made, stored, tmp_path):
    pixels = torch.tensor([-0.5, 0.25, 0.75, 2.0]).repeat(16).view(1, 1, 8, 8).repeat(6, 1, 1, 1)
    wild = replace(made, images=made.preprocess.apply(pixels))
    wild.save(tmp_path / "wild.safetensors")
    loss = export_set(tmp_path / "wild.safetensors", "image_folder", tmp_path / "out")
    assert "50.0 % of the values left [0, 1]" in loss
    assert "(from -0.50 to 2.00)" in loss
    share = float(re.search(r"by ([\d.]+) % of their norm", loss)[1])
    assert 20 < share < 120
    assert loss in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_what_exported_pictures_are_worth_is_measured_by_reading_them_back(
    made, stored, toy_data, tmp_path, monkeypatch
):
    """In 8 bits, pixels far above 1 are white; 16 bits keep them."""
    pixels = made.preprocess.invert(made.images) + 5
    wild, white = (replace(made, images=made.preprocess.apply(each)) for each in (pixels, pixels.clamp(0, 1)))
    wild.save(stored / "distilled.safetensors")
    worth = evaluate(wild, toy_data, EVALUATE, save_to=stored / "evaluation.safetensors", progress=False)
    said = export_set(stored, "png16", tmp_path / "other", progress=False)
    assert "are worth was not measured: this set was made from" in said  # the toy data are no data set
    assert "read back" not in export_set(stored, "png16", tmp_path / "no", measure=False)
    monkeypatch.setattr("iadd_lab.evaluation.export.load_data", lambda *_, **__: toy_data)
    for to, expected in {"image_folder": white, "png16": wild}.items():
        said = export_set(stored, to, tmp_path / to, progress=False)
        assert said.splitlines()[1] in (tmp_path / to / "README.md").read_text(encoding="utf-8")
        assert f"Trained on the set itself: {worth}." in said
        found = float(re.search(r"these files, read back: .*?: ([\d.]+) ±", said)[1])
        by_hand = 100 * evaluate(expected, toy_data, EVALUATE, progress=False).accuracies.mean().item()
        assert found == pytest.approx(by_hand, abs=2.2)  # one or two of a hundred images


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_16_bits_come_back_with_all_that_belongs_to_them(toy_data, tmp_path, channels):
    pixels = 40 * torch.rand(5, channels, 8, 9, generator=torch.Generator().manual_seed(0))[..., :8] - 20
    fitted, labels = Standardise.fit(pixels), torch.tensor([1, 0, 1, 1, 0])
    about = {"images": fitted.apply(pixels), "labels": labels, "alpha": 0.07, "method": "learned"}
    made = DistilledSet.of(toy_data, fitted, **about)
    made.save(tmp_path / "distilled.safetensors")
    complete("export {} --to png16 --out {}", tmp_path, tmp_path / "out")
    complete("import-set {} --out {}", tmp_path / "out", tmp_path / "back")
    back, order = DistilledSet.load(tmp_path / "back" / "distilled.safetensors"), labels.argsort(stable=True)
    step = 40 / 65535 / fitted.deviation.min()
    assert (back.images - made.images[order]).abs().max() <= 0.51 * step
    assert torch.equal(back.labels, labels[order])
    assert (back.alpha, back.classes, back.method) == (0.07, made.classes, "learned")
    assert torch.equal(iadd_lab.load(tmp_path / "out").images, back.images)
    (tmp_path / "out" / "0" / "0000.png").unlink()
    said = ended(2, "import-set {} --out {}", tmp_path / "out", tmp_path / "again")
    assert "out can't be used (it has 4 of 5 pictures" in said


@pytest.mark.parametrize("to", list(EXPORTS))
def test_every_export_has_a_card_and_overwrites_nothing(made, stored, tmp_path, to):
    export_set(stored, to, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("# Digits, distilled to 3 images")
    for folder in (tmp_path / "out", stored):
        assert_refused("is not empty", export_set, stored, to, folder)
    if to == "safetensors":
        tensors = load_file(tmp_path / "out" / "distilled.safetensors")
        assert torch.equal(tensors["images"], made.images)
        assert torch.equal(tensors["labels"], made.labels)
        assert iadd_lab.load(tmp_path / "out").distilled.fingerprint == made.fingerprint


def test_a_card_tells_accuracies_of_this_very_set_only(made, stored, toy_data):
    path = stored / "distilled.safetensors"
    assert "Not measured" in data_card(path)
    other = replace(made, images=made.images * 2)
    evaluate(other, toy_data, EVALUATE, save_to=stored / "evaluation_other.safetensors", progress=False)
    assert "Not measured" in data_card(path)
    measured = evaluate(made, toy_data, EVALUATE, save_to=stored / "evaluation.safetensors", progress=False)
    card = data_card(path)
    assert f"| convnet | test | 3 | 2 | {100 * measured.accuracies.mean():.1f} ±" in card
    facts = ["6 images of 1 × 8 × 8", "0, 1", "random real", made.preprocess.kind, made.fingerprint, "UCI"]
    facts.append(f"- written with {computed_with()}\n")
    assert [fact for fact in facts if fact not in card] == []
    assert measured.unfitted == 2
    assert f"ConvNet: {measured.remark}" in card
    (stored / "evaluation_bad.safetensors").write_bytes(b"no evaluation")
    assert data_card(path) == card
    random = replace(measured, method="random real")
    random.save(stored / "evaluation_random.safetensors")
    assert f"ConvNet: {doubts(measured, random)}" in data_card(path)
    pooled([measured] * 3).save(stored / "evaluation.safetensors")
    card = data_card(path)
    assert "| convnet | test | 3 | 6 | " in card
    assert "ConvNet: mean of 3 splits, each with a set of its own" in card


def test_a_card_tells_how_a_set_was_made_also_by_the_revision_before_rooms():
    stored = Path(__file__).parent / "golden" / "stored"
    card = data_card(stored / "learned" / "distilled.safetensors")
    assert "\n- DistillConfig: ipc 1, iterations 6, student_steps 3, teacher_epochs 1, max_start_ep" in card
    assert "\n- teachers: 2 networks (depth 2, name convnet, width 4)" in card
    assert "Config" not in data_card(stored / "dm" / "distilled.safetensors")


def test_every_data_set_has_a_word_on_its_licence():
    unsaid = DatasetSpec.__dataclass_fields__["licence"].default
    assert unsaid not in {spec.licence for spec in DATASETS.values()}


def test_folder_names_are_safe_and_in_order():
    expected = {
        ("cat", "dog"): ["cat", "dog"],
        ("dog", "cat"): ["0_dog", "1_cat"],
        ("T-shirt/top", "../../etc"): ["0_T-shirt_top", "1__.._etc"],
        ("con", "nul.png"): ["0__con", "1__nul.png"],
        ("a", "A"): ["0_a", "1_A"],
        ("", "."): ["0_class", "1_class"],
        ("Größe", "猫"): ["0_Gr__e", "1__"],
    }
    assert {classes: folder_names(classes) for classes in expected} == expected


@given(st.lists(st.text(max_size=12), min_size=2, max_size=12))
def test_any_names_make_different_folders_in_the_classes_order(classes):
    names = folder_names(classes)
    assert sorted(names) == names
    assert len({name.casefold() for name in names}) == len(classes)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9_ -][A-Za-z0-9 _.-]*", name)
        assert not name.endswith((".", " "))
