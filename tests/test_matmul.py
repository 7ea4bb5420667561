"""Products of tall, narrow matrices against torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gnnrec.ops._matmul import block_matmul, matmul
from gnnrec.ops._numba import VERSION, num_threads
from gnnrec.ops._parallel import items, kernel

SIZES = (1, 3, 33, 63, 64, 128, 200, 300)
SHAPES = [(rows, dim, out) for rows, dim, out in zip((1, 5, 47, 48, 49, 97, 600, 1100), SIZES, reversed(SIZES))]
SHAPES += [(1100, size, size) for size in SIZES] + [(1100, 1, 64), (1100, 64, 1), (0, 5, 3)]
# Kernels of floats fit all sizes. Those of halves have as many lanes as columns, up to LANES: each pair is compiled.
HALVES = [(torch.bfloat16, shape) for shape in ((1, 1, 300), (48, 63, 128), (1100, 3, 3), (1100, 64, 1))]
HALVES += [(torch.float16, shape) for shape in ((0, 5, 3), (1100, 200, 200))]
PRODUCTS = [(dtype, shape) for dtype in (torch.float32, torch.float64) for shape in SHAPES] + HALVES
FLOOR = 4  # roundings of the largest magnitude


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def evaluate(function, x, weight, upstream):
    """The product and its gradients."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = function(x, weight)
    return y.detach(), *torch.autograd.grad(y, (x, weight), upstream)


def check(got, x, weight, upstream):
    """At most twice the error of torch in the same precision."""

    def linear(x, weight):
        return x @ weight.T

    exact = evaluate(linear, x.double(), weight.double(), upstream.double())
    same = evaluate(linear, x, weight, upstream)
    magnitude = evaluate(linear, x.double().abs(), weight.double().abs(), upstream.double().abs())
    for ours, theirs, oracle, largest in zip(got, same, exact, magnitude, strict=True):
        assert ours.dtype == x.dtype
        assert ours.shape == oracle.shape
        if ours.numel() == 0:
            continue
        floor = FLOOR * torch.finfo(x.dtype).eps * largest.max()
        assert (ours.double() - oracle).abs().max() <= 2 * (theirs.double() - oracle).abs().max() + floor


@pytest.mark.parametrize(("dtype", "shape"), PRODUCTS, ids=str)
def test_product_and_gradients(dtype, shape):
    rows, dim, out = shape
    x, weight = draw(rows, dim, dtype=dtype), draw(out, dim, seed=1, dtype=dtype)
    upstream = draw(rows, out, seed=2, dtype=dtype)
    check(evaluate(matmul, x, weight, upstream), x, weight, upstream)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_strides(dtype):
    x, weight = draw(33, 200, dtype=dtype).T, draw(33, 130, seed=1, dtype=dtype).T[::2]
    upstream = draw(200, 70, seed=2, dtype=dtype)[:, 2:67]
    check(evaluate(matmul, x, weight, upstream), x, weight, upstream)
    sliced, expanded = draw(200, 70, dtype=dtype)[::3, 3:36], torch.ones((), dtype=dtype).expand(67, 65)
    check(evaluate(matmul, sliced, weight, expanded), sliced, weight, expanded)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dim", [33, 64])
def test_bit_equal_for_any_number_of_threads(dim, dtype, thread_counts):
    x, weight = draw(40_000, dim, dtype=dtype), draw(63, dim, seed=1, dtype=dtype)
    upstream = draw(40_000, 63, seed=2, dtype=dtype)
    results = []
    for threads in [*thread_counts, thread_counts[-1]]:
        with num_threads(threads):
            results.append(evaluate(matmul, x, weight, upstream))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_row_does_not_depend_on_its_place():
    x, weight = draw(500, 65), draw(33, 65, seed=1)
    assert torch.equal(matmul(x, weight)[101:360], matmul(x[101:360], weight))


def test_derivatives():
    x, weight = draw(7, 5, dtype=torch.float64).requires_grad_(), draw(9, 5, seed=1, dtype=torch.float64)
    weight.requires_grad_()
    assert torch.autograd.gradcheck(matmul, (x, weight))
    assert torch.autograd.gradgradcheck(matmul, (x, weight))
    assert torch.autograd.gradcheck(lambda x: matmul(x, weight.detach()), (x,))
    assert torch.autograd.gradcheck(lambda weight: matmul(x.detach(), weight), (weight,))


@pytest.mark.parametrize("name", ["matmul", "matmul_weight"])
def test_registered_with_torch(name):
    second = draw(9, 5, seed=1) if name == "matmul" else draw(7, 4, seed=1)
    arguments = (draw(7, 5).requires_grad_(), second.requires_grad_())
    torch.library.opcheck(getattr(torch.ops.gnnrec, name).default, arguments)


@pytest.mark.parametrize(
    ("x", "weight", "message"),
    [
        (torch.ones(3), torch.ones(2, 3), r"x must have shape .* got \[3\]"),
        (torch.ones(3, 4), torch.ones(2, 3), r"weight must have 4 columns, got \[2, 3\]"),
        (torch.ones(3, 4), torch.ones(0, 4), r"weight must have shape .* got \[0, 4\]"),
        (torch.ones(3, 4), torch.ones(2, 4).double(), "weight must be torch.float32, got torch.float64"),
        (torch.ones(3, 4).long(), torch.ones(2, 4), "got torch.int64"),
        (np.ones((3, 4)), torch.ones(2, 4), "got ndarray"),
    ],
)
def test_wrong_arguments(x, weight, message):
    with pytest.raises(ValueError, match=message):
        matmul(x, weight)


def _compile_block():
    version = VERSION

    @kernel
    def run(team, a, w, out, accumulate):
        _ = version
        for _copy in items(team):
            block_matmul(a, w, out, accumulate)

    return run


BLOCK = _compile_block()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("accumulate", [False, True])
def test_block_stays_inside(dtype, transposed, accumulate):
    """What lies around the operands is neither used nor written, for every remainder of rows and columns."""
    generator = np.random.default_rng(0)
    lanes = 64 // np.dtype(dtype).itemsize
    shapes = [(rows, 5, 2 * lanes + 1) for rows in range(1, 14)]
    shapes += [(7, depth, columns) for depth in (0, 1, 9) for columns in (*range(1, 4 * lanes + 2), 9 * lanes)]
    for rows, depth, columns in shapes:
        a = np.full((depth + 2, rows + 2) if transposed else (rows + 2, depth + 2), np.nan, dtype)
        a = a.T if transposed else a
        w, out = np.full((depth + 2, columns + 3), np.nan, dtype), np.full((rows + 2, columns + 3), np.nan, dtype)
        for array in (a[1:-1, 1:-1], w[1:-1, 1:-2], out[1:-1, 1:-2]):
            array[:] = generator.standard_normal(array.shape)
        expected = out.copy()
        expected[1:-1, 1:-2] = accumulate * out[1:-1, 1:-2] + a[1:-1, 1:-1].astype(float) @ w[1:-1, 1:-2]
        BLOCK(1, a[1:-1, 1:-1], w[1:-1, 1:-2], out[1:-1, 1:-2], accumulate)
        np.testing.assert_allclose(out, expected, rtol=0, atol=40 * np.finfo(dtype).eps)
