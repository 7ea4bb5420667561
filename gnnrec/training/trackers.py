"""Loggers that draw curves elsewhere: TensorBoard, MLflow, Weights & Biases. Each takes a package that is an extra.

None of them sends anything anywhere, unless its own environment variables say so.
"""

from __future__ import annotations

import importlib
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from gnnrec.config.values import flat
from gnnrec.errors import LoggerError
from gnnrec.storage import atomic_write
from gnnrec.training.runlog import Logger, Progress, Status

STEP_SECONDS = 2.0  # between two losses of steps: a server far away takes its time for each


class Tracker(Logger, ABC):
    """Gives a package parameters at the start, numbers by step, and the status at the end.

    Names of metrics have `_at_` instead of @, which not all of them take.

    Raises:
        LoggerError: the package is missing; in the methods: it failed.
    """

    name: ClassVar[str]  # in the configuration, and of the extra
    module: ClassVar[str]

    def __init__(self) -> None:
        try:
            self._package: Any = importlib.import_module(self.module)
        except ImportError as error:
            remedy = f"Install it: pip install gnnrec[{self.name}], or leave it out"
            raise LoggerError(str(error), where=f"loggers={self.name}", remedy=remedy) from error
        self._opened = False  # True as soon as there is something to end, also where the rest of `_open` fails
        self._step = 0
        self._next = 0.0  # when the next step's loss is due

    def start(self, config: Mapping[str, Any], run_dir: Path) -> None:
        """Open it, in the run's directory or where its environment variables say."""
        with self._failures():
            self._open(config, run_dir)

    def steps(self, progress: Progress) -> None:
        """Give it a step's loss now and then."""
        self._step = progress.step
        if time.monotonic() >= self._next:
            self._give({"step/loss": progress.loss})
            self._next = time.monotonic() + STEP_SECONDS

    def event(self, event: str, fields: Mapping[str, Any]) -> None:
        """Give it the numbers of an epoch, and the metrics at the end."""
        if event == "epoch":
            self._step = fields["step"]
            numbers = {"train/loss": fields["loss"], "train/seconds": fields["train_seconds"], "epoch": fields["epoch"]}
            self._give(numbers | {f"valid/{name}": value for name, value in fields["valid"].items()})
        elif event == "end":
            self._step = fields.get("step", self._step)  # of a finished run that is resumed nothing else says it
            parts = {"valid": "best_valid", "test": "test"}
            metrics = fields["metrics"]
            self._give({f"{parts[part]}/{name}": metrics[part][name] for part in metrics for name in metrics[part]})

    def close(self, status: Status) -> None:
        """Close it, if it was opened."""
        if self._opened:
            with self._failures():
                self._end(status)

    def _give(self, numbers: Mapping[str, float]) -> None:
        with self._failures():
            self._log({name.replace("@", "_at_"): float(value) for name, value in numbers.items()}, self._step)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a package raises that is not ours; it goes on as an error of ours
            remedy = "Checkpoints and records are as they were: mend it or leave it out, and go on with resume=true"
            raise LoggerError(f"failed: {error!r}", where=f"loggers={self.name}", remedy=remedy) from error

    @abstractmethod
    def _open(self, config: Mapping[str, Any], run_dir: Path) -> None: ...
    @abstractmethod
    def _log(self, numbers: dict[str, float], step: int) -> None: ...
    @abstractmethod
    def _end(self, status: Status) -> None: ...


class TensorBoard(Tracker):
    """Writes event files into `tensorboard/` of the run's directory."""

    name, module = "tensorboard", "torch.utils.tensorboard"

    def _open(self, config: Mapping[str, Any], run_dir: Path) -> None:
        self._folder = run_dir / "tensorboard"
        self._resumed = self._folder.exists()
        self._writer = self._package.SummaryWriter(log_dir=str(self._folder), flush_secs=10)
        self._opened = True
        # Markdown: what is indented by four is shown as it stands.
        self._writer.add_text("config", "\n".join(f"    {key}: {value}" for key, value in flat(config).items()))

    def _log(self, numbers: dict[str, float], step: int) -> None:
        if self._resumed:  # what a run that was killed had written beyond its checkpoint is left out from here on
            self._writer.close()
            self._writer = self._package.SummaryWriter(log_dir=str(self._folder), purge_step=step, flush_secs=10)
            self._resumed = False
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def _end(self, status: Status) -> None:
        self._writer.add_text("status", status)
        self._writer.close()


class MLflow(Tracker):
    """A run of MLflow: where that has it by itself, in `mlflow.db` of the working directory, unless MLFLOW_TRACKING_URI
    says otherwise.

    It goes on with the same run when training is resumed, by the number that is kept in the run's directory.
    """

    name, module = "mlflow", "mlflow"
    STATUS: ClassVar[Mapping[Status, str]] = {
        "finished": "FINISHED",
        "interrupted": "KILLED",
        "pruned": "KILLED",
        "failed": "FAILED",
    }
    MOST = 100  # parameters that a server takes at once

    def __init__(self) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # since 3.2 it reports its use to its makers
        super().__init__()

    def _open(self, config: Mapping[str, Any], run_dir: Path) -> None:
        run = self._package.start_run(run_id=_kept(run_dir, self.name), run_name=run_dir.name)
        self._opened = True
        _keep(run_dir, self.name, run.info.run_id)
        # Each is given once, as it cannot be changed; a start that failed may have given some.
        parameters = [(name, value) for name, value in flat(config).items() if name not in run.data.params]
        for first in range(0, len(parameters), self.MOST):
            self._package.log_params(dict(parameters[first : first + self.MOST]))

    def _log(self, numbers: dict[str, float], step: int) -> None:
        self._package.log_metrics(numbers, step=step)

    def _end(self, status: Status) -> None:
        self._package.end_run(status=self.STATUS[status])


class WandB(Tracker):
    """A run of Weights & Biases, offline in `wandb/` of the run's directory unless WANDB_MODE says otherwise.

    It goes on with the same run when training is resumed.
    """

    name, module = "wandb", "wandb"

    def __init__(self) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # to its makers, offline too
        super().__init__()

    def _open(self, config: Mapping[str, Any], run_dir: Path) -> None:
        self._run = self._package.init(
            project=os.environ.get("WANDB_PROJECT", "gnnrec"),
            name=run_dir.name,
            dir=str(run_dir),
            config=dict(config),
            mode=os.environ.get("WANDB_MODE", "offline"),
            id=_kept(run_dir, self.name),
            resume="allow",
            settings=self._package.Settings(console="off"),  # a dashboard is no text to keep
        )
        self._opened = True
        _keep(run_dir, self.name, self._run.id)

    def _log(self, numbers: dict[str, float], step: int) -> None:
        self._run.log(numbers, step=step)

    def _end(self, status: Status) -> None:
        self._run.summary["status"] = status
        self._run.finish(exit_code=0 if status in ("finished", "pruned") else 1)


TRACKERS: Mapping[str, type[Tracker]] = {kind.name: kind for kind in (TensorBoard, MLflow, WandB)}


def trackers(names: Sequence[str]) -> list[Logger]:
    """The loggers of these names, not started yet.

    Raises:
        LoggerError: a package is missing.
    """
    return [TRACKERS[name]() for name in names]


def _kept(run_dir: Path, name: str) -> str | None:
    """The id under which the package knows the run, where it was started before."""
    file = run_dir / f"{name}.id"
    return file.read_text().strip() if file.exists() else None


def _keep(run_dir: Path, name: str, number: str) -> None:
    atomic_write(run_dir / f"{name}.id", f"{number}\n".encode())
