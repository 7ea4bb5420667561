"""Steps of a LightGCN whose columns lie with several ranks: each has some of them, and the graph.

Propagation takes every column by itself, so ranks exchange nothing but the batch's scores, whose parts are added up:
one number for every negative and pair, s(u, n) - s(u, p). Gradients of a rank's columns follow from these alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from gnnrec import device as devices
from gnnrec import ops
from gnnrec.config import BPRConfig, OptimizerConfig, TrainerConfig
from gnnrec.errors import GnnrecError
from gnnrec.graph.sparse import SparseMatrix
from gnnrec.memtier.account import Actual
from gnnrec.models import FactorScorer, LightGCN
from gnnrec.models.scorer import Ranking
from gnnrec.ranks import Ranks
from gnnrec.training import checkpoint, sampler
from gnnrec.training.optim import MOMENTS, adam_block
from gnnrec.training.streamed import stored_rows

FOLD = 16  # columns whose products are added up before they are added to a score


def columns_of(dim: int, rank: int, size: int) -> slice:
    """The columns that a rank holds, of as many ranks: multiples of 16 where that leaves some for each, else even."""
    unit = FOLD if dim % FOLD == 0 and dim >= FOLD * size else 1
    first, last = (unit * (dim // unit * number // size) for number in (rank, rank + 1))
    return slice(first, last)


class ColumnParallel:
    """LightGCN with BPR and Adam, of which this rank has some columns. With one rank, parameters are bit-equal to those
    of `Resident`; with several, scores are sums over ranks, whose float32 rounding is another one.

    Args:
        model: on some columns; its embeddings are trained in place.
        config: the loop's settings.
        loss, optimizer: their settings.
        seed: of the sampler; every rank draws the same batches.
        ranks: that have the other columns.
    """

    def __init__(
        self,
        model: LightGCN,
        config: TrainerConfig,
        loss: BPRConfig,
        optimizer: OptimizerConfig,
        seed: int,
        ranks: Ranks,
    ) -> None:
        self.model, self.loss, self.optimizer, self.ranks = model, loss, optimizer, ranks
        self.embedding = model.embedding.detach()  # the same memory
        self.device, self.as_rows = self.embedding.device, True
        self.sampler: sampler.Sampler = sampler.build(loss, model.graph, config, seed, pinned=False)
        self.matrix = model.graph.norm_adjacency().to(self.device)
        with devices.memory_errors("training", lower="model.dim", device=self.device):
            self.moments = [torch.zeros_like(self.embedding) for _ in MOMENTS]
            # The gradient by the final embeddings, that by the ego embeddings, and what lies between layers.
            self._final, self._gradient, self._work = (torch.zeros_like(self.embedding) for _ in range(3))
        self._count = 0  # of steps that Adam has done
        self._best: torch.Tensor | None = None
        self._steps, self._seconds, self._totalled = 0, 0.0, 0

    @property
    def actual(self) -> Actual:
        """What the steps took so far."""
        return Actual(self._steps, self._seconds, totalled=self._totalled)

    def step(self, step: int, lr: float) -> torch.Tensor:
        """The step of this number; gives its loss."""
        started, totalled = time.perf_counter(), self.ranks.totalled
        self.ranks.doing = f"step {step}"
        loss = self._differentiate(step)
        self._count += 1
        adam_block(self.optimizer, self.embedding, self._gradient, *self.moments, lr=lr, step=self._count)
        self._steps += 1
        self._seconds += time.perf_counter() - started
        self._totalled += self.ranks.totalled - totalled
        return loss

    def warm_up(self, step: int) -> float:
        """Compile the kernels on a step whose gradient is thrown away; gives the seconds it took."""
        started = time.perf_counter()
        self._differentiate(step)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - started

    def largest(self) -> float:
        """The largest magnitude among the embeddings' numbers, of all ranks."""
        return float(self.ranks.all_rows(self.embedding.abs().max()[None]).max())

    def scorer(self) -> AllColumns:
        """The model as it is now."""
        self.ranks.doing = "an evaluation"
        return AllColumns(self.model.scorer(), self.ranks)

    def keep_best(self) -> None:
        """Remember the embeddings as they are now, on the CPU."""
        self._best = self.embedding.to("cpu", copy=True)

    def take_best(self) -> None:
        """Go back to the embeddings that were remembered, if any were."""
        if self._best is not None:
            self.embedding.copy_(self._best)

    def state(self) -> dict[str, Any]:
        """This rank's columns of everything of a checkpoint that is a matrix, and the rest, as `Resident` has it."""
        tensors = {"model.embedding": self.embedding}
        if self._best is not None:
            tensors["best.embedding"] = self._best
        if self._count:
            tensors |= {f"optimizer.0.{name}": moment for name, moment in zip(MOMENTS, self.moments, strict=True)}
            if self.ranks.leads:
                tensors["optimizer.0.step"] = torch.tensor(float(self._count))
        return tensors

    def restore(self, groups: Mapping[str, Mapping[str, Any]], where: str) -> None:
        """Take the state of a checkpoint, as `split_groups` has it, of these columns, whose matrices are `Rows`.

        Raises:
            CheckpointError: it is of another model; `where` it lies.
        """
        optimizer = groups.get("optimizer", {})
        _fill(self.embedding, groups["model"], "embedding", where)
        self._count = int(optimizer.get("0.step", 0))
        for name, moment in zip(MOMENTS, self.moments, strict=True) if self._count else ():
            _fill(moment, optimizer, f"0.{name}", where)
        if "best" in groups:
            self._best = torch.empty(self.embedding.shape)
            _fill(self._best, groups["best"], "embedding", where)

    def close(self, *, drain: bool = True) -> None:
        """Nothing is left to be ended."""

    @torch.no_grad()
    def _differentiate(self, step: int) -> torch.Tensor:
        """The loss of a batch; its gradient by the ego embeddings is then in `_gradient`."""
        (triples,) = self.sampler.batch(step)
        ego, weights = self.embedding, self.model.layer_weights
        size = ego.shape[0], ego.shape[1]
        batch = ops.BPRPanels(triples, size, self.loss.reg, hardest=self.loss.hardest, device=self.device)
        nodes, layers = batch.nodes, self.model.layers
        final = ops.lightgcn_propagate(self.matrix, ego, num_layers=layers, layer_weights=weights, rows=nodes)
        batch.add(_folds(final), _folds(ego[nodes]))
        loss = batch.loss(self.ranks.total)
        self._final.zero_()[nodes] = batch.gradient()[:, : size[1]]
        ops.lightgcn_propagate_into(self._gradient, self._work, self.matrix, self._final, layer_weights=weights)
        if batch.decay is not None:
            self._gradient[nodes] += ego[nodes] * batch.decay[:, None]
        return loss


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


def save(
    ranks: Ranks, columns: slice, folder: Path, step: int, tensors: Mapping[str, Any], state: Mapping[str, Any]
) -> Path:
    """Write a checkpoint together: each rank its columns, the first one the rest, which makes a whole of them. The
    folder is one that all ranks see.

    Args:
        ranks: that all call this.
        columns: that this rank has.
        folder, step, tensors, state: as for `checkpoint.save`.

    Raises:
        StorageError, GnnrecError: any rank could not write; earlier checkpoints are then as they were.
    """
    ranks.doing = f"the checkpoint of step {step}"
    if not ranks.leads:
        temporary = Path(ranks.tell(""))
        ranks.each(lambda: checkpoint.write_share(temporary, tensors, columns))
        return Path(ranks.tell(""))

    def others(temporary: Path) -> dict[str, Any]:
        ranks.tell(str(temporary))
        return {name: file for files in ranks.each(dict) for name, file in files.items()}

    try:
        path = checkpoint.save(folder, step, tensors, state, columns=columns, others=others)
    except GnnrecError as error:
        ranks.fail(error)
        raise
    return Path(ranks.tell(str(path)))


def _folds(x: torch.Tensor) -> torch.Tensor:
    """With zeros as columns up to a multiple of 16."""
    return F.pad(x, (0, -x.shape[1] % FOLD))


def _fill(matrix: torch.Tensor, tensors: Mapping[str, Any], name: str, where: str) -> None:
    rows = stored_rows(tensors, name, (matrix.shape[0], matrix.shape[1]), where)
    for first in range(0, len(matrix), rows.step):
        part = slice(first, min(first + rows.step, len(matrix)))
        matrix[part] = rows.read(part)
