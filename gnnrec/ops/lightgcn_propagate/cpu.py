"""numba kernel of lightgcn_propagate: the layer sum by Horner's rule, so that a layer is one gather and one write.

    w0 x + w1 A x + w2 A^2 x + w3 A^3 x  =  w0 x + A (w1 x + A (w2 x + A (w3 x)))

Adding every layer into a result instead would read and write that once more a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numba

from gnnrec.ops._numba import VERSION, kernel
from gnnrec.ops._vector import (
    MAX_DIM,
    can_stream,
    fence,
    row_fma,
    row_gather_sum,
    row_load,
    row_scale,
    row_store,
)


def propagate(
    indptr: Any,
    indices: Any,
    row_scales: Any,
    col_scales: Any,
    chunks: Any,
    x: Any,
    weights: Sequence[float],
    work: Any,
    out: Any,
) -> None:
    """out = sum_l weights[l] A^l x for at least one layer; `work` is a buffer like x, unused for one layer."""
    layers = len(weights) - 1
    number = x.dtype.type  # scalars of the rows' own type
    for start in range(0, x.shape[1], MAX_DIM):
        panel = slice(start, start + MAX_DIM)
        base, source, weight = x[:, panel], x[:, panel], weights[-1]
        compiled = _compile(base.shape[1], can_stream(out[:, panel]) and can_stream(work[:, panel]))
        for layer in range(1, layers + 1):
            target = (work if (layers - layer) % 2 else out)[:, panel]
            graph = (indptr, indices, row_scales, col_scales, chunks)
            compiled(*graph, source, number(weight), base, number(weights[layers - layer]), target)
            source, weight = target, 1.0


@cache
def _compile(dim: int, stream: bool) -> Any:
    version = VERSION

    @kernel
    def run(
        indptr: Any,
        indices: Any,
        row_scales: Any,
        col_scales: Any,
        chunks: Any,
        source: Any,
        weight: Any,
        base: Any,
        base_weight: Any,
        out: Any,
    ) -> None:
        _ = version  # part of the cache key
        for chunk in numba.prange(len(chunks) - 1):
            for i in range(chunks[chunk], chunks[chunk + 1]):
                row = row_gather_sum(source, indices, indptr[i], indptr[i + 1], col_scales, dim)
                if row_scales is not None:
                    row = row_scale(row, row_scales[i])
                row_store(out, i, row_fma(row, weight, row_scale(row_load(base, i, dim), base_weight)), stream)
            fence()

    return run
