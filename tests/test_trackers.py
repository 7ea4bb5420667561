"""TensorBoard, MLflow and Weights & Biases, each a module that records its calls; runs with one that fails."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType, ModuleType, SimpleNamespace
from typing import Any

import pytest

from gnnrec.config import TrainConfig
from gnnrec.config.recipes import composed
from gnnrec.config.train import LOGGERS
from gnnrec.errors import LoggerError, Pruned
from gnnrec.training import checkpoint, run, trackers
from gnnrec.training.runlog import Progress, RunLog, read_events
from gnnrec.training.trackers import TRACKERS

CONFIG = {"seed": 0, "model": {"name": "lightgcn", "layers": 3}, "evaluation": {"k": [10, 20]}}
MODULES = {name: kind.module for name, kind in TRACKERS.items()}


class Package(ModuleType):
    """A module whose functions, and the objects that they give, record their calls: name, positional, by name."""

    def __init__(self, name: str, fails: str = "", params: Mapping[str, Any] = MappingProxyType({})) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.fails = fails
        self.summary: dict[str, Any] = {}
        self.info, self.data, self.id = SimpleNamespace(run_id="a1"), SimpleNamespace(params=params), "b2"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: Any, **options: Any) -> Package:
            self.calls.append((name, args, options))
            if name == self.fails:
                raise RuntimeError("no route to the server")
            return self

        return call

    def called(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(args, options) for called, args, options in self.calls if called == name]


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a recorder in the place of a package."""
    for name in ("MLFLOW_DISABLE_TELEMETRY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_ERROR_REPORTING"):
        monkeypatch.setenv(name, "")  # so that what is set is undone
        monkeypatch.delenv(name)

    def put(name: str, **options: Any) -> Package:
        made = Package(MODULES[name], **options)
        monkeypatch.setitem(sys.modules, MODULES[name], made)
        return made

    return put


def told(name: str, run_dir: Path, error: BaseException | None = None) -> None:
    """Tell a tracker of a short training."""
    with RunLog(run_dir, trackers.trackers([name])) as log:
        log.start(CONFIG, run_dir)
        log.phase("training")
        for step in range(1, 9):
            log.steps(Progress(step, 8, 0, 2, 0.5 / step))
        log.event("epoch", epoch=1, step=8, loss=0.25, train_seconds=3.0, valid={"recall@20": 0.5})
        if error is not None:
            raise error
        log.event("end", metrics={"valid": {"recall@20": 0.5}, "test": {"ndcg@20": 0.125}})


EPOCH = {"train/loss": 0.25, "train/seconds": 3.0, "epoch": 1.0, "valid/recall_at_20": 0.5}
END = {"best_valid/recall_at_20": 0.5, "test/ndcg_at_20": 0.125}
FLAT = {"seed": 0, "model.name": "lightgcn", "model.layers": 3, "evaluation.k": [10, 20]}


def test_the_config_knows_every_tracker() -> None:
    assert tuple(TRACKERS) == LOGGERS


def test_tensorboard(package: Any, tmp_path: Path) -> None:
    module = package("tensorboard")
    told("tensorboard", tmp_path)
    assert module.called("SummaryWriter") == [((), {"log_dir": str(tmp_path / "tensorboard"), "flush_secs": 10})]
    scalars = [args for args, _ in module.called("add_scalar")]
    assert scalars[0] == ("step/loss", 0.5, 1)  # the others came sooner than is of use
    assert scalars[1:] == [(name, value, 8) for name, value in (EPOCH | END).items()]
    assert [args for args, _ in module.called("add_text")] == [
        ("config", "    seed: 0\n    model.name: lightgcn\n    model.layers: 3\n    evaluation.k: [10, 20]"),
        ("status", "finished"),
    ]
    assert module.calls[-1][0] == "close"


def test_tensorboard_shows_a_step_once_that_a_killed_run_had_done_too(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for steps, loss in ((range(1, 41), 0.5), (range(21, 61), 0.25)):  # killed at 40, its checkpoint was of 20
        with RunLog(tmp_path, trackers.trackers(["tensorboard"])) as log:
            log.start(CONFIG, tmp_path)
            for step in steps:
                log.event("epoch", epoch=step, step=step, loss=loss, train_seconds=3.0, valid={"recall@20": 0.5})
            if steps[-1] == 60:
                log.event("end", step=60, metrics={"test": {"recall@20": 0.125}})
    found = accumulator.EventAccumulator(str(tmp_path / "tensorboard"), {"scalars": 0, "tensors": 0})
    found.Reload()
    losses = [(event.step, event.value) for event in found.Scalars("train/loss")]
    assert losses == [(step, 0.5 if step <= 20 else 0.25) for step in range(1, 61)]
    assert [(event.step, event.value) for event in found.Scalars("test/recall_at_20")] == [(60, 0.125)]
    words = [event.tensor_proto.string_val[0].decode() for event in found.Tensors("config/text_summary")]
    assert words[0].splitlines()[1] == "    model.name: lightgcn"


def test_the_metrics_of_a_finished_run_that_is_resumed_are_of_its_last_step(package: Any, tmp_path: Path) -> None:
    module = package("mlflow")
    with RunLog(tmp_path, trackers.trackers(["mlflow"])) as log:
        log.start(CONFIG, tmp_path)
        log.event("end", step=8, metrics={"test": {"recall@20": 0.5}})
    assert module.called("log_metrics") == [(({"test/recall_at_20": 0.5},), {"step": 8})]


def test_mlflow(package: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = package("mlflow")
    monkeypatch.setattr(trackers.MLflow, "MOST", 3)
    told("mlflow", tmp_path)
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert module.called("start_run") == [((), {"run_id": None, "run_name": tmp_path.name})]
    parameters = [args[0] for args, _ in module.called("log_params")]
    assert [len(some) for some in parameters] == [3, 1]
    assert parameters[0] | parameters[1] == FLAT
    first = {"step/loss": 0.5}
    assert module.called("log_metrics") == [((first,), {"step": 1}), ((EPOCH,), {"step": 8}), ((END,), {"step": 8})]
    assert module.calls[-1] == ("end_run", (), {"status": "FINISHED"})


def test_wandb(package: Any, tmp_path: Path) -> None:
    module = package("wandb")
    told("wandb", tmp_path)
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"
    ((args, options),) = module.called("init")
    assert (args, options.pop("settings")) == ((), module)
    assert module.called("Settings") == [((), {"console": "off"})]
    assert options == {
        "project": "gnnrec",
        "name": tmp_path.name,
        "dir": str(tmp_path),
        "config": CONFIG,
        "mode": "offline",
        "id": None,
        "resume": "allow",
    }
    first = {"step/loss": 0.5}
    assert module.called("log") == [((first,), {"step": 1}), ((EPOCH,), {"step": 8}), ((END,), {"step": 8})]
    assert module.summary == {"status": "finished"}
    assert module.calls[-1] == ("finish", (), {"exit_code": 0})


def test_what_the_user_has_set_is_respected(package: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    module = package("wandb")
    package("mlflow")
    told("wandb", tmp_path)
    told("mlflow", tmp_path)
    ((_, options),) = module.called("init")
    assert (options["mode"], options["project"]) == ("online", "mine")
    assert (os.environ["WANDB_ERROR_REPORTING"], os.environ["MLFLOW_DISABLE_TELEMETRY"]) == ("true", "false")


def test_a_model_in_closed_form_has_metrics_without_steps(package: Any, tmp_path: Path) -> None:
    module = package("wandb")
    with RunLog(tmp_path, trackers.trackers(["wandb"])) as log:
        log.start(CONFIG, tmp_path)
        log.phase("computing")
        log.event("end", metrics={"test": {"recall@20": 0.5}})
    assert module.called("log") == [(({"test/recall_at_20": 0.5},), {"step": 0})]


def test_a_resumed_training_goes_on_with_the_same_run(package: Any, tmp_path: Path) -> None:
    for name, starts, key, kept in (("mlflow", "start_run", "run_id", "a1"), ("wandb", "init", "id", "b2")):
        modules = []
        for params in ({}, {name: str(value) for name, value in FLAT.items()}):
            modules.append(package(name, params=params))
            told(name, tmp_path)
        assert [options[key] for module in modules for _, options in module.called(starts)] == [None, kept]
        assert not modules[1].called("log_params")  # they cannot be changed


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(KeyboardInterrupt(), "KILLED", 1), (Pruned(), "KILLED", 0), (ZeroDivisionError(), "FAILED", 1)],
)
def test_the_status_of_a_run_that_did_not_finish(
    error: BaseException, status: str, code: int, package: Any, tmp_path: Path
) -> None:
    modules = {name: package(name) for name in ("mlflow", "wandb")}
    for name in modules:
        with pytest.raises(type(error)):
            told(name, tmp_path, error)
    assert modules["mlflow"].calls[-1] == ("end_run", (), {"status": status})
    assert modules["wandb"].calls[-1] == ("finish", (), {"exit_code": code})


# --- runs -------------------------------------------------------------------------------------------------------------


def config(tracker: str, *overrides: str) -> TrainConfig:
    small = ("num_users=60", "num_items=120", "num_interactions=900", "communities=3")
    values = ["trainer.epochs=2", "device=cpu", "view=quiet", *(f"data.synthetic.{part}" for part in small)]
    return composed([*values, f"loggers=[{tracker}]", *overrides])


@pytest.mark.parametrize("name", list(TRACKERS))
def test_a_missing_package_is_named_before_anything_is_done(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, MODULES[name], None)  # cannot be imported
    remedy = rf"loggers={name}: .*Install it: pip install gnnrec\[{name}\], or leave it out"
    with pytest.raises(LoggerError, match=remedy):
        run.train(config(name), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_fails_ends_the_run_by_name_and_checkpoints_are_whole(package: Any, tmp_path: Path) -> None:
    module = package("mlflow")

    def log_metrics(numbers: dict[str, float], step: int) -> None:
        if numbers.get("epoch") == 2:
            raise ConnectionError("no route to the server")

    module.log_metrics = log_metrics
    with pytest.raises(LoggerError) as caught:
        run.train(config("mlflow"), tmp_path)
    assert str(caught.value) == (
        "loggers=mlflow: failed: ConnectionError('no route to the server'). Checkpoints and records are as they were: "
        "mend it or leave it out, and go on with resume=true"
    )
    assert module.calls[-1] == ("end_run", (), {"status": "FAILED"})
    assert [event["event"] for event in read_events(tmp_path / "events.jsonl")][-2:] == ["epoch", "epoch"]
    saved, warnings = checkpoint.load_latest(tmp_path / "checkpoints")
    assert (saved.state["epoch"], warnings) == (1, [])

    trained, summary = run.train(config("", "resume=true"), tmp_path)  # without it
    trained.places.close()
    assert summary["epochs"] == 2


def test_a_run_of_mlflow_whose_start_fails_is_ended_and_goes_on(package: Any, tmp_path: Path) -> None:
    module = package("mlflow", fails="log_params")
    with pytest.raises(LoggerError, match="no route to the server"):
        told("mlflow", tmp_path)
    assert module.calls[-1] == ("end_run", (), {"status": "FAILED"})  # or the next run of this process could not start
    module = package("mlflow", params={"seed": "0"})  # what it was given before
    told("mlflow", tmp_path)
    assert module.called("start_run") == [((), {"run_id": "a1", "run_name": tmp_path.name})]
    assert module.called("log_params") == [(({name: FLAT[name] for name in FLAT if name != "seed"},), {})]


@pytest.mark.parametrize("fails", ["start_run", "end_run"])
def test_a_tracker_that_fails_at_either_end(fails: str, package: Any, tmp_path: Path) -> None:
    module = package("mlflow", fails=fails)
    with pytest.raises(LoggerError, match=r"^loggers=mlflow: failed: RuntimeError\('no route to the server'\)"):
        run.train(config("mlflow"), tmp_path)
    assert len(module.called("end_run")) == (fails == "end_run")  # what never began is not ended
    assert (tmp_path / "summary.json").exists() == (fails == "end_run")


def test_every_parameter_has_a_name_of_its_own(package: Any, tmp_path: Path) -> None:
    module = package("mlflow")
    settings = config("mlflow")
    trained, _ = run.train(settings, tmp_path)
    trained.places.close()
    given = {name: value for args, _ in module.called("log_params") for name, value in args[0].items()}
    assert given["trainer.epochs"] == 2
    assert given["data.synthetic.num_users"] == 60
    assert given == trackers.flat(asdict(settings))
