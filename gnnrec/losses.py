"""Losses: what a batch is, and the number that a step lowers. Each calls one operator."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gnnrec import ops
from gnnrec.config import BPRConfig, LossConfig, SoftmaxConfig
from gnnrec.graph.bipartite import BipartiteGraph

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class BPR:
    """Bayesian personalised ranking over triples (Rendle et al. 2009), L2 on the ego embeddings of the batch.

    Args:
        config: its settings.
    """

    def __init__(self, config: BPRConfig) -> None:
        self.reg = config.reg

    def __call__(self, final: torch.Tensor, ego: torch.Tensor, triples: torch.Tensor) -> torch.Tensor:
        """The mean over triples int64 [3, batch] of node numbers: user, positive and negative item."""
        return ops.bpr_loss(final, ego, triples, self.reg)


class Softmax:
    """Softmax over all items, or over some that the batch's users share, for every positive of these users.

    Args:
        config: its settings.
        graph: the training graph.
        cosine: whether scores are cosines, as the model's are.
        device: where it is computed.
    """

    def __init__(self, config: SoftmaxConfig, graph: BipartiteGraph, cosine: bool, device: torch.device) -> None:
        self.positives, self.sizes = graph.user_item(), [graph.num_users, graph.num_items]
        self.config, self.cosine = config, cosine
        self.precision = best_precision(device) if config.precision == "auto" else PRECISIONS[config.precision]

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
        queries, keys = final.split(self.sizes)
        return ops.softmax_loss(
            self.positives.to(final.device),
            queries,
            keys,
            rows=users,
            negatives=negatives,
            log_counts=log_counts,
            temperature=self.config.temperature,
            cosine=self.cosine,
            power=self.config.user_power,
            precision=self.precision,
        )


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
        loss: BPR | Softmax,
        views: Callable[[], tuple[torch.Tensor, torch.Tensor]],
        weight: float,
        temperature: float,
    ) -> None:
        self.loss, self.views, self.weight, self.temperature = loss, views, weight, temperature
        self.precision = loss.precision if isinstance(loss, Softmax) else None

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


def best_precision(device: torch.device) -> torch.dtype:
    """bfloat16 where the device has instructions that multiply it, float32 elsewhere."""
    if device.type == "cuda":
        return torch.bfloat16
    native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def build(config: LossConfig, graph: BipartiteGraph, cosine: bool, device: torch.device) -> BPR | Softmax:
    """The loss that `config` names."""
    if isinstance(config, SoftmaxConfig):
        return Softmax(config, graph, cosine, device)
    return BPR(config)
