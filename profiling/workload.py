"""The graph that operators are measured on, and the inputs that ours, the peers and the oracles share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gnnrec.data import catalog, synthetic
from gnnrec.data.interactions import Interactions
from gnnrec.graph import BipartiteGraph
from gnnrec.ops import SparseMatrix

Tensors = dict[str, torch.Tensor]

CPU = torch.device("cpu")
QUICK = (300, 200, 5_000)  # users, items, interactions
LARGE_NAME = "synthetic, large"
LARGE = (6_000_000, 4_000_000, 100_000_000)
GPU_STEP_BATCH = 65_536
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
        device: where the tensors lie.
    """

    name: str
    graph: BipartiteGraph
    dim: int
    threads: int
    bpr_batch: int = 65_536
    step_batch: int = 2048
    device: torch.device = CPU

    @property
    def nodes(self) -> int:
        """Users and items."""
        return self.graph.num_nodes

    @property
    def adjacency(self) -> SparseMatrix:
        """D^-1/2 A D^-1/2."""
        return self.graph.norm_adjacency().to(self.device)

    @property
    def seen(self) -> SparseMatrix:
        """Users x items, ones."""
        return self.graph.user_item().to(self.device)

    @cached_property
    def pattern(self) -> SparseMatrix:
        """The adjacency without scales."""
        a = self.adjacency
        return SparseMatrix(a.indptr, a.indices, a.shape, symmetric=True)

    @cached_property
    def rows(self) -> torch.Tensor:
        """int64 [nnz], the row of every entry."""
        return torch.repeat_interleave(torch.arange(self.nodes, device=self.device), self.adjacency.indptr.diff())

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
        return torch.randint(RELATIONS, self.rows.shape, generator=self._generator(3), device=self.device)

    @cached_property
    def relations(self) -> list[SparseMatrix]:
        """The entries split by relation."""
        masks = [self.edge_types == relation for relation in range(RELATIONS)]
        return [SparseMatrix.from_coo(self.rows[m], self.cols[m], shape=(self.nodes,) * 2) for m in masks]

    @cached_property
    def shuffled(self) -> torch.Tensor:
        """int64 [nnz], the rows in random order: an index that is not sorted."""
        order = torch.randperm(len(self.rows), generator=self._generator(4), device=self.device)
        return self.rows[order]

    def normal(self, seed: int, *shape: int) -> torch.Tensor:
        """float32 of the given shape from N(0, 1)."""
        return torch.randn(shape, generator=self._generator(seed), device=self.device)

    def triples(self, batch: int) -> torch.Tensor:
        """int64 [3, batch]: user, positive and negative node numbers, positives drawn from the edges."""
        generator = self._generator(5)
        edges = torch.randint(self.graph.num_edges, (batch,), generator=generator, device=self.device)
        negatives = torch.randint(self.graph.num_items, (batch,), generator=generator, device=self.device)
        # users' rows come first
        return torch.stack([self.rows[edges], self.cols[edges], negatives + self.graph.num_users])

    def _generator(self, seed: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(seed)

    def copy(self) -> Workload:
        """The same numbers elsewhere in the device's memory."""
        g = self.graph
        columns = np.concatenate([g.user_items, g.item_users])
        return replace(self, graph=BipartiteGraph(g.user_indptr, g.user_items, g.item_indptr, columns))


def load(data: str, dim: int, threads: int, quick: bool, **fields: Any) -> Workload:
    """The training part of a data set of the catalog, or a synthetic log of its size where it is not there.

    `fields` are further ones of the workload.
    """
    if quick:
        batches = {"bpr_batch": 512, "step_batch": 128}
        return Workload("synthetic, tiny", _graph(_log(*QUICK)), dim, threads, **(fields | batches))
    known = catalog.entry(data)
    there = catalog.folder(data)
    if all(file.state(there) == "verified" for file in known.files):
        return Workload(data, _graph(catalog.read(data)[0]), dim, threads, **fields)
    log = _log(known.users, known.items, known.interactions[0])
    name = f"synthetic, of the size of {data}, which is not there (GNNREC_DATA)"
    return Workload(name, _graph(log), dim, threads, **fields)


def load_wide(dim: int, threads: int, quick: bool) -> Workload:
    """A synthetic graph that outgrows the caches."""
    return Workload("synthetic", _graph(_log(*(QUICK if quick else WIDE))), dim, threads)


def load_large(like: Workload, quick: bool) -> Workload:
    """A synthetic graph with 10 M nodes and 200 M directed edges, drawn on the other workload's device in seconds.

    Users and items are drawn independently, with powers of uniform numbers as ranks: the degrees have long tails.
    """
    users, items, edges = QUICK if quick else LARGE
    graph = _drawn(users, items, edges, like.device)
    return replace(like, name=LARGE_NAME, graph=graph)


def _drawn(users: int, items: int, edges: int, device: torch.device) -> BipartiteGraph:
    generator = torch.Generator(device).manual_seed(6)
    draws = 5 * edges // 4  # pairs that come up again are one edge

    def nodes(count: int) -> torch.Tensor:
        # All as likely: of popular ones, a cache would hold many, and bandwidth is what is asked for.
        return torch.randint(count, (draws,), generator=generator, device=device)

    pairs = (nodes(users) * items + nodes(items)).unique()
    kept = torch.randperm(len(pairs), generator=generator, device=device)[:edges].sort().values
    owners, owned = pairs[kept] // items, pairs[kept] % items
    by_item = owned.argsort(stable=True)

    def pointers(numbers: torch.Tensor, count: int) -> npt.NDArray[np.int64]:
        ends = torch.bincount(numbers, minlength=count).cumsum(0)
        return np.concatenate([np.zeros(1, np.int64), ends.cpu().numpy()])

    by_user = pointers(owners, users), owned.int().cpu().numpy()
    columns = np.concatenate([by_user[1], owners[by_item].int().cpu().numpy()])
    return BipartiteGraph(*by_user, pointers(owned, items), columns)


def load_synthetic(edges: int, dim: int, threads: int) -> Workload:
    """A synthetic graph with the given number of directed edges, as many for each node as in Gowalla's."""
    interactions = edges // 2
    return Workload("synthetic", _graph(_log(interactions // 27, interactions // 20, interactions)), dim, threads)


def _log(users: int, items: int, interactions: int) -> Interactions:
    return synthetic.generate(users, items, interactions, communities=5, popularity_exponent=0.6).log


def _graph(log: Interactions) -> BipartiteGraph:
    return BipartiteGraph.from_edges(np.asarray(log.users), np.asarray(log.items), log.num_users, log.num_items)
