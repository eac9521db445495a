"""The fused student loss against the same from autograd, in float64, for every network there is."""

import dataclasses
import functools

import pytest
import torch
from torch import nn

from iadd_lab.training.fast import losses, winograd
from iadd_lab.training.fast.compiling import PLAIN, Kernels
from iadd_lab.training.fast.layers import has_rules
from iadd_lab.training.fast.losses import FusedStudentLoss, student_loss
from iadd_lab.training.networks import NETWORKS, ImageClassifier, NetworkConfig, ResidualBlock, build_network
from iadd_lab.training.student import StudentLoss
from tests.test_kernels import assert_near

CLASSES = 3
TOLERANCE = 1e-10
# What runs when compiling works, with the functions as they are: the Winograd path without torch.compile.
KERNELS = {"plain": PLAIN, "winograd": Kernels(compiled=True, transforms=True)}

each_kernels = pytest.mark.parametrize("kernels", KERNELS.values(), ids=KERNELS)


@pytest.fixture(autouse=True)
def _narrow_winograd(monkeypatch):
    """Networks of any width go the way that wide ones go."""
    monkeypatch.setattr(winograd, "FEWEST_CHANNELS", 2)


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A network, and values of what its loss depends on, for one or more sets of parameters."""

    network: nn.Module
    flats: torch.Tensor  # (networks, P)
    directions: torch.Tensor  # (networks, P)
    images: torch.Tensor  # (networks, batch, channels, height, width)
    labels: torch.Tensor  # (networks, batch)

    @property
    def point(self):
        """The arguments of `along` for the first network."""
        return self.flats[0], self.directions[0], self.images[0], self.labels[0]


def make_problem(network, *, channels=3, size=8, batch=5, networks=1):
    generator = torch.Generator().manual_seed(5)
    randn = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
    start = StudentLoss(network).layout.flatten(network.parameters()).detach().double()
    return Problem(
        network,
        # Norms start with γ = 1 and β = 0, which would hide what is not multiplied or added.
        flats=start + 0.1 * start.std() * randn(networks, len(start)),
        directions=randn(networks, len(start)),
        images=randn(networks, batch, channels, size, size),
        labels=torch.randint(CLASSES, (networks, batch), generator=generator),
    )


def make_convnet(*, width=4, depth=None, channels=3, size=8, **options):
    config = NetworkConfig(width=width, depth=depth)
    network = build_network(config, channels=channels, size=size, classes=CLASSES, seed=2)
    return make_problem(network, channels=channels, size=size, **options)


def make_bare(*layers, features, **options):
    """A network of these layers after one convolution, in whatever order, for images of 3×8×8."""
    first = nn.Conv2d(3, 4, 3, padding=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        network = ImageClassifier(nn.Sequential(first, *layers), nn.Linear(features, CLASSES))
        for layer in network.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.reset_parameters()
    return make_problem(network, **options)


def assert_same_derivatives(problem, *found):
    """Losses have the derivatives that autograd gives."""
    flat, direction, images, labels = problem.point
    exact = StudentLoss(problem.network)
    expected, slope = exact.along(*problem.point)[:3], exact.slope(flat, images, labels)
    assert_near(expected[0], slope @ direction, TOLERANCE)
    for loss in found:
        scalar, gradient, *nothing = loss.along(*problem.point, curvature=False)
        assert nothing == [None, None]
        parts = (*loss.along(*problem.point)[:3], loss.slope(flat, images, labels), scalar, gradient)
        for part, truth in zip(parts, (*expected, slope, *expected[:2]), strict=True):
            assert_near(part, truth, TOLERANCE)
        found, kept = loss.step(flat, images, labels)
        assert kept.nbytes() > images.nbytes
        for part, truth in zip(
            (found, *loss.along(*problem.point, kept)[:3]), parts[3:4] + parts[:3], strict=True
        ):
            assert torch.equal(part, truth)


CONVNETS = {
    "8 px": {},
    "8 px, one block": {"depth": 1},
    "8 px, as deep as can be": {"depth": 3},
    "grey 8 px": {"channels": 1},
    "14 px, odd sides between": {"size": 14},
    "16 px": {"size": 16, "width": 3},
    "grey 28 px, padded": {"channels": 1, "size": 28, "width": 2},
    "32 px": {"size": 32, "width": 3, "batch": 3},
    "32 px, deep": {"size": 32, "width": 2, "depth": 5, "batch": 2},
    "one image": {"batch": 1},
}


@pytest.mark.parametrize("name", CONVNETS)
def test_convnets_equal_autograd(name):
    problem = make_convnet(**CONVNETS[name])
    assert_same_derivatives(problem, *(FusedStudentLoss(problem.network, each) for each in KERNELS.values()))


# Winograd uncompiled takes its time on the largest two; `BARE` sends residual blocks that way.
LARGE = {"alexnet": (8, KERNELS), "vgg11": (8, ["plain"]), "resnet18": (28, ["plain"])}


@pytest.mark.parametrize("name", LARGE)
def test_large_networks_equal_autograd(name):
    size, names = LARGE[name]  # 8 px are enlarged
    network = build_network(NetworkConfig(name), channels=3, size=size, classes=CLASSES, seed=2)
    problem = make_problem(network, size=size, batch=2)
    assert_same_derivatives(problem, *(FusedStudentLoss(network, KERNELS[each]) for each in names))


@each_kernels
@pytest.mark.parametrize("chunk", [None, 1, 2, 3, 4, 6])
def test_chunks_of_the_batch_add_up_for_one_network_and_for_several_jointly(chunk, kernels):
    """Each on images and labels of its own, with chunks that hold images of all of them."""
    problem = make_convnet(networks=3, batch=5)
    exact, found = StudentLoss(problem.network), FusedStudentLoss(problem.network, kernels, chunk=chunk)
    assert_same_derivatives(problem, found)
    soft = torch.stack([problem.labels, problem.labels % 2, problem.labels * 0], 2).double().softmax(2)
    for labels in (problem.labels, soft):
        expected = exact.slopes(problem.flats, problem.images, labels)
        jointly = found.slopes(problem.flats, problem.images, labels)
        for part, truth in zip(jointly, expected, strict=True):
            assert_near(part, truth, TOLERANCE)
    many = make_convnet(batch=16)
    predicted = exact.predict(many.flats[0], many.images[0])
    assert len(predicted.unique()) > 1
    assert torch.equal(found.predict(many.flats[0], many.images[0]), predicted)


def watched(name, kernels, seen):
    """The kernels, with the shapes of what one of them is called with written to `seen`."""
    function = getattr(kernels, name)

    def watching(maps, *arguments):
        seen.append(tuple(maps.shape))
        return function(maps, *arguments)

    return dataclasses.replace(kernels, **{name: watching})


def test_all_chunks_have_one_shape():
    """What is compiled is compiled for one shape: five images are 2 + 2 + 1 and a blank one."""
    problem, seen = make_convnet(batch=5, depth=1), []
    kernels = watched("norm_along", watched("norm", PLAIN, seen), seen)
    loss = FusedStudentLoss(problem.network, kernels, chunk=2)
    flat, _, images, labels = problem.point
    loss.along(*problem.point)
    loss.slope(flat, images, labels)
    loss.predict(flat, images)
    assert seen == [(2, 4, 8, 8)] * 12


@pytest.mark.parametrize(("maps", "expected"), [(1, 1), (2, 2), (3, 2), (100, 4)])
def test_chunks_hold_as_many_images_as_the_limit_holds_feature_maps(maps, expected, monkeypatch):
    problem, seen = make_convnet(batch=4, depth=1), []
    monkeypatch.setattr(losses, "CHUNK_BYTES", maps * 4 * 8 * 8 * problem.images.element_size())
    loss = FusedStudentLoss(problem.network, watched("norm", PLAIN, seen))
    loss.along(*problem.point)
    assert {shape[0] for shape in seen} == {expected}


@pytest.mark.parametrize(("batch", "expected"), [(1, 10), (3, 3), (5, 2), (6, 1), (20, 1)])
def test_networks_go_together_as_long_as_their_batches_fill_no_more_than_a_chunk(batch, expected):
    problem = make_convnet()
    fused, plain = FusedStudentLoss(problem.network, PLAIN, chunk=10), StudentLoss(problem.network)
    found = [loss.networks_at_once(problem.images[0], batch=batch) for loss in (fused, plain)]
    assert found == [expected, 1]


@pytest.mark.parametrize(("fewest", "size", "calls"), [(4, 8, 2), (5, 8, 0), (4, 10, 0)])
def test_winograd_computes_what_it_suits(fewest, size, calls, monkeypatch):
    """The second block's convolution, of 4 channels: its output, and the derivative of that."""
    monkeypatch.setattr(winograd, "FEWEST_CHANNELS", fewest)
    problem = make_convnet(size=size, depth=2)
    for kernels in KERNELS.values():
        seen = []
        FusedStudentLoss(problem.network, watched("output_maps", kernels, seen)).along(*problem.point)
        assert len(seen) == (calls if kernels.compiled else 0)


BARE = {
    "max pool": lambda: (nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
    "no bias": lambda: (nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.AvgPool2d(2), nn.ReLU()),
    "no ReLU": lambda: (nn.GroupNorm(4, 4), nn.Conv2d(4, 4, 3, padding=1), nn.AvgPool2d(2)),
    "stride": lambda: (nn.GroupNorm(4, 4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, stride=2)),
    "residual": lambda: (ResidualBlock(4, 4, stride=1), nn.Sequential(ResidualBlock(4, 4, stride=2))),
}


@each_kernels
@pytest.mark.parametrize("name", BARE)
def test_layers_in_other_orders_equal_autograd(name, kernels):
    problem = make_bare(*BARE[name](), features=64, networks=2)
    exact, found = StudentLoss(problem.network), FusedStudentLoss(problem.network, kernels, chunk=4)
    assert_same_derivatives(problem, found)
    jointly = problem.flats, problem.images, problem.labels
    assert_near(found.slopes(*jointly)[1], exact.slopes(*jointly)[1], TOLERANCE)
    if name == "max pool":  # a norm takes the biases of convolutions away: without one they count
        flat, _, images, labels = problem.point
        for part in ("features.0.bias", "features.2.bias"):
            assert exact.layout.split(exact.slope(flat, images, labels))[part].abs().min() > 1e-4


class OtherClassifier(ImageClassifier):
    """A subclass may compute anything."""

    def forward(self, images):
        return 2 * super().forward(images)


def classifier(*layers, kind=ImageClassifier):
    return kind(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *layers), nn.Linear(256, CLASSES))


UNKNOWN = {
    "batch norm": lambda: classifier(nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU()),
    "group norm": lambda: classifier(nn.GroupNorm(2, 4), nn.ReLU()),
    "activation": lambda: classifier(nn.GroupNorm(4, 4), nn.SiLU()),
    "inside another": lambda: classifier(nn.Sequential(nn.ReLU(), nn.Sequential(nn.Tanh()))),
    "subclass": lambda: classifier(nn.ReLU(), kind=OtherClassifier),
    "other class": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, CLASSES)),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_networks_without_rules_get_autograd(name):
    network = UNKNOWN[name]()
    assert not has_rules(network)
    assert type(student_loss(network, KERNELS["winograd"], plain=True)) is StudentLoss


@pytest.mark.parametrize("name", [name for name in NETWORKS if not name.endswith("_bn")])
def test_every_network_of_the_package_is_fused_where_kernels_are_compiled_or_it_is_asked_for(name):
    network = build_network(NetworkConfig(name), channels=3, size=32, classes=CLASSES, seed=0)
    assert has_rules(network)
    assert type(student_loss(network, PLAIN)) is StudentLoss
    assert type(student_loss(network, PLAIN, plain=True)) is FusedStudentLoss
    fused = student_loss(network, KERNELS["winograd"])
    assert type(fused) is FusedStudentLoss
    assert fused.kernels is KERNELS["winograd"]
