"""LightGCN with embeddings in a file of a slow tier: a panel of columns at a time is in DRAM."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from gnnrec import ops
from gnnrec.config import LightGCNConfig
from gnnrec.graph.bipartite import BipartiteGraph
from gnnrec.graph.sparse import SparseMatrix
from gnnrec.memtier.files import TierFolder
from gnnrec.memtier.stream import Block, Layout, PanelMatrix, Ring, empty, mapped
from gnnrec.models.draws import embedding_blocks
from gnnrec.models.scorer import FactorScorer, normalised, popularity_bias


class StreamedLightGCN:
    """LightGCN, the same numbers as `LightGCN` has, with its embeddings in a file.

    Propagation takes every column by itself, so a panel of columns passes through all layers before the next one comes.
    DRAM holds three panels beside the graph.

    Args:
        graph: the training graph.
        config: of the model.
        folder: where files are made.
        layout: of the embeddings.
        ring: with which they are streamed in training.
        seed: of the initial embeddings; None leaves them to whoever fills `embedding`.
    """

    def __init__(
        self,
        graph: BipartiteGraph,
        config: LightGCNConfig,
        folder: TierFolder,
        layout: Layout,
        ring: Ring,
        seed: int | None = None,
    ) -> None:
        self.graph, self.folder, self.layout, self.ring = graph, folder, layout, ring
        self.similarity, self.popularity = config.similarity, config.popularity
        layers = config.layers
        given = config.layer_weights
        assert not isinstance(given, str)
        self.layer_weights = [1 / (layers + 1)] * (layers + 1) if given is None else [float(x) for x in given]
        self.embedding = PanelMatrix(folder, "embedding", layout)
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            blocks = map(layout.rows_of, range(layout.blocks))
            self.embedding.fill(embedding_blocks(graph, config.dim, config.init_std, generator, blocks))
        # A panel, and two more like it that it passes through.
        self.panel, self.out, self.work = (empty(layout.rows, layout.width) for _ in range(3))
        # Reserved now: a disk that has no room for it is not found out after hours of training.
        self._final = {
            "final": mapped(folder.create("final.bin", layout.rows * config.dim * 4), layout.rows, config.dim)
        }

    def propagate(self, layer_weights: Sequence[float]) -> torch.Tensor:
        """sum of weights[l] A^l of the columns in `panel`, which stays: in `out`, [nodes, width]."""
        matrix = self.graph.norm_adjacency()
        return ops.lightgcn_propagate_into(self.out, self.work, matrix, self.panel, layer_weights=layer_weights)

    def propagated_rows(self, nodes: torch.Tensor, part: SparseMatrix) -> torch.Tensor:
        """Final embeddings of these nodes for the columns in `panel`, [n, width]; part: their rows of the adjacency."""
        return self._last_layer(part, self._before_last(), self.panel[nodes])

    def propagated_blocks(self, blocks: Iterator[Block]) -> Iterator[tuple[Block, torch.Tensor]]:
        """Final embeddings a block of rows at a time, [rows, width]: the last layer is computed while blocks are on
        their way. In the meantime `work` is free."""
        matrix, source = self.graph.norm_adjacency(), self._before_last()
        for block in blocks:
            yield block, self._last_layer(matrix.row_block(block.rows), source, self.panel[block.rows])

    def _before_last(self) -> torch.Tensor:
        """What the last layer gathers: by Horner's rule, the propagation by all the others."""
        return self.propagate(self.layer_weights[1:]) if len(self.layer_weights) > 2 else self.panel

    def _last_layer(self, part: SparseMatrix, source: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Rows of the adjacency times the source, plus these rows themselves by their weight."""
        weights = self.layer_weights
        if len(weights) == 1:
            return rows * weights[0]
        return ops.spmm(part, source, scale=weights[1] if len(weights) == 2 else 1.0, add=rows, add_scale=weights[0])

    def scorer(self) -> FactorScorer:
        """This model as the file has it now, until the next one is asked for. Its vectors lie in mapped files."""
        users, weights = self.graph.num_users, self.layer_weights[1:]
        final = self._mapped("final", self.layer_weights)

        def fold_in(history: SparseMatrix) -> torch.Tensor:
            # Propagation by one layer less; without layers nothing flows, and the ego embeddings are summed.
            vectors = self._mapped("new_users", weights or [1.0])[users:]
            return ops.spmm(normalised(history, self.graph), vectors)

        bias = popularity_bias(self.graph, self.popularity, final.device)
        return FactorScorer(final[:users], final[users:], fold_in, cosine=self.similarity == "cosine", item_bias=bias)

    def _propagated(self, weights: Sequence[float]) -> Iterator[tuple[slice, torch.Tensor]]:
        for number in range(self.layout.panels):
            self.embedding.read_panel(number, self.panel)
            columns = slice(number * self.layout.width, (number + 1) * self.layout.width)
            yield columns, self.propagate(weights)

    def _mapped(self, name: str, weights: Sequence[float]) -> torch.Tensor:
        """sum of weights[l] A^l E in a mapped file of that name, float32 [nodes, dim]."""
        rows, dim = self.layout.rows, self.layout.columns
        if name not in self._final:
            self._final[name] = mapped(self.folder.create(f"{name}.bin", rows * dim * 4), rows, dim)
        for columns, values in self._propagated(weights):
            self._final[name][:, columns] = values
        return self._final[name]
