"""Interactions: cleaning, id maps, and the ways in from tables, matrices and graphs."""

from __future__ import annotations

import collections
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnrec.data import columns
from gnnrec.data.interactions import IdMap, Interactions, share_ids
from gnnrec.errors import DataError, StorageError

ROWS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 4), st.integers(0, 10), st.integers(-3, 3)), min_size=1, max_size=40
)


def log_of(rows: list[tuple[int, int, int, int]], with_times: bool = True) -> Interactions:
    frame = pd.DataFrame(rows, columns=["user", "item", "rating", "timestamp"])
    return Interactions.from_pandas(frame, rating="rating", timestamp="timestamp" if with_times else None)


def rows_of(log: Interactions) -> list[tuple[Any, ...]]:
    return list(log.to_pandas().itertuples(index=False, name=None))


@pytest.mark.parametrize("keep", ["first", "last"])
@pytest.mark.parametrize("with_times", [True, False])
@settings(deadline=None, max_examples=50)
@given(rows=ROWS)
def test_deduplicate(keep: Literal["first", "last"], with_times: bool, rows: list[tuple[int, int, int, int]]) -> None:
    log = log_of(rows, with_times)
    frame = log.to_pandas()
    if with_times:
        frame = frame.sort_values("timestamp", kind="stable")
    expected = frame.drop_duplicates(["user", "item"], keep=keep).sort_index()
    assert rows_of(log.deduplicate(keep)) == list(expected.itertuples(index=False, name=None))


def test_deduplicate_needs_a_known_rule() -> None:
    with pytest.raises(DataError, match=r"keep='best'.*'first' or 'last'"):
        log_of([(1, 1, 1, 1)]).deduplicate("best")


@settings(deadline=None, max_examples=50)
@given(rows=ROWS, user_min=st.integers(0, 4), item_min=st.integers(0, 4))
def test_k_core(rows: list[tuple[int, int, int, int]], user_min: int, item_min: int) -> None:
    left = [(float(i), *row) for i, row in enumerate(rows)]
    while True:
        users = collections.Counter(row[1] for row in left)
        items = collections.Counter(row[2] for row in left)
        stay = [row for row in left if users[row[1]] >= user_min and items[row[2]] >= item_min]
        if len(stay) == len(left):
            break
        left = stay
    log = log_of(rows)
    core = log.k_core(user_min, item_min)
    assert rows_of(core) == [row[1:] for row in left]
    assert (core.num_users, core.num_items) == (log.num_users, log.num_items)


def test_k_core_takes_rounds() -> None:
    # A path: each round takes its two ends, until nothing is left. With a square beside it, the square stays.
    path = [(10, 10), (11, 10), (11, 11), (12, 11), (12, 12)]
    square = [(0, 0), (0, 1), (1, 0), (1, 1)]
    log = Interactions.from_pandas(pd.DataFrame(path + square, columns=["user", "item"]))
    assert rows_of(log.k_core(2, 2)) == square
    assert len(log.take(np.arange(len(path))).k_core(2, 2)) == 0


def test_compact_drops_unused_ids_and_keeps_order() -> None:
    log = Interactions.from_pandas(pd.DataFrame({"user": ["d", "a", "c"], "item": [7, 5, 6]}))
    compact = log.take(np.array([0, 1])).compact()
    assert compact.user_ids.ids.to_pylist() == ["a", "d"]
    assert compact.item_ids.ids.to_pylist() == [5, 7]
    assert compact.users.tolist() == [1, 0]
    assert compact.users.dtype == compact.items.dtype == np.int32
    assert rows_of(compact) == [("d", 7), ("a", 5)]


def test_filter_rating() -> None:
    log = log_of([(1, 1, 3, 0), (1, 2, 4, 0), (2, 1, 5, 0)])
    assert rows_of(log.filter_rating(4)) == [(1, 2, 4.0, 0), (2, 1, 5.0, 0)]
    with pytest.raises(DataError, match="no ratings to compare with 4"):
        Interactions.from_scipy(sp.coo_array(np.eye(2, dtype=bool))).filter_rating(4)


@settings(deadline=None, max_examples=30)
@given(rows=ROWS)
def test_pandas_round_trip(rows: list[tuple[int, int, int, int]]) -> None:
    log = log_of(rows)
    assert rows_of(log) == rows
    assert log.user_ids.ids.to_pylist() == sorted({row[0] for row in rows})
    assert log.ratings is not None
    assert log.timestamps is not None
    assert [str(values.dtype) for values in (log.users, log.ratings, log.timestamps)] == ["int32", "float32", "int64"]


@pytest.mark.parametrize(
    ("values", "ids"),
    [
        (pd.Series(["b", "a"]), ["a", "b"]),
        (pd.Series(["b", "a"], dtype="category"), ["a", "b"]),
        (pd.Series(["b", "a"], dtype=pd.ArrowDtype(pa.string())), ["a", "b"]),
        (pd.Series([2, 1], dtype="Int64"), [1, 2]),
        (pd.Series([2, 1], dtype="uint8"), [1, 2]),
        (pd.Series([10, 9], dtype=object), [9, 10]),
        (pd.Series(["10", "9"]), ["10", "9"]),
    ],
)
def test_id_types_of_a_frame(values: pd.Series[Any], ids: list[Any]) -> None:
    log = Interactions.from_pandas(pd.DataFrame({"user": values, "item": [1, 2]}))
    assert log.user_ids.ids.to_pylist() == ids
    assert log.to_pandas()["user"].tolist() == values.tolist()


def test_chunked_frame() -> None:
    chunks = pa.chunked_array([[3, 1], [], [2, 3]])
    frame = pd.DataFrame({"user": pd.Series(chunks, dtype=pd.ArrowDtype(pa.int64())), "item": 0})
    assert Interactions.from_pandas(frame).to_pandas()["user"].tolist() == [3, 1, 2, 3]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (pd.to_datetime(pd.Series(["1970-01-02"])).astype("datetime64[s]"), 86400),
        (pd.Series([1.5]), 1.5),
        (pd.Series([7], dtype="int16"), 7),
        (pd.Series([3], dtype=pd.ArrowDtype(pa.date32())), 3),
    ],
)
def test_timestamps_of_a_frame(times: pd.Series[Any], expected: float) -> None:
    log = Interactions.from_pandas(pd.DataFrame({"user": [1], "item": [1], "t": times}), timestamp="t")
    assert log.timestamps is not None
    assert log.timestamps.tolist() == [expected]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user": [1, 2]}, "no column 'item'; found 'user'"),
        ({"user": [1, 2], "itme": [1, 2]}, "no column 'item'; found 'user', 'itme'. Did you mean 'itme'"),
        ({"user": [1, 2], "item": ["a", None]}, "'item' is null in row 1 "),
        ({"user": [1, 2], "item": [1.0, 2.5]}, "'item' holds double values such as 1.0 in row 0"),
        ({"user": [1, 2], "item": ["a", 1]}, "'item' mixes types"),
        ({"user": [1, 2], "item": [True, False]}, "'item' holds bool values"),
        ({"user": [1, 2], "item": np.array([1, 2**63], np.uint64)}, "'item' does not fit int64"),
        ({"user": [1, 2], "item": [1, 2], "rating": [1, None]}, "'rating' is null in row 1 "),
        ({"user": [1, 2], "item": [1, 2], "rating": [1, np.inf]}, "'rating' is inf in row 1 "),
        ({"user": [1, 2], "item": [1, 2], "rating": ["1", "2"]}, "'rating' holds text such as 1 in row 0"),
        ({"user": [1, 2], "item": [1, 2], "rating": [[1], [2]]}, "'rating' does not fit float: "),
    ],
)
def test_frames_that_cannot_be_used(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Interactions.from_pandas(pd.DataFrame(columns), rating="rating" if "rating" in columns else None)


def test_two_columns_of_one_name() -> None:
    frame = pd.DataFrame([[1, 2, 3]], columns=["user", "user", "item"])
    with pytest.raises(DataError, match="2 columns are called 'user'"):
        Interactions.from_pandas(frame)


def test_an_empty_frame_is_an_empty_log() -> None:
    log = Interactions.from_pandas(pd.DataFrame({"user": [], "item": [], "r": []}), rating="r")
    assert (len(log), log.num_users, log.num_items) == (0, 0, 0)


@pytest.mark.parametrize("kind", [sp.coo_array, sp.csr_matrix, sp.csc_array])
def test_scipy(kind: Any) -> None:
    dense = np.array([[0, 2.5, 0], [0, 0, 0], [1, 0, 4]])
    log = Interactions.from_scipy(kind(dense))
    assert sorted(rows_of(log)) == [(0, 1, 2.5), (2, 0, 1.0), (2, 2, 4.0)]
    assert (log.num_users, log.num_items) == (3, 3)
    assert log.users.dtype == np.int32


def test_scipy_keeps_stored_zeros_and_repeated_entries() -> None:
    entries = sp.coo_array(([0.0, 1.0, 2.0], ([0, 1, 1], [1, 0, 0])), shape=(2, 2))
    assert rows_of(Interactions.from_scipy(entries)) == [(0, 1, 0.0), (1, 0, 1.0), (1, 0, 2.0)]


def test_scipy_that_cannot_be_used() -> None:
    with pytest.raises(DataError, match="2147483648 distinct users or items where int32 numbers allow 2147483647"):
        Interactions.from_scipy(sp.coo_array(([1.0], ([2**31 - 1], [0])), shape=(2**31, 1)))
    with pytest.raises(DataError, match="1 dimensions"):
        Interactions.from_scipy(sp.coo_array(np.ones(3)))
    with pytest.raises(DataError, match="'rating' is nan in row 0"):
        Interactions.from_scipy(sp.coo_array([[np.nan]]))


def test_numbering_stops_at_int32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "MAX_IDS", 3)
    one, two = (Interactions.from_pandas(pd.DataFrame({"user": [n, n + 1], "item": [0, 0]})) for n in (0, 2))
    with pytest.raises(DataError, match="4 distinct users or items where int32 numbers allow 3"):
        share_ids([one, two])


def test_share_ids() -> None:
    one = Interactions.from_pandas(pd.DataFrame({"user": [5, 1], "item": ["b", "a"]}))
    two = Interactions.from_pandas(pd.DataFrame({"user": [3, 5], "item": [10, 9]}))
    shared = share_ids([one, two])
    assert [rows_of(log) for log in shared] == [[(5, "b"), (1, "a")], [(3, "10"), (5, "9")]]
    assert shared[0].user_ids is shared[1].user_ids
    assert shared[0].user_ids.ids.to_pylist() == [1, 3, 5]
    assert shared[0].item_ids.ids.to_pylist() == ["10", "9", "a", "b"]
    assert share_ids([]) == []


@pytest.mark.parametrize("ids", [[3, -1, 2**62], ["b", "", "ä"], []])
def test_id_map_parquet_round_trip(tmp_path: Path, ids: list[Any]) -> None:
    IdMap(ids).to_parquet(tmp_path / "ids.parquet")
    again = IdMap.from_parquet(tmp_path / "ids.parquet")
    assert again.ids.equals(IdMap(ids).ids)


def test_id_map_files_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "ids.parquet"
    with pytest.raises(DataError, match="no id map"):
        IdMap.from_parquet(path)
    path.write_bytes(b"no parquet")
    with pytest.raises(DataError, match="no id map"):
        IdMap.from_parquet(path)
    for table in (pa.table({"x": [1]}), pa.table({"id": [1, 1]}), pa.table({"id": [1.5]}), pa.table({"id": [1, None]})):
        pq.write_table(table, path)
        with pytest.raises(DataError, match="no id map"):
            IdMap.from_parquet(path)
    with pytest.raises(StorageError):
        IdMap([1]).to_parquet(tmp_path / "missing" / "ids.parquet")


def heterograph(edges: dict[tuple[str, str, str], tuple[list[int], list[int]]]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dgl = pytest.importorskip("dgl", reason="dgl is not installed: pip install gnnrec[dgl]")
    return dgl.heterograph(edges, num_nodes_dict={"user": 4, "item": 3})


BUYS, BOUGHT = ("user", "buys", "item"), ("item", "bought", "user")
EDGES = ([3, 0, 3], [0, 2, 0])


def test_dgl() -> None:
    import torch

    graph = heterograph({BUYS: EDGES, BOUGHT: ([2], [0])})
    graph.edges["buys"].data["stars"] = torch.tensor([[1.0], [2.0], [3.0]])
    graph.edges["buys"].data["time"] = torch.tensor([7, 8, 9])
    log = Interactions.from_dgl(graph, rating="stars", timestamp="time")
    assert rows_of(log) == [(3, 0, 1.0, 7), (0, 2, 2.0, 8), (3, 0, 3.0, 9)]
    assert (log.num_users, log.num_items, str(log.users.dtype)) == (4, 3, "int32")
    assert rows_of(Interactions.from_dgl(graph, "bought")) == [(2, 0)]
    assert rows_of(Interactions.from_dgl(graph, BOUGHT)) == [(2, 0)]
    assert rows_of(Interactions.from_dgl(graph, user="item", item="user")) == [(2, 0)]
    with pytest.raises(DataError, match=r"no edge type 'sells'; found .*'bought', 'user'\), \('user', 'buys'"):
        Interactions.from_dgl(graph, "sells")
    with pytest.raises(DataError, match="no edge type from 'buyer' to 'item' nodes"):
        Interactions.from_dgl(graph, user="buyer")
    with pytest.raises(DataError, match=r"no column 'star'; found .*Did you mean 'stars'"):
        Interactions.from_dgl(graph, rating="star")
    graph.edges["buys"].data["wide"] = torch.zeros(3, 2)
    with pytest.raises(DataError, match=r"edge data 'wide' of shape \(3, 2\)"):
        Interactions.from_dgl(graph, rating="wide")
    with pytest.raises(DataError, match="not bipartite"):
        Interactions.from_dgl(heterograph({("user", "follows", "user"): ([0], [1]), BUYS: EDGES}), "follows")


def test_pyg() -> None:
    import torch
    from torch_geometric.data import Data, HeteroData

    data = HeteroData()
    data["user"].num_nodes, data["item"].x = 4, torch.zeros(3, 2)
    data[BUYS].edge_index = torch.tensor(EDGES)
    data[BUYS].stars = torch.tensor([1, 2, 3])
    data[BUYS].time = torch.tensor([0.5, 1.5, 2.5], requires_grad=True)
    log = Interactions.from_pyg(data, rating="stars", timestamp="time")
    assert rows_of(log) == [(3, 0, 1.0, 0.5), (0, 2, 2.0, 1.5), (3, 0, 3.0, 2.5)]
    assert (log.num_users, log.num_items) == (4, 3)
    data[BOUGHT].edge_index = torch.tensor([[2], [0]])
    assert rows_of(Interactions.from_pyg(data, BOUGHT)) == [(2, 0)]
    assert len(Interactions.from_pyg(data)) == 3
    data[BUYS].edge_index = torch.tensor([[0], [3]])
    with pytest.raises(DataError, match="item numbers from 3 to 3 where there are 3"):
        Interactions.from_pyg(data)
    del data[BUYS].edge_index
    with pytest.raises(DataError, match="no column 'edge_index'"):
        Interactions.from_pyg(data)
    with pytest.raises(DataError, match="does not tell users from items"):
        Interactions.from_pyg(Data(edge_index=torch.tensor(EDGES)))


def test_bare_edge_index() -> None:
    import torch

    log = Interactions.from_pyg(torch.tensor(EDGES))
    assert (rows_of(log), log.num_users, log.num_items) == ([(3, 0), (0, 2), (3, 0)], 4, 3)
    with pytest.raises(DataError, match=r"shape \(3, 2\)"):
        Interactions.from_pyg(torch.tensor(EDGES).T)
    with pytest.raises(DataError, match="float"):
        Interactions.from_pyg(torch.tensor(EDGES).float())
    with pytest.raises(DataError, match="user numbers from -1 to 0"):
        Interactions.from_pyg(np.array([[-1, 0], [0, 0]]))
