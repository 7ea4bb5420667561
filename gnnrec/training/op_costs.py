"""Bytes and floating-point operations of an operator's call, from what a profiler's trace says of its arguments.

Bytes are those of the operators' `bytes_moved`: every operand counted each time it is gathered, wherever it is found.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch

from gnnrec.ops._operator import Case
from gnnrec.ops.bpr_loss import reference as bpr
from gnnrec.ops.lightgcn_propagate import reference as propagate
from gnnrec.ops.ngcf_layer import reference as ngcf
from gnnrec.ops.perturb import reference as perturb
from gnnrec.ops.sddmm import reference as sddmm
from gnnrec.ops.softmax_loss import reference as softmax
from gnnrec.ops.spmm import reference as spmm
from gnnrec.ops.uniformity_loss import reference as uniformity

_SIZES = {"double": 8, "float": 4, "c10::BFloat16": 2, "c10::Half": 2, "long int": 8, "int": 4}
_ADAM_FLOP = 12  # for a number: 3 for the mean, 4 for the square, 5 for the corrected quotient and the step


class Call(NamedTuple):
    """One call of an operator.

    Args:
        name: of the operator in torch's dispatcher.
        dims: the shape of every argument, [] for what is no tensor; a list of shapes for a list of tensors.
        types: of their elements, as C++ names them.
        values: arguments that are numbers, lists of them or bools, as text.
    """

    name: str
    dims: list[Any]
    types: list[str]
    values: list[str]


class Cost(NamedTuple):
    """Bytes that a call reads and writes, and its floating-point operations; None where nobody has counted them."""

    bytes: int | None = None
    flop: int | None = None


class _Matrix(NamedTuple):
    """What the byte models ask of a SparseMatrix."""

    shape: tuple[int, int]
    nnz: int
    row_scale: bool | None = None
    col_scale: bool | None = None
    values: None = None


def cost(call: Call) -> Cost:
    """Bytes and operations of a call."""
    count = _COUNTS.get(call.name)
    return Cost() if count is None else count(call)


def _size(call: Call, argument: int) -> int:
    return _SIZES.get(call.types[argument], 0)


def _given(call: Call, argument: int) -> bool:
    """Whether an argument that may be None is a tensor."""
    return call.types[argument] in _SIZES


def _matrix(call: Call, cols: int) -> _Matrix:
    """The matrix that `_arguments.pack` has made the first argument; what it has not is empty."""
    (pointers,), (entries,), *scales = call.dims[0][:4]
    row_scale, col_scale = (True if size[0] else None for size in scales)
    return _Matrix((pointers - 1, cols), entries, row_scale, col_scale)


def _spmm(call: Call) -> Cost:
    x = 2 if _given(call, 2) else 3  # without x its place is taken by the values
    matrix, dim = _matrix(call, call.dims[x][0]), call.dims[x][1]
    tensors = {"x": tuple(call.dims[x])}
    for name, argument in (("values", 3), ("add", 6)):
        if _given(call, argument):
            tensors[name] = tuple(call.dims[argument])
    return Cost(spmm.bytes_moved(Case("", tensors, {"matrix": matrix}), _size(call, x)), 2 * matrix.nnz * dim)


def _spmm_accumulate(call: Call) -> Cost:
    rows, dim = call.dims[2]
    matrix = _matrix(Call(call.name, call.dims[1:], call.types, call.values), rows)
    tensors = {"x": (rows, dim), "add": tuple(call.dims[0])}
    if _given(call, 3):
        tensors["values"] = tuple(call.dims[3])
    return Cost(spmm.bytes_moved(Case("", tensors, {"matrix": matrix}), _size(call, 2)), 2 * matrix.nnz * dim)


def _propagate(call: Call) -> Cost:
    nodes, dim = call.dims[1]
    matrix, layers = _matrix(call, nodes), call.values[2].count(",")
    case = Case("", {"x": (nodes, dim)}, {"matrix": matrix, "num_layers": layers})
    return Cost(propagate.bytes_moved(case, _size(call, 1)), 2 * layers * (matrix.nnz + nodes) * dim)


def _propagate_some(call: Call) -> Cost:
    """The last layer over some rows; or, where there are layers, the gradient of some rows through these: the first one
    looks at all entries for those that have some, the others are products that add it."""
    (pointers,), (entries,) = call.dims[0][:2]
    dim, chosen = call.dims[1][1], call.dims[2][0]
    nodes, row = pointers - 1, dim * _size(call, 1)
    theirs, layers = int(call.values[3]), int(call.values[4])
    places = 8 * pointers + 4 * nodes
    if not layers:
        moved = places + 8 * theirs + 4 * chosen + (theirs + 2 * chosen) * row
        return Cost(moved, 2 * (theirs + chosen) * dim)
    each = places + 4 * nodes + (chosen + nodes) * row  # of every layer: scales, what is added, what is written
    gathered = 8 * entries + 4 * theirs + theirs * row + (layers - 1) * entries * (8 + row)
    return Cost(layers * each + gathered, 2 * (theirs + (layers - 1) * entries + layers * chosen) * dim)


def _parts(call: Call) -> Cost:
    """Of what consists of calls of their own."""
    return Cost(0, 0)


def _sddmm(call: Call) -> Cost:
    """Of dot products, the only kind in a training step: a trace does not tell the kinds apart."""
    if not _given(call, 3):
        return Cost()
    a, b = (tuple(call.dims[k]) for k in (2, 3))
    matrix = _matrix(call, b[0])
    case = Case("", {"a": a, "b": b}, {"matrix": matrix, "op": "dot"})
    return Cost(sddmm.bytes_moved(case, _size(call, 2)), 2 * matrix.nnz * a[1])


def _ngcf_case(call: Call, *, normalize: bool, keep_aggregate: bool) -> Case:
    nodes, dim = call.dims[2]
    out = call.dims[4][0]  # weights are [out, 2 in]
    options = {"matrix": _matrix(call, nodes), "normalize": normalize, "keep_aggregate": keep_aggregate}
    return Case("", {"x": (nodes, dim), "w1": (out, dim), "b1": (out,)}, options)


def _ngcf_flop(case: Case, aggregations: int, products: int) -> int:
    matrix, (out, dim) = case.options["matrix"], case.tensors["w1"]
    return int(2 * aggregations * matrix.nnz * dim + products * 4 * matrix.shape[0] * dim * out)


def _ngcf(call: Call) -> Cost:
    normalize, keep_aggregate = (value == "True" for value in call.values[10:12])
    case = _ngcf_case(call, normalize=normalize, keep_aggregate=keep_aggregate)
    return Cost(ngcf.bytes_moved(case, _size(call, 2)), _ngcf_flop(case, 1, 1))


def _ngcf_backward(call: Call) -> Cost:
    norms, aggregates = (prod(call.dims[argument]) for argument in (10, 11))
    case = _ngcf_case(call, normalize=norms > 0, keep_aggregate=aggregates > 0)
    return Cost(ngcf.backward_bytes(case, _size(call, 2)), _ngcf_flop(case, 1 if aggregates else 2, 2))


def _dense(call: Call) -> Cost:
    """The dense part of a layer of NGCF, of some rows: features and aggregates, output, norms, weights."""
    (rows, dim), out = call.dims[0], call.dims[1][1]
    numbers = rows * (2 * dim + out + 1) + 2 * out * dim + out
    return Cost(numbers * _size(call, 0), 4 * rows * dim * out)


def _dense_backward(call: Call) -> Cost:
    """Both gradients written beside what `_dense` moves, the output's gradient read; of the weights' too."""
    (rows, dim), out = call.dims[0], call.dims[1][1]
    numbers = rows * (4 * dim + 2 * out + 1) + 4 * out * dim + out
    return Cost(numbers * _size(call, 0), 8 * rows * dim * out)


def _bpr_case(call: Call, first: int) -> Case:
    """final, ego, triples, reg and hardest begin at argument `first`."""
    final, ego, triples = call.dims[first : first + 3]
    reg, hardest = call.values[first + 3 : first + 5]
    options = {"triples": torch.empty(triples, device="meta"), "reg": float(reg), "hardest": hardest == "True"}
    return Case("", {"final": tuple(final), "ego": tuple(ego)}, options)


def _bpr(call: Call) -> Cost:
    case = _bpr_case(call, 0)
    return Cost(bpr.bytes_moved(case, _size(call, 0)), _bpr_scores(case))


def _bpr_backward(call: Call) -> Cost:
    """The scores again; of user, positive and every negative that counts a multiple of another's row is added up."""
    case = _bpr_case(call, 1)
    roles, batch = case.options["triples"].shape
    pairs = 1 if case.options["hardest"] else roles - 2
    gradients = 2 * batch * 2 * (1 + pairs) * case.tensors["final"][1]
    return Cost(bpr.backward_bytes(case, _size(call, 1)), _bpr_scores(case) + gradients)


def _bpr_scores(case: Case) -> int:
    """Dot products of the user with all others."""
    roles, batch = case.options["triples"].shape
    return int(2 * batch * (roles - 1) * case.tensors["final"][1])


def _softmax(call: Call) -> Cost:
    """The batch's part of the matrix is what the operator is given, of the columns' vectors those that take part."""
    (pointers,), (entries,), queries, keys = call.dims[:4]
    columns = keys[0] if keys else queries[0] - int(call.values[4])
    columns = call.dims[6][0] if _given(call, 6) else columns
    negatives = call.dims[7][0] if _given(call, 7) else None
    rows, dim, size = pointers - 1, queries[1], _size(call, 2)
    moved = softmax.moved(rows, entries, columns, negatives, dim * size)
    against = columns if negatives is None else negatives
    return Cost(moved, 3 * 2 * rows * against * dim)  # scores, and from their gradients those of both sides


def _softmax_backward(call: Call) -> Cost:
    """Parts of the gradient, each read and written within matrices that are written."""
    parts = call.dims[1]
    rows = sum(json.loads(call.values[3])) + sum(part[0] for part in parts)
    return Cost(rows * parts[0][1] * _size(call, 0))


def _uniformity(call: Call) -> Cost:
    options = {"rows": torch.empty(call.dims[1], device="meta")} if _given(call, 1) else {}
    return Cost(uniformity.bytes_moved(Case("", {"x": tuple(call.dims[0])}, options), _size(call, 0)))


def _perturb(call: Call) -> Cost:
    return Cost(perturb.bytes_moved(Case("", {"x": tuple(call.dims[0])}, {}), _size(call, 0)))


def _adam(call: Call) -> Cost:
    """Its bytes_moved, with the size of every tensor: moments and parameter may be of several types."""
    parameter, gradient, mean, square, master = (
        prod(call.dims[k]) * _size(call, k) if _given(call, k) else 0 for k in range(5)
    )
    moved = parameter * (1 if master else 2) + gradient + 2 * (mean + square + master)
    return Cost(moved, _ADAM_FLOP * prod(call.dims[0]))


def _product(a: list[int], b: list[int], size: int) -> Cost:
    """[..., m, k] times [..., k, n]."""
    (m, k), n = a[-2:], b[-1]
    count = prod(a[:-2])
    return Cost(count * (m * k + k * n + m * n) * size, 2 * count * m * k * n)


def _mm(call: Call) -> Cost:
    return _product(call.dims[0], call.dims[1], _size(call, 0))


def _addmm(call: Call) -> Cost:
    return _product(call.dims[1], call.dims[2], _size(call, 1))


def _matmul(call: Call) -> Cost:
    return _product(call.dims[0], call.dims[1][::-1], _size(call, 0))


def _matmul_weight(call: Call) -> Cost:
    return _product(call.dims[0][::-1], call.dims[1], _size(call, 0))


_COUNTS: dict[str, Callable[[Call], Cost]] = {
    "gnnrec::spmm": _spmm,
    "gnnrec::spmm_accumulate": _spmm_accumulate,
    "gnnrec::lightgcn_propagate": _propagate,
    "gnnrec::lightgcn_propagate_rows": _parts,
    "gnnrec::lightgcn_propagate_rows_backward": _parts,
    "gnnrec::propagate_some": _propagate_some,
    "gnnrec::sddmm": _sddmm,
    "gnnrec::ngcf_layer": _ngcf,
    "gnnrec::ngcf_layer_backward": _ngcf_backward,
    "gnnrec::ngcf_aggregate": _spmm,
    "gnnrec::ngcf_dense": _dense,
    "gnnrec::ngcf_dense_backward": _dense_backward,
    "gnnrec::bpr_loss": _bpr,
    "gnnrec::bpr_loss_backward": _bpr_backward,
    "gnnrec::softmax_loss": _softmax,
    "gnnrec::softmax_loss_backward": _softmax_backward,
    "gnnrec::uniformity_loss": _uniformity,
    "gnnrec::perturb": _perturb,
    "gnnrec::adam_step": _adam,
    "gnnrec::matmul": _matmul,
    "gnnrec::matmul_weight": _matmul_weight,
    "aten::mm": _mm,
    "aten::bmm": _mm,
    "aten::addmm": _addmm,
    "aten::baddbmm": _addmm,
}
