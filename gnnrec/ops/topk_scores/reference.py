"""Oracle, cases and bytes of topk_scores."""

from __future__ import annotations

import torch

from gnnrec.graph.bipartite import BipartiteGraph
from gnnrec.graph.sparse import SparseMatrix
from gnnrec.ops._operator import DIMS, Case


def scores(users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """All scores, each a left fold over partial sums of 16 columns."""
    total = users.new_zeros(len(users), len(items))
    for left, right in zip(users.split(16, dim=1), items.split(16, dim=1)):
        total += left @ right.T
    return total


def topk_scores(
    users: torch.Tensor, items: torch.Tensor, *, k: int, seen: SparseMatrix | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Score all, mask, sort stably."""
    return topk_dense(scores(users, items), k=k, seen=seen)


def topk_dense(values: torch.Tensor, *, k: int, seen: SparseMatrix | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask, sort stably (so that ties go by item number) and cut."""
    values = values.clone()
    if seen is not None:
        rows = torch.repeat_interleave(torch.arange(seen.shape[0]), seen.indptr.diff())
        values[rows, seen.indices.long()] = -torch.inf
    best, order = values.sort(dim=1, descending=True, stable=True)
    best, order = best[:, :k], order[:, :k].int()
    return order.masked_fill(best == -torch.inf, -1), best


def cases() -> list[Case]:
    """Odd widths, more and fewer users and items than a block and a tile, users who have seen everything, more items
    than a GPU has buckets for, and many wanted of them."""
    generator = torch.Generator().manual_seed(0)
    result = []
    tensors: dict[str, tuple[int, ...]]
    sizes = ((1, 1, 1), (7, 33, 5), (100, 131, 20), (50, 31, 31))
    for dim in DIMS:
        for num_users, num_items, k in (*sizes, *(((3, 5000, 20), (2, 2500, 1000)) if dim == 64 else ())):
            users = torch.randint(num_users, (4 * num_users,), generator=generator)
            items = torch.randint(num_items, (4 * num_users,), generator=generator)
            seen = BipartiteGraph.from_edges(users.numpy(), items.numpy(), num_users, num_items).user_item()
            tensors = {"users": (num_users, dim), "items": (num_items, dim)}
            result.append(Case(f"{dim}-{num_users}x{num_items}-{k}", tensors, {"k": k, "seen": seen}))
            result.append(Case(f"{dim}-{num_users}x{num_items}-{k}-all", tensors, {"k": k}))
    return result


def bytes_moved(case: Case, itemsize: int) -> int:
    """Users, items (packed once: read, written), seen items and the result; blocks of items stay in the caches."""
    (num_users, dim), (num_items, _) = case.tensors["users"], case.tensors["items"]
    seen = case.options.get("seen")
    masked = 0 if seen is None else 8 * (num_users + 1) + 4 * seen.nnz
    return (num_users + 3 * num_items) * dim * itemsize + masked + 8 * num_users * int(case.options["k"])
