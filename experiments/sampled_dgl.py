"""LightGCN as users of DGL train it on a part of the graph a step: neighbours of a batch's nodes are sampled, layer by
layer, and every worker has its share of the batch. Or, with a fan-out of 0, on the whole graph.

    python experiments/sampled_dgl.py '{"layers": 3, "fanout": 10, "batch": 16384, "ranks": 2}'

Prints a JSON object. DGL's own sampler, data loader, message passing, node embedding and sparse Adam; fields of `Case`
are the settings that `sampling.py` tunes.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import curves  # noqa: F401 - prepares the process

os.environ.setdefault("DGLBACKEND", "pytorch")

import torch
import torch.nn.functional as F

from gnnrec import ops
from gnnrec.config.recipes import composed
from gnnrec.data import dataset
from gnnrec.training.run import graph_of

REG = 1e-4  # of the ego embeddings, as published
LR = 1e-3
ALL, NONE = -1, 0  # neighbours
LEAST = 3  # steps
CLOSE = 1e-4  # of embeddings from all neighbours to those of the whole graph, relative to the largest


@dataclass(frozen=True)
class Case:
    """Settings of a training.

    Args:
        data: a data set of the catalog; dim: of embeddings; layers: of LightGCN.
        fanout: neighbours that are drawn for every node in every layer; -1: all; 0: nothing is drawn, every step is
            one of the whole graph.
        batch: pairs of a step, of all ranks together; ranks: processes; threads: of each.
        loaders: processes of each rank that sample ahead; 0: it samples by itself.
        optimizer: "sparse", DGL's Adam on the rows of a batch; "dense", torch's on everything.
        parts: 0, or of how many parts, cut by METIS, a single rank has the users of the first: it takes `batch` /
            `parts` pairs of these a step, as one worker of so many does.
        seconds: that steps may take in all.
    """

    layers: int
    fanout: int
    batch: int
    ranks: int = 1
    threads: int = 1
    loaders: int = 0
    optimizer: str = "sparse"
    parts: int = 0
    data: str = "gowalla"
    dim: int = 64
    seconds: float = 8.0


class Negatives:
    """One item for every pair, any with the same chance."""

    def __init__(self, users: int, nodes: int) -> None:
        self.users, self.nodes = users, nodes

    def __call__(self, graph: Any, edges: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        source, _ = graph.find_edges(edges)
        return source, torch.randint(self.users, self.nodes, (len(edges),))


class Whole:
    """Batches of an epoch as a sampler's, their blocks all the whole graph.

    Args:
        graph: both directions of every pair, those from users first; users, pairs: of it.
        case: the settings; rank: whose share of the batches it is.
    """

    def __init__(self, graph: Any, users: int, pairs: int, case: Case, rank: int) -> None:
        import dgl

        self.graph, self.users, self.pairs, self.case, self.rank = graph, users, pairs, case, rank
        self.everyone = torch.arange(graph.num_nodes())
        self.block = dgl.to_block(graph, self.everyone)
        self.shuffled = torch.Generator().manual_seed(0)  # the same for all ranks

    def __iter__(self) -> Iterator[Any]:
        import dgl

        nodes, share = len(self.everyone), self.case.batch // self.case.ranks
        order = torch.randperm(self.pairs, generator=self.shuffled)[self.rank :: self.case.ranks]
        for edges in order[: len(order) // share * share].split(share):
            both = self.graph.find_edges(edges), Negatives(self.users, nodes)(self.graph, edges)
            pairs, others = (dgl.graph(ends, num_nodes=nodes) for ends in both)
            pairs.ndata["_ID"] = self.everyone
            yield self.everyone, pairs, others, [self.block] * self.case.layers


class Training:
    """Graph, embeddings and optimiser of a rank.

    Args:
        case: the settings.
        rank: the number of this process.
    """

    def __init__(self, case: Case, rank: int) -> None:
        import dgl

        self.case, self.rank = case, rank
        self.bipartite = bipartite = graph_of(
            dataset.load(composed([f"data={case.data}", "data.valid_ratio=0"]).data).train
        )
        self.users, self.nodes, self.pairs = bipartite.num_users, bipartite.num_nodes, bipartite.num_edges
        items = torch.from_numpy(bipartite.user_items).long() + self.users
        ends = torch.arange(self.users).repeat_interleave(torch.from_numpy(bipartite.user_degrees)), items
        graph = dgl.graph((torch.cat(ends), torch.cat(ends[::-1])), num_nodes=self.nodes)
        self.part = dgl.metis_partition_assignment(graph, case.parts) if case.parts else None
        self.graph = graph.formats(["csc", "coo"])
        self.degrees = graph.in_degrees().float()
        self.norm = self.degrees.clamp(min=1).rsqrt()
        self.start = 0.1 * torch.randn(self.nodes, case.dim, generator=torch.Generator().manual_seed(0))
        if case.optimizer == "sparse":
            self.rows = dgl.nn.NodeEmbedding(self.nodes, case.dim, "embedding", init_func=lambda x: x.copy_(self.start))
            self.adam = dgl.optim.SparseAdam([self.rows], lr=LR)
        else:
            self.embedding: Any = torch.nn.Embedding.from_pretrained(self.start.clone(), freeze=False)
            if case.ranks > 1:
                self.embedding = torch.nn.parallel.DistributedDataParallel(self.embedding)
            self.adam = torch.optim.Adam(self.embedding.parameters(), lr=LR, fused=True)

    def loader(self) -> Any:
        """Batches of an epoch: input nodes, graphs of the pairs and of the negatives, blocks of the layers."""
        from dgl.dataloading import DataLoader, NeighborSampler, as_edge_prediction_sampler

        case, pairs = self.case, torch.arange(self.pairs)
        if case.fanout == NONE:
            return Whole(self.graph, self.users, self.pairs, case, self.rank)
        if self.part is not None:
            pairs = pairs[self.part[self.graph.find_edges(pairs)[0]] == 0]
        neighbours = NeighborSampler([case.fanout] * case.layers)
        sampler = as_edge_prediction_sampler(neighbours, negative_sampler=Negatives(self.users, self.nodes))
        share = max(1, case.batch // max(1, case.parts) // case.ranks)
        options = {"batch_size": share, "shuffle": True, "drop_last": True, "num_workers": case.loaders}
        return DataLoader(self.graph, pairs, sampler, use_ddp=case.ranks > 1, **options)

    def step(self, batch: Any) -> torch.Tensor:
        """Propagate over the blocks, differentiate, update."""
        inputs, pairs, others, blocks = batch
        ego = self.rows(inputs, "cpu") if self.case.optimizer == "sparse" else self.embedding(inputs)
        final = self.final(ego, blocks, pairs.num_nodes())
        (users, positive), (_, negative) = pairs.edges(), others.edges()
        difference = (final[users] * (final[negative] - final[positive])).sum(1)
        squares = sum(ego[nodes].square().sum() for nodes in (users, positive, negative))
        loss = F.softplus(difference).mean() + REG / 2 / len(users) * squares
        if self.case.optimizer == "dense":
            self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        return loss.detach()

    def final(self, ego: torch.Tensor, blocks: Any, count: int) -> torch.Tensor:
        """The mean over layers of the first nodes' embeddings; sampled neighbours' sum stands for that over all."""
        import dgl.function as fn

        x, total = ego, ego[:count]
        for block in blocks:
            source, target = block.srcdata["_ID"], block.dstdata["_ID"]
            with block.local_scope():
                block.srcdata["x"] = x * self.norm[source, None]
                block.update_all(fn.copy_u("x", "message"), fn.sum("message", "x"))
                drawn = block.in_degrees().clamp(min=1)
                x = block.dstdata["x"] * (self.norm[target] * self.degrees[target] / drawn)[:, None]
            total = total + x[:count]
        return total / (len(blocks) + 1)

    def check(self, batch: Any) -> None:
        """With all neighbours, embeddings are those of a propagation over the whole graph."""
        inputs, pairs, _, blocks = batch
        wanted = ops.lightgcn_propagate(self.bipartite.norm_adjacency(), self.start, num_layers=self.case.layers)
        found = self.final(self.start[inputs], blocks, pairs.num_nodes())
        off = (found - wanted[pairs.ndata["_ID"]]).abs().max() / wanted.abs().max()
        if off > CLOSE:
            raise SystemExit(f"embeddings of a block differ from those of the graph by {off:.1e}")


def measured(case: Case, rank: int = 0) -> dict[str, Any]:
    """As many steps as fit into the case's seconds; the first warms up, and is checked with all neighbours."""
    warnings.filterwarnings("ignore", message=".*CPU affinity.*")
    torch.set_num_threads(case.threads)
    training = Training(case, rank)
    rows, wanted = [], LEAST
    for number, (batch, seconds) in enumerate(timed(training, training.loader())):
        inputs, _, _, blocks = batch
        if number == 0:
            if case.fanout in (ALL, NONE) and case.ranks == 1:
                training.check(batch)
        elif number == 1:  # from here on all ranks have the same number in mind
            wanted = max(LEAST, int(case.seconds / agreed(seconds)))
        else:
            remote = 0 if training.part is None else int((training.part[inputs] != 0).sum())
            rows.append((seconds, sum(block.num_edges() for block in blocks), len(inputs), remote))
        if len(rows) == wanted:
            break
    names = ("step_seconds", "step_edges", "step_inputs", "step_remote_inputs")
    found = {name: statistics.median(row[place] for row in rows) for place, name in enumerate(names)}
    counts = {"pairs": training.pairs, "nodes": training.nodes, "directed_edges": 2 * training.pairs}
    return found | {"steps": len(rows)} | counts


def agreed(seconds: float) -> float:
    """What the first rank says."""
    import torch.distributed as dist

    said = [seconds]
    dist.broadcast_object_list(said)
    return said[0]


def timed(training: Training, loader: Any) -> Iterator[tuple[Any, float]]:
    """Batches, epoch after epoch, and what each took from asking for it to the end of its step."""
    while True:
        batches = iter(loader)
        started = time.perf_counter()
        for batch in batches:
            training.step(batch)
            yield batch, time.perf_counter() - started
            started = time.perf_counter()


def ranked(rank: int, case: Case, place: str) -> None:
    """A rank of several; the first prints, with the slowest one's seconds and everybody's edges."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=case.ranks)
    found = [None] * case.ranks
    dist.all_gather_object(found, measured(case, rank))
    if rank == 0:
        print(json.dumps(together(found)), flush=True)  # type: ignore[arg-type]
    dist.barrier()
    sys.stdout.flush()
    gc.collect()  # embeddings that processes share are gone with the last reference
    os._exit(0)  # at an interpreter's end DGL's threads sometimes abort the process


def together(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Of all ranks: a step ends with the slowest, and what they do adds up."""
    sums = {name: sum(rank[name] for rank in found) for name in ("step_edges", "step_inputs", "step_remote_inputs")}
    return found[0] | sums | {"step_seconds": max(rank["step_seconds"] for rank in found)}


def main(case: Case) -> None:
    """Measure a case and print it."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(ranked, (case, f"{folder}/meeting"), nprocs=case.ranks)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main(Case(**json.loads(sys.argv[1])))
