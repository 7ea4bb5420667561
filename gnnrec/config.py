"""What a run can be told: one dataclass a section, filled from the composed Hydra config and checked.

The YAML files in `conf/` hold the values, the dataclasses the types and the rules. A message names the field, its value
and the remedy.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from gnnrec.device import NAMES as DEVICES
from gnnrec.errors import ConfigError

SPLITS = ("random", "per_user", "leave_one_out", "temporal", "per_user_temporal", "per_user_order")
SOURCES = ("catalog", "files", "synthetic")
DUPLICATES = ("first", "last", "keep")
DTYPES = ("float32", "float64", "bfloat16", "float16")
METRICS = ("recall", "ndcg", "precision", "hit_rate", "mrr", "map", "coverage")


@dataclass
class ColumnsConfig:
    """Names (or, without a header, 0-based numbers) of a table's columns; null for one that is not there."""

    user: str = "user"
    item: str = "item"
    rating: str | None = None
    timestamp: str | None = None


@dataclass
class SplitConfig:
    """How a single log is cut into training and test part."""

    by: str = "random"
    test_ratio: float = 0.2


@dataclass
class SyntheticConfig:
    """Size and shape of the generated data set."""

    num_users: int = 3000
    num_items: int = 2000
    num_interactions: int = 120000
    communities: int = 10
    popularity_exponent: float = 0.8
    noise: float = 0.1


@dataclass
class DataConfig:
    """Where interactions come from and what is done to them before training."""

    source: str = "files"
    name: str = "files"
    root: str | None = None
    format: str | None = None
    log: str | None = None
    train: str | None = None
    valid: str | None = None
    test: str | None = None
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    delimiter: str | None = None
    header: bool = True
    split: SplitConfig = field(default_factory=SplitConfig)
    min_rating: float | None = None
    k_core: int = 0
    duplicates: str = "first"
    valid_ratio: float = 0.1
    valid_by: str = "per_user"
    seed: int = 0
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used."""
        _one_of("data.source", self.source, SOURCES)
        _one_of("data.duplicates", self.duplicates, DUPLICATES)
        _one_of("data.split.by", self.split.by, SPLITS)
        _within("data.valid_ratio", self.valid_ratio, 0, 0.9)
        _one_of("data.valid_by", self.valid_by, tuple(by for by in SPLITS if by != "leave_one_out"))
        _within("data.split.test_ratio", self.split.test_ratio, 0.001, 0.9)
        _at_least("data.k_core", self.k_core, 0)
        if self.source == "files" and (self.log is None) == (self.train is None):
            raise ConfigError(
                "neither data.log nor data.train is set"
                if self.log is None
                else "both data.log and data.train are set",
                where="data",
                remedy="Give data.log=FILE for one log that is to be split, or data.train=FILE data.test=FILE",
            )
        beside = "data.test" if self.test is not None else "data.valid"
        if self.log is not None and (self.test is not None or self.valid is not None):
            raise ConfigError(
                "has no effect beside data.log, which is split",
                where=beside,
                remedy=f"Give the training part as data.train=FILE, or leave {beside} out",
            )
        if self.source == "files" and self.train is not None and self.test is None:
            raise ConfigError(
                f"data.train is {self.train!r} but data.test is not set",
                where="data",
                remedy="Add data.test=FILE, or give the whole log as data.log=FILE to have it split",
            )


@dataclass
class LightGCNConfig:
    """LightGCN (He et al. 2020)."""

    name: str = "lightgcn"
    dim: int = 64
    layers: int = 3
    layer_weights: list[float] | None = None
    init: str = "normal"
    init_std: float = 0.1
    similarity: str = "dot"
    popularity: float = 0.0

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used."""
        _within("model.dim", self.dim, 1, 4096)
        _within("model.layers", self.layers, 0, 32)
        _one_of("model.init", self.init, ("normal", "spectral"))
        _positive("model.init_std", self.init_std)
        _one_of("model.similarity", self.similarity, ("dot", "cosine"))
        _within("model.popularity", self.popularity, -1, 1)
        if self.layer_weights is not None and len(self.layer_weights) != self.layers + 1:
            raise ConfigError(
                f"has {len(self.layer_weights)} numbers where model.layers={self.layers} needs {self.layers + 1}",
                where="model.layer_weights",
                remedy="Give one number for the embedding itself and one for each layer, or null for the mean",
            )


@dataclass
class NGCFConfig:
    """NGCF (Wang et al. 2019)."""

    name: str = "ngcf"
    dim: int = 64
    layers: int = 3
    negative_slope: float = 0.2
    node_dropout: float = 0.0
    message_dropout: float = 0.1
    init_std: float | None = None
    similarity: str = "dot"
    popularity: float = 0.0

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used."""
        _within("model.dim", self.dim, 1, 4096)
        _within("model.layers", self.layers, 1, 32)
        _at_least("model.negative_slope", self.negative_slope, 0)
        _within("model.node_dropout", self.node_dropout, 0, 0.99)
        _within("model.message_dropout", self.message_dropout, 0, 0.99)
        if self.init_std is not None:
            _positive("model.init_std", self.init_std)
        _one_of("model.similarity", self.similarity, ("dot", "cosine"))
        _within("model.popularity", self.popularity, -1, 1)


@dataclass
class GFCFConfig:
    """GF-CF (Shen et al. 2021), a graph filter in closed form."""

    name: str = "gfcf"
    factors: int = 256
    ideal_weight: float = 0.3

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used."""
        _within("model.factors", self.factors, 1, 4096)
        _at_least("model.ideal_weight", self.ideal_weight, 0)


@dataclass
class BPRConfig:
    """Bayesian personalised ranking over triples (Rendle et al. 2009)."""

    name: str = "bpr"
    reg: float = 1e-4

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used."""
        _at_least("loss.reg", self.reg, 0)


@dataclass
class SoftmaxConfig:
    """Softmax over all items, or over negatives that a batch shares."""

    name: str = "softmax"
    temperature: float = 0.1
    negatives: int | None = None
    popularity: float | None = None
    correction: bool | None = None
    user_power: float = 1.0
    precision: str = "auto"

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used, or has no effect."""
        _positive("loss.temperature", self.temperature)
        _at_least("loss.negatives", self.negatives, 1)
        for name in ("popularity", "correction"):
            if self.negatives is None and getattr(self, name) is not None:
                remedy = f"Set loss.negatives, or leave loss.{name} out"
                raise ConfigError("has no effect without loss.negatives", where=f"loss.{name}", remedy=remedy)
        if self.popularity is not None:
            _within("loss.popularity", self.popularity, -1, 1)
        _within("loss.user_power", self.user_power, 0, 1)
        _one_of("loss.precision", self.precision, ("auto", "float32", "bfloat16"))


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
        _one_of("optimizer.name", self.name, tuple(effective))
        _positive("optimizer.lr", self.lr)
        _positive("optimizer.eps", self.eps)
        _at_least("optimizer.weight_decay", self.weight_decay, 0)
        _within("optimizer.momentum", self.momentum, 0, 0.9999999)
        _one_of("optimizer.state_dtype", self.state_dtype, ("float32", "bfloat16"))
        if self.clip is not None:
            _positive("optimizer.clip", self.clip)
        if len(self.betas) != 2:
            raise ConfigError(f"is {list(self.betas)}", where="optimizer.betas", remedy="Give two numbers")
        for beta in self.betas:
            _within("optimizer.betas", beta, 0, 0.9999999)
        own, usual = asdict(self) | {"betas": tuple(self.betas)}, asdict(OptimizerConfig())
        for name in sorted(set().union(*effective.values()) - effective[self.name]):
            if own[name] != usual[name]:
                found = f"has no effect on optimizer={self.name}"
                raise ConfigError(found, where=f"optimizer.{name}", remedy="Leave it out")


@dataclass
class TrainerConfig:
    """The training loop."""

    epochs: int = 40
    batch_size: int = 2048
    sampling: str | None = None
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
        _at_least("trainer.epochs", self.epochs, 1)
        _within("trainer.batch_size", self.batch_size, 1, 2**31 - 1)
        if self.sampling is not None:
            _one_of("trainer.sampling", self.sampling, ("users", "interactions"))
        _one_of("trainer.lr_scaling", self.lr_scaling, ("none", "sqrt", "linear"))
        _at_least("trainer.lr_base_batch", self.lr_base_batch, 1)
        if self.lr_scaling == "none" and self.lr_base_batch is not None:
            remedy = "Set trainer.lr_scaling, or leave it out"
            raise ConfigError(
                "has no effect with trainer.lr_scaling=none", where="trainer.lr_base_batch", remedy=remedy
            )
        _at_least("trainer.warmup_samples", self.warmup_samples, 0)
        _one_of("trainer.lr_decay", self.lr_decay, ("none", "linear", "cosine"))
        _at_least("trainer.eval_every", self.eval_every, 1)
        _at_least("trainer.patience", self.patience, 1)
        _at_least("trainer.checkpoint_every", self.checkpoint_every, 1)
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
        _cutoffs("evaluation.k", self.k)


MODELS: dict[str, type[LightGCNConfig] | type[NGCFConfig] | type[GFCFConfig]] = {
    "lightgcn": LightGCNConfig,
    "ngcf": NGCFConfig,
    "gfcf": GFCFConfig,
}
ModelConfig = LightGCNConfig | NGCFConfig | GFCFConfig
LOSSES: dict[str, type[BPRConfig] | type[SoftmaxConfig]] = {"bpr": BPRConfig, "softmax": SoftmaxConfig}
LossConfig = BPRConfig | SoftmaxConfig


@dataclass
class GeneralConfig:
    """What belongs to no section."""

    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    resume: bool = False


@dataclass(kw_only=True)
class TrainConfig(GeneralConfig):
    """Everything `gnnrec train` is told; `loss`, `optimizer` and `trainer` are None for a model in closed form."""

    data: DataConfig
    model: ModelConfig
    loss: LossConfig | None
    optimizer: OptimizerConfig | None
    trainer: TrainerConfig | None
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Fill and check every section.

        Raises:
            ConfigError: an unknown key, a value of a wrong type or out of range; the message names the field.
        """
        values = dict(values)
        model = dict(values.pop("model", None) or {})
        _one_of("model.name", model.get("name"), tuple(MODELS))
        loss = values.pop("loss", None)
        if loss is not None:
            _one_of("loss.name", loss.get("name"), tuple(LOSSES))
        data = fill(DataConfig, values.pop("data", None) or {}, "data")
        config = cls(
            data=data,
            model=fill(MODELS[model["name"]], model, "model"),
            loss=None if loss is None else fill(LOSSES[loss["name"]], dict(loss), "loss"),
            optimizer=_optional(OptimizerConfig, values.pop("optimizer", None), "optimizer"),
            trainer=_optional(TrainerConfig, values.pop("trainer", None), "trainer"),
            evaluation=fill(EvaluationConfig, values.pop("evaluation", None) or {}, "evaluation"),
            **asdict(fill(GeneralConfig, values)),
        )
        config.validate()
        return config

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used."""
        for section in (self.data, self.model, self.loss, self.optimizer, self.trainer, self.evaluation):
            if section is not None:
                section.validate()
        _within("seed", self.seed, 0, 2**63 - 1)
        _one_of("device", self.device, DEVICES)
        _at_least("threads", self.threads, 1)
        gradient_sections = {"loss": self.loss, "optimizer": self.optimizer, "trainer": self.trainer}
        for name, section in gradient_sections.items():
            if not isinstance(self.model, GFCFConfig) and section is None:
                raise ConfigError("is not set", where=name, remedy=f"model={self.model.name} needs it")
            if isinstance(self.model, GFCFConfig) and section is not None:
                raise ConfigError(
                    f"model={self.model.name} is computed in closed form and has no use for it",
                    where=name,
                    remedy=f"Leave out {name}=..., or the experiment that sets it",
                )
        self._check_loss()

    def _check_loss(self) -> None:
        """Refuse what the loss has no use for."""
        similarity = getattr(self.model, "similarity", "dot")
        if isinstance(self.loss, BPRConfig) and similarity != "dot":
            raise ConfigError(
                f"is {similarity!r}, but loss=bpr compares dot products",
                where="model.similarity",
                remedy="Set it to dot, or take loss=softmax",
            )
        if isinstance(self.loss, SoftmaxConfig) and self.trainer is not None and self.trainer.sampling is not None:
            raise ConfigError(
                "has no effect with loss=softmax, whose batches are users with all of their items",
                where="trainer.sampling",
                remedy="Leave it out",
            )


@dataclass
class EvaluateConfig:
    """What `gnnrec evaluate` is told."""

    run: list[str] = field(default_factory=list)
    k: list[int] | None = None
    out: str | None = None
    threads: int | None = None
    device: str = "auto"

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used."""
        if not self.run:
            raise _no_run()
        if self.k is not None:
            _cutoffs("k", self.k)
        _at_least("threads", self.threads, 1)
        _one_of("device", self.device, DEVICES)


@dataclass
class RecommendConfig:
    """What `gnnrec recommend` is told."""

    run: str | None = None
    users: str | None = None
    items: str | None = None
    history: str | None = None
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    k: int = 20
    exclude_seen: bool = True
    out: str | None = None
    threads: int | None = None
    device: str = "auto"

    def validate(self, verb: str) -> None:
        """Raise a ConfigError for a value that cannot be used, or has no effect with this verb."""
        if self.run is None:
            raise _no_run()
        effective = {
            "": {"users", "k", "exclude_seen"},
            "new_users": {"history", "columns", "k"},
            "similar_items": {"items", "k"},
            "embeddings": set[str](),
        }
        for name in sorted(set().union(*effective.values()) - effective[verb]):
            if getattr(self, name) != getattr(RecommendConfig(), name):
                command = f"gnnrec recommend {verb}".strip()
                raise ConfigError(f"has no effect on `{command}`", where=name, remedy="Leave it out")
        if verb == "new_users" and self.history is None:
            raise ConfigError("is not set", where="history", remedy="Give a table with the columns user and item")
        if verb == "embeddings" and self.out is None:
            raise ConfigError("is not set", where="out", remedy="Give a folder for users.parquet and items.parquet")
        _at_least("k", self.k, 1)
        _at_least("threads", self.threads, 1)
        _one_of("device", self.device, DEVICES)


@dataclass
class TuneConfig:
    """What `gnnrec tune` is told."""

    data: DataConfig = field(default_factory=DataConfig)
    operators: list[str] | None = None
    dims: list[int] = field(default_factory=lambda: [64])
    heads: int = 4
    dtypes: list[str] = field(default_factory=lambda: ["float32"])
    batches: list[int] = field(default_factory=lambda: [65_536])
    ks: list[int] = field(default_factory=lambda: [20])
    out: str | None = None

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used."""
        self.data.validate()
        _at_least("heads", self.heads, 1)
        for dim in self.dims:
            _at_least("dims", dim, 1)
            if dim % self.heads:
                raise ConfigError(f"is {dim}", where="dims", remedy=f"It must be a multiple of heads={self.heads}")
        for dtype in self.dtypes:
            _one_of("dtypes", dtype, DTYPES)
        for name in ("batches", "ks"):
            for number in getattr(self, name):
                _at_least(name, number, 1)


@dataclass
class CatalogConfig:
    """What `gnnrec data` is told."""

    name: str | None = None
    root: str | None = None


T = TypeVar("T")


def fill(schema: type[T], values: dict[str, Any], where: str = "") -> T:
    """An instance of the dataclass `schema` from plain values, converted and checked by type.

    A single value where a list is expected becomes a list of one.

    Raises:
        ConfigError: an unknown key or a value of a wrong type, with its name under `where`.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

    hints = get_type_hints(schema)
    listed = {
        name: [value] if isinstance(value, str | int | float) and "list" in _kind(hints.get(name)) else value
        for name, value in values.items()
    }
    try:
        result = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), listed))
    except OmegaConfBaseException as error:
        name = ".".join(part for part in (where, error.full_key) if part)
        if isinstance(error, ConfigKeyError | ConfigAttributeError):
            known = list(get_type_hints(error.object_type))
            raise ConfigError("unknown key", where=name, remedy=did_you_mean(str(error.key), known)) from error
        if not error.full_key:
            raise ConfigError(str(error).splitlines()[0], where=name) from error
        hint: Any = schema
        for part in re.findall(r"[a-z]\w*", error.full_key):
            hint = get_type_hints(hint)[part]
        raise ConfigError(f"is {error.value!r}", where=name, remedy=f"It must be {_kind(hint)}") from error
    assert isinstance(result, schema)
    return result


def to_yaml(config: TrainConfig) -> str:
    """The config as YAML, which `from_yaml` and `TrainConfig.from_dict` read back."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(asdict(config)))


def from_yaml(file: Path) -> dict[str, Any]:
    """The values of a config file.

    Raises:
        ConfigError: it cannot be read, or is no YAML mapping.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        values = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"cannot be read: {error}", where=str(file)) from error
    if not isinstance(values, dict):
        raise ConfigError("holds no configuration", where=str(file))
    return {str(key): value for key, value in values.items()}


def _optional(schema: type[T], values: dict[str, Any] | None, where: str) -> T | None:
    return None if values is None else fill(schema, values, where)


def did_you_mean(name: str, known: list[str]) -> str:
    """A sentence with the nearest known names, or all of them where none is near."""
    import difflib

    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"Did you mean {' or '.join(near)}?" if near else f"Known are: {', '.join(sorted(known))}"


def _kind(hint: Any) -> str:
    """A type in words."""
    if get_origin(hint) in (list, tuple):
        return f"a list of {_kind(get_args(hint)[0]).removeprefix('a ')}s"
    kinds = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    return " or ".join(_kind(part) for part in get_args(hint)) or kinds.get(hint, "a section with keys of its own")


def _no_run() -> ConfigError:
    return ConfigError("is not set", where="run", remedy="Add run=DIR, the directory that a training left")


def _cutoffs(where: str, ks: list[int]) -> None:
    if not ks:
        raise ConfigError("is empty", where=where, remedy="Give at least one cut-off, such as [20]")
    for k in ks:
        _at_least(where, k, 1)


def _one_of(where: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"is {value!r}", where=where, remedy=did_you_mean(str(value), list(known)))


def _within(where: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"is {value}", where=where, remedy=f"It must lie within {low} and {high}")


def _at_least(where: str, value: float | None, low: float) -> None:
    if value is not None and not value >= low:
        raise ConfigError(f"is {value}", where=where, remedy=f"It must be at least {low}")


def _positive(where: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ConfigError(f"is {value}", where=where, remedy="It must be above 0, and finite")
