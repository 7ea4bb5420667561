"""Interactions: who did what, in dense int32 numbers, with the maps back to the user's own ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gnnrec.data.columns import CONVERT, Int32Array, check_column, check_count, number_ids
from gnnrec.errors import DataError
from gnnrec.storage import atomic_write

if TYPE_CHECKING:
    import pandas as pd

Float32Array = npt.NDArray[np.float32]


class IdMap:
    """Maps the user's own ids (integers or strings) to 0 .. n-1 and back.

    Args:
        ids: distinct ids; position i holds the id of number i. Sorted by the readers, so that the numbering does not
            depend on the order of a log's rows. Integer ids are kept as int64, all others as strings.
    """

    def __init__(self, ids: pa.Array | Sequence[int] | Sequence[str] | npt.NDArray[Any]) -> None:
        array = ids if isinstance(ids, pa.Array) else pa.array(ids)
        self.ids: pa.Array = array.cast(
            pa.int64() if pa.types.is_integer(array.type) or not len(array) else pa.string()
        )

    @classmethod
    def range(cls, n: int) -> IdMap:
        """The map of a log whose ids already are 0 .. n-1."""
        return cls(pa.array(np.arange(n, dtype=np.int64)))

    @classmethod
    def from_parquet(cls, path: str | PathLike[str]) -> IdMap:
        """Reads what `to_parquet` wrote; DataError where the file is missing or something else."""
        import pyarrow.parquet as pq

        try:
            ids = pq.read_table(path)["id"].combine_chunks()
        except (OSError, KeyError, pa.ArrowInvalid) as error:
            raise DataError(f"no id map: {error}", where=str(path)) from error
        if ids.type not in (pa.int64(), pa.string()) or ids.null_count or len(ids.unique()) < len(ids):
            raise DataError("no id map: its ids are not distinct int64 or string values", where=str(path))
        return cls(ids)

    def to_parquet(self, path: str | PathLike[str]) -> None:
        """Writes the ids as the one column `id` (int64 or string), in the order of their numbers.

        Raises:
            StorageError: no space, no permission, no such folder; an old file stays as it was.
        """
        import pyarrow.parquet as pq

        atomic_write(path, lambda file: pq.write_table(pa.table({"id": self.ids}), file))

    def __len__(self) -> int:
        return len(self.ids)

    def encode(self, values: Any) -> Int32Array:
        """Numbers of the given ids, int32; -1 where an id is unknown."""
        try:
            array = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
        except (pa.ArrowTypeError, pa.ArrowInvalid):  # strings and integers mixed
            array = pa.array([str(value) for value in values])
        try:
            found = pc.index_in(array.cast(self.ids.type), value_set=self.ids)
        except pa.ArrowInvalid:  # "alice" asked of integer ids: unknown, where "7" beside it is 7
            numbers = [int(text) if text.lstrip("-").isdecimal() else None for text in array.to_pylist()]
            found = pc.index_in(pa.array(numbers, pa.int64()), value_set=self.ids)
        return np.asarray(pc.fill_null(found, -1).to_numpy(zero_copy_only=False), dtype=np.int32)

    def decode(self, numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The user's own ids (int64 or object array) of the given numbers."""
        return np.asarray(self.ids.take(pa.array(numbers)).to_numpy(zero_copy_only=False))


@dataclass(frozen=True, eq=False)
class Interactions:
    """An interaction log in memory.

    Args:
        users, items: int32 arrays [n]: numbers into `user_ids` and `item_ids`.
        user_ids, item_ids: the maps to the user's own ids. They may hold ids without an interaction here (the parts
            of a split share them), so `num_users` and `num_items` are their lengths.
        ratings: float32 [n] or None.
        timestamps: int64 or float64 [n] or None, in the log's own unit.
        name: what to call this log in messages.
    """

    users: Int32Array
    items: Int32Array
    user_ids: IdMap
    item_ids: IdMap
    ratings: Float32Array | None = None
    timestamps: npt.NDArray[Any] | None = None
    name: str = "interactions"

    def __post_init__(self) -> None:
        n = len(self.users)
        for column in ("items", "ratings", "timestamps"):
            values = getattr(self, column)
            if values is not None and len(values) != n:
                raise DataError(f"{column} has {len(values)} rows where users has {n}", where=self.name)

    @classmethod
    def from_pandas(
        cls,
        frame: pd.DataFrame,
        user: Any = "user",
        item: Any = "item",
        rating: Any = None,
        timestamp: Any = None,
        name: str = "DataFrame",
    ) -> Interactions:
        """The rows of a DataFrame, in its order; the other arguments name its columns.

        Raises:
            DataError: a missing column, ids that are null, floats or of mixed types, ratings or times that are no
                numbers.
        """
        labels = {"user": user, "item": item, "rating": rating, "timestamp": timestamp}
        columns = {}
        for column, label in labels.items():
            if label is None:
                continue
            check_column(label, list(frame.columns), name)
            try:
                values = pa.array(frame[label], from_pandas=True)
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise DataError(f"column {label!r} mixes types: {error}", where=name) from error
            columns[column] = CONVERT[column](values, label, name)
        user_ids, users = number_ids(columns["user"])
        item_ids, items = number_ids(columns["item"])
        values = columns.get("rating"), columns.get("timestamp")
        return cls(users, items, IdMap(user_ids), IdMap(item_ids), *values, name)

    @classmethod
    def from_scipy(cls, matrix: Any, name: str = "matrix") -> Interactions:
        """The stored entries of a sparse users x items matrix or array; its row and column numbers are the ids.

        Stored zeros and entries stored twice are interactions too. The values are the ratings, unless they are boolean.

        Raises:
            DataError: another number of dimensions, more than 2^31 - 1 rows or columns, values that are no numbers.
        """
        if matrix.ndim != 2:
            raise DataError(f"{matrix.ndim} dimensions where users x items are 2", where=name)
        entries = matrix.tocoo()
        ratings = None if entries.dtype == bool else entries.data
        return _numbered(entries.row, entries.col, matrix.shape, {"rating": ratings}, name)

    @classmethod
    def from_dgl(
        cls,
        graph: Any,
        etype: str | tuple[str, str, str] | None = None,
        *,
        user: str = "user",
        item: str = "item",
        rating: str | None = None,
        timestamp: str | None = None,
        name: str = "DGL graph",
    ) -> Interactions:
        """The edges of a bipartite DGL graph, in the order of their ids; node numbers are the ids.

        Args:
            etype: the edge type; its source nodes are the users. None: the graph's only type, or the only one from
                `user` to `item` nodes.
            user, item: names of node types, by which to find the edge type.
            rating, timestamp: keys of edge data, [edges] or [edges, 1], to take.

        Raises:
            DataError: no such edge type or several, one that is not bipartite, missing or unusable edge data.
        """
        found = _edge_type(graph.canonical_etypes, etype, user, item, name)
        users, items = graph.edges(etype=found, order="eid")
        values = _edge_values(graph.edges[found].data, rating, timestamp, name)
        shape = graph.num_nodes(found[0]), graph.num_nodes(found[2])
        return _numbered(_to_numpy(users), _to_numpy(items), shape, values, name)

    @classmethod
    def from_pyg(
        cls,
        data: Any,
        edge_type: str | tuple[str, str, str] | None = None,
        *,
        user: str = "user",
        item: str = "item",
        rating: str | None = None,
        timestamp: str | None = None,
        name: str = "PyG graph",
    ) -> Interactions:
        """The edges of a PyG HeteroData, or of an `edge_index` [2, edges] of users and items, each numbered from 0.

        Arguments and errors as `from_dgl`; a bare `edge_index` has as many users and items as its largest numbers say.
        """
        if hasattr(data, "edge_types"):
            found = _edge_type(data.edge_types, edge_type, user, item, name)
            check_column("edge_index", list(data[found].keys()), f"{name}, edge type {found}")
            edges = _to_numpy(data[found].edge_index)
            values = _edge_values(data[found], rating, timestamp, name)
            shape = data[found[0]].num_nodes, data[found[2]].num_nodes
        elif hasattr(data, "edge_index"):
            remedy = "Give a HeteroData, or an edge_index in which users and items are each numbered from 0"
            raise DataError("a graph of one node type does not tell users from items", where=name, remedy=remedy)
        else:
            edges, values, shape = _to_numpy(data), {}, (None, None)
        if edges.ndim != 2 or len(edges) != 2 or edges.dtype.kind not in "iu":
            found_edges = f"an edge_index of shape {edges.shape} and type {edges.dtype}"
            raise DataError(found_edges, where=name, remedy="It must be integers [2, edges]")
        sizes = [int(ends.max(initial=-1)) + 1 if size is None else size for ends, size in zip(edges, shape)]
        return _numbered(edges[0], edges[1], sizes, values, name)

    def to_pandas(self) -> pd.DataFrame:
        """A DataFrame with the user's own ids: user, item and, where the log has them, rating, timestamp."""
        import pandas as pd

        columns = {"user": self.user_ids.decode(self.users), "item": self.item_ids.decode(self.items)}
        optional = {"rating": self.ratings, "timestamp": self.timestamps}
        return pd.DataFrame(columns | {name: values for name, values in optional.items() if values is not None})

    @property
    def num_users(self) -> int:
        """Number of user ids, with or without an interaction."""
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        """Number of item ids, with or without an interaction."""
        return len(self.item_ids)

    def __len__(self) -> int:
        return len(self.users)

    def check_same_ids(self, other: Interactions) -> None:
        """Raise a DataError unless the other log numbers users and items as this one does."""
        for side, own, others in (("user", self.user_ids, other.user_ids), ("item", self.item_ids, other.item_ids)):
            if own is not others and not own.ids.equals(others.ids):
                raise DataError(
                    f"its {side} ids ({len(others)}) are numbered otherwise than those of {self.name} ({len(own)})",
                    where=other.name,
                    remedy="Read the parts together with read_split, or split one log with split",
                )

    def take(self, rows: npt.NDArray[Any], name: str | None = None) -> Interactions:
        """The interactions at `rows` (a boolean mask or integer positions), with the same id maps."""
        return replace(
            self,
            users=self.users[rows],
            items=self.items[rows],
            ratings=None if self.ratings is None else self.ratings[rows],
            timestamps=None if self.timestamps is None else self.timestamps[rows],
            name=name or self.name,
        )

    def deduplicate(self, keep: str = "last") -> Interactions:
        """One interaction for each (user, item), in the log's own order.

        Args:
            keep: "first" or "last" by timestamp; by row where timestamps are equal or the log has none.
        """
        if keep not in ("first", "last"):
            raise DataError(f"keep={keep!r}", where="deduplicate", remedy="Give 'first' or 'last'")
        pairs = self.users.astype(np.int64) * self.num_items + self.items
        ordered = np.sort(pairs)  # many times faster than argsort, which then is for the repeated pairs alone
        repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        if not len(repeated):
            return self
        stay = repeated[np.searchsorted(repeated[:-1], pairs)] != pairs
        rows = np.flatnonzero(~stay)
        rows = rows[np.argsort(pairs[rows], kind="stable")]
        if self.timestamps is not None:
            times, starts = self.timestamps[rows], _starts(pairs[rows])
            extreme = (np.minimum if keep == "first" else np.maximum).reduceat(times, starts)
            rows = rows[times == np.repeat(extreme, np.diff(starts, append=len(rows)))]
        starts = _starts(pairs[rows])
        stay[rows[starts if keep == "first" else np.append(starts[1:], len(rows)) - 1]] = True
        return self.take(stay)

    def filter_rating(self, minimum: float) -> Interactions:
        """The interactions rated `minimum` or better; DataError where the log has no ratings."""
        if self.ratings is None:
            remedy = "Name the column of the ratings when reading"
            raise DataError(f"no ratings to compare with {minimum}", where=self.name, remedy=remedy)
        return self.take(self.ratings >= minimum)

    def k_core(self, user_min: int, item_min: int) -> Interactions:
        """The largest part of the log in which each user has `user_min` interactions or more, each item `item_min`.

        Repeated pairs count as often as they are there. Ids are kept: `compact` drops those without an interaction.
        """
        users, items, rows = self.users, self.items, np.arange(len(self))
        while True:
            enough_users = np.bincount(users, minlength=self.num_users) >= user_min
            enough_items = np.bincount(items, minlength=self.num_items) >= item_min
            stay = enough_users[users] & enough_items[items]
            if stay.all():
                return self.take(rows)
            users, items, rows = users[stay], items[stay], rows[stay]

    def compact(self) -> Interactions:
        """The same interactions without the ids that have none; the others keep their order."""
        user_ids, users = _used(self.user_ids, self.users)
        item_ids, items = _used(self.item_ids, self.items)
        return replace(self, users=users, items=items, user_ids=user_ids, item_ids=item_ids)


def share_ids(logs: Sequence[Interactions]) -> list[Interactions]:
    """The logs renumbered with one user map and one item map: all their ids, sorted; strings if one log's ids are."""
    user_ids = _union([log.user_ids for log in logs])
    item_ids = _union([log.item_ids for log in logs])

    def renumbered(log: Interactions) -> Interactions:
        users, items = user_ids.encode(log.user_ids.ids)[log.users], item_ids.encode(log.item_ids.ids)[log.items]
        return replace(log, users=users, items=items, user_ids=user_ids, item_ids=item_ids)

    return [renumbered(log) for log in logs]


def _union(maps: Sequence[IdMap]) -> IdMap:
    types = {str(m.ids.type): m.ids.type for m in maps if len(m)}
    common = next(iter(types.values())) if len(types) == 1 else pa.string()
    distinct = pa.chunked_array([m.ids.cast(common) for m in maps], common).unique()
    check_count(len(distinct))
    return IdMap(distinct.take(pc.array_sort_indices(distinct)))


def _starts(ordered: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """Where each run of equal values begins; none is negative."""
    return np.flatnonzero(np.diff(ordered, prepend=-1))


def _used(ids: IdMap, numbers: Int32Array) -> tuple[IdMap, Int32Array]:
    used = np.bincount(numbers, minlength=len(ids)) > 0
    renumber = np.cumsum(used, dtype=np.int32) - np.int32(1)
    return IdMap(ids.ids.filter(pa.array(used))), renumber[numbers]


def _numbered(users: Any, items: Any, shape: Sequence[int], values: dict[str, Any], name: str) -> Interactions:
    """A log whose ids are numbers already, checked against the number of users and of items in `shape`."""
    for numbers, size, side in zip((users, items), shape, ("user", "item")):
        check_count(size, name)
        if len(numbers) and (numbers.min() < 0 or numbers.max() >= size):
            raise DataError(
                f"{side} numbers from {numbers.min()} to {numbers.max()} where there are {size}", where=name
            )
    checked = {key: CONVERT[key](pa.array(v), key, name) for key, v in values.items() if v is not None}
    return Interactions(
        np.array(users, np.int32),
        np.array(items, np.int32),
        IdMap.range(shape[0]),
        IdMap.range(shape[1]),
        checked.get("rating"),
        checked.get("timestamp"),
        name,
    )


def _edge_type(
    found: Sequence[tuple[str, str, str]], wanted: str | tuple[str, str, str] | None, user: str, item: str, name: str
) -> tuple[str, str, str]:
    if wanted is not None:
        matching = [edge_type for edge_type in found if wanted in (edge_type, edge_type[1])]
    elif len(found) == 1:
        matching = list(found)
    else:
        matching = [edge_type for edge_type in found if (edge_type[0], edge_type[2]) == (user, item)]
    if len(matching) != 1:
        asked = f"edge type {wanted!r}" if wanted is not None else f"edge type from {user!r} to {item!r} nodes"
        shown = ", ".join(map(str, found)) or "none"
        raise DataError(
            f"{len(matching) or 'no'} {asked}; found {shown}", where=name, remedy="Name the edge type to read"
        )
    if matching[0][0] == matching[0][2]:
        remedy = "Users and items must be two node types"
        raise DataError(f"edge type {matching[0]} is not bipartite", where=name, remedy=remedy)
    return matching[0]


def _edge_values(data: Any, rating: str | None, timestamp: str | None, name: str) -> dict[str, Any]:
    values = {}
    for column, key in (("rating", rating), ("timestamp", timestamp)):
        if key is not None:
            check_column(key, list(data.keys()), f"{name}, edge data")
            array = _to_numpy(data[key])
            if array.ndim > 2 or (array.ndim == 2 and array.shape[1] != 1):
                raise DataError(
                    f"edge data {key!r} of shape {array.shape}", where=name, remedy="Give one value an edge"
                )
            values[column] = array.reshape(-1)
    return values


def _to_numpy(values: Any) -> npt.NDArray[Any]:
    """A tensor of any device, or anything NumPy understands, as an array."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
