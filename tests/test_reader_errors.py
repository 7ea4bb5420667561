"""Readers name what is wrong with a file, and the line it is in."""

from __future__ import annotations

import gzip
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gnnrec.data.readers import read_interactions
from gnnrec.errors import DataError

ALL = {"rating": "rating", "timestamp": "timestamp"}
H = "user,item,rating,timestamp\n"
LONG = "1,2,3,4\n" * 200_000

# name, content, options, message; {path} in the message stands for the file
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
    ("log.csv.gz", gzip.compress(H.encode() * 99, mtime=0)[:40], {}, "{path}: cannot be read: "),
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
