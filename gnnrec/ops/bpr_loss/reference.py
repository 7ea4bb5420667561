"""Oracle, cases and bytes of bpr_loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from gnnrec.ops._operator import DIMS, Case


def bpr_loss(final: torch.Tensor, ego: torch.Tensor, triples: torch.Tensor, reg: float = 0.0) -> torch.Tensor:
    """Gathers, softplus (torch's own is linear beyond 20) and a mean."""
    users, positives, negatives = F.embedding(triples, final)
    margin = (users * (negatives - positives)).sum(dim=-1)
    return -F.logsigmoid(-margin).mean() + 0.5 * reg * F.embedding(triples, ego).square().sum() / triples.shape[1]


def cases() -> list[Case]:
    """Every width with nodes that come often, once and never; without the regulariser; a batch of many blocks; ego
    embeddings narrower and wider than the final ones."""
    generator = torch.Generator().manual_seed(0)
    sizes = [*((dim, dim, 23, 40, 0.1) for dim in DIMS), (3, 3, 5, 4, 0.0), (33, 33, 300, 1500, 0.01)]
    result = []
    for dim, ego_dim, nodes, batch, reg in [*sizes, (300, 64, 23, 40, 0.1), (33, 300, 23, 40, 0.1)]:
        triples = torch.randint(nodes // 2 + 1, (3, batch), generator=generator)
        tensors: dict[str, tuple[int, ...]] = {"final": (nodes, dim), "ego": (nodes, ego_dim)}
        name = f"{dim}-{nodes}-{batch}-{reg}" if ego_dim == dim else f"{dim}-{ego_dim}-{nodes}-{batch}-{reg}"
        result.append(Case(name, tensors, {"triples": triples, "reg": reg}))
    return result


def bytes_moved(case: Case, itemsize: int) -> int:
    """The batch's numbers, three rows of a triple of the final and with reg of the ego embeddings."""
    triples: torch.Tensor = case.options["triples"]
    columns = case.tensors["final"][1] + (case.tensors["ego"][1] if case.options["reg"] else 0)
    return triples.numel() * (8 + columns * itemsize)
