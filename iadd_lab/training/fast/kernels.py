"""Instance norm, ReLU and average pooling as one pass each way, on plain and on dual feature maps.

They touch far more memory than the convolutions for next to no arithmetic. As functions of a few tensors
without autograd, `torch.compile` makes one or two loops of each; uncompiled they are right, and slower.

A dual map is a pair (y, ẏ): a value and its derivative along one direction of parameter space. `dual_norm`
pushes a pair through the layer, `dual_norm_backward` is that function's reverse. With M pixels per plane,
all means over a plane, n = (y − mean y) · r and r = 1/√(var y + ε):

    ṅ = r · (ẏ − mean ẏ − n · m),  m = mean(n ẏ)
    z = γ n + β,                   ż = γ ṅ + γ̇ n + β̇

Every gradient below needs one set of sums over each plane and one pass over its pixels.

Arguments and results are tensors, but for `epsilon` (a float), `relu` and `pool` (flags). All functions take
maps y and ẏ (batch, channels, h, w), with even sides where `pool` is true; γ, β, γ̇ and β̇ for each image,
(batch or 1, channels); and statistics of planes, (batch, channels, 1, 1).
"""

import torch
from torch import Tensor
from torch.nn import functional


def norm(y, gamma, beta, epsilon, relu, pool):
    """The output for feature maps y, and (mean, r) of every plane for `norm_backward`.

    Args:
        y: the maps.
        gamma, beta: the norm's weight and bias.
        epsilon: the norm's ε.
        relu: whether a ReLU follows.
        pool: whether 2×2 averages follow that.
    """
    gamma, beta = _on_planes(gamma), _on_planes(beta)
    centre = _mean(y)
    shifted = y - centre
    inverse = (_mean(shifted.square()) + epsilon).rsqrt()  # (batch, channels, 1, 1)
    return _finish(shifted * (inverse * gamma) + beta, relu, pool), centre, inverse


def norm_backward(above, y, centre, inverse, gamma, beta, relu, pool):
    """The gradients of y, and of γ and β for each image, from `above`, that of the output."""
    gamma, beta = _on_planes(gamma), _on_planes(beta)
    n = (y - centre) * inverse
    z_bar = _gate(n * gamma + beta, relu) * _spread(above, pool)
    sum_z, sum_zn = _sum(z_bar), _sum(z_bar * n)
    count = y.shape[2] * y.shape[3]
    y_bar = (inverse * gamma) * (z_bar - sum_z / count - n * (sum_zn / count))
    return y_bar, sum_zn[:, :, 0, 0], sum_z[:, :, 0, 0]


def dual_norm(y, dy, gamma, beta, dgamma, dbeta, epsilon, relu, pool):
    """The output and its derivative, and (mean y, r, mean ẏ, m) for `dual_norm_backward`."""
    gamma, beta, dgamma, dbeta = map(_on_planes, (gamma, beta, dgamma, dbeta))
    centre, dcentre = _mean(y), _mean(dy)
    shifted = y - centre
    inverse = (_mean(shifted.square()) + epsilon).rsqrt()  # (batch, channels, 1, 1)
    moment = _mean(shifted * dy) * inverse
    n = shifted * inverse
    z = n * gamma + beta
    dz = gamma * (inverse * (dy - dcentre - n * moment)) + dgamma * n + dbeta
    return _finish(z, relu, pool), _finish(dz * _gate(z, relu), False, pool), centre, inverse, dcentre, moment


def dual_norm_backward(
    above, dabove, y, dy, centre, inverse, dcentre, moment, gamma, beta, dgamma, relu, pool
):
    """The gradients of y, ẏ, and γ and β for each image, from those of the output and its derivative."""
    gamma, beta, dgamma = map(_on_planes, (gamma, beta, dgamma))
    count = y.shape[2] * y.shape[3]
    n = (y - centre) * inverse
    gate = _gate(n * gamma + beta, relu)
    # The gate first: the result then has its memory layout, that of y.
    z_bar, dz_bar = gate * _spread(above, pool), gate * _spread(dabove, pool)
    dn = inverse * (dy - dcentre - n * moment)
    sum_z, sum_dz, sum_zn = _sum(z_bar), _sum(dz_bar), _sum(z_bar * n)
    sum_dzn, sum_dzdn = _sum(dz_bar * n), _sum(dz_bar * dn)
    # a = γ ż̄ is the gradient of ṅ; its means, plain and against n and ṅ:
    a, a_n, a_dn = gamma * sum_dz / count, gamma * sum_dzn / count, gamma * sum_dzdn / count
    # n̄ = γ z̄ + γ̇ ż̄ − r (m a + mean(a n) ẏ) is the gradient of n; its means, plain and against n:
    n_bar = (gamma * sum_z + dgamma * sum_dz) / count - inverse * (moment * a + a_n * dcentre)
    n_bar_n = (gamma * sum_zn + dgamma * sum_dzn) / count - 2 * inverse * moment * a_n
    dy_bar = inverse * (gamma * dz_bar - a - n * a_n)
    y_bar = inverse * (
        gamma * z_bar
        + dgamma * dz_bar
        - inverse * (moment * gamma * dz_bar + a_n * dy)
        - n_bar
        - n * (n_bar_n + a_dn)
    )
    return y_bar, dy_bar, (sum_zn + sum_dzdn)[:, :, 0, 0], sum_z[:, :, 0, 0]


def _finish(z: Tensor, relu: bool, pool: bool) -> Tensor:
    z = z.relu() if relu else z
    return functional.avg_pool2d(z, 2) if pool else z


def _gate(z: Tensor, relu: bool) -> Tensor | float:
    # As numbers: a stored mask of booleans takes the compiled loops ten times as long.
    return torch.where(z > 0, 1.0, 0.0).to(z.dtype) if relu else 1.0


def _spread(gradient: Tensor, pool: bool) -> Tensor:
    """The gradient of 2×2 averages, back on the pixels."""
    if not pool:
        return gradient
    batch, channels, height, width = gradient.shape
    spread = (gradient * 0.25)[:, :, :, None, :, None].expand(batch, channels, height, 2, width, 2)
    return spread.reshape(batch, channels, 2 * height, 2 * width)


def _on_planes(parameter: Tensor) -> Tensor:
    return parameter[:, :, None, None]  # (batch or 1, channels, 1, 1)


def _mean(maps: Tensor) -> Tensor:
    return _sum(maps) / (maps.shape[2] * maps.shape[3])


def _sum(maps: Tensor) -> Tensor:
    # Row by row: with the channels last, a compiled loop over a whole plane would jump through memory.
    return maps.sum(3, keepdim=True).sum(2, keepdim=True)  # (batch, channels, 1, 1)
