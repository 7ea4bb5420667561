"""What models draw: initial numbers, and the seeds of a step. On the CPU, so that every device has the same."""

from __future__ import annotations

import math

import numpy as np
import torch

from gnnrec.graph.bipartite import BipartiteGraph


def xavier(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """Xavier's uniform distribution, float32 [rows, columns]."""
    bound = math.sqrt(6 / (rows + columns))
    return torch.empty(rows, columns).uniform_(-bound, bound, generator=generator)


def embeddings(graph: BipartiteGraph, dim: int, std: float | None, generator: torch.Generator) -> torch.Tensor:
    """Of users, then items, float32 [num_users + num_items, dim]: N(0, std), or for None Xavier's, users and items
    apart."""
    if std is None:
        return torch.cat([xavier(count, dim, generator) for count in (graph.num_users, graph.num_items)])
    return torch.empty(graph.num_nodes, dim).normal_(0, std, generator=generator)


def step_seeds(seed: int, step: int, count: int) -> torch.Tensor:
    """As many seeds of operators as a step needs, a function of (seed, step): int64 [count], none of them negative."""
    words = np.random.SeedSequence(seed, spawn_key=(step,)).generate_state(count, np.uint64)
    return torch.from_numpy((words >> np.uint64(1)).astype(np.int64))
