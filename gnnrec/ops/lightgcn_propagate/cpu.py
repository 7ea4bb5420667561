"""lightgcn_propagate by Horner's rule, so that a layer is one gather and one write: an spmm with an epilogue.

    w0 x + w1 A x + w2 A^2 x + w3 A^3 x  =  w0 x + A (w1 x + A (w2 x + A (w3 x)))

Adding every layer into a result instead would read and write that once more a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gnnrec.ops.spmm.cpu import bits, spmm


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
    held: tuple[Any, Any] | None = None,
) -> None:
    """The same by a matrix that comes in blocks of rows, anew for every layer.

    Args:
        held: of x, where it is 0 in others than these rows and has no more: their numbers int64 [n], different ones,
            and for every node its place among them, -1 for one without, int32 [nodes].
    """
    layers = len(weights) - 1
    source, weight = x, weights[-1]
    first = {} if held is None else {"x_rows": held[1], "x_bits": bits(held[1] >= 0)}
    for layer in range(1, layers + 1):
        target, own = work if (layers - layer) % 2 else out, weights[layers - layer]
        for rows, matrix in blocks():
            if held is None:
                spmm(matrix, source, target[rows], dtype, scale=weight, base=x[rows], base_scale=own)
                continue
            numbers, places = held
            if layer == 1 and matrix[3] is not None:
                matrix = (*matrix[:3], matrix[3][numbers], *matrix[4:])
            added = {"base": x, "base_scale": own, "base_rows": places[rows]}
            spmm(matrix, source, target[rows], dtype, scale=weight, **added, **(first if layer == 1 else {}))
        source, weight = target, 1.0


def propagate_to(
    matrix: tuple[Any, ...], source: Any, x: Any, scales: tuple[float, float], places: Any, out: Any, dtype: Any
) -> None:
    """The last layer over some rows: out = scales[0] A source + scales[1] x, of the rows whose place in it is not -1.

    Args:
        places: int32 [nodes].
    """
    spmm(matrix, source, out, dtype, scale=scales[0], base=x, base_scale=scales[1], out_rows=places)


def propagate_from(
    matrix: tuple[Any, ...], x: Any, rows: Any, weights: Sequence[float], places: Any, work: Any, out: Any, dtype: Any
) -> None:
    """`propagate`, for at least one layer, of a matrix that has x in its rows int64 [n], different ones, and 0 in
    others; `places` as for `propagate_to`."""
    propagate_blocks(lambda: [(slice(None), matrix)], x, weights, work, out, dtype, (rows, places))
