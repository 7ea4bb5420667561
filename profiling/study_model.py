"""What plans and counts say of a cell: memory that it takes, and would take with edge-wise kernels; steps on hardware
that is not at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from gnnrec.config import HardwareConfig, MemoryConfig, NGCFConfig, TrainConfig, fill, from_yaml
from gnnrec.config.recipes import CONF
from gnnrec.graph.bipartite import BipartiteGraph
from gnnrec.memtier import planner
from gnnrec.memtier.costs import product_flops
from gnnrec.memtier.declared import declared
from gnnrec.memtier.plans import Plan
from gnnrec.memtier.tiers import Tier
from gnnrec.memtier.workload import Workload
from gnnrec.report.cells import MODELLED
from gnnrec.training import placing

Json = dict[str, Any]

# [edges, dim] tensors that a step holds at once where messages are made edge by edge, at least. LightGCN: the rows of
# the neighbours and these times their weights, of one layer at a time. NGCF, of every layer until the backward pass:
# the rows at both ends and their product. Public codes hold more: PyTorch Geometric's LGConv 2.4, DGL's NGCF 5 a layer.
_EDGE_WISE = {"lightgcn": (2, False), "ngcf": (3, True)}


def preset(name: str) -> HardwareConfig:
    """A file of conf/hardware."""
    return fill(HardwareConfig, from_yaml(CONF / "hardware" / f"{name}.yaml"), "hardware")


def needed_bytes(config: TrainConfig, graph: BipartiteGraph) -> int:
    """Of all tensors of a step in DRAM."""
    return _bytes(placing.workload(config, graph, [], validated=False))


def footprint(config: TrainConfig, graph: BipartiteGraph) -> Json:
    """All in DRAM: with these kernels, and at least so much with edge-wise ones."""
    needed, dim, layers = needed_bytes(config, graph), config.model.dim, config.model.layers  # type: ignore[union-attr]
    tensors, kept = _EDGE_WISE[config.model.name]
    edges = 2 * int(graph.user_degrees.sum())
    edge_wise = needed + tensors * (layers if kept else 1) * edges * dim * 4
    return {"all_dram_bytes": needed, "edge_wise_dram_bytes": edge_wise}


def of_plan(plan: Plan | None, home: str) -> Json:
    """What a plan says of where tensors lie; nothing but DRAM without one."""
    if plan is None:
        return {"mode": "dram"}
    by_tier = plan.tier_bytes()
    ring = None if plan.ring is None else plan.ring.transfers()
    found: Json = {"mode": plan.mode, "dram_bytes": by_tier.pop(home, 0), "slow_bytes": sum(by_tier.values())}
    found |= {"panel_columns": plan.panel, "predicted_seconds_per_step": plan.step_seconds}
    return found | ({} if ring is None else {"readers_count": ring["readers"], "writers_count": ring["writers"]})


def modelled(config: TrainConfig, graph: BipartiteGraph, words: Json) -> Json:
    """A step on a preset's hardware by its plan, beside one with all in that machine's DRAM."""
    beside = preset(words["hardware"]["app_direct"])
    tiers, workload = declared(beside), _workload(config, graph, beside)
    found: Json = {"provenance": MODELLED, "threads_count": workload.threads}
    baseline = planner.plan(workload, tiers, MemoryConfig(name="dram"))
    found |= {"dram_seconds_per_step": baseline.step_seconds}
    if words["placement"] == "app_direct_in_place":
        plan = planner.plan(workload, tiers, MemoryConfig(name="direct"))
        found |= of_plan(plan, plan.place("batch").tier) | {"tensors": _one_by_one(workload, tiers)}
    else:
        needed = _bytes(workload)
        cache = int(words["dram_share"] * needed)
        cached = declared(_cached(preset(words["hardware"]["memory_mode"]), cache))
        plan = planner.plan(workload, cached, MemoryConfig(name="dram"))
        found |= {"mode": "cache", "dram_bytes": cache, "slow_bytes": needed}
    return found | {"seconds_per_step": plan.step_seconds}


def _workload(config: TrainConfig, graph: BipartiteGraph, hardware: HardwareConfig) -> Workload:
    """On the declared processors, each of which is taken to make dense products as fast as one of this machine's."""
    found = placing.workload(config, graph, declared(hardware), validated=False, hardware=hardware)
    if not isinstance(config.model, NGCFConfig):
        return found
    return replace(found, flops=product_flops(torch.float32) * found.threads / torch.get_num_threads())


def _cached(hardware: HardwareConfig, cache: int) -> HardwareConfig:
    """Memory Mode with so much DRAM as the cache: what is spread over more is missed in it."""

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


def _bytes(workload: Workload) -> int:
    return sum(demand.bytes for demand in workload.resident())
