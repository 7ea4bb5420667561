"""numba kernels of edge_softmax: a thread takes a chunk of rows or a piece of a long row, heads are lanes of a Row."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from gnnrec.graph.schedule import LONG
from gnnrec.ops._numba import VERSION, inline_always
from gnnrec.ops._parallel import consecutive, items, kernel
from gnnrec.ops._row_math import (
    row_add,
    row_div,
    row_exp,
    row_mul,
    row_mul_add,
    row_splat,
    row_sub,
    row_where_positive,
)
from gnnrec.ops._vector import MAX_DIM, row_load, row_store, row_zero

BATCH = 64  # entries whose exponentials are computed together, a multiple of LANES
LANES = 16


def softmax(pattern: tuple[Any, ...], logits: Any, out: Any, dtype: Any) -> None:
    """Fill out [nnz, heads].

    Args:
        pattern: row pointers, chunks, pieces and long rows.
        logits: [nnz, heads].
        dtype: numpy's, of the computation.
    """
    indptr, chunks, pieces, long = pattern
    for start in range(0, logits.shape[1], MAX_DIM):
        x, p = logits[:, start : start + MAX_DIM], out[:, start : start + MAX_DIM]
        partial = np.empty((len(pieces), 2, x.shape[1]), dtype)
        _compile_softmax(x.shape[1])(len(chunks) - 1, indptr, chunks, x, p, partial)
        if len(pieces):
            sum_up, join, write = _compile_long_softmax(x.shape[1])
            sum_up(len(pieces), pieces, x, partial)
            join(len(long), long, partial, np.finfo(dtype).min)
            write(len(pieces), pieces, x, p, partial)


def backward(pattern: tuple[Any, ...], p: Any, grad: Any, out: Any, dtype: Any) -> None:
    """out = p * (grad - sum over the row of p * grad), all [nnz, heads]; the others as for `softmax`."""
    indptr, chunks, pieces, long = pattern
    for start in range(0, p.shape[1], MAX_DIM):
        arrays = [x[:, start : start + MAX_DIM] for x in (p, grad, out)]
        partial = np.empty((len(pieces), arrays[0].shape[1]), dtype)
        _compile_backward(arrays[0].shape[1])(len(chunks) - 1, indptr, chunks, *arrays, partial)
        if len(pieces):
            sum_up, write = _compile_long_backward(arrays[0].shape[1])
            sum_up(len(pieces), pieces, *arrays[:2], partial)
            for _, first, end in long:
                for r in range(first + 1, end):
                    partial[first] += partial[r]
                partial[first + 1 : end] = partial[first]
            write(len(pieces), pieces, *arrays, partial)


@inline_always
def _exponentials(start: Any, stop: Any, top: Any, logits: Any, batch: Any) -> None:
    """Fill batch with exp(logit - top)."""
    for e in range(start, stop):
        row_store(batch, e - start, row_sub(row_load(logits, e, top), top), False)
    # A few heads fill a part of a vector; those of all entries fill whole ones.
    flat = batch.reshape(-1, LANES)
    for v in range(((stop - start) * batch.shape[1] + LANES - 1) // LANES):
        row_store(flat, v, row_exp(row_load(flat, v, LANES)), False)


@inline_always
def _greater(a: Any, b: Any) -> Any:
    """The greater of a and b; where either is NaN, so become the exponentials, whichever this is."""
    return row_where_positive(row_sub(a, b), a, b)


@inline_always
def _totals(start: Any, stop: Any, logits: Any, batch: Any, zero: Any) -> Any:
    """The greatest of some logits, at least one, and the sum of exp(logit - it). The last entries' stay in batch."""
    top, total = row_load(logits, start, zero), zero
    for e in range(start + 1, stop):
        top = _greater(row_load(logits, e, zero), top)
    for first in range(start, stop, BATCH):
        end = min(first + BATCH, stop)
        _exponentials(first, end, top, logits, batch)
        for e in range(first, end):
            total = row_add(total, row_load(batch, e - first, zero))
    return top, total


@inline_always
def _write(start: Any, stop: Any, top: Any, total: Any, filled: Any, logits: Any, batch: Any, out: Any) -> None:
    """out = exp(logit - top) / total, from the batch where that is `filled` already."""
    norm = row_div(row_splat(batch.dtype.type(1), total), total)
    for first in range(start, stop, BATCH):
        end = min(first + BATCH, stop)
        if not filled:
            _exponentials(first, end, top, logits, batch)
        for e in range(first, end):
            row_store(out, e, row_mul(row_load(batch, e - first, norm), norm), False)


@inline_always
def _dot(start: Any, stop: Any, p: Any, grad: Any, zero: Any) -> Any:
    total = zero
    for e in range(start, stop):
        total = row_mul_add(row_load(p, e, zero), row_load(grad, e, zero), total)
    return total


@inline_always
def _write_gradient(start: Any, stop: Any, dot: Any, p: Any, grad: Any, out: Any) -> None:
    for e in range(start, stop):
        row_store(out, e, row_mul(row_load(p, e, dot), row_sub(row_load(grad, e, dot), dot)), False)


@cache
def _compile_softmax(heads: int) -> Any:
    version = VERSION

    @kernel
    def run(team: Any, indptr: Any, chunks: Any, logits: Any, out: Any, partial: Any) -> None:
        _ = version  # part of the cache key
        for chunk in items(team):
            batch, zero = np.empty((BATCH, heads), partial.dtype), row_zero(logits, heads)
            for i in range(chunks[chunk], chunks[chunk + 1]):
                start, stop = indptr[i], indptr[i + 1]
                if start < stop <= start + LONG:
                    top, total = _totals(start, stop, logits, batch, zero)
                    _write(start, stop, top, total, stop - start <= BATCH, logits, batch, out)

    return run


@cache
def _compile_long_softmax(heads: int) -> tuple[Any, Any, Any]:
    """What fills partial [pieces, 2, heads]: the greatest logit and the sum of exp(logit - it), of pieces and then of
    their rows; and what takes these."""
    version = VERSION

    @kernel
    def sum_up(team: Any, pieces: Any, logits: Any, partial: Any) -> None:
        _ = version  # part of the cache key
        for r in consecutive(team):
            batch, zero = np.empty((BATCH, heads), partial.dtype), row_zero(logits, heads)
            top, total = _totals(pieces[r, 1], pieces[r, 2], logits, batch, zero)
            row_store(partial[:, 0], r, top, False)
            row_store(partial[:, 1], r, total, False)

    @kernel
    def join(team: Any, long: Any, partial: Any, lowest: Any) -> None:
        """lowest: finite number."""
        _ = version
        for item in consecutive(team):
            first, last = long[item, 1], long[item, 2]
            top, total = row_load(partial[:, 0], first, heads), row_zero(partial[0], heads)
            for r in range(first + 1, last):
                top = _greater(row_load(partial[:, 0], r, heads), top)
            for r in range(first, last):
                below = row_sub(row_load(partial[:, 0], r, heads), top)
                term = row_mul(row_exp(below), row_load(partial[:, 1], r, heads))
                # The sum of a piece of nothing but -inf is NaN, and counts for nothing beside others.
                nothing = row_sub(row_splat(lowest, below), below)
                total = row_add(total, row_where_positive(nothing, row_zero(partial[0], heads), term))
            for r in range(first, last):
                row_store(partial[:, 0], r, top, False)
                row_store(partial[:, 1], r, total, False)

    @kernel
    def write(team: Any, pieces: Any, logits: Any, out: Any, partial: Any) -> None:
        _ = version
        for r in consecutive(team):
            batch = np.empty((BATCH, heads), partial.dtype)
            top, total = row_load(partial[:, 0], r, heads), row_load(partial[:, 1], r, heads)
            _write(pieces[r, 1], pieces[r, 2], top, total, False, logits, batch, out)

    return sum_up, join, write


@cache
def _compile_backward(heads: int) -> Any:
    version = VERSION

    @kernel
    def run(team: Any, indptr: Any, chunks: Any, p: Any, grad: Any, out: Any, partial: Any) -> None:
        _ = version  # part of the cache key
        for chunk in items(team):
            for i in range(chunks[chunk], chunks[chunk + 1]):
                start, stop = indptr[i], indptr[i + 1]
                if stop - start <= LONG:
                    _write_gradient(start, stop, _dot(start, stop, p, grad, row_zero(p, heads)), p, grad, out)

    return run


@cache
def _compile_long_backward(heads: int) -> tuple[Any, Any]:
    """What fills partial [pieces, heads]: the sum of p * grad; and what takes the sums of the pieces' rows."""
    version = VERSION

    @kernel
    def sum_up(team: Any, pieces: Any, p: Any, grad: Any, partial: Any) -> None:
        _ = version  # part of the cache key
        for r in consecutive(team):
            row_store(partial, r, _dot(pieces[r, 1], pieces[r, 2], p, grad, row_zero(p, heads)), False)

    @kernel
    def write(team: Any, pieces: Any, p: Any, grad: Any, out: Any, partial: Any) -> None:
        _ = version
        for r in consecutive(team):
            _write_gradient(pieces[r, 1], pieces[r, 2], row_load(partial, r, heads), p, grad, out)

    return sum_up, write
