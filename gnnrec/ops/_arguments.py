"""Checks and conversions that public operator functions share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch

from gnnrec.graph.sparse import SparseMatrix

FLOATS = (torch.float32, torch.float64)


def check_matrix(operator: str, matrix: Any, *, symmetric: bool = False) -> None:
    """Raise a ValueError that says what was received unless `matrix` is a SparseMatrix of the wanted kind."""
    if not isinstance(matrix, SparseMatrix):
        raise ValueError(f"{operator}: the matrix must be a gnnrec.ops.SparseMatrix, got {type(matrix).__name__}")
    if symmetric and not matrix.symmetric:
        raise ValueError(f"{operator}: the matrix must be symmetric (graph.norm_adjacency() is), got {matrix}")


def check_dense(
    operator: str,
    name: str,
    x: Any,
    rows: int | None = None,
    cols: int | None = None,
    dtypes: Sequence[torch.dtype] = FLOATS,
) -> None:
    """Raise a ValueError that says what was received unless `x` is a float CPU matrix of the wanted shape."""
    if not isinstance(x, torch.Tensor):
        raise ValueError(f"{operator}: {name} must be a torch.Tensor, got {type(x).__name__}")
    if x.device.type != "cpu":
        raise ValueError(f"{operator}: {name} lies on {x.device}; kernels exist for cpu. Move it with .cpu()")
    if x.layout != torch.strided:
        raise ValueError(f"{operator}: {name} must be dense, got {x.layout}")
    if x.dtype not in dtypes:
        raise ValueError(f"{operator}: {name} must be {' or '.join(map(str, dtypes))}, got {x.dtype}")
    if x.dim() != 2 or x.shape[1] == 0 or (rows is not None and x.shape[0] != rows):
        wanted = f"[{'rows' if rows is None else rows}, {'dim >= 1' if cols is None else cols}]"
        raise ValueError(f"{operator}: {name} must have shape {wanted}, got {list(x.shape)}")
    if cols is not None and x.shape[1] != cols:
        raise ValueError(f"{operator}: {name} must have {cols} columns, got {list(x.shape)}")


def pack(matrix: SparseMatrix) -> list[torch.Tensor]:
    """The matrix as torch.library takes it: pointers, columns, scales (empty where there are none), chunks."""
    none = torch.empty(0)
    row_scale = none if matrix.row_scale is None else matrix.row_scale
    col_scale = none if matrix.col_scale is None else matrix.col_scale
    return [matrix.indptr, matrix.indices, row_scale, col_scale, matrix.chunks]


def array(x: torch.Tensor) -> npt.NDArray[Any]:
    """The tensor as a numpy array on the same memory, its last dimension contiguous."""
    x = x.detach()
    return (x if x.stride(-1) == 1 else x.contiguous()).numpy()


def scale_array(scale: torch.Tensor, dtype: torch.dtype) -> npt.NDArray[Any] | None:
    """A packed scale in the dtype of the computation, or None where it stands for no scale."""
    return array(scale.to(dtype)) if scale.numel() else None
