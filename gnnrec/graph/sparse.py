"""SparseMatrix: the pattern of a sparse matrix with scales, as the operators take it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch

from gnnrec.graph import _build
from gnnrec.graph.schedule import balanced_chunks

MAX_INT32 = 2**31 - 1


class SparseMatrix:
    """A matrix diag(row_scale) P diag(col_scale) where P holds ones (repeated entries add up).

    Immutable; the transpose is made once and kept on the object. Build it with `from_csr` or `from_coo`, which check
    their input, or take it from a `BipartiteGraph`.

    Attributes:
        indptr: int64 [rows + 1]; indices: int32 [nnz]; shape: (rows, cols).
        row_scale: float32 [rows] or None; col_scale: float32 [cols] or None.
        symmetric: whether the matrix equals its transpose, entry for entry.
        chunks: int64 [chunks + 1], borders of the chunks of rows that threads take.
    """

    def __init__(
        self,
        indptr: torch.Tensor,
        indices: torch.Tensor,
        shape: tuple[int, int],
        row_scale: torch.Tensor | None = None,
        col_scale: torch.Tensor | None = None,
        symmetric: bool = False,
    ) -> None:
        self.indptr, self.indices, self.shape = indptr, indices, shape
        self.row_scale, self.col_scale, self.symmetric = row_scale, col_scale, symmetric
        self.chunks = balanced_chunks(indptr)  # not lazily, so that operators can be traced by torch.compile
        self._sorted: bool | None = None
        if symmetric:
            self.__dict__["T"] = self

    @classmethod
    def from_csr(
        cls,
        indptr: torch.Tensor | Sequence[int],
        indices: torch.Tensor | Sequence[int],
        *,
        shape: tuple[int, int],
        row_scale: torch.Tensor | None = None,
        col_scale: torch.Tensor | None = None,
    ) -> SparseMatrix:
        """A matrix from row pointers and column numbers (any integer dtype; columns need not be sorted).

        Raises:
            ValueError: pointers that do not start at 0, fall or do not end at nnz, columns outside the shape, scales of
                another length, dimensions beyond int32.
        """
        rows, cols = shape
        if max(rows, cols) > MAX_INT32 or min(rows, cols) < 0:
            raise ValueError(f"shape must lie within 0 and {MAX_INT32}, got {shape}")
        pointers = torch.from_numpy(np.require(_build.numbers("indptr", indptr), np.int64, ["C", "W"]))
        columns = torch.from_numpy(np.require(_build.numbers("indices", indices, cols), np.int32, ["C", "W"]))
        if pointers.shape != (rows + 1,) or pointers[0] != 0 or pointers[-1] != columns.numel():
            raise ValueError(
                f"indptr must hold rows + 1 = {rows + 1} numbers from 0 to nnz = {columns.numel()}, got shape "
                f"{tuple(pointers.shape)} from {pointers[:1].tolist()} to {pointers[-1:].tolist()}"
            )
        if rows and bool((pointers.diff() < 0).any()):
            raise ValueError(f"indptr must not fall, but does at row {int((pointers.diff() < 0).nonzero()[0])}")
        for name, scale, length in (("row_scale", row_scale, rows), ("col_scale", col_scale, cols)):
            if scale is not None and (scale.shape != (length,) or scale.dtype != torch.float32):
                raise ValueError(f"{name} must be float32 [{length}], got {scale.dtype} {list(scale.shape)}")
        return cls(pointers, columns, (rows, cols), row_scale, col_scale)

    @classmethod
    def from_coo(
        cls,
        rows: torch.Tensor,
        cols: torch.Tensor,
        *,
        shape: tuple[int, int],
        row_scale: torch.Tensor | None = None,
        col_scale: torch.Tensor | None = None,
    ) -> SparseMatrix:
        """A matrix from pairs of row and column numbers (any integer dtype, any order); repeated pairs add up.

        Raises:
            ValueError: rows and cols that differ in length or lie outside the shape, and as for `from_csr`.
        """
        row_array, col_array = _build.numbers("rows", rows, shape[0]), _build.numbers("cols", cols, shape[1])
        if len(row_array) != len(col_array):
            raise ValueError(f"rows has {len(row_array)} entries where cols has {len(col_array)}")
        indptr, indices = _build.group_by(row_array, col_array, shape[0])
        return cls.from_csr(
            torch.from_numpy(indptr), torch.from_numpy(indices), shape=shape, row_scale=row_scale, col_scale=col_scale
        )

    @property
    def nnz(self) -> int:
        """Number of stored entries."""
        return self.indices.numel()

    @cached_property
    def T(self) -> SparseMatrix:
        """The transpose, with this matrix as its own transpose."""
        indptr, indices = _build.transpose(self.indptr.numpy(), self.indices.numpy(), self.shape[1])
        result = SparseMatrix(
            torch.from_numpy(indptr),
            torch.from_numpy(indices),
            (self.shape[1], self.shape[0]),
            self.col_scale,
            self.row_scale,
        )
        result.__dict__["T"] = self
        return result

    @property
    def has_sorted_rows(self) -> bool:
        """Whether no column is smaller than the one before it in its row."""
        if self._sorted is None:
            rises = self.indices.diff() >= 0
            starts = self.indptr[1:-1]  # where a row begins, its first column may be anything
            rises[starts[(starts > 0) & (starts < self.nnz)] - 1] = True
            self._sorted = bool(rises.all())
        return self._sorted

    def __repr__(self) -> str:
        scales = ", ".join(name for name in ("row_scale", "col_scale") if getattr(self, name) is not None)
        return f"SparseMatrix({self.shape[0]} x {self.shape[1]}, nnz={self.nnz}{', ' + scales if scales else ''})"
