"""What every operator's folder hands to tests, benchmarks and the planner, and the graphs their cases walk over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from gnnrec.graph.sparse import SparseMatrix


@dataclass(frozen=True)
class Case:
    """One call of an operator: `function(**options, **tensors)`.

    Args:
        name: unique within the operator.
        tensors: names and shapes of the dense arguments, which whoever runs the case draws from N(0, 1).
        options: all other arguments.
    """

    name: str
    tensors: dict[str, tuple[int, ...]]
    options: dict[str, Any]


@dataclass(frozen=True)
class Operator:
    """The record of one operator.

    Args:
        name: as in `gnnrec.ops`.
        function: the public function.
        reference: the same in a few lines of plain torch.
        cases: odd widths and odd graphs that tests walk over.
        bytes_moved: bytes that one forward call of a case reads and writes for an item size in bytes, each operand
            counted every time it is gathered.
        dtypes: the float types it takes.
        differentiable: whether gradients flow to its dense arguments.
        twice_differentiable: whether they do a second time in a case.
        library_products: whether dense products of torch are in it, whose bits depend on the number of threads.
    """

    name: str
    function: Callable[..., Any]
    reference: Callable[..., Any]
    cases: Callable[[], list[Case]]
    bytes_moved: Callable[[Case, int], int]
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    differentiable: bool = True
    twice_differentiable: Callable[[Case], bool] = lambda case: True
    library_products: bool = False


DIMS = (1, 33, 63, 64, 300)  # every one is a kernel to compile


def case_matrices() -> dict[str, SparseMatrix]:
    """Small graphs with what goes wrong: empty rows, trailing empty nodes, one row with half the edges, repeated edges,
    unsorted columns, no edges at all; square and users x items, with and without scales."""
    generator = torch.Generator().manual_seed(0)

    def random(rows: int, cols: int, nnz: int, scaled: bool) -> SparseMatrix:
        row = torch.randint(rows, (nnz,), generator=generator)
        row[: nnz // 2] = min(2, rows - 1)  # one row with half the entries; the rest leaves rows empty
        col = torch.randint(cols, (nnz,), generator=generator)  # repeated and unsorted
        scales = [torch.rand(n, generator=generator) if scaled else None for n in (rows, cols)]
        return SparseMatrix.from_coo(row, col, shape=(rows, cols), row_scale=scales[0], col_scale=scales[1])

    return {
        "square": random(50, 50, 120, True),
        "user_item": random(40, 23, 90, True),
        "unscaled": random(17, 70, 60, False),
        "trailing": SparseMatrix.from_coo(torch.tensor([0, 1]), torch.tensor([1, 0]), shape=(9, 5)),
        "no_edges": SparseMatrix.from_csr([0, 0, 0], [], shape=(2, 3)),
        "no_rows": SparseMatrix.from_csr([0], [], shape=(0, 3)),
    }


def entry_rows(matrix: SparseMatrix) -> torch.Tensor:
    """The row of every entry, int64 [nnz]."""
    return torch.repeat_interleave(torch.arange(matrix.shape[0]), matrix.indptr.diff())


def entry_scales(matrix: SparseMatrix, dtype: torch.dtype) -> torch.Tensor:
    """row_scale[i] * col_scale[j] of every entry, [nnz]."""
    scales = torch.ones(matrix.nnz, dtype=dtype)
    if matrix.row_scale is not None:
        scales = scales * matrix.row_scale.to(dtype)[entry_rows(matrix)]
    if matrix.col_scale is not None:
        scales = scales * matrix.col_scale.to(dtype)[matrix.indices.long()]
    return scales


def dense(matrix: SparseMatrix, dtype: torch.dtype) -> torch.Tensor:
    """The matrix as a dense tensor, for oracles."""
    rows = entry_rows(matrix)
    result = torch.zeros(matrix.shape, dtype=dtype)
    result.index_put_((rows, matrix.indices.long()), torch.ones(matrix.nnz, dtype=dtype), accumulate=True)
    if matrix.row_scale is not None:
        result = result * matrix.row_scale[:, None].to(dtype)
    if matrix.col_scale is not None:
        result = result * matrix.col_scale.to(dtype)
    return result
