"""What a study leaves: its tables as Markdown and CSV, its plots, and under which conditions they came about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gnnrec.recommend import write_table
from gnnrec.report.cells import Cell, Table, filled
from gnnrec.report.render import as_csv, as_markdown
from gnnrec.report.svg import Figure
from gnnrec.storage import atomic_write
from gnnrec.training import runlog


def table(name: str, title: str, rows: Iterable[Mapping[str, Any]], note: str = "", **units: str) -> Table:
    """Of rows by column; `units` of columns as `Cell` has them, with _ for a space. Empty columns are left out."""
    rows = list(rows)
    columns = dict.fromkeys(column for row in rows for column in row)
    of = {column: units.get(column.replace(" ", "_"), "") for column in columns}
    header = tuple(Cell(column, of[column]) for column in columns)
    cells = tuple(tuple(_cell(row.get(column), of[column]) for column in columns) for row in rows)
    return filled(Table(name, title, header, cells, note))


def _cell(value: Any, unit: str) -> Cell:
    if isinstance(value, Cell):
        return value
    plain = value.item() if isinstance(value, np.generic) else value
    return Cell(plain, "" if isinstance(plain, str) else unit)


def conditions(folders: Sequence[Path]) -> Table:
    """Day, machine and versions of these runs: all of each, where they differ."""
    starts = []
    for folder in folders:
        events = runlog.read_events(folder / "events.jsonl") if (folder / "events.jsonl").exists() else []
        starts += [event for event in events if event["event"] == "start"]
    found = [{"date": day(start["time"])} | start["machine"] | start["versions"] for start in starts]
    return condition_table(found)


def condition_table(found: Sequence[Mapping[str, Any]]) -> Table:
    """All values of each fact."""
    rows = []
    for fact in dict.fromkeys(fact for facts in found for fact in facts):
        values = dict.fromkeys(str(facts[fact]) for facts in found if fact in facts)
        rows.append({"condition": fact, "value": ", ".join(values)})
    return table("conditions", "Conditions", rows)


def day(time: float) -> str:
    """Of seconds since 1970."""
    return datetime.fromtimestamp(time, UTC).date().isoformat()


def write(
    out: Path,
    name: str,
    study: Mapping[str, Any],
    tables: Sequence[Table],
    figures: Sequence[Figure] = (),
    jobs: pd.DataFrame | None = None,
    notes: Sequence[str] = (),
) -> None:
    """NAME.md with all tables, NAME-TABLE.csv, NAME-FIGURE.svg and, of jobs, NAME-jobs.csv; shows the tables."""
    words = ["**The short form: whether it works, not what it finds.**"] if study["short"] else []
    lines = [f"# {name}", "", *(line for word in (study["about"].strip(), *words, *notes) for line in (word, ""))]
    for each in tables:
        atomic_write(out / f"{name}-{each.name}.csv", as_csv(each).encode())
        lines += as_markdown(each)
    for each in figures:
        atomic_write(out / f"{name}-{each.name}.svg", each.drawn.encode())
        lines += [f"![{each.title}]({name}-{each.name}.svg)", ""]
    atomic_write(out / f"{name}.md", "\n".join(lines).encode())
    if jobs is not None:
        write_table(jobs, out / f"{name}-jobs.csv")
    print("\n".join(lines), f"written to {out}", sep="\n")
