"""Recommendations, similar items and embeddings of a trained model, with the user's own ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F

from gnnrec import device as devices
from gnnrec import ops
from gnnrec.data.interactions import IdMap, Interactions
from gnnrec.errors import ConfigError, DataError
from gnnrec.graph.bipartite import BipartiteGraph
from gnnrec.graph.sparse import SparseMatrix
from gnnrec.graph.union import Union
from gnnrec.models.scorer import FactorScorer, Ranker, Scorer
from gnnrec.storage import atomic_write, storage_errors

BLOCK = 65536  # users ranked at once
SUFFIXES = (".parquet", ".csv", ".json")

_memory_errors = devices.memory_errors("ranking", lower="k or model.dim")


@_memory_errors
def recommend(
    scorer: Ranker,
    user_ids: IdMap,
    item_ids: IdMap,
    seen: SparseMatrix | Union | None,
    users: Sequence[Any] | npt.NDArray[Any] | None = None,
    k: int = 20,
) -> pd.DataFrame:
    """The k best items of each user.

    Args:
        scorer: the model.
        user_ids, item_ids: the maps to the user's own ids.
        seen: users x items of what is left out; None recommends seen items too.
        users: ids as the user has them; None for all.
        k: how many, at most the number of items.

    Returns:
        Columns user, item (own ids), rank (from 1) and score, k rows a user or fewer where fewer items are left.

    Raises:
        DataError: ids that were not in training.
        ConfigError: k out of range.
    """
    _check_k(k, len(item_ids))
    numbers = np.arange(len(user_ids)) if users is None else known_numbers(user_ids, users, "user")
    frames, device = [], scorer.item_vectors.device
    seen = None if seen is None else seen.to(device)
    for block in torch.from_numpy(numbers.astype(np.int64)).split(BLOCK):
        there = block.to(device)
        ranked = scorer.topk(there, k, None if seen is None else seen.select_rows(there))
        frames.append(_frame(user_ids.decode(block.numpy()), item_ids, *ranked))
    return pd.concat(frames, ignore_index=True)


@_memory_errors
def recommend_new_users(scorer: Scorer, item_ids: IdMap, history: Interactions, k: int = 20) -> pd.DataFrame:
    """The k best items of users who were not in training, from the items they have interacted with.

    Args:
        scorer: the model.
        item_ids: the items of training.
        history: the new users' interactions. Items unknown to the model are passed over.
        k: how many.

    Returns:
        As `recommend`.

    Raises:
        DataError: a user none of whose items was in training.
    """
    _check_k(k, len(item_ids))
    items = item_ids.encode(history.item_ids.ids)[history.items]
    kept = items >= 0
    graph = BipartiteGraph.from_edges(history.users[kept], items[kept], history.num_users, len(item_ids))
    lost = np.flatnonzero(graph.user_degrees == 0)
    if len(lost):
        raise DataError(
            f"{len(lost)} users have no item of the training data, such as "
            f"{history.user_ids.decode(lost[:3]).tolist()}",
            where=history.name,
            remedy="Leave these users out",
        )
    matrix = graph.user_item().to(scorer.item_vectors.device)
    frames = []
    for block in torch.arange(graph.num_users).split(BLOCK):
        rows = matrix.select_rows(block.to(matrix.device))
        ranked = scorer.topk_by_history(rows, k, rows)
        frames.append(_frame(history.user_ids.decode(block.numpy()), item_ids, *ranked))
    return pd.concat(frames, ignore_index=True)


@_memory_errors
def similar_items(
    scorer: Scorer, item_ids: IdMap, items: Sequence[Any] | npt.NDArray[Any] | None = None, k: int = 20
) -> pd.DataFrame:
    """The k items nearest to each item by the cosine of their vectors, itself left out.

    Returns:
        Columns item, similar (own ids), rank (from 1) and score.

    Raises:
        DataError: ids that were not in training.
        ConfigError: k out of range.
    """
    _check_k(k, len(item_ids) - 1)
    numbers = np.arange(len(item_ids)) if items is None else known_numbers(item_ids, items, "item")
    vectors = F.normalize(scorer.item_vectors)
    frames = []
    for block in torch.from_numpy(numbers.astype(np.int64)).split(BLOCK):
        itself = SparseMatrix(torch.arange(len(block) + 1), block.int(), (len(block), len(item_ids)))
        ranked = ops.topk_scores(vectors[block.to(vectors.device)], vectors, k=k, seen=itself.to(vectors.device))
        frames.append(_frame(item_ids.decode(block.numpy()), item_ids, *ranked))
    return pd.concat(frames, ignore_index=True).rename(columns={"item": "similar", "user": "item"})


def embeddings(scorer: Scorer, user_ids: IdMap, item_ids: IdMap) -> dict[str, pa.Table]:
    """Tables `users` and `items` with the columns id and vector (a list of float32), for models that have both; scores
    are their dot products.

    Raises:
        ConfigError: the model has none.
    """
    if not isinstance(scorer, FactorScorer):
        raise ConfigError(
            "this model has no embeddings of users", where="model", remedy="Train another, such as model=lightgcn"
        )
    sides = {"users": (user_ids, scorer.user_factors), "items": (item_ids, scorer.item_factors)}
    return {
        name: pa.table(
            {
                "id": ids.ids,
                "vector": pa.FixedSizeListArray.from_arrays(vectors.cpu().numpy().ravel(), vectors.shape[1]),
            }
        )
        for name, (ids, vectors) in sides.items()
    }


def write_embeddings(tables: dict[str, pa.Table], folder: Path) -> None:
    """Write `users.parquet` and `items.parquet` into the folder.

    Raises:
        StorageError: they cannot be written.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        atomic_write(folder / f"{name}.parquet", partial(pq.write_table, table))


def known_numbers(ids: IdMap, values: Sequence[Any] | npt.NDArray[Any], what: str) -> npt.NDArray[np.int32]:
    """Numbers of ids that must all be known.

    Raises:
        DataError: some are not; with how many, and the first of them.
    """
    if isinstance(values, str):
        raise DataError(f"is the text {values!r}", where=f"{what}s", remedy=f"Give a list: [{values!r}]")
    values = list(values)
    numbers = ids.encode(values)
    unknown = [values[int(at)] for at in np.flatnonzero(numbers < 0)]
    if unknown:
        raise DataError(
            f"{len(unknown)} of {len(values)} {what} ids were not in training, such as {list(map(str, unknown[:3]))}",
            where=f"{what}s",
            remedy="Leave them out, or give new users by their items (gnnrec recommend new_users history=FILE)"
            if what == "user"
            else "Leave them out",
        )
    return numbers


def read_ids(file: Path, column: str) -> list[str]:
    """The ids in a file, as text: one a line (.txt), or the column of that name (.csv, .parquet).

    Raises:
        DataError: the file is missing, of another kind, empty or has no such column.
    """
    as_text = pa_csv.ConvertOptions(column_types={column: pa.string()})  # 007 may be another user than 7
    readers: dict[str, Callable[[Path], pa.Table]] = {
        ".txt": lambda path: pa.table({column: [line.strip() for line in path.read_text("utf-8-sig").splitlines()]}),
        ".csv": partial(pa_csv.read_csv, convert_options=as_text),
        ".parquet": pq.read_table,
    }
    remedy = f"Give a .txt file with one id a line, or a .csv or .parquet file with the column {column!r}"
    if not file.exists():
        raise DataError("cannot be read: no such file", where=str(file), remedy=remedy)
    if file.suffix not in readers:
        raise DataError(f"is none of {', '.join(readers)}", where=str(file), remedy=remedy)
    try:
        table = readers[file.suffix](file)
        if column not in table.column_names:
            raise DataError(f"has no column {column!r}, only {table.column_names}", where=str(file), remedy=remedy)
        ids = [text for text in table.column(column).cast(pa.string()).to_pylist() if text]
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise DataError(f"cannot be read: {reason}", where=str(file), remedy=remedy) from error
    if not ids:
        raise DataError("holds no ids", where=str(file), remedy=remedy)
    return ids


def write_table(frame: pd.DataFrame, out: Path) -> None:
    """Write a table as .parquet, .csv or .json (records), whole or not at all.

    Raises:
        ConfigError: another suffix, or no such folder.
        StorageError: it cannot be written.
    """
    writers: dict[str, Callable[[Path], object]] = {
        ".parquet": lambda path: frame.to_parquet(path, index=False),
        ".csv": lambda path: frame.to_csv(path, index=False),
        ".json": lambda path: frame.to_json(path, orient="records"),
    }
    check_out(out)
    atomic_write(out, writers[out.suffix])


def check_out(out: Path) -> None:
    """Raise a ConfigError unless a table can be written under this name."""
    if out.suffix not in SUFFIXES:
        raise ConfigError(f"is {str(out)!r}", where="out", remedy=f"Let it end in {', '.join(SUFFIXES)}")
    if not out.parent.is_dir():
        raise ConfigError(
            f"is {str(out)!r}, but there is no folder {str(out.parent)!r}", where="out", remedy="Create it"
        )


def _check_k(k: int, most: int) -> None:
    if not 1 <= k <= most:
        raise ConfigError(f"is {k}", where="k", remedy=f"It must lie within 1 and {most}, the number of items to rank")


def _frame(of: npt.NDArray[Any], item_ids: IdMap, items: torch.Tensor, scores: torch.Tensor) -> pd.DataFrame:
    """One row for each place in the rankings that holds an item."""
    numbers = items.cpu().numpy()
    rows, places = np.nonzero(numbers >= 0)
    return pd.DataFrame(
        {
            "user": of[rows],
            "item": item_ids.decode(numbers[rows, places]),
            "rank": places + 1,
            "score": scores.cpu().numpy()[rows, places],
        }
    )
