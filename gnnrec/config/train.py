"""What `gnnrec train` is told: its sections together, and the rules between them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from gnnrec.config.checks import at_least, one_of, within
from gnnrec.config.data import DataConfig
from gnnrec.config.distributed import DistributedConfig
from gnnrec.config.loss import LOSSES, BPRConfig, CustomLossConfig, LossConfig, SquaredConfig
from gnnrec.config.memory import MemoryConfig
from gnnrec.config.model import MODELS, CustomModelConfig, GFCFConfig, ModelConfig
from gnnrec.config.training import EvaluationConfig, OptimizerConfig, TrainerConfig
from gnnrec.config.values import fill, optional
from gnnrec.device import NAMES as DEVICES
from gnnrec.errors import ConfigError

VIEWS = ("auto", "live", "plain", "quiet")
LOGGERS = ("tensorboard", "mlflow", "wandb")
# Keys of what goes on beside a training: runs that differ in nothing else are the same experiment.
BESIDE = frozenset({"resume", "threads", "profile", "view", "loggers"})
BESIDE |= {"distributed.split", "distributed.timeout_seconds"}


@dataclass
class GeneralConfig:
    """What belongs to no section."""

    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    resume: bool = False
    profile: str = "off"
    view: str = "auto"
    loggers: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class TrainConfig(GeneralConfig):
    """Everything `gnnrec train` is told; `loss`, `optimizer` and `trainer` are None for a model in closed form."""

    data: DataConfig
    model: ModelConfig
    loss: LossConfig | None
    optimizer: OptimizerConfig | None
    trainer: TrainerConfig | None
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Fill and check every section.

        Raises:
            ConfigError: an unknown key, a value of a wrong type or out of range; the message names the field.
        """
        values = dict(values)
        model = dict(values.pop("model", None) or {})
        one_of("model.name", model.get("name"), tuple(MODELS))
        loss = values.pop("loss", None)
        if loss is not None:
            one_of("loss.name", loss.get("name"), tuple(LOSSES))
        data = fill(DataConfig, values.pop("data", None) or {}, "data")
        config = cls(
            data=data,
            model=fill(MODELS[model["name"]], model, "model"),
            loss=None if loss is None else fill(LOSSES[loss["name"]], dict(loss), "loss"),
            optimizer=optional(OptimizerConfig, values.pop("optimizer", None), "optimizer"),
            trainer=optional(TrainerConfig, values.pop("trainer", None), "trainer"),
            evaluation=fill(EvaluationConfig, values.pop("evaluation", None) or {}, "evaluation"),
            memory=fill(MemoryConfig, values.pop("memory", None) or {}, "memory"),
            distributed=fill(DistributedConfig, values.pop("distributed", None) or {}, "distributed"),
            **asdict(fill(GeneralConfig, values)),
        )
        config.validate()
        return config

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used."""
        sections = self.data, self.model, self.loss, self.optimizer, self.trainer
        for section in (*sections, self.evaluation, self.memory, self.distributed):
            if section is not None:
                section.validate()
        within("seed", self.seed, 0, 2**63 - 1)
        one_of("device", self.device, DEVICES)
        at_least("threads", self.threads, 1)
        one_of("profile", self.profile, ("on", "off"))
        one_of("view", self.view, VIEWS)
        for name in self.loggers:
            one_of("loggers", name, LOGGERS)
        if len(set(self.loggers)) < len(self.loggers):
            raise ConfigError(f"is {self.loggers}", where="loggers", remedy="Name each once")
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
        self._check_sections()

    def _check_sections(self) -> None:
        """Refuse what another section has no use for."""
        if isinstance(self.model, GFCFConfig) and self.profile == "on":
            found = f"is 'on', but model={self.model.name} is computed in closed form, without steps"
            raise ConfigError(found, where="profile", remedy="Leave it out")
        if isinstance(self.model, GFCFConfig) and self.memory.name != "dram":
            found = f"has no effect with model={self.model.name}, which is computed in closed form"
            raise ConfigError(found, where=f"memory={self.memory.name}", remedy="Take memory=dram")
        for name, section in (("model", self.model), ("loss", self.loss)):
            if isinstance(section, CustomModelConfig | CustomLossConfig) and self.memory.name != "dram":
                found = f"has no effect with {name}=custom, of which nobody knows what a step moves"
                raise ConfigError(found, where=f"memory={self.memory.name}", remedy="Take memory=dram")
        similarity = getattr(self.model, "similarity", "dot")
        if isinstance(self.loss, BPRConfig | SquaredConfig) and similarity != "dot":
            raise ConfigError(
                f"is {similarity!r}, but loss={self.loss.name} compares dot products",
                where="model.similarity",
                remedy="Set it to dot, or take loss=softmax",
            )
        if self.loss is None or self.trainer is None or self.optimizer is None:
            return
        if self.trainer.storage == "bfloat16" and self.optimizer.name not in ("adam", "adamw"):
            raise ConfigError(
                f"is 'bfloat16', but optimizer={self.optimizer.name} keeps no float32 copy",
                where="trainer.storage",
                remedy="Take optimizer=adam or adamw, or leave it out",
            )
        triples = isinstance(self.loss, BPRConfig) or getattr(self.loss, "batches", "") == "triples"
        if not triples and self.trainer.sampling is not None:
            raise ConfigError(
                f"has no effect with loss={self.loss.name}, whose batches are no triples",
                where="trainer.sampling",
                remedy="Leave it out",
            )


def to_yaml(config: TrainConfig) -> str:
    """The config as YAML, which `from_yaml` and `TrainConfig.from_dict` read back."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(asdict(config)))
