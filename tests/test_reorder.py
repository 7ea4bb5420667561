"""Renumbered graphs: the same edges under other numbers, and the way back."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gnnrec import ops
from gnnrec.data import synthetic
from gnnrec.errors import GnnrecError
from gnnrec.graph import BipartiteGraph

needs_networkit = pytest.mark.skipif(
    importlib.util.find_spec("networkit") is None, reason="networkit is not installed: pip install gnnrec[reorder]"
)
METHODS = ["rcm", pytest.param("community", marks=needs_networkit)]


@st.composite
def graphs(draw):
    """Small graphs with nodes without edges, also without edges or nodes at all."""
    num_users, num_items = draw(st.integers(0, 12)), draw(st.integers(0, 12))
    pairs = st.tuples(st.integers(0, max(num_users - 1, 0)), st.integers(0, max(num_items - 1, 0)))
    edges = draw(st.lists(pairs, max_size=60)) if num_users and num_items else []
    users, items = np.array(edges, np.int64).reshape(-1, 2).T
    return BipartiteGraph.from_edges(users, items, num_users, num_items)


def random_graph():
    """2000 users, 1000 items and 20 000 edges without communities: which are found depends on the order of moves."""
    log = synthetic.generate(2000, 1000, 20_000, communities=1, noise=1.0).log
    return BipartiteGraph.from_edges(log.users, log.items, log.num_users, log.num_items)


def edges_of(graph):
    return np.repeat(np.arange(graph.num_users), graph.user_degrees), graph.user_items


@pytest.mark.parametrize("method", METHODS)
@given(graph=graphs())
def test_edges_are_the_same_under_other_numbers(method, graph):
    reordering = graph.reordered(method)
    other = reordering.graph
    assert (other.num_users, other.num_items) == (graph.num_users, graph.num_items)
    for new_to_old, old_to_new in (
        (reordering.users, reordering.new_users),
        (reordering.items, reordering.new_items),
    ):
        assert new_to_old.dtype == old_to_new.dtype == np.int32
        np.testing.assert_array_equal(new_to_old[old_to_new], np.arange(len(old_to_new)))
    users, items = edges_of(other)
    assert set(zip(reordering.users[users], reordering.items[items])) == set(zip(*edges_of(graph)))
    assert other.num_edges == graph.num_edges
    users, items = edges_of(graph)
    assert set(zip(reordering.new_users[users], reordering.new_items[items])) == set(zip(*edges_of(other)))


@pytest.mark.parametrize("method", METHODS)
@given(graph=graphs(), dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int64]), width=st.integers(0, 3))
def test_undo_undoes_apply_bit_for_bit(method, graph, dtype, width):
    reordering = graph.reordered(method)
    x = torch.randn(graph.num_nodes, width).mul(100).to(dtype)
    applied = reordering.apply(x)
    assert (applied.dtype, applied.shape) == (x.dtype, x.shape)
    assert torch.equal(reordering.undo(applied), x)
    assert torch.equal(reordering.apply(reordering.undo(x)), x)
    assert torch.equal(reordering.apply(x[:, :0]), x[:, :0])


@pytest.mark.parametrize("method", METHODS)
@given(graph=graphs())
def test_rows_of_users_and_items_move_with_their_numbers(method, graph):
    reordering = graph.reordered(method)
    nodes = torch.arange(graph.num_nodes)
    applied = reordering.apply(nodes).numpy()
    np.testing.assert_array_equal(applied[: graph.num_users], reordering.users)
    np.testing.assert_array_equal(applied[graph.num_users :], graph.num_users + reordering.items)


@pytest.mark.parametrize("method", METHODS)
@given(graph=graphs(), layers=st.integers(0, 3))
def test_propagation_is_the_original_s(method, graph, layers):
    """In float64, where only the scales are rounded, and those of a node are equal under either number."""
    reordering = graph.reordered(method)
    x = torch.randn(graph.num_nodes, 5, dtype=torch.float64)
    expected = ops.lightgcn_propagate(graph.norm_adjacency(), x, num_layers=layers)
    ours = reordering.undo(
        ops.lightgcn_propagate(reordering.graph.norm_adjacency(), reordering.apply(x), num_layers=layers)
    )
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_pass_the_border(method):
    graph = random_graph()
    reordering = graph.reordered(method)
    x = torch.randn(graph.num_nodes, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(graph.num_nodes, 3, dtype=torch.float64)
    (expected,) = torch.autograd.grad((ops.spmm(graph.norm_adjacency(), x) ** 2 * weight).sum(), x)
    result = reordering.undo(ops.spmm(reordering.graph.norm_adjacency(), reordering.apply(x)))
    (ours,) = torch.autograd.grad((result**2 * weight).sum(), x)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_gradients_of_the_border_are_right_to_second_order():
    graph = BipartiteGraph.from_edges([0, 1, 2, 2], [0, 0, 1, 2], 4, 3)
    reordering = graph.reordered("rcm")
    assert not np.array_equal(reordering.users, np.arange(4))  # else a border that does nothing would pass
    x = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)
    for move in (reordering.apply, reordering.undo):
        assert torch.autograd.gradcheck(move, x)
        assert torch.autograd.gradgradcheck(lambda x, move=move: move(x) ** 3, x)


@pytest.mark.parametrize("method", METHODS)
def test_every_call_finds_the_same_order(method):
    first = random_graph().reordered(method)
    assert not np.array_equal(first.users, np.arange(2000))
    before = torch.get_num_threads()
    try:
        for threads in (2, 2, 2, 1):
            torch.set_num_threads(threads)
            again = random_graph().reordered(method)
            assert torch.get_num_threads() == threads  # it is networkit's number of threads too
            np.testing.assert_array_equal(first.users, again.users)
            np.testing.assert_array_equal(first.items, again.items)
    finally:
        torch.set_num_threads(before)


def test_cuthill_mckee_straightens_a_shuffled_chain():
    """User n shares item n with user n + 1: a matrix of two diagonals, if only the numbers say so."""
    rng = np.random.default_rng(0)
    users, items = rng.permutation(200), rng.permutation(199)
    graph = BipartiteGraph.from_edges(
        np.concatenate([users[:-1], users[1:]]), np.concatenate([items, items]), num_users=200, num_items=199
    )
    ours = graph.reordered("rcm").graph
    new_users, new_items = edges_of(ours)
    assert np.abs(new_users - new_items).max() == 1


@needs_networkit
def test_members_of_a_community_lie_side_by_side():
    """Planted communities without noise are components, which no community crosses."""
    data = synthetic.generate(600, 300, 6000, communities=6, noise=0.0)
    graph = BipartiteGraph.from_edges(data.log.users, data.log.items, 600, 300)
    reordering = graph.reordered("community")
    linked = graph.item_degrees[reordering.items] > 0  # an item without edges is in no community
    for community in (
        data.truth.user_community[reordering.users],
        data.truth.item_community[reordering.items][linked],
    ):
        assert np.count_nonzero(np.diff(community)) == 5


def test_the_original_stays_as_it_was():
    graph = random_graph()
    before = [array.copy() for array in (graph.user_indptr, graph.user_items, graph.item_indptr, graph.item_users)]
    graph.reordered("rcm")
    for array, copy in zip((graph.user_indptr, graph.user_items, graph.item_indptr, graph.item_users), before):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("shape", [(), (3,), (8, 7), (2, 7)])
def test_features_of_another_graph_are_refused(shape):
    reordering = BipartiteGraph.from_edges([0, 1], [0, 2], 4, 3).reordered("rcm")
    rows = r"must have a row for each of 7 users and items, got \["
    with pytest.raises(ValueError, match=f"x {rows}"):
        reordering.apply(torch.zeros(shape))
    with pytest.raises(ValueError, match=f"y {rows}"):
        reordering.undo(torch.zeros(shape))


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="method must be one of rcm, community, got 'degree'"):
        random_graph().reordered("degree")


def test_without_networkit_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "networkit", None)
    with pytest.raises(GnnrecError, match=r"pip install gnnrec\[reorder\]"):
        random_graph().reordered("community")
