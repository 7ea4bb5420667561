"""lightgcn_propagate: all layers of LightGCN with the weighted sum over layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from gnnrec import device as devices
from gnnrec import profiler
from gnnrec.graph.sparse import SparseMatrix
from gnnrec.ops import _arguments
from gnnrec.ops._launch import unpack
from gnnrec.ops._operator import Operator
from gnnrec.ops.lightgcn_propagate import cpu, reference
from gnnrec.ops.segment import sum_by_index

__all__ = [
    "FEW",
    "OP",
    "SIZES",
    "lightgcn_propagate",
    "lightgcn_propagate_blocks",
    "lightgcn_propagate_into",
    "lightgcn_propagate_rows",
]

FEW = 0.6  # of the nodes: a step on so many of Gowalla's takes as long by `lightgcn_propagate_rows` as by the whole
SIZES = 32  # that the number of rows of batches had better have: memory for ever new ones leaves holes none fits into


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
        rows: int64 [n], the rows that are wanted, in any order, also repeatedly, see `lightgcn_propagate_rows`.

    Returns:
        [nodes, dim], or [n, dim] with rows, of x's dtype; bit-equal to the same rows of the whole.

    Raises:
        ValueError: another type, dtype, device or shape, a matrix that is not symmetric, weights of another number,
            rows outside the nodes.

    Source: He et al. 2020, "LightGCN", equations 7 and 8.
    """
    weights = _checked("lightgcn_propagate", matrix, x, num_layers, layer_weights, rows)
    if rows is not None:
        return _rows(_arguments.pack(matrix), x, weights, rows, False)[0]  # type: ignore[no-any-return]
    result: torch.Tensor = _propagate(_arguments.pack(matrix), x, weights)
    return result


def lightgcn_propagate_rows(
    matrix: SparseMatrix,
    x: torch.Tensor,
    rows: torch.Tensor,
    *,
    num_layers: int = 3,
    layer_weights: Sequence[float] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """These rows of `lightgcn_propagate` and of x itself, as a batch wants them: gradients of both meet in x's.

    On the CPU the last layer computes only these rows, the first layer of the backward pass gathers only their
    gradient, and neither a result nor its gradient is made for all nodes. (On a GPU the backward pass is that of the
    whole.) For a batch that is small beside the graph this saves a good half of one product each way.

    Args:
        matrix, x, num_layers, layer_weights: as for `lightgcn_propagate`.
        rows: int64 [n], in any order, also repeatedly.

    Returns:
        Two matrices [n, dim] of x's dtype, bit-equal to these rows of the whole; so are gradients.

    Raises:
        ValueError: as for `lightgcn_propagate`.
    """
    weights = _checked("lightgcn_propagate_rows", matrix, x, num_layers, layer_weights, rows)
    final, own = _rows(_arguments.pack(matrix), x, weights, rows, True)
    return final, own


def _checked(
    name: str,
    matrix: SparseMatrix,
    x: torch.Tensor,
    num_layers: int,
    layer_weights: Sequence[float] | None,
    rows: torch.Tensor | None,
) -> list[float]:
    """The weights; raises a ValueError for what the operators do not take."""
    _arguments.check_matrix(name, matrix, symmetric=True)
    _arguments.check_dense(name, "x", x, rows=matrix.shape[0])
    if num_layers < 0:
        raise ValueError(f"{name}: num_layers must be at least 0, got {num_layers}")
    weights = [1 / (num_layers + 1)] * (num_layers + 1) if layer_weights is None else [float(w) for w in layer_weights]
    if len(weights) != num_layers + 1:
        raise ValueError(
            f"{name}: layer_weights must hold num_layers + 1 = {num_layers + 1} numbers, got {len(weights)}"
        )
    if rows is not None and (rows.dtype != torch.int64 or rows.dim() != 1):
        raise ValueError(f"{name}: rows must be int64 [n], got {rows.dtype} {list(rows.shape)}")
    _arguments.check_device(name, matrix, x=x, rows=rows)
    return weights


def lightgcn_propagate_into(
    out: torch.Tensor,
    work: torch.Tensor,
    matrix: SparseMatrix,
    x: torch.Tensor,
    *,
    layer_weights: Sequence[float],
    rows: torch.Tensor | None = None,
) -> torch.Tensor:
    """`lightgcn_propagate` in memory that is given, without gradients; bit-equal to it.

    Args:
        out, work: like x, contiguous, and apart from it and each other; both are overwritten.
        matrix, x, layer_weights: as for `lightgcn_propagate`.
        rows: int64 [n], different ones, where x is known to be 0 in all others: on the CPU the first layer gathers
            these alone.

    Returns:
        `out`.

    Raises:
        ValueError: as for `lightgcn_propagate`; shared memory; rows beyond the nodes, or that come twice.
    """
    _arguments.check_matrix("lightgcn_propagate_into", matrix, symmetric=True)
    _arguments.check_dense("lightgcn_propagate_into", "x", x, rows=matrix.shape[0])
    _check_given("lightgcn_propagate_into", x, out, work)
    _arguments.check_device("lightgcn_propagate_into", matrix, x=x, out=out, work=work)
    packed, weights = _arguments.pack(matrix), [float(weight) for weight in layer_weights]
    held = None if devices.on_gpu(x) or len(weights) == 1 else _held("lightgcn_propagate_into", rows, x)
    if held is None:
        with profiler.kernel("gnnrec::lightgcn_propagate", packed, x, weights):
            return _fill(packed, x, weights, out, work)
    found, numbers, places = held
    arrays, dtype = _arguments.matrix_arrays(packed, x.dtype), _arguments.numpy_dtype(x.dtype)
    source, between, target = map(_arguments.array, (found, work, out))
    with profiler.kernel(*_some(packed, numbers, out, len(weights) - 1)):
        cpu.propagate_from(arrays, source, numbers.numpy(), weights, places, between, target, dtype)
    return out


def lightgcn_propagate_blocks(
    out: torch.Tensor,
    work: torch.Tensor,
    blocks: Callable[[], Iterable[tuple[slice, SparseMatrix]]],
    x: torch.Tensor,
    *,
    layer_weights: Sequence[float],
    rows: torch.Tensor | None = None,
) -> torch.Tensor:
    """`lightgcn_propagate_into` by a matrix of which a block of rows is there at a time; bit-equal to it. On the CPU.

    Args:
        out, work, x, layer_weights, rows: as for `lightgcn_propagate_into`.
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
    held = _held(name, rows, x)

    def checked() -> Iterable[tuple[slice, tuple[Any, ...]]]:
        end = 0
        for here, part in blocks():
            _arguments.check_matrix(name, part)
            if here.start != end or part.shape != (here.stop - end, nodes):
                raise ValueError(
                    f"{name}: rows {end} and on of {nodes} x {nodes} are wanted, got {part} at {here.start}"
                )
            _arguments.check_device(name, part, x=x, out=out, work=work)
            end = here.stop
            yield here, _arguments.matrix_arrays(_arguments.pack(part), x.dtype)
        if end != nodes:
            raise ValueError(f"{name}: the blocks end at row {end} of {nodes}")

    chosen = None if held is None else (held[1].numpy(), held[2])
    source, between, target = map(_arguments.array, (x if held is None else held[0], work, out))
    cpu.propagate_blocks(checked, source, weights, between, target, dtype, chosen)
    return out


def _held(operator: str, rows: torch.Tensor | None, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Any] | None:
    """These rows of x, their numbers, and for every node its place among them, where they are few enough."""
    if rows is None or len(rows) > FEW * len(x):
        return None
    _check_rows(rows, len(x))
    numbers, repeats, places = _places(rows, len(x))
    if repeats is not None:
        raise ValueError(f"{operator}: rows must be different ones")
    return x.index_select(0, numbers), numbers, places


def _check_given(operator: str, x: torch.Tensor, out: torch.Tensor, work: torch.Tensor) -> None:
    """Raise a ValueError unless out and work are memory that x can be propagated in."""
    for name, given in {"out": out, "work": work}.items():
        _arguments.check_dense(operator, name, given, x.shape[0], x.shape[1], (x.dtype,))
        if not given.is_contiguous() or torch._C._overlaps(given, x) or torch._C._overlaps(out, work):
            raise ValueError(f"{operator}: {name} must be contiguous and share no memory")


@torch.library.custom_op("gnnrec::lightgcn_propagate", mutates_args=())
def _propagate(matrix: list[torch.Tensor], x: torch.Tensor, weights: list[float]) -> torch.Tensor:
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


@torch.library.custom_op("gnnrec::lightgcn_propagate_rows", mutates_args=())
def _rows(
    matrix: list[torch.Tensor], x: torch.Tensor, weights: list[float], rows: torch.Tensor, both: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows propagated, and, if both are wanted, as they are."""
    _check_rows(rows, len(x))
    own = x.index_select(0, rows if both else rows[:0])
    if len(weights) == 1:
        return x.index_select(0, rows) * weights[0], own
    # By Horner's rule, what the last layer gathers is the propagation by all the others. A single layer gathers x.
    source = x if len(weights) == 2 else _propagate(matrix, x, weights[1:])
    scale = weights[1] if len(weights) == 2 else 1.0
    if devices.on_gpu(x):
        from gnnrec.ops.lightgcn_propagate import cuda

        out = devices.empty(x, (len(rows), x.shape[1]), "the propagated embeddings")
        cuda.spmm_rows(unpack(matrix, x.dtype), rows, source, out, scale, x, weights[0])
        return out, own
    distinct, repeats, places = _places(rows, len(x))
    out = x.new_empty((len(distinct), x.shape[1]))
    arrays, dtype = _arguments.matrix_arrays(matrix, x.dtype), _arguments.numpy_dtype(x.dtype)
    with profiler.kernel(*_some(matrix, distinct, out)):
        gathered, added, target = map(_arguments.array, (source, x, out))
        cpu.propagate_to(arrays, gathered, added, (scale, weights[0]), places, target, dtype)
    return out if repeats is None else out[repeats], own


@torch.library.custom_op("gnnrec::lightgcn_propagate_rows_backward", mutates_args=())
def _rows_backward(
    matrix: list[torch.Tensor],
    final: torch.Tensor | None,
    own: torch.Tensor | None,
    weights: list[float],
    rows: torch.Tensor,
    nodes: int,
) -> torch.Tensor:
    """The gradient of x from those of its rows, propagated and own."""
    if final is None:
        assert own is not None
        return sum_by_index(own, rows, nodes)
    if devices.on_gpu(rows) or len(weights) == 1 or len(rows) > FEW * nodes:
        result: torch.Tensor = _propagate(matrix, sum_by_index(final, rows, nodes), weights)
        return result if own is None else result.add_(sum_by_index(own, rows, nodes))
    distinct, repeats, places = _places(rows, nodes)
    if repeats is not None:
        final = sum_by_index(final, repeats, len(distinct))
        own = None if own is None else sum_by_index(own, repeats, len(distinct))
    result = devices.empty(final, (nodes, final.shape[1]), "the gradient of the embeddings")
    work = devices.empty(result, result.shape, "a layer's gradient") if len(weights) > 2 else result[:0]
    arrays, dtype = _arguments.matrix_arrays(matrix, result.dtype), _arguments.numpy_dtype(result.dtype)
    source, between, target = map(_arguments.array, (final.contiguous(), work, result))
    with profiler.kernel(*_some(matrix, distinct, result, len(weights) - 1)):
        cpu.propagate_from(arrays, source, distinct.numpy(), weights, places, between, target, dtype)
    # index_add_ takes three times as long.
    return result if own is None else result.index_copy_(0, distinct, result.index_select(0, distinct).add_(own))


def _places(rows: torch.Tensor, nodes: int) -> tuple[torch.Tensor, torch.Tensor | None, Any]:
    """Different rows; which of them each row is, None where they are all different; and for every node its place among
    them, -1 for the others, int32."""
    chosen, numbers = rows.numpy(), np.arange(len(rows), dtype=np.int32)
    places = np.full(nodes, -1, np.int32)
    places[chosen] = numbers
    if np.array_equal(places[chosen], numbers):
        return rows, None, places
    distinct, repeats = rows.unique(return_inverse=True)
    places[distinct.numpy()] = numbers[: len(distinct)]
    return distinct, repeats, places


def _some(matrix: list[torch.Tensor], rows: torch.Tensor, out: torch.Tensor, layers: int = 0) -> tuple[Any, ...]:
    """A kernel's name and arguments for a recording: the matrix, the result, the rows that are chosen, how many entries
    of the matrix these have, and in how many layers their gradient is added."""
    entries = int(matrix[0].diff()[rows].sum()) if profiler.recording() else 0
    return "gnnrec::propagate_some", matrix, out, rows, entries, layers


def _check_rows(rows: torch.Tensor, nodes: int) -> None:
    if not len(rows):
        return
    low, high = rows.aminmax()
    if devices.on_gpu(rows):
        torch._assert_async((low >= 0) & (high < nodes), "lightgcn_propagate: rows must lie within the nodes")
    elif low < 0 or high >= nodes:
        raise ValueError(f"lightgcn_propagate: rows must lie within 0 and {nodes - 1}, got {int(low)} to {int(high)}")


@_propagate.register_fake
def _(matrix: list[torch.Tensor], x: torch.Tensor, weights: list[float]) -> torch.Tensor:
    return x.new_empty(x.shape)


@_rows.register_fake
def _(
    matrix: list[torch.Tensor], x: torch.Tensor, weights: list[float], rows: torch.Tensor, both: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty((rows.shape[0], x.shape[1])), x.new_empty((rows.shape[0] if both else 0, x.shape[1]))


@_rows_backward.register_fake
def _(
    matrix: list[torch.Tensor],
    final: torch.Tensor | None,
    own: torch.Tensor | None,
    weights: list[float],
    rows: torch.Tensor,
    nodes: int,
) -> torch.Tensor:
    grad = own if final is None else final
    assert grad is not None
    return grad.new_empty((nodes, grad.shape[1]))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.matrix, _, ctx.weights = inputs


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    return [None] * len(ctx.matrix), _propagate(ctx.matrix, grad, ctx.weights), None


def _setup_rows(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.matrix, x, ctx.weights, ctx.rows, ctx.both = inputs
    ctx.nodes = x.shape[0]
    ctx.set_materialize_grads(False)


def _backward_of_rows(ctx: Any, final: torch.Tensor | None, own: torch.Tensor | None) -> tuple[Any, ...]:
    own = own if ctx.both else None
    given = final is not None or own is not None
    grad = _rows_backward(ctx.matrix, final, own, ctx.weights, ctx.rows, ctx.nodes) if given else None
    return [None] * len(ctx.matrix), grad, None, None, None


def _setup_rows_backward(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.matrix, final, own, ctx.weights, ctx.rows, _ = inputs
    ctx.wanted = final is not None, own is not None


def _backward_of_rows_backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    """It is linear, and its transpose is the forward pass."""
    found = _rows(ctx.matrix, grad, ctx.weights, ctx.rows, ctx.wanted[1])
    parts = (part if wanted else None for part, wanted in zip(found, ctx.wanted))
    return [None] * len(ctx.matrix), *parts, None, None, None


_propagate.register_autograd(_backward, setup_context=_setup_context)
_rows.register_autograd(_backward_of_rows, setup_context=_setup_rows)
_rows_backward.register_autograd(_backward_of_rows_backward, setup_context=_setup_rows_backward)

OP = Operator("lightgcn_propagate", lightgcn_propagate, reference.propagate, reference.cases, reference.bytes_moved)
