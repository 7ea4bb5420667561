"""Columns of a log: checked, numbered, and gathered block by block without holding the log's text or raw ids."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gnnrec.errors import DataError

Int32Array = npt.NDArray[np.int32]

MAX_IDS = 2**31 - 1
"""Distinct ids that int32 numbers can tell apart."""

_FIRST_ROWS = 1 << 22
"""Rows that a NumberColumn has room for at first: pages of a fresh array cost memory only once they are written."""

_PENDING_BYTES = 16 << 20
"""Raw ids that an IdColumn gathers before it numbers them: each time costs a pass over the ids known so far."""


def check_column(label: Any, found: Sequence[Any], where: str, remedy: str | None = None) -> None:
    """Raises DataError unless `label` is exactly one of the columns found."""
    if (count := list(found).count(label)) == 1:
        return
    if count:
        raise DataError(f"{count} columns are called {label!r}", where=where, remedy="Rename all but one")
    near = difflib.get_close_matches(str(label), [str(name) for name in found], n=1)
    hint = f"Did you mean {near[0]!r}?" if near else remedy or "Name the columns to read"
    shown = ", ".join(repr(str(name)) for name in found[:20]) + (", ..." if len(found) > 20 else "")
    raise DataError(f"no column {label!r}; found {shown or 'none'}", where=where, remedy=hint)


def check_count(ids: int, where: str | None = None) -> None:
    """Raises DataError where there are more ids than int32 numbers."""
    if ids > MAX_IDS:
        raise DataError(f"{ids} distinct users or items where int32 numbers allow {MAX_IDS}", where=where)


def as_ids(column: Any, label: Any, where: str, first_row: int = 0) -> Any:
    """The ids of an Arrow array, int64 or string.

    Args:
        column: array or chunked array of integers or strings, dictionary-encoded or not.
        label, where, first_row: name, file and row number of the column's first value, for messages.

    Raises:
        DataError: a null, floats, integers beyond int64, or another type.
    """
    if not len(column):
        return pa.nulls(0, pa.int64())
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    _check_no_nulls(column, label, where, first_row)
    if pa.types.is_integer(column.type):
        wanted = pa.int64()
    elif _is_text(column.type):
        wanted = pa.string()
    else:
        raise DataError(
            f"column {label!r} holds {column.type} values such as {column[0]} in row {first_row} where ids belong",
            where=where,
            remedy="Ids are integers or strings: convert the column",
        )
    try:
        return column.cast(wanted)
    except pa.ArrowInvalid as error:
        found = f"column {label!r} does not fit {wanted}: {error}"
        raise DataError(found, where=where, remedy="Make it strings") from error


def as_ratings(column: Any, label: Any, where: str, first_row: int = 0) -> npt.NDArray[Any]:
    """The values of an Arrow array as float32; DataError where one is null or not finite. Arguments as `as_ids`."""
    return _as_numbers(column, pa.float32(), label, where, first_row)


def as_times(column: Any, label: Any, where: str, first_row: int = 0) -> npt.NDArray[Any]:
    """The values of an Arrow array as int64 or, where it holds floats, float64; dates and times in their own unit.

    Arguments and errors as `as_ratings`.
    """
    if pa.types.is_date32(column.type):
        column = column.cast(pa.int32())
    wanted = pa.float64() if pa.types.is_floating(column.type) else pa.int64()
    return _as_numbers(column, wanted, label, where, first_row)


def _as_numbers(column: Any, wanted: Any, label: Any, where: str, first_row: int) -> npt.NDArray[Any]:
    if not len(column):
        return np.empty(0, wanted.to_pandas_dtype())
    _check_no_nulls(column, label, where, first_row)
    if _is_text(column.type):
        found = f"column {label!r} holds text such as {column[0]} in row {first_row} where numbers belong"
        raise DataError(found, where=where, remedy="Convert the column")
    try:
        values = to_numpy(column.cast(wanted))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"column {label!r} does not fit {wanted}: {error}", where=where) from error
    if not (finite := np.isfinite(values)).all():
        row = int(finite.argmin())
        raise DataError(f"column {label!r} is {values[row]} in row {first_row + row} (counted from 0)", where=where)
    return values


def _is_text(dtype: Any) -> bool:
    return bool(pa.types.is_string(dtype) or pa.types.is_large_string(dtype))


def _check_no_nulls(column: Any, label: Any, where: str, first_row: int) -> None:
    if column.null_count:
        row = first_row + pc.index(column.is_null(), True).as_py()
        remedy = "Drop such rows, or fill them in"
        raise DataError(f"column {label!r} is null in row {row} (counted from 0)", where=where, remedy=remedy)


def to_numpy(column: Any) -> npt.NDArray[Any]:
    """A copy of an Arrow column of numbers without nulls. (Its own `to_numpy` imports pandas.)"""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return np.concatenate([np.from_dlpack(chunk) for chunk in chunks])


def to_arrow(values: npt.NDArray[np.int64]) -> Any:
    """An int64 array as an Arrow array, without a copy. (`pyarrow.array` imports pandas.)"""
    return pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(values)])


def number_ids(column: Any) -> tuple[pa.Array, Int32Array]:
    """The distinct ids of a column, sorted, and for each of its values the position among them, int32."""
    encoded = pc.dictionary_encode(column)
    chunks = encoded.chunks if isinstance(encoded, pa.ChunkedArray) else [encoded]
    return _sort(chunks[0].dictionary, np.concatenate([np.from_dlpack(chunk.indices) for chunk in chunks]))


def _sort(ids: pa.Array, numbers: Int32Array) -> tuple[pa.Array, Int32Array]:
    """Sorts distinct ids and renumbers, in place, the numbers that pointed into them."""
    order = pc.array_sort_indices(ids)
    rank = np.empty(len(ids), np.int32)
    rank[np.from_dlpack(order)] = np.arange(len(ids), dtype=np.int32)
    np.take(rank, numbers, out=numbers, mode="clip")  # "raise" would work on a copy
    return ids.take(order), numbers


class NumberColumn:
    """Numbers of one type, gathered block by block."""

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._values = np.empty(0, dtype)
        self._length = 0

    def add(self, values: npt.NDArray[Any]) -> None:
        end = self._length + len(values)
        if end > len(self._values):
            grown = np.empty(max(end, 2 * len(self._values), _FIRST_ROWS), self._values.dtype)
            grown[: self._length] = self._values[: self._length]
            self._values = grown
        self._values[self._length : end] = values
        self._length = end

    def finish(self) -> npt.NDArray[Any]:
        self._values.resize(self._length, refcheck=False)
        return self._values


class IdColumn:
    """Ids of one type, gathered block by block and numbered in the background.

    Memory: four bytes a row, the distinct ids a few times, and at most two portions of raw ids.

    Args:
        pool: runs the numbering; a portion waits for the one before it.
        dtype: Arrow type of the ids.
        where: file, for messages.
    """

    def __init__(self, pool: ThreadPoolExecutor, dtype: Any, where: str) -> None:
        self._pool = pool
        self._where = where
        self._known = pa.nulls(0, dtype)
        self._numbers = NumberColumn(np.int32)
        self._pending: list[pa.Array] = []
        self._pending_bytes = 0
        self._job: Future[None] | None = None

    def add(self, ids: pa.Array) -> None:
        """The ids of the next rows."""
        self._pending.append(ids)
        self._pending_bytes += ids.nbytes
        if self._pending_bytes > max(_PENDING_BYTES, 3 * self._known.nbytes):
            self._flush()

    def _flush(self) -> None:
        self._wait()
        self._job = self._pool.submit(self._number, self._pending)
        self._pending, self._pending_bytes = [], 0

    def _wait(self) -> None:
        if self._job is not None:
            self._job.result()

    def _number(self, pending: list[pa.Array]) -> None:
        """Numbers ids in the order of their first appearance: encoded after those known, each keeps its number."""
        blocks = [block for block in (self._known, *pending) if len(block)]  # Arrow drops empty chunks
        chunks = pa.chunked_array(blocks, self._known.type).dictionary_encode().chunks
        if not chunks:
            return
        for chunk in chunks[1:] if len(self._known) else chunks:
            self._numbers.add(np.from_dlpack(chunk.indices))
        self._known = chunks[0].dictionary
        check_count(len(self._known), self._where)

    def finish(self) -> tuple[pa.Array, Int32Array]:
        """The distinct ids, sorted, and each row's position among them."""
        self._flush()
        self._wait()
        pa.default_memory_pool().release_unused()
        return _sort(self._known, self._numbers.finish())


def gather(batches: Iterable[Mapping[str, Any]], where: str) -> dict[str, Any]:
    """Puts a log together from its blocks of rows.

    Args:
        batches: for each field of the log, `user` and `item` ids as Arrow arrays, other columns as NumPy arrays.
        where: file, for messages.

    Returns:
        For `user` and `item` the pair (sorted distinct ids, numbers int32 [rows]), for others one array [rows]. Empty
        where there is no batch.
    """
    columns: dict[str, IdColumn | NumberColumn] = {}
    with ThreadPoolExecutor(2) as pool:
        for batch in batches:
            for field, values in batch.items():
                if field not in columns:
                    is_id = field in ("user", "item")
                    columns[field] = IdColumn(pool, values.type, where) if is_id else NumberColumn(values.dtype)
                columns[field].add(values)
        return {field: column.finish() for field, column in columns.items()}


CONVERT: dict[str, Callable[..., Any]] = {"user": as_ids, "item": as_ids, "rating": as_ratings, "timestamp": as_times}
"""How the column of each field of a log is checked and converted."""
