"""The student's loss made fast: fused layers on a CPU, replayed graphs on a GPU; the door to this folder."""

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iadd_lab.data.augment import Augmentation
from iadd_lab.training.fast.compiling import Kernels
from iadd_lab.training.fast.cuda_graphs import Graphs
from iadd_lab.training.fast.layers import Dual, DualPass, PlainPass, has_rules, laid_out
from iadd_lab.training.student import StudentLoss, leaf

# The largest feature map of a chunk of images, in bytes: larger ones cost memory and are not faster.
CHUNK_BYTES = 26 * 2**20
_GPU_CHUNK_BYTES = 2**30


class FusedStudentLoss(StudentLoss):
    """The same loss by the rules of `iadd_lab.training.fast.layers`, over chunks of the batch.

    A mean over images is a sum over chunks, so memory is that of a chunk. Every chunk has the same shape, the
    last one filled up with blank images that count for nothing: compiled code is made for one shape.

    Args:
        network: one for which `has_rules` is true.
        kernels: plain or compiled ones.
        chunk: images per chunk; None takes as many as `CHUNK_BYTES`, on a GPU more, hold of the largest
            feature map.
    """

    joint = True

    def __init__(self, network: nn.Module, kernels: Kernels, *, chunk: int | None = None):
        super().__init__(network)
        self.kernels, self.chunk = kernels, chunk

    def slopes(self, flats, images, labels):
        total, losses = None, flats.new_zeros(len(flats))
        for part, targets, shares in self._chunks(images, labels):
            points = leaf(flats)
            logits = self._joint_logits(points, part)  # (networks, batch, classes)
            values = F.cross_entropy(logits.flatten(0, 1), targets.flatten(0, 1), reduction="none")
            values = values.view(len(flats), -1) @ shares  # (networks,)
            # The networks share nothing: the gradient of the sum is every network's own.
            (slopes,) = torch.autograd.grad(values.sum(), points)
            total = slopes if total is None else total.add_(slopes)
            losses += values.detach()
        return losses, total

    def networks_at_once(self, images, *, batch):
        return max(self._fitting(images) // batch, 1)

    @torch.no_grad()
    def predict(self, flat, images, *, batch=1024):
        size = min(self._fitting(images), len(images))
        parts = []
        for part in images.split(size):
            # Compiled code is made for one shape: the last chunk is filled up.
            filled = F.pad(part, (0, 0, 0, 0, 0, 0, 0, size - len(part)))
            parts.append(self._joint_logits(flat[None], filled[None])[0, : len(part)].argmax(1))
        return torch.cat(parts).cpu()

    def _along_seen(self, flat, direction, images, labels, *, curvature):
        total, total_flat = torch.zeros_like(flat[0]), torch.zeros_like(flat) if curvature else None
        gradients = []
        for parts, targets, shares in self._chunks(images[None], labels[None]):
            point, part = leaf(flat) if curvature else flat.detach(), leaf(parts[0])
            scalar = self._scalar(point, direction, part, targets[0], shares)
            image_gradient, *rest = torch.autograd.grad(scalar, (part, point) if curvature else (part,))
            gradients.append(image_gradient)
            total += scalar.detach()
            if curvature:
                total_flat += rest[0]
        return total, torch.cat(gradients)[: len(images)], total_flat

    def _joint_logits(self, flats: Tensor, images: Tensor) -> Tensor:
        """What every network says of its images, (networks, batch, classes)."""
        maps = laid_out(images.flatten(0, 1), self.kernels)
        logits = PlainPass(self.network, self.layout.split(flats), self.kernels).logits(maps)
        return logits.unflatten(0, (len(flats), -1))

    def _scalar(self, flat, direction, images, labels, shares) -> Tensor:
        """s for one chunk, as `along` has it, whose images have `shares` (batch,) of the mean."""
        values, tangents = self.layout.split(flat), self.layout.split(direction)
        parameters = {name: Dual(values[name], tangents[name]) for name in values}
        maps = Dual(laid_out(images, self.kernels), None)
        pair = DualPass(self.network, parameters, self.kernels).logits(maps)
        # The derivative of cross-entropy: ⟨softmax(z) − one-hot, ż⟩.
        classes = torch.arange(pair.value.shape[1], device=labels.device)
        one_hot = (labels[:, None] == classes).to(pair.value.dtype)  # unlike F.one_hot, no GPU waits for it
        errors = pair.value.softmax(1) - one_hot  # (batch, classes)
        return (errors * pair.tangent).sum(1) @ shares

    def _chunks(self, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Chunks of every network's images and labels, and the share of each image in the mean."""
        networks, count = labels.shape[:2]
        number = math.ceil(count / max(self._fitting(images) // networks, 1))
        size = math.ceil(count / number)
        missing = number * size - count
        shares = images.new_full((count,), 1 / count)
        if missing:
            images = F.pad(images, (0, 0, 0, 0, 0, 0, 0, missing))
            below = [0, 0] * (labels.ndim - 2)  # the classes of soft labels
            labels, shares = F.pad(labels, [*below, 0, missing]), F.pad(shares, (0, missing))
        return zip(images.split(size, 1), labels.split(size, 1), shares.split(size), strict=True)

    def _fitting(self, images: Tensor) -> int:
        """How many images make a chunk."""
        if self.chunk is not None:
            return self.chunk
        # An image's largest feature map is that of the first convolution.
        first = next(layer for layer in self.network.features.modules() if isinstance(layer, nn.Conv2d))
        size = self.network.enlarge_to or images.shape[-1]
        side = size + 2 * first.padding[0] - first.kernel_size[0] + 1
        most = CHUNK_BYTES if images.device.type == "cpu" else _GPU_CHUNK_BYTES
        return max(most // (first.out_channels * side**2 * images.element_size()), 1)


class CapturedStudentLoss(StudentLoss):
    """Another loss on a GPU, its derivatives captured once for each augmentation and replayed from then on.

    What `slope`, `slopes` and `along` return is overwritten by the next call of any of them.
    """

    def __init__(self, loss: StudentLoss):
        self.loss, self.network, self.layout, self.joint = loss, loss.network, loss.layout, loss.joint
        self.plain = loss.plain
        self.predict, self.networks_at_once = loss.predict, loss.networks_at_once
        self.graphs = Graphs()

    def slope(self, flat, images, labels, augmentation=None):
        def slope(*given):
            return (self.loss.slope(*given),)

        return self._replay("slope", slope, augmentation, flat, images, labels)[0]

    def slopes(self, flats, images, labels):
        return self._replay("slopes", self.loss.slopes, None, flats, images, labels)

    def along(self, flat, direction, images, labels, augmentation=None, *, curvature=True):
        along, name = partial(self.loss.along, curvature=curvature), f"along, {curvature}"
        return self._replay(name, along, augmentation, flat, direction, images, labels)

    def _replay(self, name, function, augmentation: Augmentation | None, *given: Tensor):
        given = tuple(tensor.detach() for tensor in given)
        if augmentation is None:
            return self.graphs.replay(name, function, *given)

        def augmented(*tensors):
            drawn = augmentation.with_tensors(tensors[len(given) :])
            return function(*tensors[: len(given)], drawn)

        key = (name, augmentation.operation, augmentation.batch)
        return self.graphs.replay(key, augmented, *given, *augmentation.tensors())


def student_loss(network: nn.Module, kernels: Kernels) -> StudentLoss:
    """The loss of `network` as `kernels` have it: fused where they are compiled and know its layers."""
    fused = kernels.compiled and has_rules(network)
    loss = FusedStudentLoss(network, kernels) if fused else StudentLoss(network)
    return CapturedStudentLoss(loss) if kernels.graphs else loss
