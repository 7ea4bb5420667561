"""rgcn_conv on a GPU: a relation's aggregate, summed by spmm's kernels, is one temporary that the next relation reuses.

The products are cuBLAS's: fused with the sums they would keep the weights in every program's registers.
"""

# mypy: ignore-errors

import torch

from gnnrec import device as devices
from gnnrec.ops import _arguments
from gnnrec.ops._launch import Matrix
from gnnrec.ops.spmm.cuda import spmm


def rgcn(matrices: list[Matrix], x: torch.Tensor, weights: torch.Tensor, own: torch.Tensor | None) -> torch.Tensor:
    """own + the sum over relations r of matrices[r] @ x @ weights[r].T, [rows, out] in the dtype of the computation.

    Args:
        matrices: as `_launch.unpack` gives them.
        x: [cols, in]; weights: [relations, out, in].
        own: [rows, out] in the dtype of the computation, is written to; zeros where it is None.
    """
    rows, dtype = matrices[0].rows, _arguments.compute_dtype(x.dtype)
    out = devices.empty(x, (rows, weights.shape[1]), "the result of rgcn_conv", dtype) if own is None else own
    aggregate = devices.empty(x, (rows, x.shape[1]), "a relation's aggregate", dtype)
    for number, (matrix, weight) in enumerate(zip(matrices, weights.to(dtype).contiguous().mT)):
        spmm(matrix, x, None, aggregate)
        torch.addmm(out, aggregate, weight, beta=0 if own is None and number == 0 else 1, out=out)
    return out


def rgcn_backward(
    transposed: list[Matrix], grad: torch.Tensor, x: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of x and weights in the dtype of the computation.

    Args:
        transposed: the transposes of the forward pass's matrices, [cols, rows].
        grad: [rows, out].
    """
    dtype = _arguments.compute_dtype(x.dtype)
    grad_x = devices.empty(x, x.shape, "the gradient of x", dtype)
    grad_weights = devices.empty(x, weights.shape, "the gradient of weights", dtype)
    aggregate = devices.empty(x, (len(x), grad.shape[1]), "a relation's aggregate of gradients", dtype)
    x = x.to(dtype).contiguous()
    for number, (matrix, weight) in enumerate(zip(transposed, weights.to(dtype).contiguous())):
        spmm(matrix, grad, None, aggregate)
        torch.mm(aggregate.T, x, out=grad_weights[number])
        torch.addmm(grad_x, aggregate, weight, beta=min(number, 1), out=grad_x)
    return grad_x, grad_weights
