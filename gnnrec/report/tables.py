"""The tables of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gnnrec.memtier.account import TOLERANCE
from gnnrec.report.cells import Cell, Table, beside, facts_beside, filled, line
from gnnrec.report.fields import elided
from gnnrec.report.plans import Tensor
from gnnrec.report.records import Epoch, Run

OFF = f"over {TOLERANCE:.0%} off"  # marks what deviates from its prediction
BEST = "best"  # marks the epoch whose parameters were kept


def summary(runs: Sequence[Run]) -> Table:
    """Accuracy, times and memory of the runs, beside each other."""
    lines = []
    for part in ("test", "valid"):
        found = [run.metrics.get(part, {}) for run in runs]
        names = dict.fromkeys(name for metrics in found for name in metrics)
        lines += [line(runs, f"{part} {name}", "", [metrics.get(name) for metrics in found]) for name in names]
    for name in dict.fromkeys(name for run in runs for name in run.attainable):
        lines.append(line(runs, f"best attainable {name}", "", [run.attainable.get(name) for run in runs]))
    predicted = [run.plan.step_seconds if run.plan else None for run in runs]
    actual = [run.account.step_seconds if run.account else None for run in runs]
    lines += [
        line(runs, "epochs", "", [len(run.epochs) or None for run in runs]),
        line(runs, "best epoch", "", [run.best_epoch or None for run in runs]),
        line(runs, "steps", "", [run.steps or None for run in runs]),
        line(runs, "training", "seconds", [run.seconds.training for run in runs], touched=True),
        line(runs, "step, predicted", "seconds", predicted, touched=True),
        line(runs, "step, actual", "seconds", actual, touched=True),
        line(runs, "peak memory of the process", "bytes", [run.peak_rss_bytes for run in runs]),
    ]
    return beside("summary", "Results", runs, lines)


def epochs(runs: Sequence[Run]) -> Table:
    """A row an epoch, of all runs."""
    names = list(dict.fromkeys(name for run in runs for epoch in run.epochs for name in epoch.valid))
    several = len(runs) > 1
    header = [*[Cell("run")] * several, *map(Cell, ("epoch", "step", "loss")), Cell("training", "seconds")]
    rows = []
    for run in runs:
        for epoch, seconds in zip(run.epochs, epoch_seconds(run), strict=True):
            mark = BEST if epoch.epoch == run.best_epoch else ""
            row = [*[Cell(run.label)] * several, Cell(epoch.epoch, mark=mark), Cell(epoch.step), Cell(epoch.loss)]
            row += [Cell(seconds, "seconds", run.simulated), *(Cell(epoch.valid.get(name)) for name in names)]
            rows.append(tuple(row))
    return Table("epochs", "Epochs", (*header, *map(Cell, names)), tuple(rows), _about_compiling(runs))


def epoch_seconds(run: Run) -> list[float]:
    """Seconds of training in each epoch; without compilation where it is known when that was."""
    before = run.seconds.compiling or 0.0 if run.starts == 1 else 0.0
    seconds = []
    for epoch in run.epochs:
        seconds.append(epoch.seconds - before)
        before = epoch.seconds
    return seconds


def _about_compiling(runs: Sequence[Run]) -> str:
    unknown = [run.label for run in runs if run.epochs and (run.starts > 1 or run.seconds.compiling is None)]
    of = f" of {', '.join(unknown)}" if len(runs) > 1 else ""
    return f"The first epoch after every start{of} includes compiling the kernels." if unknown else ""


def times(runs: Sequence[Run]) -> Table:
    """What the time of the runs went into."""
    kinds = list(dict.fromkeys(kind for run in runs for kind in spent(run)))
    lines = [line(runs, kind, "seconds", [spent(run).get(kind) for run in runs], touched=True) for kind in kinds]
    lines.append(line(runs, "all that is recorded", "seconds", [run.seconds.recorded for run in runs], touched=True))
    note = (
        "The rest is what lies between the first record and the last beside these: initial numbers, checkpoints, and "
        "steps that were lost with a killed process. Reading data and planning come before the first record."
    )
    return beside("times", "What the time went into", runs, lines, note)


def spent(run: Run) -> dict[str, float]:
    """Seconds by what they went into, as far as that was recorded."""
    seconds = run.seconds
    if seconds.training is None:
        return {}
    rest = max(0.0, seconds.recorded - seconds.training)
    if seconds.compiling is None or seconds.evaluating is None:
        return {"training and compiling": seconds.training, "evaluation and rest": rest}
    training, rest = seconds.training - seconds.compiling, max(0.0, rest - seconds.evaluating)
    return {"training": training, "compiling": seconds.compiling, "evaluation": seconds.evaluating, "rest": rest}


def steps(run: Run) -> Table:
    """Predicted against actual, of a step."""
    assert run.plan is not None
    plan, account, simulated = run.plan, run.account, run.simulated
    actual = None if account is None else account.step_seconds
    off = deviates(plan.step_seconds, actual)
    header = Cell("of a step"), Cell("predicted", "seconds"), Cell("actual", "seconds"), Cell("deviation", "share")
    rows = [
        (
            Cell("step"),
            Cell(plan.step_seconds, "seconds", simulated),
            Cell(actual, "seconds", simulated),
            Cell(deviation(plan.step_seconds, actual), "change", simulated, OFF if off else ""),
        )
    ]
    slowed = {f"{tensor.tier} (stream)" for tensor in plan.tensors if tensor.simulated}
    for name, seconds in plan.resources.items():
        rows.append((Cell(f"busy: {name}"), Cell(seconds, "seconds", name in slowed), Cell(None), Cell(None)))
    if account is not None:
        happened = {"transfers": account.transfer_seconds, "waiting for transfers": account.waiting_seconds}
        for name, taken in happened.items():
            if taken is not None:
                rows.append((Cell(name), Cell(None), Cell(taken, "seconds", simulated), Cell(None)))
    return Table("steps", "A step", header, tuple(rows))


def tensors(run: Run) -> Table:
    """The tier map: where each tensor lies, what it moves and takes in a step."""
    assert run.plan is not None
    names = ("tensor", "tier", "mode")
    header = [*map(Cell, names), Cell("size", "bytes")]
    for quantity, unit in (("traffic", "bytes"), ("time", "seconds")):
        header += [Cell(f"{quantity}, predicted", unit), Cell(f"{quantity}, actual", unit)]
        header.append(Cell(f"{quantity}, deviation", "share"))
    header.append(Cell("on its tier"))
    note = (
        "Traffic and time are those of a step. Those of tensors that kernels work on in memory are not counted while "
        "they run: only what is streamed has actual figures."
    )
    return filled(Table("tensors", "Tier map", tuple(header), tuple(map(_tensor, run.plan.tensors)), note))


def _tensor(tensor: Tensor) -> tuple[Cell, ...]:
    moved, seconds, stamp = tensor.actual_bytes, tensor.actual_seconds, tensor.simulated
    more, longer = deviation(tensor.predicted_bytes, moved), deviation(tensor.predicted_seconds, seconds)
    return (
        Cell(tensor.name),
        Cell(tensor.tier),
        Cell(tensor.mode),
        Cell(tensor.bytes, "bytes"),
        Cell(tensor.predicted_bytes, "bytes"),
        Cell(moved, "bytes"),
        Cell(more, "change", mark=OFF if deviates(tensor.predicted_bytes, moved) else ""),
        Cell(tensor.predicted_seconds, "seconds", stamp),
        Cell(seconds, "seconds", stamp),
        Cell(longer, "change", stamp, OFF if deviates(tensor.predicted_seconds, seconds) else ""),
        Cell(tensor.on_tier),
    )


def rates(run: Run) -> Table:
    """The bandwidths that the plan counts on."""
    assert run.plan is not None
    header = [*map(Cell, ("tier", "pattern")), Cell("row", "bytes"), Cell("within", "bytes"), Cell("bandwidth", "GB/s")]
    rows = [
        (
            Cell(rate.tier),
            Cell(rate.pattern),
            Cell(rate.row_bytes, "bytes") if rate.row_bytes else Cell("in order"),
            Cell(rate.working_set or None, "bytes"),
            Cell(rate.gb_per_s, "GB/s", rate.simulated),
            Cell(rate.basis),
            Cell("; ".join(rate.sources)),
        )
        for rate in run.plan.rates
    ]
    title = "Bandwidths that the plan counts on"
    return filled(Table("rates", title, (*header, Cell("from"), Cell("source")), tuple(rows)))


def memory(runs: Sequence[Run]) -> Table:
    """What was planned, what was there, what was taken."""
    planned = [run.plan.tier_bytes if run.plan else {} for run in runs]
    tiers = dict.fromkeys(tier for by_tier in planned for tier in by_tier)
    lines = [line(runs, f"planned in {tier}", "bytes", [by_tier.get(tier) for by_tier in planned]) for tier in tiers]
    buffers = [(run.plan.buffer_bytes or None) if run.plan else None for run in runs]
    lines += [
        line(runs, "staging buffers within", "bytes", buffers),
        line(runs, "peak memory of the process", "bytes", [run.peak_rss_bytes for run in runs]),
        line(runs, "peak memory of the GPU's tensors", "bytes", [run.peak_gpu_bytes for run in runs]),
        line(runs, "limit of the control group", "bytes", [run.machine.get("memory_limit_bytes") for run in runs]),
        line(runs, "memory of the machine", "bytes", [run.machine.get("ram_bytes") for run in runs]),
    ]
    note = "The process holds Python, libraries, data and evaluation beside the tensors and buffers that are planned."
    return beside("memory", "Planned, taken, and what there is", runs, lines, note)


def machine(runs: Sequence[Run]) -> Table:
    """The machine, the device and the versions of what decides a result."""
    found = []
    for run in runs:
        known = {name: value for name, value in run.machine.items() if not name.endswith("_bytes")}
        found.append({"device": run.device} | known | dict(run.versions))
    return facts_beside("machine", "Machine and versions", runs, found)


def data(runs: Sequence[Run]) -> Table:
    """Counts of users, items and interactions."""
    found = [{"name": str(run.config["data"].get("name"))} | dict(run.data) for run in runs]
    return facts_beside("data", "Data", runs, found)


def differences(runs: Sequence[Run]) -> Table:
    """The keys in which the configurations differ."""
    return facts_beside("differences", "Differences between the configurations", runs, differing(runs))


def differing(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Of every run the settings that are not those of all, by dotted keys."""
    found = [_flat(run.config) for run in runs]
    names = dict.fromkeys(name for values in found for name in values)
    kept = [name for name in names if len({str(values.get(name)) for values in found}) > 1]
    return [{name: _shown(values[name]) for name in kept if name in values} for values in found]


def _shown(value: Any) -> Any:
    return elided(value) if isinstance(value, str) else value


def deviation(predicted: float, actual: float | None) -> float | None:
    """Of what happened from what was predicted, as a share of it."""
    return None if actual is None or not predicted else actual / predicted - 1


def deviates(predicted: float, actual: float | None) -> bool:
    """Whether by more than is tolerated."""
    found = deviation(predicted, actual)
    return found is not None and abs(found) > TOLERANCE


def best(run: Run) -> Epoch | None:
    """The record of the best epoch."""
    return next((epoch for epoch in run.epochs if epoch.epoch == run.best_epoch), None)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
