"""The section `distributed`, and what a training of several ranks may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gnnrec.config.checks import positive
from gnnrec.config.loss import BPRConfig
from gnnrec.config.model import LightGCNConfig
from gnnrec.errors import ConfigError

if TYPE_CHECKING:
    from gnnrec.config.train import TrainConfig


@dataclass
class DistributedConfig:
    """Several processes, started by torchrun."""

    timeout_seconds: float | None = None

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used."""
        if self.timeout_seconds is not None:
            positive("distributed.timeout_seconds", self.timeout_seconds)


def check_ranks(config: TrainConfig, size: int | None) -> None:
    """Raise a ConfigError for what so many ranks cannot train, or None, a process of its own, has no use for."""
    if size is None:
        if config.distributed.timeout_seconds is not None:
            found = "has no effect in a single process"
            raise ConfigError(found, where="distributed.timeout_seconds", remedy="Leave it out, or start torchrun")
        return
    model, loss, optimizer, trainer = config.model, config.loss, config.optimizer, config.trainer
    if not isinstance(model, LightGCNConfig):
        raise _not_yet("model", model.name, "lightgcn")
    if isinstance(model.layer_weights, str):
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
    if config.memory.name != "dram":
        raise _not_yet("memory", config.memory.name, "dram: a rank holds its share of the columns there")
    if config.profile == "on":
        raise _not_yet("profile", "on", "off")
    if model.dim < size:
        remedy = f"Start at most {model.dim}, or raise it"
        raise ConfigError(f"is {model.dim}, and {size} ranks need a column each", where="model.dim", remedy=remedy)


def _not_yet(where: str, found: object, remedy: str) -> ConfigError:
    return ConfigError(
        f"is {found!r}, which several processes cannot train",
        where=where,
        remedy=f"Under torchrun it must be {remedy}; or start a single process",
    )
