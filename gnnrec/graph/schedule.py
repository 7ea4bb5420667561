"""Which rows a thread works on."""

from __future__ import annotations

import torch

MAX_CHUNKS = 256  # enough for every thread to get many, few enough to cost nothing
ROW_COST = 4  # writing a row costs about as much as gathering this many neighbours


def balanced_chunks(indptr: torch.Tensor) -> torch.Tensor:
    """Borders of consecutive chunks of rows of about equal work.

    Args:
        indptr: int64 [rows + 1].

    Returns:
        int64 [chunks + 1], from 0 to rows. The number of chunks does not depend on the number of threads.
    """
    rows = indptr.numel() - 1
    chunks = max(1, min(MAX_CHUNKS, rows // 16))
    work = indptr + ROW_COST * torch.arange(rows + 1)
    targets = work[-1] * torch.arange(1, chunks) // chunks
    inner = torch.searchsorted(work, targets)
    return torch.cat([torch.zeros(1, dtype=torch.int64), inner, torch.tensor([rows])])
