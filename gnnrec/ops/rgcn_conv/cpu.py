"""numba kernels of rgcn_conv, for the forward pass over a relation's matrix and the backward pass over its transpose.

Rows are aggregated block by block, and a block is multiplied while it lies in the caches.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from gnnrec.ops._matmul import BLOCK, CHUNKS, block_matmul
from gnnrec.ops._numba import VERSION
from gnnrec.ops._parallel import consecutive, items, kernel
from gnnrec.ops._row_math import row_add, row_scale
from gnnrec.ops._stacks import panels
from gnnrec.ops._vector import at, row_gather_sum, row_load, row_store, row_zero


def aggregate_matmul(matrix: tuple[Any, ...], x: Any, weight: Any, out: Any, accumulate: bool) -> None:
    """out = (out +) matrix @ x @ weight.

    Args:
        matrix: as `_stacks.scaled_arrays` gives it.
        x: [cols, dim].
        weight: [dim, n]; out: [rows, n]: of the dtype of the computation.
        accumulate: whether out holds numbers to add to.
    """
    for panel in panels(x):
        none = np.empty((0, *weight[panel].shape), weight.dtype)
        _run(matrix, x[:, panel], weight[panel], out, accumulate or panel.start > 0, out, none)


def aggregate_matmul_backward(
    matrix: tuple[Any, ...], grad: Any, weight: Any, x: Any, grad_x: Any, grad_weight: Any, accumulate: bool
) -> None:
    """grad_x = (grad_x +) matrix @ grad @ weight, and grad_weight = (matrix @ grad).T @ x.

    Args:
        matrix: the transpose of the forward pass's, [cols, rows].
        grad: [rows, n].
        weight, grad_weight: [n, dim]; x, grad_x: [cols, dim]: of the dtype of the computation.
    """
    parts = min(CHUNKS, len(matrix[4]) - 1)
    for panel in panels(grad):
        products = np.zeros((parts, *weight[panel].shape), weight.dtype)
        _run(matrix, grad[:, panel], weight[panel], grad_x, accumulate or panel.start > 0, x, products)
        products.sum(axis=0, out=grad_weight[panel])


def _run(matrix: tuple[Any, ...], x: Any, weight: Any, out: Any, accumulate: bool, other: Any, products: Any) -> None:
    """Call the kernels for some columns of x."""
    dim, chunks, pieces = x.shape[1], len(matrix[4]) - 1, matrix[5]
    partial = np.empty((len(pieces), dim), weight.dtype)
    if len(pieces):
        _compile_pieces(dim)(len(pieces), *matrix, x, partial)
    _compile(dim)(len(products) or chunks, *matrix, x, weight, partial, out, accumulate, other, products)


@cache
def _compile_pieces(dim: int) -> Any:
    version = VERSION

    @kernel
    def run(
        team: Any,
        indptr: Any,
        indices: Any,
        row_scales: Any,
        col_scales: Any,
        chunks: Any,
        pieces: Any,
        long: Any,
        entries: Any,
        x: Any,
        partial: Any,
    ) -> None:
        """The aggregates of long rows' pieces, without the rows' scales."""
        _ = version  # part of the cache key
        for r in consecutive(team):
            row_store(partial, r, row_gather_sum(x, indices, pieces[r, 1], pieces[r, 2], col_scales, dim), False)

    return run


@cache
def _compile(dim: int) -> Any:
    version = VERSION

    @kernel
    def run(
        team: Any,
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
        accumulate: Any,
        other: Any,
        products: Any,
    ) -> None:
        """out = (out +) aggregates @ weight, and products[part] += aggregates.T @ other over a part of the rows each,
        where products [parts, dim, n] are not empty."""
        _ = version
        count, parts = len(chunks) - 1, team.total
        for part in items(team):
            zero = row_zero(partial, dim)
            aggregates = np.empty((BLOCK, dim), partial.dtype)
            begin, end = chunks[part * count // parts], chunks[(part + 1) * count // parts]
            number = 0
            while number < len(long) and long[number, 0] < begin:
                number += 1
            for first in range(begin, end, BLOCK):
                stop = min(first + BLOCK, end)
                for i in range(first, stop):
                    if number < len(long) and long[number, 0] == i:
                        total = zero
                        for r in range(long[number, 1], long[number, 2]):
                            total = row_add(total, row_load(partial, r, zero))
                        number += 1
                    else:
                        total = row_gather_sum(x, indices, indptr[i], indptr[i + 1], col_scales, zero)
                    row_store(aggregates, i - first, row_scale(total, at(row_scales, i)), False)
                block = aggregates[: stop - first]
                block_matmul(block, weight, out[first:stop], accumulate)
                if len(products) > 0:
                    block_matmul(block.T, other[first:stop], products[part], True)

    return run
