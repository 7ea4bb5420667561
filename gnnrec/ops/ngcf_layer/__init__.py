"""ngcf_layer: one layer of NGCF, its neural part moved behind the aggregation."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch

from gnnrec import device as devices
from gnnrec.graph.sparse import SparseMatrix
from gnnrec.ops import _arguments, _dropout
from gnnrec.ops._launch import unpack
from gnnrec.ops._operator import Operator
from gnnrec.ops.ngcf_layer import passes, reference

__all__ = ["OP", "ngcf_layer"]

BIASES = ("once", "none", "edge")


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
    """One layer of NGCF. With s_i = sum_j c_ij x_j, the matrix's row scale times column scale being c_ij:

        h_i = leaky_relu(w1 (x_i + s_i) + w2 (x_i * s_i) + bias_i),  y_i = dropout(h_i) / max(|dropout(h_i)|, 1e-12)

    One aggregation serves both terms, and weights meet nodes instead of edges. Differentiable once with respect to all
    tensors. Kept for the backward pass are the result and a number a row; the aggregate is computed again. Bit-equal
    for any number of threads.

    In training, `node_dropout` drops every entry of the matrix and `dropout` every number of h_i independently with
    that probability; what is kept is divided by the probability of keeping. Both are functions of a seed; the backward
    pass draws them again. Entries that repeat (row, column) share one decision.

    Args:
        matrix: SparseMatrix [rows, cols] without values of its own.
        x: float32, float64, bfloat16 or float16 [cols, in], any strides.
        w1, w2: [out, in], of x's dtype as all that follow.
        b1, b2: [out] or None.
        x_rows: the rows' own x_i [rows, in]; x where the matrix is square.
        negative_slope: of leaky_relu, at least 0.
        seed: of dropout, int64 [] on the CPU, not negative; None draws one from torch's default generator.
        bias: "once" adds b1 + b2 (the authors' code), "none" takes no biases (the paper), "edge" adds b1 for the row
            itself and c_ij (b1 + b2) for every entry, as an implementation by messages does.
        normalize: whether rows are divided by their norm.
        keep_aggregate: keep s, [rows, in] in at least float32, instead of computing it again: the same to the bit.

    Returns:
        [rows, out], of x's dtype.

    Raises:
        ValueError: another type, dtype, device, shape or value, with what was received.

    Source: Wang et al. 2019, "Neural Graph Collaborative Filtering", equation 7; the order of steps is the
    propagation-postponed one of Zhang et al. 2022, "Understanding GNN Computational Graph".
    """
    _check(matrix, x, w1, b1, w2, b2, x_rows, bias)
    _arguments.check_device("ngcf_layer", matrix, x=x, w1=w1, b1=b1, w2=w2, b2=b2, x_rows=x_rows)
    if not negative_slope >= 0:
        raise ValueError(f"ngcf_layer: negative_slope must be at least 0, got {negative_slope}")
    _dropout.check_probability("ngcf_layer", "dropout", dropout)
    _dropout.check_probability("ngcf_layer", "node_dropout", node_dropout)
    probabilities = [float(p) if training else 0.0 for p in (dropout, node_dropout)]
    seed = _dropout.draw_seed(seed) if any(probabilities) else None
    weights = torch.cat([w1, w2], dim=1).to(_arguments.compute_dtype(x.dtype))
    biases = _biases(weights, b1, b2, bias == "edge")
    graph, back = _arguments.pack(matrix), _arguments.pack_transpose(matrix, x)
    settings = float(negative_slope), seed, probabilities, bias == "edge", normalize, keep_aggregate
    result: torch.Tensor = _layer(graph, back, x, x_rows, weights, biases, *settings)[0]
    return result


def _check(matrix: Any, x: Any, w1: Any, b1: Any, w2: Any, b2: Any, x_rows: torch.Tensor | None, bias: str) -> None:
    _arguments.check_matrix("ngcf_layer", matrix)
    _arguments.check_dense("ngcf_layer", "x", x, rows=matrix.shape[1])
    dtype, dim = (x.dtype,), x.shape[1]
    if x_rows is not None:
        _arguments.check_dense("ngcf_layer", "x_rows", x_rows, matrix.shape[0], dim, dtype)
    elif matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"ngcf_layer: x_rows [{matrix.shape[0]}, {dim}] must be given for {matrix}, got None")
    _arguments.check_dense("ngcf_layer", "w1", w1, cols=dim, dtypes=dtype)
    if w1.shape[0] == 0:
        raise ValueError(f"ngcf_layer: w1 must have shape [out >= 1, {dim}], got {list(w1.shape)}")
    _arguments.check_dense("ngcf_layer", "w2", w2, w1.shape[0], dim, dtype)
    if bias not in BIASES:
        raise ValueError(f"ngcf_layer: bias must be one of {', '.join(BIASES)}, got {bias!r}")
    given = [name for name, b in (("b1", b1), ("b2", b2)) if b is not None]
    for name, b in (("b1", b1), ("b2", b2)):
        if b is not None:
            _arguments.check_vector("ngcf_layer", name, b, w1.shape[0], dtype)
    if (bias == "none" and given) or (bias == "edge" and not given):
        raise ValueError(f"ngcf_layer: bias={bias!r} with {' and '.join(given) or 'no biases'}")


def _biases(weights: torch.Tensor, b1: torch.Tensor | None, b2: torch.Tensor | None, edge: bool) -> torch.Tensor:
    """What is added to every row, and what as often as its entries sum up to: [2, out], of the weights' dtype."""
    zero = weights.new_zeros(len(weights))
    own, other = (zero if b is None else b.to(weights.dtype) for b in (b1, b2))
    return torch.stack([own, own + other] if edge else [own + other, zero])


@torch.library.custom_op("gnnrec::ngcf_layer", mutates_args=())
def _layer(
    matrix: list[torch.Tensor],
    transposed: list[torch.Tensor],
    x: torch.Tensor,
    x_rows: torch.Tensor | None,
    weights: torch.Tensor,
    biases: torch.Tensor,
    slope: float,
    seed: torch.Tensor | None,
    probabilities: list[float],
    edge_bias: bool,
    normalize: bool,
    keep_aggregate: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The result, the rows' norms and their aggregates; what is not kept is empty. weights: [out, 2 in]."""
    out, norms, aggregates = _empty(matrix, x, weights, normalize, keep_aggregate)
    dropout = _decisions(seed, probabilities)
    if devices.on_gpu(x):
        from gnnrec.ops.ngcf_layer import cuda

        graph, own = unpack(matrix, x.dtype), x if x_rows is None else x_rows
        cuda.forward(graph, x, own, weights, biases, slope, dropout, edge_bias, out, norms, aggregates)
        return out, norms, aggregates
    arrays, source = _arguments.matrix_arrays(matrix, x.dtype), _rows(x)
    passes.forward(
        arrays,
        passes.rows(arrays, source, weights.numpy(), dropout, edge_bias),
        source,
        source if x_rows is None else _rows(x_rows),
        weights.T.contiguous().numpy(),
        biases.numpy(),
        slope,
        dropout,
        _rows(out),
        norms.numpy(),
        aggregates.numpy(),
    )
    return out, norms, aggregates


def _decisions(seed: torch.Tensor | None, probabilities: list[float]) -> passes.Dropout:
    return passes.Dropout(0 if seed is None else int(seed), *probabilities)


def _rows(x: torch.Tensor) -> npt.NDArray[Any]:
    """The tensor's array; a copy is cheap beside the layer, and a kernel for strided rows takes seconds to compile."""
    return _arguments.array(x.contiguous())


def _empty(
    matrix: list[torch.Tensor], x: torch.Tensor, weights: torch.Tensor, normalize: bool, keep_aggregate: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows = matrix[0].shape[0] - 1
    norms = devices.empty(weights, (rows if normalize else 0,), "the rows' norms")
    aggregates = devices.empty(weights, (rows if keep_aggregate else 0, x.shape[1]), "the rows' aggregates")
    return devices.empty(x, (rows, weights.shape[0]), "the result of ngcf_layer"), norms, aggregates


@_layer.register_fake
def _(
    matrix: list[torch.Tensor],
    transposed: list[torch.Tensor],
    x: torch.Tensor,
    x_rows: torch.Tensor | None,
    weights: torch.Tensor,
    biases: torch.Tensor,
    slope: float,
    seed: torch.Tensor | None,
    probabilities: list[float],
    edge_bias: bool,
    normalize: bool,
    keep_aggregate: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _empty(matrix, x, weights, normalize, keep_aggregate)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.matrix, ctx.transposed, x, x_rows, weights, _, ctx.slope, seed, ctx.probabilities, ctx.edge_bias, _, _ = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, x_rows, weights, seed, *output)


def _backward(ctx: Any, grad: torch.Tensor | None, *_: None) -> tuple[Any, ...]:
    none = [None] * len(ctx.matrix), [None] * len(ctx.transposed)
    if grad is None:
        return *none, *[None] * 10
    x, x_rows, weights, seed, *output = ctx.saved_tensors
    _, _, needs_x, needs_rows, *_ = ctx.needs_input_grad
    settings = ctx.slope, seed, ctx.probabilities, ctx.edge_bias
    grad_x, grad_rows, grad_weights, grad_biases = _layer_backward(
        ctx.matrix, ctx.transposed, x, x_rows, weights, *settings, *output, grad, needs_x, needs_rows
    )
    inputs = grad_x if needs_x else None, grad_rows if needs_rows else None
    return *none, *inputs, grad_weights, grad_biases, *[None] * 6


_layer.register_autograd(_backward, setup_context=_setup_context)


@torch.library.custom_op("gnnrec::ngcf_layer_backward", mutates_args=())
def _layer_backward(
    matrix: list[torch.Tensor],
    transposed: list[torch.Tensor],
    x: torch.Tensor,
    x_rows: torch.Tensor | None,
    weights: torch.Tensor,
    slope: float,
    seed: torch.Tensor | None,
    probabilities: list[float],
    edge_bias: bool,
    out: torch.Tensor,
    norms: torch.Tensor,
    aggregates: torch.Tensor,
    grad: torch.Tensor,
    needs_x: bool,
    needs_rows: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x and of x_rows, empty where neither is needed, of weights and of biases."""
    grad_x, grad_rows, grad_weights, grad_biases = _empty_gradients(x, x_rows, weights, needs_x, needs_rows)
    dropout, wanted = _decisions(seed, probabilities), needs_x or needs_rows
    own_rows, grad_own = (x, grad_x) if x_rows is None else (x_rows, grad_rows)
    shape = matrix[0].shape[0] - 1 if wanted else 0, x.shape[1]
    grad_aggregates = devices.empty(x, shape, "the gradient of the rows' aggregates")
    if devices.on_gpu(x):
        from gnnrec.ops.ngcf_layer import cuda

        settings = slope, dropout, edge_bias, out, norms, aggregates, grad
        gradients = grad_own if wanted else None, grad_aggregates, grad_weights, grad_biases
        cuda.backward(unpack(matrix, x.dtype), x, own_rows, weights, *settings, *gradients)
        if needs_x:
            base = None if x_rows is not None else grad_x
            cuda.aggregate(unpack(transposed, x.dtype), grad_aggregates, grad_x, dropout, base, transposed=True)
        return grad_x, grad_rows, grad_weights, grad_biases
    arrays, source = _arguments.matrix_arrays(matrix, x.dtype), _rows(x)
    passes.backward(
        arrays,
        passes.rows(arrays, source, weights.numpy(), dropout, edge_bias, aggregates.numel() == 0),
        source,
        source if x_rows is None else _rows(x_rows),
        weights.numpy(),
        slope,
        dropout,
        _rows(out),
        norms.numpy(),
        aggregates.numpy(),
        _rows(grad),
        _rows(grad_own),
        _rows(grad_aggregates),
        grad_weights.numpy(),
        grad_biases.numpy(),
    )
    if needs_x:
        back, target = _arguments.matrix_arrays(transposed, x.dtype), _rows(grad_x)
        # Where a row's own features are x as well, their gradient lies there already.
        own = target if x_rows is None else None
        passes.aggregate(back, _rows(grad_aggregates), target, weights.numpy().dtype, dropout, own, transposed=True)
    return grad_x, grad_rows, grad_weights, grad_biases


def _empty_gradients(
    x: torch.Tensor, x_rows: torch.Tensor | None, weights: torch.Tensor, needs_x: bool, needs_rows: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    dim = x.shape[1]
    grad_x = devices.empty(x, (x.shape[0] if needs_x else 0, dim), "the gradient of x")
    own = 0 if x_rows is None or not (needs_x or needs_rows) else x_rows.shape[0]
    grad_rows = devices.empty(x, (own, dim), "the gradient of x_rows")
    return grad_x, grad_rows, torch.empty_like(weights), weights.new_empty((2, weights.shape[0]))


@_layer_backward.register_fake
def _(
    matrix: list[torch.Tensor],
    transposed: list[torch.Tensor],
    x: torch.Tensor,
    x_rows: torch.Tensor | None,
    weights: torch.Tensor,
    slope: float,
    seed: torch.Tensor | None,
    probabilities: list[float],
    edge_bias: bool,
    out: torch.Tensor,
    norms: torch.Tensor,
    aggregates: torch.Tensor,
    grad: torch.Tensor,
    needs_x: bool,
    needs_rows: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    return _empty_gradients(x, x_rows, weights, needs_x, needs_rows)


OP = Operator(
    "ngcf_layer",
    ngcf_layer,
    reference.ngcf_layer,
    reference.cases,
    reference.bytes_moved,
    twice_differentiable=lambda case: False,
)
