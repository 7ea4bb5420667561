"""What the walk over operators cannot show of ngcf_layer: dropout, kinds of bias, long rows, what is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import leaky_relu, normalize

from gnnrec import ops
from gnnrec.graph import BipartiteGraph, SparseMatrix
from gnnrec.ops._numba import num_threads
from gnnrec.ops._operator import case_matrices, entry_rows
from gnnrec.ops.ngcf_layer.reference import ngcf_layer as reference

RANDOM = [
    pytest.param({"dropout": 0.3}, id="messages"),
    pytest.param({"node_dropout": 0.4}, id="nodes"),
    pytest.param({"dropout": 0.1, "node_dropout": 0.6}, id="both"),
    pytest.param({"node_dropout": 0.4, "bias": "edge"}, id="edge"),
]
WIDTHS = (3, 2)  # of most layers here: in, out


def inputs(matrix, dim=3, out=2, dtype=torch.float64, own=True):
    """Arguments that want gradients."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (matrix.shape[1], dim), "w1": (out, dim), "b1": (out,), "w2": (out, dim), "b2": (out,)}
    if own:
        shapes["x_rows"] = (matrix.shape[0], dim)
    return {name: torch.randn(shape, generator=generator).to(dtype).requires_grad_() for name, shape in shapes.items()}


def evaluate(function, matrix, tensors, seed=0, **options):
    """The result and the gradients of all that wants one, dropout seeded."""
    torch.manual_seed(seed)
    y = function(matrix, **tensors, **options)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    wanted = [x for x in tensors.values() if x is not None and x.requires_grad]
    return [y.detach(), *torch.autograd.grad(y, wanted, upstream)]


def assert_bit_equal(results, expected):
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def assert_close(results, expected, rtol=1e-12):
    for ours, theirs in zip(results, expected, strict=True):
        assert (ours - theirs).abs().max() <= rtol * theirs.abs().max()


def long_matrix():
    """A row and a column of several thousand entries each, repeated ones among them; 70 rows, 80 columns, unscaled."""
    generator = torch.Generator().manual_seed(0)
    rows, cols = (torch.randint(n, (12_000,), generator=generator) for n in (70, 80))
    rows[:5000], cols[4000:9000] = 7, 5
    return SparseMatrix.from_coo(rows, cols, shape=(70, 80))


def symmetric_matrix():
    """With the scales of a graph and hubs of several thousand entries."""
    rng = np.random.default_rng(0)
    return BipartiteGraph.from_edges(
        rng.integers(4000, size=90_000), rng.zipf(1.5, 90_000) % 3000, 4000, 3000
    ).norm_adjacency()


@pytest.mark.parametrize("bias", ["once", "none", "edge"])
def test_kinds_of_bias_as_a_loop_over_messages(bias):
    matrix = case_matrices()["user_item"]
    t = inputs(matrix)
    if bias == "none":
        t |= {"b1": None, "b2": None}

    def by_messages(matrix, x, w1, b1, w2, b2, x_rows):
        zero = w1.new_zeros(len(w1))
        b1, b2 = zero if b1 is None else b1, zero if b2 is None else b2
        edge_b1, edge_b2 = (b1, b2) if bias == "edge" else (zero, zero)
        result = []
        for i in range(matrix.shape[0]):
            total = w1 @ x_rows[i] + b1 + (0 if bias == "edge" else b2)
            for k in range(int(matrix.indptr[i]), int(matrix.indptr[i + 1])):
                j = int(matrix.indices[k])
                c = matrix.row_scale[i].double() * matrix.col_scale[j].double()
                total = total + c * (w1 @ x[j] + edge_b1 + w2 @ (x_rows[i] * x[j]) + edge_b2)
            h = torch.where(total > 0, total, 0.1 * total)
            result.append(h / h.norm().clamp_min(1e-12))
        return torch.stack(result)

    assert_close(evaluate(ops.ngcf_layer, matrix, t, bias=bias, negative_slope=0.1), evaluate(by_messages, matrix, t))


@pytest.mark.parametrize("bias", ["once", "edge"])
@pytest.mark.parametrize("missing", ["b1", "b2"])
def test_one_bias_alone(bias, missing):
    matrix = case_matrices()["user_item"]
    t = inputs(matrix) | {missing: None}
    assert_close(evaluate(ops.ngcf_layer, matrix, t, bias=bias), evaluate(reference, matrix, t, bias=bias))


@pytest.mark.parametrize("random", RANDOM)
@pytest.mark.parametrize("name", ["square", "user_item", "no_edges", "no_rows", "long", "symmetric"])
def test_dropout_is_the_oracle_with_the_same_masks(name, random):
    if name == "symmetric":
        rng = np.random.default_rng(1)
        graph = BipartiteGraph.from_edges(rng.integers(30, size=200), rng.integers(21, size=200), 30, 21)
        matrix = graph.norm_adjacency()
        assert matrix.T is matrix
    else:
        matrix = long_matrix() if name == "long" else case_matrices()[name]
    t = inputs(matrix, own=name not in ("square", "symmetric"))
    options = {"training": True, "normalize": False, **random}
    results = evaluate(ops.ngcf_layer, matrix, t, **options)
    if matrix.shape[0]:
        assert_close(results, evaluate(reference, matrix, t, **options))
    if matrix.nnz:
        assert not torch.equal(results[0], evaluate(ops.ngcf_layer, matrix, t, normalize=False)[0])
    assert_bit_equal(evaluate(ops.ngcf_layer, matrix, t, **options), results)


def test_dropout_before_the_norm():
    matrix = case_matrices()["square"]
    t, options = inputs(matrix, 33, 63, own=False), {"training": True, "dropout": 0.5, "node_dropout": 0.5}
    ours = evaluate(ops.ngcf_layer, matrix, t, **options)
    assert_close(ours, evaluate(reference, matrix, t, **options))
    torch.testing.assert_close(ours[0].norm(dim=1), torch.ones(50, dtype=torch.float64))


def test_gradients_with_dropout_against_finite_differences():
    matrix = case_matrices()["trailing"]
    t = inputs(matrix)

    def function(*args):
        torch.manual_seed(5)
        names = dict(zip(t, args))
        return ops.ngcf_layer(matrix, **names, dropout=0.3, node_dropout=0.3, training=True)

    with num_threads(1):
        assert torch.autograd.gradcheck(function, list(t.values()))


def kept_counts(matrix, p):
    """The kept entries of every row: its aggregate of ones, without the scale."""
    torch.manual_seed(0)
    options = {"node_dropout": p, "training": True, "bias": "none", "normalize": False}
    ones, none = torch.ones(matrix.shape[1], 1), torch.zeros(matrix.shape[0], 1)
    sums = ops.ngcf_layer(matrix, ones, torch.ones(1, 1), None, torch.zeros(1, 1), None, x_rows=none, **options)
    counts = sums[:, 0] * (1 - p)
    torch.testing.assert_close(counts, counts.round())
    return counts.round()


def test_rate_and_scale_of_dropped_entries():
    rows, cols = torch.arange(300).repeat_interleave(200), torch.arange(200).repeat(300)
    every = SparseMatrix.from_coo(rows, cols, shape=(300, 200))
    kept = kept_counts(every, 0.3)
    deviation = (0.3 * 0.7 / every.nnz) ** 0.5
    assert abs(kept.sum() / every.nnz - 0.7) < 4 * deviation
    assert abs(kept / 200 - 0.7).max() < 5 * deviation * 300**0.5


def test_repeated_entries_share_their_decision():
    rows = torch.arange(70).repeat_interleave(80)
    kept = kept_counts(SparseMatrix.from_coo(rows, rows, shape=(70, 70)), 0.3)
    assert kept.unique().tolist() == [0, 80]


def test_rate_and_scale_of_dropped_messages():
    matrix = symmetric_matrix()
    t = inputs(matrix, 64, 64, torch.float32, own=False)
    options = {"normalize": False, "bias": "once"}
    torch.manual_seed(0)
    y, plain = (
        ops.ngcf_layer(matrix, **t, training=True, dropout=0.25, **options),
        ops.ngcf_layer(matrix, **t, **options),
    )
    kept = y != 0
    assert abs(kept.float().mean() - 0.75) < 0.005
    torch.testing.assert_close(y[kept], plain[kept] / 0.75)


def test_dropout_follows_torch_and_draws_only_where_it_is_used():
    matrix = case_matrices()["square"]
    t = inputs(matrix, own=False)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for options in ({}, {"dropout": 0.5, "node_dropout": 0.5}, {"training": True}):
        ops.ngcf_layer(matrix, **t, **options)
        assert torch.equal(torch.get_rng_state(), state)
    first, second = (ops.ngcf_layer(matrix, **t, dropout=0.5, training=True) for _ in range(2))
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(ops.ngcf_layer(matrix, **t, dropout=0.5, training=True), first)


@pytest.mark.parametrize(
    ("dtype", "dropped"), [(torch.float32, 0.0), (torch.float32, 0.2), (torch.float64, 0.2), (torch.bfloat16, 0.0)]
)
def test_kept_and_recomputed_aggregates_give_the_same_bits(dtype, dropped):
    random = {"dropout": dropped / 2, "node_dropout": dropped, "training": True} if dropped else {}
    for matrix in (case_matrices()["square"], symmetric_matrix() if dtype == torch.float32 else long_matrix()):
        width = (64, 64) if matrix.row_scale is not None else WIDTHS
        t = inputs(matrix, *width, dtype, own=matrix.shape[0] != matrix.shape[1])
        kept = evaluate(ops.ngcf_layer, matrix, t, keep_aggregate=True, **random)
        assert_bit_equal(evaluate(ops.ngcf_layer, matrix, t, **random), kept)


@pytest.mark.parametrize("keep", [False, True])
def test_what_is_saved(keep):
    """A result and a number a row, nothing per edge; the aggregate where it is asked for."""
    matrix = symmetric_matrix()
    t = inputs(matrix, 64, 64, torch.float32, own=False)
    given = {x.data_ptr() for x in t.values()}
    saved = {}

    def note(x):
        if x.data_ptr() not in given:
            saved[x.data_ptr()] = x.numel() * x.itemsize
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        ops.ngcf_layer(matrix, **t, keep_aggregate=keep, dropout=0.1, node_dropout=0.1, training=True)
    weights, seed = 2 * 64 * 64 * 4, 8
    assert sum(saved.values()) == 7000 * (64 + 1 + 64 * keep) * 4 + weights + seed


def test_bit_equal_whatever_the_threads_on_a_graph_with_work_for_them(thread_counts):
    matrix = symmetric_matrix()
    assert len(matrix.long)
    t = inputs(matrix, 64, 64, torch.float32, own=False)
    for options in ({}, {"bias": "edge", "dropout": 0.1, "node_dropout": 0.2, "training": True}):
        results = []
        for threads in thread_counts * 2:
            with num_threads(threads):
                results.append(evaluate(ops.ngcf_layer, matrix, t, **options))
        for result in results[1:]:
            assert_bit_equal(result, results[0])


@pytest.mark.parametrize("bias", ["once", "edge"])
def test_long_rows(bias):
    matrix = long_matrix()
    assert len(matrix.long) == len(matrix.T.long) == 1
    t = inputs(matrix)
    for keep in (False, True):
        ours = evaluate(ops.ngcf_layer, matrix, t, bias=bias, keep_aggregate=keep)
        assert_close(ours, evaluate(reference, matrix, t, bias=bias), rtol=1e-11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_normalised_rows_of_halves(dtype):
    """A few roundings of the greatest number: of the saved result, of the two parts of a gradient, of their sum."""
    matrix = case_matrices()["square"]
    t = inputs(matrix, 64, 64, dtype, own=False)
    exact = evaluate(reference, matrix, {name: x.detach().double().requires_grad_() for name, x in t.items()})
    for ours, theirs in zip(evaluate(ops.ngcf_layer, matrix, t), exact, strict=True):
        assert ours.dtype == dtype
        assert (ours.double() - theirs).abs().max() <= 4 * torch.finfo(dtype).eps * theirs.abs().max()


def test_normalised_rows_of_wide_layers():
    matrix = case_matrices()["user_item"]
    t = inputs(matrix, 300, 33)

    def separately(matrix, **tensors):
        return normalize(ops.ngcf_layer(matrix, **tensors, normalize=False))

    assert_close(evaluate(ops.ngcf_layer, matrix, t), evaluate(separately, matrix, t))


def test_rows_that_are_all_zero():
    """No division by their norm, which is clamped, and the slope's side of leaky_relu, as torch has it."""
    matrix = case_matrices()["trailing"]
    t = inputs(matrix)
    for name in ("b1", "b2", "x_rows"):
        t[name] = torch.zeros_like(t[name]).requires_grad_()
    ours = evaluate(ops.ngcf_layer, matrix, t)
    assert (ours[0][2:] == 0).all()
    assert_close(ours, evaluate(reference, matrix, t))


@pytest.mark.parametrize("slope", [0.0, 0.01, 1.0, 2.0])
def test_slopes(slope):
    matrix = case_matrices()["square"]
    t = inputs(matrix, own=False)
    ours = evaluate(ops.ngcf_layer, matrix, t, negative_slope=slope)
    assert_close(ours, evaluate(reference, matrix, t, negative_slope=slope))


@pytest.mark.parametrize("wanted", [("x",), ("x_rows",), ("w1",), ("b2",), ("x", "b1"), ("x_rows", "w2")])
def test_gradients_of_some(wanted):
    matrix = case_matrices()["user_item"]
    t = inputs(matrix)
    every = dict(zip(t, evaluate(ops.ngcf_layer, matrix, t)[1:]))
    for name, x in t.items():
        x.requires_grad_(name in wanted)
    assert_bit_equal(evaluate(ops.ngcf_layer, matrix, t)[1:], [every[name] for name in t if name in wanted])


def test_own_features_may_be_those_of_the_columns():
    """Given or not, the same layer; the gradient of x then has both parts."""
    matrix = case_matrices()["square"]
    t = inputs(matrix, own=False)
    y, grad_x, *others = evaluate(ops.ngcf_layer, matrix, t)
    again, part, *same, rest = evaluate(ops.ngcf_layer, matrix, t | {"x_rows": t["x"].detach().requires_grad_()})
    assert_bit_equal([again, *same], [y, *others])
    torch.testing.assert_close(part + rest, grad_x, rtol=1e-13, atol=1e-13)


def test_two_layers_follow_each_other():
    matrix = case_matrices()["square"]
    t = inputs(matrix, 3, 3, own=False)

    def twice(function):
        def layers(matrix, x, **weights):
            first = function(matrix, x, **weights)
            return torch.cat([first, function(matrix, first, **weights)], dim=1)

        return layers

    assert_close(evaluate(twice(ops.ngcf_layer), matrix, t), evaluate(twice(reference), matrix, t))


def test_a_second_derivative_raises():
    matrix = case_matrices()["square"]
    t = inputs(matrix, own=False)
    (grad,) = torch.autograd.grad(ops.ngcf_layer(matrix, **t).square().sum(), t["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="ngcf_layer_backward"):
        grad.sum().backward()


def test_registration_with_dropout():
    matrix = case_matrices()["user_item"]
    t = {name: x.detach() for name, x in inputs(matrix).items()}
    packed = [matrix.indptr, matrix.indices, matrix.row_scale, matrix.col_scale, matrix.chunks, matrix.pieces]
    packed = [*packed, matrix.long, torch.empty(0)]
    back = matrix.T
    transposed = [back.indptr, back.indices, back.row_scale, back.col_scale, back.chunks, back.pieces]
    transposed = [*transposed, back.long, torch.empty(0)]
    weights, biases = torch.cat([t["w1"], t["w2"]], dim=1), torch.stack([t["b1"], t["b2"]])
    floats = [x.requires_grad_() for x in (t["x"], t["x_rows"], weights, biases)]
    for keep in (False, True):
        arguments = (packed, transposed, *floats, 0.2, torch.tensor(7), [0.1, 0.2], True, True, keep)
        torch.library.opcheck(torch.ops.gnnrec.ngcf_layer.default, arguments)


def test_compiles_into_one_graph():
    matrix = case_matrices()["square"]
    t = inputs(matrix, own=False)
    assert matrix.T.shape == (50, 50)

    def layer(matrix, **tensors):
        return ops.ngcf_layer(matrix, **tensors, dropout=0.2, node_dropout=0.2, training=True)

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_bit_equal(evaluate(compiled, matrix, t), evaluate(layer, matrix, t))
    assert not torch.equal(evaluate(compiled, matrix, t, seed=1)[0], evaluate(compiled, matrix, t)[0])


def test_a_given_seed():
    """The oracle with that seed; torch's generator is left alone."""
    matrix = case_matrices()["square"]
    t, options = inputs(matrix, own=False), {"training": True, "dropout": 0.3, "node_dropout": 0.4}
    state = torch.get_rng_state()
    for seed in (0, 2**63 - 1):
        given = options | {"seed": torch.tensor(seed)}
        ours = ops.ngcf_layer(matrix, **t, **given)
        assert_close([ours], [reference(matrix, **t, **given)])
        assert torch.equal(ops.ngcf_layer(matrix, **t, **given), ours)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(ops.ngcf_layer(matrix, **t, **options, seed=torch.tensor(1)), ours)


def bad_calls():
    square, rectangle = case_matrices()["square"], case_matrices()["user_item"]
    x, users = torch.ones(50, 4), torch.ones(40, 4)
    w, b = torch.ones(3, 4), torch.ones(3)

    def call(matrix=square, x=x, w1=w, b1=b, w2=w, b2=b, **options):
        return lambda: ops.ngcf_layer(matrix, x, w1, b1, w2, b2, **options)

    valued = SparseMatrix.from_csr([0, 1], [0], torch.ones(1), shape=(1, 1))
    return {
        "negative_slope must be at least 0, got -0.1": call(negative_slope=-0.1),
        "negative_slope must be at least 0, got nan": call(negative_slope=float("nan")),
        "ngcf_layer: dropout must lie in \\[0, 1\\), got 1": call(dropout=1.0),
        "ngcf_layer: node_dropout must lie in \\[0, 1\\), got -0.5": call(node_dropout=-0.5, training=True),
        "seed must be a torch.Tensor, got int": call(dropout=0.5, training=True, seed=3),
        "seed must be torch.int64 \\[\\] on the CPU, got torch.int64 \\[1\\] on cpu": call(
            dropout=0.5, training=True, seed=torch.tensor([3])
        ),
        "bias must be one of once, none, edge, got 'twice'": call(bias="twice"),
        "bias='none' with b1 and b2": call(bias="none"),
        "bias='none' with b2": call(bias="none", b1=None),
        "bias='edge' with no biases": call(bias="edge", b1=None, b2=None),
        "x must have shape \\[50, dim >= 1\\], got \\[40, 4\\]": call(x=users),
        "x_rows \\[40, 4\\] must be given for SparseMatrix\\(40 x 23": call(rectangle, x[:23]),
        "x_rows must have shape \\[40, 4\\], got \\[50, 4\\]": call(rectangle, x[:23], x_rows=x),
        "x_rows must be torch.float32, got torch.float64": call(rectangle, x[:23], x_rows=users.double()),
        "w1 must have 4 columns, got \\[3, 5\\]": call(w1=torch.ones(3, 5)),
        "w1 must have shape \\[out >= 1, 4\\], got \\[0, 4\\]": call(w1=w[:0]),
        "w2 must have shape \\[3, 4\\], got \\[2, 4\\]": call(w2=w[:2]),
        "w2 must be torch.float32, got torch.bfloat16": call(w2=w.bfloat16()),
        "b2 must have shape \\[3\\], got \\[2\\]": call(b2=b[:2]),
        "b1 must be a torch.Tensor, got list": call(b1=[1.0, 2.0, 3.0]),
        "no values of its own": call(valued, x[:1]),
    }


@pytest.mark.parametrize(("message", "call"), bad_calls().items())
def test_bad_values_are_named(message, call):
    with pytest.raises(ValueError, match=message):
        call()


def test_bytes_moved_by_hand():
    (op,) = [op for op in ops.OPS if op.name == "ngcf_layer"]
    (case,) = [case for case in op.cases() if case.name == "user_item-64-64"]  # 40 x 23, 90 entries, both scales
    read = 41 * 8 + 40 * 4 + 90 * (4 + 4 + 64 * 4)  # row pointers, row scales, entries with their scale and row of x
    read += 40 * 64 * 4 + 2 * (64 * 64 + 64) * 4  # the rows' own features, weights and biases
    assert op.bytes_moved(case, 4) == read + 40 * (64 + 1) * 4
    (kept,) = [case for case in op.cases() if case.name == "kept-64-64"]
    assert op.bytes_moved(kept, 2) - op.bytes_moved(case, 2) == 40 * 64 * 4


def test_the_oracle_is_the_formula():
    """The oracle itself against dense matrices."""
    matrix = case_matrices()["unscaled"]
    t = {name: x.detach() for name, x in inputs(matrix).items()}
    dense = torch.zeros(matrix.shape, dtype=torch.float64)
    dense.index_put_((entry_rows(matrix), matrix.indices.long()), torch.ones((), dtype=torch.float64), accumulate=True)
    s, own = dense @ t["x"], t["x_rows"]
    pre = (own + s) @ t["w1"].T + (own * s) @ t["w2"].T + t["b1"] + t["b2"]
    torch.testing.assert_close(reference(matrix, **t), normalize(leaky_relu(pre, 0.2)))
