"""numba kernels of gat_conv: a thread takes a chunk of rows or a piece of a long row, sums stay in registers.

The weight a_ij = exp(leaky_relu(s_ij) - shift_i) * norm_i of an entry, s_ij its row's score + its column's, is computed
anew in every pass. No entry needs a dot product: leaky_relu's derivative has two values, so that every gradient of a
score follows from sums over all entries and over those with s_ij > 0. A row's weights add up to 1; with y+_i the sum of
a_ij h_j over the latter entries, the gradient of its score is (1 - slope) (<g_i, y+_i> - <g_i, y_i> sum+_j a_ij).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import types

from gnnrec.graph.schedule import LONG, PREFETCH_DISTANCE
from gnnrec.ops._dropout import row_dropout
from gnnrec.ops._matmul import BLOCK, block_matmul
from gnnrec.ops._numba import VERSION, inline_always
from gnnrec.ops._parallel import consecutive, items, kernel
from gnnrec.ops._row_math import (
    row_add,
    row_div,
    row_exp,
    row_expand,
    row_group_sum,
    row_max,
    row_mul,
    row_mul_add,
    row_scale,
    row_splat,
    row_sub,
    row_where_positive,
)
from gnnrec.ops._vector import at, intrinsic, row_load, row_prefetch, row_store, row_zero
from gnnrec.ops.gat_conv.panels import panels

BATCH = 64  # entries whose exponentials are computed together, a multiple of LANES
LANES = 16
GROUPS = 64  # partial sums of the weights' gradient at the most

# The scores of rows [rows, heads] and of columns [cols, heads]; leaky_relu's slope, of their type; None, or dropout's
# seed, threshold and scale as `row_dropout` takes them.
Attention = tuple[Any, Any, Any, tuple[Any, ...] | None]


def project(x: Any, weight: Any, score_weight: Any, memory: Any) -> tuple[Any, Any]:
    """h = x @ weight.T, which lies in the given memory, a vector that is long enough; and x @ score_weight.T."""
    h = memory[: len(x) * len(weight)].reshape(len(x), len(weight))
    scores = np.empty((len(x), len(score_weight)), x.dtype)
    factors = np.ascontiguousarray(weight.T), np.ascontiguousarray(score_weight.T)
    _compile_projection()(-(-len(x) // BLOCK), x, *factors, h, scores)
    return h, scores


def forward(matrix: tuple[Any, ...], h: Any, attention: Attention, stats: Any, out: Any) -> None:
    """Fill out [rows, heads * dim] and stats [rows, 2, heads]: shift, the greatest logit, and norm, 1 / sum of
    exp(logit - shift).

    Args:
        matrix: as `_arguments.matrix_arrays` gives it.
        h: [cols, heads * dim].
    """
    pieces = len(matrix[5])
    for heads, columns, width, count in panels(h.shape[1], stats.shape[2]):
        partial = np.empty((pieces, width), h.dtype), np.empty((pieces, 2, count), h.dtype)
        state, dropout = _of_panel(heads, attention, stats)
        given = matrix, state, h[:, columns], partial, dropout
        if pieces:
            _compile_forward_pieces(width, count)(pieces, *given)
        _compile_forward(width, count)(len(matrix[4]) - 1, *given, out[:, columns])


def row_gradient(matrix: tuple[Any, ...], h: Any, attention: Attention, stats: Any, grad: Any) -> tuple[Any, Any]:
    """<grad_i, y_i> of every head and the gradient of the row scores, both [rows, heads].

    Args:
        stats: what `forward` gave; grad: [rows, heads * dim] of its result.
    """
    dots, gradient = np.zeros_like(stats[:, 0]), np.zeros_like(stats[:, 0])
    for heads, columns, width, count in panels(h.shape[1], stats.shape[2]):
        state, dropout = _of_panel(heads, attention, stats)
        given = _with_partial_sums(matrix, state, h[:, columns], None, dropout, width, count)
        _compile_rows(width, count)(len(matrix[4]) - 1, *given, grad[:, columns], dots[:, heads], gradient[:, heads])
    return dots, gradient


def column_gradient(
    transposed: tuple[Any, ...],
    x: Any,
    weight: Any,
    score_weight: Any,
    attention: Attention,
    stats: Any,
    grad: Any,
    dots: Any,
    grad_scores: Any,
    grad_x: Any,
) -> tuple[Any, Any]:
    """Fill the gradient of x [cols, in]; return those of weight [heads * dim, in] and of score_weight.

    Args:
        score_weight: [heads, in], whose products with x are the column scores, or [2 * heads, in], the row scores too.
        dots, grad_scores: what `row_gradient` gave.
    """
    all_heads = stats.shape[2]
    grad_weight, grad_score_weight = np.empty_like(weight), np.zeros_like(score_weight)
    for heads, columns, width, count in panels(len(weight), all_heads):
        chosen, panel_dots = np.arange(heads.start, heads.stop), dots[:, heads]
        if columns.start % (len(weight) // all_heads):
            # A further part of a head adds to its scores' gradients only what is a sum over columns.
            panel_dots = np.zeros_like(panel_dots)
        elif len(score_weight) > all_heads:
            chosen = np.concatenate([chosen, chosen + all_heads])
        weights = np.concatenate([weight[columns], score_weight[chosen]])
        (row_scores, col_scores, *rest), dropout = _of_panel(heads, attention, stats)
        state = col_scores, row_scores, *rest
        given = _with_partial_sums(transposed, state, grad[:, columns], panel_dots, dropout, width, count)
        sums = np.zeros((min(GROUPS, len(transposed[4]) - 1), *weights.shape), x.dtype)
        projection = np.ascontiguousarray(weight[columns].T)
        run = _compile_columns(width, count)
        run(len(sums), *given, x, projection, weights, grad_scores[:, heads], columns.start > 0, sums, grad_x)
        total = sums.sum(axis=0)
        grad_weight[columns] = total[:width]
        grad_score_weight[chosen] += total[width:]
    return grad_weight, grad_score_weight


def _of_panel(heads: slice, attention: Attention, stats: Any) -> tuple[tuple[Any, ...], tuple[Any, ...] | None]:
    """The kernels' `state` for rows; dropout with the stream of a panel, whose heads are columns 0, 1, ... of it."""
    *scores, slope, dropout = attention
    # Contiguous, so that the kernels need not be compiled for what is not, too.
    row_scores, col_scores = (np.ascontiguousarray(given[:, heads]) for given in scores)
    state = row_scores, col_scores, stats[:, :, heads], slope
    return state, None if dropout is None else (heads.start, *dropout)


def _with_partial_sums(
    matrix: tuple[Any, ...], state: tuple[Any, ...], x: Any, dots: Any, dropout: Any, width: int, count: int
) -> tuple[Any, ...]:
    """The first arguments of the backward pass's kernels, with what `_sums` gives for the pieces of long rows."""
    pieces = len(matrix[5])
    partial = np.empty((2, pieces, width), state[0].dtype), np.empty((2, pieces, count), state[0].dtype)
    given = matrix, state, x, partial, dots, dropout
    if pieces:
        _compile_pieces(width, count)(pieces, *given)
    return given


def _with_row(function: Any) -> Any:
    """An intrinsic of a Row and a constant width, with a Row of that width in place of the constant."""

    @intrinsic
    def typed(typingctx: Any, value: Any, like: Any) -> Any:
        signature, codegen = function._defn(typingctx, value, types.literal(like.dim))
        return signature.return_type(value, like), codegen

    return typed


_expand, _group_sum = _with_row(row_expand), _with_row(row_group_sum)

# Below, `given` are matrix, state, x and partial results, state its rows' scores, its columns' scores, stats and slope,
# and `room` is a Row of zeros as wide as x, one of a zero a head, and memory for a batch.


@inline_always
def _leaky(s: Any, slope: Any) -> Any:
    return row_where_positive(s, s, row_scale(s, slope))


@inline_always
def _exponentials(own: Any, shift: Any, start: Any, stop: Any, given: Any, dots: Any, batch: Any) -> None:
    """Fill batch with exp(logit - shift) of entries, each with its own row's shift where there are `dots`."""
    indices, (_, scores, stats, slope) = given[0][1], given[1]
    for k in range(start, stop):
        other = at(indices, k)
        if dots is not None:
            shift = row_load(stats[:, 0], other, own)
        logit = _leaky(row_add(own, row_load(scores, other, own)), slope)
        row_store(batch, k - start, row_sub(logit, shift), False)
    # A few heads fill a part of a vector; those of all entries fill whole ones.
    flat = batch.reshape(-1, LANES)
    for v in range(((stop - start) * batch.shape[1] + LANES - 1) // LANES):
        row_store(flat, v, row_exp(row_load(flat, v, LANES)), False)


@inline_always
def _attend(i: Any, start: Any, stop: Any, given: Any, dropout: Any, room: Any) -> Any:
    """Of some entries of a row, at least one: the greatest logit, and the sums of exp(logit - it) and of the rows of h
    times that and dropout."""
    matrix, (row_scores, scores, _, slope), h, _ = given
    indices, (zero, none, batch) = matrix[1], room
    own, last = row_load(row_scores, i, none), len(indices) - 1
    top = row_load(scores, at(indices, start), none)
    for k in range(start + 1, stop):
        score = row_load(scores, at(indices, k), none)
        top = row_where_positive(row_sub(score, top), score, top)
    shift = _leaky(row_add(own, top), slope)  # leaky_relu does not fall
    total, y = none, zero
    for first in range(start, stop, BATCH):
        end = min(first + BATCH, stop)
        _exponentials(own, shift, first, end, given, None, batch)
        for k in range(first, end):
            row_prefetch(h, at(indices, min(k + PREFETCH_DISTANCE, last)), zero)
            j, w = at(indices, k), row_load(batch, k - first, none)
            total = row_add(total, w)
            if dropout is not None:
                w = row_dropout(w, dropout[1], i, j, dropout[0], dropout[2], dropout[3])
            y = row_mul_add(_expand(w, zero), row_load(h, j, zero), y)
    return shift, total, y


@inline_always
def _attend_all(i: Any, given: Any, dropout: Any, room: Any) -> Any:
    """The same of all entries of a row, from its pieces in their order where it is long."""
    (indptr, _, _, _, _, _, long, _), _, _, (rows, stats) = given
    start, stop, (zero, none, _) = indptr[i], indptr[i + 1], room
    if start == stop:
        return none, row_splat(rows.dtype.type(1), none), zero
    if stop - start <= LONG:
        return _attend(i, start, stop, given, dropout, room)
    first, last = _pieces_of(long, i)
    shift, total, y = row_load(stats[:, 0], first, none), none, zero
    for r in range(first + 1, last):
        shift = row_max(shift, row_load(stats[:, 0], r, none))
    for r in range(first, last):
        factor = row_exp(row_sub(row_load(stats[:, 0], r, none), shift))
        total = row_mul_add(factor, row_load(stats[:, 1], r, none), total)
        y = row_mul_add(_expand(factor, zero), row_load(rows, r, zero), y)
    return shift, total, y


@inline_always
def _sums(me: Any, start: Any, stop: Any, given: Any, dots: Any, dropout: Any, room: Any) -> Any:
    """Sums over entries of a row: of the rows of x times weight and dropout, and of the weights; of both over positive
    scores too. With `dots` it is a row of the transpose, and the weights are times the dots of their rows."""
    matrix, (own_scores, scores, stats, _), x, _ = given
    indices, (zero, none, batch) = matrix[1], room
    own, shift, norm = row_load(own_scores, me, none), none, none
    if dots is None:
        shift, norm = row_load(stats[:, 0], me, none), row_load(stats[:, 1], me, none)
    last, y, positive_y, total, positive_total = len(indices) - 1, zero, zero, none, none
    for first in range(start, stop, BATCH):
        end = min(first + BATCH, stop)
        _exponentials(own, shift, first, end, given, dots, batch)
        for k in range(first, end):
            row_prefetch(x, at(indices, min(k + PREFETCH_DISTANCE, last)), zero)
            other = at(indices, k)
            s = row_add(own, row_load(scores, other, none))
            if dots is None:
                w = weight = row_mul(row_load(batch, k - first, none), norm)
            else:
                w = row_mul(row_load(batch, k - first, none), row_load(stats[:, 1], other, none))
                weight = row_mul(w, row_load(dots, other, none))
            total = row_add(total, weight)
            positive_total = row_add(positive_total, row_where_positive(s, weight, none))
            if dropout is not None:
                i, j = (me, other) if dots is None else (other, me)
                w = row_dropout(w, dropout[1], i, j, dropout[0], dropout[2], dropout[3])
            row = row_load(x, other, zero)
            y = row_mul_add(_expand(w, zero), row, y)
            positive_y = row_mul_add(_expand(row_where_positive(s, w, none), zero), row, positive_y)
    return y, positive_y, total, positive_total


@inline_always
def _sums_of_all(me: Any, given: Any, dots: Any, dropout: Any, room: Any) -> Any:
    """The same of all entries of a row, from its pieces in their order where it is long."""
    (indptr, _, _, _, _, _, long, _), _, _, (rows, totals) = given
    start, stop, (zero, none, _) = indptr[me], indptr[me + 1], room
    if stop - start <= LONG:
        return _sums(me, start, stop, given, dots, dropout, room)
    y, positive_y, total, positive_total = zero, zero, none, none
    first, last = _pieces_of(long, me)
    for r in range(first, last):
        y, positive_y = row_add(y, row_load(rows[0], r, zero)), row_add(positive_y, row_load(rows[1], r, zero))
        total = row_add(total, row_load(totals[0], r, none))
        positive_total = row_add(positive_total, row_load(totals[1], r, none))
    return y, positive_y, total, positive_total


@inline_always
def _pieces_of(long: Any, i: Any) -> Any:
    """First and last piece of long row i."""
    low, high = 0, len(long) - 1
    while low < high:
        middle = (low + high) // 2
        if long[middle, 0] < i:
            low = middle + 1
        else:
            high = middle
    return long[low, 1], long[low, 2]


@cache
def _compile_projection() -> Any:
    version = VERSION

    @kernel
    def run(team: Any, x: Any, weight: Any, score_weight: Any, h: Any, scores: Any) -> None:
        _ = version  # part of the cache key
        for block in consecutive(team):
            rows = slice(block * BLOCK, min(len(x), (block + 1) * BLOCK))
            block_matmul(x[rows], weight, h[rows], False)
            block_matmul(x[rows], score_weight, scores[rows], False)

    return run


@cache
def _compile_forward_pieces(width: int, count: int) -> Any:
    version = VERSION

    @kernel
    def run(team: Any, matrix: Any, state: Any, h: Any, partial: Any, dropout: Any) -> None:
        _ = version  # part of the cache key
        pieces, (rows, stats) = matrix[5], partial
        for r in items(team):
            room = row_zero(rows, width), row_zero(rows, count), np.empty((BATCH, count), rows.dtype)
            given = matrix, state, h, partial
            shift, total, y = _attend(pieces[r, 0], pieces[r, 1], pieces[r, 2], given, dropout, room)
            row_store(stats[:, 0], r, shift, False)
            row_store(stats[:, 1], r, total, False)
            row_store(rows, r, y, False)

    return run


@cache
def _compile_forward(width: int, count: int) -> Any:
    version = VERSION

    @kernel
    def run(team: Any, matrix: Any, state: Any, h: Any, partial: Any, dropout: Any, out: Any) -> None:
        _ = version  # part of the cache key
        chunks, stats = matrix[4], state[2]
        for chunk in items(team):
            room = row_zero(stats[0], width), row_zero(stats[0], count), np.empty((BATCH, count), stats.dtype)
            given = matrix, state, h, partial
            for i in range(chunks[chunk], chunks[chunk + 1]):
                shift, total, y = _attend_all(i, given, dropout, room)
                norm = row_div(row_splat(stats.dtype.type(1), total), total)
                row_store(stats[:, 0], i, shift, False)
                row_store(stats[:, 1], i, norm, False)
                row_store(out, i, row_mul(_expand(norm, y), y), False)

    return run


@cache
def _compile_pieces(width: int, count: int) -> Any:
    version = VERSION

    @kernel
    def run(team: Any, matrix: Any, state: Any, x: Any, partial: Any, dots: Any, dropout: Any) -> None:
        _ = version  # part of the cache key
        pieces, (rows, totals) = matrix[5], partial
        for r in items(team):
            room = row_zero(rows[0], width), row_zero(rows[0], count), np.empty((BATCH, count), rows.dtype)
            given = matrix, state, x, partial
            sums = _sums(pieces[r, 0], pieces[r, 1], pieces[r, 2], given, dots, dropout, room)
            row_store(rows[0], r, sums[0], False)
            row_store(rows[1], r, sums[1], False)
            row_store(totals[0], r, sums[2], False)
            row_store(totals[1], r, sums[3], False)

    return run


@cache
def _compile_rows(width: int, count: int) -> Any:
    version = VERSION

    @kernel
    def run(
        team: Any,
        matrix: Any,
        state: Any,
        h: Any,
        partial: Any,
        dots: Any,
        dropout: Any,
        grad: Any,
        dot_sums: Any,
        score_sums: Any,
    ) -> None:
        """Add <g_i, y_i> and the gradient of the row's score, to both of which the parts of a head contribute."""
        _ = version  # part of the cache key
        chunks, slope = matrix[4], state[3]
        for chunk in items(team):
            room = row_zero(dot_sums, width), row_zero(dot_sums, count), np.empty((BATCH, count), dot_sums.dtype)
            given = matrix, state, h, partial
            for i in range(chunks[chunk], chunks[chunk + 1]):
                y, positive_y, total, positive = _sums_of_all(i, given, dots, dropout, room)
                upstream = row_load(grad, i, width)
                dot, positive_dot = row_mul(upstream, y), row_mul(upstream, positive_y)
                dot, positive_dot = _group_sum(dot, total), _group_sum(positive_dot, total)
                gradient = row_scale(row_sub(positive_dot, row_mul(dot, positive)), 1 - slope)
                row_store(dot_sums, i, row_add(row_load(dot_sums, i, count), dot), False)
                row_store(score_sums, i, row_add(row_load(score_sums, i, count), gradient), False)

    return run


@cache
def _compile_columns(width: int, count: int) -> Any:
    version = VERSION

    @kernel
    def run(
        team: Any,
        matrix: Any,
        state: Any,
        grad: Any,
        partial: Any,
        dots: Any,
        dropout: Any,
        x: Any,
        projection: Any,
        weights: Any,
        grad_scores: Any,
        accumulate: Any,
        sums: Any,
        grad_x: Any,
    ) -> None:
        """The gradients of h, the column scores and, where `weights` has a part for them, the row scores are made for a
        block of rows at a time; its products are the gradients of x and, added up over `sums`, of the weights."""
        _ = version  # part of the cache key
        chunks, slope = matrix[4], state[3]
        for group in items(team):
            room = row_zero(x, width), row_zero(x, count), np.empty((BATCH, count), x.dtype)
            given = matrix, state, grad, partial
            h, gradients = np.empty((BLOCK, width), x.dtype), np.empty((BLOCK, len(weights)), x.dtype)
            begin = chunks[(len(chunks) - 1) * group // len(sums)]
            end = chunks[(len(chunks) - 1) * (group + 1) // len(sums)]
            for block in range(begin, end, BLOCK):
                rows = slice(block, min(block + BLOCK, end))
                size = rows.stop - block
                block_matmul(x[rows], projection, h[:size], False)
                for j in range(block, rows.stop):
                    y, positive_y, total, positive = _sums_of_all(j, given, dots, dropout, room)
                    own = row_load(h, j - block, width)
                    gradient = row_sub(_group_sum(row_mul(own, y), total), total)
                    positive = row_sub(_group_sum(row_mul(own, positive_y), total), positive)
                    gradient = row_add(row_scale(gradient, slope), row_scale(positive, 1 - slope))
                    row_store(gradients, j - block, y, False)
                    row_store(gradients[:, width:], j - block, gradient, False)
                    if len(weights) > width + count:
                        row_store(gradients[:, width + count :], j - block, row_load(grad_scores, j, count), False)
                block_matmul(gradients[:size], weights, grad_x[rows], accumulate)
                block_matmul(gradients[:size].T, x[rows], sums[group], True)

    return run
