"""Public data sets by name: where they come from, what they hold, and how they are fetched, checked and read.

A data set lies in `<root>/<name>/`; files that are already there are used. Each is known by its SHA-256, so that a
published number rests on the same bytes everywhere.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gnnrec.data.download import Progress, download
from gnnrec.data.interactions import Interactions
from gnnrec.errors import DataError

_LIGHTGCN = "https://raw.githubusercontent.com/gusye1234/LightGCN-PyTorch/master/data"
_RECBOLE = "https://raw.githubusercontent.com/RUCAIBox/RecBole/master/dataset"
_LIGHTGCN_SPLIT = "split of He et al., LightGCN, SIGIR 2020 (gusye1234/LightGCN-PyTorch)"


@dataclass(frozen=True)
class DataFile:
    """One file of a data set: its name, size in bytes, and SHA-256."""

    name: str
    size: int
    sha256: str

    def state(self, folder: Path) -> str:
        """`missing`, `verified` or `damaged` (other bytes than expected)."""
        path = folder / self.name
        if not path.is_file():
            return "missing"
        if path.stat().st_size != self.size:
            return "damaged"
        with path.open("rb") as file:
            return "verified" if hashlib.file_digest(file, "sha256").hexdigest() == self.sha256 else "damaged"


@dataclass(frozen=True)
class CatalogEntry:
    """A public data set.

    Args:
        name: its name, and that of its folder.
        url: address of the folder with its files.
        files: one log, or the train and the test part in this order.
        format, options: how `gnnrec.data.readers` reads the files.
        users, items: how many have an interaction.
        interactions: rows of each file.
        source: who made it, and who its split.
        licence: what its makers allow.
    """

    name: str
    url: str
    files: tuple[DataFile, ...]
    format: str
    users: int
    items: int
    interactions: tuple[int, ...]
    source: str
    licence: str
    options: Mapping[str, Any] = field(default_factory=dict)


# The checksums of yelp2018 and amazon-book are those of the Git LFS pointers in a copy of LightGCN-PyTorch
# (AdityaMMantri/RS-Research-Paper-Light-GCN), whose pointer of gowalla/test.txt is that of the file itself.
_ENTRIES = (
    CatalogEntry(
        name="ml-100k",
        url=f"{_RECBOLE}/ml-100k",
        files=(
            DataFile("ml-100k.inter", 1_979_230, "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff"),
        ),
        format="recbole",
        users=943,
        items=1682,
        interactions=(100_000,),
        source="GroupLens, MovieLens 100K (Harper and Konstan, 2015), as a RecBole atomic file (RUCAIBox/RecBole)",
        licence="GroupLens terms: research use, with acknowledgement; commercial use or redistribution on request",
    ),
    CatalogEntry(
        name="lastfm",
        url=f"{_LIGHTGCN}/lastfm",
        files=(
            DataFile("data1.txt", 579_727, "c82af3228cbbda2f55a39244de09ed93292894f1d0d9f1908ebb57e27598fded"),
            DataFile("test1.txt", 144_867, "de4417c0e6123284ce59a0934bcf5288ec1ec8774a18a1eef453c9952dfa48f9"),
        ),
        format="csv",
        options={"delimiter": "\t", "header": False, "user": 0, "item": 1, "rating": 2},  # rating: times played
        users=1880,
        items=4489,
        interactions=(42_135, 10_533),
        source="Last.fm, HetRec 2011 (Cantador et al., 2011); split of gusye1234/LightGCN-PyTorch",
        licence="HetRec 2011 terms: non-commercial use",
    ),
    CatalogEntry(
        name="gowalla",
        url=f"{_LIGHTGCN}/gowalla",
        files=(
            DataFile("train.txt", 4_633_414, "7244696fdeb23911319cf7b689f2e15a3c4c92549c873a5677b44e3f13cc3e62"),
            DataFile("test.txt", 1_372_559, "099a2a73924e4b754dc6efd730d764f492321b53c38eb93298850c83acf57be3"),
        ),
        format="adjacency",
        users=29_858,
        items=40_981,
        interactions=(810_128, 217_242),
        source=f"Gowalla check-ins, SNAP (Cho et al., 2011); {_LIGHTGCN_SPLIT}",
        licence="no licence stated; SNAP asks to cite Cho, Myers and Leskovec, KDD 2011",
    ),
    CatalogEntry(
        name="yelp2018",
        url=f"{_LIGHTGCN}/yelp2018",
        files=(
            DataFile("train.txt", 6_904_880, "1e9568725a9e833d0ac3bae01c94cd95367f73b3bb6104fd26b5f65ea5054093"),
            DataFile("test.txt", 1_986_152, "9cd9b37926cd1447a06625ffa7914527573fb097c10cb0bbdb1d1b8ded3742fe"),
        ),
        format="adjacency",
        users=31_668,
        items=38_048,
        interactions=(1_237_259, 324_147),
        source=f"Yelp challenge 2018; {_LIGHTGCN_SPLIT}",
        licence="Yelp dataset terms: academic, non-commercial use; no redistribution",
    ),
    CatalogEntry(
        name="amazon-book",
        url=f"{_LIGHTGCN}/amazon-book",
        files=(
            DataFile("train.txt", 14_125_691, "529066026085919381acd4ce19f69e9eafa4af3fef1a10119ea5551cc2ef8530"),
            DataFile("test.txt", 3_848_611, "6250754994dd953b91b48dccdd77a73f318e0634b4757c2abfcc9d33a54ab0f5"),
        ),
        format="adjacency",
        users=52_643,
        items=91_599,
        interactions=(2_380_730, 603_378),
        source=f"Amazon book reviews (He and McAuley, 2016); {_LIGHTGCN_SPLIT}",
        licence="no licence stated; its makers ask to cite He and McAuley, WWW 2016",
    ),
)


def catalog() -> list[CatalogEntry]:
    """All data sets."""
    return list(_ENTRIES)


def entry(name: str) -> CatalogEntry:
    """The data set of that name. Raises DataError where there is none."""
    known = {each.name: each for each in _ENTRIES}
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        raise DataError(f"no data set {name!r} in the catalog", remedy=f"{hint}There are {', '.join(known)}")
    return known[name]


def folder(name: str, root: str | os.PathLike[str] | None = None) -> Path:
    """Where a data set lies: under `root`, by default `$GNNREC_DATA`, by default `~/.cache/gnnrec/data`."""
    return Path(root or os.environ.get("GNNREC_DATA") or "~/.cache/gnnrec/data").expanduser() / entry(name).name


def describe(name: str, root: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """What the catalog knows of a data set, and what is there of it.

    Returns:
        name, source, licence, url, format, users, items, interactions (of each file), folder, and files: name, bytes,
        sha256 and state (`missing`, `verified`, or `damaged`: other bytes than expected) of each.
    """
    known, there = entry(name), folder(name, root)
    files = [
        {"name": file.name, "bytes": file.size, "sha256": file.sha256, "state": file.state(there)}
        for file in known.files
    ]
    shown = {key: getattr(known, key) for key in ("name", "source", "licence", "url", "format", "users", "items")}
    return shown | {"interactions": list(known.interactions), "folder": str(there), "files": files}


def fetch(name: str, root: str | os.PathLike[str] | None = None, progress: Progress | None = None) -> Path:
    """Downloads what is missing of a data set; what broke off continues.

    Args:
        name, root: see `folder`.
        progress: called with (bytes so far, bytes in all) of the whole data set.

    Returns:
        The folder; all files in it have verified.

    Raises:
        DataError: no such data set, or a file is there that is another one (it is not replaced).
        DownloadError, StorageError: as `download`.
    """
    known, there = entry(name), folder(name, root)
    total, before = sum(file.size for file in known.files), 0
    for file in known.files:
        if _checked(file, there) == "missing":
            report = None if progress is None else _shifted(progress, before, total)
            download(f"{known.url}/{file.name}", there / file.name, file.sha256, file.size, report)
        before += file.size
    return there


def read(name: str, root: str | os.PathLike[str] | None = None) -> list[Interactions]:
    """Reads a data set that is there: its log, or its train and test part.

    Raises:
        DataError: no such data set, a file is missing, or is another one.
    """
    from gnnrec.data.readers import read_split

    known, there = entry(name), folder(name, root)
    missing = [file.name for file in known.files if _checked(file, there) == "missing"]
    if missing:
        raise DataError(
            f"{' and '.join(missing)} of the data set {name!r} is not there",
            where=str(there),
            remedy=f"Run `gnnrec data fetch name={name}`, or set GNNREC_DATA (data.root) to the folder with {name}/",
        )
    parts = read_split([there / file.name for file in known.files], format=known.format, **known.options)
    names = [name] if len(parts) == 1 else [f"{name}/train", f"{name}/test"]
    return [replace(part, name=label) for part, label in zip(parts, names)]


def _checked(file: DataFile, there: Path) -> str:
    state = file.state(there)
    if state == "damaged":
        raise DataError(
            f"not the file that the catalog knows ({file.size} bytes, SHA-256 {file.sha256})",
            where=str(there / file.name),
            remedy="Move it away and fetch the data set again, or read your own version with data=files",
        )
    return state


def _shifted(progress: Progress, before: int, total: int) -> Progress:
    return lambda done, _: progress(before + done, total)
