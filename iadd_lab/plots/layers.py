"""The tensors of a network grouped into the layers that a reader knows: "conv 1", "norm 1", …, "linear"."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from iadd_lab.training.networks import ParameterLayout


@dataclass(frozen=True)
class Layer:
    """A name, and where the layer's parameters lie in the flat vector."""

    name: str
    start: int
    stop: int

    @property
    def place(self) -> slice:
        """Of its parameters."""
        return slice(self.start, self.stop)

    @property
    def count(self) -> int:
        """How many parameters it has."""
        return self.stop - self.start


_KINDS = {1: "norm", 2: "linear", 4: "conv"}  # by the dimensions of a layer's first tensor, its weight


def layers(layout: ParameterLayout, *, most: int = 7) -> list[Layer]:
    """The layers of a network in their order, each with its weights and biases.

    Where there are more than `most`, each convolution is joined by the norm that follows it to a "block", and
    where that is not enough, neighbouring blocks by each other.
    """
    found = _modules(layout)
    if len(found) > most:
        found = _blocks(found)
    if len(found) > most:
        found = _merged(found, most)
    return found


def tensors(layout: ParameterLayout) -> list[Layer]:
    """Every tensor of its own, named as in "conv 1 weight"."""
    parents = {layer.start: layer.name for layer in _modules(layout)}
    found, start, parent = [], 0, ""
    for name, size in zip(layout.names, layout.sizes, strict=True):
        parent = parents.get(start, parent)
        found.append(Layer(f"{parent} {name.rpartition('.')[2]}", start, start + size))
        start += size
    return found


def _modules(layout: ParameterLayout) -> list[Layer]:
    """One layer for each module of the network."""
    rows = list(zip(layout.names, layout.shapes, layout.sizes, strict=True))
    spans, start = [], 0
    for _, group in groupby(rows, key=lambda row: row[0].rpartition(".")[0]):
        _, shapes, sizes = zip(*group, strict=True)
        spans.append((_KINDS.get(len(shapes[0]), "layer"), start, start + sum(sizes)))
        start += sum(sizes)
    kinds = [kind for kind, _, _ in spans]
    seen: dict[str, int] = {}
    found = []
    for kind, first, last in spans:
        seen[kind] = seen.get(kind, 0) + 1
        # The linear layer needs no number where it is the only one.
        alone = kind == "linear" and kinds.count(kind) == 1
        found.append(Layer(kind if alone else f"{kind} {seen[kind]}", first, last))
    return found


def _blocks(modules: Sequence[Layer]) -> list[Layer]:
    """Each convolution joined by the norm that follows it."""
    found: list[Layer] = []
    count = 0
    for layer in modules:
        if layer.name.startswith("norm") and found and found[-1].name.startswith("block"):
            found[-1] = Layer(found[-1].name, found[-1].start, layer.stop)
        elif layer.name.startswith("conv"):
            count += 1
            found.append(Layer(f"block {count}", layer.start, layer.stop))
        else:
            found.append(layer)
    return found


def _merged(blocks: Sequence[Layer], most: int) -> list[Layer]:
    """Neighbouring blocks joined, equally many each; the last layer stays alone."""
    *body, last = blocks
    size = math.ceil(len(body) / (most - 1))
    found = []
    for first in range(0, len(body), size):
        part = body[first : first + size]
        names = part[0].name if len(part) == 1 else f"{part[0].name}–{part[-1].name.rpartition(' ')[2]}"
        found.append(Layer(names.replace("block ", "blocks ") if len(part) > 1 else names,
                           part[0].start, part[-1].stop))  # fmt: skip
    return [*found, last]
