"""The layers of a network as readers know them, out of the tensors of its parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from iadd_lab.networks import ParameterLayout


@dataclass(frozen=True)
class Layer:
    """Tensors that a figure shows together.

    Attributes:
        name: as in "conv 1".
        slices: where its tensors lie in the flat vector.
    """

    name: str
    slices: tuple[slice, ...]

    def of(self, flat: torch.Tensor) -> torch.Tensor:
        """The layer's part of a vector of all parameters, or of the last axis of several: (..., count)."""
        return torch.cat([flat[..., piece] for piece in self.slices], dim=-1)


def tensor_titles(layout: ParameterLayout) -> tuple[str, ...]:
    """A name for each tensor, as in "conv 1 weight"."""
    names = dict(enumerate(layout.names))
    titles = {}
    for layer in layers_of(layout):
        for piece in layer.slices:
            index = layout.offsets.index(piece.start)
            titles[index] = f"{layer.name} {names[index].rpartition('.')[2]}"
    return tuple(titles[index] for index in names)


def layers_of(layout: ParameterLayout) -> tuple[Layer, ...]:
    """Convolutions, norms and the linear layer in their order, each with its weight and bias.

    A tensor of four axes belongs to a convolution, of two to a linear layer, and one without either to a
    norm; a bias goes with the weight of the same module.
    """
    modules: dict[str, list[int]] = {}
    for index, name in enumerate(layout.names):
        modules.setdefault(name.rpartition(".")[0], []).append(index)
    counts = {"conv": 0, "norm": 0, "linear": 0}
    layers = []
    for indices in modules.values():
        kind = {4: "conv", 2: "linear"}.get(len(layout.shapes[indices[0]]), "norm")
        counts[kind] += 1
        name = kind if kind == "linear" else f"{kind} {counts[kind]}"
        slices = tuple(slice(layout.offsets[i], layout.offsets[i] + layout.sizes[i]) for i in indices)
        layers.append(Layer(name, slices))
    return tuple(layers)
