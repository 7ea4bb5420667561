"""Steps of a LightGCN or an NGCF whose nodes lie with several ranks: each has some, and their rows of the graph.

Every rank draws the same users for a batch, and the items for those of them that it has. Of the final embeddings all
ranks get the batch's rows, and so compute the same loss and the same gradient of it. Before a layer, forward or
backward, ranks send each other all rows of what it takes; the last one forward makes the batch's rows alone, and the
first one backward begins with these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from gnnrec import ops
from gnnrec.config import BPRConfig, OptimizerConfig, TrainerConfig
from gnnrec.errors import CheckpointError
from gnnrec.models import FactorScorer, LightGCNRows, NGCFRows
from gnnrec.training import optim, sampler
from gnnrec.training.checkpoint import Parts, whole
from gnnrec.training.distributed import Parallel, folds


class RowParallel(Parallel):
    """LightGCN with BPR and Adam, of which this rank has some nodes: bit-equal to `Resident`, for any number of ranks.

    Args:
        model: on this rank's nodes; its embeddings are trained in place.
        config: the loop's settings.
        loss, optimizer: their settings.
        seed: of the sampler.
    """

    def __init__(
        self,
        model: LightGCNRows | NGCFRows,
        config: TrainerConfig,
        loss: BPRConfig,
        optimizer: OptimizerConfig,
        seed: int,
    ) -> None:
        graph = model.graph
        own = graph.shares[graph.ranks.rank]
        super().__init__(model.embedding.detach(), optimizer, graph.ranks, graph.num_nodes, own)
        self.model: Any = model
        self.graph, self.loss = graph, loss
        self.sampler: sampler.Sampler = sampler.build(loss, graph, config, seed, pinned=False)

    def scorer(self) -> FactorScorer:
        """The model as it is now, for this rank's users, until the next step."""
        self.ranks.doing = "an evaluation"
        self.kept.release()
        found: FactorScorer = self.model.scorer()
        return found

    def part(self, matrix: torch.Tensor) -> Parts:
        """These rows: of users, and of items."""
        count = self.rows[0].stop - self.rows[0].start
        both = zip(self.rows, (matrix[:count], matrix[count:]), strict=True)
        return Parts(0, {rows.start: part for rows, part in both if len(part)})

    @torch.no_grad()
    def differentiate(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As Parallel.differentiate."""
        ego, model = self.embedding, self.model
        batch, which, here = self.batch(step, ego.shape[1])
        batch.add(*self._rows(batch.nodes, here))
        loss = batch.loss()
        found = batch.gradient()[:, : ego.shape[1]]
        model.everyone.zero_()[batch.nodes] = found
        upstream = torch.zeros_like(ego)
        upstream[here] = found[which]
        gradient = model.propagate(upstream)
        if batch.decay is not None:
            gradient[here] += ego[here] * batch.decay[which, None]
        return self.agreed(loss), gradient

    def _rows(self, nodes: torch.Tensor, here: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The final and the ego embeddings of a batch's nodes."""
        self.model.spread(self.embedding)
        ego = self.model.everyone[nodes]
        return folds(self.graph.collect(nodes, self.model.propagate(self.embedding, here))), folds(ego)

    def batch(self, step: int, columns: int) -> tuple[ops.BPRPanels, torch.Tensor, torch.Tensor]:
        """A batch's loss; which of its nodes are this rank's, and where these are."""
        (triples,) = self.sampler.batch(step)
        size = self.graph.num_nodes, columns
        batch = ops.BPRPanels(triples, size, self.loss.reg, hardest=self.loss.hardest, device=self.device)
        return batch, *self.graph.here(batch.nodes)

    def agreed(self, loss: torch.Tensor, *sums: torch.Tensor) -> torch.Tensor:
        """The loss that the first rank has: all have the same, where their processors compute the same bits. Tells them
        of signals, and adds up what is given besides."""
        loss = loss.clone() if self.ranks.leads else torch.zeros_like(loss)
        self.ranks.total(loss, *sums)
        return loss


class _Layer(NamedTuple):
    """Rows of a layer, float32 [n, dim]: its input, aggregates, output and, [n], norms."""

    own: torch.Tensor
    sums: torch.Tensor
    out: torch.Tensor
    norms: torch.Tensor


class RowParallelLayers(RowParallel):
    """NGCF with BPR and Adam, of which this rank has some nodes, and all weights. With one rank it is bit-equal to
    `Resident`; with several, gradients of weights are sums over ranks, whose float32 rounding is another one."""

    def __init__(
        self, model: NGCFRows, config: TrainerConfig, loss: BPRConfig, optimizer: OptimizerConfig, seed: int
    ) -> None:
        super().__init__(model, config, loss, optimizer, seed)
        self.dense = optim.build(optimizer, model)  # of all but the embedding, which has no gradient for it
        self._best_weights: dict[str, torch.Tensor] = {}

    def update(self, gradient: torch.Tensor, lr: float) -> None:
        """As Parallel.update, and of weights and biases."""
        super().update(gradient, lr)
        optim.set_lr(self.dense, lr)
        self.dense.step()

    @torch.no_grad()
    def differentiate(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As Parallel.differentiate; gradients of weights and biases are then theirs."""
        model, layers, width = self.model, self.model.layers(step), self.embedding.shape[1]
        batch, which, here = self.batch(step, width * (len(layers) + 1))
        done = self._forward(layers, here)
        self._add(batch, [self.embedding[here], *(layer.out[here] for layer in done[:-1]), done[-1].out])
        loss = batch.loss()
        grads = [batch.gradient()[which, :width] for _ in range(len(layers) + 1)]
        gradient = self._backward(layers, done, batch.nodes, here, grads)
        if batch.decay is not None:
            grads[0] = self.embedding[here] * batch.decay[which, None] + grads[0]
        gradient[here] += grads[0]
        weights = [w for of_layer in zip(model.w1, model.b1, model.w2, model.b2, strict=True) for w in of_layer]
        found = [gradient.contiguous() for layer in layers for gradient in layer.gradients()]
        loss = self.agreed(loss, *found)
        for weight, of_weight in zip(weights, found, strict=True):
            weight.grad = of_weight
        return loss, gradient

    def _add(self, batch: ops.BPRPanels, rows: list[torch.Tensor]) -> None:
        """Give the loss what all ranks have of the batch's rows of the embeddings and of every layer."""
        for number, mine in enumerate(rows):
            part = folds(self.graph.collect(batch.nodes, mine))
            batch.add(part, part if number == 0 else None)

    def _forward(self, layers: list[ops.NGCFBlocks], here: torch.Tensor) -> list[_Layer]:
        """Every layer of own nodes, the last one of the batch's alone."""
        model, done, own = self.model, list[_Layer](), self.embedding
        for layer in layers:
            model.spread(own)
            numbers, part = self.graph.numbers, model.matrix
            if layer is layers[-1]:
                numbers, part, own = numbers[here], part.select_rows(here), own[here]
            sums = torch.empty_like(own)
            layer.aggregate(part, numbers, model.everyone, sums)
            done.append(_Layer(own, sums, *layer.forward(numbers, own, sums)))
            own = done[-1].out
        return done

    def _backward(
        self,
        layers: list[ops.NGCFBlocks],
        done: list[_Layer],
        nodes: torch.Tensor,
        here: torch.Tensor,
        grads: list[torch.Tensor],
    ) -> torch.Tensor:
        """The gradient of the embeddings of own nodes, but for what the loss sees of them.

        Args:
            nodes: of the batch; here: the places of those that are this rank's.
            grads: the gradients of these by what the loss sees of the embeddings and of every layer.
        """
        model, numbers = self.model, self.graph.numbers
        gradient = torch.zeros_like(self.embedding)
        for number in reversed(range(len(layers))):
            layer, kept = layers[number], done[number]
            if layer is layers[-1]:
                gradient[here], sums = layer.backward(numbers[here], *kept, grads[number + 1])
                model.everyone.zero_()[nodes] = self.graph.collect(nodes, sums)
            else:
                gradient[here] += grads[number + 1]
                gradient, sums = layer.backward(numbers, *kept, gradient)
                model.spread(sums)
            layer.aggregate(model.matrix, numbers, model.everyone, gradient, backward=True)
        return gradient

    def keep_best(self) -> None:
        """As Parallel.keep_best."""
        super().keep_best()
        self._best_weights = {name: value.clone() for name, value in self._weights().items()}

    def take_best(self) -> None:
        """As Parallel.take_best."""
        super().take_best()
        for name, value in self._weights().items() if self._best_weights else ():
            value.copy_(self._best_weights[name])

    def state(self) -> dict[str, Any]:
        """As Parallel.state."""
        tensors = super().state()
        if self.ranks.leads:
            tensors |= {f"model.{name}": value for name, value in self._weights().items()}
            tensors |= {f"best.{name}": value for name, value in self._best_weights.items()}
            for index, state in self.dense.state_dict()["state"].items():
                tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        return tensors

    def restore(self, groups: Mapping[str, Mapping[str, Any]], where: str) -> None:
        """As Parallel.restore."""
        super().restore(groups, where)
        stored = [
            {name: whole(x) for name, x in groups.get(kind, {}).items() if name != "embedding"}
            for kind in ("model", "best")
        ]
        try:
            for name, value in self._weights().items():
                value.copy_(stored[0][name])
        except (KeyError, RuntimeError) as error:
            remedy = "Resume with the configuration of that run"
            raise CheckpointError("holds another model", where=where, remedy=remedy) from error
        self._best_weights = stored[1]
        optimizer = self.dense.state_dict()
        for name, value in groups.get("optimizer", {}).items():
            index, _, key = name.partition(".")
            if index != "0":
                optimizer["state"].setdefault(int(index), {})[key] = whole(value)
        self.dense.load_state_dict(optimizer)

    def _weights(self) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = self.model.state_dict()
        return {name: value for name, value in found.items() if name != "embedding"}
