"""rgcn_conv: a layer for a graph with several kinds of edges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from gnnrec import device as devices
from gnnrec.graph.sparse import SparseMatrix
from gnnrec.ops import _arguments
from gnnrec.ops._launch import unpack
from gnnrec.ops._matmul import matmul
from gnnrec.ops._operator import Operator
from gnnrec.ops._stacks import check_stack, computed, scaled_arrays
from gnnrec.ops.rgcn_conv import cpu, reference

__all__ = ["OP", "rgcn_conv"]

REDUCTIONS = ("mean", "sum")


def rgcn_conv(
    matrices: Sequence[SparseMatrix],
    x: torch.Tensor,
    weights: torch.Tensor,
    root: torch.Tensor | None = None,
    *,
    x_rows: torch.Tensor | None = None,
    reduce: str = "mean",
) -> torch.Tensor:
    """Relational graph convolution: y[i] = root x_rows[i] + sum_r reduce_j weights[r] c_rij x[j], over the entries
    (i, j) of each relation's matrix (view, cart, buy, ...) with the product c_rij of its scales.

    Neighbours are aggregated before they are multiplied, block by block of rows, so that nothing is stored for an edge
    and no aggregate for all nodes. Differentiable with respect to all dense arguments, to any order; the backward pass
    aggregates gradients alike and saves nothing but the arguments. Sums are float32 for halves. The result is bit-equal
    for any number of threads. Inside torch.compile the transposes cannot be built: touch each `matrix.T` before.

    Args:
        matrices: a SparseMatrix [rows, cols] for each relation, without values of its own.
        x: float32, float64, bfloat16 or float16 [cols, in], any strides.
        weights: [relations, out, in], of x's dtype, as the other tensors.
        root: [out, in], the weight of a row's own features; none where it is None.
        x_rows: [rows, in], features of the rows where they are not those of the columns.
        reduce: mean (by the number of entries of a row in a relation) or sum; what has no entries is 0.

    Returns:
        [rows, out], of x's dtype.

    Raises:
        ValueError: another type, dtype, device or shape, with what was received; x_rows without root, or none where the
            matrices are not square.

    Source: Schlichtkrull et al. 2018, equation 2, without its nonlinearity; order of the products: Zhang et al. 2022,
    section 3.
    """
    _check(matrices, x, weights, root, x_rows)
    if reduce not in REDUCTIONS:
        raise ValueError(f"rgcn_conv: reduce must be one of {', '.join(REDUCTIONS)}, got {reduce!r}")
    if reduce == "mean":
        matrices = [matrix.row_mean for matrix in matrices]
    packed = [part for matrix in matrices for part in _arguments.pack(matrix)]
    transposed = [part for matrix in matrices for part in _arguments.pack_transpose(matrix, x, weights)]
    own = x if x_rows is None and root is not None else x_rows
    result: torch.Tensor = _rgcn(packed, transposed, x, weights, own, root)
    return result


def _check(matrices: Any, x: Any, weights: Any, root: Any, x_rows: Any) -> None:
    if not isinstance(matrices, Sequence) or len(matrices) == 0:
        raise ValueError(f"rgcn_conv: matrices must be a SparseMatrix for each relation, got {matrices!r}")
    for matrix in matrices:
        _arguments.check_matrix("rgcn_conv", matrix)
    rows, cols = matrices[0].shape
    if any(matrix.shape != (rows, cols) for matrix in matrices):
        raise ValueError(f"rgcn_conv: matrices must have one shape, got {[matrix.shape for matrix in matrices]}")
    _arguments.check_dense("rgcn_conv", "x", x, rows=cols)
    check_stack("rgcn_conv", "weights", weights, (len(matrices), None, x.shape[1]), (x.dtype,))
    if root is not None:
        _arguments.check_dense("rgcn_conv", "root", root, weights.shape[1], x.shape[1], (x.dtype,))
    if x_rows is not None:
        if root is None:
            raise ValueError("rgcn_conv: x_rows has no effect without root")
        _arguments.check_dense("rgcn_conv", "x_rows", x_rows, rows, x.shape[1], (x.dtype,))
    elif root is not None and rows != cols:
        raise ValueError(f"rgcn_conv: root needs x_rows [{rows}, {x.shape[1]}] where matrices are {rows} x {cols}")
    for matrix in matrices:
        _arguments.check_device("rgcn_conv", matrix, x=x, weights=weights, root=root, x_rows=x_rows)


def _relations(packed: list[torch.Tensor], count: int) -> list[list[torch.Tensor]]:
    """Each relation's packed matrix."""
    parts = len(packed) // count
    return [packed[at : at + parts] for at in range(0, len(packed), parts)]


@torch.library.custom_op("gnnrec::rgcn", mutates_args=())
def _rgcn(
    matrices: list[torch.Tensor],
    transposed: list[torch.Tensor],
    x: torch.Tensor,
    weights: torch.Tensor,
    x_rows: torch.Tensor | None,
    root: torch.Tensor | None,
) -> torch.Tensor:
    dtype, relations = _arguments.compute_dtype(x.dtype), _relations(matrices, len(weights))
    own = None if x_rows is None or root is None else matmul(x_rows.to(dtype), root.to(dtype))
    if devices.on_gpu(x):
        from gnnrec.ops.rgcn_conv import cuda

        return cuda.rgcn([unpack(matrix, x.dtype) for matrix in relations], x, weights, own).to(x.dtype)
    out = torch.empty(matrices[0].shape[0] - 1, weights.shape[1], dtype=dtype) if own is None else own
    features, factors = _arguments.array(x.contiguous()), computed(weights.mT)
    for number, matrix in enumerate(relations):
        arrays, accumulate = scaled_arrays(matrix, x), number > 0 or own is not None
        cpu.aggregate_matmul(arrays, features, factors[number], out.numpy(), accumulate)
    return out.to(x.dtype)


@_rgcn.register_fake
def _(
    matrices: list[torch.Tensor],
    transposed: list[torch.Tensor],
    x: torch.Tensor,
    weights: torch.Tensor,
    x_rows: torch.Tensor | None,
    root: torch.Tensor | None,
) -> torch.Tensor:
    return x.new_empty((matrices[0].shape[0] - 1, weights.shape[1]))


@torch.library.custom_op("gnnrec::rgcn_backward", mutates_args=())
def _rgcn_backward(
    matrices: list[torch.Tensor],
    transposed: list[torch.Tensor],
    grad: torch.Tensor,
    x: torch.Tensor,
    weights: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of x and weights without the rows' own features."""
    relations = _relations(transposed, len(weights))
    if devices.on_gpu(x):
        from gnnrec.ops.rgcn_conv import cuda

        gradients = cuda.rgcn_backward([unpack(matrix, x.dtype) for matrix in relations], grad, x, weights)
        return gradients[0].to(x.dtype), gradients[1].to(x.dtype)
    features, factors, upstream = computed(x), computed(weights), _arguments.array(grad.contiguous())
    grad_x, grad_weights = (torch.empty(like.shape, dtype=_arguments.compute_dtype(x.dtype)) for like in (x, weights))
    for number, matrix in enumerate(relations):
        arrays, grads = scaled_arrays(matrix, grad), (grad_x.numpy(), grad_weights[number].numpy())
        cpu.aggregate_matmul_backward(arrays, upstream, factors[number], features, *grads, number > 0)
    return grad_x.to(x.dtype), grad_weights.to(x.dtype)


@_rgcn_backward.register_fake
def _(
    matrices: list[torch.Tensor],
    transposed: list[torch.Tensor],
    grad: torch.Tensor,
    x: torch.Tensor,
    weights: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), weights.new_empty(weights.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.matrices, ctx.transposed, *dense = inputs
    ctx.save_for_backward(*dense)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    x, weights, x_rows, root = ctx.saved_tensors
    graph, needed = (ctx.matrices, ctx.transposed), ctx.needs_input_grad[2:]
    gradients: list[torch.Tensor | None] = [None] * 4
    if needed[0] or needed[1]:
        gradients[:2] = _rgcn_backward(*graph, grad, x, weights)
    if needed[2]:
        gradients[2] = torch.ops.gnnrec.matmul(grad, root.T)
    if needed[3]:
        gradients[3] = torch.ops.gnnrec.matmul_weight(grad, x_rows)
    return [None] * len(graph[0]), [None] * len(graph[1]), *gradients


def _backward_backward(ctx: Any, of_x: torch.Tensor, of_weights: torch.Tensor) -> tuple[Any, ...]:
    """The layer is linear in its features and in its weights."""
    grad, x, weights = ctx.saved_tensors
    graph = ctx.matrices, ctx.transposed
    of_grad = _rgcn(*graph, of_x, weights, None, None) + _rgcn(*graph, x, of_weights, None, None)
    return [None] * len(graph[0]), [None] * len(graph[1]), of_grad, *_rgcn_backward(*graph, grad, of_x, of_weights)


_rgcn.register_autograd(_backward, setup_context=_setup_context)
_rgcn_backward.register_autograd(_backward_backward, setup_context=_setup_context)

OP = Operator("rgcn_conv", rgcn_conv, reference.rgcn_conv, reference.cases, reference.bytes_moved)
