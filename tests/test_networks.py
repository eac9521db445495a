"""The networks against plain functional code, and the flat view of their parameters."""

import functools
import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from iadd_lab.training.networks import (
    NETWORKS,
    NetworkConfig,
    ParameterLayout,
    build_network,
    default_depth,
    is_plain,
)
from tests.samples import DEVICES, assert_refused, randn

NAMES = sorted(NETWORKS)
OTHERS = ["alexnet", "resnet18", "vgg11"]


def build(name="convnet", *, channels=3, size=32, classes=10, seed=0, **options) -> nn.Module:
    config = NetworkConfig(name, **options)
    return build_network(config, channels=channels, size=size, classes=classes, seed=seed)


noise = functools.partial(randn, dtype=torch.float32)


# Parameter counts and shapes


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"name": "convnet"}, 320_010),
        ({"name": "alexnet"}, 1_872_202),
        ({"name": "vgg11"}, 9_231_114),
        ({"name": "resnet18"}, 11_173_962),
        # Padded to 32 px: three poolings leave 4 px, as for colour images of 32 px.
        ({"channels": 1, "size": 28}, 320_010 - 2 * 9 * 128),
        # 64 px through four poolings leaves 4 px.
        ({"width": 64, "depth": 4, "size": 64, "classes": 200}, 30 * 64 + 3 * 579 * 64 + 1025 * 200),
    ],
)
def test_counts_are_the_fields(options, expected):
    assert ParameterLayout.of(build(**options)).count == expected


@pytest.mark.parametrize(
    ("size", "depth"), [(8, 2), (16, 2), (28, 3), (32, 3), (64, 4), (112, 5), (128, 5), (224, 6)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_depth_follows_the_size_and_grey_28_px_images_alone_are_padded(size, depth, channels):
    assert default_depth(size) == depth
    layers = build(width=1, size=size, channels=channels).modules()
    padding = [3 if (size, channels) == (28, 1) else 1] + [1] * (depth - 1)
    assert [each.padding[0] for each in layers if isinstance(each, nn.Conv2d)] == padding


LARGE = {"convnet": 128 * 9, "alexnet": 192 * 28**2, "resnet18": 512 * 49, "vgg11": 512 * 49}


@pytest.mark.parametrize(
    ("size", "channels"),
    [(8, 1), (9, 3), (27, 3), (28, 1), (28, 3), (29, 1), (31, 3), (32, 1), (33, 3), (64, 3), (224, 1)],
)
@pytest.mark.parametrize("name", NAMES)
def test_logits_for_every_size_from_what_embed_gives_the_linear_layer(name, size, channels):
    network, seen = build(name, channels=channels, size=size, classes=7), []
    network.classifier.register_forward_hook(lambda layer, inputs, logits: seen.append(inputs[0]))
    images = noise(1 if size == 224 else 2, channels, size, size)
    with torch.no_grad():
        assert network(images).shape == (len(images), 7)
        assert torch.equal(network.embed(images), seen[0])
    assert seen[0].shape[1] == network.classifier.in_features
    assert size < 224 or network.classifier.in_features == LARGE[name.removesuffix("_bn")]


@pytest.mark.parametrize("name", NAMES)
def test_no_buffers_no_randomness_nothing_in_place(name):
    network = build(name, size=8, channels=1)
    has_state = name.endswith("_bn")  # batch norm's
    assert (bool(list(network.buffers())), is_plain(network)) == (has_state, not has_state)
    assert not any(getattr(layer, "inplace", False) for layer in network.modules())
    images = noise(2, 1, 8, 8)
    before = images.clone()
    assert torch.equal(network(images), network(images))
    assert torch.equal(images, before)


# Initialisation


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_alone_decides_and_global_state_stays_as_it_was(name):
    def drawn(seed):
        return torch.cat([parameter.flatten() for parameter in build(name, size=8, seed=seed).parameters()])

    before = torch.get_rng_state()
    first = drawn(5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            again = drawn(5)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(again, first)
    assert not torch.equal(drawn(6), first)


def test_initialisation_is_pytorchs_own():
    network = build(width=4, size=8, channels=1, seed=11)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        layers = [nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(4, 4), nn.Conv2d(4, 4, 3, padding=1)]
        layers += [nn.GroupNorm(4, 4), nn.Linear(16, 10)]
    expected = [parameter for layer in layers for parameter in layer.parameters()]
    for parameter, same in zip(network.parameters(), expected, strict=True):
        assert torch.equal(parameter, same)


# Independent references: plain functional code that consumes the parameters in their order


def reference_norm(maps: Tensor, weights: Iterator[Tensor]) -> Tensor:
    return F.instance_norm(maps, weight=next(weights), bias=next(weights), eps=1e-5)


def reference_convnet(images: Tensor, weights: Iterator[Tensor], *, depth=3, padding=1) -> Tensor:
    for block in range(depth):
        images = F.conv2d(images, next(weights), next(weights), padding=1 if block else padding)
        images = F.avg_pool2d(F.relu(reference_norm(images, weights)), 2)
    return F.linear(images.flatten(1), next(weights), next(weights))


def reference_alexnet(images: Tensor, weights: Iterator[Tensor]) -> Tensor:
    for layer, padding in enumerate((2, 2, 1, 1, 1)):
        images = F.relu(F.conv2d(images, next(weights), next(weights), padding=padding))
        images = images if layer in (2, 3) else F.max_pool2d(images, 2)
    return F.linear(images.flatten(1), next(weights), next(weights))


def reference_vgg11(images: Tensor, weights: Iterator[Tensor]) -> Tensor:
    for layer in range(8):
        images = F.conv2d(images, next(weights), next(weights), padding=1)
        images = F.relu(reference_norm(images, weights))
        images = F.max_pool2d(images, 2) if layer in (0, 1, 3, 5, 7) else images
    return F.linear(images.flatten(1), next(weights), next(weights))


def reference_resnet18(images: Tensor, weights: Iterator[Tensor]) -> Tensor:
    maps = F.relu(reference_norm(F.conv2d(images, next(weights), padding=1), weights))
    for block in range(8):
        halves = block in (2, 4, 6)
        inner = F.conv2d(maps, next(weights), padding=1, stride=2 if halves else 1)
        inner = F.conv2d(F.relu(reference_norm(inner, weights)), next(weights), padding=1)
        inner = reference_norm(inner, weights)
        if halves:
            maps = reference_norm(F.conv2d(maps, next(weights), stride=2), weights)
        maps = F.relu(inner + maps)
    return F.linear(F.avg_pool2d(maps, 4).flatten(1), next(weights), next(weights))


REFERENCES = {
    "convnet": reference_convnet,
    "alexnet": reference_alexnet,
    "vgg11": reference_vgg11,
    "resnet18": reference_resnet18,
    "convnet, padded": functools.partial(reference_convnet, padding=3),
}


def shake(network: nn.Module) -> None:
    # Norms start at weight 1 and bias 0, which would hide a mistake in their order.
    with torch.no_grad():
        for index, parameter in enumerate(network.parameters()):
            parameter.add_(0.02 * noise(*parameter.shape, seed=index, dtype=parameter.dtype))


@pytest.mark.parametrize("name", REFERENCES)
def test_forward_agrees_with_plain_functions(name):
    padded = name == "convnet, padded"
    options = {"channels": 1, "size": 28, "width": 8} if padded else {}
    network = build(name.split(",")[0], **options).double()
    shake(network)
    images = randn(2, 1, 28, 28) if padded else randn(2, 3, 32, 32)
    weights = iter(network.parameters())
    expected = REFERENCES[name](images, weights)
    torch.testing.assert_close(network(images), expected, rtol=1e-9, atol=1e-9)
    assert next(weights, None) is None


@pytest.mark.parametrize("name", OTHERS)
def test_small_images_are_enlarged_inside(name):
    small, large = build(name, channels=1, size=8), build(name, channels=1, size=32)
    images = noise(2, 1, 8, 8)
    enlarged = F.interpolate(images, size=(32, 32), mode="bilinear", align_corners=False)
    with torch.no_grad():
        assert torch.equal(small(images), large(enlarged))


@pytest.mark.parametrize(
    ("name", "enlarged", "padding"),
    [("convnet", [], 3), ("alexnet", [27], 4), ("resnet18", [27], 1), ("vgg11", [27, 28, 31], 3)],
)
def test_from_28_or_32_px_images_stay_and_grey_ones_of_28_are_padded(name, enlarged, padding):
    assert [size for size in (27, 28, 31, 32) if build(name, size=size).enlarge_to] == enlarged
    grey = build(name, size=28, channels=1)
    assert (grey.enlarge_to, grey.features[0].padding) == (None, (padding, padding))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_device_are_kept(dtype, device):
    network = build(width=4).to(device, dtype)
    logits = network(noise(2, 3, 32, 32, dtype=dtype).to(device))
    assert logits.dtype == dtype
    assert logits.device.type == device


# The flat vector

LAYOUT = ParameterLayout(("a", "b"), ((2,), (1, 2)))


@st.composite
def layouts(draw) -> ParameterLayout:
    shapes = draw(st.lists(st.lists(st.integers(1, 3), max_size=3).map(tuple), min_size=1, max_size=5))
    return ParameterLayout(tuple(f"p{index}" for index in range(len(shapes))), tuple(shapes))


@given(layouts())
@settings(max_examples=50)
def test_layout_round_trip(layout):
    flat = torch.arange(float(layout.count))
    pieces = layout.split(flat)
    assert tuple(tuple(piece.shape) for piece in pieces.values()) == layout.shapes
    assert layout.sizes == tuple(map(math.prod, layout.shapes))
    assert torch.equal(layout.flatten(pieces.values()), flat)
    for name, piece in layout.split(torch.stack([flat, -flat])).items():  # of two networks
        assert torch.equal(piece, torch.stack([pieces[name], -pieces[name]]))


@pytest.mark.parametrize("name", NAMES)
def test_layout_follows_the_parameters_and_gives_the_module_bit_for_bit(name):
    network, images = build(name, size=8), noise(2, 3, 8, 8)
    layout = ParameterLayout.of(network)
    assert layout.names == tuple(name for name, _ in network.named_parameters())
    assert layout == ParameterLayout.of(build(name, size=8, seed=1))
    with torch.no_grad():
        flat = layout.flatten(network.parameters())
        assert torch.equal(flat, torch.cat([parameter.flatten() for parameter in network.parameters()]))
        assert torch.equal(functional_call(network, layout.split(flat), (images,)), network(images))


def test_flatten_copies_and_split_gives_views_that_can_be_differentiated():
    for network in (build(width=2), nn.Linear(3, 1, bias=False)):
        flat = ParameterLayout.of(network).flatten(network.parameters()).detach()
        before = flat.clone()
        torch._foreach_add_([parameter.detach() for parameter in network.parameters()], 1.0)
        assert torch.equal(flat, before)
    flat = torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
    pieces = LAYOUT.split(flat)
    assert pieces["b"].data_ptr() == flat[2:].data_ptr()
    (gradient,) = torch.autograd.grad((pieces["b"] ** 2).sum(), flat)
    assert gradient.tolist() == [0.0, 0.0, 6.0, 8.0]


# What is refused


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"name": "convnt"}, "unknown network 'convnt' .did you mean 'convnet'"),
        ({"width": 0}, "width is 0; it must be a whole number of at least 1"),
        ({"depth": 2.0}, "depth is 2.0; it must be a whole number of at least 1"),
        ({"name": "vgg11", "width": 64}, "width is 64 for network 'vgg11'; only convnet has a width"),
        ({"name": "alexnet", "depth": 3}, "depth is 3 for network 'alexnet'; only convnet has a depth"),
        ({"channels": 17}, "channels is 17; .* at least 1 and at most 16"),
        ({"size": 7}, "size is 7; it must be a whole number of at least 8 and at most 224"),
        ({"size": 256}, "size is 256; it must be a whole number of at least 8 and at most 224"),
        ({"classes": 1}, "classes is 1; it must be a whole number of at least 2"),
        ({"seed": -1}, "seed is -1; it must be a whole number of at least 0"),
        ({"seed": 2**64}, f"seed is {2**64}; .* at most {2**63 - 1}"),
        ({"size": 8, "depth": 4}, "depth is 4, too deep for images of 8 px: at most 3"),
    ],
)
def test_bad_networks_are_refused(options, sentence):
    assert_refused(sentence, build, **options)


@pytest.mark.parametrize(("size", "channels", "deepest"), [(8, 1, 3), (28, 1, 5), (28, 3, 4), (224, 1, 7)])
def test_the_deepest_convnet_works_and_one_deeper_is_refused(size, channels, deepest):
    network = build(width=1, size=size, channels=channels, depth=deepest)
    assert network(noise(1, channels, size, size)).shape == (1, 10)
    assert_refused(f"at most {deepest}", build, width=1, size=size, channels=channels, depth=deepest + 1)


def test_tensors_that_do_not_fit_the_layout_are_refused():
    for tensors in ([torch.zeros(2)], [torch.zeros(2), torch.zeros(2, 1)]):
        assert_refused(r"this network's parameters have \(\(2,\), \(1, 2\)\)", LAYOUT.flatten, tensors)
    assert_refused("vector has 5 numbers; this network's has 4", LAYOUT.split, torch.zeros(5))
