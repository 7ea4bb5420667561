"""Checks and conversions for operators with a weight matrix for each relation or kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gnnrec.ops import _arguments
from gnnrec.ops._vector import MAX_DIM


def check_stack(
    operator: str, name: str, x: Any, shape: tuple[int, int | None, int], dtypes: Sequence[torch.dtype]
) -> None:
    """Raise a ValueError that says what was received unless `x` holds float CPU matrices of the wanted shape, any
    number of rows where that is None."""
    _arguments._check_tensor(operator, name, x, dtypes)
    if x.dim() != 3 or x.shape[1] == 0 or any(n not in (None, m) for n, m in zip(shape, x.shape)):
        wanted = ", ".join("out >= 1" if n is None else str(n) for n in shape)
        raise ValueError(f"{operator}: {name} must have shape [{wanted}], got {list(x.shape)}")


def computed(x: torch.Tensor) -> npt.NDArray[Any]:
    """A contiguous numpy array in the dtype of the computation, on the same memory where that is how x is."""
    return x.detach().to(_arguments.compute_dtype(x.dtype)).contiguous().numpy()


def scaled_arrays(packed: list[torch.Tensor], x: torch.Tensor) -> tuple[Any, ...]:
    """A packed matrix that x is gathered by as kernels take it, with scales of 1 where it has none and no entries where
    they are the matrix's own: one compiled kernel serves all matrices."""
    indptr, indices, row_scales, col_scales, *schedule, entries = _arguments.matrix_arrays(packed, x.dtype)
    dtype = _arguments.numpy_dtype(x.dtype)
    row_scales = np.ones(len(indptr) - 1, dtype) if row_scales is None else row_scales
    col_scales = np.ones(len(x), dtype) if col_scales is None else col_scales
    return indptr, indices, row_scales, col_scales, *schedule, np.empty(0, np.int64) if entries is None else entries


def panels(x: npt.NDArray[Any]) -> list[slice]:
    """The columns of x in as few ranges of almost equal width as kernels can take."""
    dim = x.shape[1]
    width = -(-dim // -(-dim // MAX_DIM))
    return [slice(start, min(start + width, dim)) for start in range(0, dim, width)]
