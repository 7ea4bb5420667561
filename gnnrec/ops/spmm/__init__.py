"""spmm: sparse matrix times dense matrix."""

from __future__ import annotations

from typing import Any

import torch

from gnnrec import device as devices
from gnnrec.graph.sparse import SparseMatrix
from gnnrec.ops import _arguments
from gnnrec.ops._launch import unpack
from gnnrec.ops._operator import Operator
from gnnrec.ops.spmm import cpu, reference

__all__ = ["OP", "spmm", "spmm_accumulate"]

REDUCTIONS = ("sum", "mean", "max", "min")


def spmm(
    matrix: SparseMatrix,
    x: torch.Tensor,
    values: torch.Tensor | None = None,
    *,
    reduce: str = "sum",
    scale: float = 1.0,
    add: torch.Tensor | None = None,
    add_scale: float = 1.0,
) -> torch.Tensor:
    """Sum over neighbours: y[i] = scale * sum_j row_scale[i] * values[ij] * col_scale[j] * x[j] + add_scale * add[i],
    over the entries (i, j) of the matrix, or the mean, the greatest or the smallest of these terms.

    Differentiable with respect to `x`, `values` and `add`, for sum and mean to any order: the backward pass is spmm
    with the transpose, and sddmm. The gradient of an extreme is shared evenly among the terms that attain it, as
    torch.amax does; the backward pass finds them again. Sums are float32 for halves. The result is bit-equal for any
    number of threads. Inside torch.compile the transpose cannot be built: touch `matrix.T` before (and
    `matrix.transposed_entries`, where there are values); a graph's matrices have theirs.

    Args:
        matrix: SparseMatrix [rows, cols].
        x: float32, float64, bfloat16 or float16 [cols, dim], any strides.
        values: of x's dtype, in the order of `matrix.indices`: [nnz], or [nnz, dim] for a factor a column.
        reduce: sum, mean (by the number of entries), max or min; rows without entries are 0.
        scale: factor of the reduced row.
        add: of x's dtype [rows, dim].
        add_scale: its factor.

    Returns:
        [rows, dim], of x's dtype.

    Raises:
        ValueError: another type, dtype, device or shape, with what was received; values for a matrix that has its own.

    Source: Zhang et al. 2022, section 4 (one mapping from rows to threads, lanes over features).
    """
    _arguments.check_matrix("spmm", matrix, values=True)
    _arguments.check_dense("spmm", "x", x, rows=matrix.shape[1])
    check_reduce("spmm", reduce)
    if values is not None:
        _arguments.check_values("spmm", matrix, values, x)
    elif matrix.values is not None:
        values = matrix.values.to(_arguments.compute_dtype(x.dtype))
    if add is not None:
        _arguments.check_dense("spmm", "add", add, rows=matrix.shape[0], cols=x.shape[1], dtypes=(x.dtype,))
    _arguments.check_device("spmm", matrix, x=x, values=values, add=add)
    if reduce == "mean":
        matrix, reduce = matrix.row_mean, "sum"
    transposed = _arguments.pack_transpose(matrix, x, values, values=values is not None)
    result: torch.Tensor = _spmm(
        _arguments.pack(matrix), transposed, x, values, reduce, float(scale), add, float(add_scale), matrix.prefetch
    )
    return result


def check_reduce(operator: str, reduce: str) -> None:
    """Raise a ValueError unless `reduce` is a reduction."""
    if reduce not in REDUCTIONS:
        raise ValueError(f"{operator}: reduce must be one of {', '.join(REDUCTIONS)}, got {reduce!r}")


def spmm_accumulate(out: torch.Tensor, matrix: SparseMatrix, x: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
    """out += scale * matrix @ x in place and without gradients; returns out.

    Args:
        out: [rows, dim], of x's dtype, its rows contiguous.
        matrix, x, scale: as for `spmm`.

    Raises:
        ValueError: as for `spmm`; an `out` or `x` that wants a gradient.
    """
    _arguments.check_matrix("spmm_accumulate", matrix, values=True)
    _arguments.check_dense("spmm_accumulate", "x", x, rows=matrix.shape[1])
    _arguments.check_dense("spmm_accumulate", "out", out, matrix.shape[0], x.shape[1], (x.dtype,))
    _arguments.check_device("spmm_accumulate", matrix, x=x, out=out)
    if torch.is_grad_enabled() and (out.requires_grad or x.requires_grad):
        raise ValueError("spmm_accumulate: has no gradient; use spmm(..., add=...) or torch.no_grad()")
    if out.stride(-1) != 1 or (len(out) > 1 and out.stride(0) < out.shape[1]):
        raise ValueError(f"spmm_accumulate: the rows of out must be contiguous and apart, got strides {out.stride()}")
    if torch._C._overlaps(out, x):
        raise ValueError("spmm_accumulate: out must not share memory with x")
    values = None if matrix.values is None else matrix.values.to(_arguments.compute_dtype(x.dtype))
    _accumulate(out, _arguments.pack(matrix), x, values, scale)
    return out


@torch.library.custom_op("gnnrec::spmm", mutates_args=())
def _spmm(
    matrix: list[torch.Tensor],
    transposed: list[torch.Tensor],
    x: torch.Tensor | None,
    values: torch.Tensor | None,
    reduce: str,
    scale: float,
    add: torch.Tensor | None,
    add_scale: float,
    prefetch: int,
) -> torch.Tensor:
    out = _empty(matrix, x, values)
    if devices.on_gpu(out):
        from gnnrec.ops.spmm import cuda

        cuda.spmm(unpack(matrix, out.dtype), x, values, out, reduce, scale, add, add_scale)
        return out
    arrays = _arguments.matrix_arrays(matrix, out.dtype)
    base = None if add is None else _arguments.array(add)
    dtype, edge_values = _arguments.numpy_dtype(out.dtype), _arguments.value_array(values)
    source = None if x is None else _arguments.array(x)
    cpu.spmm(arrays, source, _arguments.array(out), dtype, edge_values, reduce, scale, base, add_scale, prefetch)
    return out


def _empty(matrix: list[torch.Tensor], x: torch.Tensor | None, values: torch.Tensor | None) -> torch.Tensor:
    like = values if x is None else x
    assert like is not None
    return devices.empty(like, (matrix[0].shape[0] - 1, like.shape[1]), "the result of spmm")


@_spmm.register_fake
def _(
    matrix: list[torch.Tensor],
    transposed: list[torch.Tensor],
    x: torch.Tensor | None,
    values: torch.Tensor | None,
    reduce: str,
    scale: float,
    add: torch.Tensor | None,
    add_scale: float,
    prefetch: int,
) -> torch.Tensor:
    return _empty(matrix, x, values)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.matrix, ctx.transposed, x, values, ctx.reduce, ctx.scale, _, ctx.add_scale, ctx.prefetch = inputs
    # What is linear in x and knows no values needs neither again.
    linear = ctx.reduce == "sum"
    ctx.save_for_backward(None if linear and values is None else x, values)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    x, values = ctx.saved_tensors
    _, _, needs_x, needs_values, _, _, needs_add, _, _ = ctx.needs_input_grad
    graph, back = ctx.matrix, ctx.transposed
    grad_x = grad_values = None
    if ctx.reduce != "sum":
        grad_x, grad_values = _extreme_backward(graph, back, x, values, grad, ctx.reduce, ctx.scale)
    else:
        if needs_x:
            grad_x = _spmm(back, graph, grad, values, "sum", ctx.scale, None, 0.0, ctx.prefetch)
        if needs_values:
            # Without x the gradient of a value is the row's own; with it, their dot or their product.
            kind = "lhs" if x is None else "dot" if values.dim() == 1 else "mul"
            grad_values = torch.ops.gnnrec.sddmm(graph, back, grad if ctx.scale == 1 else ctx.scale * grad, x, kind)
    grad_add = ctx.add_scale * grad if needs_add else None
    none = [[None] * len(graph), [None] * len(back)]
    return *none, grad_x if needs_x else None, grad_values if needs_values else None, None, None, grad_add, None, None


_spmm.register_autograd(_backward, setup_context=_setup_context)


@torch.library.custom_op("gnnrec::spmm_extreme_backward", mutates_args=())
def _extreme_backward(
    matrix: list[torch.Tensor],
    transposed: list[torch.Tensor],
    x: torch.Tensor,
    values: torch.Tensor | None,
    grad: torch.Tensor,
    reduce: str,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    grad_x = devices.empty(x, x.shape, "the gradient of x")
    if devices.on_gpu(x):
        from gnnrec.ops.spmm import cuda

        graphs = unpack(matrix, x.dtype), unpack(transposed, x.dtype)
        grad_values = None if values is None else devices.empty(values, values.shape, "the gradient of values")
        cuda.extreme_backward(*graphs, x, values, grad, reduce, scale, grad_x, grad_values)
        return grad_x, x.new_empty(0) if grad_values is None else grad_values
    # Values of one number an entry add up over panels of columns.
    wide = values is None or values.dim() == 2
    sums = x.new_empty(0 if values is None else values.shape)
    if not wide:
        sums = torch.zeros(sums.shape, dtype=_arguments.compute_dtype(x.dtype))
    cpu.extreme_backward(
        _arguments.matrix_arrays(matrix, x.dtype),
        _arguments.matrix_arrays(transposed, x.dtype),
        _arguments.array(x),
        _arguments.value_array(values),
        _arguments.array(grad),
        reduce,
        scale,
        _arguments.numpy_dtype(x.dtype),
        _arguments.array(grad_x),
        None if values is None else _arguments.array(sums),
    )
    return grad_x, sums.to(x.dtype)


@_extreme_backward.register_fake
def _(
    matrix: list[torch.Tensor],
    transposed: list[torch.Tensor],
    x: torch.Tensor,
    values: torch.Tensor | None,
    grad: torch.Tensor,
    reduce: str,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), x.new_empty(0 if values is None else values.shape)


@torch.library.custom_op("gnnrec::spmm_accumulate", mutates_args=("out",))
def _accumulate(
    out: torch.Tensor, matrix: list[torch.Tensor], x: torch.Tensor, values: torch.Tensor | None, scale: float
) -> None:
    if devices.on_gpu(x):
        from gnnrec.ops.spmm import cuda

        cuda.spmm(unpack(matrix, x.dtype), x, values, out, "sum", scale, out, 1.0)
        return
    arrays, target = _arguments.matrix_arrays(matrix, x.dtype), _arguments.array(out)
    dtype, edge_values = _arguments.numpy_dtype(x.dtype), _arguments.value_array(values)
    cpu.spmm(arrays, _arguments.array(x), target, dtype, edge_values, "sum", scale, target, 1.0)


OP = Operator(
    "spmm",
    spmm,
    reference.spmm,
    reference.cases,
    reference.bytes_moved,
    twice_differentiable=lambda case: case.options.get("reduce", "sum") in ("sum", "mean"),
)
