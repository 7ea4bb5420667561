"""segment_reduce, gather_segment_reduce, index_scatter: reductions over groups of rows, the tensor-centric base.

All three are spmm over a pattern that is made of the given numbers. Where the same numbers come again and again, make
the SparseMatrix once and call `spmm`.
"""

from __future__ import annotations

import numpy as np
import torch

from gnnrec.graph import _build
from gnnrec.graph.sparse import SparseMatrix
from gnnrec.ops import _arguments, autotune
from gnnrec.ops._operator import Operator
from gnnrec.ops.segment import reference
from gnnrec.ops.spmm import check_reduce, spmm

__all__ = ["OPS", "gather_segment_reduce", "index_scatter", "segment_reduce"]


def segment_reduce(x: torch.Tensor, indptr: torch.Tensor, *, reduce: str = "sum") -> torch.Tensor:
    """Reduce consecutive rows: y[i] = reduce of x[indptr[i]:indptr[i + 1]].

    Differentiable as `spmm` is, and bit-equal for any number of threads. Not for use inside torch.compile, as are the
    other two: which work there is to do depends on the numbers.

    Args:
        x: float32, float64, bfloat16 or float16 [n, dim].
        indptr: int64 [segments + 1], from 0 to n, not falling.
        reduce: sum, mean, max or min; empty segments are 0.

    Returns:
        [segments, dim], of x's dtype.

    Raises:
        ValueError: another dtype, device or shape, pointers that fall or do not end at n.
    """
    _arguments.check_dense("segment_reduce", "x", x)
    check_reduce("segment_reduce", reduce)
    pointers = torch.from_numpy(np.array(_build.numbers("indptr", indptr), np.int64))
    if len(pointers) == 0 or pointers[0] != 0 or pointers[-1] != len(x) or bool((pointers.diff() < 0).any()):
        raise ValueError(f"segment_reduce: indptr must rise from 0 to {len(x)}, got {pointers}")
    rows, counts = len(pointers) - 1, pointers.diff()
    if reduce in ("max", "min"):
        matrix = SparseMatrix(pointers, torch.arange(len(x), dtype=torch.int32), (rows, len(x)))
        if x.requires_grad:
            _link(matrix, torch.repeat_interleave(counts).int())
        return spmm(matrix, x, reduce=reduce)
    # The rows are the values of a matrix that multiplies ones, whose columns nobody looks at.
    scale = 1 / counts.clamp(min=1).double() if reduce == "mean" else None
    matrix = SparseMatrix(pointers, torch.empty(len(x), dtype=torch.int32), (rows, 1), scale)
    graph = _arguments.pack(autotune.apply(matrix, x.shape[1], x.dtype))
    result: torch.Tensor = torch.ops.gnnrec.spmm(graph, [], None, x, "sum", 1.0, None, 0.0, matrix.prefetch)
    return result


def gather_segment_reduce(
    x: torch.Tensor, indices: torch.Tensor, indptr: torch.Tensor, *, reduce: str = "sum"
) -> torch.Tensor:
    """Gather and reduce: y[i] = reduce of x[indices[indptr[i]:indptr[i + 1]]], without the gathered rows.

    Args:
        x: float32, float64, bfloat16 or float16 [rows, dim].
        indices: integers [n] within the rows, in any order, also repeatedly.
        indptr: int64 [segments + 1], from 0 to n, not falling.
        reduce: sum, mean, max or min; empty segments are 0.

    Returns:
        [segments, dim], of x's dtype.

    Raises:
        ValueError: another dtype, device or shape, pointers that fall or do not end at n, numbers outside the rows.
    """
    _arguments.check_dense("gather_segment_reduce", "x", x)
    matrix = SparseMatrix.from_csr(indptr, indices, shape=(len(indptr) - 1, len(x)))
    return spmm(autotune.apply(matrix, x.shape[1], x.dtype), x, reduce=reduce)


def index_scatter(src: torch.Tensor, index: torch.Tensor, size: int, *, reduce: str = "sum") -> torch.Tensor:
    """Scatter and reduce: y[i] = reduce of the rows src[k] with index[k] = i, in the order of k.

    Args:
        src: float32, float64, bfloat16 or float16 [n, dim].
        index: integers [n] within 0 and size - 1, sorted or not; sorted ones save the counting sort.
        size: rows of the result.
        reduce: sum, mean, max or min; rows that no index names are 0.

    Returns:
        [size, dim], of src's dtype.

    Raises:
        ValueError: another dtype, device or shape, numbers outside the size.
    """
    _arguments.check_dense("index_scatter", "src", src)
    numbers = _build.numbers("index", index, size)
    if len(numbers) != len(src):
        raise ValueError(f"index_scatter: index must have {len(src)} numbers, got {len(numbers)}")
    indptr, places = _build.group_by(numbers, np.arange(len(numbers), dtype=np.int32), size)
    matrix = SparseMatrix(torch.from_numpy(indptr), torch.from_numpy(places), (size, len(src)))
    if src.requires_grad:
        _link(matrix, torch.from_numpy(numbers.astype(np.int32)))
    return spmm(autotune.apply(matrix, src.shape[1], src.dtype), src, reduce=reduce)


def _link(matrix: SparseMatrix, row_of: torch.Tensor) -> None:
    """The transpose of a matrix with one entry a column is known: that entry's row."""
    rows, cols = matrix.shape
    back = SparseMatrix(torch.arange(cols + 1), row_of, (cols, rows))
    matrix.__dict__["T"], back.__dict__["T"] = back, matrix


OPS = tuple(
    Operator(
        function.__name__,
        function,
        oracle,
        cases,
        reference.bytes_moved,
        twice_differentiable=lambda case: case.options.get("reduce", "sum") in ("sum", "mean"),
    )
    for function, oracle, cases in (
        (segment_reduce, reference.segment_reduce, reference.segment_cases),
        (gather_segment_reduce, reference.gather_segment_reduce, reference.gather_cases),
        (index_scatter, reference.index_scatter, reference.scatter_cases),
    )
)
