"""What a run left in its directory, read into plain dataclasses.

`summary.json` counts only where the run's last start came to its end: after an interrupted resumption it is that of the
end before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gnnrec.config import from_yaml
from gnnrec.errors import CheckpointError, ConfigError
from gnnrec.memtier.files import is_tier_folder
from gnnrec.report.fields import damaged, elided, get, json_object, optional
from gnnrec.report.plans import Account, Plan, read_plan
from gnnrec.report.profiles import Profile, read_profile
from gnnrec.training.runlog import read_events

Metrics = Mapping[str, float | None]  # None: not a number


@dataclass(frozen=True)
class Epoch:
    """An epoch's record. seconds: of training, since the start of the run; valid: empty where it was not evaluated."""

    epoch: int
    step: int
    loss: float
    seconds: float
    valid: Metrics


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
        state: "finished", "interrupted", "pruned", or "unfinished": killed, failed, or still going on.
        starts: how often it was started.
        data, device, machine, versions: of the last start.
        config, config_text: as composed, and as it was written, without the folders of absolute paths.
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
    profile: Profile | None

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
    state = "finished" if end else next((name for name in ("interrupted", "pruned") if name in ends), "unfinished")
    settings = get(ends["settings"], "trainer", dict, where) if "settings" in ends else {}
    epochs = _epochs(events, where)
    summary = _summary(folder, end) if end else None
    at = where if summary is None else str(folder / "summary.json")
    metrics = get(summary or end, "metrics", dict, at) if end else {}
    attainable = {} if summary is None else get(summary, "data", dict, at).get("attainable", {})
    plan, account = read_plan(folder, summary)
    profile = read_profile(folder)
    peak = profile.peak_rss_bytes if profile else None
    spent = Seconds(
        training=get(summary, "train_seconds", float, at) if summary else epochs[-1].seconds if epochs else None,
        compiling=get(summary, "compile_seconds", float, at) if summary else None,
        evaluating=get(summary, "eval_seconds", float, at) if summary else None,
        recorded=_recorded(events, starts, where),
    )
    counted = [get(event, "step", int, where) for event in last if "step" in event]
    return Run(
        label=label,
        state=state,
        starts=len(starts),
        data=get(last[0], "data", dict, where),
        device=f"{get(last[0], 'device', str, where)}, {get(last[0], 'device_name', str, where)}",
        machine=get(last[0], "machine", dict, where),
        versions=get(last[0], "versions", dict, where),
        config=config,
        config_text=elided((folder / "config.yaml").read_text()),
        settings=settings,
        epochs=epochs,
        steps=get(summary, "steps", int, at) if summary else max(counted, default=0),
        metrics={part: _metrics(found, at) for part, found in metrics.items()},
        best_epoch=get(summary, "best_epoch", int, at) if summary else _best(epochs, str(settings.get("monitor"))),
        seconds=spent,
        peak_rss_bytes=get(summary, "peak_rss_bytes", int, at) if summary else peak,
        peak_gpu_bytes=get(summary, "peak_gpu_bytes", int, at) if summary and "peak_gpu_bytes" in summary else None,
        attainable=_metrics(attainable, at),
        plan=plan,
        account=account,
        profile=profile,
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
        number = get(event, "epoch", int, where)
        loss, seconds = (get(event, name, float, where) for name in ("loss", "train_seconds"))
        valid = _metrics(get(event, "valid", dict, where), where)
        found = {epoch: done for epoch, done in found.items() if epoch < number}
        found[number] = Epoch(number, get(event, "step", int, where), loss, seconds, valid)
    return tuple(found.values())


def _best(epochs: Sequence[Epoch], monitor: str) -> int:
    """As the trainer chooses: the first of equals; without a validation the last."""
    scored = [(epoch.valid[monitor], epoch.epoch) for epoch in epochs if epoch.valid.get(monitor) is not None]
    if scored:
        return max(scored, key=lambda score: (score[0], -score[1]))[1]
    return epochs[-1].epoch if epochs else 0


def _recorded(events: Sequence[dict[str, Any]], starts: Sequence[int], where: str) -> float:
    times = [get(event, "time", float, where) for event in events]
    lasts = [*(start - 1 for start in starts[1:]), len(events) - 1]
    return sum(times[last] - times[start] for start, last in zip(starts, lasts, strict=True))


def _summary(folder: Path, end: Mapping[str, Any]) -> dict[str, Any] | None:
    """The summary of this end; None where the run was killed before it was written."""
    file = folder / "summary.json"
    summary = json_object(file)
    return summary if summary is not None and summary.get("metrics") == end.get("metrics") else None


def _metrics(values: Any, where: str) -> Metrics:
    if not isinstance(values, dict):
        raise damaged(f"metrics are {values!r}, not a section", where)
    return {name: optional(values, name, float, where) for name in values}
