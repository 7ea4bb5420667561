"""The sections `optimizer`, `trainer` and `evaluation`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from gnnrec.config.checks import at_least, cutoffs, did_you_mean, one_of, positive, within
from gnnrec.errors import ConfigError

METRICS = ("recall", "ndcg", "precision", "hit_rate", "mrr", "map", "coverage")


@dataclass
class OptimizerConfig:
    """The optimiser."""

    name: str = "adam"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.9
    state_dtype: str = "float32"
    clip: float | None = None

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used, or has no effect on this optimiser."""
        effective = {
            "adam": {"betas", "eps", "state_dtype", "clip"},
            "adamw": {"betas", "eps", "state_dtype", "clip"},
            "lamb": {"betas", "eps"},
            "lars": {"momentum"},
            "rowwise_adagrad": {"eps"},
            "sgd": {"momentum"},
        }
        one_of("optimizer.name", self.name, tuple(effective))
        positive("optimizer.lr", self.lr)
        positive("optimizer.eps", self.eps)
        at_least("optimizer.weight_decay", self.weight_decay, 0)
        within("optimizer.momentum", self.momentum, 0, 0.9999999)
        one_of("optimizer.state_dtype", self.state_dtype, ("float32", "bfloat16"))
        if self.clip is not None:
            positive("optimizer.clip", self.clip)
        if len(self.betas) != 2:
            raise ConfigError(f"is {list(self.betas)}", where="optimizer.betas", remedy="Give two numbers")
        for beta in self.betas:
            within("optimizer.betas", beta, 0, 0.9999999)
        own, usual = asdict(self) | {"betas": tuple(self.betas)}, asdict(OptimizerConfig())
        for name in sorted(set().union(*effective.values()) - effective[self.name]):
            if own[name] != usual[name]:
                found = f"has no effect on optimizer={self.name}"
                raise ConfigError(found, where=f"optimizer.{name}", remedy="Leave it out")


@dataclass
class TrainerConfig:
    """The training loop."""

    epochs: int | None = 40
    batch_size: int | None = 2048
    sampling: str | None = None
    storage: str = "float32"
    lr_scaling: str = "none"
    lr_base_batch: int | None = None
    warmup_samples: int = 0
    lr_decay: str = "none"
    eval_every: int = 5
    patience: int = 5
    monitor: str = "recall@20"
    checkpoint_every: int = 1

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used."""
        at_least("trainer.epochs", self.epochs, 1)
        if self.batch_size is not None:
            within("trainer.batch_size", self.batch_size, 1, 2**31 - 1)
        if self.sampling is not None:
            one_of("trainer.sampling", self.sampling, ("users", "interactions"))
        one_of("trainer.storage", self.storage, ("float32", "bfloat16"))
        one_of("trainer.lr_scaling", self.lr_scaling, ("none", "sqrt", "linear"))
        at_least("trainer.lr_base_batch", self.lr_base_batch, 1)
        if self.lr_scaling == "none" and self.lr_base_batch is not None:
            remedy = "Set trainer.lr_scaling, or leave it out"
            raise ConfigError(
                "has no effect with trainer.lr_scaling=none", where="trainer.lr_base_batch", remedy=remedy
            )
        at_least("trainer.warmup_samples", self.warmup_samples, 0)
        one_of("trainer.lr_decay", self.lr_decay, ("none", "linear", "cosine"))
        at_least("trainer.eval_every", self.eval_every, 1)
        at_least("trainer.patience", self.patience, 1)
        at_least("trainer.checkpoint_every", self.checkpoint_every, 1)
        metric, at, k = self.monitor.partition("@")
        if metric not in METRICS or not (at and k.isdecimal()):
            known = [f"{name}@{k or 20}" for name in METRICS]
            raise ConfigError(f"is {self.monitor!r}", where="trainer.monitor", remedy=did_you_mean(self.monitor, known))


@dataclass
class EvaluationConfig:
    """Which metrics are computed, at which cut-offs K."""

    k: list[int] = field(default_factory=lambda: [20])

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used."""
        cutoffs("evaluation.k", self.k)
