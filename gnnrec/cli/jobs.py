"""What Hydra calls with a composed config: an app's function, once or once a job of a sweep."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from gnnrec import process
from gnnrec.cli import workers
from gnnrec.cli.apps import APPS, train
from gnnrec.cli.show import complain
from gnnrec.config import TrainConfig
from gnnrec.errors import GnnrecError, Pruned


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
        ended: jobs that this sweep has run already.
        places: of how many processes each has cores of its own; None where they do not share a machine.
    """

    def __init__(self, name: str, verb: str) -> None:
        self.name, self.verb, self.running = name, verb, False
        self.labels: dict[int, str] = {}
        self.ended: set[int] = set()
        self.places: int | None = None
        self._process = os.getpid()

    def __call__(self, config: DictConfig) -> float | None:
        """Run the app in Hydra's output directory; gives what a training of a sweep reached, see `sweeps.objective`."""
        self.running = True
        settings = HydraConfig.get()
        run_dir = Path(settings.runtime.output_dir)
        values: Any = OmegaConf.to_container(config, resolve=True)
        reached = None
        try:
            if self.name == "train" and settings.mode == RunMode.MULTIRUN:
                reached = self._job(values, run_dir, settings)
            else:
                APPS[self.name].function(values, run_dir, self.verb)
        except (GnnrecError, OSError) as error:
            if hasattr(error, "signum") and os.getpid() != self._process:
                raise KeyboardInterrupt from error  # which the process that waits for this one understands
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

    def _job(self, values: dict[str, Any], run_dir: Path, settings: HydraConf) -> float | None:
        """Train as a job of a sweep: go on with what is there, record the end.

        Raises:
            JobFailed: it could not be done. The sweep goes on.
            Interrupted: by a signal.
        """
        number = settings.job.num
        if number in self.ended:
            return None
        label, elsewhere = self.labels[number], os.getpid() != self._process
        threads = self._settle(settings) if elsewhere else None

        from gnnrec import sweeps
        from gnnrec.ops import set_num_threads
        from gnnrec.training import runlog

        if threads is not None:
            set_num_threads(threads)
        try:
            with sweeps.recorded(run_dir, list(settings.overrides.task)) as job:
                config = TrainConfig.from_dict(values)
                if job.is_done(config):
                    print(f"{label}: done before", flush=True)
                else:
                    print(label, flush=True)
                    runlog.reset_peak_rss()
                    values["resume"] = sweeps.is_run(run_dir)
                    with _into(run_dir / "output.txt") if elsewhere else contextlib.nullcontext():
                        train(values, run_dir, self.verb, hopeless=self._hopeless(settings))
                    if elsewhere:
                        print(f"{label}: done", flush=True)
                job.write("done")
        except Pruned as error:
            print(f"{label}: {error}", flush=True)
            return None
        except (GnnrecError, OSError) as error:
            if hasattr(error, "signum"):
                raise
            complain(error if isinstance(error, GnnrecError) else GnnrecError(str(error)), f"{label}: ")
            raise JobFailed(str(error)) from error
        except Exception as error:
            traceback.print_exc()
            raise JobFailed(f"{type(error).__name__}: {error}") from error
        return sweeps.objective(run_dir)

    @staticmethod
    def _hopeless(settings: HydraConf) -> Callable[[int, float], bool] | None:
        """What gives up a job of a search that others have left behind."""
        if "n_trials" not in settings.sweeper:
            return None
        from gnnrec.cli import search

        return search.watch(Path(settings.sweep.dir), settings.job.num, settings.sweeper)

    def _settle(self, settings: HydraConf) -> int | None:
        """Prepare a process that runs jobs beside others; gives its threads, where it has cores of its own."""
        process.prepare()
        return None if self.places is None else workers.take_place(Path(settings.sweep.dir), self.places)


@contextlib.contextmanager
def _into(file: Path) -> Iterator[None]:
    """Append to a file what is printed, where lines of several jobs would mix."""
    with open(file, "a") as stream, contextlib.redirect_stdout(stream):
        yield
