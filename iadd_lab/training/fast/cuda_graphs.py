"""Functions of tensors replayed as CUDA graphs: one launch where a student's step has hundreds.

Small batches on a GPU are bound by launching kernels, not by arithmetic. A step's shapes never change, so its
kernels are captured once and replayed with other contents.
"""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

_WARM_UPS = 3  # before a capture: libraries allocate and choose algorithms in their first calls


class Graphs:
    """Captured functions, one graph for each key and shape of their tensors; all share their memory."""

    def __init__(self):
        self._captured: dict[Hashable, tuple] = {}
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
            Tensors that the next replay of any function overwrites; None where the function gives it.
        """
        key = (key, *((tensor.shape, tensor.dtype) for tensor in tensors))
        with torch.cuda.device(tensors[0].device):  # streams and graphs are those of the current one
            if key not in self._captured:
                self._captured[key] = self._capture(function, tensors)
            graph, inputs, outputs = self._captured[key]
            torch._foreach_copy_(inputs, list(tensors))
            graph.replay()
            return outputs

    def _capture(self, function: Callable[..., tuple[Tensor, ...]], tensors: tuple[Tensor, ...]) -> tuple:
        """The graph of `function` at one shape, with its inputs and outputs, which stay where they are."""
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        self._stream = self._stream or torch.cuda.Stream()
        inputs = [tensor.clone() for tensor in tensors]
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                function(*inputs)
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            outputs = function(*inputs)
        return graph, inputs, outputs
