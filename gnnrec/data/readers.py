"""Reading interaction logs: text and Parquet files, sparse matrices, DataFrames and graphs.

Files are streamed: a block is parsed while the ids of those before it are numbered, so that beside the finished columns
only the distinct ids and a few blocks are in memory.
"""

from __future__ import annotations

import dataclasses
import difflib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gnnrec import extensions
from gnnrec.data import delimited
from gnnrec.data.columns import CONVERT, check_column, gather, to_arrow
from gnnrec.data.interactions import IdMap, Interactions, share_ids
from gnnrec.errors import DataError

_COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")
_SUFFIXES = {
    ".csv": "csv",
    ".tsv": "csv",
    ".inter": "recbole",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".npz": "npz",
}
_ADJACENCY_BLOCK_BYTES = 4 << 20


@dataclass(frozen=True)
class _Options:
    """Where in a source the fields of a log are, as the user said."""

    user: Any = "user"
    item: Any = "item"
    rating: Any = None
    timestamp: Any = None
    delimiter: str | None = None
    header: bool = True

    def columns(self) -> dict[str, Any]:
        """The columns asked for, by field of the log."""
        asked = {"user": self.user, "item": self.item, "rating": self.rating, "timestamp": self.timestamp}
        given = {field: label for field, label in asked.items() if label is not None}
        if len({str(label) for label in given.values()}) < len(given):
            shown = ", ".join(f"{field}={label!r}" for field, label in given.items())
            raise DataError(f"one column is named twice: {shown}", remedy="Name a column for each")
        return given

    def check_used(self, used: Sequence[str], kind: str) -> None:
        """Raises DataError where an option is given that has no effect on what is read."""
        for field in dataclasses.fields(self):
            if field.name not in used and (value := getattr(self, field.name)) != field.default:
                raise DataError(f"option {field.name}={value!r} has no effect on {kind}", remedy="Leave it out")


def read_interactions(
    source: Any,
    *,
    format: str | None = None,
    user: Any = "user",
    item: Any = "item",
    rating: Any = None,
    timestamp: Any = None,
    delimiter: str | None = None,
    header: bool = True,
    ids_as_text: bool = False,
    name: str | None = None,
) -> Interactions:
    """Reads an interaction log. Rows keep their order and repeated ones stay; ids are numbered in sorted order.

    Args:
        source: path of a file, pandas DataFrame, scipy sparse users x items matrix, DGL graph, PyG HeteroData or
            `edge_index` tensor (see the `from_` methods of Interactions).
        format: of a file; None: by its name; or the path of a user's own reader, see `extensions`.
            `adjacency`: text, `user item item ...` in each line, integers; a user without items stays in the id map.
            `csv`: delimited text. `.gz`, `.bz2`, `.zst` and `.lz4` are decompressed, as for all text.
            `recbole`: an `.inter` file, tab-separated, whose header gives types (`user_id:token`). Without options its
            columns user_id, item_id and, where there, rating and timestamp are read.
            `movielens`: u.data (tabs, no header), ratings.dat (`::`, no header) or ratings.csv.
            `parquet`; `npz`: a matrix written by `scipy.sparse.save_npz`.
        user, item, rating, timestamp: names of the columns; without a header their positions from 0; in a DGL graph or
            HeteroData the node types and the keys of edge data. No ratings or timestamps are read where these are None.
        delimiter: of the columns; one character, or one repeated (`::`). Default "," and in `.tsv` and recbole the tab.
        header: whether the first row names the columns.
        ids_as_text: keep the ids of a delimited file as they are written, "007" beside "7".
        name: what to call the log in messages; the path by default.

    Ids are int64 where each id of the column is an integer ("007" then is 7) and text otherwise ("007" and "7" differ).

    Raises:
        DataError: a source that is missing, empty or of another format, a missing column, a row with another number of
            columns, an id that is empty or a float, a rating or timestamp that is no number, an option without effect,
            more ids than int32 numbers. The message names the file and, where there is one, the line.
    """
    as_text = frozenset({"user", "item"} if ids_as_text else ())
    return _read(source, format, _Options(user, item, rating, timestamp, delimiter, header), name, as_text)


def read_split(
    sources: Sequence[Any],
    *,
    format: str | None = None,
    user: Any = "user",
    item: Any = "item",
    rating: Any = None,
    timestamp: Any = None,
    delimiter: str | None = None,
    header: bool = True,
    name: str | None = None,
) -> list[Interactions]:
    """Reads the parts of a split, each as `read_interactions` does, with id maps of the ids of all parts, sorted.

    Where a column has integer ids in one part and text in another, they are text in all.
    """
    options = _Options(user, item, rating, timestamp, delimiter, header)
    logs = [_read(source, format, options, name) for source in sources]
    mixed = {
        side
        for side, maps in (("user", [log.user_ids for log in logs]), ("item", [log.item_ids for log in logs]))
        if len({str(ids.ids.type) for ids in maps}) > 1
    }
    if mixed:  # the text of ids such as 007 is in the files only
        logs = [_read(source, format, options, name, frozenset(mixed)) for source in sources]
    return share_ids(logs)


def _read(
    source: Any, format: str | None, options: _Options, name: str | None, as_text: frozenset[str] = frozenset()
) -> Interactions:
    log = (
        _read_file(Path(source), format, options, as_text)
        if isinstance(source, str | PathLike)
        else _read_object(source, format, options)
    )
    if not len(log):
        raise DataError("no interactions", where=name or log.name)
    return dataclasses.replace(log, name=name or log.name)


def _read_object(source: Any, format: str | None, options: _Options) -> Interactions:
    # By module name, so that none of these libraries is imported for users of another.
    modules = {base.__module__.partition(".")[0] for base in type(source).__mro__}
    columns = options.columns()
    read: Callable[..., Interactions]
    used: tuple[str, ...]
    if "pandas" in modules and hasattr(source, "columns"):
        read, used = Interactions.from_pandas, tuple(columns)
    elif "scipy" in modules and hasattr(source, "tocoo"):
        read, used = Interactions.from_scipy, ()
    elif "dgl" in modules and hasattr(source, "canonical_etypes"):
        read, used = Interactions.from_dgl, tuple(columns)
    elif "torch_geometric" in modules:
        read, used = Interactions.from_pyg, tuple(columns)
    elif modules & {"torch", "numpy"}:
        read, used = Interactions.from_pyg, ()
    else:
        known = "a path, a DataFrame, a scipy sparse matrix, a DGL graph, a PyG HeteroData or an edge_index"
        raise DataError(f"cannot read interactions from {type(source).__name__}", remedy=f"Give {known}")
    kind = f"a source of type {type(source).__name__}"
    if format is not None:
        raise DataError(f"option format={format!r} has no effect on {kind}", remedy="Leave it out")
    options.check_used(used, kind)
    return read(source, **{field: label for field, label in columns.items() if field in used})


def _read_file(path: Path, format: str | None, options: _Options, as_text: frozenset[str]) -> Interactions:
    try:
        _check_file(path)
        format = format or _guess_format(path, options)
        if extensions.is_path(format):
            options.check_used((), f"format {format!r}")
            return _read_custom(path, format)
        if format not in _FORMATS:
            near = difflib.get_close_matches(format, _FORMATS, n=1)
            remedy = f"Did you mean {near[0]!r}?" if near else f"Formats are {', '.join(_FORMATS)}"
            raise DataError(f"unknown format {format!r}", where=str(path), remedy=remedy)
        reader, used = _FORMATS[format]
        options.check_used(used, f"format {format!r}")
        return reader(path, options, as_text)
    except OSError as error:
        raise DataError(f"cannot be read: {_reason(error)}", where=str(path)) from error


def _read_custom(path: Path, format: str) -> Interactions:
    """What a user's own reader makes of the file."""
    log = extensions.load("data.format", format)(path)
    if not isinstance(log, Interactions):
        remedy = "Let it return gnnrec.Interactions, such as Interactions.from_pandas makes"
        raise DataError(f"{format} returned {type(log).__name__}", where=str(path), remedy=remedy)
    return log


def _reason(error: Exception) -> str:
    """What a library says of a file, without the end of the sentence."""
    return str(error).partition("\n")[0].rstrip(".")


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise DataError("a folder where a file is expected", where=str(path))
    if not path.exists():
        if not path.parent.is_dir():
            raise DataError("no such file, and no such folder", where=str(path))
        near = difflib.get_close_matches(path.name, sorted(entry.name for entry in path.parent.iterdir()), n=3)
        raise DataError("no such file", where=str(path), remedy=f"Did you mean {' or '.join(near)}?" if near else None)
    if not path.stat().st_size:
        raise DataError("the file is empty", where=str(path))


def _guess_format(path: Path, options: _Options) -> str:
    name = path.name.lower()
    stem = name.removesuffix(path.suffix.lower()) if name.endswith(_COMPRESSED) else name
    if stem in ("u.data", "ratings.dat"):
        return "movielens"
    if stem == "ratings.csv" and options == _Options() and delimited.first_text(path).startswith("userId,movieId,"):
        return "movielens"
    if (suffix := Path(stem).suffix) in _SUFFIXES:
        return _SUFFIXES[suffix]
    if suffix == ".txt" and not set(delimited.first_text(path).partition("\n")[0]) - set("0123456789 \r"):
        return "adjacency"  # other text files are tables more often
    remedy = f"Give format=, one of {', '.join(_FORMATS)}"
    raise DataError("the format cannot be told from the file's name", where=str(path), remedy=remedy)


def _from_columns(columns: dict[str, Any], name: str) -> Interactions:
    nothing = pa.nulls(0, pa.int64()), np.empty(0, np.int32)
    (user_ids, users), (item_ids, items) = columns.get("user", nothing), columns.get("item", nothing)
    values = columns.get("rating"), columns.get("timestamp")
    return Interactions(users, items, IdMap(user_ids), IdMap(item_ids), *values, name)


def _read_layout(layout: delimited.Layout, positions: dict[str, int], as_text: frozenset[str]) -> Interactions:
    layout = dataclasses.replace(layout, positions=positions)
    return _from_columns(delimited.read(layout, as_text), str(layout.path))


def _read_csv(path: Path, options: _Options, as_text: frozenset[str]) -> Interactions:
    is_tsv = ".tsv" in (suffix.lower() for suffix in path.suffixes[-2:])
    layout = delimited.open_layout(path, options.delimiter or ("\t" if is_tsv else ","), options.header)
    remedy = None
    if not options.header:
        remedy = "The file has no header, so columns are given by their positions from 0"
    elif len(layout.names) == 1:
        remedy = f"Are columns separated by something else than {layout.delimiter!r}? Give delimiter="
    elif any(name.isdecimal() for name in layout.names):
        remedy = "If the first row is no header, give header=False and columns by their positions from 0"
    positions = {}
    for field, label in options.columns().items():
        label = label if options.header else str(label)
        check_column(label, layout.names, str(path), remedy)
        positions[field] = layout.names.index(label)
    return _read_layout(layout, positions, as_text)


def _read_recbole(path: Path, options: _Options, as_text: frozenset[str]) -> Interactions:
    layout = delimited.open_layout(path, options.delimiter or "\t", header=True)
    names = [name.partition(":")[0] for name in layout.names]
    labels = options.columns()
    for field, own in (("user", "user_id"), ("item", "item_id"), ("rating", "rating"), ("timestamp", "timestamp")):
        is_default = getattr(options, field) == getattr(_Options, field)
        if is_default and own in names and own not in labels.values() and labels.get(field) not in names:
            labels[field] = own
    for label in labels.values():
        check_column(label, names, str(path))
    return _read_layout(layout, {field: names.index(label) for field, label in labels.items()}, as_text)


def _read_movielens(path: Path, options: _Options, as_text: frozenset[str]) -> Interactions:
    first = delimited.first_text(path).partition("\n")[0]
    has_header = first.startswith("userId,movieId,")
    delimiter = "," if has_header else "::" if "::" in first else "\t"
    layout = delimited.open_layout(path, delimiter, has_header)
    fields = ("user", "item", "rating", "timestamp")
    if len(layout.names) != len(fields):
        found = f"{len(layout.names)} columns in {first.strip()[:80]!r} where MovieLens has {', '.join(fields)}"
        raise DataError(found, where=str(path), remedy="Read it as csv, with the columns named")
    return _read_layout(layout, {field: position for position, field in enumerate(fields)}, as_text)


def _read_parquet(path: Path, options: _Options, as_text: frozenset[str]) -> Interactions:
    return _from_columns(gather(_parquet_batches(path, options.columns()), str(path)), str(path))


def _parquet_batches(path: Path, labels: dict[str, Any]) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            for label in labels.values():
                check_column(label, file.schema_arrow.names, str(path))
            row = 0
            for batch in file.iter_batches(columns=list(labels.values())):
                if len(batch):
                    columns = {field: batch.column(label) for field, label in labels.items()}
                    yield {f: CONVERT[f](values, labels[f], str(path), row) for f, values in columns.items()}
                row += len(batch)
    except pa.ArrowInvalid as error:
        raise DataError(f"cannot be read as Parquet: {_reason(error)}", where=str(path)) from error


def _read_npz(path: Path, options: _Options, as_text: frozenset[str]) -> Interactions:
    import scipy.sparse

    if not zipfile.is_zipfile(path):
        raise DataError("no npz file", where=str(path), remedy="Write it with scipy.sparse.save_npz")
    try:
        matrix = scipy.sparse.load_npz(path)  # which does not load pickled objects
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        remedy = "Write it with scipy.sparse.save_npz; pickled objects are not loaded"
        raise DataError(f"no sparse matrix: {_reason(error)}", where=str(path), remedy=remedy) from error
    return Interactions.from_scipy(matrix, str(path))


def _read_adjacency(path: Path, options: _Options, as_text: frozenset[str]) -> Interactions:
    lone: list[npt.NDArray[np.int64]] = []
    log = _from_columns(gather(_adjacency_batches(path, lone), str(path)), str(path))
    if not any(map(len, lone)):
        return log
    nothing = np.empty(0, np.int32)
    without_items = IdMap(to_arrow(np.unique(np.concatenate(lone))))
    return share_ids([log, Interactions(nothing, nothing, without_items, log.item_ids)])[0]


def _adjacency_batches(path: Path, lone: list[npt.NDArray[np.int64]]) -> Iterator[dict[str, Any]]:
    """Blocks of (user, item) rows; users of lines without items go to `lone`."""
    line, rest = 1, b""
    with pa.input_stream(str(path), compression="detect") as stream:
        while block := stream.read(_ADJACENCY_BLOCK_BYTES):
            lines, newline, rest = (rest + block).rpartition(b"\n")
            users, items, without_items = _parse_adjacency(lines + newline, path, line)
            yield {"user": to_arrow(users), "item": to_arrow(items)}
            lone.append(without_items)
            line += lines.count(b"\n") + len(newline)
    users, items, without_items = _parse_adjacency(rest, path, line)
    yield {"user": to_arrow(users), "item": to_arrow(items)}
    lone.append(without_items)


def _parse_adjacency(text: bytes, path: Path, line: int) -> tuple[npt.NDArray[np.int64], ...]:
    """Users and items of the rows of whole lines, of which the first has the number `line`, and users without items."""
    characters = np.frombuffer(text, np.uint8)
    is_digit = (characters >= ord("0")) & (characters <= ord("9"))
    edges = np.flatnonzero(np.diff(is_digit, prepend=False, append=False))
    starts, ends = edges[::2], edges[1::2]
    good = is_digit | np.isin(characters, np.frombuffer(b" \t\r\n", np.uint8))
    too_long = starts[ends - starts > 18]  # int64 holds any 18 digits
    if not good.all() or len(too_long):
        at = min([*np.flatnonzero(~good)[:1], *too_long[:1]])
        token = text[max(text.rfind(b" ", 0, at), text.rfind(b"\n", 0, at)) + 1 :].split(None, 1)[0]
        found = f"{token[:40]!r} is no id: ids are integers below 10^18".removeprefix("b")
        where = f"{path}, line {line + text.count(bytes([10]), 0, at)}"
        raise DataError(found, where=where, remedy="Adjacency text is `user item item ...` in each line")
    tokens = np.fromstring(text, np.int64, sep=" ")
    line_of_token = np.searchsorted(np.flatnonzero(characters == ord("\n")), starts)
    is_user = np.diff(line_of_token, prepend=-1) > 0
    users, degrees = tokens[is_user], np.diff(np.flatnonzero(is_user), append=len(tokens)) - 1
    return np.repeat(users, degrees), tokens[~is_user], users[degrees == 0]


_Reader = Callable[[Path, _Options, frozenset[str]], Interactions]
_FORMATS: dict[str, tuple[_Reader, tuple[str, ...]]] = {
    "adjacency": (_read_adjacency, ()),
    "recbole": (_read_recbole, ("user", "item", "rating", "timestamp", "delimiter")),
    "movielens": (_read_movielens, ()),
    "csv": (_read_csv, ("user", "item", "rating", "timestamp", "delimiter", "header")),
    "parquet": (_read_parquet, ("user", "item", "rating", "timestamp")),
    "npz": (_read_npz, ()),
}
"""Each format's reader, and the options that it uses."""
