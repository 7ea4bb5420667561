"""The section `loss`: a schema a loss, and the list of them."""

from __future__ import annotations

from dataclasses import dataclass

from gnnrec.config.checks import at_least, one_of, positive, within
from gnnrec.errors import ConfigError


@dataclass
class BPRConfig:
    """Bayesian personalised ranking over triples (Rendle et al. 2009)."""

    name: str = "bpr"
    reg: float = 1e-4
    negatives: int = 1
    popularity: float = 0.0
    hardest: bool = False

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used, or has no effect."""
        at_least("loss.reg", self.reg, 0)
        at_least("loss.negatives", self.negatives, 1)
        within("loss.popularity", self.popularity, -1, 1)
        if self.hardest and self.negatives == 1:
            remedy = "Set loss.negatives to 2 or more, or leave loss.hardest out"
            raise ConfigError("has no effect with loss.negatives=1", where="loss.hardest", remedy=remedy)


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
        positive("loss.temperature", self.temperature)
        at_least("loss.negatives", self.negatives, 1)
        for name in ("popularity", "correction"):
            if self.negatives is None and getattr(self, name) is not None:
                remedy = f"Set loss.negatives, or leave loss.{name} out"
                raise ConfigError("has no effect without loss.negatives", where=f"loss.{name}", remedy=remedy)
        if self.popularity is not None:
            within("loss.popularity", self.popularity, -1, 1)
        within("loss.user_power", self.user_power, 0, 1)
        one_of("loss.precision", self.precision, ("auto", "float32", "bfloat16"))


LOSSES: dict[str, type[BPRConfig] | type[SoftmaxConfig]] = {"bpr": BPRConfig, "softmax": SoftmaxConfig}
LossConfig = BPRConfig | SoftmaxConfig
