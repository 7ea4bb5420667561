"""What a report consists of, in order; a section without content is left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from gnnrec.report import figures, profile_figures, profile_tables, tables
from gnnrec.report.cells import Table
from gnnrec.report.findings import findings
from gnnrec.report.profile_figures import placed, roofs
from gnnrec.report.profile_findings import Finding
from gnnrec.report.records import Run
from gnnrec.report.svg import Figure

Shown = TypeVar("Shown", Figure, Table)

CALIBRATE = "`gnnrec calibrate` measures, and a run with profile=on or memory=auto then keeps what was measured."


@dataclass(frozen=True)
class Text:
    """Text as it stands, such as a configuration."""

    title: str
    content: str


@dataclass(frozen=True)
class Section:
    """A section. verdicts: findings by run; notes: sentences; more: figures that are folded away."""

    title: str
    verdicts: tuple[tuple[str, tuple[Finding, ...]], ...] = ()
    notes: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    more: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    texts: tuple[Text, ...] = ()


def sections(runs: Sequence[Run]) -> list[Section]:
    """Of one run, or of several beside each other."""
    verdicts = tuple((run.label, tuple(findings(run))) for run in runs)
    found = [Section("Summary and verdict", verdicts, tables=(tables.summary(runs),))]
    if any(run.epochs for run in runs):
        found.append(_accuracy(runs))
    found.append(_time(runs))
    if any(run.profile and placed(run.profile) for run in runs):
        found.append(_roofline(runs))
    found += [_tiers(run, runs, number) for number, run in enumerate(runs, 1) if run.plan]
    found += [_memory(runs), _bandwidths(runs)]
    found.append(Section("Data, machine and versions", tables=(tables.data(runs), tables.machine(runs))))
    differences = (tables.differences(runs),) if len(runs) > 1 else ()
    texts = tuple(Text(f"config.yaml of {run.label}", run.config_text) for run in runs)
    return [*found, Section("Configuration", tables=differences, texts=texts)]


def _accuracy(runs: Sequence[Run]) -> Section:
    names = list(dict.fromkeys(name for run in runs for epoch in run.epochs for name in epoch.valid))
    watched = list(dict.fromkeys(run.monitor for run in runs if run.monitor in names))
    shown = figures.loss(runs), *(figures.metric(runs, name) for name in watched)
    more = tuple(figures.metric(runs, name) for name in names if name not in watched)
    return Section("Accuracy", figures=shown, more=more, tables=(tables.epochs(runs),))


def _time(runs: Sequence[Run]) -> Section:
    drawn = [figures.times(runs)] if any(map(tables.spent, runs)) else []
    drawn += [figures.seconds(runs)] if any(len(run.epochs) > 1 for run in runs) else []
    profiled = [run for run in runs if run.profile and run.profile.steps]
    found = [tables.times(runs)]
    if profiled:
        drawn.append(profile_figures.classes(runs))
        found.append(profile_tables.classes(runs))
    for number, run in enumerate(runs, 1):
        found += [_of_run(table, runs, run, number) for table in _recorded(run)]
    return Section("Time", figures=tuple(drawn), tables=tuple(found))


def _recorded(run: Run) -> Iterator[Table]:
    if run.profile is None:
        return
    if run.profile.operators:
        yield profile_tables.operators(run)
    if run.profile.layers:
        yield profile_tables.layers(run)
    if run.profile.moved:
        yield profile_tables.moved(run)


def _roofline(runs: Sequence[Run]) -> Section:
    drawn, notes = [], []
    for number, run in enumerate(runs, 1):
        if run.profile is None or not placed(run.profile):
            continue
        drawn.append(_of_run(profile_figures.roofline(run), runs, run, number))
        of = f" of {run.label}" if len(runs) > 1 else ""
        if not roofs(run.profile):
            notes.append(f"No bandwidth was measured before the profile{of}, so that no slope is drawn: {CALIBRATE}")
        if run.profile.products is None:
            notes.append(f"No rate of dense products was measured for the profile{of}, so that no level is drawn.")
    notes.append("Behind names is the share of a step. Hollow marks are backward passes.")
    return Section("Roofline", notes=tuple(notes), figures=tuple(drawn))


def _tiers(run: Run, runs: Sequence[Run], number: int) -> Section:
    drawn = (figures.tier_map(run), figures.predictions(run))
    found = (tables.tensors(run), tables.steps(run))
    return Section(
        f"Tiers of memory: {run.label}" if len(runs) > 1 else "Tiers of memory",
        figures=tuple(_of_run(figure, runs, run, number) for figure in drawn),
        tables=tuple(_of_run(table, runs, run, number) for table in found),
    )


def _memory(runs: Sequence[Run]) -> Section:
    drawn = (profile_figures.memory(runs),) if any(run.profile for run in runs) else ()
    return Section("Memory", figures=drawn, tables=(tables.memory(runs),))


def _bandwidths(runs: Sequence[Run]) -> Section:
    found = [_of_run(tables.rates(run), runs, run, number) for number, run in enumerate(runs, 1) if run.plan]
    if any(run.profile and run.profile.tiers for run in runs):
        found.insert(0, profile_tables.calibration(runs))
    notes = () if found else (f"None is recorded. {CALIBRATE}",)
    return Section("Bandwidths", notes=notes, tables=tuple(found))


def _of_run(shown: Shown, runs: Sequence[Run], run: Run, number: int) -> Shown:
    """A table or figure of one run, told from those of others."""
    if len(runs) == 1:
        return shown
    return replace(shown, name=f"{shown.name}-{number}", title=f"{shown.title}: {run.label}")
