"""The section `distributed`, and what a training of several ranks may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gnnrec.config.checks import one_of, positive
from gnnrec.config.loss import BPRConfig
from gnnrec.config.model import LightGCNConfig, ModelConfig, NGCFConfig
from gnnrec.errors import ConfigError

if TYPE_CHECKING:
    from gnnrec.config.train import TrainConfig

SPLITS = ("columns", "rows")


@dataclass
class DistributedConfig:
    """Several processes, started by torchrun."""

    split: str | None = None
    timeout_seconds: float | None = None

    def by_rows(self, model: ModelConfig) -> bool:
        """Whether a rank has the rows of some nodes, of the embeddings and of the graph; else it has some columns."""
        return isinstance(model, NGCFConfig) if self.split is None else self.split == "rows"

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used."""
        if self.split is not None:
            one_of("distributed.split", self.split, SPLITS)
        if self.timeout_seconds is not None:
            positive("distributed.timeout_seconds", self.timeout_seconds)


def check_ranks(config: TrainConfig, size: int | None) -> None:
    """Raise a ConfigError for what so many ranks cannot train, or None, a process of its own, has no use for."""
    if size is None:
        for name in ("split", "timeout_seconds"):
            if getattr(config.distributed, name) is not None:
                found = "has no effect in a single process"
                raise ConfigError(found, where=f"distributed.{name}", remedy="Leave it out, or start torchrun")
        return
    model, loss, optimizer, trainer = config.model, config.loss, config.optimizer, config.trainer
    if not isinstance(model, LightGCNConfig | NGCFConfig):
        raise _not_yet("model", model.name, "lightgcn or ngcf")
    by_rows = config.distributed.by_rows(model)
    if isinstance(model, NGCFConfig) and not by_rows:
        raise _not_yet("distributed.split", "columns", "rows or null: a layer of NGCF mixes columns")
    if isinstance(model, LightGCNConfig) and isinstance(model.layer_weights, str):
        raise _not_yet("model.layer_weights", model.layer_weights, "numbers or null")
    if not isinstance(loss, BPRConfig):
        raise _not_yet("loss", "none" if loss is None else loss.name, "bpr")
    assert optimizer is not None
    assert trainer is not None
    if optimizer.name not in ("adam", "adamw"):
        raise _not_yet("optimizer", optimizer.name, "adam or adamw")
    if optimizer.clip is not None:
        raise _not_yet("optimizer.clip", optimizer.clip, "null: the length of a row takes all columns")
    for where, dtype in ("optimizer.state_dtype", optimizer.state_dtype), ("trainer.storage", trainer.storage):
        if dtype != "float32":
            raise _not_yet(where, dtype, "float32")
    _check_memory(config)
    check_rank_device(config, config.device)
    if config.profile == "on":
        raise _not_yet("profile", "on", "off")
    if by_rows:
        _check_rows(config)
    elif model.dim < size:
        remedy = f"Start at most {model.dim}, or raise it"
        raise ConfigError(f"is {model.dim}, and {size} ranks need a column each", where="model.dim", remedy=remedy)


def check_rank_device(config: TrainConfig, device: str) -> str:
    """The device of a rank: cpu, cuda, or auto where it is not known yet; or a ConfigError for what it cannot train."""
    if device == "cuda" and isinstance(config.model, NGCFConfig):
        raise _not_yet("device", device, "cpu: rows of NGCF are for processors")
    if device == "cuda" and config.memory.name == "auto":
        raise _not_yet("memory", "auto", "dram, or take device=cpu: the room of GPUs is not looked at")
    return device


def _check_memory(config: TrainConfig) -> None:
    """Raise a ConfigError for a plan that ranks have no use for."""
    memory = config.memory
    if memory.name not in ("dram", "auto"):
        raise _not_yet("memory", memory.name, "dram, where a rank holds its share, or auto, which looks for room first")
    given = {"folder": memory.folder, "pin": memory.pins or None, "panel": memory.panel, "buffer": memory.buffer}
    for name, value in (given | {"simulate": memory.slower, "custom.path": memory.custom.path}).items():
        if value is not None:
            raise _not_yet(f"memory.{name}", value, "left out: a rank holds its share in DRAM")


def _check_rows(config: TrainConfig) -> None:
    """Raise a ConfigError for what ranks that have some rows each cannot train."""
    model, trainer = config.model, config.trainer
    columns = "; or take distributed.split=columns" if isinstance(model, LightGCNConfig) else ""
    if isinstance(model, LightGCNConfig) and model.init != "normal":
        raise _not_yet("model.init", model.init, f"normal, since vectors of a graph take all of its rows{columns}")
    if trainer is not None and trainer.sampling == "interactions":
        remedy = f"users or null, since a shuffle takes all interactions{columns}"
        raise _not_yet("trainer.sampling", trainer.sampling, remedy)


def _not_yet(where: str, found: object, remedy: str) -> ConfigError:
    return ConfigError(
        f"is {found!r}, which several processes cannot train",
        where=where,
        remedy=f"Under torchrun it must be {remedy}; or start a single process",
    )
