"""topk_scores: each user's best items, without the matrix of all scores."""

from __future__ import annotations

import numpy as np
import torch

from gnnrec import device as devices
from gnnrec.graph.sparse import SparseMatrix
from gnnrec.ops import _arguments
from gnnrec.ops._operator import Operator
from gnnrec.ops.topk_scores import cpu, reference

__all__ = ["OP", "topk_dense", "topk_scores"]

DTYPES = (torch.float32,)


def topk_scores(
    users: torch.Tensor, items: torch.Tensor, *, k: int, seen: SparseMatrix | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k items with the highest dot products, for every user; scoring, masking and selection are one pass.

    A score is a left fold over partial sums of 16 columns, so it does not depend on how users and items are grouped.
    Equal scores are ordered by item number. Memory beyond the inputs: a copy of some items, 16 MiB, and the result.

    On a GPU a score is that of torch.mm, in the precision that torch is set to, and may depend in its last bits on how
    many users there are. Memory there: about 256 MiB for the scores of a block of users, and the result.

    Args:
        users: float32 [num_users, dim].
        items: float32 [num_items, dim].
        k: how many, 1 to num_items.
        seen: SparseMatrix [num_users, num_items] whose entries are left out, its columns sorted within a row.

    Returns:
        items int32 [num_users, k], best first, and their scores float32 [num_users, k]. Where fewer than k items are
        left, the rest is -1 and -inf. Scores that are NaN are never chosen.

    Raises:
        ValueError: another dtype, device or shape, k out of range.
    """
    _arguments.check_dense("topk_scores", "users", users, dtypes=DTYPES)
    _arguments.check_dense("topk_scores", "items", items, cols=users.shape[1], dtypes=DTYPES)
    _check("topk_scores", users, len(items), k, seen)
    _arguments.check_device("topk_scores", users, items=items, seen=None if seen is None else seen.indices)
    out_items, out_scores = results = _results(users, k)
    if devices.on_gpu(users):
        from gnnrec.ops.topk_scores import cuda

        cuda.topk_scores(users, items, k, None if seen is None else (seen.indptr, seen.indices), *results)
        return results
    given = _arguments.array(users), _arguments.array(items), k, *_rows(seen, len(users))
    cpu.topk_scores(*given, out_items.numpy(), out_scores.numpy())
    return results


def users_at_a_time(k: int, *, on_gpu: bool) -> int:
    """How many users to rank at once, so that their lists of k items and what they have seen stay small, and whatever
    computes has enough to do."""
    return min(max(2**22 // k, 64), 2**16 if on_gpu else 2**13)


def topk_dense(scores: torch.Tensor, *, k: int, seen: SparseMatrix | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The same from scores float32 [num_users, num_items] of a model whose scores are no dot products."""
    _arguments.check_dense("topk_dense", "scores", scores, dtypes=DTYPES)
    _check("topk_dense", scores, scores.shape[1], k, seen)
    _arguments.check_device("topk_dense", scores, seen=None if seen is None else seen.indices)
    out_items, out_scores = results = _results(scores, k)
    if devices.on_gpu(scores):
        from gnnrec.ops.topk_scores import cuda

        cuda.topk_dense(scores, k, None if seen is None else (seen.indptr, seen.indices), *results)
        return results
    arrays = _arguments.array(scores), k, *_rows(seen, len(scores)), out_items.numpy(), out_scores.numpy()
    cpu.topk_dense(len(scores), *arrays)
    return results


def _check(operator: str, x: torch.Tensor, num_items: int, k: int, seen: SparseMatrix | None) -> None:
    if not 1 <= k <= num_items:
        raise ValueError(f"{operator}: k must lie within 1 and the number of items {num_items}, got {k}")
    if seen is not None:
        _arguments.check_matrix(operator, seen)
        if seen.shape != (len(x), num_items):
            raise ValueError(f"{operator}: seen must be {len(x)} x {num_items}, got {seen.shape[0]} x {seen.shape[1]}")
        if not seen.has_sorted_rows:
            raise ValueError(f"{operator}: the columns of seen must be sorted within every row")


def _results(x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    items = devices.empty(x, (len(x), k), "the best items", torch.int32)
    return items, devices.empty(x, (len(x), k), "their scores", torch.float32)


def _rows(seen: SparseMatrix | None, rows: int) -> tuple[np.ndarray, np.ndarray]:
    if seen is None:
        return np.zeros(rows + 1, np.int64), np.empty(0, np.int32)
    return _arguments.array(seen.indptr), _arguments.array(seen.indices)


OP = Operator(
    "topk_scores",
    topk_scores,
    reference.topk_scores,
    reference.cases,
    reference.bytes_moved,
    dtypes=DTYPES,
    differentiable=False,
)
