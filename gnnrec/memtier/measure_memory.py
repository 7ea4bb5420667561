"""Figures of memory that processors load from and store to: dram, numa, pmem, devdax."""

from __future__ import annotations

import contextlib
import re
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch

from gnnrec.errors import GnnrecError
from gnnrec.memtier import conditions, kernels
from gnnrec.memtier.placement import Arena
from gnnrec.memtier.stopwatch import FOLDER, RUNS, Figure, Measured, Stopwatch
from gnnrec.memtier.tiers import Tier
from gnnrec.ops._numba import num_threads
from gnnrec.units import in_bytes

PATTERNS = 6  # figures at the beginning, one each
USUAL = 256  # bytes of a row
ROWS = (64, 128, 256, 512, 1024)  # bytes: 16 to 256 numbers of float32, or 32 to 512 of bfloat16

_MOVED = 256 << 20  # bytes in a run: some ten milliseconds
_LINE = 64  # bytes
_STEPS = 100_000  # loads of a run of the pointer chase
_SHARE = 4  # the buffer takes at most the free bytes divided by this
CHASED = 8  # times the cache: what the pointer chase goes through
_SLACK = 32  # times the cache: of rows at random over four times the cache, a quarter would be found in it


def measure(tier: Tier, watch: Stopwatch) -> Measured:
    """Latency by a pointer chase, then sequential and random access with several numbers of threads.

    The buffer is at least four times the last-level cache, 32 times where there is room; the threads that measure
    write it before anything is timed.

    Raises:
        GnnrecError: too little room, or the system gives no memory on the tier.
    """
    cache, known = conditions.last_level_cache()
    size = buffer_size(tier, cache)
    with opened(tier) as arena:
        placed = arena.allocate("calibration", (size,), torch.uint8)
        memory = placed.tensor.numpy()
        kernels.fill(memory.view(np.uint32), np.uint32(1))
        huge = huge_share(memory)
        latency = statistics.median(latencies_ns(memory[: CHASED * cache].view(np.int64)))
        kernels.fill(memory.view(np.uint32), np.uint32(1))  # places are no numbers
        rates, missing = watch.rates(_figures(memory, cache), least=PATTERNS)
        notes = [f"buffer {in_bytes(size)}, on the tier {placed.share()}, huge pages {huge}"]
    notes.append(f"last-level cache {in_bytes(cache)} ({known})")
    triad = [rate for rate in rates if rate.pattern == "triad"]
    notes += [f"STREAM triad {rate.gb_per_s:.1f} GB/s (threads: {rate.threads})" for rate in triad]
    rates = [rate for rate in rates if rate.pattern != "triad"]
    return Measured(tuple(rates), latency, tuple(filter(None, [*notes, missing])))


@contextlib.contextmanager
def opened(tier: Tier, *, huge: bool = True) -> Iterator[Arena]:
    """The tier's memory to measure in; of a folder one within it, which goes afterwards.

    Args:
        huge: ask for huge pages where that is possible.

    Raises:
        GnnrecError: the system gives no memory on the tier.
    """
    if tier.kind == "pmem":
        tier = replace(tier, where=str(Path(tier.where, FOLDER)))
    with Arena(tier, huge=huge and tier.kind in ("dram", "numa")) as arena, contextlib.ExitStack() as stack:
        if tier.kind == "pmem":
            stack.callback(shutil.rmtree, tier.where, ignore_errors=True)  # with the lock, while it is still ours
        yield arena


def buffer_size(tier: Tier, cache: int) -> int:
    """Bytes, a multiple of 1 MiB: at least four times the cache, 32 times where there is room.

    Raises:
        GnnrecError: too little room.
    """
    least, wanted = 4 * cache, max(_SLACK * cache, 4 * _MOVED)
    room = wanted if tier.free is None else tier.free // _SHARE
    if room < least:
        found = (
            f"has {in_bytes(tier.free or 0)} free, and a buffer of {in_bytes(least)} must take no more than a quarter"
        )
        raise GnnrecError(found, where=tier.name, remedy="End what else takes its memory")
    return min(room, wanted) // (1 << 20) * (1 << 20)


def thread_counts(cores: int | None = None) -> list[int]:
    """All cores that numba may use, or so many of them, then powers of two down to 1."""
    most = int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    most = most if cores is None else min(most, cores)
    return sorted({1 << power for power in range(most.bit_length())} | {most}, reverse=True)


def _figures(memory: Any, cache: int) -> Iterator[Figure]:
    """What planning needs most comes first: the time may not suffice for all."""
    most, *fewer = every = thread_counts()
    lines = memory.view(np.float32).reshape(-1, kernels.WIDE)
    yield from _sequential(lines, [most])
    yield from _gathers(memory, USUAL, 0, [most])
    yield from _scatters(memory, USUAL, [most])
    yield from _sequential(lines, fewer)
    for row_bytes in ROWS:
        yield from _gathers(memory, row_bytes, 0, fewer if row_bytes == USUAL else every)
    for row_bytes in ROWS:
        # The caches serve the popular rows of a graph: what share of them depends on the graph, how fast is seen here.
        for working_set in (cache // 16, cache // 4, cache, 4 * cache):
            yield from _gathers(memory[: working_set // 1024 * 1024], row_bytes, working_set, every)
    for row_bytes in ROWS:
        yield from _scatters(memory, row_bytes, fewer if row_bytes == USUAL else every)


def _sequential(memory: Any, counts: Sequence[int]) -> Iterator[Figure]:
    third = len(memory) // 3
    sums = np.empty((kernels.SHARES, kernels.WIDE), np.float32)
    a, b, c = memory[: 3 * third].reshape(3, -1, kernels.LINE)
    half = 3 * third // 2
    runs = {
        "read": (kernels.reader(), (memory, sums), memory.nbytes),
        "write": (kernels.writer(), (memory,), memory.nbytes),
        "mixed": (kernels.copier(), (memory[:half], memory[half : 2 * half]), 2 * memory[:half].nbytes),
        "triad": (kernels.triad(), (a, b, c), 3 * a.nbytes),
    }
    for threads in counts:
        for pattern, (kernel, arrays, moved) in runs.items():
            yield _figure(pattern, kernel, arrays, moved, threads)


def _gathers(memory: Any, row_bytes: int, working_set: int, counts: Sequence[int]) -> Iterator[Figure]:
    rows = memory.view(np.float32).reshape(-1, row_bytes // 4)
    indices = _random_rows(len(rows), row_bytes)
    sums = np.empty((kernels.SHARES, rows.shape[1]), np.float32)
    kernel = kernels.gatherer(rows.shape[1])
    for threads in counts:
        moved = len(indices) * row_bytes
        yield _figure("gather", kernel, (rows, indices, sums), moved, threads, row_bytes, working_set)


def _scatters(memory: Any, row_bytes: int, counts: Sequence[int]) -> Iterator[Figure]:
    rows = memory.view(np.float32).reshape(-1, row_bytes // 4)
    indices = _random_rows(len(rows), row_bytes)
    kernel = kernels.scatterer(rows.shape[1])
    for threads in counts:
        yield _figure("scatter", kernel, (rows, indices), len(indices) * row_bytes, threads, row_bytes)


def _random_rows(rows: int, row_bytes: int) -> Any:
    return np.random.default_rng(row_bytes).integers(0, rows, _MOVED // row_bytes, dtype=np.int32)


def _figure(
    pattern: str,
    kernel: Any,
    arrays: tuple[Any, ...],
    moved: int,
    threads: int,
    row_bytes: int = 0,
    working_set: int = 0,
) -> Figure:
    def run() -> int:
        with num_threads(threads):
            kernel(*arrays)
        return moved

    return Figure(pattern, run, threads, row_bytes, working_set)


def latencies_ns(words: Any) -> list[float]:
    """Nanoseconds of a load that waits for the one before, of five runs; the words hold a cycle after."""
    kernels.make_cycle(words, np.uint64(1))
    # The cycle was written last where it begins: so many loads first that nothing of that is left in the cache.
    cache, _ = conditions.last_level_cache()
    place, found = kernels.chase(words, 0, max(_STEPS, 2 * cache // _LINE)), []
    for _ in range(RUNS):
        start = time.perf_counter()
        place = kernels.chase(words, place, _STEPS)
        found.append(1e9 * (time.perf_counter() - start) / _STEPS)
    return found


def huge_share(memory: Any) -> str:
    """The share of the buffer that lies on huge pages, as the kernel says; they make random access faster."""
    address = memory.ctypes.data
    try:
        text = Path("/proc/self/smaps").read_text()
    except OSError as error:
        return f"unavailable: {error}"
    for start, end, rest in re.findall(r"^([0-9a-f]+)-([0-9a-f]+) (.*(?:\n[A-Z].*)*)", text, re.MULTILINE):
        if int(start, 16) <= address < int(end, 16):
            kib = {name: int(count) for name, count in re.findall(r"^(\w+): +(\d+) kB", rest, re.MULTILINE)}
            return f"{(kib['AnonHugePages'] + kib.get('FilePmdMapped', 0)) / kib['Size']:.0%}"
    return "unavailable: the mapping is not in /proc/self/smaps"
