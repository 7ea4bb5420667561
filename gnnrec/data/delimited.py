"""Delimited text: streamed through Arrow, and searched line by line for the reason when Arrow refuses it."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from gnnrec.data.columns import gather
from gnnrec.errors import DataError

_BLOCK_BYTES = 1 << 20  # a block and what is parsed of it stay in the cache; larger ones are slower

_NULLS = ("", "NA", "N/A", "NULL", "null", "None", "NaN", "nan")
"""What stands for a missing number. Among ids that are text only the empty one is missing."""

_FLOAT = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"

_TYPES = {
    "user": (pa.int64(), pa.string()),
    "item": (pa.int64(), pa.string()),
    "rating": (pa.float32(),),
    "timestamp": (pa.int64(), pa.float64()),
}
"""Arrow types of each field, the one to prefer first."""


@dataclass(frozen=True)
class Layout:
    """How a text file is laid out.

    Args:
        path: the file; Arrow decompresses .gz, .bz2, .zst and .lz4.
        delimiter: one character, or one repeated (`::`).
        names: of all columns; "0", "1", ... where the file has no header.
        header_lines: lines before the first row.
        positions: of the columns to read, by field of the log.
    """

    path: Path
    delimiter: str
    names: list[str]
    header_lines: int
    positions: dict[str, int] = field(default_factory=dict)

    def label(self, name: str) -> str:
        """What the file calls the column of a field."""
        return self.names[self.positions[name]]

    def column(self, name: str) -> int:
        """Position of a field's column as Arrow and the csv module count: `::` has an empty column inside."""
        return self.positions[name] * len(self.delimiter)

    @property
    def num_columns(self) -> int:
        """Number of columns as `column` counts them."""
        return (len(self.names) - 1) * len(self.delimiter) + 1


class _Refused(ValueError):
    """Values that Arrow converts and a log cannot hold.

    Args:
        whole: the id field, if any, that must hold integers.
    """

    def __init__(self, found: str, whole: str | None = None) -> None:
        super().__init__(found)
        self.whole = whole


def first_text(path: Path) -> str:
    """The text at the beginning of a file, up to 1 MiB; DataError where it is no UTF-8 text."""
    try:
        with pa.input_stream(str(path), compression="detect") as stream:
            start = stream.read(1 << 20)
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(start)
    except UnicodeDecodeError as error:
        line = start[: error.start].count(b"\n") + 1
        raise DataError("not UTF-8 text", where=f"{path}, line {line}", remedy="Convert the file to UTF-8") from error
    if "\0" in text:
        raise DataError("binary data where text is expected", where=str(path), remedy="Name its format")
    return text


def open_layout(path: Path, delimiter: str, header: bool) -> Layout:
    """Finds the columns of a file from its first row, which is the header or stands for one."""
    if not delimiter or len(set(delimiter)) > 1 or set(delimiter) & set('"\r\n'):
        remedy = "Give one character, or one repeated as in '::'"
        raise DataError(f"delimiter {delimiter!r}", where=str(path), remedy=remedy)
    rows = csv.reader(io.StringIO(first_text(path), newline=""), delimiter=delimiter[0])
    try:
        first = next((row for row in rows if row), [])[:: len(delimiter)]
    except csv.Error as error:
        raise DataError(f"no columns: {error}", where=str(path), remedy="Is it delimited text?") from error
    names = first if header else [str(position) for position in range(len(first))]
    return Layout(path, delimiter, names, rows.line_num if header else 0)


def read(layout: Layout, as_text: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Reads the columns at `layout.positions`.

    Args:
        as_text: fields whose ids are to be strings even where all look like integers.

    Returns:
        As `columns.gather`. Ids are int64 where all of them are integers, strings otherwise.

    Raises:
        DataError: what is wrong and in which line.
    """
    choice = {name: -1 if name in as_text else index for name, index in _first_choice(layout).items()}
    while True:
        types = {name: _TYPES[name][index] for name, index in choice.items()}
        try:
            columns = gather(_batches(layout, types), str(layout.path))
            _check_text_ids(columns)
            return columns
        except pa.ArrowInvalid as error:
            # A later block may hold ids that are text, or times with a fraction: then all is read again, as that.
            narrow = {name for name in types if types[name] != _TYPES[name][-1] and not _converts(layout, name, types)}
            if not narrow:
                raise _diagnosis(layout, types, error) from error
            choice |= dict.fromkeys(narrow, -1)
        except _Refused as error:
            whole = {error.whole: pa.int64()} if error.whole else {}
            raise _diagnosis(layout, types | whole, error) from error


def _open(layout: Layout, types: dict[str, Any] | None) -> Any:
    """Arrow's reader of the columns in `types` (None: all wanted ones, of types inferred from the first block)."""
    arrow_names = {name: str(layout.column(name)) for name in types or layout.positions}
    return pyarrow.csv.open_csv(
        str(layout.path),
        read_options=pyarrow.csv.ReadOptions(
            block_size=_BLOCK_BYTES,
            column_names=[str(position) for position in range(layout.num_columns)],
            skip_rows=layout.header_lines,
        ),
        parse_options=pyarrow.csv.ParseOptions(delimiter=layout.delimiter[0], newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types={arrow_names[name]: dtype for name, dtype in (types or {}).items()},
            include_columns=list(arrow_names.values()),
            null_values=_NULLS,
        ),
    )


def _first_choice(layout: Layout) -> dict[str, int]:
    """Which of `_TYPES` the first block suggests for each field."""
    try:
        with _open(layout, None) as reader:
            schema = reader.schema
    except (pa.ArrowInvalid, OSError):  # met again, and explained, when the file is read
        return dict.fromkeys(layout.positions, 0)
    inferred = {name: schema.field(str(layout.column(name))).type for name in layout.positions}
    return {name: 0 if dtype == _TYPES[name][0] else -1 for name, dtype in inferred.items()}


def _batches(layout: Layout, types: dict[str, Any]) -> Iterator[dict[str, Any]]:
    with _open(layout, types) as reader:
        for block in reader:
            batch = {name: block.column(str(layout.column(name))) for name in types}
            for name, values in batch.items():
                if values.null_count:
                    raise _Refused(f"column {layout.label(name)!r} has empty values")
                if name not in ("user", "item"):
                    batch[name] = np.from_dlpack(values)
                    if not np.isfinite(batch[name]).all():
                        raise _Refused(f"column {layout.label(name)!r} is not finite")
            yield batch


def _converts(layout: Layout, name: str, types: dict[str, Any]) -> bool:
    try:
        with _open(layout, {name: types[name]}) as reader:
            for _ in reader:
                pass
    except pa.ArrowInvalid:
        return False
    return True


def _check_text_ids(columns: dict[str, Any]) -> None:
    """Refuses the empty id, and floats, which one program writes as 1.0 and the next as 1."""
    for name in ("user", "item"):
        if name not in columns or (ids := columns[name][0]).type != pa.string():
            continue
        if ids[0].as_py() == "":  # they are sorted
            raise _Refused(f"an empty {name} id")
        floats = all(pc.all(pc.match_substring_regex(part, _FLOAT)).as_py() for part in (ids[:1], ids))
        if floats and pc.any(pc.match_substring(ids, ".")).as_py():
            raise _Refused(f"{name} ids that are floats", whole=name)


def _diagnosis(layout: Layout, types: dict[str, Any], error: Exception) -> DataError:
    """Why a file cannot be read as `types`: the first line that says so."""
    line = 0
    for line, row in _rows(layout):
        if complaint := _complaint(layout, types, row):
            return DataError(complaint, where=f"{layout.path}, line {line}", remedy="Correct or remove the line")
    if not line:
        return DataError("no interactions", where=str(layout.path))
    remedy = f"Is it text with columns separated by {layout.delimiter!r}?"
    return DataError(f"cannot be read: {error}", where=str(layout.path), remedy=remedy)


def _rows(layout: Layout) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, each with the number of its first line."""
    with pa.input_stream(str(layout.path), compression="detect") as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        rows = csv.reader(text, delimiter=layout.delimiter[0])
        end = 0
        try:
            for row in rows:
                start, end = end + 1, rows.line_num
                if row and start > layout.header_lines:
                    yield start, row
        except csv.Error as error:
            where = f"{layout.path}, line {end + 1}"
            raise DataError(f"cannot be read: {error}", where=where, remedy="Is a quote not closed?") from error


def _complaint(layout: Layout, types: dict[str, Any], row: list[str]) -> str | None:
    """What is wrong with a row, if anything."""
    if len(row) != layout.num_columns:
        return f"{len(row[:: len(layout.delimiter)])} columns where {len(layout.names)} are expected"
    for name, dtype in types.items():
        value, label = row[layout.column(name)], layout.label(name)
        if value in (_NULLS if dtype != pa.string() else ("",)):
            return f"column {label!r} is empty ({value!r})"
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            return f"column {label!r} is not UTF-8 text"
        if name in ("user", "item"):
            if dtype == pa.int64() and not value.strip().lstrip("-").isdecimal():
                return f"column {label!r} holds {value!r} where ids are integers or text"
        elif not _is_number(value, dtype):
            return f"column {label!r} holds {value!r} where a number is expected"
    return None


def _is_number(text: str, dtype: Any) -> bool:
    try:
        with np.errstate(over="ignore"):
            return bool(np.isfinite(dtype.to_pandas_dtype()(text))) and "_" not in text
    except (ValueError, OverflowError):
        return False
