"""Where the tensors of a training may lie: what its configuration leaves of the tiers there are, and their room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf

from gnnrec.config.memory import MemoryConfig
from gnnrec.errors import ConfigError
from gnnrec.memtier.demands import FINAL, STATE, Demand, Streamed
from gnnrec.memtier.tiers import CUSTOM, Rate, Tier
from gnnrec.memtier.workload import Workload

DIRECT = ("embedding", *STATE, "master")  # what memory=direct takes out of the tier that computes


def simulated(tier: Tier, read_gb_per_s: float, write_gb_per_s: float) -> Tier:
    """The tier as `memory.simulate` slows it down."""

    def rate(pattern: str, gb_per_s: float) -> Rate:
        known = [rate.gb_per_s for rate in tier.rates if rate.pattern == pattern]
        return Rate(pattern, min([gb_per_s, *known]), source="memory.simulate")

    rates = rate("read", read_gb_per_s), rate("write", write_gb_per_s)
    return replace(tier, rates=rates, provenance="simulated")


class Choices:
    """The tiers that a workload may use, as the configuration demands it.

    Args:
        workload: what is to lie somewhere.
        tiers: all there are.
        memory: as configured.

    Attributes:
        every: all there are.
        home: that computes.
        others: that kernels may work on too, or files.
        uncalibrated: that would be among these, were their rates known.
        stores: for what is streamed.
        mapped: for what is mapped beside a user's own tier, which nobody can map; at most one.
        tiers: all that may be used, by name.
        resident: the tensors, where nothing is streamed.
        cached: the share of mapped files that the page cache holds.

    Raises:
        ConfigError: nothing computes, or an own tier has no folder beside it.
    """

    def __init__(self, workload: Workload, tiers: Sequence[Tier], memory: MemoryConfig) -> None:
        self.workload, self.memory, self.every = workload, memory, tiers
        if memory.slower is not None:
            read, write, _ = memory.slower
            tiers = [simulated(tier, read, write) if tier.kind == "file" else tier for tier in tiers]
        usable = [tier for tier in tiers if not tier.unavailable]
        kind = "gpu" if workload.on_gpu else "dram"
        homes = [tier for tier in usable if tier.kind == kind]
        if not homes:
            raise ConfigError(f"there is no usable tier of kind {kind}", where="memory", remedy="See gnnrec tiers")
        self.home = max(homes, key=lambda tier: tier.free or tier.capacity or 0)
        own = [tier for tier in usable if tier.kind == CUSTOM and tier.name == memory.custom.path]
        # A GPU's kernels take tensors on it alone; blocks come to it from DRAM, or from a folder that is named.
        others = [] if workload.on_gpu else [tier for tier in usable if tier.kind not in ("gpu", CUSTOM)]
        others = [tier for tier in others if tier != self.home]
        # Whoever leaves it to us need not calibrate what is not wanted.
        wanted = {*([] if own else [memory.folder]), *memory.pins.values()}
        self.uncalibrated = [
            tier for tier in others if memory.name == "auto" and not tier.rates and not {tier.name, tier.where} & wanted
        ]
        self.others = [tier for tier in others if tier not in self.uncalibrated]
        self.stores = own or self._stores(usable if workload.on_gpu else self.others)
        self.mapped = [tier for tier in self.in_folder(usable) if tier.kind in ("file", "pmem")][:1] if own else []
        if own and not self.mapped:
            found = "there is no folder for files that are mapped, which an own tier needs beside it"
            raise ConfigError(found, where="memory.custom", remedy="Give one on a disk by memory.folder")
        self.tiers = {tier.name: tier for tier in (self.home, *self.others, *self.stores, *self.mapped)}
        self.resident = workload.resident()
        staying, leaving = (sum(d.bytes for d in self.resident if d.movable == movable) for movable in (False, True))
        beside = self._free(self.home, self.resident) - staying
        self.cached = min(1.0, max(0.0, beside / leaving)) if leaving else 1.0

    def options(self, demand: Demand) -> list[Tier]:
        """Where a tensor may lie for kernels to work on it there."""
        if not demand.movable:
            return [self.home]
        if demand.name in self.memory.pins:
            pinned = self.tiers[self.memory.pins[demand.name]]
            return [pinned] if pinned == self.home or pinned in self.others else []
        if self.memory.name in ("dram", "stream"):
            return [self.home]
        forced = self.memory.name == "direct"
        direct = [tier for tier in self.others if tier.direct]
        if not forced or demand.name not in DIRECT:
            return [self.home, *direct]
        # The page cache before a file takes the DRAM that was to be saved: files where nothing else is there, or asked.
        return self.in_folder(self.others) if self.memory.folder or not direct else direct

    def agrees(self, form: Streamed, tier: Tier) -> bool:
        """Whether the pins have in this tier what the form streams into it, and all else where the computation is."""
        places = {demand.name: tier.name for demand in form.files}
        return all(places.get(tensor, self.home.name) == name for tensor, name in self.memory.pins.items())

    def lies(self, demand: Demand, files: Tier) -> Tier:
        """Where a tensor lies that is streamed into these files: what is mapped, in files whatever a user's tier is."""
        return self.mapped[0] if self.mapped and demand.name == FINAL else files

    def room(self, tier: Tier, demands: Sequence[Demand]) -> float:
        """Bytes that a tier has for these; memory.limit counts what is held already, free memory is beside it."""
        limit = self.memory.limit_bytes or inf if tier == self.home else inf
        return min(self._free(tier, demands), limit)

    def have_room(self, demands: Sequence[Demand], files: Tier) -> bool:
        """Whether there is room for all that is streamed into these files."""
        needed: dict[str, int] = {}
        for demand in demands:
            name = self.lies(demand, files).name
            needed[name] = needed.get(name, 0) + demand.bytes
        return all(size <= self.room(self.tiers[name], demands) for name, size in needed.items())

    def could_have(self, needed: int) -> bool:
        """Whether so many bytes are there where the computation is, were it not for memory.limit."""
        return needed <= self._free(self.home, self.resident)

    def in_folder(self, tiers: Sequence[Tier]) -> list[Tier]:
        """The tier of memory.folder, where it is set."""
        folder = self.memory.folder
        return [tier for tier in tiers if folder is None or folder in (tier.name, tier.where)]

    def _stores(self, tiers: Sequence[Tier]) -> list[Tier]:
        """Files; beside a GPU DRAM, unless memory.folder is set."""
        if self.workload.on_gpu and self.memory.folder is None:
            return [tier for tier in tiers if tier.kind == "dram"]
        return [tier for tier in self.in_folder(tiers) if tier.kind in ("file", "pmem")]

    def _free(self, tier: Tier, demands: Sequence[Demand]) -> float:
        free = tier.free if tier.free is not None else tier.capacity
        held = sum(demand.bytes for demand in demands if demand.held) if tier == self.home else 0
        return inf if free is None else free + held
