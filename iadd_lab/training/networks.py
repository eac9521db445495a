"""The field's convolutional networks, networks of one's own, and their parameters as one flat vector.

The definitions are those of "Dataset Condensation with Gradient Matching" (Zhao et al., ICLR 2021) and its
successors (DSA, DM, MTT), so that accuracies and stored parameter lists compare. None draws at random or
works in place, and but for the two with batch norm none has buffers. Any other network is a function
(channels, size, classes) -> `nn.Module`; see `iadd_lab.training.own_networks`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iadd_lab.data.pixels import LARGEST_SIZE, MOST_CHANNELS
from iadd_lab.errors import check_whole, choose, require
from iadd_lab.seeds import seeded
from iadd_lab.store.configs import added_field, unstored_field
from iadd_lab.training.libraries import LIBRARIES, library_network

SMALLEST_SIZE = 8
ENLARGED_SIZE = 32

# Layers are born here whatever the caller's default device and dtype: a seed means the same everywhere.
_PLACE = {"device": "cpu", "dtype": torch.float32}
_convolution = partial(nn.Conv2d, **_PLACE)
_linear = partial(nn.Linear, **_PLACE)
_batch_norm = partial(nn.BatchNorm2d, **_PLACE)
Norm = Callable[[int], nn.Module]  # of so many channels


def _norm(width: int) -> nn.GroupNorm:
    # One group per channel is instance norm, without the running statistics of nn.InstanceNorm2d.
    return nn.GroupNorm(width, width, affine=True, **_PLACE)


def _block(inputs: int, width: int, *, norm: Norm = _norm, **options: int) -> list[nn.Module]:
    """A 3×3 convolution, a norm (instance norm, unless another is given) and ReLU."""
    return [_convolution(inputs, width, 3, **options), norm(width), nn.ReLU()]


@dataclass(frozen=True)
class NetworkConfig:
    """Which network, and for ConvNet how large.

    Args:
        name: a key of `NETWORKS`; "torchvision:NAME" or "timm:NAME" for one of theirs; or a function of your
            own that makes a network: `lambda channels, size, classes: ...`. It has random weights each time.
        width: filters per ConvNet block, at least 1; None means 128.
        depth: ConvNet blocks, at least 1; None means `default_depth(size)`.
        enlarge_to: the side in pixels to which a network that is not of `NETWORKS` has its images enlarged;
            None: as far as it needs, see `iadd_lab.training.own_networks.known_network`.
        fingerprint: of what such a network is; found where it is used, and stored with what it made.
        function: what makes it. It is not stored: where it came from (`name`) and the fingerprint are.

    Raises:
        InputError: an unknown name, a value out of range, or a width or depth for another network.
    """

    name: str = "convnet"
    width: int | None = None
    depth: int | None = None
    enlarge_to: int | None = added_field(None)
    fingerprint: str = added_field("")
    function: Callable[..., nn.Module] | None = unstored_field()

    def __post_init__(self) -> None:
        if callable(self.name):
            object.__setattr__(self, "function", self.name)
            object.__setattr__(self, "name", _where_from(self.function))
        if not (self.function or self.fingerprint):  # with one, the function may not be here yet
            in_library = str(self.name).partition(":")[0] in LIBRARIES
            _ = library_network(self.name) if in_library else choose("network", self.name, NETWORKS)
        for field, value in self.options().items():
            given = f"{field} is {value!r} for network {self.name!r}"
            require(self.name in _SIZED, f"{given}; only convnet has a {field}: leave it out.")
            check_whole(field, value, minimum=1)
        if self.enlarge_to is not None:
            require(self.is_own, f"network {self.name!r} enlarges images as it needs: leave enlarge_to out.")
            check_whole("enlarge_to", self.enlarge_to, minimum=SMALLEST_SIZE, maximum=LARGEST_SIZE)

    @property
    def is_own(self) -> bool:
        """Whether it is a function's or another library's network, of which nothing is known beforehand."""
        return self.name not in NETWORKS

    @property
    def title(self) -> str:
        """The name as text has it."""
        return TITLES.get(self.name, self.name)

    def options(self) -> dict[str, int]:
        """The fields beyond the name that were given, as keyword arguments of the network's builder."""
        return {field: value for field in ("width", "depth") if (value := getattr(self, field)) is not None}


def as_network(network: Any) -> NetworkConfig:
    """A `NetworkConfig` as it is, or the one of a name or a function."""
    return network if isinstance(network, NetworkConfig) else NetworkConfig(network)


def _where_from(function: Callable) -> str:
    """The module and the name that a function was given, as in "__main__.small_net"."""
    function = function.func if isinstance(function, partial) else function
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def build_network(config: NetworkConfig, *, channels: int, size: int, classes: int, seed: int) -> nn.Module:
    """A network for images of shape (batch, channels, size, size), giving logits of shape (batch, classes).

    It has PyTorch's default initialisation, drawn from `seed` alone (0 to 2**63 - 1), on the CPU in float32;
    the global generators stay as they were.

    AlexNet, VGG11 and ResNet18 are made for 32 px. Inside them, images below 28 px are enlarged bilinearly to
    32 px; VGG11, whose five poolings leave nothing of less, does so below 32 px (its 28 px grey images are
    padded to 32 px instead). Larger images simply give the last layer more features, as in the field.

    A function of one's own gets `size` as its network will see it: see `NetworkConfig.enlarge_to`.

    Raises `InputError` unless channels is 1 to 16, size is 8 to 224 and classes is at least 2, if a ConvNet's
    depth is too much for the size, and if the function of a stored network is not there.
    """
    check_whole("channels", channels, minimum=1, maximum=MOST_CHANNELS)
    check_whole("size", size, minimum=SMALLEST_SIZE, maximum=LARGEST_SIZE)
    check_whole("classes", classes, minimum=2)
    check_whole("seed", seed, minimum=0)
    place = {"channels": channels, "size": size, "classes": classes}
    with seeded(seed):
        if config.is_own:
            return _own_network(config, **place)
        return NETWORKS[config.name](**place, **config.options())


def _own_network(config: NetworkConfig, *, channels: int, size: int, classes: int) -> nn.Module:
    """What the function of `config` makes, behind images as it takes them."""
    function = config.function or (library_network(config.name) if ":" in config.name else None)
    said = f"the network was made by {config.name}, which is not stored: give that function again"
    require(function is not None, f"{said}, as in open_teachers(folder, network=...).")
    side = config.enlarge_to or size
    place = {"channels": channels, "size": side, "classes": classes}
    taken = inspect.signature(function).parameters
    by_name = place.keys() <= taken.keys() or any(each.kind is each.VAR_KEYWORD for each in taken.values())
    with torch.device("cpu"):
        made = function(**place) if by_name else function(*place.values())
    sentence = f"{config.name} made {type(made).__name__}, expected an nn.Module: return the network."
    require(isinstance(made, nn.Module), sentence)
    made = made.float()
    first = next((layer for layer in made.modules() if isinstance(layer, nn.Conv2d)), None)
    in_colour = channels == 1 and first is not None and first.in_channels == 3
    return Fitted(made, side=side, in_colour=in_colour) if in_colour or side != size else made


class Fitted(nn.Module):
    """A network behind images as it takes them: enlarged bilinearly, and grey ones in three equal channels.

    forward: images (batch, channels, height, width) -> logits (batch, classes).
    """

    def __init__(self, network: nn.Module, *, side: int, in_colour: bool) -> None:
        super().__init__()
        self.network, self.side, self.in_colour = network, side, in_colour

    def forward(self, images: Tensor) -> Tensor:
        images = F.interpolate(images, size=2 * (self.side,), mode="bilinear", align_corners=False)
        return self.network(images.expand(-1, 3, -1, -1) if self.in_colour else images)


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

    def __init__(self, inputs: int, outputs: int, *, stride: int, norm: Norm = _norm) -> None:
        super().__init__()
        first = _block(inputs, outputs, norm=norm, padding=1, stride=stride, bias=False)
        self.body = nn.Sequential(*first, *_block(outputs, outputs, norm=norm, padding=1, bias=False)[:2])
        self.shortcut = nn.Sequential()  # the identity
        if stride != 1 or inputs != outputs:
            projection = _convolution(inputs, outputs, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, norm(outputs))

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(self.body(maps) + self.shortcut(maps))


def convnet(
    *, channels: int, size: int, classes: int, width: int = 128, depth: int | None = None, norm: Norm = _norm
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
        layers += [*_block(inputs, width, norm=norm, padding=padding), nn.AvgPool2d(2)]
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


def resnet18(*, channels: int, size: int, classes: int, norm: Norm = _norm) -> ImageClassifier:
    """ResNet18 (He et al., CVPR 2016) with a 3×3 stem, instance norm and a 4×4 average pool.

    11,173,962 parameters at 3×32×32, 10 classes.
    """
    enlarge_to = ENLARGED_SIZE if size < 28 else None
    layers, inputs = _block(channels, 64, norm=norm, padding=1, bias=False), 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        for own, step in ((inputs, stride), (width, 1)):
            layers.append(ResidualBlock(own, width, stride=step, norm=norm))
        inputs = width
    layers.append(nn.AvgPool2d(4))
    # Three strides of 2, each of which rounds up, and the pool, which rounds down.
    side = math.ceil((enlarge_to or size) / 8) // 4
    return ImageClassifier(nn.Sequential(*layers), _linear(512 * side**2, classes), enlarge_to=enlarge_to)


# Each builds a network of keyword arguments: channels, size, classes, and the options of its own.
NETWORKS = {"convnet": convnet, "alexnet": alexnet, "vgg11": vgg11, "resnet18": resnet18}
NETWORKS |= {f"{name}_bn": partial(NETWORKS[name], norm=_batch_norm) for name in ("convnet", "resnet18")}
TITLES = {"convnet": "ConvNet", "alexnet": "AlexNet", "vgg11": "VGG11", "resnet18": "ResNet18"}
TITLES |= {"convnet_bn": "ConvNetBN", "resnet18_bn": "ResNet18BN"}
_SIZED = ("convnet", "convnet_bn")
# Layers that neither keep state nor draw at random; of these types exactly.
_PLAIN = {ImageClassifier, ResidualBlock, nn.Sequential, nn.Flatten, nn.Conv2d, nn.Linear, nn.GroupNorm}
_PLAIN |= {nn.ReLU, nn.AvgPool2d, nn.MaxPool2d}


def is_plain(network: nn.Module) -> bool:
    """Whether `network` is known to compute the same in training and in test, whatever came before."""
    return all(type(layer) in _PLAIN for layer in network.modules())


def embed(network: nn.Module, images: Tensor) -> Tensor:
    """What the last linear layer sees of the images: (batch, features).

    Raises:
        InputError: the network has no linear layer.
    """
    if hasattr(network, "embed"):
        return network.embed(images)
    last, seen = [each for each in network.modules() if isinstance(each, nn.Linear)][-1:], []
    require(bool(last), f"{type(network).__name__} has no linear layer, whose input would be the features.")
    handle = last[0].register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].flatten(1)))
    try:
        network(images)
    finally:
        handle.remove()
    return seen[-1]


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


def _is_grey_28(channels: int, size: int) -> bool:
    # The field pads MNIST-like images to 32 px in the first convolution.
    return channels == 1 and size == 28
