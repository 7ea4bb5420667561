"""topk_scores and topk_dense: exact on whole numbers, ties by item, whatever is asked for together."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnrec.graph import BipartiteGraph, SparseMatrix
from gnnrec.ops import topk_dense, topk_scores
from gnnrec.ops.topk_scores import cpu, reference


def brute_force(scores, k, seen):
    """Lists of (item, score) for every user: best score first, the lower item first among equals."""
    result = []
    for user, row in enumerate(scores.tolist()):
        known = set() if seen is None else set(seen.indices[seen.indptr[user] : seen.indptr[user + 1]].tolist())
        left = [(-score, item) for item, score in enumerate(row) if item not in known and score > -math.inf]
        best = [(item, -score) for score, item in sorted(left)[:k]]
        result.append(best + [(-1, -math.inf)] * (k - len(best)))
    return result


def pairs(result):
    items, scores = result
    assert items.dtype == torch.int32
    assert scores.dtype == torch.float32
    return [list(zip(*row)) for row in zip(items.tolist(), scores.tolist())]


def random_seen(rng, num_users, num_items, share):
    mask = rng.random((num_users, num_items)) < share
    mask[rng.random(num_users) < 0.1] = True  # some have seen everything
    return BipartiteGraph.from_edges(*np.nonzero(mask), num_users, num_items).user_item()


@st.composite
def problems(draw):
    """Small whole numbers, so that float32 is exact and equal scores abound; sizes beside those of blocks and tiles."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    num_users = draw(st.integers(1, 8) | st.sampled_from([47, 48, 49, 97]))
    num_items = draw(st.integers(1, 8) | st.sampled_from([31, 32, 33, 63, 64, 65, 129]))
    dim = draw(st.sampled_from([1, 2, 15, 16, 17, 33]))
    users, items = (torch.from_numpy(rng.integers(-2, 3, (n, dim)).astype(np.float32)) for n in (num_users, num_items))
    share = draw(st.sampled_from([None, 0.0, 0.3, 0.9]))
    seen = None if share is None else random_seen(rng, num_users, num_items, share)
    k = draw(st.integers(1, num_items) | st.just(num_items))
    return users, items, k, seen


@given(problems())
@settings(max_examples=50)
def test_whole_numbers_exactly(problem):
    users, items, k, seen = problem
    scores = users @ items.T
    expected = brute_force(scores, k, seen)
    assert pairs(topk_scores(users, items, k=k, seen=seen)) == expected
    assert pairs(topk_dense(scores, k=k, seen=seen)) == expected
    assert pairs(reference.topk_scores(users, items, k=k, seen=seen)) == expected
    assert pairs(reference.topk_dense(scores, k=k, seen=seen)) == expected


@given(problems())
@settings(max_examples=20)
def test_items_that_are_packed_some_at_a_time(problem):
    users, items, k, seen = problem
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cpu, "PACKED_BYTES", 1)  # a tile
        assert pairs(topk_scores(users, items, k=k, seen=seen)) == brute_force(users @ items.T, k, seen)


def test_items_are_not_copied(peak_memory):
    users, items = torch.randn(8, 64), torch.randn(500_000, 64)
    topk_scores(users, items[:100], k=5)  # compiled
    _, peak = peak_memory(lambda: topk_scores(users, items, k=5))
    assert peak < items.nbytes / 2


@given(st.data())
def test_dense_with_numbers_that_are_none(data):
    special = st.sampled_from([math.nan, -math.inf, math.inf, -0.0, 0.0, 1.0, -3e38])
    num_items = data.draw(st.sampled_from([1, 5, 64, 65, 130]))
    row = data.draw(st.lists(special, min_size=num_items, max_size=num_items))
    k = data.draw(st.integers(1, num_items))
    scores = torch.tensor([row])
    assert pairs(topk_dense(scores, k=k)) == brute_force(scores, k, None)


def test_products_that_are_none():
    users = torch.tensor([[-math.inf], [math.nan], [1.0]])
    items = torch.tensor([[1.0], [0.0], [-1.0], [math.nan], [-math.inf]])
    none = (-1, -math.inf)
    assert pairs(topk_scores(users, items, k=4)) == [
        [(2, math.inf), (4, math.inf), none, none],
        [none] * 4,
        [(0, 1.0), (1, 0.0), (2, -1.0), none],
    ]


def test_users_who_have_seen_everything():
    users, items = torch.ones(3, 5), torch.ones(40, 5)
    everything = torch.arange(40)
    rows = torch.cat([torch.full((40,), 0), torch.full((38,), 2)])
    seen = SparseMatrix.from_coo(rows, torch.cat([everything, everything[1:-1]]), shape=(3, 40))
    found, scores = topk_scores(users, items, k=3, seen=seen)
    assert found.tolist() == [[-1, -1, -1], [0, 1, 2], [0, 39, -1]]
    assert scores.tolist() == [[-math.inf] * 3, [5.0] * 3, [5.0, 5.0, -math.inf]]


def test_seen_items_may_repeat():
    seen = SparseMatrix.from_coo([0, 0, 0, 0], [0, 2, 2, 2], shape=(1, 4))
    assert topk_scores(torch.ones(1, 1), torch.ones(4, 1), k=4, seen=seen)[0].tolist() == [[1, 3, -1, -1]]
    assert topk_dense(torch.ones(1, 4), k=4, seen=seen)[0].tolist() == [[1, 3, -1, -1]]


def test_no_users():
    items, scores = topk_scores(torch.empty(0, 5), torch.ones(7, 5), k=3)
    assert items.shape == scores.shape == (0, 3)


@pytest.fixture(scope="module")
def vectors():
    """Numbers whose products do round."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(150, 50, generator=generator), torch.randn(333, 50, generator=generator)


def test_a_user_s_row_does_not_depend_on_who_else_is_asked_for(vectors):
    users, items = vectors
    rng = np.random.default_rng(0)
    everyone = random_seen(rng, len(users), len(items), 0.2)
    expected = topk_scores(users, items, k=20, seen=everyone)
    for size in (1, 5, 6, 7, 48, 49, 150):
        some = torch.from_numpy(rng.permutation(len(users))[:size])
        rows = [everyone.indices[everyone.indptr[u] : everyone.indptr[u + 1]] for u in some]
        indptr = torch.tensor([0, *map(len, rows)]).cumsum(0)
        seen = SparseMatrix.from_csr(indptr, torch.cat(rows), shape=(size, len(items)))
        found = topk_scores(users[some], items, k=20, seen=seen)
        assert torch.equal(found[0], expected[0][some])
        assert torch.equal(found[1], expected[1][some])


def test_a_score_does_not_depend_on_where_the_item_stands(vectors):
    users, items = vectors

    def by_item(order):
        found, scores = topk_scores(users, items[order], k=len(order))
        result = torch.empty(len(users), len(items))
        return result.scatter_(1, order[found.long()], scores)

    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(1))
    assert torch.equal(by_item(order), by_item(torch.arange(len(items))))


def test_a_score_is_a_left_fold_over_partial_sums_of_16_columns(vectors):
    users, items = vectors

    def scores(columns):
        found, values = topk_scores(users[:, columns], items[:, columns], k=len(items))
        return torch.empty(len(users), len(items)).scatter_(1, found.long(), values)

    total = scores(slice(0, 16))
    for start in (16, 32, 48):
        total = total + scores(slice(start, start + 16))
    assert torch.equal(scores(slice(None)), total)


def test_larger_numbers_against_torch():
    rng = np.random.default_rng(0)
    users, items = (torch.from_numpy(rng.integers(-30, 31, (n, 64)).astype(np.float32)) for n in (700, 5000))
    seen = random_seen(rng, 700, 5000, 0.05)
    scores = users @ items.T
    rows = torch.repeat_interleave(torch.arange(700), seen.indptr.diff())
    masked = scores.index_put((rows, seen.indices.long()), torch.tensor(-math.inf))
    expected = masked.topk(50).values
    for found, values in (topk_scores(users, items, k=50, seen=seen), topk_dense(scores, k=50, seen=seen)):
        assert torch.equal(values, expected)
        left = found >= 0
        assert torch.equal(left, expected > -math.inf)
        assert torch.equal(masked.gather(1, found.clamp(min=0).long())[left], values[left])
        tied = values[:, 1:] == values[:, :-1]
        assert (found[:, 1:] > found[:, :-1])[tied & left[:, 1:]].all()


def test_the_matrix_of_scores_is_never_there(peak_memory):
    users, items = torch.ones(20_000, 4), torch.ones(20_000, 4)
    topk_scores(users[:1], items, k=5)
    (found, _), peak = peak_memory(lambda: topk_scores(users, items, k=5))
    assert torch.equal(found, torch.arange(5, dtype=torch.int32).expand(20_000, 5))
    assert peak < 20_000 * 20_000 * 4 / 50


def test_unsorted_seen_items_are_refused():
    """The kernel walks them in order."""
    seen = SparseMatrix.from_csr([0, 3], [5, 1, 3], shape=(1, 8))
    with pytest.raises(ValueError, match="the columns of seen must be sorted within every row"):
        topk_scores(torch.ones(1, 4), torch.ones(8, 4), k=8, seen=seen)
    matrix = SparseMatrix.from_csr([0, 2, 2, 4], [1, 3, 0, 0], shape=(3, 8))
    assert matrix.has_sorted_rows  # a row may begin below the end of the one before, an item may repeat
