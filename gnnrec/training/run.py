"""A run: the way from a config to a trained and evaluated model."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from gnnrec import device as devices
from gnnrec import models
from gnnrec.config import LightGCNConfig, TrainConfig
from gnnrec.data import dataset
from gnnrec.data.interactions import Interactions
from gnnrec.errors import CheckpointError, ConfigError, Interrupted
from gnnrec.graph.bipartite import BipartiteGraph, user_rows
from gnnrec.graph.rows import GraphRows
from gnnrec.graph.sparse import SparseMatrix
from gnnrec.graph.union import Union
from gnnrec.memtier.account import Actual, account
from gnnrec.memtier.plans import Plan
from gnnrec.memtier.ring import Ring
from gnnrec.memtier.shares import Shares
from gnnrec.ops import most_threads, set_num_threads
from gnnrec.ranks import ALONE, Ranks
from gnnrec.training import checkpoint, division, placing, room, rundir, runlog
from gnnrec.training.column_parallel import AllColumns
from gnnrec.training.evaluate import Evaluator
from gnnrec.training.placing import Form, Places
from gnnrec.training.scaling import scaled
from gnnrec.training.streamed import fill
from gnnrec.training.streamed_ngcf import load
from gnnrec.training.trackers import trackers
from gnnrec.training.trainer import Position, Trainer, split_groups
from gnnrec.training.view import views


@dataclass(frozen=True)
class Run:
    """A trained model with the data it was trained on, as `evaluate` and `recommend` need them. Where it lies in rows
    with several ranks, each has what belongs to its users.

    The graph stays on the CPU, the model lies on `device`; both bring what they need to where they work. A context
    manager: what lies in files of a slow tier is gone at its end.
    """

    config: TrainConfig
    data: dataset.Dataset
    graph: BipartiteGraph | GraphRows
    model: models.Model | models.Streamed | models.Rows
    device: torch.device
    places: Places = field(default_factory=Places)
    ranks: Ranks = ALONE

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.places.close()

    def ranker(self) -> models.Ranker:
        """The model as it is now; where other ranks have some of it, they are to ask for it, and of columns ask it,
        too."""
        scorer = self.model.scorer()
        if self.ranks.backend is None or isinstance(self.graph, GraphRows):
            return scorer
        assert isinstance(scorer, models.FactorScorer)
        return AllColumns(scorer, self.ranks)

    @property
    def apart(self) -> Ranks:
        """The ranks that each have some users, where it is so."""
        return self.ranks if isinstance(self.graph, GraphRows) else ALONE

    def seen(self, *, with_valid: bool) -> SparseMatrix | Union:
        """Users x items of the training part, with the validation part where asked."""
        return seen(self.graph, self.data.valid if with_valid else None)


def train(
    config: TrainConfig,
    run_dir: Path,
    on_plan: Callable[[Plan | Shares], None] = lambda plan: None,
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
    run_dir = Path(ranks.tell(str(run_dir)))
    if ranks.begun(str(run_dir)):
        config = replace(config, resume=True)
    ranks.first(lambda: rundir.check(config, run_dir))
    data = rundir.load_data(config, run_dir) if config.resume else dataset.load(config.data)
    _check_cutoffs(config, data)
    with ExitStack() as opened, ExitStack() as failed:
        log = ranks.first(lambda: rundir.begin(config, data, run_dir, loggers, opened)) or runlog.RunLog()
        counts, facts, tier = data.counts(), dict[str, Any](), run_dir / rundir.TIER
        graph: BipartiteGraph | GraphRows
        if division.by_rows(config, ranks):
            facts = _data_facts(data, config.evaluation.k)  # while all of the data are here
            graph, data = division.cut(data, ranks)
        else:
            graph = graph_of(data.train)
        columns, held_out, places = division.columns(config, ranks), placing.held_out(config, data), Places()
        if ranks.backend is None:
            assert isinstance(graph, BipartiteGraph)
            places = placing.planned(config, graph, held_out=held_out, folder=tier)
            failed.callback(places.close)
        plan = places.plan or division.shares(config, graph, held_out, columns, ranks)
        if plan is not None:
            on_plan(plan)
        _check_room(config, graph, places, run_dir)
        ranks.first(lambda: rundir.keep(config, plan, run_dir))
        ranks.begin(str(run_dir))
        restored = config.resume and checkpoint.latest(run_dir / "checkpoints") is not None
        model: models.Model | models.Streamed | models.Rows
        if isinstance(graph, GraphRows):
            model = division.build(config, graph, device)
        else:
            model, graph = placing.build(config, graph, places, device, tier, restored=restored, columns=columns)
        run = Run(config, data, graph, model, device, places, ranks)
        if ranks.leads:
            here = {"machine": runlog.machine(), "versions": runlog.versions(gpu=device.type == "cuda")}
            log.start(asdict(config), run_dir)
            log.event("start", data=counts, **runlog.device_facts(device), **here)
        position, actual = _fit(run, run_dir / "checkpoints", log, hopeless, columns)
        log.phase("testing")
        started = time.perf_counter()
        metrics = evaluate(run, ks=config.evaluation.k)
        position.eval_seconds += time.perf_counter() - started
        facts = facts or _data_facts(data, config.evaluation.k)
        summary = _summary(run, facts, position, metrics) | _account(run.places, actual) | _exchanged(run, actual)
        log.event("end", step=position.step, metrics=metrics)
        if ranks.leads:
            runlog.write_summary(run_dir, summary)
        failed.pop_all()
    return run, summary


def _check_room(config: TrainConfig, graph: BipartiteGraph | GraphRows, places: Places, run_dir: Path) -> None:
    """Raise a StorageError where disks would be full before a run whose tensors are streamed is done."""
    if places.plan is not None and places.plan.mode == "stream":
        assert config.trainer is not None
        assert config.loss is not None
        trainer, _ = scaled(config.trainer, config.loss, graph)
        assert trainer.epochs is not None
        checkpoints = run_dir / "checkpoints"
        state = checkpoint.latest_state(checkpoints) if config.resume else {}
        # Not verified yet: one that is damaged is passed over later.
        done = Position(**{name: state[name] for name in ("epoch", "worse") if isinstance(state.get(name), int)})
        left = done.epochs_left(trainer.epochs, trainer.patience)
        saves = -(-left // trainer.checkpoint_every)
        room.check(places.plan, checkpoints, placing.tier_folder(config, run_dir / rundir.TIER), saves)


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
        valid = Evaluator(run.data.valid, run.graph.user_item(), config.evaluation.k, run.apart)
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
        metrics["valid"] = Evaluator(run.data.valid, run.seen(with_valid=False), ks, run.apart)(scorer)
    metrics["test"] = Evaluator(run.data.test, run.seen(with_valid=True), ks, run.apart)(scorer)
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
    config = rundir.read_config(run_dir)
    data = rundir.load_data(config, run_dir)
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


def _form(run_dir: Path, device: torch.device) -> Form | None:
    """Of a run whose embeddings are too large for memory; those in DRAM beside a GPU are not for processors.

    Raises:
        CheckpointError: the plan is damaged.
    """
    file = run_dir / rundir.PLAN
    try:
        plan = json.loads(file.read_bytes())
        if plan["mode"] == "ranks":
            return None
        embedding, adjacency = (
            next(tensor for tensor in plan["tensors"] if tensor["name"] == name) for name in ("embedding", "graph")
        )
        host = placing.in_dram(embedding["tier"])
        if embedding["mode"] != "stream" or (host and device.type == "cpu"):
            return None
        ring = Ring(plan["buffer_bytes"], **plan["transfers"])
        folder = None if host else run_dir / rundir.TIER
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


def graph_of(part: Interactions) -> BipartiteGraph:
    """The graph of these interactions."""
    return BipartiteGraph.from_edges(part.users, part.items, part.num_users, part.num_items)


def seen(graph: BipartiteGraph | GraphRows, valid: Interactions | None) -> SparseMatrix | Union:
    """Users x items of the training graph, with those of the validation part where there is one."""
    if valid is None:
        return graph.user_item()
    return Union(graph.user_item(), user_rows(valid.users, valid.items, valid.num_users, valid.num_items))


def set_threads(threads: int) -> None:
    """Set the number of threads, or raise a ConfigError that says how many there are."""
    try:
        set_num_threads(threads)
    except ValueError as error:
        raise ConfigError(str(error), where="threads", remedy="Leave it out to use all") from error


def _data_facts(data: dataset.Dataset, ks: list[int]) -> dict[str, Any]:
    """Name and counts, and of generated data what can be attained."""
    facts: dict[str, Any] = {"name": data.name} | data.counts()
    if data.truth is not None:
        history = data.train if data.valid is None else _joined(data.train, data.valid)
        facts["attainable"] = {f"recall@{k}": data.truth.best_recall(history, data.test, k) for k in ks}
        facts["attainable"] |= {f"ndcg@{k}": data.truth.best_ndcg(history, data.test, k) for k in ks}
    return facts


def _summary(
    run: Run, data: dict[str, Any], position: Position, metrics: dict[str, dict[str, float]]
) -> dict[str, Any]:
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
    split = "columns" if run.apart is ALONE else "rows"
    found: dict[str, Any] = {"ranks": ranks.size, "split": split, "backend": ranks.backend}
    for name, count in (("all_reduce", actual.totalled), ("all_gather", actual.gathered)):
        found[f"{name}_bytes_per_step"] = count / actual.steps if actual.steps else None
    return {"distributed": found}


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
