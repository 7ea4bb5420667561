"""The jobs of a sweep: what each records in its folder, and all of them as one table."""

from __future__ import annotations

import contextlib
import json
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gnnrec.config import TrainConfig
from gnnrec.errors import CheckpointError, ConfigError, GnnrecError, Pruned
from gnnrec.recommend import write_table
from gnnrec.storage import atomic_write, storage_errors
from gnnrec.training import rundir

JOB = "job.json"
TABLES = ("sweep.parquet", "sweep.csv")
# What a run that has ended may differ in: where it was made, and of what.
_ELSEWHERE = rundir.RESUMABLE - {"trainer.epochs", "trainer.patience", "evaluation.k"}
_NUMBERS = ("best_epoch", "epochs", "seconds", "train_seconds", "peak_rss_bytes")


class Job:
    """The record of a job, `job.json` in its folder, which is whole at any time.

    Its status is running, done, pruned, failed or interrupted. A job whose process was killed is still running there.

    Args:
        folder: of the job.
        overrides: what the job was told on the command line.
    """

    def __init__(self, folder: Path, overrides: Sequence[str]) -> None:
        self.folder, self.overrides = folder, list(overrides)
        self._before = _read(folder)
        self._started = time.perf_counter()
        self.write("running")

    def is_done(self, config: TrainConfig) -> bool:
        """Whether it had ended before with this configuration, and need not run again.

        Raises:
            ConfigError: the configuration of its run is damaged.
        """
        had = self._before is not None and self._before["status"] == "done" and is_run(self.folder)
        if not had or not (self.folder / "summary.json").exists():
            return False
        return not set(rundir.changed(self.folder, config)) - _ELSEWHERE

    def write(self, status: str, message: str = "", **fields: Any) -> None:
        """Record a status, with the seconds by the clock of all starts that ended, this one included."""
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        seconds = time.perf_counter() - self._started + (self._before or {}).get("seconds", 0)
        record = {"status": status, "overrides": self.overrides, "seconds": seconds, "message": message} | fields
        atomic_write(self.folder / JOB, (json.dumps(record, indent=2) + "\n").encode())


@contextlib.contextmanager
def recorded(folder: Path, overrides: Sequence[str]) -> Iterator[Job]:
    """Record how the job in `folder` ends, whatever ends it; lets every error pass.

    A block that leaves normally has written its status itself.
    """
    job = Job(folder, overrides)
    try:
        yield job
    except Pruned as error:
        job.write("pruned", str(error))
        raise
    except Exception as error:
        if hasattr(error, "signum"):
            job.write("interrupted", str(error))
        elif isinstance(error, GnnrecError | OSError):
            job.write("failed", str(error))
        else:
            job.write("failed", f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
        raise
    except BaseException:  # Ctrl-C, SIGTERM
        job.write("interrupted")
        raise


def is_run(folder: Path) -> bool:
    """Whether a training has begun there, with which another one goes on."""
    return (folder / "config.yaml").exists()


def state(folder: Path, since: float) -> str:
    """The status of the job in `folder`, if it was recorded since then (seconds since 1970), else ""."""
    record = _read(folder)
    return "" if record is None or (folder / JOB).stat().st_mtime < since else str(record["status"])


def begun(sweep: Path) -> dict[int, list[str]]:
    """The overrides of the jobs that a sweep in this folder has begun, by number."""
    numbers = sorted(int(entry.name) for entry in sweep.iterdir() if entry.name.isdecimal()) if sweep.is_dir() else []
    records = {number: _read(sweep / str(number)) for number in numbers}
    return {number: record["overrides"] for number, record in records.items() if record is not None}


def check_same(sweep: Path, jobs: Mapping[int, Sequence[str]]) -> None:
    """Raise a ConfigError where a job of an earlier sweep in this folder had other options than it has now.

    Options that results do not depend on may be others, as it may take to go on, unless they tell jobs apart.
    """
    aside = _ELSEWHERE - {key for options in differing(jobs).values() for key in options}
    for number, overrides in jobs.items():
        record = _read(sweep / str(number))
        if record is None:
            continue
        before, now = (
            {override for override in given if _option(override)[0] not in aside}
            for given in (record["overrides"], overrides)
        )
        if before == now:
            continue
        had, has = (" ".join(sorted(only)) or "nothing" for only in (before - now, now - before))
        found = f"job {number} had {had}, and now {has} instead"
        remedy = "Give the same options to go on with it, or choose another hydra.sweep.dir"
        raise ConfigError(f"holds a sweep of other jobs: {found}", where=str(sweep), remedy=remedy)


def objective(folder: Path) -> float | None:
    """The validation metric by which the run in `folder` chose its best epoch; None without a validation part.

    For a model in closed form the first of the validation metrics, recall at the first cut-off.
    """
    metrics = _summary(folder)["metrics"].get("valid")
    if metrics is None:
        return None
    trainer = rundir.read_config(folder).trainer
    value = metrics[next(iter(metrics)) if trainer is None else trainer.monitor]
    return None if value is None else float(value)


def gather(
    sweep: Path, jobs: Mapping[int, Sequence[str]], named: Mapping[int, Mapping[str, Any]] | None = None
) -> pd.DataFrame:
    """A row a job, as the folders have it: `job`, a column for every option in which jobs differ, `status` (done,
    pruned, failed, interrupted, or waiting where it has not begun), metrics such as `valid_recall@20` and
    `test_recall@20`, `best_epoch`, `epochs`, `seconds` by the clock, `train_seconds`, `peak_rss_bytes`, `message`.

    named: what tells the jobs apart, the same names for each, instead of these options.
    """
    options = differing(jobs) if named is None else named
    rows = [{"job": number, **options[number]} | _outcome(sweep / str(number)) for number in jobs]
    found = dict.fromkeys(name for row in rows for name in row if name.startswith(("valid_", "test_")))
    columns = ["job", *next(iter(options.values())), "status", *found, *_NUMBERS, "message"]
    return pd.DataFrame(rows, columns=columns).convert_dtypes()


def keep(sweep: Path, frame: pd.DataFrame) -> None:
    """Write the table beside the jobs, as Parquet and CSV."""
    for name in TABLES:
        write_table(frame, sweep / name)


def _outcome(folder: Path) -> dict[str, Any]:
    record = _read(folder)
    if record is None:
        return {"status": "waiting", "message": ""}
    row = {name: record[name] for name in ("status", "seconds", "message")}
    if row["status"] == "running":
        return row | {"status": "interrupted", "message": "its process ended"}
    if row["status"] != "done":
        return row
    summary = _summary(folder)
    metrics = {f"{part}_{name}": value for part, found in summary["metrics"].items() for name, value in found.items()}
    return row | metrics | {name: summary[name] for name in _NUMBERS if name in summary}


def differing(jobs: Mapping[int, Sequence[str]]) -> dict[int, dict[str, Any]]:
    """By job the options that are not the same for all; numbers as numbers, where a column holds nothing else."""
    options = {number: dict(_option(override) for override in overrides) for number, overrides in jobs.items()}
    keys = dict.fromkeys(key for given in options.values() for key in given)
    differing = [key for key in keys if len({given.get(key) for given in options.values()}) > 1]
    columns = {key: _typed([given.get(key) for given in options.values()]) for key in differing}
    return {number: {key: columns[key][row] for key in differing} for row, number in enumerate(options)}


def _option(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+").partition("=")
    return key, value


def _typed(values: Sequence[str | None]) -> Sequence[Any]:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return [None if value is None else kind(value) for value in values]
    return values


def _summary(folder: Path) -> dict[str, Any]:
    try:
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_bytes())
    except (OSError, ValueError) as error:
        remedy = f"Remove {folder / JOB}, so that the sweep runs it again"
        raise CheckpointError(f"cannot be read: {error}", where=str(folder / "summary.json"), remedy=remedy) from error
    return summary


def _read(folder: Path) -> dict[str, Any] | None:
    """The record of a job; None where it has not begun.

    Raises:
        CheckpointError: it is damaged.
    """
    file = folder / JOB
    try:
        record = json.loads(file.read_bytes())
        _ = record["status"], record["overrides"], record["seconds"], record["message"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        remedy = "Remove it: the job then goes on from its last checkpoint"
        raise CheckpointError(f"cannot be read: {error!r}", where=str(file), remedy=remedy) from error
    return record if isinstance(record, dict) else None
