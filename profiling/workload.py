"""The graph that operators are measured on, and the inputs that ours, the peers and the oracles share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from gnnrec.data import catalog, synthetic
from gnnrec.data.interactions import Interactions
from gnnrec.graph import BipartiteGraph
from gnnrec.ops import SparseMatrix

Tensors = dict[str, torch.Tensor]

QUICK = (300, 200, 5_000)  # users, items, interactions
WIDE = (52_643, 91_599, 2_400_000)  # 4.8 M directed edges on amazon-book's numbers of nodes
RELATIONS = 3


@dataclass(frozen=True)
class Workload:
    """A user-item graph with what is derived from it, made at first use and kept.

    Args:
        name: of the data.
        graph: the graph.
        dim: columns of node features.
        threads: of ours, the peers and the limit.
        bpr_batch, step_batch: triples of the loss by itself and of a whole training step.
    """

    name: str
    graph: BipartiteGraph
    dim: int
    threads: int
    bpr_batch: int = 65_536
    step_batch: int = 2048

    @property
    def nodes(self) -> int:
        """Users and items."""
        return self.graph.num_nodes

    @property
    def adjacency(self) -> SparseMatrix:
        """D^-1/2 A D^-1/2."""
        return self.graph.norm_adjacency()

    @cached_property
    def pattern(self) -> SparseMatrix:
        """The adjacency without scales."""
        a = self.adjacency
        return SparseMatrix(a.indptr, a.indices, a.shape, symmetric=True)

    @cached_property
    def rows(self) -> torch.Tensor:
        """int64 [nnz], the row of every entry."""
        return torch.repeat_interleave(torch.arange(self.nodes), self.adjacency.indptr.diff())

    @cached_property
    def cols(self) -> torch.Tensor:
        """int64 [nnz], the column of every entry."""
        return self.adjacency.indices.long()

    @cached_property
    def scale(self) -> torch.Tensor:
        """float32 [nodes], D^-1/2."""
        scale = self.adjacency.row_scale
        assert scale is not None
        return scale

    @cached_property
    def values(self) -> torch.Tensor:
        """float32 [nnz], the scales as a value for every entry."""
        return self.scale[self.rows] * self.scale[self.cols]

    @cached_property
    def edge_types(self) -> torch.Tensor:
        """int64 [nnz], a random relation for every entry."""
        return torch.randint(RELATIONS, self.rows.shape, generator=torch.Generator().manual_seed(3))

    @cached_property
    def relations(self) -> list[SparseMatrix]:
        """The entries split by relation."""
        masks = [self.edge_types == relation for relation in range(RELATIONS)]
        return [SparseMatrix.from_coo(self.rows[m], self.cols[m], shape=(self.nodes,) * 2) for m in masks]

    @cached_property
    def shuffled(self) -> torch.Tensor:
        """int64 [nnz], the rows in random order: an index that is not sorted."""
        order = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(4))
        return self.rows[order]

    def normal(self, seed: int, *shape: int) -> torch.Tensor:
        """float32 of the given shape from N(0, 1)."""
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def triples(self, batch: int) -> torch.Tensor:
        """int64 [3, batch]: user, positive and negative node numbers, positives drawn from the edges."""
        generator = torch.Generator().manual_seed(5)
        edges = torch.randint(self.graph.num_edges, (batch,), generator=generator)
        negatives = torch.randint(self.graph.num_items, (batch,), generator=generator) + self.graph.num_users
        return torch.stack([self.rows[edges], self.cols[edges], negatives])  # users' rows come first


def load(data: str, dim: int, threads: int, quick: bool) -> Workload:
    """The training part of a data set of the catalog, or a synthetic log of its size where it is not there."""
    if quick:
        return Workload("synthetic, tiny", _graph(_log(*QUICK)), dim, threads, bpr_batch=512, step_batch=128)
    known = catalog.entry(data)
    there = catalog.folder(data)
    if all(file.state(there) == "verified" for file in known.files):
        return Workload(data, _graph(catalog.read(data)[0]), dim, threads)
    log = _log(known.users, known.items, known.interactions[0])
    return Workload(f"synthetic, of the size of {data}, which is not there (GNNREC_DATA)", _graph(log), dim, threads)


def load_wide(dim: int, threads: int, quick: bool) -> Workload:
    """A synthetic graph that outgrows the caches."""
    return Workload("synthetic", _graph(_log(*(QUICK if quick else WIDE))), dim, threads)


def load_synthetic(edges: int, dim: int, threads: int) -> Workload:
    """A synthetic graph with the given number of directed edges, as many for each node as in Gowalla's."""
    interactions = edges // 2
    return Workload("synthetic", _graph(_log(interactions // 27, interactions // 20, interactions)), dim, threads)


def _log(users: int, items: int, interactions: int) -> Interactions:
    return synthetic.generate(users, items, interactions, communities=5, popularity_exponent=0.6).log


def _graph(log: Interactions) -> BipartiteGraph:
    return BipartiteGraph.from_edges(np.asarray(log.users), np.asarray(log.items), log.num_users, log.num_items)
