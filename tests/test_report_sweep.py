"""Reports of sweeps: what jobs have recorded beside their runs decides how they ended and what is told apart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gnnrec.report import sweep as swept
from gnnrec.report.findings import findings

RECORDS = Path(__file__).parent / "records" / "sweep"


@pytest.fixture
def sweep(tmp_path) -> Path:
    """Four finished runs, of which a test may spoil some."""
    shutil.copytree(RECORDS, tmp_path / "sweep")
    return tmp_path / "sweep"


def cut(run: Path, *events: dict) -> None:
    """Let the run end otherwise: with these events after its last epoch, and without a summary."""
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    kept = [line for line in lines if line["event"] not in ("end", "stopped")]
    (run / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*kept, *events]))
    (run / "summary.json").unlink()


def job(run: Path, status: str, message: str = "") -> None:
    record = {"status": status, "overrides": [], "seconds": 1.0, "message": message}
    (run / "job.json").write_text(json.dumps(record))


def test_what_goes_on_beside_a_training_is_no_setting(sweep):
    before = swept.read_sweep(str(sweep)).settings
    file = sweep / "1" / "config.yaml"
    text = file.read_text()
    assert "resume: false\n" in text
    file.write_text(text.replace("resume: false\n", "resume: true\n").replace("view: auto\n", "view: quiet\n"))
    assert swept.read_sweep(str(sweep)).settings == before


def test_a_pruned_run_is_told_from_one_that_was_killed(sweep):
    cut(sweep / "1", {"event": "pruned", "time": 2e9, "epoch": 1, "step": 1})
    cut(sweep / "3")
    found = swept.read_sweep(str(sweep))
    assert [run.state for run in found.runs] == ["finished", "pruned", "unfinished", "finished"]
    assert findings(found.runs[1])[0].text.startswith("Given up after ")
    assert swept._best(found) in (found.runs[0], found.runs[3])


def test_a_job_that_failed_after_its_first_record_is_listed(sweep):
    best = swept._best(swept.read_sweep(str(sweep)))
    assert best is not None
    cut(sweep / best.label)
    job(sweep / best.label, "failed", "the loss is nan")
    found = swept.read_sweep(str(sweep))
    assert {run.label: run.state for run in found.runs}[best.label] == "failed"
    assert (best.label, "the loss is nan") in found.failed
    assert swept._best(found) != best
    assert swept._best(found).state == "finished"
    first = next(swept._findings(found)).text
    assert first.startswith("4 runs: 1 failed, 3 finished; 1 failed before they were runs")
