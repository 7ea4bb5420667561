"""gat_conv and edge_softmax: against torch_geometric, by hand, dropout replayed, rows long enough to be split."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch_geometric import nn, utils

from gnnrec import ops
from gnnrec.graph import SparseMatrix
from gnnrec.graph.schedule import LONG
from gnnrec.ops._numba import num_threads
from gnnrec.ops._operator import case_matrices, entry_rows
from gnnrec.ops.edge_softmax.reference import edge_softmax as softmax_reference
from gnnrec.ops.gat_conv.reference import gat_conv as reference

IN, HEADS, DIM = 33, 3, 11  # widths that the walk over all operators compiles, too
GRAPHS = ("square", "user_item")
DROPOUT = {"dropout": 0.4, "training": True}


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def edge_index(matrix: SparseMatrix) -> torch.Tensor:
    return torch.stack([matrix.indices.long(), entry_rows(matrix)])


def layer_inputs(matrix: SparseMatrix, heads: int = HEADS, dim: int = DIM) -> dict[str, torch.Tensor]:
    rows, cols = matrix.shape
    shapes = {"x": (cols, IN), "weight": (heads * dim, IN), "attn_row": (heads, dim), "attn_col": (heads, dim)}
    if rows != cols:
        shapes["x_rows"] = (rows, IN)
    drawn = {name: draw(*shape, seed=seed) for seed, (name, shape) in enumerate(shapes.items())}
    # Logits within a few units, so that no entry has all of a row's weight.
    return {name: (x.detach() / math.sqrt(x.shape[1])).requires_grad_() for name, x in drawn.items()}


def with_gradients(y: torch.Tensor, *leaves: torch.Tensor) -> list[torch.Tensor]:
    return [y.detach(), *torch.autograd.grad(y, leaves, draw(*y.shape, seed=99).detach())]


def evaluate(function, matrix, inputs, seed=0, **options):
    torch.manual_seed(seed)
    return with_gradients(function(matrix, **inputs, **options), *inputs.values())


def assert_close(results, expected):
    for ours, theirs in zip(results, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def assert_bit_equal(results, expected):
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.fixture(scope="module")
def hub() -> SparseMatrix:
    """Long rows and long columns, some of them side by side, and empty ones between."""
    generator = torch.Generator().manual_seed(0)
    rows, cols = torch.randint(150, (2, 3000), generator=generator) * 2
    many = torch.randint(300, (2 * LONG + 7,), generator=generator)
    few = torch.randint(300, (LONG + 1,), generator=generator)
    rows = torch.cat([rows, torch.full_like(many, 77), torch.full_like(few, 78), many, few])
    cols = torch.cat([cols, many, few, torch.full_like(many, 0), torch.full_like(few, 299)])
    matrix = SparseMatrix.from_coo(rows, cols, shape=(300, 300))
    assert len(matrix.long) == len(matrix.T.long) == 2
    return matrix


@pytest.mark.parametrize("graph", GRAPHS)
def test_gat_conv_is_that_of_torch_geometric(graph):
    matrix = case_matrices()[graph]
    inputs = layer_inputs(matrix)
    x, weight, attn_row, attn_col = (inputs[name] for name in ("x", "weight", "attn_row", "attn_col"))
    layer = nn.GATConv(IN, DIM, HEADS, negative_slope=0.3, add_self_loops=False, bias=False).double()
    del layer.lin._parameters["weight"], layer._parameters["att_src"], layer._parameters["att_dst"]
    layer.lin.weight, layer.att_src, layer.att_dst = weight, attn_col[None], attn_row[None]
    theirs = layer((x, inputs.get("x_rows", x)), edge_index(matrix))
    ours = evaluate(ops.gat_conv, matrix, inputs, negative_slope=0.3)
    assert_close(ours, with_gradients(theirs, *inputs.values()))


def test_gat_conv_by_hand():
    matrix = SparseMatrix.from_coo([0, 0], [1, 2], shape=(3, 3))
    x = torch.tensor([1.0, 4.0, -2.0])[:, None]
    weight, attn_row, attn_col = (torch.tensor([[number]]) for number in (10.0, 0.01, 0.1))
    logits = 0.1 + 4.0, 0.5 * (0.1 - 2.0)  # the row's part and each neighbour's; a negative sum meets the slope
    first, second = (math.exp(logit) for logit in logits)
    y = ops.gat_conv(matrix, x, weight, attn_row, attn_col, negative_slope=0.5)
    torch.testing.assert_close(y, torch.tensor([[(40 * first - 20 * second) / (first + second)], [0.0], [0.0]]))


@pytest.mark.parametrize("graph", GRAPHS)
def test_dropout_of_attention_is_the_oracle_with_the_same_weights_dropped(graph):
    matrix = case_matrices()[graph]
    inputs = layer_inputs(matrix)
    results = [evaluate(function, matrix, inputs, **DROPOUT) for function in (ops.gat_conv, reference)]
    assert_close(*results)
    assert not torch.allclose(results[0][0], ops.gat_conv(matrix, **inputs))
    assert not torch.allclose(results[0][0], evaluate(ops.gat_conv, matrix, inputs, seed=1, **DROPOUT)[0])
    assert torch.equal(ops.gat_conv(matrix, **inputs, dropout=0.4), ops.gat_conv(matrix, **inputs))


@pytest.mark.parametrize(("heads", "dim"), [(2, 200), (16, 16)], ids=["parts", "panels"])
def test_dropout_of_heads_that_kernels_take_one_after_another(heads, dim):
    matrix = case_matrices()["user_item"]
    inputs = layer_inputs(matrix, heads, dim)
    assert_close(*(evaluate(function, matrix, inputs, **DROPOUT) for function in (ops.gat_conv, reference)))


@pytest.mark.parametrize("options", [{}, DROPOUT], ids=["", "dropout"])
def test_long_rows_of_gat_conv(hub, options, thread_counts):
    inputs = layer_inputs(hub)
    expected = evaluate(ops.gat_conv, hub, inputs, **options)
    assert_close(expected, evaluate(reference, hub, inputs, **options))
    for threads in thread_counts * 2:
        with num_threads(threads):
            assert_bit_equal(evaluate(ops.gat_conv, hub, inputs, **options), expected)


def test_logits_beyond_the_range_of_exp():
    matrix, inputs = case_matrices()["square"], layer_inputs(case_matrices()["square"])
    large = {name: (1e4 * x.detach() if name == "x" else x.detach()).requires_grad_() for name, x in inputs.items()}
    results = [evaluate(function, matrix, large) for function in (ops.gat_conv, reference)]
    assert all(x.isfinite().all() for x in results[0])
    assert_close(*results)


def test_no_second_derivative_of_gat_conv():
    matrix = case_matrices()["square"]
    inputs = layer_inputs(matrix)
    y = ops.gat_conv(matrix, **inputs)
    (gradient,) = torch.autograd.grad(y.square().sum(), inputs["x"], create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(gradient.sum(), inputs["x"])


def test_attention_compiles_into_one_graph():
    matrix, inputs = case_matrices()["square"], layer_inputs(case_matrices()["square"])
    assert matrix.T.nnz == matrix.nnz  # made before

    def loss(x):
        y = ops.gat_conv(matrix, **inputs | {"x": x})
        logits = ops.sddmm(matrix, y, y)
        return ops.spmm(matrix_without_scales, x, ops.edge_softmax(matrix, logits)).square().mean()

    matrix_without_scales = SparseMatrix(matrix.indptr, matrix.indices, matrix.shape)
    assert len(matrix_without_scales.transposed_entries) == matrix.nnz
    x = inputs["x"]
    expected = torch.autograd.grad(loss(x), x)[0]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(x), x)[0], expected)


@pytest.mark.parametrize("heads", [(), (4,)], ids=["one", "four"])
def test_edge_softmax_is_that_of_torch_geometric(heads):
    matrix = case_matrices()["user_item"]
    logits = draw(matrix.nnz, *heads, seed=1)
    theirs = utils.softmax(logits, entry_rows(matrix), num_nodes=matrix.shape[0])
    assert_close(with_gradients(ops.edge_softmax(matrix, logits), logits), with_gradients(theirs, logits))


def test_edge_softmax_of_long_rows(hub, thread_counts):
    logits = draw(hub.nnz, 4, seed=1)
    expected = with_gradients(ops.edge_softmax(hub, logits), logits)
    assert_close(expected, with_gradients(softmax_reference(hub, logits), logits))
    for threads in thread_counts * 2:
        with num_threads(threads):
            assert_bit_equal(with_gradients(ops.edge_softmax(hub, logits), logits), expected)


@pytest.mark.parametrize("offset", [1e4, -1e4, 3e38, -3e38])
def test_edge_softmax_does_not_overflow(offset):
    matrix = SparseMatrix.from_coo([0, 0, 1], [0, 1, 1], shape=(2, 2))
    logits = torch.tensor([offset, offset, -offset])
    assert ops.edge_softmax(matrix, logits).tolist() == [0.5, 0.5, 1.0]
    apart = ops.edge_softmax(matrix, torch.tensor([offset, -offset, 0.0])).tolist()
    assert apart == [float(offset > 0), float(offset < 0), 1.0]


def test_minus_infinity_in_a_whole_piece_of_a_long_row():
    n = 2 * LONG
    matrix = SparseMatrix.from_coo([0] * n + [1] * n, [*range(n)] * 2, shape=(2, n))
    logits = torch.zeros(2 * n)
    logits[:LONG], logits[n:] = -math.inf, -math.inf
    expected = torch.cat([row.softmax(dim=0) for row in logits.split(n)])
    torch.testing.assert_close(ops.edge_softmax(matrix, logits), expected, equal_nan=True)


def test_edge_softmax_takes_infinities_as_torch_does():
    matrix = SparseMatrix.from_coo([0] * 3 + [1] * 2 + [2] * 2, [0, 1, 2, 0, 1, 0, 1], shape=(3, 3))
    inf, nan = math.inf, math.nan
    logits = torch.tensor([0.0, -inf, 0.0, -inf, -inf, 1.0, nan])
    expected = torch.cat([row.softmax(dim=0) for row in logits.split([3, 2, 2])])
    assert expected.tolist()[:3] == [0.5, 0.0, 0.5]
    torch.testing.assert_close(ops.edge_softmax(matrix, logits), expected, equal_nan=True)


def bad_calls():
    matrices = case_matrices()
    square, wide = matrices["square"], matrices["user_item"]  # 50 x 50 and 40 x 23
    inputs, items = layer_inputs(square), layer_inputs(wide)
    gat, softmax = partial(ops.gat_conv, square), partial(ops.edge_softmax, square)
    items.pop("x_rows")
    return {
        "x_rows must be given for a matrix that is not square": lambda: ops.gat_conv(wide, **items),
        "x_rows must have shape \\[40, 33\\], got \\[23, 33\\]": lambda: ops.gat_conv(wide, **items, x_rows=items["x"]),
        "weight must have shape \\[33, 33\\], got \\[32, 33\\]": lambda: gat(
            **inputs | {"weight": inputs["weight"][1:]}
        ),
        "attn_col must have shape \\[3, 11\\], got \\[2, 11\\]": lambda: gat(
            **inputs | {"attn_col": inputs["attn_col"][1:]}
        ),
        "attn_row must have shape \\[heads >= 1, dim >= 1\\], got \\[0, 11\\]": lambda: gat(
            **inputs | {"attn_row": inputs["attn_row"][:0]}
        ),
        "weight must be torch.float64 or torch.float32, got torch.float16": lambda: gat(
            **inputs | {"weight": inputs["weight"].half()}
        ),
        "negative_slope must be at least 0 and finite, got -0.1": lambda: gat(**inputs, negative_slope=-0.1),
        "dropout must .* got 1.0": lambda: gat(**inputs, dropout=1.0),
        "logits must have shape \\[120\\], got \\[119\\]": lambda: softmax(torch.zeros(square.nnz - 1)),
        "logits must have shape \\[120, dim >= 1\\], got \\[120, 0\\]": lambda: softmax(torch.zeros(square.nnz, 0)),
        "logits must be a torch.Tensor, got list": lambda: softmax([0.0]),
    }


@pytest.mark.parametrize(("message", "call"), bad_calls().items())
def test_bad_arguments_of_attention_are_named(message, call):
    with pytest.raises(ValueError, match=message):
        call()
