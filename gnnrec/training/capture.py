"""A training step as a CUDA graph: what a GPU does in a step is launched at once, not kernel by kernel."""

from __future__ import annotations

from collections.abc import Callable

import torch

Step = Callable[..., torch.Tensor]

LARGEST = 1 << 25  # numbers of a model: the steps of a larger one take a GPU longer than the host takes to launch them


class CapturedStep:
    """Calls a step until it has made all that it keeps, then captures it and replays that: the same bits.

    A batch of another shape than the captured one's, such as an epoch's last, is called as before.

    Args:
        step: from a batch, tensors on the GPU, to the loss. It must not wait for the GPU, and what changes from step to
            step must lie there.
    """

    def __init__(self, step: Step) -> None:
        self.step = step
        self.stream = torch.cuda.Stream()
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.batch: list[torch.Tensor] = []
        self.loss = torch.empty(())

    def __call__(self, *batch: torch.Tensor) -> torch.Tensor:
        """The loss of a step on a batch."""
        if self.graph is None and self.calls:
            self._capture(batch)
        self.calls += 1
        if self.graph is None or [x.shape for x in batch] != [x.shape for x in self.batch]:
            return self._aside(*batch)
        for own, given in zip(self.batch, batch):
            own.copy_(given)
        self.graph.replay()
        return self.loss.clone()

    def _aside(self, *batch: torch.Tensor) -> torch.Tensor:
        """On the stream that captures, since autograd remembers where a gradient was accumulated."""
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            loss = self.step(*batch)
        current.wait_stream(self.stream)
        return loss

    def _capture(self, batch: tuple[torch.Tensor, ...]) -> None:
        self.batch = [x.clone() for x in batch]
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            self.loss = self.step(*self.batch)
        self.graph = graph
