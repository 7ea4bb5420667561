"""Oracle, cases and bytes of edge_conv."""

from __future__ import annotations

import torch

from gnnrec.graph.sparse import SparseMatrix
from gnnrec.ops._operator import Case, case_matrices, entry_rows, entry_scales

REDUCE = {"max": "amax", "mean": "mean"}  # scatter_reduce's names


def edge_conv(
    matrix: SparseMatrix,
    x: torch.Tensor,
    theta: torch.Tensor,
    phi: torch.Tensor,
    *,
    x_rows: torch.Tensor | None = None,
    reduce: str = "max",
) -> torch.Tensor:
    """A message for every entry, as the layer is defined."""
    rows, own = entry_rows(matrix), x if x_rows is None else x_rows
    neighbours = entry_scales(matrix, x.dtype)[:, None] * x[matrix.indices.long()]
    messages = (neighbours - own[rows]) @ theta.T + own[rows] @ phi.T
    zero = x.new_zeros(matrix.shape[0], len(theta))
    return zero.scatter_reduce(0, rows[:, None].expand(messages.shape), messages, REDUCE[reduce], include_self=False)


def cases() -> list[Case]:
    """Small graphs and widths with both reductions."""
    shapes = [("square", 33, 64), ("user_item", 64, 33), ("unscaled", 300, 300)]
    shapes += [("no_edges", 33, 33), ("no_rows", 33, 33), ("trailing", 3, 3)]
    return [_case(*shape, reduce) for shape in shapes for reduce in REDUCE]


def _case(name: str, into: int, out: int, reduce: str) -> Case:
    matrix = case_matrices()[name]
    rows, cols = matrix.shape
    tensors: dict[str, tuple[int, ...]] = {"x": (cols, into), "theta": (out, into), "phi": (out, into)}
    if rows != cols:
        tensors["x_rows"] = rows, into
    return Case(f"{name}-{into}-{out}-{reduce}", tensors, {"matrix": matrix, "reduce": reduce})


def bytes_moved(case: Case, itemsize: int) -> int:
    """Both products on nodes, written and read again, a product's row for every entry, pointers, columns and scales."""
    matrix: SparseMatrix = case.options["matrix"]
    (rows, cols), (out, into) = matrix.shape, case.tensors["theta"]
    scales = 4 * (matrix.row_scale is not None) * rows + 4 * (matrix.col_scale is not None) * matrix.nnz
    products = (rows + cols) * (into + out) + 2 * out * into
    numbers = products + (matrix.nnz + 2 * rows) * out
    return 8 * (rows + 1) + 4 * matrix.nnz + scales + numbers * itemsize
