"""A report as files: a page, Markdown, and a CSV file a table."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from gnnrec.errors import GnnrecError
from gnnrec.report.cells import MODELLED, STAMP, Table
from gnnrec.report.records import Run
from gnnrec.report.sections import Section, sections
from gnnrec.report.sweep import Sweep
from gnnrec.report.sweep import sections as sweep_sections
from gnnrec.storage import atomic_write, storage_errors

PAGE = "page.html.j2"
GENERATOR = "gnnrec report"  # by which the page of an earlier report is known


def write(runs: Sequence[Run], out: Path) -> list[Path]:
    """Write the report of the runs. Equal records give equal bytes.

    Args:
        runs: one, or several to be compared with the first.
        out: the page, ending in .html; Markdown and CSV files get its stem. Those of a report that was there are gone.

    Returns:
        What was written, the page first.

    Raises:
        GnnrecError: a package for reports is not installed.
        StorageError: a file cannot be written.
    """
    return write_sections(_title([run.label for run in runs]), sections(runs), _simulated(runs), out)


def write_sweep(sweep: Sweep, out: Path) -> list[Path]:
    """Write the report of a sweep, as `write`."""
    return write_sections(_title([sweep.name]), sweep_sections(sweep), _simulated(sweep.runs), out)


def write_sections(title: str, found: Sequence[Section], simulated: Sequence[str], out: Path) -> list[Path]:
    """Write a report of these sections, as `write`; simulated: names of that for which a device was slowed down."""
    return _write(_Report(title, found, simulated), out)


class _Report(NamedTuple):
    title: str
    sections: Sequence[Section]
    simulated: Sequence[str]


def _write(report: _Report, out: Path) -> list[Path]:
    written = {out: _page(report), out.with_suffix(".md"): _markdown(report)}
    for section in report.sections:
        for table in section.tables:
            written[_csv_file(out, table.name)] = as_csv(table)
    before = _tables_of(out)
    for file, text in written.items():
        atomic_write(file, text.encode())
    with storage_errors(out.parent):
        for name in before:
            if (file := _csv_file(out, name)) not in written:
                file.unlink(missing_ok=True)
    return list(written)


def _csv_file(out: Path, name: str) -> Path:
    return out.with_name(f"{out.stem}-{name}.csv")


def _tables_of(page: Path) -> list[str]:
    """The names of the tables in a report that was written before, none where that is not one."""
    text = page.read_text(errors="replace") if page.is_file() else ""
    return re.findall(r'<table id="table-([\w-]+)">', text) if f'content="{GENERATOR}"' in text else []


def _page(report: _Report) -> str:
    """One HTML page that needs no other file."""
    try:
        import jinja2
    except ModuleNotFoundError as error:
        remedy = "Install it: pip install gnnrec[report]"
        raise GnnrecError("jinja2, which makes the page, is not installed", where="report", remedy=remedy) from error
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((files(__package__) / PAGE).read_text(encoding="utf-8"))
    return template.render(report._asdict(), stamp=STAMP, modelled=MODELLED, generator=GENERATOR)


def _markdown(report: _Report) -> str:
    """The same without plots."""
    lines = [f"# {_escaped(report.title)}", ""]
    if report.simulated:
        lines += [f"**{STAMP}**: {_about_simulated(report.simulated)}", ""]
    for section in report.sections:
        lines += [f"## {_escaped(section.title)}", ""]
        for label, found in section.verdicts:
            lines += [f"**{_escaped(label)}**", ""] if len(section.verdicts) > 1 else []
            lines += [f"- {_escaped(text)}{f' → {_escaped(helps)}' if helps else ''}" for text, helps in found]
            lines.append("")
        for note in section.notes:
            lines += [_escaped(note), ""]
        for table in section.tables:
            lines += as_markdown(table)
        for text in section.texts:
            lines += [f"### {_escaped(text.title)}", "", "```yaml", text.content.rstrip(), "```", ""]
    return "\n".join(lines)


def as_csv(table: Table) -> str:
    """A table's numbers as they are, their units in the names of rows and columns."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([cell.raw for cell in row] for row in (table.header, *table.rows))
    return file.getvalue()


def as_markdown(table: Table) -> list[str]:
    """Lines of a table with its title and its note."""
    lines = [[_escaped(cell.text) for cell in row] for row in (table.header, *table.rows)]
    rule = ["---:" if is_number else "---" for is_number in table.numeric]
    rows = [f"| {' | '.join(cells)} |" for cells in (lines[0], rule, *lines[1:])]
    return [f"### {_escaped(table.title)}", "", *rows, "", *([_escaped(table.note), ""] if table.note else [])]


def _title(names: Sequence[str]) -> str:
    return f"gnnrec report: {', '.join(names)}"


def _simulated(runs: Sequence[Run]) -> list[str]:
    return [run.label for run in runs if run.simulated]


def _about_simulated(names: Sequence[str]) -> str:
    return f"a device was slowed down for {_escaped(', '.join(names))}; the numbers that it touches are stamped."


def _escaped(text: str) -> str:
    """What Markdown would take for markup."""
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|" else letter for letter in " ".join(text.split()))
