"""What a report consists of, in order; a section without content is left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from gnnrec.report import figures, tables
from gnnrec.report.cells import Table
from gnnrec.report.figures import Figure
from gnnrec.report.findings import Finding, findings
from gnnrec.report.records import Run


@dataclass(frozen=True)
class Text:
    """Text as it stands, such as a configuration."""

    title: str
    content: str


@dataclass(frozen=True)
class Section:
    """A section. verdicts: findings by run; more: figures that are folded away."""

    title: str
    verdicts: tuple[tuple[str, tuple[Finding, ...]], ...] = ()
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
    found += [_tiers(run, f": {run.label}" * (len(runs) > 1), number) for number, run in enumerate(runs, 1) if run.plan]
    found.append(Section("Memory", tables=(tables.memory(runs),)))
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
    return Section("Time", figures=tuple(drawn), tables=(tables.times(runs),))


def _tiers(run: Run, of: str, number: int) -> Section:
    drawn = [figures.tier_map(run), figures.predictions(run)]
    titled = tuple(replace(figure, title=f"{figure.title}{of}") for figure in drawn)
    return Section(f"Tiers of memory{of}", figures=titled, tables=tuple(_tables(run, of, number)))


def _tables(run: Run, of: str, number: int) -> Iterator[Table]:
    for table in (tables.tensors(run), tables.steps(run), tables.rates(run)):
        yield replace(table, name=f"{table.name}-{number}", title=f"{table.title}{of}") if of else table
