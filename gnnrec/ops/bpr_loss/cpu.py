"""numba kernels of bpr_loss: the loss pair by pair of user and positive, its gradients node by node."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch

from gnnrec.graph import _build
from gnnrec.graph.schedule import balanced_chunks
from gnnrec.ops import _arguments
from gnnrec.ops._numba import VERSION
from gnnrec.ops._parallel import consecutive, items, kernel
from gnnrec.ops._row_math import row_fma, row_fold, row_mul, row_scale, row_sub
from gnnrec.ops._vector import MAX_DIM, can_stream, fence, row_load, row_prefetch, row_store, row_zero

BLOCK = 256  # pairs a thread takes at a time
UNSCORED = -1e4  # a margin that costs nothing: softplus of it is 0
AHEAD = 8  # places of the batch; of pairs as many as have three times so many rows


def loss(final: Any, ego: Any, triples: Any, reg: float, hardest: bool) -> float:
    """The mean over the batch, float64; final [nodes, dim], ego [nodes, ego_dim], triples int64 [2 + n, batch]."""
    margins = new_margins(triples, final.dtype)
    add_margins(final, triples, margins)
    margins, triples, _ = counted(margins, triples, new_squares(triples, margins, False), hardest)
    squares = new_squares(triples, margins, reg > 0)
    if reg:
        add_squares(ego, triples, squares)
    return mean(margins, squares, reg)


def loss_backward(
    grad: float, final: Any, ego: Any, triples: Any, reg: float, hardest: bool, grad_final: Any, grad_ego: Any
) -> None:
    """Fill the gradients, every row once; grad_ego only with reg."""
    margins = new_margins(triples, final.dtype)
    add_margins(final, triples, margins)
    margins, triples, _ = counted(margins, triples, new_squares(triples, margins, False), hardest)
    pairs = grouped(grad, margins, triples, len(final))
    fill_gradient(pairs, final, grad_final)
    if reg:
        _fill_decay(decay_factors(pairs, reg * grad), ego, grad_ego)


def new_margins(triples: Any, dtype: Any) -> Any:
    """Zeros [n, batch] for `add_margins`."""
    return np.zeros((len(triples) - 2, triples.shape[1]), np.float64 if dtype == np.float64 else np.float32)


def add_margins(final: Any, triples: Any, margins: Any) -> None:
    """Add the part of s(u, n) - s(u, p) that these columns of the final embeddings have. Columns given in turn, a
    multiple of 16 at a time, make the same bits as all of them at once."""
    for start in range(0, final.shape[1], MAX_DIM):
        panel = final[:, start : start + MAX_DIM]
        _compile_margins(panel.shape[1], len(triples))(_blocks(triples.shape[1]), panel, triples, margins)


def new_squares(triples: Any, margins: Any, wanted: bool) -> Any:
    """Zeros [2 + n, batch] for `add_squares`, or [2 + n, 0] where there is no L2 term."""
    return np.zeros((len(triples), triples.shape[1] if wanted else 0), margins.dtype)


def add_squares(ego: Any, triples: Any, squares: Any) -> None:
    """Add the squares of these columns of the ego embeddings, as `add_margins` does."""
    for start in range(0, ego.shape[1], MAX_DIM):
        panel = ego[:, start : start + MAX_DIM]
        _compile_squares(panel.shape[1], len(triples))(_blocks(triples.shape[1]), panel, triples, squares)


def counted(margins: Any, triples: Any, squares: Any, hardest: bool) -> tuple[Any, Any, Any]:
    """What belongs to the negatives that count: all, or the hardest alone."""
    if not hardest:
        return margins, triples, squares
    batch = triples.shape[1]
    highest, chosen = np.empty((1, batch), margins.dtype), np.empty((3, batch), triples.dtype)
    kept = np.empty((3, squares.shape[1]), margins.dtype)
    _hardest(batch, margins, triples, squares, highest, chosen, kept)
    return highest, chosen, kept


def mean(margins: Any, squares: Any, reg: float) -> float:
    """The loss of the negatives that count, float64."""
    batch = margins.shape[1]
    partial = np.empty(_blocks(batch))
    _sum_losses(len(partial), margins, squares, reg, partial)
    result: float = float(np.add.accumulate(partial)[-1]) / batch
    return result


class Pairs(NamedTuple):
    """A batch for the backward pass.

    Args:
        triples: int64 [2 + n, batch], with the negatives that count.
        weights: the derivatives by the scores of positives, then of negatives, [(1 + n) * batch].
        indptr, places: of every node, which places of the batch it stands in, in their order.
        chunks: of nodes, of about equal work.
    """

    triples: Any
    weights: Any
    indptr: Any
    places: Any
    chunks: Any


def grouped(grad: float, margins: Any, triples: Any, nodes: int) -> Pairs:
    """The pairs by node; grad: of the loss."""
    negatives, batch = margins.shape
    weights = np.empty((1 + negatives) * batch, margins.dtype)
    _weights(batch, margins, margins.dtype.type(grad / margins.size), weights.reshape(-1, batch))
    indptr, places = _build.group_by(triples.reshape(-1), np.arange(triples.size, dtype=np.int32), nodes)
    return Pairs(triples, weights, indptr, places, balanced_chunks(torch.from_numpy(indptr)).numpy())


def fill_gradient(pairs: Pairs, final: Any, out: Any) -> None:
    """The gradient by these columns of the final embeddings."""
    triples, weights, *groups = pairs
    for start in range(0, final.shape[1], MAX_DIM):
        panel = slice(start, start + MAX_DIM)
        target = out[:, panel]
        compiled = _compile_gradient(target.shape[1], len(triples), can_stream(target))
        compiled(len(pairs.chunks) - 1, *groups, triples, weights, final[:, panel], target)


def decay_factors(pairs: Pairs, reg: float) -> Any:
    """Of every node: its ego embedding times this is the gradient of the L2 term; reg: its weight times that of the
    loss."""
    triples, weights, indptr, places, _ = pairs
    batch = triples.shape[1]
    factors = np.empty(len(indptr) - 1, weights.dtype)
    _decay_factors(len(factors), indptr, places, batch, len(triples), factors.dtype.type(reg / batch), factors)
    return factors


class Panels:
    """What `BPRPanels` does with the panels of a batch.

    Args:
        triples: int64 [2 + n, batch], within so many nodes.
        reg, hardest: as for `bpr_loss`.
    """

    def __init__(self, triples: Any, nodes: int, reg: float, hardest: bool) -> None:
        self._triples, self._nodes, self._reg, self._hardest = triples, nodes, reg, hardest
        self._margins = new_margins(triples, np.float32)
        self._squares = new_squares(triples, self._margins, reg > 0)
        self._pairs: Pairs | None = None

    @property
    def margins(self) -> torch.Tensor:
        """s(u, n) - s(u, p) by the columns so far, float32 [n, batch]; whoever has others adds them here."""
        return torch.from_numpy(self._margins)

    def add(self, final: torch.Tensor, ego: torch.Tensor | None) -> None:
        """The next columns of the embeddings of the nodes."""
        add_margins(_arguments.array(final), self._triples, self._margins)
        if self._reg and ego is not None:
            add_squares(_arguments.array(ego), self._triples, self._squares)

    def penalty(self) -> torch.Tensor:
        """The L2 term of the loss by the columns so far, float32 []; with `hardest` once margins are whole."""
        margins, _, squares = counted(self._margins, self._triples, self._squares, self._hardest)
        return torch.tensor(mean(np.full_like(margins, UNSCORED), squares, self._reg), dtype=torch.float32)

    def loss(self, penalty: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The loss, and the nodes' factors of the L2 term where there is one; penalty: that term, if it is known."""
        margins, triples, squares = counted(self._margins, self._triples, self._squares, self._hardest)
        self._pairs = grouped(1.0, margins, triples, self._nodes)
        decay = torch.from_numpy(decay_factors(self._pairs, self._reg)) if self._reg else None
        if penalty is not None:
            return torch.tensor(mean(margins, squares[:, :0], 0.0), dtype=torch.float32) + penalty, decay
        return torch.tensor(mean(margins, squares, self._reg), dtype=torch.float32), decay

    def fill_gradient(self, final: torch.Tensor, out: torch.Tensor) -> None:
        """The gradient by these columns, after the loss."""
        assert self._pairs is not None, "the loss comes first"
        fill_gradient(self._pairs, _arguments.array(final), _arguments.array(out))


def _fill_decay(factors: Any, ego: Any, out: Any) -> None:
    for start in range(0, ego.shape[1], MAX_DIM):
        panel = slice(start, start + MAX_DIM)
        target = out[:, panel]
        _compile_decay(target.shape[1], can_stream(target))(_blocks(len(factors)), factors, ego[:, panel], target)


def _blocks(rows: int) -> int:
    return -(-rows // BLOCK)


@kernel
def _hardest(team: Any, margins: Any, triples: Any, squares: Any, highest: Any, chosen: Any, kept: Any) -> None:
    """The negative with the highest margin, the first of equal ones: fills margins [1, batch], triples and squares
    [3, batch] (or [3, 0])."""
    negatives = len(margins)
    for b in consecutive(team):
        best = 0
        for k in range(1, negatives):
            # NaN counts as the highest, so that the loss shows it.
            if not margins[k, b] <= margins[best, b] and not np.isnan(margins[best, b]):
                best = k
        highest[0, b] = margins[best, b]
        chosen[0, b], chosen[1, b], chosen[2, b] = triples[0, b], triples[1, b], triples[2 + best, b]
        if squares.shape[1] > 0:
            kept[0, b], kept[1, b], kept[2, b] = squares[0, b], squares[1, b], squares[2 + best, b]


@kernel
def _sum_losses(team: Any, margins: Any, squares: Any, reg: Any, partial: Any) -> None:
    """Fill the sum of every block, in float64."""
    negatives, batch = margins.shape
    share = 1 / negatives
    for block in consecutive(team):
        total = 0.0
        for b in range(block * BLOCK, min((block + 1) * BLOCK, batch)):
            losses = 0.0
            for k in range(negatives):
                margin = np.float64(margins[k, b])
                losses += max(margin, 0.0) + np.log1p(np.exp(-abs(margin)))
            if squares.shape[1] > 0:
                others = 0.0
                for k in range(negatives):
                    others += squares[2 + k, b]
                losses += 0.5 * reg * (negatives * (np.float64(squares[0, b]) + squares[1, b]) + others)
            total += losses * share
        partial[block] = total


@kernel
def _weights(team: Any, margins: Any, factor: Any, weights: Any) -> None:
    """Fill the derivatives by the scores of factor * softplus: of the positive, then of every negative."""
    negatives = len(margins)
    for b in consecutive(team):
        weights[0, b] = 0
        for k in range(negatives):
            weight = factor / (1 + np.exp(-margins[k, b]))
            weights[1 + k, b] = weight
            weights[0, b] -= weight


@cache
def _compile_margins(dim: int, roles: int) -> Any:
    version, distance = VERSION, max(1, 3 * AHEAD // roles)

    @kernel
    def run(team: Any, final: Any, triples: Any, margins: Any) -> None:
        _ = version  # part of the cache key
        batch = triples.shape[1]
        for block in consecutive(team):
            for b in range(block * BLOCK, min((block + 1) * BLOCK, batch)):
                ahead = min(b + distance, batch - 1)
                for role in range(roles):
                    row_prefetch(final, triples[role, ahead], dim)
                user, positive = row_load(final, triples[0, b], dim), row_load(final, triples[1, b], dim)
                for role in range(2, roles):
                    negative = row_load(final, triples[role, b], dim)
                    scores = row_mul(user, row_sub(negative, positive))
                    margins[role - 2, b] = row_fold(margins[role - 2, b], scores)

    return run


@cache
def _compile_squares(dim: int, roles: int) -> Any:
    version, distance = VERSION, max(1, 3 * AHEAD // roles)

    @kernel
    def run(team: Any, ego: Any, triples: Any, squares: Any) -> None:
        _ = version
        batch = triples.shape[1]
        for block in consecutive(team):
            for b in range(block * BLOCK, min((block + 1) * BLOCK, batch)):
                ahead = min(b + distance, batch - 1)
                for role in range(roles):
                    row_prefetch(ego, triples[role, ahead], dim)
                for role in range(roles):
                    row = row_load(ego, triples[role, b], dim)
                    squares[role, b] = row_fold(squares[role, b], row_mul(row, row))

    return run


@cache
def _compile_gradient(dim: int, roles: int, stream: bool) -> Any:
    version = VERSION

    @kernel
    def run(
        team: Any, indptr: Any, places: Any, chunks: Any, triples: Any, weights: Any, final: Any, grad_final: Any
    ) -> None:
        _ = version
        batch, last = triples.shape[1], len(places) - 1
        for chunk in items(team):
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


@kernel
def _decay_factors(team: Any, indptr: Any, places: Any, batch: Any, roles: Any, decay: Any, factors: Any) -> None:
    """decay times how often a node stands in the batch, as one of the negatives for its share of them."""
    for i in consecutive(team):
        times = indptr[i + 1] - indptr[i]
        for k in range(indptr[i], indptr[i + 1]):
            times += (roles - 3) * (places[k] < 2 * batch)
        factors[i] = decay * (times / (roles - 2))


@cache
def _compile_decay(dim: int, stream: bool) -> Any:
    version = VERSION

    @kernel
    def run(team: Any, factors: Any, ego: Any, grad_ego: Any) -> None:
        _ = version
        for block in consecutive(team):
            for i in range(block * BLOCK, min((block + 1) * BLOCK, len(factors))):
                row_store(grad_ego, i, row_scale(row_load(ego, i, dim), factors[i]), stream)
            fence()

    return run
