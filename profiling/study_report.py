"""The report of what study.py wrote: a page, Markdown and CSV tables, its findings first.

python profiling/study_report.py outputs/study/study.json               # again, from the JSON file alone
python profiling/study_report.py outputs/study/study.json other/study.html
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import study_figures as figures
import study_tables as tables
from study_findings import findings
from study_records import FORMAT, VERSION, Json, check

from gnnrec.errors import ConfigError, GnnrecError
from gnnrec.report import render
from gnnrec.report.cells import MODELLED, STAMP, Cell, Table
from gnnrec.report.fields import json_object
from gnnrec.report.sections import Section

SHOWN = 300  # cells that a page has a row for, each


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit code is 2 for what the user can mend."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="that study.py wrote")
    parser.add_argument("out", type=Path, nargs="?", help="the page, ending in .html")
    options = parser.parse_args(arguments)
    try:
        page, *_ = write(load(options.file), options.out or options.file.with_suffix(".html"))
        print(page)
    except GnnrecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def load(file: Path) -> Json:
    """The content of a file.

    Raises:
        GnnrecError: it cannot be read, is none of ours, or damaged.
    """
    content = json_object(file) or {}
    if (content.get("format"), content.get("version")) != (FORMAT, VERSION):
        remedy = f"Give a file that study.py wrote ({FORMAT}, version {VERSION})"
        raise ConfigError("is of another kind, or missing", where=str(file), remedy=remedy)
    check(content, str(file))
    return content


def write(content: Json, out: Path) -> list[Path]:
    """Write the report; returns its files, the page first.

    Raises:
        GnnrecError: a package for reports is not installed, or a file cannot be written.
    """
    title = f"gnnrec study: {', '.join(dict.fromkeys(row['data'] for row in content['cells']))}"
    simulated = [row["model"] + ", " + row["placement"] for row in content["cells"] if row["provenance"] == STAMP]
    return render.write_sections(title, sections(content), list(dict.fromkeys(simulated)), out)


def sections(content: Json) -> list[Section]:
    """Of the report; those without content are left out."""
    centre = ", ".join(f"{name} {value}" for name, value in content["centre"].items())
    modelled = any(row["provenance"] == MODELLED for row in content["cells"])
    notes = [f"LightGCN and NGCF with BPR and Adam on processors. Around {centre}."]
    notes += [f"{MODELLED}: no step was run for a figure; the plan of a training says it."] if modelled else []
    result = [Section("Guidance", (("", tuple(findings(content))),), notes=tuple(notes), tables=_missing(content))]
    result.append(
        Section(
            "Placements",
            figures=(*figures.slowdowns(content), *figures.kernels(content)),
            tables=_filled(tables.placements(content), tables.kernels(content), tables.tensors(content)),
        )
    )
    drawn = (*figures.footprints(content), *figures.costs(content))
    result.append(Section("Layers, width, batch, data", figures=drawn, tables=tuple(tables.factors(content))))
    result.append(
        Section("Readers and writers", figures=tuple(figures.rates(content)), tables=_filled(tables.rates(content)))
    )
    every = Section("All figures", notes=_elsewhere(content), tables=(*_few(content), tables.machine(content)))
    return [*(one for one in result if one.verdicts or one.tables or one.figures), every]


def _few(content: Json) -> tuple[Table, ...]:
    """All cells, if they are not too many for a page."""
    return (tables.cells(content),) if len(content["cells"]) <= SHOWN else ()


def _elsewhere(content: Json) -> tuple[str, ...]:
    few = len(content["cells"]) <= SHOWN
    return () if few else ("All cells are in the Parquet file and the JSON file.",)


def _filled(*shown: Table) -> tuple[Table, ...]:
    return tuple(table for table in shown if table.rows)


def _missing(content: Json) -> tuple[Table, ...]:
    rows: list[tuple[Any, ...]] = [
        tuple(Cell(row[name]) for name in ("model", "layers", "dim", "batch", "data", "placement", "status", "reason"))
        for row in content["cells"]
        if row["status"] != "done"
    ]
    header = tuple(map(Cell, ("model", "layers", "dim", "batch", "data", "placement", "status", "reason")))
    return (Table("missing", "Cells without figures", header, tuple(rows)),) if rows else ()


if __name__ == "__main__":
    sys.exit(main())
