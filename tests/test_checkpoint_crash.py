"""Checkpoints: whatever stops a save, a whole one can be loaded."""

from __future__ import annotations

import builtins
import contextlib
import errno
import os
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_cases import Crash, assert_is, example, in_child, names

from gnnrec.errors import CheckpointError, StorageError
from gnnrec.storage import atomic_write
from gnnrec.training import checkpoint
from gnnrec.training.checkpoint import latest, load_latest, save

NOBODY = 65534


# --- crashes ----------------------------------------------------------------------------------------------------------


class FaultyFile:
    """A file whose writes count as operations, and are torn where one fails."""

    def __init__(self, file: Any, operation: Callable[[], None]) -> None:
        self.file, self.operation = file, operation

    def __enter__(self) -> FaultyFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: Any) -> int:
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        self.operation()
        self.file.write(data[len(data) // 2 :])
        return len(data)


@pytest.fixture
def on_operation(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], None]], Callable[[], int]]:
    """Calls a function with the number of each fsync, rename, mkdir, write and removal, before it takes place."""

    def install(before: Callable[[int], None]) -> Callable[[], int]:
        count = 0

        def operation() -> None:
            nonlocal count
            count += 1
            before(count)

        def counted(original: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any, **options: Any) -> Any:
                operation()
                return original(*args, **options)

            return wrapped

        for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir"):
            monkeypatch.setattr(os, name, counted(getattr(os, name)))

        def open_faulty(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            file = builtins.open(path, mode, *args, **options)  # noqa: SIM115 - the caller closes it
            return FaultyFile(file, operation) if "w" in mode else file

        monkeypatch.setattr(checkpoint, "open", open_faulty, raising=False)
        return lambda: count

    return install


def fail_at(number: int, failure: Callable[[], BaseException]) -> Callable[[int], None]:
    def before(count: int) -> None:
        if count == number:
            raise failure()

    return before


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[[int], Path]:
    """Copies of a folder where a save has everything to do: earlier checkpoints and a leftover to remove."""
    template = tmp_path / "template"
    for step in (10, 20, 30):
        save(template, step, example(step), {"step": step}, keep=9)
    leftover = template / f".tmp-step-00000040-{os.getpid()}"
    leftover.mkdir()
    (leftover / "state.json").write_text("{")
    return lambda number: Path(shutil.copytree(template, tmp_path / str(number)))


def assert_recovers(folder: Path, *, steps: set[int]) -> None:
    found, _ = load_latest(folder)
    assert found.step in steps
    assert_is(found, found.step)
    save(folder, 50, example(50), {"step": 50}, keep=0)
    assert names(folder) == ["step-00000050"]
    assert_is(load_latest(folder)[0], 50)


@pytest.mark.parametrize("failure", [Crash, KeyboardInterrupt, lambda: OSError(errno.EIO, "injected")])
def test_an_error_at_any_operation_leaves_a_loadable_checkpoint(
    prepared: Callable[[int], Path],
    on_operation: Any,
    monkeypatch: pytest.MonkeyPatch,
    failure: Callable[[], BaseException],
) -> None:
    expected = StorageError if isinstance(failure(), OSError) else type(failure())
    for number in range(1, 100):
        folder = prepared(number)
        operations = on_operation(fail_at(number, failure))
        with contextlib.suppress(expected):
            save(folder, 40, example(40), {"step": 40})
        monkeypatch.undo()
        if operations() < number:
            break
        assert_recovers(folder, steps={30, 40})
    assert 20 < number < 99  # that many operations failed, and then none was left
    assert names(folder) == ["step-00000030", "step-00000040"]


def test_a_kill_at_any_operation_leaves_a_loadable_checkpoint(
    prepared: Callable[[int], Path], on_operation: Any
) -> None:
    def work(folder: Path, number: int) -> str:
        on_operation(lambda count: os.kill(os.getpid(), signal.SIGKILL) if count == number else None)
        save(folder, 40, example(40), {"step": 40})
        return "done"

    for number in range(1, 100):
        folder = prepared(number)
        status, text = in_child(lambda folder=folder, number=number: work(folder, number))
        if text == "done":
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        assert_recovers(folder, steps={30, 40})
    assert 20 < number < 99


def test_files_and_folders_are_synced_before_anything_relies_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, example(1), {})
    events: list[tuple[str, str]] = []
    sync, rename, open_ = os.fsync, os.rename, builtins.open
    temporary = f".tmp-step-00000002-{os.getpid()}"

    def record_sync(descriptor: int) -> None:
        events.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}").removeprefix(f"{tmp_path}")))
        sync(descriptor)

    def record_rename(source: Path, target: Path) -> None:
        events.append(("rename", Path(target).name))
        rename(source, target)

    def record_open(path: Path, mode: str) -> Any:
        events.append((mode, Path(path).name))
        return open_(path, mode)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "rename", record_rename)
    monkeypatch.setattr(checkpoint, "open", record_open, raising=False)
    save(tmp_path, 2, example(2), {}, keep=0)

    files = {"manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"}
    assert {name for kind, name in events[:4] if kind == "wb"} == files
    assert {name for kind, name in events[4:8] if kind == "sync"} == {f"/{temporary}/{name}" for name in files}
    assert events[8:11] == [("sync", f"/{temporary}"), ("rename", "step-00000002"), ("sync", "")]
    assert {name for kind, name in events[11:14] if kind == "rb"} == files - {"manifest.json"}
    assert events[14:] == [("rename", f".tmp-step-00000001-{os.getpid()}")]


def constant(value: int) -> torch.Tensor:
    return torch.from_numpy(np.full(200_000, value, dtype=np.float32))  # torch.full starts threads, not after a fork


def save_for_ever(folder: Path, step: int) -> None:
    while True:
        step += 1
        save(folder, step, {"model.x": constant(step), "optimizer.m": constant(-step)}, {"step": step})


def test_killed_while_saving_in_a_loop(tmp_path: Path) -> None:
    step = 0
    for round_ in range(10):
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            try:
                save_for_ever(tmp_path, step)
            finally:
                os._exit(1)
        while (newest := latest(tmp_path)) is None or int(newest.name[5:]) < step + 2:
            assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        time.sleep(0.0017 * round_)  # to hit different places in the loop
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        found, _ = load_latest(tmp_path)
        assert found.step >= step + 2
        step = found.step
        assert found.state == {"step": step}
        assert torch.equal(found.tensors["model.x"], constant(step))
        assert torch.equal(found.tensors["optimizer.m"], constant(-step))
        assert len([name for name in names(tmp_path) if name.startswith(".tmp-")]) <= 1


# --- disks that refuse ------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this user cannot mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk(small_disk: Path) -> None:
    save(small_disk, 1, example(1), {"step": 1})
    with pytest.raises(StorageError, match=r"No space left on device \(ENOSPC\)") as caught:
        save(small_disk, 2, {"model.x": torch.ones(1 << 19)}, {})
    assert caught.value.where == str(small_disk / "step-00000002")
    assert caught.value.remedy == "Free some space, or write to another disk"
    assert names(small_disk) == ["step-00000001"]
    assert_is(load_latest(small_disk)[0], 1)
    with pytest.raises(StorageError, match="ENOSPC"):
        atomic_write(small_disk / "summary.json", b"x" * (1 << 21))
    assert names(small_disk) == ["step-00000001"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_errors_of_the_disk_are_named(tmp_path: Path, on_operation: Any, code: int) -> None:
    save(tmp_path, 1, example(1), {"step": 1})
    on_operation(fail_at(3, lambda: OSError(code, "injected")))
    with pytest.raises(StorageError, match=errno.errorcode[code]) as caught:
        save(tmp_path, 2, example(2), {"step": 2})
    assert caught.value.where == str(tmp_path / "step-00000002")
    assert caught.value.remedy
    assert names(tmp_path) == ["step-00000001"]
    assert_is(load_latest(tmp_path)[0], 1)


def test_an_error_that_is_not_the_disks_passes(tmp_path: Path, on_operation: Any) -> None:
    on_operation(fail_at(2, lambda: OSError(errno.EBADF, "injected")))
    with pytest.raises(OSError, match="injected") as caught:
        save(tmp_path, 2, example(2), {})
    assert not isinstance(caught.value, StorageError)
    assert names(tmp_path) == []


def test_limit_on_file_sizes(tmp_path: Path) -> None:
    save(tmp_path, 1, example(1), {"step": 1})
    large = torch.ones(1 << 16)

    def work() -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        with pytest.raises(StorageError) as caught:
            save(tmp_path, 2, {"model.x": large}, {})
        return str(caught.value)

    status, text = in_child(work)
    assert status == 0
    assert "File too large (EFBIG). Raise the limit on file sizes (ulimit -f)" in text
    assert names(tmp_path) == ["step-00000001"]
    assert_is(load_latest(tmp_path)[0], 1)


def test_no_permission() -> None:
    with tempfile.TemporaryDirectory() as name:  # not tmp_path, which other users cannot reach
        folder = Path(name)
        save(folder, 1, example(1), {"step": 1})
        folder.chmod(0o555)

        def work() -> str:
            if os.getuid() == 0:
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            messages = []
            for write in (
                lambda: save(folder, 2, example(2), {}),
                lambda: save(folder / "deeper", 2, example(2), {}),
                lambda: atomic_write(folder / "summary.json", b"{}"),
            ):
                with pytest.raises(StorageError, match="Give this user permission to write there") as caught:
                    write()
                messages.append(str(caught.value))
            assert_is(load_latest(folder)[0], 1)
            return "\n".join(messages)

        text = in_child(work)[1].splitlines()
        assert len(text) == 3
        assert all("Permission denied (EACCES)" in line for line in text)
        assert names(folder) == ["step-00000001"]
        folder.chmod(0o700)


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="cannot be listed: Not a directory"):
        load_latest(tmp_path / "file")
    with pytest.raises(StorageError, match="EEXIST"):
        save(tmp_path / "file", 1, {}, {})
    with pytest.raises(StorageError, match="ENOTDIR"):
        save(tmp_path / "file" / "checkpoints", 1, {}, {})
