"""uniformity_loss: how evenly rows lie on the sphere, with its gradient in one pass over panels."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from gnnrec.ops import _arguments
from gnnrec.ops._operator import Operator
from gnnrec.ops.softmax_loss import panels
from gnnrec.ops.uniformity_loss import reference

__all__ = ["OP", "uniformity_loss"]


def uniformity_loss(
    x: torch.Tensor, *, rows: torch.Tensor | None = None, t: float = 2.0, precision: torch.dtype | None = None
) -> torch.Tensor:
    """The logarithm of the mean over pairs of different rows i, j of exp(-t |u_i - u_j|^2), u being x at length 1.

    Done in panels of rows that stay in the caches, loss and gradient in one pass: nothing of rows x rows is ever held.
    The products are those of the library, so results are bit-equal for an equal number of threads only.

    Args:
        x: float32, float64, bfloat16 or float16 [count, dim]. A row of zeros stays one, without gradient.
        rows: int64 [n], those that count, by default all; repeated ones are rows of their own (whose gradients a GPU
            adds in any order). Fewer than two make no pair: the result is 0.
        t: above 0.
        precision: of the products, as in softmax_loss.

    Returns:
        A scalar, float32 for halves. Its gradient can be computed once, not twice.

    Raises:
        ValueError: another type, dtype, device or shape, numbers outside x, t not above 0 or not finite.

    Source: Wang and Isola 2020, "Understanding contrastive representation learning through alignment and uniformity on
    the hypersphere", section 4.2; for recommendation Wang et al. 2022 (DirectAU), equation 6.
    """
    _arguments.check_dense("uniformity_loss", "x", x)
    if rows is not None:
        _arguments.check_indices("uniformity_loss", "rows", rows)
        if rows.dim() != 1:
            raise ValueError(f"uniformity_loss: rows must be int64 [n], got {list(rows.shape)}")
        _arguments.check_device("uniformity_loss", x, rows=rows)
        _arguments.check_within("uniformity_loss", "rows", rows, len(x))
    if not 0 < t < math.inf:
        raise ValueError(f"uniformity_loss: t must be above 0 and finite, got {t}")
    precision = _arguments.product_dtype("uniformity_loss", precision, x.dtype)
    result: torch.Tensor = _loss(x, rows, float(t), precision, torch.is_grad_enabled() and x.requires_grad)[0]
    return result


@torch.library.custom_op("gnnrec::uniformity_loss", mutates_args=())
def _loss(
    x: torch.Tensor, rows: torch.Tensor | None, t: float, precision: torch.dtype, gradients: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    wide = _arguments.compute_dtype(x.dtype)
    x = x.detach().contiguous()  # sums and products round differently for other strides
    mine, norms = panels.unit((x if rows is None else x.index_select(0, rows)).to(wide), cosine=True)
    count = len(mine)
    if count < 2:
        return mine.new_zeros(()), torch.zeros_like(x if gradients else x[:0], dtype=wide)
    # -t |u_i - u_j|^2 is the product of 2 t u_i and u_j less what the squares make; those are 0 for rows of zeros.
    squares = t * mine.square().sum(dim=1)
    others, shift = panels.padded(mine, squares, precision)
    extra = -count % panels.ROWS
    queries, squares = F.pad(2 * t * mine, (0, 0, 0, extra)).to(precision), F.pad(squares, (0, extra), value=torch.inf)
    grad = torch.zeros_like(queries, dtype=wide)
    exponents, sums = (torch.zeros(len(queries), dtype=torch.float64, device=x.device) for _ in range(2))
    for first, last, panel in panels.split(queries, others):
        torch.mm(queries[first:last], others.T, out=panel)
        own = torch.arange(min(last, count) - first, device=x.device)
        panel.view(-1).index_fill_(0, own * (len(shift) + 1) + first, -torch.inf)  # a row makes no pair with itself
        largest, sums[first:last] = panels.exponentials(panel, shift)
        exponents[first:last] = largest.double() - squares[first:last]
        if gradients:
            grad[first:last] = torch.mm(panel, others)
    total = (exponents + sums.log())[:count].logsumexp(0)
    value = (total - math.log(count * (count - 1))).to(wide)
    if not gradients:
        return value, torch.zeros_like(x[:0], dtype=wide)
    # Every pair stands in two rows' sums. What the squares add is along the row and does not turn it.
    shares = (4 * t * (exponents[:count] - total).exp()).to(wide)
    grad = panels.through_unit(grad[:count] * shares[:, None], mine, norms)
    return value, grad if rows is None else torch.zeros_like(x, dtype=wide).index_add_(0, rows, grad)


@_loss.register_fake
def _(
    x: torch.Tensor, rows: torch.Tensor | None, t: float, precision: torch.dtype, gradients: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = _arguments.compute_dtype(x.dtype)
    return x.new_empty((), dtype=dtype), x.new_empty((len(x) if gradients else 0, x.shape[1]), dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.save_for_backward(output[1])
    ctx.dtype = inputs[0].dtype


def _backward(ctx: Any, grad: torch.Tensor, unused: torch.Tensor) -> tuple[Any, ...]:
    (scaled,) = ctx.saved_tensors
    return _loss_backward(grad, scaled, ctx.dtype), None, None, None, None


_loss.register_autograd(_backward, setup_context=_setup_context)


@torch.library.custom_op("gnnrec::uniformity_loss_backward", mutates_args=())
def _loss_backward(grad: torch.Tensor, gradient: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The gradient of the loss times that of what it became, rounded to halves only now, as in softmax_loss."""
    return (grad * gradient).to(dtype)


@_loss_backward.register_fake
def _(grad: torch.Tensor, gradient: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty_like(gradient, dtype=dtype)


OP = Operator(
    "uniformity_loss",
    uniformity_loss,
    reference.uniformity_loss,
    reference.cases,
    reference.bytes_moved,
    twice_differentiable=lambda case: False,
    library_products=True,
)
