"""A training that is divided among several ranks: the graph and the data of each, its model, its memory."""

from __future__ import annotations

import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from gnnrec import device as devices
from gnnrec import models
from gnnrec.config import LightGCNConfig, NGCFConfig, TrainConfig
from gnnrec.data.dataset import Dataset
from gnnrec.graph.bipartite import BipartiteGraph
from gnnrec.graph.rows import GraphRows
from gnnrec.memtier import nodes
from gnnrec.memtier.demands import HeldOut
from gnnrec.memtier.shares import Share, Shares, of_columns, of_rows
from gnnrec.memtier.workload import Workload
from gnnrec.ranks import Ranks
from gnnrec.training.column_parallel import columns_of
from gnnrec.training.scaling import scaled


def by_rows(config: TrainConfig, ranks: Ranks) -> bool:
    """Whether several ranks have rows each."""
    return ranks.backend is not None and config.distributed.by_rows(config.model)


def cut(data: Dataset, ranks: Ranks) -> tuple[GraphRows, Dataset]:
    """What this rank has, in rows, of the training graph, and of the data."""
    ranks.doing = "the cut of the graph"
    train = data.train
    graph = GraphRows(train.users, train.items, train.num_users, train.num_items, ranks)
    return graph, data.of_users(graph.own_users)


def columns(config: TrainConfig, ranks: Ranks) -> slice | None:
    """Those that this rank has of the embeddings; None where a single process was started, or ranks have rows."""
    if ranks.backend is None or by_rows(config, ranks):
        return None
    assert isinstance(config.model, LightGCNConfig)
    return columns_of(config.model.dim, ranks.rank, ranks.size)


def shares(
    config: TrainConfig, graph: BipartiteGraph | GraphRows, held_out: HeldOut, columns: slice | None, ranks: Ranks
) -> Shares | None:
    """What every rank takes of its memory, where that is asked for.

    Args:
        config: of the training.
        graph: the training graph, or this rank's rows.
        held_out: what this rank ranks.
        columns: that it has, where it has no rows.
        ranks: that all ask.

    Raises:
        GnnrecError: any rank has no room.
    """
    if ranks.backend is None or config.memory.name != "auto":
        return None
    assert config.loss is not None
    assert config.trainer is not None
    trainer, loss = scaled(config.trainer, config.loss, graph)
    settings = {"model": config.model, "loss": loss, "optimizer": config.optimizer, "trainer": trainer}
    work = Workload.of(graph, **settings, held_out=held_out, threads=1, cache_bytes=0)
    split = "columns" if columns is not None else "rows"
    valid = any(ranks.each(lambda: held_out.valid))

    def own() -> dict[str, Any]:
        if isinstance(graph, GraphRows):
            tensors = of_rows(work, graph, valid=valid)
        else:
            assert columns is not None
            tensors = of_columns(work, columns.stop - columns.start, ranks.size)
        # In memory already, so that free memory is beside it; the adjacency of columns is not made yet.
        held = sum(tensors[name] for name in (("graph", "interactions") if columns is None else ("interactions",)))
        free = nodes.room(Path("/"))
        mine = None if free is None else free // ranks.beside + held
        share = Share(ranks.rank, socket.gethostname(), config.memory.limit_bytes, mine, tensors)
        share.check(split)
        return asdict(share)

    return Shares(split, [Share(**found) for found in ranks.each(own)])


def build(config: TrainConfig, graph: GraphRows, device: torch.device) -> models.Rows:
    """The model of which this process has some nodes.

    Raises:
        DeviceMemoryError: no room on the GPU.
    """
    with devices.memory_errors("the model", lower="model.dim"):
        if isinstance(config.model, LightGCNConfig):
            return models.LightGCNRows(graph, config.model, config.seed, device)
        assert isinstance(config.model, NGCFConfig)
        return models.NGCFRows(graph, config.model, config.seed, device)
