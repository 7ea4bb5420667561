"""bpr_loss where the embeddings come a panel of columns at a time, and never all at once."""

from __future__ import annotations

import torch

from gnnrec.ops import _arguments
from gnnrec.ops.bpr_loss import cpu


class BPRPanels:
    """`bpr_loss` of one batch from panels of columns: bit-equal to it for every width that is a multiple of 16.

    First `add` takes the panels from left to right; then `loss` is known, and `gradient` gives that of each panel,
    once. Until then the final embeddings of the batch's nodes are kept. CPU tensors only.

    Args:
        triples: int64 [2 + n, batch], as for `bpr_loss`.
        reg, hardest: as for `bpr_loss`.

    Attributes:
        nodes: int64 [m], the different nodes of the batch, rising.
        decay: float32 [m], after `loss`: a node's ego embedding times this is its gradient by the L2 term; None without
            that term.
    """

    def __init__(self, triples: torch.Tensor, reg: float = 0.0, *, hardest: bool = False) -> None:
        self.nodes, numbers = triples.unique(return_inverse=True)
        self.decay: torch.Tensor | None = None
        self._triples, self._reg, self._hardest = numbers.numpy(), reg, hardest
        self._margins = cpu.new_margins(self._triples, torch.float32)
        self._squares = cpu.new_squares(self._triples, self._margins, reg > 0)
        self._final: list[torch.Tensor] = []
        self._pairs: cpu.Pairs | None = None

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
        cpu.add_margins(_arguments.array(final), self._triples, self._margins)
        if self._reg and ego is not None:
            cpu.add_squares(_arguments.array(ego), self._triples, self._squares)

    def loss(self) -> torch.Tensor:
        """The loss of the batch, float32, after the last panel."""
        margins, triples, squares = cpu.counted(self._margins, self._triples, self._squares, self._hardest)
        self._pairs = cpu.grouped(1.0, margins, triples, len(self.nodes))
        if self._reg:
            self.decay = torch.from_numpy(cpu.decay_factors(self._pairs, self._reg))
        return torch.tensor(cpu.mean(margins, squares, self._reg), dtype=torch.float32)

    def gradient(self) -> torch.Tensor:
        """The loss's gradient by the next panel of the final embeddings of `nodes`, float32 [m, columns], from left to
        right again; the panel is then forgotten."""
        assert self._pairs is not None, "the loss comes first"
        final = self._final.pop(0)
        result = torch.empty_like(final)
        cpu.fill_gradient(self._pairs, _arguments.array(final), _arguments.array(result))
        return result
