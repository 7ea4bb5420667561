"""Triton kernels of edge_softmax: a tile [ROWS, NEIGHBOURS, heads] walks over the entries of its rows.

Every lane of a row has a maximum and a sum of its own until the row ends, so that no step waits for another lane. A
long row has three stages: its pieces' maxima and sums, their join in order, and the pieces' results.
"""

# mypy: ignore-errors

import torch
import triton
import triton.language as tl

from gnnrec import device as devices
from gnnrec.ops import _arguments
from gnnrec.ops._launch import Matrix, launch, rows_contiguous, tile
from gnnrec.ops._tiles import TYPES, row_range

AT_ONCE = 4  # entries that rows sharing a program read at once: 4 heads of them fill half a line
JOINED = 8  # pieces that are joined at once


def softmax(matrix: Matrix, logits: torch.Tensor, out: torch.Tensor) -> None:
    """Fill out [nnz, heads], contiguous, of logits [nnz, heads]."""
    logits = rows_contiguous(logits)
    _run(_softmax, _join_softmax, matrix, 2, (logits,), (logits.stride(0),), out)


def backward(matrix: Matrix, p: torch.Tensor, grad: torch.Tensor, out: torch.Tensor) -> None:
    """out = p * (grad - sum over the row of p * grad), all [nnz, heads], out contiguous."""
    p, grad = rows_contiguous(p), rows_contiguous(grad)
    _run(_gradient, _join_sums, matrix, 1, (p, grad), (p.stride(0), grad.stride(0)), out)


def _run(kernel, join, matrix: Matrix, numbers: int, given, strides, out: torch.Tensor) -> None:
    """Launch a kernel over all rows, with `numbers` numbers a head that the pieces of a long row have to share."""
    heads, wide = out.shape[1], _arguments.compute_dtype(out.dtype)
    shape = tile("edge_softmax", matrix, heads, out.dtype, heads=heads, sums=numbers)
    kinds = {"heads": heads, "strides": strides, "WORK": TYPES[wide], "DIM": shape.dim}

    def go(rows, at_once, lanes, shared, stage):
        grid = -(-len(rows) // at_once), shape.panels
        sizes = {"ROWS": at_once, "NEIGHBOURS": lanes, "STAGE": stage}
        launch(kernel, grid, rows, len(rows), *given, shared, out, warps=shape.warps, **sizes, **kinds)

    if pieces := len(matrix.pieces):
        partial, whole = (
            devices.empty(out, (pieces, numbers, heads), "the sums of long rows' pieces", wide) for _ in range(2)
        )
        go(matrix.pieces, 1, shape.lanes, partial, "sums")
        joined = {"heads": heads, "WORK": TYPES[wide], "DIM": shape.dim, "AT_ONCE": JOINED}
        launch(join, (len(matrix.long), shape.panels), matrix.long, partial, whole, warps=1, **joined)
        go(matrix.pieces, 1, shape.lanes, whole, "write")
    lanes = min(AT_ONCE, shape.lanes) if shape.sharing else shape.lanes
    go(matrix.short, shape.lanes // lanes, lanes, None, "all")
    go(matrix.medium, 1, shape.lanes, None, "all")


@triton.jit
def running(top, logits):
    """A step of a softmax in one pass, for every lane: the greatest logit so far, and the factors by which it makes the
    sums so far and the new terms smaller. Logits of -inf, as lanes beyond the end have them, count for nothing."""
    new = tl.maximum(top, logits)  # NaN does not become the greatest, but the term of NaN does
    shift = tl.where(new == float("-inf"), 0.0, new)
    return new, tl.exp(top - shift), tl.exp(logits - shift)


@triton.jit
def over_lanes(top):
    """The greatest logit of all lanes (axis 1) of a row; the same with 0 for -inf, as what is subtracted from logits;
    and the factors of the lanes' sums."""
    best = tl.max(top, axis=1)
    shift = tl.where(best == float("-inf"), 0.0, best)
    return best, shift, tl.exp(top - shift[:, None, :])


@triton.jit(do_not_specialize=["count"])
def _softmax(
    rows,
    count,
    logits,
    shared,
    out,
    heads: tl.constexpr,
    strides: tl.constexpr,
    WORK: tl.constexpr,
    ROWS: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    DIM: tl.constexpr,
    STAGE: tl.constexpr,
):
    """`shared` [pieces, 2, heads]: at the stage "sums" the greatest logit and the sum of exp(logit - it), at "write"
    what is to be subtracted and 1 / sum."""
    place, there, _, start, length = row_range(rows, count, ROWS)
    cols, lane = tl.program_id(1) * DIM + tl.arange(0, DIM), tl.arange(0, NEIGHBOURS)
    here = there[:, None] & (cols < heads)[None, :]
    at = shared + place[:, None] * (2 * heads) + cols[None, :] if STAGE != "all" else None
    longest = tl.max(length, 0)
    if STAGE == "write":
        shift, norm = tl.load(at, mask=here, other=0), tl.load(at + heads, mask=here, other=0)
    else:
        top = tl.full((ROWS, NEIGHBOURS, DIM), float("-inf"), WORK)
        total = tl.zeros((ROWS, NEIGHBOURS, DIM), WORK)
        for k in range(0, longest, NEIGHBOURS):
            e = start[:, None] + (k + lane)[None, :]
            mask = ((k + lane)[None, :] < length[:, None])[:, :, None] & (cols < heads)[None, None, :]
            logit = tl.load(logits + e[:, :, None] * strides[0] + cols[None, None, :], mask=mask, other=float("-inf"))
            top, factor, term = running(top, logit.to(WORK))
            total = total * factor + term
        best, shift, factor = over_lanes(top)
        sums = tl.sum(total * factor, axis=1)
        norm = 1 / sums
    if STAGE == "sums":
        tl.store(at, best, mask=here)
        tl.store(at + heads, sums, mask=here)
    else:
        for k in range(0, longest, NEIGHBOURS):
            e = start[:, None] + (k + lane)[None, :]
            mask = ((k + lane)[None, :] < length[:, None])[:, :, None] & (cols < heads)[None, None, :]
            logit = tl.load(logits + e[:, :, None] * strides[0] + cols[None, None, :], mask=mask, other=0).to(WORK)
            p = tl.exp(logit - shift[:, None, :]) * norm[:, None, :]
            tl.store(out + e[:, :, None] * heads + cols[None, None, :], p.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _join_softmax(
    long, partial, whole, heads: tl.constexpr, WORK: tl.constexpr, DIM: tl.constexpr, AT_ONCE: tl.constexpr
):
    """For every piece of a long row the row's shift and 1 / sum."""
    item = tl.program_id(0).to(tl.int64)
    first, last = tl.load(long + item * 3 + 1), tl.load(long + item * 3 + 2)
    cols, lane = tl.program_id(1) * DIM + tl.arange(0, DIM), tl.arange(0, AT_ONCE)
    here = (cols < heads)[None, None, :]
    top = tl.full((1, AT_ONCE, DIM), float("-inf"), WORK)
    total = tl.zeros((1, AT_ONCE, DIM), WORK)
    for piece in range(first, last, AT_ONCE):
        mask = (piece + lane < last)[None, :, None] & here
        at = partial + (piece + lane)[None, :, None] * (2 * heads) + cols[None, None, :]
        top, factor, term = running(top, tl.load(at, mask=mask, other=float("-inf")))
        total = total * factor + term * tl.load(at + heads, mask=mask, other=0)
    _, shift, factor = over_lanes(top)
    norm = 1 / tl.sum(total * factor, axis=1)
    for piece in range(first, last, AT_ONCE):
        mask = (piece + lane < last)[None, :, None] & here
        at = whole + (piece + lane)[None, :, None] * (2 * heads) + cols[None, None, :]
        tl.store(at, tl.broadcast_to(shift[:, None, :], (1, AT_ONCE, DIM)), mask=mask)
        tl.store(at + heads, tl.broadcast_to(norm[:, None, :], (1, AT_ONCE, DIM)), mask=mask)


@triton.jit(do_not_specialize=["count"])
def _gradient(
    rows,
    count,
    p,
    grad,
    shared,
    out,
    heads: tl.constexpr,
    strides: tl.constexpr,
    WORK: tl.constexpr,
    ROWS: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    DIM: tl.constexpr,
    STAGE: tl.constexpr,
):
    """`shared` [pieces, 1, heads]: the sum of p * grad over the piece, at the stage "write" that over the row."""
    place, there, _, start, length = row_range(rows, count, ROWS)
    cols, lane = tl.program_id(1) * DIM + tl.arange(0, DIM), tl.arange(0, NEIGHBOURS)
    here = there[:, None] & (cols < heads)[None, :]
    at = shared + place[:, None] * heads + cols[None, :] if STAGE != "all" else None
    longest = tl.max(length, 0)
    if STAGE == "write":
        dot = tl.load(at, mask=here, other=0)
    else:
        total = tl.zeros((ROWS, NEIGHBOURS, DIM), WORK)
        for k in range(0, longest, NEIGHBOURS):
            e = start[:, None] + (k + lane)[None, :]
            mask = ((k + lane)[None, :] < length[:, None])[:, :, None] & (cols < heads)[None, None, :]
            share = tl.load(p + e[:, :, None] * strides[0] + cols[None, None, :], mask=mask, other=0).to(WORK)
            upstream = tl.load(grad + e[:, :, None] * strides[1] + cols[None, None, :], mask=mask, other=0).to(WORK)
            total += share * upstream
        dot = tl.sum(total, axis=1)
    if STAGE == "sums":
        tl.store(at, dot, mask=here)
    else:
        for k in range(0, longest, NEIGHBOURS):
            e = start[:, None] + (k + lane)[None, :]
            mask = ((k + lane)[None, :] < length[:, None])[:, :, None] & (cols < heads)[None, None, :]
            share = tl.load(p + e[:, :, None] * strides[0] + cols[None, None, :], mask=mask, other=0).to(WORK)
            upstream = tl.load(grad + e[:, :, None] * strides[1] + cols[None, None, :], mask=mask, other=0).to(WORK)
            result = share * (upstream - dot[:, None, :])
            tl.store(out + e[:, :, None] * heads + cols[None, None, :], result.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _join_sums(long, partial, whole, heads: tl.constexpr, WORK: tl.constexpr, DIM: tl.constexpr, AT_ONCE: tl.constexpr):
    """For every piece of a long row the sum over all of them."""
    item = tl.program_id(0).to(tl.int64)
    first, last = tl.load(long + item * 3 + 1), tl.load(long + item * 3 + 2)
    cols, lane = tl.program_id(1) * DIM + tl.arange(0, DIM), tl.arange(0, AT_ONCE)
    total = tl.zeros((AT_ONCE, DIM), WORK)
    for piece in range(first, last, AT_ONCE):
        mask = (piece + lane < last)[:, None] & (cols < heads)[None, :]
        total += tl.load(partial + (piece + lane)[:, None] * heads + cols[None, :], mask=mask, other=0)
    result = tl.broadcast_to(tl.sum(total, axis=0)[None, :], (AT_ONCE, DIM))
    for piece in range(first, last, AT_ONCE):
        mask = (piece + lane < last)[:, None] & (cols < heads)[None, :]
        tl.store(whole + (piece + lane)[:, None] * heads + cols[None, :], result, mask=mask)
