"""The tables and figures of what bandwidth.py wrote: on the screen, as Markdown, CSV and SVG.

python profiling/bandwidth_report.py FILE              # on the screen
python profiling/bandwidth_report.py FILE FOLDER       # also bandwidth.md, a CSV file a table, an SVG file a figure
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from gnnrec import process

process.prepare()
# ruff: noqa: E402

import bandwidth_figures
from bandwidth_records import Json, checked
from bandwidth_tables import tables

from gnnrec.cli.show import table as show_rows
from gnnrec.errors import ConfigError, GnnrecError
from gnnrec.report import render
from gnnrec.report.cells import STAMP, Table
from gnnrec.storage import atomic_write, storage_errors


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit code is 2 for what the user can mend."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="that bandwidth.py wrote")
    parser.add_argument("folder", type=Path, nargs="?", help="for Markdown, CSV and SVG")
    options = parser.parse_args(arguments)
    try:
        content = load(options.file)
        show(content)
        for file in write(content, options.folder) if options.folder else ():
            print(file)
    except GnnrecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def load(file: Path) -> Json:
    """The content of a file.

    Raises:
        ConfigError: it cannot be read, or is none of ours.
    """
    try:
        return checked(json.loads(file.read_text()), file)
    except (OSError, ValueError) as error:
        if isinstance(error, GnnrecError):
            raise
        raise ConfigError(f"cannot be read: {error}", where=str(file)) from error


def show(content: Json) -> None:
    """Print all tables."""
    for each in tables(content):
        print(f"\n{each.title}")
        names = [cell.raw for cell in each.header]
        show_rows([dict(zip(names, (cell.text for cell in row), strict=True)) for row in each.rows])
        if each.note:
            print(each.note)
    for words in content["left_out"]:
        print(f"left out: {words}")


def write(content: Json, folder: Path) -> list[Path]:
    """Write bandwidth.md, a CSV file for each table and an SVG file for each figure into a folder; returns the files.

    Raises:
        GnnrecError: matplotlib is not installed, or a file cannot be written.
    """
    every = tables(content)
    files = {"bandwidth.md": markdown(content, every)}
    files |= {f"{table.name}.csv": render.as_csv(table) for table in every}
    files |= {f"{name}.svg": svg for name, svg in bandwidth_figures.figures(content).items()}
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        atomic_write(folder / name, text.encode())
    return [folder / name for name in files]


def markdown(content: Json, every: Sequence[Table]) -> str:
    """All tables as Markdown."""
    lines = [f"# Bandwidth and latency, {content['date']}", ""]
    simulated = [row["name"] for row in content["measured"] if row["provenance"] == STAMP]
    lines += [f"**{STAMP}**: a device was slowed down for {', '.join(simulated)}.", ""] if simulated else []
    for table in every:
        lines += render.as_markdown(table)
    lines += [f"- left out: {words}" for words in content["left_out"]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
