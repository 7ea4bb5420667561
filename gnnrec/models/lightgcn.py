"""LightGCN."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from gnnrec import ops
from gnnrec.graph.bipartite import BipartiteGraph
from gnnrec.graph.sparse import SparseMatrix
from gnnrec.models.scorer import FactorScorer, normalised, popularity_bias
from gnnrec.models.spectral import spectral_embedding


class LightGCN(nn.Module):
    """Embeddings propagated over the normalised user-item graph and summed over layers (He et al. 2020).

    Args:
        graph: the training graph.
        dim: width of the embeddings.
        layers: number of propagation layers; 0 is matrix factorisation.
        layer_weights: layers + 1 numbers, by default the mean over layers.
        init: "normal" embeddings, N(0, init_std), or "spectral" ones, see `spectral_embedding`.
        init_std: standard deviation of the initial embeddings.
        similarity: how users and items are compared, "dot" product or "cosine".
        popularity: in rankings, an item's scores get this number times the logarithm of its degree.
        seed: of the initial embeddings.
    """

    def __init__(
        self,
        graph: BipartiteGraph,
        dim: int = 64,
        layers: int = 3,
        layer_weights: Sequence[float] | None = None,
        init: str = "normal",
        init_std: float = 0.1,
        similarity: str = "dot",
        popularity: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.graph, self.layers = graph, layers
        self.similarity, self.popularity = similarity, popularity
        self.layer_weights = [1 / (layers + 1)] * (layers + 1) if layer_weights is None else list(layer_weights)
        # Ego embeddings (layer 0) of users, then items. Made on the CPU: every device starts from the same numbers.
        if init == "spectral":
            start = spectral_embedding(graph, dim, init_std, seed=seed)
        else:
            start = torch.empty(graph.num_nodes, dim)
            start.normal_(0, init_std, generator=torch.Generator().manual_seed(seed))
        self.embedding = nn.Parameter(start)

    def forward(self) -> torch.Tensor:
        """Final embeddings [num_users + num_items, dim] of users, then items."""
        adjacency = self.graph.norm_adjacency().to(self.embedding.device)
        layers, weights = self.layers, self.layer_weights
        return ops.lightgcn_propagate(adjacency, self.embedding, num_layers=layers, layer_weights=weights)

    @torch.no_grad()
    def scorer(self) -> FactorScorer:
        """This model as it is now, frozen for inference.

        A user who was not in training has no ego embedding: what is left of the layer sum is A applied to what the
        items hold one layer earlier, sum over l >= 1 of layer_weights[l] * A^(l-1) E, which is propagation by one layer
        less. Without layers nothing flows, and a new user is the plain normalised sum of the items.
        """
        users, ego = self.graph.num_users, self.embedding.detach().clone()
        final = self()

        def fold_in(history: SparseMatrix) -> torch.Tensor:
            vectors = ego[users:]
            if self.layers > 0:
                layers, weights = self.layers - 1, self.layer_weights[1:]
                adjacency = self.graph.norm_adjacency().to(ego.device)
                vectors = ops.lightgcn_propagate(adjacency, ego, num_layers=layers, layer_weights=weights)[users:]
            return ops.spmm(normalised(history, self.graph), vectors)

        bias, cosine = popularity_bias(self.graph, self.popularity, final.device), self.similarity == "cosine"
        return FactorScorer(final[:users], final[users:], fold_in, cosine=cosine, item_bias=bias)
