"""Triton kernels that add up groups of rows in their order, also by a number that each row has: then a stable sort of
the numbers comes before.

All shapes are known beforehand, so nothing waits for the GPU. A result of few rows is added up by whoever writes it.
One of many would keep its program long: the sorted list is cut into runs, each of which is added up by one program for
its first and one for its last number, and whoever writes the result joins the runs in their order.
"""

# mypy: ignore-errors

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from gnnrec import device as devices
from gnnrec.ops import _arguments, tuning
from gnnrec.ops._launch import launch, panel, rows_contiguous
from gnnrec.ops._tiles import TYPES

SPREAD = 2048  # numbers of a program that copies rows, of 4 bytes each
MOST = 2**31 - 2**16  # rows that are added up: their numbers, and some beyond them, are 32-bit


class Groups(NamedTuple):
    """What a stable sort of numbers says.

    Args:
        keys: int32 [n], the numbers sorted; order: int64 [n], where each of them stood, None where it stands.
        indptr: int32 [size + 1]: where in them a number begins.
    """

    keys: torch.Tensor
    order: torch.Tensor | None
    indptr: torch.Tensor

    @property
    def size(self) -> int:
        return len(self.indptr) - 1


class Tile(NamedTuple):
    """A tile [ROWS, NEIGHBOURS, DIM] as in `_tiles`; `panels` programs share a row's columns.

    Args:
        run: sorted rows that a program adds up of a result that has more.
    """

    rows: int
    neighbours: int
    dim: int
    panels: int
    run: int
    warps: int


def group(numbers: torch.Tensor, size: int) -> Groups:
    """Numbers within 0 and size - 1, in groups of equal ones."""
    keys, order = numbers.to(torch.int32).sort(stable=True)
    starts = torch.arange(size + 1, dtype=torch.int32, device=numbers.device)
    return Groups(keys, order, torch.searchsorted(keys, starts, out_int32=True))


def tile(shape: tuning.Shape, dim: int, dtype: torch.dtype) -> Tile:
    """The tile for rows of this dtype: rows have few neighbours in a batch, so several share a program."""
    columns = panel(dim)
    lanes = max(1, shape["numbers"] * 4 // _arguments.compute_dtype(dtype).itemsize // columns)
    neighbours = min(shape["neighbours"], max(1, lanes // 2))
    return Tile(lanes // neighbours, neighbours, columns, -(-dim // columns), shape["run"], shape["warps"])


def walk(kernel, groups: Groups, shape: Tile, like: torch.Tensor, *args, **constants) -> None:
    """Launch a kernel over the runs, two programs each, then over the results. Its first parameters are those of
    `group_range`, then `order` and `partial`, room for the sums of runs; ROWS, NEIGHBOURS, DIM, RUN and PARTS are among
    its constants. `like` has the dtype and the columns of what is added up."""
    parts, dtype = 2 * -(-len(groups.keys) // shape.run), _arguments.compute_dtype(like.dtype)
    partial = devices.empty(like, (parts, like.shape[1]), "the sums of runs", dtype)
    given = groups.keys, len(groups.keys), groups.indptr, groups.size, groups.order, partial
    lanes = shape.rows * shape.neighbours
    for programs, rows, of_runs in ((parts, 1, True), (-(-groups.size // shape.rows), shape.rows, False)):
        tiles = {"ROWS": rows, "NEIGHBOURS": lanes // rows, "DIM": shape.dim, "RUN": shape.run, "PARTS": of_runs}
        launch(kernel, (programs, shape.panels), *given, *args, warps=shape.warps, **tiles, **constants)


def index_sum(
    src: torch.Tensor, index: torch.Tensor, out: torch.Tensor, deterministic: bool, shares: torch.Tensor | None
) -> None:
    """out[i] = shares[i] times the sum of the rows src[k] with index[k] = i, in the order of k unless it need not be
    deterministic.

    Args:
        src: [n, dim]; index: integers [n] within the rows of out.
        shares: of the rows of out, in the dtype of the computation, or None for 1.
    """
    if deterministic:
        group_sum(src, group(index, len(out)), out, shares)
        return
    src, shape = rows_contiguous(src), _shape(src, len(index), len(out))
    rows = shape.rows * shape.neighbours
    sums = zeros(out)
    given = src, src.stride(0), index, len(index), sums
    grid = -(-len(index) // rows), shape.panels
    launch(_add, grid, *given, warps=shape.warps, dim=src.shape[1], DIM=shape.dim, ROWS=rows)
    if shares is not None:
        sums *= shares[:, None]
    if sums is not out:
        out.copy_(sums)


def group_sum(src: torch.Tensor, groups: Groups, out: torch.Tensor, shares: torch.Tensor | None) -> None:
    """out[i] = shares[i] times the sum of the rows of src that group i names, in its order.

    Raises:
        ValueError: more rows are named than 32-bit numbers count.
    """
    if len(groups.keys) > MOST:
        raise ValueError(f"sums over groups take {MOST} rows at the most on a GPU, got {len(groups.keys)}")
    src, shape = rows_contiguous(src), _shape(src, len(groups.keys), len(out))
    walk(_sum, groups, shape, src, src, src.stride(0), shares, out, dim=src.shape[1], WORK=TYPES[src.dtype])


def spread(x: torch.Tensor, index: torch.Tensor, shares: torch.Tensor | None, out: torch.Tensor) -> None:
    """out[k] = shares[index[k]] * x[index[k]], for index int64 [n] within the rows of x."""
    x, dim, columns = rows_contiguous(x), x.shape[1], panel(x.shape[1])
    rows = max(1, SPREAD * 4 // out.itemsize // columns)
    given = x, x.stride(0), index, len(index), shares, out
    grid = -(-len(index) // rows), -(-dim // columns)
    launch(_spread, grid, *given, warps=4, dim=dim, WORK=TYPES[out.dtype], DIM=columns, ROWS=rows)


def _shape(src: torch.Tensor, count: int, groups: int) -> Tile:
    dim = src.shape[1]
    shape = tuning.choose("index_scatter", dim, 1, src.dtype, tuning.magnitudes(count, groups), src.device)
    return tile(shape, dim, src.dtype)


def zeros(out: torch.Tensor) -> torch.Tensor:
    """What atomics add to: the result itself, or where it is of halves, a tensor that the sums lie in until then."""
    wide = _arguments.compute_dtype(out.dtype)
    return out.zero_() if out.dtype == wide else torch.zeros_like(out, dtype=wide)


@triton.jit
def group_range(keys, count, indptr, size, ROWS: tl.constexpr, RUN: tl.constexpr, PARTS: tl.constexpr):
    """What this program adds up: the places [ROWS] it writes to and whether they are there, where in the sorted list
    their entries start and how many there are.

    With PARTS, whose programs have one row, these are a run's entries of its first number (even programs) or its last
    (odd ones), if that one has more than a run's entries altogether. More than two such numbers a run cannot hold.
    """
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    if PARTS:
        low = place // 2 * RUN
        high = tl.minimum(low + RUN, count)
        even = place % 2 == 0
        key = tl.load(keys + tl.where(even, low, high - 1))
        start, stop = tl.load(indptr + key), tl.load(indptr + key + 1)
        there = (stop - start > RUN) & (even | (start > low))
        first = tl.maximum(start, low)
        return place, there, first, tl.where(there, tl.minimum(stop, high) - first, 0)
    there = place < size
    start = tl.load(indptr + place, mask=there, other=0)
    stop = tl.load(indptr + place + 1, mask=there, other=0)
    return place, there, start, stop - start


@triton.jit
def add_runs(total, partial, start, length, cols, dim: tl.constexpr, RUN: tl.constexpr, NEIGHBOURS: tl.constexpr):
    """Add to the tile the sums of the runs of those rows that have more than RUN entries."""
    first = start // RUN
    runs = tl.where(length > RUN, (start + length - 1) // RUN - first + 1, 0)
    lane = tl.arange(0, NEIGHBOURS)
    for k in range(0, tl.max(runs, 0), NEIGHBOURS):
        inside = (k + lane)[None, :] < runs[:, None]
        # A number that does not begin with its first run is the last one there, and the first one in all others.
        later = (k + lane == 0)[None, :] & (start % RUN != 0)[:, None]
        part = 2 * (first[:, None] + (k + lane)[None, :]) + later.to(tl.int32)
        mask = inside[:, :, None] & (cols < dim)[None, None, :]
        total += tl.load(partial + part.to(tl.int64)[:, :, None] * dim + cols[None, None, :], mask=mask, other=0)
    return total


@triton.jit(do_not_specialize=["count", "size"])
def _sum(
    keys,
    count,
    indptr,
    size,
    order,
    partial,
    src,
    src_stride: tl.constexpr,
    shares,
    out,
    dim: tl.constexpr,
    WORK: tl.constexpr,
    ROWS: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    DIM: tl.constexpr,
    RUN: tl.constexpr,
    PARTS: tl.constexpr,
):
    place, there, start, length = group_range(keys, count, indptr, size, ROWS, RUN, PARTS)
    cols = tl.program_id(1) * DIM + tl.arange(0, DIM)
    lane = tl.arange(0, NEIGHBOURS)
    total = tl.zeros((ROWS, NEIGHBOURS, DIM), WORK)
    own = length if PARTS else tl.where(length > RUN, 0, length)
    if order is not None:
        next_e = tl.load(order + start[:, None] + lane[None, :], mask=lane[None, :] < own[:, None], other=0)
    for k in range(0, tl.max(own, 0), NEIGHBOURS):
        inside = (k + lane)[None, :] < own[:, None]
        e = (start[:, None] + (k + lane)[None, :]).to(tl.int64)
        if order is not None:  # a row's number is there before the row is wanted
            later = (k + NEIGHBOURS + lane)[None, :] < own[:, None]
            e, next_e = next_e, tl.load(order + e + NEIGHBOURS, mask=later, other=0)
        mask = inside[:, :, None] & (cols < dim)[None, None, :]
        total += tl.load(src + e[:, :, None] * src_stride + cols[None, None, :], mask=mask, other=0).to(WORK)
    target = out
    if PARTS:
        target = partial
    else:
        total = add_runs(total, partial, start, length, cols, dim, RUN, NEIGHBOURS)
    here = there[:, None] & (cols < dim)[None, :]
    result = tl.sum(total, axis=1)
    if shares is not None:
        if not PARTS:
            result *= tl.load(shares + place, mask=there, other=0)[:, None]
    result = result.to(target.dtype.element_ty)
    tl.store(target + place.to(tl.int64)[:, None] * dim + cols[None, :], result, mask=here)


@triton.jit(do_not_specialize=["count"])
def _spread(
    x,
    x_stride: tl.constexpr,
    index,
    count,
    shares,
    out,
    dim: tl.constexpr,
    WORK: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = tl.program_id(1) * DIM + tl.arange(0, DIM)
    here = (place < count)[:, None] & (cols < dim)[None, :]
    row = tl.load(index + place, mask=place < count, other=0)
    value = tl.load(x + row[:, None] * x_stride + cols[None, :], mask=here, other=0)
    if shares is not None:
        value = value.to(WORK) * tl.load(shares + row, mask=place < count, other=0)[:, None]
    tl.store(out + place[:, None] * dim + cols[None, :], value.to(out.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=["count"])
def _add(src, src_stride, index, count, out, dim: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr):
    """With atomics, in any order."""
    place = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = tl.program_id(1) * DIM + tl.arange(0, DIM)
    here = (place < count)[:, None] & (cols < dim)[None, :]
    row = tl.load(index + place, mask=place < count, other=0).to(tl.int64)
    value = tl.load(src + place[:, None] * src_stride + cols[None, :], mask=here, other=0)
    target = out + row[:, None] * dim + cols[None, :]
    tl.atomic_add(target, value.to(out.dtype.element_ty), mask=here, sem="relaxed")
