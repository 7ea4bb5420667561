"""SparseMatrix: a sparse matrix as the operators take it: its pattern, with scales or values or neither."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import cached_property
from typing import Any

import numpy as np
import torch

from gnnrec import device as devices
from gnnrec.graph import _build
from gnnrec.graph.schedule import (
    BY_WIDTH,
    GPU_LONG,
    Schedule,
    degree_buckets,
    degree_histogram,
    long_rows,
)

MAX_INT32 = 2**31 - 1


class SparseMatrix:
    """A matrix diag(row_scale) V diag(col_scale) where V holds the values, or ones (repeated entries add up).

    Immutable; the transpose is made once and kept on the object. Build it with `from_csr`, `from_coo`, `from_scipy` or
    `from_torch`, which check their input, or take it from a `BipartiteGraph`. Values here are constants; values that
    want a gradient are an argument of the operators.

    Attributes:
        indptr: int64 [rows + 1]; indices: int32 [nnz]; shape: (rows, cols).
        row_scale: float32 [rows] or None; col_scale: float32 [cols] or None; values: float32 [nnz] or None.
        symmetric: whether the matrix equals its transpose, entry for entry.
        chunks, pieces, long: what threads take, see `gnnrec.graph.schedule`; prefetch: how far ahead, in entries, or
            BY_WIDTH.
        pieces, medium, alone, short, long, histogram: what programs take where the matrix lies on a GPU.
    """

    def __init__(
        self,
        indptr: torch.Tensor,
        indices: torch.Tensor,
        shape: tuple[int, int],
        row_scale: torch.Tensor | None = None,
        col_scale: torch.Tensor | None = None,
        values: torch.Tensor | None = None,
        symmetric: bool = False,
        schedule: Schedule | None = None,
    ) -> None:
        self.indptr, self.indices, self.shape = indptr, indices, shape
        self.row_scale, self.col_scale, self.values, self.symmetric = row_scale, col_scale, values, symmetric
        # A CPU's schedule not lazily, so that operators can be traced by torch.compile. A GPU's is waited for, and many
        # matrices only say what has been seen.
        if not devices.on_gpu(indptr):
            self.chunks, self.pieces, self.long = schedule or Schedule.of(indptr)
        self.prefetch = BY_WIDTH
        self._elsewhere: dict[torch.device, SparseMatrix] = {}
        self._sorted: bool | None = None
        if symmetric:
            self.__dict__["T"] = self

    @classmethod
    def from_csr(
        cls,
        indptr: torch.Tensor | Sequence[int],
        indices: torch.Tensor | Sequence[int],
        values: torch.Tensor | None = None,
        *,
        shape: tuple[int, int],
        row_scale: torch.Tensor | None = None,
        col_scale: torch.Tensor | None = None,
    ) -> SparseMatrix:
        """A matrix from row pointers and column numbers (any integer dtype; columns need not be sorted).

        It lies where the column numbers do.

        Raises:
            ValueError: pointers that do not start at 0, fall or do not end at nnz, columns outside the shape, values or
                scales of another length or dtype, dimensions beyond int32.
        """
        rows, cols = shape
        if max(rows, cols) > MAX_INT32 or min(rows, cols) < 0:
            raise ValueError(f"shape must lie within 0 and {MAX_INT32}, got {shape}")
        device = indices.device if isinstance(indices, torch.Tensor) else torch.device("cpu")
        indptr, indices = (x.cpu() if isinstance(x, torch.Tensor) else x for x in (indptr, indices))
        row_scale, col_scale, values = (None if x is None else x.cpu() for x in (row_scale, col_scale, values))
        # Copies: what is checked here, kernels trust for as long as the matrix lives.
        pointers = torch.from_numpy(np.array(_build.numbers("indptr", indptr), np.int64))
        columns = torch.from_numpy(np.array(_build.numbers("indices", indices, cols), np.int32))
        if pointers.shape != (rows + 1,) or pointers[0] != 0 or pointers[-1] != columns.numel():
            raise ValueError(
                f"indptr must hold rows + 1 = {rows + 1} numbers from 0 to nnz = {columns.numel()}, got shape "
                f"{tuple(pointers.shape)} from {pointers[:1].tolist()} to {pointers[-1:].tolist()}"
            )
        if rows and bool((pointers.diff() < 0).any()):
            raise ValueError(f"indptr must not fall, but does at row {int((pointers.diff() < 0).nonzero()[0])}")
        named = (("row_scale", row_scale, rows), ("col_scale", col_scale, cols), ("values", values, columns.numel()))
        for name, given, length in named:
            if given is not None and (given.shape != (length,) or given.dtype != torch.float32):
                raise ValueError(f"{name} must be float32 [{length}], got {given.dtype} {list(given.shape)}")
        return cls(pointers, columns, (rows, cols), row_scale, col_scale, values).to(device)

    @classmethod
    def from_coo(
        cls,
        rows: torch.Tensor,
        cols: torch.Tensor,
        values: torch.Tensor | None = None,
        *,
        shape: tuple[int, int],
        row_scale: torch.Tensor | None = None,
        col_scale: torch.Tensor | None = None,
    ) -> SparseMatrix:
        """A matrix from pairs of row and column numbers (any integer dtype, any order); repeated pairs add up.

        It lies where the column numbers do.

        Raises:
            ValueError: rows and cols that differ in length or lie outside the shape, and as for `from_csr`.
        """
        device = cols.device if isinstance(cols, torch.Tensor) else torch.device("cpu")
        rows, cols = (x.cpu() if isinstance(x, torch.Tensor) else x for x in (rows, cols))
        row_array, col_array = _build.numbers("rows", rows, shape[0]), _build.numbers("cols", cols, shape[1])
        if len(row_array) != len(col_array):
            raise ValueError(f"rows has {len(row_array)} entries where cols has {len(col_array)}")
        if values is not None:
            if values.shape != (len(row_array),):
                raise ValueError(f"values must be float32 [{len(row_array)}], got {values.dtype} {list(values.shape)}")
            values = values.cpu()[torch.from_numpy(_build.transposed_entries(row_array, shape[0]))]
        indptr, indices = _build.group_by(row_array, col_array, shape[0])
        pattern = torch.from_numpy(indptr), torch.from_numpy(indices)
        return cls.from_csr(*pattern, values, shape=shape, row_scale=row_scale, col_scale=col_scale).to(device)

    @classmethod
    def from_scipy(cls, matrix: Any) -> SparseMatrix:
        """A matrix from any scipy.sparse matrix or array; its numbers become float32 values."""
        csr = matrix.tocsr()
        return cls.from_csr(csr.indptr, csr.indices, torch.from_numpy(csr.data.astype(np.float32)), shape=csr.shape)

    @classmethod
    def from_torch(cls, matrix: torch.Tensor) -> SparseMatrix:
        """A matrix from a sparse torch tensor, COO or CSR; its numbers become float32 values.

        Raises:
            ValueError: a tensor of another layout.
        """
        if matrix.layout == torch.sparse_coo:
            matrix = matrix.coalesce().to_sparse_csr()
        if matrix.layout != torch.sparse_csr:
            raise ValueError(f"the tensor must be sparse, COO or CSR, got {matrix.layout}")
        pattern = matrix.crow_indices(), matrix.col_indices()
        shape = (matrix.shape[0], matrix.shape[1])
        return cls.from_csr(*pattern, matrix.values().detach().float(), shape=shape)

    @property
    def nnz(self) -> int:
        """Number of stored entries."""
        return self.indices.numel()

    @cached_property
    def _programs(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        pieces, long = long_rows(self.indptr, GPU_LONG)
        medium, short = degree_buckets(self.indptr)
        alone = torch.cat([pieces, medium])
        return *alone.split((len(pieces), len(medium))), alone, short, long

    @cached_property
    def pieces(self) -> torch.Tensor:
        """Pieces of long rows, int64 [pieces, 3]: row, first entry, end."""
        return self._programs[0]

    @cached_property
    def medium(self) -> torch.Tensor:
        """Rows that have a program each, int64 [medium, 3]: row, first entry, end."""
        return self._programs[1]

    @cached_property
    def alone(self) -> torch.Tensor:
        """Pieces and, after them, medium rows."""
        return self._programs[2]

    @cached_property
    def short(self) -> torch.Tensor:
        """Rows of which several share a program, int64 [short, 3]: row, first entry, end."""
        return self._programs[3]

    @cached_property
    def long(self) -> torch.Tensor:
        """Long rows, int64 [long, 3]: row, first piece, end."""
        return self._programs[4]

    @cached_property
    def histogram(self) -> torch.Tensor:
        """Of degrees, see `schedule.degree_histogram`."""
        return degree_histogram(self.indptr)

    @property
    def device(self) -> torch.device:
        """Where the matrix lies."""
        return self.indices.device

    def to(self, device: torch.device | str) -> SparseMatrix:
        """The matrix on another device, made at the first call and kept; its transpose comes along if there is one."""
        current = str(device) == "cuda"  # as torch has it
        device = torch.device("cuda", torch.cuda.current_device()) if current else torch.device(device)
        if device == self.device:
            return self
        if device not in self._elsewhere:
            copied = self._elsewhere[device] = self._copied_to(device)
            if not self.symmetric and "T" in self.__dict__:
                back = self.T._elsewhere[device] = self.T._copied_to(device)
                copied.__dict__["T"], back.__dict__["T"] = back, copied
        return self._elsewhere[device]

    def _copied_to(self, device: torch.device) -> SparseMatrix:
        given = self.row_scale, self.col_scale, self.values
        row_scale, col_scale, values = (None if x is None else x.to(device) for x in given)
        pattern = self.indptr.to(device), self.indices.to(device)
        return SparseMatrix(*pattern, self.shape, row_scale, col_scale, values, self.symmetric)

    @cached_property
    def T(self) -> SparseMatrix:
        """The transpose, with this matrix as its own transpose."""
        if devices.on_gpu(self.indptr):
            indptr, indices = _transposed_on_gpu(self)
        else:
            arrays = _build.transpose(self.indptr.numpy(), self.indices.numpy(), self.shape[1])
            indptr, indices = map(torch.from_numpy, arrays)
        result = SparseMatrix(
            indptr,
            indices,
            (self.shape[1], self.shape[0]),
            self.col_scale,
            self.row_scale,
            None if self.values is None else self.values[self.transposed_entries],
        )
        result.__dict__["T"] = self
        return result

    @cached_property
    def transposed_entries(self) -> torch.Tensor:
        """int64 [nnz]: for every entry of `T` its number in this matrix.

        Raises:
            ValueError: a matrix marked symmetric whose rows are not sorted.
        """
        # The transpose of a pattern comes out sorted; a matrix that is not was there before its transpose.
        if self.__dict__.get("T") is None or self.T.has_sorted_rows:
            if devices.on_gpu(self.indptr):
                return self.indices.argsort(stable=True)
            return torch.from_numpy(_build.transposed_entries(self.indices.numpy(), self.shape[1]))
        if self.symmetric:
            raise ValueError("the rows of a symmetric matrix must be sorted for values on its entries")
        inverse = self.indptr.new_empty(self.nnz)
        inverse[self.T.transposed_entries] = torch.arange(self.nnz, device=self.device)
        return inverse

    def variant(self) -> SparseMatrix:
        """A matrix that shares everything with this one, of which something is to be changed."""
        result = copy(self)
        result._elsewhere = {}
        return result

    @cached_property
    def row_mean(self) -> SparseMatrix:
        """This matrix with every row divided by its number of entries."""
        counts = self.indptr.diff()
        # In float64, since its users may compute so.
        scale = torch.where(counts > 0, 1 / counts.double(), 0.0)
        if self.row_scale is not None:
            scale = scale * self.row_scale
        result = self.variant()
        result.row_scale, result.symmetric = scale, False
        if "T" in self.__dict__:
            back = self.T.variant()
            back.col_scale, back.symmetric = scale, False
            result.__dict__["T"], back.__dict__["T"] = back, result
            back.__dict__.pop("row_mean", None)
        return result

    def select_rows(self, rows: torch.Tensor) -> SparseMatrix:
        """The matrix of these rows, int64 [n], in this order, also repeatedly."""
        lengths = self.indptr.diff()[rows]
        indptr = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        # Entry t of the result comes from where its row starts in the matrix plus its place within the row.
        source = torch.arange(int(indptr[-1]), device=self.device)
        source += torch.repeat_interleave(self.indptr[rows] - indptr[:-1], lengths)
        result = SparseMatrix(
            indptr,
            self.indices[source],
            (len(rows), self.shape[1]),
            None if self.row_scale is None else self.row_scale[rows],
            self.col_scale,
            None if self.values is None else self.values[source],
        )
        if devices.on_gpu(self.indptr):
            result.histogram = self.histogram  # launched like the whole, rows are equal to the whole's to the bit
        return result

    def row_block(
        self, rows: slice, indices: torch.Tensor | None = None, schedule: Schedule | None = None
    ) -> SparseMatrix:
        """The matrix of consecutive rows, over this one's own columns and scales; indices: a copy of these columns that
        it takes instead; schedule: on the CPU, of an earlier matrix of the same rows."""
        first, last = (int(self.indptr[row]) for row in (rows.start, rows.stop))
        result = SparseMatrix(
            self.indptr[rows.start : rows.stop + 1] - first,
            self.indices[first:last] if indices is None else indices,
            (rows.stop - rows.start, self.shape[1]),
            None if self.row_scale is None else self.row_scale[rows],
            self.col_scale,
            None if self.values is None else self.values[first:last],
            schedule=schedule,
        )
        if devices.on_gpu(self.indptr):
            result.histogram = self.histogram  # as in select_rows
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
        scales = ", ".join(name for name in ("row_scale", "col_scale", "values") if getattr(self, name) is not None)
        kind = "" if self.device.type == "cpu" else f", {self.device}"
        return f"SparseMatrix({self.shape[0]} x {self.shape[1]}, nnz={self.nnz}{', ' + scales if scales else ''}{kind})"


def _transposed_on_gpu(matrix: SparseMatrix) -> tuple[torch.Tensor, torch.Tensor]:
    """Pointers and columns of the transpose, by a sort where the matrix lies."""
    rows = torch.repeat_interleave(matrix.indptr.diff())
    indptr = matrix.indptr.new_zeros(matrix.shape[1] + 1)
    torch.cumsum(torch.bincount(matrix.indices, minlength=matrix.shape[1]), 0, out=indptr[1:])
    return indptr, rows[matrix.transposed_entries].int()
