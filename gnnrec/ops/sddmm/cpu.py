"""numba kernels of sddmm: a thread takes a chunk of rows or a piece of a long row; its vector stays in registers."""

from __future__ import annotations

from functools import cache
from typing import Any

from gnnrec.graph.schedule import LONG, prefetch_distance
from gnnrec.ops._numba import VERSION
from gnnrec.ops._parallel import items, kernel
from gnnrec.ops._row_math import row_add, row_dot, row_mul, row_scale
from gnnrec.ops._vector import MAX_DIM, at, row_load, row_prefetch, row_store


def sddmm(matrix: tuple[Any, ...], a: Any, b: Any, kind: str, out: Any) -> None:
    """out[e] = row_scale[i] * col_scale[j] * (a[i] kind b[j]); `lhs` is a[i] alone. `dot` adds to out, [nnz]."""
    total = len(matrix[5]) + len(matrix[4]) - 1
    for start in range(0, a.shape[1], MAX_DIM):
        panel = slice(start, start + MAX_DIM)
        left, right = a[:, panel], (a if b is None else b)[:, panel]
        if kind == "dot":
            _compile_dot(left.shape[1], right.itemsize)(total, *matrix, left, right, out)
        else:
            _compile_wide(left.shape[1], kind)(total, *matrix, left, right, out[:, panel])


@cache
def _compile_dot(dim: int, itemsize: int) -> Any:
    version, distance = VERSION, prefetch_distance(dim * itemsize)

    @kernel
    def run(
        team: Any,
        indptr: Any,
        indices: Any,
        row_scales: Any,
        col_scales: Any,
        chunks: Any,
        pieces: Any,
        long: Any,
        entries: Any,
        a: Any,
        b: Any,
        out: Any,
    ) -> None:
        _ = version  # part of the cache key
        last = len(indices) - 1
        count, total = len(pieces), team.total
        for item in items(team):  # pieces are spread evenly between chunks
            before = item * count // total
            piece = (item + 1) * count // total > before
            first, end = (before, before + 1) if piece else (chunks[item - before], chunks[item - before + 1])
            for r in range(first, end):
                i, start, stop = (pieces[r, 0], pieces[r, 1], pieces[r, 2]) if piece else (r, indptr[r], indptr[r + 1])
                if not piece and stop - start > LONG:
                    continue
                left = row_load(a, i, dim)
                if row_scales is not None:
                    left = row_scale(left, at(row_scales, i))
                for k in range(start, stop):
                    row_prefetch(b, at(indices, min(k + distance, last)), dim)
                    j, e = at(indices, k), k
                    if entries is not None:
                        e = at(entries, k)
                    dot = row_dot(left, row_load(b, j, dim))
                    if col_scales is not None:
                        dot *= at(col_scales, j)
                    out[e] += dot

    return run


@cache
def _compile_wide(dim: int, kind: str) -> Any:
    version, add, mul = VERSION, kind == "add", kind == "mul"

    @kernel
    def run(
        team: Any,
        indptr: Any,
        indices: Any,
        row_scales: Any,
        col_scales: Any,
        chunks: Any,
        pieces: Any,
        long: Any,
        entries: Any,
        a: Any,
        b: Any,
        out: Any,
    ) -> None:
        _ = version  # part of the cache key
        count, total = len(pieces), team.total
        for item in items(team):  # pieces are spread evenly between chunks
            before = item * count // total
            piece = (item + 1) * count // total > before
            first, end = (before, before + 1) if piece else (chunks[item - before], chunks[item - before + 1])
            for r in range(first, end):
                i, start, stop = (pieces[r, 0], pieces[r, 1], pieces[r, 2]) if piece else (r, indptr[r], indptr[r + 1])
                if not piece and stop - start > LONG:
                    continue
                left = row_load(a, i, dim)
                for k in range(start, stop):
                    j, e, row = at(indices, k), k, left
                    if entries is not None:
                        e = at(entries, k)
                    if add:
                        row = row_add(row, row_load(b, j, dim))
                    if mul:
                        row = row_mul(row, row_load(b, j, dim))
                    if row_scales is not None:
                        row = row_scale(row, at(row_scales, i))
                    if col_scales is not None:
                        row = row_scale(row, at(col_scales, j))
                    row_store(out, e, row, False)

    return run
