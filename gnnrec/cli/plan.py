"""`gnnrec plan`: where a training's tensors would lie, and how long its steps would take."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnnrec.cli.show import table
from gnnrec.config import PlanConfig
from gnnrec.storage import atomic_write
from gnnrec.units import in_bytes, in_seconds

if TYPE_CHECKING:
    from gnnrec.memtier.plans import Plan
    from gnnrec.memtier.tiers import Tier
    from gnnrec.memtier.workload import Workload


def plan(values: dict[str, Any], run_dir: Path, verb: str) -> None:
    """Say where tensors would lie and what a step would take, on this hardware or another."""
    config = PlanConfig.from_dict(values)

    from gnnrec.memtier import planner
    from gnnrec.training.placing import normalised

    tiers = _tiers(config)
    found = planner.plan(_workload(config, tiers), tiers, normalised(config.train.memory))
    show(found)
    if config.out is not None:
        content = found.to_dict() | {"hardware": config.hardware.name}
        atomic_write(config.out, (json.dumps(content, indent=2) + "\n").encode())
        print(f"kept in {config.out}")


def show(plan: Plan) -> None:
    """Print a plan: the rates it counts on, its table, its totals."""
    table([_speed_row(speed) for speed in plan.speeds])
    sources = dict.fromkeys((speed.tier, source) for speed in plan.speeds for source in speed.sources)
    for tier, source in sources:
        print(f"  {tier}: {source}")
    table(plan.rows())
    busy = ", ".join(f"{name} {in_seconds(seconds)}" for name, seconds in plan.resources.items())
    print(f"mode: {plan.mode}{_panels(plan)}")
    print("memory: " + ", ".join(f"{tier} {in_bytes(count)}" for tier, count in plan.tier_bytes().items()))
    stamp = "SIMULATED " if plan.simulated else ""
    print(f"{stamp}predicted step: {in_seconds(plan.step_seconds)} with {plan.threads} threads ({busy})")
    print(f"{stamp}predicted epoch: {in_seconds(plan.epoch_seconds)}, {plan.steps_per_epoch} steps, without evaluation")
    print(f"binding resource: {plan.binding}")


def _panels(plan: Plan) -> str:
    if plan.panel is None or plan.ring is None:
        return ""
    ring = plan.ring
    ways = f"{ring.readers} reading and {ring.writers} writing at a time{', in turns' if ring.phased else ''}"
    return f", panels of {plan.panel} columns, buffers of {in_bytes(plan.buffer_bytes)}, {ways}"


def _speed_row(speed: Any) -> dict[str, str]:
    return {
        "tier": speed.tier,
        "pattern": speed.pattern,
        "row": f"{speed.row_bytes} bytes" if speed.row_bytes else "in order",
        "within": in_bytes(speed.working_set) if speed.working_set else "",
        "GB/s": f"{speed.gb_per_s:.2f}",
        "from": speed.basis,
    }


def _tiers(config: PlanConfig) -> list[Tier]:
    """What is found here, calibrated, changed by the declared hardware; and a user's own tier."""
    from gnnrec.memtier import measure_custom
    from gnnrec.memtier.calibrate import calibrated
    from gnnrec.memtier.custom import CustomTier
    from gnnrec.memtier.declared import what_if
    from gnnrec.memtier.discover import discover

    memory = config.train.memory
    named = [memory.folder, *memory.pins.values()]
    folders = [name for name in named if name is not None and "/" in name]
    tiers = what_if(calibrated(discover(folders or ["."])), config.hardware)
    if memory.custom.path is not None:
        with CustomTier(memory.custom, run="gnnrec plan") as own:
            tiers.append(measure_custom.measured(own, partial(print, flush=True)))
    return tiers


def _workload(config: PlanConfig, tiers: list[Tier]) -> Workload:
    """The training on the processors that are there or declared."""
    from gnnrec.data import dataset
    from gnnrec.training.placing import held_out, workload
    from gnnrec.training.run import graph_of, set_threads

    train = config.train
    if train.threads is not None and config.hardware.compute is None:
        set_threads(train.threads)
    data = dataset.load(train.data)
    return workload(
        train,
        graph_of(data.train),
        tiers,
        held_out=held_out(train, data),
        hardware=config.hardware,
        declared_gpu=bool(config.hardware.tiers) and any(tier.kind == "gpu" for tier in tiers),
    )
