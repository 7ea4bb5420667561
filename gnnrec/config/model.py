"""The section `model`: a schema a model, and the list of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gnnrec import extensions
from gnnrec.config.checks import at_least, mapping, one_of, positive, within
from gnnrec.errors import ConfigError


@dataclass
class LightGCNConfig:
    """LightGCN (He et al. 2020)."""

    name: str = "lightgcn"
    dim: int = 64
    layers: int = 3
    layer_weights: Any = None  # list[float] | str | None, which OmegaConf cannot check
    init: str = "normal"
    init_std: float = 0.1
    similarity: str = "dot"
    popularity: float = 0.0

    def __post_init__(self) -> None:
        """A single number is a list of one."""
        weights = self.layer_weights if isinstance(self.layer_weights, list) else [self.layer_weights]
        if all(map(_is_number, weights)):
            self.layer_weights = [float(weight) for weight in weights]

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used."""
        within("model.dim", self.dim, 1, 4096)
        within("model.layers", self.layers, 0, 32)
        one_of("model.init", self.init, ("normal", "spectral"))
        positive("model.init_std", self.init_std)
        one_of("model.similarity", self.similarity, ("dot", "cosine"))
        within("model.popularity", self.popularity, -1, 1)
        weights = self.layer_weights
        if weights == "learned" and self.layers == 0:
            remedy = "Set model.layers, or leave model.layer_weights out"
            raise ConfigError("is 'learned', but model.layers=0 has one", where="model.layer_weights", remedy=remedy)
        if weights is None or weights == "learned":
            return
        remedy = "Give one number for the embedding itself and one for each layer, learned, or null for the mean"
        if not (isinstance(weights, list) and all(map(_is_number, weights))):
            raise ConfigError(f"is {weights!r}", where="model.layer_weights", remedy=remedy)
        if len(weights) != self.layers + 1:
            found = f"has {len(weights)} numbers where model.layers={self.layers} needs {self.layers + 1}"
            raise ConfigError(found, where="model.layer_weights", remedy=remedy)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


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
        within("model.dim", self.dim, 1, 4096)
        within("model.layers", self.layers, 1, 32)
        at_least("model.negative_slope", self.negative_slope, 0)
        within("model.node_dropout", self.node_dropout, 0, 0.99)
        within("model.message_dropout", self.message_dropout, 0, 0.99)
        if self.init_std is not None:
            positive("model.init_std", self.init_std)
        one_of("model.similarity", self.similarity, ("dot", "cosine"))
        within("model.popularity", self.popularity, -1, 1)


@dataclass
class SimGCLConfig:
    """SimGCL (Yu et al. 2022). Defaults are the authors' settings for Yelp2018 (SELFRec, conf/SimGCL.yaml)."""

    name: str = "simgcl"
    dim: int = 64
    layers: int = 2
    eps: float = 0.1
    contrast_weight: float = 0.5
    contrast_temperature: float = 0.2
    contrast_nodes: int = 8192
    init_std: float | None = None
    similarity: str = "dot"
    popularity: float = 0.0

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used."""
        within("model.dim", self.dim, 1, 4096)
        within("model.layers", self.layers, 1, 32)
        within("model.eps", self.eps, 0, 1e3)
        positive("model.contrast_weight", self.contrast_weight)
        positive("model.contrast_temperature", self.contrast_temperature)
        at_least("model.contrast_nodes", self.contrast_nodes, 2)
        if self.init_std is not None:
            positive("model.init_std", self.init_std)
        one_of("model.similarity", self.similarity, ("dot", "cosine"))
        within("model.popularity", self.popularity, -1, 1)


@dataclass
class XSimGCLConfig(SimGCLConfig):
    """XSimGCL (Yu et al. 2023). Defaults are the authors' settings for Yelp2018 (SELFRec, conf/XSimGCL.yaml)."""

    name: str = "xsimgcl"
    eps: float = 0.2
    contrast_weight: float = 0.2
    contrast_temperature: float = 0.15
    contrast_layer: int = 1

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used."""
        super().validate()
        within("model.contrast_layer", self.contrast_layer, 1, self.layers)


@dataclass
class GFCFConfig:
    """GF-CF (Shen et al. 2021), a graph filter in closed form."""

    name: str = "gfcf"
    factors: int = 256
    ideal_weight: float = 0.3

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used."""
        within("model.factors", self.factors, 1, 4096)
        at_least("model.ideal_weight", self.ideal_weight, 0)


@dataclass
class CustomModelConfig:
    """A model of a user's own package."""

    name: str = "custom"
    path: str | None = None
    options: Any = None  # dict[str, Any] | None

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used, or code that is not allowed."""
        extensions.check("model.path", self.path)
        mapping("model.options", self.options)


ModelConfig = LightGCNConfig | NGCFConfig | SimGCLConfig | XSimGCLConfig | GFCFConfig | CustomModelConfig
MODELS: dict[str, type[ModelConfig]] = {
    "lightgcn": LightGCNConfig,
    "ngcf": NGCFConfig,
    "simgcl": SimGCLConfig,
    "xsimgcl": XSimGCLConfig,
    "gfcf": GFCFConfig,
    "custom": CustomModelConfig,
}
