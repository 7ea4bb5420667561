"""Oracle, cases and bytes of gat_conv."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from gnnrec.graph.sparse import SparseMatrix
from gnnrec.ops import _dropout
from gnnrec.ops._operator import Case, case_matrices, entry_rows
from gnnrec.ops.edge_softmax import reference as softmax
from gnnrec.ops.gat_conv.panels import panels, parts


def gat_conv(
    matrix: SparseMatrix,
    x: torch.Tensor,
    weight: torch.Tensor,
    attn_row: torch.Tensor,
    attn_col: torch.Tensor,
    *,
    x_rows: torch.Tensor | None = None,
    negative_slope: float = 0.2,
    dropout: float = 0.0,
    training: bool = False,
) -> torch.Tensor:
    """A logit, a weight and a message for every entry; the same dropout from the same state of torch's generator."""
    rows, cols, (heads, dim) = entry_rows(matrix), matrix.indices.long(), attn_row.shape
    weight, attn_row, attn_col = (parameter.to(x.dtype) for parameter in (weight, attn_row, attn_col))
    h, h_rows = ((x if z is None else z) @ weight.T for z in (x, x_rows))
    h, h_rows = h.view(-1, heads, dim), h_rows.view(-1, heads, dim)
    logits = (h_rows * attn_row).sum(dim=2)[rows] + (h * attn_col).sum(dim=2)[cols]
    attention = softmax.edge_softmax(matrix, F.leaky_relu(logits, negative_slope))
    if training and dropout > 0:
        attention = attention * keep(matrix, heads, dim, dropout) / (1 - dropout)
    messages = attention[:, :, None] * h[cols]
    return x.new_zeros(matrix.shape[0], heads, dim).index_add(0, rows, messages).flatten(1)


def keep(matrix: SparseMatrix, heads: int, dim: int, dropout: float) -> torch.Tensor:
    """Which attention weights stay, bool [nnz, heads]. Panels of heads have their streams."""
    seed = int(_dropout.draw_seed())
    width = dim + -dim % parts(dim)
    streams = {first.start: count for first, _, _, count in panels(heads * width, heads)}
    rows, cols = entry_rows(matrix), matrix.indices.long()
    kept = [_dropout.keep(seed, rows, cols, first, count, dropout) for first, count in streams.items()]
    return torch.cat(kept, dim=1)


def cases() -> list[Case]:
    """Every small graph, heads that fall into panels or a head into parts, columns that do not fill a vector."""
    matrices = case_matrices()
    shapes = (
        ("square", 33, 3, 11),
        ("square", 64, 4, 16),
        ("square", 300, 4, 16),
        ("user_item", 7, 3, 11),
        ("user_item", 7, 4, 100),
        ("square", 7, 16, 16),
        ("square", 7, 24, 3),
        ("unscaled", 5, 1, 257),
        ("trailing", 5, 3, 11),
        ("no_edges", 5, 3, 11),
        ("no_rows", 5, 3, 11),
    )
    result = [_case(name, matrices[name], *sizes) for name, *sizes in shapes]
    small = SparseMatrix.from_coo(torch.tensor([0, 0, 0, 2, 2]), torch.tensor([1, 2, 2, 0, 3]), shape=(3, 4))
    return [*result, _case("small", small, 2, 3, 4)]


def _case(name: str, matrix: SparseMatrix, columns: int, heads: int, dim: int) -> Case:
    """The attention vectors are not drawn with the rest: as large as that, one entry of a row would have all weight."""
    (rows, cols), generator = matrix.shape, torch.Generator().manual_seed(0)
    attention = torch.randn(2, heads, dim, generator=generator) / math.sqrt(columns * dim)
    tensors: dict[str, tuple[int, ...]] = {"x": (cols, columns), "weight": (heads * dim, columns)}
    if rows != cols:
        tensors["x_rows"] = (rows, columns)
    options = {"matrix": matrix, "attn_row": attention[0], "attn_col": attention[1]}
    return Case(f"{name}-{columns}-{heads}x{dim}", tensors, options)


def bytes_moved(case: Case, itemsize: int) -> int:
    """Pointers once; an entry's column and its scores twice, h's row; x and h written once, the scores, the output and
    two numbers a row and head."""
    matrix: SparseMatrix = case.options["matrix"]
    (rows, cols), wide = matrix.shape, max(itemsize, 4)
    columns, (heads, dim) = case.tensors["x"][1], case.tensors.get("attn_row") or case.options["attn_row"].shape
    entries = matrix.nnz * (2 * (4 + heads * wide) + heads * dim * wide)
    nodes = cols * (columns * itemsize + heads * (dim + 1) * wide) + rows * heads * (dim * itemsize + 4 * wide)
    features = rows * columns * itemsize if "x_rows" in case.tensors else 0
    return int(8 * (rows + 1) + entries + nodes + features)
