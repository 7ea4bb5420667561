"""What a run planned, `plan.json`, beside what happened, as `summary.json` has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gnnrec.errors import CheckpointError
from gnnrec.report.fields import get, json_object, optional

_SIMULATED = "memory.simulate"  # source of a rate that the configuration made up


@dataclass(frozen=True)
class Tensor:
    """Where a tensor was planned to lie, with bytes and seconds of a step.

    What happened is None where nobody counts it (tensors in memory) and where the run did not end.
    """

    name: str
    bytes: int
    tier: str
    mode: str
    predicted_bytes: float
    predicted_seconds: float
    actual_bytes: float | None = None
    actual_seconds: float | None = None
    on_tier: str = ""
    simulated: bool = False


@dataclass(frozen=True)
class Rate:
    """A bandwidth that the plan counts on, 10^9 bytes a second."""

    tier: str
    pattern: str
    row_bytes: int
    working_set: int
    gb_per_s: float
    basis: str
    sources: tuple[str, ...]

    @property
    def simulated(self) -> bool:
        return _SIMULATED in self.sources


@dataclass(frozen=True)
class Plan:
    """`plan.json`: seconds of a step in all, and by what is busy."""

    mode: str
    panel: int | None
    buffer_bytes: int
    tensors: tuple[Tensor, ...]
    tier_bytes: Mapping[str, int]
    resources: Mapping[str, float]
    binding: str
    step_seconds: float
    epoch_seconds: float
    steps_per_epoch: int
    rates: tuple[Rate, ...]
    simulated: bool


@dataclass(frozen=True)
class Account:
    """What steps took, seconds of a step; None without a step. Transfers are None where nothing was streamed."""

    step_seconds: float | None
    deviation: float | None
    transfer_seconds: float | None
    waiting_seconds: float | None
    hidden_share: float | None
    likely_cause: str


def read_plan(folder: Path, summary: Mapping[str, Any] | None) -> tuple[Plan | None, Account | None]:
    """The plan, with what happened to its tensors, and the account of a step."""
    file, where = folder / "plan.json", str(folder / "summary.json")
    values = json_object(file)
    if values is not None and values.get("mode") == "ranks":  # several processes: bytes alone
        return None, None
    memory = None if summary is None or "memory" not in summary else get(summary, "memory", dict, where)
    if values is None:
        if memory is None:
            return None, None
        remedy = "Restore it from a copy, or resume the run, which makes a new one"
        raise CheckpointError("is missing, though summary.json has an account of it", where=str(file), remedy=remedy)
    plan = _plan(values, str(file))
    if memory is None:
        return plan, None
    happened = {get(entry, "tensor", str, where): entry for entry in get(memory, "tensors", list, where)}
    tensors = [_happened(tensor, happened.get(tensor.name, {}), where) for tensor in plan.tensors]
    account = Account(
        step_seconds=optional(memory, "actual_seconds_per_step", float, where),
        deviation=optional(memory, "deviation", float, where),
        transfer_seconds=optional(memory, "transfer_seconds_per_step", float, where),
        waiting_seconds=optional(memory, "waiting_seconds_per_step", float, where),
        hidden_share=optional(memory, "hidden_share", float, where),
        likely_cause=str(memory.get("likely_cause", "")),
    )
    return replace(plan, tensors=tuple(tensors)), account


def _plan(values: Mapping[str, Any], where: str) -> Plan:
    stamped = "simulated" in values
    rates = tuple(_rate(rate, where) for rate in get(values, "rates", list, where))
    slowed = {rate.tier for rate in rates if rate.simulated}
    tensors = []
    for entry in get(values, "tensors", list, where):
        name, tier, mode = (get(entry, key, str, where) for key in ("name", "tier", "mode"))
        moved, seconds = (get(entry, key, float, where) for key in ("bytes_per_step", "seconds_per_step"))
        simulated = stamped and tier in slowed
        tensors.append(Tensor(name, get(entry, "bytes", int, where), tier, mode, moved, seconds, simulated=simulated))
    tier_bytes, resources = (get(values, name, dict, where) for name in ("tier_bytes", "resource_seconds_per_step"))
    return Plan(
        mode=get(values, "mode", str, where),
        panel=optional(values, "panel_columns", int, where),
        buffer_bytes=get(values, "buffer_bytes", int, where),
        tensors=tuple(tensors),
        tier_bytes={name: get(tier_bytes, name, int, where) for name in tier_bytes},
        resources={name: get(resources, name, float, where) for name in resources},
        binding=get(values, "binding_resource", str, where),
        step_seconds=get(values, "seconds_per_step", float, where),
        epoch_seconds=get(values, "seconds_per_epoch", float, where),
        steps_per_epoch=get(values, "steps_per_epoch", int, where),
        rates=rates,
        simulated=stamped,
    )


def _rate(entry: Any, where: str) -> Rate:
    tier, pattern, basis = (get(entry, name, str, where) for name in ("tier", "pattern", "basis"))
    row, within = (get(entry, name, int, where) for name in ("row_bytes", "working_set_bytes"))
    sources = tuple(map(str, get(entry, "sources", list, where)))
    return Rate(tier, pattern, row, within, get(entry, "gb_per_s", float, where), basis, sources)


def _happened(tensor: Tensor, entry: Mapping[str, Any], where: str) -> Tensor:
    moved, seconds = (optional(entry, f"actual_{kind}_per_step", float, where) for kind in ("bytes", "seconds"))
    return replace(tensor, actual_bytes=moved, actual_seconds=seconds, on_tier=str(entry.get("on_tier", "")))
