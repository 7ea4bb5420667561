"""Oracle, cases and bytes of spmm."""

from __future__ import annotations

import torch

from gnnrec.graph.sparse import SparseMatrix
from gnnrec.ops._operator import DIMS, Case, case_matrices, entry_rows, entry_scales

REDUCE = {"sum": "sum", "mean": "mean", "max": "amax", "min": "amin"}  # scatter_reduce's names


def spmm(
    matrix: SparseMatrix,
    x: torch.Tensor,
    values: torch.Tensor | None = None,
    *,
    reduce: str = "sum",
    scale: float = 1.0,
    add: torch.Tensor | None = None,
    add_scale: float = 1.0,
) -> torch.Tensor:
    """Gather the terms of all entries, then scatter them."""
    terms = entry_scales(matrix, x.dtype)[:, None] * x[matrix.indices.long()]
    if values is None and matrix.values is not None:
        values = matrix.values.to(x.dtype)
    if values is not None:
        terms = terms * (values if values.dim() == 2 else values[:, None])
    rows = entry_rows(matrix)[:, None].expand(terms.shape)
    zero = x.new_zeros(matrix.shape[0], x.shape[1])
    y = scale * zero.scatter_reduce(0, rows, terms, REDUCE[reduce], include_self=False)
    return y if add is None else y + add_scale * add


def cases() -> list[Case]:
    """Every small graph at two widths, one of them at all: kernels are compiled for a width, not for a graph; every
    reduction with every kind of edge values; epilogues."""
    matrices = case_matrices()
    result = [
        Case(f"{name}-{dim}", {"x": (matrix.shape[1], dim)}, {"matrix": matrix})
        for name, matrix in matrices.items()
        for dim in DIMS
        if name == "user_item" or dim in (33, 64)
    ]
    for name in ("square", "user_item"):
        matrix = matrices[name]
        shapes: dict[str, tuple[int, ...]] = {"none": (), "one": (matrix.nnz,), "wide": (matrix.nnz, 33)}
        for reduce in REDUCE:
            for kind, shape in shapes.items():
                if kind != "none" and reduce in ("mean", "min"):
                    continue  # the kernels of sum and max
                tensors: dict[str, tuple[int, ...]] = {"x": (matrix.shape[1], 33)}
                if shape:
                    tensors["values"] = shape
                result.append(Case(f"{name}-33-{reduce}-{kind}", tensors, {"matrix": matrix, "reduce": reduce}))
    matrix, rows = matrices["user_item"], matrices["user_item"].shape[0]
    epilogue = {"matrix": matrix, "scale": -0.5, "add_scale": 2.0}
    for reduce in ("mean", "max"):
        tensors = {"x": (matrix.shape[1], 300), "values": (matrix.nnz,), "add": (rows, 300)}
        result.append(Case(f"epilogue-300-{reduce}", tensors, {**epilogue, "reduce": reduce}))
    constant = SparseMatrix.from_csr(
        matrix.indptr, matrix.indices, torch.linspace(-1, 1, matrix.nnz), shape=matrix.shape
    )
    return [*result, Case("values-33", {"x": (matrix.shape[1], 33)}, {"matrix": constant})]


def bytes_moved(case: Case, itemsize: int) -> int:
    """Pointers, columns and scales once, a row of x, a column scale and a value for every entry, the output once."""
    matrix: SparseMatrix = case.options["matrix"]
    dim = case.tensors["x"][1]
    scales = 4 * (matrix.row_scale is not None) * matrix.shape[0] + 4 * (matrix.col_scale is not None) * matrix.nnz
    given = torch.Size(case.tensors["values"]).numel() * itemsize if "values" in case.tensors else 0
    values = given if matrix.values is None else 4 * matrix.nnz
    rows = (matrix.nnz + matrix.shape[0] * (2 if "add" in case.tensors else 1)) * dim * itemsize
    return 8 * (matrix.shape[0] + 1) + 4 * matrix.nnz + scales + values + rows
