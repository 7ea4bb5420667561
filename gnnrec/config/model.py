"""The section `model`: a schema a model, and the list of them."""

from __future__ import annotations

from dataclasses import dataclass

from gnnrec.config.checks import at_least, one_of, positive, within
from gnnrec.errors import ConfigError


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
        within("model.dim", self.dim, 1, 4096)
        within("model.layers", self.layers, 0, 32)
        one_of("model.init", self.init, ("normal", "spectral"))
        positive("model.init_std", self.init_std)
        one_of("model.similarity", self.similarity, ("dot", "cosine"))
        within("model.popularity", self.popularity, -1, 1)
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
class GFCFConfig:
    """GF-CF (Shen et al. 2021), a graph filter in closed form."""

    name: str = "gfcf"
    factors: int = 256
    ideal_weight: float = 0.3

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used."""
        within("model.factors", self.factors, 1, 4096)
        at_least("model.ideal_weight", self.ideal_weight, 0)


MODELS: dict[str, type[LightGCNConfig] | type[NGCFConfig] | type[GFCFConfig]] = {
    "lightgcn": LightGCNConfig,
    "ngcf": NGCFConfig,
    "gfcf": GFCFConfig,
}
ModelConfig = LightGCNConfig | NGCFConfig | GFCFConfig
