"""softmax_loss: softmax over shared negatives or over all columns, with its gradients in one pass over panels."""

from __future__ import annotations

import math
from typing import Any

import torch

from gnnrec import device as devices
from gnnrec.graph.sparse import SparseMatrix
from gnnrec.ops import _arguments
from gnnrec.ops._operator import Operator
from gnnrec.ops.softmax_loss import panels, reference

__all__ = ["OP", "softmax_loss"]


def softmax_loss(
    matrix: SparseMatrix,
    queries: torch.Tensor,
    keys: torch.Tensor | None = None,
    *,
    rows: torch.Tensor | None = None,
    negatives: torch.Tensor | None = None,
    log_counts: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    temperature: float = 0.1,
    cosine: bool = True,
    power: float = 1.0,
    positive_temperature: float | None = None,
    precision: torch.dtype | None = None,
) -> torch.Tensor:
    """The mean over positives (i, j) of log D_ij - s_ij, with s_ij = cos(queries_i, keys_j) / temperature.

    D_ij is exp(s_ij) plus the sum of exp(s_in) over those n among the negatives, by default all columns, that are no
    positives of row i. A row's sum serves all of its positives, so whole rows make a batch: its cost is that of
    rows x columns products, not positives x columns, and few data sets need to sample columns.

    With a `positive_temperature` it is the bilateral form: the mean over rows of log N_i - r log P_i, with N_i the sum
    of the exp(s_in) alone, P_i the mean over the row's positives of exp(s_ij / r), and r = positive_temperature /
    temperature. The higher it is, the more alike are a row's positives; a low one trusts the best of them most.

    All is done in panels of rows that stay in the caches, loss and gradients in one pass; nothing of rows x columns is
    ever held, and with negatives nothing of the rows and columns that take no part is touched but their gradient, which
    is 0. The products are those of the library, so results are bit-equal for an equal number of threads only. On a
    GPU it waits: how many positives the rows have must be known.

    Args:
        matrix: SparseMatrix of positives, rows of queries x rows of keys, without values; scales have no effect.
        queries, keys: float32, float64, bfloat16 or float16 [rows, dim] and [columns, dim]. Without keys, queries
            [rows + columns, dim] holds both, one after the other as models give them; so does its gradient.
        rows: int64 [n], the rows of the batch; all by default. Rows without positives do not count.
        negatives: int64 [m], different columns (checked on a CPU only); all columns by default, each once.
        log_counts: float [m], the logarithm of how often each of the negatives is expected in such a sample, subtracted
            from its s (the log-Q correction).
        bias: float [columns], added to the s of every column, that of a positive included, as a constant: with the
            logarithms of prior chances, what queries and keys say is how much likelier than these an item is.
        temperature: above 0.
        cosine: False takes the dot product instead of the cosine, which is 0 with a row of zeros, without gradient.
        power: a row's positives have together the weight (number of positives)^power: 1 weighs positives alike, 0 rows.
        positive_temperature: above 0, takes the bilateral form. A row without negatives then has no N_i.
        precision: of the products of rows x columns; by default what the operator computes in, float32 for halves.
            bfloat16 is several times as fast where the processor multiplies it (AMX, AVX512-BF16, tensor cores).

    Returns:
        A scalar, float32 for halves. Its gradients can be computed once, not twice.

    Raises:
        ValueError: another type, dtype, device or shape, numbers outside rows and columns, repeated negatives, a
            temperature that is not above 0, a temperature or power that is not finite.

    Source: Wu et al. 2022, "On the effectiveness of sampled softmax loss for item recommendation"; log-Q: Bengio and
    Senecal 2008; bias: Menon et al. 2021, "Long-tail learning via logit adjustment"; the bilateral form: Wu et al.
    2024, "BSL: understanding and improving softmax loss for recommendation"; the panels follow online softmax as in
    Dao et al. 2022, "FlashAttention".
    """
    _arguments.check_matrix("softmax_loss", matrix)
    if keys is None:
        _arguments.check_dense("softmax_loss", "queries", queries, sum(matrix.shape))
    else:
        _arguments.check_dense("softmax_loss", "queries", queries, matrix.shape[0])
        _arguments.check_dense("softmax_loss", "keys", keys, matrix.shape[1], queries.shape[1], (queries.dtype,))
    for name, numbers in (("rows", rows), ("negatives", negatives)):
        if numbers is not None:
            _arguments.check_indices("softmax_loss", name, numbers)
            if numbers.dim() != 1:
                raise ValueError(f"softmax_loss: {name} must be int64 [n], got {list(numbers.shape)}")
    if negatives is not None and log_counts is not None:
        _arguments.check_vector("softmax_loss", "log_counts", log_counts, len(negatives))
    if negatives is None and log_counts is not None:
        raise ValueError("softmax_loss: log_counts without negatives: all columns need no correction")
    if bias is not None:
        _arguments.check_vector("softmax_loss", "bias", bias, matrix.shape[1])
    given = {"keys": keys, "rows": rows, "negatives": negatives, "log_counts": log_counts, "bias": bias}
    _arguments.check_device("softmax_loss", matrix, queries=queries, **given)
    for name, number in (("temperature", temperature), ("positive_temperature", positive_temperature)):
        if number is not None and not 0 < number < math.inf:
            raise ValueError(f"softmax_loss: {name} must be above 0 and finite, got {number}")
    if not math.isfinite(power):
        raise ValueError(f"softmax_loss: power must be finite, got {power}")
    precision = _arguments.product_dtype("softmax_loss", precision, queries.dtype)
    if rows is not None:
        _arguments.check_within("softmax_loss", "rows", rows, matrix.shape[0])
    part = matrix if rows is None else matrix.select_rows(rows)
    indices, columns = part.indices, None
    if negatives is not None:
        _arguments.check_within("softmax_loss", "negatives", negatives, matrix.shape[1])
        if not devices.on_gpu(negatives) and len(negatives.unique()) < len(negatives):
            raise ValueError("softmax_loss: negatives must be different columns, some are repeated")
        columns, places, those = _among(matrix.shape[1], indices, negatives)
        if len(columns) == matrix.shape[1]:
            columns = None
        else:
            indices, negatives, bias = places, those, None if bias is None else bias[columns]
    gradients = torch.is_grad_enabled() and (queries.requires_grad or (keys is not None and keys.requires_grad))
    ratio = None if positive_temperature is None else positive_temperature / temperature
    options = float(temperature), cosine, float(power), ratio, precision, gradients
    dense = part.indptr, indices, queries, keys, matrix.shape[0]
    result: torch.Tensor = _loss(*dense, rows, columns, negatives, log_counts, bias, *options)[0]
    return result


def _among(
    count: int, indices: torch.Tensor, negatives: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The different columns of `count` that are named, int64 in rising order, and both by their places among these."""
    place = torch.zeros(count, dtype=torch.int32, device=indices.device)
    place[indices], place[negatives] = 1, 1
    columns = place.nonzero()[:, 0]
    place = place.cumsum_(0).sub_(1)
    return columns, place[indices], place[negatives].long()


@torch.library.custom_op("gnnrec::softmax_loss", mutates_args=())
def _loss(
    indptr: torch.Tensor,
    indices: torch.Tensor,
    queries: torch.Tensor,
    keys: torch.Tensor | None,
    count: int,
    rows: torch.Tensor | None,
    columns: torch.Tensor | None,
    negatives: torch.Tensor | None,
    log_counts: torch.Tensor | None,
    bias: torch.Tensor | None,
    temperature: float,
    cosine: bool,
    power: float,
    ratio: float | None,
    precision: torch.dtype,
    gradients: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss and the gradients of those rows of queries, of which there are `count`, and of keys that take part."""
    queries = queries.detach()
    keys = queries[count:] if keys is None else keys.detach()
    mine = queries[:count] if rows is None else queries.index_select(0, rows)
    keys = keys if columns is None else keys.index_select(0, columns)
    positives = SparseMatrix(indptr, indices, (len(mine), len(keys)))
    return panels.loss(
        positives, mine, keys, negatives, log_counts, bias, temperature, cosine, power, ratio, precision, gradients
    )


@_loss.register_fake
def _(
    indptr: torch.Tensor,
    indices: torch.Tensor,
    queries: torch.Tensor,
    keys: torch.Tensor | None,
    count: int,
    rows: torch.Tensor | None,
    columns: torch.Tensor | None,
    negatives: torch.Tensor | None,
    log_counts: torch.Tensor | None,
    bias: torch.Tensor | None,
    temperature: float,
    cosine: bool,
    power: float,
    ratio: float | None,
    precision: torch.dtype,
    gradients: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dtype, dim = _arguments.compute_dtype(queries.dtype), queries.shape[1]
    others = len(queries) - count if keys is None else len(keys)
    mine, others = count if rows is None else len(rows), others if columns is None else len(columns)
    gradient = [queries.new_empty((part if gradients else 0, dim), dtype=dtype) for part in (mine, others)]
    return queries.new_empty((), dtype=dtype), gradient[0], gradient[1]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    queries, keys, ctx.count, rows, columns = inputs[2:7]
    ctx.save_for_backward(*output[1:], rows, columns)
    ctx.dtype, ctx.together = queries.dtype, keys is None
    ctx.others = len(queries) - ctx.count if keys is None else len(keys)


def _backward(ctx: Any, grad: torch.Tensor, *unused: torch.Tensor) -> tuple[Any, ...]:
    mine, others, rows, columns = ctx.saved_tensors
    found: list[torch.Tensor | None] = [None, None]
    if ctx.together:
        found[0] = _loss_backward(grad, [mine, others], [rows, columns], [ctx.count, ctx.others], ctx.dtype)
    else:
        found = [
            _loss_backward(grad, [part], [numbers], [count], ctx.dtype) if needed else None
            for part, numbers, count, needed in zip(
                (mine, others), (rows, columns), (ctx.count, ctx.others), ctx.needs_input_grad[2:4]
            )
        ]
    return None, None, *found, *[None] * 12


_loss.register_autograd(_backward, setup_context=_setup_context)


@torch.library.custom_op("gnnrec::softmax_loss_backward", mutates_args=())
def _loss_backward(
    grad: torch.Tensor,
    parts: list[torch.Tensor],
    numbers: list[torch.Tensor | None],
    counts: list[int],
    dtype: torch.dtype,
) -> torch.Tensor:
    """A matrix of the counts' rows, one block of them after the other: the parts at these numbers, 0 elsewhere, times
    the gradient of what the loss became; rounded to halves only now, since that may be the factor that keeps small ones
    from becoming 0."""
    result = devices.empty(grad, (sum(counts), parts[0].shape[1]), "the gradient of the vectors")
    for block, part, rows in zip(result.split(counts), parts, numbers):
        if rows is None:
            torch.mul(part, grad, out=block)
        else:
            block.zero_().index_add_(0, rows, part * grad)
    return result.to(dtype)


@_loss_backward.register_fake
def _(
    grad: torch.Tensor,
    parts: list[torch.Tensor],
    numbers: list[torch.Tensor | None],
    counts: list[int],
    dtype: torch.dtype,
) -> torch.Tensor:
    return grad.new_empty((sum(counts), parts[0].shape[1]), dtype=dtype)


OP = Operator(
    "softmax_loss",
    softmax_loss,
    reference.softmax_loss,
    reference.cases,
    reference.bytes_moved,
    twice_differentiable=lambda case: False,
    library_products=True,
)
