"""gat_conv: graph attention."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from gnnrec import device as devices
from gnnrec.graph.sparse import SparseMatrix
from gnnrec.ops import _arguments, _dropout
from gnnrec.ops._launch import unpack
from gnnrec.ops._matmul import matmul
from gnnrec.ops._operator import Operator
from gnnrec.ops.gat_conv import cpu, reference
from gnnrec.ops.gat_conv.panels import parts

__all__ = ["OP", "gat_conv"]

# Numbers beyond h, never touched: with less room than that malloc would not give the place of h to an aligned array as
# large, the gradient of x.
SPARE = 1 << 18


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
    """Multi-head attention over neighbours: y_i = sum_j a_ij h_j for every head, with h_j = weight x_j and a_ij the
    softmax over j of leaky_relu(<attn_row, h_i> + <attn_col, h_j>).

    Only the pattern of the matrix counts, not its scales or values; entries that repeat are neighbours twice. Rows
    without entries are 0. Differentiable once with respect to all dense arguments. Two numbers a row and head are kept
    for the backward pass (a third with `x_rows`), nothing for an entry or a column: it computes h and the weights
    again. Everything but the arguments and the result is float32 for halves. The result is bit-equal for any number of
    threads. Inside torch.compile the transpose cannot be built: touch `matrix.T` before.

    Args:
        matrix: SparseMatrix [rows, cols]; square unless there is `x_rows`.
        x: float32, float64, bfloat16 or float16 [cols, in], any strides: features of the columns' nodes.
        weight: [heads * dim, in]; this and the attention vectors of x's dtype or float32.
        attn_row: [heads, dim], for a row's own part of a logit.
        attn_col: [heads, dim], for its neighbours' parts.
        x_rows: of x's dtype [rows, in], features of the rows' nodes; by default x.
        negative_slope: of leaky_relu, at least 0.
        dropout: probability within [0, 1) that an attention weight becomes 0; the others are divided by 1 - dropout.
            Drawn from torch's default generator.
        training: whether there is dropout.

    Returns:
        [rows, heads * dim], heads side by side, of x's dtype.

    Raises:
        ValueError: another type, dtype, device or shape, with what was received; a matrix that is not square without
            `x_rows`, a slope or probability outside its range.

    Source: Velickovic et al. 2018, "Graph attention networks", equations 1 to 5; fused as in Zhang et al. 2022,
    "Understanding GNN computational graph", sections 3 and 5.
    """
    _check(matrix, x, weight, attn_row, attn_col, x_rows)
    if not 0 <= negative_slope < math.inf:
        raise ValueError(f"gat_conv: negative_slope must be at least 0 and finite, got {negative_slope}")
    _dropout.check_probability("gat_conv", "dropout", dropout)
    heads, dim = attn_row.shape
    wide = _arguments.compute_dtype(x.dtype)
    # [heads, dim, in]; contiguous, for one result to the bit.
    blocks = weight.to(wide).reshape(heads, dim, -1).contiguous()
    # <attn, weight x> = <weight.T attn, x>
    if devices.on_gpu(x):
        both = torch.stack([attn.to(wide) for attn in (attn_row, attn_col)], dim=1)
        row_weight, col_weight = torch.bmm(both, blocks).unbind(1)
    else:
        row_weight, col_weight = (
            torch.cat([matmul(vector[None], block.T) for vector, block in zip(attn.to(wide), blocks)])
            for attn in (attn_row, attn_col)
        )
        # Heads that fall into parts are filled up to equal ones.
        blocks = F.pad(blocks, (0, 0, 0, -dim % parts(dim)))
    row_scores = None
    if x_rows is None:
        col_weight = torch.cat([col_weight, row_weight])
    else:
        row_scores = matmul(x_rows.to(wide), row_weight)
    seed = _dropout.draw_seed() if training and dropout > 0 else None
    needed = x, weight, attn_row, attn_col, row_scores
    patterns = _pattern(_arguments.pack(matrix)), _pattern(_arguments.pack_transpose(matrix, *needed))
    y, _ = _attend(*patterns, x, blocks.flatten(0, 1), col_weight, row_scores, seed, negative_slope, dropout)
    y = y if blocks.shape[1] == dim else y.unflatten(1, blocks.shape[:2])[..., :dim].flatten(1)
    result: torch.Tensor = y.to(x.dtype)
    return result


def _pattern(packed: list[torch.Tensor]) -> list[torch.Tensor]:
    """A packed matrix without scales."""
    return [*packed[:2], *[packed[2][:0]] * 2, *packed[4:]] if packed else packed


def _check(matrix: Any, x: Any, weight: Any, attn_row: Any, attn_col: Any, x_rows: Any) -> None:
    _arguments.check_matrix("gat_conv", matrix, values=True)
    _arguments.check_dense("gat_conv", "x", x, rows=matrix.shape[1])
    dtypes = dict.fromkeys((x.dtype, torch.float32))
    _arguments.check_dense("gat_conv", "attn_row", attn_row, dtypes=list(dtypes))
    heads, dim = attn_row.shape
    if heads == 0:
        raise ValueError(f"gat_conv: attn_row must have shape [heads >= 1, dim >= 1], got {list(attn_row.shape)}")
    _arguments.check_dense("gat_conv", "attn_col", attn_col, heads, dim, list(dtypes))
    _arguments.check_dense("gat_conv", "weight", weight, heads * dim, x.shape[1], list(dtypes))
    if x_rows is not None:
        _arguments.check_dense("gat_conv", "x_rows", x_rows, matrix.shape[0], x.shape[1], (x.dtype,))
    elif matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"gat_conv: x_rows must be given for a matrix that is not square, got {matrix}")
    tensors = {"x": x, "weight": weight, "attn_row": attn_row, "attn_col": attn_col, "x_rows": x_rows}
    _arguments.check_device("gat_conv", matrix, **tensors)


@torch.library.custom_op("gnnrec::gat_conv", mutates_args=())
def _attend(
    matrix: list[torch.Tensor],
    transposed: list[torch.Tensor],
    x: torch.Tensor,
    weight: torch.Tensor,
    score_weight: torch.Tensor,
    row_scores: torch.Tensor | None,
    seed: torch.Tensor | None,
    negative_slope: float,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The result, of weight's dtype, and `cpu.forward`'s stats. Without `row_scores`, `score_weight` gives them too."""
    out, stats = _empty(matrix, weight, score_weight, row_scores)
    if devices.on_gpu(x):
        from gnnrec.ops.gat_conv import cuda

        wide = x.to(weight.dtype).contiguous()  # for one result to the bit
        given = cuda.Attention(row_scores, negative_slope, _drop(seed, dropout))
        cuda.forward(unpack(matrix, weight.dtype), wide, weight, score_weight, given, stats, out)
        return out, stats
    memory = weight.new_empty(len(x) * len(weight) + SPARE)
    h, attention = _inputs(x.to(weight.dtype), weight, score_weight, row_scores, seed, negative_slope, dropout, memory)
    arrays = _arguments.matrix_arrays(matrix, weight.dtype)
    cpu.forward(arrays, h, attention, _arguments.array(stats), _arguments.array(out))
    return out, stats


def _empty(
    matrix: list[torch.Tensor], weight: torch.Tensor, score_weight: torch.Tensor, row_scores: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    rows = matrix[0].shape[0] - 1
    heads = score_weight.shape[0] // (2 if row_scores is None else 1)
    return (
        devices.empty(weight, (rows, weight.shape[0]), "the result of gat_conv"),
        devices.empty(weight, (rows, 2, heads), "what gat_conv keeps of rows"),
    )


def _drop(seed: torch.Tensor | None, dropout: float) -> tuple[int, int, float] | None:
    """Seed, threshold and scale of dropout; none without a seed."""
    return None if seed is None else (int(seed), _dropout.threshold(dropout), 1 / (1 - dropout))


def _inputs(
    x: torch.Tensor,
    weight: torch.Tensor,
    score_weight: torch.Tensor,
    row_scores: torch.Tensor | None,
    seed: torch.Tensor | None,
    negative_slope: float,
    dropout: float,
    memory: torch.Tensor,
) -> tuple[Any, cpu.Attention]:
    """h and attention as kernels take them."""
    number = _arguments.numpy_dtype(weight.dtype)
    h, scores = cpu.project(*map(_arguments.array, (x, weight, score_weight, memory)))
    heads = scores.shape[1] // 2
    given = (scores[:, heads:], scores[:, :heads]) if row_scores is None else (_arguments.array(row_scores), scores)
    drop = _drop(seed, dropout)
    return h, (*given, number(negative_slope), None if drop is None else (*drop[:2], number(drop[2])))


@_attend.register_fake
def _(
    matrix: list[torch.Tensor],
    transposed: list[torch.Tensor],
    x: torch.Tensor,
    weight: torch.Tensor,
    score_weight: torch.Tensor,
    row_scores: torch.Tensor | None,
    seed: torch.Tensor | None,
    negative_slope: float,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    return _empty(matrix, weight, score_weight, row_scores)


@torch.library.custom_op("gnnrec::gat_conv_backward", mutates_args=())
def _attend_backward(
    matrix: list[torch.Tensor],
    transposed: list[torch.Tensor],
    x: torch.Tensor,
    weight: torch.Tensor,
    score_weight: torch.Tensor,
    row_scores: torch.Tensor | None,
    seed: torch.Tensor | None,
    negative_slope: float,
    dropout: float,
    stats: torch.Tensor,
    grad: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x, weight, score_weight and of the row scores, empty where those were not given."""
    wide = x.to(weight.dtype)
    if devices.on_gpu(x):
        from gnnrec.ops.gat_conv import cuda

        graphs = unpack(matrix, weight.dtype), unpack(transposed, weight.dtype)
        given = cuda.Attention(row_scores, negative_slope, _drop(seed, dropout))
        grads = cuda.backward(*graphs, wide.contiguous(), weight, score_weight, given, stats, grad)
        return grads[0].to(x.dtype), *grads[1:]
    # The gradient of x will lie where h does now, if it fits.
    memory = weight.new_empty(len(x) * max(x.shape[1], len(weight)))
    h, attention = _inputs(wide, weight, score_weight, row_scores, seed, negative_slope, dropout, memory)
    upstream, numbers = _arguments.array(grad), _arguments.array(stats)
    dots, grad_scores = cpu.row_gradient(
        _arguments.matrix_arrays(matrix, weight.dtype), h, attention, numbers, upstream
    )
    del h
    grad_x = memory.view(x.shape) if len(weight) <= x.shape[1] else None
    del memory
    if grad_x is None:
        grad_x = weight.new_empty(x.shape)
    grad_weight, grad_score_weight = cpu.column_gradient(
        _arguments.matrix_arrays(transposed, weight.dtype),
        _arguments.array(wide),
        _arguments.array(weight),
        _arguments.array(score_weight),
        attention,
        numbers,
        upstream,
        dots,
        grad_scores,
        grad_x.numpy(),
    )
    weights = torch.from_numpy(grad_weight), torch.from_numpy(grad_score_weight)
    return grad_x.to(x.dtype), *weights, weight.new_empty(0) if row_scores is None else torch.from_numpy(grad_scores)


@_attend_backward.register_fake
def _(
    matrix: list[torch.Tensor],
    transposed: list[torch.Tensor],
    x: torch.Tensor,
    weight: torch.Tensor,
    score_weight: torch.Tensor,
    row_scores: torch.Tensor | None,
    seed: torch.Tensor | None,
    negative_slope: float,
    dropout: float,
    stats: torch.Tensor,
    grad: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    weights = weight.new_empty(weight.shape), weight.new_empty(score_weight.shape)
    return x.new_empty(x.shape), *weights, weight.new_empty(0 if row_scores is None else row_scores.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    ctx.matrix, ctx.transposed, *dense, ctx.negative_slope, ctx.dropout = inputs
    ctx.save_for_backward(*dense, output[1])


def _backward(ctx: Any, grad: torch.Tensor, grad_stats: torch.Tensor) -> tuple[Any, ...]:
    *dense, stats = ctx.saved_tensors
    row_scores = dense[3]
    options = ctx.negative_slope, ctx.dropout
    *grads, grad_scores = _attend_backward(ctx.matrix, ctx.transposed, *dense, *options, stats, grad)
    none = [None] * len(ctx.matrix), [None] * len(ctx.transposed)
    return *none, *grads, None if row_scores is None else grad_scores, None, None, None


_attend.register_autograd(_backward, setup_context=_setup_context)

OP = Operator(
    "gat_conv",
    gat_conv,
    reference.gat_conv,
    reference.cases,
    reference.bytes_moved,
    twice_differentiable=lambda case: False,
)
