"""LightGCN with embeddings in files of a slow tier, or in DRAM beside a GPU: a panel of columns at a time is where the
computation is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing

import torch

from gnnrec import device as devices
from gnnrec import ops
from gnnrec.config import LightGCNConfig
from gnnrec.graph.bipartite import BipartiteGraph
from gnnrec.graph.sparse import SparseMatrix
from gnnrec.memtier.adjacency import Adjacency, HeldAdjacency, Part
from gnnrec.memtier.layout import Layout
from gnnrec.memtier.matrices import empty
from gnnrec.memtier.stores import Store
from gnnrec.memtier.stream import Block
from gnnrec.models.draws import embedding_blocks
from gnnrec.models.scorer import FactorScorer, normalised, popularity_bias
from gnnrec.ops._panels import panels_of


class StreamedLightGCN:
    """LightGCN, the same numbers as `LightGCN` has on the device that computes, with its embeddings elsewhere.

    Propagation takes every column by itself, so a panel of columns passes through all layers before the next one comes.
    The device holds three panels, beside the graph or, where its columns come from a file too, some blocks of it.

    Args:
        graph: the training graph.
        config: of the model.
        store: where matrices are made, and what computes.
        layout: of the embeddings.
        seed: of the initial embeddings; None leaves them to whoever fills `embedding`.
        adjacency: of the graph, where it is not to lie where the computation is.
    """

    def __init__(
        self,
        graph: BipartiteGraph,
        config: LightGCNConfig,
        store: Store,
        layout: Layout,
        seed: int | None = None,
        adjacency: Adjacency | None = None,
    ) -> None:
        self.graph, self.store, self.layout, self.device = graph, store, layout, store.device
        self.similarity, self.popularity = config.similarity, config.popularity
        layers = config.layers
        given = config.layer_weights
        assert not isinstance(given, str)
        self.layer_weights = [1 / (layers + 1)] * (layers + 1) if given is None else [float(x) for x in given]
        self.embedding = store.matrix("embedding", layout)
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            blocks = map(layout.rows_of, range(layout.blocks))
            self.embedding.fill(embedding_blocks(graph, config.dim, config.init_std, generator, blocks))
        self.adjacency = adjacency or HeldAdjacency(graph.norm_adjacency().to(self.device))
        # A panel, and two more like it that it passes through.
        self.panel, self.out, self.work = (self._panel() for _ in range(3))
        # Reserved now: a disk that has no room for it is not found out after hours of training.
        self._final = {"final": store.dense("final", layout.rows, config.dim)}

    def propagate(self, layer_weights: Sequence[float], rows: torch.Tensor | None = None) -> torch.Tensor:
        """sum of weights[l] A^l of the columns in `panel`, which stays: in `out`, [nodes, width]. rows: int64 [n],
        where others of the panel are 0."""
        with self._as_whole():
            return self.adjacency.propagate(self.out, self.work, self.panel, list(layer_weights), rows)

    def propagated_rows(self, own: torch.Tensor, parts: Iterable[Part]) -> torch.Tensor:
        """Final embeddings of some nodes for the columns in `panel`, [n, width]; own: their rows of it; parts: of the
        adjacency."""
        return self._last_layer(parts, self._before_last(), own)

    def propagated_blocks(self, blocks: Iterator[Block], rows: torch.Tensor) -> Iterator[tuple[Block, torch.Tensor]]:
        """Final embeddings a block of rows at a time, [rows, width], of a panel that is 0 but in these rows: the last
        layer is computed while blocks are on their way. In the meantime `work` is free."""
        source = self._before_last(rows)
        for block in blocks:
            yield block, self._last_layer(self.adjacency.rows(block.rows), source, self.panel[block.rows])

    def _before_last(self, rows: torch.Tensor | None = None) -> torch.Tensor:
        """What the last layer gathers: by Horner's rule, the propagation by all the others."""
        return self.propagate(self.layer_weights[1:], rows) if len(self.layer_weights) > 2 else self.panel

    def _last_layer(self, parts: Iterable[Part], source: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Rows of the adjacency times the source, plus these rows themselves by their weight."""
        weights = self.layer_weights
        if len(weights) == 1:
            return rows * weights[0]
        scale = weights[1] if len(weights) == 2 else 1.0
        with self._as_whole():
            found = [
                ops.spmm(part, source, scale=scale, add=rows[where], add_scale=weights[0]) for where, part in parts
            ]
        return found[0] if len(found) == 1 else torch.cat(found)

    def _as_whole(self) -> AbstractContextManager[None]:
        """In which products of panels have the bits of those of all columns."""
        return panels_of(self.adjacency.matrix, self.layout.columns, self.layout.width)

    def _panel(self) -> torch.Tensor:
        """Zeros [nodes, width] where the computation is."""
        if self.device.type == "cpu":
            return empty(self.layout.rows, self.layout.width)
        with devices.memory_errors("a panel", lower="memory.panel", device=self.device):
            return torch.zeros(self.layout.rows, self.layout.width, device=self.device)

    def scorer(self) -> FactorScorer:
        """This model as its embeddings are now, until the next one is asked for. Its vectors lie where the store has
        them, for processors to rank."""
        users, weights = self.graph.num_users, self.layer_weights[1:]
        final = self._kept("final", self.layer_weights)

        def fold_in(history: SparseMatrix) -> torch.Tensor:
            # Propagation by one layer less; without layers nothing flows, and the ego embeddings are summed.
            vectors = self._kept("new_users", weights or [1.0])[users:]
            return ops.spmm(normalised(history, self.graph), vectors)

        bias = popularity_bias(self.graph, self.popularity, final.device)
        return FactorScorer(final[:users], final[users:], fold_in, cosine=self.similarity == "cosine", item_bias=bias)

    def _propagated(self, weights: Sequence[float]) -> Iterator[tuple[slice, torch.Tensor]]:
        for number in range(self.layout.panels):
            self.embedding.read_panel(number, self.panel)
            columns = slice(number * self.layout.width, (number + 1) * self.layout.width)
            yield columns, self.propagate(weights)

    def _kept(self, name: str, weights: Sequence[float]) -> torch.Tensor:
        """sum of weights[l] A^l E in the store, float32 [nodes, dim]."""
        rows, dim = self.layout.rows, self.layout.columns
        if name not in self._final:
            self._final[name] = self.store.dense(name, rows, dim)
        with closing(self.adjacency):
            for columns, values in self._propagated(weights):
                self._final[name][:, columns] = values
        return self._final[name]
