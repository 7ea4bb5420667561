"""What trainings of several ranks have in common: steps, checkpoints that all write together."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from gnnrec import device as devices
from gnnrec.config import OptimizerConfig
from gnnrec.errors import GnnrecError
from gnnrec.kept import Kept
from gnnrec.memtier.account import Actual
from gnnrec.ranks import Ranks
from gnnrec.training import checkpoint
from gnnrec.training.optim import MOMENTS, adam_block
from gnnrec.training.streamed import stored_rows

FOLD = 16  # columns whose products are added up before they are added to a score


class Parallel:
    """A model of whose embeddings this rank has a part, trained by Adam.

    Args:
        embedding: this part, trained in place.
        optimizer: the optimiser's settings.
        ranks: that have the others.
        nodes: rows of the whole.
        rows: which of them, one range after the other.
    """

    def __init__(
        self, embedding: torch.Tensor, optimizer: OptimizerConfig, ranks: Ranks, nodes: int, rows: Sequence[slice]
    ) -> None:
        self.embedding, self.optimizer, self.ranks, self.nodes, self.rows = embedding, optimizer, ranks, nodes, rows
        self.device, self.as_rows = embedding.device, True
        with devices.memory_errors("training", lower="model.dim", device=self.device):
            self.moments = [torch.zeros_like(embedding) for _ in MOMENTS]
        self.kept, self._count = Kept(), 0  # steps that Adam has done
        self._best: torch.Tensor | None = None
        self._steps, self._seconds, self._totalled, self._gathered = 0, 0.0, 0, 0

    def differentiate(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of a batch, the same bits on every rank, and its gradient by this part of the embeddings."""
        raise NotImplementedError

    def part(self, matrix: torch.Tensor) -> checkpoint.Parts:
        """A matrix like the embedding as a checkpoint takes it."""
        raise NotImplementedError

    @property
    def actual(self) -> Actual:
        """What the steps took so far."""
        return Actual(self._steps, self._seconds, totalled=self._totalled, gathered=self._gathered)

    def step(self, step: int, lr: float) -> torch.Tensor:
        """The step of this number; gives its loss."""
        started, totalled, gathered = time.perf_counter(), self.ranks.totalled, self.ranks.gathered
        self.ranks.doing = f"step {step}"
        with self.kept.serving():
            loss, gradient = self.differentiate(step)
        self.update(gradient, lr)
        self._steps += 1
        self._seconds += time.perf_counter() - started
        self._totalled += self.ranks.totalled - totalled
        self._gathered += self.ranks.gathered - gathered
        return loss

    def update(self, gradient: torch.Tensor, lr: float) -> None:
        """A step of Adam."""
        self._count += 1
        adam_block(self.optimizer, self.embedding, gradient, *self.moments, lr=lr, step=self._count)

    def warm_up(self, step: int) -> float:
        """Compile the kernels on a step whose gradient is thrown away; gives the seconds it took."""
        started = time.perf_counter()
        with self.kept.serving():
            self.differentiate(step)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - started

    def largest(self) -> float:
        """The largest magnitude among the embeddings' numbers, of all ranks."""
        own = self.embedding.abs().max() if len(self.embedding) else self.embedding.new_zeros(())
        return float(self.ranks.all_rows(own[None]).max())

    def keep_best(self) -> None:
        """Remember the parameters as they are now, on the CPU."""
        self._best = self.embedding.to("cpu", copy=True)

    def take_best(self) -> None:
        """Go back to the parameters that were remembered, if any were."""
        if self._best is not None:
            self.embedding.copy_(self._best)

    def state(self) -> dict[str, Any]:
        """This rank's part of everything of a checkpoint, as `Resident` has it; of what has no parts, the first has
        all."""
        tensors: dict[str, Any] = {"model.embedding": self.part(self.embedding)}
        if self._best is not None:
            tensors["best.embedding"] = self.part(self._best)
        if self._count:
            moments = map(self.part, self.moments)
            tensors |= {f"optimizer.0.{name}": moment for name, moment in zip(MOMENTS, moments, strict=True)}
            if self.ranks.leads:
                tensors["optimizer.0.step"] = torch.tensor(float(self._count))
        return tensors

    def restore(self, groups: Mapping[str, Mapping[str, Any]], where: str) -> None:
        """Take the state of a checkpoint, as `split_groups` has it, whose matrices are `Rows` of these columns.

        Raises:
            CheckpointError: it is of another model; `where` it lies.
        """
        optimizer = groups.get("optimizer", {})
        self._fill(self.embedding, groups["model"], "embedding", where)
        self._count = int(optimizer.get("0.step", 0))
        for name, moment in zip(MOMENTS, self.moments, strict=True) if self._count else ():
            self._fill(moment, optimizer, f"0.{name}", where)
        if "best" in groups:
            self._best = torch.empty(self.embedding.shape)
            self._fill(self._best, groups["best"], "embedding", where)

    def close(self, *, drain: bool = True) -> None:
        """Nothing is left to be ended."""

    def _fill(self, matrix: torch.Tensor, tensors: Mapping[str, Any], name: str, where: str) -> None:
        stored, place = stored_rows(tensors, name, (self.nodes, matrix.shape[1]), where), 0
        for rows in self.rows:
            for first in range(rows.start, rows.stop, stored.step):
                part = stored.read(slice(first, min(first + stored.step, rows.stop)))
                matrix[place : place + len(part)] = part
                place += len(part)


def save(ranks: Ranks, folder: Path, step: int, tensors: Mapping[str, Any], state: Mapping[str, Any]) -> Path:
    """Write a checkpoint together: each rank its parts of matrices, the first one the rest, which makes a whole of
    them. The folder is one that all ranks see.

    Args:
        ranks: that all call this.
        folder, step, tensors, state: as for `checkpoint.save`.

    Raises:
        StorageError, GnnrecError: any rank could not write; earlier checkpoints are then as they were.
    """
    ranks.doing = f"the checkpoint of step {step}"
    if not ranks.leads:
        temporary = Path(ranks.tell(""))
        ranks.each(lambda: checkpoint.write_share(temporary, tensors))
        return Path(ranks.tell(""))

    def others(temporary: Path) -> dict[str, Any]:
        ranks.tell(str(temporary))
        return {name: file for files in ranks.each(dict) for name, file in files.items()}

    try:
        path = checkpoint.save(folder, step, tensors, state, others=others)
    except GnnrecError as error:
        ranks.fail(error)
        raise
    return Path(ranks.tell(str(path)))


def folds(x: torch.Tensor) -> torch.Tensor:
    """With zeros as columns up to a multiple of 16."""
    return F.pad(x, (0, -x.shape[1] % FOLD)) if x.shape[1] % FOLD else x
