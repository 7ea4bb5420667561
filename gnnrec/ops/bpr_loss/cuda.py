"""Triton kernels of bpr_loss: the loss by blocks of pairs of user and positive, its gradients node by node over the
sorted batch."""

# mypy: ignore-errors

import torch
import triton
import triton.language as tl

from gnnrec import device as devices
from gnnrec.ops import _arguments, tuning
from gnnrec.ops._launch import MOST_REGISTERS, bits, launch, panel, power_of_2, rows_contiguous
from gnnrec.ops._tiles import TYPES, number
from gnnrec.ops.segment import cuda as segment


def loss(
    final: torch.Tensor, ego: torch.Tensor, triples: torch.Tensor, reg: float, hardest: bool, out: torch.Tensor
) -> None:
    """Fill `out`, a scalar, with the mean over the batch: blocks first, then their sums in order, in float64.

    Args:
        final: [nodes, dim]; ego: [nodes, ego_dim]; triples: int64 [2 + n, batch], within the nodes.
    """
    shape, (roles, batch) = _shape(final, triples), triples.shape
    rows = _pairs_at_once(shape, final, roles - 2)
    partial = devices.empty(final, -(-batch // rows), "the sums of pairs", torch.float64)
    _launch_pairs("loss", shape, final, ego if reg else None, triples, hardest, partial, bits(reg))
    launch(_mean, (1,), partial, len(partial), batch, out)


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
    nodes, dim, batch = *final.shape, triples.shape[1]
    final, ego, shape = rows_contiguous(final), rows_contiguous(ego), _shape(final, triples)
    wide = _arguments.compute_dtype(final.dtype)
    negatives = 1 if hardest else len(triples) - 2
    # Users, positive and negative items; the hardest negatives are written into it together with the weights.
    places = triples[: 2 + negatives].reshape(-1).to(torch.int32)
    weights = devices.empty(final, (1 + negatives) * batch, "the weights of pairs", wide)
    _launch_pairs("weights", shape, final, None, triples, hardest, weights, bits(0.0), grad, places)
    given = places, batch, weights, grad, bits(reg), final, final.stride(0), ego, ego.stride(0)
    kinds = {"dim": dim, "ego_dim": ego.shape[1], "NEGATIVES": negatives, "WORK": TYPES[wide]}
    # Left alone, ptxas 12.8 spills two registers of halves with several negatives.
    kinds["registers"] = MOST_REGISTERS if negatives > 1 else None
    if deterministic:
        groups, sums = segment.group(places, nodes), segment.tile(shape, dim, final.dtype)
        segment.walk(_gradients, groups, sums, final, *given, grad_final, grad_ego, **kinds)
        return
    columns, rows = panel(dim), _pairs_at_once(shape, final, 1)
    sums = [None if x is None else segment.zeros(x) for x in (grad_final, grad_ego)]
    grid = -(-batch // rows), -(-dim // columns)
    launch(_add_gradients, grid, *given, *sums, warps=shape["triple_warps"], ROWS=rows, DIM=columns, **kinds)
    for out, total in zip((grad_final, grad_ego), sums):
        if total is not out:
            out.copy_(total)


def _shape(final: torch.Tensor, triples: torch.Tensor) -> tuning.Shape:
    (nodes, dim), batch = final.shape, triples.shape[1]
    return tuning.choose("bpr_loss", dim, 1, final.dtype, tuning.magnitudes(batch, nodes), final.device)


def _pairs_at_once(shape: tuning.Shape, final: torch.Tensor, negatives: int) -> int:
    columns = max(panel(final.shape[1]), power_of_2(negatives))
    return max(1, shape["triples"] * 4 // _arguments.compute_dtype(final.dtype).itemsize // columns)


def _launch_pairs(
    mode: str,
    shape: tuning.Shape,
    final: torch.Tensor,
    ego: torch.Tensor | None,
    triples: torch.Tensor,
    hardest: bool,
    out: torch.Tensor,
    reg: int,
    grad: torch.Tensor | None = None,
    places: torch.Tensor | None = None,
) -> None:
    (roles, batch), dim = triples.shape, final.shape[1]
    negatives, rows = roles - 2, _pairs_at_once(shape, final, roles - 2)
    final, ego = rows_contiguous(final), None if ego is None else rows_contiguous(ego)
    given = triples.contiguous(), batch, final, final.stride(0), ego, 0 if ego is None else ego.stride(0)
    kinds = {"dim": dim, "ego_dim": 0 if ego is None else ego.shape[1]}
    kinds |= {"NEGATIVES": negatives, "KEPT": 1 if hardest else negatives, "LANES": power_of_2(negatives)}
    kinds |= {"MODE": mode, "WORK": TYPES[final.dtype], "ROWS": rows, "DIM": panel(dim)}
    launch(_pairs, (-(-batch // rows),), *given, reg, grad, out, places, warps=shape["triple_warps"], **kinds)


@triton.jit
def _rows(x, stride, node, here, cols, WORK: tl.constexpr):
    return tl.load(x + node[:, None] * stride + cols[None, :], mask=here, other=0).to(WORK)


@triton.jit(do_not_specialize=["batch", "reg"])
def _pairs(
    triples,
    batch,
    final,
    final_stride: tl.constexpr,
    ego,
    ego_stride: tl.constexpr,
    reg: tl.int64,
    grad,
    out,
    places,
    dim: tl.constexpr,
    ego_dim: tl.constexpr,
    NEGATIVES: tl.constexpr,
    KEPT: tl.constexpr,
    LANES: tl.constexpr,
    MODE: tl.constexpr,
    WORK: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
):
    """A block of pairs: the sum of their losses, or the derivatives of the mean by the scores of the positives and then
    of the negatives, with which the hardest negatives, if these alone are kept, are written into `places`."""
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = place < batch
    user = tl.load(triples + place, mask=there, other=0)
    positive = tl.load(triples + batch + place, mask=there, other=0)
    lane = tl.arange(0, LANES)
    margin = tl.zeros((ROWS, LANES), WORK)
    squares = tl.zeros((ROWS,), WORK)
    for first in range(0, dim, DIM):
        cols = first + tl.arange(0, DIM)
        here = there[:, None] & (cols < dim)[None, :]
        better = _rows(final, final_stride, positive, here, cols, WORK)
        mine = _rows(final, final_stride, user, here, cols, WORK)
        for k in range(NEGATIVES):
            negative = tl.load(triples + (2 + k) * batch + place, mask=there, other=0)
            difference = _rows(final, final_stride, negative, here, cols, WORK) - better
            margin += tl.where((lane == k)[None, :], tl.sum(mine * difference, axis=1)[:, None], 0)
    first_kept = tl.full((ROWS,), 2, tl.int32)
    if KEPT < NEGATIVES:
        # NaN counts as the highest, so that the loss shows it.
        known = tl.where(margin == margin, margin, float("inf"))
        best = tl.argmax(tl.where((lane < NEGATIVES)[None, :], known, -float("inf")), axis=1)
        margin = tl.sum(tl.where(lane[None, :] == best[:, None], margin, 0), axis=1)[:, None]
        first_kept += best
        lane = tl.arange(0, 1)
    if ego is not None:
        for first in range(0, ego_dim, DIM):
            cols = first + tl.arange(0, DIM)
            here = there[:, None] & (cols < ego_dim)[None, :]
            own = _rows(ego, ego_stride, user, here, cols, WORK)
            square = own * own
            own = _rows(ego, ego_stride, positive, here, cols, WORK)
            square += own * own
            for k in range(KEPT):
                negative = tl.load(triples + (first_kept + k) * batch + place, mask=there, other=0)
                own = _rows(ego, ego_stride, negative, here, cols, WORK)
                square += own * own * (1.0 / KEPT)
            squares += tl.sum(square, axis=1)
    inside = there[:, None] & (lane < KEPT)[None, :]
    if MODE == "weights":
        small = tl.exp(-tl.abs(margin))
        weight = tl.where(margin > 0, 1, small) / (1 + small)
        weight = tl.where(inside, weight * (tl.load(grad) / (batch * KEPT)), 0)
        tl.store(out + place, -tl.sum(weight, axis=1), mask=there)
        tl.store(out + (1 + lane)[None, :] * batch + place[:, None], weight, mask=inside)
        if KEPT < NEGATIVES:
            chosen = tl.load(triples + first_kept * batch + place, mask=there, other=0)
            tl.store(places + 2 * batch + place, chosen.to(tl.int32), mask=there)
    else:
        wide = margin.to(tl.float64)
        small = tl.exp(-tl.abs(wide))
        # log(1 + small), exact where 1 + small is not (Higham, "Accuracy and Stability", 1.14.1).
        sum_ = 1 + small
        log = tl.where(sum_ == 1, small, tl.log(sum_) * (small / tl.where(sum_ == 1, 1, sum_ - 1)))
        losses = tl.sum(tl.where(inside, tl.maximum(wide, 0) + log, 0), axis=1)
        total = losses / KEPT + 0.5 * number(reg, tl.float64) * squares
        tl.store(out + tl.program_id(0), tl.sum(tl.where(there, total, 0), axis=0))


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
            times = length.to(WORK)
            if NEGATIVES > 1:
                others = _from(order, start, start + length, 2 * batch)
                times = (length - others).to(WORK) + others.to(WORK) / NEGATIVES
            decay = (number(reg, WORK) * tl.load(grad) / batch) * times
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
        total += row.to(WORK) * weight[:, :, None]
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
            total += row.to(WORK) * weight[:, :, None]
    if PARTS:
        tl.store(partial + node[:, None] * dim + cols[None, :], tl.sum(total, axis=1), mask=here)
    else:
        total = segment.add_runs(total, partial, start, length, cols, dim, RUN, NEIGHBOURS)
        result = tl.sum(total, axis=1).to(grad_final.dtype.element_ty)
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
