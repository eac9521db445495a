"""The student's derivatives replayed as CUDA graphs: one launch where a step has hundreds.

Small batches on a GPU are bound by launching kernels, not by arithmetic. A step's shapes never change, so its
kernels are captured once, for each operation of the augmentation, and replayed with other contents.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from iadd_lab.augment import Augmentation
from iadd_lab.errors import require
from iadd_lab.student import StudentLoss

_WARM_UPS = 3  # before a capture: libraries allocate and choose algorithms in their first calls


class CapturedStudentLoss(StudentLoss):
    """Another loss's `slope` and `along`, captured and replayed."""

    def __init__(self, loss: StudentLoss):
        self.loss, self.network, self.layout = loss, loss.network, loss.layout
        self._captured: dict[tuple[object, ...], _Captured] = {}
        # All graphs share their memory: what one leaves there is copied before the next is replayed.
        self._pool = torch.cuda.graph_pool_handle()

    def slope(self, flat, images, labels, augmentation=None):
        return self._replay("slope", self.loss.slope, (flat, images, labels), augmentation)[0]

    def along(self, flat, direction, images, labels, augmentation=None, *, curvature=True):
        def along(*given: object) -> tuple[Tensor, ...]:
            found = self.loss.along(*given, curvature=curvature)
            return tuple(part for part in found if part is not None)

        name, arguments = f"along, {curvature}", (flat, direction, images, labels)
        scalar, image_gradient, *rest = self._replay(name, along, arguments, augmentation)
        return scalar, image_gradient, rest[0] if rest else None

    def _replay(
        self,
        name: str,
        function: Callable[..., object],
        arguments: tuple[Tensor, ...],
        augmentation: Augmentation | None,
    ) -> list[Tensor]:
        count = len(arguments)
        drawn = augmentation.tensors() if augmentation is not None else ()
        inputs = tuple(tensor.detach() for tensor in (*arguments, *drawn))

        def augmented(*given: Tensor) -> object:
            if augmentation is None:
                return function(*given)
            return function(*given[:count], augmentation.with_tensors(given[count:]))

        operation = augmentation and (augmentation.operation, augmentation.batch)
        key = (name, operation, *((tuple(tensor.shape), tensor.dtype) for tensor in inputs))
        if key not in self._captured:
            self._captured[key] = _Captured(augmented, inputs, self._pool)
        return self._captured[key](inputs)


class _Captured:
    """One function at one shape: its inputs and outputs stay where they are."""

    def __init__(self, function: Callable[..., object], arguments: tuple[Tensor, ...], pool: object):
        self.inputs = [argument.clone() for argument in arguments]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                function(*self.inputs)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool):
            outputs = function(*self.inputs)
        self.outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)

    def __call__(self, arguments: tuple[Tensor, ...]) -> list[Tensor]:
        for place, argument in zip(self.inputs, arguments, strict=True):
            place.copy_(argument)
        self.graph.replay()
        # Copies: the next replay writes to the same memory.
        return [output.clone() for output in self.outputs]


def captured(loss: StudentLoss, device: torch.device) -> StudentLoss:
    """`loss`, captured.

    Raises:
        InputError: `device` is no CUDA GPU.
    """
    require(
        device.type == "cuda", f"cuda_graphs needs a CUDA device, and this is {device.type}: leave it out."
    )
    return CapturedStudentLoss(loss)
