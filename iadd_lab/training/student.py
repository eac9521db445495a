"""The student's loss ℓ(x; θ) and the derivatives of it that the gradient engines need.

`StudentLoss` has them from autograd, for any network; `training.fast.losses` has the same, several times as
fast, for networks whose layers it knows.
"""

import copy
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase

from iadd_lab.training.networks import ParameterLayout, is_plain


class Kept(Protocol):
    """What a student's step computed and its adjoint needs."""

    def nbytes(self) -> int:
        """The memory that keeping it takes."""


class StudentLoss:
    """ℓ(x; θ): cross-entropy of a network whose parameters are one flat vector.

    Batch norm goes by the statistics of each batch, in `predict` too: running ones are no parameters.
    """

    joint = False  # whether several networks at once cost less than one after another

    def __init__(self, network: nn.Module):
        self.layout, copied = ParameterLayout.of(network), without_state(network)
        self.constants = dict(copied.named_buffers())  # of its own layers, if they have any
        self.plain = is_plain(network)
        # Only the architecture is used; on the meta device its own weights cost nothing.
        self.network = copied.to("meta")

    def __call__(self, flat: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of `images` (batch, channels, height, width) at parameters `flat` (P,)."""
        return F.cross_entropy(self.logits(flat, images), labels)

    def logits(self, flat: Tensor, images: Tensor) -> Tensor:
        """What the network says of the images, (batch, classes)."""
        given = self.layout.split(flat)
        if not self.plain:
            images = images.clone()  # in which it may write
        for name, tensor in self.constants.items():
            given[name] = tensor.to(images.device, images.dtype if tensor.is_floating_point() else None)
        return functional_call(self.network, given, (images,))

    def slope(self, flat: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """∇_θ ℓ, shape (P,)."""
        return self.slopes(flat[None], images[None], labels[None])[1][0]

    def step(self, flat: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Kept | None]:
        """`slope`, and what `along` at this very point can use again, if there is anything."""
        return self.slope(flat, images, labels), None

    def slopes(self, flats: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The losses of several networks, each on images of its own, and their gradients.

        Args:
            flats: (networks, P).
            images: (networks, batch, channels, height, width).
            labels: (networks, batch) int64, or probabilities (networks, batch, classes).

        Returns:
            (networks,) and (networks, P).
        """
        losses, slopes = [], []
        for flat, batch, targets in zip(flats, images, labels, strict=True):
            point = leaf(flat)
            loss = self(point, batch, targets)
            slopes.append(torch.autograd.grad(loss, point)[0])
            losses.append(loss.detach())
        return torch.stack(losses), torch.stack(slopes)

    def networks_at_once(self, images: Tensor, *, batch: int) -> int:
        """How many networks are best trained at once on batches of such images: `slopes` gains by no more."""
        return 1

    @torch.no_grad()
    def predict(self, flat: Tensor, images: Tensor, *, batch: int = 1024) -> Tensor:
        """The predicted class of every image: (count,) int64 on the CPU."""
        return torch.cat([self.logits(flat, chunk).argmax(1) for chunk in images.split(batch)]).cpu()

    def along(
        self,
        flat: Tensor,
        direction: Tensor,
        images: Tensor,
        labels: Tensor,
        kept: Kept | None = None,
        *,
        curvature: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """s = ⟨∇_θ ℓ, λ⟩ and its gradients.

        Args:
            flat: θ, (P,).
            direction: λ, (P,), taken as constant.
            images: as the network sees them, (batch, channels, height, width).
            labels: (batch,) int64, or probabilities (batch, classes).
            kept: what `step` gave for the same arguments, if it was kept; it is used up.
            curvature: False leaves ∇_θ s out.

        Returns:
            s, a scalar; ∇_x s, of the images' shape; ∇_θ s, (P,), or None; where labels are probabilities,
            ∇_y s, up to a constant in each row, as rows sum to 1, else None.
        """
        wanted = {"flat": leaf(flat), "images": leaf(images)}
        wanted |= {"labels": leaf(labels)} if labels.is_floating_point() else {}
        flat, images, labels = wanted["flat"], wanted["images"], wanted.get("labels", labels)
        (slope,) = torch.autograd.grad(self(flat, images, labels), flat, create_graph=True)  # (P,)
        scalar = slope @ direction
        wanted = {name: tensor for name, tensor in wanted.items() if curvature or name != "flat"}
        found = dict(zip(wanted, torch.autograd.grad(scalar, [*wanted.values()]), strict=True))
        return scalar.detach(), found["images"], found.get("flat"), found.get("labels")


def without_state(network: nn.Module) -> nn.Module:
    """A copy in training mode that is a function of parameters and images alone, without in-place layers.

    Batch norm goes by the statistics of the batch, and keeps none.
    """
    copied = copy.deepcopy(network).train()
    for layer in copied.modules():
        if isinstance(layer, _NormBase):
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
        if getattr(layer, "inplace", False):
            layer.inplace = False
    return copied


def leaf(tensor: Tensor) -> Tensor:
    """The tensor as a variable of its own."""
    return tensor.detach().requires_grad_()
