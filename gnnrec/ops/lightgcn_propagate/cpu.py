"""lightgcn_propagate by Horner's rule, so that a layer is one gather and one write: an spmm with an epilogue.

    w0 x + w1 A x + w2 A^2 x + w3 A^3 x  =  w0 x + A (w1 x + A (w2 x + A (w3 x)))

Adding every layer into a result instead would read and write that once more a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gnnrec.ops.spmm.cpu import spmm


def propagate(matrix: tuple[Any, ...], x: Any, weights: Sequence[float], work: Any, out: Any, dtype: Any) -> None:
    """out = sum_l weights[l] A^l x for at least one layer; `work` is a buffer like x, unused for one layer."""
    propagate_blocks(lambda: [(slice(None), matrix)], x, weights, work, out, dtype)


def propagate_blocks(
    blocks: Callable[[], Iterable[tuple[slice, tuple[Any, ...]]]],
    x: Any,
    weights: Sequence[float],
    work: Any,
    out: Any,
    dtype: Any,
) -> None:
    """The same by a matrix that comes in blocks of rows, anew for every layer."""
    layers = len(weights) - 1
    source, weight = x, weights[-1]
    for layer in range(1, layers + 1):
        target = work if (layers - layer) % 2 else out
        for rows, matrix in blocks():
            own = weights[layers - layer]
            spmm(matrix, source, target[rows], dtype, scale=weight, base=x[rows], base_scale=own)
        source, weight = target, 1.0
