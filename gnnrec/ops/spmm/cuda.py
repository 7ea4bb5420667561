"""Triton kernels of spmm: the mapping of `_tiles`, sums stay in registers; long rows have an ordered second stage."""

# mypy: ignore-errors

import torch
import triton
import triton.language as tl

from gnnrec import device as devices
from gnnrec.ops import _arguments
from gnnrec.ops._launch import (
    Matrix,
    Tile,
    bits,
    launch,
    rows_contiguous,
    tile,
    walk,
    walk_entries,
    walk_once,
    walk_pieces,
)
from gnnrec.ops._sums import halves
from gnnrec.ops._tiles import TYPES, entry_factors, joined, number, row_range, rows_at


def spmm(
    matrix: Matrix,
    x: torch.Tensor | None,
    values: torch.Tensor | None,
    out: torch.Tensor,
    reduce: str = "sum",
    scale: float = 1.0,
    base: torch.Tensor | None = None,
    base_scale: float = 0.0,
    operator: str = "spmm",
    kept: torch.Tensor | None = None,
    shape: Tile | None = None,
) -> None:
    """out = scale * reduce(matrix, x, values) + base_scale * base, which may be out itself.

    Args:
        matrix: as `_launch.unpack` gives it.
        x: [cols, dim], or None for ones.
        values: None, [nnz] or [nnz, dim].
        out: [rows, dim], of the dtype that decides about the computation's.
        reduce: sum, max or min.
        operator: whose launch shape it takes.
        kept: uint8 [nnz], in the order of the matrix's entries, 0 for those that a sum leaves out.
        shape: to run with, instead of the one that was tuned.
    """
    shape = shape or tile(operator, matrix, out.shape[1], out.dtype)
    _reduce_rows(matrix, shape, x, values, None, out, reduce, scale, base, base_scale, kept)


def _reduce_rows(
    matrix: Matrix,
    shape: Tile,
    x: torch.Tensor | None,
    values: torch.Tensor | None,
    best: torch.Tensor | None,
    out: torch.Tensor,
    mode: str,
    scale: float,
    base: torch.Tensor | None,
    base_scale: float,
    kept: torch.Tensor | None = None,
) -> None:
    """`spmm`, or in mode "count" base_scale * base / how many terms equal `best` [rows, dim], at least 1."""
    dim, wide = out.shape[1], _arguments.compute_dtype(out.dtype)
    x, values, base = (None if t is None else rows_contiguous(t) for t in (x, values, base))
    added = base, 0 if base is None else base.stride(0), bits(scale), bits(base_scale)
    given = x, 0 if x is None else x.stride(0), values, 0 if values is None else values.stride(0), best
    kinds = {"dim": dim, "MODE": mode, "WIDE": values is not None and values.dim() == 2, "WORK": TYPES[wide]}
    scales = matrix.row_scale, matrix.col_scale, matrix.entries, kept
    partial = None
    if len(matrix.pieces):
        partial = devices.empty(out, (len(matrix.pieces), dim), "the sums of long rows' pieces", wide)
    walk_once(_reduce, matrix, shape, *scales, *given, *added, partial, out, out.stride(0), **kinds)
    if partial is not None:
        scale_too = None if mode != "sum" else matrix.row_scale
        launched = matrix.long, scale_too, partial, dim, *added, out, out.stride(0)
        constants = {"dim": dim, "DIM": shape.dim, "MODE": mode, "WORK": TYPES[wide]}
        # As lightgcn_propagate joins: the same bits.
        launch(_join, (len(matrix.long), shape.panels), *launched, warps=shape.warps, **constants)


def extreme_backward(
    matrix: Matrix,
    transposed: Matrix,
    x: torch.Tensor,
    values: torch.Tensor | None,
    grad: torch.Tensor,
    reduce: str,
    scale: float,
    grad_x: torch.Tensor,
    grad_values: torch.Tensor | None,
) -> None:
    """Fill the gradients of x and of the values. A row's gradient is shared by the terms that attain its extreme."""
    dim, wide = x.shape[1], _arguments.compute_dtype(x.dtype)
    shape = tile("spmm", matrix, dim, x.dtype, sums=2)
    x, grad = rows_contiguous(x), rows_contiguous(grad)
    values = None if values is None else rows_contiguous(values)
    best = devices.empty(x, grad.shape, "the extremes", wide)
    share = devices.empty(x, grad.shape, "the extremes' gradients", wide)
    _reduce_rows(matrix, shape, x, values, None, best, reduce, 1.0, None, 0.0)
    _reduce_rows(matrix, shape, x, values, best, share, "count", 1.0, grad, scale)
    given = x, x.stride(0), values, 0 if values is None else values.stride(0), best, share
    kinds = {"dim": dim, "WIDE": values is not None and values.dim() == 2, "WORK": TYPES[wide]}
    scales = transposed.row_scale, transposed.col_scale, transposed.entries
    if len(transposed.pieces):
        partial = devices.empty(x, (len(transposed.pieces), dim), "the sums of long rows' pieces", wide)
        walk_pieces(_collect, transposed, shape, *scales, *given, partial, dim, **kinds)
        added = None, 0, bits(1.0), bits(0.0)
        grid = len(transposed.long), shape.panels
        launched = transposed.long, None, partial, dim, *added, grad_x, grad_x.stride(0)
        launch(_join, grid, *launched, warps=1, dim=dim, DIM=shape.dim, MODE="sum", WORK=TYPES[wide])
    walk(_collect, transposed, shape, *scales, *given, grad_x, grad_x.stride(0), **kinds)
    if grad_values is not None:
        scales = matrix.row_scale, matrix.col_scale, matrix.entries
        one_program = shape._replace(panels=1)
        walk_entries(_to_values, matrix, one_program, *scales, *given, grad_values, grad_values.stride(0), **kinds)


@triton.jit
def _terms(
    x,
    x_stride,
    values,
    values_stride,
    j,
    e,
    inside,
    cols,
    factor,
    dim: tl.constexpr,
    WIDE: tl.constexpr,
    WORK: tl.constexpr,
):
    """The terms [ROWS, NEIGHBOURS, DIM] of entries; 0 beyond the end."""
    here = inside[:, :, None] & (cols < dim)[None, None, :]
    term = factor[:, :, None]
    if WIDE:
        value = tl.load(values + e[:, :, None] * values_stride + cols[None, None, :], mask=here, other=0)
        term = value.to(WORK) * term
    if x is not None:
        row = tl.load(x + j[:, :, None] * x_stride + cols[None, None, :], mask=here, other=0)
        term = row.to(WORK) * term
    return tl.where(here, term, 0)


@triton.jit
def _add(
    total,
    x,
    x_stride: tl.constexpr,
    values,
    values_stride: tl.constexpr,
    j,
    e,
    inside,
    cols,
    factor,
    dim: tl.constexpr,
    WIDE: tl.constexpr,
    WORK: tl.constexpr,
    ALL: tl.constexpr,
):
    """total [ROWS, NEIGHBOURS, DIM] and the terms of entries; ALL where every lane has one. A multiplication and an
    addition are rounded once, whichever kernel adds."""
    if x is None or WIDE:
        total += _terms(x, x_stride, values, values_stride, j, e, inside, cols, factor, dim, WIDE, WORK)
    else:
        at = x + j[:, :, None] * x_stride + cols[None, None, :]
        if ALL and dim == cols.shape[0]:
            row = tl.load(at)
        else:
            row = tl.load(at, mask=inside[:, :, None] & (cols < dim)[None, None, :], other=0)
        total = tl.fma(row.to(WORK), tl.broadcast_to(factor[:, :, None], total.shape), total)
    return total


@triton.jit(do_not_specialize=["pieces", "programs", "count", "scale", "base_scale"])
def _reduce(
    alone,
    pieces,
    programs,
    short,
    count,
    indices,
    row_scale,
    col_scale,
    entries,
    kept,
    x,
    x_stride: tl.constexpr,
    values,
    values_stride: tl.constexpr,
    best,
    base,
    base_stride: tl.constexpr,
    scale: tl.int64,
    base_scale: tl.int64,
    partial,
    out,
    out_stride: tl.constexpr,
    dim: tl.constexpr,
    MODE: tl.constexpr,
    WIDE: tl.constexpr,
    WORK: tl.constexpr,
    ROWS: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    DIM: tl.constexpr,
):
    """Two walks: programs with a row or piece each, gathering NEIGHBOURS at once, then those that have ROWS short rows
    each, with a neighbour of every one at once."""
    program = tl.program_id(0)
    if program < programs:
        _tile(
            alone, programs, pieces, program, indices, row_scale, col_scale, entries, kept, x, x_stride, values,
            values_stride, best, base, base_stride, scale, base_scale, partial, out, out_stride,
            dim, MODE, WIDE, WORK, 1, NEIGHBOURS, DIM,
        )  # fmt: skip
    else:
        _tile(
            short, count, 0, program - programs, indices, row_scale, col_scale, entries, kept, x, x_stride, values,
            values_stride, best, base, base_stride, scale, base_scale, None, out, out_stride,
            dim, MODE, WIDE, WORK, ROWS, NEIGHBOURS if ROWS == 1 else 1, DIM,
        )  # fmt: skip


@triton.jit
def _tile(
    rows,
    count,
    pieces,
    program,
    indices,
    row_scale,
    col_scale,
    entries,
    kept,
    x,
    x_stride: tl.constexpr,
    values,
    values_stride: tl.constexpr,
    best,
    base,
    base_stride: tl.constexpr,
    scale,
    base_scale,
    partial,
    out,
    out_stride: tl.constexpr,
    dim: tl.constexpr,
    MODE: tl.constexpr,
    WIDE: tl.constexpr,
    WORK: tl.constexpr,
    ROWS: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    DIM: tl.constexpr,
):
    """Compute and write the rows of a program, of which so many first places are pieces."""
    cols = tl.program_id(1) * DIM + tl.arange(0, DIM)
    place = program.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row, start, length = rows_at(rows, count, place)
    here = (place < count)[:, None] & (cols < dim)[None, :]
    wanted, own_scale = None, None
    if MODE == "count":
        wanted = tl.load(best + row[:, None] * dim + cols[None, :], mask=here, other=0)
    if MODE == "sum":
        if row_scale is not None:
            own_scale = tl.load(row_scale + row)  # here, so that the end does not wait for it
    result = _result(
        row, start, length, cols, indices, row_scale, col_scale, entries, kept, x, x_stride, values, values_stride,
        wanted, dim, MODE, WIDE, WORK, NEIGHBOURS,
    )  # fmt: skip
    if partial is not None:
        piece = (place < pieces)[:, None]
        tl.store(partial + place[:, None] * dim + cols[None, :], result, mask=here & piece)
        here &= ~piece
    if own_scale is not None:
        result *= own_scale[:, None]
    result = _finish(result, row, cols, here, base, base_stride, scale, base_scale, MODE, WORK)
    tl.store(out + row[:, None] * out_stride + cols[None, :], result.to(out.dtype.element_ty), mask=here)


@triton.jit
def _result(
    row,
    start,
    length,
    cols,
    indices,
    row_scale,
    col_scale,
    entries,
    kept,
    x,
    x_stride: tl.constexpr,
    values,
    values_stride: tl.constexpr,
    wanted,
    dim: tl.constexpr,
    MODE: tl.constexpr,
    WIDE: tl.constexpr,
    WORK: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
):
    """Of rows [ROWS, DIM]: the extremes, how many terms equal those wanted, or the sums without the rows' factors.

    A neighbour's number is there before its row is wanted: one wait for the memory for so many of them, not two. As
    long as all lanes have a neighbour nothing is masked, which takes half the instructions, and these are the limit.
    """
    lane = tl.arange(0, NEIGHBOURS)[None, :]
    extreme: tl.constexpr = MODE == "max" or MODE == "min"
    lowest = float("-inf") if MODE == "max" else float("inf")
    total = tl.full((row.shape[0], NEIGHBOURS, cols.shape[0]), lowest if extreme else 0.0, WORK)
    all_here = tl.full((row.shape[0], NEIGHBOURS), True, tl.int1)
    whole = 0 * tl.min(length, 0)
    if MODE == "sum" and kept is None:
        whole = tl.min(length, 0) // NEIGHBOURS * NEIGHBOURS
    first_j = tl.load(indices + start[:, None] + lane, mask=all_here & (whole > 0))
    last_j = tl.load(indices + start[:, None] + (whole + lane), mask=whole + lane < length[:, None], other=0)
    for k in range(0, whole, NEIGHBOURS):
        place = start[:, None] + (k + lane)
        j = first_j.to(tl.int64)
        first_j = tl.load(indices + place + NEIGHBOURS, mask=all_here & (k + NEIGHBOURS < whole))
        e = place
        if entries is not None:
            e = tl.load(entries + place)
        factor = entry_factors(row, j, e, None, None, col_scale, values, WIDE, WORK)
        total = _add(total, x, x_stride, values, values_stride, j, e, all_here, cols, factor, dim, WIDE, WORK, True)
    for k in range(whole, tl.max(length, 0), NEIGHBOURS):
        inside = k + lane < length[:, None]
        place = start[:, None] + (k + lane)
        j = last_j.to(tl.int64)
        last_j = tl.load(indices + place + NEIGHBOURS, mask=k + NEIGHBOURS + lane < length[:, None], other=0)
        if kept is not None:
            inside &= tl.load(kept + place, mask=inside, other=0) != 0
        e = place
        if entries is not None:
            e = tl.load(entries + place, mask=inside, other=0)
        # A sum takes the row's factor at the end, an extreme's terms have all of theirs before they are compared.
        factor = entry_factors(row, j, e, inside, None if MODE == "sum" else row_scale, col_scale, values, WIDE, WORK)
        if MODE == "sum":
            total = _add(total, x, x_stride, values, values_stride, j, e, inside, cols, factor, dim, WIDE, WORK, False)
        else:
            term = _terms(x, x_stride, values, values_stride, j, e, inside, cols, factor, dim, WIDE, WORK)
            if MODE == "count":
                total += tl.where(inside[:, :, None] & (term == wanted[:, None, :]), 1, 0).to(WORK)
            elif MODE == "max":
                term = tl.where(inside[:, :, None], term, lowest)
                total = tl.maximum(total, term, propagate_nan=tl.PropagateNan.ALL)
            else:
                term = tl.where(inside[:, :, None], term, lowest)
                total = tl.minimum(total, term, propagate_nan=tl.PropagateNan.ALL)
    if extreme:
        unordered = tl.max((total != total).to(tl.int32), axis=1)
        result = tl.max(total, axis=1) if MODE == "max" else tl.min(total, axis=1)
        result = tl.where(unordered > 0, float("nan"), result)
        result = tl.where((length > 0)[:, None], result, 0)
    else:
        result = halves(total)
    return result


@triton.jit
def _finish(result, row, cols, here, base, base_stride, scale, base_scale, MODE: tl.constexpr, WORK: tl.constexpr):
    """The epilogue of rows [ROWS, DIM]."""
    if MODE == "count":
        upstream = tl.load(base + row[:, None] * base_stride + cols[None, :], mask=here, other=0).to(WORK)
        return number(base_scale, WORK) * upstream / tl.maximum(result, 1)
    result *= number(scale, WORK)
    if base is not None:
        added = tl.load(base + row[:, None] * base_stride + cols[None, :], mask=here, other=0).to(WORK)
        # Spelled out, so that every kernel rounds the same of the two products.
        result = tl.fma(number(base_scale, WORK) + tl.zeros_like(added), added, result)
    return result


@triton.jit(do_not_specialize=["scale", "base_scale"])
def _join(
    long,
    row_scale,
    partial,
    partial_stride: tl.constexpr,
    base,
    base_stride: tl.constexpr,
    scale: tl.int64,
    base_scale: tl.int64,
    out,
    out_stride: tl.constexpr,
    dim: tl.constexpr,
    DIM: tl.constexpr,
    MODE: tl.constexpr,
    WORK: tl.constexpr,
):
    """The second stage of long rows: a row's pieces in their order."""
    place = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    row = tl.load(long + place * 3)
    first, last = tl.load(long + tl.program_id(0) * 3 + 1), tl.load(long + tl.program_id(0) * 3 + 2)
    cols = tl.program_id(1) * DIM + tl.arange(0, DIM)
    here = (cols < dim)[None, :]
    if MODE == "max" or MODE == "min":
        result = tl.load(partial + first * partial_stride + cols[None, :], mask=here, other=0)
        for piece in range(first + 1, last):
            part = tl.load(partial + piece * partial_stride + cols[None, :], mask=here, other=0)
            if MODE == "max":
                result = tl.maximum(result, part, propagate_nan=tl.PropagateNan.ALL)
            else:
                result = tl.minimum(result, part, propagate_nan=tl.PropagateNan.ALL)
    else:
        result = joined(partial, partial_stride, first, last, cols, dim, WORK)
    if row_scale is not None:
        result *= tl.load(row_scale + row)[:, None]
    result = _finish(result, row, cols, here, base, base_stride, scale, base_scale, MODE, WORK)
    tl.store(out + row[:, None] * out_stride + cols[None, :], result.to(out.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=["count"])
def _collect(
    rows,
    count,
    indices,
    row_scale,
    col_scale,
    entries,
    x,
    x_stride: tl.constexpr,
    values,
    values_stride: tl.constexpr,
    best,
    share,
    out,
    out_stride: tl.constexpr,
    dim: tl.constexpr,
    WIDE: tl.constexpr,
    WORK: tl.constexpr,
    ROWS: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    DIM: tl.constexpr,
    PIECES: tl.constexpr,
):
    """Over the transpose: a row of x receives the shares of the rows whose extreme it attains."""
    place, there, row, start, length = row_range(rows, count, ROWS)
    cols = tl.program_id(1) * DIM + tl.arange(0, DIM)
    lane = tl.arange(0, NEIGHBOURS)
    here = there[:, None] & (cols < dim)[None, :]
    own = tl.load(x + row[:, None] * x_stride + cols[None, :], mask=here, other=0).to(WORK)
    total = tl.zeros((ROWS, NEIGHBOURS, DIM), WORK)
    for k in range(0, tl.max(length, 0), NEIGHBOURS):
        inside = (k + lane)[None, :] < length[:, None]
        place_of = start[:, None] + (k + lane)[None, :]
        i = tl.load(indices + place_of, mask=inside, other=0).to(tl.int64)
        e = place_of
        if entries is not None:
            e = tl.load(entries + place_of, mask=inside, other=0)
        factor = entry_factors(row, i, e, inside, row_scale, col_scale, values, WIDE, WORK)[:, :, None]
        mask = inside[:, :, None] & (cols < dim)[None, None, :]
        if WIDE:
            value = tl.load(values + e[:, :, None] * values_stride + cols[None, None, :], mask=mask, other=0)
            factor = value.to(WORK) * factor
        there_too = i[:, :, None] * dim + cols[None, None, :]
        wanted = tl.load(best + there_too, mask=mask, other=0)
        given = tl.load(share + there_too, mask=mask, other=0)
        total += tl.where(mask & (own[:, None, :] * factor == wanted), given, 0) * factor
    result = tl.sum(total, axis=1)
    target = row
    if PIECES:
        target = place
    tl.store(out + target[:, None] * out_stride + cols[None, :], result.to(out.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=["count"])
def _to_values(
    rows,
    count,
    indices,
    row_scale,
    col_scale,
    entries,
    x,
    x_stride: tl.constexpr,
    values,
    values_stride: tl.constexpr,
    best,
    share,
    out,
    out_stride: tl.constexpr,
    dim: tl.constexpr,
    WIDE: tl.constexpr,
    WORK: tl.constexpr,
    ROWS: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    DIM: tl.constexpr,
):
    """The gradient of an entry's value, [nnz] or, where values are wide, [nnz, dim]."""
    _, there, row, start, length = row_range(rows, count, ROWS)
    lane = tl.arange(0, NEIGHBOURS)
    for k in range(0, tl.max(length, 0), NEIGHBOURS):
        inside = (k + lane)[None, :] < length[:, None]
        place_of = start[:, None] + (k + lane)[None, :]
        j = tl.load(indices + place_of, mask=inside, other=0).to(tl.int64)
        e = place_of
        if entries is not None:
            e = tl.load(entries + place_of, mask=inside, other=0)
        scales = entry_factors(row, j, e, inside, row_scale, col_scale, None, WIDE, WORK)
        factor = entry_factors(row, j, e, inside, row_scale, col_scale, values, WIDE, WORK)
        dot = tl.zeros((ROWS, NEIGHBOURS), WORK)
        for first in tl.static_range(0, dim, DIM):
            cols = first + tl.arange(0, DIM)
            here = there[:, None] & (cols < dim)[None, :]
            wanted = tl.load(best + row[:, None] * dim + cols[None, :], mask=here, other=0)
            given = tl.load(share + row[:, None] * dim + cols[None, :], mask=here, other=0)
            term = _terms(x, x_stride, values, values_stride, j, e, inside, cols, factor, dim, WIDE, WORK)
            plain = _terms(x, x_stride, None, 0, j, e, inside, cols, scales, dim, False, WORK)
            part = tl.where(term == wanted[:, None, :], given[:, None, :], 0) * plain
            if WIDE:
                mask = inside[:, :, None] & (cols < dim)[None, None, :]
                target = out + e[:, :, None] * out_stride + cols[None, None, :]
                tl.store(target, part.to(out.dtype.element_ty), mask=mask)
            else:
                dot += tl.sum(part, axis=2)
        if not WIDE:
            tl.store(out + e, dot.to(out.dtype.element_ty), mask=inside)
