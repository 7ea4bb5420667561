"""What goes where: the placement with the shortest step that fits, found exactly.

Every tensor has one place. Work on tensors where they lie costs the sum over tensors, since the same threads do all of
it; files that are streamed meanwhile cost the longer of both. Capacities count every tensor and buffer.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import ceil

from gnnrec.config.memory import MemoryConfig
from gnnrec.errors import ConfigError, GnnrecError
from gnnrec.memtier import forms, refusals
from gnnrec.memtier.buffers import Buffers
from gnnrec.memtier.choices import Choices
from gnnrec.memtier.costs import Access, UnknownRateError
from gnnrec.memtier.demands import RANKING, Demand, Streamed
from gnnrec.memtier.overlap import hidden_share, streamed_seconds
from gnnrec.memtier.pace import Pace
from gnnrec.memtier.plans import Placement, Plan
from gnnrec.memtier.remedies import remedies
from gnnrec.memtier.ring import Ring
from gnnrec.memtier.search import place
from gnnrec.memtier.tiers import CUSTOM, Tier
from gnnrec.memtier.workload import Workload
from gnnrec.units import in_bytes


class PlanError(GnnrecError):
    """No placement fits."""


def plan(workload: Workload, tiers: Sequence[Tier], memory: MemoryConfig) -> Plan:
    """The plan with the shortest step among all that the configuration allows.

    Args:
        workload: what a step moves.
        tiers: found and calibrated, or declared.
        memory: mode, limit, folder, pins, panel and buffer as configured; `simulate` slows files down.

    Raises:
        PlanError: nothing fits; with the shortfall of each tier and remedies, those first that change least.
        ConfigError: a pin of an unknown tensor or tier, a panel that does not divide the embedding, no tier to use.
        UnknownRateError: a tier was not calibrated.
    """
    problem = _Problem(workload, tiers, memory)
    best = problem.best()
    if best is not None:
        return best

    def fits(workload: Workload, memory: MemoryConfig) -> bool:
        try:
            memory.validate()
            return _Problem(workload, tiers, memory).best() is not None
        except UnknownRateError:  # of a stream: its tier is asked once there is room; it is measured then
            return memory.name == "stream"
        except GnnrecError:
            return False

    shortfalls = problem.shortfalls()
    short = "; ".join(
        f"{name} needs {in_bytes(needed)} and has {in_bytes(room)}, {in_bytes(needed - room)} too little"
        for name, (needed, room) in shortfalls.items()
    )
    found = list(remedies(problem.choices, shortfalls, fits))
    remedy = f"In this order: {', or '.join(found)}" if found else "Use a smaller data set or a larger machine"
    raise PlanError(f"no placement fits: {short}", where=f"memory={memory.name}", remedy=remedy)


class _Problem:
    """A workload, the tiers it may use, and what the configuration demands."""

    def __init__(self, workload: Workload, tiers: Sequence[Tier], memory: MemoryConfig) -> None:
        self.workload, self.memory = workload, memory
        self.choices = Choices(workload, tiers, memory)
        refusals.check(self.choices)
        self.home, self.resident = self.choices.home, self.choices.resident
        self.pace = Pace(self.choices)

    def best(self) -> Plan | None:
        """The plan with the shortest step; where all fits beside the processors, nothing is streamed, and the graph is
        only if nothing fits without that, or it is pinned there."""
        plans = []
        if self.memory.name != "stream" and (resident := self._resident()):
            if resident.mode == "dram":
                return resident
            plans.append(resident)
        for with_graph, pairs in enumerate(self._streams()):
            if not (with_graph and plans) or "graph" in self.memory.pins:
                streamed = (self._with_ring(form, tier) for form, tier in pairs)
                plans += [found for found in streamed if found is not None]
        return min(plans, key=lambda plan: plan.step_seconds, default=None)

    def shortfalls(self) -> dict[str, tuple[int, int]]:
        """What the tiers need and have in the attempt that comes closest, where it is too little."""
        attempts = []
        if self.memory.name != "stream":
            attempts.append(self._short(self.resident, self.choices.others if self.memory.name != "dram" else []))
        for streamed, tier in itertools.chain(*self._streams()):
            buffers = Buffers(self.workload, streamed, tier)
            demands = [*buffers.held(buffers.ring(self.memory.buffer_bytes or 0)), *streamed.files]
            attempts.append(self._short(demands, [], tier, streamed.files))
        return min(attempts, key=lambda short: sum(needed - room for needed, room in short.values()))

    def _resident(self) -> Plan | None:
        """Every tensor where kernels work on it."""
        options = [self.choices.options(demand) for demand in self.resident]
        costs = [
            {tier.name: self.pace.direct(tier, demand) for tier in tiers}
            for demand, tiers in zip(self.resident, options, strict=True)
        ]
        if not all(costs):
            return None
        room = {name: self.choices.room(tier, self.resident) for name, tier in self.choices.tiers.items()}
        found = place([demand.bytes for demand in self.resident], costs, room)
        if found is None:
            return None
        placements = [
            self._placement(demand, self.choices.tiers[name], "direct")
            for demand, name in zip(self.resident, found[0], strict=True)
        ]
        resources = self._busy(placements)
        mode = "dram" if {placement.tier for placement in placements} == {self.home.name} else "direct"
        return self._plan(mode, placements, resources, sum(resources.values()), self.resident)

    def _placement(self, demand: Demand, tier: Tier, mode: str) -> Placement:
        taken = self.pace.streamed(tier, demand) if mode == "stream" else self.pace.direct(tier, demand)
        return Placement(demand.name, demand.bytes, tier.name, mode, demand.moved, taken)

    def _streams(self) -> tuple[list[tuple[Streamed, Tier]], ...]:
        """Forms of the training with files, and the tiers that may hold these: panels of all widths; the optimizer's
        state alone, unless the embeddings are to be streamed and can be. Then panels again, with the graph in files
        too."""
        workload, memory = self.workload, self.memory
        if memory.name not in ("auto", "stream"):
            return ()
        widths = workload.panel_widths if workload.can_stream else []
        every = [forms.streamed(workload, width) for width in widths if memory.panel in (None, width)]
        tiers = self.choices.stores
        pairs = [(form, tier) for tier in tiers for form in every if self.choices.agrees(form, tier)]
        if workload.can_stream_state and memory.panel is None and (memory.name == "auto" or not pairs):
            state = forms.state(workload)
            pairs += [(state, tier) for tier in tiers if self.choices.agrees(state, tier)]
        last = [
            (form, tier)
            for tier in ([] if workload.on_gpu else tiers)
            for form in ([] if tier.kind == CUSTOM else self._with_graph(every, tier))
            if self.choices.agrees(form, tier)
        ]
        if memory.name == "stream" and not (pairs or last):
            found = f"streams into {' or '.join(tier.name for tier in tiers) or 'no file'}, against"
            pins = ", ".join(f"memory.pin.{tensor}={name}" for tensor, name in memory.pins.items())
            remedy = "Pin embedding, exp_avg and exp_avg_sq, also with the graph, or both moments alone, there"
            raise ConfigError(f"{found} {pins or 'memory.folder'}", where="memory=stream", remedy=remedy)
        return pairs, last

    def _with_graph(self, every: Sequence[Streamed], tier: Tier) -> list[Streamed]:
        """The forms with the graph in files of a tier too."""
        found = [forms.with_graph_in_file(self.workload, form, tier.granularity) for form in every]
        if not any(self.choices.agrees(form, tier) for form in found):
            return []
        try:
            readers = self.pace.transfers(tier).readers
        except UnknownRateError:  # is raised again by what fits
            return found
        return [forms.with_graph_in_file(self.workload, form, tier.granularity, readers) for form in every]

    def _with_ring(self, streamed: Streamed, files: Tier) -> Plan | None:
        """The plan of a form, with the largest ring that fits and is of use; None where none fits."""
        always, ranking = (
            sum(demand.bytes for demand in streamed.demands if (demand.name == RANKING) == ranked)
            for ranked in (False, True)
        )
        buffers = Buffers(self.workload, streamed, files)
        left = self.choices.room(self.home, streamed.demands) - always - buffers.in_files.bytes
        useful = ceil(streamed.panel_bytes / buffers.block_bytes) * buffers.block_bytes
        asked = self.memory.buffer_bytes or min(left, useful)
        ring = buffers.ring(int(max(asked, 0)))
        if max(ring.bytes, ranking) > left or not self.choices.have_room(streamed.files, files):
            return None
        held = buffers.held(ring)
        placements = [self._placement(demand, self.home, "direct") for demand in held]
        placements += [self._placement(demand, self.choices.lies(demand, files), "stream") for demand in streamed.files]
        resources = self._busy(placements, sum(one.flops for one in streamed.passes) if streamed.passes else None)
        if toll := self.pace.toll(files, sum(demand.moved for demand in streamed.files)):
            resources["processors, for transfers"] = toll
        demands = [*held, *streamed.files]
        if streamed.passes:
            step = self.workload.sampling_seconds
            step += sum(self.pace.of_pass(one, streamed, files, ring.bytes) for one in streamed.passes)
            return self._plan("stream", placements, resources, step, demands, streamed.panel, self._used(files, ring))
        update = placements[len(streamed.demands)].seconds
        transfer = resources.get(f"{files.name} (stream)", 0.0)
        compute = sum(resources.values()) - transfer - update
        graph = [self.pace.passing(files, Access("read", count)) for count in streamed.graph_reads]
        hidden = hidden_share(ring.bytes, streamed.panel_bytes, *self.pace.ways(files))
        beside = self.pace.here(streamed.beside)
        step = streamed_seconds(compute - beside, update + beside, transfer - sum(graph), hidden, (graph[0], graph[1]))
        return self._plan("stream", placements, resources, step, demands, streamed.panel, self._used(files, ring))

    def _used(self, files: Tier, buffers: Demand) -> Ring:
        """The ring as training has it."""
        if files.kind == "dram":
            return Ring(buffers.bytes)
        found = self.pace.transfers(files)
        return Ring(buffers.bytes, found.readers, found.writers, found.phased)

    def _busy(self, placements: Sequence[Placement], flops: float | None = None) -> dict[str, float]:
        """Seconds by resource: tiers that kernels work on, files that are streamed, what moves no tensor; flops: of
        dense products, where they are others than in memory."""
        workload = self.workload
        products = workload.product_seconds if flops is None else workload.seconds_of_products(flops)
        total: dict[str, float] = {}
        for placement in placements:
            name = placement.tier if placement.mode == "direct" else f"{placement.tier} (stream)"
            if placement.seconds:
                total[name] = total.get(name, 0.0) + placement.seconds
        beside = {"sampling": workload.sampling_seconds, "dense products": products}
        total |= {name: taken for name, taken in beside.items() if taken}
        return total

    def _plan(
        self,
        mode: str,
        placements: Sequence[Placement],
        resources: dict[str, float],
        step: float,
        demands: Sequence[Demand],
        panel: int | None = None,
        ring: Ring | None = None,
    ) -> Plan:
        speeds = dict.fromkeys(
            self.pace.speed(tier, access, placement.mode)
            for placement, demand in zip(placements, demands, strict=True)
            for tier, accesses in self.pace.movers(self.choices.tiers[placement.tier], demand, placement.mode)
            for access in accesses
            if not access.serial
        )
        steps, threads = self.workload.steps_per_epoch, self.workload.threads
        ordered = sorted(speeds, key=lambda speed: (speed.tier, speed.pattern, speed.row_bytes, speed.working_set))
        simulated = any(self.choices.tiers[placement.tier].provenance == "simulated" for placement in placements)
        busy = tuple(placements), resources, step, steps, threads, tuple(ordered)
        return Plan(mode, panel, ring, *busy, simulated)

    def _short(
        self,
        demands: Sequence[Demand],
        others: Sequence[Tier],
        files: Tier | None = None,
        streamed: Sequence[Demand] = (),
    ) -> dict[str, tuple[int, int]]:
        """What is missing if the largest tensors that may leave go to where most room is left; `streamed` to files."""
        left = {
            tier.name: self.choices.room(tier, demands)
            for tier in (self.home, *others, *([files, *self.choices.mapped] if files else []))
        }
        needed = dict.fromkeys(left, 0)
        for demand in sorted(demands, key=lambda demand: (demand.movable, -demand.bytes)):
            if files is not None:
                tier = (self.choices.lies(demand, files) if demand in streamed else self.home).name
            else:
                names = [option.name for option in self.choices.options(demand) if option.name in left]
                tier = max(names or [self.home.name], key=lambda name: left[name] - needed[name])
            needed[tier] += demand.bytes
        return {name: (needed[name], int(left[name])) for name in left if needed[name] > left[name]}
