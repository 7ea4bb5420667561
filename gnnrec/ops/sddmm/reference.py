"""Oracle, cases and bytes of sddmm."""

from __future__ import annotations

import torch

from gnnrec.graph.sparse import SparseMatrix
from gnnrec.ops._operator import DIMS, Case, case_matrices, entry_rows, entry_scales


def sddmm(matrix: SparseMatrix, a: torch.Tensor, b: torch.Tensor, *, op: str = "dot") -> torch.Tensor:
    """Both ends gathered."""
    left, right = a[entry_rows(matrix)], b[matrix.indices.long()]
    wide = left + right if op == "add" else left * right
    scaled = entry_scales(matrix, a.dtype)[:, None] * wide
    return scaled.sum(dim=1) if op == "dot" else scaled


def cases() -> list[Case]:
    """Every small graph and kind at one width; every width on one graph."""
    return [
        Case(
            f"{name}-{dim}-{op}",
            {"a": (matrix.shape[0], dim), "b": (matrix.shape[1], dim)},
            {"matrix": matrix, "op": op},
        )
        for name, matrix in case_matrices().items()
        for op in ("dot", "add", "mul")
        for dim in DIMS
        if (name == "user_item" and op == "dot") or dim == 33
    ]


def bytes_moved(case: Case, itemsize: int) -> int:
    """Pointers, columns and scales once, a row of a for every row, a row of b for every entry, the output once."""
    matrix: SparseMatrix = case.options["matrix"]
    dim = case.tensors["a"][1]
    scales = 4 * (matrix.row_scale is not None) * matrix.shape[0] + 4 * (matrix.col_scale is not None) * matrix.nnz
    out = 1 if case.options["op"] == "dot" else dim
    rows = (matrix.shape[0] + matrix.nnz) * dim + matrix.nnz * out
    return 8 * (matrix.shape[0] + 1) + 4 * matrix.nnz + scales + rows * itemsize
