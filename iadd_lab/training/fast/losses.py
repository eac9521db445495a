"""The student's loss made fast: fused layers on a CPU, replayed graphs on a GPU; the door to this folder."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iadd_lab.training.fast.compiling import Kernels
from iadd_lab.training.fast.cuda_graphs import Graphs
from iadd_lab.training.fast.layers import Pass, has_rules
from iadd_lab.training.student import StudentLoss

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

    @torch.no_grad()
    def slopes(self, flats, images, labels):
        chunks = self._there_and_back(flats, images, labels)
        losses, slopes = zip(*((chunk.losses(), chunk.run.flat_gradient()) for chunk in chunks), strict=True)
        return _sum(losses), _sum(slopes).view(flats.shape)

    @torch.no_grad()
    def step(self, flat, images, labels):
        chunks = _Chunks(self._there_and_back(flat[None], images[None], labels[None]))
        return _sum(chunk.run.flat_gradient() for chunk in chunks), chunks

    def networks_at_once(self, images, *, batch):
        return max(self._fitting(images) // batch, 1)

    @torch.no_grad()
    def predict(self, flat, images, *, batch=1024):
        size = min(self._fitting(images), len(images))
        parts = []
        for part in images.split(size):
            # Compiled code is made for one shape: the last chunk is filled up.
            filled = F.pad(part, (0, 0, 0, 0, 0, 0, 0, size - len(part)))
            parts.append(self._pass(flat[None]).forward(filled)[: len(part)].argmax(1))
        return torch.cat(parts).cpu()

    @torch.no_grad()
    def along(self, flat, direction, images, labels, kept=None, *, curvature=True):
        directions, scalars, gradients, slopes, falls = self.layout.split(direction), [], [], [], []
        for chunk in kept or self._there_and_back(flat[None], images[None], labels[None]):
            scalar, gradient, fall = chunk.along(directions, curvature=curvature)
            falls.append(fall)
            scalars.append(scalar)
            gradients.append(gradient)
            if curvature:
                slopes.append(chunk.run.flat_gradient())
        gradient = gradients[0] if len(gradients) == 1 else torch.cat(gradients)[: len(images)]
        fall = torch.cat(falls)[: len(images)] if labels.is_floating_point() else None
        return _sum(scalars), gradient, _sum(slopes) if curvature else None, fall

    def _there_and_back(self, flats: Tensor, images: Tensor, labels: Tensor) -> Iterator[_Chunk]:
        """Every chunk of the batch, through the networks and back."""
        for part, targets, shares in self._chunks(images, labels):
            run = self._pass(flats)
            logits, targets = run.forward(part.flatten(0, 1)), targets.flatten(0, 1)
            if targets.ndim == 1:  # unlike F.one_hot, no GPU waits for this
                targets = _identity(logits.shape[1], logits.dtype, logits.device)[targets]
            chunk = _Chunk(run, logits, targets, shares.repeat(len(flats))[:, None])
            run.backward(chunk.errors)
            yield chunk

    def _pass(self, flats: Tensor) -> Pass:
        parameters = self.layout.split(flats[0] if len(flats) == 1 else flats)
        return Pass(self.network, self.kernels, parameters)

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


class _Chunk:
    """A part of the batch, after its pass there and back.

    Args:
        run: the pass.
        logits: what it gave, (images, classes), where `images` are those of all networks.
        targets: probabilities, (images, classes).
        shares: of each image in its network's mean, (images, 1).
    """

    def __init__(self, run: Pass, logits: Tensor, targets: Tensor, shares: Tensor):
        self.run, self.logits, self.targets, self.shares = run, logits, targets, shares
        self.probabilities = logits.softmax(1)
        self.errors = (self.probabilities - targets) * shares  # the gradient of the logits

    def losses(self) -> Tensor:
        """Every network's part of its mean loss, (networks,)."""
        values = (self.targets * self.logits.log_softmax(1)).sum(1, keepdim=True) * -self.shares
        return values.view(self.run.networks or 1, -1).sum(1)

    def along(self, directions: Mapping[str, Tensor], *, curvature: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The chunk's part of s, its images' and its targets' gradients; `run` then has the parameters'."""
        moved = self.run.forward_along(directions)
        rise = self.probabilities * moved
        rise -= self.probabilities * rise.sum(1, keepdim=True)  # of the probabilities
        gradient = self.run.backward_along(rise * self.shares, curvature=curvature)
        return (self.errors * moved).sum(), gradient, -moved * self.shares


class _Chunks(list[_Chunk]):
    def nbytes(self) -> int:
        """The memory that keeping them takes."""
        sizes: dict[int, int] = {}
        for run in (chunk.run for chunk in self):
            storages = [tensor.untyped_storage() for tensor in run.tensors()]
            sizes |= {storage.data_ptr(): storage.nbytes() for storage in storages}
            for parameter in run.values.values():  # which the walk has anyhow
                sizes.pop(parameter.untyped_storage().data_ptr(), None)
        return sum(sizes.values())


class CapturedStudentLoss(StudentLoss):
    """Another loss on a GPU, its derivatives captured once and replayed from then on.

    What its methods return is overwritten by the next call of any of them, but for the images' gradient, and
    nothing is kept for `along`.
    """

    def __init__(self, loss: StudentLoss):
        self.loss, self.network, self.layout, self.joint = loss, loss.network, loss.layout, loss.joint
        self.plain = loss.plain
        self.predict, self.networks_at_once = loss.predict, loss.networks_at_once
        self.graphs = Graphs()

    def slopes(self, flats, images, labels):
        given = (tensor.detach() for tensor in (flats, images, labels))
        return self.graphs.replay("slopes", self.loss.slopes, *given)

    def along(self, flat, direction, images, labels, kept=None, *, curvature=True):
        function = functools.partial(self.loss.along, curvature=curvature)
        given = (tensor.detach() for tensor in (flat, direction, images, labels))
        scalar, gradient, *others = self.graphs.replay(f"along, {curvature}", function, *given)
        return scalar, gradient.clone(), *others


def _sum(parts: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.add, parts)  # no 0 to start with, which is an operation more


@functools.cache
def _identity(classes: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.eye(classes, dtype=dtype, device=device)


def student_loss(network: nn.Module, kernels: Kernels, *, plain: bool = False) -> StudentLoss:
    """The loss of `network`: by rules where they know its layers, for `plain` kernels if asked for."""
    fused = (kernels.compiled or plain) and has_rules(network)
    loss = FusedStudentLoss(network, kernels) if fused else StudentLoss(network)
    return CapturedStudentLoss(loss) if kernels.graphs else loss
