"""Steps of an NGCF whose embeddings, Adam moments and activations lie in files of a slow tier."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from gnnrec import ops
from gnnrec.config import BPRConfig, OptimizerConfig, TrainerConfig
from gnnrec.errors import CheckpointError
from gnnrec.memtier.account import Actual
from gnnrec.memtier.files import Traffic
from gnnrec.memtier.matrices import PanelMatrix
from gnnrec.memtier.passes import SOURCES, Passes
from gnnrec.models.scorer import FactorScorer
from gnnrec.models.streamed_ngcf import StreamedNGCF, numbers
from gnnrec.training import optim, sampler
from gnnrec.training.checkpoint import whole
from gnnrec.training.streamed import as_rows, fill


class _Last(NamedTuple):
    """The batch's rows of the last layer, float32 [m, dim]: its input, aggregates, output and, [m], norms."""

    own: torch.Tensor
    sums: torch.Tensor
    out: torch.Tensor
    norms: torch.Tensor


class StreamedLayers:
    """NGCF with BPR and Adam, in panels of columns and blocks of rows: bit-equal to `Resident`.

    What a step moves is said where the model is, `gnnrec.models.streamed_ngcf`.

    Args:
        model: its embeddings are trained in their file.
        config: the loop's settings.
        loss, optimizer: their settings.
        seed: of the sampler.
    """

    def __init__(
        self, model: StreamedNGCF, config: TrainerConfig, loss: BPRConfig, optimizer: OptimizerConfig, seed: int
    ) -> None:
        self.model, self.loss, self.config = model, loss, optimizer
        self.device, self.as_rows = torch.device("cpu"), True
        self.sampler: sampler.Sampler = sampler.build(loss, model.graph, config, seed, pinned=False)
        self.moments = [model.store.matrix(name, model.layout) for name in optim.MOMENTS]
        inner = len(model.inputs) - 1
        self._gradient = model.store.matrix("gradient", model.layout) if inner else None
        self._size = model.layout.rows, model.layout.columns * (inner + 2)  # of the final embeddings
        self._norms = torch.empty(inner, model.layout.rows)
        self.optimizer = optim.build(optimizer, model)  # of all but the embedding
        self._count = 0  # of steps that Adam has done
        self._passes = Passes(model.store.ring, model.store.times)
        self._best: PanelMatrix | None = None
        self._best_weights: dict[str, torch.Tensor] = {}
        self._largest = torch.zeros(())
        self._steps, self._seconds, self._transferring, self._waiting = 0, 0.0, 0.0, 0.0
        self._apart = 0.0  # seconds of transfers that belong to no step; those between two steps belong to these
        self._graph = Traffic()  # of the adjacency

    @property
    def actual(self) -> Actual:
        """What the steps took so far."""
        moved: dict[str, Traffic] = {}
        for name, one in self._passes.moved.items():
            total = moved.setdefault(name.partition(".")[0], Traffic())
            total.add("read", one.read_bytes, one.read_seconds)
            total.add("write", one.write_bytes, one.write_seconds)
        if self._graph.read_bytes:
            moved["graph"] = self._graph
        return Actual(self._steps, self._seconds, moved, self._transferring, self._waiting)

    def step(self, step: int, lr: float) -> torch.Tensor:
        """The step of this number; gives its loss."""
        times, started = self._passes.times, time.perf_counter()
        waited, (count, reading) = times.waiting, self.model.adjacency.read()
        optim.set_lr(self.optimizer, lr)
        layers, loss = self.model.layers(step), self._batch(step)
        last = self._forward(layers, loss)
        found = loss.loss()
        self._count += 1
        self._largest = torch.zeros(())
        self._backward(layers, loss, last, lr)
        self._steps += 1
        self._seconds += time.perf_counter() - started
        self._transferring = times.transferred() - self._apart
        self._waiting += times.waiting - waited
        after = self.model.adjacency.read()
        self._graph.add("read", after[0] - count, after[1] - reading)
        return found

    def warm_up(self, step: int) -> float:
        """Compile the kernels, on a few rows of the step that comes; gives the seconds it took."""
        started = time.perf_counter()
        model, layer = self.model, self.model.layers(step)[0]
        here = torch.arange(min(48, model.layout.rows))
        where, part = next(iter(model.adjacency.chosen(here)))
        here = here[where]
        block, dense = (torch.zeros(len(here), columns) for columns in (model.layout.width, model.layout.columns))
        for backward in (False, True):
            layer.aggregate(part, here, model.panel, block, backward=backward)
        layer.backward(here, dense, dense, *layer.forward(here, dense, dense), dense)
        optim.adam_block(self.config, *(torch.zeros_like(block) for _ in range(4)), lr=0.0, step=1)
        loss = self._batch(step)
        zeros = torch.zeros(len(loss.nodes), model.layout.columns)
        loss.add(zeros, zeros)
        loss.loss()
        loss.gradient()
        return time.perf_counter() - started

    def largest(self) -> float:
        """The largest magnitude among the embeddings' numbers, as the last step has left them."""
        return float(self._largest)

    def scorer(self) -> FactorScorer:
        """The model as it is now, until the next scorer."""
        before = self._passes.times.transferred()
        scorer = self.model.scorer()
        self._apart += self._passes.times.transferred() - before
        return scorer

    def keep_best(self) -> None:
        """Remember the parameters as they are now, the embeddings in a file of their own."""
        self._best = self._best or self.model.store.matrix("best", self.model.layout)
        self._best.copy_from(self.model.embedding)
        self._best_weights = {name: value.clone() for name, value in self.model.state_dict().items()}

    def take_best(self) -> None:
        """Go back to the parameters that were remembered, if any were."""
        if self._best is not None:
            self.model.embedding.copy_from(self._best)
            self.model.load_state_dict(self._best_weights)

    def state(self) -> dict[str, Any]:
        """Everything of a checkpoint that is a tensor, by GROUP.NAME, as `Resident` has it; the largest as `Rows`."""
        tensors: dict[str, Any] = {"model.embedding": as_rows(self.model.embedding)}
        tensors |= {f"model.{name}": value for name, value in self.model.state_dict().items()}
        if self._best is not None:
            tensors["best.embedding"] = as_rows(self._best)
            tensors |= {f"best.{name}": value for name, value in self._best_weights.items()}
        if self._count:
            tensors |= {f"optimizer.0.{moment.name}": as_rows(moment) for moment in self.moments}
            tensors["optimizer.0.step"] = torch.tensor(float(self._count))
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index + 1}.{name}": value for name, value in state.items()}
        return tensors

    def restore(self, groups: Mapping[str, Mapping[str, Any]], where: str) -> None:
        """Take the state of a checkpoint whose matrices are `Rows`.

        Raises:
            CheckpointError: it is of another model; `where` it lies.
        """
        load(self.model, groups["model"], where)
        stored = groups.get("optimizer", {})
        self._count = int(stored.get("0.step", 0))
        for moment in self.moments if self._count else []:
            fill(moment, stored, f"0.{moment.name}", where)
        optimizer = self.optimizer.state_dict()
        for name, value in stored.items():
            index, _, key = name.partition(".")
            if index != "0":
                optimizer["state"].setdefault(int(index) - 1, {})[key] = whole(value)
        self.optimizer.load_state_dict(optimizer)
        if "best" in groups:
            self._best = self._best or self.model.store.matrix("best", self.model.layout)
            fill(self._best, groups["best"], "embedding", where)
            self._best_weights = {name: whole(x) for name, x in groups["best"].items() if name != "embedding"}

    def close(self, *, drain: bool = True) -> None:
        """End the threads of a step that was given up, and those that read the graph."""
        self.model.adjacency.close()
        self._passes.close()

    def _batch(self, step: int) -> ops.BPRPanels:
        (triples,) = self.sampler.batch(step)
        return ops.BPRPanels(triples, self._size, self.loss.reg, hardest=self.loss.hardest)

    def _forward(self, layers: list[ops.NGCFBlocks], loss: ops.BPRPanels) -> _Last:
        """Give the loss the batch's rows of every layer, and leave inputs and aggregates in the files; gives the rows
        of the last layer."""
        model, nodes, passes = self.model, loss.nodes, self._passes
        *inner, outer = layers
        for number, layer in enumerate(inner):
            source, aggregates = model.inputs[number : number + 2], model.aggregates[number]
            own = torch.empty(len(nodes), model.layout.columns)
            for columns in model.aggregated(passes, layer, source[0], aggregates):
                own[:, columns] = model.panel[nodes]
            loss.add(own, own if number == 0 else None)
            for rows, _, norms in model.dense(passes, layer, source[0], aggregates, source[1]):
                self._norms[number, rows] = norms
        parts = model.adjacency.chosen(nodes)
        own, sums = (torch.empty(len(nodes), model.layout.columns) for _ in range(2))
        gathered = torch.empty(len(nodes), model.layout.width)
        for _, columns in model.panels(passes, model.inputs[-1]):
            for where, part in parts:
                outer.aggregate(part, nodes[where], model.panel, gathered[where])
            own[:, columns], sums[:, columns] = model.panel[nodes], gathered
        loss.add(own, None if inner else own)
        out, norms = outer.forward(nodes, own, sums)
        loss.add(out, None)
        return _Last(own, sums, out, norms)

    def _backward(self, layers: list[ops.NGCFBlocks], loss: ops.BPRPanels, last: _Last, lr: float) -> None:
        """A step of Adam, from the last layer to the embeddings."""
        model, (*inner, outer) = self.model, layers
        *grads, grad = [loss.gradient() for _ in range(len(layers) + 1)]
        own, sums = outer.backward(loss.nodes, *last, grad)
        self._collect(len(inner), outer, self._scattered(loss.nodes, sums), loss, grads.pop(), lr, own)
        for number, layer in reversed(list(enumerate(inner))):
            self._dense_backward(number, layer)
            panels = model.panels(self._passes, model.aggregates[number])
            self._collect(number, layer, panels, loss, grads.pop(), lr)
        for layer, *weights in zip(layers, model.w1, model.b1, model.w2, model.b2, strict=True):
            for weight, gradient in zip(weights, layer.gradients(), strict=True):
                weight.grad = gradient
        self.optimizer.step()

    def _scattered(self, nodes: torch.Tensor, values: torch.Tensor) -> Iterator[tuple[int, slice]]:
        """As `StreamedNGCF.panels`, of a matrix that is 0 but in the rows of these nodes."""
        panel, width = self.model.panel, self.model.layout.width
        for number in range(self.model.layout.panels):
            columns = slice(number * width, (number + 1) * width)
            panel.zero_()[nodes] = values[:, columns]
            yield number, columns

    def _dense_backward(self, number: int, layer: ops.NGCFBlocks) -> None:
        """Turn the gradient of a layer's output into that of its rows' own features, and its aggregates into their
        gradients, in their files."""
        model, gradient = self.model, self._gradient
        assert gradient is not None
        inputs = [panel for matrix in model.inputs[number : number + 2] for panel in matrix.column_panels()]
        changed = model.aggregates[number].column_panels() + gradient.column_panels()
        with self._passes.open(read=inputs, change=changed) as stream:
            for block in stream.panel(0):
                own, out, sums, grad = model.rows_of(block.tensors)
                norms = self._norms[number, block.rows]
                found = layer.backward(numbers(block.rows), own, sums, out, norms, grad)
                half = len(inputs) // 2
                model.put(block.tensors[-2 * half : -half], found[1])
                model.put(block.tensors[-half:], found[0])

    def _collect(
        self,
        number: int,
        layer: ops.NGCFBlocks,
        panels: Iterator[tuple[int, slice]],
        loss: ops.BPRPanels,
        final: torch.Tensor,
        lr: float,
        own: torch.Tensor | None = None,
    ) -> None:
        """The gradient of a layer's input: by its aggregates, by its rows' own features, and by the loss. It is written
        to its file, or, of the embeddings, taken by Adam at once.

        Args:
            panels: after each, the model's panel holds the gradient of the aggregates.
            final: the gradient of the batch's rows by what the loss sees of them.
            own: of the batch's rows by their own features, where it is 0 for all others; by default the file has it.
        """
        model, nodes = self.model, loss.nodes
        state = [] if number else [model.embedding, *self.moments]
        gradient = [] if self._gradient is None else [self._gradient]
        ways: dict[str, list[PanelMatrix]] = {"change": state or gradient}
        if own is not None:
            ways = {"change": state, "write": [] if state else gradient}
        elif state:
            ways["read"] = gradient
        with self._passes.open(**ways, share=1 - SOURCES) as stream:
            for panel, columns in panels:
                for block in stream.panel(panel):
                    first, last = torch.searchsorted(nodes, torch.tensor([block.rows.start, block.rows.stop])).tolist()
                    here, batch = nodes[first:last] - block.rows.start, slice(first, last)
                    if gradient:
                        grad, *tensors = block.tensors
                    else:
                        grad, tensors = torch.empty_like(block.tensors[0]), block.tensors
                    if own is not None:
                        grad.zero_()[here] = own[batch, columns]
                    model.aggregate(layer, block, grad, backward=True)
                    added = final[batch, columns]
                    if state and loss.decay is not None:
                        added = tensors[0][here] * loss.decay[batch, None] + added
                    grad[here] += added
                    if state:
                        self._update(grad, *tensors, lr=lr)

    def _update(self, gradient: torch.Tensor, embedding: torch.Tensor, *moments: torch.Tensor, lr: float) -> None:
        """A step of Adam on a block."""
        optim.adam_block(self.config, embedding, gradient, *moments, lr=lr, step=self._count)
        for extreme in embedding.aminmax():  # not by max(), which loses a NaN
            self._largest = torch.maximum(self._largest, extreme.abs())


def load(model: StreamedNGCF, state: Mapping[str, Any], where: str) -> None:
    """Take the parameters of a checkpoint whose matrices are `Rows`.

    Raises:
        CheckpointError: it is of another model; `where` it lies.
    """
    fill(model.embedding, state, "embedding", where)
    try:
        model.load_state_dict({name: whole(value) for name, value in state.items() if name != "embedding"})
    except RuntimeError as error:
        remedy = "Resume with the configuration of that run"
        raise CheckpointError("holds another model", where=where, remedy=remedy) from error
