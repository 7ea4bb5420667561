"""What models draw: initial numbers, and the seeds of a step. On the CPU, so that every device has the same."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from gnnrec.graph.bipartite import BipartiteGraph
from gnnrec.graph.rows import GraphRows

Nodes = BipartiteGraph | GraphRows  # of which the counts are asked alone
BLOCK = 1 << 16  # rows that are drawn at a time


def xavier(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """Xavier's uniform distribution, float32 [rows, columns]."""
    bound = math.sqrt(6 / (rows + columns))
    return torch.empty(rows, columns).uniform_(-bound, bound, generator=generator)


def embeddings(graph: Nodes, dim: int, std: float | None, generator: torch.Generator) -> torch.Tensor:
    """Of users, then items, float32 [num_users + num_items, dim]: N(0, std), or for None Xavier's, users and items
    apart."""
    if std is None:
        return torch.cat([xavier(count, dim, generator) for count in (graph.num_users, graph.num_items)])
    return torch.empty(graph.num_nodes, dim).normal_(0, std, generator=generator)


def embedding_blocks(
    graph: Nodes, dim: int, std: float | None, generator: torch.Generator, blocks: Iterable[slice]
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


def embedding_columns(
    graph: BipartiteGraph, dim: int, std: float | None, generator: torch.Generator, columns: slice
) -> torch.Tensor:
    """These columns of `embeddings`. Where dim is a multiple of 16, the others are in memory a block at a time."""
    if dim % 16:
        return embeddings(graph, dim, std, generator)[:, columns].contiguous()
    result = torch.empty(graph.num_nodes, columns.stop - columns.start)
    for rows, block in _all_blocks(graph, dim, std, generator):
        result[rows] = block[:, columns]
    return result


def embedding_rows(
    graph: GraphRows, dim: int, std: float | None, generator: torch.Generator, shares: Sequence[slice]
) -> torch.Tensor:
    """These ranges of the rows of `embeddings`, as `embedding_columns` makes them."""
    if dim % 16:
        every = embeddings(graph, dim, std, generator)
        return torch.cat([every[share] for share in shares])
    result = torch.empty(sum(share.stop - share.start for share in shares), dim)
    for rows, block in _all_blocks(graph, dim, std, generator):
        place = 0
        for share in shares:
            first, last = max(rows.start, share.start), min(rows.stop, share.stop)
            if first < last:
                start = place + first - share.start
                result[start : start + last - first] = block[first - rows.start : last - rows.start]
            place += share.stop - share.start
    return result


def _all_blocks(
    graph: Nodes, dim: int, std: float | None, generator: torch.Generator
) -> Iterator[tuple[slice, torch.Tensor]]:
    """All rows of `embeddings`, with their numbers."""
    nodes = graph.num_nodes
    blocks = [slice(first, min(first + BLOCK, nodes)) for first in range(0, nodes, BLOCK)]
    return zip(blocks, embedding_blocks(graph, dim, std, generator, blocks), strict=True)


def step_seeds(seed: int, step: int, count: int) -> torch.Tensor:
    """As many seeds of operators as a step needs, a function of (seed, step): int64 [count], none of them negative."""
    words = np.random.SeedSequence(seed, spawn_key=(step,)).generate_state(count, np.uint64)
    return torch.from_numpy((words >> np.uint64(1)).astype(np.int64))
