"""NGCF against the paper's equations in dense torch, and its way through training, runs and recommendations."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import leaky_relu, logsigmoid, normalize

import gnnrec
from gnnrec import models, ops
from gnnrec.config import (
    BPRConfig,
    DataConfig,
    NGCFConfig,
    OptimizerConfig,
    SoftmaxConfig,
    SyntheticConfig,
    TrainConfig,
    TrainerConfig,
)
from gnnrec.data import synthetic
from gnnrec.data.splits import split
from gnnrec.graph import BipartiteGraph, SparseMatrix
from gnnrec.ops._numba import num_threads
from gnnrec.training import run
from gnnrec.training.evaluate import Evaluator
from gnnrec.training.trainer import Interrupted, Trainer

USERS, ITEMS, DIM = 40, 50, 8
DROPOUT = {"message_dropout": 0.2, "node_dropout": 0.3}


@pytest.fixture(scope="module")
def graph() -> BipartiteGraph:
    rng = np.random.default_rng(0)
    return BipartiteGraph.from_edges(rng.integers(0, USERS - 2, 400), rng.integers(0, ITEMS - 3, 400), USERS, ITEMS)


@pytest.fixture(scope="module")
def parts():
    return split(synthetic.generate(200, 160, 2400, communities=4, seed=0).log, ratios=(0.8, 0.1, 0.1), seed=0)


def laplacian(graph) -> torch.Tensor:
    """The paper's matrix of 1 / sqrt(|N_u| |N_i|), dense."""
    dense = torch.zeros(graph.num_users, graph.num_items, dtype=torch.float64)
    dense[np.repeat(np.arange(graph.num_users), graph.user_degrees), torch.from_numpy(graph.user_items).long()] = 1
    degrees = torch.cat([dense.sum(1), dense.sum(0)]).clamp(min=1)
    whole = torch.zeros(graph.num_nodes, graph.num_nodes, dtype=torch.float64)
    whole[: graph.num_users, graph.num_users :] = dense
    whole += whole.T.clone()
    return whole / (degrees[:, None] * degrees).sqrt()


def doubles(model) -> dict[str, torch.Tensor]:
    return {name: x.detach().double().requires_grad_() for name, x in model.named_parameters()}


def restated(matrix, p, layers, slope=0.2) -> torch.Tensor:
    """Equations 7, 8 and 10 with lengths of one; `matrix` is the Laplacian."""
    layer = p["embedding"]
    outputs = [layer]
    identity = torch.eye(len(matrix), dtype=torch.float64)
    for n in range(layers):
        to_sum, to_product = (matrix + identity) @ layer, (matrix @ layer) * layer
        layer = to_sum @ p[f"w1.{n}"].T + to_product @ p[f"w2.{n}"].T + p[f"b1.{n}"] + p[f"b2.{n}"]
        layer = normalize(leaky_relu(layer, slope))
        outputs.append(layer)
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize(("layers", "slope", "std"), [(1, 0.2, 0.5), (3, 0.05, None)])
def test_it_is_the_paper_and_gradients_reach_every_parameter(graph, layers, slope, std):
    config = NGCFConfig(dim=DIM, layers=layers, negative_slope=slope, init_std=std)
    model = models.build(config, graph, seed=3)
    assert isinstance(model, models.NGCF)
    p = doubles(model)
    expected = restated(laplacian(graph), p, layers, slope)
    final = model.eval()()
    assert final.shape == (USERS + ITEMS, DIM * (layers + 1))
    assert (final - expected).abs().max() < 1e-6

    triples = torch.randint(USERS, (3, 64), generator=torch.Generator().manual_seed(0))
    triples[1:] += USERS
    user, positive, negative = (expected[nodes] for nodes in triples)
    loss = -logsigmoid((user * (positive - negative)).sum(dim=1)).mean()
    loss = loss + 0.01 / 2 * sum(p["embedding"][nodes].square().sum() for nodes in triples) / 64
    ours = ops.bpr_loss(final, model.embedding, triples, 0.01)
    assert float(ours.detach()) == pytest.approx(float(loss.detach()), rel=1e-6)
    gradients = torch.autograd.grad(ours, list(model.parameters()))
    for name, got, wanted in zip(p, gradients, torch.autograd.grad(loss, list(p.values())), strict=True):
        assert wanted.abs().max() > 0, name
        assert (got - wanted).abs().max() < 1e-5 * wanted.abs().max(), name


def test_the_published_l2_term_has_the_gradient_of_ours(graph):
    """The authors' is on the final embeddings, whose layers have the length 1 whatever the parameters."""
    model = models.NGCF(graph, dim=DIM, layers=2).eval()
    nodes = torch.arange(20)
    published = torch.autograd.grad(model()[nodes].square().sum(), list(model.parameters()))
    (ours,) = torch.autograd.grad(model.embedding[nodes].square().sum(), model.embedding)
    assert (published[0] - ours).abs().max() < 1e-5
    assert max(gradient.abs().max() for gradient in published[1:]) < 1e-5


def test_initial_numbers(graph):
    one, same, other = (models.NGCF(graph, dim=DIM, layers=2, seed=seed) for seed in (1, 1, 2))
    for a, b, c in zip(one.parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
    fans = {"w1": 2 * DIM, "w2": 2 * DIM, "b1": 1 + DIM, "b2": 1 + DIM}
    bounds = [(one.embedding[:USERS], USERS + DIM), (one.embedding[USERS:], ITEMS + DIM)]
    bounds += [(x, fan) for name, fan in fans.items() for x in getattr(one, name)]
    for x, fan in bounds:
        assert 0.6 * math.sqrt(6 / fan) < float(x.detach().abs().max()) <= math.sqrt(6 / fan)
    normal = models.NGCF(graph, dim=64, init_std=0.3).embedding.detach()
    assert abs(float(normal.std()) - 0.3) < 0.01


def test_dropout_follows_torch_or_the_step(graph):
    model = models.NGCF(graph, dim=DIM, layers=2, **DROPOUT)
    torch.manual_seed(0)
    first, second = model(), model()
    torch.manual_seed(0)
    assert torch.equal(model(), first)
    assert not torch.equal(first, second)

    state = torch.get_rng_state()
    steps = []
    for step in (0, 1, 0, 2**40):
        model.start_step(step)
        steps.append(model())
        assert torch.equal(model(), steps[-1])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(steps[0], steps[2])
    other = models.NGCF(graph, dim=DIM, layers=2, seed=1, **DROPOUT)
    other.load_state_dict(model.state_dict())
    other.start_step(0)
    for a, b in ((0, 1), (0, 3), (1, 3)):
        assert not torch.equal(steps[a], steps[b])
    assert not torch.equal(other(), steps[0])
    # Layers drop other numbers than each other.
    zero = steps[0][:, DIM:] == 0
    assert 0.1 < float(zero.float().mean()) < 0.3
    assert not torch.equal(zero[:, :DIM], zero[:, DIM:])


@pytest.mark.parametrize("training", [True, False])
def test_a_scorer_has_no_dropout_leaves_the_mode_and_is_frozen(graph, training):
    model = models.NGCF(graph, dim=DIM, layers=2, **DROPOUT).train(training)
    scorer = model.scorer()
    assert model.training == training
    history = graph.user_item()
    before = scorer.topk(torch.arange(USERS), 5, None), scorer.topk_by_history(history, 5, None)
    expected = restated(laplacian(graph), doubles(model), 2)
    scores = expected[:USERS] @ expected[USERS:].T
    assert (scores.sort(dim=1, descending=True).values[:, :5] - before[0][1]).abs().max() < 1e-5
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    after = scorer.topk(torch.arange(USERS), 5, None), scorer.topk_by_history(history, 5, None)
    for one, two in zip(before, after):
        assert torch.equal(one[1], two[1])


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_a_new_user_is_what_the_layers_give_one_without_an_ego_embedding(graph, similarity):
    """The graph with two more users, whose embeddings are 0 and whose edges the items do not know of."""
    layers, rows = 3, [[4, 7, 11], [0, 30]]
    model = models.NGCF(graph, dim=DIM, layers=layers, init_std=0.5, similarity=similarity, seed=1)
    p, old = doubles(model), USERS + ITEMS
    matrix = torch.zeros(old + 2, old + 2, dtype=torch.float64)
    matrix[:old, :old] = laplacian(graph)
    for row, items in enumerate(rows):
        for item in items:
            matrix[old + row, USERS + item] = 1 / math.sqrt(len(items) * graph.item_degrees[item])
    p["embedding"] = torch.cat([p["embedding"], torch.zeros(2, DIM)])
    final = restated(matrix, p, layers).detach()
    final = final if similarity == "dot" else normalize(final)
    expected = final[old:] @ final[USERS:old].T
    history = SparseMatrix.from_csr([0, 3, 5], [*rows[0], *rows[1]], shape=(2, ITEMS))
    got_items, got_scores = model.scorer().topk_by_history(history, 10, None)
    assert (expected.sort(dim=1, descending=True).values[:, :10] - got_scores).abs().max() < 1e-5
    assert (expected.gather(1, got_items.long()) - got_scores).abs().max() < 1e-5


def make(parts, *, epochs=4, loss=None, similarity="dot", valid=False, checkpoints=None, resume=False, lr=5e-3):
    graph = graph_of(parts)
    return Trainer(
        models.NGCF(graph, dim=20, layers=2, similarity=similarity, seed=1, **DROPOUT),
        TrainerConfig(epochs=epochs, batch_size=256, eval_every=1, patience=2),
        loss or BPRConfig(),
        OptimizerConfig(lr=lr),
        seed=1,
        valid=Evaluator(parts[1], graph.user_item(), [20]) if valid else None,
        checkpoints=checkpoints,
        resume=resume,
    )


def graph_of(parts) -> BipartiteGraph:
    return run.graph_of(parts[0])


@pytest.mark.parametrize(
    ("loss", "similarity"),
    [(BPRConfig(), "dot"), (SoftmaxConfig(precision="float32"), "cosine")],
    ids=["bpr", "softmax"],
)
def test_it_learns(parts, loss, similarity):
    trainer = make(parts, epochs=30, loss=loss, similarity=similarity)
    evaluator = Evaluator(parts[2], graph_of(parts).user_item(), [20])
    before, first = evaluator(trainer.model.scorer())["recall@20"], float(trainer._step(0))
    trainer.fit()
    last = float(trainer._step(trainer.position.step - 1))
    assert last < 0.8 * first
    assert evaluator(trainer.model.scorer())["recall@20"] > before + 0.2


@pytest.mark.parametrize("step", [0, 7, 20])
def test_interrupted_and_resumed_is_bit_identical(parts, tmp_path, monkeypatch, step):
    whole = make(parts, valid=True)
    whole.fit()
    real = Trainer._step

    def interrupted(self, number):
        if number == step:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", interrupted)
        with pytest.raises(Interrupted):
            make(parts, valid=True, checkpoints=tmp_path).fit()
    torch.manual_seed(99)  # another process draws other numbers
    resumed = make(parts, valid=True, checkpoints=tmp_path, resume=True)
    assert resumed.position.step == step + 1
    resumed.fit()
    assert (resumed.position.loss_sum, resumed.position.best) == (whole.position.loss_sum, whole.position.best)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_equal_for_any_number_of_threads(thread_counts):
    """Enough nodes and triples that every sum would be split among threads. No library product is in a step."""
    log = synthetic.generate(4000, 3000, 60_000, communities=4, seed=0).log
    results = []
    for threads in thread_counts:
        with num_threads(threads):
            graph = run.graph_of(log)
            model = models.NGCF(graph, dim=16, layers=2, seed=1, **DROPOUT)
            config = TrainerConfig(epochs=1, batch_size=40_000)
            Trainer(model, config, BPRConfig(), OptimizerConfig(), seed=1).fit()
            scorer = model.scorer()
            found = scorer.topk(torch.arange(99), 9, None)[1], scorer.topk_by_history(graph.user_item(), 9, None)[1]
            results.append([*(x.detach() for x in model.parameters()), *found])
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_a_run_and_what_is_opened_of_it(tmp_path):
    data = DataConfig(
        source="synthetic",
        name="synthetic",
        synthetic=SyntheticConfig(num_users=60, num_items=90, num_interactions=900, communities=3),
    )
    trainer = TrainerConfig(epochs=2, batch_size=256, eval_every=1)
    sections = {"loss": BPRConfig(), "optimizer": OptimizerConfig(), "trainer": trainer}
    config = TrainConfig(data=data, model=NGCFConfig(dim=DIM, layers=2), **sections)
    done, summary = run.train(config, tmp_path / "run")
    assert summary["model"]["name"] == "ngcf"
    opened = run.open_run(tmp_path / "run")
    assert torch.equal(opened.model.eval()(), done.model.eval()())
    assert run.evaluate(opened, [20]) == summary["metrics"]
    # Two epochs and then two more are four.
    four = replace(config, trainer=replace(trainer, epochs=4))
    longer = run.train(replace(four, resume=True), tmp_path / "run")[0]
    assert torch.equal(longer.model.eval()(), run.train(four, tmp_path / "whole")[0].model.eval()())


def test_the_estimator(parts):
    estimator = gnnrec.NGCF(dim=DIM, layers=2, message_dropout=0.2, node_dropout=0.1, epochs=2, batch_size=256)
    estimator.fit(parts[0], valid=parts[1])
    assert isinstance(estimator.model, models.NGCF)
    assert (estimator.model.message_dropout, estimator.model.node_dropout) == (0.2, 0.1)
    assert len(estimator.recommend(k=3)) == 3 * parts[0].num_users
    assert len(estimator.recommend_new_users(parts[0], k=3)) == 3 * parts[0].num_users
