"""numba kernels of gmm_conv, for the forward pass over the matrix and the backward pass over its transpose.

A block of rows is walked in batches of entries: their Gaussian weights are computed, a vector of entries at once, then
the batch's part of each row is aggregated for one kernel after the other. The aggregates lie in the caches until the
block is multiplied.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from gnnrec.graph.schedule import PREFETCH_DISTANCE
from gnnrec.ops._matmul import BLOCK, CHUNKS, block_matmul
from gnnrec.ops._numba import VERSION, inline
from gnnrec.ops._parallel import consecutive, items, kernel
from gnnrec.ops._row_math import row_add, row_dot, row_exp, row_fma, row_mul, row_mul_add, row_scale, row_splat, row_sub
from gnnrec.ops._stacks import panels
from gnnrec.ops._vector import at, row_load, row_prefetch, row_store, row_zero

LANES = 16  # entries whose weights are computed at once
BATCH = 64  # entries whose rows are gathered for one kernel after the other: they fit the first-level cache
STEPS = BATCH // LANES


def gmm(matrix: tuple[Any, ...], x: Any, pseudo: Any, mu: Any, inv_sigma: Any, weight: Any, out: Any) -> None:
    """out = sum over kernels k of (the matrix weighted by the k-th Gaussian) @ x @ weight[k].

    Args:
        matrix: as `_stacks.scaled_arrays` gives it.
        x: [cols, in].
        pseudo: [nnz, p]; mu, inv_sigma: [kernels, p]; weight: [kernels, in, n]; out: [rows, n]: contiguous and of the
            dtype of the computation.
    """
    gaussians = pseudo.reshape(-1), mu, inv_sigma
    for panel in panels(x):
        factor = _factor(weight, panel)
        products, sums = np.empty((0, *factor.shape), out.dtype), np.empty((0, 0, LANES), out.dtype)
        unused = out, factor, products, sums, gaussians[0]
        _run(matrix, x[:, panel], *gaussians, factor, panel.start > 0, out, *unused)


def gmm_backward(
    matrix: tuple[Any, ...],
    grad: Any,
    x: Any,
    pseudo: Any,
    mu: Any,
    inv_sigma: Any,
    weight: Any,
    grad_x: Any,
    grad_pseudo: Any,
    grad_mu: Any,
    grad_inv_sigma: Any,
    grad_weight: Any,
) -> None:
    """Fill the gradients of x, pseudo, mu, inv_sigma and weight.

    Args:
        matrix: the transpose of the forward pass's, its entries naming those of the matrix.
        grad: [rows, out].
        x, ..., inv_sigma: as in the forward pass; weight: [kernels, out, in].
    """
    (kernels, coordinates), dim = mu.shape, x.shape[1]
    gaussians = pseudo.reshape(-1), mu, inv_sigma
    parts, pieces = min(CHUNKS, len(matrix[4]) - 1), len(matrix[5])
    sums = np.zeros((parts + pieces, 2 * kernels * coordinates, LANES), x.dtype)
    grad_pseudo[...] = 0
    for panel in panels(grad):
        factor = _factor(weight, panel)
        products = np.zeros((parts, *factor.shape), x.dtype)
        backward = x, factor.T.copy(), products, sums, grad_pseudo.reshape(-1)
        _run(matrix, grad[:, panel], *gaussians, factor, panel.start > 0, grad_x, *backward)
        grad_weight[:, panel] = products.sum(axis=0).reshape(kernels, -1, dim)
    grad_mu[...], grad_inv_sigma[...] = sums.sum(axis=(0, 2)).reshape(2, kernels, coordinates)


def _factor(weight: Any, panel: slice) -> Any:
    """Some rows of every kernel's weight below each other."""
    return np.ascontiguousarray(weight[:, panel]).reshape(-1, weight.shape[2])


def _run(
    matrix: tuple[Any, ...],
    x: Any,
    pseudo: Any,
    mu: Any,
    inv_sigma: Any,
    factor: Any,
    accumulate: bool,
    out: Any,
    *backward: Any,
) -> None:
    """Call the kernels for some columns of x."""
    dim, pieces = x.shape[1], matrix[5]
    partial = np.empty((len(pieces) * len(mu), dim), out.dtype)
    if len(pieces):
        _compile_pieces(dim)(len(pieces), *matrix, x, pseudo, mu, inv_sigma, partial, *backward)
    parts = len(backward[2]) or len(matrix[4]) - 1  # of products, where there are some
    _compile(dim)(parts, *matrix, x, pseudo, mu, inv_sigma, factor, accumulate, partial, out, *backward)


@inline
def _weigh(
    indices: Any,
    entries: Any,
    start: Any,
    stop: Any,
    col_scales: Any,
    pseudo: Any,
    mu: Any,
    inv_sigma: Any,
    u: Any,
    w: Any,
    x: Any,
    like: Any,
) -> None:
    """Gaussian weights of a batch of entries, times the scales of their columns.

    Args:
        u: [(1 + p) * STEPS, LANES], receives the entries' scales and coordinates, 0 beyond the last.
        w: [kernels * STEPS, LANES], receives the weights.
        x: what is gathered next; a Row `like` its rows.
    """
    flat, last = u.reshape(-1), len(indices) - 1
    kernels, coordinates = mu.shape
    for e in range(start, stop):
        row_prefetch(x, at(indices, min(e + PREFETCH_DISTANCE, last)), like)
        flat[e - start] = at(col_scales, at(indices, e))
    for p in range(coordinates):
        offset = (1 + p) * BATCH - start
        for e in range(start, stop):
            entry = at(entries, e) if len(entries) > 0 else e
            flat[offset + e] = at(pseudo, entry * coordinates + p)
    steps = (stop - start + LANES - 1) // LANES
    for p in range(1 + coordinates):
        for t in range(stop - start, steps * LANES):
            flat[p * BATCH + t] = 0
    zero = row_zero(u, LANES)
    for step in range(steps):
        for k in range(kernels):
            exponent = zero
            for p in range(coordinates):
                distance = row_sub(row_load(u, (1 + p) * STEPS + step, LANES), row_splat(mu[k, p], zero))
                distance = row_scale(distance, inv_sigma[k, p])
                exponent = row_mul_add(distance, distance, exponent)
            weight = row_exp(row_scale(exponent, u.dtype.type(-0.5)))
            row_store(w, k * STEPS + step, row_mul(weight, row_load(u, step, LANES)), False)


@inline
def _differentiate(
    entries: Any, start: Any, stop: Any, mu: Any, inv_sigma: Any, u: Any, w: Any, sums: Any, grad_pseudo: Any
) -> None:
    """From w, each weight times its gradient: adds to the gradients of mu, then inv_sigma, a sum for each lane in
    sums [2 * kernels * p, LANES], and to those of the coordinates; overwrites u with these."""
    kernels, coordinates = mu.shape
    flat, flat_w = u.reshape(-1), w.reshape(-1)
    steps = (stop - start + LANES - 1) // LANES
    for k in range(kernels):
        for t in range(stop - start, steps * LANES):
            flat_w[k * BATCH + t] = 0
    for step in range(steps):
        for p in range(coordinates):
            coordinate, total = row_load(u, (1 + p) * STEPS + step, LANES), row_zero(u, LANES)
            for k in range(kernels):
                distance = row_sub(coordinate, row_splat(mu[k, p], total))
                change = row_scale(row_mul(row_load(w, k * STEPS + step, LANES), distance), inv_sigma[k, p])
                total = row_fma(change, -inv_sigma[k, p], total)
                place = k * coordinates + p
                row_store(sums, place, row_fma(change, inv_sigma[k, p], row_load(sums, place, LANES)), False)
                place += kernels * coordinates
                row_store(sums, place, row_sub(row_load(sums, place, LANES), row_mul(change, distance)), False)
            row_store(u, (1 + p) * STEPS + step, total, False)
    for p in range(coordinates):
        offset = (1 + p) * BATCH - start
        for e in range(start, stop):
            grad_pseudo[at(entries, e) * coordinates + p] += flat[offset + e]


@inline
def _walk(
    bounds: Any,
    scales: Any,
    indices: Any,
    entries: Any,
    col_scales: Any,
    x: Any,
    pseudo: Any,
    mu: Any,
    inv_sigma: Any,
    target: Any,
    backward: Any,
    features: Any,
    back: Any,
    sums: Any,
    grad_pseudo: Any,
    zero: Any,
) -> None:
    """target[r * kernels + k] = scales[r] * the sum of the rows of x that the entries [bounds[r], bounds[r + 1]) name,
    weighted by the k-th Gaussian.

    In the backward pass the gradients of the weights are dot products of features @ back with the rows of x, and those
    of what the weights depend on are added to sums[0] and grad_pseudo.
    """
    kernels, rows = len(mu), len(scales)
    u = np.empty(((1 + mu.shape[1]) * STEPS, LANES), mu.dtype)
    w = np.empty((kernels * STEPS, LANES), mu.dtype)
    transformed = np.empty(target.shape, mu.dtype)
    if backward:
        block_matmul(features, back, transformed.reshape(-1, back.shape[1])[:rows], False)
    for place in range(rows * kernels):
        row_store(target, place, zero, False)
    flat, row = w.reshape(-1), 0
    for begin in range(bounds[0], bounds[rows], BATCH):
        end = min(begin + BATCH, bounds[rows])
        _weigh(indices, entries, begin, end, col_scales, pseudo, mu, inv_sigma, u, w, x, zero)
        start = begin
        while start < end:
            stop = min(bounds[row + 1], end)
            for k in range(kernels):
                place, offset = row * kernels + k, k * BATCH - begin
                total = row_load(target, place, zero)
                if backward:
                    right = row_scale(row_load(transformed, place, zero), scales[row])
                    for e in range(start, stop):
                        left, weight = row_load(x, at(indices, e), zero), at(flat, offset + e)
                        total = row_fma(left, weight, total)
                        flat[offset + e] = row_dot(left, right) * weight
                else:
                    for e in range(start, stop):
                        total = row_fma(row_load(x, at(indices, e), zero), at(flat, offset + e), total)
                row_store(target, place, total, False)
            if stop == bounds[row + 1]:
                row += 1
            start = stop
        if backward:
            _differentiate(entries, begin, end, mu, inv_sigma, u, w, sums[0], grad_pseudo)
    for row in range(rows):
        for place in range(row * kernels, (row + 1) * kernels):
            row_store(target, place, row_scale(row_load(target, place, zero), scales[row]), False)


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
        pseudo: Any,
        mu: Any,
        inv_sigma: Any,
        partial: Any,
        other: Any,
        back: Any,
        products: Any,
        sums: Any,
        grad_pseudo: Any,
    ) -> None:
        """The aggregates of long rows' pieces."""
        _ = version  # part of the cache key
        kernels, parts = len(mu), len(products)
        for r in consecutive(team):
            i = pieces[r, 0]
            _walk(
                pieces[r, 1:], row_scales[i : i + 1], indices, entries, col_scales, x, pseudo, mu, inv_sigma,
                partial[r * kernels : (r + 1) * kernels], parts > 0, other[i : i + 1], back,
                sums[parts + r : parts + r + 1], grad_pseudo, row_zero(partial, dim),
            )  # fmt: skip

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
        pseudo: Any,
        mu: Any,
        inv_sigma: Any,
        weight: Any,
        accumulate: Any,
        partial: Any,
        out: Any,
        other: Any,
        back: Any,
        products: Any,
        sums: Any,
        grad_pseudo: Any,
    ) -> None:
        """out = (out +) aggregates @ weight.

        Args:
            weight: [kernels * dim, n].
            partial: [pieces * kernels, dim], the aggregates of long rows' pieces.
            other, back: the features [rows, n] and the transpose of weight.
            products, sums: [parts, kernels * dim, n] and [parts + pieces, 2 * kernels * p, LANES], zeros that receive
                the gradients of weights and Gaussians; a part belongs to a thread. Without parts it is the forward
                pass.
            grad_pseudo: [nnz * p], is added to.
        """
        _ = version
        kernels, count, backward, parts = len(mu), len(chunks) - 1, len(products) > 0, team.total
        for part in items(team):
            zero = row_zero(partial, dim)
            aggregates = np.empty((BLOCK * kernels, dim), mu.dtype)
            first, end = chunks[part * count // parts], chunks[(part + 1) * count // parts]
            number = 0
            while number < len(long) and long[number, 0] < first:
                number += 1
            while first < end:
                stop = min(first + BLOCK, end)
                if number < len(long):
                    stop = min(stop, max(long[number, 0], first + 1))
                if number < len(long) and long[number, 0] == first:
                    for k in range(kernels):
                        total = zero
                        for r in range(long[number, 1], long[number, 2]):
                            total = row_add(total, row_load(partial, r * kernels + k, zero))
                        row_store(aggregates, k, total, False)
                    number += 1
                else:
                    _walk(
                        indptr[first : stop + 1], row_scales[first:stop], indices, entries, col_scales, x,
                        pseudo, mu, inv_sigma, aggregates, backward, other[first:stop], back,
                        sums[part : part + 1], grad_pseudo, zero,
                    )  # fmt: skip
                block = aggregates.reshape(BLOCK, -1)[: stop - first]
                block_matmul(block, weight, out[first:stop], accumulate)
                if backward:
                    block_matmul(block.T, other[first:stop], products[part], True)
                first = stop

    return run
