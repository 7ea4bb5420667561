"""A training step as a CUDA graph: what a GPU does in a step is launched at once, not kernel by kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

Step = Callable[..., torch.Tensor]
Shapes = tuple[tuple[int, ...], ...]

LARGEST = 1 << 25  # numbers of a model: the steps of a larger one take a GPU longer than the host takes to launch them


class _Captured(NamedTuple):
    """A graph, and the tensors that it reads a batch from and writes the loss to."""

    graph: torch.cuda.CUDAGraph
    batch: list[torch.Tensor]
    loss: torch.Tensor


class CapturedStep:
    """Calls a step, and from the second batch of a shape on replays what was captured then: the same bits.

    The first one makes what the step keeps, and loads the kernels that such a batch takes. An epoch has batches of two
    shapes at the most, all but its last and that.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.captured: dict[Shapes, _Captured | None] = {}  # None: called once

    def __call__(self, step: Step, *batch: torch.Tensor) -> torch.Tensor:
        """The loss of a step on a batch.

        Args:
            step: from a batch to the loss, the same at every call. It must not wait for the GPU, and what changes from
                call to call must lie there.
            batch: tensors on the GPU.
        """
        shapes = tuple(tuple(x.shape) for x in batch)
        with torch.cuda.device(self.device):
            if shapes not in self.captured:
                self.captured[shapes] = None
                return self._call(step, batch)
            captured = self.captured[shapes]
            if captured is None:
                captured = self.captured[shapes] = self._capture(step, batch)
            for own, given in zip(captured.batch, batch):
                own.copy_(given)
            captured.graph.replay()
            return captured.loss.clone()

    def _call(self, step: Step, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """On the stream that captures, since autograd remembers where a gradient was accumulated."""
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            loss = step(*batch)
        current.wait_stream(self.stream)
        return loss

    def _capture(self, step: Step, batch: tuple[torch.Tensor, ...]) -> _Captured:
        own = [x.clone() for x in batch]
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            loss = step(*own)
        return _Captured(graph, own, loss)
