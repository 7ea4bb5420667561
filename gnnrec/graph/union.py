"""What two patterns have together, for the rows that are asked for alone: no third one as large as both."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gnnrec.graph import _build
from gnnrec.graph.sparse import SparseMatrix


@dataclass(frozen=True)
class Union:
    """The entries of two matrices of ones in the memory of processors, of one shape, whose columns are sorted.

    An entry of both is there twice.
    """

    first: SparseMatrix
    second: SparseMatrix

    def __post_init__(self) -> None:
        assert self.first.shape == self.second.shape

    def to(self, device: torch.device | str) -> Union:
        """Itself: rows are put together by processors, and copied by whoever wants them elsewhere."""
        return self

    def select_rows(self, rows: torch.Tensor) -> SparseMatrix:
        """The matrix of these rows, int64 [n], in this order, also repeatedly.

        Raises:
            IndexError: a row outside.
        """
        rows = rows.cpu()
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < self.first.shape[0]:
            raise IndexError(f"rows from {int(rows.min())} to {int(rows.max())} of a matrix of {self.first.shape[0]}")
        patterns = (x.numpy() for matrix in (self.first, self.second) for x in (matrix.indptr, matrix.indices))
        indptr, indices = _build.merged_rows(rows.numpy(), *patterns)
        shape = len(rows), self.first.shape[1]
        return SparseMatrix(torch.from_numpy(indptr), torch.from_numpy(indices), shape)
