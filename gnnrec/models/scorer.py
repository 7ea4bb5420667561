"""Scorers: a trained model frozen for inference, ranking items for users it knows and for users it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F

from gnnrec import device as devices
from gnnrec import ops
from gnnrec.graph.bipartite import BipartiteGraph
from gnnrec.graph.rows import GraphRows
from gnnrec.graph.sparse import SparseMatrix

Ranking = tuple[torch.Tensor, torch.Tensor]


class Ranker(Protocol):
    """What evaluation asks of a model.

    `seen` holds the entries to leave out, one row per row of the answer. An answer is items int32 [rows, k], best
    first, -1 where none is left, and their scores float32 [rows, k], both where the item vectors lie. What is given may
    lie elsewhere, and is then copied.
    """

    item_vectors: torch.Tensor  # float32 [num_items, dim], for the similarity of items

    def topk(self, users: torch.Tensor, k: int, seen: SparseMatrix | None) -> Ranking:
        """The k best items of the users with these numbers, int64 [rows]."""
        ...


class Scorer(Ranker, Protocol):
    """What recommendation asks of a model besides, with answers as a Ranker's."""

    def topk_by_history(self, history: SparseMatrix, k: int, seen: SparseMatrix | None) -> Ranking:
        """The k best items of users who are known by their items alone: history [rows, num_items]."""
        ...


class FactorScorer:
    """Scores that are dot products or cosines, to which an item may add a number.

    Args:
        users, items: their vectors, floats [num_users, dim] and [num_items, dim].
        fold_in: the vectors, floats [rows, dim], of users who are known by their items alone: history [rows,
            num_items], where the item vectors lie. None where these cannot be asked about.
        cosine: take cosines.
        item_bias: float32 [num_items], added to an item's scores.
        first_user: the number of the first of these users, where others lie elsewhere.

    Attributes:
        item_factors: what users' factors are multiplied with, with one column more where there is a bias.
    """

    def __init__(
        self,
        users: torch.Tensor,
        items: torch.Tensor,
        fold_in: Callable[[SparseMatrix], torch.Tensor] | None,
        *,
        cosine: bool = False,
        item_bias: torch.Tensor | None = None,
        first_user: int = 0,
    ) -> None:
        self.fold_in, self.cosine, self.biased = fold_in, cosine, item_bias is not None
        self._first = first_user
        items, self._users = items.detach().float(), users.detach()  # whatever the storage of training
        self.item_factors, width = items, items.shape[1]
        if cosine or item_bias is not None:  # one copy of them for both
            self.item_factors = items.new_empty(len(items), width + self.biased)
            vectors = self.item_factors[:, :width]
            _ = F.normalize(items, out=vectors) if cosine else vectors.copy_(items)
        if item_bias is not None:
            self.item_factors[:, width] = item_bias
        self.item_vectors = self.item_factors[:, :width]

    @property
    def user_factors(self) -> torch.Tensor:
        """Of all users, made anew: large trainings hold those of some users at a time."""
        return self._factors(self._users)

    def topk(self, users: torch.Tensor, k: int, seen: SparseMatrix | None) -> Ranking:
        """As Scorer.topk."""
        return self._topk(self._factors(self._users[users.to(self.item_vectors.device) - self._first]), k, seen)

    def topk_by_history(self, history: SparseMatrix, k: int, seen: SparseMatrix | None) -> Ranking:
        """As Scorer.topk_by_history: a user's vector is propagated from the user's items, degrees as in training."""
        assert self.fold_in is not None
        return self._topk(self._factors(self.fold_in(history.to(self.item_vectors.device))), k, seen)

    def _factors(self, users: torch.Tensor) -> torch.Tensor:
        users = F.normalize(users.float()) if self.cosine else users.float()
        return F.pad(users, (0, 1), value=1.0) if self.biased else users

    def _topk(self, users: torch.Tensor, k: int, seen: SparseMatrix | None) -> Ranking:
        return ops.topk_scores(users, self.item_factors, k=k, seen=None if seen is None else seen.to(users.device))


class FilterScorer:
    """Scores of a linear graph filter: history -> scores of all items, in blocks of users.

    score = h R^T R + weight * (h D^-1/2 V) V^T D^1/2 with h a row of interactions, R the normalised users x items
    matrix and V its leading right singular vectors (Shen et al. 2021, section 5).

    Args:
        interactions: users x items matrix of ones.
        normalised: R.
        vectors: V, float32 [num_items, factors].
        item_scale, item_root: degree^-1/2 and degree^1/2 of the items, float32 [num_items].
        ideal_weight: weight of the ideal low-pass filter.
    """

    BLOCK = 64  # users: wide enough for the dense product, and two sparse products of this width stay in the caches
    GPU_BLOCK = 4096  # users at the most on a GPU, which is kept busy by more of them,
    GPU_SCORES = 2**27  # as long as a block has no more scores than this: 512 MiB, and a few times that in between

    def __init__(
        self,
        interactions: SparseMatrix,
        normalised: SparseMatrix,
        vectors: torch.Tensor,
        item_scale: torch.Tensor,
        item_root: torch.Tensor,
        ideal_weight: float,
    ) -> None:
        self.interactions, self.normalised = interactions, normalised
        self.back_vectors = (ideal_weight * vectors * item_root[:, None]).T.contiguous()
        self.front_vectors = vectors * item_scale[:, None]
        self.item_vectors = vectors
        self.block = self.BLOCK
        if devices.on_gpu(vectors):
            self.block = max(
                self.BLOCK, min(self.GPU_BLOCK, self.GPU_SCORES // len(vectors)) // self.BLOCK * self.BLOCK
            )

    def topk(self, users: torch.Tensor, k: int, seen: SparseMatrix | None) -> Ranking:
        """As Scorer.topk."""
        return self.topk_by_history(self.interactions.select_rows(users.to(self.interactions.device)), k, seen)

    def topk_by_history(self, history: SparseMatrix, k: int, seen: SparseMatrix | None) -> Ranking:
        """As Scorer.topk_by_history."""
        device = self.item_vectors.device
        history, seen = history.to(device), None if seen is None else seen.to(device)
        # The results are allocated first: small blocks that stay, between large ones that go, would fragment the heap.
        items = torch.empty(history.shape[0], k, dtype=torch.int32, device=device)
        scores = torch.empty(history.shape[0], k, device=device)
        for start in range(0, history.shape[0], self.block):
            # Always whole blocks, the last row repeated: a library product rounds differently for another shape.
            rows = torch.arange(start, start + self.block, device=device).clamp(max=history.shape[0] - 1)
            masked = None if seen is None else seen.select_rows(rows)
            found = ops.topk_dense(self._scores(history.select_rows(rows)), k=k, seen=masked)
            stop = min(start + self.block, history.shape[0])
            items[start:stop], scores[start:stop] = (part[: stop - start] for part in found)
        return items, scores

    def _scores(self, history: SparseMatrix) -> torch.Tensor:
        signal = self.item_vectors.new_zeros(history.shape[1], history.shape[0])
        rows = torch.repeat_interleave(history.indptr.diff(), output_size=history.nnz)
        signal[history.indices.long(), rows] = 1.0
        linear = ops.spmm(self.normalised.T, ops.spmm(self.normalised, signal))
        return torch.mm(ops.spmm(history, self.front_vectors), self.back_vectors).add_(linear.T)


def popularity_bias(graph: BipartiteGraph | GraphRows, popularity: float, device: torch.device) -> torch.Tensor | None:
    """popularity * log(degree) of every item, float32 [num_items]; None where it is 0 for all."""
    if not popularity:
        return None
    return (popularity * torch.from_numpy(graph.item_degrees).clamp(min=1).double().log()).float().to(device)


def normalised(history: SparseMatrix, graph: BipartiteGraph) -> SparseMatrix:
    """The history with rows scaled by length^-1/2 and columns by the items' degree^-1/2 in the training graph."""
    lengths, item_scale = history.indptr.diff().clamp(min=1), graph.norm_user_item().col_scale
    assert item_scale is not None
    scales = lengths.float().rsqrt(), item_scale.to(history.device)
    return SparseMatrix(history.indptr, history.indices, history.shape, *scales)
