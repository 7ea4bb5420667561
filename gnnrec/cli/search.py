"""`gnnrec train -m hydra/sweeper=optuna`: values that Optuna proposes, by the validation metrics of the jobs before.

Hydra's own sweeper for Optuna would not do: for Hydra 1.3 it asks for Optuna 2, whose storage the SQLAlchemy of today
breaks, and it knows no pruning.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins

from gnnrec.cli.sweep import Sweep, failures
from gnnrec.errors import ConfigError, GnnrecError

WHERE = "hydra/sweeper=optuna"


class Search(Sweep):
    """Trials of a study that is kept in the sweep's folder: after an interruption those under way come first.

    Args:
        n_trials: jobs in all, those of the sweep before an interruption included.
        seed: of the proposals, which are the same again for one job at a time that is not interrupted.
        startup: jobs that are drawn at random and trained to their end, before proposals and pruning.
        prune: end a job whose best validation so far is below the median of the others at that epoch.
        params: as in `Sweep`.
    """

    def __init__(
        self,
        n_trials: int = 20,
        seed: int = 0,
        startup: int = 5,
        prune: bool = True,
        params: dict[str, str] | None = None,
    ) -> None:
        super().__init__(params)
        self.n_trials, self.seed, self.startup, self.prune = n_trials, seed, startup, prune

    def run(self, given: Sequence[Override]) -> None:
        """Launch as many jobs at a time as the launcher takes, until there are enough.

        Raises:
            ConfigError: Optuna is not installed, there is nothing to search or nothing to compare by, or a number of
                trials cannot be used.
        """
        for name, value, least in (("n_trials", self.n_trials, 1), ("startup", self.startup, 0)):
            if not isinstance(value, int) or value < least:
                remedy = f"It must be a whole number of at least {least}"
                raise ConfigError(f"is {value!r}", where=f"hydra.sweeper.{name}", remedy=remedy)
        optuna = _optuna()
        space = {one.get_key_element(): _distribution(one) for one in given if one.is_sweep_override()}
        fixed = [str(one.input_line) for one in given if not one.is_sweep_override()]
        if not space:
            remedy = "Give KEY=interval(1e-4,1e-1), tag(log,interval(...)), choice(a,b) or range(1,5)"
            raise ConfigError("no option has several values", where=WHERE, remedy=remedy)
        width = self.asked or 1
        width = width if width > 0 else len(os.sched_getaffinity(0))
        study = open_study(self.folder, self.seed, self.startup, self.prune)
        running = optuna.trial.TrialState.RUNNING
        while True:
            for trial in study.get_trials(deepcopy=False):
                if trial.state == running and set(trial.params) != set(space):  # killed while it was drawn
                    study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
                elif set(trial.params) == set(space):
                    self.jobs[trial.number] = fixed + [f"{key}={trial.params[key]}" for key in space]
            open_trials = [trial.number for trial in study.get_trials(deepcopy=False) if trial.state == running]
            batch = [number for place, number in enumerate(open_trials[:width]) if number == open_trials[0] + place]
            if batch:
                self.launch({number: self.jobs[number] for number in batch}, min(width, self.n_trials))
                for number in batch:
                    self._tell(study, number)
            elif (missing := self.n_trials - len(study.trials)) > 0:
                for _ in range(min(width, missing)):
                    study.ask(fixed_distributions=space)
            else:
                return

    def judge(self, states: Mapping[int, str]) -> None:
        """Raise a GnnrecError where no job is done; those that failed are trials too, which are not repeated."""
        if "done" not in states.values():
            remedy = "Mend what the jobs complain of, and search in another hydra.sweep.dir"
            raise GnnrecError(failures(states) or "no job is done", where=str(self.folder), remedy=remedy)
        if found := failures(states):
            print(f"{found}; the search went on without them", flush=True)

    def _tell(self, study: Any, number: int) -> None:
        """Let the study know how a job ended."""
        from gnnrec import sweeps

        states, folder = _optuna().trial.TrialState, self.folder / str(number)
        status = sweeps.state(folder, 0.0)
        if status != "done":
            study.tell(number, state=states.PRUNED if status == "pruned" else states.FAIL)
            return
        reached = sweeps.objective(folder)
        if reached is None:
            remedy = "Set data.valid_ratio, such as to 0.1"
            raise ConfigError("there is no validation part to compare jobs by", where=WHERE, remedy=remedy)
        study.tell(number, reached)


def open_study(sweep: Path, seed: int, startup: int, prune: bool) -> Any:
    """The study of the sweep in this folder, made where it is missing."""
    optuna = _optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=startup) if prune else optuna.pruners.NopPruner()
    storage = f"sqlite:///{sweep.resolve() / 'optuna.db'}"
    options = {"study_name": "sweep", "storage": storage, "direction": "maximize", "pruner": pruner}
    study = optuna.create_study(**options, load_if_exists=True)
    # Not the numbers again that were drawn before an interruption.
    study.sampler = optuna.samplers.TPESampler(n_startup_trials=startup, seed=seed + len(study.trials))
    return study


def watch(sweep: Path, number: int, sweeper: Any) -> Callable[[int, float], bool]:
    """What tells whether the job of this number is hopeless, from an epoch and the validation metric there.

    Args:
        sweep: its folder.
        number: of the job, and of its trial.
        sweeper: the arguments of `Search`.
    """
    study = open_study(sweep, sweeper.seed, sweeper.startup, sweeper.prune)
    (found,) = (trial for trial in study.get_trials(deepcopy=False) if trial.number == number)
    trial = _optuna().trial.Trial(study, found._trial_id)

    def hopeless(epoch: int, value: float) -> bool:
        trial.report(value, epoch)
        return bool(trial.should_prune())

    return hopeless


def _distribution(override: Override) -> Any:
    """What Optuna draws from for an option: an interval (tagged log: by its logarithm), a range, or choices. Hydra's
    intervals are of floats, unless written as int(interval(1,8))."""
    distributions, sweep = _optuna().distributions, override.value()
    if isinstance(sweep, IntervalSweep):
        whole = all(type(bound) is int for bound in (sweep.start, sweep.end))
        kind = distributions.IntDistribution if whole else distributions.FloatDistribution
        return kind(sweep.start, sweep.end, log="log" in sweep.tags)
    if isinstance(sweep, RangeSweep):
        values = [value for value in sweep.range()]
        whole = all(isinstance(value, int) for value in values)
        kind = distributions.IntDistribution if whole else distributions.FloatDistribution
        return kind(min(values), max(values), step=abs(sweep.step))
    return distributions.CategoricalDistribution(list(override.sweep_string_iterator()))


def _optuna() -> Any:
    """Optuna.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("Optuna is not installed", where=WHERE, remedy="pip install gnnrec[hpo]") from error
    return optuna


def register() -> None:
    """Make `Sweep` what Hydra takes as its basic sweeper in this process, and `Search` that of Optuna.

    Hydra instantiates sweepers of the package hydra_plugins alone, so these get names there. Installed under such
    names they would be loaded by every other application that uses Hydra.
    """
    plugins, store = Plugins.instance(), ConfigStore.instance()
    package, home = sys.modules.setdefault("hydra_plugins", ModuleType("hydra_plugins")), ModuleType("gnnrec")
    package.gnnrec = home  # type: ignore[attr-defined]
    settings: dict[str, Any] = {"n_trials": 20, "seed": 0, "startup": 5, "prune": True}
    for name, sweeper, options in (("basic", Sweep, {}), ("optuna", Search, settings)):
        setattr(home, sweeper.__name__, sweeper)
        target = f"hydra_plugins.gnnrec.{sweeper.__name__}"
        plugins.class_name_to_class[target] = sweeper
        store.store(group="hydra/sweeper", name=name, node={"_target_": target, "params": None} | options)
