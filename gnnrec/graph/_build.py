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
    indptr = _row_pointers(keys, num_groups)
    return indptr, _scatter(keys, values, indptr[:-1].copy())


def transpose(indptr: Int64Array, indices: Int32Array, num_cols: int) -> tuple[Int64Array, Int32Array]:
    """The transpose of a CSR pattern; its columns come out sorted within every row."""
    transposed = _row_pointers(indices, num_cols)
    return transposed, _scatter_rows(indptr, indices, transposed[:-1].copy())


def transposed_entries(indices: Int32Array, num_cols: int) -> Int64Array:
    """For every entry of the transpose, in the order of `transpose`, its number in the pattern itself."""
    entries: Int64Array = _scatter_entries(indices, _row_pointers(indices, num_cols)[:-1].copy())
    return entries


@_jit
def _row_pointers(keys: Any, num_groups: Any) -> Any:
    indptr = np.zeros(num_groups + 1, np.int64)
    for k in range(len(keys)):
        indptr[keys[k] + 1] += 1
    for g in range(num_groups):
        indptr[g + 1] += indptr[g]
    return indptr


@_jit
def _scatter(keys: Any, values: Any, cursor: Any) -> Any:
    out = np.empty(len(keys), np.int32)
    for k in range(len(keys)):
        out[cursor[keys[k]]] = values[k]
        cursor[keys[k]] += 1
    return out


@_jit
def _scatter_rows(indptr: Any, indices: Any, cursor: Any) -> Any:
    out = np.empty(len(indices), np.int32)
    for row in range(len(indptr) - 1):
        for k in range(indptr[row], indptr[row + 1]):
            out[cursor[indices[k]]] = row
            cursor[indices[k]] += 1
    return out


@_jit
def _scatter_entries(indices: Any, cursor: Any) -> Any:
    out = np.empty(len(indices), np.int64)
    for k in range(len(indices)):
        out[cursor[indices[k]]] = k
        cursor[indices[k]] += 1
    return out


@_jit
def balanced_borders(indptr: Any, chunks: Any, row_cost: Any) -> Any:
    """Borders int64 [chunks + 1] of consecutive rows of equal work: indptr's entries, and row_cost for a row itself."""
    rows = len(indptr) - 1
    total = indptr[rows] + row_cost * rows
    borders = np.empty(chunks + 1, np.int64)
    borders[0], borders[chunks] = 0, rows
    for chunk in range(1, chunks):
        target = total * chunk // chunks
        low, high = 0, rows + 1  # the first row before which there is as much work
        while low < high:
            middle = (low + high) // 2
            if indptr[middle] + row_cost * middle < target:
                low = middle + 1
            else:
                high = middle
        borders[chunk] = low
    return borders


@_jit
def drop_repeated(indptr: Any, indices: Any) -> Any:
    """Remove repeated columns of rows whose columns are sorted, in place; returns the new row pointers."""
    kept = np.empty_like(indptr)
    kept[0] = 0
    end = 0
    for row in range(len(indptr) - 1):
        previous = -1
        for k in range(indptr[row], indptr[row + 1]):
            if indices[k] != previous:
                previous = indices[k]
                indices[end] = previous
                end += 1
        kept[row + 1] = end
    return kept
