"""numba kernels of softmax_loss: what happens between two products, in one pass over a panel; rows of length 1."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from gnnrec.ops._numba import VERSION
from gnnrec.ops._parallel import consecutive, items, kernel
from gnnrec.ops._row_math import row_add, row_div, row_dot, row_exp, row_fma, row_max, row_splat, row_sub, row_sum
from gnnrec.ops._vector import can_stream, fence, row_load, row_store, row_zero

WIDTH = 64  # columns that are in registers at once
BLOCK = 256  # rows a thread takes at a time


def exponentials(panel: Any, shift: Any, largest: Any, sums: Any) -> None:
    """Replace x by exp(x - shift - the largest of its row), 0 in rows of -inf; the largest is 0 there.

    Args:
        panel: [rows, columns], a multiple of WIDTH columns; halves as `_arguments.array` gives them.
        shift: [columns], largest, sums: [rows], in the dtype of the computation.
    """
    tiles = panel.reshape(-1, WIDTH)
    _compile()(len(sums), tiles, shift.reshape(-1, WIDTH), largest, sums)


def unit(x: Any, shortest: float, out: Any, norms: Any) -> None:
    """Fill `out` with the rows of x divided by their length, and norms [rows] with these; infinite for shorter rows.

    Args:
        x, out: [rows, dim], at most MAX_DIM columns.
    """
    _compile_unit(x.shape[1], can_stream(out))(-(-len(x) // BLOCK), x, x.dtype.type(shortest), out, norms)


def through_unit(grad: Any, unit: Any, norms: Any) -> None:
    """Make grad, [rows, dim], the gradient of rows from that of the rows divided by their length; in place.

    Args:
        unit: the divided rows, at most MAX_DIM columns; norms: [rows], what they were divided by.
    """
    _compile_through_unit(grad.shape[1])(-(-len(grad) // BLOCK), grad, unit, norms)


@cache
def _compile_unit(dim: int, stream: bool) -> Any:
    version = VERSION

    @kernel
    def run(team: Any, x: Any, shortest: Any, out: Any, norms: Any) -> None:
        _ = version  # part of the cache key
        rows = len(norms)
        for block in consecutive(team):
            for i in range(block * BLOCK, min((block + 1) * BLOCK, rows)):
                row = row_load(x, i, dim)
                length = np.sqrt(row_dot(row, row))
                if length < shortest:
                    length = x.dtype.type(np.inf)
                norms[i] = length
                row_store(out, i, row_div(row, row_splat(length, row)), stream)
            fence()

    return run


@cache
def _compile_through_unit(dim: int) -> Any:
    version = VERSION

    @kernel
    def run(team: Any, grad: Any, unit: Any, norms: Any) -> None:
        _ = version
        rows = len(norms)
        for block in consecutive(team):
            for i in range(block * BLOCK, min((block + 1) * BLOCK, rows)):
                row, direction = row_load(grad, i, dim), row_load(unit, i, dim)
                row = row_fma(direction, -row_dot(row, direction), row)
                row_store(grad, i, row_div(row, row_splat(norms[i], row)), False)

    return run


@cache
def _compile() -> Any:
    version = VERSION

    @kernel
    def run(team: Any, tiles: Any, shift: Any, largest: Any, sums: Any) -> None:
        _ = version  # part of the cache key
        count = len(shift)
        best = np.empty((1, WIDTH), sums.dtype)
        for i in items(team):
            top = row_sub(row_load(tiles, i * count, WIDTH), row_load(shift, 0, WIDTH))
            for c in range(1, count):
                top = row_max(top, row_sub(row_load(tiles, i * count + c, WIDTH), row_load(shift, c, WIDTH)))
            row_store(best, 0, top, False)
            most = best[0, 0]
            for k in range(1, WIDTH):
                most = best[0, k] if best[0, k] > most or np.isnan(best[0, k]) else most
            if most == -np.inf:
                most = sums.dtype.type(0)
            largest[i] = most
            total = row_zero(shift, WIDTH)
            for c in range(count):
                x = row_sub(row_load(tiles, i * count + c, WIDTH), row_load(shift, c, WIDTH))
                x = row_exp(row_sub(x, row_splat(most, x)))
                row_store(tiles, i * count + c, x, False)
                total = row_add(total, x)
            sums[i] = row_sum(total)

    return run
