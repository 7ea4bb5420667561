"""Oracle, cases and bytes of gmm_conv."""

from __future__ import annotations

import torch

from gnnrec.graph.sparse import SparseMatrix
from gnnrec.ops._operator import Case, case_matrices, entry_rows, entry_scales


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
    """Every kernel's message of every entry, then their sums."""
    distances = inv_sigma * (pseudo[:, None] - mu)  # [nnz, kernels, p]
    weights = torch.exp(-0.5 * distances.square().sum(dim=2)) * entry_scales(matrix, x.dtype)[:, None]
    messages = torch.einsum("ek,koi,ei->eo", weights, weight, x[matrix.indices.long()])
    y = x.new_zeros(matrix.shape[0], weight.shape[1]).index_add(0, entry_rows(matrix), messages)
    return y if reduce == "sum" else y / matrix.indptr.diff().clamp(min=1)[:, None]


def cases() -> list[Case]:
    """Small graphs, numbers of kernels and coordinates, any width."""
    shapes = [
        # graph, in, out, kernels, coordinates, reduce
        ("square", 33, 64, 3, 2, "sum"),
        ("user_item", 64, 33, 2, 3, "mean"),
        ("unscaled", 300, 300, 1, 1, "sum"),
        ("no_edges", 33, 3, 2, 2, "sum"),
        ("no_rows", 33, 3, 2, 2, "mean"),
        ("trailing", 3, 3, 2, 2, "sum"),
    ]
    matrices = case_matrices()
    return [
        Case(
            f"{name}-{into}-{out}-{kernels}-{coordinates}-{reduce}",
            {
                "x": (matrices[name].shape[1], into),
                "pseudo": (matrices[name].nnz, coordinates),
                "mu": (kernels, coordinates),
                "inv_sigma": (kernels, coordinates),
                "weight": (kernels, out, into),
            },
            {"matrix": matrices[name], "reduce": reduce},
        )
        for name, into, out, kernels, coordinates, reduce in shapes
    ]


def bytes_moved(case: Case, itemsize: int) -> int:
    """Pointers, columns and scales once, an entry's coordinates and row of x, all weights and the output once."""
    matrix: SparseMatrix = case.options["matrix"]
    rows, dim = matrix.shape[0], case.tensors["x"][1]
    scales = 4 * (matrix.row_scale is not None) * rows + 4 * (matrix.col_scale is not None) * matrix.nnz
    small = sum(torch.Size(shape).numel() for name, shape in case.tensors.items() if name != "x")
    numbers = matrix.nnz * dim + small + rows * case.tensors["weight"][1]
    return 8 * (rows + 1) + 4 * matrix.nnz + scales + numbers * itemsize
