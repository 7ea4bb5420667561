"""Readers: every format gives back what was written, and says what is wrong with a file and where."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
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


H = "user,item,rating,timestamp\n"
LONG = "1,2,3,4\n" * 200_000

# name, content, options, message; {line} in the message stands for the file and a line in it
BAD_FILES: list[tuple[str, str | bytes, dict[str, Any], str]] = [
    ("log.csv", "", {}, "{path}: the file is empty"),
    ("log.csv", "\n\n", {}, "{path}: no column 'user'; found none"),
    ("log.csv", H, {}, "{path}: no interactions"),
    ("log.csv", H.strip(), {}, "{path}: no interactions"),
    ("log.csv", H + "1,2,3,4\n\n1,2,3\n", {}, "{path}, line 4: 3 columns where 4 are expected"),
    ("log.csv", H + "1,2,3,4\n1,2,3,4,5\n", {}, "{path}, line 3: 5 columns where 4 are expected"),
    ("log.csv", H + LONG + "1,2,3\n", {}, "{path}, line 200002: 3 columns where 4 are expected"),
    ("log.csv", H + '"1",2,"a\n\nb",4\n1,2,3\n', {}, "{path}, line 5: 3 columns"),
    ("log.csv", H + '1,2,"a\nb",4\n1,"2\n3",4\n', {}, "{path}, line 4: 3 columns"),
    ("log.csv", H + "1,2,many,4\n", ALL, "{path}, line 2: column 'rating' holds 'many' where a number is expected"),
    ("log.csv", H + LONG + "1,2,x,4\n", ALL, "{path}, line 200002: column 'rating' holds 'x'"),
    ("log.csv", H + "1,2,3,4\n1,2,1e99,4\n", ALL, "{path}, line 3: column 'rating' holds '1e99'"),
    ("log.csv", H + "1,2,,4\n", ALL, "{path}, line 2: column 'rating' is empty ('')"),
    ("log.csv", H + "1,2,NaN,4\n", ALL, "{path}, line 2: column 'rating' is empty ('NaN')"),
    ("log.csv", H + "1,2,3,2020-01-01\n", ALL, "{path}, line 2: column 'timestamp' holds '2020-01-01'"),
    ("log.csv", H + "1,2,3,4\n1,2,3,inf\n", ALL, "{path}, line 3: column 'timestamp' holds 'inf'"),
    ("log.csv", H + "1,2,3,4\n,2,3,4\n", {}, "{path}, line 3: column 'user' is empty ('')"),
    ("log.csv", H + "1,2,3,4\n1,NA,3,4\n", {}, "{path}, line 3: column 'item' is empty ('NA')"),
    ("log.csv", H + "a,2,3,4\n,2,3,4\n", {}, "{path}, line 3: column 'user' is empty ('')"),
    ("log.csv", H + "1.0,2,3,4\n", {}, "{path}, line 2: column 'user' holds '1.0' where ids are integers or text"),
    ("log.csv", H + LONG + "1,2.5,3,4\n", {}, "{path}, line 200002: column 'item' holds '2.5'"),
    ("log.csv", H.encode() + b"1,2,3,4\n1,\xff\xfe,3,4\n", {}, "{path}, line 3: not UTF-8 text"),
    ("log.csv", (H + LONG).encode() + b"\xff,2,3,4\n", {}, "{path}, line 200002: column 'user' is not UTF-8"),
    ("log.csv", b"\x00\x01\x02" * 50, {}, "{path}: binary data where text is expected"),
    ("log.csv", H + '1,2,3,4\n1,2,3,"4\n' + LONG, ALL, "{path}, line 3: cannot be read"),
    (
        "log.csv",
        H + "1,2,3,4\n",
        {"user": "usr"},
        "{path}: no column 'usr'; found 'user', 'item', 'rating', 'timestamp'. Did you mean 'user'?",
    ),
    (
        "log.csv",
        "1;2\n",
        {},
        "{path}: no column 'user'; found '1;2'. Are columns separated by something else than ','?",
    ),
    (
        "log.csv",
        "1,2\n",
        {},
        "{path}: no column 'user'; found '1', '2'. If the first row is no header, give header=False",
    ),
    ("log.csv", "1,2\n", {"header": False}, "{path}: no column 'user'; found '0', '1'. The file has no header"),
    ("log.csv", "1,2\n", {"header": False, "user": 0, "item": 2}, "{path}: no column '2'; found '0', '1'"),
    ("log.csv", H, {"user": "item"}, "one column is named twice: user='item', item='item'"),
    ("log.csv", "user,user,item\n1,2,3\n", {}, "{path}: 2 columns are called 'user'"),
    ("log.csv", H, {"delimiter": "ab"}, "{path}: delimiter 'ab'"),
    ("log.csv", "x" * 200_000, {}, "{path}: no columns"),
    ("log.csv.gz", b"not gzip", {}, "{path}: cannot be read: "),
    ("log.csv.gz", gzip.compress(H.encode() * 99)[:40], {}, "{path}: cannot be read: "),
    ("log.inter", "user_id:token\titm:token\n1\t2\n", {}, "{path}: no column 'item'; found 'user_id', 'itm'"),
    ("log.inter", "user_id:token\titem_id:token\n1\t2\t3\n", {}, "{path}, line 2: 3 columns where 2"),
    ("u.data", "1\t2\t3\t4\n1\t2\t3\n", {}, "{path}, line 2: 3 columns where 4"),
    ("u.data", "1 2 3 4\n", {}, "{path}: 1 columns in '1 2 3 4' where MovieLens has user, item, rating, timestamp"),
    ("ratings.dat", "1::2::3::4\n1::2::x::4\n", {}, "{path}, line 2: column '2' holds 'x'"),
    ("ratings.dat", "1::2::3::4\n1::2::3\n", {}, "{path}, line 2: 3 columns where 4"),
    ("t.txt", "0 1\n\n2 3 x4\n", {}, "{path}, line 3: 'x4' is no id"),
    ("t.txt", "0 1\n" * 9 + "2 1.5 7\n", {}, "{path}, line 10: '1.5' is no id"),
    ("t.txt", "0 1\n2 -3\n", {}, "{path}, line 2: '-3' is no id"),
    ("t.txt", "0 1\n2 9999999999999999999 x\n", {}, "{path}, line 2: '9999999999999999999' is no id"),
    ("t.txt", "0\n1\n", {}, "{path}: no interactions"),
    ("t.txt", b"0 1\n\x80\x00 5\n", {"format": "adjacency"}, r"{path}, line 2: '\x80\x00' is no id"),
    (
        "t.txt",
        "1\t2\t3\n",
        {},
        "{path}: the format cannot be told from the file's name. Give format=, one of adjacency, ",
    ),
    ("log.foo", "1,2\n", {}, "{path}: the format cannot be told from the file's name"),
    ("log.foo", "1,2\n", {"format": "cvs"}, "{path}: unknown format 'cvs'. Did you mean 'csv'?"),
    ("log.parquet", "1,2\n", {}, "{path}: cannot be read as Parquet: "),
    ("log.npz", "1,2\n", {}, "{path}: no npz file"),
    ("log.npz", b"PK\5\6" + bytes(18), {}, "{path}: no sparse matrix"),
    ("t.txt", "0 1\n", {"rating": "stars"}, "option rating='stars' has no effect on format 'adjacency'"),
    ("log.parquet", "0 1\n", {"header": False}, "option header=False has no effect on format 'parquet'"),
]


@pytest.mark.parametrize(("name", "content", "options", "message"), BAD_FILES)
def test_bad_files(tmp_path: Path, name: str, content: str | bytes, options: dict[str, Any], message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=re.escape(message.replace("{path}", str(path)))):
        read_interactions(path, **options)


@pytest.mark.usefixtures("blocks")
def test_line_of_a_bad_token_in_any_block(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("0 1 2\n" * 50 + "3 4 5_6\n")
    with pytest.raises(DataError, match="line 51: '5_6' is no id"):
        read_interactions(path)


def test_missing_files(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").touch()
    with pytest.raises(DataError, match=r"rating\.csv: no such file. Did you mean ratings\.csv\?"):
        read_interactions(tmp_path / "rating.csv")
    with pytest.raises(DataError, match="no such file, and no such folder"):
        read_interactions(str(tmp_path / "data" / "ratings.csv"))
    with pytest.raises(DataError, match="a folder where a file is expected"):
        read_interactions(tmp_path)


@pytest.mark.parametrize(("value", "message"), [(None, "is null"), (float("nan"), "is nan"), (float("inf"), "is inf")])
def test_row_of_a_bad_rating_in_any_block(tmp_path: Path, value: float | None, message: str) -> None:
    ratings: list[float | None] = [1.0] * 200_000
    ratings[150_000] = value
    users = pa.array(range(len(ratings)))
    pq.write_table(pa.table({"user": users, "item": users, "rating": ratings}), tmp_path / "log.parquet")
    with pytest.raises(DataError, match=f"'rating' {message} in row 150000 "):
        read_interactions(tmp_path / "log.parquet", rating="rating")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"user": [1, 2, None], "item": [1, 2, 3]}, "{path}: column 'user' is null in row 2 (counted from 0)"),
        (
            {"user": [1.5, 2.0, 1.0], "item": [1, 2, 3]},
            "{path}: column 'user' holds double values such as 1.5 in row 0",
        ),
        (
            {"user": [1, 2, 3], "item": [1, 2, 3], "rating": ["a", "b", "c"]},
            "{path}: column 'rating' holds text such as a in row 0",
        ),
        (
            {"user": [1, 2, 3], "item": [1, 2, 3], "rating": [1.0, 2.0, float("nan")]},
            "{path}: column 'rating' is nan in row 2",
        ),
        (
            {"users": [1, 2, 3], "item": [1, 2, 3]},
            "{path}: no column 'user'; found 'users', 'item'. Did you mean 'users'?",
        ),
        ({"user": pa.array([], pa.int64()), "item": pa.array([], pa.string())}, "{path}: no interactions"),
    ],
)
def test_bad_parquet(tmp_path: Path, table: dict[str, Any], message: str) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table(table), path, row_group_size=2)
    with pytest.raises(DataError, match=re.escape(message.replace("{path}", str(path)))):
        read_interactions(path, rating="rating" if "rating" in table else None)


def test_pickled_objects_are_not_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    path = tmp_path / "log.npz"
    arrays = {"indices": [0], "indptr": [0, 1], "shape": [1, 1], "format": "csr"}
    np.savez(path, data=np.array([Trap()], dtype=object), **{name: np.array(a) for name, a in arrays.items()})  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"log\.npz: no sparse matrix: .*pickled objects are not loaded"):
        read_interactions(path)
    assert not (tmp_path / "sprung").exists()


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
