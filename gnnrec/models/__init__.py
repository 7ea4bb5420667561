"""Models: nn.Modules that call operators and know nothing of training.

`build` is the explicit list of them; a new model is one file, one config schema and one line there.
"""

from __future__ import annotations

from gnnrec.config import GFCFConfig, ModelConfig, NGCFConfig
from gnnrec.graph.bipartite import BipartiteGraph
from gnnrec.models.gfcf import GFCF
from gnnrec.models.lightgcn import LightGCN
from gnnrec.models.ngcf import NGCF
from gnnrec.models.scorer import FactorScorer, FilterScorer, Scorer

__all__ = ["GFCF", "NGCF", "FactorScorer", "FilterScorer", "LightGCN", "Scorer", "build"]

Trainable = LightGCN | NGCF  # those with embeddings that a loss trains
Model = Trainable | GFCF


def build(config: ModelConfig, graph: BipartiteGraph, seed: int = 0) -> Model:
    """The model that `config` names, on this graph; parameters are drawn from `seed`."""
    if isinstance(config, GFCFConfig):
        return GFCF(graph, factors=config.factors, ideal_weight=config.ideal_weight, seed=seed)
    if isinstance(config, NGCFConfig):
        return NGCF(
            graph,
            dim=config.dim,
            layers=config.layers,
            negative_slope=config.negative_slope,
            node_dropout=config.node_dropout,
            message_dropout=config.message_dropout,
            init_std=config.init_std,
            similarity=config.similarity,
            popularity=config.popularity,
            seed=seed,
        )
    return LightGCN(
        graph,
        dim=config.dim,
        layers=config.layers,
        layer_weights=config.layer_weights,
        init=config.init,
        init_std=config.init_std,
        similarity=config.similarity,
        popularity=config.popularity,
        seed=seed,
    )
