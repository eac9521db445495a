"""Functions of tensors replayed as CUDA graphs: one launch where a student's step has hundreds.

Small batches on a GPU are bound by launching kernels, not by arithmetic. A step's shapes never change, so its
kernels are captured once and replayed with other contents.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

_WARM_UPS = 3  # before a capture: libraries allocate and choose algorithms in their first calls


class Graphs:
    """Captured functions, one graph for each key and shape of their tensors; all share their memory."""

    def __init__(self):
        self._captured: dict[Hashable, _Captured] = {}
        self._pool: object = None  # made with the first graph, as is the stream
        # Ours, as PyTorch's own stream for captures is of the first device that this process captured on. And
        # one for all: memory of a pool is used again on the same stream only.
        self._stream: torch.cuda.Stream | None = None

    def replay(
        self, key: Hashable, function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """What `function` returns for the tensors.

        Args:
            key: says which function it is: all that its kernels depend on besides the tensors' shapes.
            function: makes the same kernels in each call, without waiting for the device.
            tensors: all on one GPU.

        Returns:
            Tensors that the next replay of any function overwrites.
        """
        key = (key, *((tensor.shape, tensor.dtype) for tensor in tensors))
        with torch.cuda.device(tensors[0].device):  # streams and graphs are those of the current one
            if key not in self._captured:
                self._pool = self._pool or torch.cuda.graph_pool_handle()
                self._stream = self._stream or torch.cuda.Stream()
                self._captured[key] = _Captured(function, tensors, self._pool, self._stream)
            return self._captured[key](tensors)


class _Captured:
    """One function at one shape: its inputs and outputs stay where they are."""

    def __init__(
        self,
        function: Callable[..., tuple[Tensor, ...]],
        tensors: tuple[Tensor, ...],
        pool: object,
        aside: torch.cuda.Stream,
    ):
        self.inputs = [tensor.clone() for tensor in tensors]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                function(*self.inputs)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool, stream=aside):
            self.outputs = function(*self.inputs)

    def __call__(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        torch._foreach_copy_(self.inputs, list(tensors))
        self.graph.replay()
        return self.outputs
