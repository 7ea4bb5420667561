"""numba kernel of rgcn_conv: rows are aggregated block by block, and a block is multiplied while it lies in the caches."""

from __future__ import annotations

from functools import cache
from typing import Any

import numba
import numpy as np

from gnnrec.graph.schedule import LONG
from gnnrec.ops._matmul import BLOCK, CHUNKS, block_matmul
from gnnrec.ops._numba import VERSION, inline, kernel
from gnnrec.ops._row_math import row_add, row_scale
from gnnrec.ops._vector import MAX_DIM, at, row_gather_sum, row_load, row_store, row_zero


def aggregate_matmul(
    matrix: tuple[Any, ...], x: Any, weight: Any, out: Any, *, base: Any = None, accumulate: bool = False
) -> None:
    """out = base + matrix @ x @ weight, or out += where `accumulate`.

    Args:
        matrix: as `_arguments.matrix_arrays` gives it.
        x: [cols, dim].
        weight: [dim, n], of the dtype of the computation.
        out: [rows, n], of weight's dtype.
        base: [rows, n], of weight's dtype, or None.
    """
    for panel in _panels(x):
        _run(matrix, x[:, panel], weight[panel], out, base, accumulate, None, None)
        base, accumulate = None, True


def aggregate_matmul_backward(
    matrix: tuple[Any, ...], grad: Any, weight: Any, x: Any, grad_x: Any, grad_weight: Any, *, accumulate: bool
) -> None:
    """grad_x = matrix @ grad @ weight, or grad_x += where `accumulate`; grad_weight = (matrix @ grad).T @ x.

    Args:
        matrix: the transpose of the forward pass's, [cols, rows].
        grad: [rows, n].
        weight: [n, dim], of the dtype of the computation, as all that follow.
        x, grad_x: [cols, dim].
        grad_weight: [n, dim].
    """
    parts = min(CHUNKS, len(matrix[4]) - 1)
    for panel in _panels(grad):
        products = np.zeros((parts, *weight[panel].shape), weight.dtype)
        _run(matrix, grad[:, panel], weight[panel], grad_x, None, accumulate, x, products)
        products.sum(axis=0, out=grad_weight[panel])
        accumulate = True


def _panels(x: Any) -> list[slice]:
    return [slice(start, start + MAX_DIM) for start in range(0, x.shape[1], MAX_DIM)]


def _run(matrix: tuple[Any, ...], x: Any, weight: Any, out: Any, *rest: Any) -> None:
    partial = np.empty((len(matrix[5]), x.shape[1]), weight.dtype)
    _compile(x.shape[1])(*matrix, x, weight, partial, out, *rest)


@inline
def _row(
    indptr: Any, indices: Any, row_scales: Any, col_scales: Any, long: Any, x: Any, partial: Any, i: Any, zero: Any
) -> Any:
    """Row i of matrix @ x."""
    start, stop = indptr[i], indptr[i + 1]
    if stop - start > LONG:
        number = np.searchsorted(long[:, 0], i)
        row = row_load(partial, long[number, 1], zero)
        for r in range(long[number, 1] + 1, long[number, 2]):
            row = row_add(row, row_load(partial, r, zero))
    else:
        row = row_gather_sum(x, indices, start, stop, col_scales, zero)
    return row if row_scales is None else row_scale(row, at(row_scales, i))


@cache
def _compile(dim: int) -> Any:
    version = VERSION

    @kernel
    def run(
        indptr: Any,
        indices: Any,
        row_scales: Any,
        col_scales: Any,
        chunks: Any,
        pieces: Any,
        long: Any,
        entries: Any,
        x: Any,
        weight: Any,
        partial: Any,
        out: Any,
        base: Any,
        accumulate: Any,
        other: Any,
        products: Any,
    ) -> None:
        """Where there is an `other`, products [parts, dim, n] receives its products with the aggregate as well."""
        _ = version  # part of the cache key
        for r in numba.prange(len(pieces)):
            row_store(partial, r, row_gather_sum(x, indices, pieces[r, 1], pieces[r, 2], col_scales, dim), False)
        count = len(chunks) - 1
        parts = count if products is None else len(products)
        for part in numba.prange(parts):
            zero = row_zero(partial, dim)
            aggregate = np.empty((BLOCK, dim), partial.dtype)
            end = chunks[(part + 1) * count // parts]
            for first in range(chunks[part * count // parts], end, BLOCK):
                stop = min(first + BLOCK, end)
                for i in range(first, stop):
                    row = _row(indptr, indices, row_scales, col_scales, long, x, partial, i, zero)
                    row_store(aggregate, i - first, row, False)
                block = aggregate[: stop - first]
                if base is not None:
                    out[first:stop] = base[first:stop]
                block_matmul(block, weight, out[first:stop], accumulate or base is not None)
                if other is not None:
                    block_matmul(block.T, other[first:stop], products[part], True)

    return run
