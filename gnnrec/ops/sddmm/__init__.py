"""sddmm: a number or a row for every entry of a sparse matrix, from the rows of its two ends."""

from __future__ import annotations

from typing import Any

import torch

from gnnrec import device as devices
from gnnrec.graph.schedule import BY_WIDTH
from gnnrec.graph.sparse import SparseMatrix
from gnnrec.ops import _arguments
from gnnrec.ops._launch import unpack
from gnnrec.ops._operator import Operator
from gnnrec.ops.sddmm import cpu, reference

__all__ = ["OP", "sddmm"]

KINDS = ("dot", "add", "mul")


def sddmm(matrix: SparseMatrix, a: torch.Tensor, b: torch.Tensor, *, op: str = "dot") -> torch.Tensor:
    """row_scale[i] * col_scale[j] * (a[i] op b[j]) for every entry (i, j) of the matrix.

    `dot` is the gradient of `spmm` with respect to edge values, `add` and `mul` keep the columns apart. Differentiable
    with respect to `a` and `b` to any order: the backward pass is spmm with edge values. The result is bit-equal for
    any number of threads.

    Args:
        matrix: SparseMatrix [rows, cols] without values of its own.
        a: float32, float64, bfloat16 or float16 [rows, dim], any strides.
        b: [cols, dim], of a's dtype.
        op: dot, add or mul.

    Returns:
        In the order of `matrix.indices` and of a's dtype: [nnz] for dot, [nnz, dim] otherwise.

    Raises:
        ValueError: another type, dtype, device or shape, with what was received.
    """
    _arguments.check_matrix("sddmm", matrix)
    _arguments.check_dense("sddmm", "a", a, rows=matrix.shape[0])
    _arguments.check_dense("sddmm", "b", b, matrix.shape[1], a.shape[1], (a.dtype,))
    if op not in KINDS:
        raise ValueError(f"sddmm: op must be one of {', '.join(KINDS)}, got {op!r}")
    _arguments.check_device("sddmm", matrix, a=a, b=b)
    transposed = _arguments.pack_transpose(matrix, a, b, values=True)
    result: torch.Tensor = _sddmm(_arguments.pack(matrix), transposed, a, b, op)
    return result


@torch.library.custom_op("gnnrec::sddmm", mutates_args=())
def _sddmm(
    matrix: list[torch.Tensor], transposed: list[torch.Tensor], a: torch.Tensor, b: torch.Tensor | None, kind: str
) -> torch.Tensor:
    entries = matrix[1].numel()
    if devices.on_gpu(a):
        from gnnrec.ops.sddmm import cuda

        out = devices.empty(a, (entries,) if kind == "dot" else (entries, a.shape[1]), "the result of sddmm")
        cuda.sddmm(unpack(matrix, a.dtype), a, b, kind, out)
        return out
    if kind == "dot":
        # Every panel of columns adds its part.
        out = torch.zeros(entries, dtype=_arguments.compute_dtype(a.dtype))
    else:
        out = a.new_empty((entries, a.shape[1]))
    right = None if b is None else _arguments.array(b)
    cpu.sddmm(_arguments.matrix_arrays(matrix, a.dtype), _arguments.array(a), right, kind, _arguments.array(out))
    return out.to(a.dtype)


@_sddmm.register_fake
def _(
    matrix: list[torch.Tensor], transposed: list[torch.Tensor], a: torch.Tensor, b: torch.Tensor | None, kind: str
) -> torch.Tensor:
    entries = matrix[1].shape[0]
    return a.new_empty((entries,) if kind == "dot" else (entries, a.shape[1]))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.matrix, ctx.transposed, a, b, ctx.kind = inputs
    products = ctx.kind in ("dot", "mul")
    ctx.save_for_backward(a if products else None, b if products else None)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    a, b = ctx.saved_tensors
    _, _, needs_a, needs_b, _ = ctx.needs_input_grad
    graph, back = ctx.matrix, ctx.transposed

    def spread(one: list[torch.Tensor], other: list[torch.Tensor], x: torch.Tensor | None) -> torch.Tensor:
        result: torch.Tensor = torch.ops.gnnrec.spmm(one, other, x, grad, "sum", 1.0, None, 0.0, BY_WIDTH)
        return result

    grad_a = spread(graph, back, b) if needs_a else None
    grad_b = spread(back, graph, a) if needs_b else None
    return [None] * len(graph), [None] * len(back), grad_a, grad_b, None


_sddmm.register_autograd(_backward, setup_context=_setup_context)

OP = Operator("sddmm", sddmm, reference.sddmm, reference.cases, reference.bytes_moved)
