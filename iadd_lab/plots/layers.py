"""The tensors of a network grouped into the layers that a reader knows: "conv 1", "norm 1", …, "linear"."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from iadd_lab.training.networks import ParameterLayout

_MANY = 14  # tensors: of more, layers are shown
_KINDS = {1: "norm", 2: "linear", 4: "conv"}  # by the dimensions of a layer's first tensor, its weight


class Layer(NamedTuple):
    """A name, and where the layer's parameters lie in the flat vector."""

    name: str
    start: int
    stop: int

    @property
    def place(self) -> slice:
        """Of its parameters."""
        return slice(self.start, self.stop)


def tensors_or_layers(layout: ParameterLayout) -> list[Layer]:
    """Every tensor of a small network, the layers of a large one."""
    return tensors(layout) if len(layout.names) <= _MANY else layers(layout)


def layers(layout: ParameterLayout, *, most: int = 7) -> list[Layer]:
    """The layers of a network in their order, each with its weights and biases.

    Where there are more than `most`, each convolution is joined by the norm that follows it to a "block", and
    where that is not enough, neighbouring blocks by each other.
    """
    found = _modules(layout)
    if len(found) > most:
        found = _blocks(found)
    if len(found) > most:
        *body, last = found
        size = math.ceil(len(body) / (most - 1))
        found = [_joined(body[first : first + size]) for first in range(0, len(body), size)] + [last]
    return found


def tensors(layout: ParameterLayout) -> list[Layer]:
    """Every tensor of its own, named as in "conv 1 weight"."""
    modules = iter(_modules(layout))
    parent, found = next(modules), []
    for name, start, size in zip(layout.names, layout.offsets, layout.sizes, strict=True):
        if start == parent.stop:
            parent = next(modules)
        found.append(Layer(f"{parent.name} {name.rpartition('.')[2]}", start, start + size))
    return found


def _modules(layout: ParameterLayout) -> list[Layer]:
    """One layer for each module of the network."""
    rows = zip(layout.names, layout.shapes, layout.offsets, layout.sizes, strict=True)
    groups = [list(group) for _, group in groupby(rows, key=lambda row: row[0].rpartition(".")[0])]
    kinds = [_KINDS.get(len(group[0][1]), "layer") for group in groups]
    found = []
    for number, (kind, group) in enumerate(zip(kinds, groups, strict=True)):
        # The linear layer needs no number where it is the only one.
        alone = kind == "linear" and kinds.count(kind) == 1
        name = kind if alone else f"{kind} {kinds[: number + 1].count(kind)}"
        found.append(Layer(name, group[0][2], group[-1][2] + group[-1][3]))
    return found


def _blocks(modules: Sequence[Layer]) -> list[Layer]:
    """Each convolution joined by the norm that follows it."""
    found: list[Layer] = []
    for layer in modules:
        if layer.name.startswith("norm") and found and found[-1].name.startswith("block"):
            found[-1] = found[-1]._replace(stop=layer.stop)
        else:
            found.append(layer._replace(name=layer.name.replace("conv", "block")))
    return found


def _joined(blocks: Sequence[Layer]) -> Layer:
    """Neighbouring blocks as one."""
    first, last = blocks[0], blocks[-1]
    name = f"{first.name.replace('block', 'blocks')}–{last.name.rpartition(' ')[2]}"
    return Layer(name if len(blocks) > 1 else first.name, first.start, last.stop)
