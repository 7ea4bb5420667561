"""Steps of a LightGCN whose columns lie with several ranks: each has some of them, and the graph.

Propagation takes every column by itself, so ranks exchange nothing but the batch's scores, whose parts are added up:
one number for every negative and pair, s(u, n) - s(u, p). Gradients of a rank's columns follow from these alone.
"""

from __future__ import annotations

import torch

from gnnrec import ops
from gnnrec.config import BPRConfig, OptimizerConfig, TrainerConfig
from gnnrec.graph.sparse import SparseMatrix
from gnnrec.models import FactorScorer, LightGCN
from gnnrec.models.scorer import Ranking
from gnnrec.ranks import Ranks
from gnnrec.training import sampler
from gnnrec.training.checkpoint import Parts
from gnnrec.training.distributed import FOLD, Parallel, folds


def columns_of(dim: int, rank: int, size: int) -> slice:
    """The columns that a rank holds, of as many ranks: multiples of 16 where that leaves some for each, else even."""
    unit = FOLD if dim % FOLD == 0 and dim >= FOLD * size else 1
    first, last = (unit * (dim // unit * number // size) for number in (rank, rank + 1))
    return slice(first, last)


class ColumnParallel(Parallel):
    """LightGCN with BPR and Adam, of which this rank has some columns. With one rank, parameters are bit-equal to those
    of `Resident`; with several, scores are sums over ranks, whose float32 rounding is another one.

    Args:
        model: on some columns; its embeddings are trained in place.
        config: the loop's settings.
        loss, optimizer: their settings.
        seed: of the sampler; every rank draws the same batches.
        ranks: that have the other columns.
        columns: of the model.
    """

    def __init__(
        self,
        model: LightGCN,
        config: TrainerConfig,
        loss: BPRConfig,
        optimizer: OptimizerConfig,
        seed: int,
        ranks: Ranks,
        columns: slice,
    ) -> None:
        nodes = len(model.embedding)
        super().__init__(model.embedding.detach(), optimizer, ranks, nodes, [slice(0, nodes)])
        self.model, self.loss, self.columns = model, loss, columns
        self.sampler: sampler.Sampler = sampler.build(loss, model.graph, config, seed, pinned=False)
        self.matrix = model.graph.norm_adjacency().to(self.device)

    def scorer(self) -> AllColumns:
        """The model as it is now."""
        self.ranks.doing = "an evaluation"
        self.kept.release()
        return AllColumns(self.model.scorer(), self.ranks)

    def part(self, matrix: torch.Tensor) -> Parts:
        """These columns."""
        return Parts(1, {self.columns.start: matrix})

    def differentiate(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As Parallel.differentiate."""
        (triples,) = self.sampler.batch(step)
        ego, weights = self.embedding.detach().requires_grad_(), self.model.layer_weights
        size, layers = (ego.shape[0], ego.shape[1]), self.model.layers
        batch = ops.BPRPanels(triples, size, self.loss.reg, hardest=self.loss.hardest, device=self.device)
        found = ops.lightgcn_propagate_rows(self.matrix, ego, batch.nodes, num_layers=layers, layer_weights=weights)
        final, own = (part.detach() for part in found)
        batch.add(folds(final), folds(own))
        loss = batch.loss(self.ranks.total)
        upstream = batch.gradient()[:, : size[1]]
        both = (upstream,) if batch.decay is None else (upstream, own * batch.decay[:, None])
        return loss, torch.autograd.grad(found[: len(both)], ego, both)[0]


class AllColumns:
    """Ranks with what every rank has of the vectors: each ranks for its share of the users, and all get the answer.

    Vectors of all items lie with every rank, those of users come for the users who are asked about: an evaluation holds
    (items + a block of users) x dim numbers, and exchanges (items + users) x dim. Adding up partial scores would hold
    less, but exchange users x items.

    Args:
        part: this rank's columns.
        ranks: that have the others.
    """

    def __init__(self, part: FactorScorer, ranks: Ranks) -> None:
        self.ranks, self._users = ranks, part.user_factors
        self.item_vectors = ranks.all_columns(part.item_factors)

    def topk(self, users: torch.Tensor, k: int, seen: SparseMatrix | None) -> Ranking:
        """As Scorer.topk."""
        size, count = self.ranks.size, len(users)
        vectors = self.ranks.all_columns(self._users[users.to(self._users.device)])
        mine = slice(*(count * number // size for number in (self.ranks.rank, self.ranks.rank + 1)))
        part = None if seen is None else seen.to(vectors.device).row_block(mine)
        items, scores = ops.topk_scores(vectors[mine], self.item_vectors, k=k, seen=part)
        return self.ranks.all_rows(items), self.ranks.all_rows(scores)
