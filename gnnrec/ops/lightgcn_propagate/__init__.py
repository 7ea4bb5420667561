"""lightgcn_propagate: all layers of LightGCN with the weighted sum over layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from gnnrec.graph.sparse import SparseMatrix
from gnnrec.ops import _arguments
from gnnrec.ops._operator import Operator
from gnnrec.ops.lightgcn_propagate import cpu, reference

__all__ = ["OP", "lightgcn_propagate"]


def lightgcn_propagate(
    matrix: SparseMatrix, x: torch.Tensor, *, num_layers: int = 3, layer_weights: Sequence[float] | None = None
) -> torch.Tensor:
    """sum over l = 0 .. num_layers of layer_weights[l] * A^l x, without a feature transformation or non-linearity.

    The sum over layers happens while a layer's row is in registers; nothing is kept for the backward pass, which
    is this function again, since A is symmetric. The result is bit-equal for any number of threads.

    Args:
        matrix: symmetric SparseMatrix A [nodes, nodes], as `graph.norm_adjacency()` gives it.
        x: float32 or float64 [nodes, dim], any strides.
        num_layers: at least 0.
        layer_weights: num_layers + 1 numbers; by default all are 1 / (num_layers + 1), the mean over layers.

    Returns:
        [nodes, dim], of x's dtype.

    Raises:
        ValueError: another type, dtype, device or shape, a matrix that is not symmetric, weights of another number.

    Source: He et al. 2020, "LightGCN", equations 7 and 8.
    """
    _arguments.check_matrix("lightgcn_propagate", matrix, symmetric=True)
    _arguments.check_dense("lightgcn_propagate", "x", x, rows=matrix.shape[0])
    if num_layers < 0:
        raise ValueError(f"lightgcn_propagate: num_layers must be at least 0, got {num_layers}")
    weights = [1 / (num_layers + 1)] * (num_layers + 1) if layer_weights is None else [float(w) for w in layer_weights]
    if len(weights) != num_layers + 1:
        raise ValueError(
            f"lightgcn_propagate: layer_weights must hold num_layers + 1 = {num_layers + 1} numbers, got {len(weights)}"
        )
    result: torch.Tensor = _propagate(_arguments.pack(matrix), x, weights)
    return result


@torch.library.custom_op("gnnrec::lightgcn_propagate", mutates_args=())
def _propagate(matrix: list[torch.Tensor], x: torch.Tensor, weights: list[float]) -> torch.Tensor:
    out = x.new_empty(x.shape)
    if len(weights) == 1:
        return torch.mul(x, weights[0], out=out)
    indptr, indices, row_scale, col_scale, chunks = matrix
    work = x.new_empty(x.shape if len(weights) > 2 else (0, x.shape[1]))
    cpu.propagate(
        _arguments.array(indptr),
        _arguments.array(indices),
        _arguments.scale_array(row_scale, x.dtype),
        _arguments.scale_array(col_scale, x.dtype),
        _arguments.array(chunks),
        _arguments.array(x),
        weights,
        work.numpy(),
        out.numpy(),
    )
    return out


@_propagate.register_fake
def _(matrix: list[torch.Tensor], x: torch.Tensor, weights: list[float]) -> torch.Tensor:
    return x.new_empty(x.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.matrix, _, ctx.weights = inputs


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    return [None] * len(ctx.matrix), _propagate(ctx.matrix, grad, ctx.weights), None


_propagate.register_autograd(_backward, setup_context=_setup_context)

OP = Operator("lightgcn_propagate", lightgcn_propagate, reference.propagate, reference.cases, reference.bytes_moved)
