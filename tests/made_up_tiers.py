"""Tiers of a made-up machine, for tests of plans and of runs that need one."""

from __future__ import annotations

from pathlib import Path

from gnnrec.memtier.tiers import Rate, Tier

GIB = 1 << 30


def dram(free: int = 16 * GIB) -> Tier:
    rates = [Rate("read", 20.0), Rate("write", 15.0), Rate("mixed", 18.0)]
    rates += [Rate(pattern, 8.0, row_bytes=256) for pattern in ("gather", "scatter")]
    return Tier("dram", "dram", 16 * GIB, free, 64, provenance="measured", rates=tuple(rates), latency_ns=100.0)


def disk(folder: Path, free: int = 100 * GIB) -> Tier:
    rates = Rate("read", 1.5), Rate("write", 1.0), Rate("mixed", 1.2)
    known = {"persistent": True, "where": str(folder), "direct": False, "provenance": "measured", "rates": rates}
    return Tier(str(folder), "file", free, free, 4096, latency_ns=90_000.0, **known)


def gpu(free: int = 16 * GIB) -> Tier:
    rates = [Rate("read", 2000.0), Rate("write", 2000.0), Rate("mixed", 2000.0), Rate("gather", 1000.0, row_bytes=256)]
    rates += [Rate("to_gpu", 50.0), Rate("from_gpu", 50.0)]
    return Tier("gpu0", "gpu", 16 * GIB, free, 32, provenance="measured", rates=tuple(rates))
