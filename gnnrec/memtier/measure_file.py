"""Figures of files on a block device or a network file system: past the page cache, of data that was written first."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import mmap
import os
import shutil
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gnnrec.errors import GnnrecError, StorageError
from gnnrec.memtier import kernels, sysfs
from gnnrec.memtier.files import Throttle, TierFile, TierFolder, aligned
from gnnrec.memtier.stopwatch import FOLDER, RUNS, Figure, Measured, Stopwatch
from gnnrec.memtier.tiers import Rate, Tier
from gnnrec.storage import storage_errors
from gnnrec.units import in_bytes

LARGEST = 8 << 20  # bytes of the blocks that are read and written in order
BLOCKS = (4 << 10, 128 << 10, 512 << 10, 2 << 20)  # bytes, at random
THREADS = (8, 4, 2, 1)
SEQUENTIAL = {"read": "r", "write": "w", "mixed": "rw"}

_LEAST, _WANTED = 1 << 30, 2 << 30  # bytes of the file
_WRITE_BACK = 2  # times as many where the device says that it has a cache of its own
_SHARE = 4  # the file takes at most the free bytes divided by this
_FILLING = 0.3  # of the time at most goes into writing the file
_PATIENCE = 60.0  # seconds more for the least file that caches do not hold: without it there is no rate, and no plan
_RUN_SECONDS = 0.15
_ROW, _GATHERED = 256, 256 << 20  # bytes of the rows that kernels gather beside transfers, and of all of them
_BESIDE = 4  # threads of these transfers
_NO_TOLL = 0.01  # of the time: less cannot be told from noise
_CACHED = 0.01  # of the file's pages may lie in the page cache; others may read the same files
_PAGE = 4 << 10  # bytes

_libc = ctypes.CDLL(None, use_errno=True)


def measure(tier: Tier, watch: Stopwatch) -> Measured:
    """Sequential blocks, what their transfer costs kernels beside it, then blocks at random, with several numbers of
    threads; writes are timed through fsync.

    The file is reserved, filled with random numbers, and removed whatever happens. A run moves no more than a quarter
    of it and goes on where the last one stopped, so that what is read was not read just before.

    Raises:
        GnnrecError: too little room, a device that fails, or a page cache that cannot be emptied.
    """
    with opened(tier, watch.left) as (blocks, note):
        rates, missing = watch.rates(_in_order(blocks), least=len(SEQUENTIAL))
        watch.begins(f"what transfers cost kernels, {_BESIDE} threads")
        rates.append(_toll(blocks, RUNS if watch.left > 0 else 1))
        shuffled, late = watch.rates(_shuffled(blocks))
        rates += shuffled
    notes = [note, f"read, write and mixed in blocks of {in_bytes(LARGEST)}"]
    pages = [rate for rate in rates if (rate.pattern, rate.row_bytes, rate.threads) == ("gather", BLOCKS[0], 1)]
    latency = BLOCKS[0] / pages[0].gb_per_s if pages else None
    return Measured(tuple(rates), latency, tuple(filter(None, [*notes, missing or late])))


@contextlib.contextmanager
def opened(
    tier: Tier, seconds: float, *, run: str = "gnnrec calibrate", throttle: Throttle | None = None
) -> Iterator[tuple[Blocks, str]]:
    """Blocks of a file on the tier, written, and what is to be known of it; the file goes afterwards.

    Args:
        seconds: there are for all of it; a share of them goes into writing the file.
        run: whom the file belongs to.
        throttle: makes it a simulated device.

    Raises:
        GnnrecError: as `measure`.
    """
    with storage_errors(tier.where):
        write_cache = _write_cache(tier.where)
        size = _file_size(tier, write_cache)
    folder = Path(tier.where, FOLDER)
    with TierFolder(folder, run=run, throttle=throttle) as entered, contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)  # with the lock, while it is still ours
        file = entered.create("blocks", size)
        blocks = Blocks(file, _fill(file, time.perf_counter() + _FILLING * seconds), throttle)
        how = file.buffered or "O_DIRECT"
        yield blocks, f"file of {in_bytes(blocks.size)}, {how}, write cache of the device: {write_cache}"


def _file_size(tier: Tier, write_cache: str) -> int:
    space = os.statvfs(tier.where)
    free = space.f_bavail * space.f_frsize
    wanted = _WANTED * (_WRITE_BACK if write_cache == "write back" else 1)
    size = min(wanted, free // _SHARE) // LARGEST * LARGEST
    if size < _LEAST:
        found = f"has {in_bytes(free)} free, and a file of {in_bytes(_LEAST)} must take no more than a quarter"
        raise GnnrecError(found, where=tier.where, remedy="Free some space there, or take another folder")
    return size


def _write_cache(folder: str, root: Path = Path("/")) -> str:
    """What the block device says of its write cache: "write back", "write through", or why it says nothing."""
    number = os.stat(folder).st_dev
    device = root / f"sys/dev/block/{os.major(number)}:{os.minor(number)}"
    whole = device.resolve().parent if (device / "partition").exists() else device
    return sysfs.told(whole / "queue/write_cache")


def _fill(file: TierFile, until: float) -> int:
    """Write the file, all of it or what the time allows, but as much as must be; returns how many bytes.
    What was never written is not read from the device: the file system knows that it holds zeros.

    Raises:
        GnnrecError: some time more does not suffice for a file that is larger than caches.
    """
    buffer = _random(LARGEST, seed=0)
    for written in range(0, file.size, LARGEST):
        late = time.perf_counter() - until
        if late > 0 and written >= _LEAST:
            file.sync()
            return written
        if late > _PATIENCE:
            found = f"{in_bytes(written)} were written in the time there was, {in_bytes(_LEAST)} are needed"
            raise GnnrecError(found, where=str(file.path.parent), remedy="Give it more seconds, on an idle machine")
        _stamp(buffer, written)
        file.write(written, buffer)
    file.sync()
    return file.size


class Blocks:
    """Reads and writes blocks of the file's first `size` bytes with several threads.

    Args:
        throttle: of a simulated device.
    """

    def __init__(self, file: TierFile, size: int, throttle: Throttle | None = None) -> None:
        self.file, self.size, self._throttle = file, size, throttle
        self._at = 0  # where the last run in order stopped
        self._stamps = file.size  # those below are in the file
        self._random = np.random.default_rng(0)
        self._buffers = [_random(LARGEST, seed) for seed in range(max(THREADS))]

    def run(self, kinds: str, block: int, count: int, threads: int, *, shuffled: bool) -> int:
        """Move `count` blocks, of `kinds` ("r", "w" or "rw") in turn; returns the bytes.

        Args:
            shuffled: at random over the file; else in order, from where the last run stopped.
        """
        total = self.size // block
        places = self._random.integers(0, total, count) if shuffled else (self._at // block + np.arange(count)) % total
        self._at = (self._at + count * block) % self.size
        jobs = zip(itertools.cycle(kinds), (places * block).tolist())
        lock, descriptor = threading.Lock(), self.file.fileno()

        def work(buffer: npt.NDArray[np.uint8]) -> None:
            # The calls themselves: what TierFile checks and counts would be a third of the time of 4 KiB.
            moves, views, throttle = {"r": os.preadv, "w": os.pwritev}, [buffer.data], self._throttle
            while True:
                with lock:
                    kind, offset = next(jobs, ("", 0))
                if not kind:
                    return
                due = throttle.reserve("read" if kind == "r" else "write", block) if throttle else 0.0
                moved = moves[kind](descriptor, views, offset)
                if throttle:
                    throttle.wait(due)
                if moved < block:
                    found = f"{moved} of {block} bytes were moved at byte {offset}"
                    raise StorageError(found, where=str(self.file.path), remedy="Look into the system's log (dmesg)")

        with storage_errors(self.file.path), ThreadPoolExecutor(threads) as pool:
            for worker in [pool.submit(work, buffer[:block]) for buffer in self._buffers[:threads]]:
                worker.result()
        if "w" in kinds:
            self.file.sync()
        return count * block

    def check(self, count: int = 8) -> None:
        """Write blocks of new numbers to random places and read them back past the page cache.

        Raises:
            StorageError: other bytes come back.
        """
        self.prepare()
        written, found = self._buffers[0], aligned(LARGEST)
        with storage_errors(self.file.path):
            for offset in (self._random.integers(0, self.size // LARGEST, count) * LARGEST).tolist():
                os.pwritev(self.file.fileno(), [written.data], offset)
                self.file.sync()
                os.preadv(self.file.fileno(), [found.data], offset)
                if not np.array_equal(written, found):
                    wrong = f"{int((written != found).sum())} of {LARGEST} bytes at byte {offset} come back wrong"
                    raise StorageError(wrong, where=str(self.file.path), remedy="Look into the system's log (dmesg)")

    def prepare(self) -> None:
        """Before a run: change what will be written, empty the page cache of the file, and look whether it is empty.

        Raises:
            GnnrecError: pages stay, so that a read would come from DRAM.
        """
        for buffer in self._buffers:  # not before each write: that takes a tenth of the time of a fast device
            self._stamps += LARGEST
            _stamp(buffer, self._stamps)
        if self.file.direct:
            return
        self.file.sync()
        os.posix_fadvise(self.file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        share = cached_share(self.file.fileno(), self.file.size)
        if share > _CACHED:
            found = (
                f"cached: {share:.0%} of the file stay in the page cache, and a read of them is no read of the device"
            )
            raise GnnrecError(found, where=str(self.file.path), remedy="Take a folder on a file system with O_DIRECT")


def cached_share(descriptor: int, size: int) -> float:
    """The share of an open file's pages that lie in the page cache. Source: mincore(2)."""
    resident = np.empty(-(-size // mmap.PAGESIZE), np.uint8)
    with mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED) as mapping:
        memory = np.frombuffer(mapping, np.uint8)
        address = ctypes.c_void_p(memory.ctypes.data)
        failed = _libc.mincore(address, ctypes.c_size_t(size), ctypes.c_void_p(resident.ctypes.data))
        del memory  # the mapping cannot be closed while an array refers to it
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return float((resident & 1).mean())


def _in_order(blocks: Blocks) -> Iterator[Figure]:
    """What planning needs most comes first: the time may not suffice for all."""
    for threads in THREADS:
        for pattern, kinds in SEQUENTIAL.items():
            yield figure(blocks, pattern, kinds, LARGEST, threads, shuffled=False)


def _toll(blocks: Blocks, runs: int) -> Rate:
    """Of blocks that are read and written, past the caches, while all processors gather rows from DRAM: transfers take
    turns on their cores, and a part of the memory's bandwidth."""
    rows = np.ones((_GATHERED // _ROW, _ROW // 4), np.float32)
    indices = np.random.default_rng(0).integers(0, len(rows), len(rows), dtype=np.int32)
    sums = np.empty((kernels.SHARES, rows.shape[1]), np.float32)
    kernel = kernels.gatherer(rows.shape[1])

    def gathers(seconds: float) -> tuple[int, float]:
        """How many begin in this time, and how long they take."""
        start, count = time.perf_counter(), 0
        while not count or time.perf_counter() - start < seconds:
            kernel(rows, indices, sums)
            count += 1
        return count, time.perf_counter() - start

    gathers(0.0)  # compiles
    found = []
    for _ in range(runs):
        alone, taken = gathers(_RUN_SECONDS)
        blocks.prepare()
        ended, moved = threading.Event(), 0

        def transfer(ended: threading.Event = ended) -> int:
            moved = 0
            while not (moved and ended.is_set()):
                moved += blocks.run("rw", LARGEST, 4 * _BESIDE, _BESIDE, shuffled=False)
            return moved

        with ThreadPoolExecutor(1) as pool:
            start, mover = time.perf_counter(), pool.submit(transfer)
            try:
                count, beside = gathers(2 * _RUN_SECONDS)
            finally:
                ended.set()
            moved = mover.result()
        share = beside / (time.perf_counter() - start)  # of the transfers that went on beside
        lost = max(beside - count * taken / alone, _NO_TOLL * beside)
        found.append(share * moved / lost / 1e9)
    median = statistics.median(found)
    return Rate("toll", median, threads=_BESIDE, spread=(max(found) - min(found)) / median, count=runs)


def _shuffled(blocks: Blocks) -> Iterator[Figure]:
    for pattern, kinds in {"gather": "r", "scatter": "w"}.items():
        for block in BLOCKS:
            for threads in THREADS:
                yield figure(blocks, pattern, kinds, block, threads, shuffled=True)


def figure(blocks: Blocks, pattern: str, kinds: str, block: int, threads: int, *, shuffled: bool) -> Figure:
    """Of as many blocks in a run as take _RUN_SECONDS; arguments as `Blocks.run` has them."""

    @functools.cache
    def count() -> int:
        """Blocks of a run, by the time that a few take."""
        few, most = 2 * threads, blocks.size // 4 // block
        start = time.perf_counter()
        blocks.run(kinds, block, few, threads, shuffled=shuffled)
        wanted = few * _RUN_SECONDS / (time.perf_counter() - start)
        return int(max(few, min(wanted, most)))

    def run() -> int:
        return blocks.run(kinds, block, count(), threads, shuffled=shuffled)

    return Figure(pattern, run, threads, block if shuffled else 0, before=blocks.prepare)


def _random(size: int, seed: int) -> npt.NDArray[np.uint8]:
    buffer = aligned(size)
    buffer[:] = np.frombuffer(np.random.default_rng(seed).bytes(size), np.uint8)
    return buffer


def _stamp(buffer: npt.NDArray[np.uint8], offset: int) -> None:
    """Make each page differ from all others: some devices store equal ones once."""
    first = buffer.view(np.int64)[:: _PAGE // 8]
    first[:] = offset + np.arange(len(first))
