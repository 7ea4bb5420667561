"""Losses: what a batch is, and the number that a step lowers. They call operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from gnnrec import extensions, ops
from gnnrec.config import BPRConfig, CustomLossConfig, DirectAUConfig, LossConfig, SoftmaxConfig, SquaredConfig
from gnnrec.graph.bipartite import BipartiteGraph
from gnnrec.ops.lightgcn_propagate import SIZES

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Different nodes, int64 [n], all of a batch among them, and a loss of their final and ego embeddings, [n, dim] each.
Part = tuple[torch.Tensor, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]


class BPR:
    """Bayesian personalised ranking over triples (Rendle et al. 2009), L2 on the ego embeddings of the batch. Of
    several negatives all count, or the one with the highest score (Zhang et al. 2013).

    Args:
        config: its settings.
    """

    def __init__(self, config: BPRConfig) -> None:
        self.reg, self.hardest = config.reg, config.hardest

    @property
    def takes_ego(self) -> bool:
        """Whether ego embeddings are looked at."""
        return self.reg > 0

    def __call__(self, final: torch.Tensor, ego: torch.Tensor, triples: torch.Tensor) -> torch.Tensor:
        """The mean over triples int64 [2 + n, batch] of node numbers: user, positive and n negative items."""
        return ops.bpr_loss(final, ego, triples, self.reg, hardest=self.hardest)

    def part(self, num_nodes: int, triples: torch.Tensor) -> Part:
        """The same of the nodes that a batch has."""
        nodes, (triples,) = _among(num_nodes, triples)
        return nodes, lambda final, ego: self(final, ego if self.takes_ego else final, triples)


class Softmax:
    """Softmax over all items, or over some that the batch's users share, for every positive of these users.

    Args:
        config: its settings.
        graph: the training graph.
        cosine: whether scores are cosines, as the model's are.
        device: where it is computed.
    """

    takes_ego = False

    def __init__(self, config: SoftmaxConfig, graph: BipartiteGraph, cosine: bool, device: torch.device) -> None:
        self.positives, self.config, self.cosine = graph.user_item(), config, cosine
        degrees = torch.from_numpy(graph.item_degrees).clamp(min=1).double()
        prior = config.prior * (degrees.log() - degrees.log().mean())
        self.bias = prior.float().to(device) if config.prior else None
        self.precision = _precision(config.precision, device)

    def __call__(
        self,
        final: torch.Tensor,
        ego: torch.Tensor,
        users: torch.Tensor,
        negatives: torch.Tensor | None = None,
        log_counts: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The mean over the positives of users int64 [batch], among all items or the negatives, int64 [n]; items are
        numbered from 0."""
        positives = self.positives.to(final.device)
        return ops.softmax_loss(positives, final, rows=users, **self._options(negatives, log_counts, self.bias))

    def part(
        self,
        num_nodes: int,
        users: torch.Tensor,
        negatives: torch.Tensor | None = None,
        log_counts: torch.Tensor | None = None,
    ) -> Part:
        """The same of a batch's users, their items and the negatives, or all items."""
        part, num_users, num_items = self.positives.select_rows(users), *self.positives.shape
        items, bias, indices = torch.arange(num_items), self.bias, part.indices
        if negatives is not None:
            items, (indices, negatives) = _among(num_items, indices, negatives)
            bias = None if bias is None else bias[items]
        matrix = ops.SparseMatrix(part.indptr, indices.int(), (len(users), len(items)))
        options = self._options(negatives, log_counts, bias)
        return torch.cat([users, num_users + items]), lambda final, ego: ops.softmax_loss(matrix, final, **options)

    def _options(
        self, negatives: torch.Tensor | None, log_counts: torch.Tensor | None, bias: torch.Tensor | None
    ) -> dict[str, Any]:
        """Of ops.softmax_loss."""
        return {
            "negatives": negatives,
            "log_counts": log_counts,
            "bias": bias,
            "temperature": self.config.temperature,
            "cosine": self.cosine,
            "power": self.config.user_power,
            "positive_temperature": self.config.positive_temperature,
            "precision": self.precision,
        }


class Squared:
    """Squared error over all pairs of the batch's users and all items: the loss of implicit alternating least squares
    (Hu et al. 2008).

    sum over the users' positives of (1 - s)^2, plus negative_weight * sum over their pairs with all items of
    (weight of the user) * (weight of the item) * s^2, plus reg * sum over users and items of (frequency)^reg_power *
    |e|^2; all of it divided by the number of positives. The pairs with all items cost one product of two Gram matrices,
    dim x dim each: nothing of users x items is ever held, and no pair is left out.

    Weights are degrees, divided by their mean, to a power. The frequency of a user is the number of positives plus
    negative_weight * num_items, that of an item correspondingly (Rendle et al. 2022, "Revisiting the performance of
    iALS on item recommendation benchmarks", equation 9); e is an ego embedding.

    Args:
        config: its settings.
        graph: the training graph.
        device: where it is computed.
    """

    def __init__(self, config: SquaredConfig, graph: BipartiteGraph, device: torch.device) -> None:
        self.config, self.positives, self.sizes = config, graph.user_item(), [graph.num_users, graph.num_items]
        degrees = [torch.from_numpy(x).double().to(device) for x in (graph.user_degrees, graph.item_degrees)]
        powers = config.user_power, config.item_power
        self.weights = [(x.clamp(min=1) / x.mean()) ** power for x, power in zip(degrees, powers)]
        others = reversed(self.sizes)
        self.decay = [(x + config.negative_weight * n) ** config.reg_power for x, n in zip(degrees, others)]

    def __call__(self, final: torch.Tensor, ego: torch.Tensor, users: torch.Tensor) -> torch.Tensor:
        """The loss of the users int64 [batch], among all items."""
        config, (final, ego) = self.config, (_wide(x) for x in (final, ego))
        part = self.positives.to(final.device).select_rows(users)
        queries, keys = final.split(self.sizes)
        queries = queries.index_select(0, users)
        scores = ops.sddmm(part, queries, keys)
        user_weight, item_weight = (x.to(final.dtype)[:, None] for x in self.weights)
        grams = torch.mm((user_weight[users] * queries).T, queries), torch.mm((item_weight * keys).T, keys)
        total = (1 - scores).square().sum() + config.negative_weight * (grams[0] * grams[1]).sum()
        if config.reg:
            mine, items = ego.split(self.sizes)
            user_decay, item_decay = (x.to(ego.dtype)[:, None] for x in self.decay)
            share = len(users) / self.sizes[0]  # of the items' decay
            total = total + config.reg * (user_decay[users] * mine.index_select(0, users).square()).sum()
            total = total + config.reg * share * (item_decay * items.square()).sum()
        return total / part.nnz


class DirectAU:
    """Alignment of users with their items, and uniformity of both on the sphere (Wang et al. 2022).

    mean over the users' positives of |u - i|^2, plus uniformity / 2 * (that of the batch's users + that of their
    different items), see `ops.uniformity_loss`; all at length 1.

    Args:
        config: its settings.
        graph: the training graph.
        device: where it is computed.
    """

    def __init__(self, config: DirectAUConfig, graph: BipartiteGraph, device: torch.device) -> None:
        self.config, self.positives, self.sizes = config, graph.user_item(), [graph.num_users, graph.num_items]
        self.precision = _precision(config.precision, device)

    def __call__(self, final: torch.Tensor, ego: torch.Tensor, users: torch.Tensor) -> torch.Tensor:
        """The loss of the users int64 [batch]."""
        final = _wide(final)
        part = self.positives.to(final.device).select_rows(users)
        queries, keys = final.split(self.sizes)
        cosines = ops.sddmm(part, F.normalize(queries.index_select(0, users)), F.normalize(keys))
        both = (queries, users), (keys, part.indices.long().unique())
        spread = [ops.uniformity_loss(x, rows=rows, t=self.config.t, precision=self.precision) for x, rows in both]
        return 2 - 2 * cosines.mean() + self.config.uniformity / 2 * sum(spread)


class Contrastive:
    """Another loss plus a weighted contrastive term, InfoNCE between two views of users and of items.

    For one kind of nodes the term is the mean over nodes n of log sum_m exp(cos(v_n, w_m) / temperature) minus
    cos(v_n, w_n) / temperature, where m goes over the same nodes and v and w are the views; see `ops.softmax_loss`.

    Args:
        loss: the other one. Products are computed in its precision, where it has one.
        views: gives the two views that belong to the final embeddings of a step, each like those.
        weight, temperature: of the term.

    Source: Yu et al. 2022, "Are graph augmentations necessary?", equation 3; the mean over nodes, and users and items
    apart, as in the authors' code.
    """

    def __init__(
        self,
        loss: Loss,
        views: Callable[[], tuple[torch.Tensor, torch.Tensor]],
        weight: float,
        temperature: float,
    ) -> None:
        self.loss, self.views, self.weight, self.temperature = loss, views, weight, temperature
        self.precision = loss.precision if isinstance(loss, Softmax | DirectAU) else None

    def __call__(
        self, final: torch.Tensor, ego: torch.Tensor, users: torch.Tensor, items: torch.Tensor, *batch: torch.Tensor
    ) -> torch.Tensor:
        """The other loss of a batch, and the term of different users and items, int64 [n] and [m] of node numbers."""
        one, other = self.views()
        term = self._info_nce(one, other, users) + self._info_nce(one, other, items)
        return self.loss(final, ego, *batch) + self.weight * term

    def _info_nce(self, one: torch.Tensor, other: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
        # Rows are gathered before they are normalised: the views have many more. Nodes are different, so no sum of the
        # backward pass depends on an order.
        count = len(nodes)
        pointers = torch.arange(count + 1, device=nodes.device)
        identity = ops.SparseMatrix(pointers, pointers[:count].int(), (count, count), symmetric=True)
        rows = (view.index_select(0, nodes) for view in (one, other))
        return ops.softmax_loss(identity, *rows, temperature=self.temperature, precision=self.precision)


def _among(count: int, *numbers: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The different ones of numbers below count, int64 in rising order, and the numbers' places among them; on the
    CPU. Others join them, up to a multiple of a SIZES-th of all: matrices of ever new sizes would leave holes in the
    memory that no other fits."""
    places = np.zeros(count, np.int32)
    for some in numbers:
        places[some.numpy()] = 1
    more = -np.count_nonzero(places) % max(count // SIZES, 1)
    places[np.flatnonzero(places == 0)[:more]] = 1
    different = np.flatnonzero(places)
    places[different] = np.arange(len(different), dtype=np.int32)
    return torch.from_numpy(different), [torch.from_numpy(places[some.numpy()]).long() for some in numbers]


def _wide(x: torch.Tensor) -> torch.Tensor:
    """Halves as float32, as operators compute."""
    return x.float() if x.dtype.itemsize < 4 else x


def _precision(name: str, device: torch.device) -> torch.dtype:
    return best_precision(device) if name == "auto" else PRECISIONS[name]


def best_precision(device: torch.device) -> torch.dtype:
    """bfloat16 where the device has instructions that multiply it, float32 elsewhere."""
    if device.type == "cuda":
        return torch.bfloat16
    native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def build(config: LossConfig, graph: BipartiteGraph, cosine: bool, device: torch.device) -> Loss:
    """The loss that `config` names."""
    if isinstance(config, CustomLossConfig):
        custom: Loss = extensions.make("loss", config.path, (), config.options, graph, cosine=cosine, device=device)
        return custom
    if isinstance(config, SoftmaxConfig):
        return Softmax(config, graph, cosine, device)
    if isinstance(config, SquaredConfig):
        return Squared(config, graph, device)
    if isinstance(config, DirectAUConfig):
        return DirectAU(config, graph, device)
    return BPR(config)


Loss = BPR | Softmax | Squared | DirectAU
