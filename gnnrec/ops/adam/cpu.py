"""numba kernels of adam_step: all tensors' parts of a row are in registers from their loads to their stores."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from math import inf, sqrt
from typing import Any

import numpy as np

from gnnrec.ops._numba import VERSION
from gnnrec.ops._parallel import consecutive, items, kernel
from gnnrec.ops._row_math import (
    row_div,
    row_dot,
    row_fma,
    row_mul,
    row_round,
    row_scale,
    row_splat,
    row_sqrt,
    row_words,
)
from gnnrec.ops._vector import MAX_DIM, row_load, row_prefetch, row_store

MOMENTS, PARAMETER = 0, 1  # streams of random words; the low half of a word is the mean's, the high half the square's
BLOCK = 1 << 14  # numbers of a tensor that a thread takes at a time
AHEAD = 1 << 9  # numbers of each tensor that are asked for before they are needed: a tenth of the time


def step(arrays: tuple[Any, ...], count: int, numbers: list[float], seed: int) -> None:
    """The step numbered count in place.

    Args:
        arrays: parameter, gradient, mean, square, and None or what becomes a copy of the parameter, all [rows, dim].
        numbers: lr, both betas, eps, decay in the gradient, decay of the parameter beside it, the greatest norm of a
            row.
    """
    lr, first, second, eps, decay, shrinking, clip = numbers
    kept = 1 - lr * shrinking
    parameter, gradient, *_ = arrays
    work = np.float64 if parameter.dtype == np.float64 else np.float32
    size, root = lr / (1 - first**count), 1 / sqrt(1 - second**count)
    scalars = tuple(map(work, (decay, kept, first, 1 - first, second, 1 - second, size, root, eps, clip)))
    squares = _squares(gradient, work) if clip < inf and gradient.shape[1] > MAX_DIM else None
    for views, *place in _panels(*arrays):
        rows, dim = views[0].shape
        _compile(dim)(-(-rows // _block(dim)), *views, squares, scalars, np.int64(count), np.int64(seed), *place)


def _panels(*arrays: Any) -> Iterator[tuple[list[Any], int, int, int]]:
    """Views of arrays of one shape that are no wider than MAX_DIM, each with three numbers: row i of the view is a part
    of row i * rows, from column first + i * columns on. A single row becomes rows that threads can share."""
    rows, dim = arrays[0].shape
    start = 0
    if rows == 1 and dim > MAX_DIM:
        start = dim - dim % MAX_DIM
        yield [None if x is None else x[0, :start].reshape(-1, MAX_DIM) for x in arrays], 0, 0, MAX_DIM
    for first in range(start, dim, MAX_DIM):
        yield [None if x is None else x[:, first : first + MAX_DIM] for x in arrays], 1, first, 0


def _squares(gradient: Any, work: Any) -> Any:
    """The sum of squares of every row, [rows]."""
    total = np.zeros(len(gradient), work)
    for (panel,), rows, *_ in _panels(gradient):
        sums = np.zeros(len(panel), work)
        _compile_squares(panel.shape[1])(len(panel), panel, sums)
        total += sums if rows else sums.sum()
    return total


def _block(dim: int) -> int:
    """Rows that a thread takes at a time."""
    return max(1, BLOCK // dim)


@cache
def _compile_squares(dim: int) -> Any:
    version = VERSION

    @kernel
    def run(team: Any, gradient: Any, sums: Any) -> None:
        _ = version  # part of the cache key
        for i in consecutive(team):
            row = row_load(gradient, i, dim)
            sums[i] = row_dot(row, row)

    return run


@cache
def _compile(dim: int) -> Any:
    version, block, distance = VERSION, _block(dim), max(1, AHEAD // dim)

    @kernel
    def run(
        team: Any,
        parameter: Any,
        gradient: Any,
        mean: Any,
        square: Any,
        copied: Any,
        squares: Any,
        scalars: Any,
        count: Any,
        seed: Any,
        rows: Any,
        first: Any,
        columns: Any,
    ) -> None:
        _ = version
        decay, kept, beta1, rest1, beta2, rest2, size, root, eps, clip = scalars
        last = len(parameter) - 1
        for taken in items(team):
            for i in range(taken * block, min((taken + 1) * block, last + 1)):
                ahead = min(i + distance, last)
                row_prefetch(parameter, ahead, dim)
                row_prefetch(gradient, ahead, dim)
                row_prefetch(mean, ahead, dim)
                row_prefetch(square, ahead, dim)
                name, column = i * rows, first + i * columns
                g = row_load(gradient, i, dim)
                if clip < inf:
                    norm = np.sqrt(row_dot(g, g) if squares is None else squares[name])
                    if norm > clip:
                        g = row_scale(g, clip / norm)
                w = row_load(parameter, i, dim)
                g = row_fma(w, decay, g)
                m = row_fma(row_load(mean, i, dim), beta1, row_scale(g, rest1))
                v = row_fma(row_load(square, i, dim), beta2, row_scale(row_mul(g, g), rest2))
                below = row_fma(row_sqrt(v), root, row_splat(eps, v))
                w = row_fma(row_div(m, below), -size, row_scale(w, kept))
                words = row_words(m, mean, seed, name, count, MOMENTS, column)
                row_store(mean, i, row_round(m, words, 0, mean), False)
                row_store(square, i, row_round(v, words, 16, square), False)
                words = row_words(w, parameter, seed, name, count, PARAMETER, column)
                row_store(parameter, i, row_round(w, words, 0, parameter), False)
                if copied is not None:
                    row_store(copied, i, w, False)

    return run
