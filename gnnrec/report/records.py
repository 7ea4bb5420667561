"""What a run left in its directory, read into plain dataclasses.

`summary.json` counts only where the run's last start came to its end: after an interrupted resumption it is that of the
end before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from gnnrec.config import from_yaml
from gnnrec.errors import CheckpointError, ConfigError
from gnnrec.memtier.files import is_tier_folder
from gnnrec.training.runlog import read_events

T = TypeVar("T")
Metrics = Mapping[str, float | None]  # None: not a number

_KINDS = {dict: "a section", list: "a list", str: "a text", float: "a number", int: "a whole number"}
_SIMULATED = "memory.simulate"  # source of a rate that the configuration made up


@dataclass(frozen=True)
class Epoch:
    """An epoch's record. seconds: of training, since the start of the run; valid: empty where it was not evaluated."""

    epoch: int
    step: int
    loss: float
    seconds: float
    valid: Metrics


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


@dataclass(frozen=True)
class Seconds:
    """Of the whole run, by the clock. None: not recorded, since the run did not end."""

    training: float | None
    compiling: float | None  # within training
    evaluating: float | None
    recorded: float  # from each start's first record to its last


@dataclass(frozen=True)
class Run:
    """The records of a run.

    Args:
        label: a name for it, unlike those of other runs beside it.
        state: "finished", "interrupted", or "unfinished": killed, failed, or still going on.
        starts: how often it was started.
        data, device, machine, versions: of the last start.
        config, config_text: as composed, and as it was written.
        settings: of the trainer, none of them left open; empty for a model in closed form.
        epochs: in order, each once.
        metrics: by part; empty where the run did not end.
        best_epoch: whose parameters it kept; 0 without an epoch.
        attainable: the best metrics that any model can have, where the data are synthetic.
    """

    label: str
    state: str
    starts: int
    data: Mapping[str, Any]
    device: str
    machine: Mapping[str, Any]
    versions: Mapping[str, Any]
    config: Mapping[str, Any]
    config_text: str
    settings: Mapping[str, Any]
    epochs: tuple[Epoch, ...]
    steps: int
    metrics: Mapping[str, Metrics]
    best_epoch: int
    seconds: Seconds
    peak_rss_bytes: int | None
    peak_gpu_bytes: int | None
    attainable: Metrics
    plan: Plan | None
    account: Account | None

    @property
    def simulated(self) -> bool:
        """Whether a device that is not there was slowed down for it: its times are then no machine's."""
        return self.plan is not None and self.plan.simulated

    @property
    def monitor(self) -> str:
        """The metric that decides which epoch is best."""
        return str(self.settings.get("monitor", ""))


def read_runs(folders: Sequence[str]) -> list[Run]:
    """The records of several runs, labelled by the names of their folders where these differ.

    Raises:
        ConfigError: a folder is given twice.
        CheckpointError: no run lies there, or its records are damaged.
    """
    paths = [Path(folder) for folder in folders]
    whole = [path.resolve() for path in paths]
    for number, path in enumerate(whole):
        if path in whole[:number]:
            raise ConfigError(f"names {folders[number]} twice", where="run", remedy="Give each run once")
    names = [path.name for path in whole]
    labels = names if len(set(names)) == len(names) else list(folders)
    return [read_run(path, label) for path, label in zip(paths, labels, strict=True)]


def read_run(folder: Path, label: str) -> Run:
    """The records of the run in `folder`.

    Raises:
        CheckpointError: no run lies there, it has recorded nothing yet, or a record is damaged.
    """
    config = _config(folder)
    file = folder / "events.jsonl"
    events = read_events(file)
    starts = [number for number, event in enumerate(events) if event["event"] == "start"]
    if not starts:
        remedy = "Start it again with resume=true"
        raise CheckpointError("the run ended before its first record", where=str(file), remedy=remedy)
    where = str(file)
    last = events[starts[-1] :]
    ends = {event["event"]: event for event in last}
    end = ends.get("end")
    state = "finished" if end else "interrupted" if "interrupted" in ends else "unfinished"
    settings = _get(ends["settings"], "trainer", dict, where) if "settings" in ends else {}
    epochs = _epochs(events, where)
    summary = _summary(folder, end) if end else None
    at = where if summary is None else str(folder / "summary.json")
    metrics = _get(summary or end, "metrics", dict, at) if end else {}
    attainable = {} if summary is None else _get(summary, "data", dict, at).get("attainable", {})
    plan, account = _memory(folder, summary)
    spent = Seconds(
        training=_get(summary, "train_seconds", float, at) if summary else epochs[-1].seconds if epochs else None,
        compiling=_get(summary, "compile_seconds", float, at) if summary else None,
        evaluating=_get(summary, "eval_seconds", float, at) if summary else None,
        recorded=_recorded(events, starts, where),
    )
    counted = [_get(event, "step", int, where) for event in last if "step" in event]
    return Run(
        label=label,
        state=state,
        starts=len(starts),
        data=_get(last[0], "data", dict, where),
        device=f"{_get(last[0], 'device', str, where)}, {_get(last[0], 'device_name', str, where)}",
        machine=_get(last[0], "machine", dict, where),
        versions=_get(last[0], "versions", dict, where),
        config=config,
        config_text=(folder / "config.yaml").read_text(),
        settings=settings,
        epochs=epochs,
        steps=_get(summary, "steps", int, at) if summary else max(counted, default=0),
        metrics={part: _metrics(found, at) for part, found in metrics.items()},
        best_epoch=_get(summary, "best_epoch", int, at) if summary else _best(epochs, str(settings.get("monitor"))),
        seconds=spent,
        peak_rss_bytes=_get(summary, "peak_rss_bytes", int, at) if summary else None,
        peak_gpu_bytes=_get(summary, "peak_gpu_bytes", int, at) if summary and "peak_gpu_bytes" in summary else None,
        attainable=_metrics(attainable, at),
        plan=plan,
        account=account,
    )


def _config(folder: Path) -> dict[str, Any]:
    remedy = "Give the directory that a training left, such as run=outputs/train/2026-01-31_12-00-00"
    if not folder.is_dir():
        raise CheckpointError("is no folder", where=str(folder), remedy=remedy)
    if is_tier_folder(folder):
        found = "holds live tensors of a training, not its records"
        raise CheckpointError(found, where=str(folder), remedy="Give the run directory")
    file = folder / "config.yaml"
    if not file.exists():
        raise CheckpointError("is no run directory: it has no config.yaml", where=str(folder), remedy=remedy)
    config = from_yaml(file)
    if missing := [name for name in ("data", "model", "memory") if not isinstance(config.get(name), dict)]:
        found = f"is not of a training by gnnrec: it has no section {missing[0]!r}"
        raise CheckpointError(found, where=str(file), remedy=remedy)
    return config


def _epochs(events: Sequence[dict[str, Any]], where: str) -> tuple[Epoch, ...]:
    """Each epoch once, as it was done last: one whose checkpoint was lost is done again when the run is resumed."""
    found: dict[int, Epoch] = {}
    for event in events:
        if event["event"] != "epoch":
            continue
        number = _get(event, "epoch", int, where)
        loss, seconds = (_get(event, name, float, where) for name in ("loss", "train_seconds"))
        valid = _metrics(_get(event, "valid", dict, where), where)
        found = {epoch: done for epoch, done in found.items() if epoch < number}
        found[number] = Epoch(number, _get(event, "step", int, where), loss, seconds, valid)
    return tuple(found.values())


def _best(epochs: Sequence[Epoch], monitor: str) -> int:
    """As the trainer chooses: the first of equals; without a validation the last."""
    scored = [(epoch.valid[monitor], epoch.epoch) for epoch in epochs if epoch.valid.get(monitor) is not None]
    if scored:
        return max(scored, key=lambda score: (score[0], -score[1]))[1]
    return epochs[-1].epoch if epochs else 0


def _recorded(events: Sequence[dict[str, Any]], starts: Sequence[int], where: str) -> float:
    times = [_get(event, "time", float, where) for event in events]
    lasts = [*(start - 1 for start in starts[1:]), len(events) - 1]
    return sum(times[last] - times[start] for start, last in zip(starts, lasts, strict=True))


def _summary(folder: Path, end: Mapping[str, Any]) -> dict[str, Any] | None:
    """The summary of this end; None where the run was killed before it was written."""
    file = folder / "summary.json"
    summary = _json(file)
    return summary if summary is not None and summary.get("metrics") == end.get("metrics") else None


def _memory(folder: Path, summary: Mapping[str, Any] | None) -> tuple[Plan | None, Account | None]:
    """The plan, with what happened to its tensors, and the account of a step."""
    file, where = folder / "plan.json", str(folder / "summary.json")
    values = _json(file)
    memory = None if summary is None or "memory" not in summary else _get(summary, "memory", dict, where)
    if values is None:
        if memory is None:
            return None, None
        remedy = "Restore it from a copy, or resume the run, which makes a new one"
        raise CheckpointError("is missing, though summary.json has an account of it", where=str(file), remedy=remedy)
    plan = _plan(values, str(file))
    if memory is None:
        return plan, None
    happened = {_get(entry, "tensor", str, where): entry for entry in _get(memory, "tensors", list, where)}
    tensors = [_happened(tensor, happened.get(tensor.name, {}), where) for tensor in plan.tensors]
    account = Account(
        step_seconds=_optional(memory, "actual_seconds_per_step", float, where),
        deviation=_optional(memory, "deviation", float, where),
        transfer_seconds=_optional(memory, "transfer_seconds_per_step", float, where),
        waiting_seconds=_optional(memory, "waiting_seconds_per_step", float, where),
        hidden_share=_optional(memory, "hidden_share", float, where),
        likely_cause=str(memory.get("likely_cause", "")),
    )
    return replace(plan, tensors=tuple(tensors)), account


def _plan(values: Mapping[str, Any], where: str) -> Plan:
    stamped = "simulated" in values
    rates = tuple(_rate(rate, where) for rate in _get(values, "rates", list, where))
    slowed = {rate.tier for rate in rates if rate.simulated}
    tensors = []
    for entry in _get(values, "tensors", list, where):
        name, tier, mode = (_get(entry, key, str, where) for key in ("name", "tier", "mode"))
        moved, seconds = (_get(entry, key, float, where) for key in ("bytes_per_step", "seconds_per_step"))
        simulated = stamped and tier in slowed
        tensors.append(Tensor(name, _get(entry, "bytes", int, where), tier, mode, moved, seconds, simulated=simulated))
    tier_bytes, resources = (_get(values, name, dict, where) for name in ("tier_bytes", "resource_seconds_per_step"))
    return Plan(
        mode=_get(values, "mode", str, where),
        panel=_optional(values, "panel_columns", int, where),
        buffer_bytes=_get(values, "buffer_bytes", int, where),
        tensors=tuple(tensors),
        tier_bytes={name: _get(tier_bytes, name, int, where) for name in tier_bytes},
        resources={name: _get(resources, name, float, where) for name in resources},
        binding=_get(values, "binding_resource", str, where),
        step_seconds=_get(values, "seconds_per_step", float, where),
        epoch_seconds=_get(values, "seconds_per_epoch", float, where),
        steps_per_epoch=_get(values, "steps_per_epoch", int, where),
        rates=rates,
        simulated=stamped,
    )


def _rate(entry: Any, where: str) -> Rate:
    tier, pattern, basis = (_get(entry, name, str, where) for name in ("tier", "pattern", "basis"))
    row, within = (_get(entry, name, int, where) for name in ("row_bytes", "working_set_bytes"))
    sources = tuple(map(str, _get(entry, "sources", list, where)))
    return Rate(tier, pattern, row, within, _get(entry, "gb_per_s", float, where), basis, sources)


def _happened(tensor: Tensor, entry: Mapping[str, Any], where: str) -> Tensor:
    moved, seconds = (_optional(entry, f"actual_{kind}_per_step", float, where) for kind in ("bytes", "seconds"))
    return replace(tensor, actual_bytes=moved, actual_seconds=seconds, on_tier=str(entry.get("on_tier", "")))


def _metrics(values: Any, where: str) -> Metrics:
    if not isinstance(values, dict):
        raise _damaged(f"metrics are {values!r}, not a section", where)
    return {name: _optional(values, name, float, where) for name in values}


def _json(file: Path) -> dict[str, Any] | None:
    """The object in a file; None where there is no file."""
    try:
        values = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _damaged(f"cannot be read: {error}", str(file)) from error
    if not isinstance(values, dict):
        raise _damaged("holds no JSON object", str(file))
    return values


def _get(values: Any, name: str, kind: type[T], where: str) -> T:
    """A field of a JSON object, of the given kind. Whole numbers are numbers too."""
    if not isinstance(values, dict):
        raise _damaged(f"has {values!r} where a section should be", where)
    if name not in values:
        raise _damaged(f"has no {name!r}", where)
    value = values[name]
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise _damaged(f"{name!r} is {value!r}, not {_KINDS[kind]}", where)
    return cast(T, value)


def _optional(values: Mapping[str, Any], name: str, kind: type[T], where: str) -> T | None:
    return None if values.get(name) is None else _get(values, name, kind, where)


def _damaged(found: str, where: str) -> CheckpointError:
    return CheckpointError(found, where=where, remedy="Restore it from a copy, or train anew")
