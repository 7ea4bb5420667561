"""Oracle, cases and bytes of bpr_loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from gnnrec.ops._operator import DIMS, Case


def bpr_loss(
    final: torch.Tensor, ego: torch.Tensor, triples: torch.Tensor, reg: float = 0.0, *, hardest: bool = False
) -> torch.Tensor:
    """Gathers, softplus (torch's own is linear beyond 20) and means; of equal maxima torch gives the first."""
    pairs, negatives = triples[:2], triples[2:]
    users, positives = F.embedding(pairs, final)
    margins = (users * (F.embedding(negatives, final) - positives)).sum(dim=-1)
    if hardest:
        margins, best = margins.max(dim=0, keepdim=True)
        negatives = negatives.gather(0, best)
    squares = F.embedding(pairs, ego).square().sum() + F.embedding(negatives, ego).square().sum() / len(negatives)
    return -F.logsigmoid(-margins).mean() + 0.5 * reg * squares / triples.shape[1]


def cases() -> list[Case]:
    """Every width with nodes that come often, once and never; without the regulariser; a batch of many blocks; ego
    embeddings narrower and wider than the final ones; several negatives, some of them the same, all or the hardest."""
    generator = torch.Generator().manual_seed(0)
    single = [*((dim, dim, 23, 40, 0.1) for dim in DIMS), (3, 3, 5, 4, 0.0), (33, 33, 300, 1500, 0.01)]
    sizes = [
        (33, 33, 23, 40, 0.1, 3, False),  # the first of its width, so that every dtype and layout is tried with it
        (300, 300, 23, 40, 0.1, 3, True),
        *((*size, 1, False) for size in [*single, (300, 64, 23, 40, 0.1), (33, 300, 23, 40, 0.1)]),
        (3, 5, 5, 4, 0.1, 2, False),
        (3, 3, 5, 4, 0.1, 2, True),
        (64, 16, 300, 700, 0.1, 3, False),
        (64, 64, 23, 40, 0.0, 5, True),
        (64, 200, 300, 700, 0.1, 5, True),
    ]
    result = []
    for dim, ego_dim, nodes, batch, reg, negatives, hardest in sizes:
        triples = torch.randint(nodes // 2 + 1, (2 + negatives, batch), generator=generator)
        tensors: dict[str, tuple[int, ...]] = {"final": (nodes, dim), "ego": (nodes, ego_dim)}
        name = f"{dim}-{nodes}-{batch}-{reg}" if ego_dim == dim else f"{dim}-{ego_dim}-{nodes}-{batch}-{reg}"
        name += f"-{'hardest' if hardest else 'all'}-{negatives}" if negatives > 1 else ""
        result.append(Case(name, tensors, {"triples": triples, "reg": reg, "hardest": hardest}))
    return result


def bytes_moved(case: Case, itemsize: int) -> int:
    """The batch's numbers; the rows of users, positives and negatives, of the final embeddings and with reg of the ego
    embeddings, where those of negatives that do not count are not read."""
    triples: torch.Tensor = case.options["triples"]
    roles, batch = triples.shape
    kept = 3 if case.options.get("hardest") else roles
    columns = roles * case.tensors["final"][1] + (kept * case.tensors["ego"][1] if case.options["reg"] else 0)
    return batch * (8 * roles + columns * itemsize)


def backward_bytes(case: Case, itemsize: int) -> int:
    """What `bpr_loss_backward` moves: the rows of the scores again, once more those that the gradients of users and of
    items sum up, all rows of the gradient of the final embeddings written; with reg also those of the ego embeddings
    written, and the batch's read, here as if no node came twice."""
    triples: torch.Tensor = case.options["triples"]
    roles, batch = triples.shape
    kept = 1 if case.options.get("hardest") else roles - 2
    (nodes, dim), ego_dim = case.tensors["final"], case.tensors["ego"][1]
    final = (batch * (roles + 2 * (1 + kept)) + nodes) * dim
    ego = (min(nodes, batch * (2 + kept)) + nodes) * ego_dim if case.options["reg"] else 0
    return batch * 8 * roles + (final + ego) * itemsize
