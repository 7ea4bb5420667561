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
