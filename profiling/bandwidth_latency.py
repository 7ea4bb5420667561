"""Latency of loads that wait for the one before: on an idle machine, and while other processors make traffic."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from bandwidth_nodes import others_than
from bandwidth_settings import OPS

from gnnrec.memtier import kernels
from gnnrec.memtier.files import aligned
from gnnrec.memtier.measure_memory import CHASED, latencies_ns
from gnnrec.memtier.stopwatch import RUNS

_SMALLEST = 16 << 10  # bytes: fits into every first-level cache
_STEPS = 100_000  # loads of a run
_TURNS = 2_000_000  # of the spinning that is timed
IDLE_SECONDS, LOADED_SECONDS = 0.15, 0.2  # that a figure is planned to take, beside making the cycle
CYCLE_SECONDS_PER_BYTE = 2e-9


@dataclass(frozen=True)
class Latency:
    """Median of `count` runs in ns, and (largest - smallest) / median; gb_per_s: of the traffic meanwhile."""

    ns: float
    spread: float
    count: int
    gb_per_s: float = 0.0


def working_sets(given: Sequence[int], cache: int, most: int) -> list[int]:
    """Bytes that chases go through: those given, or powers of two up to CHASED times the last-level cache or `most`."""
    if given:
        return sorted(given)
    largest = min(CHASED * cache, most)
    return [1 << power for power in range(_SMALLEST.bit_length() - 1, largest.bit_length()) if 1 << power <= largest]


def idle(words: Any, cpu: int) -> Latency:
    """Of a chase through all the words, by a thread on this processor.

    Args:
        words: int64 [n], a multiple of 8; they hold a cycle afterwards.
    """
    with _on(cpu):
        return _latency(latencies_ns(words))


def compile_kernels(ops: Sequence[str]) -> None:
    """Compile what latencies take."""
    words = np.zeros(64, np.int64)
    kernels.make_cycle(words, np.uint64(1))
    kernels.chase(words, 0, 1)
    kernels.spin(1)
    rows = aligned(8 * 4 * kernels.WIDE, huge=False).view(np.float32).reshape(8, -1)
    for op in ops:
        counter = np.full(1, kernels.ENDLESS, np.int64)
        _generator(op)(rows, rows, counter, 0, np.zeros(1, np.uint64))


def loaded(
    words: Any, x: Any, out: Any, cpus: Sequence[int], op: str, delays: Sequence[float]
) -> Iterator[tuple[float, Latency]]:
    """Delay and latency, for each delay: one processor chases, each other one that shares no core with it moves rows of
    a part of the buffers and pauses after every row.

    Args:
        words: int64 [n] of the chase; they hold a cycle afterwards.
        x, out: float32 [rows, kernels.WIDE], read from and written to.
        cpus: of one node. Nothing comes with a single core.
        op: of OPS, one that reads.
        delays: ns.
    """
    chaser, generators = cpus[0], others_than(cpus[0], cpus)
    if not generators:
        return
    kernels.make_cycle(words, np.uint64(1))
    start = time.perf_counter()
    kernels.spin(_TURNS)
    turn_ns = 1e9 * (time.perf_counter() - start) / _TURNS
    place = 0  # the chase goes on from delay to delay: what it met before is no longer in the cache when it returns
    for delay in delays:
        with _traffic(x, out, generators, op, round(delay / turn_ns)) as counters, _on(chaser):
            place, latency = _chased(words, place, counters, (sum(OPS[op])) * 4 * kernels.WIDE)
        yield delay, latency


def _chased(words: Any, place: int, counters: Any, step_bytes: int) -> tuple[int, Latency]:
    """Where the chase has come to, its latency, and the traffic that the counters tell of meanwhile."""
    place, found, moved, passed = kernels.chase(words, place, _STEPS), [], 0, 0.0
    for _ in range(RUNS):
        before, start = counters[:, 0].sum(), time.perf_counter()
        place = kernels.chase(words, place, _STEPS)
        seconds = time.perf_counter() - start
        moved += int(counters[:, 0].sum() - before) * step_bytes
        passed += seconds
        found.append(1e9 * seconds / _STEPS)
    return place, _latency(found, moved / passed / 1e9)


@contextlib.contextmanager
def _traffic(x: Any, out: Any, cpus: Sequence[int], op: str, turns: int) -> Iterator[Any]:
    """Threads that move rows for a while; gives their counters of steps, int64 [threads, a cache line]."""
    generate = _generator(op)
    counters = np.zeros((len(cpus), 8), np.int64)
    states = np.zeros((len(cpus), 8), np.uint64)
    share = len(x) // len(cpus)

    def work(number: int) -> None:
        os.sched_setaffinity(0, {cpus[number]})
        part = slice(number * share, (number + 1) * share)
        generate(x[part], out[part], counters[number, :1], turns, states[number, :1])

    with ThreadPoolExecutor(len(cpus)) as pool:
        workers = [pool.submit(work, number) for number in range(len(cpus))]
        try:
            while not counters[:, 0].all() and not any(worker.done() for worker in workers):  # until all are at work
                time.sleep(1e-3)
            yield counters
        finally:
            counters[:] = kernels.ENDLESS
        for worker in workers:
            worker.result()


def _generator(op: str) -> Any:
    reads, writes = OPS[op]
    return kernels.generator(reads, bool(writes))


@contextlib.contextmanager
def _on(cpu: int) -> Iterator[None]:
    """Keep this thread on a processor for a while."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _latency(found: Sequence[float], gb_per_s: float = 0.0) -> Latency:
    median = statistics.median(found)
    return Latency(median, (max(found) - min(found)) / median, len(found), gb_per_s)
