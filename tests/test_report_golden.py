"""The same records give the same numbers: reports of recorded runs beside those that were read by people and kept.

After a change that is meant: `python tests/test_report_golden.py` writes them anew; read what differs.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from gnnrec.report import records, render, sweep

RECORDS = Path(__file__).parent / "records"
NAMES = ("compared", "swept")


def write(out: Path, name: str) -> str:
    """Writes a report of recorded runs, gives its Markdown."""
    page = out / f"{name}.html"
    if name == "swept":
        render.write_sweep(sweep.read_sweep(str(RECORDS / "sweep")), page)
    else:
        render.write(records.read_runs([str(RECORDS / run) for run in ("profiled", "streamed")]), page)
    return page.with_suffix(".md").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_a_report_of_recorded_runs_has_the_numbers_that_it_had(name, tmp_path):
    assert write(tmp_path, name) == (RECORDS / f"{name}.md").read_text()


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for name in NAMES:
            (RECORDS / f"{name}.md").write_text(write(Path(folder), name))
