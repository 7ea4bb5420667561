"""NGCF with embeddings and all activations in files of a slow tier.

An aggregation takes every column by itself: a panel of the features is in DRAM while its neighbours' sums are made, a
block of rows after the other. The dense part of a layer takes every row by itself, with all columns: blocks of rows
pass by. So DRAM holds, beside the graph, one panel [nodes, width], a number a row for every layer but the last (the
norms), and the batch's rows of every layer; of the last layer nothing but these is ever made. Where the graph's columns
lie in a file too, every aggregation reads them once for every panel, see `gnnrec.memtier.adjacency`.

Files hold, nodes x dim numbers each: the embedding E and Adam's moments; for all L layers but the last its input's
aggregates S and its output X; where L > 1 a gradient G; the final embeddings of evaluation, L + 1 times as much. A step
moves, times nodes x dim x 4 bytes:

    forward, aggregation of every layer     read X, of the first layer E; write S, but for the last layer
    forward, dense part of L - 1 layers     read X and S, write the next X
    backward, aggregation of the last       write G, where L > 1
    backward, dense part of L - 1 layers    read both X, S and G; write gradients over S and G
    backward, aggregation of the others     read S; read and write G; for the first layer read G, see below
    Adam                                    read and write E and the moments, with the aggregation of the first layer

which is 14 L - 7 in all, for any width of a panel: the narrower, the less DRAM, and the more often the graph is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import torch
from torch import nn

from gnnrec import ops
from gnnrec.config import NGCFConfig
from gnnrec.graph.bipartite import BipartiteGraph
from gnnrec.graph.sparse import SparseMatrix
from gnnrec.memtier.adjacency import Adjacency, HeldAdjacency
from gnnrec.memtier.layout import Layout
from gnnrec.memtier.matrices import PanelMatrix, empty
from gnnrec.memtier.passes import SOURCES, Passes
from gnnrec.memtier.stores import FileStore
from gnnrec.memtier.stream import Block
from gnnrec.models.draws import embedding_blocks, step_seeds
from gnnrec.models.ngcf import layer_parameters
from gnnrec.models.scorer import FactorScorer, normalised, popularity_bias


class StreamedNGCF(nn.Module):
    """NGCF, the same numbers as `NGCF` has, with its embeddings and its layers' outputs in files. Its parameters are
    the weights and biases alone.

    Args:
        graph: the training graph.
        config: of the model; dim is a multiple of 16.
        store: of its files.
        layout: of the embeddings.
        seed: of the initial parameters and of dropout.
        drawn: False leaves them to whoever fills them.
        adjacency: of the graph, where it is not to lie in memory.
    """

    def __init__(
        self,
        graph: BipartiteGraph,
        config: NGCFConfig,
        store: FileStore,
        layout: Layout,
        seed: int = 0,
        *,
        drawn: bool = True,
        adjacency: Adjacency | None = None,
    ) -> None:
        super().__init__()
        self.adjacency = adjacency or HeldAdjacency(graph.norm_adjacency())
        self.graph, self.config, self.store, self.layout = graph, config, store, layout
        self.similarity, self.popularity, self.seed = config.similarity, config.popularity, seed
        self.embedding = store.matrix("embedding", layout)
        generator = torch.Generator().manual_seed(seed)
        if drawn:
            blocks = map(layout.rows_of, range(layout.blocks))
            self.embedding.fill(embedding_blocks(graph, config.dim, config.init_std, generator, blocks))
        self.w1, self.w2, self.b1, self.b2 = layer_parameters(config.dim, config.layers, generator)
        # inputs[l] and aggregates[l] are of layer l; evaluation needs aggregates of one at least.
        inner = range(1, config.layers)
        self.inputs = [self.embedding, *(store.matrix(f"layers.{number}", layout) for number in inner)]
        self.aggregates = [store.matrix(f"aggregates.{number}", layout) for number in inner or range(1)]
        self.panel = empty(layout.rows, layout.width)
        # Reserved now: a disk that has no room for it is not found out after hours of training.
        self._final = store.dense("final", layout.rows, config.dim * (config.layers + 1))

    def layers(self, step: int | None = None) -> list[ops.NGCFBlocks]:
        """Every layer with the weights that it has now, with the dropout of a step of training or, by default, none."""
        config, indptr = self.config, self.adjacency.matrix.indptr
        seeds = [None] * config.layers if step is None else step_seeds(self.seed, step, config.layers).unbind()
        return [
            ops.NGCFBlocks(
                indptr,
                *weights,
                negative_slope=config.negative_slope,
                dropout=config.message_dropout,
                node_dropout=config.node_dropout,
                seed=seed,
            )
            for *weights, seed in zip(self.w1, self.b1, self.w2, self.b2, seeds, strict=True)
        ]

    def panels(self, passes: Passes, source: PanelMatrix) -> Iterator[tuple[int, slice]]:
        """Number and columns of every panel of a matrix, which then is in `panel`."""
        width = self.layout.width
        with passes.open(read=[source], share=SOURCES) as stream:
            for number in range(self.layout.panels):
                for block in stream.panel(number):
                    self.panel[block.rows] = block.tensors[0]
                yield number, slice(number * width, (number + 1) * width)

    def aggregated(
        self, passes: Passes, layer: ops.NGCFBlocks, source: PanelMatrix, target: PanelMatrix
    ) -> Iterator[slice]:
        """Fill a matrix with the aggregates of another; gives the columns of the panel that was done last, which the
        source has in `panel`."""
        with passes.open(write=[target], share=1 - SOURCES) as stream:
            for number, columns in self.panels(passes, source):
                for block in stream.panel(number):
                    self.aggregate(layer, block, block.tensors[0])
                yield columns

    def aggregate(self, layer: ops.NGCFBlocks, block: Block, out: torch.Tensor, *, backward: bool = False) -> None:
        """`NGCFBlocks.aggregate` of the columns in `panel` for the rows of a block."""
        here = numbers(block.rows)
        for where, part in self.adjacency.rows(block.rows):
            layer.aggregate(part, here[where], self.panel, out[where], backward=backward)

    def dense(
        self,
        passes: Passes,
        layer: ops.NGCFBlocks,
        source: PanelMatrix,
        aggregates: PanelMatrix,
        target: PanelMatrix | None,
    ) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """A layer's output [rows, dim] and its norms [rows], a block of rows after the other, from its input and its
        aggregates; it is written where there is a target."""
        inputs = source.column_panels() + aggregates.column_panels()
        written = [] if target is None else target.column_panels()
        with passes.open(read=inputs, write=written) as stream:
            for block in stream.panel(0):
                own, sums = self.rows_of(block.tensors[: len(inputs)])
                out, norms = layer.forward(numbers(block.rows), own, sums)
                self.put(block.tensors[len(inputs) :], out)
                yield block.rows, out, norms

    def rows_of(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Panels of the same rows, put together to matrices with all columns."""
        panels = self.layout.panels
        return [torch.cat(tensors[first : first + panels], dim=1) for first in range(0, len(tensors), panels)]

    def put(self, tensors: list[torch.Tensor], values: torch.Tensor) -> None:
        """Write rows with all columns into their panels."""
        for tensor, part in zip(tensors, values.split(self.layout.width, dim=1)):
            tensor.copy_(part)

    def scorer(self) -> FactorScorer:
        """This model as it is now, without dropout, until the next one is asked for. Its vectors lie in a mapped file,
        and a new user's are made as `NGCF.scorer` makes them."""
        users, dim, final, layers = self.graph.num_users, self.config.dim, self._final, self.layers()
        targets = [*self.inputs[1:], None]
        with closing(Passes(self.store.ring)) as passes, closing(self.adjacency):
            for number, (layer, source, target) in enumerate(zip(layers, self.inputs, targets, strict=True), start=1):
                for columns in self.aggregated(passes, layer, source, self.aggregates[0]):
                    if source is self.embedding:
                        final[:, columns] = self.panel
                for rows, out, _ in self.dense(passes, layer, source, self.aggregates[0], target):
                    final[rows, number * dim : (number + 1) * dim] = out

        def fold_in(history: SparseMatrix) -> torch.Tensor:
            matrix, rows = normalised(history, self.graph), torch.arange(history.shape[0])
            vectors = [torch.zeros(len(rows), dim)]
            for layer, items in zip(layers, final[users:].split(dim, dim=1)):
                vectors.append(layer.forward(rows, vectors[-1], ops.spmm(matrix, items))[0])
            return torch.cat(vectors, dim=1)

        bias, cosine = popularity_bias(self.graph, self.popularity, final.device), self.similarity == "cosine"
        return FactorScorer(final[:users], final[users:], fold_in, cosine=cosine, item_bias=bias)


def numbers(rows: slice) -> torch.Tensor:
    """int64 [rows]."""
    return torch.arange(rows.start, rows.stop)
