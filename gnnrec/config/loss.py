"""The section `loss`: a schema a loss, and the list of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gnnrec import extensions
from gnnrec.config.checks import at_least, mapping, one_of, positive, within
from gnnrec.errors import ConfigError

PRECISIONS = ("auto", "float32", "bfloat16")  # of products


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
    temperature: float | None = 0.1
    negatives: int | None = None
    in_batch: bool = False
    popularity: float | None = None
    correction: bool | None = None
    prior: float = 0.0
    user_power: float = 1.0
    positive_temperature: float | None = None
    precision: str = "auto"

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used, or has no effect."""
        if self.temperature is not None:
            positive("loss.temperature", self.temperature)
        at_least("loss.negatives", self.negatives, 1)
        if self.in_batch and self.negatives is not None:
            raise ConfigError("goes not with loss.negatives", where="loss.in_batch", remedy="Leave one of them out")
        for name in ("popularity", "correction"):
            drawn = self.negatives is not None or (self.in_batch and name == "correction")
            if not drawn and getattr(self, name) is not None:
                needed = "loss.negatives" + " or loss.in_batch" * (name == "correction")
                remedy = f"Set {needed}, or leave loss.{name} out"
                raise ConfigError(f"has no effect without {needed}", where=f"loss.{name}", remedy=remedy)
        if self.popularity is not None:
            within("loss.popularity", self.popularity, -1, 1)
        within("loss.prior", self.prior, -2, 2)
        within("loss.user_power", self.user_power, 0, 1)
        if self.positive_temperature is not None:
            positive("loss.positive_temperature", self.positive_temperature)
        one_of("loss.precision", self.precision, PRECISIONS)


@dataclass
class SquaredConfig:
    """Squared error over all pairs of the batch's users and all items (Hu et al. 2008)."""

    name: str = "squared"
    negative_weight: float = 0.1
    user_power: float = 0.0
    item_power: float = 0.0
    reg: float = 0.0
    reg_power: float = 1.0

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used."""
        positive("loss.negative_weight", self.negative_weight)
        within("loss.user_power", self.user_power, -2, 2)
        within("loss.item_power", self.item_power, -2, 2)
        at_least("loss.reg", self.reg, 0)
        within("loss.reg_power", self.reg_power, 0, 1)
        if not self.reg and self.reg_power != 1:
            remedy = "Set loss.reg, or leave loss.reg_power out"
            raise ConfigError("has no effect with loss.reg=0", where="loss.reg_power", remedy=remedy)


@dataclass
class DirectAUConfig:
    """Alignment and uniformity on the sphere (Wang et al. 2022)."""

    name: str = "directau"
    uniformity: float = 1.0
    t: float = 2.0
    precision: str = "auto"

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used."""
        positive("loss.uniformity", self.uniformity)
        positive("loss.t", self.t)
        one_of("loss.precision", self.precision, PRECISIONS)


@dataclass
class CustomLossConfig:
    """A loss of a user's own package, with the batches that it takes."""

    name: str = "custom"
    path: str | None = None
    options: Any = None  # dict[str, Any] | None
    batches: str = "triples"

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used, or code that is not allowed."""
        extensions.check("loss.path", self.path)
        mapping("loss.options", self.options)
        if extensions.is_path(self.batches):
            extensions.check("loss.batches", self.batches)
        else:
            one_of("loss.batches", self.batches, ("triples", "users"))


LossConfig = BPRConfig | SoftmaxConfig | SquaredConfig | DirectAUConfig | CustomLossConfig
LOSSES: dict[str, type[LossConfig]] = {
    "bpr": BPRConfig,
    "softmax": SoftmaxConfig,
    "squared": SquaredConfig,
    "directau": DirectAUConfig,
    "custom": CustomLossConfig,
}
