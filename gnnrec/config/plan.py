"""What `gnnrec plan` is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gnnrec.config.hardware import HardwareConfig
from gnnrec.config.loss import CustomLossConfig
from gnnrec.config.model import CustomModelConfig, GFCFConfig
from gnnrec.config.train import TrainConfig
from gnnrec.config.values import fill
from gnnrec.errors import ConfigError


@dataclass(frozen=True)
class PlanConfig:
    """The training to be planned, the hardware it is asked about, and a file for the plan."""

    train: TrainConfig
    hardware: HardwareConfig
    out: str | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PlanConfig:
        """Fill and check every section.

        Raises:
            ConfigError: an unknown key, a value of a wrong type or out of range; the message names the field.
        """
        values = dict(values)
        hardware = fill(HardwareConfig, values.pop("hardware", None) or {}, "hardware")
        out = values.pop("out", None)
        config = cls(TrainConfig.from_dict(values), hardware, None if out is None else str(out))
        config.validate()
        return config

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used."""
        self.hardware.validate()
        if isinstance(self.train.model, GFCFConfig):
            found = "is computed in closed form: there are no steps to plan"
            raise ConfigError(found, where=f"model={self.train.model.name}", remedy="Take model=lightgcn or model=ngcf")
        for name, section in (("model", self.train.model), ("loss", self.train.loss)):
            if isinstance(section, CustomModelConfig | CustomLossConfig):
                found, remedy = "nobody knows what a step moves: there is nothing to plan", f"Take another {name}"
                raise ConfigError(found, where=f"{name}=custom", remedy=remedy)
        if self.out is not None and Path(self.out).suffix != ".json":
            raise ConfigError(f"is {self.out!r}", where="out", remedy="Give a name that ends in .json")
