"""A model: what the trainer asks of it is `embedding`, `graph`, `similarity`, `forward` and `scorer`."""

from __future__ import annotations

import torch
from torch import nn

from gnnrec import BipartiteGraph, ops
from gnnrec.models import FactorScorer
from gnnrec.models.scorer import normalised


class OneHop(nn.Module):
    """Embeddings, and beside them a learned share of the mean over neighbours.

    Args:
        graph: the training graph.
        dim: width of the embeddings.
        seed: of the initial embeddings.
    """

    similarity = "dot"

    def __init__(self, graph: BipartiteGraph, dim: int = 16, seed: int = 0) -> None:
        super().__init__()
        self.graph = graph
        generator = torch.Generator().manual_seed(seed)
        self.embedding = nn.Parameter(0.1 * torch.randn(graph.num_nodes, dim, generator=generator))
        self.share = nn.Parameter(torch.ones(()))

    def forward(self) -> torch.Tensor:
        """Final embeddings [num_users + num_items, dim] of users, then items."""
        adjacency = self.graph.norm_adjacency().to(self.embedding.device)
        return self.embedding + self.share * ops.spmm(adjacency, self.embedding)

    @torch.no_grad()
    def scorer(self) -> FactorScorer:
        """The model as it is now; a new user is the share of the items alone."""
        users, final, ego = self.graph.num_users, self(), self.embedding.detach().clone()
        share = self.share.detach().clone()
        return FactorScorer(
            final[:users],
            final[users:],
            lambda history: share * ops.spmm(normalised(history, self.graph), ego[users:]),
        )
