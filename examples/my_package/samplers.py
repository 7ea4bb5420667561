"""A sampler: batch number `step` is a function of (seed, step) alone, so that a run can be resumed."""

from __future__ import annotations

import numpy as np
import torch

from gnnrec import BipartiteGraph


class AnyItem:
    """Triples with any item as the negative, also one that the user has.

    Args:
        graph: the training graph.
        batch_size: triples in a batch.
        seed: of the draws.
        pinned: put batches into memory from which a GPU copies while the CPU goes on.
    """

    def __init__(self, graph: BipartiteGraph, batch_size: int, *, seed: int, pinned: bool) -> None:
        self.graph, self.batch_size, self.seed, self.pinned = graph, batch_size, seed, pinned
        self._users = np.repeat(np.arange(graph.num_users), graph.user_degrees)
        self.steps_per_epoch = -(-len(self._users) // batch_size)

    def batch(self, step: int) -> tuple[torch.Tensor]:
        """The triples of this step as node numbers, int64 [3, batch]."""
        generator = np.random.Generator(np.random.Philox(key=[self.seed, step]))
        edges = generator.integers(len(self._users), size=self.batch_size)
        items = self.graph.num_users + np.stack(
            [self.graph.user_items[edges], generator.integers(self.graph.num_items, size=self.batch_size)]
        )
        triples = torch.from_numpy(np.concatenate([self._users[None, edges], items]).astype(np.int64))
        return (triples.pin_memory() if self.pinned else triples,)
