"""Exports: what each format keeps, what it loses, names of folders, and the card beside them."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

import iadd_lab
from iadd_lab.baselines.real_images import random_real
from iadd_lab.data.preprocess import Standardise, Zca
from iadd_lab.data.sets import DATASETS, DatasetSpec
from iadd_lab.errors import InputError
from iadd_lab.evaluation.card import data_card
from iadd_lab.evaluation.export import EXPORTS, export_set, folder_names
from iadd_lab.evaluation.protocol import EvaluateConfig, evaluate
from iadd_lab.training.networks import NetworkConfig
from tests.conftest import AUGMENT

EVALUATE = EvaluateConfig(network=NetworkConfig(width=4, depth=2), networks=2, epochs=3, augment=AUGMENT)


@pytest.fixture(params=[Standardise, Zca])
def made(request, toy_data):
    return random_real(toy_data, request.param.fit(toy_data.train.images), ipc=2, seed=0)


@pytest.fixture
def stored(made, tmp_path):
    made.save(tmp_path / "run" / "distilled.safetensors")
    return tmp_path / "run"


def test_a_folder_of_pngs_holds_the_pictures_in_their_classes(made, stored, toy_data, tmp_path):
    loss = export_set(stored, "image_folder", tmp_path / "out")
    read = torchvision.datasets.ImageFolder(tmp_path / "out")
    assert read.classes == ["0", "1"]
    assert [label for _, label in read] == [0, 0, 1, 1]
    with Image.open(read.samples[0][0]) as picture:
        assert picture.mode == "L"
        pixels = torch.from_numpy(np.array(picture))
    # Real images have been 8-bit ones: nothing is lost but rounding of the whitening.
    assert (pixels / 255 - made.preprocess.invert(made.images)[0, 0]).abs().max() <= 0.5 / 255 + 1e-4
    assert "root mean square error 0.000" in loss


def test_the_loss_of_wild_pictures_is_measured(made, stored, tmp_path):
    pixels = torch.tensor([-0.5, 0.25, 0.75, 2.0]).repeat(16).view(1, 1, 8, 8).repeat(4, 1, 1, 1)
    wild = replace(made, images=made.preprocess.apply(pixels))
    wild.save(tmp_path / "wild.safetensors")
    loss = export_set(tmp_path / "wild.safetensors", "image_folder", tmp_path / "out")
    assert "50.0 % of the values left [0, 1]" in loss
    assert "(from -0.50 to 2.00)" in loss
    assert f"root mean square error {((0.25 + 1.0) / 4) ** 0.5:.3f}" in loss
    share = float(re.search(r"([\d.]+) % of the preprocessed norm", loss)[1])
    assert 20 < share < 120
    assert loss in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_safetensors_hold_plain_tensors_and_load_again(made, stored, tmp_path):
    export_set(stored, "safetensors", tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "distilled.safetensors")
    assert torch.equal(tensors["images"], made.images)
    assert torch.equal(tensors["labels"], made.labels)
    assert iadd_lab.load(tmp_path / "out").distilled.fingerprint == made.fingerprint


@pytest.mark.parametrize("to", list(EXPORTS))
def test_every_export_has_a_card_and_overwrites_nothing(stored, tmp_path, to):
    export_set(stored, to, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("# Digits, distilled to 2 images")
    for folder in (tmp_path / "out", stored):
        with pytest.raises(InputError, match="is not empty"):
            export_set(stored, to, folder)


def test_a_card_tells_accuracies_of_this_very_set_only(made, stored, toy_data):
    path = stored / "distilled.safetensors"
    assert "Not measured" in data_card(path)
    other = replace(made, images=made.images * 2)
    evaluate(other, toy_data, EVALUATE, save_to=stored / "evaluation_other.safetensors", progress=False)
    assert "Not measured" in data_card(path)
    measured = evaluate(made, toy_data, EVALUATE, save_to=stored / "evaluation.safetensors", progress=False)
    card = data_card(path)
    assert f"| convnet | test | 3 | 2 | {100 * measured.accuracies.mean():.1f} ±" in card
    facts = ("4 images of 1 × 8 × 8", "0, 1", "random real", made.preprocess.kind, made.fingerprint, "UCI")
    assert [fact for fact in facts if fact not in card] == []
    assert measured.unfitted == 2
    assert f"ConvNet: {measured.remark}" in card
    (stored / "evaluation_bad.safetensors").write_bytes(b"no evaluation")
    assert data_card(path) == card


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


@settings(derandomize=True, deadline=None, database=None, max_examples=50)
@given(st.lists(st.text(max_size=12), min_size=2, max_size=12))
def test_any_names_make_different_folders_in_the_classes_order(classes):
    names = folder_names(classes)
    assert sorted(names) == names
    assert len({name.casefold() for name in names}) == len(classes)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9_ -][A-Za-z0-9 _.-]*", name)
        assert not name.endswith((".", " "))
