"""Losses: what a batch is, and the number that a step lowers. Each calls one operator."""

from __future__ import annotations

import torch

from gnnrec import ops
from gnnrec.config import BPRConfig, LossConfig, SoftmaxConfig
from gnnrec.graph.bipartite import BipartiteGraph

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class BPR:
    """Bayesian personalised ranking over triples (Rendle et al. 2009), L2 on the ego embeddings of the batch. Of
    several negatives all count, or the one with the highest score (Zhang et al. 2013).

    Args:
        config: its settings.
    """

    def __init__(self, config: BPRConfig) -> None:
        self.reg, self.hardest = config.reg, config.hardest

    def __call__(self, final: torch.Tensor, ego: torch.Tensor, triples: torch.Tensor) -> torch.Tensor:
        """The mean over triples int64 [2 + n, batch] of node numbers: user, positive and n negative items."""
        return ops.bpr_loss(final, ego, triples, self.reg, hardest=self.hardest)


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
