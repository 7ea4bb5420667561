"""Oracle, cases and bytes of spmm."""

from __future__ import annotations

import torch

from gnnrec.graph.sparse import SparseMatrix
from gnnrec.ops._operator import DIMS, Case, case_matrices, dense


def spmm(matrix: SparseMatrix, x: torch.Tensor) -> torch.Tensor:
    """A dense matrix product."""
    return dense(matrix, x.dtype) @ x


def cases() -> list[Case]:
    """Every small graph at two widths, one of them at all: kernels are compiled for a width, not for a graph."""
    return [
        Case(f"{name}-{dim}", {"x": (matrix.shape[1], dim)}, {"matrix": matrix})
        for name, matrix in case_matrices().items()
        for dim in DIMS
        if name == "user_item" or dim in (33, 64)
    ]


def bytes_moved(case: Case, itemsize: int) -> int:
    """Pointers, columns and scales once, a row of x and a column scale for every entry, the output once."""
    matrix: SparseMatrix = case.options["matrix"]
    dim = case.tensors["x"][1]
    scales = 4 * (matrix.row_scale is not None) * matrix.shape[0] + 4 * (matrix.col_scale is not None) * matrix.nnz
    return 8 * (matrix.shape[0] + 1) + 4 * matrix.nnz + scales + (matrix.nnz + matrix.shape[0]) * dim * itemsize
