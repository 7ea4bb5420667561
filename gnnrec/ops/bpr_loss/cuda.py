"""Triton kernels of bpr_loss: the loss by blocks of pairs of user and positive, its gradients node by node over the
sorted batch."""

# mypy: ignore-errors

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from gnnrec import device as devices
from gnnrec.ops import _arguments, tuning
from gnnrec.ops._launch import MOST_REGISTERS, bits, launch, panel, power_of_2, rows_contiguous
from gnnrec.ops._panels import for_panel
from gnnrec.ops._sums import FOLD, fold, halves
from gnnrec.ops._tiles import TYPES, number
from gnnrec.ops.bpr_loss.cpu import UNSCORED
from gnnrec.ops.segment import cuda as segment

ROWS = 256  # pairs of a program that knows their scores


def loss(
    final: torch.Tensor, ego: torch.Tensor, triples: torch.Tensor, reg: float, hardest: bool, out: torch.Tensor
) -> None:
    """Fill `out`, a scalar, with the mean over the batch.

    Args:
        final: [nodes, dim]; ego: [nodes, ego_dim]; triples: int64 [2 + n, batch], within the nodes.
    """
    margins, triples, _ = counted(add_margins(final, triples, None), triples, None, hardest)
    mean(margins, add_squares(ego, triples, None) if reg else None, reg, out)


def loss_backward(
    grad: torch.Tensor,
    final: torch.Tensor,
    ego: torch.Tensor,
    triples: torch.Tensor,
    reg: float,
    hardest: bool,
    deterministic: bool,
    grad_final: torch.Tensor,
    grad_ego: torch.Tensor | None,
) -> None:
    """Fill the gradients.

    Args:
        grad: of the loss, a scalar on the GPU.
        deterministic: every row written once, its terms in the batch's order; or with atomics, in any.
    """
    margins, chosen, _ = counted(add_margins(final, triples, None), triples, None, hardest)
    pairs = weighted(grad, margins, chosen, tuple(final.shape), _shape(final, triples))
    if deterministic:
        fill_gradients(pairs, segment.group(pairs.places, len(final)), final, grad_final, ego, grad_ego, reg)
        return
    columns, shape = panel(final.shape[1]), pairs.shape
    rows = _pairs_at_once(shape, margins.dtype, columns)
    sums = [None if x is None else segment.zeros(x) for x in (grad_final, grad_ego)]
    grid = -(-pairs.batch // rows), -(-final.shape[1] // columns)
    given, kinds = _given(pairs, final, ego, reg)
    launch(_add_gradients, grid, *given, *sums, warps=shape["triple_warps"], ROWS=rows, DIM=columns, **kinds)
    for out, total in zip((grad_final, grad_ego), sums):
        if total is not out:
            out.copy_(total)


def add_margins(final: torch.Tensor, triples: torch.Tensor, before: torch.Tensor | None) -> torch.Tensor:
    """Of every negative and pair, [n, batch]: `before`, or 0, plus the part of s(u, n) - s(u, p) that these columns of
    the final embeddings have. Columns given in turn, a multiple of 16 at a time, make the same bits as all at once."""
    size = len(triples) - 2, triples.shape[1]
    out = devices.empty(final, size, "the scores of pairs", _arguments.compute_dtype(final.dtype))
    _in_folds(_margins, final, triples, before, out, NEGATIVES=len(out))
    return out


def add_squares(ego: torch.Tensor, triples: torch.Tensor, before: torch.Tensor | None) -> torch.Tensor:
    """Of every role and pair, [2 + n, batch]: `before`, or 0, plus the squares of these columns of the ego embeddings,
    as `add_margins` does."""
    dtype = _arguments.compute_dtype(ego.dtype)
    out = devices.empty(ego, triples.shape, "the squares of ego embeddings", dtype)
    _in_folds(_squares, ego, triples, before, out, len(triples))
    return out


def counted(
    margins: torch.Tensor, triples: torch.Tensor, squares: torch.Tensor | None, hardest: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """What belongs to the negatives that count: all, or the hardest alone."""
    negatives, batch = margins.shape
    if not hardest or negatives == 1:
        return margins, triples, squares
    highest = devices.empty(margins, (1, batch), "the highest scores")
    chosen = devices.empty(triples, (3, batch), "the hardest negatives")
    kept = None if squares is None else devices.empty(squares, (3, batch), "the squares of ego embeddings")
    given = margins, triples.contiguous(), squares, batch, highest, chosen, kept
    launch(_hardest, (-(-batch // ROWS),), *given, NEGATIVES=negatives, ROWS=ROWS)
    return highest, chosen, kept


def mean(margins: torch.Tensor, squares: torch.Tensor | None, reg: float, out: torch.Tensor) -> None:
    """Fill `out`, a scalar, with the loss of the negatives that count: blocks first, then their sums in order, in
    float64."""
    negatives, batch = margins.shape
    partial = devices.empty(margins, -(-batch // ROWS), "the sums of pairs", torch.float64)
    launch(_losses, (len(partial),), margins, squares, bits(reg), batch, partial, NEGATIVES=negatives, ROWS=ROWS)
    launch(_mean, (1,), partial, len(partial), batch, out)


class Pairs(NamedTuple):
    """A batch for the backward pass.

    Args:
        grad: of the loss, a scalar.
        places: int32 [(2 + n) * batch], the nodes of users, positives and the negatives that count.
        weights: the derivatives by the scores of positives, then of negatives, [(1 + n) * batch].
        batch: pairs.
        dim: columns of the embeddings, of which there may be a part at a time.
        shape: to launch with for all of them.
    """

    grad: torch.Tensor
    places: torch.Tensor
    weights: torch.Tensor
    batch: int
    dim: int
    shape: tuning.Shape


def weighted(
    grad: torch.Tensor, margins: torch.Tensor, triples: torch.Tensor, size: tuple[int, int], shape: tuning.Shape
) -> Pairs:
    """The pairs, with the negatives that count; size: of the embeddings."""
    negatives, batch = margins.shape
    weights = devices.empty(margins, (1 + negatives) * batch, "the weights of pairs")
    launch(_weights, (-(-batch // ROWS),), margins, grad, batch, weights, NEGATIVES=negatives, ROWS=ROWS)
    return Pairs(grad, triples.reshape(-1).to(torch.int32), weights, batch, size[1], shape)


def fill_gradients(
    pairs: Pairs,
    groups: segment.Groups,
    final: torch.Tensor,
    grad_final: torch.Tensor,
    ego: torch.Tensor | None = None,
    grad_ego: torch.Tensor | None = None,
    reg: float = 0.0,
) -> None:
    """The gradient by these columns of the final embeddings, and that by the ego embeddings where it is wanted; groups:
    of equal places."""
    width = final.shape[1]
    tile = segment.tile(for_panel(pairs.shape, pairs.dim, width), width, final.dtype)
    given, kinds = _given(pairs, final, ego, reg)
    segment.walk(_gradients, groups, tile, final, *given, grad_final, grad_ego, **kinds)


def decay_factors(pairs: Pairs, groups: segment.Groups, reg: float) -> torch.Tensor:
    """Of every node: its ego embedding times this is the gradient of the L2 term."""
    out = devices.empty(pairs.weights, groups.size, "the factors of the L2 term")
    given = groups.indptr, groups.size, groups.order, pairs.batch, pairs.grad, bits(reg), out
    launch(_decay_factors, (-(-groups.size // ROWS),), *given, NEGATIVES=_negatives(pairs), ROWS=ROWS)
    return out


class Panels:
    """What `BPRPanels` does with the panels of a batch.

    Args:
        triples: int64 [2 + n, batch], within so many nodes.
        size: of the embeddings that the panels are of.
        reg, hardest: as for `bpr_loss`.
    """

    def __init__(self, triples: torch.Tensor, nodes: int, size: tuple[int, int], reg: float, hardest: bool) -> None:
        self._triples, self._nodes, self._size, self._reg, self._hardest = triples, nodes, size, reg, hardest
        self._margins: torch.Tensor | None = None
        self._squares: torch.Tensor | None = None
        self._pairs: Pairs | None = None
        self._groups: segment.Groups | None = None

    def add(self, final: torch.Tensor, ego: torch.Tensor | None) -> None:
        """The next columns of the embeddings of the nodes."""
        self._margins = add_margins(final, self._triples, self._margins)
        if self._reg and ego is not None:
            self._squares = add_squares(ego, self._triples, self._squares)

    @property
    def margins(self) -> torch.Tensor:
        """s(u, n) - s(u, p) by the columns so far, float32 [n, batch]; whoever has others adds them here."""
        assert self._margins is not None, "the panels come first"
        return self._margins

    def penalty(self) -> torch.Tensor:
        """The L2 term of the loss by the columns so far, float32 []; with `hardest` once margins are whole."""
        margins, _, squares = counted(self.margins, self._triples, self._squares, self._hardest)
        out = margins.new_empty(())
        mean(torch.full_like(margins, UNSCORED), squares, self._reg, out)
        return out

    def loss(self, penalty: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The loss, and the nodes' factors of the L2 term where there is one; penalty: that term, if it is known."""
        margins, triples, squares = counted(self.margins, self._triples, self._squares, self._hardest)
        out = margins.new_empty(())
        if penalty is None:
            mean(margins, squares, self._reg, out)
        else:
            mean(margins, None, 0.0, out)
            out += penalty
        shape = _tuned(self._size, triples, margins)
        self._pairs = weighted(torch.ones_like(out), margins, triples, self._size, shape)
        self._groups = segment.group(self._pairs.places, self._nodes)
        return out, decay_factors(self._pairs, self._groups, self._reg) if self._reg else None

    def fill_gradient(self, final: torch.Tensor, out: torch.Tensor) -> None:
        """The gradient by these columns, after the loss."""
        assert self._pairs is not None, "the loss comes first"
        fill_gradients(self._pairs, self._groups, final, out)


def _shape(final: torch.Tensor, triples: torch.Tensor) -> tuning.Shape:
    return _tuned(tuple(final.shape), triples, final)


def _tuned(size: tuple[int, int], triples: torch.Tensor, like: torch.Tensor) -> tuning.Shape:
    """The shape to launch with for embeddings of this size."""
    return tuning.choose("bpr_loss", size[1], 1, like.dtype, tuning.magnitudes(triples.shape[1], size[0]), like.device)


def _pairs_at_once(shape: tuning.Shape, work: torch.dtype, columns: int) -> int:
    return max(1, shape["triples"] * 4 // work.itemsize // columns)


def _negatives(pairs: Pairs) -> int:
    return len(pairs.weights) // pairs.batch - 1


def _given(
    pairs: Pairs, final: torch.Tensor, ego: torch.Tensor | None, reg: float
) -> tuple[tuple[object, ...], dict[str, object]]:
    """What the kernels of gradients take."""
    negatives, final, ego = _negatives(pairs), rows_contiguous(final), None if ego is None else rows_contiguous(ego)
    rows = final, final.stride(0), ego, 0 if ego is None else ego.stride(0)
    kinds = {"dim": final.shape[1], "ego_dim": 0 if ego is None else ego.shape[1], "NEGATIVES": negatives}
    # Left alone, ptxas 12.8 spills two registers of halves with several negatives.
    kinds |= {"WORK": TYPES[final.dtype], "registers": MOST_REGISTERS if negatives > 1 else None}
    return (pairs.places, pairs.batch, pairs.weights, pairs.grad, bits(reg), *rows), kinds


def _in_folds(kernel, x, triples, before, out, roles=1, **constants) -> None:
    """Launch a kernel for every so many columns as `fold` takes at once; the first ones are added to `before`."""
    x, triples, batch = rows_contiguous(x), triples.contiguous(), triples.shape[1]
    columns, shape = min(max(power_of_2(x.shape[1]), 16), FOLD), _shape(x, triples)
    rows = _pairs_at_once(shape, out.dtype, columns)
    for first in range(0, x.shape[1], columns):
        part = x[:, first : first + columns]
        kinds = {"dim": part.shape[1], "WORK": TYPES[out.dtype], "ROWS": rows, "DIM": columns}
        given = triples, batch, part, part.stride(0), before, out
        launch(kernel, (-(-batch // rows), roles), *given, warps=shape["triple_warps"], **kinds, **constants)
        before = out


@triton.jit
def _rows(x, stride, node, here, cols, WORK: tl.constexpr):
    return tl.load(x + node[:, None] * stride + cols[None, :], mask=here, other=0).to(WORK)


@triton.jit
def _start(before, place, there, WORK: tl.constexpr):
    """The sums so far [ROWS]."""
    total = tl.zeros(place.shape, WORK)
    if before is not None:
        total = tl.load(before + place, mask=there, other=0)
    return total


@triton.jit(do_not_specialize=["batch"])
def _margins(
    triples,
    batch,
    final,
    final_stride: tl.constexpr,
    before,
    out,
    dim: tl.constexpr,
    NEGATIVES: tl.constexpr,
    WORK: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
):
    """A block of pairs, whose users and positives are read once for all of their negatives."""
    place, cols = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, DIM)
    there = place < batch
    here = there[:, None] & (cols < dim)[None, :]
    user = tl.load(triples + place, mask=there, other=0)
    positive = tl.load(triples + batch + place, mask=there, other=0)
    mine = _rows(final, final_stride, user, here, cols, WORK)
    better = _rows(final, final_stride, positive, here, cols, WORK)
    for k in range(NEGATIVES):
        negative = tl.load(triples + (2 + k) * batch + place, mask=there, other=0)
        difference = _rows(final, final_stride, negative, here, cols, WORK) - better
        # Rounded before they are added, in every kernel: a compiler may make one of a product and a sum.
        terms = tl.fma(mine, difference, tl.zeros_like(mine))
        total = fold(_start(before, k * batch + place, there, WORK), terms)
        tl.store(out + k * batch + place, total, mask=there)


@triton.jit(do_not_specialize=["batch"])
def _squares(
    triples,
    batch,
    ego,
    ego_stride: tl.constexpr,
    before,
    out,
    dim: tl.constexpr,
    WORK: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
):
    """A block of pairs, one of their roles."""
    place, cols = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, DIM)
    there = place < batch
    place += tl.program_id(1) * batch
    node = tl.load(triples + place, mask=there, other=0)
    row = _rows(ego, ego_stride, node, there[:, None] & (cols < dim)[None, :], cols, WORK)
    total = fold(_start(before, place, there, WORK), tl.fma(row, row, tl.zeros_like(row)))
    tl.store(out + place, total, mask=there)


@triton.jit(do_not_specialize=["batch"])
def _hardest(margins, triples, squares, batch, highest, chosen, kept, NEGATIVES: tl.constexpr, ROWS: tl.constexpr):
    """The negative with the highest margin, the first of equal ones, into [1, batch] and [3, batch]."""
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = place < batch
    most = tl.load(margins + place, mask=there, other=0)
    best = tl.zeros((ROWS,), tl.int32)
    for k in range(1, NEGATIVES):
        margin = tl.load(margins + k * batch + place, mask=there, other=0)
        # NaN counts as the highest, so that the loss shows it.
        better = (most == most) & ~(margin <= most)
        best = tl.where(better, k, best)
        most = tl.where(better, margin, most)
    tl.store(highest + place, most, mask=there)
    for role in tl.static_range(3):
        source = role * batch + place
        if role == 2:
            source += best * batch
        tl.store(chosen + role * batch + place, tl.load(triples + source, mask=there, other=0), mask=there)
        if squares is not None:
            tl.store(kept + role * batch + place, tl.load(squares + source, mask=there, other=0), mask=there)


@triton.jit(do_not_specialize=["reg", "batch"])
def _losses(margins, squares, reg: tl.int64, batch, out, NEGATIVES: tl.constexpr, ROWS: tl.constexpr):
    """The sum of a block of pairs."""
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = place < batch
    total = tl.zeros((ROWS,), tl.float64)
    for k in range(NEGATIVES):
        margin = tl.load(margins + k * batch + place, mask=there, other=0).to(tl.float64)
        small = tl.exp(-tl.abs(margin))
        # log(1 + small), exact where 1 + small is not (Higham, "Accuracy and Stability", 1.14.1).
        sum_ = 1 + small
        log = tl.where(sum_ == 1, small, tl.log(sum_) * (small / tl.where(sum_ == 1, 1, sum_ - 1)))
        total += tl.maximum(margin, 0) + log
    if squares is not None:
        others = tl.zeros((ROWS,), tl.float64)
        for k in range(NEGATIVES):
            others += tl.load(squares + (2 + k) * batch + place, mask=there, other=0)
        for role in range(2):
            others += NEGATIVES * tl.load(squares + role * batch + place, mask=there, other=0).to(tl.float64)
        total += 0.5 * number(reg, tl.float64) * others
    tl.store(out + tl.program_id(0), tl.sum(tl.where(there, total / NEGATIVES, 0), axis=0))


@triton.jit(do_not_specialize=["batch"])
def _weights(margins, grad, batch, out, NEGATIVES: tl.constexpr, ROWS: tl.constexpr):
    """The derivatives of the mean by the scores: of the positive, then of every negative."""
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = place < batch
    factor = tl.load(grad) / (batch * NEGATIVES)
    total = tl.zeros((ROWS,), out.dtype.element_ty)
    for k in range(NEGATIVES):
        margin = tl.load(margins + k * batch + place, mask=there, other=0)
        small = tl.exp(-tl.abs(margin))
        weight = tl.where(margin > 0, 1, small) / (1 + small) * factor
        tl.store(out + (1 + k) * batch + place, weight, mask=there)
        total -= weight
    tl.store(out + place, total, mask=there)


@triton.jit(do_not_specialize=["count", "batch"])
def _mean(partial, count, batch, out):
    """One program, so that the order is one."""
    lane = tl.arange(0, 1024)
    total = tl.zeros((1024,), tl.float64)
    for first in range(0, count, 1024):
        total += tl.load(partial + first + lane, mask=first + lane < count, other=0)
    tl.store(out, (tl.sum(total, axis=0) / batch).to(out.dtype.element_ty))


@triton.jit
def _from(order, start, stop, place):
    """How many of the rising numbers order[start:stop], each [ROWS], are `place` or more."""
    low, high = start, stop
    while tl.max(high - low, axis=0) > 0:
        middle = (low + high) // 2
        open_ = low < high
        before = tl.load(order + middle, mask=open_, other=0) < place
        low = tl.where(open_ & before, middle + 1, low)
        high = tl.where(open_ & ~before, middle, high)
    return stop - low


@triton.jit
def _plus(total, row, weight, WORK: tl.constexpr):
    """total + row * weight, rounded once; weight [ROWS, NEIGHBOURS]."""
    return tl.fma(row.to(WORK), tl.broadcast_to(weight[:, :, None], total.shape), total)


@triton.jit
def _decay(order, start, length, batch, grad, reg, NEGATIVES: tl.constexpr, WORK: tl.constexpr):
    """Of nodes whose places are order[start:][:length]: how often they stand in the batch, as one of the negatives for
    its share of them, times the weight of the L2 term."""
    times = length.to(WORK)
    if NEGATIVES > 1:
        others = _from(order, start, start + length, 2 * batch)
        times = (length - others).to(WORK) + others.to(WORK) / NEGATIVES
    return (number(reg, WORK) * tl.load(grad) / batch) * times


@triton.jit(do_not_specialize=["size", "batch", "reg"])
def _decay_factors(indptr, size, order, batch, grad, reg: tl.int64, out, NEGATIVES: tl.constexpr, ROWS: tl.constexpr):
    node = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = node < size
    start = tl.load(indptr + node, mask=there, other=0)
    length = tl.load(indptr + node + 1, mask=there, other=0) - start
    factor = _decay(order, start, length, batch, grad, reg, NEGATIVES, out.dtype.element_ty)
    tl.store(out + node, factor, mask=there)


@triton.jit(do_not_specialize=["count", "size", "batch", "reg"])
def _gradients(
    keys,
    count,
    indptr,
    size,
    order,
    partial,
    triples,
    batch,
    weights,
    grad,
    reg: tl.int64,
    final,
    final_stride: tl.constexpr,
    ego,
    ego_stride: tl.constexpr,
    grad_final,
    grad_ego,
    dim: tl.constexpr,
    ego_dim: tl.constexpr,
    NEGATIVES: tl.constexpr,
    WORK: tl.constexpr,
    ROWS: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    DIM: tl.constexpr,
    RUN: tl.constexpr,
    PARTS: tl.constexpr,
):
    """A node's gradients: over the places of the batch where it stands, in their order."""
    place, there, start, length = segment.group_range(keys, count, indptr, size, ROWS, RUN, PARTS)
    node = place.to(tl.int64)
    if grad_ego is not None:
        if not PARTS:  # before the sums, for which it then holds no registers
            decay = _decay(order, start, length, batch, grad, reg, NEGATIVES, WORK)
            for first in range(tl.program_id(1) * DIM, ego_dim, tl.num_programs(1) * DIM):
                cols = first + tl.arange(0, DIM)
                here = there[:, None] & (cols < ego_dim)[None, :]
                own_row = _rows(ego, ego_stride, node, here, cols, WORK) * decay[:, None]
                target = grad_ego + node[:, None] * ego_dim + cols[None, :]
                tl.store(target, own_row.to(grad_ego.dtype.element_ty), mask=here)
    cols = tl.program_id(1) * DIM + tl.arange(0, DIM)
    here = there[:, None] & (cols < dim)[None, :]
    lane = tl.arange(0, NEIGHBOURS)
    total = tl.zeros((ROWS, NEIGHBOURS, DIM), WORK)
    own = length if PARTS else tl.where(length > RUN, 0, length)
    for k in range(0, tl.max(own, 0), NEIGHBOURS):
        inside = (k + lane)[None, :] < own[:, None]
        e = tl.load(order + start[:, None] + (k + lane)[None, :], mask=inside, other=0).to(tl.int32)
        is_user = e < batch
        # An item's: the user's row. A user's: those of all items, the positive's last.
        item = tl.where(is_user, NEGATIVES * batch, -batch) + e  # place of the weight: users have none
        weight = tl.load(weights + item, mask=inside, other=0)
        j = tl.load(triples + tl.where(is_user, item + batch, e % batch), mask=inside, other=0).to(tl.int64)
        mask = inside[:, :, None] & (cols < dim)[None, None, :]
        row = tl.load(final + j[:, :, None] * final_stride + cols[None, None, :], mask=mask, other=0)
        total = _plus(total, row, weight, WORK)
        is_user = is_user & inside
        mask = mask & is_user[:, :, None]
        further = NEGATIVES
        if NEGATIVES > 1:  # items do without the loop
            further *= tl.max(tl.max(is_user.to(tl.int32), axis=1), axis=0)
        for before in range(further):
            item = (NEGATIVES - 1 - before) * batch + e
            weight = tl.load(weights + item, mask=is_user, other=0)
            j = tl.load(triples + item + batch, mask=is_user, other=0).to(tl.int64)
            row = tl.load(final + j[:, :, None] * final_stride + cols[None, None, :], mask=mask, other=0)
            total = _plus(total, row, weight, WORK)
    if PARTS:
        tl.store(partial + node[:, None] * dim + cols[None, :], halves(total), mask=here)
    else:
        total = segment.add_runs(total, partial, start, length, cols, dim, RUN, NEIGHBOURS)
        result = halves(total).to(grad_final.dtype.element_ty)
        tl.store(grad_final + node[:, None] * dim + cols[None, :], result, mask=here)


@triton.jit(do_not_specialize=["batch", "reg"])
def _add_gradients(
    triples,
    batch,
    weights,
    grad,
    reg: tl.int64,
    final,
    final_stride: tl.constexpr,
    ego,
    ego_stride: tl.constexpr,
    grad_final,
    grad_ego,
    dim: tl.constexpr,
    ego_dim: tl.constexpr,
    NEGATIVES: tl.constexpr,
    WORK: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
):
    """A block of pairs adds to the gradients of its nodes, with atomics, in any order."""
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = place < batch
    cols = tl.program_id(1) * DIM + tl.arange(0, DIM)
    here = there[:, None] & (cols < dim)[None, :]
    user = tl.load(triples + place, mask=there, other=0).to(tl.int64)
    positive = tl.load(triples + batch + place, mask=there, other=0).to(tl.int64)
    better = _rows(final, final_stride, positive, here, cols, WORK)
    mine = _rows(final, final_stride, user, here, cols, WORK)
    total = tl.zeros((ROWS, DIM), WORK)
    for k in range(NEGATIVES):
        negative = tl.load(triples + (2 + k) * batch + place, mask=there, other=0).to(tl.int64)
        weight = tl.load(weights + (1 + k) * batch + place, mask=there, other=0)[:, None]
        total += weight * (_rows(final, final_stride, negative, here, cols, WORK) - better)
        tl.atomic_add(grad_final + negative[:, None] * dim + cols[None, :], weight * mine, mask=here, sem="relaxed")
    tl.atomic_add(grad_final + user[:, None] * dim + cols[None, :], total, mask=here, sem="relaxed")
    weight = tl.load(weights + place, mask=there, other=0)[:, None]
    tl.atomic_add(grad_final + positive[:, None] * dim + cols[None, :], weight * mine, mask=here, sem="relaxed")
    if grad_ego is not None:
        decay = number(reg, WORK) * tl.load(grad) / batch
        for first in range(tl.program_id(1) * DIM, ego_dim, tl.num_programs(1) * DIM):
            cols = first + tl.arange(0, DIM)
            here = there[:, None] & (cols < ego_dim)[None, :]
            for role in range(2 + NEGATIVES):
                node = tl.load(triples + role * batch + place, mask=there, other=0).to(tl.int64)
                own = _rows(ego, ego_stride, node, here, cols, WORK) * tl.where(role < 2, decay, decay / NEGATIVES)
                tl.atomic_add(grad_ego + node[:, None] * ego_dim + cols[None, :], own, mask=here, sem="relaxed")
