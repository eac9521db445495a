"""What a network that somebody else wrote is, and whether it can be trained on, or distilled with.

Such a network is known by what it does: the names and shapes of its parameters and buffers, and its outputs
in training and in test for fixed images, at its first weights and at others. A width caught in a closure
makes another network of the same function; a comment in its source does not. What is refused names a layer.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase

from iadd_lab.data.pixels import LARGEST_SIZE
from iadd_lab.errors import InputError, require
from iadd_lab.seeds import seeded
from iadd_lab.store.configs import fingerprint
from iadd_lab.training.networks import NetworkConfig, is_plain, network_for
from iadd_lab.training.student import StudentLoss, leaf

_IMAGES = 3  # of noise, for trying
_NARROW = 2  # pixels that a network's last convolution has to see
_EXACT = 1e-8  # of the largest gradient: what float64 leaves of equal ones


class Heard(NamedTuple):
    """What a layer was given and gave."""

    name: str  # as in "features.0"; empty for the network itself
    layer: nn.Module
    given: Tensor
    gave: Tensor

    @property
    def title(self) -> str:
        """As sentences name it."""
        return _title(self.name, self.layer)


def known_network(config: NetworkConfig, data: Any) -> NetworkConfig:
    """`config` with what its network is on images of `data`: its fingerprint, and how far it enlarges them.

    Small images are doubled in size, up to 224 px, until the network can be run on them and its last spatial
    convolution sees at least 2 × 2 pixels. Networks of the registry stay as they are.

    Args:
        config: of any network.
        data: has `channels`, `size` and `classes`: an `ImageData`, or `Teachers`.

    Raises:
        InputError: the network fails at one of its layers, does not give logits of every class, keeps state
            other than in its buffers, or has another fingerprint than `config`.
    """
    if not config.is_own:
        return config
    found = replace(config, fingerprint="", enlarge_to=config.enlarge_to or _side(config, data))
    (network, other), images = (network_for(data, found, seed=seed) for seed in (0, 1)), _noise(data)
    pairs = zip(network.parameters(), other.parameters(), strict=False)
    fresh = all(own is not same for own, same in pairs)
    require(fresh, f"{config.name} gives the same layers each time: make them inside the function.")
    buffers = _buffers(network)
    once, again = (_outputs(network, images, buffers=buffers) for _ in range(2))
    changed = _first_difference(once, again)
    mend = "keep it in a buffer, so that an interrupted training can go on"
    require(not changed, f"{changed} of {config.name} gives something else the second time: {mend}.")
    found = replace(found, fingerprint=_fingerprint(network, images, buffers))
    asked, mark = config.fingerprint, found.fingerprint
    sentence = f"{config.name} makes another network (fingerprint {mark}) than the stored one ({asked})"
    require(asked in ("", mark), f"{sentence}: give the function that was given then.")
    return found


def check_student(config: NetworkConfig, data: Any) -> None:
    """Require that students of this network have exact gradients.

    One step is computed in float64 as students take it, and compared with autograd's own unroll of the
    network as it was written.

    Raises:
        InputError: naming the layer that draws at random, keeps state, or breaks the gradients.
    """
    network, images = network_for(data, config, seed=0), _noise(data)
    if is_plain(network):
        return
    buffers = _buffers(network)
    random = _first_difference(*(_outputs(network, images, buffers=buffers, seed=seed) for seed in (0, 1)))
    mend = "leave it out, or set its rate to 0: the gradients of a student must be exact"
    require(not random, f"{random} of {config.name} draws at random in training: {mend}.")
    norms = [f"{name}." for name, layer in network.named_modules() if isinstance(layer, _NormBase)]
    moved = [name for name, each in _buffers(network).items() if not torch.equal(each, buffers[name])]
    kept = [name for name in moved if not name.startswith(tuple(norms))]
    said = f"{config.name} changes its buffer {', '.join(kept)} while it is trained"
    require(not kept, f"{said}: a student's steps can keep no state but that of batch norm.")
    broken = _inexact(network, images, torch.arange(_IMAGES) % len(data.classes))
    require(not broken, f"{broken} of {config.name} breaks the gradients of a student: replace that layer.")


def _noise(data: Any) -> Tensor:
    shape = (_IMAGES, data.channels, data.size, data.size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()


def _buffers(network: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in network.named_buffers()}


def _side(config: NetworkConfig, data: Any) -> int:
    """The side to which images are enlarged: the first at which the network sees enough of them."""
    sides = [data.size * 2**power for power in range(8) if data.size * 2**power <= LARGEST_SIZE]
    works, refusals = [], []
    for side in dict.fromkeys([*sides, LARGEST_SIZE]):
        try:
            network = network_for(data, replace(config, enlarge_to=side), seed=0)
            said = _outputs(network, _noise(data), classes=len(data.classes))
        except InputError as error:
            refusals.append(error)
            continue
        works.append(side)
        seen = [min(each.gave.shape[2:]) for each in said if _is_spatial(each.layer)]
        if not seen or seen[-1] >= _NARROW:
            return side
    if not works:
        raise refusals[0]
    return works[0]


def _is_spatial(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and max(layer.kernel_size) > 1


def _outputs(
    network: nn.Module,
    images: Tensor,
    *,
    buffers: dict[str, Tensor] | None = None,
    seed: int = 0,
    training: bool = True,
    classes: int | None = None,
) -> list[Heard]:
    """What each layer says of the images, the network itself last, from the given state of its buffers.

    Raises:
        InputError: a layer fails, or the logits are not those of so many classes.
    """
    for name, buffer in network.named_buffers() if buffers else ():
        buffer.copy_(buffers[name])
    with _watched(network.train(training)) as said, seeded(seed), torch.no_grad():
        logits = network(images.clone())  # in which it may write
    if classes is not None:
        fits = isinstance(logits, Tensor) and logits.is_floating_point()
        found = tuple(logits.shape) if fits else type(logits).__name__
        last = next(each.title for each in reversed(said) if each.name or len(said) == 1)
        expected = f"expected logits of {classes} classes, {(len(images), classes)}"
        sentence = f"the network gives {found}, {expected}: change its last layer, which is {last}."
        require(fits and found == (len(images), classes), sentence)
    return said


@contextmanager
def _watched(network: nn.Module) -> Iterator[list[Heard]]:
    """Note what every layer gives meanwhile; what is raised inside one names it."""
    inside, said = [], []

    def enter(name: str, layer: nn.Module, inputs: tuple) -> None:
        inside.append((_title(name, layer), inputs[0].detach().clone() if inputs else None))

    def leave(name: str, layer: nn.Module, inputs: tuple, output: Any) -> None:
        _, given = inside.pop()
        if isinstance(output, Tensor):
            said.append(Heard(name, layer, given, output.detach().clone()))

    handles = []
    for name, layer in network.named_modules():
        handles.append(layer.register_forward_pre_hook(partial(enter, name)))
        handles.append(layer.register_forward_hook(partial(leave, name)))
    try:
        yield said
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError, NotImplementedError) as error:
        place = inside[-1][0] if inside else "the network"
        raise InputError(f"{place} fails: {(str(error).splitlines() or [repr(error)])[0]}") from error
    finally:
        for handle in handles:
            handle.remove()


def _title(name: str, layer: nn.Module) -> str:
    return f"layer {name!r} ({type(layer).__name__})" if name else f"the network ({type(layer).__name__})"


def _first_difference(one: list[Heard], other: list[Heard]) -> str:
    """The first layer that gives something else in the second; empty where there is none."""
    pairs = zip(one, other, strict=False)
    differ = (a.title for a, b in pairs if a.name != b.name or not torch.equal(a.gave, b.gave))
    return next(differ, "")


def _fingerprint(network: nn.Module, images: Tensor, buffers: dict[str, Tensor]) -> str:
    """16 hex digits of what the network is: equal on every machine, as outputs in float64 are rounded."""
    network = copy.deepcopy(network).double()
    tensors = [*network.named_parameters(), *network.named_buffers()]
    random, outputs = torch.Generator().manual_seed(0), []
    for _ in range(2):
        for training in (True, False):
            logits = _outputs(network, images.double(), buffers=buffers, training=training)[-1].gave
            scale = logits.abs().max().clamp_min(1e-30)
            outputs.append([round(value, 5) + 0.0 for value in (logits / scale).flatten().tolist()])
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=random, dtype=torch.float64)
            parameter.data.add_(0.1 * noise)
    return fingerprint([[name, list(tensor.shape)] for name, tensor in tensors], outputs)


def _inexact(network: nn.Module, images: Tensor, labels: Tensor) -> str:
    """The layer through which the gradients of a student's step are not autograd's own; empty if they are."""
    network, images = copy.deepcopy(network).double().train(), images.double()
    try:
        pairs = zip(_step(network, images, labels), _unrolled(network, images, labels), strict=True)
        exact = all((a - b).abs().max() <= _EXACT * b.abs().max() for a, b in pairs)
    except (RuntimeError, InputError):
        exact = False
    return "" if exact else _culprit(network, images)


def _step(network: nn.Module, images: Tensor, labels: Tensor) -> Sequence[Tensor]:
    """Of L = ½‖θ − ∇ℓ(x; θ)‖²: the gradients of x and θ, by the adjoint of a student's one step."""
    loss = StudentLoss(network)
    flat = loss.layout.flatten(network.parameters()).detach()
    costate = flat - loss.slope(flat, images, labels)
    _, of_images, of_flat, _ = loss.along(flat, costate, images, labels)
    return -of_images, costate - of_flat


def _unrolled(network: nn.Module, images: Tensor, labels: Tensor) -> Sequence[Tensor]:
    """The same by autograd, through the network as it was written."""
    layout, source = StudentLoss(network).layout, leaf(images)
    flat = leaf(layout.flatten(network.parameters()))
    logits = functional_call(network, layout.split(flat), (source.clone(),))
    slope = _slope(F.cross_entropy(logits, labels), flat)
    return torch.autograd.grad((flat - slope).square().sum() / 2, (source, flat))


def _slope(value: Tensor, source: Tensor) -> Tensor:
    """The gradient of `value`, to be differentiated again.

    Raises:
        RuntimeError: it can't be. Autograd itself leaves out in silence what leads through such a function.
    """
    (slope,) = torch.autograd.grad(value, source, create_graph=True)
    seen, ahead = set(), [slope.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in seen:
            if type(node).__name__ == "Error":  # what `once_differentiable` leaves
                raise RuntimeError("a gradient can't be differentiated")
            seen.add(node)
            ahead += [following for following, _ in node.next_functions]
    return slope


def _culprit(network: nn.Module, images: Tensor) -> str:
    """The first layer whose gradient can't be differentiated, or the network."""
    for heard in _outputs(network, images):
        source = leaf(heard.given)
        try:
            value = heard.layer(source.clone()).square().sum()
            torch.autograd.grad(_slope(value, source).sum(), source, allow_unused=True)
        except RuntimeError:
            return heard.title
    return _title("", network)
