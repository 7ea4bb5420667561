"""The walk over gnnrec.ops.OPS: what every operator must hold to, and what is particular to some.

A new operator joins by being in OPS. Tests take its cases, its dtypes and its reference from there.
"""

from __future__ import annotations

import json
import mmap
import tempfile
from dataclasses import replace
from importlib import import_module

import numba
import numpy as np
import pytest
import scipy.sparse
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from walk import (
    EPS,
    assert_bit_equal,
    check,
    columns_first,
    draw,
    dtypes,
    evaluate,
    every_other_row,
    inner_columns,
    sample,
    width,
)

from gnnrec import ops
from gnnrec.graph import BipartiteGraph, SparseMatrix
from gnnrec.graph.schedule import LONG
from gnnrec.ops import segment
from gnnrec.ops._numba import num_threads
from gnnrec.ops._operator import Case, case_matrices, entry_rows

autotune_module = import_module("gnnrec.ops.autotune")  # the name is the function's, too

WALK = [pytest.param(op, case, id=f"{op.name}-{case.name}") for op in ops.OPS for case in op.cases()]
DIFFERENTIABLE = [pytest.param(op, id=op.name) for op in ops.OPS if op.differentiable]
SAMPLE = [pytest.param(op, case, id=f"{op.name}-{case.name}") for op in ops.OPS for case in sample(op)]


@pytest.mark.parametrize(("op", "case"), WALK)
def test_against_the_reference(op, case):
    for dtype in dtypes(op, case):
        check(op, case, dtype)


@pytest.mark.parametrize(("op", "case"), WALK)
def test_bit_equal_whatever_the_threads(op, case, thread_counts):
    """Those with products of a library: for an equal number of threads."""
    for dtype in dtypes(op, case):
        first = {}
        for threads in [*thread_counts, thread_counts[0]]:
            with num_threads(threads):
                result = evaluate(op, op.function, case, dtype)
                assert_bit_equal(result, first.setdefault(threads if op.library_products else 0, result))


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


@pytest.mark.parametrize("layout", [columns_first, every_other_row, inner_columns])
@pytest.mark.parametrize(("op", "case"), SAMPLE)
def test_any_strides(op, case, layout):
    for dtype in op.dtypes[: 2 if width(case) == 33 else 1]:  # strides count in bytes, of which these two differ
        contiguous = evaluate(op, op.function, case, dtype)
        assert_bit_equal(evaluate(op, op.function, case, dtype, layout=layout), contiguous)


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_a_gradient_that_is_one_expanded_number(op):
    (case,) = sample(op, widths=(64,))
    x = {name: draw(shape, 0, torch.float32).requires_grad_() for name, shape in case.tensors.items()}
    out = op.function(**case.options, **x)
    expected = torch.autograd.grad(out, list(x.values()), torch.ones_like(out), retain_graph=True)
    assert_bit_equal(torch.autograd.grad(out.sum(), list(x.values())), expected)


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
            assert not op.twice_differentiable(case) or torch.autograd.gradgradcheck(function, tensors)


class Recorder(TorchDispatchMode):
    """Notes the calls of the project's custom operators."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "gnnrec":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", [torch.clone, columns_first], ids=["contiguous", "transposed"])
@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_registration_with_torch_library(op, layout):
    """Schema, fake kernel and autograd of what a forward and a backward call reach, at the extreme widths."""
    cases = sorted(op.cases(), key=width)
    for case in (cases[0], cases[-1]):
        with Recorder() as recorder:
            evaluate(op, op.function, case, torch.float32, layout=layout)
        assert len(recorder.calls) >= (1 if op.name == "perturb" else 2)  # whose gradient passes as it is
        for custom_op, args in recorder.calls:
            # What serves a backward pass alone has no derivative of its own.
            floats = not custom_op._schema.name.endswith("_backward")

            def fresh(x, floats=floats):
                return x.detach().requires_grad_(floats and x.is_floating_point())

            torch.library.opcheck(custom_op, tree_map_only(torch.Tensor, fresh, args))


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
        shape = ", ".join(map(str, x.shape))
        bad = {
            "got list": x.tolist(),
            "got torch.int64": x.long(),
            "got torch.sparse_coo": x.to_sparse(),
            "lies on meta": x.to("meta"),
            "got \\[\\]": x.flatten()[0],
            f"got \\[1, 1, {shape}\\]": x[None, None],
        }
        if x.dim() == 2:
            bad |= {f"got \\[{x.shape[1]}\\]": x[0], f"got \\[{len(x)}, 0\\]": x[:, :0]}
        unsupported = set(EPS) - set(op.dtypes)
        bad.update({f"got {dtype}": x.to(dtype) for dtype in unsupported})
        for received, value in bad.items():
            with pytest.raises(ValueError, match=f"^{op.name}: {name} .*{received}"):
                op.function(**case.options, **{**tensors, name: value})


@pytest.mark.parametrize(("op", "case"), SAMPLE)
def test_bad_matrices_are_named(op, case):
    tensors = {name: draw(shape, 0, op.dtypes[0]) for name, shape in case.tensors.items()}
    matrices = [name for name, value in case.options.items() if isinstance(value, SparseMatrix)]
    for name in matrices:
        with pytest.raises(ValueError, match=f"^{op.name}: .*SparseMatrix, got Tensor"):
            op.function(**{**case.options, name: torch.ones(3, 3)}, **tensors)


def bad_calls():
    graph = case_graph()
    rectangle, adjacency = graph.user_item(), graph.norm_adjacency()
    square = SparseMatrix.from_csr([0, 1, 2], [1, 0], shape=(2, 2))
    x, users, items = torch.ones(51, 4), torch.ones(30, 4), torch.ones(21, 4)
    propagate, topk, dense = ops.lightgcn_propagate, ops.topk_scores, ops.topk_dense
    unscaled, loss, numbers = case_matrices()["unscaled"], ops.bpr_loss, torch.arange(4).expand(3, 4)
    valued = SparseMatrix.from_csr([0, 1, 2], [1, 0], torch.ones(2), shape=(2, 2))
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
        "values must have shape \\[60\\], got \\[59\\]": lambda: ops.spmm(unscaled, torch.ones(70, 4), torch.ones(59)),
        "values must be torch.float32, got": lambda: ops.spmm(unscaled, torch.ones(70, 4), torch.ones(60).double()),
        "values were given for a matrix that has its own": lambda: ops.spmm(valued, torch.ones(2, 4), torch.ones(2)),
        "reduce must be one of sum, mean, max, min, got 'prod'": lambda: ops.spmm(adjacency, x, reduce="prod"),
        "add must be torch.float32, got torch.float64": lambda: ops.spmm(adjacency, x, add=x.double()),
        "the matrix must have no values of its own": lambda: ops.sddmm(valued, x[:2], x[:2]),
        "op must be one of dot, add, mul, got 'div'": lambda: ops.sddmm(adjacency, x, x, op="div"),
        "rows must lie within 0 and 50, got 3 to 51": lambda: propagate(adjacency, x, rows=torch.tensor([3, 51])),
        "rows must be int64 \\[n\\], got torch.int32": lambda: propagate(adjacency, x, rows=torch.tensor([3]).int()),
        "triples must be int64 \\[2 \\+ n, batch\\] .* got torch.int64 \\[2, 4\\]": lambda: loss(x, x, numbers[:2]),
        "triples must lie within 0 and 50, got 0 to 51": lambda: loss(x, x, 51 * numbers[:, :2]),
        "index must lie within 0 and 2, got 0 to 3": lambda: ops.index_scatter(x[:4], numbers[0], 3),
        "index_scatter: index must have 51 numbers, got 4": lambda: ops.index_scatter(x, numbers[0], 9),
        r"indptr must rise from 0 to 4, got tensor\(\[0, 3, 2, 4": lambda: ops.segment_reduce(
            x[:4], torch.tensor([0, 3, 2, 4])
        ),
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
    spmm, propagate = (next(op for op in ops.OPS if op.name == name) for name in ("spmm", "lightgcn_propagate"))
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


@pytest.fixture(scope="module")
def hub():
    """A row of half the entries, several times as long as a piece, beside a row just as long as a piece may be."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([3, 3 * LONG + 5, 0, LONG, LONG + 1, 40])
    rows = torch.repeat_interleave(lengths)
    cols = torch.randint(500, (len(rows),), generator=generator)
    return SparseMatrix.from_coo(rows, cols, shape=(6, 500), col_scale=torch.rand(500, generator=generator))


def test_long_rows_are_cut_into_pieces(hub):
    assert hub.pieces[:, 0].tolist() == [1, 1, 1, 1, 4, 4]
    assert (hub.pieces[:, 2] - hub.pieces[:, 1]).tolist() == [LONG, LONG, LONG, 5, LONG, 1]
    assert hub.long.tolist() == [[1, 0, 4], [4, 4, 6]]
    assert int(hub.pieces[0, 1]) == 3
    assert len(hub.T.pieces) == 0


@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "min"])
def test_long_rows(hub, reduce, thread_counts):
    spmm = next(op for op in ops.OPS if op.name == "spmm")
    tensors = {"x": (500, 33), "values": (hub.nnz,), "add": (6, 33)}
    if reduce == "sum":
        sddmm = next(op for op in ops.OPS if op.name == "sddmm")
        for kind in ("dot", "mul"):
            shapes = {"a": (6, 33), "b": (500, 33)}
            check(sddmm, Case(f"hub-{kind}", shapes, {"matrix": hub, "op": kind}), torch.float32)
    case = Case(f"hub-{reduce}", tensors, {"matrix": hub, "reduce": reduce, "scale": 0.5})
    check(spmm, case, torch.float32)
    first = evaluate(spmm, ops.spmm, case, torch.float32)
    for threads in thread_counts:
        with num_threads(threads):
            assert_bit_equal(evaluate(spmm, ops.spmm, case, torch.float32), first)


def test_half_sums_beyond_what_halves_can_count():
    """4096 ones are 4096: a float16 that grows by ones stops at 2048, a bfloat16 at 256."""
    matrix = SparseMatrix.from_csr([0, 4096], torch.arange(4096), shape=(1, 4096))
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.ones(4096, 5, dtype=dtype, requires_grad=True)
        out = ops.spmm(matrix, x)
        assert out.tolist() == [[4096.0] * 5]
        out.sum().backward()
        assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_results_are_rounded_as_torch_does(dtype):
    """Every half, infinities and NaN among them, times factors that leave bits to round off, overflow and underflow."""
    x = torch.arange(2**16).to(torch.uint16).view(dtype).view(-1, 16)
    identity = SparseMatrix.from_csr(torch.arange(len(x) + 1), torch.arange(len(x)), shape=(len(x), len(x)))
    for factor in (1.0, 1 / 3, 1 + 2**-9, 1e-4, 3.0):
        expected = (x.float() * factor).to(dtype)
        got = ops.spmm(identity, x, scale=factor)
        assert torch.equal(got.isnan(), expected.isnan())
        assert torch.equal(got.nan_to_num(0.0), expected.nan_to_num(0.0))


def test_offsets_beyond_int32():
    """Rows are found by 64-bit byte offsets: the last of them lies 4 GiB into a mapping that is hardly touched."""
    rows = 2**31 // 256 + 3
    with tempfile.TemporaryFile() as file:
        file.truncate(rows * 256 * 4)
        memory = mmap.mmap(file.fileno(), 0)
        x = torch.frombuffer(memory, dtype=torch.float32).view(rows, 256)
        x[-1], x[0] = 3.0, 4.0
        matrix = SparseMatrix.from_csr([0, 2], [rows - 1, 0], shape=(1, rows))
        assert ops.spmm(matrix, x).tolist() == [[7.0] * 256]
        del x


def test_accumulation_in_place():
    matrix = case_matrices()["square"]
    x, out = draw((50, 33), 0, torch.float32), draw((50, 33), 1, torch.float32)
    expected = ops.spmm(matrix, x, scale=0.25, add=out)
    assert ops.spmm_accumulate(out, matrix, x, scale=0.25) is out
    assert torch.equal(out, expected)
    with pytest.raises(ValueError, match="has no gradient"):
        ops.spmm_accumulate(out, matrix, x.requires_grad_())
    with pytest.raises(ValueError, match="rows of out must be contiguous"):
        ops.spmm_accumulate(torch.zeros(33, 50).t(), matrix, x.detach())
    with pytest.raises(ValueError, match="rows of out must be contiguous and apart"):
        ops.spmm_accumulate(torch.zeros(1, 33).expand(50, 33), matrix, x.detach())
    shared = torch.zeros(60, 33)
    with pytest.raises(ValueError, match="must not share memory"):
        ops.spmm_accumulate(shared[:50], matrix, shared[10:])


def test_values_of_a_matrix_are_not_rounded_to_halves():
    values = torch.tensor([1 + 2**-9, 1.0])
    matrix = SparseMatrix.from_coo(torch.tensor([0, 0]), torch.tensor([0, 1]), values, shape=(1, 2))
    x = torch.tensor([[1.0], [-1.0]], dtype=torch.bfloat16)
    assert ops.spmm(matrix, x).item() == 2**-9
    assert ops.spmm_accumulate(torch.zeros(1, 1, dtype=torch.bfloat16), matrix, x).item() == 2**-9


def test_numbers_that_change_after_they_were_checked_change_nothing():
    pointers, columns = torch.tensor([0, 1, 3]), torch.tensor([0, 1, 0], dtype=torch.int32)
    x = draw((3, 4), 0, torch.float32).requires_grad_()
    results = [
        ops.spmm(SparseMatrix.from_csr(pointers, columns, shape=(2, 3)), x),
        ops.gather_segment_reduce(x, columns, pointers),
        ops.segment_reduce(x, pointers),
        ops.index_scatter(x, columns, 2),
    ]
    expected = [torch.autograd.grad(y.square().sum(), x, retain_graph=True)[0] for y in results]
    pointers.fill_(10**9), columns.fill_(10**9)
    assert_bit_equal([torch.autograd.grad(y.square().sum(), x)[0] for y in results], expected)


def test_matrices_from_elsewhere():
    generator = torch.Generator().manual_seed(0)
    entries = torch.randint(7, (20,), generator=generator), torch.randint(9, (20,), generator=generator)
    values, x = torch.randn(20, generator=generator), torch.randn(9, 4, generator=generator)
    coo = torch.sparse_coo_tensor(torch.stack(entries), values, (7, 9))
    expected = coo.to_dense() @ x
    scipy_coo = scipy.sparse.coo_array((values.numpy(), tuple(e.numpy() for e in entries)), shape=(7, 9))
    for matrix in (
        SparseMatrix.from_coo(*entries, values, shape=(7, 9)),
        SparseMatrix.from_torch(coo),
        SparseMatrix.from_torch(coo.coalesce().to_sparse_csr()),
        SparseMatrix.from_scipy(scipy_coo),
    ):
        assert torch.allclose(ops.spmm(matrix, x), expected, atol=1e-6)
        assert torch.allclose(ops.spmm(matrix.T, torch.eye(7)), coo.to_dense().T, atol=1e-6)
    with pytest.raises(ValueError, match=r"must be sparse, COO or CSR, got torch\.strided"):
        SparseMatrix.from_torch(x)


def test_entries_of_the_transpose(hub):
    graph = case_graph()
    unsorted = SparseMatrix.from_csr([0, 3, 4], [2, 0, 2, 1], shape=(2, 3))
    for matrix in (hub, hub.T, graph.norm_adjacency(), graph.user_item(), graph.user_item().T, unsorted, unsorted.T):
        entries = matrix.transposed_entries
        assert torch.equal(entries.sort().values, torch.arange(matrix.nnz))
        assert torch.equal(entry_rows(matrix.T), matrix.indices[entries].long())
        assert torch.equal(entry_rows(matrix)[entries], matrix.T.indices.long())
        assert torch.equal(matrix.T.transposed_entries[entries.argsort()].sort().values, torch.arange(matrix.nnz))
        back = matrix.T.transposed_entries
        assert torch.equal(entries[back], torch.arange(matrix.nnz))


def test_gradients_of_an_extreme_are_shared_among_equal_terms():
    matrix = SparseMatrix.from_csr([0, 3], [0, 1, 2], shape=(1, 3))
    x = torch.tensor([[5.0, 1.0], [5.0, 2.0], [0.0, 3.0]], requires_grad=True)
    ops.spmm(matrix, x, reduce="max").sum().backward()
    assert x.grad.tolist() == [[0.5, 0.0], [0.5, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layers", range(4))
def test_rows_of_a_propagation_and_their_gradients_are_those_of_the_whole(layers, dtype):
    rng = np.random.default_rng(0)
    graph = BipartiteGraph.from_edges(rng.integers(4000, size=90_000), rng.zipf(1.5, 90_000) % 3000, 4000, 3000)
    x, matrix = draw((7000, 64), 0, dtype).requires_grad_(), graph.norm_adjacency()
    long = matrix.long[:, 0]
    assert len(long) > 2
    drawn, different = (torch.from_numpy(rng.choice(7000, 500, replace=again)) for again in (True, False))
    for rows in (drawn, torch.cat([long[:1], different[~torch.isin(different, long)]])):
        whole, upstream = ops.lightgcn_propagate(matrix, x, num_layers=layers), draw((2, len(rows), 64), 1, dtype)
        final, own = ops.lightgcn_propagate_rows(matrix, x, rows, num_layers=layers)
        assert torch.equal(final, whole[rows])
        assert torch.equal(own, x[rows])
        assert torch.equal(ops.lightgcn_propagate(matrix, x, num_layers=layers, rows=rows), final)
        sums = [segment.sum_by_index(part, rows, 7000) for part in upstream]
        expected = torch.autograd.grad(whole, x, sums[0])[0]
        assert torch.equal(torch.autograd.grad(final, x, upstream[0], retain_graph=True)[0], expected)
        assert torch.equal(torch.autograd.grad([final, own], x, list(upstream))[0], expected + sums[1])
        alone = ops.lightgcn_propagate_rows(matrix, x, rows, num_layers=layers)[1]
        assert torch.equal(torch.autograd.grad(alone, x, upstream[1])[0], sums[1])


@pytest.mark.parametrize("own", [False, True])
def test_gradients_of_gradients_of_rows(own):
    matrix, rows = case_graph().norm_adjacency(), torch.tensor([3, 50, 3, 0])
    x = draw((51, 2), 0, torch.float64).requires_grad_()

    def function(x):
        final, ego = ops.lightgcn_propagate_rows(matrix, x, rows, num_layers=2)
        return (final, ego**2) if own else final.sin()

    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)


def test_autotune_keeps_its_choice_and_changes_no_bit(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(300, (5000,), generator=generator)
    lengths = torch.multinomial(torch.ones(400), 5000, replacement=True, generator=generator).bincount(minlength=400)
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    matrix, x = SparseMatrix.from_csr(indptr, indices, shape=(400, 300)), draw((300, 33), 0, torch.float32)
    plain = ops.gather_segment_reduce(x, indices, indptr)
    tuned = ops.autotune(matrix, dim=33)
    ((key, choice),) = json.loads((tmp_path / "gnnrec/schedules.json").read_text()).items()
    assert tuned.prefetch == choice["prefetch"]
    assert "-33-float32-" in key
    assert torch.equal(ops.spmm(tuned, x), plain)
    found = autotune_module.apply(SparseMatrix.from_csr(indptr, indices, shape=(400, 300)), 33, torch.float32)
    assert (found.prefetch, len(found.chunks)) == (tuned.prefetch, len(tuned.chunks))
    assert autotune_module.apply(matrix, 34, torch.float32) is matrix
    for candidate in autotune_module.CANDIDATES:
        assert torch.equal(ops.spmm(autotune_module.with_choice(matrix, candidate), x), plain)


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
