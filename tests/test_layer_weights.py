"""LightGCN whose layer weights are learned: a parameter that goes where the embeddings go."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gnnrec import models
from gnnrec.config import BPRConfig, DataConfig, LightGCNConfig, OptimizerConfig, SyntheticConfig, TrainConfig
from gnnrec.config import TrainerConfig as Loop
from gnnrec.graph import BipartiteGraph
from gnnrec.ops._numba import num_threads
from gnnrec.ops._operator import dense
from gnnrec.training import run
from gnnrec.training.trainer import Trainer

USERS, ITEMS = 40, 50
LOGITS = torch.tensor([0.5, -1.0, 0.2])
DATA = DataConfig(
    source="synthetic",
    name="synthetic",
    synthetic=SyntheticConfig(num_users=60, num_items=90, num_interactions=900, communities=3),
)


@pytest.fixture(scope="module")
def graph() -> BipartiteGraph:
    rng = np.random.default_rng(0)
    return BipartiteGraph.from_edges(rng.integers(0, USERS - 2, 400), rng.integers(0, ITEMS - 3, 400), USERS, ITEMS)


def learned(graph, **options):
    return models.LightGCN(graph, dim=8, layers=2, layer_weights="learned", **options)


def test_they_start_at_the_mean(graph):
    model, mean = learned(graph), models.LightGCN(graph, dim=8, layers=2)
    assert model.layer_weights == pytest.approx([1 / 3] * 3)
    assert (model() - mean()).abs().max() < 1e-7
    assert [name for name, _ in model.named_parameters()] == ["embedding", "layer_logits"]
    assert [name for name, _ in mean.named_parameters()] == ["embedding"]
    with pytest.raises(ValueError, match="numbers, 'learned' or None, got 'mean'"):
        models.LightGCN(graph, layer_weights="mean")


def test_gradients_are_those_of_the_dense_layers(graph):
    model = learned(graph).double()
    model.layer_logits.data = LOGITS.double()
    matrix, upstream = dense(graph.norm_adjacency(), torch.float64), torch.randn(USERS + ITEMS, 8).double()
    ego, logits = model.embedding.detach().clone().requires_grad_(), LOGITS.double().requires_grad_()
    weights, expected = logits.softmax(0), ego * 0
    for layer in range(3):
        expected = expected + weights[layer] * torch.linalg.matrix_power(matrix, layer) @ ego
    found = model()
    assert (found - expected).abs().max() < 1e-12
    for got, wanted in zip(
        torch.autograd.grad(found, (model.embedding, model.layer_logits), upstream),
        torch.autograd.grad(expected, (ego, logits), upstream),
    ):
        assert (got - wanted).abs().max() < 1e-12


def test_gradients_against_finite_differences():
    small = BipartiteGraph.from_edges(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 2]), 3, 4)
    model = models.LightGCN(small, dim=2, layers=2, layer_weights="learned").double()

    def function(embedding, logits):
        return torch.func.functional_call(model, {"embedding": embedding, "layer_logits": logits})

    given = model.embedding.detach().clone().requires_grad_(), LOGITS.double().requires_grad_()
    with num_threads(1):
        assert torch.autograd.gradcheck(function, given)
        assert torch.autograd.gradgradcheck(function, given)


def test_a_scorer_and_new_users_have_what_was_learned_so_far(graph):
    model, fixed = learned(graph), models.LightGCN(graph, dim=8, layers=2, layer_weights=LOGITS.softmax(0).tolist())
    model.layer_logits.data.copy_(LOGITS)
    history = graph.user_item()
    scorer, expected = model.scorer(), fixed.scorer()
    model.layer_logits.data.zero_()  # the scorer is frozen
    for ours, theirs in (
        (scorer.topk(torch.arange(USERS), 5, None), expected.topk(torch.arange(USERS), 5, None)),
        (scorer.topk_by_history(history, 5, None), expected.topk_by_history(history, 5, None)),
    ):
        assert (ours[1] - theirs[1]).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["adam", "adamw", "lamb", "lars", "rowwise_adagrad", "sgd"])
def test_every_optimiser_moves_them(graph, name):
    lr = {"lars": 0.05, "sgd": 0.5}.get(name, 0.01)
    model = learned(graph, seed=1)
    Trainer(model, Loop(epochs=5, batch_size=64), BPRConfig(), OptimizerConfig(name=name, lr=lr), seed=1).fit()
    assert model.layer_logits.isfinite().all()
    assert model.layer_logits.abs().max() > 1e-4


def test_equal_for_any_number_of_threads(thread_counts):
    """Enough nodes that torch would split the sum over all of them among threads."""
    rng = np.random.default_rng(0)
    graph = BipartiteGraph.from_edges(rng.integers(4000, size=60_000), rng.integers(3000, size=60_000), 4000, 3000)
    results = []
    for threads in thread_counts:
        with num_threads(threads):
            model = learned(graph, seed=1)
            Trainer(model, Loop(epochs=1, batch_size=20_000), BPRConfig(), OptimizerConfig(lr=0.1), seed=1).fit()
            results.append([x.detach().clone() for x in model.parameters()])
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_a_run_keeps_them_and_goes_on_with_them(tmp_path):
    model = LightGCNConfig(dim=8, layers=2, layer_weights="learned")
    sections = {"loss": BPRConfig(), "optimizer": OptimizerConfig(lr=0.05)}

    def config(epochs, **more):
        loop = Loop(epochs=epochs, batch_size=256, eval_every=1)
        return TrainConfig(data=DATA, model=model, trainer=loop, **sections, **more)

    done, summary = run.train(config(2), tmp_path / "run")
    assert summary["model"]["layer_weights"] == "learned"
    assert done.model.layer_logits.abs().max() > 0.01
    opened = run.open_run(tmp_path / "run")
    assert opened.model.layer_weights == done.model.layer_weights
    assert run.evaluate(opened, [20]) == summary["metrics"]
    longer = run.train(config(4, resume=True), tmp_path / "run")[0]
    whole = run.train(config(4), tmp_path / "whole")[0]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(longer.model.state_dict()[name], value), name
