"""The catalog of data sets: what is there, what is fetched, and that the files are the right ones."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import pytest
from webserver import always, good, names, ranges, serving

from gnnrec.data import catalog
from gnnrec.errors import DataError, DownloadError


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving() as server:
        yield server


@pytest.fixture
def small(server, monkeypatch):
    """A data set of two small files on the local server; the server's answers are the files by name."""
    train, test = b"0 0 1\n1 1 2\n", b"0 2\n1 0\n"
    files = {"/small/train.txt": train, "/small/test.txt": test}
    server.answers = [lambda handler: good(files[handler.path])(handler)]
    known = catalog.CatalogEntry(
        name="small",
        url=f"{server.url}/small",
        files=tuple(
            catalog.DataFile(name.rpartition("/")[2], len(body), hashlib.sha256(body).hexdigest())
            for name, body in files.items()
        ),
        format="adjacency",
        users=2,
        items=3,
        interactions=(4, 2),
        source="here",
        licence="any use",
    )
    monkeypatch.setattr(catalog, "_ENTRIES", (*catalog._ENTRIES, known))
    return known


def states(name, root):
    return [file["state"] for file in catalog.describe(name, root)["files"]]


def test_fetch_takes_what_is_missing(server, small, tmp_path):
    assert states("small", tmp_path) == ["missing", "missing"]
    seen = []
    folder = catalog.fetch("small", tmp_path, lambda *now: seen.append(now))
    assert folder == tmp_path / "small" == catalog.folder("small", tmp_path)
    assert (folder / "train.txt").read_bytes() == b"0 0 1\n1 1 2\n"
    assert seen == [(12, 20), (20, 20)]
    assert states("small", tmp_path) == ["verified", "verified"]
    catalog.fetch("small", tmp_path)
    assert len(server.requests) == 2  # nothing was fetched again
    (folder / "test.txt").unlink()
    catalog.fetch("small", tmp_path, lambda *now: seen.append(now))
    assert [name for name, _ in server.requests] == ["/small/train.txt", "/small/test.txt", "/small/test.txt"]
    assert seen[-1] == (20, 20)


def test_fetch_resumes(server, small, tmp_path):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "train.txt.part").write_bytes(b"0 0 1\n")
    catalog.fetch("small", tmp_path)
    assert ranges(server) == ["bytes=6-", None]


@pytest.mark.parametrize("content", [b"0 0 1\n", b"0 0 1\n1 1 3\n"])
def test_a_file_of_the_user_is_not_replaced(server, small, tmp_path, content):
    train = tmp_path / "small" / "train.txt"
    train.parent.mkdir()
    train.write_bytes(content)
    assert states("small", tmp_path) == ["damaged", "missing"]
    for use in (catalog.fetch, catalog.read):
        with pytest.raises(DataError, match=r"train\.txt: not the file that the catalog knows .*Move it away"):
            use("small", tmp_path)
    assert train.read_bytes() == content
    assert server.requests == []


def test_a_server_that_lies_leaves_nothing(server, small, tmp_path):
    server.answers = [always(200, b"0 0 1\n1 1 9\n")]
    with pytest.raises(DownloadError, match=r"train\.txt: a file with SHA-256 \w+ came, \w+ was expected"):
        catalog.fetch("small", tmp_path)
    assert names(tmp_path / "small") == []


def test_read(small, tmp_path):
    with pytest.raises(
        DataError, match=r"train\.txt and test\.txt of the data set 'small' is not there.*data fetch name=small"
    ):
        catalog.read("small", tmp_path)
    catalog.fetch("small", tmp_path)
    train, test = catalog.read("small", tmp_path)
    assert (train.name, test.name) == ("small/train", "small/test")
    assert train.items.tolist() == [0, 1, 1, 2]
    assert test.users.tolist() == [0, 1]
    assert train.num_items == test.num_items == 3


def test_describe(small, tmp_path):
    assert catalog.describe("small", tmp_path) == {
        "name": "small",
        "source": "here",
        "licence": "any use",
        "url": small.url,
        "format": "adjacency",
        "users": 2,
        "items": 3,
        "interactions": [4, 2],
        "folder": str(tmp_path / "small"),
        "files": [
            {"name": file.name, "bytes": file.size, "sha256": file.sha256, "state": "missing"} for file in small.files
        ],
    }


def test_root(monkeypatch, tmp_path):
    monkeypatch.setenv("GNNREC_DATA", str(tmp_path))
    assert catalog.folder("gowalla") == tmp_path / "gowalla"
    assert catalog.folder("gowalla", "/elsewhere") == Path("/elsewhere/gowalla")
    monkeypatch.delenv("GNNREC_DATA")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert catalog.folder("gowalla") == tmp_path / "home/.cache/gnnrec/data/gowalla"
    assert catalog.folder("gowalla", "~/x") == tmp_path / "home/x/gowalla"


def test_unknown_names():
    with pytest.raises(DataError, match=r"no data set 'gowala' .*Did you mean 'gowalla'\?.*amazon-book"):
        catalog.fetch("gowala")
    with pytest.raises(DataError, match=r"no data set 'zzz' in the catalog\. There are ml-100k"):
        catalog.describe("zzz")


def test_entries_are_complete():
    entries = catalog.catalog()
    assert [each.name for each in entries] == ["ml-100k", "lastfm", "gowalla", "yelp2018", "amazon-book"]
    for each in entries:
        assert each.source
        assert each.licence
        assert each.url.startswith("https://")
        assert len(each.files) == len(each.interactions)
        for file in each.files:
            assert re.fullmatch("[0-9a-f]{64}", file.sha256)
            assert file.size > 1e5


def test_files_and_counts_of_the_data_sets(data_root):
    """Those of them that are there."""
    there = [each for each in catalog.catalog() if set(states(each.name, data_root)) != {"missing"}]
    assert there
    for known in there:
        assert states(known.name, data_root) == ["verified"] * len(known.files)
        parts = catalog.read(known.name, data_root)
        assert tuple(len(part) for part in parts) == known.interactions
        assert {part.num_users for part in parts} == {known.users}
        assert {part.num_items for part in parts} == {known.items}


def test_one_log_keeps_the_name_of_the_data_set(server, small, tmp_path, monkeypatch):
    single = replace(small, files=small.files[:1], interactions=(4,))
    monkeypatch.setattr(catalog, "_ENTRIES", (single,))
    catalog.fetch("small", tmp_path)
    (log,) = catalog.read("small", tmp_path)
    assert log.name == "small"
