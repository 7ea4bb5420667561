"""Oracle, cases and bytes of ngcf_layer."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import leaky_relu
from torch.nn.functional import normalize as normalized

from gnnrec.graph.sparse import SparseMatrix
from gnnrec.ops._dropout import draw_seed, keep
from gnnrec.ops._operator import Case, case_matrices, entry_rows, entry_scales
from gnnrec.ops.ngcf_layer.cpu import ENTRIES, MESSAGES


def ngcf_layer(
    matrix: SparseMatrix,
    x: torch.Tensor,
    w1: torch.Tensor,
    b1: torch.Tensor | None,
    w2: torch.Tensor,
    b2: torch.Tensor | None,
    *,
    x_rows: torch.Tensor | None = None,
    negative_slope: float = 0.2,
    dropout: float = 0.0,
    node_dropout: float = 0.0,
    training: bool = False,
    seed: torch.Tensor | None = None,
    bias: str = "once",
    normalize: bool = True,
    keep_aggregate: bool = False,
) -> torch.Tensor:
    """Aggregate, then the formula; masks are made whole."""
    rows, cols, factors = entry_rows(matrix), matrix.indices.long(), entry_scales(matrix, x.dtype)
    own = x if x_rows is None else x_rows
    random = training and (dropout or node_dropout)
    key = int(draw_seed(seed)) if random else 0
    if random:
        factors = factors * keep(key, rows, cols, ENTRIES, 1, node_dropout)[:, 0] / (1 - node_dropout)
    s = x.new_zeros(own.shape).index_add(0, rows, factors[:, None] * x[cols])
    total = x.new_zeros(len(own), 1).index_add(0, rows, factors[:, None])
    h = (own + s) @ w1.T + (own * s) @ w2.T
    for b, times in ((b1, 1 + total), (b2, total)):
        if b is not None:
            h = h + (b * times if bias == "edge" else b)
    h = leaky_relu(h, negative_slope)
    if random:
        i = torch.arange(len(own))
        h = h * keep(key, i, torch.zeros_like(i), MESSAGES, h.shape[1], dropout) / (1 - dropout)
    return normalized(h) if normalize else h


def cases() -> list[Case]:
    """Every small graph, odd widths in and out, every kind of bias; where there are rows with features of their own."""
    matrices = case_matrices()

    def case(name: str, graph: str, dim: int, out: int, **options: Any) -> Case:
        matrix = matrices[graph]
        tensors: dict[str, tuple[int, ...]] = {"x": (matrix.shape[1], dim), "w1": (out, dim), "w2": (out, dim)}
        if options.get("bias") == "none":
            options |= {"b1": None, "b2": None}
        else:
            tensors |= {"b1": (out,), "b2": (out,)}
        if graph != "square":
            tensors["x_rows"] = (matrix.shape[0], dim)
        return Case(f"{name}-{dim}-{out}", tensors, {"matrix": matrix, **options})

    # Wide layers, and the first of each width, which halves are tested on, are not normalised: sizes of all-positive
    # results bound roundings poorly where rows are divided by their norms.
    return [
        case("plain", "square", 33, 63, normalize=False),
        case("plain", "square", 64, 64, normalize=False, bias="none"),
        case("plain", "user_item", 300, 33, normalize=False),
        case("square", "square", 33, 63),
        case("user_item", "user_item", 64, 64),
        case("edge", "user_item", 33, 63, bias="edge"),
        case("wide", "square", 200, 300, bias="edge", normalize=False, negative_slope=0.0),
        case("kept", "user_item", 64, 64, keep_aggregate=True),
        case("unscaled", "unscaled", 3, 2),
        case("trailing", "trailing", 3, 2, bias="edge"),
        case("no_edges", "no_edges", 1, 3),
        case("no_rows", "no_rows", 1, 3),
    ]


def bytes_moved(case: Case, itemsize: int) -> int:
    """Pointers, columns and scales once, a row of x and a column scale for every entry, the rows' own features, weights
    and the output once; norms and aggregates, in at least float32, where they are kept."""
    matrix: SparseMatrix = case.options["matrix"]
    (out, dim), rows, computed = case.tensors["w1"], matrix.shape[0], max(itemsize, 4)
    scales = 4 * (matrix.row_scale is not None) * rows + 4 * (matrix.col_scale is not None) * matrix.nnz
    dense = (matrix.nnz + rows + 2 * out) * dim + rows * out + 2 * out * ("b1" in case.tensors)
    kept: int = rows * case.options.get("normalize", True) + rows * dim * case.options.get("keep_aggregate", False)
    return 8 * (rows + 1) + 4 * matrix.nnz + scales + dense * itemsize + kept * computed


def backward_bytes(case: Case, itemsize: int) -> int:
    """What `ngcf_layer_backward` moves: it aggregates again, unless the aggregates are kept; reads the rows' own
    features, the output and its gradient; writes the gradients of the aggregates and of the rows; and gathers the
    former over the transpose on top of the latter."""
    matrix: SparseMatrix = case.options["matrix"]
    (out, dim), (rows, cols), computed = case.tensors["w1"], matrix.shape, max(itemsize, 4)
    scales = (matrix.row_scale is not None, matrix.col_scale is not None)
    kept = bool(case.options.get("keep_aggregate", False))

    def gathered(of: int, own: bool, other: bool) -> int:
        return 8 * (of + 1) + 4 * matrix.nnz * (1 + other) + 4 * own * of + matrix.nnz * dim * itemsize

    again = rows * dim * computed if kept else gathered(rows, *scales)
    dense = rows * (3 * dim + 2 * out) + 2 * cols * dim
    weights = 4 * out * dim + 2 * out * ("b1" in case.tensors)
    norms = rows * bool(case.options.get("normalize", True))
    return again + gathered(cols, *reversed(scales)) + dense * itemsize + (weights + norms) * computed
