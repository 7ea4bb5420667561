"""Training whose state lies beside a GPU, in DRAM or files: the bits of one whose state lies on it.

For tests/interpreter, where the GPU is pretended, and tests/gpu. Their fixture `gpu` is the device that device=cuda
stands for, `sizes` how large the graph is and what is tried.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch

from gnnrec import models
from gnnrec.config import BPRConfig, LightGCNConfig, OptimizerConfig, TrainerConfig
from gnnrec.graph import BipartiteGraph
from gnnrec.memtier.files import TierFolder
from gnnrec.memtier.stores import FileStore, HostStore
from gnnrec.memtier.stream import Layout, Ring
from gnnrec.training.trainer import Trainer

STEPS = 3


class Sizes(NamedTuple):
    """Of a graph whose items are as popular as it goes, of a model, of blocks; and pairs of panel and ring."""

    users: int
    items: int
    edges: int
    dim: int
    batch: int
    block_bytes: int
    rings: tuple[tuple[int, int], ...]


@pytest.fixture(scope="module")
def graph(sizes):
    rng = np.random.default_rng(0)
    edges = rng.integers(sizes.users, size=sizes.edges), rng.zipf(1.3, sizes.edges) % sizes.items
    return BipartiteGraph.from_edges(*edges, sizes.users, sizes.items)


CASES = {
    "reg": ({}, BPRConfig(reg=0.01), OptimizerConfig(lr=0.01)),
    "hardest_adamw": (
        {"layer_weights": [0.1, 0.2, 0.7]},
        BPRConfig(negatives=3, hardest=True, reg=0.01),
        OptimizerConfig(name="adamw", lr=0.01, weight_decay=0.1),
    ),
    "one_layer": ({"layers": 1}, BPRConfig(negatives=2), OptimizerConfig(lr=0.01, weight_decay=1e-3)),
    "factors": ({"layers": 0}, BPRConfig(reg=0.01), OptimizerConfig(lr=0.01)),
}


def trained(model, sizes, loss, optimizer):
    trainer = Trainer(model, TrainerConfig(epochs=2, batch_size=sizes.batch), loss, optimizer, seed=1)
    losses = [float(trainer._step(step)) for step in range(STEPS)]
    trainer.learner.close()
    return trainer.learner, losses


def whole(matrix):
    return torch.cat([matrix.rows(block) for block in range(matrix.layout.blocks)])


@pytest.mark.parametrize("case", CASES)
def test_bits_are_those_of_a_gpu_for_every_panel_and_ring(graph, gpu, sizes, tmp_path, case):
    changes, loss, optimizer = CASES[case]
    settings = LightGCNConfig(**({"dim": sizes.dim, "layers": 2} | changes))
    model = models.build(settings, graph, 3)
    model.to(gpu)
    _, expected = trained(model, sizes, loss, optimizer)
    final = model.scorer()
    rings = sizes.rings if case == "reg" else sizes.rings[:1]
    for (width, ring), files in [*((ring, False) for ring in rings), (rings[0], True)]:
        with TierFolder(tmp_path / f"{width}-{ring}-{files}") as folder:
            store = FileStore(folder, Ring(ring), gpu) if files else HostStore(gpu, ring)
            alignment = folder.access.alignment if files else 64
            layout = Layout.of(graph.num_nodes, sizes.dim, width, alignment, sizes.block_bytes)
            streamed = models.StreamedLightGCN(graph, settings, store, layout, seed=3)
            learner, losses = trained(streamed, sizes, loss, optimizer)
            assert losses == expected
            assert torch.equal(whole(streamed.embedding), model.embedding.cpu())
            assert torch.equal(learner._largest.cpu(), model.embedding.detach().abs().max().cpu())
            ours = streamed.scorer()
            assert torch.equal(ours.user_factors, final.user_factors.cpu())
            assert torch.equal(ours.item_factors, final.item_factors.cpu())
            moved = {name: (x.read_bytes, x.write_bytes) for name, x in learner.actual.moved.items()}
            size = 4 * graph.num_nodes * sizes.dim
            for read, written in moved.values():
                assert STEPS * size <= written <= read  # the ring is read ahead of what there is to do
