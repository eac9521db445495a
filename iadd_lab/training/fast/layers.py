"""A network's pass over images and back, and the derivative of both along one direction of its parameters.

A step of the student needs ∇_θ ℓ: `forward` and `backward`. The adjoint needs the gradients of s =
⟨∇_θ ℓ, λ⟩, which are the derivatives of ∇_x ℓ and ∇_θ ℓ where θ moves along λ: `forward_along` and
`backward_along` (Pearlmutter, "Fast Exact Multiplication by the Hessian", Neural Computation 1994). They need
what the first two saw, and no graph of autograd; so a pass that is kept since the student's step is not
repeated for the adjoint.

In the names, y_bar is the gradient of y, and dy is the derivative of y along the direction.

The layers are those of `iadd_lab.training.networks`; `has_rules` tells whether all of a network's are known.
"""

import functools
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iadd_lab.training.fast import patches, winograd
from iadd_lab.training.fast.compiling import Kernels
from iadd_lab.training.networks import ImageClassifier, ResidualBlock

# Which layers the rules below know, and with which options; of these types exactly, as a subclass may compute
# anything.
_KNOWN: dict[type[nn.Module], Callable[[Any], bool]] = {
    **dict.fromkeys((ResidualBlock, nn.ReLU, nn.AvgPool2d), lambda layer: True),
    nn.Conv2d: lambda layer: (
        (layer.padding_mode, layer.dilation, layer.groups) == ("zeros", (1, 1), 1)
        and len(set(layer.padding)) == len(set(layer.stride)) == 1  # nor a padding by name
    ),
    nn.GroupNorm: lambda layer: layer.affine and layer.num_groups == layer.num_channels,
    nn.MaxPool2d: lambda layer: (
        isinstance(layer.kernel_size, int)
        and (layer.stride, layer.padding, layer.dilation) == (layer.kernel_size, 0, 1)
        and not (layer.ceil_mode or layer.return_indices)
    ),
}


def has_rules(network: nn.Module) -> bool:
    """Whether the passes below know every layer of `network`, with its options."""
    if type(network) is not ImageClassifier or network.classifier.bias is None:
        return False
    layers = [layer for layer in network.features.modules() if type(layer) is not nn.Sequential]
    known = all(type(layer) in _KNOWN and _KNOWN[type(layer)](layer) for layer in layers)
    return known and bool(layers) and isinstance(layers[0], nn.Conv2d)


class Pass:
    """One pass of one or more networks of one architecture, on images of their own; see the module's text.

    Images, maps and logits are of all networks, in equal shares, one after the other: what touches memory
    most is then one pass for all of them. Nothing is recorded for autograd: call it where that is off.

    Args:
        network: for its structure.
        kernels: plain or compiled ones.
        values: the parameters by name; those of several networks with a first dimension of networks.
    """

    def __init__(self, network: ImageClassifier, kernels: Kernels, values: Mapping[str, Tensor]):
        self.network, self.kernels, self.values = network, kernels, values
        self.directions: Mapping[str, Tensor] = {}  # what the parameters move along
        self.gradients: dict[str, Tensor] = {}  # of the parameters, by the latest way back
        self.curvature = True  # whether `backward_along` gives those too
        self.names, self.first = _structure(network)
        bias = values[f"{self.names[network.classifier]}.bias"]
        # None is one, whose parameters have no dimension more.
        self.networks = len(bias) if bias.ndim == 2 else None
        self.features, self.classifier = _Sequence(self, network.features), _Linear(self, network.classifier)

    def forward(self, images: Tensor) -> Tensor:
        """The logits, (batch, classes), of images (batch, channels, height, width)."""
        self.sides = images.shape
        maps = self.features.forward(laid_out(self.network.enlarge(images)))
        self.shape = maps.shape
        return self.classifier.forward(maps.flatten(1))

    def backward(self, above: Tensor) -> None:
        """Fill `gradients` from `above`, the gradient of the logits."""
        self.features.backward(self.classifier.backward(above).view(self.shape))

    def forward_along(self, directions: Mapping[str, Tensor]) -> Tensor:
        """The logits' derivative where the parameters move along `directions`, and images do not."""
        self.directions = directions
        return self.classifier.forward_along(self.features.forward_along(None).flatten(1))

    def backward_along(self, above: Tensor, *, curvature: bool = True) -> Tensor:
        """The derivative of the images' gradient where that of the logits moves by `above`.

        `curvature` is whether `gradients` then has those of the parameters' gradients. What the layers have
        seen is gone afterwards.
        """
        self.curvature = curvature
        images = self.features.backward_along(self.classifier.backward_along(above).view(self.shape))
        if self.network.enlarge_to is None:
            return images
        return torch.ops.aten.upsample_bilinear2d_backward(images, images.shape[2:], self.sides, False)

    def flat_gradient(self) -> Tensor:
        """All of `gradients`, (P,) or (networks, P)."""
        shape = (-1,) if self.networks is None else (self.networks, -1)
        return torch.cat([self.gradients[name].reshape(shape) for name in self.values], -1)

    def tensors(self) -> Iterator[Tensor]:
        """All that is kept for the way back and along."""
        waiting: list[Any] = [self.features, self.classifier]
        while waiting:
            found = waiting.pop()
            if isinstance(found, Tensor):
                yield found
            elif isinstance(found, (list, tuple)):
                waiting += found
            elif isinstance(found, _Layer):
                waiting += vars(found).values()


@functools.lru_cache(maxsize=64)
def _structure(network: ImageClassifier) -> tuple[dict[nn.Module, str], nn.Conv2d]:
    """The name of every layer, and the first convolution."""
    names = {layer: name for name, layer in network.named_modules()}
    return names, next(layer for layer in network.features.modules() if isinstance(layer, nn.Conv2d))


class _Layer:
    """A layer in one pass: a rule for each of the four ways. It keeps what the next ones need."""

    def __init__(self, run: Pass, layer: nn.Module):
        # Weakly: in a circle, what a pass holds would wait for Python's collector of garbage.
        self.run = run if isinstance(run, weakref.ProxyType) else weakref.proxy(run)
        self.layer, self.name = layer, run.names[layer]

    def parameters(self, source: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """The layer's weight and bias, or what `source` has for them; None for a bias that is not there."""
        return source[f"{self.name}.weight"], source.get(f"{self.name}.bias")

    def found(self, weight: Tensor, bias: Tensor | None) -> None:
        """Note gradients of the layer's parameters, in their shapes."""
        self.run.gradients[f"{self.name}.weight"], self.run.gradients[f"{self.name}.bias"] = weight, bias

    def of_network(self, sums: Tensor) -> Tensor:
        """The sum over each network's images of (batch, channels): (channels,) or (networks, channels)."""
        networks = self.run.networks
        return sums.sum(0) if networks is None else sums.unflatten(0, (networks, -1)).sum(1)


class _Sequence(_Layer):
    def forward(self, maps):
        self.parts, rest = [], list(self.layer)
        while rest:
            match rest:
                case [nn.GroupNorm() as norm, nn.ReLU(), nn.AvgPool2d() as pool, *rest] if _even(pool, maps):
                    part = _Norm(self.run, norm, relu=True, pool=True)
                case [nn.GroupNorm() as norm, nn.ReLU(), *rest]:
                    part = _Norm(self.run, norm, relu=True)
                case [nn.GroupNorm() as norm, *rest]:
                    part = _Norm(self.run, norm)
                case [nn.Conv2d() as layer, *rest]:
                    part = self.convolution(layer, maps)
                case [layer, *rest]:
                    part = _OTHERS[type(layer)](self.run, layer)
            self.parts.append(part)
            maps = part.forward(maps)
        return maps

    def convolution(self, layer, maps):
        weight = self.run.values[f"{self.run.names[layer]}.weight"]
        options = layer.stride[0], layer.padding[0]
        if layer is self.run.first:
            by_patches = self.run.networks is None and patches.suits(maps, weight, *options)
            return (_Patches if by_patches else _Convolution)(self.run, layer)
        by_tiles = self.run.kernels.transforms and winograd.suits(maps, weight, *options)
        return (_Winograd if by_tiles else _Convolution)(self.run, layer)

    def backward(self, above):
        for part in reversed(self.parts):
            above = part.backward(above)
        return above

    def forward_along(self, maps):
        for part in self.parts:
            maps = part.forward_along(maps)
        return maps

    def backward_along(self, above):
        while self.parts:  # memory is given back on the way
            above = self.parts.pop().backward_along(above)
        return above


class _Residual(_Layer):
    def forward(self, maps):
        self.ways = [_Sequence(self.run, way) for way in (self.layer.body, self.layer.shortcut)]
        self.output = torch.add(*(way.forward(maps) for way in self.ways)).relu_()
        return self.output

    def _through(self, name, maps):
        return torch.add(*(getattr(way, name)(maps) for way in self.ways))

    def backward(self, above):
        return self._through("backward", _gate(above, self.output))

    def forward_along(self, maps):
        return _gate(self._through("forward_along", maps), self.output)

    def backward_along(self, above):
        return self._through("backward_along", _gate(above, self.output))


def _gate(maps: Tensor, output: Tensor) -> Tensor:
    """`maps` where a ReLU gave something, and zero elsewhere."""
    return torch.ops.aten.threshold_backward(maps, output, 0)


class _Linearised(_Layer):
    """A layer without parameters, whose derivative is the same function of maps on each way."""

    def backward_along(self, above):
        return self.backward(above)


class _Relu(_Linearised):
    def forward(self, maps):
        self.output = maps.relu()
        return self.output

    def backward(self, above):
        return _gate(above, self.output)

    forward_along = backward


class _AveragePool(_Linearised):
    def forward(self, maps):
        self.input = maps
        return self.layer(maps)

    def backward(self, above):
        layer = self.layer
        sizes = [[size] * 2 if isinstance(size, int) else list(size)
                 for size in (layer.kernel_size, layer.stride, layer.padding)]  # fmt: skip
        rest = (layer.ceil_mode, layer.count_include_pad, layer.divisor_override)
        return torch.ops.aten.avg_pool2d_backward(above, self.input, *sizes, *rest)

    def forward_along(self, maps):
        return self.layer(maps)


class _MaxPool(_Linearised):
    def forward(self, maps):
        self.input = maps
        output, self.places = F.max_pool2d(maps, self.layer.kernel_size, return_indices=True)
        return output

    def backward(self, above):
        size = [self.layer.kernel_size] * 2
        options = size, size, [0, 0], [1, 1], False
        return torch.ops.aten.max_pool2d_with_indices_backward(above, self.input, *options, self.places)

    def forward_along(self, maps):
        return maps.flatten(2).gather(2, self.places.flatten(2)).view_as(self.places)


_OTHERS = {
    nn.Sequential: _Sequence, ResidualBlock: _Residual, nn.ReLU: _Relu, nn.AvgPool2d: _AveragePool,
    nn.MaxPool2d: _MaxPool,
}  # fmt: skip


class _Linear(_Layer):
    """y = W x + b of each network."""

    def forward(self, x):
        self.x, (weight, bias) = self._apart(x), self.parameters(self.run.values)
        return self._plus(bias, self.x, weight.mT)

    def backward(self, above):
        self.above = self._apart(above)
        self.found(self.above.mT @ self.x, self.above.sum(-2))
        return self._joint(self.above @ self.parameters(self.run.values)[0])

    def forward_along(self, dx):
        self.dx = self._apart(dx)
        (weight, _), (dweight, dbias) = self.parameters(self.run.values), self.parameters(self.run.directions)
        return self._plus(dbias, self.x, dweight.mT) + self._joint(self.dx @ weight.mT)

    def backward_along(self, above):
        above = self._apart(above)
        weight, dweight = (self.parameters(source)[0] for source in (self.run.values, self.run.directions))
        if self.run.curvature:
            self.found(above.mT @ self.x + self.above.mT @ self.dx, above.sum(-2))
        return self._joint(above @ weight + self.above @ dweight)

    def _plus(self, bias, x, weight):
        if x.ndim == 2:
            return torch.addmm(bias, x, weight)
        return torch.baddbmm(bias[:, None], x, weight).flatten(0, 1)

    def _apart(self, rows):
        networks = self.run.networks
        return rows if networks is None else rows.unflatten(0, (networks, -1))  # (networks, batch, ...)

    def _joint(self, rows):
        return rows if rows.ndim == 2 else rows.flatten(0, 1)


class _Norm(_Layer):
    """Instance norm and, in one pass over memory, the ReLU and the 2×2 averages that follow."""

    def __init__(self, run, layer, *, relu=False, pool=False):
        super().__init__(run, layer)
        self.options = relu, pool

    def forward(self, y):
        self.own = self._planes(self.run.values, len(y))
        output, self.n, self.inverse = self.run.kernels.norm(y, *self.own, self.layer.eps, *self.options)
        return output

    def backward(self, above):
        self.above = laid_out(above)
        given = self.above, self.n, self.inverse, *self.own
        y_bar, *self.sums = self.run.kernels.norm_backward(*given, *self.options)
        self._found(self.sums)
        return y_bar

    def forward_along(self, dy):
        self.dy, self.along = dy, self._planes(self.run.directions, len(dy))
        given = dy, self.n, self.inverse, *self.own, *self.along
        output, *self.dplanes = self.run.kernels.norm_along(*given, *self.options)
        return output

    def backward_along(self, above):
        given = laid_out(above), self.above, self.n, self.dy, self.inverse, *self.sums, *self.dplanes
        given += *self.own, self.along[0]
        y_bar, *sums = self.run.kernels.norm_backward_along(*given, *self.options)
        self._found(sums)
        return y_bar

    def _found(self, sums):
        self.found(*(self.of_network(each.flatten(1)) for each in sums))

    def _planes(self, source, count):
        """γ and β for each image, or (1, channels, 1, 1) for all."""
        return [_for_images(each, count).view(-1, each.shape[-1], 1, 1) for each in self.parameters(source)]


class _Patches(_Layer):
    """A convolution of images, with stride and padding 1, by `iadd_lab.training.fast.patches`."""

    def forward(self, x):
        self.x_shape, self.patches = x.shape, patches.take(x)
        return self._maps(*self.parameters(self.run.values))

    def backward(self, above):
        self.above = patches.pixels(above)
        self._found(self.above)

    def forward_along(self, dx):
        return self._maps(*self.parameters(self.run.directions))

    def backward_along(self, above):
        above = patches.pixels(above)
        weight, dweight = (
            self.parameters(source)[0].flatten(1) for source in (self.run.values, self.run.directions)
        )
        if self.run.curvature:
            self._found(above)
        sent = torch.addmm(above @ weight, self.above, dweight)
        return self.run.kernels.add_patches(sent, *self.x_shape[2:])

    def _maps(self, weight, bias):
        flat = weight.flatten(1).T
        products = self.patches @ flat if bias is None else torch.addmm(bias, self.patches, flat)
        count, _, height, width = self.x_shape
        return products.view(count, height, width, -1).permute(0, 3, 1, 2)

    def _found(self, above):
        weight = self.parameters(self.run.values)[0]
        self.found((above.T @ self.patches).view(weight.shape), above.sum(0))


class _Convolution(_Layer):
    """y = W ∗ x + b, by PyTorch's own convolutions."""

    def forward(self, x):
        self.x = x
        return self._convolve(x, *self.parameters(self.run.values))

    def backward(self, above):
        self.above = laid_out(above)
        weight, wants_x = self.parameters(self.run.values)[0], self.layer is not self.run.first
        x_bar, weight_bar = self._back(self.above, self.x, weight, wants_x)
        self.found(weight_bar, self.of_network(self.above.sum((2, 3))))
        return x_bar

    def forward_along(self, dx):
        (weight, _), (dweight, dbias) = self.parameters(self.run.values), self.parameters(self.run.directions)
        self.dx = dx
        if dx is None:
            return self._convolve(self.x, dweight, dbias)
        # Both products as one, which is faster: of twice as many channels.
        return self._convolve(torch.cat((self.x, dx), 1), torch.cat((dweight, weight), -3), dbias)

    def backward_along(self, above):
        above, (weight, _) = laid_out(above), self.parameters(self.run.values)
        # As above: of twice as many channels, and of twice as many images.
        both = torch.cat((weight, self.parameters(self.run.directions)[0]), -4)
        x_bar, _ = self._back(torch.cat((above, self.above), 1), self.x, both, True, False)
        if self.run.curvature:
            bias_bar = self.of_network(above.sum((2, 3)))
            x = self.x
            if self.dx is not None:
                above, x = torch.cat((above, self.above)), torch.cat((x, self.dx))
            self.found(self._back(above, x, weight, False)[1], bias_bar)
        return x_bar

    def _convolve(self, x, weight, bias):
        options = self.layer.stride, self.layer.padding
        if self.run.networks is None:
            return F.conv2d(x, weight, bias, *options)
        shares = x.chunk(len(weight)), weight, [None] * len(weight) if bias is None else bias
        return torch.cat([F.conv2d(*share, *options) for share in zip(*shares, strict=True)])

    def _back(self, above, x, weight, wants_x, wants_weight=True):
        """The gradients of x and of the weight, each where it is wanted."""
        wanted = [wants_x, wants_weight, False]
        options = self.layer.stride, self.layer.padding, [1, 1], False, [0, 0], 1, wanted
        if self.run.networks is None:
            return torch.ops.aten.convolution_backward(above, x, weight, None, *options)[:2]
        shares = zip(above.chunk(len(weight)), x.chunk(len(weight)), weight, strict=True)
        parts = [torch.ops.aten.convolution_backward(*share, None, *options)[:2] for share in shares]
        joins = zip((torch.cat, torch.stack), zip(*parts, strict=True), strict=True)
        return [None if each[0] is None else join(each) for join, each in joins]


class _Winograd(_Layer):
    """A convolution with stride and padding 1 by `iadd_lab.training.fast.winograd`."""

    def forward(self, x):
        self.sides, self.constants = x.shape[2:], winograd.constants(x.dtype, x.device)
        weight, bias = self.parameters(self.run.values)
        self.tiles = self.run.kernels.input_tiles(laid_out(x), self.constants.b)
        self.filters = self._filters(weight)  # (36, networks, outputs, inputs)
        return self._output(winograd.multiply((self.tiles, self.filters.mT)), bias)

    def backward(self, above):
        above = laid_out(above)
        self.above = self.run.kernels.output_tiles(above, self.constants.a)  # (36, tiles, outputs)
        self._found(above, (self.above, self.tiles))
        return self._input(winograd.multiply((self.above, self.filters)))

    def forward_along(self, dx):
        weight, bias = self.parameters(self.run.directions)
        self.dtiles = self.run.kernels.input_tiles(laid_out(dx), self.constants.b)
        self.dfilters = self._filters(weight)
        pairs = (self.tiles, self.dfilters.mT), (self.dtiles, self.filters.mT)
        return self._output(winograd.multiply(*pairs), bias)

    def backward_along(self, above):
        above = laid_out(above)
        tiles = self.run.kernels.output_tiles(above, self.constants.a)
        if self.run.curvature:
            self._found(above, (tiles, self.tiles), (self.above, self.dtiles))
        return self._input(winograd.multiply((tiles, self.filters), (self.above, self.dfilters)))

    def _filters(self, weight):
        return winograd.weight_tiles(weight[None] if weight.ndim == 4 else weight, self.constants.g)

    def _found(self, above, *pairs):
        products = winograd.correlate(*pairs, networks=self.run.networks or 1)
        weight_bar = winograd.weight_gradient(products, self.constants.g)
        weight_bar = weight_bar[0] if self.run.networks is None else weight_bar
        self.found(weight_bar, self.of_network(above.sum((2, 3))))

    def _output(self, products, bias):
        images = products.shape[1] * 16 // (self.sides[0] * self.sides[1])
        bias = None if bias is None else _for_images(bias, images)
        return self.run.kernels.output_maps(products, bias, *self.sides, self.constants.a)

    def _input(self, products):
        return self.run.kernels.input_maps(products, *self.sides, self.constants.b, self.constants.edges)


def _even(pool: nn.AvgPool2d, maps: Tensor) -> bool:
    """Whether the layer takes 2×2 averages that leave out no pixel."""
    sides = maps.shape[2:]
    return (pool.kernel_size, pool.stride, pool.padding) == (2, 2, 0) and not any(side % 2 for side in sides)


def _for_images(parameter: Tensor, count: int) -> Tensor:
    """A parameter (channels,) as (1, channels), or (networks, channels) for each of `count` images."""
    return parameter[None] if parameter.ndim == 1 else parameter.repeat_interleave(count // len(parameter), 0)


def laid_out(maps: Tensor) -> Tensor:
    """`maps` in the one layout that all passes have: with the channels last in memory on a CPU."""
    # There loops then have stride 1 inside, and convolutions convert nothing.
    last = maps.device.type == "cpu"
    return maps.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
