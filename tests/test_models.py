"""Models, losses, scorers and the decomposition against plain torch and scipy."""

import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from gnnrec import models, ops
from gnnrec.config import GFCFConfig, LightGCNConfig
from gnnrec.graph.bipartite import BipartiteGraph
from gnnrec.graph.sparse import SparseMatrix
from gnnrec.models.spectral import spectral_embedding, truncated_svd
from gnnrec.ops import bpr_loss

USERS, ITEMS = 70, 90


@pytest.fixture(scope="module")
def graph() -> BipartiteGraph:
    rng = np.random.default_rng(0)
    return BipartiteGraph.from_edges(rng.integers(0, USERS - 2, 900), rng.integers(0, ITEMS - 3, 900), USERS, ITEMS)


def incidence(graph: BipartiteGraph) -> sp.csr_matrix:
    shape = (graph.num_users, graph.num_items)
    return sp.csr_matrix((np.ones(graph.num_edges), graph.user_items, graph.user_indptr), shape=shape)


def scaled(matrix: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Dense D_u^-1/2 R D_i^-1/2, and the item degrees to the power -1/2 and 1/2."""
    users, items = np.asarray(matrix.sum(1)).ravel(), np.asarray(matrix.sum(0)).ravel()
    inverse = [np.where(d > 0, 1 / np.sqrt(np.maximum(d, 1)), 0) for d in (users, items)]
    return inverse[0][:, None] * matrix.toarray() * inverse[1], inverse[1], np.sqrt(items)


def test_lightgcn_is_the_mean_over_layers(graph):
    model = models.build(LightGCNConfig(dim=8, layers=2), graph, seed=3)
    normal = scaled(incidence(graph))[0]
    adjacency = np.block([[np.zeros((USERS, USERS)), normal], [normal.T, np.zeros((ITEMS, ITEMS))]])
    start = model.embedding.detach().double().numpy()
    expected = (start + adjacency @ start + adjacency @ adjacency @ start) / 3
    assert np.abs(model().detach().numpy() - expected).max() < 1e-6
    assert {name for name, _ in model.named_parameters()} == {"embedding"}
    assert abs(float(model.embedding.detach().std()) - 0.1) < 0.01


def test_a_spectral_start(graph):
    """The leading part of the normalised matrix, to scale; with more columns than the graph has factors, too."""
    normal = scaled(incidence(graph))[0]
    left, values, right = np.linalg.svd(normal, full_matrices=False)
    start = spectral_embedding(graph, 8, 0.3, seed=1).double().numpy()
    linked = np.concatenate([graph.user_degrees, graph.item_degrees]) > 0
    assert np.sqrt((start[linked] ** 2).mean()) == pytest.approx(0.3, rel=1e-5)
    product = np.where(linked[:, None], start, 0)
    product = product[:USERS] @ product[USERS:].T
    expected = (left[:, :8] * values[:8]) @ right[:8]
    product *= (product * expected).sum() / (product**2).sum()
    assert np.abs(product - expected).max() < 0.05 * np.abs(expected).max()
    assert not linked.all()
    assert (start[~linked] != 0).all()  # a cosine with 0 has no gradient
    wide = models.build(LightGCNConfig(dim=100, init="spectral", init_std=0.1), graph)
    assert wide.embedding.isfinite().all()
    assert 0.05 < float(wide.embedding.detach()[:, USERS:].std()) < 0.15


def test_rankings_by_cosine_and_popularity(graph):
    model = models.build(LightGCNConfig(dim=8, layers=2, similarity="cosine", popularity=0.3), graph, seed=3)
    users, items = model().detach().double().split([USERS, ITEMS])
    cosines = torch.nn.functional.cosine_similarity(users[:, None], items[None], dim=2)
    expected = cosines + 0.3 * torch.from_numpy(graph.item_degrees).clamp(min=1).double().log()
    scorer = model.scorer()
    assert torch.equal(scorer.topk(torch.arange(USERS), 10, None)[0].long(), expected.topk(10).indices)
    torch.testing.assert_close((scorer.user_factors @ scorer.item_factors.T).double(), expected, rtol=0, atol=1e-5)
    history = graph.user_item().select_rows(torch.from_numpy(graph.user_degrees).nonzero()[:, 0])
    directions = torch.nn.functional.normalize(scorer.fold_in(history)).double()
    known = directions @ scorer.item_vectors.double().T + expected.sub(cosines)[:1]
    assert torch.equal(scorer.topk_by_history(history, 10, None)[0].long(), known.topk(10).indices)


def test_it_works_without_the_trainer(graph):
    """A plain nn.Module: torch's own optimiser, loss and state dict."""
    model = models.LightGCN(graph, dim=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = model().pow(2).mean()
    before.backward()
    optimizer.step()
    assert model().pow(2).mean() < before
    other = models.LightGCN(graph, dim=8, seed=9)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(), model())


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_new_user_is_what_the_propagation_gives_one_without_an_ego_embedding(graph, layers):
    """The graph with one more user, whose own embedding is 0 and whose edges do not count for the items' degrees."""
    model = models.LightGCN(graph, dim=16, layers=layers, seed=1)
    scorer = model.scorer()
    history = SparseMatrix.from_csr([0, 3, 5], [4, 7, 11, 0, 30], shape=(2, ITEMS))
    normal, item_scale, _ = scaled(incidence(graph))
    items = model.embedding.detach().double().numpy()[USERS:]
    users = model.embedding.detach().double().numpy()[:USERS]
    vectors = np.zeros((2, 16))
    for _ in range(layers):  # a new user's layer l is made from the items' layer l - 1
        rows = [[4, 7, 11], [0, 30]]
        vectors += [sum(item_scale[i] * items[i] for i in row) / np.sqrt(len(row)) / (layers + 1) for row in rows]
        users, items = normal @ items, normal.T @ users
    expected = vectors @ model().detach().double().numpy()[USERS:].T
    got_items, got_scores = scorer.topk_by_history(history, 10, None)
    for row in range(2):
        assert np.abs(np.sort(expected[row])[::-1][:10] - got_scores[row].numpy()).max() < 1e-6
        assert np.abs(expected[row][got_items[row].numpy()] - got_scores[row].numpy()).max() < 1e-6


def test_gfcf_is_the_filter_of_the_paper(graph):
    model = models.build(GFCFConfig(factors=12, ideal_weight=0.3), graph)
    assert isinstance(model, models.GFCF)
    scorer = model.fit().scorer()
    matrix = incidence(graph)
    normal, item_scale, item_root = scaled(matrix)
    right = np.linalg.svd(normal)[2][:12]
    history = matrix.toarray()
    expected = history @ normal.T @ normal + 0.3 * (history * item_scale) @ right.T @ right * item_root
    items, scores = scorer.topk(torch.arange(USERS), ITEMS, None)
    found = np.zeros((USERS, ITEMS))
    np.put_along_axis(found, items.long().numpy(), scores.double().numpy(), axis=1)
    assert np.abs(found - expected).max() < 1e-5
    again = scorer.topk_by_history(graph.user_item(), ITEMS, None)
    assert torch.equal(again[0], items)
    few = scorer.topk(torch.tensor([68, 3, 3]), 5, None)  # rows do not depend on who else is asked for
    assert torch.equal(few[0], items[[68, 3, 3], :5])


@pytest.mark.parametrize("factors", [1, 7, 64])
def test_truncated_svd_spans_the_leading_space(factors):
    rng = np.random.default_rng(1)
    graph = BipartiteGraph.from_edges(rng.integers(0, 400, 6000), rng.zipf(1.4, 6000) % 300, 400, 300)
    dense = scaled(incidence(graph))[0]
    _, s, vt = np.linalg.svd(dense)
    values, vectors = truncated_svd(graph.norm_user_item(), factors)
    assert values.shape == (factors,)
    assert vectors.shape == (300, factors)
    assert np.abs(values.numpy() - s[:factors]).max() < 2e-4
    assert (vectors.T @ vectors - torch.eye(factors)).abs().max() < 1e-4
    # Energy, not vectors: nearly equal singular values may mix.
    energy = np.square(dense @ vectors.double().numpy()).sum()
    assert energy > np.square(s[:factors]).sum() * (1 - 1e-4)
    assert np.square(vt[:1] @ vectors.double().numpy()).sum() > 1 - 1e-4
    assert torch.equal(truncated_svd(graph.norm_user_item(), factors)[1], vectors)


def test_truncated_svd_beyond_the_rank():
    """Three users with the same two items: one singular value is not zero, whatever else is asked for."""
    graph = BipartiteGraph.from_edges([0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 1], 3, 4)
    values, vectors = truncated_svd(graph.norm_user_item(), 3)
    assert values.numpy() == pytest.approx([1, 0, 0], abs=1e-3)
    assert (vectors.T @ vectors - torch.eye(3)).abs().max() < 1e-4
    with pytest.raises(ValueError, match="factors must lie within 1 and 3, got 4"):
        truncated_svd(graph.norm_user_item(), 4)


def test_bpr_loss_of_several_negatives_by_hand():
    final = torch.tensor([[1.0], [2.0], [5.0], [5.0], [3.0]], requires_grad=True)
    ego = torch.tensor([[2.0], [1.0], [3.0], [7.0], [5.0]], requires_grad=True)
    triples = torch.tensor([[0], [1], [4], [2], [3]])
    one, three = (math.log1p(math.exp(x)) for x in (1, 3))
    loss = bpr_loss(final, ego, triples, 0.2)
    assert loss.item() == pytest.approx((one + 2 * three) / 3 + 0.1 * (4 + 1 + (25 + 9 + 49) / 3), rel=1e-6)
    # The first of the two with the highest score; the others have no gradient.
    loss = bpr_loss(final, ego, triples, 0.2, hardest=True)
    assert loss.item() == pytest.approx(three + 0.1 * (4 + 1 + 9), rel=1e-6)
    weight = 1 / (1 + math.exp(-3))
    gradients = torch.autograd.grad(loss, [final, ego])
    assert gradients[0].flatten().tolist() == pytest.approx([3 * weight, -weight, weight, 0, 0], rel=1e-6)
    assert gradients[1].flatten().tolist() == pytest.approx([0.4, 0.2, 0.6, 0, 0], rel=1e-6)
    with torch.no_grad():
        final[3] = torch.nan
    assert bpr_loss(final, ego, triples, hardest=True).isnan()  # whichever comes first


def test_bpr_loss_and_its_gradient():
    generator = torch.Generator().manual_seed(0)
    final, ego = (torch.randn(30, 7, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2))
    triples = torch.randint(30, (3, 1500), generator=generator)
    users, positives, negatives = triples
    scores = [(final[users] * final[items]).sum(1) for items in (positives, negatives)]
    expected = -torch.log(torch.sigmoid(scores[0] - scores[1])).mean()
    expected = expected + 0.01 / 2 * sum(ego[nodes].square().sum() for nodes in triples) / 1500
    loss = bpr_loss(final, ego, triples, 0.01)
    assert float(loss) == pytest.approx(float(expected), rel=1e-12)
    for got, wanted in zip(torch.autograd.grad(loss, (final, ego)), torch.autograd.grad(expected, (final, ego))):
        assert (got - wanted).abs().max() < 1e-12
    assert torch.isfinite(bpr_loss(1e4 * final, ego, triples))  # softplus, not the log of a sigmoid


def test_select_rows(graph):
    dense = incidence(graph).toarray()
    for rows in ([5, 5, 0, 69], [], list(range(USERS))):
        chosen = graph.user_item().select_rows(torch.tensor(rows, dtype=torch.int64))
        assert chosen.shape == (len(rows), ITEMS)
        assert np.array_equal(ops.spmm(chosen, torch.eye(ITEMS)).numpy(), dense[rows])
