"""How long a tier takes to move bytes, from the rates that were measured or declared for it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, exp, inf, log
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from gnnrec.errors import GnnrecError
from gnnrec.memtier.calibrate import FACT
from gnnrec.memtier.tiers import Rate, Tier

if TYPE_CHECKING:
    import torch

ENOUGH = 0.95  # of a way's highest rate: more threads than this takes are not worth their buffers
TURN = 1.1  # times as fast must reading and writing in turns be: a turn ends with idle threads
FAR = 4  # times the largest working set with a rate of its own, "far more than the caches hold" has begun


@dataclass(frozen=True)
class Access:
    """Bytes of one tensor that a step moves in one way.

    Args:
        pattern: read, write, mixed, gather or scatter, as in `tiers.Rate`.
        bytes: of payload in a step; mixed counts both ways.
        row_bytes: of gather and scatter, the bytes of a row.
        working_set: bytes that they are spread over; 0 where it is far more than the caches hold.
        serial: whether one thread does it.
    """

    pattern: str
    bytes: float
    row_bytes: int = 0
    working_set: int = 0
    serial: bool = False


@dataclass(frozen=True)
class Bandwidth:
    """10^9 bytes of payload a second, what that rests on, in words, and where its figures stand."""

    gb_per_s: float
    basis: str
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Transfers:
    """How blocks pass to and from a tier: transfers at a time each way, whether the ways take turns, and 10^9 bytes a
    second of reading and writing alone, and of as much of both as the tier is given."""

    readers: int
    writers: int
    phased: bool
    read_gb_per_s: float
    write_gb_per_s: float
    gb_per_s: float
    basis: str


class UnknownRateError(GnnrecError):
    """A tier whose speed is not known."""


def seconds(tier: Tier, access: Access, threads: int) -> float:
    """The time that the tier takes for an access by so many threads.

    Raises:
        UnknownRateError: no rate of the tier tells.
    """
    if access.bytes == 0:
        return 0.0
    return access.bytes / (bandwidth(tier, access, threads).gb_per_s * 1e9)


def bandwidth(tier: Tier, access: Access, threads: int) -> Bandwidth:
    """What the tier delivers: rates with the nearest number of threads, log-linear between rows and working sets.

    A device moves whole lines of `tier.granularity` bytes: rows are compared by the bytes of their lines, so that the
    rate of one width tells of another. Where a pattern has no rate, mixed follows from read and write. Gather and
    scatter of a file follow from its latency, a line at a time for every thread. Of a declared tier, or one that
    firmware describes, they are taken as sequential, and said to be an upper bound.

    Raises:
        UnknownRateError: none of these is known.
    """
    threads = 1 if access.serial else threads
    if payload := _interpolated(tier, access.pattern, access, threads):
        return Bandwidth(payload, tier.provenance, _sources(tier, access.pattern))
    if access.pattern == "mixed":
        ways = [bandwidth(tier, Access(way, 1, 0, access.working_set), threads).gb_per_s for way in ("read", "write")]
        basis = f"{tier.provenance}, from read and write"
        return Bandwidth(2 / (1 / ways[0] + 1 / ways[1]), basis, _sources(tier, "read", "write"))
    if access.pattern in ("gather", "scatter"):
        if tier.kind == "file" and tier.latency_ns:
            rate = threads * tier.granularity / tier.latency_ns / amplification(access.row_bytes, tier.granularity)
            return Bandwidth(rate, f"{tier.provenance}, from the latency, a page at a time")
        way = "read" if access.pattern == "gather" else "write"
        if tier.provenance in ("declared", "prior") and (bound := _interpolated(tier, way, access, threads)):
            return Bandwidth(bound, f"{tier.provenance}, as sequential: an upper bound", _sources(tier, way))
    why = tier.facts.get(FACT, "")
    if why.startswith("unavailable"):  # it was tried just now
        remedy = f"Run {calibrate(tier)} seconds=300 on an idle machine"
        raise UnknownRateError(f"has no rate of {access.pattern}: {why}", where=tier.name, remedy=remedy)
    raise UnknownRateError(f"has no rate of {access.pattern}", where=tier.name, remedy=f"Run {calibrate(tier)} first")


def transfers(tier: Tier) -> Transfers:
    """What a tier that blocks are read from and written to likes best, by its rates: the fewest threads that reach
    what most do, and turns where both ways at once are slower. Optane, for one, wants few writers.

    Raises:
        UnknownRateError: no rate of the tier tells.
    """
    readers, writers = (_fewest(tier, way) for way in ("read", "write"))
    read, write = (
        bandwidth(tier, Access(way, 1), threads).gb_per_s for way, threads in (("read", readers), ("write", writers))
    )
    in_turns = 2 / (1 / read + 1 / write)
    if not any(rate.pattern == "mixed" for rate in tier.rates):
        return Transfers(readers, writers, False, read, write, in_turns, f"{tier.provenance}, from read and write")
    together = bandwidth(tier, Access("mixed", 1), readers + writers)
    if in_turns > TURN * together.gb_per_s:
        return Transfers(readers, writers, True, read, write, in_turns, f"{tier.provenance}, read and written in turns")
    return Transfers(readers, writers, False, read, write, together.gb_per_s, together.basis)


def _fewest(tier: Tier, way: str) -> int:
    rates = [rate for rate in tier.rates if rate.pattern == way]
    most = max((rate.gb_per_s for rate in rates), default=0.0)
    return min((rate.threads for rate in rates if rate.gb_per_s >= ENOUGH * most), default=1)


def amplification(row_bytes: int, granularity: int) -> float:
    """Bytes that a device moves for every byte of rows that begin at its lines; 1 for what is sequential (0)."""
    return ceil(row_bytes / granularity) * granularity / row_bytes if row_bytes else 1.0


def cache_held(tiers: Sequence[Tier], cache_bytes: int) -> int:
    """What the last-level cache really holds for this machine, in bytes: a virtual one is shown the whole cache and has
    a part of it. The largest working set from which rows were gathered at half of the highest rate or more.

    Args:
        tiers: that kernels may work in.
        cache_bytes: as the system says; the answer where no gathers were measured.
    """
    rates = [rate for tier in tiers if tier.kind == "dram" for rate in tier.rates if rate.pattern == "gather"]
    threads = max((rate.threads for rate in rates), default=0)
    rates = [rate for rate in rates if rate.working_set and rate.threads == threads]
    narrow = [rate for rate in rates if rate.row_bytes == min(other.row_bytes for other in rates)]
    fast = max((rate.gb_per_s for rate in narrow), default=0.0) / 2
    return min(cache_bytes, max((rate.working_set for rate in narrow if rate.gb_per_s >= fast), default=cache_bytes))


def calibrate(tier: Tier) -> str:
    """The command that measures a tier."""
    return f"gnnrec calibrate folders=[{tier.where or tier.name}]" if tier.kind == "file" else "gnnrec calibrate"


def product_flops(dtype: torch.dtype) -> float:
    """Operations a second that torch's dense products reach here, measured in some 0.1 s on a panel of scores as the
    softmax loss makes them: the product, its exponentials, the products of their gradients; dim 64, all threads."""
    import torch

    rows, columns = torch.randn(1024, 64, dtype=dtype), torch.randn(8192, 64, dtype=dtype)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        panel = torch.mm(rows, columns.T).exp_()
        torch.mm(panel, columns)
        torch.mm(panel.T, rows)
        times.append(time.perf_counter() - started)
    return 6 * rows.numel() * len(columns) / median(times)


def _interpolated(tier: Tier, pattern: str, access: Access, threads: int) -> float | None:
    """GB/s of payload between the pattern's rates, None where there are none."""
    rates = _nearest_threads([rate for rate in tier.rates if rate.pattern == pattern], threads)
    if not rates:
        return None
    finite = [rate.working_set for rate in rates if rate.working_set]
    far = FAR * max(finite, default=1)
    by_set: dict[int, list[Rate]] = {}
    for rate in rates:
        by_set.setdefault(rate.working_set or far, []).append(rate)
    points = [(working_set, _at_width(group, access.row_bytes, tier)) for working_set, group in by_set.items()]
    lines = _between(points, access.working_set or inf)
    return lines / (1 if access.row_bytes == 0 else amplification(access.row_bytes, tier.granularity))


def _at_width(rates: Sequence[Rate], row_bytes: int, tier: Tier) -> float:
    """GB/s of whole lines for rows of this width."""
    points = [(rate.row_bytes or 1, rate.gb_per_s * amplification(rate.row_bytes, tier.granularity)) for rate in rates]
    return _between(points, row_bytes or 1)


def _between(points: Sequence[tuple[float, float]], x: float) -> float:
    """Log-linear between points of positive numbers, constant beyond them."""
    xs, ys = np.log(np.array(sorted(points), np.float64)).T
    return exp(float(np.interp(min(log(x), xs[-1]), xs, ys)))


def _nearest_threads(rates: Sequence[Rate], threads: int) -> list[Rate]:
    """For every width and working set, the rate with the number of threads nearest to this one as a ratio."""
    kinds: dict[tuple[int, int], list[Rate]] = {}
    for rate in rates:
        kinds.setdefault((rate.row_bytes, rate.working_set), []).append(rate)
    return [min(kind, key=lambda rate: (abs(log(rate.threads / threads)), rate.threads)) for kind in kinds.values()]


def _sources(tier: Tier, *patterns: str) -> tuple[str, ...]:
    """Where the rates of the patterns stand."""
    return tuple(dict.fromkeys(rate.source for rate in tier.rates if rate.pattern in patterns and rate.source))
