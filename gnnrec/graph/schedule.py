"""Which rows a thread, or a program on a GPU, works on."""

from __future__ import annotations

from typing import NamedTuple

import torch

from gnnrec import device as devices
from gnnrec.graph import _build

MAX_CHUNKS = 256  # enough for every thread to get many, few enough to cost nothing
ROW_COST = 4  # writing a row costs about as much as gathering this many neighbours
# Rows of neighbours ahead: this many by kernels that do more with a row than to add it up, and at least.
PREFETCH_DISTANCE = 16
# Of narrow rows more. Milliseconds of spmm with 16, 32 and 64 rows ahead, over 4 million nodes in DRAM: 125, 99,
# 86 with 16 columns, 145, 121, 111 with 32, 256, 249, 251 with 64; over Gowalla's, which a cache holds, with 64 columns
# 2.23, 2.17, 2.25, with 256 columns 11.6, 13.0, 13.4.
PREFETCH_BYTES = 8192
PREFETCH_ROWS = 64  # at most
BY_WIDTH = -1  # for a distance: as many rows as `prefetch_distance` says
LONG = 2048  # entries; rows with more are split, so that one of them does not keep all other threads waiting
GPU_SHORT = 16  # entries; rows with no more share a program
GPU_LONG = 128  # entries; the last programs keep the rest of a GPU waiting: with 512, pieces took 40 of 130 us


class Schedule(NamedTuple):
    """What threads take: `balanced_chunks` of rows, and the pieces of long ones with these, as `long_rows` has them."""

    chunks: torch.Tensor
    pieces: torch.Tensor
    long: torch.Tensor

    @classmethod
    def of(cls, indptr: torch.Tensor) -> Schedule:
        """From row pointers, on the CPU."""
        return cls(balanced_chunks(indptr), *long_rows(indptr))


def prefetch_distance(row_bytes: int) -> int:
    """How many rows lie between a prefetch and its use."""
    return min(max(PREFETCH_BYTES // max(row_bytes, 1), PREFETCH_DISTANCE), PREFETCH_ROWS)


def balanced_chunks(indptr: torch.Tensor, at_most: int = MAX_CHUNKS) -> torch.Tensor:
    """Borders of consecutive chunks of rows of about equal work, long rows left out of the count.

    Args:
        indptr: int64 [rows + 1].
        at_most: so many chunks.

    Returns:
        int64 [chunks + 1], from 0 to rows. The number of chunks does not depend on the number of threads.
    """
    rows = indptr.numel() - 1
    chunks = max(1, min(at_most, rows // 16))
    borders = _build.balanced_borders(indptr.numpy(), _longer_rows(indptr, LONG).numpy(), chunks, ROW_COST)
    return torch.from_numpy(borders)


def long_rows(indptr: torch.Tensor, long: int = LONG) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows with more than `long` entries, cut into pieces whose results are joined in their order.

    Returns:
        pieces int64 [pieces, 3]: row, first entry, end; and long rows int64 [long, 3]: row, first piece, end.
    """
    rows = _longer_rows(indptr, long)
    counts = (indptr[rows + 1] - indptr[rows] + long - 1) // long
    ends = counts.cumsum(0)
    row = rows.repeat_interleave(counts)
    part = torch.arange(len(row), device=row.device) - (ends - counts).repeat_interleave(counts)
    start = indptr[row] + part * long
    stop = torch.minimum(start + long, indptr[row + 1])
    return torch.stack([row, start, stop], dim=1), torch.stack([rows, ends - counts, ends], dim=1)


def _longer_rows(indptr: torch.Tensor, limit: int) -> torch.Tensor:
    """Rows with more entries than the limit, int64. On the CPU, where graphs are largest, no array of all lengths."""
    if devices.on_gpu(indptr):
        return (indptr.diff() > limit).nonzero().flatten()
    return torch.from_numpy(_build.longer_rows(indptr.numpy(), limit))


def degree_buckets(indptr: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows that a GPU's programs take whole, rows of about equal length side by side.

    Returns:
        Rows of up to GPU_LONG entries, one a program, and short ones, several a program; both int64 [n, 3]: row, first
        entry, end. A program that has them in one place waits for the memory once.
    """
    lengths = indptr.diff()
    # Falling, so that the programs which take longest start first.
    order = lengths.argsort(stable=True).flip(0)
    long, rest = int((lengths > GPU_LONG).sum()), int((lengths > GPU_SHORT).sum())
    medium, short = (
        torch.stack([rows, indptr[rows], indptr[rows + 1]], 1) for rows in (order[long:rest], order[rest:])
    )
    return medium, short


def degree_histogram(indptr: torch.Tensor) -> torch.Tensor:
    """What launch shapes are chosen by, on the CPU: the number of rows by powers of two, then, of ten parts of the
    rows, how many have each power of two of their degree; int64."""
    degrees = indptr.diff().cpu()
    counts = torch.bincount(torch.log2(degrees + 1.0).long(), minlength=1)
    shares = (10 * counts / max(1, len(degrees))).round().long()
    return torch.cat([torch.tensor([len(degrees).bit_length()]), shares])
