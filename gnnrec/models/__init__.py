"""Models: nn.Modules that call operators and know nothing of training.

`build` is the explicit list of them; a new model is one file, one config schema and one line there.
"""

from __future__ import annotations

from dataclasses import asdict

from gnnrec import extensions
from gnnrec.config import CustomModelConfig, GFCFConfig, ModelConfig, NGCFConfig, SimGCLConfig, XSimGCLConfig
from gnnrec.graph.bipartite import BipartiteGraph
from gnnrec.models.gfcf import GFCF
from gnnrec.models.lightgcn import LightGCN
from gnnrec.models.ngcf import NGCF
from gnnrec.models.rows import LightGCNRows, NGCFRows
from gnnrec.models.scorer import FactorScorer, FilterScorer, Ranker, Scorer
from gnnrec.models.simgcl import SimGCL, XSimGCL
from gnnrec.models.streamed import StreamedLightGCN
from gnnrec.models.streamed_ngcf import StreamedNGCF

__all__ = [
    "GFCF",
    "NGCF",
    "FactorScorer",
    "FilterScorer",
    "LightGCN",
    "LightGCNRows",
    "NGCFRows",
    "Ranker",
    "Rows",
    "Scorer",
    "SimGCL",
    "Streamed",
    "StreamedLightGCN",
    "StreamedNGCF",
    "XSimGCL",
    "build",
]

Trainable = LightGCN | NGCF  # those with embeddings that a loss trains; SimGCL and XSimGCL are kinds of LightGCN
NEEDED = ("embedding", "graph", "similarity", "scorer")  # what a user's own model must have, as LightGCN has it
Model = Trainable | GFCF
Streamed = StreamedLightGCN | StreamedNGCF  # those with embeddings in files
Rows = LightGCNRows | NGCFRows  # those of which this process has some nodes


def build(config: ModelConfig, graph: BipartiteGraph, seed: int = 0, columns: slice | None = None) -> Model:
    """The model that `config` names, on this graph; parameters are drawn from `seed`. Of LightGCN, some of the columns
    may be held alone."""
    if isinstance(config, GFCFConfig):
        return GFCF(graph, factors=config.factors, ideal_weight=config.ideal_weight, seed=seed)
    if isinstance(config, CustomModelConfig):
        custom: LightGCN = extensions.make("model", config.path, NEEDED, config.options, graph, seed=seed)
        return custom
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
    if isinstance(config, SimGCLConfig):
        options = {name: value for name, value in asdict(config).items() if name != "name"}
        return (XSimGCL if isinstance(config, XSimGCLConfig) else SimGCL)(graph, **options, seed=seed)
    adds = columns is None or columns.stop == config.dim  # one process does, behind all columns
    return LightGCN(
        graph,
        dim=config.dim,
        layers=config.layers,
        layer_weights=config.layer_weights,
        init=config.init,
        init_std=config.init_std,
        similarity=config.similarity,
        popularity=config.popularity if adds else 0.0,
        seed=seed,
        columns=columns,
    )
