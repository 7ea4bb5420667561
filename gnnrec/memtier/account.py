"""The account of a run: what its plan predicted beside what happened."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gnnrec.extensions import is_path
from gnnrec.memtier.files import Traffic
from gnnrec.memtier.plans import Plan
from gnnrec.units import in_seconds

TOLERANCE = 0.25  # a larger deviation is explained


@dataclass(frozen=True)
class Actual:
    """What steps took.

    Args:
        steps: how many.
        seconds: of all of them, by the clock.
        moved: by tensor, what was streamed.
        transferring: seconds in which any transfer went on.
        waiting: seconds that the computation waited for a transfer.
        shares: of tensors that lie on a tier as they are, how much of them really does, in words.
        totalled, gathered: bytes that ranks have added up, and put together, over all of them.
    """

    steps: int
    seconds: float
    moved: Mapping[str, Traffic] = field(default_factory=dict)
    transferring: float = 0.0
    waiting: float = 0.0
    shares: Mapping[str, str] = field(default_factory=dict)
    totalled: int = 0
    gathered: int = 0


def by_tier(plan: Plan, moved: Mapping[str, Traffic]) -> dict[str, tuple[int, int]]:
    """Bytes read and written of each tier, from those of the tensors that are streamed."""
    tiers = {placement.name: placement.tier for placement in plan.placements}
    found: dict[str, tuple[int, int]] = {}
    for name, traffic in moved.items():
        read, written = found.get(tiers[name], (0, 0))
        found[tiers[name]] = read + traffic.read_bytes, written + traffic.write_bytes
    return found


def account(plan: Plan, actual: Actual) -> dict[str, Any]:
    """Predicted against actual, of a step: for `summary.json`, units in the names.

    Bytes and seconds of tensors in memory are not counted while they are used: their actual figures are null.

    Args:
        plan: of the run.
        actual: of its steps; without any, figures of what happened are null.
    """
    steps = max(actual.steps, 1)
    threads = sum(moved.read_seconds + moved.write_seconds for moved in actual.moved.values())
    tensors = []
    for placement in plan.placements:
        entry: dict[str, Any] = {"tensor": placement.name, "tier": placement.tier, "mode": placement.mode}
        entry |= {"bytes": placement.bytes, "predicted_bytes_per_step": placement.moved}
        entry |= {"actual_bytes_per_step": None, "predicted_seconds_per_step": placement.seconds}
        entry["actual_seconds_per_step"] = None
        if (moved := actual.moved.get(placement.name)) is not None and placement.mode == "stream":
            # Of the time in which the tier was at work, the part that this tensor had of its threads'.
            part = (moved.read_seconds + moved.write_seconds) / threads if threads else 0.0
            entry["actual_bytes_per_step"] = (moved.read_bytes + moved.write_bytes) / steps
            entry["actual_seconds_per_step"] = part * actual.transferring / steps
        if placement.name in actual.shares:
            entry["on_tier"] = actual.shares[placement.name]
        tensors.append(entry)
    step = actual.seconds / steps if actual.steps else None
    deviation = None if step is None else step / plan.step_seconds - 1
    found: dict[str, Any] = {"simulated": "SIMULATED"} if plan.simulated else {}
    found |= {"mode": plan.mode, "panel_columns": plan.panel, "buffer_bytes": plan.buffer_bytes, "tensors": tensors}
    found |= {"predicted_seconds_per_step": plan.step_seconds, "actual_seconds_per_step": step, "deviation": deviation}
    if actual.moved and actual.steps:
        found |= {"transfer_seconds_per_step": actual.transferring / steps}
        found |= {"waiting_seconds_per_step": actual.waiting / steps}
        found["hidden_share"] = hidden(actual.seconds, actual.transferring, actual.waiting)
    if deviation is not None and abs(deviation) > TOLERANCE:
        found["likely_cause"] = _cause(plan, actual)
    return found


def hidden(seconds: float, transferring: float, waiting: float) -> float:
    """Of the shorter of computation and transfers, the share that went on beside the other; what waits for transfers
    also waits for the threads that do them, and so may wait longer."""
    computing = seconds - waiting
    shorter = min(computing, transferring)
    return max((computing + transferring - seconds) / shorter, 0.0) if shorter > 0 else 0.0


def _cause(plan: Plan, actual: Actual) -> str:
    """What deviates most, in words."""
    steps = max(actual.steps, 1)
    streamed = sum(seconds for name, seconds in plan.resources.items() if name.endswith("(stream)"))
    computed = sum(plan.resources.values()) - streamed
    computing, transferring = (actual.seconds - actual.waiting) / steps, actual.transferring / steps
    by = {"computation": computing - computed, "transfers": transferring - streamed}
    most = max(by, key=lambda name: abs(by[name]))
    load = os.getloadavg()[0] / len(os.sched_getaffinity(0))
    if most == "computation":
        words = f"the computation took {in_seconds(computing)} a step where {in_seconds(computed)} were predicted"
        if computing < computed:
            why = "the machine was busy when it was calibrated, or caches hold more than was thought"
        else:
            why = f"the load is {load:.1f} a core" if load > 1.5 else "the calibration may be of another day"
        return f"{words}: {why}; run gnnrec calibrate on an idle machine"
    words = f"transfers took {in_seconds(transferring)} a step where {in_seconds(streamed)} were predicted"
    why = "the device is faster than it was" if transferring < streamed else "something else uses the device"
    words = f"{words}: {why}, or its cache behaves in another way"
    if any(is_path(placement.tier) for placement in plan.placements if placement.mode == "stream"):
        return f"{words}; an own tier's rates are those that it declares, or are measured for every plan anew"
    return f"{words}; run gnnrec calibrate again"
