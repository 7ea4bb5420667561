"""Searches: what Optuna is asked and told, here by a stand-in that keeps studies in memory, and trainings given up."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from gnnrec import sweeps
from gnnrec.cli import search
from gnnrec.config import DataConfig, LightGCNConfig, OptimizerConfig, SyntheticConfig, TrainConfig, TrainerConfig
from gnnrec.config.loss import BPRConfig
from gnnrec.errors import ConfigError, GnnrecError, Pruned
from gnnrec.training import run

STATES = SimpleNamespace(RUNNING="running", COMPLETE="complete", PRUNED="pruned", FAIL="fail")


@dataclass
class Frozen:
    number: int
    params: dict[str, Any]
    state: str = STATES.RUNNING
    value: float | None = None
    intermediate: dict[int, float] = field(default_factory=dict)

    @property
    def _trial_id(self) -> int:
        return self.number + 100


@dataclass
class Study:
    trials: list[Frozen] = field(default_factory=list)
    pruner: Any = None
    sampler: Any = None

    def get_trials(self, deepcopy: bool) -> list[Frozen]:
        return list(self.trials)

    def ask(self, fixed_distributions: dict[str, Any]) -> None:
        number = len(self.trials)
        self.trials.append(Frozen(number, {key: drawn(shape, number) for key, shape in fixed_distributions.items()}))

    def tell(self, number: int, value: float | None = None, state: str = STATES.COMPLETE) -> None:
        assert self.trials[number].state == STATES.RUNNING
        self.trials[number].value, self.trials[number].state = value, state


def drawn(shape: Any, number: int) -> Any:
    kind, *bounds = shape
    return bounds[0][number % len(bounds[0])] if kind == "choice" else bounds[0] + number


class Trial:
    def __init__(self, study: Study, trial_id: int) -> None:
        self.mine = study.trials[trial_id - 100]

    def report(self, value: float, step: int) -> None:
        self.mine.intermediate[step] = value

    def should_prune(self) -> bool:
        return len(self.mine.intermediate) == 2


@pytest.fixture
def studies(monkeypatch) -> dict[str, Study]:
    """The stand-in's studies by storage."""
    made: dict[str, Study] = {}

    def create(*, study_name: str, storage: str, direction: str, pruner: Any, load_if_exists: bool) -> Study:
        assert (study_name, direction, load_if_exists) == ("sweep", "maximize", True)
        study = made.setdefault(storage, Study())
        study.pruner = pruner
        return study

    optuna: Any = SimpleNamespace(
        create_study=create,
        trial=SimpleNamespace(TrialState=STATES, Trial=Trial),
        pruners=SimpleNamespace(MedianPruner=lambda n_startup_trials: "median", NopPruner=lambda: "none"),
        samplers=SimpleNamespace(TPESampler=lambda n_startup_trials, seed: seed),
        logging=SimpleNamespace(set_verbosity=lambda level: None, WARNING=30),
        distributions=SimpleNamespace(
            IntDistribution=lambda low, high, log=False, step=1: ("int", low, high, log, step),
            FloatDistribution=lambda low, high, log=False, step=None: ("float", low, high, log, step),
            CategoricalDistribution=lambda choices: ("choice", choices),
        ),
    )
    monkeypatch.setitem(sys.modules, "optuna", optuna)
    return made


def parsed(*texts: str) -> Any:
    return OverridesParser.create().parse_overrides(list(texts))


class Launched(search.Search):
    """A search whose jobs end as it is told, without training."""

    def __init__(self, folder: Path, ends: dict[int, str], n_jobs: int | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.folder, self.ends, self.jobs, self.batches = folder, ends, {}, []
        self.asked = n_jobs

    def launch(self, jobs: dict[int, list[str]], width: int = 0) -> Any:
        self.batches.append(jobs)
        for number, overrides in jobs.items():
            status = self.ends.get(number, "done")
            if status == "interrupted":
                raise KeyboardInterrupt
            sweeps.Job(self.folder / str(number), overrides).write(status)


@pytest.fixture(autouse=True)
def reached(monkeypatch):
    monkeypatch.setattr(sweeps, "objective", lambda folder: float(folder.name) / 10)


OPTIONS = ("data=gowalla", "optimizer.lr=tag(log,interval(0.001,0.1))", "model.dim=32,64")


def test_a_search_proposes_tells_and_goes_on_with_what_was_under_way(studies, tmp_path):
    first = Launched(tmp_path, {1: "failed", 2: "pruned", 3: "interrupted"}, n_trials=5, seed=7)
    with pytest.raises(KeyboardInterrupt):
        first.run(parsed(*OPTIONS))
    (study,) = studies.values()
    assert [trial.state for trial in study.trials] == ["complete", "fail", "pruned", "running"]
    assert (study.trials[0].value, study.sampler, study.pruner) == (0.0, 7, "median")
    again = Launched(tmp_path, {}, n_trials=5, seed=7, prune=False)
    again.run(parsed(*OPTIONS))
    assert [list(batch) for batch in again.batches] == [[3], [4]]
    assert again.batches[0] == first.batches[-1]
    assert again.batches[0][3] == ["data=gowalla", "optimizer.lr=3.001", "model.dim=64"]
    assert [trial.state for trial in study.trials] == ["complete", "fail", "pruned", "complete", "complete"]
    assert list(again.jobs) == [0, 1, 2, 3, 4]
    assert (study.sampler, study.pruner) == (11, "none")  # four numbers are drawn already


def test_several_jobs_at_a_time(studies, tmp_path):
    wide = Launched(tmp_path, {}, n_jobs=2, n_trials=5)
    wide.run(parsed(*OPTIONS))
    assert [list(batch) for batch in wide.batches] == [[0, 1], [2, 3], [4]]


def test_a_trial_that_was_only_half_drawn_has_failed(studies, tmp_path):
    study = search.open_study(tmp_path, 0, 5, True)
    study.trials.append(Frozen(0, {"model.dim": "32"}))
    one = Launched(tmp_path, {}, n_trials=2)
    one.run(parsed(*OPTIONS))
    assert [trial.state for trial in study.trials] == ["fail", "complete"]
    assert list(one.jobs) == [1]


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("a=interval(1,8)", ("float", 1, 8, False, None)),
        ("a=int(interval(1,8))", ("int", 1, 8, False, 1)),
        ("a=interval(0.5,8)", ("float", 0.5, 8, False, None)),
        ("a=tag(log,int(interval(1,8)))", ("int", 1, 8, True, 1)),
        ("a=tag(log,interval(1e-4,0.1))", ("float", 1e-4, 0.1, True, None)),
        ("a=range(1,8,3)", ("int", 1, 7, False, 3)),
        ("a=range(0.5,2,0.5)", ("float", 0.5, 1.5, False, 0.5)),
        ("a=choice(adam,sgd)", ("choice", ["adam", "sgd"])),
        ("a=[1,2],[3]", ("choice", ["[1,2]", "[3]"])),
    ],
)
def test_what_is_drawn_from(text, shape, studies):
    (override,) = parsed(text)
    assert search._distribution(override) == shape


def test_a_search_of_nothing_or_by_nothing_is_refused(studies, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"no option has several values. Give KEY=interval"):
        Launched(tmp_path, {}).run(parsed("seed=1"))
    monkeypatch.setattr(sweeps, "objective", lambda folder: None)
    with pytest.raises(ConfigError, match=r"no validation part to compare jobs by. Set data.valid_ratio"):
        Launched(tmp_path, {}).run(parsed(*OPTIONS))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"n_trials": 0}, r"hydra.sweeper.n_trials: is 0. It must be a whole number of at least 1"),
        ({"n_trials": "many"}, r"hydra.sweeper.n_trials: is 'many'. It must be a whole number"),
        ({"startup": -1}, r"hydra.sweeper.startup: is -1. It must be a whole number of at least 0"),
    ],
)
def test_numbers_of_trials_that_cannot_be(settings, says, studies, tmp_path):
    with pytest.raises(ConfigError, match=says):
        Launched(tmp_path, {}, **settings).run(parsed(*OPTIONS))
    assert not studies


def test_a_search_succeeds_where_a_trial_does(tmp_path, capsys):
    one = Launched(tmp_path, {})
    one.judge({0: "done", 1: "failed", 2: "pruned"})
    assert capsys.readouterr().out == "1 of 3 jobs failed: 1; the search went on without them\n"
    one.judge({0: "done", 1: "pruned"})
    assert capsys.readouterr().out == ""
    with pytest.raises(GnnrecError, match=r"2 of 2 jobs failed: 0, 1. Mend what .* search in another hydra.sweep.dir"):
        one.judge({0: "failed", 1: "failed"})
    with pytest.raises(
        GnnrecError, match=r"no job is done. Mend what"
    ):  # such as one that was killed while it was drawn
        one.judge({})


def test_optuna_itself_is_asked_and_told(tmp_path):
    pytest.importorskip("optuna")
    first = Launched(tmp_path, {1: "failed", 2: "pruned", 3: "interrupted"}, n_trials=5)
    with pytest.raises(KeyboardInterrupt):
        first.run(parsed(*OPTIONS))
    sweeper = SimpleNamespace(seed=0, startup=5, prune=True)
    assert not search.watch(tmp_path, 3, sweeper)(1, 0.5)
    again = Launched(tmp_path, {}, n_trials=5)
    again.run(parsed(*OPTIONS))
    assert [list(batch) for batch in again.batches] == [[3], [4]]
    assert again.batches[0] == first.batches[-1]
    trials = search.open_study(tmp_path, 0, 5, True).get_trials()
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "PRUNED", "COMPLETE", "COMPLETE"]
    assert trials[3].intermediate_values == {1: 0.5}
    assert all(0.001 <= trial.params["optimizer.lr"] <= 0.1 for trial in trials)


def test_without_optuna_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"hydra/sweeper=optuna: Optuna is not installed. pip install gnnrec\[hpo\]"):
        Launched(tmp_path, {}, n_trials=1).run(parsed(*OPTIONS))


def test_a_training_is_given_up_where_others_are_better(studies, tmp_path, monkeypatch):
    """Without what only a summary needs, which takes long where data were generated."""
    study = search.open_study(tmp_path, 0, 5, True)
    study.trials.append(Frozen(0, {}))
    hopeless = search.watch(tmp_path, 0, SimpleNamespace(seed=0, startup=5, prune=True))
    small = SyntheticConfig(num_users=60, num_items=120, num_interactions=900, communities=3)
    config = TrainConfig(
        data=DataConfig(source="synthetic", name="synthetic", synthetic=small),
        model=LightGCNConfig(),
        loss=BPRConfig(),
        optimizer=OptimizerConfig(),
        trainer=TrainerConfig(epochs=4, eval_every=1),
    )
    with monkeypatch.context() as patched:
        patched.setattr(run, "_data_facts", lambda *given: pytest.fail("of a run without a summary"))
        with (
            pytest.raises(Pruned, match=r"given up after epoch 2, with a recall@20 of 0\.\d{4}"),
            sweeps.recorded(tmp_path / "0", []),
        ):
            run.train(config, tmp_path / "0", hopeless=hopeless)
    assert list(study.trials[0].intermediate) == [1, 2]
    assert json.loads((tmp_path / "0" / "job.json").read_text())["status"] == "pruned"
    assert not (tmp_path / "0" / "summary.json").exists()
    assert run.train(replace(config, resume=True), tmp_path / "0")[1]["epochs"] == 4
