"""What models draw: initial numbers, and the seeds of a step. On the CPU, so that every device has the same."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

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


def embedding_blocks(
    graph: BipartiteGraph, dim: int, std: float | None, generator: torch.Generator, blocks: Iterable[slice]
) -> Iterator[torch.Tensor]:
    """The rows of `embeddings` in consecutive blocks, the same numbers where dim is a multiple of 16: torch draws
    normal numbers in groups of 16, which no block may split."""
    for rows in blocks:
        block = torch.empty(rows.stop - rows.start, dim)
        if std is not None:
            yield block.normal_(0, std, generator=generator)
            continue
        users = max(0, min(graph.num_users, rows.stop) - rows.start)
        for part, count in ((block[:users], graph.num_users), (block[users:], graph.num_items)):
            bound = math.sqrt(6 / (count + dim))
            part.uniform_(-bound, bound, generator=generator)
        yield block


def step_seeds(seed: int, step: int, count: int) -> torch.Tensor:
    """As many seeds of operators as a step needs, a function of (seed, step): int64 [count], none of them negative."""
    words = np.random.SeedSequence(seed, spawn_key=(step,)).generate_state(count, np.uint64)
    return torch.from_numpy((words >> np.uint64(1)).astype(np.int64))
