"""gmm_conv: a layer whose neighbours are weighted by Gaussians of coordinates on the edges."""

from __future__ import annotations

from typing import Any

import torch

from gnnrec import device as devices
from gnnrec.graph.sparse import SparseMatrix
from gnnrec.ops import _arguments
from gnnrec.ops._launch import unpack
from gnnrec.ops._operator import Operator
from gnnrec.ops._stacks import check_stack, computed, scaled_arrays
from gnnrec.ops.gmm_conv import cpu, reference

__all__ = ["OP", "gmm_conv"]

REDUCTIONS = ("sum", "mean")


def gmm_conv(
    matrix: SparseMatrix,
    x: torch.Tensor,
    pseudo: torch.Tensor,
    mu: torch.Tensor,
    inv_sigma: torch.Tensor,
    weight: torch.Tensor,
    *,
    reduce: str = "sum",
) -> torch.Tensor:
    """Gaussian mixture convolution (MoNet): y[i] = reduce_j sum_k w_k(ij) c_ij weight[k] x[j] over the entries (i, j)
    of the matrix, with w_k(ij) = exp(-1/2 sum_p (inv_sigma[k, p] (pseudo[ij, p] - mu[k, p]))^2) and the product c_ij of
    the matrix's scales.

    Neighbours are aggregated before they are multiplied, block by block of rows, and an entry's weights are computed
    where it is walked, so that nothing is stored for an edge and no aggregate for all nodes. Differentiable once with
    respect to all dense arguments; the backward pass computes everything again and saves nothing but the arguments.
    Sums are float32 for halves. The result is bit-equal for any number of threads. Inside torch.compile the transpose
    cannot be built: touch `matrix.T` and `matrix.transposed_entries` before.

    Args:
        matrix: SparseMatrix [rows, cols] without values of its own.
        x: float32, float64, bfloat16 or float16 [cols, in], any strides.
        pseudo: coordinates of the entries [nnz, p], in the order of `matrix.indices`; of x's dtype, as all that follow.
        mu, inv_sigma: centres and inverse deviations [kernels, p].
        weight: [kernels, out, in].
        reduce: sum, or mean (by the number of entries); rows without entries are 0.

    Returns:
        [rows, out], of x's dtype.

    Raises:
        ValueError: another type, dtype, device or shape, with what was received.

    Source: Monti et al. 2017, equations 9 to 11, with diagonal covariances; order of the products: Zhang et al. 2022,
    section 3.
    """
    _arguments.check_matrix("gmm_conv", matrix)
    _arguments.check_dense("gmm_conv", "x", x, rows=matrix.shape[1])
    _arguments.check_dense("gmm_conv", "pseudo", pseudo, matrix.nnz, dtypes=(x.dtype,))
    _arguments.check_dense("gmm_conv", "mu", mu, cols=pseudo.shape[1], dtypes=(x.dtype,))
    if len(mu) == 0:
        raise ValueError(f"gmm_conv: mu must have shape [kernels >= 1, {pseudo.shape[1]}], got {list(mu.shape)}")
    _arguments.check_dense("gmm_conv", "inv_sigma", inv_sigma, len(mu), mu.shape[1], (x.dtype,))
    check_stack("gmm_conv", "weight", weight, (len(mu), None, x.shape[1]), (x.dtype,))
    if reduce not in REDUCTIONS:
        raise ValueError(f"gmm_conv: reduce must be one of {', '.join(REDUCTIONS)}, got {reduce!r}")
    _arguments.check_device("gmm_conv", matrix, x=x, pseudo=pseudo, mu=mu, inv_sigma=inv_sigma, weight=weight)
    if reduce == "mean":
        matrix = matrix.row_mean
    transposed = _arguments.pack_transpose(matrix, x, pseudo, mu, inv_sigma, weight, values=True)
    result: torch.Tensor = _gmm(_arguments.pack(matrix), transposed, x, pseudo, mu, inv_sigma, weight)
    return result


@torch.library.custom_op("gnnrec::gmm", mutates_args=())
def _gmm(
    matrix: list[torch.Tensor],
    transposed: list[torch.Tensor],
    x: torch.Tensor,
    pseudo: torch.Tensor,
    mu: torch.Tensor,
    inv_sigma: torch.Tensor,
    weight: torch.Tensor,
) -> torch.Tensor:
    if devices.on_gpu(x):
        from gnnrec.ops.gmm_conv import cuda

        out = devices.empty(x, (matrix[0].shape[0] - 1, weight.shape[1]), "the result of gmm_conv")
        cuda.gmm(unpack(matrix, x.dtype), x, pseudo, mu, inv_sigma, weight, out)
        return out
    out = torch.empty(matrix[0].shape[0] - 1, weight.shape[1], dtype=_arguments.compute_dtype(x.dtype))
    inputs = computed(pseudo), computed(mu), computed(inv_sigma), computed(weight.mT)
    cpu.gmm(scaled_arrays(matrix, x), _arguments.array(x.contiguous()), *inputs, out.numpy())
    return out.to(x.dtype)


@_gmm.register_fake
def _(
    matrix: list[torch.Tensor],
    transposed: list[torch.Tensor],
    x: torch.Tensor,
    pseudo: torch.Tensor,
    mu: torch.Tensor,
    inv_sigma: torch.Tensor,
    weight: torch.Tensor,
) -> torch.Tensor:
    return x.new_empty((matrix[0].shape[0] - 1, weight.shape[1]))


@torch.library.custom_op("gnnrec::gmm_backward", mutates_args=())
def _gmm_backward(
    transposed: list[torch.Tensor],
    grad: torch.Tensor,
    x: torch.Tensor,
    pseudo: torch.Tensor,
    mu: torch.Tensor,
    inv_sigma: torch.Tensor,
    weight: torch.Tensor,
) -> list[torch.Tensor]:
    """The gradients of all dense arguments."""
    arguments = x, pseudo, mu, inv_sigma, weight
    if devices.on_gpu(x):
        from gnnrec.ops.gmm_conv import cuda

        return [gradient.to(x.dtype) for gradient in cuda.gmm_backward(unpack(transposed, x.dtype), grad, *arguments)]
    gradients = [torch.empty(a.shape, dtype=_arguments.compute_dtype(x.dtype)) for a in arguments]
    cpu.gmm_backward(
        scaled_arrays(transposed, grad),
        _arguments.array(grad.contiguous()),
        *map(computed, arguments),
        *(gradient.numpy() for gradient in gradients),
    )
    return [gradient.to(x.dtype) for gradient in gradients]


@_gmm_backward.register_fake
def _(
    transposed: list[torch.Tensor],
    grad: torch.Tensor,
    x: torch.Tensor,
    pseudo: torch.Tensor,
    mu: torch.Tensor,
    inv_sigma: torch.Tensor,
    weight: torch.Tensor,
) -> list[torch.Tensor]:
    return [a.new_empty(a.shape) for a in (x, pseudo, mu, inv_sigma, weight)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    matrix, ctx.transposed, *arguments = inputs
    ctx.parts = len(matrix)
    ctx.save_for_backward(*arguments)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    gradients = _gmm_backward(ctx.transposed, grad, *ctx.saved_tensors)
    return [None] * ctx.parts, [None] * len(ctx.transposed), *gradients


_gmm.register_autograd(_backward, setup_context=_setup_context)

OP = Operator(
    "gmm_conv",
    gmm_conv,
    reference.gmm_conv,
    reference.cases,
    reference.bytes_moved,
    twice_differentiable=lambda case: False,
)
