"""A run: the directory it leaves, and the way from a config to a trained and evaluated model."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from gnnrec import config as config_module
from gnnrec import device as devices
from gnnrec import models
from gnnrec.config import LightGCNConfig, TrainConfig
from gnnrec.config.values import flat
from gnnrec.data import dataset
from gnnrec.data.interactions import IdMap, Interactions
from gnnrec.data.synthetic import PlantedModel
from gnnrec.errors import CheckpointError, ConfigError, Interrupted
from gnnrec.graph.bipartite import BipartiteGraph
from gnnrec.graph.sparse import SparseMatrix
from gnnrec.memtier.account import Actual, account
from gnnrec.memtier.files import is_tier_folder
from gnnrec.memtier.plans import Plan
from gnnrec.memtier.ring import Ring
from gnnrec.ops import most_threads, set_num_threads
from gnnrec.ranks import ALONE, Ranks
from gnnrec.storage import atomic_folder, atomic_write, locked, remove_folder, storage_errors
from gnnrec.training import checkpoint, distributed, placing, runlog
from gnnrec.training.evaluate import Evaluator
from gnnrec.training.placing import Form, Places
from gnnrec.training.streamed import fill
from gnnrec.training.streamed_ngcf import load
from gnnrec.training.trackers import trackers
from gnnrec.training.trainer import Position, Trainer, split_groups
from gnnrec.training.view import views

PARTS = ("train", "valid", "test")
# What may differ when a run goes on: where and how long it trains, what is measured, where the data came from.
RESUMABLE = config_module.BESIDE | {"device", "evaluation.k"}
RESUMABLE |= {f"trainer.{key}" for key in ("epochs", "patience", "checkpoint_every")}
RESUMABLE |= {f"data.{key}" for key in ("root", "log", "train", "valid", "test")}
MEMORY = "memory."  # every key of it too: results are the same wherever tensors lie
PLAN = "plan.json"
TIER = "tier"  # of the run directory: the folder for files that are streamed


@dataclass(frozen=True)
class Run:
    """A trained model with the data it was trained on, as `evaluate` and `recommend` need them.

    The graph stays on the CPU, the model lies on `device`; both bring what they need to where they work. A context
    manager: what lies in files of a slow tier is gone at its end.
    """

    config: TrainConfig
    data: dataset.Dataset
    graph: BipartiteGraph
    model: models.Model | models.Streamed
    device: torch.device
    places: Places = field(default_factory=Places)
    ranks: Ranks = ALONE

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.places.close()

    def ranker(self) -> models.Ranker:
        """The model as it is now; where other ranks have some of it, they are to ask for it, and ask it, too."""
        scorer = self.model.scorer()
        if self.ranks.backend is None:
            return scorer
        assert isinstance(scorer, models.FactorScorer)
        return distributed.AllColumns(scorer, self.ranks)

    def seen(self, *, with_valid: bool) -> SparseMatrix:
        """The users x items matrix of the training part, with the validation part where asked."""
        if self.data.valid is None or not with_valid:
            return self.graph.user_item()
        return graph_of(self.data.train, self.data.valid).user_item()


def train(
    config: TrainConfig,
    run_dir: Path,
    on_plan: Callable[[Plan], None] = lambda plan: None,
    hopeless: Callable[[int, float], bool] | None = None,
    ranks: Ranks = ALONE,
) -> tuple[Run, dict[str, Any]]:
    """Train, evaluate and leave everything in `run_dir`.

    Args:
        config: of the run.
        run_dir: its directory.
        on_plan: is told where tensors go, before they do, unless everything lies in DRAM as asked.
        hopeless: is told epoch and monitored metric of each validation; where it says so, the training is given up.
        ranks: that train together; the first one's run_dir is that of all, who see the same files, and it alone writes
            there, but for checkpoints. Those that torchrun starts again go on with the run that they have begun there.

    Returns:
        The run and its summary, which `summary.json` holds too.

    Raises:
        GnnrecError: whatever a user can mend; Interrupted by a signal, with a checkpoint written.
        Pruned: it was given up.
    """
    loggers = ranks.first(lambda: [*trackers(config.loggers), *views(config.view)]) or []
    device = devices.resolve(config.device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # of the run before in a sweep
    if config.threads is not None:
        set_threads(config.threads)
    elif ranks.beside > 1:
        set_threads(max(1, most_threads() // ranks.beside))
    run_dir, columns = Path(ranks.tell(str(run_dir))), _columns(config, ranks)
    if ranks.begun(str(run_dir)):
        config = replace(config, resume=True)
    ranks.first(lambda: _check_run_dir(config, run_dir))
    data = load_data(config, run_dir) if config.resume else dataset.load(config.data)
    _check_cutoffs(config, data)
    with ExitStack() as opened, ExitStack() as failed:
        log = ranks.first(lambda: _begin(config, data, run_dir, loggers, opened)) or runlog.RunLog()
        graph, tier = graph_of(data.train), run_dir / TIER
        places = placing.planned(config, graph, validated=data.valid is not None, folder=tier)
        failed.callback(places.close)
        if places.plan is not None:
            on_plan(places.plan)
        ranks.first(lambda: _keep(config, places.plan, run_dir))
        ranks.begin(str(run_dir))
        restored = config.resume and checkpoint.latest(run_dir / "checkpoints") is not None
        model, graph = placing.build(config, graph, places, device, tier, restored=restored, columns=columns)
        run = Run(config, data, graph, model, device, places, ranks)
        if ranks.leads:
            facts = {"machine": runlog.machine(), "versions": runlog.versions(gpu=device.type == "cuda")}
            log.start(asdict(config), run_dir)
            log.event("start", data=data.counts(), **runlog.device_facts(device), **facts)
        position, actual = _fit(run, run_dir / "checkpoints", log, hopeless, columns)
        log.phase("testing")
        started = time.perf_counter()
        metrics = evaluate(run, ks=config.evaluation.k)
        position.eval_seconds += time.perf_counter() - started
        summary = _summary(run, position, metrics) | _account(run.places, actual) | _exchanged(run, actual)
        log.event("end", metrics=metrics)
        if ranks.leads:
            runlog.write_summary(run_dir, summary)
        failed.pop_all()
    return run, summary


def _columns(config: TrainConfig, ranks: Ranks) -> slice | None:
    """Those that this rank has of the embeddings; None where a single process was started."""
    if ranks.backend is None:
        return None
    assert isinstance(config.model, LightGCNConfig)
    return distributed.columns_of(config.model.dim, ranks.rank, ranks.size)


def _begin(
    config: TrainConfig, data: dataset.Dataset, run_dir: Path, loggers: Sequence[runlog.Logger], opened: ExitStack
) -> runlog.RunLog:
    """Take the run directory for this run, until `opened` is closed."""
    with storage_errors(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
    opened.enter_context(locked(run_dir / ".lock", "another process is training in this run directory"))
    log = opened.enter_context(runlog.RunLog(run_dir, loggers))
    _check_run_dir(config, run_dir)  # again: another process may have come first while data were read
    if not config.resume:
        save_data(data, run_dir)
    return log


def _keep(config: TrainConfig, plan: Plan | None, run_dir: Path) -> None:
    """From here on it is a run. What has no plan may be tried again in this directory."""
    atomic_write(run_dir / "config.yaml", config_module.to_yaml(config).encode())
    _keep_plan(plan, run_dir / PLAN)


def _fit(
    run: Run,
    checkpoints: Path,
    log: runlog.RunLog,
    hopeless: Callable[[int, float], bool] | None,
    columns: slice | None,
) -> tuple[Position, Actual]:
    """Train the run's model, or these columns of it, or compute it where it is in closed form; gives the position, and
    what steps took."""
    config = run.config
    if isinstance(run.model, models.GFCF):
        log.phase("computing")
        started = time.perf_counter()
        run.model.fit()
        position = Position(finished=True, train_seconds=time.perf_counter() - started)
        tensors = {f"model.{name}": value for name, value in run.model.state_dict().items()}
        checkpoint.save(checkpoints, 0, tensors, asdict(position))
        return position, Actual(0, 0.0)
    assert config.trainer is not None
    assert config.loss is not None
    assert config.optimizer is not None
    valid = None
    if run.data.valid is not None:
        valid = Evaluator(run.data.valid, run.graph.user_item(), config.evaluation.k)
    profile = None
    if config.profile == "on":
        from gnnrec.training.profile import StepProfile  # imported where it is asked for

        row_bytes = run.model.embedding.shape[1] * (2 if config.trainer.storage == "bfloat16" else 4)
        profile = StepProfile(checkpoints.parent, row_bytes, placing.precision(config.loss))
    trainer = Trainer(
        run.model,
        config.trainer,
        config.loss,
        config.optimizer,
        seed=config.seed,
        valid=valid,
        checkpoints=checkpoints,
        log=log,
        resume=config.resume,
        places=run.places,
        profile=profile,
        hopeless=hopeless,
        ranks=run.ranks,
        columns=columns,
    )
    try:
        position = trainer.fit()
    except Interrupted:
        if profile is not None:
            profile.write()
        raise
    if profile is not None:
        profile.write()
    return position, trainer.learner.actual


def evaluate(run: Run, ks: list[int]) -> dict[str, dict[str, float]]:
    """Metrics of the validation part (training items left out) and the test part (validation items left out too)."""
    scorer = run.ranker()
    metrics = {}
    if run.data.valid is not None:
        metrics["valid"] = Evaluator(run.data.valid, run.seen(with_valid=False), ks)(scorer)
    metrics["test"] = Evaluator(run.data.test, run.seen(with_valid=True), ks)(scorer)
    return metrics


def open_run(run_dir: Path, device: str = "auto") -> Run:
    """The model that a training left in `run_dir`: the best by validation where there was one, else the last.

    Args:
        run_dir: the run's directory.
        device: auto, cpu or cuda, whatever it was trained on; cpu where the graph lies in a file.

    Raises:
        CheckpointError: no run lies there, or it is damaged.
        DeviceError, DeviceMemoryError: no such device, or no room on it.
    """
    found = devices.resolve(device)
    config = read_config(run_dir)
    data = load_data(config, run_dir)
    graph = graph_of(data.train)
    form = _form(run_dir, found)
    if form is not None and form.graph_in_file:
        found = devices.resolve("cpu")  # the graph comes from its file for processors alone
    # Matrices stay in their files: those of the optimizer are not needed, and may be larger than memory.
    saved, warnings = checkpoint.load_latest(run_dir / "checkpoints", as_rows=True)
    for warning in warnings:
        print(f"warning: {warning}", flush=True)
    groups = split_groups(saved.tensors)
    places, state = Places(run=str(run_dir)), groups.get("best", groups.get("model", {}))
    with ExitStack() as failed:
        failed.callback(places.close)
        try:
            model = _restored(config, graph, places, found, run_dir, state, form)
        except (RuntimeError, KeyError) as error:
            raise CheckpointError(
                f"does not fit the configuration in {run_dir / 'config.yaml'}",
                where=str(saved.path),
                remedy="Restore the config.yaml that the training wrote",
            ) from error
        if isinstance(model, models.Streamed):
            graph = model.graph
        else:
            placing.place(model, found)
        failed.pop_all()
    return Run(config, data, graph, model, found, places)


def _keep_plan(plan: Plan | None, file: Path) -> None:
    """Write the plan, or remove that of the run before, which is resumed without one."""
    if plan is not None:
        atomic_write(file, (json.dumps(plan.to_dict(), indent=2) + "\n").encode())
    elif file.exists():
        file.unlink()


def _form(run_dir: Path, device: torch.device) -> Form | None:
    """Of a run whose embeddings are too large for memory; those in DRAM beside a GPU are not for processors.

    Raises:
        CheckpointError: the plan is damaged.
    """
    file = run_dir / PLAN
    try:
        plan = json.loads(file.read_bytes())
        embedding, adjacency = (
            next(tensor for tensor in plan["tensors"] if tensor["name"] == name) for name in ("embedding", "graph")
        )
        host = placing.in_dram(embedding["tier"])
        if embedding["mode"] != "stream" or (host and device.type == "cpu"):
            return None
        ring = Ring(plan["buffer_bytes"], **plan["transfers"])
        folder = None if host else run_dir / TIER
        return Form(folder, plan["panel_columns"], ring, graph_in_file=adjacency["mode"] == "stream")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        remedy = "Restore it from a copy, or resume the run, which makes a new one"
        raise CheckpointError(f"cannot be read: {error!r}", where=str(file), remedy=remedy) from error


def _restored(
    config: TrainConfig,
    graph: BipartiteGraph,
    places: Places,
    device: torch.device,
    run_dir: Path,
    state: dict[str, Any],
    form: Form | None,
) -> models.Model | models.Streamed:
    """The model with the parameters of a checkpoint, where the training had it."""
    if form is not None:
        streamed = placing.streamed(config, graph, places, device, form, drawn=False)
        where = str(run_dir / "checkpoints")
        if isinstance(streamed, models.StreamedNGCF):
            load(streamed, state, where)
        else:
            fill(streamed.embedding, state, "embedding", where)
        return streamed
    # What the checkpoint holds replaces the start, so none that takes long is made.
    shape = replace(config.model, init="normal") if isinstance(config.model, LightGCNConfig) else config.model
    model = models.build(shape, graph, config.seed)
    model.load_state_dict({name: checkpoint.whole(value) for name, value in state.items()})
    return model


def graph_of(*parts: Interactions) -> BipartiteGraph:
    """The graph of the interactions of these parts."""
    users, items = parts[0].users, parts[0].items
    if len(parts) > 1:
        users, items = (np.concatenate([getattr(part, side) for part in parts]) for side in ("users", "items"))
    return BipartiteGraph.from_edges(users, items, parts[0].num_users, parts[0].num_items)


def set_threads(threads: int) -> None:
    """Set the number of threads, or raise a ConfigError that says how many there are."""
    try:
        set_num_threads(threads)
    except ValueError as error:
        raise ConfigError(str(error), where="threads", remedy="Leave it out to use all") from error


def save_data(data: dataset.Dataset, run_dir: Path) -> None:
    """Keep the parts (numbers, one Parquet file a part) and the id maps in `run_dir/data`."""
    final = run_dir / "data"
    if final.exists():  # of a start that ended before it was a run
        remove_folder(final)
    kept = {name: part for name in PARTS if (part := getattr(data, name)) is not None}
    with atomic_folder(final) as folder:
        data.train.user_ids.to_parquet(folder / "users.parquet")
        data.train.item_ids.to_parquet(folder / "items.parquet")
        for name, part in kept.items():
            pq.write_table(pa.table({"user": part.users, "item": part.items}), folder / f"{name}.parquet")
        if data.truth is not None:
            data.truth.save(folder / "truth.npz")
        content = {"parts": list(kept), "truth": data.truth is not None}
        (folder / "content.json").write_text(json.dumps(content))


def load_data(config: TrainConfig, run_dir: Path) -> dataset.Dataset:
    """The parts that `save_data` kept.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    folder, name = run_dir / "data", config.data.name
    try:
        content = json.loads((folder / "content.json").read_bytes())
        user_ids = IdMap.from_parquet(folder / "users.parquet")
        item_ids = IdMap.from_parquet(folder / "items.parquet")
        parts: dict[str, Interactions | None] = dict.fromkeys(PARTS)
        for part in content["parts"]:
            table = pq.read_table(folder / f"{part}.parquet")
            users, items = (table.column(column).to_numpy() for column in ("user", "item"))
            parts[part] = Interactions(users, items, user_ids, item_ids, name=f"{name} {part}")
        truth = PlantedModel.load(folder / "truth.npz") if content["truth"] else None
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise CheckpointError(
            f"cannot be read: {error}", where=str(folder), remedy="Restore the run directory from a copy, or train anew"
        ) from error
    assert parts["train"] is not None
    assert parts["test"] is not None
    return dataset.Dataset(name, parts["train"], parts["valid"], parts["test"], truth)


def _summary(run: Run, position: Position, metrics: dict[str, dict[str, float]]) -> dict[str, Any]:
    data: dict[str, Any] = {"name": run.data.name} | run.data.counts()
    if run.data.truth is not None:
        history = run.data.train if run.data.valid is None else _joined(run.data.train, run.data.valid)
        ks, truth = run.config.evaluation.k, run.data.truth
        data["attainable"] = {f"recall@{k}": truth.best_recall(history, run.data.test, k) for k in ks}
        data["attainable"] |= {f"ndcg@{k}": truth.best_ndcg(history, run.data.test, k) for k in ks}
    return {
        "metrics": metrics,
        "best_epoch": position.best_epoch or position.epoch,
        "epochs": position.epoch,
        "steps": position.step,
        "train_seconds": position.train_seconds,
        "compile_seconds": position.compile_seconds,
        "eval_seconds": position.eval_seconds,
        "peak_rss_bytes": runlog.peak_rss_bytes(),
        **runlog.device_facts(run.device),
        "seed": run.config.seed,
        "model": asdict(run.config.model),
        "data": data,
        "machine": runlog.machine(),
        "versions": runlog.versions(gpu=run.device.type == "cuda"),
    }


def _account(places: Places, actual: Actual) -> dict[str, Any]:
    """What was planned beside what happened, where there was a plan."""
    if places.plan is None:
        return {}
    shares = {name.partition(".")[0]: str(placed.share()) for name, placed in places.placed.items()}
    return {"memory": account(places.plan, replace(actual, shares=shares))}


def _exchanged(run: Run, actual: Actual) -> dict[str, Any]:
    """What ranks had to do with each other, where there were several."""
    ranks = run.ranks
    if ranks.backend is None:
        return {}
    step = actual.totalled / actual.steps if actual.steps else None
    return {"distributed": {"ranks": ranks.size, "backend": ranks.backend, "all_reduce_bytes_per_step": step}}


def _joined(a: Interactions, b: Interactions) -> Interactions:
    return replace(
        a,
        users=np.concatenate([a.users, b.users]),
        items=np.concatenate([a.items, b.items]),
        ratings=None,
        timestamps=None,
    )


def _check_cutoffs(config: TrainConfig, data: dataset.Dataset) -> None:
    """Find out before training what evaluation would complain of afterwards."""
    if max(config.evaluation.k) > data.train.num_items:
        raise ConfigError(
            f"is {config.evaluation.k}, but there are only {data.train.num_items} items",
            where="evaluation.k",
            remedy="Ask for no more than that",
        )
    if config.trainer is not None and data.valid is not None:
        known = {int(name.rpartition("@")[2]) for name in (config.trainer.monitor,) if "@" in name}
        if not known <= set(config.evaluation.k):
            raise ConfigError(
                f"is {config.trainer.monitor!r}, but metrics are computed at K = {config.evaluation.k}",
                where="trainer.monitor",
                remedy="Monitor one of these, or add its K to evaluation.k",
            )


def read_config(run_dir: Path) -> TrainConfig:
    """The configuration that the run in `run_dir` has kept.

    Raises:
        CheckpointError: no run lies there.
        ConfigError: it is damaged.
    """
    file = run_dir / "config.yaml"
    if is_tier_folder(run_dir):
        found = "holds live tensors of a training, half of them new at any time: they are no checkpoint"
        remedy = "Give the run directory, or resume the run from its last checkpoint"
        raise CheckpointError(found, where=str(run_dir), remedy=remedy)
    if not file.exists():
        raise CheckpointError(
            "is no run directory: it has no config.yaml",
            where=str(run_dir),
            remedy="Give the directory that a training left, such as run=outputs/train/2026-01-31_12-00-00",
        )
    return TrainConfig.from_dict(config_module.from_yaml(file))


def _check_run_dir(config: TrainConfig, run_dir: Path) -> None:
    """Refuse to overwrite a run, to resume none, and to resume one with another configuration."""
    exists = (run_dir / "config.yaml").exists()
    if not config.resume:
        if exists:
            raise ConfigError(
                "holds a run already",
                where=str(run_dir),
                remedy="Add resume=true to go on with it, or choose another hydra.run.dir",
            )
        return
    if not exists:
        raise ConfigError(
            "resume=true, but there is no run to go on with",
            where=str(run_dir),
            remedy="Set hydra.run.dir to the directory of the run",
        )
    decays = config.trainer is not None and config.trainer.lr_decay != "none"
    resumable = RESUMABLE - {"trainer.epochs"} if decays else RESUMABLE  # the decay goes by them
    changes = changed(run_dir, config).items()
    kept = {name: both for name, both in changes if name not in resumable and not name.startswith(MEMORY)}
    if kept:
        listed = ", ".join(f"{name}={now} (was {before})" for name, (before, now) in kept.items())
        raise ConfigError(
            f"this run has another configuration: {listed}",
            where=str(run_dir),
            remedy="Give the same options as the run had, or start another one in another hydra.run.dir",
        )


def changed(run_dir: Path, config: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """What differs between the configuration of the run in `run_dir` and this one: its value there and here, by name.

    Raises:
        CheckpointError: no run lies there.
        ConfigError: its configuration is damaged.
    """
    before, now = (flat(asdict(part)) for part in (read_config(run_dir), config))
    names = (name for name in sorted(before | now) if before.get(name) != now.get(name))
    return {name: (before.get(name), now.get(name)) for name in names}
