"""spmm: sparse matrix times dense matrix."""

from __future__ import annotations

from typing import Any

import torch

from gnnrec.graph.sparse import SparseMatrix
from gnnrec.ops import _arguments
from gnnrec.ops._operator import Operator
from gnnrec.ops.spmm import cpu, reference

__all__ = ["OP", "spmm"]


def spmm(matrix: SparseMatrix, x: torch.Tensor) -> torch.Tensor:
    """Sum over neighbours: y[i] = row_scale[i] * sum_j col_scale[j] * x[j] over the entries (i, j) of the matrix.

    Differentiable with respect to `x` to any order: the backward pass is spmm with the transpose. The result is
    bit-equal for any number of threads. Inside torch.compile the transpose cannot be built: touch `matrix.T` before; a
    graph's matrices have theirs.

    Args:
        matrix: SparseMatrix [rows, cols].
        x: float32 or float64 [cols, dim], any strides.

    Returns:
        [rows, dim], of x's dtype; rows without entries are 0.

    Raises:
        ValueError: another type, dtype, device or shape, with what was received.

    Source: Zhang et al. 2022, section 4 (one mapping from rows to threads, lanes over features).
    """
    _arguments.check_matrix("spmm", matrix)
    _arguments.check_dense("spmm", "x", x, rows=matrix.shape[1])
    # Only a backward pass needs the transpose, and the first use builds it.
    transposed = _arguments.pack(matrix.T) if x.requires_grad and torch.is_grad_enabled() else []
    result: torch.Tensor = _spmm(_arguments.pack(matrix), transposed, x)
    return result


@torch.library.custom_op("gnnrec::spmm", mutates_args=())
def _spmm(matrix: list[torch.Tensor], transposed: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    indptr, indices, row_scale, col_scale, chunks = matrix
    out = x.new_empty((indptr.numel() - 1, x.shape[1]))
    cpu.spmm(
        _arguments.array(indptr),
        _arguments.array(indices),
        _arguments.scale_array(row_scale, x.dtype),
        _arguments.scale_array(col_scale, x.dtype),
        _arguments.array(chunks),
        _arguments.array(x),
        out.numpy(),
    )
    return out


@_spmm.register_fake
def _(matrix: list[torch.Tensor], transposed: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return x.new_empty((matrix[0].numel() - 1, x.shape[1]))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.matrix, ctx.transposed, _ = inputs


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    none = [[None] * len(ctx.matrix), [None] * len(ctx.transposed)]
    return *none, _spmm(ctx.transposed, ctx.matrix, grad)


_spmm.register_autograd(_backward, setup_context=_setup_context)

OP = Operator("spmm", spmm, reference.spmm, reference.cases, reference.bytes_moved)
