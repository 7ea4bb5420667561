"""Figures of a user's own tier: what it declares, or what its own stores reach with blocks as training moves them.

They are taken anew for every plan, and not kept: nobody knows when code, or what lies behind it, has changed. Whatever
it declares, bytes are written and read back first, as training does it: by several threads, and not flushed between.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np

from gnnrec.errors import StorageError
from gnnrec.memtier.calibrate import FACT
from gnnrec.memtier.custom import CustomStore, CustomTier
from gnnrec.memtier.files import aligned
from gnnrec.memtier.layout import BLOCK_BYTES
from gnnrec.memtier.stopwatch import Figure, Stopwatch
from gnnrec.memtier.tiers import Tier
from gnnrec.units import in_bytes

SECONDS = 5.0
THREADS = (4, 2, 1)  # each divides the first
KINDS = {"read": "r", "write": "w", "mixed": "rw"}

_WANTED = 256 << 20  # bytes of the store: caches of the user's tier are its own affair
_SHARE = 4  # it takes at most the free bytes divided by this
_FEWEST = max(THREADS)  # blocks
_RUN_SECONDS = 0.05
_FILLING = 0.2  # of the time at most goes into writing what is tried, and as much into reading it back


def measured(own: CustomTier, tell: Callable[[str], None]) -> Tier:
    """The tier with its rates.

    Args:
        own: entered.
        tell: is told, in words, that it is measured, where it is.

    Raises:
        ConfigError: a figure that it declares cannot be one.
        StorageError: it fails, has no room for a few blocks, or gives other bytes back than it was given.
    """
    tier = own.tier()
    block = -(-BLOCK_BYTES // tier.granularity) * tier.granularity
    size = _WANTED if tier.free is None else min(_WANTED, tier.free // _SHARE)
    count = size // (_FEWEST * block) * _FEWEST
    if not count:
        found = f"has {in_bytes(tier.free or 0)} free, {in_bytes(_SHARE * _FEWEST * block)} are needed to try it"
        raise StorageError(found, where=own.name, remedy="Free some space there, or leave memory.custom.path out")
    with own.store("calibration", count * block) as store:
        blocks = _Blocks(store, block, count)
        if not tier.rates:
            tell(f"measuring {own.name} for the plan: {SECONDS:.0f} s")
        watch = Stopwatch(time.perf_counter() + SECONDS, lambda figure: None)
        blocks.fill(_FILLING * SECONDS)
        if tier.rates:
            return replace(tier, facts={FACT: "declared by its class"})
        rates, missing = watch.rates(blocks.figures(), least=len(KINDS))
    words = f"{len(rates)} figures, blocks of {in_bytes(block)} in {in_bytes(blocks.count * block)}"
    words = "; ".join(filter(None, [words, missing]))
    return replace(tier, provenance="measured", rates=tuple(rates), facts={FACT: words})


class _Blocks:
    """A store of so many blocks of a size in bytes."""

    def __init__(self, store: CustomStore, size: int, count: int) -> None:
        self.store, self.size, self.count = store, size, count
        self._at = 0  # the next block
        self._in_run = _FEWEST  # blocks
        self._buffers = [aligned(size) for _ in range(_FEWEST)]
        self._random = np.frombuffer(np.random.default_rng(0).bytes(size), np.uint8)

    def fill(self, seconds: float) -> None:
        """Write blocks, no two of which have a byte in common at the same place, and read them back: all there are, or
        what so many seconds allow each way. What was not written does not count any more.

        Raises:
            StorageError: other bytes come back.
        """
        started = time.perf_counter()
        self.count = self._in_rounds(self._write, started + seconds)
        taken = time.perf_counter() - started
        self._in_rounds(self._check, time.perf_counter() + seconds)
        started = time.perf_counter()
        self.store.flush()
        in_run = self.count * _RUN_SECONDS / (taken + time.perf_counter() - started)
        self._in_run = max(1, int(in_run) // _FEWEST) * _FEWEST

    def figures(self) -> Iterator[Figure]:
        """All, those first that no plan can do without."""
        for threads in THREADS:
            for pattern, kinds in KINDS.items():
                yield Figure(pattern, partial(self._run, kinds, threads), threads)

    def _in_rounds(self, work: Callable[[int], None], until: float) -> int:
        """Do this with the number of every block, of several at a time; returns how many there was time for."""
        with ThreadPoolExecutor(_FEWEST) as pool:
            for first in range(0, self.count, _FEWEST):
                if first and time.perf_counter() > until:
                    return first
                list(pool.map(work, range(first, first + _FEWEST)))
        return self.count

    def _write(self, number: int) -> None:
        buffer = self._buffers[number % _FEWEST]
        np.add(self._random, np.uint8(number), out=buffer)  # _WANTED has fewer blocks than a byte has values
        self.store.write(number * self.size, buffer)

    def _check(self, number: int) -> None:
        found = self._buffers[number % _FEWEST]
        found[:] = 0  # what is not read is not what was written last
        self.store.read(number * self.size, found)
        if wrong := np.count_nonzero(found - self._random != number):
            words = f"{wrong} of {self.size} bytes at byte {number * self.size} come back wrong"
            remedy = "Mend what its read or write does: several threads call them, and nobody flushes between"
            raise StorageError(words, where=self.store.where, remedy=remedy)

    def _run(self, kinds: str, threads: int) -> int:
        """Move blocks of `kinds` ("r", "w" or "rw") in turn, from where the last run stopped; returns the bytes."""
        first, self._at = self._at, self._at + self._in_run

        def work(thread: int) -> None:
            """No two threads have the same block."""
            for turn, number in enumerate(range(first + thread, self._at, threads), start=thread):
                move = self.store.read if kinds[turn % len(kinds)] == "r" else self.store.write
                move(number % self.count * self.size, self._buffers[thread])

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))
        if "w" in kinds:
            self.store.flush()
        return self._in_run * self.size
