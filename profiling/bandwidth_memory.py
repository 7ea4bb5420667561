"""The bandwidth matrix of memory that processors load from and store to: rows in order, at random and strided."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from bandwidth_matrix import LEAST, Cell, cells, thinned
from bandwidth_nodes import Processors, pinned
from bandwidth_settings import LARGEST_PIECE, OPS, Settings

from gnnrec.errors import GnnrecError
from gnnrec.memtier import kernels
from gnnrec.memtier.files import aligned
from gnnrec.memtier.measure_memory import thread_counts
from gnnrec.memtier.stopwatch import RUNS, Figure, Stopwatch
from gnnrec.memtier.tiers import Rate
from gnnrec.ops._numba import num_threads

STRIDE = 4  # rows from one to the next
_COVERED = 256 << 20  # bytes, at least: rows of a list, which runs go through in turn
_CACHES = 4  # times the last-level cache that they cover, so that none is found in it again
_PROBED = 4096  # pieces of the runs that are checked and that tell how many a run takes
_OVERHEAD = 0.06  # seconds that a cell takes beside its runs
_CLOSE = 1e-4  # relative error of sums of float32

Bytes = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int32]


def plan(settings: Settings, groups: Sequence[Processors], distances: Sequence[str], seconds: float) -> list[Cell]:
    """The cells that are measured in the time there is, by importance; and how many there are in all."""
    return thinned(every_cell(settings, groups, distances), seconds, cell_seconds(settings))


def every_cell(settings: Settings, groups: Sequence[Processors], distances: Sequence[str]) -> list[Cell]:
    """The whole matrix of a tier."""
    places = []
    for group, distance in zip(groups, distances, strict=True):
        usual = thread_counts(len(group.cpus))
        counts = sorted({min(count, usual[0]) for count in settings.threads}) or usual
        places.append((group.node, distance, counts))
    return cells(settings.ops, settings.patterns, settings.row_bytes, places)


def cell_seconds(settings: Settings) -> float:
    """What a cell is planned to take: the runs that count, a first one, and one to see how long they are."""
    return (RUNS + 2) * settings.run_seconds + _OVERHEAD


def compile_kernels(chosen: Sequence[Cell]) -> None:
    """Compile what the cells call, on little memory."""
    x, out = aligned(1 << 17, huge=False).reshape(2, -1)
    for op, size in dict.fromkeys((cell.op, cell.access_bytes) for cell in chosen):
        Mover(x, out, op, size, np.zeros(OPS[op][0] or 1, np.int32)).move(1)


class Buffers:
    """Two buffers on one tier: rows are read from `x`, which holds kernels.fill's numbers, and written to `out`."""

    def __init__(self, x: Bytes, out: Bytes, cache_bytes: int) -> None:
        self.x, self.out = x, out
        covered = max(_COVERED, _CACHES * cache_bytes)
        self.indices = cache(lambda pattern, size: pieces(pattern, size, len(x), covered))


def measure(
    buffers: Buffers, chosen: Sequence[Cell], groups: Sequence[Processors], settings: Settings, watch: Stopwatch
) -> tuple[list[tuple[Cell, Rate]], str]:
    """Measure the cells in their order until the time is up.

    Returns:
        What was measured, and what is missing, "" where nothing is.

    Raises:
        GnnrecError: other numbers were read or written than there should be.
    """
    rates, missing = watch.rates(_figures(buffers, chosen, groups, settings.run_seconds), least=LEAST)
    return list(zip(chosen, rates, strict=False)), missing


def _figures(
    buffers: Buffers, chosen: Sequence[Cell], groups: Sequence[Processors], run_seconds: float
) -> Iterator[Figure]:
    cpus = {group.node: group.cpus for group in groups}
    for cell in chosen:
        indices = buffers.indices(cell.pattern, cell.access_bytes)
        mover = Mover(buffers.x, buffers.out, cell.op, cell.access_bytes, indices)
        with pinned(cpus[cell.cpu_node]), num_threads(cell.threads):
            mover.check()
            mover.adjust(run_seconds)
            pattern = f"{cell.op}, {cell.pattern}, from {cell.cpu_node}"
            yield Figure(pattern, mover.run, cell.threads, cell.access_bytes)
            mover.check_last()


class Mover:
    """Moves rows between two buffers, in the order of a list, from which every run takes the next ones.

    Args:
        x, out: bytes, as many of each, on pages: writes past the caches need whole lines.
        op: of OPS.
        size: bytes of a row.
        indices: pieces of rows, none twice: a row is one piece, or several of LARGEST_PIECE bytes.
    """

    def __init__(self, x: Bytes, out: Bytes, op: str, size: int, indices: Indices) -> None:
        self.op, (self.reads, self.writes) = op, OPS[op]
        self.width = min(size, LARGEST_PIECE) // 4
        self.x, self.out = (memory.view(np.float32).reshape(-1, self.width) for memory in (x, out))
        self.indices = indices
        self.steps = len(indices) // max(self.reads, 1)  # in all, each of so many reads and a write
        self.count = min(_PROBED, self.steps)  # of a run
        self._at = 0
        self._last = indices[:0]
        self._sums = np.empty((kernels.SHARES, self.width), np.float32)

    def run(self) -> int:
        """Make a run of `count` steps; returns the bytes of payload."""
        return self.move(self.count)

    def move(self, steps: int) -> int:
        """Make so many steps; returns the bytes of payload."""
        taken = steps * max(self.reads, 1)
        if self._at + taken > len(self.indices):
            self._at = 0
        self._last = self.indices[self._at : self._at + taken]
        self._at += taken
        if self.op == "read":
            kernels.gatherer(self.width)(self.x, self._last, self._sums)
        elif self.reads == 0:
            kernels.scatterer(self.width, self.op == "write_nt")(self.out, self._last)
        else:
            kernels.exchanger(self.width, self.reads)(self.x, self._last, self.out)
        return steps * (self.reads + self.writes) * 4 * self.width

    def adjust(self, seconds: float) -> None:
        """Let a run take about so long, as far as the list goes."""
        start = time.perf_counter()
        self.run()
        wanted = self.count * seconds / (time.perf_counter() - start)
        self.count = int(min(max(wanted, self.count), self.steps))

    def check(self) -> None:
        """Make a short run and compare each number."""
        places = self.indices[: self.count]
        if self.writes:
            self.out[places] = np.nan
        self._at = 0
        self.move(self.count)
        self._at = 0
        if self.reads:
            groups = self.x[self._last].reshape(self.count, self.reads, self.width)
            sums = groups[:, 0].copy()
            for number in range(1, self.reads):
                sums += groups[:, number]  # from left to right, as the kernel does
        else:
            sums = np.broadcast_to(np.arange(self.count, dtype=np.float32)[:, None], (self.count, self.width))
        if self.writes:
            self._compare(np.array_equal(self.out[places], sums), "written")
        else:
            found, expected = self._sums.sum(0, np.float64), sums.sum(0, np.float64)
            self._compare(np.allclose(found, expected, rtol=_CLOSE, atol=0), "read")

    def check_last(self) -> None:
        """Compare what the last run left: some of the rows it wrote, or the sum of all it read, whose mean is known."""
        steps = len(self._last) // max(self.reads, 1)
        some = np.arange(0, steps, max(1, steps // _PROBED))
        if self.op == "read":
            mean = self._sums.sum(dtype=np.float64) / (steps * self.width)
            sampled = self.x[self._last[some]].astype(np.float64)
            error = 6 * sampled.std() / np.sqrt(sampled.size) + _CLOSE
            self._compare(abs(mean - sampled.mean()) <= error, "read")
        elif self.reads == 0:
            self._compare(np.array_equal(self.out[self._last[some], 0], some.astype(np.float32)), "written")
        else:
            sums = self.x[self._last[some * self.reads]].copy()
            for number in range(1, self.reads):
                sums += self.x[self._last[some * self.reads + number]]
            self._compare(np.array_equal(self.out[self._last[some]], sums), "written")

    def _compare(self, equal: bool, done: str) -> None:
        if not equal:
            found = f"{self.op} of {4 * self.width}-byte rows: other numbers were {done} than there should be"
            raise GnnrecError(found, remedy="Test this machine's memory")


def pieces(pattern: str, size: int, buffer: int, covered: int) -> Indices:
    """The order in which rows of a buffer are taken, as indices of their pieces; no row comes twice.

    Args:
        pattern: sequential, strided (each STRIDE rows after the one before), or random: over the whole buffer.
        size: bytes of a row.
        buffer: its bytes.
        covered: bytes of the rows that are taken, at most.

    Returns:
        int32, of pieces of at most LARGEST_PIECE bytes.
    """
    total = buffer // size
    count = min(total, covered // size)
    rows: npt.NDArray[Any] = np.arange(count)
    if pattern == "strided":
        in_a_pass = max(1, total // STRIDE)
        rows = rows[: in_a_pass * STRIDE]
        rows = rows % in_a_pass * STRIDE + rows // in_a_pass
    elif pattern == "random":
        random, apart = np.random.default_rng(size), total // count
        rows = rows * apart + random.integers(0, apart, count)  # each out of a stretch of its own
        random.shuffle(rows)
    parts = max(1, size // LARGEST_PIECE)
    return (rows[:, None] * parts + np.arange(parts)).reshape(-1).astype(np.int32)
