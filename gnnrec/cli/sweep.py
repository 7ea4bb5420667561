"""`gnnrec train -m`: the jobs of a sweep through one of Hydra's launchers, gathered into a table."""

from __future__ import annotations

import copy
import itertools
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from gnnrec.cli import workers
from gnnrec.cli.jobs import Task
from gnnrec.cli.show import complain, show_sweep
from gnnrec.errors import ConfigError, GnnrecError
from gnnrec.storage import atomic_write, locked, storage_errors


class Sweep(Sweeper):
    """All combinations of the values that are given, in the order of the options.

    A sweep goes on where an earlier one in `hydra.sweep.dir` stopped; jobs record what became of them (`sweeps.Job`).

    Args:
        params: options and their values, as on the command line, which comes after them.
    """

    config: DictConfig
    hydra_context: HydraContext
    launcher: Launcher
    asked: int | None  # for at a time, -1 for as many as there is room for; None: the launcher runs them elsewhere

    def __init__(self, params: dict[str, str] | None = None) -> None:
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra gives."""
        assert isinstance(task_function, Task)
        self.hydra_context, self.task, self.config = hydra_context, task_function, config
        self.folder, self.asked = Path(config.hydra.sweep.dir), config.hydra.launcher.get("n_jobs")

    def sweep(self, arguments: list[str]) -> None:
        """Run the jobs of these overrides.

        Raises:
            ConfigError: the folder holds another sweep.
            GnnrecError: as `judge`.
        """
        from gnnrec import sweeps

        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        given = parser.parse_overrides([*(f"{key}={value}" for key, value in self.params.items()), *arguments])
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / ".lock", "another process is sweeping in this folder"):
            self.jobs: dict[int, list[str]] = {}
            states: dict[int, str] = {}
            try:
                self.run(given)
            finally:
                if self.jobs:
                    frame = sweeps.gather(self.folder, dict(sorted(self.jobs.items())))
                    sweeps.keep(self.folder, frame)
                    show_sweep(frame, self.folder)
                    states = dict(zip(frame["job"], frame["status"], strict=True))
        self.judge(states)

    def judge(self, states: Mapping[int, str]) -> None:
        """Raise a GnnrecError where some jobs are not done.

        Args:
            states: of all jobs, as `sweeps.gather` gives them.
        """
        if found := failures(states):
            remedy = "To run these again, call the same command with hydra.sweep.dir set to this folder"
            raise GnnrecError(found, where=str(self.folder), remedy=remedy)

    def run(self, given: Sequence[Override]) -> None:
        """Launch all jobs at once."""
        self.launch(dict(enumerate(grid(given))))

    def launch(self, jobs: dict[int, list[str]], width: int = 0) -> Sequence[JobReturn]:
        """Check jobs, numbered without gaps, and run them to their end, whatever it is.

        Args:
            width: jobs of later calls, where these are more; processes have their cores for all calls.
        """
        from gnnrec import sweeps

        self.validate_batch_is_legal(list(jobs.values()))
        sweeps.check_same(self.folder, jobs)
        config = self._with_room(jobs, width)
        atomic_write(self.folder / "multirun.yaml", OmegaConf.to_yaml(self.config).encode())
        self.launcher = Plugins.instance().instantiate_launcher(self.hydra_context, self.task, config)
        self.jobs |= jobs
        for number, options in sweeps.differing(self.jobs).items():
            shown = " ".join(f"{key}={value}" for key, value in options.items())
            self.task.labels[number] = f"job {number} ({shown})" if shown else f"job {number}"
        self.task.running = True
        while True:
            began = time.time()
            try:
                return self.launcher.launch(list(jobs.values()), initial_job_idx=min(jobs))
            except BrokenExecutor:  # a process was killed, and the executor has ended the others
                self._try_singly(jobs, began)

    def _try_singly(self, jobs: dict[int, list[str]], began: float) -> None:
        """Run the jobs that were under way one by one, so that one whose process dies again fails alone."""
        from gnnrec import sweeps

        states = {number: sweeps.state(self.folder / str(number), began) for number in jobs}
        self.task.ended |= {number for number, state in states.items() if state not in ("", "running")}
        for number in [number for number, state in states.items() if state == "running"]:
            try:
                self.launcher.launch([jobs[number]], initial_job_idx=number)
            except BrokenExecutor:
                found = "its process was killed, as by the system for want of memory"
                sweeps.Job(self.folder / str(number), jobs[number]).write("failed", found)
                complain(
                    GnnrecError(found, remedy="Look into the system's log (dmesg)"), f"{self.task.labels[number]}: "
                )
            self.task.ended.add(number)

    def _with_room(self, jobs: dict[int, list[str]], width: int) -> DictConfig:
        """The launcher's config: no more jobs at a time than there are cores and memory for, where several run here."""
        if self.asked is None:
            return self.config
        from gnnrec.memtier import nodes

        load, needs = self.hydra_context.config_loader.load_sweep_config, []
        for overrides in jobs.values():
            config = load(self.config, list(overrides))
            try:
                values = _resolved(config, [str(key) for key in config if key != "hydra"])
            except OmegaConfBaseException:  # what a job alone knows, such as its number
                values = _resolved(config, ["memory", "device"])
            needs.append(workers.needed(values))
        free = nodes.room(Path("/"))
        cores = len(os.sched_getaffinity(0))
        if self.task.places is None:
            self.task.places = workers.at_a_time(self.asked, needs + needs[:1] * (width - len(needs)), cores, free)
        count = min(self.task.places, workers.at_a_time(self.asked, needs, cores, free))
        print(f"{count} of {len(jobs)} jobs at a time", flush=True)
        config = copy.deepcopy(self.config)
        with read_write(config), open_dict(config):
            config.hydra.launcher.n_jobs = count
        return config


def _resolved(config: DictConfig, keys: list[str]) -> dict[str, Any]:
    values: Any = OmegaConf.to_container(OmegaConf.masked_copy(config, keys), resolve=True)
    return values  # type: ignore[no-any-return]


def failures(states: Mapping[int, str]) -> str:
    """The jobs that failed, in words; "" without one."""
    failed = [str(number) for number, state in states.items() if state not in ("done", "pruned")]
    return f"{len(failed)} of {len(states)} jobs failed: {', '.join(failed)}" if failed else ""


def grid(given: Sequence[Override]) -> list[list[str]]:
    """The overrides of every combination of values.

    Raises:
        ConfigError: an interval, which has no values to combine.
    """
    options = {}
    for override in given:
        key = override.get_key_element()
        if not override.is_sweep_override():
            options[key] = [str(override.input_line)]
        elif override.is_discrete_sweep():
            options[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            remedy = "List values (KEY=1,2,3 or KEY=range(1,4)), or search with hydra/sweeper=optuna"
            raise ConfigError(f"{override.input_line!r} is an interval", where="command line", remedy=remedy)
    return [list(job) for job in itertools.product(*options.values())]
