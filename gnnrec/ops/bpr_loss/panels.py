"""bpr_loss where the embeddings come a panel of columns at a time, and never all at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from gnnrec import device as devices
from gnnrec import profiler
from gnnrec.ops.bpr_loss import cpu

FEW = 16  # numbers that are fewer than a so-manyth of what is counted are sorted instead

_BATCH = "gnnrec::bpr_batch"  # its nodes, the loss by its scores, its pairs by node: operators do these themselves


class BPRPanels:
    """`bpr_loss` of one batch from panels of columns: bit-equal to it for every width that is a multiple of 16.

    First `add` takes the panels from left to right; then `loss` is known, and `gradient` gives that of each panel,
    once. Until then the final embeddings of the batch's nodes are kept. Other columns may lie with other processes,
    which are given the same triples.

    Args:
        triples: int64 [2 + n, batch], as for `bpr_loss`. The number of different nodes is waited for on a GPU.
        size: nodes and columns of the embeddings, which decide about launches on a GPU.
        reg, hardest: as for `bpr_loss`.
        device: where the panels lie.

    Attributes:
        nodes: int64 [m], the different nodes of the batch, rising.
        decay: float32 [m], after `loss`: a node's ego embedding times this is its gradient by the L2 term; None without
            that term.
    """

    def __init__(
        self,
        triples: torch.Tensor,
        size: tuple[int, int],
        reg: float = 0.0,
        *,
        hardest: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        with profiler.kernel(_BATCH):
            self.nodes, self._numbers = _different(triples.to(device), size[0])
        self.decay: torch.Tensor | None = None
        self._reg, self._hardest = reg, hardest
        self._final: list[torch.Tensor] = []
        self._batch: Any
        if devices.on_gpu(self.nodes):
            from gnnrec.ops.bpr_loss import cuda

            self._batch = cuda.Panels(self._numbers, len(self.nodes), size, reg, hardest)
        else:
            self._batch = cpu.Panels(self._numbers.numpy(), len(self.nodes), reg, hardest)

    def add(self, final: torch.Tensor, ego: torch.Tensor | None) -> None:
        """Take the next columns of the final and of the ego embeddings of `nodes`, float32 [m, columns] each; None
        where the ego embeddings have no more.

        Raises:
            ValueError: another number of rows, or columns that are no multiple of 16.
        """
        wrong = [x for x in (final, ego) if x is not None and (len(x) != len(self.nodes) or x.shape[1] % 16)]
        if wrong or (ego is not None and final.shape != ego.shape):
            found = " and ".join(str(list(x.shape)) for x in (final, ego) if x is not None)
            raise ValueError(f"BPRPanels: must be [{len(self.nodes)}, a multiple of 16], got {found}")
        self._final.append(final)
        squares = (final, 0.0) if ego is None else (ego, self._reg)
        with profiler.kernel("gnnrec::bpr_loss", final, squares[0], self._numbers, squares[1], self._hardest):
            self._batch.add(final, ego)

    def loss(self, total: Callable[..., None] | None = None) -> torch.Tensor:
        """The loss of the batch, float32, after the last panel.

        Args:
            total: where other processes have the other columns: adds up, in place, what each of them has of the tensors
                that it is given. It is called once, with s(u, n) - s(u, p) of every negative and pair, float32
                [n, batch], and the L2 term of the loss where there is one, float32 []; with `hardest`, which has to
                know the ones before the other, for each of them.
        """
        loss: torch.Tensor
        with profiler.kernel(_BATCH):
            loss, self.decay = self._batch.loss(None if total is None else self._totals(total))
        return loss

    def _totals(self, total: Callable[..., None]) -> torch.Tensor | None:
        """Complete the scores; gives the L2 term."""
        if self._hardest or not self._reg:
            total(self._batch.margins)
        if not self._reg:
            return None
        penalty: torch.Tensor = self._batch.penalty()
        total(*(() if self._hardest else (self._batch.margins,)), penalty)
        return penalty

    def gradient(self) -> torch.Tensor:
        """The loss's gradient by the next panel of the final embeddings of `nodes`, float32 [m, columns], from left to
        right again; the panel is then forgotten."""
        final = self._final.pop(0)
        result = torch.empty_like(final)
        with profiler.kernel("gnnrec::bpr_loss_backward", None, final, final, self._numbers, 0.0, self._hardest):
            self._batch.fill_gradient(final, result)
        return result


def _different(numbers: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The different ones of numbers below count, rising, and the numbers' places among them."""
    if devices.on_gpu(numbers) or FEW * numbers.numel() < count:
        found: tuple[torch.Tensor, torch.Tensor] = numbers.unique(return_inverse=True)
        return found
    # Sorting took a third of the step of two processes with batches of 131,072.
    places, given = np.zeros(count, np.int64), numbers.numpy()
    places[given] = 1
    different = np.flatnonzero(places)
    places[different] = np.arange(len(different))
    return torch.from_numpy(different), torch.from_numpy(places[given])
