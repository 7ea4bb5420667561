"""LightGCN."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from gnnrec import ops
from gnnrec.graph.bipartite import BipartiteGraph
from gnnrec.models.scorer import FactorScorer


class LightGCN(nn.Module):
    """Embeddings propagated over the normalised user-item graph and summed over layers (He et al. 2020).

    Args:
        graph: the training graph.
        dim: width of the embeddings.
        layers: number of propagation layers; 0 is matrix factorisation.
        layer_weights: layers + 1 numbers, by default the mean over layers.
        init_std: standard deviation of the initial embeddings, N(0, init_std).
        similarity: how users and items are compared, "dot" product or "cosine".
        seed: of the initial embeddings.
    """

    def __init__(
        self,
        graph: BipartiteGraph,
        dim: int = 64,
        layers: int = 3,
        layer_weights: Sequence[float] | None = None,
        init_std: float = 0.1,
        similarity: str = "dot",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.graph, self.layers, self.similarity = graph, layers, similarity
        self.layer_weights = [1 / (layers + 1)] * (layers + 1) if layer_weights is None else list(layer_weights)
        generator = torch.Generator().manual_seed(seed)
        # Ego embeddings (layer 0) of users, then items. Drawn on the CPU: every device starts from the same numbers.
        self.embedding = nn.Parameter(torch.empty(graph.num_nodes, dim).normal_(0, init_std, generator=generator))

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

        def fold_in() -> torch.Tensor:
            if self.layers == 0:
                return ego[users:]
            layers, weights = self.layers - 1, self.layer_weights[1:]
            adjacency = self.graph.norm_adjacency().to(ego.device)
            return ops.lightgcn_propagate(adjacency, ego, num_layers=layers, layer_weights=weights)[users:]

        item_scale = self.graph.norm_user_item().col_scale
        assert item_scale is not None
        items = final[users:]
        if self.similarity == "cosine":  # a user's length does not change the user's ranking
            items = F.normalize(items)
        return FactorScorer(final[:users], items, fold_in, item_scale.to(ego.device))
