"""The run directory: how a run begins in it, what is kept there, and whether another one may go on with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gnnrec import config as config_module
from gnnrec.config import TrainConfig
from gnnrec.config.values import flat
from gnnrec.data import dataset
from gnnrec.data.interactions import IdMap, Interactions
from gnnrec.data.synthetic import PlantedModel
from gnnrec.errors import CheckpointError, ConfigError
from gnnrec.memtier.files import is_tier_folder
from gnnrec.memtier.plans import Plan
from gnnrec.memtier.shares import Shares
from gnnrec.storage import atomic_folder, atomic_write, locked, remove_folder, storage_errors
from gnnrec.training import runlog

PARTS = ("train", "valid", "test")
# What may differ when a run goes on: where and how long it trains, what is measured, where the data came from.
RESUMABLE = config_module.BESIDE | {"device", "evaluation.k"}
RESUMABLE |= {f"trainer.{key}" for key in ("epochs", "patience", "checkpoint_every")}
RESUMABLE |= {f"data.{key}" for key in ("root", "log", "train", "valid", "test")}
MEMORY = "memory."  # every key of it too: results are the same wherever tensors lie
PLAN = "plan.json"
TIER = "tier"  # of the run directory: the folder for files that are streamed


def begin(
    config: TrainConfig, data: dataset.Dataset, run_dir: Path, loggers: Sequence[runlog.Logger], opened: ExitStack
) -> runlog.RunLog:
    """Take the run directory for this run, until `opened` is closed."""
    with storage_errors(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
    opened.enter_context(locked(run_dir / ".lock", "another process is training in this run directory"))
    log = opened.enter_context(runlog.RunLog(run_dir, loggers))
    check(config, run_dir)  # again: another process may have come first while data were read
    if not config.resume:
        save_data(data, run_dir)
    return log


def keep(config: TrainConfig, plan: Plan | Shares | None, run_dir: Path) -> None:
    """From here on it is a run. What has no plan may be tried again in this directory."""
    atomic_write(run_dir / "config.yaml", config_module.to_yaml(config).encode())
    _keep_plan(plan, run_dir / PLAN)


def _keep_plan(plan: Plan | Shares | None, file: Path) -> None:
    """Write the plan, or remove that of the run before, which is resumed without one."""
    if plan is not None:
        atomic_write(file, (json.dumps(plan.to_dict(), indent=2) + "\n").encode())
    elif file.exists():
        file.unlink()


def check(config: TrainConfig, run_dir: Path) -> None:
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
