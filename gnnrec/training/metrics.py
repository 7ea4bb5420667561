"""From ranked lists to metrics.

Definitions, for one user with n > 0 test items, where "hit" is a test item in the list:

    recall@K     hits in the first K / n
    precision@K  hits in the first K / K, also where the list is shorter
    hit_rate@K   1 where there is a hit in the first K, else 0
    ndcg@K       sum over hits of 1 / log2(rank + 1), divided by the same sum for min(K, n) hits at the top
    mrr@K        1 / rank of the first hit, 0 where it is not in the first K
    map@K        sum over hits in the first K of precision@rank, divided by n
    coverage@K   share of all items that stand in the first K of any of these users

Each but coverage is the mean over the users with a test item. trec_eval (P, recall, ndcg_cut, map_cut, and recip_rank
on lists cut at K) and torchmetrics define them so too, except torchmetrics' RetrievalMAP, which divides by the hits
among the first K in place of n: it rates a list that finds 1 of 100 items at rank 1 as perfect. The first public code
of NGCF divided NDCG by the ideal of the hits alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gnnrec.errors import DataError
from gnnrec.ranks import Ranks

IntArray = npt.NDArray[np.integer[Any]]
FloatArray = npt.NDArray[np.float64]

_CELLS = 1 << 18  # entries of lists at a time: their temporaries stay in the cache


class MetricAccumulator:
    """Metrics of lists that arrive in blocks of users.

    The result is bit for bit that of one block with all users. It keeps max(ks) bits and one int32 for each user with
    a test item, and a byte for each item and K.

    Args:
        ks: the lengths K to cut the lists at, each at least 1.
        num_items: number of items in all.
    """

    def __init__(self, ks: Sequence[int], num_items: int) -> None:
        if not ks or min(ks) < 1:
            raise ValueError(f"ks are {list(ks)}: at least one, each at least 1, is needed")
        self.ks = sorted(set(ks))
        self.num_items = num_items
        self._hits: list[npt.NDArray[np.uint8]] = []
        self._num_test: list[npt.NDArray[np.int32]] = []
        # A row for each span of ranks between one K and the next; one column more for "no item", which is number -1.
        self._seen = np.zeros((len(self.ks), num_items + 1), dtype=bool)

    def update(self, topk: IntArray, test_indptr: IntArray, test_indices: IntArray) -> None:
        """Add a block of users.

        Args:
            topk: [users, >= max(ks)] item numbers, best first, distinct within a user; -1 = no item.
            test_indptr: [users + 1]: the test items of user u are `test_indices[test_indptr[u] - test_indptr[0] :
                test_indptr[u + 1] - test_indptr[0]]`, so that a slice of a larger array's pointers can be given.
            test_indices: test items, ascending and distinct within a user.

        Raises:
            ValueError: shapes that do not fit together, an item outside -1 .. num_items - 1, test items out of order.
        """
        counts = np.diff(test_indptr)
        if topk.shape[0] != len(counts) or topk.shape[1] < self.ks[-1] or counts.sum() != len(test_indices):
            raise ValueError(
                f"topk has the shape {topk.shape}, test_indptr {test_indptr.shape} with {counts.sum()} test items and "
                f"test_indices {test_indices.shape}, where [users, >= {self.ks[-1]}], [users + 1] and [test items] fit"
            )
        for name, items, lowest in (("topk", topk, -1), ("test_indices", test_indices, 0)):
            if items.size and not lowest <= items.min() <= items.max() < self.num_items:
                raise ValueError(
                    f"{name} holds items {items.min()} .. {items.max()}: not in {lowest} .. {self.num_items - 1}"
                )
        users = np.flatnonzero(counts)
        if not len(users):
            return
        lists, counts = topk[users, : self.ks[-1]], counts[users]
        self._hits.append(np.packbits(_find(lists, counts, test_indices, self.num_items), axis=1))
        self._num_test.append(counts.astype(np.int32))
        for seen, start, stop in zip(self._seen, [0, *self.ks], self.ks):
            seen[lists[:, start:stop]] = True

    def share(self, ranks: Ranks) -> None:
        """Take the users of all ranks, each of which has had some: in the order of the ranks."""
        width = -(-self.ks[-1] // 8)
        hits = np.concatenate([np.empty((0, width), np.uint8), *self._hits])
        counts = np.concatenate([np.empty(0, np.int32), *self._num_test])
        self._hits, self._num_test = ([ranks.all_rows(torch.from_numpy(x)).numpy()] for x in (hits, counts))
        seen = ranks.all_rows(torch.from_numpy(self._seen.view(np.uint8)))
        self._seen = seen.view(-1, *self._seen.shape).amax(dim=0).numpy().view(bool)

    def result(self) -> dict[str, float]:
        """The metrics, by names such as `recall@20`.

        Raises:
            DataError: no user has a test item.
        """
        users = sum(map(len, self._num_test))
        if users == 0:
            raise DataError(
                "no user has a test item", remedy="Give a test split with interactions of users in training"
            )
        hits, num_test = np.concatenate(self._hits), np.concatenate(self._num_test)
        # The sums run over fixed blocks of all users, so that the blocks they came in do not show.
        block = max(_CELLS // self.ks[-1], 1)
        sums = [
            {name: float(values.sum()) for name, values in self._per_user(hits[rows], num_test[rows]).items()}
            for rows in (slice(start, start + block) for start in range(0, users, block))
        ]
        result = {name: math.fsum(block[name] for block in sums) / users for name in sums[0]}
        covered = np.logical_or.accumulate(self._seen[:, :-1]).sum(axis=1)
        result |= {f"coverage@{k}": int(n) / self.num_items for k, n in zip(self.ks, covered)}
        return result

    def _per_user(self, packed: npt.NDArray[np.uint8], num_test: npt.NDArray[np.int32]) -> dict[str, FloatArray]:
        """Metrics of each user, float64 [users]. Running sums are left folds, the same for any number of users."""
        ranks = np.arange(1, self.ks[-1] + 1)
        gains = 1 / np.log2(ranks + 1)
        ideal = np.cumsum(gains)
        hit = np.unpackbits(packed, axis=1, count=self.ks[-1])
        hits = np.cumsum(hit, axis=1, dtype=np.int64)
        dcg = np.cumsum(hit * gains, axis=1)
        precisions = np.cumsum(hit * (hits / ranks), axis=1)
        first = np.where(hits[:, -1] > 0, hit.argmax(axis=1) + 1, np.inf)
        values = {}
        for k in self.ks:
            found = hits[:, k - 1]
            values[f"recall@{k}"] = found / num_test
            values[f"ndcg@{k}"] = dcg[:, k - 1] / ideal[np.minimum(k, num_test) - 1]
            values[f"precision@{k}"] = found / k
            values[f"hit_rate@{k}"] = (found > 0).astype(np.float64)
            values[f"mrr@{k}"] = np.where(first <= k, 1 / first, 0.0)
            values[f"map@{k}"] = precisions[:, k - 1] / num_test
        return values


def ranking_metrics(
    topk: IntArray, test_indptr: IntArray, test_indices: IntArray, ks: Sequence[int], num_items: int
) -> dict[str, float]:
    """Metrics of ranked lists, by names such as `recall@20`; this module's docstring defines them.

    Args:
        topk: [users, >= max(ks)] item numbers, best first, distinct within a user; -1 = no item.
        test_indptr: [users + 1] row pointers of the test items.
        test_indices: [test items] item numbers, ascending and distinct within a user.
        ks: the lengths K to cut the lists at.
        num_items: number of items in all.

    Raises:
        ValueError: shapes that do not fit together, an item outside -1 .. num_items - 1, test items out of order.
        DataError: no user has a test item.
    """
    accumulator = MetricAccumulator(ks, num_items)
    accumulator.update(topk, test_indptr, test_indices)
    return accumulator.result()


def _find(lists: IntArray, counts: IntArray, test_indices: IntArray, num_items: int) -> npt.NDArray[np.bool_]:
    """Which entries of the lists are among the test items of their user: bool, shaped as `lists`.

    User and item make one key, with a gap of one between users: item -1 falls into it and is never found.
    """
    offsets = np.arange(len(lists), dtype=np.int64) * (num_items + 1)
    wanted = np.repeat(offsets, counts) + test_indices
    if not (wanted[1:] > wanted[:-1]).all():
        raise ValueError("test_indices are not ascending and distinct within each user")
    keys = lists + offsets[:, None]
    places = np.searchsorted(wanted, keys.ravel()).reshape(keys.shape)
    return np.asarray(wanted[np.minimum(places, len(wanted) - 1)] == keys)
