"""`gnnrec report`: what runs recorded, as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gnnrec.config import ReportConfig, fill


def report(values: dict[str, Any], run_dir: Path, verb: str) -> None:
    """Turn the records of one or several runs, or of a sweep, into a page, Markdown and CSV."""
    config = fill(ReportConfig, values)
    config.validate()

    from gnnrec import sweeps
    from gnnrec.report import records, render

    runs = records.read_runs([str(run) for folder in config.run for run in sweeps.runs_of(Path(folder))])
    page, *others = render.write(runs, Path(config.out or Path(config.run[0], "report.html")))
    print(f"{page}, with {others[0].name} and {len(others) - 1} tables as {page.stem}-*.csv")
