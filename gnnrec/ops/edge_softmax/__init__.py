"""edge_softmax: softmax over the entries of every row."""

from __future__ import annotations

from typing import Any

import torch

from gnnrec import device as devices
from gnnrec.graph.sparse import SparseMatrix
from gnnrec.ops import _arguments
from gnnrec.ops._launch import unpack
from gnnrec.ops._operator import Operator
from gnnrec.ops.edge_softmax import cpu, reference

__all__ = ["OP", "edge_softmax"]


def edge_softmax(matrix: SparseMatrix, logits: torch.Tensor) -> torch.Tensor:
    """exp(logits[e]) / sum of exp(logits[f]) over all entries f in e's row, for every head.

    Only the pattern of the matrix counts, not its scales or values; of entries that repeat, each has its own logit.
    Differentiable to any order. Sums are float32 for halves. The result is bit-equal for any number of threads.

    Args:
        matrix: SparseMatrix [rows, cols].
        logits: float32, float64, bfloat16 or float16, in the order of `matrix.indices`: [nnz] or [nnz, heads], any
            strides. As with torch.softmax, -inf counts for nothing, and a row of nothing else becomes NaN.

    Returns:
        Like logits.

    Raises:
        ValueError: another type, dtype, device or shape, with what was received.

    Source: Zhang et al. 2022, "Understanding GNN computational graph", section 2 (its place in a layer).
    """
    _arguments.check_matrix("edge_softmax", matrix, values=True)
    single = isinstance(logits, torch.Tensor) and logits.dim() == 1
    if single:
        _arguments.check_vector("edge_softmax", "logits", logits, matrix.nnz)
    else:
        _arguments.check_dense("edge_softmax", "logits", logits, matrix.nnz)
    _arguments.check_device("edge_softmax", matrix, logits=logits)
    result: torch.Tensor = _softmax(_arguments.pack(matrix), logits[:, None] if single else logits)
    return result[:, 0] if single else result


@torch.library.custom_op("gnnrec::edge_softmax", mutates_args=())
def _softmax(matrix: list[torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
    """Of logits [nnz, heads]."""
    out = devices.empty(logits, logits.shape, "the result of edge_softmax")
    if devices.on_gpu(logits):
        from gnnrec.ops.edge_softmax import cuda

        cuda.softmax(unpack(matrix, logits.dtype), logits, out)
        return out
    cpu.softmax(_pattern(matrix), _arguments.array(logits), _arguments.array(out), _arguments.numpy_dtype(out.dtype))
    return out


@torch.library.custom_op("gnnrec::edge_softmax_gradient", mutates_args=())
def _softmax_backward(matrix: list[torch.Tensor], p: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """p * (grad - sum over the row of p * grad)."""
    out = devices.empty(p, p.shape, "the gradient of edge_softmax")
    if devices.on_gpu(p):
        from gnnrec.ops.edge_softmax import cuda

        cuda.backward(unpack(matrix, p.dtype), p, grad, out)
        return out
    arrays = _arguments.array(p), _arguments.array(grad), _arguments.array(out)
    cpu.backward(_pattern(matrix), *arrays, _arguments.numpy_dtype(p.dtype))
    return out


def _pattern(matrix: list[torch.Tensor]) -> tuple[Any, ...]:
    """Row pointers and schedule as kernels take them."""
    indptr, _, _, _, *schedule, _ = map(_arguments.array, matrix)
    return indptr, *schedule


@_softmax.register_fake
def _(matrix: list[torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
    return logits.new_empty(logits.shape)


@_softmax_backward.register_fake
def _(matrix: list[torch.Tensor], p: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    return p.new_empty(p.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.matrix = inputs[0]
    ctx.save_for_backward(output)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    (p,) = ctx.saved_tensors
    return [None] * len(ctx.matrix), _softmax_backward(ctx.matrix, p, grad)


def _setup_backward_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.matrix, *saved = inputs
    ctx.save_for_backward(*saved)


def _double_backward(ctx: Any, upstream: torch.Tensor) -> tuple[Any, ...]:
    p, grad = ctx.saved_tensors

    def row_sums(x: torch.Tensor) -> torch.Tensor:
        """For every entry the sum over its row."""
        result: torch.Tensor = x - _softmax_backward(ctx.matrix, torch.ones_like(x), x)
        return result

    grad_p = upstream * (grad - row_sums(p * grad)) - grad * row_sums(p * upstream)
    return [None] * len(ctx.matrix), grad_p, _softmax_backward(ctx.matrix, p, upstream)


_softmax.register_autograd(_backward, setup_context=_setup_context)
_softmax_backward.register_autograd(_double_backward, setup_context=_setup_backward_context)

OP = Operator("edge_softmax", edge_softmax, reference.edge_softmax, reference.cases, reference.bytes_moved)
