"""numba kernel of lightgcn_propagate: one layer, its share of the layer sum added while the row is in registers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numba

from gnnrec.ops._numba import kernel
from gnnrec.ops._vector import MAX_DIM, VERSION, row_fma, row_gather_sum, row_load, row_scale, row_store


def propagate(
    indptr: Any,
    indices: Any,
    row_scales: Any,
    col_scales: Any,
    chunks: Any,
    x: Any,
    weights: Sequence[float],
    work: list[Any],
    out: Any,
) -> None:
    """out = sum_l weights[l] A^l x for at least one layer; `work`: one buffer like x for two layers, two for more."""
    layers = len(weights) - 1
    for start in range(0, x.shape[1], MAX_DIM):
        panel = slice(start, start + MAX_DIM)
        source, total = x[:, panel], out[:, panel]
        buffers = [buffer[:, panel] for buffer in work]
        compiled = _compile(total.shape[1])
        graph = (indptr, indices, row_scales, col_scales, chunks)
        number = x.dtype.type  # scalars of the rows' own type
        for layer in range(1, layers + 1):
            keep = layer < layers
            target = buffers[(layer - 1) % len(buffers)] if keep else total
            base, base_weight = (source, weights[0]) if layer == 1 else (total, 1.0)
            compiled(*graph, source, base, number(base_weight), number(weights[layer]), target, keep, total)
            source = target


@cache
def _compile(dim: int) -> Any:
    version = VERSION

    @kernel
    def run(
        indptr: Any,
        indices: Any,
        row_scales: Any,
        col_scales: Any,
        chunks: Any,
        x: Any,
        base: Any,
        base_weight: Any,
        weight: Any,
        layer: Any,
        keep: Any,
        out: Any,
    ) -> None:
        _ = version  # part of the cache key
        for chunk in numba.prange(len(chunks) - 1):
            for i in range(chunks[chunk], chunks[chunk + 1]):
                row = row_scale(row_gather_sum(x, indices, indptr[i], indptr[i + 1], col_scales, dim), row_scales[i])
                if keep:
                    row_store(layer, i, row, False)
                row_store(out, i, row_fma(row, weight, row_scale(row_load(base, i, dim), base_weight)), False)

    return run
