"""Files of a tier's tensors: transfers, faults, what a killed run leaves, simulated devices."""

from __future__ import annotations

import errno
import json
import mmap
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gnnrec.errors import StorageError
from gnnrec.memtier import files, probes
from gnnrec.memtier.files import BLOCK, MARKER, Throttle, TierFolder, TierMemoryError, aligned, is_tier_folder
from gnnrec.memtier.matrices import mapped
from gnnrec.memtier.placement import _share_outside_page_cache

LOCK = ".gnnrec-tier.lock"


class Crash(Exception):
    pass


def noise(count: int, seed: int = 0) -> Any:
    block = aligned(count)
    block[:] = np.random.default_rng(seed).integers(256, size=count, dtype=np.uint8)
    return block


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[TierFolder]:
    with TierFolder(tmp_path / "tier") as opened:
        yield opened


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_threads_write_and_read_blocks_in_any_order(folder: TierFolder) -> None:
    size, count = 64 * BLOCK, 32
    file = folder.create("embedding", size * count)
    blocks = [noise(size, seed) for seed in range(count)]
    order = np.random.default_rng(1).permutation(count)

    def back(k: int) -> bool:
        block = aligned(size)
        file.read(k * size, block)
        return np.array_equal(block, blocks[k])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda k: file.write(k * size, blocks[k]), order))
        file.sync()
        assert all(pool.map(back, order[::-1]))


def test_any_contiguous_array_is_taken(folder: TierFolder) -> None:
    file = folder.create("x", 4 * BLOCK)
    matrix = noise(4 * BLOCK).view(np.float32).reshape(-1, 64)
    file.write(0, matrix)
    back = aligned(4 * BLOCK).view(np.float32).reshape(-1, 64)
    file.read(0, back)
    assert np.array_equal(back.view(np.uint8), matrix.view(np.uint8))
    file.read(4 * BLOCK, back[:0])


def test_space_is_reserved_and_zero(folder: TierFolder) -> None:
    file = folder.create("x", 100 * BLOCK + 1)
    assert file.size == 101 * BLOCK
    assert file.path.stat().st_size == file.size
    assert file.path.stat().st_blocks * 512 >= file.size
    block = noise(file.size)
    file.read(0, block)
    assert not block.any()


def test_direct_transfers_leave_nothing_in_the_page_cache(folder: TierFolder) -> None:
    file = folder.create("x", 64 * BLOCK)
    if not file.direct:
        pytest.skip(file.buffered)
    block = noise(64 * BLOCK)
    file.write(0, block)
    file.read(0, block)
    mapped = np.frombuffer(mmap.mmap(file.fileno(), file.size), np.uint8)
    assert _share_outside_page_cache(mapped).fraction == 1


@pytest.mark.parametrize("alignment", [0, None], ids=["statx says no", "the kernel does not say"])
def test_without_direct_io_transfers_are_buffered_and_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alignment: int | None
) -> None:
    monkeypatch.setattr(probes, "direct_alignment", lambda descriptor: alignment)
    monkeypatch.setattr(probes, "direct_io", lambda descriptor: errno.EINVAL)
    with TierFolder(tmp_path) as folder:
        file = folder.create("x", 8 * BLOCK)
        assert not file.direct
        assert file.buffered
        block, back = noise(8 * BLOCK), aligned(8 * BLOCK)
        file.write(0, block)
        file.sync()
        file.read(0, back)
        assert np.array_equal(back, block)


def test_the_alignment_is_the_one_that_the_file_system_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "direct_alignment", lambda descriptor: 16 * BLOCK)
    with TierFolder(tmp_path) as folder:
        if folder.access.buffered:
            pytest.skip(folder.access.buffered)
        file = folder.create("x", 1)
        assert file.alignment == file.size == 16 * BLOCK
        with pytest.raises(ValueError, match="length 4096 is no multiple of 65536"):
            file.read(0, aligned(BLOCK))


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="this machine has no /dev/shm")
def test_a_file_system_in_memory_is_not_taken_for_a_disk() -> None:
    with TierFolder(f"/dev/shm/gnnrec-test-{os.getpid()}") as folder:
        file = folder.create("x", BLOCK)
        assert (file.direct, file.buffered) == (False, "tmpfs lies in DRAM")
    (folder.path / LOCK).unlink()
    folder.path.rmdir()


@pytest.mark.parametrize(
    ("offset", "block", "message"),
    [
        (512, lambda: aligned(BLOCK), "offset 512 is no multiple of 4096"),
        (0, lambda: aligned(BLOCK)[:512], "length 512 is no multiple"),
        (0, lambda: aligned(2 * BLOCK)[64 : BLOCK + 64], "address"),
        (0, lambda: aligned(2 * BLOCK)[::2], "not contiguous"),
        (3 * BLOCK, lambda: aligned(2 * BLOCK), "8192 bytes at 12288 of a file of 16384"),
        (-BLOCK, lambda: aligned(BLOCK), "4096 bytes at -4096"),
    ],
)
def test_blocks_that_direct_io_would_not_take(
    folder: TierFolder, offset: int, block: Callable[[], Any], message: str
) -> None:
    file = folder.create("x", 4 * BLOCK)
    for move in (file.read, file.write):
        with pytest.raises(ValueError, match=message):
            move(offset, block())


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.EIO, "dmesg"),
        (errno.ENOSPC, "Free some space"),
        (errno.ESTALE, "mount it again"),
        (errno.ENODEV, "device is gone"),
        (errno.EINVAL, "refuses"),
    ],
)
def test_a_failing_device_is_named_with_offset_error_and_remedy(
    folder: TierFolder, monkeypatch: pytest.MonkeyPatch, code: int, remedy: str
) -> None:
    def fail(*arguments: Any) -> int:
        raise OSError(code, os.strerror(code))

    file = folder.create("x", 4 * BLOCK)
    for name in ("preadv", "pwritev", "fdatasync"):
        monkeypatch.setattr(os, name, fail)
    for offset, move in (
        (BLOCK, lambda: file.read(BLOCK, aligned(BLOCK))),
        (2 * BLOCK, lambda: file.write(2 * BLOCK, aligned(BLOCK))),
        (0, file.sync),
    ):
        with pytest.raises(StorageError) as caught:
            move()
        assert all(
            part in str(caught.value) for part in (str(file.path), f"at byte {offset}", errno.errorcode[code], remedy)
        )


def test_transfers_that_are_cut_short_go_on(folder: TierFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def cut(real: Callable[..., int]) -> Callable[..., int]:
        def move(descriptor: int, views: list[memoryview], offset: int) -> int:
            calls.append(offset)
            return min(real(descriptor, [views[0][: 2 * BLOCK]], offset), BLOCK + 100)

        return move

    monkeypatch.setattr(os, "preadv", cut(os.preadv))
    monkeypatch.setattr(os, "pwritev", cut(os.pwritev))
    file = folder.create("x", 8 * BLOCK)
    block, back = noise(8 * BLOCK), aligned(8 * BLOCK)
    file.write(0, block)
    file.read(0, back)
    assert np.array_equal(back, block)
    assert calls == 2 * [k * BLOCK for k in range(8)]


def test_a_file_that_somebody_cuts(folder: TierFolder) -> None:
    file = folder.create("x", 4 * BLOCK)
    os.truncate(file.path, 2 * BLOCK)
    with pytest.raises(StorageError, match=r"read at byte 8192: 0 of 8192 bytes were moved.*let nothing else touch"):
        file.read(0, aligned(4 * BLOCK))


def test_a_mapped_file_that_somebody_cuts(folder: TierFolder) -> None:
    file = folder.create("x", 4 * BLOCK)
    mapped(file, 4, BLOCK // 4)[3] = 1.0
    os.truncate(file.path, 2 * BLOCK)
    with pytest.raises(StorageError, match=r"x: has 8.00 KiB where it was made with 16.00 KiB\. The file was cut"):
        mapped(file, 4, BLOCK // 4)


CUT = """
import os
from gnnrec import process
process.prepare()
from gnnrec.memtier.files import TierFolder
from gnnrec.memtier.matrices import mapped
with TierFolder({folder!r}) as folder:
    file = folder.create("x", 8192)
    x = mapped(file, 2, 1024)
    os.truncate(file.path, 4096)
    print(float(x[1].sum()))
"""


def test_a_file_that_is_cut_while_it_is_mapped_ends_the_process_with_words(tmp_path: Path) -> None:
    code = CUT.format(folder=str(tmp_path / "tier"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGBUS
    assert "Bus error" in done.stderr
    assert 'File "<string>", line 11' in done.stderr


def test_a_file_that_somebody_removes_is_still_there_for_the_run(tmp_path: Path) -> None:
    with TierFolder(tmp_path) as folder:
        file = folder.create("x", BLOCK)
        file.path.unlink()
        block, back = noise(BLOCK), aligned(BLOCK)
        file.write(0, block)
        file.read(0, back)
        assert np.array_equal(back, block)
    assert kept(tmp_path) == [LOCK]


def test_a_closed_file(folder: TierFolder) -> None:
    file = folder.create("x", BLOCK)
    file.close()
    file.close()
    with pytest.raises(StorageError, match="EBADF"):
        file.read(0, aligned(BLOCK))


def test_more_than_is_free(folder: TierFolder) -> None:
    space = os.statvfs(folder.path)
    size = space.f_bavail * space.f_frsize + (1 << 40)
    with pytest.raises(StorageError, match=r"x: .* cannot be reserved, .* are free: .*ENOSPC.* Free some space there"):
        folder.create("x", size)
    assert not (folder.path / "x").exists()
    folder.create("x", BLOCK)


def test_a_limit_on_the_size_of_files(folder: TierFolder) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(StorageError, match=r"2.00 MiB cannot be reserved.*EFBIG.*ulimit -f"):
            folder.create("x", 2 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (folder.path / "x").exists()


def test_a_file_system_that_cannot_reserve(folder: TierFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(files, "_fallocate", refuse)
    with pytest.raises(StorageError, match="cannot reserve space for a file"):
        folder.create("x", BLOCK)
    assert not (folder.path / "x").exists()


def test_a_small_file_system_is_full() -> None:
    """A tmpfs of 1 MiB in a mount namespace of its own; the free space is not asked for, so that the kernel refuses."""
    script = """if True:
        import os, gnnrec.memtier.files as files
        from gnnrec.errors import StorageError
        huge, real = 1 << 40, os.fstatvfs
        os.fstatvfs = lambda fd: os.statvfs_result((4096, 4096, huge, huge, huge, *real(fd)[5:]))
        with files.TierFolder(".") as folder:
            folder.create("fits", 512 << 10)
            try:
                folder.create("full", 900 << 10)
            except StorageError as error:
                print(error)
        print(os.listdir("."))
    """
    command = 'mount -t tmpfs -o size=1m none /mnt && cd /mnt && exec "$@"'
    run = ["unshare", "--mount", "--map-root-user", "sh", "-c", command, "sh", sys.executable, "-c", script]
    if subprocess.run([*run[:-1], "pass"], capture_output=True).returncode:
        pytest.skip("this user may not make a mount namespace")
    done = subprocess.run(run, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()})
    message, left = done.stdout.splitlines()
    assert "900.00 KiB cannot be reserved" in message
    assert "ENOSPC" in message
    assert left == f"['{LOCK}']"


def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(StorageError, match=r"EACCES.*permission"), TierFolder(tmp_path / "tier"):
            pass
    finally:
        if root:
            os.seteuid(0)


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "tier").write_text("")
    with pytest.raises(StorageError, match=r"tier: .*EEXIST"), TierFolder(tmp_path / "tier"):
        pass


def test_a_run_leaves_nothing_but_the_lock_and_what_others_keep_there(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for _ in range(2):
        with TierFolder(tmp_path, run="runs/1") as folder:
            folder.create("a", BLOCK)
            folder.create("b", BLOCK)
            marker = json.loads((tmp_path / MARKER).read_text())
            assert marker["files"] == ["a", "b"]
            assert (marker["state"], marker["pid"], marker["run"]) == ("dirty", os.getpid(), "runs/1")
            assert is_tier_folder(tmp_path)
            assert folder.provenance == "measured"
        assert kept(tmp_path) == [LOCK, "notes.txt"]
        assert not is_tier_folder(tmp_path)


def test_after_an_error_nothing_is_left_either(tmp_path: Path) -> None:
    def run() -> None:
        with TierFolder(tmp_path) as folder:
            folder.create("a", BLOCK)
            raise Crash

    with pytest.raises(Crash):
        run()
    assert kept(tmp_path) == [LOCK]


@pytest.mark.parametrize("crash", [False, True])
def test_a_disk_that_fails_on_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: bool) -> None:
    def fail(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def run() -> None:
        with TierFolder(tmp_path) as folder:
            folder.create("a", BLOCK)
            monkeypatch.setattr(Path, "unlink", fail)
            if crash:
                raise Crash

    with pytest.raises(Crash if crash else StorageError):  # the failure on the way out does not hide the first
        run()
    assert is_tier_folder(tmp_path)  # the marker still names what could not be removed


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with (
        TierFolder(tmp_path),
        pytest.raises(StorageError, match="another run keeps its tensors in this folder"),
        TierFolder(tmp_path),
    ):
        pass


def test_names_that_are_taken_or_no_names(folder: TierFolder) -> None:
    foreign = folder.path / "embedding"
    foreign.write_text("precious")
    with pytest.raises(StorageError, match=r"embedding: is in the way.*only files that gnnrec made"):
        folder.create("embedding", BLOCK)
    assert foreign.read_text() == "precious"
    folder.create("a", BLOCK)
    with pytest.raises(StorageError, match="in the way"):
        folder.create("a", BLOCK)
    for name in ("", "..", "a/b", "/a", MARKER, LOCK):
        with pytest.raises(ValueError, match="cannot be the name"):
            folder.create(name, BLOCK)


def test_the_marker_names_a_file_before_it_is_made(folder: TierFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = os.open

    def watch(path: Any, *arguments: Any, **options: Any) -> int:
        if Path(path).name == "a":
            seen.append(json.loads((folder.path / MARKER).read_text())["files"])
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", watch)
    folder.create("a", BLOCK)
    assert seen == [["a"]]


def test_the_next_run_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    script = """if True:
        import os, signal, sys
        from gnnrec.memtier.files import TierFolder
        with TierFolder(sys.argv[1]) as folder:
            folder.create("embedding", 1 << 20)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    (tmp_path / "notes.txt").write_text("mine")
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", script, tmp_path], env=environment)
    assert done.returncode == -signal.SIGKILL
    assert is_tier_folder(tmp_path)
    assert kept(tmp_path) == [LOCK, "embedding", MARKER, "notes.txt"]
    (tmp_path / f".tmp-gnnrec-tier-{os.getpid()}.json").write_text("{")  # killed while it wrote the marker
    with TierFolder(tmp_path) as folder:
        assert kept(tmp_path) == [LOCK, MARKER, "notes.txt"]
        folder.create("embedding", BLOCK)
    assert kept(tmp_path) == [LOCK, "notes.txt"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"format": "other", "version": 1, "files": []}',
        '{"format": "gnnrec-tier", "version": 2, "files": ["precious"]}',
        '{"format": "gnnrec-tier", "version": 1, "files": ["../precious"]}',
        '{"format": "gnnrec-tier", "version": 1, "files": ["a", ".."]}',
        '{"format": "gnnrec-tier", "version": 1, "files": "precious"}',
    ],
)
def test_a_marker_that_is_not_ours_removes_nothing(tmp_path: Path, content: str) -> None:
    tier = tmp_path / "tier"
    tier.mkdir()
    for path in (tmp_path / "precious", tier / "precious", tier / "a"):
        path.write_text("mine")
    (tier / MARKER).write_text(content)
    with pytest.raises(StorageError, match=r"gnnrec-tier.json: is no marker.*take another one"), TierFolder(tier):
        pass
    assert kept(tier) == [LOCK, "a", MARKER, "precious"]
    assert kept(tmp_path) == ["precious", "tier"]


def test_aligned_memory_is_zero_starts_on_a_page_and_goes_with_its_last_view() -> None:
    def mapped() -> int:
        return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE

    before = mapped()
    memory = aligned(256 << 20)
    assert memory.ctypes.data % mmap.PAGESIZE == 0
    assert not memory[:BLOCK].any()
    memory[:5] = 7
    view = memory[3:5]
    del memory
    assert mapped() - before >= 256 << 20
    assert view.tolist() == [7, 7]
    del view
    assert mapped() - before < 128 << 20
    assert len(aligned(0)) == 0


def test_more_memory_than_there_are_addresses() -> None:
    with pytest.raises(TierMemoryError, match=r"are refused: .*ENOMEM.*memory.limit"):
        aligned(1 << 60)


def busy(directions: list[Any], block: int, seconds: float) -> float:
    """Of threads, one a direction, that do nothing but wait for a device of 1 GB/s read and 0.5 GB/s written: the time
    that what they have moved should take, as a part of the time that it took."""
    throttle, start = Throttle(1, 0.5), time.perf_counter()

    def keep_going(direction: Any) -> float:
        due = 0.0
        while time.perf_counter() < start + seconds:
            throttle.wait(throttle.reserve(direction, block))
            due += block * {"read": 1e-9, "write": 2e-9}[direction]
        return due

    with ThreadPoolExecutor(len(directions)) as pool:
        due = sum(pool.map(keep_going, directions))
    return due / (time.perf_counter() - start)


@pytest.mark.parametrize(
    "directions", [["write"], 4 * ["read"], ["read", "write"]], ids=["one thread", "four threads", "both ways"]
)
def test_a_simulated_device_is_as_fast_as_it_is_told(directions: list[Any]) -> None:
    # A busy machine wakes threads late, so the best of some short tries; no try may be too fast.
    tries: list[float] = []
    while len(tries) < 20 and not any(got > 0.95 for got in tries):
        tries.append(busy(directions, 1 << 20, seconds=0.25))
    assert 0.95 < max(tries) < 1.01


def test_latency_passes_for_each_transfer_and_others_are_served_meanwhile() -> None:
    throttle = Throttle(1, 1, latency_us=20_000)
    start = time.perf_counter()
    due = [throttle.reserve("read", 10**6) - start for _ in range(10)]
    assert due == pytest.approx([0.020 + 0.001 * k for k in range(1, 11)], abs=0.005)
    throttle.wait(start + due[-1])
    assert time.perf_counter() - start >= 0.030


def test_files_of_a_simulated_device(tmp_path: Path) -> None:
    with TierFolder(tmp_path, throttle=Throttle(0.1, 0.05)) as folder:
        assert folder.provenance == "simulated"
        several = [folder.create(name, 1 << 20) for name in "ab"]
        start = time.perf_counter()
        threads = [threading.Thread(target=file.write, args=(0, noise(1 << 20))) for file in several]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.perf_counter() - start >= 2 * (1 << 20) / 0.05e9  # they share the device
        several[0].read(0, aligned(1 << 20))
        assert time.perf_counter() - start >= (2 / 0.05e9 + 1 / 0.1e9) * (1 << 20)
