"""edge_conv, gmm_conv and rgcn_conv: by hand, against torch_geometric's layers, on rows long enough to be split."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch_geometric import nn

from gnnrec import ops
from gnnrec.graph import SparseMatrix
from gnnrec.graph.schedule import LONG
from gnnrec.ops._numba import num_threads
from gnnrec.ops._operator import case_matrices, entry_rows
from gnnrec.ops.gmm_conv import reference as gmm_reference
from gnnrec.ops.rgcn_conv import reference as rgcn_reference

IN, OUT = 33, 3  # widths that the walk over all operators compiles, too
GRAPHS = ("square", "user_item")


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def pattern(name: str) -> SparseMatrix:
    matrix = case_matrices()[name]
    return SparseMatrix(matrix.indptr, matrix.indices, matrix.shape)


def edge_index(matrix: SparseMatrix) -> torch.Tensor:
    return torch.stack([matrix.indices.long(), entry_rows(matrix)])


def features(matrix: SparseMatrix) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the columns and of the rows, the same for a square matrix."""
    x = draw(matrix.shape[1], IN, seed=1)
    return x, x if matrix.shape[0] == matrix.shape[1] else draw(matrix.shape[0], IN, seed=2)


def assert_equal_with_gradients(ours: torch.Tensor, theirs: torch.Tensor, *leaves: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs)
    upstream = draw(*ours.shape, seed=99).detach()
    for got, expected in zip(*(torch.autograd.grad(y, leaves, upstream) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("reduce", ["max", "mean"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_edge_conv_is_that_of_torch_geometric(graph, reduce):
    matrix = pattern(graph)
    (x, x_rows), theta, phi = features(matrix), draw(OUT, IN, seed=3), draw(OUT, IN, seed=4)
    layer = nn.EdgeConv(lambda pairs: pairs @ torch.cat([phi, theta], dim=1).T, aggr=reduce)
    theirs = layer((x, x_rows), edge_index(matrix))
    ours = ops.edge_conv(matrix, x, theta, phi, x_rows=None if x_rows is x else x_rows, reduce=reduce)
    # Columns that an edge attains twice share their gradient in ours, and in theirs.
    assert_equal_with_gradients(ours, theirs, *dict.fromkeys((x, x_rows)), theta, phi)


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_gmm_conv_is_that_of_torch_geometric(graph, reduce):
    matrix, kernels, coordinates = pattern(graph), 3, 2
    x, pseudo = draw(matrix.shape[1], IN, seed=1), draw(matrix.nnz, coordinates, seed=2)
    mu, sigma = draw(kernels, coordinates, seed=3), draw(kernels, coordinates, seed=4)
    weight = draw(kernels, OUT, IN, seed=5)
    layer = nn.GMMConv(IN, OUT, coordinates, kernels, aggr="add" if reduce == "sum" else reduce, bias=False).double()
    layer.root_weight, layer.root = False, None
    for name in ("g", "mu", "sigma"):
        del layer._parameters[name]
    layer.g, layer.mu, layer.sigma = weight.flatten(0, 1).T, mu, sigma
    theirs = layer((x, None), edge_index(matrix), pseudo, size=matrix.shape[::-1])
    ours = ops.gmm_conv(matrix, x, pseudo, mu, 1 / sigma, weight, reduce=reduce)
    assert_equal_with_gradients(ours, theirs, x, pseudo, mu, sigma, weight)


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_rgcn_conv_is_that_of_torch_geometric(graph, reduce):
    whole, relations = pattern(graph), 3
    kinds = torch.arange(whole.nnz) % relations
    index = edge_index(whole)
    matrices = [
        SparseMatrix.from_coo(index[1, kinds == r], index[0, kinds == r], shape=whole.shape) for r in range(relations)
    ]
    (x, x_rows), weights, root = features(whole), draw(relations, OUT, IN, seed=3), draw(OUT, IN, seed=4)
    layer = nn.RGCNConv(IN, OUT, relations, aggr="add" if reduce == "sum" else reduce, bias=False).double()
    for name in ("weight", "root"):
        del layer._parameters[name]
    layer.weight, layer.root = weights.mT, root.T
    theirs = layer((x, x_rows), index, kinds)
    ours = ops.rgcn_conv(matrices, x, weights, root, x_rows=None if x_rows is x else x_rows, reduce=reduce)
    assert_equal_with_gradients(ours, theirs, *dict.fromkeys((x, x_rows)), weights, root)


def column(*numbers: float) -> torch.Tensor:
    """Each number in all columns of its row: one feature, three times."""
    return torch.tensor(numbers, dtype=torch.float32)[:, None].repeat(1, OUT)


def factor(*numbers: float) -> torch.Tensor:
    """Weights that multiply each feature with a number."""
    return torch.tensor(numbers, dtype=torch.float32)[:, None, None] * torch.eye(OUT)


def test_edge_conv_by_hand():
    matrix = SparseMatrix.from_coo([0, 0], [1, 2], shape=(3, 3))
    x, (theta, phi) = column(1, 4, -2).requires_grad_(), factor(2, 10)
    out = ops.edge_conv(matrix, x, theta, phi)
    assert out.tolist() == column(2 * (4 - 1) + 10, 0, 0).tolist()  # the others have no neighbours
    out.sum().backward()
    assert x.grad.tolist() == column(10 - 2, 2, 0).tolist()
    assert ops.edge_conv(matrix, x, -theta, phi).tolist() == column(-2 * (-2 - 1) + 10, 0, 0).tolist()
    mean = ops.edge_conv(matrix, x, theta, phi, reduce="mean")
    assert mean.tolist() == column(2 * (1 - 1) + 10, 0, 0).tolist()


def test_scales_of_edge_conv_weigh_the_neighbours():
    plain = SparseMatrix.from_coo([0], [1], shape=(2, 2))
    scaled = SparseMatrix(plain.indptr, plain.indices, plain.shape, row_scale=torch.tensor([0.5, 1.0]))
    x, (theta, phi) = column(1, 4), factor(2, 10)
    assert ops.edge_conv(plain, x, theta, phi).tolist() == column(2 * (4 - 1) + 10, 0).tolist()
    assert ops.edge_conv(scaled, x, theta, phi).tolist() == column(2 * (4 / 2 - 1) + 10, 0).tolist()


def test_gmm_conv_by_hand():
    matrix = SparseMatrix.from_coo([1, 1], [0, 2], shape=(2, 3))
    x, weight, pseudo = column(1, 50, 3), factor(10, 100), torch.tensor([[1.0, 2.0], [1.0, 4.0]])
    mu, inv_sigma = torch.tensor([[1.0, 2.0], [0.0, 2.0]]), torch.tensor([[7.0, 0.5], [2.0, 0.0]])
    first = 10 * (1 + math.exp(-0.5) * 3)  # this kernel sees the second coordinate: distances of 0 and 1 deviations
    second = 100 * math.exp(-2) * (1 + 3)  # this one the first: 2 deviations
    out = ops.gmm_conv(matrix, x, pseudo, mu, inv_sigma, weight)
    torch.testing.assert_close(out, column(0, first + second))
    out = ops.gmm_conv(matrix, x, pseudo, mu, inv_sigma, weight, reduce="mean")
    torch.testing.assert_close(out, column(0, (first + second) / 2))


def test_rgcn_conv_by_hand():
    view = SparseMatrix.from_coo([0, 0, 1], [0, 1, 1], shape=(2, 2))
    buy = SparseMatrix.from_coo([0], [1], shape=(2, 2))
    x, x_rows, weights, (root,) = column(2, 6), column(1, -1), factor(10, 100), factor(1000)
    out = ops.rgcn_conv([view, buy], x, weights, root, x_rows=x_rows)
    assert out.tolist() == column(1000 + 10 * 4 + 100 * 6, -1000 + 10 * 6).tolist()
    summed = ops.rgcn_conv([view, buy], x, weights, reduce="sum")
    assert summed.tolist() == column(10 * 8 + 100 * 6, 10 * 6).tolist()


def hub() -> SparseMatrix:
    """Long rows and long columns, some of them side by side, and empty ones between."""
    generator = torch.Generator().manual_seed(0)
    rows, cols = torch.randint(150, (2, 3000), generator=generator) * 2
    many = torch.randint(300, (2 * LONG + 7,), generator=generator)
    few = torch.randint(300, (LONG + 1,), generator=generator)
    rows = torch.cat([rows, torch.full_like(many, 77), torch.full_like(few, 78), many, few])
    cols = torch.cat([cols, many, few, torch.full_like(many, 0), torch.full_like(few, 299)])
    scales = torch.rand(2, 300, generator=generator)
    matrix = SparseMatrix.from_coo(rows, cols, shape=(300, 300), row_scale=scales[0], col_scale=scales[1])
    assert len(matrix.long) == 2
    assert len(matrix.T.long) == 2
    return matrix


def calls(matrix: SparseMatrix, reference: bool = False) -> dict[str, tuple[Callable[..., torch.Tensor], list]]:
    """Each operator with drawn arguments, as a function of them."""
    gmm = gmm_reference.gmm_conv if reference else ops.gmm_conv
    rgcn = rgcn_reference.rgcn_conv if reference else ops.rgcn_conv
    nodes = matrix.shape[0]
    x = draw(nodes, IN, seed=1)
    gaussians = [draw(matrix.nnz, 2, seed=2), draw(2, 2, seed=3), draw(2, 2, seed=4)]
    return {
        "gmm_conv": (partial(gmm, matrix), [x, *gaussians, draw(2, OUT, IN, seed=5)]),
        "rgcn_conv": (partial(rgcn, [matrix, matrix.T]), [x, draw(2, OUT, IN, seed=6), draw(OUT, IN, seed=7)]),
    }


@pytest.mark.parametrize("name", ["gmm_conv", "rgcn_conv"])
def test_long_rows_are_split_and_joined(name):
    matrix = hub()
    ours, arguments = calls(matrix)[name]
    theirs, _ = calls(matrix, reference=True)[name]
    assert_equal_with_gradients(ours(*arguments), theirs(*arguments), *arguments)


@pytest.mark.parametrize("name", ["edge_conv", "gmm_conv", "rgcn_conv"])
def test_bit_equal_whatever_the_threads_on_a_graph_with_work_for_them(name, thread_counts):
    matrix = hub()
    if name == "edge_conv":
        function, arguments = partial(ops.edge_conv, matrix), [draw(300, IN, seed=1), *draw(2, OUT, IN, seed=2)]
    else:
        function, arguments = calls(matrix)[name]
    results = []
    for threads in thread_counts * 2:
        with num_threads(threads):
            y = function(*arguments)
            results.append([y, *torch.autograd.grad(y, arguments, torch.ones_like(y))])
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_no_second_derivative_where_there_is_none():
    matrix, x = pattern("square"), draw(50, IN, seed=1)
    gaussians = draw(matrix.nnz, 2, seed=2), *draw(2, 2, 2, seed=3)
    for y in (
        ops.edge_conv(matrix, x, *draw(2, OUT, IN, seed=4)),
        ops.gmm_conv(matrix, x, *gaussians, draw(2, OUT, IN, seed=5)),
    ):
        (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError):
            torch.autograd.grad(gradient.sum(), x)


def test_compiles_into_one_graph():
    matrix, x = pattern("square"), draw(50, IN, seed=1)
    assert (matrix.T.nnz, len(matrix.transposed_entries), matrix.row_mean.nnz) == (matrix.nnz,) * 3  # made before
    gaussians, weights = (draw(matrix.nnz, 2, seed=2), *draw(2, 2, 2, seed=3)), draw(2, OUT, IN, seed=4)

    def loss(x):
        y = ops.edge_conv(matrix, x, *weights) + ops.gmm_conv(matrix, x, *gaussians, weights)
        return (y * ops.rgcn_conv([matrix, matrix], x, weights, weights[0])).mean()

    expected = torch.autograd.grad(loss(x), x)[0]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(x), x)[0], expected)


def bad_calls():
    square, wide = pattern("square"), pattern("user_item")  # 50 x 50 and 40 x 23
    x, items = draw(50, IN, seed=1), draw(23, IN, seed=1)
    weight, stack = draw(OUT, IN, seed=2), draw(2, OUT, IN, seed=2)
    pseudo, gaussian = draw(square.nnz, 2, seed=3), draw(2, 2, seed=4)
    edge, gmm, rgcn = ops.edge_conv, partial(ops.gmm_conv, square, x), ops.rgcn_conv
    return {
        "x_rows \\[40, 33\\] is needed where the matrix is 40 x 23": lambda: edge(wide, items, weight, weight),
        "x_rows must have shape \\[40, 33\\], got \\[23, 33\\]": lambda: edge(
            wide, items, weight, weight, x_rows=items
        ),
        "phi must have shape \\[3, 33\\], got \\[2, 33\\]": lambda: edge(square, x, weight, weight[:2]),
        "edge_conv: reduce must be one of max, mean, got 'sum'": lambda: edge(square, x, weight, weight, reduce="sum"),
        "theta must be torch.float64, got torch.float32": lambda: edge(square, x, weight.float(), weight),
        "pseudo must have shape \\[120, dim >= 1\\], got \\[90, 2\\]": lambda: gmm(
            pseudo[:90], gaussian, gaussian, stack
        ),
        "mu must have 2 columns, got \\[2, 1\\]": lambda: gmm(pseudo, gaussian[:, :1], gaussian, stack),
        "mu must have shape \\[kernels >= 1, 2\\], got \\[0, 2\\]": lambda: gmm(pseudo, gaussian[:0], gaussian, stack),
        "inv_sigma must have shape \\[2, 2\\], got \\[1, 2\\]": lambda: gmm(pseudo, gaussian, gaussian[:1], stack),
        "weight must have shape \\[2, out >= 1, 33\\], got \\[3, 33\\]": lambda: gmm(
            pseudo, gaussian, gaussian, weight
        ),
        "weight must have .*, got \\[2, 0, 33\\]": lambda: gmm(pseudo, gaussian, gaussian, stack[:, :0]),
        "gmm_conv: reduce must be one of sum, mean": lambda: gmm(pseudo, gaussian, gaussian, stack, reduce="max"),
        "a SparseMatrix for each relation, got \\[\\]": lambda: rgcn([], x, stack),
        "a SparseMatrix for each relation, got SparseMatrix\\(50 x 50": lambda: rgcn(square, x, stack),
        "one shape, got \\[\\(50, 50\\), \\(40, 23\\)\\]": lambda: rgcn([square, wide], x, stack),
        "weights must have shape \\[1, out >= 1, 33\\], got \\[2, 3, 33\\]": lambda: rgcn([square], x, stack),
        "root must have shape \\[3, 33\\], got \\[2, 33\\]": lambda: rgcn([square] * 2, x, stack, weight[:2]),
        "root needs x_rows \\[40, 33\\] where matrices are 40 x 23": lambda: rgcn([wide] * 2, items, stack, weight),
        "x_rows has no effect without root": lambda: rgcn([square] * 2, x, stack, x_rows=x),
        "rgcn_conv: reduce must be one of mean, sum, got 'max'": lambda: rgcn([square] * 2, x, stack, reduce="max"),
    }


@pytest.mark.parametrize(("message", "call"), bad_calls().items())
def test_bad_arguments_are_named(message, call):
    with pytest.raises(ValueError, match=message):
        call()
