"""numba kernels of bpr_loss: the loss triple by triple, its gradients node by node."""

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

BLOCK = 256  # triples a thread takes at a time
AHEAD = 8  # triples, of three rows each


def loss(final: Any, ego: Any, triples: Any, reg: float) -> float:
    """The mean over the batch, float64; final [nodes, dim], ego [nodes, ego_dim], triples int64 [3, batch]."""
    margins = _margins(final, triples)
    squares = np.zeros_like(margins)
    if reg:
        for start in range(0, ego.shape[1], MAX_DIM):
            panel = ego[:, start : start + MAX_DIM]
            _compile_squares(panel.shape[1])(panel, triples, squares)
    return float(_mean(margins, squares, reg))


def loss_backward(grad: float, final: Any, ego: Any, triples: Any, reg: float, grad_final: Any, grad_ego: Any) -> None:
    """Fill the gradients, every row once; grad_ego only with reg."""
    margins = _margins(final, triples)
    nodes, batch = len(final), triples.shape[1]
    number = margins.dtype.type
    weights = _weights(margins, number(grad / batch))
    # Which places of the batch a node stands in, in their order.
    indptr, places = _build.group_by(triples.reshape(-1), np.arange(3 * batch, dtype=np.int32), nodes)
    chunks = balanced_chunks(torch.from_numpy(indptr)).numpy()
    for start in range(0, final.shape[1], MAX_DIM):
        panel = slice(start, start + MAX_DIM)
        out = grad_final[:, panel]
        compiled = _compile_gradient(out.shape[1], can_stream(out))
        compiled(indptr, places, chunks, triples, weights, final[:, panel], out)
    if reg:
        for start in range(0, ego.shape[1], MAX_DIM):
            panel = slice(start, start + MAX_DIM)
            out = grad_ego[:, panel]
            compiled = _compile_decay(out.shape[1], can_stream(out))
            compiled(indptr, chunks, weights, ego[:, panel], number(reg * grad / batch), out)


def _margins(final: Any, triples: Any) -> Any:
    """s(u, n) - s(u, p) of every triple, [batch]."""
    margins = np.zeros(triples.shape[1], np.float64 if final.dtype == np.float64 else np.float32)
    for start in range(0, final.shape[1], MAX_DIM):
        panel = final[:, start : start + MAX_DIM]
        _compile_margins(panel.shape[1])(panel, triples, margins)
    return margins


@kernel
def _mean(margins: Any, squares: Any, reg: Any) -> Any:
    """Blocks first, then their sums in order, in float64."""
    batch = len(margins)
    partial = np.zeros((batch + BLOCK - 1) // BLOCK)
    for block in numba.prange(len(partial)):
        total = 0.0
        for b in range(block * BLOCK, min((block + 1) * BLOCK, batch)):
            margin = np.float64(margins[b])
            total += max(margin, 0.0) + np.log1p(np.exp(-abs(margin))) + 0.5 * reg * squares[b]
        partial[block] = total
    total = 0.0
    for block in range(len(partial)):
        total += partial[block]
    return total / batch


@kernel
def _weights(margins: Any, factor: Any) -> Any:
    """The derivative of factor * softplus at every margin."""
    weights = np.empty_like(margins)
    for b in numba.prange(len(margins)):
        weights[b] = factor / (1 + np.exp(-margins[b]))
    return weights


@cache
def _compile_margins(dim: int) -> Any:
    version = VERSION

    @kernel
    def run(final: Any, triples: Any, margins: Any) -> None:
        _ = version  # part of the cache key
        batch = len(margins)
        for block in numba.prange((batch + BLOCK - 1) // BLOCK):
            for b in range(block * BLOCK, min((block + 1) * BLOCK, batch)):
                ahead = min(b + AHEAD, batch - 1)
                for role in range(3):
                    row_prefetch(final, triples[role, ahead], dim)
                user, positive = row_load(final, triples[0, b], dim), row_load(final, triples[1, b], dim)
                margins[b] += row_dot(user, row_sub(row_load(final, triples[2, b], dim), positive))

    return run


@cache
def _compile_squares(dim: int) -> Any:
    version = VERSION

    @kernel
    def run(ego: Any, triples: Any, squares: Any) -> None:
        _ = version
        batch = len(squares)
        for block in numba.prange((batch + BLOCK - 1) // BLOCK):
            for b in range(block * BLOCK, min((block + 1) * BLOCK, batch)):
                ahead = min(b + AHEAD, batch - 1)
                for role in range(3):
                    row_prefetch(ego, triples[role, ahead], dim)
                for role in range(3):
                    row = row_load(ego, triples[role, b], dim)
                    squares[b] += row_dot(row, row)

    return run


@cache
def _compile_gradient(dim: int, stream: bool) -> Any:
    version = VERSION

    @kernel
    def run(indptr: Any, places: Any, chunks: Any, triples: Any, weights: Any, final: Any, grad_final: Any) -> None:
        _ = version
        batch, last = len(weights), len(places) - 1
        counter = new_counter()
        for _worker in numba.prange(workers(len(chunks) - 1)):
            for chunk in items(counter, len(chunks) - 1):
                for i in range(chunks[chunk], chunks[chunk + 1]):
                    total = row_zero(final, dim)
                    for k in range(indptr[i], indptr[i + 1]):
                        ahead = places[min(k + AHEAD, last)]
                        row_prefetch(final, triples[0 if ahead >= batch else 1, ahead % batch], dim)
                        place = places[k]
                        b = place % batch
                        if place < batch:  # the user: weight * (negative - positive)
                            total = row_fma(row_load(final, triples[2, b], dim), weights[b], total)
                            total = row_fma(row_load(final, triples[1, b], dim), -weights[b], total)
                        else:
                            weight = -weights[b] if place < 2 * batch else weights[b]
                            total = row_fma(row_load(final, triples[0, b], dim), weight, total)
                    row_store(grad_final, i, total, stream)
                fence()

    return run


@cache
def _compile_decay(dim: int, stream: bool) -> Any:
    version = VERSION

    @kernel
    def run(indptr: Any, chunks: Any, weights: Any, ego: Any, decay: Any, grad_ego: Any) -> None:
        _ = version
        counter = new_counter()
        for _worker in numba.prange(workers(len(chunks) - 1)):
            for chunk in items(counter, len(chunks) - 1):
                for i in range(chunks[chunk], chunks[chunk + 1]):
                    times = weights.dtype.type(indptr[i + 1] - indptr[i])  # as often as the node stands in the batch
                    row_store(grad_ego, i, row_scale(row_load(ego, i, dim), decay * times), stream)
                fence()

    return run
