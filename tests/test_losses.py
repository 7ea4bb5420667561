"""Losses of whole users beside dense restatements in float64."""

import pytest
import torch
import torch.nn.functional as F

from gnnrec import losses, ops
from gnnrec.config import DirectAUConfig, OptimizerConfig, SoftmaxConfig, SquaredConfig, TrainerConfig
from gnnrec.data import synthetic
from gnnrec.graph.bipartite import BipartiteGraph
from gnnrec.models import LightGCN
from gnnrec.ops.uniformity_loss import reference
from gnnrec.training.run import graph_of
from gnnrec.training.trainer import Trainer

USERS, ITEMS, DIM = 30, 40, 8


@pytest.fixture
def graph():
    generator = torch.Generator().manual_seed(0)
    users, items = (torch.randint(n, (200,), generator=generator).numpy() for n in (USERS - 2, ITEMS))
    return BipartiteGraph.from_edges(users, items, USERS, ITEMS)


@pytest.fixture
def tables():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(USERS + ITEMS, DIM, dtype=torch.float64, generator=generator) for _ in range(2)]


def gradients(loss, tables, *batch):
    inputs = [x.clone().requires_grad_() for x in tables]
    value = loss(*inputs, *batch)
    return [value.detach(), *torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True)]


def dense(graph, dtype=torch.float64):
    matrix = torch.zeros(USERS, ITEMS, dtype=dtype)
    row = torch.repeat_interleave(torch.arange(USERS), graph.user_item().indptr.diff())
    matrix[row, graph.user_item().indices.long()] = 1
    return matrix


def assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"user_power": 1.0, "item_power": -0.5, "reg": 0.1, "reg_power": 0.5}])
def test_squared_is_the_sum_over_all_pairs(graph, tables, options):
    config = SquaredConfig(negative_weight=0.2, **options)
    users, positives = torch.tensor([3, 0, 17, 29]), dense(graph)
    frequency = {1: positives.sum(1), 0: positives.sum(0)}
    powers = config.user_power, config.item_power
    weights = [(frequency[side].clamp(min=1) / frequency[side].mean()) ** power for side, power in zip((1, 0), powers)]
    decay = [(frequency[side] + 0.2 * n) ** config.reg_power for side, n in ((1, ITEMS), (0, USERS))]

    def expected(final, ego):
        scores = final[:USERS][users] @ final[USERS:].T
        mine = positives[users]
        total = (mine * (1 - scores) ** 2).sum()
        total = total + 0.2 * (weights[0][users, None] * weights[1] * scores**2).sum()
        total = total + config.reg * (decay[0][users, None] * ego[:USERS][users] ** 2).sum()
        total = total + config.reg * len(users) / USERS * (decay[1][:, None] * ego[USERS:] ** 2).sum()
        return total / mine.sum()

    assert_same(
        gradients(losses.Squared(config, graph, torch.device("cpu")), tables, users), gradients(expected, tables)
    )


def test_uniformity_of_distances_whose_exponentials_are_0_in_float32():
    x = torch.randn(23, 33, generator=torch.Generator().manual_seed(0))
    results = []
    for function, dtype in ((ops.uniformity_loss, torch.float32), (reference.uniformity_loss, torch.float64)):
        inputs = x.to(dtype).requires_grad_()
        value = function(inputs, t=200.0)
        results.append([value.detach().double(), torch.autograd.grad(value, inputs)[0].double()])
    for found, expected in zip(*results):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_uniformity_of_no_rows_is_0():
    x = torch.ones(3, 4, requires_grad=True)
    value = ops.uniformity_loss(x, rows=torch.empty(0, dtype=torch.int64))
    value.backward()
    assert value == 0
    assert not x.grad.any()


def test_directau_is_alignment_and_uniformity(graph, tables):
    config = DirectAUConfig(uniformity=0.7, t=1.5, precision="float32")
    loss, positives = losses.DirectAU(config, graph, torch.device("cpu")), dense(graph)
    loss.precision = torch.float64
    users = torch.tensor([3, 0, 17, 29])

    def spread(x):
        return torch.pdist(x).square().mul(-1.5).exp().mean().log()

    def expected(final, ego):
        mine, items = F.normalize(final[:USERS][users]), F.normalize(final[USERS:])
        row, col = positives[users].nonzero(as_tuple=True)
        aligned = (mine[row] - items[col]).square().sum(1).mean()
        return aligned + 0.7 * (spread(mine) + spread(items[col.unique()])) / 2

    assert_same(gradients(loss, tables, users), gradients(expected, tables))


@pytest.mark.parametrize(
    "config",
    [
        SquaredConfig(negative_weight=0.1, reg=1e-3),
        DirectAUConfig(precision="float32"),
        SoftmaxConfig(positive_temperature=0.2, precision="float32"),
    ],
    ids=lambda config: config.name,
)
def test_training_with_it_learns(config):
    graph = graph_of(synthetic.generate(200, 160, 2400, communities=4, seed=0).log)
    cosine = {} if config.name == "squared" else {"similarity": "cosine"}
    model = LightGCN(graph, dim=8, layers=1, **cosine)
    trainer = Trainer(model, TrainerConfig(epochs=8, batch_size=600), config, OptimizerConfig(lr=0.02))
    first = trainer.learner.loss(model(), model.embedding, *trainer.sampler.batch(0)).item()
    trainer.fit()
    assert trainer.learner.loss(model(), model.embedding, *trainer.sampler.batch(0)).item() < first - 0.1
