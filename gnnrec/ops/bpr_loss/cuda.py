"""Triton kernels of bpr_loss: the loss by blocks of triples, its gradients node by node over the sorted batch."""

# mypy: ignore-errors

import torch
import triton
import triton.language as tl

from gnnrec import device as devices
from gnnrec.ops import _arguments, tuning
from gnnrec.ops._launch import bits, launch, panel, rows_contiguous
from gnnrec.ops._tiles import TYPES, number
from gnnrec.ops.segment import cuda as segment


def loss(final: torch.Tensor, ego: torch.Tensor, triples: torch.Tensor, reg: float, out: torch.Tensor) -> None:
    """Fill `out`, a scalar, with the mean over the batch: blocks first, then their sums in order, in float64.

    Args:
        final: [nodes, dim]; ego: [nodes, ego_dim]; triples: int64 [3, batch], within the nodes.
    """
    shape, batch = _shape(final, triples), triples.shape[1]
    rows = _triples_at_once(shape, final)
    partial = devices.empty(final, -(-batch // rows), "the sums of triples", torch.float64)
    _launch_triples("loss", shape, final, ego if reg else None, triples, partial, bits(reg), None)
    launch(_mean, (1,), partial, len(partial), batch, out)


def loss_backward(
    grad: torch.Tensor,
    final: torch.Tensor,
    ego: torch.Tensor,
    triples: torch.Tensor,
    reg: float,
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
    weights = devices.empty(final, batch, "the weights of triples", wide)
    _launch_triples("weights", shape, final, None, triples, weights, bits(0.0), grad)
    places = triples.reshape(-1).to(torch.int32)  # users, positive and negative items
    given = places, batch, weights, grad, bits(reg), final, final.stride(0), ego, ego.stride(0)
    kinds = {"dim": dim, "ego_dim": ego.shape[1], "WORK": TYPES[wide]}
    if deterministic:
        groups, sums = segment.group(places, nodes), segment.tile(shape, dim, final.dtype)
        segment.walk(_gradients, groups, sums, final, *given, grad_final, grad_ego, **kinds)
        return
    columns, rows = panel(dim), _triples_at_once(shape, final)
    sums = [None if x is None else segment.zeros(x) for x in (grad_final, grad_ego)]
    grid = -(-batch // rows), -(-dim // columns)
    launch(_add_gradients, grid, *given, *sums, warps=shape["triple_warps"], ROWS=rows, DIM=columns, **kinds)
    for out, total in zip((grad_final, grad_ego), sums):
        if total is not out:
            out.copy_(total)


def _shape(final: torch.Tensor, triples: torch.Tensor) -> tuning.Shape:
    (nodes, dim), batch = final.shape, triples.shape[1]
    return tuning.choose("bpr_loss", dim, 1, final.dtype, tuning.magnitudes(batch, nodes), final.device)


def _triples_at_once(shape: tuning.Shape, final: torch.Tensor) -> int:
    return max(1, shape["triples"] * 4 // _arguments.compute_dtype(final.dtype).itemsize // panel(final.shape[1]))


def _launch_triples(
    mode: str,
    shape: tuning.Shape,
    final: torch.Tensor,
    ego: torch.Tensor | None,
    triples: torch.Tensor,
    out: torch.Tensor,
    reg: int,
    grad: torch.Tensor | None,
) -> None:
    batch, dim, rows = triples.shape[1], final.shape[1], _triples_at_once(shape, final)
    final, ego = rows_contiguous(final), None if ego is None else rows_contiguous(ego)
    given = triples.contiguous(), batch, final, final.stride(0), ego, 0 if ego is None else ego.stride(0)
    work = TYPES[final.dtype]
    kinds = {"dim": dim, "ego_dim": 0 if ego is None else ego.shape[1]}
    kinds |= {"MODE": mode, "WORK": work, "ROWS": rows, "DIM": panel(dim)}
    launch(_triples, (-(-batch // rows),), *given, reg, grad, out, warps=shape["triple_warps"], **kinds)


@triton.jit
def _rows(x, stride, node, here, cols, WORK: tl.constexpr):
    return tl.load(x + node[:, None] * stride + cols[None, :], mask=here, other=0).to(WORK)


@triton.jit(do_not_specialize=["batch", "reg"])
def _triples(
    triples,
    batch,
    final,
    final_stride: tl.constexpr,
    ego,
    ego_stride: tl.constexpr,
    reg: tl.int64,
    grad,
    out,
    dim: tl.constexpr,
    ego_dim: tl.constexpr,
    MODE: tl.constexpr,
    WORK: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
):
    """A block of triples: the sum of their losses, or the derivative of every softplus divided by the batch."""
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = place < batch
    user = tl.load(triples + place, mask=there, other=0)
    positive = tl.load(triples + batch + place, mask=there, other=0)
    negative = tl.load(triples + 2 * batch + place, mask=there, other=0)
    margin = tl.zeros((ROWS,), WORK)
    squares = tl.zeros((ROWS,), WORK)
    for first in range(0, dim, DIM):
        cols = first + tl.arange(0, DIM)
        here = there[:, None] & (cols < dim)[None, :]
        better = _rows(final, final_stride, positive, here, cols, WORK)
        difference = _rows(final, final_stride, negative, here, cols, WORK) - better
        margin += tl.sum(_rows(final, final_stride, user, here, cols, WORK) * difference, axis=1)
    if ego is not None:
        for first in range(0, ego_dim, DIM):
            cols = first + tl.arange(0, DIM)
            here = there[:, None] & (cols < ego_dim)[None, :]
            own = _rows(ego, ego_stride, user, here, cols, WORK)
            square = own * own
            own = _rows(ego, ego_stride, positive, here, cols, WORK)
            square += own * own
            own = _rows(ego, ego_stride, negative, here, cols, WORK)
            squares += tl.sum(square + own * own, axis=1)
    if MODE == "weights":
        small = tl.exp(-tl.abs(margin))
        weight = tl.where(margin > 0, 1, small) / (1 + small)
        tl.store(out + place, weight * (tl.load(grad) / batch), mask=there)
    else:
        wide = margin.to(tl.float64)
        small = tl.exp(-tl.abs(wide))
        # log(1 + small), exact where 1 + small is not (Higham, "Accuracy and Stability", 1.14.1).
        sum_ = 1 + small
        log = tl.where(sum_ == 1, small, tl.log(sum_) * (small / tl.where(sum_ == 1, 1, sum_ - 1)))
        total = tl.maximum(wide, 0) + log + 0.5 * number(reg, tl.float64) * squares
        tl.store(out + tl.program_id(0), tl.sum(tl.where(there, total, 0), axis=0))


@triton.jit(do_not_specialize=["count", "batch"])
def _mean(partial, count, batch, out):
    """One program, so that the order is one."""
    lane = tl.arange(0, 1024)
    total = tl.zeros((1024,), tl.float64)
    for first in range(0, count, 1024):
        total += tl.load(partial + first + lane, mask=first + lane < count, other=0)
    tl.store(out, (tl.sum(total, axis=0) / batch).to(out.dtype.element_ty))


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
            decay = (number(reg, WORK) * tl.load(grad) / batch) * length.to(WORK)
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
        is_user, is_positive = e < batch, (e >= batch) & (e < 2 * batch)
        b = tl.where(is_user, e, tl.where(is_positive, e - batch, e - 2 * batch))
        weight = tl.load(weights + b, mask=inside, other=0)
        # A user's: weight * (negative - positive); an item's: the user's row.
        mask = inside[:, :, None] & (cols < dim)[None, None, :]
        j = tl.load(triples + tl.where(is_user, 2 * batch, 0) + b, mask=inside, other=0).to(tl.int64)
        row = tl.load(final + j[:, :, None] * final_stride + cols[None, None, :], mask=mask, other=0)
        total += row.to(WORK) * tl.where(is_positive, -weight, weight)[:, :, None]
        j = tl.load(triples + batch + b, mask=inside & is_user, other=0).to(tl.int64)
        mask = mask & is_user[:, :, None]
        row = tl.load(final + j[:, :, None] * final_stride + cols[None, None, :], mask=mask, other=0)
        total -= row.to(WORK) * weight[:, :, None]
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
    WORK: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
):
    """A block of triples adds to the gradients of its nodes, with atomics, in any order."""
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = place < batch
    cols = tl.program_id(1) * DIM + tl.arange(0, DIM)
    here = there[:, None] & (cols < dim)[None, :]
    user = tl.load(triples + place, mask=there, other=0).to(tl.int64)
    positive = tl.load(triples + batch + place, mask=there, other=0).to(tl.int64)
    negative = tl.load(triples + 2 * batch + place, mask=there, other=0).to(tl.int64)
    weight = tl.load(weights + place, mask=there, other=0)[:, None]
    better = _rows(final, final_stride, positive, here, cols, WORK)
    difference = _rows(final, final_stride, negative, here, cols, WORK) - better
    mine = _rows(final, final_stride, user, here, cols, WORK) * weight
    tl.atomic_add(grad_final + user[:, None] * dim + cols[None, :], weight * difference, mask=here, sem="relaxed")
    tl.atomic_add(grad_final + positive[:, None] * dim + cols[None, :], -mine, mask=here, sem="relaxed")
    tl.atomic_add(grad_final + negative[:, None] * dim + cols[None, :], mine, mask=here, sem="relaxed")
    if grad_ego is not None:
        decay = number(reg, WORK) * tl.load(grad) / batch
        for first in range(tl.program_id(1) * DIM, ego_dim, tl.num_programs(1) * DIM):
            cols = first + tl.arange(0, DIM)
            here = there[:, None] & (cols < ego_dim)[None, :]
            for role in tl.static_range(3):
                node = tl.load(triples + role * batch + place, mask=there, other=0).to(tl.int64)
                own = _rows(ego, ego_stride, node, here, cols, WORK) * decay
                tl.atomic_add(grad_ego + node[:, None] * ego_dim + cols[None, :], own, mask=here, sem="relaxed")
