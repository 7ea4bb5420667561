"""ngcf_layer: one layer of NGCF, its neural part moved behind the aggregation."""

from __future__ import annotations

from typing import Any

import torch

from gnnrec.graph.sparse import SparseMatrix
from gnnrec.ops import _arguments, _dropout
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
    that probability; what is kept is divided by the probability of keeping. Both are functions of a seed that one call
    draws from torch's default generator; the backward pass draws them again. Entries that repeat (row, column) share
    one decision.

    Args:
        matrix: SparseMatrix [rows, cols] without values of its own.
        x: float32, float64, bfloat16 or float16 [cols, in], any strides.
        w1, w2: [out, in], of x's dtype as all that follow.
        b1, b2: [out] or None.
        x_rows: the rows' own x_i [rows, in]; x where the matrix is square.
        negative_slope: of leaky_relu, at least 0.
        bias: "once" adds b1 + b2 (the authors' code), "none" takes no biases (the paper), "edge" adds b1 for the row
            itself and c_ij (b1 + b2) for every entry, as an implementation by messages does.
        normalize: whether rows are divided by their norm.
        keep_aggregate: keep s, [rows, in] in at least float32, instead of computing it again: the same to the bit.

    Returns:
        [rows, out], of x's dtype.

    Raises:
        ValueError: another type, dtype, device, shape or value, with what was received.

    Source: Wang et al. 2019, "Neural Graph Collaborative Filtering", equation 7; the order of steps is that of Zhang et
    al. 2022, "Understanding GNN Computational Graph", section 3 (propagation-postponed).
    """
    _check(matrix, x, w1, b1, w2, b2, x_rows, bias)
    if not negative_slope >= 0:
        raise ValueError(f"ngcf_layer: negative_slope must be at least 0, got {negative_slope}")
    _dropout.check_probability("ngcf_layer", "dropout", dropout)
    _dropout.check_probability("ngcf_layer", "node_dropout", node_dropout)
    dropout, node_dropout = (float(p) if training else 0.0 for p in (dropout, node_dropout))
    seed = _dropout.draw_seed() if dropout or node_dropout else None
    graph, back = _arguments.pack(matrix), _arguments.pack_transpose(matrix, x)
    settings = float(negative_slope), seed, dropout, node_dropout, bias == "edge", normalize, keep_aggregate
    result: torch.Tensor = _layer(graph, back, x, x_rows, w1, b1, w2, b2, *settings)[0]
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


@torch.library.custom_op("gnnrec::ngcf_layer", mutates_args=())
def _layer(
    matrix: list[torch.Tensor],
    transposed: list[torch.Tensor],
    x: torch.Tensor,
    x_rows: torch.Tensor | None,
    w1: torch.Tensor,
    b1: torch.Tensor | None,
    w2: torch.Tensor,
    b2: torch.Tensor | None,
    slope: float,
    seed: torch.Tensor | None,
    dropout: float,
    node_dropout: float,
    edge_bias: bool,
    normalize: bool,
    keep_aggregate: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The result, the rows' norms and their aggregates; what is not kept is empty."""
    out, norms, aggregates = _empty(matrix, x, w1, normalize, keep_aggregate)
    kind, number = _arguments.compute_dtype(x.dtype), _arguments.numpy_dtype(x.dtype)
    arrays, drop = _arguments.matrix_arrays(matrix, x.dtype), _drop(seed, dropout, node_dropout)
    source = _arguments.array(x)
    weights = torch.cat([w1, w2], dim=1).to(kind).T.contiguous()
    biases = _biases(b1, b2, edge_bias, kind)
    passes.forward(
        arrays,
        passes.rows(arrays, source, len(w1), number, drop, edge_bias),
        source,
        source if x_rows is None else _arguments.array(x_rows),
        weights.numpy(),
        None if biases is None else biases.numpy(),
        slope,
        drop,
        _arguments.array(out),
        norms.numpy() if normalize else None,
        aggregates.numpy() if keep_aggregate else None,
    )
    return out, norms, aggregates


def _drop(seed: torch.Tensor | None, dropout: float, node_dropout: float) -> passes.Dropout:
    return passes.Dropout() if seed is None else passes.Dropout(int(seed), dropout, node_dropout)


def _biases(b1: torch.Tensor | None, b2: torch.Tensor | None, edge: bool, dtype: torch.dtype) -> torch.Tensor | None:
    """What is added to a row, and for "edge" how often the sum of its entries is added to that."""
    given = [b.detach().to(dtype) for b in (b1, b2) if b is not None]
    if not given:
        return None
    both = given[0] + given[1] if len(given) == 2 else given[0]
    if not edge:
        return both[None]
    return torch.stack([torch.zeros_like(both) if b1 is None else b1.detach().to(dtype), both])


def _empty(
    matrix: list[torch.Tensor], x: torch.Tensor, w1: torch.Tensor, normalize: bool, keep_aggregate: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, dtype = matrix[0].shape[0] - 1, _arguments.compute_dtype(x.dtype)
    norms = x.new_empty(rows if normalize else 0, dtype=dtype)
    return (
        x.new_empty((rows, w1.shape[0])),
        norms,
        x.new_empty((rows if keep_aggregate else 0, x.shape[1]), dtype=dtype),
    )


@_layer.register_fake
def _(
    matrix: list[torch.Tensor],
    transposed: list[torch.Tensor],
    x: torch.Tensor,
    x_rows: torch.Tensor | None,
    w1: torch.Tensor,
    b1: torch.Tensor | None,
    w2: torch.Tensor,
    b2: torch.Tensor | None,
    slope: float,
    seed: torch.Tensor | None,
    dropout: float,
    node_dropout: float,
    edge_bias: bool,
    normalize: bool,
    keep_aggregate: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _empty(matrix, x, w1, normalize, keep_aggregate)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.matrix, ctx.transposed, x, x_rows, w1, b1, w2, b2, slope, seed, *rest = inputs
    dropout, node_dropout, edge_bias, _, _ = rest
    ctx.settings = slope, dropout, node_dropout, edge_bias
    ctx.given = b1 is not None, b2 is not None
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, x_rows, w1, w2, seed, *output)


def _backward(ctx: Any, grad: torch.Tensor, *unused: None) -> tuple[Any, ...]:
    graph, back = ctx.matrix, ctx.transposed
    x, x_rows, w1, w2, seed, *output = ctx.saved_tensors
    needs = ctx.needs_input_grad
    needs_x, needs_rows = needs[2], needs[3]
    slope, dropout, node_dropout, edge_bias = ctx.settings
    grad_x, grad_rows, grad_w, grad_b = _layer_backward(
        graph,
        back,
        x,
        x_rows,
        w1,
        w2,
        slope,
        seed,
        dropout,
        node_dropout,
        edge_bias,
        *output,
        grad,
        needs_x,
        needs_rows,
    )
    grad_w1, grad_w2 = grad_w.split(x.shape[1], dim=1)
    # Every row has b1 once; with "edge", both as often as its entries sum up to.
    grad_b2 = grad_b[1] if edge_bias else grad_b[0]
    grad_b1 = grad_b[0] + grad_b[1] if edge_bias else grad_b[0]
    return (
        [None] * len(graph),
        [None] * len(back),
        grad_x if needs_x else None,
        grad_rows if needs_rows else None,
        grad_w1,
        grad_b1 if ctx.given[0] else None,
        grad_w2,
        grad_b2 if ctx.given[1] else None,
        *[None] * 7,
    )


@torch.library.custom_op("gnnrec::ngcf_layer_backward", mutates_args=())
def _layer_backward(
    matrix: list[torch.Tensor],
    transposed: list[torch.Tensor],
    x: torch.Tensor,
    x_rows: torch.Tensor | None,
    w1: torch.Tensor,
    w2: torch.Tensor,
    slope: float,
    seed: torch.Tensor | None,
    dropout: float,
    node_dropout: float,
    edge_bias: bool,
    out: torch.Tensor,
    norms: torch.Tensor,
    aggregates: torch.Tensor,
    grad: torch.Tensor,
    needs_x: bool,
    needs_rows: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x and of x_rows, empty where they are not needed; of both weights side by side; of the biases."""
    grad_x, grad_rows, grad_w, grad_b = _empty_gradients(x, x_rows, w1, edge_bias, needs_x, needs_rows)
    kind, number = _arguments.compute_dtype(x.dtype), _arguments.numpy_dtype(x.dtype)
    arrays, drop = _arguments.matrix_arrays(matrix, x.dtype), _drop(seed, dropout, node_dropout)
    source, kept = _arguments.array(x), aggregates.numel() > 0
    own = grad_x if x_rows is None else grad_rows
    grad_aggregates = x.new_empty((matrix[0].numel() - 1, x.shape[1])) if needs_x or needs_rows else None
    sums = passes.backward(
        arrays,
        passes.rows(arrays, source, len(w1), number, drop, edge_bias, not kept),
        source,
        source if x_rows is None else _arguments.array(x_rows),
        torch.cat([w1, w2], dim=1).to(kind).numpy(),
        slope,
        drop,
        _arguments.array(out),
        norms.numpy() if norms.numel() else None,
        aggregates.numpy() if kept else None,
        _arguments.array(grad),
        None if grad_aggregates is None else _arguments.array(own),
        None if grad_aggregates is None else _arguments.array(grad_aggregates),
    )
    for parameter, total in zip((grad_w, grad_b), sums):
        parameter.copy_(torch.from_numpy(total))
    if needs_x:
        assert grad_aggregates is not None
        back, upstream = _arguments.matrix_arrays(transposed, x.dtype), _arguments.array(grad_aggregates)
        target = _arguments.array(grad_x)
        # Where a row's own features are x as well, their gradient lies there already.
        passes.aggregate(back, upstream, target, number, drop, target if x_rows is None else None, transposed=True)
    return grad_x, grad_rows, grad_w, grad_b


def _empty_gradients(
    x: torch.Tensor, x_rows: torch.Tensor | None, w1: torch.Tensor, edge_bias: bool, needs_x: bool, needs_rows: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    grad_x = x.new_empty(x.shape if needs_x else 0)
    grad_rows = x.new_empty(0 if x_rows is None or not (needs_x or needs_rows) else x_rows.shape)
    return grad_x, grad_rows, x.new_empty((w1.shape[0], 2 * x.shape[1])), x.new_empty((1 + edge_bias, w1.shape[0]))


@_layer_backward.register_fake
def _(
    matrix: list[torch.Tensor],
    transposed: list[torch.Tensor],
    x: torch.Tensor,
    x_rows: torch.Tensor | None,
    w1: torch.Tensor,
    w2: torch.Tensor,
    slope: float,
    seed: torch.Tensor | None,
    dropout: float,
    node_dropout: float,
    edge_bias: bool,
    out: torch.Tensor,
    norms: torch.Tensor,
    aggregates: torch.Tensor,
    grad: torch.Tensor,
    needs_x: bool,
    needs_rows: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    return _empty_gradients(x, x_rows, w1, edge_bias, needs_x, needs_rows)


_layer.register_autograd(_backward, setup_context=_setup_context)

OP = Operator(
    "ngcf_layer",
    ngcf_layer,
    reference.ngcf_layer,
    reference.cases,
    reference.bytes_moved,
    twice_differentiable=lambda case: False,
)
