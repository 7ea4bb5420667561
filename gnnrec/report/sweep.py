"""The runs of a sweep, which differ in some settings: results beside these, and plots over those that are numbers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from gnnrec.config import BESIDE
from gnnrec.errors import CheckpointError, ConfigError
from gnnrec.report import figures, tables
from gnnrec.report.cells import Cell, Table, filled
from gnnrec.report.fields import elided
from gnnrec.report.profile_findings import Finding
from gnnrec.report.records import Run, read_run
from gnnrec.report.sections import Section, Text
from gnnrec.report.svg import SERIES, Figure, figure, legend, line, logarithmic, number
from gnnrec.units import in_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SEED = "seed"
CURVES = 12  # runs whose curves can be told apart
LINES = 6  # of runs that differ in one setting alone; where there are more, points are drawn
WIDE = 20.0  # times the smallest value of a setting that is above zero: then the axis is logarithmic

Value = Callable[[Run], float | None]


@dataclass(frozen=True)
class Sweep:
    """The runs in a folder, and what failed, with the reason: runs, and folders without one."""

    name: str
    runs: tuple[Run, ...]
    failed: tuple[tuple[str, str], ...]

    @property
    def settings(self) -> list[dict[str, Any]]:
        """Of every run those that differ."""
        differing = tables.differing(self.runs)
        return [{name: value for name, value in values.items() if name not in BESIDE} for values in differing]

    @property
    def monitor(self) -> str:
        """The metric that the runs chose their best epoch by, or the first of the test part."""
        named = next((run.monitor for run in self.runs if run.monitor), "")
        return named or next((name for run in self.runs for name in run.metrics.get("test", {})), "")


def read_sweep(folder: str) -> Sweep:
    """The runs in the folders of a folder, as `gnnrec train -m` leaves them.

    Raises:
        CheckpointError: there is no run in it.
    """
    path, remedy = Path(folder), "Give the folder that holds the runs' folders: hydra.sweep.dir of gnnrec train -m"
    if not path.is_dir():
        raise CheckpointError("is no folder", where=folder, remedy=remedy)
    if (path / "config.yaml").exists():
        raise CheckpointError("is the directory of one run", where=folder, remedy=f"Give it as run={folder}")
    names = sorted((entry.name for entry in path.iterdir() if entry.is_dir() and entry.name[0] != "."), key=_order)
    runs, failed = [], []
    for name in names:
        status, message = _ending(path / name)
        try:
            run = read_run(path / name, name)
        except (CheckpointError, ConfigError) as error:
            failed.append((name, message or elided(str(error))))
            continue
        runs.append(replace(run, state=status) if status in ("failed", "interrupted", "pruned") else run)
        if status == "failed":
            failed.append((name, message))
    if not runs:
        found = f"holds no run: {failed[0][1]}" if failed else "holds no run"
        raise CheckpointError(found, where=folder, remedy=remedy)
    numbers = {int(name) for name in names if name.isdecimal()}
    absent = [str(number) for number in range(max(numbers, default=0)) if number not in numbers]
    failed += [(number, "left no folder: it ended before it was a run") for number in absent]
    return Sweep(path.resolve().name, tuple(runs), tuple(sorted(failed, key=lambda one: _order(one[0]))))


def _ending(job: Path) -> tuple[str, str]:
    """Status and message that the record of a job has, if there is one: its run may have told nothing of its end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        record = json.loads((job / "job.json").read_bytes())
        return str(record.get("status", "")), elided(str(record.get("message", "")))
    return "", ""


def _order(name: str) -> tuple[int, str]:
    """Folders with numbers by these."""
    return (int(name) if name.isdecimal() else -1, name)


def sections(sweep: Sweep) -> list[Section]:
    """Of a report about the sweep."""
    found = (("", tuple(_findings(sweep))),)
    failed = (_failed(sweep),) if sweep.failed else ()
    seeds = (table,) if (table := _over_seeds(sweep)) else ()
    result = [
        Section("Summary and verdict", found, tables=failed),
        Section("Results", figures=tuple(_figures(sweep)), tables=(results(sweep), *seeds)),
    ]
    runs = sweep.runs
    if len(runs) <= CURVES and any(run.epochs for run in runs):
        known = sweep.monitor and any(sweep.monitor in epoch.valid for run in runs for epoch in run.epochs)
        drawn = (figures.loss(runs), *([figures.metric(runs, sweep.monitor)] if known else []))
        result.append(Section("Accuracy", figures=drawn, tables=(tables.epochs(runs),)))
    result.append(Section("Data, machine and versions", tables=(tables.data(runs), tables.machine(runs))))
    texts = tuple(Text(f"config.yaml of {run.label}", run.config_text) for run in runs)
    return [*result, Section("Configuration", texts=texts)]


def _findings(sweep: Sweep) -> Iterator[Finding]:
    states = [run.state for run in sweep.runs]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states)))
    without = len({name for name, _ in sweep.failed} - {run.label for run in sweep.runs})
    failed = f"; {without} failed before they were runs" if without else ""
    yield Finding(f"{len(sweep.runs)} runs: {counts}{failed}.")
    if (best := _best(sweep)) is not None:
        words = f"Best by validation: run {_named(sweep, best)}, {sweep.monitor} {_valid(sweep)(best):.4f}"
        test = _test(sweep)(best)
        yield Finding(f"{words}{f', on the test part {test:.4f}' if test is not None else ''}.")
    values = [value for run in sweep.runs if (value := _test(sweep)(run)) is not None]
    if len(values) > 1:
        yield Finding(f"On the test part {sweep.monitor} is between {min(values):.4f} and {max(values):.4f}.")
    timed = [run for run in sweep.runs if run.state == "finished" and run.seconds.training]
    if len(timed) > 1:
        ends = [pick(timed, key=lambda run: run.seconds.training or 0.0) for pick in (min, max)]
        words = " to ".join(f"{in_seconds(run.seconds.training or 0.0)} (run {_named(sweep, run)})" for run in ends)
        yield Finding(f"Training took {words}.")


def _named(sweep: Sweep, run: Run) -> str:
    values = sweep.settings[sweep.runs.index(run)]
    settings = ", ".join(f"{name}={value}" for name, value in values.items())
    return f"{run.label} ({settings})" if settings else run.label


def _test(sweep: Sweep) -> Value:
    return lambda run: run.metrics.get("test", {}).get(sweep.monitor)


def _valid(sweep: Sweep) -> Value:
    def of(run: Run) -> float | None:
        epoch = tables.best(run)
        return epoch.valid.get(sweep.monitor) if epoch else None

    return of


def _best(sweep: Sweep) -> Run | None:
    """The first of the finished runs that are best by validation."""
    finished = [run for run in sweep.runs if run.state == "finished"]
    scored = [(value, run) for run in finished if (value := _valid(sweep)(run)) is not None]
    return max(scored, key=lambda one: one[0])[1] if scored else None


def results(sweep: Sweep) -> Table:
    """A row a run: the settings that differ, accuracy, time and memory."""
    settings, best = sweep.settings, _best(sweep)
    names = list(dict.fromkeys(name for values in settings for name in values))
    metrics = list(dict.fromkeys(name for run in sweep.runs for name in run.metrics.get("test", {})))
    header = [*map(Cell, ("run", *names, "state", f"valid {sweep.monitor}", *(f"test {name}" for name in metrics)))]
    header += [Cell("best epoch"), Cell("steps"), Cell("training", "seconds"), Cell("peak memory", "bytes")]
    rows = [
        (
            Cell(run.label),
            *(Cell(_word(values.get(name))) for name in names),
            Cell(run.state),
            Cell(_valid(sweep)(run), mark="best" if run is best else ""),
            *(Cell(run.metrics.get("test", {}).get(name)) for name in metrics),
            Cell(run.best_epoch or None),
            Cell(run.steps or None),
            Cell(run.seconds.training, "seconds", run.simulated),
            Cell(run.peak_rss_bytes, "bytes"),
        )
        for run, values in zip(sweep.runs, settings, strict=True)
    ]
    note = "Settings are those in which the runs differ. The best is so by validation, of its best epoch."
    return filled(Table("sweep", "Settings and results", tuple(header), tuple(rows), note))


def _word(value: Any) -> str | None:
    return None if value is None else str(value)


def _failed(sweep: Sweep) -> Table:
    rows = tuple((Cell(name), Cell(why)) for name, why in sweep.failed)
    return Table("failed", "What failed", (Cell("folder"), Cell("found")), rows)


def _over_seeds(sweep: Sweep) -> Table | None:
    """Means and standard deviations of runs that differ in their seed alone."""
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run, values in zip(sweep.runs, sweep.settings, strict=True):
        if run.metrics.get("test"):
            groups.setdefault(_others(values, SEED), []).append(run)
    if all(len(runs) < 2 for runs in groups.values()):
        return None
    names = list(dict.fromkeys(name for group in groups for name, _ in group))
    metrics = list(dict.fromkeys(name for runs in groups.values() for run in runs for name in run.metrics["test"]))
    header = [*names, "seeds", *(f"{name}, {what}" for name in metrics for what in ("mean", "deviation"))]
    rows = []
    for group, runs in groups.items():
        row = [*(Cell(dict(group).get(name)) for name in names), Cell(len(runs))]
        for name in metrics:
            found = [value for run in runs if (value := run.metrics["test"].get(name)) is not None]
            row += [Cell(mean(found) if found else None), Cell(stdev(found) if len(found) > 1 else None)]
        rows.append(tuple(row))
    note = "Of the test part; the deviation is the standard deviation of a sample."
    return Table("seeds", "Over seeds", tuple(map(Cell, header)), tuple(rows), note)


def _others(values: Mapping[str, Any], name: str) -> tuple[tuple[str, str], ...]:
    return tuple((other, str(value)) for other, value in values.items() if other != name)


def _figures(sweep: Sweep) -> Iterator[Figure]:
    """Accuracy and time over every setting that is a number in all runs."""
    settings = sweep.settings
    quantities: list[tuple[str, str, Value]] = []
    if any(_test(sweep)(run) is not None for run in sweep.runs):
        quantities.append((f"test-{sweep.monitor}", f"Test {sweep.monitor}", _test(sweep)))
    if any(run.seconds.training for run in sweep.runs):
        quantities.append(("training", "Seconds of training", lambda run: run.seconds.training))
    for name in dict.fromkeys(name for values in settings for name in values):
        if all(_is_number(values.get(name)) for values in settings):
            for of, title, value in quantities:
                yield _over(sweep.runs, settings, name, f"{of}-{name}", f"{title} over {name}", value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _over(
    runs: Sequence[Run], settings: Sequence[Mapping[str, Any]], name: str, of: str, title: str, value: Value
) -> Figure:
    """A line for runs that differ in this setting alone."""
    groups: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = {}
    for run, values in zip(runs, settings, strict=True):
        if (y := value(run)) is not None:
            groups.setdefault(_others(values, name), []).append((values[name], y))

    def draw(axes: Axes) -> None:
        if len(groups) <= LINES:
            for position, (others, points) in enumerate(groups.items()):
                label = " " + ", ".join(f"{other.rpartition('.')[2]}={value}" for other, value in others)
                axes.plot(*zip(*sorted(points), strict=True), **line(position, label))
        else:
            points = [point for group in groups.values() for point in group]
            axes.plot(*zip(*points, strict=True), "o", color=SERIES[0], markersize=4)
        places = sorted({float(values[name]) for values in settings})
        if places[0] > 0 and places[-1] > WIDE * places[0]:
            logarithmic(axes, "x")
        axes.set_xticks(places, [number(place) for place in places])
        axes.minorticks_off()
        axes.set_xlabel(name)
        if 1 < len(groups) <= LINES:
            legend(axes, columns=1 if max(map(len, groups)) > 1 else 2)

    return figure(of, title, draw, 2.7 + 0.17 * min(len(groups), LINES))
