"""numba kernels of perturb: a row, its random numbers and their length are in registers from its load to its store.

Of a row of several panels the random numbers are made twice, first for their length.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from gnnrec.ops._numba import VERSION
from gnnrec.ops._parallel import consecutive, items, kernel
from gnnrec.ops._row_math import row_dot, row_fma, row_random, row_signed
from gnnrec.ops._vector import MAX_DIM, row_load, row_store, row_zero

NOISE = 0  # stream of random words
BLOCK = 1 << 14  # numbers that a thread takes at a time


def perturb(x: Any, eps: float, seed: int, out: Any, dtype: Any) -> None:
    """Fill out [rows, dim]; computed in dtype."""
    dim = x.shape[1]
    panels = [slice(first, first + MAX_DIM) for first in range(0, dim, MAX_DIM)]
    squares = None
    if len(panels) > 1:
        squares = np.zeros(len(x), dtype)
        for panel in panels:
            _compile_squares(x[:, panel].shape[1])(len(x), x[:, panel], np.int64(seed), np.int64(panel.start), squares)
    for panel in panels:
        part = x[:, panel]
        run = _compile(part.shape[1])
        run(
            -(-len(x) // _block(part.shape[1])),
            part,
            dtype(eps),
            np.int64(seed),
            np.int64(panel.start),
            squares,
            out[:, panel],
        )


def _block(dim: int) -> int:
    """Rows that a thread takes at a time."""
    return max(1, BLOCK // dim)


@cache
def _compile_squares(dim: int) -> Any:
    version = VERSION

    @kernel
    def run(team: Any, x: Any, seed: Any, first: Any, squares: Any) -> None:
        _ = version  # part of the cache key
        for i in consecutive(team):
            noise = row_random(row_zero(x, dim), seed, i, 0, NOISE, first)
            squares[i] += row_dot(noise, noise)

    return run


@cache
def _compile(dim: int) -> Any:
    version, block = VERSION, _block(dim)

    @kernel
    def run(team: Any, x: Any, eps: Any, seed: Any, first: Any, squares: Any, out: Any) -> None:
        _ = version
        for taken in items(team):
            for i in range(taken * block, min((taken + 1) * block, len(x))):
                row = row_load(x, i, dim)
                noise = row_random(row, seed, i, 0, NOISE, first)
                norm = np.sqrt(row_dot(noise, noise) if squares is None else squares[i])
                size = eps / norm if norm > 0 else norm
                row_store(out, i, row_fma(row_signed(noise, row), size, row), False)

    return run
