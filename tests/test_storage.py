"""Atomic files and folders."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkpoint_cases import Crash, names

from gnnrec.errors import StorageError
from gnnrec.storage import atomic_folder, atomic_write, remove_leftovers


def test_leftovers_of_dead_processes_are_removed_and_of_live_ones_not(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    gone = [f".tmp-step-00000001-{dead.pid}", f".tmp-step-00000009-{os.getpid()}"]  # ours: from an earlier life
    stays = [f".tmp-step-00000001-{os.getppid()}", ".tmp-step-00000001-x", f"tmp-step-00000001-{dead.pid}"]
    for name in gone + stays:
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").write_text("x")
    (tmp_path / f".tmp-top-{dead.pid}.csv").write_text("x")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted(stays)


def test_atomic_write(tmp_path: Path) -> None:
    path = tmp_path / "top.csv"
    atomic_write(path, b"first")
    assert path.read_bytes() == b"first"
    given: list[Path] = []

    def write(temporary: Path) -> None:
        given.append(temporary)
        assert path.read_bytes() == b"first"
        temporary.write_text("second")

    atomic_write(path, write)
    assert path.read_bytes() == b"second"
    assert given[0].parent == tmp_path
    assert given[0].suffix == ".csv"
    assert names(tmp_path) == ["top.csv"]


@pytest.mark.parametrize("data", [b"x", lambda temporary: temporary.write_bytes(b"x")])
def test_atomic_write_syncs_the_file_before_the_rename_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Any
) -> None:
    events: list[str] = []
    sync, replace = os.fsync, os.replace

    def record_sync(descriptor: int) -> None:
        events.append(f"sync {os.readlink(f'/proc/self/fd/{descriptor}')}")
        sync(descriptor)

    def record_replace(source: Path, target: Path) -> None:
        events.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "replace", record_replace)
    atomic_write(tmp_path / "file", data)
    assert events == [f"sync {tmp_path}/.tmp-file-{os.getpid()}", "replace", f"sync {tmp_path}"]


def test_atomic_write_keeps_the_old_file_on_an_error(tmp_path: Path) -> None:
    path = tmp_path / "top.csv"
    path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise Crash

    with pytest.raises(Crash):
        atomic_write(path, write)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["top.csv"]


def test_atomic_write_follows_links_and_obeys_the_umask(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "file")
    previous = os.umask(0o027)
    try:
        atomic_write(tmp_path / "link", b"x")
    finally:
        os.umask(previous)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "file").read_bytes() == b"x"
    assert (tmp_path / "real" / "file").stat().st_mode & 0o777 == 0o640


def test_atomic_write_where_it_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"No such file or directory \(ENOENT\)\. Create the folder first"):
        atomic_write(tmp_path / "none" / "file", b"x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="EISDIR"):
        atomic_write(tmp_path / "folder", b"x")
    with pytest.raises(StorageError, match="ENAMETOOLONG"):
        atomic_write(tmp_path / ("x" * 300), b"x")
    assert names(tmp_path) == ["folder"]


def test_atomic_folder(tmp_path: Path) -> None:
    path = tmp_path / "export"
    with atomic_folder(path) as temporary:
        assert temporary.name == f".tmp-export-{os.getpid()}"
        (temporary / "deep").mkdir()
        (temporary / "deep" / "file").write_text("x")
        assert not path.exists()
    assert (path / "deep" / "file").read_text() == "x"
    with pytest.raises(StorageError, match="File exists"), atomic_folder(path):
        pytest.fail("must not come here")
    assert names(tmp_path) == ["export"]


def test_atomic_folder_leaves_nothing_on_an_error(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_folder(tmp_path / "export") as temporary:
            (temporary / "file").write_text("x")
            raise Crash

    with pytest.raises(Crash):
        write()
    assert names(tmp_path) == []


def test_atomic_folder_replaces_what_an_earlier_process_of_this_number_left(tmp_path: Path) -> None:
    leftover = tmp_path / f".tmp-export-{os.getpid()}"
    leftover.mkdir()
    (leftover / "old").write_text("x")
    with atomic_folder(tmp_path / "export") as temporary:
        (temporary / "new").write_text("x")
    assert names(tmp_path / "export") == ["new"]


def test_file_systems_that_cannot_sync_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = os.fsync
    folders = []

    def refuse(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            folders.append(descriptor)
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    atomic_write(tmp_path / "file", b"x")
    assert len(folders) == 1
    assert (tmp_path / "file").read_bytes() == b"x"


def test_storage_needs_the_standard_library_only() -> None:
    code = "import sys, gnnrec.storage; print([m for m in sys.modules if m.split('.')[0] in {'torch', 'numpy'}])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
