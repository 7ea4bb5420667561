"""Losses of a training step: scalar tensors from embeddings and the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

LANES = 1024


def bpr_loss(final: torch.Tensor, ego: torch.Tensor, triples: torch.Tensor, reg: float = 0.0) -> torch.Tensor:
    """Bayesian personalised ranking with L2 on the ego embeddings of the batch.

    mean over the batch of softplus(s(u, n) - s(u, p)) + reg / 2 * (|e_u|^2 + |e_p|^2 + |e_n|^2), with s the dot product
    of final embeddings and e the ego embeddings.

    Args:
        final: propagated embeddings [nodes, dim].
        ego: embeddings before propagation [nodes, dim].
        triples: int64 [3, batch]: user, positive and negative node numbers.
        reg: weight of the L2 term.

    Returns:
        A scalar. Sums run in an order that does not depend on the number of threads.

    Source: Rendle et al. 2009; the L2 term as in the code of He et al. 2020.
    """
    users, positives, negatives = F.embedding(triples, final)
    margin = (users * (negatives - positives)).sum(dim=-1)
    loss = _sum(F.softplus(margin))
    if reg:
        loss = loss + 0.5 * reg * _sum(F.embedding(triples, ego).square().sum(dim=-1).flatten())
    return loss / triples.shape[1]


def _sum(values: torch.Tensor) -> torch.Tensor:
    """The sum of a vector in two fixed stages; torch's own splits by the number of threads."""
    return F.pad(values, (0, -len(values) % LANES)).view(-1, LANES).sum(dim=1).cumsum(0)[-1]
