"""What goes where: the placement with the shortest step that fits, found exactly.

Every tensor has one place. Work on tensors where they lie costs the sum over tensors, since the same threads do all of
it; files that are streamed meanwhile cost the longer of both. Capacities count every tensor and buffer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import ceil, inf

from gnnrec.config.checks import did_you_mean
from gnnrec.config.memory import MemoryConfig
from gnnrec.errors import ConfigError, GnnrecError
from gnnrec.memtier import forms
from gnnrec.memtier.costs import (
    Access,
    Bandwidth,
    Transfers,
    UnknownRateError,
    bandwidth,
    calibrate,
    seconds,
    transfers,
)
from gnnrec.memtier.demands import FINAL, RANKING, STATE, Demand, Pass, Streamed
from gnnrec.memtier.layout import Layout
from gnnrec.memtier.overlap import hidden_share, streamed_seconds
from gnnrec.memtier.passes import SOURCES
from gnnrec.memtier.plans import Placement, Plan, Speed
from gnnrec.memtier.ring import FEWEST, Ring
from gnnrec.memtier.search import place
from gnnrec.memtier.staging import host_layout
from gnnrec.memtier.tiers import CUSTOM, Rate, Tier
from gnnrec.memtier.workload import GROUP, Workload
from gnnrec.units import in_bytes

DIRECT = ("embedding", *STATE, "master")  # what memory=direct takes out of the tier that computes


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
    shortfalls = problem.shortfalls()
    short = "; ".join(
        f"{name} needs {in_bytes(needed)} and has {in_bytes(room)}, {in_bytes(needed - room)} too little"
        for name, (needed, room) in shortfalls.items()
    )
    remedies = list(_remedies(problem, shortfalls))
    remedy = f"In this order: {', or '.join(remedies)}" if remedies else "Use a smaller data set or a larger machine"
    raise PlanError(f"no placement fits: {short}", where=f"memory={memory.name}", remedy=remedy)


def simulated(tier: Tier, read_gb_per_s: float, write_gb_per_s: float) -> Tier:
    """The tier as `memory.simulate` slows it down."""

    def rate(pattern: str, gb_per_s: float) -> Rate:
        known = [rate.gb_per_s for rate in tier.rates if rate.pattern == pattern]
        return Rate(pattern, min([gb_per_s, *known]), source="memory.simulate")

    rates = rate("read", read_gb_per_s), rate("write", write_gb_per_s)
    return replace(tier, rates=rates, provenance="simulated")


class _Problem:
    """A workload, the tiers it may use, and what the configuration demands."""

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
        own = [tier for tier in usable if tier.kind == CUSTOM]
        # A GPU's kernels take tensors on it alone; blocks come to it from DRAM, or from a folder that is named.
        others = [] if workload.on_gpu else [tier for tier in usable if tier.kind not in ("gpu", CUSTOM)]
        others = [tier for tier in others if tier != self.home]
        # Whoever leaves it to us need not calibrate what is not wanted.
        wanted = {*([] if own else [memory.folder]), *memory.pins.values()}
        self.uncalibrated = [
            tier for tier in others if memory.name == "auto" and not tier.rates and not {tier.name, tier.where} & wanted
        ]
        self.others = [tier for tier in others if tier not in self.uncalibrated]
        self.resident = workload.resident()
        self.transfers: dict[str, Transfers] = {}
        files = [tier for tier in self._in_folder(usable) if tier.kind in ("file", "pmem")]
        self.stores = own or self._stores(usable if workload.on_gpu else self.others)
        # Beside a user's own tier, which nobody can map.
        self.mapped = files[:1] if own else []
        if own and not files:
            found = "there is no folder for files that are mapped, which an own tier needs beside it"
            raise ConfigError(found, where="memory.custom", remedy="Give one on a disk by memory.folder")
        self.tiers = {tier.name: tier for tier in (self.home, *self.others, *self.stores, *self.mapped)}
        staying, leaving = (sum(d.bytes for d in self.resident if d.movable == movable) for movable in (False, True))
        beside = self._free(self.home, self.resident) - staying
        self.cached = min(1.0, max(0.0, beside / leaving)) if leaving else 1.0  # of mapped files, by the page cache
        self._check()

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
            attempts.append(self._short(self.resident, self.others if self.memory.name != "dram" else []))
        for streamed, tier in itertools.chain(*self._streams()):
            ring = self._ring(streamed, tier, self.memory.buffer_bytes or 0)
            demands = [*self._held(streamed, tier, ring), *streamed.files]
            attempts.append(self._short(demands, [], tier, streamed.files))
        return min(attempts, key=lambda short: sum(needed - room for needed, room in short.values()))

    def room(self, tier: Tier, demands: Sequence[Demand]) -> float:
        """Bytes that a tier has for these; memory.limit counts what is held already, free memory is beside it."""
        return min(self._free(tier, demands), self._limit(tier))

    def could_have(self, needed: int) -> bool:
        """Whether so many bytes are there where the computation is, were it not for memory.limit."""
        return needed <= self._free(self.home, self.resident)

    def _limit(self, tier: Tier) -> float:
        return self.memory.limit_bytes or inf if tier == self.home else inf

    def _free(self, tier: Tier, demands: Sequence[Demand]) -> float:
        free = tier.free if tier.free is not None else tier.capacity
        held = sum(demand.bytes for demand in demands if demand.held) if tier == self.home else 0
        return inf if free is None else free + held

    def _resident(self) -> Plan | None:
        """Every tensor where kernels work on it."""
        options = [self._options(demand) for demand in self.resident]
        costs = [
            {tier.name: self._seconds(tier, demand) for tier in tiers}
            for demand, tiers in zip(self.resident, options, strict=True)
        ]
        if not all(costs):
            return None
        room = {name: self.room(tier, self.resident) for name, tier in self.tiers.items()}
        found = place([demand.bytes for demand in self.resident], costs, room)
        if found is None:
            return None
        placements = [
            self._placement(demand, self.tiers[name], "direct")
            for demand, name in zip(self.resident, found[0], strict=True)
        ]
        resources = self._busy(placements)
        mode = "dram" if {placement.tier for placement in placements} == {self.home.name} else "direct"
        return self._plan(mode, placements, resources, sum(resources.values()), self.resident)

    def _placement(self, demand: Demand, tier: Tier, mode: str) -> Placement:
        taken = self._transfer(tier, demand) if mode == "stream" else self._seconds(tier, demand)
        return Placement(demand.name, demand.bytes, tier.name, mode, _moved(demand), taken)

    def _options(self, demand: Demand) -> list[Tier]:
        """Where a tensor may lie."""
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
        return self._in_folder(self.others) if self.memory.folder or not direct else direct

    def _in_folder(self, tiers: Sequence[Tier]) -> list[Tier]:
        """The tier of memory.folder, where it is set."""
        folder = self.memory.folder
        return [tier for tier in tiers if folder is None or folder in (tier.name, tier.where)]

    def _stores(self, tiers: Sequence[Tier]) -> list[Tier]:
        """Where streamed tensors may lie: files; beside a GPU DRAM, unless memory.folder is set."""
        if self.workload.on_gpu and self.memory.folder is None:
            return [tier for tier in tiers if tier.kind == "dram"]
        return [tier for tier in self._in_folder(tiers) if tier.kind in ("file", "pmem")]

    def _streams(self) -> tuple[list[tuple[Streamed, Tier]], ...]:
        """Forms of the training with files, and the tiers that may hold these: panels of all widths; the optimizer's
        state alone, unless the embeddings are to be streamed and can be. Then panels again, with the graph in files
        too."""
        workload, memory = self.workload, self.memory
        if memory.name not in ("auto", "stream"):
            return ()
        widths = workload.panel_widths if workload.can_stream else []
        every = [forms.streamed(workload, width) for width in widths if memory.panel in (None, width)]
        tiers = self.stores
        pairs = [(form, tier) for tier in tiers for form in every if self._agrees(form, tier)]
        if workload.can_stream_state and memory.panel is None and (memory.name == "auto" or not pairs):
            state = forms.state(workload)
            pairs += [(state, tier) for tier in tiers if self._agrees(state, tier)]
        last = [
            (form, tier)
            for tier in ([] if workload.on_gpu else tiers)
            for form in ([] if tier.kind == CUSTOM else self._with_graph(every, tier))
            if self._agrees(form, tier)
        ]
        if memory.name == "stream" and not (pairs or last):
            found = f"streams into {' or '.join(tier.name for tier in tiers) or 'no file'}, against"
            pins = ", ".join(f"memory.pin.{tensor}={name}" for tensor, name in memory.pins.items())
            remedy = "Pin embedding, exp_avg and exp_avg_sq, also with the graph, or both moments alone, to that folder"
            raise ConfigError(f"{found} {pins or 'memory.folder'}", where="memory=stream", remedy=remedy)
        return pairs, last

    def _with_graph(self, every: Sequence[Streamed], tier: Tier) -> list[Streamed]:
        """The forms with the graph in files of a tier too."""
        found = [forms.with_graph_in_file(self.workload, form, tier.granularity) for form in every]
        if not any(self._agrees(form, tier) for form in found):
            return []
        try:
            readers = self._transfers(tier).readers
        except UnknownRateError:  # is raised again by what fits
            return found
        return [forms.with_graph_in_file(self.workload, form, tier.granularity, readers) for form in every]

    def _agrees(self, form: Streamed, tier: Tier) -> bool:
        """Whether the pins have in files what the form has there, and all else where the computation is."""
        places = {demand.name: tier.name for demand in form.files}
        return all(places.get(tensor, self.home.name) == name for tensor, name in self.memory.pins.items())

    def _with_ring(self, streamed: Streamed, files: Tier) -> Plan | None:
        """The plan of a form, with the largest ring that fits and is of use; None where none fits."""
        always, ranking = (
            sum(demand.bytes for demand in streamed.demands if (demand.name == RANKING) == ranked)
            for ranked in (False, True)
        )
        left = self.room(self.home, streamed.demands) - always - self._file_buffers(streamed, files).bytes
        block = self._block_bytes(streamed, files)
        useful = ceil(streamed.panel_bytes / block) * block
        asked = self.memory.buffer_bytes or min(left, useful)
        ring = self._ring(streamed, files, int(max(asked, 0)))
        if max(ring.bytes, ranking) > left or not self._have_room(streamed.files, files):
            return None
        held = self._held(streamed, files, ring)
        placements = [self._placement(demand, self.home, "direct") for demand in held]
        placements += [self._placement(demand, self._lies(demand, files), "stream") for demand in streamed.files]
        resources = self._busy(placements, sum(one.flops for one in streamed.passes) if streamed.passes else None)
        demands = [*held, *streamed.files]
        if streamed.passes:
            step = self.workload.sampling_seconds
            step += sum(self._pass_seconds(one, streamed, files, ring.bytes) for one in streamed.passes)
            return self._plan("stream", placements, resources, step, demands, streamed.panel, self._used(files, ring))
        update = placements[len(streamed.demands)].seconds
        transfer = resources[f"{files.name} (stream)"]
        compute = sum(resources.values()) - transfer - update
        graph = [self._streaming(files, Access("read", count)) for count in streamed.graph_reads]
        if files.kind == "dram":
            ways = [bandwidth(self.home, Access(way, 1), 1).gb_per_s for way in ("to_gpu", "from_gpu")]
        else:
            ways = [self._transfers(files).read_gb_per_s, self._transfers(files).write_gb_per_s]
        hidden = hidden_share(ring.bytes, streamed.panel_bytes, *ways)
        beside = sum(seconds(self.home, access, self.workload.threads) for access in streamed.beside)
        step = streamed_seconds(compute - beside, update + beside, transfer - sum(graph), hidden, (graph[0], graph[1]))
        return self._plan("stream", placements, resources, step, demands, streamed.panel, self._used(files, ring))

    def _lies(self, demand: Demand, files: Tier) -> Tier:
        """Where a tensor lies that is streamed into these files: what is mapped, in files whatever a user's tier is."""
        return self.mapped[0] if self.mapped and demand.name == FINAL else files

    def _have_room(self, demands: Sequence[Demand], files: Tier) -> bool:
        """Whether what is streamed into these files has room."""
        needed: dict[str, int] = {}
        for demand in demands:
            name = self._lies(demand, files).name
            needed[name] = needed.get(name, 0) + demand.bytes
        return all(size <= self.room(self.tiers[name], demands) for name, size in needed.items())

    def _used(self, files: Tier, buffers: Demand) -> Ring:
        """The ring as training has it."""
        if files.kind == "dram":
            return Ring(buffers.bytes)
        found = self._transfers(files)
        return Ring(buffers.bytes, found.readers, found.writers, found.phased)

    def _pass_seconds(self, one: Pass, streamed: Streamed, files: Tier, ring: int) -> float:
        """A pass: transfers go on beside computation, but for panels that it waits for, as far as they were not read
        ahead into the ring."""
        compute = sum(seconds(self.home, access, self.workload.threads) for access in one.compute)
        compute += self.workload.seconds_of_products(one.flops)
        transfer = sum(self._streaming(files, access) for access in one.transfer)
        ahead = min(1.0, SOURCES * ring * streamed.panels / one.waited) if one.waited else 1.0
        waited = (1 - ahead) * self._streaming(files, Access("read", one.waited))
        return waited + max(compute, transfer - waited)

    def _ring(self, streamed: Streamed, files: Tier, buffer_bytes: int) -> Demand:
        """The staging buffers: whole blocks, at least as many as a stream makes."""
        layout, block = self._layout(streamed, files), self._block_bytes(streamed, files)
        count = min(max(FEWEST, buffer_bytes // block), layout.panels * layout.blocks)
        return Demand("buffers", count * block, streamed.update)

    def _held(self, streamed: Streamed, files: Tier, ring: Demand) -> list[Demand]:
        """What lies where the computation is: the demands, the ring, other buffers."""
        buffers = self._file_buffers(streamed, files)
        return [*_beside(ring, streamed.demands), ring, *([buffers] if buffers.bytes else [])]

    def _file_buffers(self, streamed: Streamed, files: Tier) -> Demand:
        """Those of matrices in files, one at a time of which is gone over by itself; beside a GPU they are in DRAM."""
        count = 0 if self.workload.on_gpu else streamed.in_files
        return Demand("file_buffers", count * self._layout(streamed, files).block_bytes)

    def _block_bytes(self, streamed: Streamed, files: Tier) -> int:
        """Of a buffer of the ring, which holds a block of several matrices."""
        return streamed.matrices * self._layout(streamed, files).block_bytes

    def _layout(self, streamed: Streamed, files: Tier) -> Layout:
        columns = streamed.panel * streamed.panels
        if files.kind == "dram":
            return host_layout(self.workload.nodes, columns, streamed.panel)
        return Layout.of(self.workload.nodes, columns, streamed.panel, files.granularity, streamed.block_bytes)

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
            self._speed(tier, access, placement.mode)
            for placement, demand in zip(placements, demands, strict=True)
            for tier, accesses in self._movers(self.tiers[placement.tier], demand, placement.mode)
            for access in accesses
            if not access.serial
        )
        steps, threads = self.workload.steps_per_epoch, self.workload.threads
        ordered = sorted(speeds, key=lambda speed: (speed.tier, speed.pattern, speed.row_bytes, speed.working_set))
        simulated = any(self.tiers[placement.tier].provenance == "simulated" for placement in placements)
        busy = tuple(placements), resources, step, steps, threads, tuple(ordered)
        return Plan(mode, panel, ring, *busy, simulated)

    def _speed(self, tier: Tier, access: Access, mode: str) -> Speed:
        streamed = mode == "stream" and tier != self.home
        found = self._passing(tier, access) if streamed else bandwidth(tier, access, self.workload.threads)
        return Speed(
            tier.name, access.pattern, access.row_bytes, access.working_set, found.gb_per_s, found.basis, found.sources
        )

    def _movers(self, tier: Tier, demand: Demand, mode: str) -> list[tuple[Tier, Sequence[Access]]]:
        """What moves a tensor, and how: the tier that it lies in, and beside a GPU, its link."""
        if mode == "direct" or not self.workload.on_gpu:
            return [(tier, demand.accesses)]
        link = (self.home, demand.accesses)
        return [link] if tier.kind == "dram" else [link, (tier, (Access("mixed", _moved(demand)),))]

    def _transfer(self, tier: Tier, demand: Demand) -> float:
        """Seconds in which a tensor is streamed. A GPU's link takes both ways at a time, and files beside them."""
        if not self.workload.on_gpu:
            return sum(self._streaming(tier, access) for access in demand.accesses)
        taken = [
            self._streaming(mover, access)
            for mover, accesses in self._movers(tier, demand, "stream")
            for access in accesses
        ]
        return max(taken, default=0.0)

    def _streaming(self, tier: Tier, access: Access) -> float:
        """Seconds in which blocks pass."""
        return access.bytes / (self._passing(tier, access).gb_per_s * 1e9) if access.bytes else 0.0

    def _passing(self, tier: Tier, access: Access) -> Bandwidth:
        """What blocks pass with: a GPU's link as it is, files as `costs.transfers` has it."""
        if tier == self.home:
            return bandwidth(tier, access, 1)
        found, sources = self._transfers(tier), bandwidth(tier, access, 1).sources
        rates = {"read": found.read_gb_per_s, "write": found.write_gb_per_s, "mixed": found.gb_per_s}
        return Bandwidth(rates[access.pattern], found.basis, sources)

    def _transfers(self, files: Tier) -> Transfers:
        if files.name not in self.transfers:
            self.transfers[files.name] = transfers(files)
        return self.transfers[files.name]

    def _seconds(self, tier: Tier, demand: Demand) -> float:
        taken = sum(seconds(tier, access, self.workload.threads) for access in demand.accesses)
        if tier.kind != "file":
            return taken
        # Processors see a mapped file through the page cache: what fits beside everything else is found there.
        near = sum(seconds(self.home, access, self.workload.threads) for access in demand.accesses)
        return self.cached * near + (1 - self.cached) * taken

    def _short(
        self,
        demands: Sequence[Demand],
        others: Sequence[Tier],
        files: Tier | None = None,
        streamed: Sequence[Demand] = (),
    ) -> dict[str, tuple[int, int]]:
        """What is missing if the largest tensors that may leave go to where most room is left; `streamed` to files."""
        left = {
            tier.name: self.room(tier, demands)
            for tier in (self.home, *others, *([files, *self.mapped] if files else []))
        }
        needed = dict.fromkeys(left, 0)
        for demand in sorted(demands, key=lambda demand: (demand.movable, -demand.bytes)):
            if files is not None:
                tier = (self._lies(demand, files) if demand in streamed else self.home).name
            else:
                names = [option.name for option in self._options(demand) if option.name in left]
                tier = max(names or [self.home.name], key=lambda name: left[name] - needed[name])
            needed[tier] += demand.bytes
        return {name: (needed[name], int(left[name])) for name in left if needed[name] > left[name]}

    def _check(self) -> None:
        """Raise a ConfigError for what the workload and the tiers do not know."""
        memory, widths = self.memory, self.workload.panel_widths
        if self.workload.on_gpu:
            self._check_gpu()
        elif memory.name == "stream" and not self.workload.can_stream_state:
            remedy = "Leave out trainer.storage and optimizer.state_dtype; or take memory=dram"
            raise ConfigError("streams float32 alone", where="memory=stream", remedy=remedy)
        if memory.panel is not None and not self.workload.can_stream:
            found = f"has no effect with model={self.workload.model.name}, loss={self.workload.loss.name}"
            remedy = "Panels take model=ngcf or model=lightgcn with model.init=normal, loss=bpr and no optimizer.clip"
            raise ConfigError(found, where="memory.panel", remedy=remedy)
        if memory.panel is not None and memory.panel not in widths:
            remedy = f"It must be one of {', '.join(map(str, widths))}, which divide model.dim={self.workload.dim}"
            raise ConfigError(f"is {memory.panel}", where="memory.panel", remedy=remedy)
        if memory.name in ("direct", "stream") and not (self.stores or self._in_folder(self.others)):
            remedy = "Give a folder on it by memory.folder, as gnnrec tiers lists it"
            named = [tier for tier in self.every if memory.folder in (tier.name, tier.where) and tier.unavailable]
            why = "".join(f": {tier.name} is unavailable, {tier.unavailable}" for tier in named)
            found = f"there is no tier beside the one that computes{why}"
            raise ConfigError(found, where=f"memory={memory.name}", remedy=remedy)
        movable = {demand.name: demand.movable for demand in self.resident}
        for tensor, name in memory.pins.items():
            self._check_pin(tensor, name, movable)

    def _check_gpu(self) -> None:
        """Raise a ConfigError for what a GPU cannot do, or has no use for."""
        memory = self.memory
        if memory.name == "direct":
            found, remedy = "has tensors where a GPU's kernels do not reach them", "Take memory=stream, or device=cpu"
            raise ConfigError(found, where="memory=direct", remedy=remedy)
        if memory.name == "stream" and not self.workload.can_stream:
            found = "streams float32 panels of LightGCN with BPR and Adam alone to a GPU"
            remedy = (
                "Take model=lightgcn, model.init=normal, a model.dim that 16 divides, loss=bpr, and leave out "
                "optimizer.clip, trainer.storage and optimizer.state_dtype; or memory=dram, or device=cpu"
            )
            raise ConfigError(found, where="memory=stream", remedy=remedy)
        if memory.slower is not None and memory.folder is None:
            found, remedy = "has no effect on DRAM, from which a GPU is streamed to", "Give a folder by memory.folder"
            raise ConfigError(found, where="memory.simulate", remedy=remedy)

    def _check_pin(self, tensor: str, name: str, movable: dict[str, bool]) -> None:
        where = f"memory.pin.{tensor}"
        if tensor not in movable:
            raise ConfigError("there is no such tensor", where=where, remedy=did_you_mean(tensor, list(movable)))
        if name not in self.tiers:
            why = next((f" ({tier.unavailable})" for tier in self.every if tier.name == name and tier.unavailable), "")
            remedy = did_you_mean(name, list(self.tiers))
            raise ConfigError(f"is {name!r}, which is no tier that can be used here{why}", where=where, remedy=remedy)
        if not movable[tensor] and name != self.home.name:
            able = ", ".join(other for other in movable if movable[other])
            found = f"is {name!r}, but this tensor is always in {self.home.name}"
            raise ConfigError(found, where=where, remedy=f"What can be pinned elsewhere: {able}")


def _remedies(problem: _Problem, shortfalls: Mapping[str, tuple[int, int]]) -> Iterator[str]:
    """What would make a plan possible, with numbers: first what leaves the results as they are."""
    workload, memory, tiers = problem.workload, problem.memory, problem.every
    needed, _ = shortfalls.get(problem.home.name, (0, 0))
    if needed and memory.limit is not None and problem.could_have(needed):
        yield f"memory.limit={ceil(needed / 2**20)}MiB"
    for tier in problem.uncalibrated:
        yield calibrate(tier)
    for key, without in (
        ("buffer", replace(memory, buffer=None)),
        ("panel", replace(memory, panel=None)),
        ("pin", replace(memory, pin={})),
    ):
        if without != memory and _fits(workload, tiers, without):
            yield f"leave out memory.{key}"
    for mode in ("auto", "stream", "direct"):
        if mode != memory.name and _fits(workload, tiers, replace(memory, name=mode, panel=None, buffer=None)):
            yield f"memory={mode}"
    smaller = (workload.with_dim(dim) for dim in range((workload.dim - 1) // GROUP * GROUP, 0, -GROUP))
    if fitting := next((w for w in smaller if _fits(w, tiers, replace(memory, panel=None))), None):
        yield f"model.dim={fitting.dim}"
    smaller = (workload.with_batch(workload.batch >> k) for k in range(1, workload.batch.bit_length()))
    if fitting := next((w for w in smaller if _fits(w, tiers, memory)), None):
        yield f"trainer.batch_size={fitting.batch}"
    for name, (needed, room) in shortfalls.items():
        yield f"{in_bytes(needed - room)} more in {name}"


def _fits(workload: Workload, tiers: Sequence[Tier], memory: MemoryConfig) -> bool:
    try:
        return _Problem(workload, tiers, memory).best() is not None
    except GnnrecError:
        return False


def _beside(ring: Demand, demands: Sequence[Demand]) -> list[Demand]:
    """Of rankings what they take beyond the ring, whose buffers are given up before."""
    return [
        replace(demand, bytes=max(0, demand.bytes - ring.bytes)) if demand.name == RANKING else demand
        for demand in demands
    ]


def _moved(demand: Demand) -> float:
    return sum(access.bytes for access in demand.accesses)
