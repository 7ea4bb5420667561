"""What Triton kernels share: the mapping of rows to programs, numbers, dropout.

One mapping serves vertices and edges: a program holds a tile [ROWS, NEIGHBOURS, DIM] in which lane (r, n, c) belongs
to column c of the n-th neighbour of the r-th of its rows. Short rows share a program (ROWS > 1), a medium row or a
piece of a long row has one (ROWS = 1), whose NEIGHBOURS are gathered at once. Whatever is computed for an edge is a
vector over (ROWS, NEIGHBOURS), for a vertex one over ROWS, so attention, softmax and aggregation need no other threads.

Source: Zhang et al. 2022, "Understanding GNN computational graph", section 5 (unified thread mapping).
"""

import torch
import triton
import triton.language as tl

from gnnrec.ops._sums import halves

# What kernels compute in, by the dtype of what they are given.
TYPES = {torch.float32: tl.float32, torch.float64: tl.float64, torch.bfloat16: tl.float32, torch.float16: tl.float32}


@triton.jit
def number(bits, dtype: tl.constexpr):
    """A float64 that came as an integer, in the dtype of a computation."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True).to(dtype)


@triton.jit
def row_range(rows, count, ROWS: tl.constexpr):
    """Which rows this program has, where their entries start and how many there are, each [ROWS].

    Args:
        rows: rows or pieces of them, int64 [count, 3]: row, first entry, end.

    Returns:
        place in `rows`, whether there is a row, row (int64), first entry (int64), entries (int32).
    """
    place = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row, start, length = rows_at(rows, count, place)
    return place, place < count, row, start, length


@triton.jit
def rows_at(rows, count, place):
    """The rows at these places, where their entries start and how many there are; none beyond the count."""
    there = place < count
    row = tl.load(rows + place * 3, mask=there, other=0)
    start = tl.load(rows + place * 3 + 1, mask=there, other=0)
    stop = tl.load(rows + place * 3 + 2, mask=there, other=0)
    return row, start, (stop - start).to(tl.int32)


@triton.jit
def joined(partial, stride, first, last, cols, dim: tl.constexpr, WORK: tl.constexpr):
    """The sum [1, DIM] of the rows first .. last - 1 of partial, several at once, in an order of its own."""
    lane = tl.arange(0, 4)
    total = tl.zeros((4, cols.shape[0]), WORK)
    for piece in range(first, last, 4):
        here = (piece + lane < last)[:, None] & (cols < dim)[None, :]
        total += tl.load(partial + (piece + lane)[:, None] * stride + cols[None, :], mask=here, other=0)
    return halves(total[None, :, :])


@triton.jit
def words(seed, a, b, stream: tl.constexpr, column):
    """The 32-bit words (uint32) that decide about elements (a, b, column) under a stream; see `_dropout`. a, b and
    column are integer tensors whose shapes broadcast."""
    lane = column // 64 * 16 + column % 16
    c0, c1, c2, c3 = tl.philox(seed, a.to(tl.uint32), b.to(tl.uint32), lane.to(tl.uint32), stream)
    which = column % 64 // 16
    return tl.where(which == 0, c0, tl.where(which == 1, c1, tl.where(which == 2, c2, c3)))


@triton.jit
def row_words(seed, row, b, stream: tl.constexpr, first, DIM: tl.constexpr):
    """The words of elements (row, b, column) for rows [ROWS], a number b and DIM columns, a power of two, from a
    multiple of 64 on: uint32 [ROWS, DIM]."""
    if DIM < 64:
        column = first + tl.arange(0, DIM)
        result = words(seed, row[:, None], b, stream, column[None, :])
    else:
        # All four words of a lane are used, where `words` makes as many for each that it wants.
        lane = first // 4 + tl.arange(0, DIM // 4)
        c0, c1, c2, c3 = tl.philox(seed, row.to(tl.uint32)[:, None], b, lane.to(tl.uint32)[None, :], stream)
        lanes = tl.join(tl.join(c0, c2), tl.join(c1, c3))
        lanes = tl.reshape(lanes, (row.shape[0], DIM // 64, 16, 4))
        result = tl.reshape(tl.permute(lanes, (0, 1, 3, 2)), (row.shape[0], DIM))
    return result


@triton.jit
def kept(seed, a, b, stream: tl.constexpr, column, threshold):
    """Whether dropout keeps elements; the threshold may be 2^32."""
    return words(seed, a, b, stream, column).to(tl.int64) >= threshold


@triton.jit
def kept_entries(seed, a, b, stream: tl.constexpr, threshold):
    """The same for column 0."""
    word, _, _, _ = tl.philox(seed, a.to(tl.uint32), b.to(tl.uint32), 0, stream)
    return word.to(tl.int64) >= threshold


@triton.jit
def kept_columns(seed, a, stream: tl.constexpr, first, threshold, DIM: tl.constexpr):
    """The same for a of shape [ROWS], b = 0 and DIM columns, a power of two, from a multiple of 64 on: [ROWS, DIM]."""
    if DIM < 64:
        column = first + tl.arange(0, DIM)
        result = kept(seed, a[:, None], tl.zeros_like(a)[:, None], stream, column[None, :], threshold)
    else:
        # All four words of a lane are used, where `kept` makes as many for each that it wants.
        lane = first // 4 + tl.arange(0, DIM // 4)
        c0, c1, c2, c3 = tl.philox(seed, a.to(tl.uint32)[:, None], 0, lane.to(tl.uint32)[None, :], stream)
        even = tl.join((c0.to(tl.int64) >= threshold).to(tl.int8), (c2.to(tl.int64) >= threshold).to(tl.int8))
        odd = tl.join((c1.to(tl.int64) >= threshold).to(tl.int8), (c3.to(tl.int64) >= threshold).to(tl.int8))
        lanes = tl.reshape(tl.join(even, odd), (a.shape[0], DIM // 64, 16, 4))
        result = tl.reshape(tl.permute(lanes, (0, 1, 3, 2)), (a.shape[0], DIM)) != 0
    return result


@triton.jit
def entry_factors(row, j, e, inside, row_scale, col_scale, values, wide: tl.constexpr, dtype: tl.constexpr):
    """row_scale[i] * col_scale[j] * values[e] of entries [ROWS, NEIGHBOURS], without the values where those are wide:
    the same bits whichever of its two ends an entry is seen from. inside: None where all lanes have an entry."""
    factor = tl.full(j.shape, 1, dtype)
    if row_scale is not None:
        factor *= tl.load(row_scale + row)[:, None]
    if col_scale is not None:
        factor *= _numbers(col_scale, j, inside)
    if values is not None:
        if not wide:
            factor *= _numbers(values, e, inside).to(dtype)
    return factor


@triton.jit
def _numbers(numbers, places, inside):
    """What lies at these places, 0 for lanes outside."""
    return tl.load(numbers + places) if inside is None else tl.load(numbers + places, mask=inside, other=0)
