"""Oracle, cases and bytes of rgcn_conv."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gnnrec.graph.sparse import SparseMatrix
from gnnrec.ops._operator import Case, case_matrices, dense


def rgcn_conv(
    matrices: Sequence[SparseMatrix],
    x: torch.Tensor,
    weights: torch.Tensor,
    root: torch.Tensor | None = None,
    *,
    x_rows: torch.Tensor | None = None,
    reduce: str = "mean",
) -> torch.Tensor:
    """Dense matrices, relation after relation."""
    y = x.new_zeros(matrices[0].shape[0], weights.shape[1])
    if root is not None:
        y = y + (x if x_rows is None else x_rows) @ root.T
    for matrix, weight in zip(matrices, weights):
        adjacency = dense(matrix, x.dtype)
        if reduce == "mean":
            adjacency = adjacency / matrix.indptr.diff().clamp(min=1)[:, None]
        y = y + adjacency @ x @ weight.T
    return y


def cases() -> list[Case]:
    """Two and three relations, with and without the rows' own features, of any width."""
    matrices = case_matrices()
    square = matrices["square"]
    plain = SparseMatrix(square.indptr, square.indices, square.shape)
    return [
        _case("square", [square, plain, square.T], 33, 64, reduce="sum"),
        _case("square", [plain, square], 64, 33),
        _case("user_item", [matrices["user_item"]] * 2, 64, 64, root=False),
        _case("unscaled", [matrices["unscaled"]], 300, 300, reduce="sum"),
        _case("no_edges", [matrices["no_edges"]] * 2, 33, 3),
        _case("no_rows", [matrices["no_rows"]], 33, 3),
        _case("trailing", [matrices["trailing"]] * 2, 3, 3),
    ]


def _case(name: str, matrices: list[SparseMatrix], dim: int, out: int, root: bool = True, reduce: str = "mean") -> Case:
    rows, cols = matrices[0].shape
    tensors: dict[str, tuple[int, ...]] = {"x": (cols, dim), "weights": (len(matrices), out, dim)}
    if root:
        tensors["root"] = out, dim
        if rows != cols:
            tensors["x_rows"] = rows, dim
    return Case(f"{name}-{dim}-{out}-{reduce}", tensors, {"matrices": matrices, "reduce": reduce})


def bytes_moved(case: Case, itemsize: int) -> int:
    """For each relation its pointers, columns and scales, a row of x for every entry, its weight, and the output, read
    again after the first; the rows' own features and their product, written and read."""
    matrices: list[SparseMatrix] = case.options["matrices"]
    rows, (relations, out, dim) = matrices[0].shape[0], case.tensors["weights"]
    scales = sum(
        4 * (matrix.row_scale is not None) * rows + 4 * (matrix.col_scale is not None) * matrix.nnz
        for matrix in matrices
    )
    pattern = sum(8 * (rows + 1) + 4 * matrix.nnz for matrix in matrices)
    gathered = sum(matrix.nnz for matrix in matrices) * dim
    own = rows * dim + out * dim + 2 * rows * out if "root" in case.tensors else 0
    return pattern + scales + (gathered + relations * out * dim + (2 * relations - 1) * rows * out + own) * itemsize
