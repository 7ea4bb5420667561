"""Oracle, cases and bytes of uniformity_loss."""

from __future__ import annotations

import torch

from gnnrec.ops._operator import DIMS, Case
from gnnrec.ops.softmax_loss.reference import unit


def uniformity_loss(
    x: torch.Tensor, *, rows: torch.Tensor | None = None, t: float = 2.0, precision: torch.dtype | None = None
) -> torch.Tensor:
    """All distances at once."""
    points = unit(x if rows is None else x[rows])
    if len(points) < 2:
        return 0 * points.sum()
    apart = (points[:, None] - points[None]).square().sum(dim=2)
    pairs = torch.ones_like(apart, dtype=torch.bool).triu(1)
    return (-t * apart)[pairs].logsumexp(0) - pairs.sum().to(apart.dtype).log()


def cases() -> list[Case]:
    """Every width; some rows, repeated and in any order; one row, which makes no pair."""
    chosen: list[tuple[str, int, int, dict[str, object]]] = [(f"{dim}-all", 23, dim, {}) for dim in DIMS]
    for name, rows in (("some", [5, 0, 22, 5, 7]), ("one", [3])):
        chosen.append((f"33-{name}", 23, 33, {"rows": torch.tensor(rows, dtype=torch.int64), "t": 0.5}))
    return [Case(name, {"x": (count, dim)}, options) for name, count, dim, options in chosen]


def bytes_moved(case: Case, itemsize: int) -> int:
    """The rows once, their gradients and those of all: panels stay in the caches."""
    count, dim = case.tensors["x"]
    rows = case.options.get("rows")
    return (2 * (count if rows is None else len(rows)) + count) * dim * itemsize
