"""Triton kernels of sddmm: the mapping of `_tiles`. Entries need nothing of each other, so pieces of long rows are like
rows."""

# mypy: ignore-errors

import torch
import triton
import triton.language as tl

from gnnrec.ops import _arguments
from gnnrec.ops._launch import Matrix, rows_contiguous, tile, walk_entries
from gnnrec.ops._tiles import TYPES, entry_factors, row_range


def sddmm(matrix: Matrix, a: torch.Tensor, b: torch.Tensor | None, kind: str, out: torch.Tensor) -> None:
    """out[e] = row_scale[i] * col_scale[j] * (a[i] kind b[j]); `lhs` is a[i] alone.

    Args:
        matrix: as `_launch.unpack` gives it.
        a: [rows, dim]; b: [cols, dim].
        kind: dot, add, mul or lhs.
        out: [nnz] for dot, [nnz, dim] otherwise.
    """
    dim = a.shape[1]
    shape = tile("sddmm", matrix, dim, a.dtype)
    if kind == "dot":
        shape = shape._replace(panels=1)
    a, b = rows_contiguous(a), None if b is None else rows_contiguous(b)
    given = matrix.row_scale, matrix.col_scale, matrix.entries, a, a.stride(0), b, 0 if b is None else b.stride(0), out
    kinds = {"dim": dim, "KIND": kind, "WORK": TYPES[_arguments.compute_dtype(a.dtype)]}
    walk_entries(_sddmm, matrix, shape, *given, **kinds)


@triton.jit
def _left(a, a_stride, row, there, cols, dim: tl.constexpr, WORK: tl.constexpr):
    """Columns of the programs' own rows, [ROWS, DIM]."""
    here = there[:, None] & (cols < dim)[None, :]
    return tl.load(a + row[:, None] * a_stride + cols[None, :], mask=here, other=0).to(WORK)


@triton.jit(do_not_specialize=["count"])
def _sddmm(
    rows,
    count,
    indices,
    row_scale,
    col_scale,
    entries,
    a,
    a_stride: tl.constexpr,
    b,
    b_stride: tl.constexpr,
    out,
    dim: tl.constexpr,
    KIND: tl.constexpr,
    WORK: tl.constexpr,
    ROWS: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    DIM: tl.constexpr,
):
    _, there, row, start, length = row_range(rows, count, ROWS)
    panel = tl.program_id(1) * DIM + tl.arange(0, DIM)
    lane = tl.arange(0, NEIGHBOURS)
    stays: tl.constexpr = KIND != "dot" or dim <= DIM  # the program's own rows fit its tile
    if stays:
        left = _left(a, a_stride, row, there, panel, dim, WORK)
    for k in range(0, tl.max(length, 0), NEIGHBOURS):
        inside = (k + lane)[None, :] < length[:, None]
        place = start[:, None] + (k + lane)[None, :]
        j = tl.load(indices + place, mask=inside, other=0).to(tl.int64)
        e = place
        if entries is not None:
            e = tl.load(entries + place, mask=inside, other=0)
        factor = entry_factors(row, j, e, inside, row_scale, col_scale, None, False, WORK)
        if KIND == "dot":
            total = tl.zeros((ROWS, NEIGHBOURS, DIM), WORK)
            for first in tl.static_range(0, dim, DIM):
                cols = first + panel
                here = inside[:, :, None] & (cols < dim)[None, None, :]
                right = tl.load(b + j[:, :, None] * b_stride + cols[None, None, :], mask=here, other=0).to(WORK)
                if not stays:
                    left = _left(a, a_stride, row, there, cols, dim, WORK)
                total += left[:, None, :] * right
            tl.store(out + e, (factor * tl.sum(total, axis=2)).to(out.dtype.element_ty), mask=inside)
        else:
            here = inside[:, :, None] & (panel < dim)[None, None, :]
            result = tl.broadcast_to(left[:, None, :], (ROWS, NEIGHBOURS, DIM))
            if KIND != "lhs":
                right = tl.load(b + j[:, :, None] * b_stride + panel[None, None, :], mask=here, other=0).to(WORK)
                result = result + right if KIND == "add" else result * right
            result = (factor[:, :, None] * result).to(out.dtype.element_ty)
            tl.store(out + e[:, :, None] * dim + panel[None, None, :], result, mask=here)
