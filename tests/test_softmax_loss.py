"""softmax_loss beyond the walk over all operators: panels, precision, batches without anything, bad arguments."""

import pytest
import torch

from gnnrec import ops
from gnnrec.ops.softmax_loss import panels, reference


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    rows, cols = (torch.randint(n, (900,), generator=generator) for n in (150, 333))
    matrix = ops.SparseMatrix.from_coo(rows, cols, shape=(150, 333))
    return matrix, *(torch.randn(n, 32, generator=generator) for n in (150, 333))


def gradients(function, matrix, queries, keys, **options):
    inputs = [queries.clone().requires_grad_(), keys.clone().requires_grad_()]
    loss = function(matrix, *inputs, **options)
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize(
    "options", [{}, {"negatives": torch.arange(0, 333, 3)}, {"positive_temperature": 0.3, "power": 0.5}]
)
def test_many_panels_are_one(problem, options, monkeypatch):
    whole = gradients(ops.softmax_loss, *problem, **options)
    monkeypatch.setattr(panels, "CPU_PANEL", 1)
    for part, expected in zip(gradients(ops.softmax_loss, *problem, **options), whole):
        torch.testing.assert_close(part, expected, rtol=1e-5, atol=1e-7)


def test_products_in_bfloat16_are_close(problem):
    found = gradients(ops.softmax_loss, *problem, precision=torch.bfloat16)
    exact = gradients(reference.softmax_loss, *(x if isinstance(x, ops.SparseMatrix) else x.double() for x in problem))
    assert abs(found[0] - exact[0]) < 2e-3 * exact[0]
    for part, expected in zip(found[1:], exact[1:]):
        assert (part - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize("positive_temperature", [None, 0.01])
def test_scores_that_overflow_and_numbers_that_are_none(problem, positive_temperature):
    matrix, queries, keys = problem
    options = {"cosine": False, "temperature": 0.01, "positive_temperature": positive_temperature}
    loss, *parts = gradients(ops.softmax_loss, matrix, 1e3 * queries, keys, **options)
    assert loss.isfinite()
    assert all(part.isfinite().all() for part in parts)
    queries[3, 4] = torch.nan
    assert ops.softmax_loss(matrix, queries, keys, positive_temperature=positive_temperature).isnan()


def test_rows_whose_items_are_all_positives():
    """They have no negatives, and no part in the gradients; their low scores must not overflow."""
    matrix = ops.SparseMatrix.from_csr([0, 3, 4], [0, 1, 2, 0], shape=(2, 3))
    queries, keys = torch.tensor([[10.0], [1.0]]), torch.tensor([[-10.0], [-10.0], [10.0]])
    found = gradients(ops.softmax_loss, matrix, queries, keys, cosine=False, temperature=1.0)
    exact = gradients(reference.softmax_loss, matrix, queries.double(), keys.double(), cosine=False, temperature=1.0)
    for part, expected in zip(found, exact):
        torch.testing.assert_close(part, expected.float())


@pytest.mark.parametrize("length", [0.0, 1e-24])
def test_rows_without_a_direction(problem, length):
    matrix, queries, keys = problem
    queries[7], keys[:9] = length, length
    found = gradients(ops.softmax_loss, matrix, queries, keys)
    exact = gradients(reference.softmax_loss, matrix, queries.double(), keys.double())
    assert (found[2][:9] == 0).all()
    for part, expected in zip(found, exact):
        torch.testing.assert_close(part, expected.float(), rtol=1e-4, atol=1e-6)


def test_rows_may_be_repeated(problem):
    once, twice = (gradients(ops.softmax_loss, *problem, rows=torch.tensor(rows)) for rows in ([5], [5, 5]))
    for part, expected in zip(twice, once):
        torch.testing.assert_close(part, expected)


def test_small_gradients_of_halves_are_kept_by_a_scaled_loss(problem):
    matrix, queries, keys = (x if isinstance(x, ops.SparseMatrix) else (64 * x).half() for x in problem)
    inputs = [queries.requires_grad_(), keys.requires_grad_()]
    lost = []
    for scale in (1.0, 2.0**12):
        found = torch.autograd.grad(scale * ops.softmax_loss(matrix, *inputs), inputs)
        exact = gradients(ops.softmax_loss, matrix, queries.detach().float(), keys.detach().float())[1:]
        lost.append(sum(int(((part == 0) & (whole != 0)).sum()) for part, whole in zip(found, exact)))
    assert lost[0] > 20
    assert lost[1] == 0


@pytest.mark.parametrize("positive_temperature", [None, 0.2])
def test_a_batch_of_no_rows_and_rows_without_positives(positive_temperature):
    matrix = ops.SparseMatrix.from_csr([0, 0, 2], [1, 0], shape=(2, 3))
    queries, keys = torch.ones(2, 4), torch.ones(3, 4)
    for rows in (torch.empty(0, dtype=torch.int64), torch.tensor([0])):
        options = {"rows": rows, "positive_temperature": positive_temperature}
        results = gradients(ops.softmax_loss, matrix, queries, keys, **options)
        assert all((part == 0).all() for part in results)


def test_a_high_temperature_weighs_a_rows_positives_alike(problem):
    """Then the bilateral form is the softmax whose sum has no positive in it."""
    high = ops.softmax_loss(*problem, positive_temperature=1e4, power=0.0)
    matrix, queries, keys = (
        x if isinstance(x, ops.SparseMatrix) else torch.nn.functional.normalize(x) for x in problem
    )
    scores, some = queries @ keys.T / 0.1, matrix.indptr.diff() > 0
    row = torch.repeat_interleave(torch.arange(150), matrix.indptr.diff())
    positive = scores[row, matrix.indices.long()]
    scores[row, matrix.indices.long()] = -torch.inf
    means = torch.zeros(150).index_add_(0, row, positive) / matrix.indptr.diff()
    torch.testing.assert_close(high, (scores.logsumexp(dim=1) - means)[some].mean(), rtol=1e-4, atol=1e-4)


def test_without_gradients_none_are_made(problem):
    matrix, queries, keys = problem
    options = 0.1, True, 1.0, None, torch.float32, False
    value, *parts = panels.loss(matrix, queries, keys, None, None, None, *options)
    assert [part.shape[0] for part in parts] == [0, 0]
    torch.testing.assert_close(ops.softmax_loss(matrix, queries, keys), value)


def test_vectors_of_rows_and_columns_in_one_matrix(problem):
    matrix, queries, keys = problem
    options = {"rows": torch.tensor([3, 140, 9, 3]), "negatives": torch.tensor([7, 300, 4])}
    value, *parts = gradients(ops.softmax_loss, matrix, queries, keys, **options)
    both = torch.cat([queries, keys]).requires_grad_()
    found = ops.softmax_loss(matrix, both, **options)
    assert torch.equal(found, value)
    assert torch.equal(torch.autograd.grad(found, both)[0], torch.cat(parts))


def test_nothing_takes_part():
    matrix, both = ops.SparseMatrix.from_csr([0, 0, 0], [], shape=(2, 3)), torch.ones(5, 4).requires_grad_()
    loss = ops.softmax_loss(matrix, both, negatives=torch.empty(0, dtype=torch.int64))
    assert loss == 0
    assert torch.equal(torch.autograd.grad(loss, both)[0], torch.zeros(5, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0 and finite, got 0.0"),
        ({"positive_temperature": -1.0}, "positive_temperature must be above 0 and finite, got -1.0"),
        ({"power": float("nan")}, "power must be finite, got nan"),
        ({"negatives": torch.tensor([1, 4, 1])}, "negatives must be different columns, some are repeated"),
        ({"rows": torch.tensor([150])}, "rows must lie within 0 and 149, got 150 to 150"),
        ({"negatives": torch.tensor([-1, 2])}, "negatives must lie within 0 and 332, got -1 to 2"),
        ({"negatives": torch.tensor([[1]])}, r"negatives must be int64 \[n\], got \[1, 1\]"),
        ({"log_counts": torch.zeros(333)}, "log_counts without negatives"),
        ({"negatives": torch.tensor([1]), "log_counts": torch.zeros(2)}, r"log_counts must have shape \[1\]"),
        ({"bias": torch.zeros(332)}, r"bias must have shape \[333\]"),
        ({"precision": torch.float16}, "precision must be torch.float32 or torch.float64 or torch.bfloat16"),
    ],
)
def test_bad_arguments(problem, options, message):
    with pytest.raises(ValueError, match=f"softmax_loss: {message}"):
        ops.softmax_loss(*problem, **options)
