"""Sweeps: jobs that are recorded, go on where they stopped, and end in one table."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import forked
import pandas as pd
import pytest

from gnnrec import sweeps
from gnnrec.cli.sweep import grid
from gnnrec.errors import CheckpointError, ConfigError
from gnnrec.training.rundir import read_config

SMALL = (
    "data.synthetic.num_users=60",
    "data.synthetic.num_items=120",
    "data.synthetic.num_interactions=900",
    "data.synthetic.communities=3",
    "trainer.epochs=1",
)


def train(*args: str, cwd: Path, **options: Any) -> Any:
    return forked.gnnrec("train", *SMALL, "-m", "hydra.sweep.dir=sweep", *args, cwd=cwd, **options)


def summary(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return content


def record(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "job.json").read_text())
    return content


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Any]:
    """A sweep of which the second job fails, and what the command said."""
    folder: Path = tmp_path_factory.mktemp("made")
    return folder / "sweep", train("seed=0,-1", "optimizer.lr=0.01,0.001", cwd=folder)


def test_a_sweep_ends_in_a_table_with_a_row_a_job(made):
    sweep, result = made
    table = pd.read_parquet(sweep / "sweep.parquet")
    assert table["job"].tolist() == list(range(4))
    assert table["seed"].tolist() == [0, 0, -1, -1]
    assert table["optimizer.lr"].tolist() == [0.01, 0.001] * 2
    assert table["status"].tolist() == ["done", "done", "failed", "failed"]
    assert "trainer.epochs" not in table
    for job in (0, 1):
        found = summary(sweep / str(job))
        for part in ("valid", "test"):
            for name, value in found["metrics"][part].items():
                assert table.loc[job, f"{part}_{name}"] == value
        assert table.loc[job, "peak_rss_bytes"] == found["peak_rss_bytes"]
        assert table.loc[job, "seconds"] >= table.loc[job, "train_seconds"] == found["train_seconds"]
    assert table.loc[2, "message"].startswith("seed: is -1. It must lie within 0")
    assert table[["valid_recall@20", "epochs"]].isna().all(axis=1).tolist() == [False, False, True, True]
    copy = pd.read_csv(sweep / "sweep.csv")
    assert copy.columns.tolist() == table.columns.tolist()
    assert copy["test_recall@20"].tolist()[:2] == table["test_recall@20"].tolist()[:2]
    best = table["valid_recall@20"].astype(float).idxmax()
    assert f"best by valid recall@20: job {best} (seed={table.loc[best, 'seed']}" in result.stdout


def test_a_failed_job_does_not_take_the_others_along_and_is_counted(made):
    sweep, result = made
    assert result.returncode == 2
    first, second, last = result.stderr.splitlines()
    assert first.startswith("gnnrec: job 2 (seed=-1 optimizer.lr=0.01): seed: is -1. It must lie")
    assert second.startswith("gnnrec: job 3 (seed=-1 optimizer.lr=0.001): seed: is -1. It must lie")
    assert last.startswith("gnnrec: sweep: 2 of 4 jobs failed: 2, 3. To run these again, call the same command")
    assert {path.name for path in (sweep / "2").iterdir()} == {"job.json"}
    assert {"config.yaml", "summary.json", "checkpoints", "data"} <= {path.name for path in (sweep / "1").iterdir()}


def test_the_same_command_runs_again_what_failed_and_nothing_else(made, tmp_path):
    shutil.copytree(made[0], tmp_path / "sweep")
    written = [(tmp_path / "sweep" / str(job) / "summary.json").stat().st_mtime_ns for job in (0, 1)]
    again = train("seed=0,-1", "optimizer.lr=0.01,0.001", cwd=tmp_path)
    assert again.returncode == 2
    assert again.stdout.count("done before") == 2
    assert "epoch 1/1" not in again.stdout
    assert written == [(tmp_path / "sweep" / str(job) / "summary.json").stat().st_mtime_ns for job in (0, 1)]
    assert record(tmp_path / "sweep" / "0")["seconds"] >= record(made[0] / "0")["seconds"]


def test_a_report_of_the_jobs_that_are_done(made, tmp_path):
    pytest.importorskip("jinja2")
    shutil.copytree(made[0], tmp_path / "sweep")
    result = forked.gnnrec("report", "sweep=sweep", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "sweep/report.html, with report.md" in result.stdout
    text = (tmp_path / "sweep" / "report.md").read_text()
    assert "0.001" in text
    for job in ("0", "1"):
        assert f"{summary(made[0] / job)['metrics']['test']['recall@20']:.4f}" in text


def test_another_sweep_in_the_same_folder_is_refused(made, tmp_path):
    shutil.copytree(made[0], tmp_path / "sweep")
    other = train("seed=0,1", cwd=tmp_path)
    assert other.returncode == 2
    says = "gnnrec: sweep: holds a sweep of other jobs: job 0 had optimizer.lr=0.01, and now nothing instead. Give the"
    assert other.stderr.startswith(says)
    assert record(tmp_path / "sweep" / "0") == record(made[0] / "0")


def test_a_run_of_another_configuration_under_the_same_options_is_no_finished_job(made, tmp_path):
    """Such as by a recipe that was edited in the meantime."""
    shutil.copytree(made[0] / "0", tmp_path / "0")
    file = tmp_path / "0" / "config.yaml"
    config, job = read_config(tmp_path / "0"), sweeps.Job(tmp_path / "0", [])
    assert job.is_done(config)
    file.write_text(file.read_text().replace("lr: 0.01", "lr: 0.02"))
    assert not job.is_done(config)


LONG = (
    *("-m", "hydra.sweep.dir=sweep", "seed=0,1", "trainer.epochs=30"),
    *("trainer.batch_size=64", "trainer.checkpoint_every=3", "trainer.patience=99"),
)


def interrupt(cwd: Path, signum: int) -> int:
    """Send the signal to a sweep of two jobs once it has written a checkpoint of the second; gives how it ended."""
    checkpoints = cwd / "sweep" / "1" / "checkpoints"
    before = set(checkpoints.glob("step-*"))
    process = forked.start("train", *SMALL, *LONG, cwd=cwd)
    while not set(checkpoints.glob("step-*")) - before and process.is_alive():
        time.sleep(0.005)
    assert process.pid is not None
    os.kill(process.pid, signum)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def test_an_interrupted_sweep_goes_on_where_it_stopped(tmp_path):
    sweep = tmp_path / "sweep"
    assert interrupt(tmp_path, signal.SIGKILL) == -signal.SIGKILL
    first = (sweep / "0" / "summary.json").stat().st_mtime_ns
    assert (record(sweep / "0")["status"], record(sweep / "1")["status"]) == ("done", "running")
    assert interrupt(tmp_path, signal.SIGINT) == 130
    assert pd.read_csv(sweep / "sweep.csv")["status"].tolist() == ["done", "interrupted"]
    result = forked.gnnrec("train", *SMALL, *LONG, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "job 0 (seed=0): done before" in result.stdout
    assert "epoch 30/30" in result.stdout
    assert "epoch 1/30" not in result.stdout
    assert (sweep / "0" / "summary.json").stat().st_mtime_ns == first
    assert pd.read_csv(sweep / "sweep.csv")["status"].tolist() == ["done", "done"]


# A job's record and the table, without a training


def test_a_defect_is_recorded_with_its_traceback(tmp_path):
    with pytest.raises(ZeroDivisionError), sweeps.recorded(tmp_path / "0", ["seed=0"]):
        _ = 1 / 0
    assert record(tmp_path / "0")["status"] == "failed"
    assert record(tmp_path / "0")["message"] == "ZeroDivisionError: division by zero"
    assert "1 / 0" in record(tmp_path / "0")["traceback"]


def test_seconds_add_up_over_starts_and_a_killed_process_is_an_interruption(tmp_path):
    (tmp_path / "0").mkdir()
    before = {"status": "running", "overrides": ["seed=0"], "seconds": 1000.0, "message": ""}
    (tmp_path / "0" / "job.json").write_text(json.dumps(before))
    jobs = {0: ["seed=0"], 1: ["seed=1"]}
    assert sweeps.gather(tmp_path, jobs)["status"].tolist() == ["interrupted", "waiting"]
    with pytest.raises(KeyboardInterrupt), sweeps.recorded(tmp_path / "0", ["seed=0"]):
        raise KeyboardInterrupt
    assert record(tmp_path / "0")["status"] == "interrupted"
    assert record(tmp_path / "0")["seconds"] > 1000


def test_a_damaged_record_names_the_remedy(tmp_path):
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "job.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"0/job\.json: cannot be read: .* Remove it: the job then goes on"):
        sweeps.check_same(tmp_path, {0: []})


def test_options_that_results_do_not_depend_on_may_be_others_unless_they_tell_jobs_apart(tmp_path):
    for number in (0, 1):
        sweeps.Job(tmp_path / str(number), [f"threads={number + 1}", "loggers=[mlflow]", "model.dim=32"])
    mended = {number: [f"threads={number + 1}", "trainer.checkpoint_every=2", "model.dim=32"] for number in (0, 1)}
    sweeps.check_same(tmp_path, mended)
    with pytest.raises(ConfigError, match=r"job 0 had model.dim=32, and now nothing instead"):
        sweeps.check_same(tmp_path, {number: told[:2] for number, told in mended.items()})
    with pytest.raises(ConfigError, match=r"job 0 had threads=1, and now threads=2 instead"):
        sweeps.check_same(tmp_path, {0: mended[1], 1: mended[0]})


def test_options_of_which_some_jobs_have_none_or_other_kinds(tmp_path):
    jobs = {0: ["+experiment=a", "x=1"], 1: ["x=2.5", "y=1"], 2: ["x=3", "y=two"]}
    assert sweeps.differing(jobs) == {
        0: {"experiment": "a", "x": 1.0, "y": None},
        1: {"experiment": None, "x": 2.5, "y": "1"},
        2: {"experiment": None, "x": 3.0, "y": "two"},
    }
    table = sweeps.gather(tmp_path, jobs)
    sweeps.keep(tmp_path, table)
    assert pd.read_parquet(tmp_path / "sweep.parquet")["y"].tolist()[1:] == ["1", "two"]


def overrides(*texts: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_overrides(list(texts))


def test_the_grid_is_every_combination_in_order():
    given = overrides("a=1,2", "~loss", "b=range(1,4,2)", "c=[1,2]", "+d='x,y'")
    assert grid(given) == [[f"a={a}", "~loss", f"b={b}", "c=[1,2]", "+d='x,y'"] for a in (1, 2) for b in (1, 3)]
    with pytest.raises(ConfigError, match=r"'a=interval\(0,1\)' is an interval. List values .* hydra/sweeper=optuna"):
        grid(overrides("a=interval(0,1)"))
