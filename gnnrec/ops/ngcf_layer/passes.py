"""What ngcf_layer does around its kernels: work is shared out, long rows come first, dropout gets its numbers."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gnnrec.graph import _build
from gnnrec.graph.schedule import LONG
from gnnrec.ops._dropout import threshold
from gnnrec.ops._vector import MAX_DIM
from gnnrec.ops.ngcf_layer import cpu
from gnnrec.ops.spmm import cpu as spmm_cpu

CHUNKS = 64  # of rows, at the most: each has a partial sum of the weights' gradients
CHUNK_ROWS = 512  # at the least


class Dropout(NamedTuple):
    """The random decisions of a call: the seed, and the probabilities of dropping messages and entries."""

    seed: int = 0
    messages: float = 0.0
    entries: float = 0.0

    def of_messages(self, dtype: Any) -> tuple[int, Any]:
        """Threshold and scale as kernels take them."""
        return threshold(self.messages), np.dtype(dtype).type(1 / (1 - self.messages))

    def of_entries(self, dtype: Any) -> tuple[int, Any]:
        """The same for the entries of a matrix."""
        return threshold(self.entries), np.dtype(dtype).type(1 / (1 - self.entries))


class Rows(NamedTuple):
    """What both passes need of a matrix's rows besides the matrix.

    Args:
        borders: of chunks of rows of about equal work, int64 [chunks + 1].
        long: the numbers of the rows that are too long for one thread, int64 [long].
        sums: their aggregates [long, in].
        totals: the sum of every row's entries [rows], or empty.
    """

    borders: Any
    long: Any
    sums: Any
    totals: Any


def rows(matrix: tuple[Any, ...], x: Any, weights: Any, dropout: Dropout, weighted: bool, summed: bool = True) -> Rows:
    """Chunks of rows; where they are wanted, long rows' aggregates and the sums of entries. weights: [out, 2 in]."""
    indptr, indices, row_scales, col_scales, _, pieces, long, _ = matrix
    dtype = weights.dtype
    sums = np.empty((len(long), x.shape[1]), dtype)
    if len(long) and summed:
        scales = None if row_scales is None else row_scales[long[:, 0]]
        renumbered = np.column_stack([np.arange(len(long)), long[:, 1:]])
        no_chunks = np.zeros(1, np.int64)
        aggregate((indptr, indices, scales, col_scales, no_chunks, pieces, renumbered, None), x, sums, dtype, dropout)
    totals = np.empty((len(indptr) - 1 if weighted else 0, 1), dtype)
    if weighted:
        aggregate(matrix, np.ones((len(x), 1), dtype), totals, dtype, dropout)
    return Rows(borders(indptr, len(weights)), long[:, 0].copy(), sums, totals.ravel())


def borders(indptr: npt.NDArray[np.int64], out: int) -> npt.NDArray[np.int64]:
    """Chunks of rows whose number does not depend on the number of threads.

    A row's products take about as long as the gathers of as many entries as it has columns.
    """
    count = len(indptr) - 1
    chunks = min(max(count // CHUNK_ROWS, 1), CHUNKS)
    found: npt.NDArray[np.int64] = _build.borders_of_work(indptr, LONG, chunks, out)
    return found


def aggregate(
    matrix: tuple[Any, ...],
    x: Any,
    out: Any,
    dtype: Any,
    dropout: Dropout,
    base: Any = None,
    transposed: bool = False,
    numbers: Any = None,
) -> None:
    """out = matrix @ x + base without the dropped entries; base may be out itself.

    Args:
        matrix: as `_arguments.matrix_arrays` gives it; where `transposed`, the transpose of the one whose entries are
            dropped.
        numbers: of the rows in a matrix of which they are a part, int64 [rows]; None where they are all.
    """
    if not dropout.entries:
        spmm_cpu.spmm(matrix, x, out, dtype, base=base, base_scale=1.0)
        return
    *arrays, _ = matrix
    for start in range(0, out.shape[1], MAX_DIM):
        panel = slice(start, start + MAX_DIM)
        target, added = out[:, panel], None if base is None else base[:, panel]
        partial = np.empty((len(matrix[5]), target.shape[1]), dtype)
        run, join = cpu.compile_aggregate(target.shape[1])
        drop = dropout.seed, *dropout.of_entries(dtype)
        items = len(arrays[5]) + len(arrays[4]) - 1
        run(items, *arrays, x[:, panel], added, numbers, *drop, transposed, partial, target)
        join(len(arrays[6]), arrays[2], arrays[6], added, drop[-1], partial, target)


def forward(
    matrix: tuple[Any, ...],
    rows: Rows,
    x: Any,
    x_rows: Any,
    weights: Any,
    bias: Any,
    slope: float,
    dropout: Dropout,
    out: Any,
    norms: Any,
    aggregates: Any,
) -> None:
    """Fill out [rows, out], norms [rows] and aggregates [rows, in], the last two where they are not empty.

    Args:
        matrix: as `_arguments.matrix_arrays` gives it.
        x, x_rows: [cols, in] and [rows, in].
        weights: [2 in, out], of x_i + s_i and then of x_i * s_i.
        bias: [2, out], of rows and of the sums of their entries.
    """
    dtype = weights.dtype
    drop = dropout.seed, *dropout.of_messages(dtype), *dropout.of_entries(dtype)
    run = cpu.compile_forward(x.shape[1], out.shape[1])
    run(
        len(rows.borders) - 1,
        *matrix[:4],
        *rows,
        x,
        x_rows,
        weights,
        bias,
        dtype.type(slope),
        *drop,
        out,
        norms,
        aggregates,
    )


def backward(
    matrix: tuple[Any, ...],
    rows: Rows,
    x: Any,
    x_rows: Any,
    weights: Any,
    slope: float,
    dropout: Dropout,
    out: Any,
    norms: Any,
    aggregates: Any,
    grad: Any,
    grad_rows: Any,
    grad_aggregates: Any,
    grad_weights: Any,
    grad_bias: Any,
) -> None:
    """Fill the gradients.

    Args:
        weights: [out, 2 in].
        out, norms, aggregates: of the forward pass; aggregates are computed again where they are empty.
        grad: of out.
        grad_rows, grad_aggregates: of x_rows and of the aggregates, [rows, in], or both empty.
        grad_weights, grad_bias: of the weights and of the bias [2, out].
    """
    dtype, chunks = weights.dtype, len(rows.borders) - 1
    partial = np.zeros((chunks, *weights.shape), dtype)
    partial_bias = np.zeros((chunks, 2, len(weights)), dtype)
    drop = dropout.seed, *dropout.of_messages(dtype), *dropout.of_entries(dtype)
    inputs = *matrix[:4], *rows, x, x_rows, weights, dtype.type(slope), *drop, out, norms, aggregates, grad
    run = cpu.compile_backward(x.shape[1], out.shape[1])
    run(chunks, *inputs, partial, partial_bias, grad_rows, grad_aggregates)
    grad_weights[:], grad_bias[:] = total(partial), total(partial_bias)


def total(partial: Any) -> Any:
    """The sum of the chunks' parts, in order; in the first one's place."""
    for part in partial[1:]:
        partial[0] += part
    return partial[0]
