"""Distilled sets in other people's programs: PyTorch's data sets, torchvision's transforms and networks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader

import iadd_lab
from iadd_lab.baselines.real_images import random_real
from iadd_lab.data.augment import AugmentConfig
from iadd_lab.data.preprocess import Standardise, Zca
from iadd_lab.data.sets import DATASETS
from iadd_lab.errors import InputError
from tests.samples import noise, save


@pytest.fixture(scope="module", params=[Standardise, Zca], ids=["standardise", "zca"])
def stored(request, toy_data, tmp_path_factory):
    """The folder of a set of six real images, preprocessed in either way."""
    folder = tmp_path_factory.mktemp("set")
    preprocess = request.param.fit(toy_data.train.images)
    random_real(toy_data, preprocess, ipc=3, seed=0, alpha=0.05).save(folder / "distilled.safetensors")
    return folder


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
    with pytest.raises(InputError, match="channels is 2, but the set has 1"):
        iadd_lab.load(stored, channels=2)


def test_a_tensor_is_resized_almost_as_a_picture_is(stored):
    transform = iadd_lab.load(stored).transform
    smooth = np.rint(np.linspace(0, 255, 24 * 36)).astype(np.uint8).reshape(24, 36)
    picture, tensor = transform(Image.fromarray(smooth)), transform(torch.from_numpy(smooth)[None])
    assert (picture - tensor).abs().max() < 0.05 * picture.abs().max()


@pytest.mark.parametrize("bad", ["a path", torch.rand(8, 8), torch.rand(2, 8, 8), torch.ones(1, 8, 8).long()])
def test_what_is_no_image_is_refused(stored, bad):
    with pytest.raises(InputError, match="a real image"):
        iadd_lab.load(stored).transform(bad)


def test_a_torchvision_data_set_and_network_take_it(stored, toy_data, tmp_path):
    for label in (0, 1):
        for number, planes in enumerate(toy_data.test.images[toy_data.test.labels == label][:10]):
            save(tmp_path / str(label) / f"{number}.png", planes[0].numpy())
    training = iadd_lab.load(stored, channels=3)
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=len(training.classes))
    training.fit(network, epochs=60)  # batch norms need as many to know what is usual
    real = torchvision.datasets.ImageFolder(tmp_path, transform=training.transform)
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
