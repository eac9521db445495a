"""The tensors of a network grouped into the layers that a reader knows: "conv 1", "norm 1", …, "linear"."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch

from iadd_lab.errors import require
from iadd_lab.training.networks import ParameterLayout

_KINDS = {1: "norm", 2: "linear", 4: "conv"}  # by the dimensions of a layer's first tensor, its weight


class Layer(NamedTuple):
    """A name, and where the layer's parameters lie in the flat vector."""

    name: str
    place: slice


def check_count(name: str, values: torch.Tensor, count: int) -> None:
    """Require one value for each of a network's `count` parameters."""
    found = tuple(values.shape)
    sentence = f"{name} has the shape {found}, but the network has {count} parameters: give both of one run."
    require(found == (count,), sentence)


def tensors_or_layers(layout: ParameterLayout) -> list[Layer]:
    """Every tensor of a small network, which has 14 at most, and the layers of a larger one."""
    return tensors(layout) if len(layout.names) <= 14 else layers(layout)


def layers(layout: ParameterLayout, *, most: int = 7) -> list[Layer]:
    """The layers of a network in their order, each with its weights and biases.

    Where there are more than `most`, each convolution is joined by the norm that follows it to a "block", and
    where that is not enough, neighbouring blocks by each other.
    """
    single = tensors(layout)
    found = _joined(single, [part.name.rpartition(" ")[0] for part in single])
    if len(found) > most:
        names = [""]
        for part in found:
            follows = part.name.startswith("norm") and names[-1].startswith("block")
            names.append(names[-1] if follows else part.name.replace("conv", "block"))
        found = _joined(found, names[1:])
    if len(found) > most:
        *body, last = found
        size = math.ceil(len(body) / (most - 1))
        chunks = [body[number - number % size :][:size] for number in range(len(body))]
        found = _joined(found, [*map(_span, chunks), last.name])
    return found


def tensors(layout: ParameterLayout) -> list[Layer]:
    """Every tensor of its own, named as in "conv 1 weight"."""
    found, titles, numbers = [], {}, Counter()
    rows = zip(layout.names, layout.shapes, accumulate(layout.sizes), layout.sizes, strict=True)
    for name, shape, end, size in rows:
        module, _, own = name.rpartition(".")
        if module not in titles:
            kind = _KINDS.get(len(shape), "layer")
            numbers[kind] += 1
            titles[module] = f"{kind} {numbers[kind]}"
        found.append(Layer(f"{titles[module]} {own}", slice(end - size, end)))
    if numbers["linear"] == 1:  # it needs no number
        found = [part._replace(name=part.name.replace("linear 1", "linear")) for part in found]
    return found


def _joined(parts: Sequence[Layer], names: Sequence[str]) -> list[Layer]:
    """Parts under new names; neighbours that get the same name become one."""
    joined: dict[str, Layer] = {}
    for part, name in zip(parts, names, strict=True):
        first = joined.get(name, part)
        joined[name] = Layer(name, slice(first.place.start, part.place.stop))
    return list(joined.values())


def _span(blocks: Sequence[Layer]) -> str:
    """A name for neighbouring blocks as one: "blocks 1–4"."""
    first, last = blocks[0].name, blocks[-1].name
    return first if len(blocks) == 1 else f"{first.replace('block', 'blocks')}–{last.rpartition(' ')[2]}"
