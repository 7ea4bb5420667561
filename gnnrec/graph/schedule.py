"""Which rows a thread works on."""

from __future__ import annotations

import torch

from gnnrec.graph import _build

MAX_CHUNKS = 256  # enough for every thread to get many, few enough to cost nothing
ROW_COST = 4  # writing a row costs about as much as gathering this many neighbours
PREFETCH_DISTANCE = 16  # rows of neighbours ahead; 8 was 16 % slower on Gowalla's graph with dim 64
LONG = 2048  # entries; rows with more are split, so that one of them does not keep all other threads waiting


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
    lengths = indptr.diff()
    if not bool((lengths > LONG).any()):
        return torch.from_numpy(_build.balanced_borders(indptr.numpy(), chunks, ROW_COST))
    short = torch.zeros(rows + 1, dtype=torch.int64)
    torch.cumsum(lengths.masked_fill(lengths > LONG, 0), 0, out=short[1:])
    return torch.from_numpy(_build.balanced_borders(short.numpy(), chunks, ROW_COST))


def long_rows(indptr: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows with more than LONG entries, cut into pieces whose results are joined in their order.

    Returns:
        pieces int64 [pieces, 3]: row, first entry, end; and long rows int64 [long, 3]: row, first piece, end.
    """
    rows = (indptr.diff() > LONG).nonzero().flatten()
    counts = (indptr[rows + 1] - indptr[rows] + LONG - 1) // LONG
    ends = counts.cumsum(0)
    row = rows.repeat_interleave(counts)
    part = torch.arange(len(row)) - (ends - counts).repeat_interleave(counts)
    start = indptr[row] + part * LONG
    stop = torch.minimum(start + LONG, indptr[row + 1])
    return torch.stack([row, start, stop], dim=1), torch.stack([rows, ends - counts, ends], dim=1)
