"""NGCF."""

from __future__ import annotations

import torch
from torch import nn

from gnnrec import ops
from gnnrec.graph.bipartite import BipartiteGraph
from gnnrec.graph.sparse import SparseMatrix
from gnnrec.models.draws import embeddings, step_seeds, xavier
from gnnrec.models.scorer import FactorScorer, normalised, popularity_bias


class NGCF(nn.Module):
    """Neural graph collaborative filtering (Wang et al. 2019).

    With A the normalised adjacency and x_0 the embeddings of users and items, a layer is

        h_l = dropout(leaky_relu((A + 1) x_(l-1) W1 + (A x_(l-1) * x_(l-1)) W2 + b1 + b2)),  x_l = h_l / |h_l|

    (equation 7, with the biases and lengths of the authors' code), and final embeddings are x_0, x_1, ... side by side.
    The authors' code hands h_l instead of x_l to the next layer, for which both would have to be kept; 40 epochs on
    MovieLens 100k came to recall@20 of .331 that way and of .332 this way. Node dropout drops entries of A, as that
    code does, for each layer others. Dropout is on in training mode only, and follows torch.manual_seed, or after
    `start_step` the step.

    Args:
        graph: the training graph.
        dim: width of the embeddings and of every layer.
        layers: number of layers, at least 1.
        negative_slope: of leaky_relu.
        node_dropout: probability that an entry of A is dropped.
        message_dropout: probability that a number of a layer's output is dropped.
        init_std: standard deviation of the initial embeddings, N(0, init_std); None takes Xavier's uniform
            distribution, users and items apart. Weights and biases [1, dim] always have the latter, as published.
        similarity: how users and items are compared, "dot" product or "cosine".
        popularity: in rankings, an item's scores get this number times the logarithm of its degree.
        seed: of the initial parameters, and of dropout after `start_step`.
    """

    def __init__(
        self,
        graph: BipartiteGraph,
        dim: int = 64,
        layers: int = 3,
        negative_slope: float = 0.2,
        node_dropout: float = 0.0,
        message_dropout: float = 0.1,
        init_std: float | None = None,
        similarity: str = "dot",
        popularity: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.graph, self.negative_slope, self.seed = graph, negative_slope, seed
        self.similarity, self.popularity = similarity, popularity
        self.node_dropout, self.message_dropout = node_dropout, message_dropout
        self._seeds: torch.Tensor | None = None
        generator = torch.Generator().manual_seed(seed)
        self.embedding = nn.Parameter(embeddings(graph, dim, init_std, generator))  # of users, then items
        self.w1, self.w2, self.b1, self.b2 = layer_parameters(dim, layers, generator)

    def start_step(self, step: int) -> None:
        """Let dropout be a function of (seed, step) from now on, so that training can go on from any step."""
        self._seeds = step_seeds(self.seed, step, len(self.w1))

    def forward(self) -> torch.Tensor:
        """Final embeddings [num_users + num_items, dim * (layers + 1)] of users, then items."""
        return torch.cat(self._layers(self.training), dim=1)

    @torch.no_grad()
    def scorer(self) -> FactorScorer:
        """This model as it is now, frozen for inference, without dropout whatever the mode.

        A user who was not in training has no ego embedding: it is taken as 0, the mean of those that training starts
        from. The user's layer l is then made by the trained weights, from the user's layer l - 1 and that of the
        items, whose vectors and degrees stay those of training.
        """
        users, outputs = self.graph.num_users, self._layers(training=False)
        final, items = torch.cat(outputs, dim=1), [x[users:].clone() for x in outputs[:-1]]
        weights = [tuple(w.clone() for w in of_layer) for of_layer in self._weights()]

        def fold_in(history: SparseMatrix) -> torch.Tensor:
            matrix = normalised(history, self.graph)
            vectors = [items[0].new_zeros(history.shape[0], items[0].shape[1])]
            for x, of_layer in zip(items, weights):
                slope = self.negative_slope
                vectors.append(ops.ngcf_layer(matrix, x, *of_layer, x_rows=vectors[-1], negative_slope=slope))
            return torch.cat(vectors, dim=1)

        bias, cosine = popularity_bias(self.graph, self.popularity, final.device), self.similarity == "cosine"
        return FactorScorer(final[:users], final[users:], fold_in, cosine=cosine, item_bias=bias)

    def _weights(self) -> list[tuple[torch.Tensor, ...]]:
        """w1, b1, w2, b2 of every layer."""
        return list(zip(self.w1, self.b1, self.w2, self.b2))

    def _layers(self, training: bool) -> list[torch.Tensor]:
        """The embeddings and every layer's output, [num_users + num_items, dim] each."""
        adjacency = self.graph.norm_adjacency().to(self.embedding.device)
        outputs: list[torch.Tensor] = [self.embedding]
        for layer, of_layer in enumerate(self._weights()):
            output = ops.ngcf_layer(
                adjacency,
                outputs[-1],
                *of_layer,
                negative_slope=self.negative_slope,
                dropout=self.message_dropout,
                node_dropout=self.node_dropout,
                training=training,
                seed=None if self._seeds is None else self._seeds[layer],
            )
            outputs.append(output)
        return outputs


def layer_parameters(dim: int, layers: int, generator: torch.Generator) -> list[nn.ParameterList]:
    """w1, w2 [dim, dim], b1 and b2 [dim] of all layers, drawn in this order."""
    weights = [nn.ParameterList(xavier(dim, dim, generator) for _ in range(layers)) for _ in range(2)]
    biases = [nn.ParameterList(xavier(1, dim, generator)[0] for _ in range(layers)) for _ in range(2)]
    return weights + biases
