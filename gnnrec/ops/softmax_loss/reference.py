"""Oracle, cases and bytes of softmax_loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from gnnrec.graph.sparse import SparseMatrix
from gnnrec.ops._operator import DIMS, Case, case_matrices, entry_rows


def softmax_loss(
    matrix: SparseMatrix,
    queries: torch.Tensor,
    keys: torch.Tensor | None = None,
    *,
    rows: torch.Tensor | None = None,
    negatives: torch.Tensor | None = None,
    log_counts: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    temperature: float = 0.1,
    cosine: bool = True,
    power: float = 1.0,
    positive_temperature: float | None = None,
    precision: torch.dtype | None = None,
) -> torch.Tensor:
    """All scores at once."""
    if keys is None:
        queries, keys = queries.split(list(matrix.shape))
    part = matrix if rows is None else matrix.select_rows(rows)
    queries = queries if rows is None else queries[rows]
    if cosine:
        queries, keys = unit(queries), unit(keys)
    scores = queries @ keys.T / temperature + (0 if bias is None else bias.to(queries.dtype))
    row, col = entry_rows(part), part.indices.long()
    positive = scores[row, col]
    negatives = torch.arange(len(keys)) if negatives is None else negatives
    other = scores[:, negatives] - (0 if log_counts is None else log_counts.to(scores.dtype))
    is_positive = torch.zeros(part.shape, dtype=torch.bool)
    is_positive[row, col] = True
    other = other.masked_fill(is_positive[:, negatives], -torch.inf)
    degrees = part.indptr.diff().to(scores.dtype)
    weights = degrees[row] ** (power - 1)
    weights = weights / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
    if positive_temperature is None:
        total = torch.cat([positive[:, None], other[row]], dim=1).logsumexp(dim=1)
        return (weights * (total - positive)).sum()
    ratio, some, value = positive_temperature / temperature, other.isfinite().any(dim=1), scores.new_zeros(())
    for i in range(part.shape[0]):
        mine = row == i
        if mine.any():
            value = value - weights[mine].sum() * ratio * ((positive[mine] / ratio).logsumexp(0) - degrees[i].log())
            if some[i]:
                value = value + weights[mine].sum() * other[i].logsumexp(0)
    return value


def unit(x: torch.Tensor) -> torch.Tensor:
    """Rows of length 1, and 0 for those that have no direction."""
    none = x.detach().norm(dim=1, keepdim=True) < 1e-12
    return F.normalize(x.masked_fill(none, 1.0)).masked_fill(none, 0.0)


def cases() -> list[Case]:
    """Every width, small graph and option; repeated positives, rows without any, negatives that are all positives."""
    generator = torch.Generator().manual_seed(0)
    graphs = case_matrices()
    options: dict[str, dict[str, object]] = {
        "all": {},
        "dot": {"cosine": False, "temperature": 2.0},
        "rows": {"rows": torch.tensor([2, 0, 7, 30]), "power": 0.5},
        "some": {"negatives": torch.randperm(23, generator=generator)[:9]},
        "rows-some-logq": {
            "rows": torch.randperm(40, generator=generator)[:25],
            "negatives": torch.tensor([3, 22, 0, 7]),
            "log_counts": torch.tensor([-1.0, 0.5, -0.25, 0.0]),
            "power": 0.0,
            "cosine": False,
            "temperature": 1.0,
        },
        "none": {"negatives": torch.empty(0, dtype=torch.int64)},
        "bias": {"bias": torch.randn(23, generator=generator)},
        "bias-some-logq": {
            "negatives": torch.tensor([3, 22, 0, 7]),
            "log_counts": torch.tensor([-1.0, 0.5, -0.25, 0.0]),
            "bias": torch.randn(23, generator=generator),
        },
        "bilateral": {"positive_temperature": 0.2, "power": 0.0},
        "bilateral-rows-some": {
            "rows": torch.tensor([2, 0, 7, 30]),
            "negatives": torch.tensor([3, 22, 0, 7]),
            "positive_temperature": 0.05,
        },
        "bilateral-none": {"negatives": torch.empty(0, dtype=torch.int64), "positive_temperature": 0.1},
    }
    chosen = [("user_item", dim, "all") for dim in DIMS] + [("user_item", dim, "rows-some-logq") for dim in (33, 64)]
    chosen += [("user_item", 33, name) for name in options if name not in ("all", "rows-some-logq")]
    chosen += [("user_item", 64, "bilateral"), ("trailing", 33, "bilateral")]
    chosen += [(name, 33, "all") for name in graphs if name not in ("user_item", "no_edges", "no_rows")]
    result = []
    for graph, dim, name in chosen:
        matrix = graphs[graph]
        tensors: dict[str, tuple[int, ...]] = {"queries": (matrix.shape[0], dim), "keys": (matrix.shape[1], dim)}
        result.append(Case(f"{graph}-{dim}-{name}", tensors, {"matrix": matrix, **options[name]}))
    together = [("user_item", 33, "all"), ("user_item", 64, "rows-some-logq"), ("user_item", 33, "rows")]
    for graph, dim, name in together:
        matrix = graphs[graph]
        tensors = {"queries": (sum(matrix.shape), dim)}
        result.append(Case(f"{graph}-{dim}-{name}-together", tensors, {"matrix": matrix, **options[name]}))
    return result


def bytes_moved(case: Case, itemsize: int) -> int:
    """As `moved` counts them."""
    matrix: SparseMatrix = case.options["matrix"]
    rows, negatives = case.options.get("rows"), case.options.get("negatives")
    part, columns = matrix if rows is None else matrix.select_rows(rows), matrix.shape[1]
    if negatives is not None:
        columns = len(torch.cat([part.indices.long(), negatives]).unique())
    count = None if negatives is None else len(negatives)
    return moved(part.shape[0], part.nnz, columns, count, case.tensors["queries"][1] * itemsize)


def moved(rows: int, entries: int, columns: int, negatives: int | None, row_bytes: int) -> int:
    """Bytes of rows of the batch and of the columns that take part, and of their gradients; negatives apart from the
    other columns, and their gradients; both rows of every positive twice. Panels stay in the caches."""
    count = 2 * rows + 2 * columns + 2 * (negatives or 0) + 4 * entries
    return 8 * (rows + 1) + 4 * entries + count * row_bytes
