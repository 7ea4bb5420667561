"""topk_scores: each user's best items, without the matrix of all scores."""

from __future__ import annotations

import numpy as np
import torch

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
    Equal scores are ordered by item number. Memory beyond the inputs: one copy of `items` and the result.

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
    out_items, out_scores = _results("topk_scores", users, len(items), k, seen)
    cpu.topk_scores(
        _arguments.array(users), _arguments.array(items), k, *_rows(seen, len(users)), out_items, out_scores
    )
    return torch.from_numpy(out_items), torch.from_numpy(out_scores)


def topk_dense(scores: torch.Tensor, *, k: int, seen: SparseMatrix | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The same from scores float32 [num_users, num_items] of a model whose scores are no dot products."""
    _arguments.check_dense("topk_dense", "scores", scores, dtypes=DTYPES)
    out_items, out_scores = _results("topk_dense", scores, scores.shape[1], k, seen)
    cpu.topk_dense(_arguments.array(scores), k, *_rows(seen, len(scores)), out_items, out_scores)
    return torch.from_numpy(out_items), torch.from_numpy(out_scores)


def _results(
    operator: str, x: torch.Tensor, num_items: int, k: int, seen: SparseMatrix | None
) -> tuple[np.ndarray, np.ndarray]:
    if not 1 <= k <= num_items:
        raise ValueError(f"{operator}: k must lie within 1 and the number of items {num_items}, got {k}")
    if seen is not None:
        _arguments.check_matrix(operator, seen)
        if seen.shape != (len(x), num_items):
            raise ValueError(f"{operator}: seen must be {len(x)} x {num_items}, got {seen.shape[0]} x {seen.shape[1]}")
        if not seen.has_sorted_rows:
            raise ValueError(f"{operator}: the columns of seen must be sorted within every row")
    return np.empty((len(x), k), np.int32), np.empty((len(x), k), np.float32)


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
