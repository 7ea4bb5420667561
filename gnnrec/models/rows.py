"""LightGCN and NGCF of which several processes have some nodes each: their embeddings, and the rows of the graph.

A layer takes a node's neighbours, who may be any: before each, every rank sends what it has to all others, into a
matrix of all nodes that serves all layers. Everything else is of a rank's own nodes, and bit-equal to that of one
process.
"""

from __future__ import annotations

import torch
from torch import nn

from gnnrec import ops
from gnnrec.config import LightGCNConfig, NGCFConfig
from gnnrec.graph.rows import GraphRows
from gnnrec.models.draws import embedding_rows, step_seeds
from gnnrec.models.ngcf import layer_parameters
from gnnrec.models.scorer import FactorScorer, popularity_bias


class _Rows(nn.Module):
    """What both have.

    Attributes:
        embedding: of own nodes, [own nodes, dim].
        everyone: what is sent to all ranks, [num_nodes, dim]: of a layer, until the next one.
    """

    def __init__(
        self,
        graph: GraphRows,
        config: LightGCNConfig | NGCFConfig,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.graph, self.similarity, self.popularity = graph, config.similarity, config.popularity
        own = graph.shares[graph.ranks.rank]
        start = embedding_rows(graph, config.dim, config.init_std, generator, own).to(device)
        self.embedding = nn.Parameter(start, requires_grad=False)
        self.matrix = graph.matrix.to(device)
        self.everyone = torch.empty(graph.num_nodes, config.dim, device=device)

    def spread(self, own: torch.Tensor) -> None:
        """Send what is of own nodes to all ranks: what all have sent is then in `everyone`."""
        self.graph.spread(own, self.everyone)

    def _scorer(self, users: torch.Tensor, items: torch.Tensor) -> FactorScorer:
        """Of own users, and all items."""
        bias, cosine = popularity_bias(self.graph, self.popularity, items.device), self.similarity == "cosine"
        first = self.graph.own_users.start
        return FactorScorer(users, items, None, cosine=cosine, item_bias=bias, first_user=first)


class LightGCNRows(_Rows):
    """LightGCN, the same numbers as `LightGCN` has.

    Args:
        graph: the rows of the training graph.
        config: of the model, with layer weights that are numbers and normal embeddings.
        seed: of the initial embeddings.
        device: where everything goes.
    """

    def __init__(self, graph: GraphRows, config: LightGCNConfig, seed: int, device: torch.device) -> None:
        super().__init__(graph, config, torch.Generator().manual_seed(seed), device)
        self.layers = config.layers
        self.layer_weights: list[float] = config.layer_weights or [1 / (config.layers + 1)] * (config.layers + 1)

    @torch.no_grad()
    def propagate(self, own: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """`ops.lightgcn_propagate` of a matrix that is in `everyone`, for own nodes, or these of them.

        Args:
            own: its rows of own nodes.
            rows: int64 [n] among own nodes.
        """
        weights, scale = self.layer_weights, self.layer_weights[-1]
        for weight in weights[-2:0:-1]:  # by Horner's rule, as one process does
            self.spread(ops.spmm(self.matrix, self.everyone, scale=scale, add=own, add_scale=weight))
            scale = 1.0
        last, add = (self.matrix, own) if rows is None else (self.matrix.select_rows(rows), own[rows])
        if not self.layers:
            return add * scale
        return ops.spmm(last, self.everyone, scale=scale, add=add, add_scale=weights[0])

    @torch.no_grad()
    def scorer(self) -> FactorScorer:
        """The model as it is now, for own users, until something else is sent. All ranks make theirs together."""
        self.spread(self.embedding)
        final = self.propagate(self.embedding)
        self.spread(final)
        users, items = self.graph.own_users, self.everyone[self.graph.num_users :]
        return self._scorer(final[: users.stop - users.start], items)


class NGCFRows(_Rows):
    """NGCF, the same numbers as `NGCF` has; every rank has all weights and biases. On processors.

    Args:
        graph, config, seed, device: as for LightGCNRows.
    """

    def __init__(self, graph: GraphRows, config: NGCFConfig, seed: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(seed)
        super().__init__(graph, config, generator, device)
        self.config, self.seed = config, seed
        self.w1, self.w2, self.b1, self.b2 = layer_parameters(config.dim, config.layers, generator)

    def layers(self, step: int | None = None) -> list[ops.NGCFBlocks]:
        """Every layer with the weights that it has now, with the dropout of a step of training or, by default, none."""
        config, count = self.config, self.config.layers
        seeds = [None] * count if step is None else step_seeds(self.seed, step, count).unbind()
        return [
            ops.NGCFBlocks(
                self.graph.indptr,
                *weights,
                negative_slope=config.negative_slope,
                dropout=config.message_dropout,
                node_dropout=config.node_dropout,
                seed=seed,
            )
            for *weights, seed in zip(self.w1, self.b1, self.w2, self.b2, seeds, strict=True)
        ]

    @torch.no_grad()
    def scorer(self) -> FactorScorer:
        """The model as it is now, for own users, without dropout. All ranks make theirs together."""
        graph, config = self.graph, self.config
        width, own = config.dim, self.embedding.detach()
        count = graph.own_users.stop - graph.own_users.start
        users, items = (torch.empty(rows, width * (config.layers + 1)) for rows in (count, graph.num_items))
        for number, layer in enumerate([*self.layers(), None]):
            columns = slice(number * width, (number + 1) * width)
            self.spread(own)
            users[:, columns], items[:, columns] = own[:count], self.everyone[graph.num_users :]
            if layer is not None:
                sums = torch.empty_like(own)
                layer.aggregate(self.matrix, graph.numbers, self.everyone, sums)
                own, _ = layer.forward(graph.numbers, own, sums)
        return self._scorer(users, items)
