"""Interactions: who did what, in dense int32 numbers, with the maps back to the user's own ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gnnrec.errors import DataError

Int32Array = npt.NDArray[np.int32]
Float32Array = npt.NDArray[np.float32]


class IdMap:
    """Maps the user's own ids (integers or strings) to 0 .. n-1 and back.

    Args:
        ids: distinct ids; position i holds the id of number i. Sorted by the readers, so that the numbering does not depend
            on the order of a log's rows. Integer ids are kept as int64, all others as strings.
    """

    def __init__(self, ids: pa.Array | Sequence[int] | Sequence[str] | npt.NDArray[Any]) -> None:
        array = ids if isinstance(ids, pa.Array) else pa.array(ids)
        self.ids: pa.Array = array.cast(pa.int64() if pa.types.is_integer(array.type) or not len(array) else pa.string())

    @classmethod
    def range(cls, n: int) -> IdMap:
        """The map of a log whose ids already are 0 .. n-1."""
        return cls(pa.array(np.arange(n, dtype=np.int64)))

    def __len__(self) -> int:
        return len(self.ids)

    def encode(self, values: Any) -> Int32Array:
        """Numbers of the given ids, int32; -1 where an id is unknown."""
        array = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
        try:
            found = pc.index_in(array.cast(self.ids.type), value_set=self.ids)
        except pa.ArrowInvalid:  # "alice" asked of integer ids: the ids that do not convert are unknown ones
            found = pc.index_in(array.cast(pa.string()), value_set=self.ids.cast(pa.string()))
        return np.asarray(pc.fill_null(found, -1).to_numpy(zero_copy_only=False), dtype=np.int32)

    def decode(self, numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The user's own ids (int64 or object array) of the given numbers."""
        return np.asarray(self.ids.take(pa.array(numbers)).to_numpy(zero_copy_only=False))


@dataclass(frozen=True)
class Interactions:
    """An interaction log in memory.

    Args:
        users, items: int32 arrays [n]: numbers into `user_ids` and `item_ids`.
        user_ids, item_ids: the maps to the user's own ids. They may hold ids without an interaction here (the parts of a
            split share them), so `num_users` and `num_items` are their lengths.
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
    name: str = field(default="interactions", compare=False)

    def __post_init__(self) -> None:
        n = len(self.users)
        for column in ("items", "ratings", "timestamps"):
            values = getattr(self, column)
            if values is not None and len(values) != n:
                raise DataError(f"{column} has {len(values)} rows where users has {n}", where=self.name)

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
