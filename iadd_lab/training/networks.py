"""The field's four convolutional networks, and their parameters as one flat vector.

The definitions are those of "Dataset Condensation with Gradient Matching" (Zhao et al., ICLR 2021) and its
successors (DSA, DM, MTT), so that accuracies and stored parameter lists compare. None has buffers, randomness
or in-place operations: `torch.func` and double backward work on all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iadd_lab.data.pixels import LARGEST_SIZE, MOST_CHANNELS
from iadd_lab.errors import check_whole, choose, require

SMALLEST_SIZE = 8
ENLARGED_SIZE = 32

# Layers are born here whatever the caller's default device and dtype: a seed means the same everywhere.
_PLACE = {"device": "cpu", "dtype": torch.float32}
_convolution = partial(nn.Conv2d, **_PLACE)
_linear = partial(nn.Linear, **_PLACE)


@dataclass(frozen=True)
class NetworkConfig:
    """Which network, and for ConvNet how large.

    Args:
        name: a key of `NETWORKS`.
        width: filters per ConvNet block, at least 1; None means 128.
        depth: ConvNet blocks, at least 1; None means `default_depth(size)`.

    Raises:
        InputError: an unknown name, a value out of range, or a width or depth for another network.
    """

    name: str = "convnet"
    width: int | None = None
    depth: int | None = None

    def __post_init__(self) -> None:
        choose("network", self.name, NETWORKS)
        for field, value in self.options().items():
            given = f"{field} is {value!r} for network {self.name!r}"
            require(self.name == "convnet", f"{given}; only convnet has a {field}: leave it out.")
            check_whole(field, value, minimum=1)

    @property
    def title(self) -> str:
        """The name as text has it."""
        return TITLES.get(self.name, self.name)

    def options(self) -> dict[str, int]:
        """The fields beyond the name that were given, as keyword arguments of the network's builder."""
        return {field: value for field in ("width", "depth") if (value := getattr(self, field)) is not None}


def build_network(config: NetworkConfig, *, channels: int, size: int, classes: int, seed: int) -> nn.Module:
    """A network for images of shape (batch, channels, size, size), giving logits of shape (batch, classes).

    It has PyTorch's default initialisation, drawn from `seed` alone (0 to 2**63 - 1), on the CPU in float32;
    the global generators stay as they were.

    AlexNet, VGG11 and ResNet18 are made for 32 px. Inside them, images below 28 px are enlarged bilinearly to
    32 px; VGG11, whose five poolings leave nothing of less, does so below 32 px (its 28 px grey images are
    padded to 32 px instead). Larger images simply give the last layer more features, as in the field.

    Raises `InputError` unless channels is 1 to 16, size is 8 to 224 and classes is at least 2, and if a
    ConvNet's depth is too much for the size.
    """
    check_whole("channels", channels, minimum=1, maximum=MOST_CHANNELS)
    check_whole("size", size, minimum=SMALLEST_SIZE, maximum=LARGEST_SIZE)
    check_whole("classes", classes, minimum=2)
    check_whole("seed", seed, minimum=0)
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would reseed the accelerators' generators too.
        torch.random.default_generator.manual_seed(seed)
        return NETWORKS[config.name](channels=channels, size=size, classes=classes, **config.options())


def network_for(data: Any, config: NetworkConfig, *, seed: int) -> nn.Module:
    """`build_network` with the `channels`, `size` and `classes` of `data`: an `ImageData`, or `Teachers`."""
    return build_network(config, channels=data.channels, size=data.size, classes=len(data.classes), seed=seed)


def default_depth(size: int) -> int:
    """ConvNet's number of blocks for images of `size` px: at least 2, and as many as leave 2 to 4 px.

    2 for 8 and 16 px, 3 for 28 and 32 px, 4 for 64 px, 5 for 112 and 128 px, 6 for 224 px.
    """
    return max(2, math.ceil(math.log2(size / 4)))


class ImageClassifier(nn.Module):
    """Convolutional features, flattened, and one linear layer.

    forward: images (batch, channels, height, width) -> logits (batch, classes).
    `enlarge_to`: the side that images are resized to first (bilinearly), or None.
    """

    def __init__(self, features: nn.Module, classifier: nn.Linear, *, enlarge_to: int | None = None) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier
        self.enlarge_to = enlarge_to

    def enlarge(self, images: Tensor) -> Tensor:
        """The images (batch, channels, height, width) at the size for which the features are made."""
        if self.enlarge_to is None:
            return images
        return F.interpolate(images, size=2 * (self.enlarge_to,), mode="bilinear", align_corners=False)

    def embed(self, images: Tensor) -> Tensor:
        """What the linear layer sees of the images: (batch, channels * height * width)."""
        return self.features(self.enlarge(images)).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.embed(images))


class ResidualBlock(nn.Module):
    """ResNet's basic block (He et al., CVPR 2016): two 3×3 convolutions, and a shortcut around them."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        first = _block(inputs, outputs, padding=1, stride=stride, bias=False)
        self.body = nn.Sequential(*first, *_block(outputs, outputs, padding=1, bias=False)[:2])
        self.shortcut = nn.Sequential()  # the identity
        if stride != 1 or inputs != outputs:
            projection = _convolution(inputs, outputs, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, _norm(outputs))

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(self.body(maps) + self.shortcut(maps))


def convnet(
    *, channels: int, size: int, classes: int, width: int = 128, depth: int | None = None
) -> ImageClassifier:
    """ConvNet (Gidaris & Komodakis, CVPR 2018), whose blocks are convolution, instance norm, ReLU, pooling.

    Its parameters, in order: per block the convolution's weight and bias and the norm's weight and bias; then
    the linear layer's weight and bias. 320,010 of them at width 128, depth 3, 3×32×32 and 10 classes.
    """
    depth = depth or default_depth(size)
    padding = 3 if _is_grey_28(channels, size) else 1
    side = size + 2 * padding - 2
    # The last norm sees side // 2 ** (depth - 1) px; of a single pixel it would leave nothing but its bias.
    deepest = int(math.log2(side))
    require(depth <= deepest, f"depth is {depth}, too deep for images of {size} px: at most {deepest} works.")
    layers, inputs = [], channels
    for _ in range(depth):
        layers += [*_block(inputs, width, padding=padding), nn.AvgPool2d(2)]
        inputs, padding, side = width, 1, side // 2
    return ImageClassifier(nn.Sequential(*layers), _linear(width * side**2, classes))


def alexnet(*, channels: int, size: int, classes: int) -> ImageClassifier:
    """The field's small AlexNet: five convolutions, no norm. 1,872,202 parameters at 3×32×32, 10 classes."""
    enlarge_to = ENLARGED_SIZE if size < 28 else None
    padding = 4 if _is_grey_28(channels, size) else 2
    side = (enlarge_to or size) + 2 * padding - 4
    layers, inputs = [], channels
    # The width, the kernel and the padding of each convolution, and what the side is divided by after it.
    rows = ((128, 5, padding, 2), (192, 5, 2, 2), (256, 3, 1, 1), (192, 3, 1, 1), (192, 3, 1, 2))
    for width, kernel, padding, pool in rows:
        layers += [_convolution(inputs, width, kernel, padding=padding), nn.ReLU()]
        layers += [nn.MaxPool2d(pool)] if pool > 1 else []
        inputs = width
    classifier = _linear(192 * (side // 8) ** 2, classes)
    return ImageClassifier(nn.Sequential(*layers), classifier, enlarge_to=enlarge_to)


def vgg11(*, channels: int, size: int, classes: int) -> ImageClassifier:
    """VGG11 (Simonyan & Zisserman, ICLR 2015) with instance norm.

    9,231,114 parameters at 3×32×32, 10 classes.
    """
    grey_28 = _is_grey_28(channels, size)
    enlarge_to = ENLARGED_SIZE if size < 32 and not grey_28 else None
    padding = 3 if grey_28 else 1
    side = (enlarge_to or size) + 2 * padding - 2
    layers, inputs = [], channels
    # The widths of the convolutions between two poolings.
    for stage in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
        for width in stage:
            layers += _block(inputs, width, padding=padding)
            inputs, padding = width, 1
        layers.append(nn.MaxPool2d(2))
    classifier = _linear(512 * (side // 32) ** 2, classes)
    return ImageClassifier(nn.Sequential(*layers), classifier, enlarge_to=enlarge_to)


def resnet18(*, channels: int, size: int, classes: int) -> ImageClassifier:
    """ResNet18 (He et al., CVPR 2016) with a 3×3 stem, instance norm and a 4×4 average pool.

    11,173,962 parameters at 3×32×32, 10 classes.
    """
    enlarge_to = ENLARGED_SIZE if size < 28 else None
    layers, inputs = _block(channels, 64, padding=1, bias=False), 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [ResidualBlock(inputs, width, stride=stride), ResidualBlock(width, width, stride=1)]
        inputs = width
    layers.append(nn.AvgPool2d(4))
    # Three strides of 2, each of which rounds up, and the pool, which rounds down.
    side = math.ceil((enlarge_to or size) / 8) // 4
    return ImageClassifier(nn.Sequential(*layers), _linear(512 * side**2, classes), enlarge_to=enlarge_to)


# Each builds a network of keyword arguments: channels, size, classes, and the options of its own.
NETWORKS = {"convnet": convnet, "alexnet": alexnet, "vgg11": vgg11, "resnet18": resnet18}
TITLES = {"convnet": "ConvNet", "alexnet": "AlexNet", "vgg11": "VGG11", "resnet18": "ResNet18"}


@dataclass(frozen=True)
class ParameterLayout:
    """Where each parameter of a network lies in one flat vector of `count` floats.

    The order is that of `network.parameters()`. `names` and `shapes` have one entry per parameter.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, network: nn.Module) -> ParameterLayout:
        """The layout of `network`'s parameters."""
        named = dict(network.named_parameters())
        return cls(tuple(named), tuple(tuple(parameter.shape) for parameter in named.values()))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The number of floats in each parameter."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def count(self) -> int:
        """P, the number of floats in all."""
        return sum(self.sizes)

    def flatten(self, tensors: Iterable[Tensor]) -> Tensor:
        """One vector of shape (P,) from tensors in the layout's order.

        It is a copy, never a view of live weights, and differentiable: detach it for a snapshot.
        Raises `InputError` if a tensor is missing, superfluous or of another shape.
        """
        listed = list(tensors)
        found = tuple(tuple(tensor.shape) for tensor in listed)
        sentence = f"the tensors have shapes {found}; this network's parameters have {self.shapes}."
        require(found == self.shapes, sentence)
        return torch.cat([tensor.reshape(-1) for tensor in listed])  # (P,)

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """The parameters by name, as differentiable views of `flat`.

        `flat` has shape (P,), or (networks, P): then every parameter has a first dimension of networks.
        Raises `InputError` if its last dimension is another.
        """
        found, count = flat.shape[-1], self.count
        require(found == count, f"the parameter vector has {found} numbers; this network's has {count}.")
        pieces = zip(self.names, self.shapes, flat.split(self.sizes, dim=-1), strict=True)
        return {name: piece.view(flat.shape[:-1] + shape) for name, shape, piece in pieces}


def _block(inputs: int, width: int, **options: int) -> list[nn.Module]:
    """A 3×3 convolution, instance norm and ReLU."""
    return [_convolution(inputs, width, 3, **options), _norm(width), nn.ReLU()]


def _norm(width: int) -> nn.GroupNorm:
    # One group per channel is instance norm, without the running statistics of nn.InstanceNorm2d.
    return nn.GroupNorm(width, width, affine=True, **_PLACE)


def _is_grey_28(channels: int, size: int) -> bool:
    # The field pads MNIST-like images to 32 px in the first convolution.
    return channels == 1 and size == 28
