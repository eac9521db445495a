"""Instance norm, ReLU and average pooling as one pass each way, and along a direction.

They touch far more memory than the convolutions for next to no arithmetic. As functions of a few tensors
without autograd, `torch.compile` makes one or two loops of each; uncompiled each line is an operation.

With M pixels per plane, all means over a plane, n = (y − mean y) · r and r = 1/√(var y + ε), the output is
z = γ n + β, and then what ReLU and pooling make of it. The gradient z̄ of z gives ȳ = γ r (z̄ − mean z̄ −
n mean(z̄ n)). `norm_along` is the derivative of the output where y and the parameters move by ẏ, γ̇ and β̇:

    ṅ = r · (ẏ − mean ẏ − n · m),  m = mean(n ẏ)
    ż = γ ṅ + γ̇ n + β̇

and `norm_backward_along` that of the gradients, where z̄ moves by Z.

Arguments and results are tensors, but for `epsilon` (a float), `relu` and `pool` (flags). All functions take
maps (batch, channels, h, w), with even sides where `pool` is true; γ, β, γ̇ and β̇ for each image, (batch or
1, channels, 1, 1); and statistics of planes, (batch, channels, 1, 1).
"""

import torch
from torch import Tensor
from torch.nn import functional


def norm(y, gamma, beta, epsilon, relu, pool):
    """The output for feature maps y, and n and r for the other functions.

    Args:
        y: the maps.
        gamma, beta: the norm's weight and bias.
        epsilon: the norm's ε.
        relu: whether a ReLU follows.
        pool: whether 2×2 averages follow that.
    """
    shifted = y - _mean(y)
    variance = _mean(shifted.square()) + epsilon
    inverse = variance.rsqrt() + 0 * variance  # not a number where that is infinite: runs must not go on then
    n = shifted * inverse
    z = torch.addcmul(beta, n, gamma)
    return _finish(z.relu() if relu else z, pool), n, inverse


def norm_backward(above, n, inverse, gamma, beta, relu, pool):
    """ȳ from `above`, the gradient of the output, and the sums of z̄ n and z̄, the gradients of γ and β."""
    z_bar = _start(above, torch.addcmul(beta, n, gamma), relu, pool)
    sum_zn, sum_z = _sum(z_bar * n), _sum(z_bar)
    scale = inverse * gamma
    share = scale * (-1 / _pixels(n))
    y_bar = torch.addcmul(torch.addcmul(sum_z * share, z_bar, scale), n, sum_zn * share)
    return y_bar, sum_zn, sum_z


def norm_along(dy, n, inverse, gamma, beta, dgamma, dbeta, relu, pool):
    """The output's derivative for ẏ, γ̇ and β̇, and (mean ẏ, m) of every plane."""
    dcentre, moment = _mean(dy), _mean(n * dy)
    scale = inverse * gamma
    dz = torch.addcmul(dbeta - scale * dcentre, dy, scale)
    dz = torch.addcmul(dz, n, dgamma - scale * moment)
    return _finish(_gate(dz, torch.addcmul(beta, n, gamma), relu), pool), dcentre, moment


def norm_backward_along(
    more, above, n, dy, inverse, sum_zn, sum_z, dcentre, moment, gamma, beta, dgamma, relu, pool
):
    """The derivatives of what `norm_backward` gives, where `above` moves by `more`: of ȳ, γ̄ and β̄."""
    z = torch.addcmul(beta, n, gamma)
    z_bar, z_more = _start(above, z, relu, pool), _start(more, z, relu, pool)
    dn = (dy - torch.addcmul(dcentre, n, moment)) * inverse
    sum_more, gamma_bar = _sum(z_more), _sum(torch.addcmul(z_more * n, z_bar, dn))
    # ȳ is linear in z̄, 1 and n; its factors move with γ, r and the sums.
    scale = inverse * gamma
    dscale = inverse * (dgamma - scale * moment)
    share, dshare = (each * (-1 / _pixels(n)) for each in (scale, dscale))
    y_bar = torch.addcmul(sum_z * dshare + sum_more * share, z_bar, dscale)
    y_bar = torch.addcmul(y_bar, z_more, scale)
    y_bar = torch.addcmul(y_bar, n, sum_zn * dshare + gamma_bar * share)
    return torch.addcmul(y_bar, dn, sum_zn * share), gamma_bar, sum_more


def _finish(maps: Tensor, pool: bool) -> Tensor:
    return functional.avg_pool2d(maps, 2) if pool else maps


def _start(above: Tensor, z: Tensor, relu: bool, pool: bool) -> Tensor:
    """The gradient of z from that of the output."""
    if pool and torch.compiler.is_compiling():  # which makes one loop of this, with the next ones
        batch, channels, height, width = above.shape
        above = (above * 0.25)[:, :, :, None, :, None].expand(batch, channels, height, 2, width, 2)
        above = above.reshape(z.shape)
    elif pool:
        above = functional.interpolate(above * 0.25, scale_factor=2)
    return _gate(above, z, relu)


def _gate(maps: Tensor, z: Tensor, relu: bool) -> Tensor:
    if relu and torch.compiler.is_compiling():
        # The gate as numbers: a stored mask of booleans takes the compiled loops ten times as long. And
        # first: the result then has its memory layout.
        return torch.where(z > 0, 1.0, 0.0).to(z.dtype) * maps
    return torch.ops.aten.threshold_backward(maps, z, 0) if relu else maps


def _pixels(maps: Tensor) -> int:
    return maps.shape[2] * maps.shape[3]


def _mean(maps: Tensor) -> Tensor:
    return (
        _sum(maps) * (1 / _pixels(maps)) if torch.compiler.is_compiling() else maps.mean((2, 3), keepdim=True)
    )


def _sum(maps: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        # Row by row: with the channels last, a compiled loop over a whole plane would jump through memory.
        return maps.sum(3, keepdim=True).sum(2, keepdim=True)  # (batch, channels, 1, 1)
    return maps.sum((2, 3), keepdim=True)
