"""Ranking metrics against plain Python, trec_eval and torchmetrics."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import pytrec_eval
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics import retrieval

from gnnrec.errors import DataError
from gnnrec.training import metrics
from gnnrec.training.metrics import MetricAccumulator, ranking_metrics

KS = (1, 3, 10, 20)
Lists = list[list[int]]
Array = npt.NDArray[Any]


def csr(rows: Lists) -> tuple[Array, Array]:
    indptr = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return indptr, np.array([item for row in rows for item in sorted(row)], dtype=np.int32)


def plain(topk: Lists, tests: Lists, ks: tuple[int, ...], num_items: int) -> dict[str, float]:
    """The definitions, item by item."""
    users = [(ranked, set(test)) for ranked, test in zip(topk, tests, strict=True) if test]
    result = {}
    for k in ks:
        rows = []
        for ranked, test in users:
            hits = [rank for rank, item in enumerate(ranked[:k], start=1) if item in test]
            ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(test)) + 1))
            rows.append(
                {
                    "recall": len(hits) / len(test),
                    "ndcg": sum(1 / math.log2(rank + 1) for rank in hits) / ideal,
                    "precision": len(hits) / k,
                    "hit_rate": float(bool(hits)),
                    "mrr": 1 / hits[0] if hits else 0.0,
                    "map": sum(number / rank for number, rank in enumerate(hits, start=1)) / len(test),
                }
            )
        result |= {f"{name}@{k}": sum(row[name] for row in rows) / len(rows) for name in rows[0]}
        shown = {item for ranked, _ in users for item in ranked[:k]} - {-1}
        result[f"coverage@{k}"] = len(shown) / num_items
    return result


def scored(num_users: int, num_items: int, seed: int) -> tuple[Array, Array, Lists]:
    """Tie-free scores, the items they rank, and test items: none for some users, more than any K for others."""
    rng = np.random.default_rng(seed)
    scores = rng.permutation(num_users * num_items).reshape(num_users, num_items) / (num_users * num_items)
    counts = rng.choice([0, 1, 2, 7, num_items // 2], size=num_users)
    tests = [sorted(rng.choice(num_items, count, replace=False).tolist()) for count in counts]
    return scores, np.argsort(-scores, axis=1).astype(np.int32), tests


def test_known_numbers() -> None:
    # Test items 2, 5 and 9; found at ranks 2 and 4 of 4.
    result = ranking_metrics(np.array([[7, 5, 1, 9]]), np.array([0, 3]), np.array([2, 5, 9]), [1, 2, 4], 10)
    dcg = 1 / math.log2(3) + 1 / math.log2(5)
    ideal = 1 + 1 / math.log2(3) + 1 / 2
    expected = {"recall": 2 / 3, "ndcg": dcg / ideal, "precision": 0.5, "hit_rate": 1.0, "mrr": 0.5, "map": 1 / 3}
    assert {name: result[f"{name}@4"] for name in expected} == pytest.approx(expected, rel=1e-15)
    assert result["map@2"] == pytest.approx(0.5 / 3, rel=1e-15)
    assert result["ndcg@2"] == pytest.approx(1 / math.log2(3) / (1 + 1 / math.log2(3)), rel=1e-15)
    assert [result[f"{name}@1"] for name in expected] == [0.0] * 6
    assert [result[f"coverage@{k}"] for k in (1, 2, 4)] == [0.1, 0.2, 0.4]
    assert len(result) == 21


def test_a_perfect_list_is_worth_one_whatever_k() -> None:
    tests = [[4], [0, 3], [0, 1, 2, 3, 4]]
    topk = np.array([[4, 0, 1], [3, 0, 1], [2, 1, 0]])
    result = ranking_metrics(topk, *csr(tests), [1, 2, 3], 5)
    assert [result[f"{name}@{k}"] for name in ("ndcg", "hit_rate", "mrr") for k in (1, 2, 3)] == [1.0] * 9


users = st.integers(1, 12).flatmap(
    lambda num_items: st.tuples(
        st.just(num_items),
        st.lists(
            st.tuples(
                st.permutations([*range(num_items), -1, -1]),
                st.sets(st.integers(0, num_items - 1)),
            ),
            min_size=1,
            max_size=9,
        ),
        st.data(),
    )
)


@settings(deadline=None)
@given(users)
def test_equals_plain_python_whatever_the_blocks(drawn: tuple[int, list[tuple[list[int], set[int]]], Any]) -> None:
    num_items, rows, data = drawn
    topk, tests = [ranked for ranked, _ in rows], [sorted(test) for _, test in rows]
    longest = num_items + 2
    ks = tuple(sorted(data.draw(st.sets(st.integers(1, longest), min_size=1, max_size=3))))
    indptr, indices = csr(tests)
    if not len(indices):
        with pytest.raises(DataError, match="no user has a test item"):
            ranking_metrics(np.array(topk), indptr, indices, ks, num_items)
        return
    whole = ranking_metrics(np.array(topk), indptr, indices, ks, num_items)
    assert whole == pytest.approx(plain(topk, tests, ks, num_items), rel=1e-13)

    accumulator = MetricAccumulator(ks, num_items)
    borders = sorted(data.draw(st.lists(st.integers(0, len(topk)), max_size=4)))
    for start, stop in zip([0, *borders], [*borders, len(topk)]):
        pointers = indptr[start : stop + 1]
        block = np.asfortranarray(topk, dtype=np.int64)[start:stop]
        accumulator.update(block, pointers, indices[pointers[0] : pointers[-1]])
    assert accumulator.result() == whole


def test_bit_equal_over_blocks_of_many_users(monkeypatch: pytest.MonkeyPatch) -> None:
    _, ranked, tests = scored(3000, 60, seed=1)
    indptr, indices = csr(tests)
    whole = MetricAccumulator(KS, 60)
    whole.update(ranked, indptr, indices)
    for size in (1, 7, 1000):
        blocks = MetricAccumulator(KS, 60)
        for start in range(0, 3000, size):
            pointers = indptr[start : start + size + 1]
            blocks.update(ranked[start : start + size], pointers, indices[pointers[0] : pointers[-1]])
        assert blocks.result() == whole.result()
    expected = plain(ranked.tolist(), tests, KS, 60)
    assert whole.result() == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr(metrics, "_CELLS", 2560)  # many blocks inside, as large data has
    assert ranking_metrics(ranked, indptr, indices, KS, 60) == pytest.approx(expected, rel=1e-12)


def test_equals_trec_eval() -> None:
    scores, ranked, tests = scored(200, 50, seed=2)
    result = ranking_metrics(ranked, *csr(tests), KS, 50)
    qrel = {str(user): {str(item): 1 for item in test} for user, test in enumerate(tests) if test}
    cuts = ",".join(map(str, KS))
    names = {"recall": "recall", "ndcg": "ndcg_cut", "map": "map_cut", "precision": "P"}
    evaluator = pytrec_eval.RelevanceEvaluator(qrel, {f"{name}.{cuts}" for name in names.values()})
    run = {user: {str(item): float(score) for item, score in enumerate(scores[int(user)])} for user in qrel}
    values = evaluator.evaluate(run).values()
    for k in KS:
        for name, trec_name in names.items():
            expected = np.mean([value[f"{trec_name}_{k}"] for value in values])
            assert result[f"{name}@{k}"] == pytest.approx(expected, rel=1e-12), (name, k)
        cut = {user: {str(item): row[str(item)] for item in ranked[int(user), :k]} for user, row in run.items()}
        reciprocal = pytrec_eval.RelevanceEvaluator(qrel, {"recip_rank"}).evaluate(cut).values()
        assert result[f"mrr@{k}"] == pytest.approx(np.mean([value["recip_rank"] for value in reciprocal]), rel=1e-12)


@pytest.mark.parametrize("k", KS)
def test_equals_torchmetrics(k: int) -> None:
    scores, ranked, tests = scored(200, 50, seed=3)
    result = ranking_metrics(ranked, *csr(tests), KS, 50)
    target = torch.zeros(200, 50, dtype=torch.bool)
    for user, test in enumerate(tests):
        target[user, test] = True
    flat = torch.from_numpy(scores).flatten(), target.flatten(), torch.arange(200).repeat_interleave(50)
    names = {
        "recall": retrieval.RetrievalRecall,
        "ndcg": retrieval.RetrievalNormalizedDCG,
        "precision": retrieval.RetrievalPrecision,
        "hit_rate": retrieval.RetrievalHitRate,
        "mrr": retrieval.RetrievalMRR,
    }
    for name, metric in names.items():
        expected = metric(empty_target_action="skip", top_k=k)(*flat[:2], indexes=flat[2]).item()
        assert result[f"{name}@{k}"] == pytest.approx(expected, rel=1e-5), name  # torchmetrics counts in float32


def test_torchmetrics_map_is_another_quantity() -> None:
    topk, test = np.array([[3, 0, 1]]), [2, 3]
    target = torch.zeros(4, dtype=torch.bool)
    target[test] = True
    other = retrieval.RetrievalMAP(top_k=3)(
        torch.tensor([0.3, 0.2, 0.1, 0.4]), target, indexes=torch.zeros(4, dtype=torch.int64)
    )
    assert other.item() == 1.0
    assert ranking_metrics(topk, *csr([test]), [3], 4)["map@3"] == 0.5


def test_minus_one_is_no_item() -> None:
    # The last item of user 0 is next to "no item" of user 1 in any numbering of pairs, and may not count for it.
    result = ranking_metrics(np.array([[-1, -1], [-1, 1], [-1, -1]]), *csr([[2], [2], [0]]), [1, 2], 3)
    assert result["recall@2"] == 0.0
    assert (result["coverage@1"], result["coverage@2"]) == (0.0, 1 / 3)


def test_users_without_test_items_count_for_nothing() -> None:
    tests = [[], [1], [], [0, 2], []]
    topk = np.array([[3, 4], [1, 0], [3, 4], [1, 2], [3, 4]])
    some = ranking_metrics(topk[[1, 3]], *csr([[1], [0, 2]]), [1, 2], 5)
    assert ranking_metrics(topk, *csr(tests), [1, 2], 5) == some
    assert some["coverage@2"] == 3 / 5
    with pytest.raises(DataError, match="no user has a test item"):
        ranking_metrics(topk, np.zeros(6, dtype=np.int64), np.zeros(0, dtype=np.int32), [1], 5)
    with pytest.raises(DataError, match="no user has a test item"):
        MetricAccumulator([1], 5).result()


def test_int32_items_of_many_users_do_not_overflow() -> None:
    num_items = 2**31 - 2
    topk = np.full((5, 2), num_items - 1, dtype=np.int32)
    tests = [[0], [num_items - 1], [3, num_items - 1], [0, num_items - 2], [5]]
    lists, counts = topk, np.array([len(test) for test in tests])
    found = metrics._find(lists, counts, csr(tests)[1], num_items)
    assert found.tolist() == [[False] * 2, [True] * 2, [True] * 2, [False] * 2, [False] * 2]


def test_unordered_and_repeated_ks_and_longer_lists() -> None:
    _, ranked, tests = scored(20, 30, seed=4)
    result = ranking_metrics(ranked, *csr(tests), [10, 3, 10], 30)
    assert result == ranking_metrics(ranked[:, :10], *csr(tests), [3, 10], 30)


@pytest.mark.parametrize(
    ("topk", "indptr", "indices", "found"),
    [
        ([[0]], [0, 1], [0], r"topk has the shape \(1, 1\)"),
        ([[0, 1]], [0, 1, 2], [0, 1], r"test_indptr \(3,\)"),
        ([[0, 1]], [0, 1], [0, 1], "with 1 test items and test_indices"),
        ([[0, 5]], [0, 1], [0], r"topk holds items 0 \.\. 5: not in -1 \.\. 4"),
        ([[-2, 3]], [0, 1], [0], r"topk holds items -2 \.\. 3"),
        ([[0, 1]], [0, 1], [5], r"test_indices holds items 5 \.\. 5: not in 0 \.\. 4"),
        ([[0, 1]], [0, 1], [-1], r"test_indices holds items -1 \.\. -1"),
        ([[0, 1]], [0, 2], [1, 0], "not ascending and distinct"),
        ([[0, 1]], [0, 2], [1, 1], "not ascending and distinct"),
    ],
)
def test_arrays_that_do_not_fit(topk: Lists, indptr: list[int], indices: list[int], found: str) -> None:
    with pytest.raises(ValueError, match=found):
        MetricAccumulator([1, 2], 5).update(np.array(topk), np.array(indptr), np.array(indices))


@pytest.mark.parametrize("ks", [[], [0], [5, -1]])
def test_ks_that_are_none(ks: list[int]) -> None:
    with pytest.raises(ValueError, match="ks are"):
        MetricAccumulator(ks, 5)
