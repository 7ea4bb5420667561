"""lightgcn_propagate on a GPU: Horner's rule as in `cpu.py`, and a last layer over the wanted rows alone."""

# mypy: ignore-errors

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from gnnrec import device as devices
from gnnrec.graph import schedule
from gnnrec.ops import _arguments
from gnnrec.ops._launch import Matrix, bits, launch, rows_contiguous, tile
from gnnrec.ops._sums import halves
from gnnrec.ops._tiles import TYPES, entry_factors, joined
from gnnrec.ops.spmm.cuda import _add, _finish, spmm


def propagate(matrix: Matrix, x: torch.Tensor, weights: Sequence[float], out: torch.Tensor, work: torch.Tensor) -> None:
    """out = sum_l weights[l] A^l x for at least one layer; work: room for a layer where there are several."""
    layers = len(weights) - 1
    x = rows_contiguous(x)
    source, weight = x, weights[-1]
    for layer in range(1, layers + 1):
        target = work if (layers - layer) % 2 else out
        spmm(matrix, source, None, target, scale=weight, base=x, base_scale=weights[layers - layer])
        source, weight = target, 1.0


def spmm_rows(
    matrix: Matrix,
    rows: torch.Tensor,
    x: torch.Tensor,
    out: torch.Tensor,
    scale: float,
    base: torch.Tensor,
    base_scale: float,
) -> None:
    """out[k] = scale * (A x)[rows[k]] + base_scale * base[rows[k]], bit-equal to those rows of an spmm of the whole.

    The pieces of long rows, which must be added up first, are so where those are among the rows. All shapes are the
    matrix's, so nothing waits for the GPU.

    Args:
        rows: int64 [n], within the matrix.
        out: [n, dim].
    """
    dim, wide = out.shape[1], TYPES[_arguments.compute_dtype(out.dtype)]
    shape = tile("spmm", matrix, dim, out.dtype)
    x, base, rows = rows_contiguous(x), rows_contiguous(base), rows.contiguous()
    kinds = {"dim": dim, "WORK": wide, "NEIGHBOURS": shape.lanes, "DIM": shape.dim}
    given = matrix.indptr, matrix.indices, matrix.row_scale, matrix.col_scale, x, x.stride(0)
    partial = place = None
    if len(matrix.pieces):
        dtype = _arguments.compute_dtype(out.dtype)
        partial = devices.empty(x, (len(matrix.pieces), dim), "the sums of long rows' pieces", dtype)
        wanted = torch.zeros(matrix.rows, dtype=torch.uint8, device=x.device).index_fill_(0, rows, 1)
        place = torch.searchsorted(matrix.long[:, 0].contiguous(), rows)
        grid = len(matrix.pieces), shape.panels
        launch(_pieces, grid, matrix.pieces, wanted, *given[1:], partial, warps=shape.warps, **kinds)
    # The lengths up to which the walk over the whole adds a row's terms one after the other, and of its pieces.
    lengths = {"SHORT": schedule.GPU_SHORT if shape.sharing and shape.lanes > 1 else 0, "LONG": schedule.GPU_LONG}
    added = base, base.stride(0), bits(scale), bits(base_scale)
    last = place, matrix.long, partial, *added, out
    launch(_rows, (len(rows), shape.panels), rows, *given, *last, warps=shape.warps, **kinds, **lengths)


@triton.jit
def _sum(
    indices,
    col_scale,
    x,
    x_stride: tl.constexpr,
    start,
    length,
    at_once,
    cols,
    dim: tl.constexpr,
    WORK: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    DIM: tl.constexpr,
):
    """The sum [1, DIM] of a row's terms, at_once of them side by side: spmm's, in its order."""
    lane = tl.arange(0, NEIGHBOURS)
    total = tl.zeros((1, NEIGHBOURS, DIM), WORK)
    next_j = tl.load(indices + (start + lane)[None, :], mask=((lane < length) & (lane < at_once))[None, :], other=0)
    for k in range(0, length, at_once):
        inside = ((k + lane < length) & (lane < at_once))[None, :]
        e = (start + k + lane)[None, :]
        j = next_j.to(tl.int64)
        later = ((k + at_once + lane < length) & (lane < at_once))[None, :]
        next_j = tl.load(indices + e + at_once, mask=later, other=0)
        factor = entry_factors(start, j, e, inside, None, col_scale, None, False, WORK)
        total = _add(total, x, x_stride, None, 0, j, e, inside, cols, factor, dim, False, WORK, False)
    return halves(total)


@triton.jit
def _pieces(
    pieces,
    wanted,
    indices,
    row_scale,
    col_scale,
    x,
    x_stride: tl.constexpr,
    partial,
    dim: tl.constexpr,
    WORK: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    DIM: tl.constexpr,
):
    """The sums of those pieces whose rows are wanted."""
    place = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * DIM + tl.arange(0, DIM)
    there = tl.load(wanted + tl.load(pieces + place * 3 + tl.arange(0, 1))) != 0
    start = tl.load(pieces + place * 3 + 1)
    length = tl.max(tl.where(there, tl.load(pieces + place * 3 + 2) - start, 0), 0).to(tl.int32)
    result = _sum(indices, col_scale, x, x_stride, start, length, NEIGHBOURS, cols, dim, WORK, NEIGHBOURS, DIM)
    tl.store(partial + place * dim + cols[None, :], result, mask=there[:, None] & (cols < dim)[None, :])


@triton.jit(do_not_specialize=["scale", "base_scale"])
def _rows(
    rows,
    indptr,
    indices,
    row_scale,
    col_scale,
    x,
    x_stride: tl.constexpr,
    place_in_long,
    long,
    partial,
    base,
    base_stride: tl.constexpr,
    scale: tl.int64,
    base_scale: tl.int64,
    out,
    dim: tl.constexpr,
    WORK: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    DIM: tl.constexpr,
    SHORT: tl.constexpr,
    LONG: tl.constexpr,
):
    """A row a program; those of more than LONG entries from the sums of their pieces."""
    place = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * DIM + tl.arange(0, DIM)
    here = (cols < dim)[None, :]
    row = tl.load(rows + place + tl.arange(0, 1))
    start = tl.load(indptr + tl.load(rows + place))
    length = (tl.load(indptr + tl.load(rows + place) + 1) - start).to(tl.int32)
    own = tl.where(length > LONG, 0, length)
    at_once = tl.where(length > SHORT, NEIGHBOURS, 1)
    result = _sum(indices, col_scale, x, x_stride, start, own, at_once, cols, dim, WORK, NEIGHBOURS, DIM)
    if partial is not None:
        in_pieces = length + tl.zeros((1,), tl.int32) > LONG
        at = tl.load(place_in_long + place) * 3 + tl.arange(0, 1)
        first = tl.max(tl.load(long + at + 1, mask=in_pieces, other=0), 0)
        last = tl.max(tl.load(long + at + 2, mask=in_pieces, other=0), 0)
        result = tl.where(in_pieces[:, None], joined(partial, dim, first, last, cols, dim, WORK), result)
    if row_scale is not None:
        result *= tl.load(row_scale + row)[:, None]
    result = _finish(result, row, cols, here, base, base_stride, scale, base_scale, "sum", WORK)
    tl.store(out + place * dim + cols[None, :], result.to(out.dtype.element_ty), mask=here)
