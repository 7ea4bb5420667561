"""`gnnrec report`: what runs recorded, as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gnnrec.config import ReportConfig, fill


def report(values: dict[str, Any], run_dir: Path, verb: str) -> None:
    """Turn the records of one or several runs, or of a sweep, into a page, Markdown and CSV."""
    config = fill(ReportConfig, values)
    config.validate()

    from gnnrec.report import records, render, sweep

    out = Path(config.out or Path(config.sweep or config.run[0], "report.html"))
    if config.sweep is not None:
        written = render.write_sweep(sweep.read_sweep(config.sweep), out)
    else:
        written = render.write(records.read_runs(config.run), out)
    page, *others = written
    print(f"{page}, with {others[0].name} and {len(others) - 1} tables as {page.stem}-*.csv")
