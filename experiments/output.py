"""What a study leaves: its tables as Markdown and CSV, its plots, and under which conditions they came about."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import yaml

from gnnrec.recommend import write_table
from gnnrec.report.cells import Cell, Table, filled
from gnnrec.report.fields import damaged, get
from gnnrec.report.render import as_csv, as_markdown
from gnnrec.report.svg import Figure
from gnnrec.storage import atomic_write, storage_errors
from gnnrec.training import runlog

SHORT = "**The short form: whether it works, not what it finds.**"
N = TypeVar("N", int, float)
NONE: Mapping[str, str] = MappingProxyType({})


def folder(out: Path) -> Path:
    """Where results go, made before anything is measured for them."""
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    return out


def earlier(file: Path, field: str) -> dict[str, Any] | None:
    """What a study left in a file, with a list in this field; None without the file."""
    try:
        values = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise damaged(f"cannot be read: {error}", str(file)) from error
    get(values, field, list, str(file))
    found: dict[str, Any] = values
    return found


def positive(kind: type[N], *, zero: bool = False) -> Callable[[str], N]:
    """An option of a script that is a number above 0, or 0 where that may be."""

    def number(text: str) -> N:
        value = kind(text)
        if not (value > 0 or (zero and value == 0)):
            raise argparse.ArgumentTypeError(f"is {text}; it must be {'at least' if zero else 'above'} 0")
        return value

    return number


def table(
    name: str, title: str, rows: Iterable[Mapping[str, Any]], units: Mapping[str, str] = NONE, note: str = ""
) -> Table:
    """Of rows by column; units by column, as `Cell` has them. Columns in which nothing stands are left out."""
    rows = list(rows)
    columns = dict.fromkeys(column for row in rows for column in row)
    header = tuple(Cell(column, units.get(column, "")) for column in columns)
    cells = tuple(tuple(_cell(row.get(column), units.get(column, "")) for column in columns) for row in rows)
    return filled(Table(name, title, header, cells, note))


def _cell(value: Any, unit: str) -> Cell:
    if isinstance(value, Cell):
        return value
    plain = value.item() if isinstance(value, np.generic) else value
    return Cell(plain, "" if isinstance(plain, str) else unit)


def conditions(folders: Sequence[Path]) -> Table:
    """Day, machine and versions of these runs."""
    events = [event for folder in folders for event in runlog.read_events(folder / "events.jsonl")]
    starts = [event for event in events if event["event"] == "start"]
    return condition_table({"date": day(start["time"])} | start["machine"] | start["versions"] for start in starts)


def conditions_here() -> dict[str, Any]:
    """Those of this process, now."""
    return {"date": day(time.time()), "machine": runlog.machine(), "versions": runlog.versions()}


def condition_table(found: Iterable[Mapping[str, Any]]) -> Table:
    """Of facts, or groups of them: all values of each, where they differ."""
    values: dict[str, dict[str, None]] = {}
    for facts in found:
        for name, value in facts.items():
            for fact, word in value.items() if isinstance(value, dict) else [(name, value)]:
                values.setdefault(fact, {})[str(word)] = None
    return table(
        "conditions", "Conditions", [{"condition": fact, "value": ", ".join(of)} for fact, of in values.items()]
    )


def day(time: float) -> str:
    """Of seconds since 1970."""
    return datetime.fromtimestamp(time, UTC).date().isoformat()


def write(
    out: Path,
    name: str,
    tables: Sequence[Table],
    figures: Sequence[Figure] = (),
    jobs: pd.DataFrame | None = None,
    notes: Sequence[str] = (),
) -> None:
    """NAME.md with all tables, NAME-TABLE.csv, NAME-FIGURE.svg and, of jobs, NAME-jobs.csv; shows the tables."""
    about = yaml.safe_load((Path(__file__).parent / f"{name}.yaml").read_text())["about"].strip()
    lines = [f"# {name}", "", *(line for words in (about, *notes) for line in (words, ""))]
    folder(out)
    for each in tables:
        atomic_write(out / f"{name}-{each.name}.csv", as_csv(each).encode())
        lines += as_markdown(each)
    for each in figures:
        atomic_write(out / f"{name}-{each.name}.svg", each.drawn.encode())
        lines += [f"### {each.title}", "", f"![{each.title}]({name}-{each.name}.svg)", ""]
    atomic_write(out / f"{name}.md", "\n".join(lines).encode())
    if jobs is not None:
        write_table(jobs, out / f"{name}-jobs.csv")
    print("\n".join(lines), f"written to {out}", sep="\n")
