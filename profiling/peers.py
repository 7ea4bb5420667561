"""Peers of the operators on sparse matrices, segments and scores; those of whole layers are in layer_peers.py.

Each function is one way that a user of torch, DGL, torch_geometric, scipy or faiss has to compute the same. What such a
user makes once (formats, weights folded into nodes or values) is made when the contender is built, and not timed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import limit
import numpy as np
import scipy.sparse
import torch
import torch.nn.functional as F
from contender import Step, require
from workload import Tensors, Workload

FAISS_BORDERS = (8, 16, 32, 64, 128, 256, 512)  # of the numbers of masked items that share a search
SCORE_BLOCK = 1024  # users
K = 20
REG = 1e-4  # of the losses


def dgl_graph(w: Workload) -> Any:
    """The adjacency as a DGL graph, edges numbered as ours are."""
    dgl = require("dgl")
    a = w.adjacency
    numbers = torch.arange(a.nnz, device=w.device)  # left out, LibXSMM refuses what reads edges
    return dgl.graph(("csc", (a.indptr, w.cols, numbers)), num_nodes=w.nodes).int()


def edge_index(w: Workload) -> torch.Tensor:
    """The adjacency as torch_geometric takes it: [2, nnz], from column to row."""
    require("torch_geometric")
    return torch.stack([w.cols, w.rows])


def torch_csr(w: Workload, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """The normalised adjacency with its values, indices of the given type."""
    a = w.adjacency
    return torch.sparse_csr_tensor(a.indptr.to(dtype), a.indices.to(dtype), w.values, a.shape)


def torch_coo(w: Workload) -> torch.Tensor:
    """The same in coordinates."""
    return torch.sparse_coo_tensor(torch.stack([w.rows, w.cols]), w.values, w.adjacency.shape, is_coalesced=True)


# spmm and lightgcn_propagate: each library's product with the normalised adjacency.


def cpp_limit(w: Workload, t: Tensors) -> Step:
    return Step(limit.spmm(w.adjacency, t["x"], w.threads))


def scipy_csr(w: Workload, t: Tensors) -> Step:
    a = w.adjacency
    matrix = scipy.sparse.csr_array((w.values.numpy(), a.indices.numpy(), a.indptr.numpy()), shape=a.shape)
    x = t["x"].detach().numpy()
    return Step(lambda: torch.from_numpy(matrix @ x))


Product = Callable[[torch.Tensor], torch.Tensor]


def csr_product(w: Workload) -> Product:
    matrix = torch_csr(w)
    return lambda x: matrix @ x


def int32_csr_product(w: Workload) -> Product:
    """Half the bytes for the indices."""
    matrix = torch_csr(w, torch.int32)
    return lambda x: matrix @ x


def coo_product(w: Workload) -> Product:
    matrix = torch_coo(w)
    return lambda x: torch.sparse.mm(matrix, x)


def dgl_folded_product(w: Workload) -> Product:
    """The weights folded into the nodes, which lets DGL take LibXSMM."""
    graph, ops, scale = dgl_graph(w), require("dgl.ops"), w.scale[:, None]
    return lambda x: ops.copy_u_sum(graph, x * scale) * scale


def dgl_weighted_product(w: Workload) -> Product:
    graph, ops, values = dgl_graph(w), require("dgl.ops"), w.values[:, None]
    return lambda x: ops.u_mul_e_sum(graph, x, values)


def pyg_edge_index_product(w: Workload) -> Product:
    pyg = require("torch_geometric")
    index = torch.stack([w.rows, w.cols])
    matrix = pyg.EdgeIndex(index, sparse_size=w.adjacency.shape, sort_order="row", is_undirected=True).fill_cache_()
    return lambda x: matrix.matmul(x, input_value=w.values)


def pyg_gather_scatter_product(w: Workload) -> Product:
    """LGConv over an edge_index; its weights are computed beforehand."""
    layer, index = require("torch_geometric.nn").LGConv(normalize=False), edge_index(w)
    return lambda x: layer(x, index, w.values)


def one_product(product: Callable[[Workload], Product]) -> Callable[[Workload, Tensors], Step]:
    """A contender of spmm."""

    def build(w: Workload, t: Tensors) -> Step:
        multiply = product(w)
        return Step(lambda: multiply(t["x"]), t)

    return build


def three_products(product: Callable[[Workload], Product]) -> Callable[[Workload, Tensors], Step]:
    """A contender of lightgcn_propagate: three layers and the mean over layers."""

    def build(w: Workload, t: Tensors) -> Step:
        multiply = product(w)

        def forward() -> torch.Tensor:
            total = layer = t["x"]
            for _ in range(3):
                layer = multiply(layer)
                total = total + layer
            return total / 4

        return Step(forward, t)

    return build


# Values on edges.


def torch_sddmm(w: Workload, t: Tensors) -> Step:
    return Step(lambda: (t["a"][w.rows] * t["b"][w.cols]).sum(dim=1) * w.values, t)


def dgl_sddmm(w: Workload, t: Tensors) -> Step:
    graph, ops, scale = dgl_graph(w), require("dgl.ops"), w.scale[:, None]
    return Step(lambda: ops.u_dot_v(graph, t["b"] * scale, t["a"] * scale)[:, 0], t)


def dgl_edge_softmax(w: Workload, t: Tensors) -> Step:
    graph, ops = dgl_graph(w), require("dgl.ops")
    return Step(lambda: ops.edge_softmax(graph, t["logits"]), t)


def pyg_softmax(w: Workload, t: Tensors) -> Step:
    utils = require("torch_geometric.utils")
    return Step(lambda: utils.softmax(t["logits"], index=w.rows, num_nodes=w.nodes), t)


# Segments.


def torch_segment_reduce(w: Workload, t: Tensors) -> Step:
    return Step(lambda: torch.segment_reduce(t["x"], "sum", offsets=w.adjacency.indptr, axis=0), t)


def torch_index_add(w: Workload, t: Tensors) -> Step:
    return Step(lambda: t["x"].new_zeros(w.nodes, w.dim).index_add(0, w.rows, t["x"]), t)


def pyg_segment(w: Workload, t: Tensors) -> Step:
    utils = require("torch_geometric.utils")
    return Step(lambda: utils.segment(t["x"], w.adjacency.indptr, reduce="sum"), t)


def pyg_scatter(w: Workload, t: Tensors) -> Step:
    utils = require("torch_geometric.utils")
    return Step(lambda: utils.scatter(t["x"], w.rows, dim_size=w.nodes, reduce="sum"), t)


def dgl_segment_reduce(w: Workload, t: Tensors) -> Step:
    ops, lengths = require("dgl.ops"), w.adjacency.indptr.diff()
    return Step(lambda: ops.segment_reduce(lengths, t["x"], reducer="sum"), t)


def torch_embedding_bag(w: Workload, t: Tensors) -> Step:
    starts = w.adjacency.indptr[:-1]
    return Step(lambda: F.embedding_bag(w.cols, t["x"], starts, mode="sum"), t)


def torch_gather_index_add(w: Workload, t: Tensors) -> Step:
    return Step(lambda: t["x"].new_zeros(w.nodes, w.dim).index_add(0, w.rows, t["x"][w.cols]), t)


def dgl_copy_u_sum(w: Workload, t: Tensors) -> Step:
    graph, ops = dgl_graph(w), require("dgl.ops")
    return Step(lambda: ops.copy_u_sum(graph, t["x"]), t)


def unsorted_index_add(w: Workload, t: Tensors) -> Step:
    return Step(lambda: t["src"].new_zeros(w.nodes, w.dim).index_add(0, w.shuffled, t["src"]), t)


def unsorted_scatter_add(w: Workload, t: Tensors) -> Step:
    index = w.shuffled[:, None].expand(-1, w.dim)
    return Step(lambda: t["src"].new_zeros(w.nodes, w.dim).scatter_add(0, index, t["src"]), t)


def unsorted_pyg_scatter(w: Workload, t: Tensors) -> Step:
    utils = require("torch_geometric.utils")
    return Step(lambda: utils.scatter(t["src"], w.shuffled, dim_size=w.nodes, reduce="sum"), t)


# Loss and scores.


def torch_bpr(w: Workload, t: Tensors) -> Step:
    triples = w.triples(w.bpr_batch)
    return Step(lambda: bpr(t["final"], t["ego"], triples, REG), t)


def lightgcn_step(product: Callable[[Workload], Product]) -> Callable[[Workload, Tensors], Step]:
    """The loss of a training step: three layers, their mean, BPR."""

    def build(w: Workload, t: Tensors) -> Step:
        propagate, triples = three_products(product)(w, t).forward, w.triples(w.step_batch)
        return Step(lambda: bpr(propagate(), t["x"], triples, REG), t)

    return build


def bpr(final: torch.Tensor, ego: torch.Tensor, triples: torch.Tensor, reg: float) -> torch.Tensor:
    """The loss as a user of torch writes it: mean softplus(s(u, n) - s(u, p)) + reg / 2 * squared norms."""
    user, positive, negative = F.embedding(triples, final)
    loss = F.softplus((user * (negative - positive)).sum(dim=1)).sum()
    if reg:
        loss = loss + reg / 2 * F.embedding(triples, ego).square().sum()
    return loss / triples.shape[1]


def torch_topk(w: Workload, t: Tensors) -> Step:
    """Blocks of users: product, mask by index, topk."""
    users, items, seen = t["users"], t["items"], w.seen
    owners = torch.repeat_interleave(torch.arange(len(users), device=w.device), seen.indptr.diff())
    borders = [*seen.indptr[::SCORE_BLOCK].tolist(), seen.nnz]

    def forward() -> torch.Tensor:
        result = torch.empty(len(users), K, dtype=torch.int64, device=w.device)
        # one buffer: fresh ones cost page faults
        scores = torch.empty(min(SCORE_BLOCK, len(users)), len(items), device=w.device)
        for start in range(0, len(users), SCORE_BLOCK):
            block = users[start : start + SCORE_BLOCK]
            out = torch.mm(block, items.T, out=scores[: len(block)])
            entries = slice(*borders[start // SCORE_BLOCK :][:2])
            out[owners[entries] - start, seen.indices[entries].long()] = -torch.inf
            result[start : start + SCORE_BLOCK] = out.topk(K).indices
        return result

    return Step(forward)


def torch_gemm(w: Workload, t: Tensors) -> Step:
    """All scores in blocks of users and nothing else; the last block's are the result."""
    users, items = t["users"], t["items"]
    scores = torch.empty(min(SCORE_BLOCK, len(users)), len(items), device=w.device)

    def forward() -> torch.Tensor:
        for block in users.split(SCORE_BLOCK):
            torch.mm(block, items.T, out=scores[: len(block)])
        return scores[: len(block)]

    return Step(forward)


def faiss_topk(w: Workload, t: Tensors) -> Step:
    """Exact search for as many more items as the users of a bucket have to mask, which are then taken out."""
    faiss = require("faiss")
    seen = w.graph.user_item()
    users, items = t["users"].numpy(), t["items"].numpy()
    degrees = seen.indptr.diff().numpy()
    owners = np.repeat(np.arange(len(users)), degrees)
    masked = owners * len(items) + seen.indices.numpy()  # sorted, as the columns of every row are
    borders = [-1, *(b for b in FAISS_BORDERS if b < degrees.max()), degrees.max()]
    buckets = [np.flatnonzero((degrees > low) & (degrees <= high)) for low, high in itertools.pairwise(borders)]
    faiss.omp_set_num_threads(w.threads)

    def forward() -> torch.Tensor:
        index = faiss.IndexFlatIP(items.shape[1])
        index.add(items)
        result = np.empty((len(users), K), np.int64)
        for bucket in buckets:
            if not len(bucket):
                continue
            wanted = min(K + int(degrees[bucket].max()), len(items))
            _, found = index.search(users[bucket], wanted)
            keys = bucket[:, None] * len(items) + found
            at = np.minimum(np.searchsorted(masked, keys), len(masked) - 1)
            first = np.argsort(masked[at] == keys, axis=1, kind="stable")[:, :K]
            result[bucket] = np.take_along_axis(found, first, axis=1)
        return torch.from_numpy(result)

    return Step(forward)
