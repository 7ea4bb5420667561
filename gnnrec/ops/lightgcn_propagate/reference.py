"""Oracle, cases and bytes of lightgcn_propagate."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gnnrec.graph.bipartite import BipartiteGraph
from gnnrec.graph.sparse import SparseMatrix
from gnnrec.ops._operator import DIMS, Case, dense


def propagate(
    matrix: SparseMatrix,
    x: torch.Tensor,
    *,
    num_layers: int = 3,
    layer_weights: Sequence[float] | None = None,
    rows: torch.Tensor | None = None,
) -> torch.Tensor:
    """Layer after layer with a dense matrix."""
    weights = [1 / (num_layers + 1)] * (num_layers + 1) if layer_weights is None else list(layer_weights)
    adjacency = dense(matrix, x.dtype)
    layer, out = x, weights[0] * x
    for weight in weights[1:]:
        layer = adjacency @ layer
        out = out + weight * layer
    return out if rows is None else out[rows]


def cases() -> list[Case]:
    """A graph with users and items that have no edge, at every odd width, several depths and given weights."""
    generator = torch.Generator().manual_seed(0)
    users = torch.randint(25, (90,), generator=generator)
    items = torch.randint(17, (90,), generator=generator) ** 2 // 17
    matrix = BipartiteGraph.from_edges(users.numpy(), items.numpy(), 30, 21).norm_adjacency()
    depths = [{"num_layers": layers} for layers in (0, 1, 2, 4)] + [
        {"num_layers": 2, "layer_weights": (0.0, 0.7, -1.5)}
    ]
    options = [({"num_layers": 3}, dim) for dim in DIMS] + [(depth, 64) for depth in depths]
    result = [
        Case("-".join([f"{dim}", *map(str, chosen.values())]), {"x": (51, dim)}, {"matrix": matrix, **chosen})
        for chosen, dim in options
    ]
    some = {"matrix": matrix, "rows": torch.tensor([7, 50, 7, 0, 33])}
    result += [Case(f"64-{layers}-rows", {"x": (51, 64)}, {**some, "num_layers": layers}) for layers in (0, 1, 3)]
    none = {**some, "rows": torch.empty(0, dtype=torch.int64), "num_layers": 2}
    return [*result, Case("64-2-no_rows", {"x": (51, 64)}, none)]


def bytes_moved(case: Case, itemsize: int) -> int:
    """A layer is an spmm that also reads x."""
    matrix: SparseMatrix = case.options["matrix"]
    (nodes, dim), layers = case.tensors["x"], int(case.options["num_layers"])
    if layers == 0:
        return 2 * nodes * dim * itemsize
    gather = 8 * (nodes + 1) + 8 * matrix.nnz + 4 * nodes + matrix.nnz * dim * itemsize
    return layers * (gather + 2 * nodes * dim * itemsize)
