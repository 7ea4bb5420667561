"""gnnrec: train GNN recommenders with large batches on one machine, across its tiers of memory.

Names are imported on first use, so that `import gnnrec` and `gnnrec --help` are quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gnnrec import models, ops
    from gnnrec.data.interactions import IdMap, Interactions
    from gnnrec.data.readers import read_interactions, read_split
    from gnnrec.data.splits import split
    from gnnrec.errors import GnnrecError
    from gnnrec.estimators import GFCF, NGCF, LightGCN, Recipe, SimGCL, XSimGCL
    from gnnrec.graph.bipartite import BipartiteGraph
    from gnnrec.matrix import experiment

__version__ = "0.1.0"

_HOMES = {
    "BipartiteGraph": "gnnrec.graph.bipartite",
    "GFCF": "gnnrec.estimators",
    "GnnrecError": "gnnrec.errors",
    "IdMap": "gnnrec.data.interactions",
    "Interactions": "gnnrec.data.interactions",
    "LightGCN": "gnnrec.estimators",
    "NGCF": "gnnrec.estimators",
    "Recipe": "gnnrec.estimators",
    "SimGCL": "gnnrec.estimators",
    "XSimGCL": "gnnrec.estimators",
    "experiment": "gnnrec.matrix",
    "read_interactions": "gnnrec.data.readers",
    "read_split": "gnnrec.data.readers",
    "split": "gnnrec.data.splits",
}

__all__ = [
    "GFCF",
    "NGCF",
    "BipartiteGraph",
    "GnnrecError",
    "IdMap",
    "Interactions",
    "LightGCN",
    "Recipe",
    "SimGCL",
    "XSimGCL",
    "experiment",
    "models",
    "ops",
    "read_interactions",
    "read_split",
    "split",
]


def __getattr__(name: str) -> Any:
    if name in ("models", "ops"):
        return importlib.import_module(f"gnnrec.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'gnnrec' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
