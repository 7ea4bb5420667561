"""LightGCN and NGCF on several ranks' rows: the numbers of one process. The ranks are threads here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pretend_ranks import together

from gnnrec import models
from gnnrec.config import (
    BPRConfig,
    LightGCNConfig,
    NGCFConfig,
    OptimizerConfig,
    TrainerConfig,
)
from gnnrec.data import synthetic
from gnnrec.data.interactions import IdMap, Interactions
from gnnrec.graph.rows import GraphRows
from gnnrec.ranks import Ranks
from gnnrec.training import checkpoint
from gnnrec.training.resident import Resident
from gnnrec.training.row_parallel import RowParallel, RowParallelLayers
from gnnrec.training.run import graph_of
from gnnrec.training.sampler import TripleSampler

BATCH, STEPS = 512, 4
LIGHTGCN = [LightGCNConfig(dim=32, layers=2), LightGCNConfig(dim=20, layers=1), LightGCNConfig(dim=16, layers=0)]
NGCF = [
    NGCFConfig(dim=32, layers=2, message_dropout=0.1, node_dropout=0.2, init_std=0.1),
    NGCFConfig(dim=16, layers=1, message_dropout=0.0),
]
LOSSES = [BPRConfig(reg=0.0), BPRConfig(reg=0.1, negatives=2, popularity=0.5, hardest=True)]


@pytest.fixture(scope="module")
def log():
    return synthetic.generate(200, 150, 3000, communities=4, seed=0).log


@pytest.fixture(scope="module")
def graph(log):
    return graph_of(log)


def rows(log, ranks: Ranks) -> GraphRows:
    return GraphRows(log.users, log.items, log.num_users, log.num_items, ranks)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_edge_is_one_ranks_each_way(log, graph, size):
    whole, nodes = graph.norm_adjacency(), graph.num_nodes
    parts = together(size, lambda ranks: rows(log, ranks))
    assert torch.cat([part.numbers for part in parts]).sort().values.tolist() == list(range(nodes))
    assert sum(len(part.user_items) for part in parts) == graph.num_edges
    for part in parts:
        chosen = whole.select_rows(part.numbers)
        for name in ("indptr", "indices", "row_scale", "col_scale"):
            assert torch.equal(getattr(part.matrix, name), getattr(chosen, name))
        assert torch.equal(part.indptr, whole.indptr)
        assert np.array_equal(part.user_degrees, graph.user_degrees)
        assert np.array_equal(part.item_degrees, graph.item_degrees)
        users = torch.arange(part.own_users.start, part.own_users.stop)
        assert torch.equal(part.user_item().select_rows(users).indices, graph.user_item().select_rows(users).indices)
        assert part.matrix.nnz < 1.2 * 2 * graph.num_edges / size  # about as many as any other rank has


def test_rows_are_put_together_in_the_order_that_is_asked_for(log):
    nodes = torch.tensor([349, 3, 200, 0, 199, 3, 260])

    def work(ranks: Ranks) -> torch.Tensor:
        part = rows(log, ranks)
        which, here = part.here(nodes)
        assert torch.equal(part.numbers[here], nodes[which])
        every = torch.zeros(part.num_nodes, 1)
        part.spread(part.numbers[:, None].float(), every)
        assert torch.equal(every[:, 0], torch.arange(350.0))
        return part.collect(nodes, nodes[which])

    assert all(torch.equal(found, nodes) for found in together(3, work))


@pytest.mark.parametrize("model", [LIGHTGCN[0], NGCF[0]])
def test_a_rank_may_have_no_node(model):
    users, items = np.array([0, 0, 1], np.int32), np.array([0, 1, 1], np.int32)
    few = Interactions(users, items, IdMap.range(2), IdMap.range(3))
    one = resident(graph_of(few), model, LOSSES[1])
    expected = [float(one.step(k, 1e-2)) for k in range(STEPS)]
    losses, state = trained(few, 5, model, LOSSES[1])
    assert losses == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(state["model.embedding"], one.model.embedding.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"negatives": 3, "popularity": 0.5}])
def test_ranks_draw_the_batches_of_one_process(log, graph, options):
    one = TripleSampler(graph, BATCH, seed=3, **options)

    def work(ranks: Ranks) -> list[torch.Tensor]:
        mine = TripleSampler(rows(log, ranks), BATCH, seed=3, **options)
        return [mine.batch(step)[0] for step in (0, 7)]

    for found in together(3, work):
        assert all(torch.equal(batch, one.batch(step)[0]) for batch, step in zip(found, (0, 7), strict=True))


def learner(log, ranks: Ranks, model: LightGCNConfig | NGCFConfig, loss: BPRConfig) -> RowParallel:
    kind, made = rows(log, ranks), (TrainerConfig(batch_size=BATCH), loss, OptimizerConfig(), 5)
    if isinstance(model, NGCFConfig):
        return RowParallelLayers(models.NGCFRows(kind, model, 1, torch.device("cpu")), *made)
    return RowParallel(models.LightGCNRows(kind, model, 1, torch.device("cpu")), *made)


def resident(graph, model: LightGCNConfig | NGCFConfig, loss: BPRConfig) -> Resident:
    return Resident(models.build(model, graph, 1), TrainerConfig(batch_size=BATCH), loss, OptimizerConfig(), 5)


def whole(parts: list[checkpoint.Parts]) -> torch.Tensor:
    every = {first: part for found in parts for first, part in found.parts.items()}
    return torch.cat([every[first] for first in sorted(every)])


def trained(log, size: int, model: LightGCNConfig | NGCFConfig, loss: BPRConfig) -> tuple[list[float], dict]:
    """The losses of steps, and the state afterwards, of all ranks together."""

    def work(ranks: Ranks) -> tuple[list[float], dict]:
        mine = learner(log, ranks, model, loss)
        losses = [float(mine.step(k, 1e-2)) for k in range(STEPS)]
        mine.keep_best()
        return losses, mine.state()

    results = together(size, work)
    assert all(losses == results[0][0] for losses, _ in results)  # so that all decide the same
    first, states = results[0][1], [state for _, state in results]
    split = {name for name, value in first.items() if isinstance(value, checkpoint.Parts)}
    assert all(state.keys() == split for state in states[1:])
    return results[0][0], first | {name: whole([state[name] for state in states]) for name in split}


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("model", LIGHTGCN)
def test_lightgcn_has_the_bits_of_one_process(log, graph, model, loss, size):
    one = resident(graph, model, loss)
    expected = [float(one.step(k, 1e-2)) for k in range(STEPS)]
    one.keep_best()
    losses, state = trained(log, size, model, loss)
    assert losses == pytest.approx(expected, rel=1e-6)
    assert state.keys() == one.state().keys()
    assert all(torch.equal(value, state[name]) for name, value in one.state().items())


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("model", NGCF)
def test_ngcf_has_the_numbers_of_one_process(log, graph, model, loss, size):
    """Dropout included, within float32 rounding of the sums of weights' gradients; with one rank to the bit."""
    one = resident(graph, model, loss)
    expected = [float(one.step(k, 1e-2)) for k in range(STEPS)]
    one.keep_best()
    losses, state = trained(log, size, model, loss)
    assert losses == pytest.approx(expected, rel=1e-6)
    assert state.keys() == one.state().keys()
    for name, value in one.state().items():
        tolerance = {"rtol": 0, "atol": 0} if size == 1 else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(state[name], value, **tolerance)


@pytest.mark.parametrize("model", [*LIGHTGCN[:1], *NGCF[:1]])
def test_a_step_exchanges_rows_of_layers_and_of_the_batch(log, model):
    found = together(2, lambda ranks: stepped(learner(log, ranks, model, BPRConfig(reg=0.1))))
    actual, nodes = found[0]
    layers, dim = model.layers, model.dim
    spreads = 2 * layers - 1 if layers else 1  # the gradient of the last layer is of the batch's rows
    wide = (layers + 2) * dim if isinstance(model, NGCFConfig) else dim
    batch = STEPS * BATCH * 2 * 4  # a positive and a negative
    assert actual.gathered == STEPS * spreads * 350 * dim * 4 + nodes * wide * 4 + batch
    weights = layers * (2 * dim * dim + 2 * dim) if isinstance(model, NGCFConfig) else 0
    assert actual.totalled == STEPS * 4 * (weights + 3)


def stepped(mine: RowParallel):
    """What steps took, and how many nodes their batches had together."""
    nodes = 0
    for k in range(STEPS):
        nodes += len(mine.sampler.batch(k)[0].unique())
        mine.step(k, 1e-2)
    return mine.actual, nodes
