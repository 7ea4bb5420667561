"""The tables of a report: cells that know their unit and whether a simulated device has touched them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gnnrec.memtier.account import TOLERANCE
from gnnrec.report.records import Epoch, Run, Tensor
from gnnrec.units import in_bytes, in_seconds

STAMP = "SIMULATED"
OFF = f"over {TOLERANCE:.0%} off"  # marks what deviates from its prediction
BEST = "best"  # marks the epoch whose parameters were kept


@dataclass(frozen=True)
class Cell:
    """A value, its unit (bytes, seconds, share, change, GB/s, or none) and what is to be seen beside it.

    The unit of a text is that of the numbers beside or below it, which a CSV file holds without one.
    """

    value: str | int | float | None
    unit: str = ""
    simulated: bool = False
    mark: str = ""

    @property
    def is_number(self) -> bool:
        return isinstance(self.value, int | float)

    @property
    def text(self) -> str:
        """For a reader; stamped, and marked."""
        if self.value is None:
            return ""
        words = f"{self._stamp}{self.value if isinstance(self.value, str) else self._number(self.value)}"
        return f"{words} ({self.mark})" if self.mark else words

    @property
    def raw(self) -> str:
        """For a program: the number as it is, in the unit that row or column names; stamped too."""
        if self.value is None:
            return ""
        if isinstance(self.value, str):
            return f"{self.value} ({self.unit})" if self.unit else self.value
        return f"{self._stamp}{self.value!r}"

    @property
    def _stamp(self) -> str:
        return f"{STAMP} " if self.simulated else ""

    def _number(self, value: float) -> str:
        match self.unit:
            case "bytes":
                return in_bytes(value)
            case "seconds":
                return in_seconds(value)
            case "share":
                return f"{value:.1%}"
            case "change":
                return f"{value:+.0%}"
            case "GB/s":
                return f"{value:.2f} GB/s"
        return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


@dataclass(frozen=True)
class Table:
    """A table. name: of its CSV file; note: what has to be said about it."""

    name: str
    title: str
    header: tuple[Cell, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Which columns hold numbers."""
        return tuple(any(row[column].is_number for row in self.rows) for column in range(len(self.header)))


def summary(runs: Sequence[Run]) -> Table:
    """Accuracy, times and memory of the runs, beside each other."""
    lines = []
    for part in ("test", "valid"):
        found = [run.metrics.get(part, {}) for run in runs]
        names = dict.fromkeys(name for metrics in found for name in metrics)
        lines += [_line(runs, f"{part} {name}", "", [metrics.get(name) for metrics in found]) for name in names]
    for name in dict.fromkeys(name for run in runs for name in run.attainable):
        lines.append(_line(runs, f"best attainable {name}", "", [run.attainable.get(name) for run in runs]))
    predicted = [run.plan.step_seconds if run.plan else None for run in runs]
    actual = [run.account.step_seconds if run.account else None for run in runs]
    lines += [
        _line(runs, "epochs", "", [len(run.epochs) or None for run in runs]),
        _line(runs, "best epoch", "", [run.best_epoch or None for run in runs]),
        _line(runs, "steps", "", [run.steps or None for run in runs]),
        _line(runs, "training", "seconds", [run.seconds.training for run in runs], touched=True),
        _line(runs, "step, predicted", "seconds", predicted, touched=True),
        _line(runs, "step, actual", "seconds", actual, touched=True),
        _line(runs, "peak memory of the process", "bytes", [run.peak_rss_bytes for run in runs]),
    ]
    return _beside("summary", "Results", runs, lines)


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
    lines = [_line(runs, kind, "seconds", [spent(run).get(kind) for run in runs], touched=True) for kind in kinds]
    lines.append(_line(runs, "all that is recorded", "seconds", [run.seconds.recorded for run in runs], touched=True))
    note = (
        "The rest is what lies between the first record and the last beside these: initial numbers, checkpoints, and "
        "steps that were lost with a killed process. Reading data and planning come before the first record."
    )
    return _beside("times", "What the time went into", runs, lines, note)


def spent(run: Run) -> dict[str, float]:
    """Seconds by what they went into, as far as that was recorded."""
    seconds = run.seconds
    if seconds.training is None:
        return {}
    if seconds.compiling is None or seconds.evaluating is None:
        return {"training and compiling": seconds.training, "rest": max(0.0, seconds.recorded - seconds.training)}
    rest = max(0.0, seconds.recorded - seconds.training - seconds.evaluating)
    training = seconds.training - seconds.compiling
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
    return Table("tensors", "Tier map", tuple(header), tuple(map(_tensor, run.plan.tensors)), note)


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
    return Table("rates", title, (*header, Cell("from"), Cell("source")), tuple(rows))


def memory(runs: Sequence[Run]) -> Table:
    """What was planned, what was there, what was taken."""
    planned = [run.plan.tier_bytes if run.plan else {} for run in runs]
    tiers = dict.fromkeys(tier for by_tier in planned for tier in by_tier)
    lines = [_line(runs, f"planned in {tier}", "bytes", [by_tier.get(tier) for by_tier in planned]) for tier in tiers]
    buffers = [(run.plan.buffer_bytes or None) if run.plan else None for run in runs]
    lines += [
        _line(runs, "staging buffers within", "bytes", buffers),
        _line(runs, "peak memory of the process", "bytes", [run.peak_rss_bytes for run in runs]),
        _line(runs, "peak memory of the GPU's tensors", "bytes", [run.peak_gpu_bytes for run in runs]),
        _line(runs, "limit of the control group", "bytes", [run.machine.get("memory_limit_bytes") for run in runs]),
        _line(runs, "memory of the machine", "bytes", [run.machine.get("ram_bytes") for run in runs]),
    ]
    note = "The process holds Python, libraries, data and evaluation beside the tensors and buffers that are planned."
    return _beside("memory", "Planned, taken, and what there is", runs, lines, note)


def machine(runs: Sequence[Run]) -> Table:
    """The machine, the device and the versions of what decides a result."""
    found = []
    for run in runs:
        known = {name: value for name, value in run.machine.items() if not name.endswith("_bytes")}
        found.append({"device": run.device} | known | dict(run.versions))
    return _values("machine", "Machine and versions", runs, found)


def data(runs: Sequence[Run]) -> Table:
    """Counts of users, items and interactions."""
    found = [{"name": str(run.config["data"].get("name"))} | dict(run.data) for run in runs]
    return _values("data", "Data", runs, found)


def differences(runs: Sequence[Run]) -> Table:
    """The keys in which the configurations differ."""
    found = [_flat(run.config) for run in runs]
    names = dict.fromkeys(name for values in found for name in values)
    differing = [name for name in names if len({str(values.get(name)) for values in found}) > 1]
    kept = [{name: values[name] for name in differing if name in values} for values in found]
    return _values("differences", "Differences between the configurations", runs, kept)


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


Line = tuple[Cell, list[Cell]]


def _line(runs: Sequence[Run], name: str, unit: str, values: Sequence[Any], *, touched: bool = False) -> Line:
    """A quantity of every run. touched: by the speed of devices, so by simulated ones."""
    cells = [Cell(value, unit, touched and run.simulated) for run, value in zip(runs, values, strict=True)]
    return Cell(name, unit), cells


def _beside(name: str, title: str, runs: Sequence[Run], lines: Sequence[Line], note: str = "") -> Table:
    """Quantities by runs; of every run but the first also the difference from the first and the ratio to it."""
    labels = [run.label for run in runs]
    header = [Cell(""), *map(Cell, labels)]
    header += [Cell(f"{label} {sign} {labels[0]}") for label in labels[1:] for sign in ("−", "/")]
    rows = [
        (label, *cells, *(cell for other in cells[1:] for cell in _compared(cells[0], other)))
        for label, cells in lines
        if any(cell.value is not None for cell in cells)
    ]
    return Table(name, title, tuple(header), tuple(rows), note)


def _compared(first: Cell, other: Cell) -> tuple[Cell, Cell]:
    if not isinstance(first.value, int | float) or not isinstance(other.value, int | float):
        return Cell(None), Cell(None)
    simulated = first.simulated or other.simulated
    ratio = other.value / first.value if first.value else None
    return Cell(other.value - first.value, first.unit, simulated), Cell(ratio, simulated=simulated)


def _values(name: str, title: str, runs: Sequence[Run], found: Sequence[Mapping[str, Any]]) -> Table:
    """Facts by runs; those that differ are marked."""
    rows = []
    for key in dict.fromkeys(key for values in found for key in values):
        cells = [values.get(key) for values in found]
        mark = "differs" if len(set(map(str, cells))) > 1 and name != "differences" else ""
        rows.append((Cell(key), *(Cell(None if cell is None else str(cell)) for cell in cells), Cell(mark)))
    if not any(row[-1].value for row in rows):
        rows = [row[:-1] for row in rows]
        return Table(name, title, (Cell(""), *(Cell(run.label) for run in runs)), tuple(rows))
    return Table(name, title, (Cell(""), *(Cell(run.label) for run in runs), Cell("")), tuple(rows))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
