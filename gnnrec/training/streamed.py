"""Steps of a LightGCN whose embeddings and Adam moments lie in files of a slow tier, or in DRAM beside a GPU."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from gnnrec import ops
from gnnrec.config import BPRConfig, OptimizerConfig, TrainerConfig
from gnnrec.errors import CheckpointError
from gnnrec.memtier.account import Actual
from gnnrec.memtier.adjacency import Part
from gnnrec.memtier.files import Traffic
from gnnrec.memtier.matrices import BlockMatrix
from gnnrec.memtier.stream import Block
from gnnrec.models.scorer import FactorScorer
from gnnrec.models.streamed import StreamedLightGCN
from gnnrec.training import sampler
from gnnrec.training.checkpoint import Rows
from gnnrec.training.optim import MOMENTS, adam_block


class _Batch(NamedTuple):
    """A batch's loss.

    Args:
        parts: the rows of the adjacency that belong to its nodes.
        borders: of the blocks of rows, where each begins among its nodes, and the end of the last.
    """

    loss: ops.BPRPanels
    parts: Iterable[Part]
    borders: list[int]


class Streamed:
    """LightGCN with BPR and Adam, a panel of columns at a time: bit-equal to `Resident`.

    A step goes over the panels once. Of each it propagates the gradient backwards, the last layer of that together with
    Adam as blocks of embedding and moments pass by, keeps the new embedding of this panel, and propagates it for the
    batch of the next step. So every number of the store is read and written once a step, however many layers there are,
    while there is something to compute at any time. On a GPU, a step ends when the GPU has done it.

    Args:
        model: its embeddings are trained in their store.
        config: the loop's settings.
        loss, optimizer: their settings.
        seed: of the sampler.
    """

    def __init__(
        self, model: StreamedLightGCN, config: TrainerConfig, loss: BPRConfig, optimizer: OptimizerConfig, seed: int
    ) -> None:
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.device, self.as_rows = model.device, True
        self.sampler: sampler.Sampler = sampler.build(loss, model.graph, config, seed, pinned=False)
        self.moments = [model.store.matrix(name, model.layout) for name in MOMENTS]
        self._stream = model.store.stream([model.embedding, *self.moments])
        self._count = 0  # of steps that Adam has done
        self._ahead: tuple[int, _Batch] | None = None  # the number of the next step, and its batch propagated
        self._best: BlockMatrix | None = None
        self._largest = torch.zeros((), device=self.device)
        self._steps, self._seconds, self._transferring, self._waiting = 0, 0.0, 0.0, 0.0
        self._apart = 0.0  # seconds of transfers that belong to no step; those between two steps belong to these
        self._graph = Traffic()  # of the adjacency

    @property
    def actual(self) -> Actual:
        """What the steps took so far."""
        moved = {**self._stream.moved, "graph": self._graph} if self._graph.read_bytes else self._stream.moved
        return Actual(self._steps, self._seconds, moved, self._transferring, self._waiting)

    def step(self, step: int, lr: float) -> torch.Tensor:
        """The step of this number; gives its loss."""
        batch, (_, waited), started = self._propagated(step), self._stream.spent(), time.perf_counter()
        count, reading = self.model.adjacency.read()
        loss, following = batch.loss.loss(), None
        self._largest = torch.zeros_like(self._largest)
        self._count += 1
        for panel in range(self.model.layout.panels):
            self._update(batch, self._stream.panel(panel), lr)
            following = following or self._batch(step + 1)  # drawn while a GPU has something to do
            self._add(following)
        assert following is not None
        self._ahead = step + 1, following
        self._steps += 1
        transferred, waiting = self._stream.spent()
        self._seconds += time.perf_counter() - started
        self._transferring = transferred - self._apart
        self._waiting += waiting - waited
        after = self.model.adjacency.read()
        self._graph.add("read", after[0] - count, after[1] - reading)
        return loss

    def warm_up(self, step: int) -> float:
        """Compile the kernels, on the propagation that this step begins with; gives the seconds it took."""
        started = time.perf_counter()
        self._propagated(step)
        layout = self.model.layout
        rows = layout.rows_of(0)
        block = Block(0, rows, [self._zeros(rows.stop) for _ in range(3)])
        batch = self._batch(step)
        batch.loss.add(*(self._zeros(len(batch.loss.nodes)) for _ in range(2)))
        batch.loss.loss()
        count, self._count = self._count, 1
        self._update(batch, iter([block]), lr=0.0)
        self._count = count
        return time.perf_counter() - started

    def largest(self) -> float:
        """The largest magnitude among the embeddings' numbers, as the last step has left them."""
        return float(self._largest)

    def scorer(self) -> FactorScorer:
        """The model as it is now, until the next scorer."""
        with self._beside():
            self._stream.close()  # rankings take the place of its buffers
            return self.model.scorer()

    def keep_best(self) -> None:
        """Remember the embeddings as they are now, in a matrix of their own."""
        self._stream.drain()
        if self._best is None:
            self._best = self.model.store.matrix("best", self.model.layout)
        self._best.copy_from(self.model.embedding)

    def take_best(self) -> None:
        """Go back to the embeddings that were remembered, if any were."""
        if self._best is not None:
            self.close()
            self.model.embedding.copy_from(self._best)
            self._ahead = None

    def state(self) -> dict[str, Any]:
        """Everything of a checkpoint that is a tensor, by GROUP.NAME, as `Resident` has it; matrices as `Rows`."""
        self._stream.drain()
        matrices = {"model.embedding": self.model.embedding}
        if self._best is not None:
            matrices["best.embedding"] = self._best
        tensors: dict[str, Any] = {}
        if self._count:
            matrices |= {f"optimizer.0.{moment.name}": moment for moment in self.moments}
            tensors["optimizer.0.step"] = torch.tensor(float(self._count))
        return tensors | {name: as_rows(matrix) for name, matrix in matrices.items()}

    def restore(self, groups: Mapping[str, Mapping[str, Any]], where: str) -> None:
        """Take the state of a checkpoint whose matrices are `Rows`.

        Raises:
            CheckpointError: it is of another model; `where` it lies.
        """
        self.close()
        self._ahead = None
        fill(self.model.embedding, groups["model"], "embedding", where)
        optimizer = groups.get("optimizer", {})
        self._count = int(optimizer.get("0.step", 0))
        for moment in self.moments if self._count else []:
            fill(moment, optimizer, f"0.{moment.name}", where)
        if "best" in groups:
            self._best = self.model.store.matrix("best", self.model.layout)
            fill(self._best, groups["best"], "embedding", where)

    def close(self, *, drain: bool = True) -> None:
        """End transfers, by default after everything is written; a step starts new ones."""
        self.model.adjacency.close()
        self._stream.close(drain=drain)

    def _propagated(self, step: int) -> _Batch:
        """The batch of a step with what its loss needs: from the step before, or by a pass over the embeddings."""
        if self._ahead is not None and self._ahead[0] == step:
            return self._ahead[1]
        batch = self._batch(step)
        with self._beside():
            for panel in range(self.model.layout.panels):
                self.model.embedding.read_panel(panel, self.model.panel)
                self._add(batch)
        self._ahead = step, batch
        return batch

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """In which others use the embeddings, and transfers belong to no step."""
        self._stream.drain()
        before, _ = self._stream.spent()
        yield
        self._apart += self._stream.spent()[0] - before

    def _batch(self, step: int) -> _Batch:
        (triples,) = self.sampler.batch(step)
        layout, size = self.model.layout, self.model.embedding.shape
        loss = ops.BPRPanels(triples, size, self.loss.reg, hardest=self.loss.hardest, device=self.device)
        starts = torch.tensor([layout.rows_of(block).start for block in range(layout.blocks)] + [layout.rows])
        borders = torch.searchsorted(loss.nodes, starts.to(self.device)).tolist()
        return _Batch(loss, self.model.adjacency.chosen(loss.nodes), borders)

    def _add(self, batch: _Batch) -> None:
        """Give a batch its rows of the panel that is there."""
        own = self.model.panel.index_select(0, batch.loss.nodes)
        batch.loss.add(self.model.propagated_rows(own, batch.parts), own)

    def _update(self, batch: _Batch, blocks: Iterator[Block], lr: float) -> None:
        """A step of Adam on a panel, whose embeddings then are there."""
        model, nodes, decay = self.model, batch.loss.nodes, batch.loss.decay
        model.panel.zero_().index_copy_(0, nodes, batch.loss.gradient())
        for block, gradient in model.propagated_blocks(blocks, nodes):
            embedding, *moments = block.tensors
            if decay is not None:
                number = block.rows.start // model.layout.block_rows
                first, last = batch.borders[number : number + 2]
                here = nodes[first:last] - block.rows.start
                term = embedding.index_select(0, here).mul_(decay[first:last, None])
                gradient.index_copy_(0, here, term.add_(gradient.index_select(0, here)))
            adam_block(self.optimizer, embedding, gradient, *moments, lr=lr, step=self._count)
            model.work[block.rows] = embedding
            for extreme in embedding.aminmax():  # not by max(), which loses a NaN
                self._largest = torch.maximum(self._largest, extreme.abs())
        model.panel, model.work = model.work, model.panel

    def _zeros(self, rows: int) -> torch.Tensor:
        return torch.zeros(rows, self.model.layout.width, device=self.device)


def fill(matrix: BlockMatrix, tensors: Mapping[str, Any], name: str, where: str) -> None:
    """Take a matrix from the `Rows` of a checkpoint.

    Raises:
        CheckpointError: it holds none of that name and size.
    """
    matrix.fill_from(stored_rows(tensors, name, matrix.shape, where).read)


def stored_rows(tensors: Mapping[str, Any], name: str, shape: tuple[int, int], where: str) -> Rows:
    """A matrix of a checkpoint.

    Raises:
        CheckpointError: it holds none of that name and shape.
    """
    stored = tensors.get(name)
    if not isinstance(stored, Rows) or stored.shape != shape:
        found = f"holds no {name} {list(shape)}"
        raise CheckpointError(found, where=where, remedy="Resume with the configuration of that run")
    return stored


def as_rows(matrix: BlockMatrix) -> Rows:
    """A matrix as a checkpoint takes it, block by block."""
    step = matrix.layout.block_rows

    def read(rows: slice) -> torch.Tensor:
        return matrix.rows(rows.start // step)[: rows.stop - rows.start]

    return Rows(matrix.shape, torch.float32, step, read)
