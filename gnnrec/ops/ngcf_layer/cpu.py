"""numba kernels of ngcf_layer: a block of rows goes through aggregation, product and epilogue while it lies in the
caches.

Rows of any width are taken whole: where they outgrow the registers they spill to the stack, which is in the caches too.
Only the gather keeps its sums through a loop and works on panels of columns.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from gnnrec.graph.schedule import LONG
from gnnrec.ops._dropout import kept_entries, row_dropout
from gnnrec.ops._matmul import BLOCK, block_matmul
from gnnrec.ops._numba import VERSION, inline
from gnnrec.ops._parallel import consecutive, items, kernel
from gnnrec.ops._row_math import row_add, row_dot, row_fma, row_mul, row_mul_add, row_scale, row_where_positive
from gnnrec.ops._vector import MAX_DIM, at, row_gather_sum, row_load, row_store, row_zero

NORM_FLOOR = 1e-12  # as torch.nn.functional.normalize has it
MESSAGES, ENTRIES = 0, 1  # streams of dropout


@inline
def _finish(total: Any, i: Any, row_scales: Any, scale: Any, base: Any) -> Any:
    """A row's sum with its factors, added to base."""
    if row_scales is not None:
        total = row_scale(total, at(row_scales, i))
    return row_scale(total, scale) if base is None else row_fma(total, scale, row_load(base, i, total))


@inline
def _number(numbers: Any, i: Any) -> Any:
    """The number by which dropout knows row i, where rows are a part of a matrix."""
    return i if numbers is None else at(numbers, i)


@inline
def _kept_block(
    indptr: Any, indices: Any, first: Any, stop: Any, numbers: Any, transposed: Any, seed: Any, threshold: Any
) -> tuple[Any, Any]:
    """The columns of the kept entries of a block of rows, and where each row's begin and end. Long rows have none."""
    starts, count = np.zeros(stop - first + 1, np.int64), 0
    for i in range(first, stop):
        if indptr[i + 1] - indptr[i] <= LONG:
            count += indptr[i + 1] - indptr[i]
    kept, count = np.empty(count, np.int32), 0
    for i in range(first, stop):
        start, end = indptr[i], indptr[i + 1]
        if end - start <= LONG:
            number = _number(numbers, i)
            count = kept_entries(indices, start, end, number, transposed, seed, ENTRIES, threshold, kept, count)
        starts[i - first + 1] = count
    return kept[:count], starts


@inline
def _aggregate_block(
    zero: Any,
    width: Any,
    indptr: Any,
    indices: Any,
    row_scales: Any,
    col_scales: Any,
    long: Any,
    sums: Any,
    x: Any,
    first: Any,
    stop: Any,
    seed: Any,
    threshold: Any,
    scale: Any,
    out: Any,
) -> None:
    """out = the aggregates of rows [first, stop), `width` columns at a time, as many as the Row `zero` has.

    The last columns may overlap those before.
    """
    if threshold == 0:
        columns, starts = indices, indptr[first : stop + 1]
    else:
        columns, starts = _kept_block(indptr, indices, first, stop, None, False, seed, threshold)
    dim = out.shape[1]
    for column in range(0, dim, width):
        begin = min(column, dim - width)
        source, long_sums, target = x[:, begin:], sums[:, begin:], out[:, begin:]
        for i in range(first, stop):
            r = i - first
            if indptr[i + 1] - indptr[i] > LONG:
                row = row_load(long_sums, np.searchsorted(long, i), zero)
            else:
                row = row_gather_sum(source, columns, starts[r], starts[r + 1], col_scales, zero)
                row = _finish(row, i, row_scales, scale, None)
            row_store(target, r, row, False)


@inline
def _store_pair(pairs: Any, r: Any, dim: Any, own: Any, total: Any) -> None:
    """What the weights meet: x_i + s_i and x_i * s_i side by side."""
    row_store(pairs, r, row_add(own, total), False)
    row_store(pairs[:, dim:], r, row_mul(own, total), False)


@inline
def _finish_output(row: Any, i: Any, slope: Any, seed: Any, number: Any, threshold: Any, scale: Any, norms: Any) -> Any:
    """A row of the result from what leaky_relu is given."""
    row = row_where_positive(row, row, row_scale(row, slope))
    if threshold > 0:
        row = row_dropout(row, seed, number, 0, MESSAGES, threshold, scale)
    if len(norms):
        norms[i] = max(np.sqrt(row_dot(row, row)), NORM_FLOOR)
        row = row_scale(row, 1 / norms[i])
    return row


@inline
def _upstream(
    g: Any, y: Any, i: Any, slope: Any, seed: Any, number: Any, threshold: Any, scale: Any, norms: Any
) -> Any:
    """The gradient of what leaky_relu is given, from that of the row y of the result."""
    if len(norms):
        if norms[i] > NORM_FLOOR:
            g = row_fma(y, -row_dot(g, y), g)
        g = row_scale(g, 1 / norms[i])
    if threshold > 0:
        g = row_dropout(g, seed, number, 0, MESSAGES, threshold, scale)
    # y has the sign of what leaky_relu was given, save where it was dropped.
    return row_where_positive(y, g, row_scale(g, slope))


@inline
def _store_input_gradients(
    pairs: Any, r: Any, dim: Any, own: Any, total: Any, grad_rows: Any, grad_aggregates: Any, i: Any
) -> None:
    """Gradients of a row's own features and of its aggregate, from those of their sum and product."""
    g_sum, g_product = row_load(pairs, r, dim), row_load(pairs[:, dim:], r, dim)
    row_store(grad_rows, i, row_mul_add(g_product, total, g_sum), False)
    row_store(grad_aggregates, i, row_mul_add(g_product, own, g_sum), False)


@cache
def compile_aggregate(dim: int) -> tuple[Any, Any]:
    """The sum over kept entries for a width: a kernel that fills out [rows, dim], from x [cols, dim], and partial, the
    sums of the pieces of long rows [pieces, dim]; and one that fills these rows from their pieces."""
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
        x: Any,
        base: Any,
        numbers: Any,
        seed: Any,
        threshold: Any,
        scale: Any,
        transposed: Any,
        partial: Any,
        out: Any,
    ) -> None:
        """As spmm's kernel, on the kept entries."""
        _ = version  # part of the cache key
        count, total = len(pieces), team.total
        for item in items(team):
            before = item * count // total
            if (item + 1) * count // total > before:
                i, start, stop = pieces[before, 0], pieces[before, 1], pieces[before, 2]
                kept = np.empty(stop - start, np.int32)
                number = _number(numbers, i)
                end = kept_entries(indices, start, stop, number, transposed, seed, ENTRIES, threshold, kept, 0)
                row_store(partial, before, row_gather_sum(x, kept[:end], 0, end, col_scales, dim), False)
                continue
            border = chunks[item - before + 1]
            for first in range(chunks[item - before], border, BLOCK):
                stop = min(first + BLOCK, border)
                columns, starts = _kept_block(indptr, indices, first, stop, numbers, transposed, seed, threshold)
                for i in range(first, stop):
                    if indptr[i + 1] - indptr[i] <= LONG:
                        row = row_gather_sum(x, columns, starts[i - first], starts[i - first + 1], col_scales, dim)
                        row_store(out, i, _finish(row, i, row_scales, scale, base), False)

    @kernel
    def join(team: Any, row_scales: Any, long: Any, base: Any, scale: Any, partial: Any, out: Any) -> None:
        _ = version
        for item in consecutive(team):
            row = row_load(partial, long[item, 1], dim)
            for r in range(long[item, 1] + 1, long[item, 2]):
                row = row_add(row, row_load(partial, r, dim))
            row_store(out, long[item, 0], _finish(row, long[item, 0], row_scales, scale, base), False)

    return run, join


def _panel(dim: int) -> int:
    """The width of equal panels of columns."""
    return -(-dim // -(-dim // MAX_DIM))


@cache
def compile_forward(dim: int, out_dim: int) -> Any:
    """The layer for its two widths: a kernel that fills out [rows, out_dim], norms [rows] or none, and the aggregates
    [rows, dim] where they are kept."""
    version, width = VERSION, _panel(dim)

    @kernel
    def run(
        team: Any,
        indptr: Any,
        indices: Any,
        row_scales: Any,
        col_scales: Any,
        borders: Any,
        long: Any,
        long_sums: Any,
        totals: Any,
        x: Any,
        x_rows: Any,
        weights: Any,
        bias: Any,
        slope: Any,
        seed: Any,
        message_threshold: Any,
        message_scale: Any,
        entry_threshold: Any,
        entry_scale: Any,
        out: Any,
        norms: Any,
        aggregates: Any,
    ) -> None:
        _ = version  # part of the cache key
        for chunk in items(team):
            border = borders[chunk + 1]
            scratch = np.empty((BLOCK, dim), weights.dtype)
            operands = np.empty((BLOCK, 2 * dim), weights.dtype)
            products = np.empty((BLOCK, out_dim), weights.dtype)
            zero = row_zero(scratch, width)
            for first in range(borders[chunk], border, BLOCK):
                stop = min(first + BLOCK, border)
                sums = aggregates[first:stop] if len(aggregates) else scratch
                _aggregate_block(
                    zero,
                    width,
                    indptr,
                    indices,
                    row_scales,
                    col_scales,
                    long,
                    long_sums,
                    x,
                    first,
                    stop,
                    seed,
                    entry_threshold,
                    entry_scale,
                    sums,
                )
                for i in range(first, stop):
                    _store_pair(operands, i - first, dim, row_load(x_rows, i, dim), row_load(sums, i - first, dim))
                block_matmul(operands[: stop - first], weights, products[: stop - first], False)
                for i in range(first, stop):
                    row = row_load(products, i - first, out_dim)
                    row = row_add(row, row_load(bias, 0, out_dim))
                    if len(totals):
                        row = row_fma(row_load(bias, 1, out_dim), at(totals, i), row)
                    row = _finish_output(row, i, slope, seed, i, message_threshold, message_scale, norms)
                    row_store(out, i, row, False)

    return run


@cache
def compile_backward(dim: int, out_dim: int) -> Any:
    """Its gradients: a kernel that fills those of the rows' features and of the aggregates, both [rows, dim], and
    adds each chunk's part of those of the weights to partial [chunks, out_dim, 2 dim] and of the bias to partial_bias
    [chunks, 2, out_dim]."""
    version, width = VERSION, _panel(dim)

    @kernel
    def run(
        team: Any,
        indptr: Any,
        indices: Any,
        row_scales: Any,
        col_scales: Any,
        borders: Any,
        long: Any,
        long_sums: Any,
        totals: Any,
        x: Any,
        x_rows: Any,
        weights: Any,
        slope: Any,
        seed: Any,
        message_threshold: Any,
        message_scale: Any,
        entry_threshold: Any,
        entry_scale: Any,
        out: Any,
        norms: Any,
        aggregates: Any,
        grad: Any,
        partial: Any,
        partial_bias: Any,
        grad_rows: Any,
        grad_aggregates: Any,
    ) -> None:
        _ = version  # part of the cache key
        for chunk in items(team):
            border = borders[chunk + 1]
            scratch = np.empty((BLOCK, dim), weights.dtype)
            pairs = np.empty((BLOCK, 2 * dim), weights.dtype)  # what the weights meet, then its gradient
            upstream = np.empty((BLOCK, out_dim), weights.dtype)
            bias = partial_bias[chunk]
            zero = row_zero(scratch, width)
            for first in range(borders[chunk], border, BLOCK):
                stop = min(first + BLOCK, border)
                count = stop - first
                sums = aggregates[first:stop] if len(aggregates) else scratch
                if len(aggregates) == 0:
                    _aggregate_block(
                        zero,
                        width,
                        indptr,
                        indices,
                        row_scales,
                        col_scales,
                        long,
                        long_sums,
                        x,
                        first,
                        stop,
                        seed,
                        entry_threshold,
                        entry_scale,
                        sums,
                    )
                for i in range(first, stop):
                    _store_pair(pairs, i - first, dim, row_load(x_rows, i, dim), row_load(sums, i - first, dim))
                    g, y = row_load(grad, i, out_dim), row_load(out, i, out_dim)
                    g = _upstream(g, y, i, slope, seed, i, message_threshold, message_scale, norms)
                    row_store(upstream, i - first, g, False)
                    row_store(bias, 0, row_add(row_load(bias, 0, out_dim), g), False)
                    if len(totals):
                        row_store(bias, 1, row_fma(g, at(totals, i), row_load(bias, 1, out_dim)), False)
                block_matmul(upstream[:count].T, pairs[:count], partial[chunk], True)
                if len(grad_rows) == 0:
                    continue
                block_matmul(upstream[:count], weights, pairs[:count], False)
                for i in range(first, stop):
                    own, row = row_load(x_rows, i, dim), row_load(sums, i - first, dim)
                    _store_input_gradients(pairs, i - first, dim, own, row, grad_rows, grad_aggregates, i)

    return run


def slices_of(out_dim: int) -> int:
    """Items of `compile_weight_gradients` for a part of the rows."""
    return -(-out_dim // SLICE)


PIECE = 10 * BLOCK  # rows that a thread takes at once where the aggregates are given
SLICE = 12  # rows of the weights whose gradient a thread takes at once: two tiles


@cache
def compile_dense(dim: int, out_dim: int) -> Any:
    """The layer behind its aggregation, which is given: a kernel that fills out [rows, out_dim] and norms [rows]."""
    version = VERSION

    @kernel
    def run(
        team: Any,
        numbers: Any,
        x_rows: Any,
        aggregates: Any,
        weights: Any,
        bias: Any,
        slope: Any,
        seed: Any,
        threshold: Any,
        scale: Any,
        out: Any,
        norms: Any,
    ) -> None:
        _ = version  # part of the cache key
        for item in items(team):
            border = min(len(out), (item + 1) * PIECE)
            operands = np.empty((BLOCK, 2 * dim), weights.dtype)
            products = np.empty((BLOCK, out_dim), weights.dtype)
            for first in range(item * PIECE, border, BLOCK):
                stop = min(first + BLOCK, border)
                for i in range(first, stop):
                    _store_pair(operands, i - first, dim, row_load(x_rows, i, dim), row_load(aggregates, i, dim))
                block_matmul(operands[: stop - first], weights, products[: stop - first], False)
                for i in range(first, stop):
                    row = row_add(row_load(products, i - first, out_dim), row_load(bias, 0, out_dim))
                    row = _finish_output(row, i, slope, seed, _number(numbers, i), threshold, scale, norms)
                    row_store(out, i, row, False)

    return run


@cache
def compile_dense_backward(dim: int, out_dim: int) -> Any:
    """Its gradients but for those of weights and bias: a kernel that fills those of what leaky_relu is given
    [rows, out_dim], of the rows' features and of the aggregates, both [rows, dim]."""
    version = VERSION

    @kernel
    def run(
        team: Any,
        numbers: Any,
        x_rows: Any,
        aggregates: Any,
        weights: Any,
        slope: Any,
        seed: Any,
        threshold: Any,
        scale: Any,
        out: Any,
        norms: Any,
        grad: Any,
        upstream: Any,
        grad_rows: Any,
        grad_aggregates: Any,
    ) -> None:
        _ = version  # part of the cache key
        for item in items(team):
            border = min(len(out), (item + 1) * PIECE)
            pairs = np.empty((BLOCK, 2 * dim), weights.dtype)
            for first in range(item * PIECE, border, BLOCK):
                stop = min(first + BLOCK, border)
                for i in range(first, stop):
                    g, y = row_load(grad, i, out_dim), row_load(out, i, out_dim)
                    g = _upstream(g, y, i, slope, seed, _number(numbers, i), threshold, scale, norms)
                    row_store(upstream, i, g, False)
                block_matmul(upstream[first:stop], weights, pairs[: stop - first], False)
                for i in range(first, stop):
                    own, row = row_load(x_rows, i, dim), row_load(aggregates, i, dim)
                    _store_input_gradients(pairs, i - first, dim, own, row, grad_rows, grad_aggregates, i)

    return run


@cache
def compile_weight_gradients(dim: int, out_dim: int) -> Any:
    """The gradients of weights [out_dim, 2 dim] and bias [out_dim], for rows of which few chunks have some: a kernel
    that adds to the chunks' sums partial [chunks, out_dim, 2 dim] and partial_bias [chunks, 2, out_dim].

    Every sum goes on over the rows from first to last, as in `compile_backward`: threads share out columns instead.
    """
    version = VERSION
    slices = slices_of(out_dim)

    @kernel
    def run(
        team: Any, parts: Any, x_rows: Any, aggregates: Any, upstream: Any, partial: Any, partial_bias: Any
    ) -> None:
        """parts: int64 [parts, 3] of chunk, first row, end."""
        _ = version  # part of the cache key
        for item in items(team):
            part = item // slices
            chunk, start, end = parts[part, 0], parts[part, 1], parts[part, 2]
            left = item % slices * SLICE
            right = min(left + SLICE, out_dim)
            pairs = np.empty((BLOCK, 2 * dim), partial.dtype)
            for first in range(start, end, BLOCK):
                stop = min(first + BLOCK, end)
                for i in range(first, stop):
                    _store_pair(pairs, i - first, dim, row_load(x_rows, i, dim), row_load(aggregates, i, dim))
                    if left == 0:
                        bias = row_load(partial_bias[chunk], 0, out_dim)
                        row_store(partial_bias[chunk], 0, row_add(bias, row_load(upstream, i, out_dim)), False)
                columns = upstream[first:stop, left:right]
                block_matmul(columns.T, pairs[: stop - first], partial[chunk, left:right], True)

    return run
