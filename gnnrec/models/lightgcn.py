"""LightGCN."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from gnnrec import ops
from gnnrec.graph.bipartite import BipartiteGraph
from gnnrec.graph.sparse import SparseMatrix
from gnnrec.models.draws import embedding_columns, embeddings
from gnnrec.models.scorer import FactorScorer, normalised, popularity_bias
from gnnrec.models.spectral import spectral_embedding


class LightGCN(nn.Module):
    """Embeddings propagated over the normalised user-item graph and summed over layers (He et al. 2020).

    Args:
        graph: the training graph.
        dim: width of the embeddings.
        layers: number of propagation layers; 0 is matrix factorisation.
        layer_weights: layers + 1 numbers, by default the mean over layers. "learned" makes them a parameter, softmax of
            `layer_logits` [layers + 1], which starts at the mean; every layer is then held for the backward pass.
        init: "normal" embeddings, N(0, init_std), or "spectral" ones, see `spectral_embedding`.
        init_std: standard deviation of the initial embeddings; None takes Xavier's uniform distribution, users and
            items apart, instead of normal ones.
        similarity: how users and items are compared, "dot" product or "cosine".
        popularity: in rankings, an item's scores get this number times the logarithm of its degree.
        seed: of the initial embeddings.
        columns: of the dim columns, those that are held here; by default all. Everything is then that of these columns
            alone: final embeddings too, since propagation takes every column by itself.

    Raises:
        ValueError: layer_weights is another word.
    """

    def __init__(
        self,
        graph: BipartiteGraph,
        dim: int = 64,
        layers: int = 3,
        layer_weights: Sequence[float] | str | None = None,
        init: str = "normal",
        init_std: float | None = 0.1,
        similarity: str = "dot",
        popularity: float = 0.0,
        seed: int = 0,
        columns: slice | None = None,
    ) -> None:
        super().__init__()
        self.graph, self.layers = graph, layers
        self.similarity, self.popularity = similarity, popularity
        # Ego embeddings (layer 0) of users, then items. Made on the CPU: every device starts from the same numbers.
        if init == "spectral":
            start = spectral_embedding(graph, dim, 0.1 if init_std is None else init_std, seed=seed)
            start = start if columns is None else start[:, columns].contiguous()
        elif columns is None:
            start = embeddings(graph, dim, init_std, torch.Generator().manual_seed(seed))
        else:
            start = embedding_columns(graph, dim, init_std, torch.Generator().manual_seed(seed), columns)
        self.embedding = nn.Parameter(start)
        self.layer_logits: nn.Parameter | None = None
        if isinstance(layer_weights, str):
            if layer_weights != "learned":
                raise ValueError(f"layer_weights must be numbers, 'learned' or None, got {layer_weights!r}")
            self.layer_logits = nn.Parameter(torch.zeros(layers + 1))
            nodes = graph.num_nodes
            self._every = SparseMatrix.from_csr(torch.arange(nodes + 1), torch.zeros(nodes).int(), shape=(nodes, 1))
        elif layer_weights is not None:
            self._fixed = [float(weight) for weight in layer_weights]
        else:
            self._fixed = [1 / (layers + 1)] * (layers + 1)

    @property
    def layer_weights(self) -> list[float]:
        """The weights of the layers as they are now."""
        if self.layer_logits is None:
            return self._fixed
        weights: list[float] = self.layer_logits.detach().softmax(0).tolist()
        return weights

    def forward(self) -> torch.Tensor:
        """Final embeddings [num_users + num_items, dim] of users, then items."""
        return self._propagated()

    def rows(self, nodes: torch.Tensor, *, ego: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """What `forward` gives of these nodes, int64 [n], and their ego embeddings if they are wanted: [n, dim] each.


        Raises:
            ValueError: layer weights are learned, which takes all nodes.
        """
        if self.layer_logits is not None:
            raise ValueError("learned layer weights need the embeddings of all nodes")
        adjacency, x, layers = self.graph.norm_adjacency().to(self.embedding.device), self.embedding, self.layers
        if ego:
            return ops.lightgcn_propagate_rows(adjacency, x, nodes, num_layers=layers, layer_weights=self._fixed)
        final = ops.lightgcn_propagate(adjacency, x, num_layers=layers, layer_weights=self._fixed, rows=nodes)
        return final, x[:0]

    def _propagated(self) -> torch.Tensor:
        """The same whatever `forward` is where this class is a part of another."""
        adjacency = self.graph.norm_adjacency().to(self.embedding.device)
        if self.layer_logits is None:
            layers, weights = self.layers, self._fixed
            return ops.lightgcn_propagate(adjacency, self.embedding, num_layers=layers, layer_weights=weights)
        # A row of weights for every node: the backward pass then sums <gradient, layer> over nodes in the order of
        # ops.spmm, where torch's sum of so many numbers would depend on the threads.
        columns = ops.spmm(self._every.to(self.embedding.device), self.layer_logits.softmax(0)[None]).split(1, dim=1)
        layer: torch.Tensor = self.embedding
        total: torch.Tensor = columns[0] * layer
        for column in columns[1:]:
            layer = ops.spmm(adjacency, layer)
            total = torch.addcmul(total, column, layer)
        return total

    @torch.no_grad()
    def scorer(self) -> FactorScorer:
        """This model as it is now, frozen for inference.

        A user who was not in training has no ego embedding: what is left of the layer sum is A applied to what the
        items hold one layer earlier, sum over l >= 1 of layer_weights[l] * A^(l-1) E, which is propagation by one layer
        less. Without layers nothing flows, and a new user is the plain normalised sum of the items.
        """
        users, ego, weights = self.graph.num_users, self.embedding.detach().clone(), self.layer_weights[1:]
        final = self._propagated()

        def fold_in(history: SparseMatrix) -> torch.Tensor:
            vectors = ego[users:]
            if weights:
                adjacency = self.graph.norm_adjacency().to(ego.device)
                layers = len(weights) - 1
                vectors = ops.lightgcn_propagate(adjacency, ego, num_layers=layers, layer_weights=weights)[users:]
            return ops.spmm(normalised(history, self.graph), vectors)

        bias, cosine = popularity_bias(self.graph, self.popularity, final.device), self.similarity == "cosine"
        return FactorScorer(final[:users], final[users:], fold_in, cosine=cosine, item_bias=bias)
