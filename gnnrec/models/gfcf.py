"""GF-CF: collaborative filtering as a graph filter, in closed form."""

from __future__ import annotations

import torch
from torch import nn

from gnnrec import device as devices
from gnnrec.graph.bipartite import BipartiteGraph
from gnnrec.models.scorer import FilterScorer
from gnnrec.models.spectral import truncated_svd


class GFCF(nn.Module):
    """A linear filter plus an ideal low-pass filter over the normalised item-item graph (Shen et al. 2021).

    Args:
        graph: the training graph.
        factors: singular vectors of the ideal low-pass filter, at most min(num_users, num_items).
        ideal_weight: its weight; the authors' value is 0.3.
        seed: of the random start of the decomposition.
    """

    vectors: torch.Tensor

    def __init__(self, graph: BipartiteGraph, factors: int = 256, ideal_weight: float = 0.3, seed: int = 0) -> None:
        super().__init__()
        self.graph, self.ideal_weight, self.seed = graph, ideal_weight, seed
        self.register_buffer("vectors", torch.zeros(graph.num_items, min(factors, graph.num_users, graph.num_items)))

    def fit(self) -> GFCF:
        """Decompose the graph; afterwards `vectors` holds the leading right singular vectors."""
        matrix = self.graph.norm_user_item().to(self.vectors.device)
        with devices.memory_errors("the decomposition", lower="model.factors"):
            _, vectors = truncated_svd(matrix, self.vectors.shape[1], seed=self.seed)
        self.vectors.copy_(vectors)
        return self

    def scorer(self) -> FilterScorer:
        """This model frozen for inference."""
        device = self.vectors.device
        matrix, interactions = self.graph.norm_user_item().to(device), self.graph.user_item().to(device)
        assert matrix.col_scale is not None
        root = torch.from_numpy(self.graph.item_degrees).float().sqrt().to(device)
        return FilterScorer(interactions, matrix, self.vectors, matrix.col_scale, root, self.ideal_weight)
