"""edge_conv: a layer whose messages come from the difference of the two ends of an edge."""

from __future__ import annotations

import torch

from gnnrec.graph.sparse import SparseMatrix
from gnnrec.ops import _arguments
from gnnrec.ops._matmul import matmul
from gnnrec.ops._operator import Operator
from gnnrec.ops.edge_conv import reference
from gnnrec.ops.spmm import spmm

__all__ = ["OP", "edge_conv"]

REDUCTIONS = ("max", "mean")


def edge_conv(
    matrix: SparseMatrix,
    x: torch.Tensor,
    theta: torch.Tensor,
    phi: torch.Tensor,
    *,
    x_rows: torch.Tensor | None = None,
    reduce: str = "max",
) -> torch.Tensor:
    """Edge convolution with linear messages: y[i] = reduce_j (theta (c_ij x[j] - x_rows[i]) + phi x_rows[i]) over the
    entries (i, j) of the matrix; a matrix with scales weighs the neighbours by their product c_ij, as in every
    operator.

    Computed as reduce_j (c_ij theta x[j]) + (phi - theta) x_rows[i]: both products run on nodes, nothing is stored for
    an edge. Differentiable with respect to all dense arguments, to any order for mean and once for max. Products and
    sums are float32 for halves. The result is bit-equal for any number of threads. Inside torch.compile the transpose
    cannot be built: touch `matrix.T` before.

    Args:
        matrix: SparseMatrix [rows, cols] without values of its own.
        x: float32, float64, bfloat16 or float16 [cols, in], any strides.
        theta, phi: weights [out, in], of x's dtype.
        x_rows: of x's dtype [rows, in], features of the rows where the matrix is not square.
        reduce: max or mean (by the number of entries); rows without entries are 0.

    Returns:
        [rows, out], of x's dtype.

    Raises:
        ValueError: another type, dtype, device or shape, with what was received; no x_rows where the matrix is not
            square.

    Source: Wang et al. 2019, section 3.1, equation 8, without its nonlinearity; postponed as in Zhang et al. 2022,
    section 3.
    """
    _arguments.check_matrix("edge_conv", matrix)
    rows, cols = matrix.shape
    _arguments.check_dense("edge_conv", "x", x, rows=cols)
    _arguments.check_dense("edge_conv", "theta", theta, cols=x.shape[1], dtypes=(x.dtype,))
    _arguments.check_dense("edge_conv", "phi", phi, len(theta), x.shape[1], (x.dtype,))
    if x_rows is not None:
        _arguments.check_dense("edge_conv", "x_rows", x_rows, rows, x.shape[1], (x.dtype,))
    elif rows != cols:
        raise ValueError(f"edge_conv: x_rows [{rows}, {x.shape[1]}] is needed where the matrix is {rows} x {cols}")
    if reduce not in REDUCTIONS:
        raise ValueError(f"edge_conv: reduce must be one of {', '.join(REDUCTIONS)}, got {reduce!r}")
    _arguments.check_device("edge_conv", matrix, x=x, theta=theta, phi=phi, x_rows=x_rows)
    # Rounded to halves, different neighbours' products would tie for the maximum.
    computed = _arguments.compute_dtype(x.dtype)
    neighbours, own = x.to(computed), (x if x_rows is None else x_rows).to(computed)
    difference = phi.to(computed) - theta.to(computed)
    y = spmm(matrix, matmul(neighbours, theta.to(computed)), reduce=reduce, add=matmul(own, difference))
    empty = (matrix.indptr.diff() == 0)[:, None]
    return y.masked_fill_(empty, 0).to(x.dtype)


OP = Operator(
    "edge_conv",
    edge_conv,
    reference.edge_conv,
    reference.cases,
    reference.bytes_moved,
    twice_differentiable=lambda case: case.options["reduce"] == "mean",
)
