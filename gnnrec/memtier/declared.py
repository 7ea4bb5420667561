"""Tiers of hardware that is not at hand, from a preset in `conf/hardware/`."""

from __future__ import annotations

from collections.abc import Sequence

from gnnrec.config.checks import one_of
from gnnrec.config.hardware import DeclaredTierConfig, HardwareConfig, RateConfig
from gnnrec.memtier.tiers import KINDS, PATTERNS, Rate, Tier
from gnnrec.units import parse_bytes


def declared(hardware: HardwareConfig) -> list[Tier]:
    """The tiers of a preset, provenance "declared", each rate with its source.

    Raises:
        ConfigError: an unknown kind or pattern, or what `HardwareConfig.validate` refuses.
    """
    hardware.validate()
    return [_tier(index, tier, hardware.sources) for index, tier in enumerate(hardware.tiers)]


def what_if(found: Sequence[Tier], hardware: HardwareConfig) -> list[Tier]:
    """The tiers there would be with this hardware.

    A preset with main memory is a machine of its own; one without is a part that is put into this one, beside the
    DRAM that was found here. `here` changes nothing.
    """
    tiers = declared(hardware)
    if not tiers:
        return list(found)
    if any(tier.kind == "dram" for tier in tiers):
        return tiers
    return [tier for tier in found if tier.kind == "dram"] + tiers


def _tier(index: int, tier: DeclaredTierConfig, sources: dict[str, str]) -> Tier:
    where = f"hardware.tiers[{index}]"
    one_of(f"{where}.kind", tier.kind, KINDS)
    for number, rate in enumerate(tier.rates):
        one_of(f"{where}.rates[{number}].pattern", rate.pattern, PATTERNS)
    capacity = parse_bytes(f"{where}.capacity", tier.capacity)
    return Tier(
        name=tier.name,
        kind=tier.kind,
        capacity=capacity,
        free=capacity,
        granularity=tier.granularity,
        persistent=tier.persistent,
        direct=tier.direct,
        provenance="declared",
        rates=tuple(_rate(rate, sources) for rate in tier.rates),
        latency_ns=tier.latency_ns,
        facts={"notes": tier.notes} if tier.notes else {},
    )


def _rate(rate: RateConfig, sources: dict[str, str]) -> Rate:
    return Rate(
        pattern=rate.pattern,
        gb_per_s=rate.gb_per_s,
        row_bytes=rate.row_bytes,
        threads=rate.threads,
        working_set=0 if rate.working_set is None else parse_bytes("working_set", rate.working_set),
        source=sources[rate.source],
    )
