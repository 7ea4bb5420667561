"""lightgcn_propagate: all layers of LightGCN with the weighted sum over layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from gnnrec import device as devices
from gnnrec import profiler
from gnnrec.graph.schedule import PREFETCH_DISTANCE
from gnnrec.graph.sparse import SparseMatrix
from gnnrec.ops import _arguments
from gnnrec.ops._launch import unpack
from gnnrec.ops._operator import Operator
from gnnrec.ops.lightgcn_propagate import cpu, reference
from gnnrec.ops.segment import sum_by_index

__all__ = ["OP", "lightgcn_propagate", "lightgcn_propagate_blocks", "lightgcn_propagate_into"]


def lightgcn_propagate(
    matrix: SparseMatrix,
    x: torch.Tensor,
    *,
    num_layers: int = 3,
    layer_weights: Sequence[float] | None = None,
    rows: torch.Tensor | None = None,
) -> torch.Tensor:
    """sum over l = 0 .. num_layers of layer_weights[l] * A^l x, without a feature transformation or non-linearity.

    The sum over layers happens while a layer's row is in registers; nothing is kept for the backward pass, which
    is this function again, since A is symmetric. The result is bit-equal for any number of threads. Memory beyond the
    result: one buffer like x for two layers and more. On a GPU nothing waits for it, the check of `rows` included:
    there, numbers outside the nodes end the process's work on that GPU with torch's assertion.

    Args:
        matrix: symmetric SparseMatrix A [nodes, nodes], as `graph.norm_adjacency()` gives it.
        x: float32, float64, bfloat16 or float16 [nodes, dim], any strides.
        num_layers: at least 0.
        layer_weights: num_layers + 1 numbers; by default all are 1 / (num_layers + 1), the mean over layers.
        rows: int64 [n], the rows that are wanted, in any order, also repeatedly; the last layer computes only these.

    Returns:
        [nodes, dim], or [n, dim] with rows, of x's dtype; bit-equal to the same rows of the whole.

    Raises:
        ValueError: another type, dtype, device or shape, a matrix that is not symmetric, weights of another number,
            rows outside the nodes.

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
    if rows is not None and (rows.dtype != torch.int64 or rows.dim() != 1):
        raise ValueError(f"lightgcn_propagate: rows must be int64 [n], got {rows.dtype} {list(rows.shape)}")
    _arguments.check_device("lightgcn_propagate", matrix, x=x, rows=rows)
    result: torch.Tensor = _propagate(_arguments.pack(matrix), x, weights, rows)
    return result


def lightgcn_propagate_into(
    out: torch.Tensor, work: torch.Tensor, matrix: SparseMatrix, x: torch.Tensor, *, layer_weights: Sequence[float]
) -> torch.Tensor:
    """`lightgcn_propagate` in memory that is given, without gradients; bit-equal to it.

    Args:
        out, work: like x, contiguous, and apart from it and each other; both are overwritten.
        matrix, x, layer_weights: as for `lightgcn_propagate`.

    Returns:
        `out`.

    Raises:
        ValueError: as for `lightgcn_propagate`; shared memory.
    """
    _arguments.check_matrix("lightgcn_propagate_into", matrix, symmetric=True)
    _arguments.check_dense("lightgcn_propagate_into", "x", x, rows=matrix.shape[0])
    _check_given("lightgcn_propagate_into", x, out, work)
    _arguments.check_device("lightgcn_propagate_into", matrix, x=x, out=out, work=work)
    inputs = _arguments.pack(matrix), x, [float(weight) for weight in layer_weights]
    with profiler.kernel("gnnrec::lightgcn_propagate", *inputs, None):
        return _fill(*inputs, out, work)


def lightgcn_propagate_blocks(
    out: torch.Tensor,
    work: torch.Tensor,
    blocks: Callable[[], Iterable[tuple[slice, SparseMatrix]]],
    x: torch.Tensor,
    *,
    layer_weights: Sequence[float],
) -> torch.Tensor:
    """`lightgcn_propagate_into` by a matrix of which a block of rows is there at a time; bit-equal to it. On the CPU.

    Args:
        out, work, x, layer_weights: as for `lightgcn_propagate_into`.
        blocks: goes over the matrix, once a layer: consecutive rows, each with all its entries, as `row_block` has
            them. A block is needed until the next one is asked for.

    Returns:
        `out`.

    Raises:
        ValueError: as for `lightgcn_propagate_into`; blocks of other rows or columns.
    """
    name, nodes = "lightgcn_propagate_blocks", len(x)
    _arguments.check_dense(name, "x", x)
    _check_given(name, x, out, work)
    weights, dtype = [float(weight) for weight in layer_weights], _arguments.numpy_dtype(x.dtype)
    if len(weights) == 1:
        return torch.mul(x, weights[0], out=out)

    def checked() -> Iterable[tuple[slice, tuple[Any, ...]]]:
        end = 0
        for rows, part in blocks():
            _arguments.check_matrix(name, part)
            if rows.start != end or part.shape != (rows.stop - end, nodes):
                raise ValueError(
                    f"{name}: rows {end} and on of {nodes} x {nodes} are wanted, got {part} at {rows.start}"
                )
            _arguments.check_device(name, part, x=x, out=out, work=work)
            end = rows.stop
            yield rows, _arguments.matrix_arrays(_arguments.pack(part), x.dtype)
        if end != nodes:
            raise ValueError(f"{name}: the blocks end at row {end} of {nodes}")

    source, between, target = (_arguments.array(tensor) for tensor in (x, work, out))
    cpu.propagate_blocks(checked, source, weights, between, target, dtype)
    return out


def _check_given(operator: str, x: torch.Tensor, out: torch.Tensor, work: torch.Tensor) -> None:
    """Raise a ValueError unless out and work are memory that x can be propagated in."""
    for name, given in {"out": out, "work": work}.items():
        _arguments.check_dense(operator, name, given, x.shape[0], x.shape[1], (x.dtype,))
        if not given.is_contiguous() or torch._C._overlaps(given, x) or torch._C._overlaps(out, work):
            raise ValueError(f"{operator}: {name} must be contiguous and share no memory")


@torch.library.custom_op("gnnrec::lightgcn_propagate", mutates_args=())
def _propagate(
    matrix: list[torch.Tensor], x: torch.Tensor, weights: list[float], rows: torch.Tensor | None
) -> torch.Tensor:
    if rows is not None:
        return _propagate_to(matrix, x, weights, rows)
    out = devices.empty(x, x.shape, "the propagated embeddings")
    work = devices.empty(x, x.shape if len(weights) > 2 else (0, x.shape[1]), "a layer's embeddings")
    return _fill(matrix, x, weights, out, work)


def _fill(
    matrix: list[torch.Tensor], x: torch.Tensor, weights: list[float], out: torch.Tensor, work: torch.Tensor
) -> torch.Tensor:
    if len(weights) == 1:
        return torch.mul(x, weights[0], out=out)
    if devices.on_gpu(x):
        from gnnrec.ops.lightgcn_propagate import cuda

        cuda.propagate(unpack(matrix, x.dtype), x, weights, out, work)
        return out
    arrays, dtype = _arguments.matrix_arrays(matrix, x.dtype), _arguments.numpy_dtype(x.dtype)
    cpu.propagate(arrays, _arguments.array(x), weights, _arguments.array(work), _arguments.array(out), dtype)
    return out


def _propagate_to(
    matrix: list[torch.Tensor], x: torch.Tensor, weights: list[float], rows: torch.Tensor
) -> torch.Tensor:
    """The last layer over the wanted rows alone."""
    _check_rows(rows, len(x))
    if len(weights) == 1:
        return x[rows] * weights[0]
    # By Horner's rule, what the last layer gathers is the propagation by all the others. A single layer gathers x.
    source = x if len(weights) == 2 else _propagate(matrix, x, weights[1:], None)
    scale = weights[1] if len(weights) == 2 else 1.0
    if devices.on_gpu(x):
        from gnnrec.ops.lightgcn_propagate import cuda

        out = devices.empty(x, (len(rows), x.shape[1]), "the propagated embeddings")
        cuda.spmm_rows(unpack(matrix, x.dtype), rows, source, out, scale, x, weights[0])
        return out
    row_scale, col_scale = (scale if scale.numel() else None for scale in matrix[2:4])
    whole = SparseMatrix(matrix[0], matrix[1], (len(x), len(x)), row_scale, col_scale)
    chosen = _arguments.pack(whole.select_rows(rows))
    epilogue = scale, x[rows], weights[0], PREFETCH_DISTANCE
    result: torch.Tensor = torch.ops.gnnrec.spmm(chosen, [], source, None, "sum", *epilogue)
    return result


def _check_rows(rows: torch.Tensor, nodes: int) -> None:
    if not len(rows):
        return
    low, high = rows.aminmax()
    if devices.on_gpu(rows):
        torch._assert_async((low >= 0) & (high < nodes), "lightgcn_propagate: rows must lie within the nodes")
    elif low < 0 or high >= nodes:
        raise ValueError(f"lightgcn_propagate: rows must lie within 0 and {nodes - 1}, got {int(low)} to {int(high)}")


@_propagate.register_fake
def _(matrix: list[torch.Tensor], x: torch.Tensor, weights: list[float], rows: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty(x.shape if rows is None else (rows.shape[0], x.shape[1]))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.matrix, x, ctx.weights, ctx.rows = inputs
    ctx.nodes = x.shape[0]


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    if ctx.rows is not None:
        grad = sum_by_index(grad, ctx.rows, ctx.nodes)
    return [None] * len(ctx.matrix), _propagate(ctx.matrix, grad, ctx.weights, None), None, None


_propagate.register_autograd(_backward, setup_context=_setup_context)

OP = Operator("lightgcn_propagate", lightgcn_propagate, reference.propagate, reference.cases, reference.bytes_moved)
