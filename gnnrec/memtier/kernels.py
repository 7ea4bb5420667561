"""numba kernels that calibration and profiling/bandwidth.py time: the operators' own loads, prefetches and stores, and
nothing beside them.

A buffer is a float32 matrix whose rows are multiples of 64 bytes. Kernels are closures over the width and
`_numba.VERSION`; see there.
"""

# mypy: disallow-untyped-decorators=False
# numba's decorators change what a function is in ways that mypy cannot see.

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numba
import numpy as np

from gnnrec.ops._numba import VERSION, inline
from gnnrec.ops._parallel import Team, consecutive, items, kernel
from gnnrec.ops._row_math import row_add, row_fma, row_splat, row_sum
from gnnrec.ops._vector import (
    MAX_DIM,
    fence,
    row_gather_sum,
    row_load,
    row_store,
    row_zero,
)

WIDE = MAX_DIM  # floats of a row that sequential kernels take at a time
LINE = 16  # floats of a cache line
SHARES = 1024  # consecutive rows, or indices, that a thread takes at a time are an item; so many items
NEIGHBOURS = 32  # rows of a sum, as many as a row of a real graph has neighbours
ENDLESS = 1 << 62  # steps of a generator, until somebody sets its counter to it

_PLACES = 8  # int64 numbers of a cache line

serial: Any = numba.njit(cache=True, nogil=True, error_model="numpy")


def fill(words: Any, seed: Any) -> None:
    """Write float32 numbers in [1, 2) that differ from each other: the first touch, by the threads that measure.

    Args:
        words: uint32 [n], the buffer's bits.
    """
    _fill(len(words), words, seed)


@kernel
def _fill(team: Any, words: Any, seed: Any) -> None:
    for i in consecutive(team):
        mixed = (np.uint64(i) + np.uint64(seed)) * np.uint64(0x9E3779B97F4A7C15)
        words[i] = np.uint32(mixed >> np.uint64(41)) | np.uint32(0x3F800000)


@cache
def reader() -> Any:
    """read(x [rows, WIDE], sums [SHARES, WIDE]): adds up all rows in order."""
    version, dim, shares = VERSION, WIDE, SHARES

    @kernel
    def read(team: Any, x: Any, sums: Any) -> None:
        _ = version
        rows = len(x)
        for share in items(team):
            total = row_zero(x, dim)
            for i in range(share * rows // shares, (share + 1) * rows // shares):
                total = row_add(total, row_load(x, i, dim))
            row_store(sums, share, total, False)

    return partial(read, SHARES)


@cache
def writer() -> Any:
    """write(out [rows, WIDE]): fills all rows in order, past the caches."""
    version, dim, shares = VERSION, WIDE, SHARES

    @kernel
    def write(team: Any, out: Any) -> None:
        _ = version
        rows = len(out)
        for share in items(team):
            for i in range(share * rows // shares, (share + 1) * rows // shares):
                row_store(out, i, row_splat(np.float32(i), row_zero(out, dim)), True)
            fence()

    return partial(write, SHARES)


@cache
def copier() -> Any:
    """copy(x [rows, WIDE], out [rows, WIDE]): reads and writes as many bytes, writes past the caches."""
    version, dim, shares = VERSION, WIDE, SHARES

    @kernel
    def copy(team: Any, x: Any, out: Any) -> None:
        _ = version
        rows = len(out)
        for share in items(team):
            for i in range(share * rows // shares, (share + 1) * rows // shares):
                row_store(out, i, row_load(x, i, dim), True)
            fence()

    return partial(copy, SHARES)


@cache
def triad() -> Any:
    """triad(a, b, out, all [rows, LINE]): out = a + 3 b past the caches, line after line as STREAM does it.

    Source: J. D. McCalpin, Memory Bandwidth and Machine Balance in Current High Performance Computers, 1995.
    """
    version, dim, shares = VERSION, LINE, SHARES

    @kernel
    def triad(team: Any, a: Any, b: Any, out: Any) -> None:
        _ = version
        rows = len(out)
        for share in items(team):
            for i in range(share * rows // shares, (share + 1) * rows // shares):
                row_store(out, i, row_fma(row_load(b, i, dim), np.float32(3), row_load(a, i, dim)), True)
            fence()

    return partial(triad, SHARES)


@cache
def gatherer(width: int) -> Any:
    """gather(x [rows, width], indices int32 [n], sums [SHARES, width]): adds up rows as spmm does."""
    version, dim, shares, neighbours = VERSION, width, SHARES, NEIGHBOURS

    @kernel
    def gather(team: Any, x: Any, indices: Any, sums: Any) -> None:
        _ = version
        count = len(indices)
        for share in items(team):
            total, stop = row_zero(x, dim), (share + 1) * count // shares
            for first in range(share * count // shares, stop, neighbours):
                last = min(first + neighbours, stop)
                total = row_add(total, row_gather_sum(x, indices, first, last, None, total))
            row_store(sums, share, total, False)

    return partial(gather, SHARES)


@cache
def scatterer(width: int, past_caches: bool = True) -> Any:
    """scatter(out [rows, width], indices int32 [n]): writes whole rows, row indices[k] with the number k.

    Args:
        past_caches: by streaming stores; ordinary ones read each line before they write it.
    """
    version, dim, shares, stream = VERSION, width, SHARES, past_caches

    @kernel
    def scatter(team: Any, out: Any, indices: Any) -> None:
        _ = version
        count = len(indices)
        for share in items(team):
            for k in range(share * count // shares, (share + 1) * count // shares):
                row_store(out, indices[k], row_splat(np.float32(k), row_zero(out, dim)), stream)
            fence()

    return partial(scatter, SHARES)


@cache
def exchanger(width: int, reads: int) -> Any:
    """exchange(x [rows, width], indices int32 [n], out [rows, width]): out[indices[k]] = the sum of rows
    x[indices[k * reads : (k + 1) * reads]] from left to right, written past the caches: `reads` rows are read for each
    that is written."""
    version, dim, shares = VERSION, width, SHARES

    @kernel
    def exchange(team: Any, x: Any, indices: Any, out: Any) -> None:
        _ = version
        count = len(indices) // reads
        for share in items(team):
            zero = row_zero(x, dim)
            for k in range(share * count // shares, (share + 1) * count // shares):
                first = k * reads
                total = row_gather_sum(x, indices, first, first + reads, None, zero)
                row_store(out, indices[k], total, True)
            fence()

    return partial(exchange, SHARES)


@inline
def _spin(state: Any, turns: Any) -> Any:
    """Pass time with numbers that depend on each other (xorshift), so that no compiler shortens it."""
    for _ in range(turns):
        state ^= state << np.uint64(13)
        state ^= state >> np.uint64(7)
        state ^= state << np.uint64(17)
    return state


@serial
def spin(turns: Any) -> Any:
    """Pass time; to be timed."""
    return _spin(np.uint64(1), turns)


@cache
def generator(reads: int, writes: bool) -> Any:
    """generate(x, out [rows, WIDE], counter int64 [1], turns, state uint64 [1]): traffic of one thread, in order, until
    somebody sets the counter to ENDLESS: it counts steps, each of which reads `reads` rows, writes their sum past the
    caches where `writes` says so, and spins."""
    version, dim = VERSION, WIDE

    @serial
    def generate(x: Any, out: Any, steps: Any, turns: Any, state: Any) -> None:
        _ = version
        rows, total, seed = len(x), row_zero(x, dim), np.uint64(1)
        for step in items(steps):
            total = row_load(x, step * reads % rows, dim)
            for more in range(1, reads):
                total = row_add(total, row_load(x, (step * reads + more) % rows, dim))
            if writes:
                row_store(out, step % rows, total, True)
            seed = _spin(seed, turns)
            state[0] += np.uint64(row_sum(total)) ^ seed  # somebody wants all of it
        fence()

    def run(x: Any, out: Any, counter: Any, turns: Any, state: Any) -> None:
        generate(x, out, Team(counter.ctypes.data, ENDLESS, 0, 1), turns, state)

    return run


@serial
def make_cycle(words: Any, seed: Any) -> None:
    """Write a random cycle through all cache lines: the first number of each is the place of the next.

    Args:
        words: int64 [n], a multiple of 8.
        seed: uint64.

    Source: S. Sattolo, An algorithm to generate a random cyclic permutation, Information Processing Letters 22 (1986);
    the random numbers are splitmix64's.
    """
    lines = len(words) // _PLACES
    for line in range(lines):
        words[line * _PLACES] = line * _PLACES
    state = seed
    for line in range(lines - 1, 0, -1):
        state += np.uint64(0x9E3779B97F4A7C15)
        mixed = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        other = np.int64((mixed ^ (mixed >> np.uint64(31))) % np.uint64(line)) * _PLACES
        words[line * _PLACES], words[other] = words[other], words[line * _PLACES]


@serial
def chase(words: Any, start: Any, steps: Any) -> Any:
    """Follow the cycle, each load waiting for the one before; returns where it ends."""
    place = np.uint64(start)  # unsigned: numba would look whether it counts from the end
    for _ in range(steps):
        place = np.uint64(words[place])
    return place
