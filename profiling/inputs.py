"""The dense inputs of the table's operations: random, the same for every contender."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from workload import RELATIONS, Tensors, Workload

LAYERS = 3
HEADS = 4
KERNELS, PSEUDO = 3, 2


def features(w: Workload) -> Tensors:
    return {"x": w.normal(0, w.nodes, w.dim)}


def bfloat16_features(w: Workload) -> Tensors:
    return {"x": features(w)["x"].bfloat16().float()}


def embeddings(w: Workload) -> Tensors:
    """Features as a model starts with."""
    return {"x": 0.1 * features(w)["x"]}


def weight(w: Workload, seed: int, *shape: int) -> torch.Tensor:
    """Weights that keep the size of what they are multiplied with."""
    return w.normal(seed, *shape) / math.sqrt(shape[-1])


def ngcf_inputs(w: Workload, layers: int = LAYERS) -> Tensors:
    tensors = features(w)
    for number in range(layers):
        for seed, name in enumerate(("1", "2"), 10 * number + 1):
            tensors[f"w{name}_{number}"] = weight(w, seed, w.dim, w.dim)
            tensors[f"b{name}_{number}"] = weight(w, seed + 2, w.dim)
    return tensors


def ngcf_layer_inputs(w: Workload) -> Tensors:
    return ngcf_inputs(w, 1)


def gat_inputs(w: Workload) -> Tensors:
    heads = HEADS, w.dim // HEADS
    attention = {"attn_row": weight(w, 2, *heads), "attn_col": weight(w, 3, *heads)}
    return features(w) | {"weight": weight(w, 1, w.dim, w.dim)} | attention


def edge_conv_inputs(w: Workload) -> Tensors:
    return features(w) | {"theta": weight(w, 1, w.dim, w.dim), "phi": weight(w, 2, w.dim, w.dim)}


def gmm_inputs(w: Workload) -> Tensors:
    return features(w) | {
        "pseudo": w.normal(1, w.adjacency.nnz, PSEUDO),
        "mu": w.normal(2, KERNELS, PSEUDO),
        "inv_sigma": 0.5 + w.normal(3, KERNELS, PSEUDO).abs(),
        "weight": weight(w, 4, KERNELS, w.dim, w.dim),
    }


def rgcn_inputs(w: Workload) -> Tensors:
    return features(w) | {"weights": weight(w, 1, RELATIONS, w.dim, w.dim), "root": weight(w, 2, w.dim, w.dim)}


def edge_rows(name: str) -> Callable[[Workload], Tensors]:
    return lambda w: {name: w.normal(0, w.adjacency.nnz, w.dim)}


def two_features(first: str, second: str) -> Callable[[Workload], Tensors]:
    return lambda w: {first: w.normal(0, w.nodes, w.dim), second: w.normal(1, w.nodes, w.dim)}


def users_and_items(w: Workload) -> Tensors:
    users, items = features(w)["x"].split([w.graph.num_users, w.graph.num_items])
    return {"users": users.contiguous(), "items": items.contiguous()}
