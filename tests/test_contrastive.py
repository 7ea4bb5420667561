"""SimGCL and XSimGCL against the authors' equations in dense torch, and their way through training, runs and
recommendations."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid, normalize

import gnnrec
from gnnrec import losses, models, ops
from gnnrec.config import (
    BPRConfig,
    DataConfig,
    OptimizerConfig,
    SimGCLConfig,
    SoftmaxConfig,
    SyntheticConfig,
    TrainConfig,
    TrainerConfig,
    XSimGCLConfig,
)
from gnnrec.data import synthetic
from gnnrec.data.splits import split
from gnnrec.graph import BipartiteGraph, SparseMatrix
from gnnrec.models.draws import step_seeds
from gnnrec.ops._operator import dense
from gnnrec.ops.perturb.reference import perturb
from gnnrec.training import run, sampler
from gnnrec.training.evaluate import Evaluator
from gnnrec.training.trainer import Interrupted, Trainer

USERS, ITEMS, DIM, LAYERS = 40, 50, 8, 3
KINDS = [models.SimGCL, models.XSimGCL]
SETTINGS = {"dim": DIM, "layers": LAYERS, "eps": 0.1, "contrast_weight": 0.3, "contrast_temperature": 0.25}
BOTH = pytest.mark.parametrize("kind", KINDS, ids=["simgcl", "xsimgcl"])


@pytest.fixture(scope="module")
def graph() -> BipartiteGraph:
    rng = np.random.default_rng(0)
    return BipartiteGraph.from_edges(rng.integers(0, USERS - 2, 400), rng.integers(0, ITEMS - 3, 400), USERS, ITEMS)


@pytest.fixture(scope="module")
def parts():
    return split(synthetic.generate(200, 160, 2400, communities=4, seed=0).log, ratios=(0.8, 0.1, 0.1), seed=0)


def layers_of(matrix, ego, seeds=None, eps=0.1) -> list[torch.Tensor]:
    """The authors' loop over layers; with seeds each has its noise, which has no gradient."""
    layers = []
    for layer in range(LAYERS):
        ego = matrix @ ego
        if seeds is not None:
            ego = perturb(ego, eps, seed=seeds[layer])
        layers.append(ego)
    return layers


def info_nce(one, other, nodes, temperature) -> torch.Tensor:
    """The authors' InfoNCE with logarithms of sums."""
    one, other = normalize(one[nodes]), normalize(other[nodes])
    return ((one @ other.T / temperature).logsumexp(1) - (one * other).sum(1) / temperature).mean()


def restated(kind, matrix, ego, step, seed):
    """Final embeddings of a step, and its two views."""
    seeds = step_seeds(seed, step, 2 * LAYERS)
    if kind is models.SimGCL:
        means = [sum(layers_of(matrix, ego, each)) / LAYERS for each in (None, seeds[:LAYERS], seeds[LAYERS:])]
        return means[0], (means[1], means[2])
    layers = layers_of(matrix, ego, seeds)
    final = sum(layers) / LAYERS
    return final, (final, layers[1])


def make_model(kind, graph, **settings):
    extra = {"contrast_layer": 2} if kind is models.XSimGCL else {}
    return kind(graph, **SETTINGS | extra | settings)


@BOTH
def test_forward_loss_and_gradients_are_those_of_the_authors_code(graph, kind):
    model = make_model(kind, graph, seed=3).double()
    triples = torch.randint(USERS, (3, 64), generator=torch.Generator().manual_seed(0))
    triples[1:] += USERS
    model.start_step(5)
    plain = losses.build(BPRConfig(reg=0.01), graph, False, torch.device("cpu"))
    ours = losses.Contrastive(plain, model.views, model.contrast_weight, model.contrast_temperature)
    nodes = triples[0].unique(), triples[1].unique()
    got_final = model()
    got = ours(got_final, model.embedding, *nodes, triples)

    ego = model.embedding.detach().clone().requires_grad_()
    final, views = restated(kind, dense(graph.norm_adjacency(), torch.float64), ego, 5, 3)
    user, positive, negative = (final[each] for each in triples)
    loss = -logsigmoid((user * (positive - negative)).sum(dim=1)).mean()
    loss = loss + 0.01 / 2 * sum(ego[each].square().sum() for each in triples) / 64
    loss = loss + 0.3 * sum(info_nce(*views, each, 0.25) for each in nodes)
    assert (got_final - final).abs().max() < 1e-12
    assert float(got.detach()) == pytest.approx(float(loss.detach()), rel=1e-12)
    (gradient,), (wanted,) = (torch.autograd.grad(x, y) for x, y in ((got, model.embedding), (loss, ego)))
    assert (gradient - wanted).abs().max() < 1e-12 * max(1, wanted.abs().max())


@BOTH
def test_noise_follows_torch_or_the_step(graph, kind):
    model = make_model(kind, graph)

    def drawn(given=model):
        final = given()
        return torch.cat([final, *given.views()])

    torch.manual_seed(0)
    first, second = drawn(), drawn()
    torch.manual_seed(0)
    assert torch.equal(drawn(), first)
    assert not torch.equal(first, second)

    state = torch.get_rng_state()
    steps = []
    for step in (0, 1, 0, 2**40):
        model.start_step(step)
        steps.append(drawn())
        assert torch.equal(drawn(), steps[-1])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(steps[0], steps[2])
    for a, b in ((0, 1), (0, 3), (1, 3)):
        assert not torch.equal(steps[a], steps[b])
    other = make_model(kind, graph, seed=1)
    other.load_state_dict(model.state_dict())
    other.start_step(0)
    assert not torch.equal(drawn(other), steps[0])
    assert not torch.equal(*model.views()) if kind is models.SimGCL else True


def test_a_row_of_a_view_is_as_far_off_as_it_was_asked(graph):
    model = models.SimGCL(graph, dim=DIM, layers=1, eps=0.3)
    model.start_step(0)
    for view in model.views():
        distance = (view - model()).detach().norm(dim=1)
        active = model().detach().abs().min(dim=1).values > 0  # a node without edges has nothing to perturb
        assert active.sum() > USERS
        assert (distance[active] - 0.3).abs().max() < 1e-6
        assert (distance[~active] == 0).all()


def test_views_come_after_a_call_in_training_mode(graph):
    model = make_model(models.XSimGCL, graph)
    assert torch.equal(model.eval()(), models.SimGCL(graph, dim=DIM, layers=LAYERS)())
    with pytest.raises(AssertionError, match="training mode"):
        model.views()


@BOTH
def test_a_scorer_has_no_noise_leaves_the_mode_and_is_frozen(graph, kind):
    model = make_model(kind, graph)
    scorer, history = model.scorer(), graph.user_item()
    assert model.training
    before = scorer.topk(torch.arange(USERS), 5, None), scorer.topk_by_history(history, 5, None)
    layers = layers_of(dense(graph.norm_adjacency(), torch.float64), model.embedding.detach().double())
    final = sum(layers) / LAYERS
    scores = final[:USERS] @ final[USERS:].T
    assert (scores.sort(dim=1, descending=True).values[:, :5] - before[0][1]).abs().max() < 1e-6
    with torch.no_grad():
        model.embedding.add_(1)
    after = scorer.topk(torch.arange(USERS), 5, None), scorer.topk_by_history(history, 5, None)
    assert all(torch.equal(one[1], two[1]) for one, two in zip(before, after))


@BOTH
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_a_new_user_is_what_the_layers_give_one_without_an_ego_embedding(graph, kind, similarity):
    """Layer l of the new users is made from layer l - 1 of the items, to which the new edges do not count."""
    rows, old = [[4, 7, 11], [0, 30]], USERS + ITEMS
    model = make_model(kind, graph, init_std=0.5, similarity=similarity)
    matrix = torch.zeros(old + 2, old + 2, dtype=torch.float64)
    matrix[:old, :old] = dense(graph.norm_adjacency(), torch.float64)
    for row, items in enumerate(rows):
        for item in items:
            matrix[old + row, USERS + item] = 1 / np.sqrt(len(items) * graph.item_degrees[item])
    ego = torch.cat([model.embedding.detach().double(), torch.zeros(2, DIM)])
    final = sum(layers_of(matrix, ego)) / LAYERS
    final = final if similarity == "dot" else normalize(final)
    expected = final[old:] @ final[USERS:old].T
    history = SparseMatrix.from_csr([0, 3, 5], [*rows[0], *rows[1]], shape=(2, ITEMS))
    found, scores = model.scorer().topk_by_history(history, 10, None)
    assert (expected.sort(dim=1, descending=True).values[:, :10] - scores).abs().max() < 1e-5
    assert (expected.gather(1, found.long()) - scores).abs().max() < 1e-5


@pytest.mark.parametrize("loss", [BPRConfig(), SoftmaxConfig(negatives=20)], ids=["bpr", "softmax"])
def test_nodes_of_a_batch_are_its_users_and_their_positives(graph, loss):
    config = TrainerConfig(batch_size=120)
    plain = sampler.build(loss, graph, config, 1, pinned=False)
    for step in range(plain.steps_per_epoch + 1):
        users, items, *batch = sampler.WithNodes(plain, 1000).batch(step)
        given = plain.batch(step)
        assert all(torch.equal(a, b) for a, b in zip(batch, given, strict=True))
        if isinstance(loss, BPRConfig):
            expected = given[0][0].unique(), given[0][1].unique()
        else:
            rows = graph.user_item().select_rows(given[0])
            expected = given[0].unique(), rows.indices.long().unique() + USERS
        assert torch.equal(users, expected[0])
        assert torch.equal(items, expected[1])
        few = [sampler.WithNodes(plain, 10).batch(step)[:2] for _ in range(2)]
        for kept, all_, again in zip(few[0], expected, few[1], strict=True):
            assert len(kept.unique()) == len(kept) == min(10, len(all_))
            assert torch.isin(kept, all_).all()
            assert torch.equal(kept, again)


def make(parts, kind, *, epochs=4, loss=None, similarity="dot", valid=False, checkpoints=None, resume=False, lr=5e-3):
    graph = run.graph_of(parts[0])
    return Trainer(
        kind(graph, dim=20, layers=2, contrast_weight=0.02, contrast_nodes=60, similarity=similarity, seed=1),
        TrainerConfig(epochs=epochs, batch_size=256, eval_every=1, patience=2),
        loss or BPRConfig(),
        OptimizerConfig(lr=lr),
        seed=1,
        valid=Evaluator(parts[1], graph.user_item(), [20]) if valid else None,
        checkpoints=checkpoints,
        resume=resume,
    )


@BOTH
@pytest.mark.parametrize(
    ("loss", "similarity"),
    [
        (BPRConfig(), "dot"),
        (BPRConfig(negatives=3, hardest=True), "dot"),
        (SoftmaxConfig(precision="float32", negatives=50), "cosine"),
    ],
    ids=["bpr", "hardest", "softmax"],
)
def test_it_learns(parts, kind, loss, similarity):
    trainer = make(parts, kind, epochs=30, loss=loss, similarity=similarity)
    assert isinstance(trainer.learner.loss, losses.Contrastive)
    evaluator = Evaluator(parts[2], run.graph_of(parts[0]).user_item(), [20])
    before, first = evaluator(trainer.model.scorer())["recall@20"], float(trainer._step(0))
    trainer.fit()
    assert float(trainer._step(trainer.position.step - 1)) < first
    assert evaluator(trainer.model.scorer())["recall@20"] > before + 0.15


def test_the_contrastive_term_makes_embeddings_more_uniform(parts):
    """What it is for: the mean distance of users grows."""
    spread = []
    for weight in (1e-9, 1.0):
        graph = run.graph_of(parts[0])
        model = models.XSimGCL(graph, dim=20, contrast_weight=weight, seed=1)
        Trainer(model, TrainerConfig(epochs=20, batch_size=256), BPRConfig(), OptimizerConfig(lr=5e-3), seed=1).fit()
        users = normalize(model.eval()()[: graph.num_users].detach())
        spread.append(float(torch.pdist(users).square().mul(-2).exp().mean().log()))
    assert spread[1] < spread[0] - 0.2


@BOTH
@pytest.mark.parametrize("step", [0, 20])
def test_interrupted_and_resumed_is_bit_identical(parts, kind, tmp_path, monkeypatch, step):
    whole = make(parts, kind, valid=True)
    whole.fit()
    real = Trainer._step

    def interrupted(self, number):
        if number == step:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", interrupted)
        with pytest.raises(Interrupted):
            make(parts, kind, valid=True, checkpoints=tmp_path).fit()
    torch.manual_seed(99)  # another process draws other numbers
    resumed = make(parts, kind, valid=True, checkpoints=tmp_path, resume=True)
    assert resumed.position.step == step + 1
    resumed.fit()
    assert (resumed.position.loss_sum, resumed.position.best) == (whole.position.loss_sum, whole.position.best)
    assert torch.equal(resumed.model.embedding, whole.model.embedding)


@pytest.mark.parametrize("config", [SimGCLConfig(dim=DIM), XSimGCLConfig(dim=DIM, contrast_layer=2)])
def test_a_run_and_what_is_opened_of_it(tmp_path, config):
    size = SyntheticConfig(num_users=60, num_items=90, num_interactions=900, communities=3)
    data = DataConfig(source="synthetic", name="synthetic", synthetic=size)
    trainer = TrainerConfig(epochs=2, batch_size=256, eval_every=1)
    sections = {"loss": BPRConfig(), "optimizer": OptimizerConfig(), "trainer": trainer}
    whole = TrainConfig(data=data, model=config, **sections)
    done, summary = run.train(whole, tmp_path / "run")
    assert type(done.model) is (models.XSimGCL if config.name == "xsimgcl" else models.SimGCL)
    assert summary["model"]["name"] == config.name
    opened = run.open_run(tmp_path / "run")
    assert torch.equal(opened.model.eval()(), done.model.eval()())
    assert run.evaluate(opened, [20]) == summary["metrics"]
    four = replace(whole, trainer=replace(trainer, epochs=4))
    longer = run.train(replace(four, resume=True), tmp_path / "run")[0]
    assert torch.equal(longer.model.eval()(), run.train(four, tmp_path / "whole")[0].model.eval()())


@pytest.mark.parametrize("name", ["SimGCL", "XSimGCL"])
def test_the_estimators(parts, name):
    extra = {"contrast_layer": 2} if name == "XSimGCL" else {}
    options = {"eps": 0.05, "contrast_weight": 0.3, "contrast_temperature": 0.4} | extra
    estimator = getattr(gnnrec, name)(dim=DIM, layers=2, **options, epochs=2, batch_size=256)
    estimator.fit(parts[0], valid=parts[1])
    assert type(estimator.model) is getattr(models, name)
    assert {key: getattr(estimator.model, key) for key in options} == options
    assert len(estimator.recommend(k=3)) == 3 * parts[0].num_users
    assert len(estimator.recommend_new_users(parts[0], k=3)) == 3 * parts[0].num_users


def test_seeds_and_lengths_that_perturb_cannot_have():
    x = torch.ones(2, 3)
    for eps in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"perturb: eps must be at least 0 and finite, got {eps}"):
            ops.perturb(x, eps)
    for seed, found in ((3, "got int"), (torch.ones(2), r"got torch.float32 \[2\] on cpu")):
        with pytest.raises(ValueError, match=f"perturb: seed must be .*{found}"):
            ops.perturb(x, 0.1, seed=seed)
    assert ops.perturb(x[:0], 0.1).shape == (0, 3)
    assert ops.perturb(torch.tensor([[0.0, -0.0, torch.nan]]), 1.0)[0, :2].tolist() == [0.0, 0.0]
