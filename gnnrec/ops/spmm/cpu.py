"""numba kernels of spmm: a thread takes a chunk of rows or a piece of a long row, sums stay in registers."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from gnnrec.graph.schedule import BY_WIDTH, LONG, PREFETCH_DISTANCE, prefetch_distance
from gnnrec.ops._numba import VERSION, inline
from gnnrec.ops._parallel import consecutive, items, kernel
from gnnrec.ops._row_math import (
    row_add,
    row_div,
    row_dot,
    row_fma,
    row_max,
    row_min,
    row_mul,
    row_mul_add,
    row_scale,
    row_splat,
    row_where_equal,
)
from gnnrec.ops._vector import (
    MAX_DIM,
    at,
    can_stream,
    fence,
    row_gather_sum_ahead,
    row_gather_sum_placed,
    row_load,
    row_prefetch,
    row_store,
    row_zero,
)


def spmm(
    matrix: tuple[Any, ...],
    x: Any,
    out: Any,
    dtype: Any,
    values: Any = None,
    reduce: str = "sum",
    scale: float = 1.0,
    base: Any = None,
    base_scale: float = 0.0,
    prefetch: int = BY_WIDTH,
    out_rows: Any = None,
    x_rows: Any = None,
    x_bits: Any = None,
    base_rows: Any = None,
) -> None:
    """out = scale * reduce(matrix, x, values) + base_scale * base, which may be out itself.

    Where of an operand only some rows are there or wanted, a sum without values takes int32 numbers: for every row of
    the whole the place of what it has, -1 for one without, of x and base a row of 0. The matrix's scales of columns are
    then those of x's rows. Bits are those of the whole.

    Args:
        matrix: as `_arguments.matrix_arrays` gives it.
        x: [cols, dim], or None for ones.
        out: [rows, dim].
        dtype: numpy's, of scales and sums.
        values: None, [nnz] or [nnz, dim].
        reduce: sum, max or min.
        prefetch: of rows of x, in entries, or BY_WIDTH.
        out_rows, base_rows: None or [rows]; x_rows: None or [cols].
        x_bits: `bits` of the rows that x has, for whoever multiplies by it several times.
    """
    number, pieces, extreme = np.dtype(dtype).type, matrix[5], reduce != "sum"
    if x_rows is not None and x_bits is None:
        x_bits = bits(x_rows >= 0)
    for start in range(0, out.shape[1], MAX_DIM):
        panel = slice(start, start + MAX_DIM)
        target = out[:, panel]
        partial = np.empty((len(pieces), target.shape[1]), dtype)
        compiled = _compile(target.shape[1], can_stream(target), reduce)
        source, edge_values, added = _panel(x, panel), _panel(values, panel), _panel(base, panel)
        ahead = prefetch_distance((target if source is None else source)[:1].nbytes) if prefetch < 0 else prefetch
        # An extreme's terms have all their factors before they are compared, a sum takes the row's at the end.
        epilogue: tuple[Any, ...] = (None if extreme else matrix[2], number(scale), added, number(base_scale))
        epilogue = (*epilogue, base_rows, partial, out_rows, target)
        compiled(len(pieces) + len(matrix[4]) - 1, *matrix, ahead, source, x_rows, x_bits, edge_values, *epilogue)
        if len(pieces):
            _compile_join(target.shape[1], reduce)(len(matrix[6]), matrix[6], *epilogue)


def extreme_backward(
    matrix: tuple[Any, ...],
    transposed: tuple[Any, ...],
    x: Any,
    values: Any,
    grad: Any,
    reduce: str,
    scale: float,
    dtype: Any,
    grad_x: Any,
    grad_values: Any,
) -> None:
    """Gradients of the greatest or smallest term, shared evenly among equal ones, which are found again.

    Args:
        transposed: the transpose of `matrix`, its entries naming values in the matrix's order.
        grad: [rows, dim] of the result.
        grad_x: [cols, dim] to fill; grad_values: like values, to fill, or None. [nnz] is added to.
    """
    for start in range(0, x.shape[1], MAX_DIM):
        panel = slice(start, start + MAX_DIM)
        source, edge_values, upstream = x[:, panel], _panel(values, panel), grad[:, panel]
        best = np.empty((len(matrix[0]) - 1, source.shape[1]), dtype)
        share = np.empty_like(best)
        find, collect, to_values = _compile_extreme_backward(source.shape[1], reduce == "max")
        chunks = len(matrix[4]) - 1
        find(chunks, *matrix, source, edge_values, upstream, np.dtype(dtype).type(scale), best, share)
        collect(len(transposed[4]) - 1, *transposed, source, edge_values, best, share, grad_x[:, panel])
        if grad_values is not None:
            to_values(chunks, *matrix, source, edge_values, best, share, _panel(grad_values, panel))


def _panel(x: Any, columns: slice) -> Any:
    return x[:, columns] if x is not None and x.ndim == 2 else x


def bits(chosen: Any) -> Any:
    """Booleans as bits of int64 words, lowest first."""
    words = np.zeros(-(-len(chosen) // 64), np.int64)
    packed = np.packbits(chosen, bitorder="little")
    words.view(np.uint8)[: len(packed)] = packed
    return words


@inline
def _gather(
    zero: Any,
    x: Any,
    x_rows: Any,
    x_bits: Any,
    found: Any,
    indices: Any,
    start: Any,
    stop: Any,
    col_scales: Any,
    values: Any,
    entries: Any,
    prefetch: Any,
) -> Any:
    """The sum of the terms of a row's entries, left to right."""
    if values is None:
        if x is None:  # numba types this branch in every case, and drops the rest of it where x is None
            return zero
        if x_rows is not None:
            return _gather_some(zero, x, x_rows, x_bits, found, indices, start, stop, col_scales, prefetch)
        return row_gather_sum_ahead(x, indices, start, stop, col_scales, zero, prefetch)
    total, last = zero, len(indices) - 1
    for k in range(start, stop):
        j, e = at(indices, k), k
        if entries is not None:
            e = at(entries, k)
        if x is not None:
            row_prefetch(x, at(indices, min(k + prefetch, last)), zero)
        if values.ndim == 1:
            weight = at(values, e)
            if col_scales is not None:
                weight = weight * at(col_scales, j)
            total = row_fma(row_load(x, j, zero), weight, total)
            continue
        term = row_load(values, e, zero)
        if x is not None:
            term = row_mul(term, row_load(x, j, zero))
        total = row_add(total, term) if col_scales is None else row_fma(term, at(col_scales, j), total)
    return total


@inline
def _gather_some(
    zero: Any,
    x: Any,
    x_rows: Any,
    x_bits: Any,
    found: Any,
    indices: Any,
    start: Any,
    stop: Any,
    col_scales: Any,
    prefetch: Any,
) -> Any:
    """The same where x holds some rows. Terms of 0 change no sum. The rows that it holds are listed first, without a
    branch that a processor could foretell wrongly, so that they can be fetched ahead. Whether there is one is a bit:
    those of all rows stay in caches that their places are too many for."""
    count = 0
    for k in range(start, stop):
        j = at(indices, k)
        found[count] = j
        count += (at(x_bits, j >> 6) >> (j & 63)) & 1
    return row_gather_sum_placed(x, x_rows, found, count, col_scales, zero, prefetch)


@inline
def _term(zero: Any, one: Any, x: Any, values: Any, row_scales: Any, i: Any, col_scales: Any, j: Any, e: Any) -> Any:
    """One entry's term and the factor of x in it, the same to the bit whichever way the entry is walked."""
    weight = one
    if col_scales is not None:
        weight = weight * at(col_scales, j)
    if row_scales is not None:
        weight = weight * at(row_scales, i)
    if values is None:
        factor = row_splat(weight, zero)
    elif values.ndim == 1:
        factor = row_splat(weight * at(values, e), zero)
    else:
        factor = row_scale(row_load(values, e, zero), weight)
    return row_mul(factor, row_load(x, j, zero)), factor


@inline
def _entry(entries: Any, k: Any) -> Any:
    """Which edge value belongs to entry k."""
    return k if entries is None else at(entries, k)


@inline
def _extreme(
    zero: Any,
    one: Any,
    x: Any,
    indices: Any,
    start: Any,
    stop: Any,
    row_scales: Any,
    i: Any,
    col_scales: Any,
    values: Any,
    entries: Any,
    largest: Any,
) -> Any:
    """The greatest or smallest term of a row's entries, 0 without any."""
    if start == stop:
        return zero
    last = len(indices) - 1
    best = _term(zero, one, x, values, row_scales, i, col_scales, at(indices, start), _entry(entries, start))[0]
    for k in range(start + 1, stop):
        row_prefetch(x, at(indices, min(k + PREFETCH_DISTANCE, last)), zero)
        term = _term(zero, one, x, values, row_scales, i, col_scales, at(indices, k), _entry(entries, k))[0]
        best = row_max(best, term) if largest else row_min(best, term)
    return best


@inline
def _finish(total: Any, i: Any, row_scales: Any, scale: Any, base: Any, base_scale: Any, base_rows: Any) -> Any:
    """Scales and the epilogue's addend."""
    if row_scales is not None:
        total = row_scale(total, at(row_scales, i))
    if base is None:
        return row_scale(total, scale)
    if base_rows is None:
        return row_fma(total, scale, row_scale(row_load(base, i, total), base_scale))
    place = at(base_rows, i)
    if place < 0:
        return row_scale(total, scale)
    return row_fma(total, scale, row_scale(row_load(base, place, total), base_scale))


@inline
def _place(rows: Any, i: Any) -> Any:
    """Where row i of a matrix is, -1 where it is not."""
    return np.int64(i) if rows is None else at(rows, i)


@cache
def _compile(dim: int, stream: bool, reduce: str) -> Any:
    version, extreme, largest = VERSION, reduce != "sum", reduce == "max"

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
        prefetch: Any,
        x: Any,
        x_rows: Any,
        x_bits: Any,
        values: Any,
        finish_scales: Any,
        scale: Any,
        base: Any,
        base_scale: Any,
        base_rows: Any,
        partial: Any,
        out_rows: Any,
        out: Any,
    ) -> None:
        _ = version  # part of the cache key
        count, total = len(pieces), team.total
        one = partial.dtype.type(1)
        found = np.zeros(LONG + 1, np.int32)  # by a thread in a row or piece
        for item in items(team):  # pieces are spread evenly between chunks
            zero = row_zero(partial, dim)
            before = item * count // total
            piece = (item + 1) * count // total > before
            first, last = (before, before + 1) if piece else (chunks[item - before], chunks[item - before + 1])
            for r in range(first, last):
                i, start, stop = (pieces[r, 0], pieces[r, 1], pieces[r, 2]) if piece else (r, indptr[r], indptr[r + 1])
                place = _place(out_rows, i)
                if place < 0 or (not piece and stop - start > LONG):
                    continue
                if extreme:
                    row = _extreme(
                        zero, one, x, indices, start, stop, row_scales, i, col_scales, values, entries, largest
                    )
                else:
                    row = _gather(
                        zero, x, x_rows, x_bits, found, indices, start, stop, col_scales, values, entries, prefetch
                    )
                if piece:
                    row_store(partial, r, row, False)
                else:
                    row = _finish(row, i, finish_scales, scale, base, base_scale, base_rows)
                    row_store(out, place, row, stream)
            fence()

    return run


@cache
def _compile_join(dim: int, reduce: str) -> Any:
    """The second stage of long rows, apart from the first so that only matrices that have any wait for its compiler."""
    version, extreme, largest = VERSION, reduce != "sum", reduce == "max"

    @kernel
    def run(
        team: Any,
        long: Any,
        finish_scales: Any,
        scale: Any,
        base: Any,
        base_scale: Any,
        base_rows: Any,
        partial: Any,
        out_rows: Any,
        out: Any,
    ) -> None:
        _ = version
        for item in consecutive(team):
            i = long[item, 0]
            place = _place(out_rows, i)
            if place < 0:
                continue
            row = row_load(partial, long[item, 1], dim)
            for r in range(long[item, 1] + 1, long[item, 2]):
                part = row_load(partial, r, dim)
                if extreme:
                    row = row_max(row, part) if largest else row_min(row, part)
                    continue
                row = row_add(row, part)
            row_store(out, place, _finish(row, i, finish_scales, scale, base, base_scale, base_rows), False)

    return run


@cache
def _compile_extreme_backward(dim: int, largest: bool) -> tuple[Any, Any, Any]:
    version = VERSION

    @kernel
    def find(
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
        values: Any,
        grad: Any,
        scale: Any,
        best: Any,
        share: Any,
    ) -> None:
        """Each row's extreme again, and its gradient divided by how many terms attain it."""
        _ = version
        one = best.dtype.type(1)
        for chunk in items(team):
            zero = row_zero(best, dim)
            ones = row_splat(one, zero)
            for i in range(chunks[chunk], chunks[chunk + 1]):
                start, stop = indptr[i], indptr[i + 1]
                row = _extreme(zero, one, x, indices, start, stop, row_scales, i, col_scales, values, entries, largest)
                equal = zero
                for k in range(start, stop):
                    e = _entry(entries, k)
                    term = _term(zero, one, x, values, row_scales, i, col_scales, at(indices, k), e)[0]
                    equal = row_add(equal, row_where_equal(term, row, ones))
                row_store(best, i, row, False)
                row_store(share, i, row_div(row_scale(row_load(grad, i, dim), scale), row_max(equal, ones)), False)

    @kernel
    def collect(
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
        values: Any,
        best: Any,
        share: Any,
        out: Any,
    ) -> None:
        """Over the transpose: a row of x receives the shares of the rows whose extreme it attains."""
        _ = version
        one = best.dtype.type(1)
        for chunk in items(team):
            zero = row_zero(best, dim)
            for j in range(chunks[chunk], chunks[chunk + 1]):
                total = zero
                for k in range(indptr[j], indptr[j + 1]):
                    i, e = at(indices, k), _entry(entries, k)
                    term, factor = _term(zero, one, x, values, col_scales, i, row_scales, j, e)
                    chosen = row_where_equal(term, row_load(best, i, dim), row_load(share, i, dim))
                    total = row_mul_add(chosen, factor, total)
                row_store(out, j, total, False)

    @kernel
    def to_values(
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
        values: Any,
        best: Any,
        share: Any,
        out: Any,
    ) -> None:
        _ = version
        one = best.dtype.type(1)
        for chunk in items(team):
            zero = row_zero(best, dim)
            for i in range(chunks[chunk], chunks[chunk + 1]):
                row, upstream = row_load(best, i, dim), row_load(share, i, dim)
                for k in range(indptr[i], indptr[i + 1]):
                    j, e = at(indices, k), _entry(entries, k)
                    term = _term(zero, one, x, values, row_scales, i, col_scales, j, e)[0]
                    factor = _term(zero, one, x, None, row_scales, i, col_scales, j, e)[0]
                    chosen = row_where_equal(term, row, upstream)
                    if values.ndim == 1:
                        out[e] += row_dot(chosen, factor)
                    else:
                        row_store(out, e, row_mul(chosen, factor), False)

    return find, collect, to_values
