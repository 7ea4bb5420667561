"""Hardware that is not at hand, declared: what its tiers can do, and where each figure stands."""

from __future__ import annotations

from dataclasses import dataclass, field

from gnnrec.config.checks import at_least, did_you_mean, positive
from gnnrec.errors import ConfigError
from gnnrec.units import parse_bytes


@dataclass
class RateConfig:
    """A declared bandwidth; the fields are those of `memtier.tiers.Rate`, `source` is a key of `hardware.sources`."""

    pattern: str
    gb_per_s: float
    source: str
    row_bytes: int = 0
    threads: int = 1
    working_set: str | None = None


@dataclass
class DeclaredTierConfig:
    """A declared tier; the fields are those of `memtier.tiers.Tier`, sizes are written as "768GiB"."""

    name: str
    kind: str
    capacity: str
    granularity: int
    persistent: bool = False
    direct: bool = True
    latency_ns: float | None = None
    rates: list[RateConfig] = field(default_factory=list)
    notes: str = ""


@dataclass
class ComputeConfig:
    """The processors that work on the tiers.

    Args:
        threads: physical cores.
        cache: of the last level, such as "33MiB".
    """

    threads: int
    cache: str


@dataclass
class HardwareConfig:
    """A machine, or a part of one: `here` declares nothing."""

    name: str = "here"
    compute: ComputeConfig | None = None
    tiers: list[DeclaredTierConfig] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used."""
        if self.compute is not None:
            at_least("hardware.compute.threads", self.compute.threads, 1)
            parse_bytes("hardware.compute.cache", self.compute.cache)
        for index, tier in enumerate(self.tiers):
            where = f"hardware.tiers[{index}]"
            parse_bytes(f"{where}.capacity", tier.capacity)
            at_least(f"{where}.granularity", tier.granularity, 1)
            if tier.latency_ns is not None:
                positive(f"{where}.latency_ns", tier.latency_ns)
            for number, rate in enumerate(tier.rates):
                self._check_rate(f"{where}.rates[{number}]", rate)

    def _check_rate(self, where: str, rate: RateConfig) -> None:
        positive(f"{where}.gb_per_s", rate.gb_per_s)
        at_least(f"{where}.row_bytes", rate.row_bytes, 0)
        at_least(f"{where}.threads", rate.threads, 1)
        if rate.working_set is not None:
            parse_bytes(f"{where}.working_set", rate.working_set)
        if rate.source not in self.sources:
            remedy = f"It must be a key of hardware.sources. {did_you_mean(rate.source, list(self.sources))}"
            raise ConfigError(f"is {rate.source!r}", where=f"{where}.source", remedy=remedy)
