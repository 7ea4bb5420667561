"""Kernels on a panel of the columns of a matrix, launched on a GPU so that they give the bits of all columns at once.

What decides the order of a row's sum is how many of its terms are gathered at once. That follows from a tile's numbers
and columns: a panel's tile has as many fewer numbers as it has fewer columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gnnrec import device as devices
from gnnrec.graph.sparse import SparseMatrix
from gnnrec.ops import tuning
from gnnrec.ops._launch import panel


def for_panel(shape: tuning.Shape, dim: int, width: int) -> tuning.Shape:
    """The launch shape of a kernel over `width` columns that gathers as many rows at once as one over `dim` does."""
    return {**shape, "numbers": max(1, shape["numbers"] // panel(dim)) * panel(width)}


@contextmanager
def panels_of(matrix: SparseMatrix, dim: int, width: int) -> Iterator[None]:
    """While it lasts, products of the matrix or of some of its rows with float32 panels of `width` columns have the
    bits of those with all `dim` columns. On a CPU they do anyway."""
    if not devices.on_gpu(matrix.indices):
        yield
        return
    shape = tuning.choose("spmm", dim, 1, torch.float32, matrix.histogram.tolist(), matrix.device)
    with tuning.forced("spmm", for_panel(shape, dim, width)):
        yield
