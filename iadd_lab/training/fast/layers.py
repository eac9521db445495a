"""A network's forward pass on plain feature maps or on dual ones, with the layers that cost most fused.

A *dual* is a value and its derivative along one direction of parameter space. Pushing the images through a
network whose parameters are duals (θ, λ) gives the loss and s = ⟨∇_θ ℓ, λ⟩ in one forward pass; one backward
pass through that gives ∇_x s and ∇_θ s. It needs no graph of a graph, as double backward does, and half of
its passes over memory.

The rules know the layers of `iadd_lab.training.networks`; `has_rules` tells whether they know a network.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from iadd_lab.training.fast import patches, winograd
from iadd_lab.training.fast.compiling import Kernels
from iadd_lab.training.networks import ImageClassifier, ResidualBlock


class Dual(NamedTuple):
    """A value and its derivative along a direction, of the same shape."""

    value: Tensor
    tangent: Tensor


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


class PlainPass:
    """One forward pass of one or more networks with other parameters; `has_rules` tells of which networks.

    Feature maps and parameters are tensors, differentiable once. Parameters have a first dimension of
    networks. Images and maps are of all networks, in equal shares, one after the other: what touches memory
    most is then one pass for all of them.

    Args:
        network: for its structure.
        parameters: by name.
        kernels: plain or compiled ones.
    """

    def __init__(self, network: ImageClassifier, parameters: Mapping[str, Any], kernels: Kernels):
        self.network, self.kernels = network, kernels
        # The weight and the bias of each layer, None where it has none.
        self.weights = {
            layer: [parameters.get(f"{name}.{part}") for part in ("weight", "bias")]
            for name, layer in network.named_modules()
        }

    def logits(self, maps: Any) -> Any:
        """What the network says, (batch, classes), of images (batch, channels, height, width)."""
        maps = self.run(self.network.features, self.each(self.network.enlarge, maps))
        features = self.each(partial(torch.flatten, start_dim=1), maps)
        return self.affine(features, *self.weights[self.network.classifier])

    def run(self, layer: nn.Module, maps: Any) -> Any:
        match layer:
            case nn.Sequential():
                return self.sequence(layer, maps)
            case nn.Conv2d():
                return self.convolve(maps, *self.weights[layer], layer.stride[0], layer.padding[0])
            case nn.MaxPool2d():
                return self.max_pool(maps, layer.kernel_size)
            case nn.AvgPool2d():
                return self.each(layer, maps)
            case nn.ReLU():
                return self.relu(maps)
            case ResidualBlock():
                parts = self.run(layer.body, maps), self.run(layer.shortcut, maps)
                return self.relu(self.each(torch.add, *parts))

    def sequence(self, layers: nn.Sequential, maps: Any) -> Any:
        rest = list(layers)
        while rest:
            match rest:
                case [nn.GroupNorm() as norm, nn.ReLU(), nn.AvgPool2d() as pool, *rest] if _even(pool, maps):
                    maps = self.norm(maps, *self.weights[norm], norm.eps, relu=True, pool=True)
                case [nn.GroupNorm() as norm, nn.ReLU(), *rest]:
                    maps = self.norm(maps, *self.weights[norm], norm.eps, relu=True, pool=False)
                case [nn.GroupNorm() as norm, *rest]:
                    maps = self.norm(maps, *self.weights[norm], norm.eps, relu=False, pool=False)
                case [layer, *rest]:
                    maps = self.run(layer, maps)
        return maps

    def each(self, function, *maps):
        return function(*maps)

    def affine(self, maps, weight, bias):
        shares = maps.unflatten(0, (len(weight), -1))  # (networks, batch, inputs)
        return torch.baddbmm(bias[:, None], shares, weight.mT).flatten(0, 1)

    def convolve(self, maps, weight, bias, stride, padding):
        if self.kernels.transforms and winograd.suits(maps, weight, stride, padding):
            return _Winograd.apply(maps, weight, bias, self.kernels)
        biases = [None] * len(weight) if bias is None else bias
        shares = zip(maps.chunk(len(weight)), weight, biases, strict=True)
        parts = [F.conv2d(*share, stride=stride, padding=padding) for share in shares]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def norm(self, maps, weight, bias, epsilon, *, relu, pool):
        weight, bias = (_for_images(parameter, maps) for parameter in (weight, bias))
        return _Norm.apply(maps, weight, bias, epsilon, relu, pool, self.kernels)

    def relu(self, maps):
        return maps.relu()

    def max_pool(self, maps, size):
        return F.max_pool2d(maps, size)


def _even(pool: nn.AvgPool2d, maps: Any) -> bool:
    """Whether the layer takes 2×2 averages that leave out no pixel."""
    sides = (maps.value if type(maps) is Dual else maps).shape[2:]
    return (pool.kernel_size, pool.stride, pool.padding) == (2, 2, 0) and not any(side % 2 for side in sides)


def _for_images(parameter: Tensor, maps: Tensor) -> Tensor:
    """A parameter (networks, channels) for every image: (batch, channels), or (1, channels) for all."""
    if len(parameter) == 1:
        return parameter
    return parameter.repeat_interleave(len(maps) // len(parameter), 0)


class DualPass(PlainPass):
    """The same for one network whose maps and parameters are duals; their values are differentiable, once.

    Images have no derivative: a `Dual` whose tangent is None.
    """

    def each(self, function, *maps):
        return Dual(*(None if parts[0] is None else function(*parts) for parts in zip(*maps, strict=True)))

    def affine(self, maps, weight, bias):
        value = F.linear(maps.value, weight.value, bias.value)
        tangent = F.linear(maps.tangent, weight.value) + F.linear(maps.value, weight.tangent, bias.tangent)
        return Dual(value, tangent)

    def convolve(self, maps, weight, bias, stride, padding):
        bias = bias or Dual(None, None)
        inner = self.kernels.transforms and maps.tangent is not None
        if inner and winograd.suits(maps.value, weight.value, stride, padding):
            return Dual(*_DualWinograd.apply(*maps, *weight, *bias, self.kernels))
        return Dual(*_DualConvolution.apply(*maps, *weight, *bias, stride, padding, self.kernels))

    def norm(self, maps, weight, bias, epsilon, *, relu, pool):
        return Dual(*_DualNorm.apply(*maps, *weight, *bias, epsilon, relu, pool, self.kernels))

    def relu(self, maps):
        return Dual(maps.value.relu(), maps.tangent * (maps.value > 0))

    def max_pool(self, maps, size):
        value, places = F.max_pool2d(maps.value, size, return_indices=True)
        tangent = maps.tangent.flatten(2).gather(2, places.flatten(2)).view_as(places)
        return Dual(value, tangent)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, gamma, beta, epsilon, relu, pool, kernels):
        output, *statistics = kernels.norm(y, gamma, beta, epsilon, relu, pool)
        ctx.save_for_backward(y, *statistics, gamma, beta)
        ctx.options = (relu, pool, kernels)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, above):
        relu, pool, kernels = ctx.options
        y, *parameters = kernels.norm_backward(laid_out(above, kernels), *ctx.saved_tensors, relu, pool)
        if len(ctx.saved_tensors[-1]) == 1:  # parameters that all images share
            parameters = [gradient.sum(0, keepdim=True) for gradient in parameters]
        return y, *parameters, None, None, None, None


class _DualNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, dy, gamma, dgamma, beta, dbeta, epsilon, relu, pool, kernels):
        gamma, beta, dgamma, dbeta = (parameter[None] for parameter in (gamma, beta, dgamma, dbeta))
        given = (y, dy, gamma, beta, dgamma, dbeta)
        value, tangent, *statistics = kernels.dual_norm(*given, epsilon, relu, pool)
        ctx.save_for_backward(y, dy, *statistics, gamma, beta, dgamma)
        ctx.options = (relu, pool, kernels)
        return value, tangent

    @staticmethod
    @once_differentiable
    def backward(ctx, above, dabove):
        relu, pool, kernels = ctx.options
        above, dabove = laid_out(above, kernels), laid_out(dabove, kernels)
        y, dy, gamma, beta = kernels.dual_norm_backward(above, dabove, *ctx.saved_tensors, relu, pool)
        return y, dy, gamma.sum(0), None, beta.sum(0), None, None, None, None, None


class _DualConvolution(torch.autograd.Function):
    """y = W ∗ x + b, ẏ = W ∗ ẋ + Ẇ ∗ x + ḃ; the gradients of x, ẋ, W and b, for Ẇ and ḃ are given."""

    @staticmethod
    def forward(ctx, x, dx, weight, dweight, bias, dbias, stride, padding, kernels):
        ctx.save_for_backward(x, dx, weight, dweight)
        ctx.options = (stride, padding, kernels)
        value = F.conv2d(x, weight, bias, stride, padding)
        tangent = F.conv2d(x, dweight, dbias, stride, padding)
        if dx is not None:
            tangent += F.conv2d(dx, weight, None, stride, padding)
        return value, tangent

    @staticmethod
    @once_differentiable
    def backward(ctx, above, dabove):
        x, dx, weight, dweight = ctx.saved_tensors
        stride, padding, kernels = ctx.options

        def back(above, x, weight, *wanted):
            """The gradients of x and of the weight, each where it is wanted."""
            options = ([stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, [*wanted, False])
            return torch.ops.aten.convolution_backward(above, x, weight, None, *options)[:2]

        wants_x, wants_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
        by_patches = wants_x and kernels.transforms and patches.suits(weight, stride, padding)
        x_bar, weight_bar = back(above, x, weight, wants_x and not by_patches, wants_weight)
        dx_bar = None
        if dx is not None:
            dx_bar, more = back(dabove, dx, weight, True, wants_weight)
            weight_bar = weight_bar.add_(more) if wants_weight else None
        if by_patches:
            above, dabove = laid_out(above, kernels), laid_out(dabove, kernels)
            sent = patches.send_patches(above, weight) + patches.send_patches(dabove, dweight)
            x_bar = kernels.add_patches(sent, *x.shape[2:])
        elif wants_x:
            x_bar += back(dabove, x, dweight, True, False)[0]
        bias_bar = above.sum((0, 2, 3)) if ctx.needs_input_grad[4] else None
        return x_bar, dx_bar, weight_bar, None, bias_bar, None, None, None, None


class _Winograd(torch.autograd.Function):
    """A convolution with stride and padding 1 by `winograd`, of one or more networks."""

    @staticmethod
    def forward(ctx, x, weight, bias, kernels):
        constants = winograd.constants(x.dtype, x.device)
        tiles = kernels.input_tiles(laid_out(x, kernels), constants.b)  # (36, tiles, inputs)
        filters = winograd.weight_tiles(weight, constants.g)  # (36, networks, outputs, inputs)
        ctx.save_for_backward(tiles, filters)
        ctx.kernels = kernels
        bias = None if bias is None else _for_images(bias, x)
        products = winograd.multiply(tiles, filters.mT)
        return kernels.output_maps(products, bias, *x.shape[2:], constants.a)

    @staticmethod
    @once_differentiable
    def backward(ctx, above):
        (tiles, filters), kernels = ctx.saved_tensors, ctx.kernels
        constants, networks = winograd.constants(above.dtype, above.device), filters.shape[1]
        above_tiles = kernels.output_tiles(laid_out(above, kernels), constants.a)  # (36, tiles, outputs)
        x_bar = None
        if ctx.needs_input_grad[0]:
            products = winograd.multiply(above_tiles, filters)
            x_bar = kernels.input_maps(products, *above.shape[2:], constants.b, constants.edges)
        products = winograd.correlate(above_tiles, tiles, networks)
        weight_bar = winograd.weight_gradient(products, constants.g)
        bias_bar = above.unflatten(0, (networks, -1)).sum((1, 3, 4)) if ctx.needs_input_grad[2] else None
        return x_bar, weight_bar, bias_bar, None


class _DualWinograd(torch.autograd.Function):
    """What `_DualConvolution` computes, with stride and padding 1, by `iadd_lab.training.fast.winograd`."""

    @staticmethod
    def forward(ctx, x, dx, weight, dweight, bias, dbias, kernels):
        constants = winograd.constants(x.dtype, x.device)
        tiles, dtiles = (kernels.input_tiles(laid_out(maps, kernels), constants.b) for maps in (x, dx))
        # (36, outputs, inputs) each
        filters, dfilters = (winograd.weight_tiles(w[None], constants.g)[:, 0] for w in (weight, dweight))
        ctx.save_for_backward(tiles, dtiles, filters, dfilters)
        ctx.kernels = kernels
        bias, dbias = (None if each is None else each[None] for each in (bias, dbias))
        products = torch.bmm(dtiles, filters.mT).baddbmm_(tiles, dfilters.mT)
        value = kernels.output_maps(tiles @ filters.mT, bias, *x.shape[2:], constants.a)
        return value, kernels.output_maps(products, dbias, *x.shape[2:], constants.a)

    @staticmethod
    @once_differentiable
    def backward(ctx, above, dabove):
        (tiles, dtiles, filters, dfilters), kernels = ctx.saved_tensors, ctx.kernels
        constants = winograd.constants(above.dtype, above.device)
        above_tiles = kernels.output_tiles(laid_out(above, kernels), constants.a)  # (36, tiles, outputs)
        dabove_tiles = kernels.output_tiles(laid_out(dabove, kernels), constants.a)
        products = torch.bmm(above_tiles, filters).baddbmm_(dabove_tiles, dfilters)
        joins = (*above.shape[2:], constants.b, constants.edges)
        x_bar = kernels.input_maps(products, *joins)
        dx_bar = kernels.input_maps(dabove_tiles @ filters, *joins)
        weight_bar = None
        if ctx.needs_input_grad[2]:
            products = torch.bmm(above_tiles.mT, tiles).baddbmm_(dabove_tiles.mT, dtiles)
            weight_bar = winograd.weight_gradient(products[:, None], constants.g)[0]
        bias_bar = above.sum((0, 2, 3)) if ctx.needs_input_grad[4] else None
        return x_bar, dx_bar, weight_bar, None, bias_bar, None, None


def laid_out(maps: Tensor, kernels: Kernels) -> Tensor:
    """`maps` in the one layout for which kernels are compiled; autograd hands over others."""
    # With the channels last, a CPU's loops have stride 1 inside.
    layout = torch.channels_last if kernels.transforms else torch.contiguous_format
    return maps.contiguous(memory_format=layout)
