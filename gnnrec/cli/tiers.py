"""`gnnrec tiers`: what memory there is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnnrec.cli.show import table
from gnnrec.config import TiersConfig, fill
from gnnrec.storage import atomic_write
from gnnrec.units import in_bytes

if TYPE_CHECKING:
    from gnnrec.memtier.tiers import Tier

_BYTES = ("capacity", "free", "granularity", "working_set")


def tiers(values: dict[str, Any], run_dir: Path, verb: str) -> None:
    """List the tiers of memory, with their limits and, once calibrated, rates."""
    config = fill(TiersConfig, values)
    config.validate()

    from gnnrec.memtier.calibrate import calibrated
    from gnnrec.memtier.discover import discover

    found = calibrated(discover(config.folders))
    if config.out is not None:
        content = {"tiers": [_record(tier) for tier in found]}
        atomic_write(config.out, (json.dumps(content, indent=2) + "\n").encode())
    table([_row(tier) for tier in found])
    _show_facts(found)
    if config.out is not None:
        print(f"kept in {config.out}")


def _row(tier: Tier) -> dict[str, str]:
    return {
        "tier": tier.name,
        "kind": tier.kind,
        "capacity": _size(tier.capacity),
        "free": _size(tier.free),
        "granularity": f"{tier.granularity} B",
        "latency": f"{tier.latency_ns:.0f} ns, {tier.provenance}" if tier.latency_ns else "unknown",
        "read GB/s": _best(tier, "read"),
        "write GB/s": _best(tier, "write"),
        "notes": "unavailable, see below" if tier.unavailable else "persistent" if tier.persistent else "",
    }


def _size(count: int | None) -> str:
    return "unknown" if count is None else in_bytes(count)


def _best(tier: Tier, pattern: str) -> str:
    """The highest rate of a sequential pattern, whatever number of threads it takes."""
    rates = [rate.gb_per_s for rate in tier.rates if rate.pattern == pattern]
    return f"{max(rates):.1f}, {tier.provenance}" if rates else "unknown"


def _show_facts(found: Sequence[Tier]) -> None:
    for tier in found:
        print(f"\n{tier.name}{f' ({tier.where})' if tier.where not in ('', tier.name) else ''}")
        facts = ({"unavailable": tier.unavailable} if tier.unavailable else {}) | tier.facts
        for name, fact in facts.items():
            print(f"  {name + ':':<24}{fact}")


def _record(tier: Tier) -> dict[str, Any]:
    """A tier as JSON, with units in the names."""
    record = _with_units(asdict(tier))
    return record | {"rates": [_with_units(rate) for rate in record["rates"]]}


def _with_units(fields: dict[str, Any]) -> dict[str, Any]:
    return {f"{name}_bytes" if name in _BYTES else name: value for name, value in fields.items()}
