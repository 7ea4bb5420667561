"""numba kernel of spmm: a thread takes a chunk of rows, a row's sum stays in registers."""

from __future__ import annotations

from functools import cache
from typing import Any

import numba

from gnnrec.ops._numba import VERSION, kernel
from gnnrec.ops._vector import MAX_DIM, can_stream, fence, row_gather_sum, row_scale, row_store


def spmm(indptr: Any, indices: Any, row_scales: Any, col_scales: Any, chunks: Any, x: Any, out: Any) -> None:
    """out[i] = row_scales[i] * sum_j col_scales[j] x[j]; arrays of one float dtype, scales may be None."""
    for start in range(0, x.shape[1], MAX_DIM):
        panel = slice(start, start + MAX_DIM)
        target = out[:, panel]
        compiled = _compile(target.shape[1], can_stream(target))
        compiled(indptr, indices, row_scales, col_scales, chunks, x[:, panel], target)


@cache
def _compile(dim: int, stream: bool) -> Any:
    version = VERSION

    @kernel
    def run(indptr: Any, indices: Any, row_scales: Any, col_scales: Any, chunks: Any, x: Any, out: Any) -> None:
        _ = version  # part of the cache key
        for chunk in numba.prange(len(chunks) - 1):
            for i in range(chunks[chunk], chunks[chunk + 1]):
                total = row_gather_sum(x, indices, indptr[i], indptr[i + 1], col_scales, dim)
                if row_scales is not None:
                    total = row_scale(total, row_scales[i])
                row_store(out, i, total, stream)
            fence()

    return run
