"""A loss: called with final embeddings, ego embeddings and a batch."""

from __future__ import annotations

import torch

from gnnrec import BipartiteGraph


class Hinge:
    """How far a positive's score falls short of a negative's plus a margin.

    Args:
        graph: the training graph.
        cosine: whether the model compares by cosines.
        device: where it is computed.
        margin: between the scores.
    """

    def __init__(self, graph: BipartiteGraph, cosine: bool, device: torch.device, margin: float = 1.0) -> None:
        self.margin = margin

    def __call__(self, final: torch.Tensor, ego: torch.Tensor, triples: torch.Tensor) -> torch.Tensor:
        """The mean over triples int64 [3, batch] of node numbers: user, positive, negative."""
        users, positives, negatives = (final.index_select(0, nodes) for nodes in triples)
        return (self.margin - (users * (positives - negatives)).sum(1)).clamp(min=0).mean()
