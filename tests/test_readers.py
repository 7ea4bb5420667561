"""Readers: every format gives back what was written, and says what is wrong with a file and where."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gnnrec.data import columns, delimited, readers
from gnnrec.data.interactions import Interactions
from gnnrec.data.readers import read_interactions, read_split
from gnnrec.errors import DataError

Row = tuple[Any, ...]

# Fixtures that shrink the blocks hold for all examples, and each example writes its own file.
property_test = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])

INTEGERS = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9)
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8).map("u{}".format)
HALVES = st.integers(-10, 10).map(lambda n: n / 2)
TIMES = st.integers(0, 2**40)


def rows_strategy(ids: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Row]]:
    few = st.lists(ids, min_size=1, max_size=6)
    return few.flatmap(
        lambda known: st.lists(
            st.tuples(st.sampled_from(known), st.sampled_from(known), HALVES, TIMES), min_size=1, max_size=40
        )
    )


ANY_ROWS = rows_strategy(INTEGERS) | rows_strategy(TEXT)
COUNTED_ROWS = rows_strategy(st.integers(0, 30))
ALL: dict[str, Any] = {"rating": "rating", "timestamp": "timestamp"}


@pytest.fixture(params=[None, 256], ids=["one block", "small blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads files as they are, or as if they had very many blocks."""
    if request.param:
        monkeypatch.setattr(delimited, "_BLOCK_BYTES", request.param)
        monkeypatch.setattr(readers, "_ADJACENCY_BLOCK_BYTES", 8)
        monkeypatch.setattr(columns, "_PENDING_BYTES", 0)
        monkeypatch.setattr(columns, "_FIRST_ROWS", 1)


def rows_of(log: Interactions) -> list[Row]:
    return list(log.to_pandas().itertuples(index=False, name=None))


def check(log: Interactions, rows: list[Row]) -> None:
    assert rows_of(log) == rows
    assert log.user_ids.ids.to_pylist() == sorted({row[0] for row in rows})
    assert log.item_ids.ids.to_pylist() == sorted({row[1] for row in rows})
    assert log.users.dtype == log.items.dtype == np.int32


def write_text(path: Path, header: list[str] | None, rows: list[Row], delimiter: str = ",") -> Path:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter[0])
    for row in [*([header] if header else []), *rows]:
        # an empty column between any two makes `::` of `:`
        writer.writerow(
            [cell for value in row for cell in (value, *[""] * (len(delimiter) - 1))][
                : len(row) * len(delimiter) - len(delimiter) + 1
            ]
        )
    packers: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.compress,
        ".bz2": bz2.compress,
        ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
    }
    data = text.getvalue().encode()
    path.write_bytes(packers[path.suffix](data) if path.suffix in packers else data)
    return path


@pytest.mark.usefixtures("blocks")
@property_test
@given(rows=ANY_ROWS, delimiter=st.sampled_from([",", ";", "\t", "|", "::"]))
def test_csv(tmp_path: Path, rows: list[Row], delimiter: str) -> None:
    path = write_text(
        tmp_path / "log.csv",
        ["timestamp", "item", "x", "user", "rating"],
        [(t, i, "", u, r) for u, i, r, t in rows],
        delimiter,
    )
    check(read_interactions(path, delimiter=delimiter, **ALL), rows)
    check(read_interactions(path, delimiter=delimiter), [row[:2] for row in rows])


@property_test
@given(rows=ANY_ROWS, name=st.sampled_from(["log.tsv", "log.tsv.gz", "log.TSV.bz2", "log.tsv.zst"]))
def test_tsv_without_header_and_compressed(tmp_path: Path, rows: list[Row], name: str) -> None:
    path = write_text(tmp_path / name.lower(), None, rows, "\t")
    check(read_interactions(path, header=False, user=0, item="1", rating=2, timestamp=3), rows)


@pytest.mark.usefixtures("blocks")
@property_test
@given(rows=ANY_ROWS)
def test_recbole(tmp_path: Path, rows: list[Row]) -> None:
    header = ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]
    path = write_text(tmp_path / "log.inter", header, rows, "\t")
    check(read_interactions(path), rows)
    swapped = read_interactions(path, user="item_id", item="user_id", rating="timestamp")
    check(swapped, [(i, u, float(np.float32(t))) for u, i, r, t in rows])
    check(read_interactions(write_text(path, header[:2], [row[:2] for row in rows], "\t")), [row[:2] for row in rows])


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize(
    ("name", "header", "delimiter"),
    [
        ("u.data", None, "\t"),
        ("ratings.dat", None, "::"),
        ("ratings.csv", ["userId", "movieId", "rating", "timestamp"], ","),
    ],
)
@property_test
@given(rows=COUNTED_ROWS)
def test_movielens(tmp_path: Path, name: str, header: list[str] | None, delimiter: str, rows: list[Row]) -> None:
    path = write_text(tmp_path / name, header, rows, delimiter)
    check(read_interactions(path), rows)
    other = path.rename(tmp_path / "renamed.txt")
    check(read_interactions(other, format="movielens"), rows)


def test_ratings_csv_of_others(tmp_path: Path) -> None:
    path = write_text(tmp_path / "ratings.csv", ["uid", "movie"], [(1, 2)])
    check(read_interactions(path, user="uid", item="movie"), [(1, 2)])
    path = write_text(tmp_path / "ratings.csv", ["userId", "movieId", "rating", "timestamp"], [(1, 2, 3.5, 4)])
    check(read_interactions(path, user="movieId", item="userId"), [(2, 1)])


@property_test
@given(rows=ANY_ROWS, row_group=st.integers(1, 9), dictionary=st.booleans(), narrow=st.booleans())
def test_parquet(tmp_path: Path, rows: list[Row], row_group: int, dictionary: bool, narrow: bool) -> None:
    frame = pd.DataFrame(rows, columns=["u", "i", "r", "t"])
    if dictionary:
        frame["u"] = frame["u"].astype("category")
    if narrow:
        frame["t"] = frame["t"].astype("float64")
    frame.to_parquet(tmp_path / "log.parquet", row_group_size=row_group)
    log = read_interactions(tmp_path / "log.parquet", user="u", item="i", rating="r", timestamp="t")
    check(log, rows)
    check(read_interactions(frame, user="u", item="i", rating="r", timestamp="t"), rows)


@property_test
@given(rows=COUNTED_ROWS, compressed=st.booleans())
def test_npz(tmp_path: Path, rows: list[Row], compressed: bool) -> None:
    users, items, ratings, _ = zip(*rows)
    matrix = sp.coo_matrix((ratings, (users, items)), shape=(40, 50))
    sp.save_npz(tmp_path / "log.npz", matrix, compressed=compressed)
    for log in (read_interactions(tmp_path / "log.npz"), read_interactions(matrix)):
        assert rows_of(log) == [row[:3] for row in rows]
        assert (log.num_users, log.num_items) == (40, 50)


@pytest.mark.usefixtures("blocks")
@property_test
@given(
    lines=st.lists(st.lists(st.integers(0, 10**18 - 1) | st.integers(0, 9), max_size=9), min_size=1, max_size=20),
    end=st.sampled_from(["\n", "\r\n", " \n", "\n\n"]),
    closed=st.booleans(),
)
def test_adjacency(tmp_path: Path, lines: list[list[int]], end: str, closed: bool) -> None:
    lines = [*lines, [3, 5, 5]]
    path = tmp_path / "train.txt"
    path.write_text(end.join(" ".join(map(str, line)) for line in lines) + end * closed, newline="")
    log = read_interactions(path, format="adjacency")
    assert rows_of(log) == [(line[0], item) for line in lines for item in line[1:]]
    assert log.user_ids.ids.to_pylist() == sorted({line[0] for line in lines if line})
    assert log.item_ids.ids.to_pylist() == sorted({item for line in lines for item in line[1:]})


@property_test
@given(rows=ANY_ROWS, random=st.randoms())
def test_numbering_does_not_depend_on_the_order_of_rows(tmp_path: Path, rows: list[Row], random: Any) -> None:
    shuffled = random.sample(rows, len(rows))
    logs = [
        read_interactions(write_text(tmp_path / "log.csv", ["user", "item", "rating", "timestamp"], part), **ALL)
        for part in (rows, shuffled)
    ]
    one, two = (Counter(zip(log.users, log.items, log.ratings, log.timestamps)) for log in logs)  # type: ignore[arg-type]
    assert one == two
    assert logs[0].user_ids.ids.equals(logs[1].user_ids.ids)
    assert logs[0].item_ids.ids.equals(logs[1].item_ids.ids)


@property_test
@given(rows=rows_strategy(INTEGERS), others=ANY_ROWS, empty=st.booleans())
def test_split_shares_ids(tmp_path: Path, rows: list[Row], others: list[Row], empty: bool) -> None:
    paths = [
        write_text(tmp_path / name, ["user", "item", "rating", "timestamp"], part)
        for name, part in (("train.csv", rows), ("test.csv", others))
    ]
    logs = read_split(paths, **ALL)
    kind = int if all(isinstance(row[0], int) for row in others) else str
    for log, part in zip(logs, (rows, others)):
        assert rows_of(log) == [(kind(u), kind(i), *rest) for u, i, *rest in part]
        assert log.user_ids is logs[0].user_ids
        assert log.item_ids is logs[0].item_ids
        assert log.user_ids.ids.to_pylist() == sorted({kind(row[0]) for row in rows + others})


def test_split_with_text_in_one_part_keeps_the_text_of_the_other(tmp_path: Path) -> None:
    train = write_text(tmp_path / "train.csv", ["user", "item"], [("007", 1), ("7", 2)])
    test = write_text(tmp_path / "test.csv", ["user", "item"], [("x", 2)])
    assert rows_of(read_interactions(train)) == [(7, 1), (7, 2)]
    assert [rows_of(log) for log in read_split([train, test])] == [[("007", 1), ("7", 2)], [("x", 2)]]


@pytest.mark.parametrize("late", [3, 200_000])
def test_ids_that_turn_into_text(tmp_path: Path, late: int) -> None:
    rows = [("007", 1, 5), ("7", 2, 5), *[(str(n), 3, n) for n in range(late)], ("x", 3, 1.5), ("NA", 4, 2)]
    path = write_text(tmp_path / "log.csv", ["user", "item", "timestamp"], rows)
    assert late < 10 or path.stat().st_size > delimited._BLOCK_BYTES  # the first block then is all integers
    log = read_interactions(path, timestamp="timestamp")
    assert rows_of(log) == rows
    assert log.item_ids.ids.type == pa.int64()


def test_integers_beyond_int64_are_text(tmp_path: Path) -> None:
    rows = [("18446744073709551615", 1), ("5", 2)]
    check(read_interactions(write_text(tmp_path / "log.csv", ["user", "item"], rows)), rows)


@pytest.mark.usefixtures("blocks")
def test_lines_within_values(tmp_path: Path) -> None:
    rows = [(f"a\n{n}\r\n\n", '"\n') for n in range(99)]
    check(read_interactions(write_text(tmp_path / "log.csv", ["user", "item"], rows)), rows)


def test_repeated_rows_stay(tmp_path: Path) -> None:
    check(read_interactions(write_text(tmp_path / "log.csv", ["user", "item"], [(1, 2)] * 3)), [(1, 2)] * 3)


@pytest.mark.parametrize(
    "text", ["\ufeffuser,item\n1,2\n", "user,item\r\n\r\n1,2\r\n", '\n\n"user","item"\n"1",2', "user,item\r1,2\r"]
)
def test_habits_of_other_programs(tmp_path: Path, text: str) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(text.encode())
    check(read_interactions(path), [(1, 2)])


@pytest.mark.usefixtures("blocks")
def test_line_of_a_bad_token_in_any_block(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("0 1 2\n" * 50 + "3 4 5_6\n")
    with pytest.raises(DataError, match="line 51: '5_6' is no id"):
        read_interactions(path)


def test_more_ids_than_int32_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "MAX_IDS", 3)
    path = write_text(tmp_path / "log.csv", ["user", "item"], [(n, 0) for n in range(4)])
    with pytest.raises(DataError, match=r"log\.csv: 4 distinct users or items where int32 numbers allow 3"):
        read_interactions(path)


def test_sources_that_are_no_files() -> None:
    import torch

    frame = pd.DataFrame({"user": ["b", "a"], "item": [1, 2]})
    check(read_interactions(frame), [("b", 1), ("a", 2)])
    check(read_interactions(torch.tensor([[0, 1], [1, 0]])), [(0, 1), (1, 0)])
    one, two = read_split([frame, sp.eye_array(3, dtype=bool).tocsr()])
    assert one.user_ids.ids.to_pylist() == ["0", "1", "2", "a", "b"]
    assert rows_of(two) == [("0", 0), ("1", 1), ("2", 2)]
    with pytest.raises(DataError, match="DataFrame: no interactions"):
        read_interactions(frame[:0])
    with pytest.raises(DataError, match="option format='csv' has no effect on a source of type DataFrame"):
        read_interactions(frame, format="csv")
    with pytest.raises(DataError, match="option rating='r' has no effect on a source of type csr_array"):
        read_interactions(sp.csr_array((2, 2)), rating="r")
    with pytest.raises(DataError, match=r"cannot read interactions from int\. Give a path, "):
        read_interactions(5)


def test_graphs_as_sources() -> None:
    dgl = pytest.importorskip("dgl", reason="dgl is not installed: pip install gnnrec[dgl]")
    import torch
    from torch_geometric.data import HeteroData

    edges = torch.tensor([[0, 2], [1, 0]])
    graph = dgl.heterograph({("reader", "likes", "book"): (edges[0], edges[1])})
    graph.edata["stars"] = torch.tensor([4.0, 5.0])
    data = HeteroData({"reader": {"num_nodes": 3}, "book": {"num_nodes": 2}})
    data["reader", "likes", "book"].edge_index = edges
    data["reader", "likes", "book"].stars = torch.tensor([4.0, 5.0])
    for source in (graph, data):
        log = read_interactions(source, user="reader", item="book", rating="stars")
        assert rows_of(log) == [(0, 1, 4.0), (2, 0, 5.0)]
        assert (log.num_users, log.num_items) == (3, 2)


def test_name(tmp_path: Path) -> None:
    path = write_text(tmp_path / "log.csv", ["user", "item"], [(1, 2)])
    assert read_interactions(path).name == str(path)
    assert [log.name for log in read_split([path, path], name="books")] == ["books", "books"]


def test_reading_a_csv_imports_no_large_library(tmp_path: Path) -> None:
    path = write_text(tmp_path / "log.csv", ["user", "item", "rating", "timestamp"], [(1, "a", 3, 4)])
    program = (
        "import sys; from gnnrec.data.readers import read_interactions\n"
        f"read_interactions({str(path)!r}, rating='rating', timestamp='timestamp')\n"
        "print([name for name in ('torch', 'pandas', 'scipy', 'numba') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_gowalla(data_root: Path) -> None:
    train, test = read_split([data_root / "gowalla" / "train.txt", data_root / "gowalla" / "test.txt"])
    assert (train.num_users, train.num_items, len(train), len(test)) == (29_858, 40_981, 810_128, 217_242)
    assert train.user_ids.ids.equals(pa.array(range(29_858)))
    assert train.item_ids.ids.equals(pa.array(range(40_981)))
    assert len(train.deduplicate()) == 810_128


def test_ml_100k(data_root: Path) -> None:
    log = read_interactions(data_root / "ml-100k" / "ml-100k.inter")
    assert (log.num_users, log.num_items, len(log)) == (943, 1_682, 100_000)
    assert rows_of(log)[:2] == [(196, 242, 3.0, 881250949), (186, 302, 3.0, 891717742)]
    assert log.timestamps is not None
    assert log.timestamps.dtype == np.int64


def test_lastfm(data_root: Path) -> None:
    paths = [data_root / "lastfm" / name for name in ("data1.txt", "test1.txt")]
    train, test = read_split(paths, format="csv", delimiter="\t", header=False, user=0, item=1, rating=2)
    assert (train.num_users, train.num_items, len(train), len(test)) == (1_880, 4_489, 42_135, 10_533)
    assert rows_of(train)[0] == (424, 4076, 993.0)
    with pytest.raises(DataError, match="the format cannot be told"):
        read_interactions(paths[0])
