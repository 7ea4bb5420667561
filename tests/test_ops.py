"""The walk over gnnrec.ops.OPS: what every operator must hold to, and what is particular to some.

A new operator joins by being in OPS. Tests take its cases, its dtypes and its reference from there.
"""

from __future__ import annotations

from dataclasses import replace

import numba
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gnnrec import ops
from gnnrec.graph import BipartiteGraph, SparseMatrix
from gnnrec.ops._numba import num_threads
from gnnrec.ops._operator import case_matrices

WALK = [pytest.param(op, case, id=f"{op.name}-{case.name}") for op in ops.OPS for case in op.cases()]
DIFFERENTIABLE = [pytest.param(op, id=op.name) for op in ops.OPS if op.differentiable]
EPS = {dtype: torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64)}
FLOOR = 4  # roundings: a handful of products and sums, however few terms there are


def width(case):
    return next(iter(case.tensors.values()))[-1]


def sample(op, widths=(33, 64, 300)):
    """The first case of each of a few widths: for what needs a kernel of its own but not every case."""
    first = {width(case): case for case in reversed(op.cases())}
    return [first[w] for w in widths]


SAMPLE = [pytest.param(op, case, id=f"{op.name}-{case.name}") for op in ops.OPS for case in sample(op)]


def draw(shape, seed, dtype):
    """Normal numbers that float32 holds exactly, so that every precision computes with the same ones."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def evaluate(op, function, case, dtype, layout=lambda x: x):
    """Outputs of a call, and for each dense argument the gradient of the float outputs against random ones."""
    tensors = {
        name: layout(draw(shape, seed, dtype)).requires_grad_(op.differentiable)
        for seed, (name, shape) in enumerate(case.tensors.items())
    }
    outputs = function(**case.options, **tensors)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    if not op.differentiable:
        return outputs
    upstream = [layout(draw(out.shape, 99, dtype)) for out in outputs]
    return [*(out.detach() for out in outputs), *torch.autograd.grad(outputs, list(tensors.values()), upstream)]


def check(op, case, dtype):
    """Outputs and gradients stay within twice the error of the reference in the same precision.

    The error is measured against the reference in float64. How far float64 itself is off is read from the float32 run,
    in units of its eps. The floor is a few roundings of the largest magnitude: the result with all signs made positive.
    """
    got = evaluate(op, op.function, case, dtype)
    oracle = evaluate(op, op.reference, case, torch.float64)
    same = evaluate(op, op.reference, case, torch.float32)
    magnitudes = evaluate(op, op.reference, case, torch.float64, layout=torch.abs)
    for ours, theirs, exact, magnitude in zip(got, same, oracle, magnitudes, strict=True):
        assert ours.shape == exact.shape
        if not exact.is_floating_point():
            assert torch.equal(ours, exact)
            continue
        assert ours.dtype == dtype
        finite = exact.isfinite()
        assert torch.equal(ours[~finite].double(), exact[~finite])
        if not finite.any():
            continue
        reference_error = (theirs.double() - exact)[finite].abs().max() / EPS[torch.float32]
        floor = FLOOR * magnitude[magnitude.isfinite()].abs().max()
        assert (ours.double() - exact)[finite].abs().max() <= EPS[dtype] * (2 * reference_error + floor)


def assert_bit_equal(results, expected):
    assert len(results) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(results, expected))


@pytest.mark.parametrize(("op", "case"), WALK)
def test_against_the_reference(op, case):
    for dtype in op.dtypes:
        check(op, case, dtype)


@pytest.mark.parametrize(("op", "case"), WALK)
def test_bit_equal_whatever_the_threads(op, case, thread_counts):
    for dtype in op.dtypes:
        first = evaluate(op, op.function, case, dtype)
        for threads in [*thread_counts, thread_counts[0]]:
            with num_threads(threads):
                assert_bit_equal(evaluate(op, op.function, case, dtype), first)


def test_bit_equal_whatever_the_threads_on_a_graph_with_work_for_them(thread_counts):
    rng = np.random.default_rng(0)
    graph = BipartiteGraph.from_edges(rng.integers(4000, size=90_000), rng.zipf(1.5, 90_000) % 3000, 4000, 3000)
    x, matrix, seen = draw((7000, 64), 0, torch.float32), graph.norm_adjacency(), graph.user_item()
    results = []
    for threads in thread_counts * 2:
        with num_threads(threads):
            results.append(
                [
                    ops.spmm(matrix, x),
                    ops.lightgcn_propagate(matrix, x),
                    *ops.topk_scores(x[:4000], x[4000:], k=20, seen=seen),
                ]
            )
    for result in results[1:]:
        assert_bit_equal(result, results[0])


def every_other_row(x):
    wide = torch.full((2 * len(x), x.shape[1]), torch.nan, dtype=x.dtype)
    wide[::2] = x
    return wide[::2]


def inner_columns(x):
    wide = torch.full((len(x), x.shape[1] + 4), torch.nan, dtype=x.dtype)
    wide[:, 1:-3] = x
    return wide[:, 1:-3]


@pytest.mark.parametrize("layout", [lambda x: x.t().contiguous().t(), every_other_row, inner_columns])
@pytest.mark.parametrize(("op", "case"), SAMPLE)
def test_any_strides(op, case, layout):
    for dtype in op.dtypes:
        contiguous = evaluate(op, op.function, case, dtype)
        assert_bit_equal(evaluate(op, op.function, case, dtype, layout=layout), contiguous)


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_a_gradient_that_is_one_expanded_number(op):
    (case,) = sample(op, widths=(64,))
    x = {name: draw(shape, 0, torch.float32).requires_grad_() for name, shape in case.tensors.items()}
    out = op.function(**case.options, **x)
    expected = torch.autograd.grad(out, list(x.values()), torch.ones_like(out), retain_graph=True)
    assert_bit_equal(torch.autograd.grad(out.sum(), list(x.values())), expected)


@pytest.fixture
def poison(monkeypatch):
    """Fresh memory holds NaN, or a number no result has. Returns the list of what was handed out."""
    handed_out = []

    def poisoned(make):
        def fresh(*args, **kwargs):
            memory = make(*args, **kwargs)
            floating = memory.is_floating_point() if isinstance(memory, torch.Tensor) else memory.dtype.kind == "f"
            memory[...] = np.nan if floating else -77
            handed_out.append(memory)
            return memory

        return fresh

    for module, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty"), (np, "empty")):
        monkeypatch.setattr(module, name, poisoned(getattr(module, name)))
    return handed_out


@pytest.mark.parametrize(("op", "case"), WALK)
def test_fresh_memory_is_not_trusted(op, case, poison, monkeypatch):
    result = evaluate(op, op.function, case, op.dtypes[0])
    assert poison
    monkeypatch.undo()
    assert_bit_equal(result, evaluate(op, op.function, case, op.dtypes[0]))


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_gradients_of_both_orders_against_finite_differences(op):
    small = [case for case in op.cases() if sum(torch.Size(s).numel() for s in case.tensors.values()) <= 200]
    assert small
    for case in small:
        tensors = [draw(shape, 0, torch.float64).requires_grad_() for shape in case.tensors.values()]

        def function(*args, case=case):
            return op.function(**case.options, **dict(zip(case.tensors, args)))

        with num_threads(1):  # thousands of calls too small to share
            assert torch.autograd.gradcheck(function, tensors)
            assert torch.autograd.gradgradcheck(function, tensors)


class Recorder(TorchDispatchMode):
    """Notes the calls of the project's custom operators."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "gnnrec":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", [torch.clone, lambda x: x.t().contiguous().t()], ids=["contiguous", "transposed"])
@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_registration_with_torch_library(op, layout):
    """Schema, fake kernel and autograd of what a forward and a backward call reach, at the extreme widths."""
    cases = sorted(op.cases(), key=width)
    for case in (cases[0], cases[-1]):
        with Recorder() as recorder:
            evaluate(op, op.function, case, torch.float32, layout=layout)
        assert len(recorder.calls) >= 2
        for custom_op, args in recorder.calls:
            fresh = [a.detach().requires_grad_() if isinstance(a, torch.Tensor) else a for a in args]
            torch.library.opcheck(custom_op, fresh)


def test_no_layers_keep_the_layout_that_the_fake_kernel_promises():
    matrix = case_graph().norm_adjacency()
    out = ops.lightgcn_propagate(matrix, draw((3, 51), 0, torch.float32).t(), num_layers=0)
    assert out.is_contiguous()


def case_graph():
    rng = np.random.default_rng(3)
    return BipartiteGraph.from_edges(rng.integers(30, size=80), rng.integers(21, size=80), 30, 21)


def test_compiles_into_one_graph_on_first_use():
    def loss(x, graph, matrix):
        layers = ops.lightgcn_propagate(graph.norm_adjacency(), x, num_layers=2)
        blocks = ops.spmm(graph.norm_user_item(), layers[30:])
        return (blocks * x[:30]).sum() + ops.spmm(matrix, x.sin()).square().sum()

    eager_x = draw((51, 16), 0, torch.float32).requires_grad_()
    compiled_x = eager_x.detach().clone().requires_grad_()
    results = []
    for x, wrap in ((eager_x, lambda f: f), (compiled_x, torch.compile(fullgraph=True, backend="aot_eager"))):
        graph = case_graph()
        graph.norm_adjacency(), graph.norm_user_item()
        matrix = SparseMatrix.from_csr([0, 2, 2, 3], [50, 0, 7], shape=(3, 51))
        assert matrix.T.shape == (51, 3)
        value = wrap(loss)(x, graph, matrix)
        value.backward()
        results.append([value.detach(), x.grad])
    assert_bit_equal(results[1], results[0])


class _Scaled(torch.autograd.Function):
    """The identity with a gradient that is off by a ten-thousandth."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * 1.0001


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_the_check_notices_a_wrong_gradient(op):
    (case,) = sample(op, widths=(64,))
    dense = set(case.tensors)

    def wrong(**arguments):
        return op.function(**{k: _Scaled.apply(v) if k in dense else v for k, v in arguments.items()})

    check(op, case, torch.float32)
    with pytest.raises(AssertionError):
        check(replace(op, function=wrong), case, torch.float32)


def test_the_check_notices_a_backward_pass_without_the_transpose(monkeypatch):
    op = next(op for op in ops.OPS if op.name == "spmm")
    case = next(case for case in op.cases() if case.name == "square-64")
    check(op, case, torch.float32)
    monkeypatch.setattr(SparseMatrix, "T", property(lambda self: self))
    with pytest.raises(AssertionError):
        check(op, case, torch.float32)


@pytest.mark.parametrize("op", [pytest.param(op, id=op.name) for op in ops.OPS])
def test_the_check_notices_a_wrong_result(op):
    (case,) = sample(op, widths=(64,))

    def wrong(**arguments):
        result = op.function(**arguments)
        return tuple(r * 1.0001 for r in result) if isinstance(result, tuple) else result * 1.0001

    with pytest.raises(AssertionError):
        check(replace(op, function=wrong), case, torch.float32)


def test_rows_that_no_entry_names_are_not_read_into_the_sum():
    matrix = SparseMatrix.from_coo([0, 0, 2], [1, 3, 1], shape=(3, 5))
    x = torch.full((5, 33), torch.nan)
    x[1], x[3] = 1.0, 2.0
    assert ops.spmm(matrix, x)[:, 0].tolist() == [3.0, 0.0, 1.0]
    assert torch.equal(ops.spmm(matrix, x), ops.spmm(matrix, x)[:, :1].expand(3, 33))


def test_spmm_by_hand():
    scale = torch.tensor([1.0, 10.0]), torch.tensor([1.0, 2.0, 3.0])
    matrix = SparseMatrix.from_coo([1, 0, 1, 1], [2, 0, 0, 2], shape=(2, 3), row_scale=scale[0], col_scale=scale[1])
    x = torch.tensor([[1.0], [5.0], [7.0]], requires_grad=True)
    out = ops.spmm(matrix, x)
    assert out.tolist() == [[1.0], [10 * (1 + 3 * 7 * 2)]]
    out.sum().backward()
    assert x.grad.tolist() == [[1.0 + 10.0], [0.0], [60.0]]


def test_propagation_by_hand():
    graph = BipartiteGraph.from_edges([0], [0], 1, 1)  # one edge: A swaps the two nodes
    x = torch.tensor([[3.0], [9.0]])
    assert ops.lightgcn_propagate(graph.norm_adjacency(), x, num_layers=2).tolist() == [[5.0], [7.0]]
    weighted = ops.lightgcn_propagate(graph.norm_adjacency(), x, num_layers=1, layer_weights=[2, -1])
    assert weighted.tolist() == [[-3.0], [15.0]]


@pytest.mark.parametrize(("op", "case"), SAMPLE)
def test_bad_dense_arguments_are_named(op, case):
    tensors = {name: draw(shape, 0, op.dtypes[0]) for name, shape in case.tensors.items()}
    for name, x in tensors.items():
        bad = {
            "got list": x.tolist(),
            "got torch.float16": x.half(),
            "got torch.int64": x.long(),
            "got torch.sparse_coo": x.to_sparse(),
            "lies on meta": x.to("meta"),
            f"got \\[{x.shape[1]}\\]": x[0],
            f"got \\[1, {len(x)}, {x.shape[1]}\\]": x[None],
            f"got \\[{len(x)}, 0\\]": x[:, :0],
        }
        unsupported = {torch.float32, torch.float64} - set(op.dtypes)
        bad.update({f"got {dtype}": x.to(dtype) for dtype in unsupported})
        for received, value in bad.items():
            with pytest.raises(ValueError, match=f"^{op.name}: {name} .*{received}"):
                op.function(**case.options, **{**tensors, name: value})


@pytest.mark.parametrize(("op", "case"), SAMPLE)
def test_bad_matrices_are_named(op, case):
    tensors = {name: draw(shape, 0, op.dtypes[0]) for name, shape in case.tensors.items()}
    matrices = [name for name, value in case.options.items() if isinstance(value, SparseMatrix)]
    assert matrices
    for name in matrices:
        with pytest.raises(ValueError, match=f"^{op.name}: .*SparseMatrix, got Tensor"):
            op.function(**{**case.options, name: torch.ones(3, 3)}, **tensors)


def bad_calls():
    graph = case_graph()
    rectangle, adjacency = graph.user_item(), graph.norm_adjacency()
    square = SparseMatrix.from_csr([0, 1, 2], [1, 0], shape=(2, 2))
    x, users, items = torch.ones(51, 4), torch.ones(30, 4), torch.ones(21, 4)
    propagate, topk, dense = ops.lightgcn_propagate, ops.topk_scores, ops.topk_dense
    return {
        "x must have shape \\[21, dim >= 1\\], got \\[30, 4\\]": lambda: ops.spmm(rectangle, users),
        "x must have shape \\[51, dim >= 1\\], got \\[30, 4\\]": lambda: propagate(adjacency, users),
        "symmetric .*got SparseMatrix\\(30 x 21": lambda: propagate(rectangle, items),
        "symmetric .*got SparseMatrix\\(2 x 2": lambda: propagate(square, x[:2]),
        "num_layers must be at least 0, got -1": lambda: propagate(adjacency, x, num_layers=-1),
        "num_layers \\+ 1 = 3 numbers, got 2": lambda: propagate(adjacency, x, num_layers=2, layer_weights=[1, 2]),
        "k must lie within 1 and .* 21, got 0": lambda: topk(users, items, k=0),
        "k must lie within 1 and .* 21, got 22": lambda: topk(users, items, k=22),
        "k must lie within 1 and .* 0, got 1": lambda: topk(users, items[:0], k=1),
        "items must have 4 columns, got \\[21, 3\\]": lambda: topk(users, items[:, :3], k=1),
        "seen must be 29 x 21, got 30 x 21": lambda: topk(users[:29], items, k=1, seen=rectangle),
        "seen must be 30 x 20, got 30 x 21": lambda: topk(users, items[:20], k=1, seen=rectangle),
        "topk_dense: k must lie within 1 and .* 4, got 5": lambda: dense(users, k=5),
        "topk_dense: seen must be 30 x 4, got 30 x 21": lambda: dense(users, k=1, seen=rectangle),
        "topk_dense: scores must be torch.float32, got torch.float64": lambda: dense(users.double(), k=1),
    }


@pytest.mark.parametrize(("message", "call"), bad_calls().items())
def test_bad_values_are_named(message, call):
    with pytest.raises(ValueError, match=message):
        call()


def test_bytes_moved():
    for op in ops.OPS:
        for case in op.cases():
            for dtype in op.dtypes:
                count = op.bytes_moved(case, dtype.itemsize)
                assert isinstance(count, int)
                assert count > 0


def test_bytes_moved_by_hand():
    spmm, propagate = ops.OPS[:2]
    matrix = case_matrices()["user_item"]  # 40 x 23, 90 entries, both scales
    (case,) = [case for case in spmm.cases() if case.name == "user_item-64"]
    read = 41 * 8 + 40 * 4  # row pointers and row scales
    read += 90 * (4 + 4 + 64 * 4)  # an entry: its column, that column's scale and row of x
    assert (matrix.shape, matrix.nnz) == ((40, 23), 90)
    assert spmm.bytes_moved(case, 4) == read + 40 * 64 * 4
    (case,) = [case for case in spmm.cases() if case.name == "unscaled-64"]  # 17 x 70, 60 entries
    assert spmm.bytes_moved(case, 8) == 18 * 8 + 60 * (4 + 64 * 8) + 17 * 64 * 8
    (case,) = [case for case in propagate.cases() if case.name == "64-2"]
    nnz, row = case.options["matrix"].nnz, 64 * 4
    layer = 52 * 8 + 51 * 4 + nnz * (4 + 4 + row)  # as above, on 51 nodes
    assert propagate.bytes_moved(case, 4) == 2 * (layer + 2 * 51 * row)  # a layer reads x once more and writes itself


def test_threads_are_set_and_set_back(thread_counts):
    before = numba.get_num_threads(), torch.get_num_threads()
    inside = thread_counts[0] if before[0] != thread_counts[0] else thread_counts[1]
    with num_threads(inside):
        assert numba.get_num_threads() == torch.get_num_threads() == inside
    assert (numba.get_num_threads(), torch.get_num_threads()) == before


@pytest.mark.parametrize("threads", [0, -1, numba.config.NUMBA_NUM_THREADS + 1])
def test_impossible_numbers_of_threads(threads):
    with pytest.raises(ValueError, match=f"got {threads}"):
        ops.set_num_threads(threads)
