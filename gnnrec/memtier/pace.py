"""How long it takes to move what a plan moves: in memory, where kernels work, and in blocks that pass."""

from __future__ import annotations

from collections.abc import Sequence

from gnnrec.memtier.choices import Choices
from gnnrec.memtier.costs import Access, Bandwidth, Transfers, bandwidth, seconds, transfers
from gnnrec.memtier.demands import Demand, Pass, Streamed
from gnnrec.memtier.passes import SOURCES
from gnnrec.memtier.plans import Speed
from gnnrec.memtier.tiers import Tier


class Pace:
    """Seconds and bandwidths on the tiers of a choice.

    Args:
        choices: with the workload, and what computes.
    """

    def __init__(self, choices: Choices) -> None:
        self.home, self.workload, self._cached = choices.home, choices.workload, choices.cached
        self._transfers: dict[str, Transfers] = {}

    def here(self, accesses: Sequence[Access]) -> float:
        """Seconds in which kernels move this where the computation is."""
        return sum(seconds(self.home, access, self.workload.threads) for access in accesses)

    def direct(self, tier: Tier, demand: Demand) -> float:
        """Seconds in which kernels work on a tensor where it lies."""
        taken = sum(seconds(tier, access, self.workload.threads) for access in demand.accesses)
        if tier.kind != "file":
            return taken
        # Processors see a mapped file through the page cache: what fits beside everything else is found there.
        return self._cached * self.here(demand.accesses) + (1 - self._cached) * taken

    def streamed(self, tier: Tier, demand: Demand) -> float:
        """Seconds in which a tensor is streamed. A GPU's link takes both ways at a time, and files beside them."""
        if not self.workload.on_gpu:
            return sum(self.passing(tier, access) for access in demand.accesses)
        taken = [
            self.passing(mover, access)
            for mover, accesses in self.movers(tier, demand, "stream")
            for access in accesses
        ]
        return max(taken, default=0.0)

    def passing(self, tier: Tier, access: Access) -> float:
        """Seconds in which blocks pass."""
        return access.bytes / (self._bandwidth(tier, access).gb_per_s * 1e9) if access.bytes else 0.0

    def toll(self, files: Tier, moved: float) -> float:
        """Seconds that kernels lose while so many bytes of blocks pass, where that was measured."""
        if self.workload.on_gpu or not any(rate.pattern == "toll" for rate in files.rates):
            return 0.0
        return seconds(files, Access("toll", moved), self.workload.threads)

    def of_pass(self, one: Pass, streamed: Streamed, files: Tier, ring: int) -> float:
        """Seconds of a pass: transfers go on beside computation, but for panels that it waits for, as far as they were
        not read ahead into the ring of so many bytes."""
        compute = self.here(one.compute) + self.workload.seconds_of_products(one.flops)
        compute += self.toll(files, sum(access.bytes for access in one.transfer))
        transfer = sum(self.passing(files, access) for access in one.transfer)
        ahead = min(1.0, SOURCES * ring * streamed.panels / one.waited) if one.waited else 1.0
        waited = (1 - ahead) * self.passing(files, Access("read", one.waited))
        return waited + max(compute, transfer - waited)

    def ways(self, files: Tier) -> tuple[float, float]:
        """GB/s into the ring and out of it: of files, or of the link of a GPU that is streamed to from DRAM."""
        if files.kind == "dram":
            into, out = (bandwidth(self.home, Access(way, 1), 1).gb_per_s for way in ("to_gpu", "from_gpu"))
            return into, out
        return self.transfers(files).read_gb_per_s, self.transfers(files).write_gb_per_s

    def transfers(self, files: Tier) -> Transfers:
        """As `costs.transfers`, found once.

        Raises:
            UnknownRateError: no rate tells.
        """
        if files.name not in self._transfers:
            self._transfers[files.name] = transfers(files)
        return self._transfers[files.name]

    def movers(self, tier: Tier, demand: Demand, mode: str) -> list[tuple[Tier, Sequence[Access]]]:
        """What moves a tensor, and how: the tier that it lies in, and beside a GPU, its link."""
        if mode == "direct" or not self.workload.on_gpu:
            return [(tier, demand.accesses)]
        link = (self.home, demand.accesses)
        return [link] if tier.kind == "dram" else [link, (tier, (Access("mixed", demand.moved),))]

    def speed(self, tier: Tier, access: Access, mode: str) -> Speed:
        """The bandwidth that a plan counts on."""
        streamed = mode == "stream" and tier != self.home
        found = self._bandwidth(tier, access) if streamed else bandwidth(tier, access, self.workload.threads)
        return Speed(
            tier.name, access.pattern, access.row_bytes, access.working_set, found.gb_per_s, found.basis, found.sources
        )

    def _bandwidth(self, tier: Tier, access: Access) -> Bandwidth:
        """What blocks pass with: a GPU's link as it is, files as `costs.transfers` has it."""
        if tier == self.home:
            return bandwidth(tier, access, 1)
        found, sources = self.transfers(tier), bandwidth(tier, access, 1).sources
        rates = {"read": found.read_gb_per_s, "write": found.write_gb_per_s, "mixed": found.gb_per_s}
        return Bandwidth(rates[access.pattern], found.basis, sources)
