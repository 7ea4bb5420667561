"""`gnnrec calibrate`: measure the tiers of memory, print and keep the figures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnnrec.cli.show import table
from gnnrec.config import CalibrateConfig, fill
from gnnrec.units import in_bytes

if TYPE_CHECKING:
    from gnnrec.memtier.tiers import Rate, Tier


def calibrate(values: dict[str, Any], run_dir: Path, verb: str) -> None:
    """Measure what each tier of memory can do, keep it for planning."""
    config = fill(CalibrateConfig, values)
    config.validate()

    from gnnrec.memtier import calibrate, conditions
    from gnnrec.memtier.discover import discover

    file = None if config.out is None else Path(config.out)
    calibrate.keep([], file)  # a file that is damaged, or cannot be written, is found before the measuring
    tiers = discover(config.folders)
    load = conditions.load_per_core()
    if load > conditions.BUSY:
        print(f"warning: load {load:.2f} a core: figures of a busy machine are too low", file=sys.stderr, flush=True)
    measured = calibrate.measure(tiers, seconds=config.seconds, progress=_tell)
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    for tier in measured:
        _show(tier)
    print(f"kept in {calibrate.keep(measured, file)}")


def _tell(figure: str) -> None:
    """Show what is being measured, on one line of a screen."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{figure}", end="", file=sys.stderr, flush=True)


def _show(tier: Tier) -> None:
    latency = "unavailable" if tier.latency_ns is None else f"{tier.latency_ns:.0f} ns"
    print(f"{tier.name} ({tier.kind}), {tier.provenance}, latency {latency}")
    for note in tier.facts["calibration"].split("; "):
        print(f"  {note}")
    if tier.provenance == "measured":
        table([_row(rate) for rate in tier.rates])


def _row(rate: Rate) -> dict[str, str | int]:
    return {
        "pattern": rate.pattern,
        "row": f"{rate.row_bytes} bytes" if rate.row_bytes else "in order",
        "within": in_bytes(rate.working_set) if rate.working_set else "",
        "threads": rate.threads,
        "GB/s": f"{rate.gb_per_s:.2f}",
        "spread": f"{rate.spread:.0%}",
        "count": rate.count,
    }
