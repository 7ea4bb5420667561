"""What Hydra calls with a composed config: an app's function, once or once a job of a sweep."""

from __future__ import annotations

import contextlib
import os
import traceback
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from gnnrec.cli.apps import APPS
from gnnrec.cli.show import complain
from gnnrec.config import TrainConfig
from gnnrec.errors import GnnrecError


class Ended(BaseException):
    """Carries an error past Hydra, which would add a line of its own, and in a sweep begin the next job."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class JobFailed(Exception):
    """A job of a sweep ended without a result; its message and traceback are recorded and printed already."""


class Task:
    """The function of an app.

    Args:
        name: of the app.
        verb: what it is to do.

    Attributes:
        running: from now on errors come from the app, not from Hydra.
        labels: what is said of a sweep's jobs, by number.
    """

    def __init__(self, name: str, verb: str) -> None:
        self.name, self.verb, self.running = name, verb, False
        self.labels: dict[int, str] = {}

    def __call__(self, config: DictConfig) -> float | None:
        """Run the app in Hydra's output directory; gives what a training of a sweep reached, see `sweeps.objective`."""
        self.running = True
        settings = HydraConfig.get()
        run_dir = Path(settings.runtime.output_dir)
        values: Any = OmegaConf.to_container(config, resolve=True)
        reached = None
        try:
            if self.name == "train" and settings.mode == RunMode.MULTIRUN:
                reached = self._job(values, run_dir, settings.job.num, list(settings.overrides.task))
            else:
                APPS[self.name].function(values, run_dir, self.verb)
        except (GnnrecError, OSError) as error:
            if settings.mode == RunMode.RUN or hasattr(error, "signum"):
                raise Ended(error) from error
            if isinstance(error, GnnrecError):
                complain(error)  # the sweep goes on; Hydra raises the first error at its end
            raise
        finally:
            # Made by Hydra for a run that never began; within the working directory, so were empty folders above it.
            made = os.path.relpath(run_dir)
            with contextlib.suppress(OSError):  # not empty: a run
                (os.rmdir if made.startswith("..") else os.removedirs)(made)
        return reached

    def _job(self, values: dict[str, Any], run_dir: Path, number: int, overrides: list[str]) -> float | None:
        """Train as a job of a sweep: go on with what is there, record the end.

        Raises:
            JobFailed: it could not be done. The sweep goes on.
            Interrupted: by a signal.
        """
        from gnnrec import sweeps
        from gnnrec.training import runlog

        label = self.labels[number]
        try:
            with sweeps.recorded(run_dir, overrides) as job:
                config = TrainConfig.from_dict(values)
                if job.is_done(config):
                    print(f"{label}: done before")
                else:
                    print(label, flush=True)
                    runlog.reset_peak_rss()
                    APPS[self.name].function(values | {"resume": sweeps.is_run(run_dir)}, run_dir, self.verb)
                job.write("done")
        except (GnnrecError, OSError) as error:
            if hasattr(error, "signum"):
                raise
            complain(error if isinstance(error, GnnrecError) else GnnrecError(str(error)), f"{label}: ")
            raise JobFailed(str(error)) from error
        except Exception as error:
            traceback.print_exc()
            raise JobFailed(f"{type(error).__name__}: {error}") from error
        return sweeps.objective(run_dir)
