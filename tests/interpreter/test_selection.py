"""topk_scores and topk_dense on a GPU: what tests/test_topk.py asks of them, and rows of more items than buckets."""

import math

import numpy as np
import pytest
import torch
from test_topk import (  # noqa: F401
    brute_force,
    pairs,
    random_seen,
    test_no_users,
    test_products_that_are_none,
    test_seen_items_may_repeat,
    test_unsorted_seen_items_are_refused,
    test_users_who_have_seen_everything,
)

from gnnrec.ops import topk_dense, topk_scores, tuning
from gnnrec.ops.topk_scores import cuda


@pytest.fixture
def few_buckets(monkeypatch):
    """So few buckets and so small panels that small rows have many of either; more than 16 are sorted."""
    for name, value in (("LOG_MOST", 4), ("PANEL_BYTES", 4096)):
        monkeypatch.setattr(cuda, name, value)
    with tuning.forced("topk_scores", {"log_buckets": 5, "log_found": 5, "warps": 8}):
        yield


@pytest.mark.parametrize("seed", range(16))
def test_whole_numbers_exactly(seed, few_buckets):
    """Small ones, so that float32 is exact and equal scores abound."""
    rng = np.random.default_rng(seed)
    num_users, num_items = int(rng.integers(1, 20)), int(rng.choice([1, 7, 31, 32, 33, 64, 129, 500]))
    users, items = (torch.from_numpy(rng.integers(-2, 3, (n, 5)).astype(np.float32)) for n in (num_users, num_items))
    k = int(rng.choice([1, min(5, num_items), min(16, num_items), num_items]))
    seen = random_seen(rng, num_users, num_items, rng.choice([0.0, 0.3, 0.9])) if seed % 4 else None
    scores = users @ items.T
    expected = brute_force(scores, k, seen)
    assert pairs(topk_scores(users, items, k=k, seen=seen)) == expected
    assert pairs(topk_dense(scores, k=k, seen=seen)) == expected
    wide = torch.full((num_users, num_items + 16 - num_items % 16), math.inf)
    wide[:, :num_items] = scores
    assert pairs(topk_dense(wide[:, :num_items], k=k, seen=seen)) == expected


@pytest.mark.parametrize("order", ["rising", "falling", "equal", "by bucket"])
def test_rows_in_awkward_orders(order, few_buckets):
    rising = torch.arange(700.0)[None]
    if order == "by bucket":  # all of the best in one of them
        scores = rising % 32 * 1000 + rising // 32
    else:
        scores = {"rising": rising, "falling": rising.flip(1), "equal": torch.zeros_like(rising)}[order]
    for k in (1, 16, 17, 700):
        assert pairs(topk_dense(scores, k=k)) == brute_force(scores, k, None)


@pytest.mark.parametrize("k", [4, 16, 40])
def test_numbers_that_are_none(k, few_buckets):
    rng = np.random.default_rng(k)
    special = np.array([math.nan, -math.inf, math.inf, -0.0, 0.0, 1.0, -3e38, 1e-45, -1e-45], np.float32)
    scores = torch.from_numpy(rng.choice(special, (6, 130)))
    scores[0], scores[1] = math.nan, -math.inf
    scores[2, 7:] = -math.inf
    assert pairs(topk_dense(scores, k=k)) == brute_force(scores, k, None)


def test_a_thousand_of_many():
    """With the usual number of buckets."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(-(10**6), 10**6, (2, 9000), generator=generator).float()
    before = scores.clone()
    for k in (20, 1000, 1024, 1025):
        best, order = scores.sort(dim=1, descending=True, stable=True)
        items, found = topk_dense(scores, k=k)
        assert torch.equal(items, order[:, :k].int())
        assert torch.equal(found, best[:, :k])
    assert torch.equal(scores, before)
