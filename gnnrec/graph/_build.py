"""Counting sorts that turn edges into compressed sparse rows: O(edges + nodes) time and one array of extra memory."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]

_jit: Any = numba.njit(cache=True, nogil=True, error_model="numpy")


def numbers(name: str, values: npt.ArrayLike, count: int | None = None) -> npt.NDArray[Any]:
    """The values as a one-dimensional integer array within 0 and count - 1; an empty one may have any dtype.

    Raises:
        ValueError: another dtype or shape, numbers outside the count.
    """
    array = np.asarray(values)
    if array.ndim != 1 or (len(array) and not np.issubdtype(array.dtype, np.integer)):
        raise ValueError(f"{name} must be a one-dimensional integer array, got {array.dtype} {list(array.shape)}")
    if count is not None and len(array) and (array.min() < 0 or array.max() >= count):
        raise ValueError(f"{name} must lie within 0 and {count - 1}, got {array.min()} to {array.max()}")
    return array if len(array) else np.empty(0, np.int32)


def group_by(keys: npt.NDArray[Any], values: npt.NDArray[Any], num_groups: int) -> tuple[Int64Array, Int32Array]:
    """Group `values` by `keys`, keeping their order within a group.

    Returns:
        indptr int64 [num_groups + 1] and the values, int32, group after group.
    """
    ends = _starts(keys, num_groups)
    values = _scatter(keys, values, ends)
    return ends[:-1], values


def transpose(
    indptr: Int64Array, indices: Int32Array, num_cols: int, out: Int32Array | None = None
) -> tuple[Int64Array, Int32Array]:
    """The transpose of a CSR pattern; its columns come out sorted within every row, in `out` where that is given."""
    out = np.empty(len(indices), np.int32) if out is None else out
    ends = _starts(indices, num_cols)
    _scatter_rows(indptr, indices, ends, out)
    return ends[:-1], out


def transposed_entries(indices: Int32Array, num_cols: int) -> Int64Array:
    """For every entry of the transpose, in the order of `transpose`, its number in the pattern itself."""
    entries: Int64Array = _scatter_entries(indices, _starts(indices, num_cols))
    return entries


def row_pointers(keys: npt.NDArray[Any], num_groups: int) -> Int64Array:
    """int64 [num_groups + 1]: where every group starts in keys that are sorted."""
    return np.asarray(_starts(keys, num_groups)[1:])


@_jit
def _starts(keys: Any, num_groups: Any) -> Any:
    """Where every group starts, from the second number on: who fills the groups and moves these starts up to the ends
    has pointers, from the first number on, and has needed no other array for its places."""
    starts = np.zeros(num_groups + 2, np.int64)
    for k in range(len(keys)):
        starts[keys[k] + 2] += 1
    for g in range(num_groups):
        starts[g + 2] += starts[g + 1]
    return starts


@_jit
def _scatter(keys: Any, values: Any, ends: Any) -> Any:
    out = np.empty(len(keys), np.int32)
    for k in range(len(keys)):
        out[ends[keys[k] + 1]] = values[k]
        ends[keys[k] + 1] += 1
    return out


@_jit
def _scatter_rows(indptr: Any, indices: Any, ends: Any, out: Any) -> None:
    for row in range(len(indptr) - 1):
        for k in range(indptr[row], indptr[row + 1]):
            out[ends[indices[k] + 1]] = row
            ends[indices[k] + 1] += 1


@_jit
def _scatter_entries(indices: Any, ends: Any) -> Any:
    out = np.empty(len(indices), np.int64)
    for k in range(len(indices)):
        out[ends[indices[k] + 1]] = k
        ends[indices[k] + 1] += 1
    return out


@_jit
def are_sorted(rows: Any, columns: Any) -> Any:
    """Whether the pairs rise, or stay, by row and within a row by column."""
    for k in range(1, len(rows)):
        if rows[k] < rows[k - 1] or (rows[k] == rows[k - 1] and columns[k] < columns[k - 1]):
            return False
    return True


@_jit
def longer_rows(indptr: Any, limit: Any) -> Any:
    """Rows with more entries than the limit, int64, in rising order."""
    count = 0
    for row in range(len(indptr) - 1):
        count += indptr[row + 1] - indptr[row] > limit
    rows = np.empty(count, np.int64)
    count = 0
    for row in range(len(indptr) - 1):
        if indptr[row + 1] - indptr[row] > limit:
            rows[count] = row
            count += 1
    return rows


@_jit
def merged_rows(rows: Any, indptr: Any, indices: Any, more_indptr: Any, more_indices: Any) -> Any:
    """Pointers int64 [n + 1] and columns int32 of these rows, each with the sorted columns of two patterns."""
    merged = np.zeros(len(rows) + 1, np.int64)
    for k in range(len(rows)):
        row = rows[k]
        merged[k + 1] = merged[k] + indptr[row + 1] - indptr[row] + more_indptr[row + 1] - more_indptr[row]
    out = np.empty(merged[-1], np.int32)
    for k in range(len(rows)):
        row = rows[k]
        at, more = indptr[row], more_indptr[row]
        for place in range(merged[k], merged[k + 1]):
            if more == more_indptr[row + 1] or (at < indptr[row + 1] and indices[at] <= more_indices[more]):
                out[place] = indices[at]
                at += 1
            else:
                out[place] = more_indices[more]
                more += 1
    return merged, out


@_jit
def inverse_sqrt_degrees(indptr: Any) -> Any:
    """length^-1/2 of every row, computed in float64, as float32; 0 for an empty row."""
    scale = np.zeros(len(indptr) - 1, np.float32)
    for row in range(len(scale)):
        length = indptr[row + 1] - indptr[row]
        if length > 0:
            scale[row] = 1.0 / np.sqrt(np.float64(length))
    return scale


@_jit
def balanced_borders(indptr: Any, left_out: Any, chunks: Any, row_cost: Any) -> Any:
    """Borders int64 [chunks + 1] of consecutive rows of equal work: indptr's entries, without those of the rows
    `left_out` (int64, in rising order), and row_cost for a row itself."""
    rows = len(indptr) - 1
    less = np.zeros(len(left_out) + 1, np.int64)  # entries of the first of those
    for k in range(len(left_out)):
        less[k + 1] = less[k] + indptr[left_out[k] + 1] - indptr[left_out[k]]
    total = indptr[rows] - less[-1] + row_cost * rows
    borders = np.empty(chunks + 1, np.int64)
    borders[0], borders[chunks] = 0, rows
    for chunk in range(1, chunks):
        target = total * chunk // chunks
        low, high = 0, rows + 1  # the first row before which there is as much work
        while low < high:
            middle = (low + high) // 2
            if indptr[middle] - less[np.searchsorted(left_out, middle)] + row_cost * middle < target:
                low = middle + 1
            else:
                high = middle
        borders[chunk] = low
    return borders


@_jit
def borders_of_work(indptr: Any, at_most: Any, chunks: Any, row_cost: Any) -> Any:
    """Borders int64 [chunks + 1] of consecutive rows of equal work: of a row, so many of its entries at most, and
    row_cost for itself."""
    rows = len(indptr) - 1
    total = row_cost * rows
    for i in range(rows):
        total += min(indptr[i + 1] - indptr[i], at_most)
    borders = np.empty(chunks + 1, np.int64)
    borders[0], borders[chunks] = 0, rows
    chunk, work = 1, 0
    for i in range(rows):
        work += min(indptr[i + 1] - indptr[i], at_most) + row_cost
        while chunk < chunks and work >= total * chunk // chunks:
            borders[chunk] = i
            chunk += 1
    return borders


@_jit
def drop_repeated(indptr: Any, indices: Any) -> None:
    """Remove repeated columns of rows whose columns are sorted, in place: in `indices` up to the last pointer."""
    start, end = 0, 0
    for row in range(len(indptr) - 1):
        stop = indptr[row + 1]
        previous = -1
        for k in range(start, stop):
            if indices[k] != previous:
                previous = indices[k]
                indices[end] = previous
                end += 1
        start, indptr[row + 1] = stop, end
