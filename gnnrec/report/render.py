"""A report as files: a page, Markdown, and a CSV file a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from gnnrec.errors import GnnrecError
from gnnrec.report.cells import STAMP, Table
from gnnrec.report.records import Run
from gnnrec.report.sections import Section, sections
from gnnrec.storage import atomic_write

PAGE = "page.html.j2"


def write(runs: Sequence[Run], out: Path) -> list[Path]:
    """Write the report of the runs. Equal records give equal bytes.

    Args:
        runs: one, or several to be compared with the first.
        out: the page, ending in .html; Markdown and CSV files get its stem.

    Returns:
        What was written, the page first.

    Raises:
        GnnrecError: a package for reports is not installed.
        StorageError: a file cannot be written.
    """
    content = sections(runs)
    written = {out: page(runs, content), out.with_suffix(".md"): markdown(runs, content)}
    for section in content:
        for table in section.tables:
            written[out.with_name(f"{out.stem}-{table.name}.csv")] = as_csv(table)
    for file, text in written.items():
        atomic_write(file, text.encode())
    return list(written)


def page(runs: Sequence[Run], content: Sequence[Section]) -> str:
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
    return template.render(title=_title(runs), sections=content, simulated=_simulated(runs), stamp=STAMP)


def markdown(runs: Sequence[Run], content: Sequence[Section]) -> str:
    """The same without plots."""
    lines = [f"# {_escaped(_title(runs))}", ""]
    if names := _simulated(runs):
        lines += [f"**{STAMP}**: {_about_simulated(names)}", ""]
    for section in content:
        lines += [f"## {_escaped(section.title)}", ""]
        for label, found in section.verdicts:
            lines += [f"**{_escaped(label)}**", ""] if len(section.verdicts) > 1 else []
            lines += [f"- {_escaped(text)}{f' → {_escaped(helps)}' if helps else ''}" for text, helps in found]
            lines.append("")
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


def _title(runs: Sequence[Run]) -> str:
    return f"gnnrec report: {', '.join(run.label for run in runs)}"


def _simulated(runs: Sequence[Run]) -> list[str]:
    return [run.label for run in runs if run.simulated]


def _about_simulated(names: Sequence[str]) -> str:
    return f"a device was slowed down for {_escaped(', '.join(names))}; the numbers that it touches are stamped."


def _escaped(text: str) -> str:
    """What Markdown would take for markup."""
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|" else letter for letter in " ".join(text.split()))
