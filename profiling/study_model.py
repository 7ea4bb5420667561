"""What plans and counts say of a cell: memory that it takes, and would take with edge-wise kernels; steps on hardware
that is not at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gnnrec.config import HardwareConfig, MemoryConfig, fill, from_yaml
from gnnrec.config.recipes import CONF
from gnnrec.memtier import planner
from gnnrec.memtier.costs import Access
from gnnrec.memtier.declared import declared
from gnnrec.memtier.demands import Demand
from gnnrec.memtier.plans import Plan
from gnnrec.memtier.tiers import Tier
from gnnrec.memtier.workload import Workload
from gnnrec.report.cells import MODELLED
from gnnrec.units import parse_bytes

Json = dict[str, Any]

# [edges, dim] tensors that a step holds at once where messages are made edge by edge, at least. LightGCN: the rows of
# the neighbours and these times their weights, of one layer at a time. NGCF, of every layer until the backward pass:
# the rows at both ends and their product. Public codes hold more: PyTorch Geometric's LGConv 2.4, DGL's NGCF 5 a layer.
_EDGE_WISE = {"lightgcn": (2, False), "ngcf": (3, True)}

_BY_EDGE = ("graph", "interactions", "order")  # tensors that are as long as the interactions


def preset(name: str) -> HardwareConfig:
    """A file of conf/hardware."""
    return fill(HardwareConfig, from_yaml(CONF / "hardware" / f"{name}.yaml"), "hardware")


def needed_bytes(workload: Workload) -> int:
    """Of all tensors of a training in DRAM."""
    return sum(demand.bytes for demand in workload.resident())


def footprint(workload: Workload) -> Json:
    """All in DRAM: with these kernels, and what of it grows with what; at least so much with edge-wise ones."""
    needed, (tensors, kept) = needed_bytes(workload), _EDGE_WISE[workload.model.name]
    more = tensors * (workload.layers if kept else 1) * workload.entries * workload.dim * 4
    by_edge = sum(demand.bytes for demand in workload.resident() if demand.name in _BY_EDGE)
    found = {"all_dram_bytes": needed, "node_dram_bytes": sum(workload.sizes().values()), "edge_dram_bytes": by_edge}
    return found | {"edge_wise_dram_bytes": needed + more}


def of_plan(plan: Plan | None, home: str) -> Json:
    """What a plan says of where tensors lie; nothing but DRAM without one."""
    if plan is None:
        return {"mode": "dram"}
    by_tier = plan.tier_bytes()
    ring = None if plan.ring is None else plan.ring.transfers()
    found: Json = {"mode": plan.mode, "dram_bytes": by_tier.pop(home, 0), "slow_bytes": sum(by_tier.values())}
    found |= {"panel_columns": plan.panel, "predicted_seconds_per_step": plan.step_seconds}
    return found | ({} if ring is None else {"readers_count": ring["readers"], "writers_count": ring["writers"]})


def modelled(here: Workload, words: Json) -> Json:
    """A step on a preset's hardware by its plan, beside one with all in that machine's DRAM.

    Args:
        here: the training on this machine.
        words: of the cell.
    """
    beside = preset(words["hardware"]["app_direct"])
    tiers, workload = declared(beside), _on(beside, here)
    found: Json = {"provenance": MODELLED, "threads_count": workload.threads}
    baseline = planner.plan(workload, tiers, MemoryConfig(name="dram"))
    found |= {"dram_seconds_per_step": baseline.step_seconds}
    needed = needed_bytes(workload)
    given = int(words["dram_share"] * needed)
    if words["placement"] == "memory_mode":
        cached = declared(_cached(preset(words["hardware"]["memory_mode"]), given))
        plan = planner.plan(_Together(**vars(workload)), cached, MemoryConfig(name="dram"))
        found |= {"mode": "cache", "dram_bytes": given, "slow_bytes": needed}
    elif words["placement"] == "app_direct_streamed":
        plan = planner.plan(workload, tiers, MemoryConfig(name="stream", limit=str(given)))
        found |= of_plan(plan, plan.place("batch").tier)
    else:
        plan = planner.plan(workload, tiers, MemoryConfig(name="direct"))
        found |= of_plan(plan, plan.place("batch").tier) | {"tensors": _one_by_one(workload, tiers)}
    return found | {"seconds_per_step": plan.step_seconds}


def _on(hardware: HardwareConfig, here: Workload) -> Workload:
    """On declared processors, each of which is taken to make dense products as fast as one of this machine's."""
    assert hardware.compute is not None
    threads, cache = hardware.compute.threads, parse_bytes("hardware.compute.cache", hardware.compute.cache)
    flops = None if here.flops is None else here.flops * threads / here.threads
    return replace(here, threads=threads, cache_bytes=cache, flops=flops)


class _Together(Workload):
    """Seen by a cache that is memory: what the processors' caches do not hold is spread over all bytes."""

    def resident(self) -> list[Demand]:
        demands = super().resident()
        every = sum(demand.bytes for demand in demands)

        def seen(access: Access) -> Access:
            return access if 0 < access.working_set <= self.cache_bytes else replace(access, working_set=every)

        return [replace(demand, accesses=tuple(map(seen, demand.accesses))) for demand in demands]


def _cached(hardware: HardwareConfig, cache: int) -> HardwareConfig:
    """Memory Mode with so much DRAM as the cache: what is spread over no more is found in it."""

    def tier(one: Any) -> Any:
        return replace(one, rates=[replace(rate, working_set=rate.working_set and str(cache)) for rate in one.rates])

    return replace(hardware, tiers=[tier(one) for one in hardware.tiers])


def _one_by_one(workload: Workload, tiers: Sequence[Tier]) -> list[Json]:
    """What a step takes longer with one tensor on the slow tier, for each that may lie there."""
    home, slow = (next(tier.name for tier in tiers if (tier.kind == "dram") == near) for near in (True, False))
    movable = {demand.name: demand for demand in workload.resident() if demand.movable}

    def seconds(there: str | None) -> float:
        pins: dict[str, str | None] = {name: slow if name == there else home for name in movable}
        return planner.plan(workload, tiers, MemoryConfig(name="direct", pin=pins)).step_seconds

    base = seconds(None)
    rows = []
    for name, demand in movable.items():
        moved = sum(access.bytes for access in demand.accesses)
        gathered = sum(access.bytes for access in demand.accesses if access.pattern == "gather")
        rows.append(
            {"tensor": name, "bytes": demand.bytes, "moved_bytes_per_step": moved}
            | {"gathered_ratio": gathered / moved if moved else 0.0, "extra_seconds_per_step": seconds(name) - base}
        )
    return rows
