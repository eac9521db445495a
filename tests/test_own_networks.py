"""Networks of one's own: known by what they do, trained, matched, stored and refused."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.utils import parameters_to_vector

from iadd_lab.baselines.real_images import herding, random_real
from iadd_lab.data.augment import draw_augmentation
from iadd_lab.distillation.config import DistillConfig
from iadd_lab.distillation.loop import distill
from iadd_lab.distillation.matching import Learned, Uniform
from iadd_lab.distillation.unroll import ENGINES, Segment, Step, Variables
from iadd_lab.evaluation import protocol
from iadd_lab.evaluation.protocol import EvaluateConfig, Evaluation, evaluate
from iadd_lab.seeds import generator
from iadd_lab.store.configs import describe
from iadd_lab.training import libraries
from iadd_lab.training.networks import NetworkConfig, as_network, network_for
from iadd_lab.training.own_networks import known_network
from iadd_lab.training.sgd import Training, predict
from iadd_lab.training.student import StudentLoss
from iadd_lab.training.teachers import open_teachers, train_teachers
from tests.conftest import AUGMENT
from tests.samples import assert_refused
from tests.test_evaluate import Killed, killed_once


def small(width=4, *extra, dropout=0.0):
    """A function that makes a network with batch norm and an in-place layer, of a width caught in it."""

    def make(channels, size, classes):
        first = [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        last = [nn.Dropout(dropout)] if dropout else []
        last += [nn.AvgPool2d(2), nn.Flatten(), nn.Linear(width * (size // 2) ** 2, classes)]
        return nn.Sequential(*first, *extra, *last)

    return make


def own(*makers):
    """A function that makes a network of such layers and a linear one, for 8 × 8 grey images."""

    def make(channels, size, classes):
        return nn.Sequential(*(maker() for maker in makers), nn.Flatten(), nn.Linear(64, classes))

    return make


@pytest.fixture(scope="module")
def random_set(toy_data, toy_teachers):
    return random_real(toy_data, toy_teachers.preprocess, ipc=3, seed=0)


CONFIG = EvaluateConfig(network=small(dropout=0.2), networks=2, epochs=20, rate=0.05, augment=AUGMENT)


# What a network is


def test_a_network_is_known_by_what_it_does(toy_data):
    marks = {}
    makers = {"4": small(4), "again": small(4), "5": small(5), "dropout": small(4, dropout=0.1)}
    makers |= {"tanh": small(4, nn.Tanh()), "sigmoid": small(4, nn.Sigmoid())}
    for name, function in makers.items():
        known = known_network(NetworkConfig(function), toy_data)
        assert known.name == "tests.test_own_networks.small.<locals>.make"
        assert describe(known)["fingerprint"] == known.fingerprint
        assert "function" not in describe(known)
        marks[name] = known.fingerprint
    assert marks["again"] == marks["4"]
    assert len(set(marks.values())) == len(marks) - 1


def test_fingerprints_of_the_registrys_networks_stay_as_they_were(toy_data):
    described = describe(NetworkConfig(width=4))
    assert described == {"kind": "NetworkConfig", "name": "convnet", "width": 4, "depth": None}
    assert known_network(NetworkConfig(width=4), toy_data) == NetworkConfig(width=4)
    assert as_network("convnet_bn").title == "ConvNetBN"


def test_small_and_grey_images_become_what_a_network_takes(toy_data):
    """Its last convolution sees 2 × 2 pixels, and its first one three channels."""

    def deep(channels, size, classes):
        layers = [nn.Conv2d(3, 4, 3, stride=4, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1)]
        squeeze = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1)]
        return nn.Sequential(*layers, *squeeze, nn.Flatten(), nn.Linear(4, classes))

    known, seen = known_network(NetworkConfig(deep), toy_data), []
    assert known.enlarge_to == 16
    network = network_for(toy_data, known, seed=0)
    network.network[0].register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    images = torch.rand(2, 1, 8, 8)
    assert network(images).shape == (2, 2)
    assert seen[0].shape == (2, 3, 16, 16)
    assert torch.equal(seen[0][:, 2:], functional.interpolate(images, size=(16, 16), mode="bilinear"))
    assert known_network(NetworkConfig(small()), toy_data).enlarge_to == 8


def test_libraries_make_networks_for_the_classes(toy_data):
    network = network_for(toy_data, NetworkConfig("torchvision:mobilenet_v3_small", enlarge_to=32), seed=0)
    assert network.eval()(torch.rand(2, 1, 8, 8)).shape == (2, 2)


# Trained and matched


def engines_of(loss, start):
    """The gradients of a segment of a student with this loss, in float64, by every engine."""
    random = generator(0, "test")
    draw = {"height": 8, "width": 8, "generator": random}
    start = start.detach().double()
    target = start + 0.05 * torch.randn(start.shape, generator=random, dtype=torch.float64)
    rows = [torch.randperm(6, generator=random)[:4] for _ in range(3)]
    drawn = tuple(Step(each, draw_augmentation(AUGMENT, batch=4, **draw)) for each in rows)
    images = torch.randn(6, 1, 8, 8, generator=random, dtype=torch.float64)
    alpha, raw = torch.tensor(0.05, dtype=torch.float64), torch.ones(len(start), dtype=torch.float64)
    variables = Variables(images, torch.arange(2).repeat_interleave(3), alpha, raw)
    place = {"start": start, "target": target, "layout": loss.layout}
    given = loss, Segment(start, target, drawn), variables, partial(Learned().loss, **place)
    return {name: engine(*given) for name, engine in ENGINES.items()}


@pytest.mark.parametrize("network", ["convnet_bn", small(5)], ids=["registry", "own"])
def test_gradients_through_batch_norm_are_autograds_own(toy_data, network):
    made = network_for(toy_data, as_network(network), seed=1)
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    found = engines_of(StudentLoss(made), parameters_to_vector(made.parameters()))
    assert found["adjoint"].images.abs().sum() > 0
    for part in ("loss", "images", "alpha", "raw", "end"):
        exact, ours = (getattr(found[name], part) for name in ("full", "adjoint"))
        assert (ours - exact).norm() <= 1e-10 * exact.norm(), part
    for name, tensor in made.state_dict().items():  # students leave the network as it is, its statistics too
        assert torch.equal(tensor, before[name])


def test_students_see_batch_norm_as_it_is_in_training(toy_data):
    made = network_for(toy_data, as_network("convnet_bn"), seed=1).double()
    loss, images = StudentLoss(made), torch.randn(5, 1, 8, 8, dtype=torch.float64)
    flat = parameters_to_vector(made.parameters()).detach()
    assert torch.equal(loss.logits(flat, images), made.train()(images).detach())
    assert not torch.allclose(loss.logits(flat, images), made.eval()(images))


@pytest.fixture(scope="module")
def own_config(toy_config):
    return replace(toy_config, network=small(), epochs=3)


@pytest.fixture(scope="module")
def own_teachers(toy_data, own_config, tmp_path_factory):
    return train_teachers(toy_data, own_config, tmp_path_factory.mktemp("own"), count=1, progress=False)


def test_a_function_teaches_distils_and_is_asked_for_again(toy_data, own_config, own_teachers):
    config = DistillConfig(
        iterations=3, student_steps=3, teacher_epochs=1, matching=Uniform(), alpha_rate=1e-6
    )
    result = distill(toy_data, own_teachers, config, progress=False)
    assert not torch.equal(result.history.snapshot_images[0], result.history.snapshot_images[-1])
    assert herding(toy_data, own_teachers, ipc=1, progress=False).images.shape == (2, 1, 8, 8)
    folder = own_teachers.folder
    again = open_teachers(folder, network=small())
    assert again.fingerprint == own_teachers.fingerprint
    assert_refused(
        "was made by tests.*small.*, which is not stored: give that function again", open_teachers, folder
    )
    sentence = r"makes another network \(fingerprint .*\) than the stored one \(.*\): give the function that"
    assert_refused(sentence, open_teachers, folder, network=small(5))
    sentence = "holds teachers of other settings .config.network.fingerprint is "
    other = replace(own_config, network=small(5))
    assert_refused(sentence, train_teachers, toy_data, other, folder, count=1)


def test_running_statistics_are_kept_with_each_snapshot(toy_data, own_config, own_teachers):
    """They are those of a training of as many epochs, and what validation accuracies are measured with."""
    short = replace(own_config, epochs=2)
    shorter = train_teachers(toy_data, short, own_teachers.folder.parent / "short", count=1, progress=False)
    for epoch in (0, 2):
        one, other = (each.network_after(0, epoch).state_dict() for each in (own_teachers, shorter))
        assert all(torch.equal(one[name], other[name]) for name in one)
    last, images = own_teachers.network_after(0, 3), own_teachers.preprocess.apply(toy_data.validation.images)
    right = (predict(last, images) == toy_data.validation.labels).double().mean().item()
    assert right == own_teachers.history(0)["validation_accuracy"]
    statistics = [own_teachers.network_after(0, epoch)[1].running_mean for epoch in (0, 3)]
    assert not torch.equal(*statistics)


def test_a_killed_teacher_with_batch_norm_goes_on_bit_for_bit(
    toy_data, own_config, own_teachers, tmp_path, monkeypatch
):
    killed_once(monkeypatch, 3)
    options = {"count": 1, "checkpoint_seconds": 0.0, "progress": False}
    with pytest.raises(Killed):
        train_teachers(toy_data, own_config, tmp_path, **options)
    resumed = train_teachers(toy_data, own_config, tmp_path, **options)
    assert resumed.fingerprint == own_teachers.fingerprint


# Evaluated on


@pytest.mark.parametrize("stop", [2, 7])
def test_a_killed_evaluation_with_batch_norm_and_dropout_goes_on_bit_for_bit(
    toy_data, random_set, tmp_path, monkeypatch, stop
):
    config = replace(CONFIG, epochs=5)
    torch.manual_seed(1)
    whole = evaluate(random_set, toy_data, config, progress=False)
    seen = killed_once(monkeypatch, stop)
    options = {"save_to": tmp_path / "e.safetensors", "checkpoint_seconds": 0.0, "progress": False}
    with pytest.raises(Killed):
        evaluate(random_set, toy_data, config, **options)
    torch.manual_seed(2)  # dropout has streams of its own
    before = torch.get_rng_state()
    resumed = evaluate(random_set, toy_data, config, **options)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(resumed.confusion, whole.confusion)
    assert torch.equal(resumed.losses, whole.losses)
    assert len(seen) == 1 + 2 * 5
    again = Evaluation.load(options["save_to"])
    assert (again.config.network.name, again.config.network.function) == (whole.config.network.name, None)
    wider = replace(config, network=small(6, dropout=0.2))
    assert_refused("is the evaluation of another set", evaluate, random_set, toy_data, wider, **options)


def test_its_rate_is_found_on_validation_images_and_kept(toy_data, random_set, tmp_path, monkeypatch):
    asked, trained = [], protocol._FreshNetworks.begin

    def spy(self, count):
        asked.append((self.config.rate, self.config.split))
        return trained(self, count)

    monkeypatch.setattr(protocol._FreshNetworks, "begin", spy)
    path, config = tmp_path / "e.safetensors", replace(CONFIG, rate=None, networks=1)
    found = evaluate(random_set, toy_data, config, save_to=path, progress=False)
    assert [rate for rate, split in asked if split == "validation"] == list(protocol.RATES)
    best = max(found.tried.values())
    chosen = next(rate for rate in protocol.RATES if found.tried[f"{rate:g}"] == best)
    assert asked[-1] == (chosen, "test")
    assert found.config.rate == chosen
    assert f"at rate {chosen:g}, found on validation images" in str(found)
    assert [each.name for each in tmp_path.iterdir()] == ["e.safetensors"]
    again = evaluate(random_set, toy_data, config, save_to=path, progress=False)
    assert (again.config, again.tried, len(asked)) == (found.config, found.tried, 5)  # nothing was trained
    given = evaluate(random_set, toy_data, replace(found.config), progress=False)
    assert (given.tried, given.accuracies.tolist()) == ({}, found.accuracies.tolist())


def test_a_network_alone_is_enough(toy_data, random_set, monkeypatch):
    monkeypatch.setattr(protocol, "evaluate_each", lambda sets, data, config: (len(sets), config))
    count, config = protocol.evaluate(random_set, toy_data, network=small())
    assert (count, config.epochs, config.network.function.__name__) == (5, 1000, "make")
    assert protocol.evaluate(random_set, toy_data, network="convnet_bn")[1].network.name == "convnet_bn"


def test_batch_norm_trains_on_a_last_batch_of_one_image_and_is_asked_by_running_statistics():
    random = generator(0, "order")
    body = [nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 2)]
    network, images = nn.Sequential(*body), torch.randn(9, 1, 8, 8, generator=random)
    options = {"batch": 4, "rates": [0.1], "augment": AUGMENT, "generators": [random]}
    Training([network], [images], [torch.arange(9) % 2], **options).advance()
    assert network[3].num_batches_tracked == 2
    expected = network.eval()(images).argmax(1)
    assert torch.equal(predict(network.train(), images), expected)
    assert network.training


# What is refused


class Counting(nn.Module):
    calls = 0

    def forward(self, maps):
        self.calls += 1
        return maps * self.calls


class Averaging(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, maps):
        self.mean.lerp_(maps.detach().mean(), 0.1)
        return maps - self.mean


class Once(torch.autograd.Function):
    @staticmethod
    def forward(context, maps):
        context.save_for_backward(maps)
        return maps.tanh()

    @staticmethod
    @once_differentiable
    def backward(context, gradient):
        return gradient * (1 - context.saved_tensors[0].tanh().square())


class Overwriting(nn.Module):
    def forward(self, maps):
        grown = maps.exp()
        squared = grown.square()
        grown.mul_(2)  # what the gradient of the square needs
        return squared


class Undifferentiable(nn.Module):
    def forward(self, maps):
        return Once.apply(maps)


first = partial(nn.Conv2d, 1, 1, 3, padding=1)
shared = nn.Linear(64, 2)


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        (own(nn.Dropout), r"layer '0' \(Dropout\) of .*make draws at random in training: leave it out"),
        (own(first, Counting), r"layer '1' \(Counting\) of .*make gives something else the second time"),
        (own(Averaging), r"changes its buffer 0.mean while it is trained: a student's steps can keep no"),
        (own(first, Undifferentiable), r"layer '1' \(Undifferentiable\) of .*make breaks the gradients"),
        (own(first, Overwriting), r"layer '1' \(Overwriting\) of .*make breaks the gradients of a student"),
        (own(partial(nn.MaxPool2d, 3)), r"layer '2' \(Linear\) fails: mat1 and mat2 shapes cannot be"),
        (
            lambda *given: nn.Sequential(nn.Flatten(), nn.Linear(64, 5)),
            r"gives \(3, 5\), expected logits of 2",
        ),
        (lambda c, s, n: nn.Conv2d(c, n, 3), r"gives \(3, 2, 6, 6\), expected logits of 2 classes, \(3, 2\)"),
        (lambda c, s, n: 5, "made int, expected an nn.Module: return the network"),
        (lambda c, s, n: nn.Sequential(nn.Flatten(), shared), "gives the same layers each time: make them"),
    ],
    ids=range(10),
)
def test_what_cannot_be_matched_is_refused_before_anything_is_trained(
    toy_data, toy_config, network, sentence, tmp_path
):
    config = replace(toy_config, network=network)
    assert_refused(sentence, train_teachers, toy_data, config, tmp_path / "teachers", count=1)
    assert not list(tmp_path.iterdir())


def test_names_that_libraries_lack_are_refused(monkeypatch):
    sentence = r"torchvision has no classifier 'resnet19' \(did you mean 'resnet1"
    assert_refused(sentence, NetworkConfig, "torchvision:resnet19")
    monkeypatch.setattr(libraries.util, "find_spec", lambda name: None)
    assert_refused("network 'timm:x' needs timm: python -m pip install", NetworkConfig, "timm:x")
    assert_refused("unknown network 'torchvison:resnet18'", NetworkConfig, "torchvison:resnet18")
    assert_refused("network 'convnet' enlarges images as it needs", NetworkConfig, "convnet", enlarge_to=32)
