"""numba kernels of bpr_loss: the loss pair by pair of user and positive, its gradients node by node."""

from __future__ import annotations

from functools import cache
from typing import Any

import numba
import numpy as np
import torch

from gnnrec.graph import _build
from gnnrec.graph.schedule import balanced_chunks
from gnnrec.ops._numba import VERSION, kernel
from gnnrec.ops._parallel import items, new_counter, workers
from gnnrec.ops._row_math import row_dot, row_fma, row_scale, row_sub
from gnnrec.ops._vector import MAX_DIM, can_stream, fence, row_load, row_prefetch, row_store, row_zero

BLOCK = 256  # pairs a thread takes at a time
AHEAD = 8  # places of the batch; of pairs as many as have three times so many rows


def loss(final: Any, ego: Any, triples: Any, reg: float, hardest: bool) -> float:
    """The mean over the batch, float64; final [nodes, dim], ego [nodes, ego_dim], triples int64 [2 + n, batch]."""
    margins, triples = _margins(final, triples, hardest)
    squares = np.zeros_like(margins[0])
    if reg:
        for start in range(0, ego.shape[1], MAX_DIM):
            panel = ego[:, start : start + MAX_DIM]
            _compile_squares(panel.shape[1], len(triples))(panel, triples, squares)
    return float(_mean(margins, squares, reg))


def loss_backward(
    grad: float, final: Any, ego: Any, triples: Any, reg: float, hardest: bool, grad_final: Any, grad_ego: Any
) -> None:
    """Fill the gradients, every row once; grad_ego only with reg."""
    margins, triples = _margins(final, triples, hardest)
    nodes, batch = len(final), triples.shape[1]
    number = margins.dtype.type
    weights = _weights(margins, number(grad / margins.size)).reshape(-1)
    # Which places of the batch a node stands in, in their order.
    indptr, places = _build.group_by(triples.reshape(-1), np.arange(triples.size, dtype=np.int32), nodes)
    chunks = balanced_chunks(torch.from_numpy(indptr)).numpy()
    for start in range(0, final.shape[1], MAX_DIM):
        panel = slice(start, start + MAX_DIM)
        out = grad_final[:, panel]
        compiled = _compile_gradient(out.shape[1], len(triples), can_stream(out))
        compiled(indptr, places, chunks, triples, weights, final[:, panel], out)
    if reg:
        for start in range(0, ego.shape[1], MAX_DIM):
            panel = slice(start, start + MAX_DIM)
            out = grad_ego[:, panel]
            compiled = _compile_decay(out.shape[1], len(triples), can_stream(out))
            compiled(indptr, places, chunks, batch, ego[:, panel], number(reg * grad / batch), out)


def _margins(final: Any, triples: Any, hardest: bool) -> Any:
    """s(u, n) - s(u, p) of the negatives that count, [n, batch], and the triples with these alone."""
    margins = np.zeros((len(triples) - 2, triples.shape[1]), np.float64 if final.dtype == np.float64 else np.float32)
    for start in range(0, final.shape[1], MAX_DIM):
        panel = final[:, start : start + MAX_DIM]
        _compile_margins(panel.shape[1], len(triples))(panel, triples, margins)
    return _hardest(margins, triples) if hardest else (margins, triples)


@kernel
def _hardest(margins: Any, triples: Any) -> Any:
    """The negative with the highest margin, the first of equal ones: margins [1, batch] and triples [3, batch]."""
    negatives, batch = margins.shape
    highest, chosen = np.empty((1, batch), margins.dtype), np.empty((3, batch), triples.dtype)
    for b in numba.prange(batch):
        best = 0
        for k in range(1, negatives):
            # NaN counts as the highest, so that the loss shows it.
            if not margins[k, b] <= margins[best, b] and not np.isnan(margins[best, b]):
                best = k
        highest[0, b] = margins[best, b]
        chosen[0, b], chosen[1, b], chosen[2, b] = triples[0, b], triples[1, b], triples[2 + best, b]
    return highest, chosen


@kernel
def _mean(margins: Any, squares: Any, reg: Any) -> Any:
    """Blocks first, then their sums in order, in float64."""
    negatives, batch = margins.shape
    share = 1 / negatives
    partial = np.zeros((batch + BLOCK - 1) // BLOCK)
    for block in numba.prange(len(partial)):
        total = 0.0
        for b in range(block * BLOCK, min((block + 1) * BLOCK, batch)):
            losses = 0.0
            for k in range(negatives):
                margin = np.float64(margins[k, b])
                losses += max(margin, 0.0) + np.log1p(np.exp(-abs(margin)))
            total += losses * share + 0.5 * reg * squares[b]
        partial[block] = total
    total = 0.0
    for block in range(len(partial)):
        total += partial[block]
    return total / batch


@kernel
def _weights(margins: Any, factor: Any) -> Any:
    """The derivatives by the scores of factor * softplus, [1 + n, batch]: of the positive, then of every negative."""
    negatives, batch = margins.shape
    weights = np.empty((1 + negatives, batch), margins.dtype)
    for b in numba.prange(batch):
        weights[0, b] = 0
        for k in range(negatives):
            weight = factor / (1 + np.exp(-margins[k, b]))
            weights[1 + k, b] = weight
            weights[0, b] -= weight
    return weights


@cache
def _compile_margins(dim: int, roles: int) -> Any:
    version, distance = VERSION, max(1, 3 * AHEAD // roles)

    @kernel
    def run(final: Any, triples: Any, margins: Any) -> None:
        _ = version  # part of the cache key
        batch = triples.shape[1]
        for block in numba.prange((batch + BLOCK - 1) // BLOCK):
            for b in range(block * BLOCK, min((block + 1) * BLOCK, batch)):
                ahead = min(b + distance, batch - 1)
                for role in range(roles):
                    row_prefetch(final, triples[role, ahead], dim)
                user, positive = row_load(final, triples[0, b], dim), row_load(final, triples[1, b], dim)
                for role in range(2, roles):
                    negative = row_load(final, triples[role, b], dim)
                    margins[role - 2, b] += row_dot(user, row_sub(negative, positive))

    return run


@cache
def _compile_squares(dim: int, roles: int) -> Any:
    version, distance, share = VERSION, max(1, 3 * AHEAD // roles), 1 / (roles - 2)

    @kernel
    def run(ego: Any, triples: Any, squares: Any) -> None:
        _ = version
        batch = triples.shape[1]
        for block in numba.prange((batch + BLOCK - 1) // BLOCK):
            for b in range(block * BLOCK, min((block + 1) * BLOCK, batch)):
                ahead = min(b + distance, batch - 1)
                for role in range(roles):
                    row_prefetch(ego, triples[role, ahead], dim)
                for role in range(roles):
                    row = row_load(ego, triples[role, b], dim)
                    square = row_dot(row, row)
                    squares[b] += square if role < 2 else square * share

    return run


@cache
def _compile_gradient(dim: int, roles: int, stream: bool) -> Any:
    version = VERSION

    @kernel
    def run(indptr: Any, places: Any, chunks: Any, triples: Any, weights: Any, final: Any, grad_final: Any) -> None:
        _ = version
        batch, last = triples.shape[1], len(places) - 1
        counter = new_counter()
        for _worker in numba.prange(workers(len(chunks) - 1)):
            for chunk in items(counter, len(chunks) - 1):
                for i in range(chunks[chunk], chunks[chunk + 1]):
                    total = row_zero(final, dim)
                    for k in range(indptr[i], indptr[i + 1]):
                        ahead = places[min(k + AHEAD, last)]
                        row_prefetch(final, triples[0 if ahead >= batch else 1, ahead % batch], dim)
                        place = places[k]
                        if place < batch:  # the user: of all items, the positive last
                            for role in range(roles - 1, 0, -1):
                                weight = weights[(role - 1) * batch + place]
                                total = row_fma(row_load(final, triples[role, place], dim), weight, total)
                        else:
                            user = row_load(final, triples[0, place % batch], dim)
                            total = row_fma(user, weights[place - batch], total)
                    row_store(grad_final, i, total, stream)
                fence()

    return run


@cache
def _compile_decay(dim: int, roles: int, stream: bool) -> Any:
    version = VERSION

    @kernel
    def run(indptr: Any, places: Any, chunks: Any, batch: Any, ego: Any, decay: Any, grad_ego: Any) -> None:
        _ = version
        counter = new_counter()
        for _worker in numba.prange(workers(len(chunks) - 1)):
            for chunk in items(counter, len(chunks) - 1):
                for i in range(chunks[chunk], chunks[chunk + 1]):
                    # As often as the node stands in the batch, as one of the negatives for its share of them.
                    times = indptr[i + 1] - indptr[i]
                    for k in range(indptr[i], indptr[i + 1]):
                        times += (roles - 3) * (places[k] < 2 * batch)
                    row_store(grad_ego, i, row_scale(row_load(ego, i, dim), decay * (times / (roles - 2))), stream)
                fence()

    return run
