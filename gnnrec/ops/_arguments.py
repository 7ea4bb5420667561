"""Checks and conversions that public operator functions share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gnnrec import device as devices
from gnnrec.graph.sparse import SparseMatrix

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
PRODUCTS = (torch.float32, torch.float64, torch.bfloat16)


def check_matrix(operator: str, matrix: Any, *, symmetric: bool = False, values: bool = False) -> None:
    """Raise a ValueError that says what was received unless `matrix` is a SparseMatrix of the wanted kind; only with
    `values` may it have values of its own."""
    if not isinstance(matrix, SparseMatrix):
        raise ValueError(f"{operator}: the matrix must be a gnnrec.ops.SparseMatrix, got {type(matrix).__name__}")
    if symmetric and not matrix.symmetric:
        raise ValueError(f"{operator}: the matrix must be symmetric (graph.norm_adjacency() is), got {matrix}")
    if matrix.values is not None and not values:
        raise ValueError(f"{operator}: the matrix must have no values of its own, got {matrix}")


def check_values(operator: str, matrix: SparseMatrix, values: Any, x: torch.Tensor) -> None:
    """Raise a ValueError that says what was received unless `values` are edge values for x's rows."""
    if matrix.values is not None:
        raise ValueError(f"{operator}: values were given for a matrix that has its own, {matrix}")
    if isinstance(values, torch.Tensor) and values.dim() == 1:
        check_vector(operator, "values", values, matrix.nnz, (x.dtype,))
    else:
        check_dense(operator, "values", values, matrix.nnz, x.shape[1], (x.dtype,))


def check_dense(
    operator: str,
    name: str,
    x: Any,
    rows: int | None = None,
    cols: int | None = None,
    dtypes: Sequence[torch.dtype] = FLOATS,
) -> None:
    """Raise a ValueError that says what was received unless `x` is a float matrix of the wanted shape on a device that
    kernels run on."""
    _check_tensor(operator, name, x, dtypes)
    if x.dim() != 2 or x.shape[1] == 0 or (rows is not None and x.shape[0] != rows):
        wanted = f"[{'rows' if rows is None else rows}, {'dim >= 1' if cols is None else cols}]"
        raise ValueError(f"{operator}: {name} must have shape {wanted}, got {list(x.shape)}")
    if cols is not None and x.shape[1] != cols:
        raise ValueError(f"{operator}: {name} must have {cols} columns, got {list(x.shape)}")


def check_vector(
    operator: str, name: str, x: Any, length: int | None = None, dtypes: Sequence[torch.dtype] = FLOATS
) -> None:
    """The same for a float vector."""
    _check_tensor(operator, name, x, dtypes)
    if x.dim() != 1 or (length is not None and len(x) != length):
        raise ValueError(
            f"{operator}: {name} must have shape [{'n' if length is None else length}], got {list(x.shape)}"
        )


def _check_tensor(operator: str, name: str, x: Any, dtypes: Sequence[torch.dtype]) -> None:
    if not isinstance(x, torch.Tensor):
        raise ValueError(f"{operator}: {name} must be a torch.Tensor, got {type(x).__name__}")
    if x.device.type not in ("cpu", "cuda"):
        raise ValueError(f"{operator}: {name} lies on {x.device}; kernels exist for cpu and cuda. Move it with .cpu()")
    devices.check(operator, name, x)
    if x.layout != torch.strided:
        raise ValueError(f"{operator}: {name} must be dense, got {x.layout}")
    if x.dtype not in dtypes:
        raise ValueError(f"{operator}: {name} must be {' or '.join(map(str, dtypes))}, got {x.dtype}")


def check_within(operator: str, name: str, numbers: torch.Tensor, size: int) -> None:
    """Raise a ValueError that says what was received unless the numbers lie within 0 and size - 1; on a GPU that is an
    assertion that nothing waits for."""
    if not len(numbers):
        return
    low, high = numbers.aminmax()
    if devices.on_gpu(numbers):
        torch._assert_async((low >= 0) & (high < size), f"{operator}: {name} lie outside 0 to {size - 1}")
    elif not 0 <= int(low) <= int(high) < size:
        raise ValueError(f"{operator}: {name} must lie within 0 and {size - 1}, got {int(low)} to {int(high)}")


def product_dtype(operator: str, precision: torch.dtype | None, dtype: torch.dtype) -> torch.dtype:
    """What dense products are computed in: the given precision, or by default what operators compute `dtype` in."""
    if precision is None:
        return compute_dtype(dtype)
    if precision not in PRODUCTS:
        raise ValueError(f"{operator}: precision must be {' or '.join(map(str, PRODUCTS))}, got {precision}")
    return precision


def check_indices(operator: str, name: str, x: Any) -> None:
    """Raise a ValueError that says what was received unless `x` is an int64 tensor."""
    _check_tensor(operator, name, x, (torch.int64,))


def check_device(operator: str, reference: SparseMatrix | torch.Tensor, **tensors: torch.Tensor | None) -> None:
    """Raise a ValueError unless all tensors lie where the reference, a matrix or the first tensor, does."""
    for name, x in tensors.items():
        if x is not None and x.device != reference.device:
            other = "the matrix" if isinstance(reference, SparseMatrix) else "the other tensors"
            raise ValueError(
                f"{operator}: {name} lies on {x.device}, {other} on {reference.device}; bring them together with .to()"
            )


def pack(matrix: SparseMatrix, entries: torch.Tensor | None = None) -> list[torch.Tensor]:
    """The matrix as torch.library takes it: pointers, columns, scales, schedule, and which edge value belongs to an
    entry, where that is not its own number. What there is not is empty."""
    none = torch.empty(0, device=matrix.device)
    row_scale = none if matrix.row_scale is None else matrix.row_scale
    col_scale = none if matrix.col_scale is None else matrix.col_scale
    if devices.on_gpu(matrix.indptr):
        schedule = [matrix.pieces, matrix.medium, matrix.alone, matrix.short, matrix.long, matrix.histogram]
    else:
        schedule = [matrix.chunks, matrix.pieces, matrix.long]
    return [matrix.indptr, matrix.indices, row_scale, col_scale, *schedule, none if entries is None else entries]


def pack_transpose(matrix: SparseMatrix, *needed_by: torch.Tensor | None, values: bool = False) -> list[torch.Tensor]:
    """The transpose, whose first use builds it, packed for a backward pass; empty where none of the tensors needs one.
    With `values` its entries find their values in the order of the matrix."""
    if not (torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in needed_by)):
        return []
    return pack(matrix.T, matrix.transposed_entries if values else None)


def matrix_arrays(packed: list[torch.Tensor], dtype: torch.dtype) -> tuple[Any, ...]:
    """A packed matrix as kernels take it, the scales in the dtype that they compute in, None where there is none."""
    indptr, indices, row_scale, col_scale, *schedule, entries = packed
    scales = [array(scale.to(compute_dtype(dtype))) if scale.numel() else None for scale in (row_scale, col_scale)]
    return array(indptr), array(indices), *scales, *map(array, schedule), array(entries) if entries.numel() else None


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What kernels compute in: float32 for halves."""
    return torch.float32 if dtype.itemsize < 4 else dtype


_HALVES = {torch.bfloat16: torch.uint16, torch.float16: torch.int16}


def array(x: torch.Tensor) -> npt.NDArray[Any]:
    """The tensor as a numpy array on the same memory, its last dimension contiguous; halves as `_vector` takes them."""
    x = x.detach() if x.requires_grad else x
    x = x if x.stride(-1) == 1 else x.contiguous()
    return (x.view(_HALVES[x.dtype]) if x.dtype in _HALVES else x).numpy()


def value_array(values: torch.Tensor | None) -> npt.NDArray[Any] | None:
    """Edge values as kernels take them: one a column as they are, one an entry in the dtype of the computation."""
    if values is None or values.dim() == 2:
        return None if values is None else array(values)
    return array(values.to(compute_dtype(values.dtype)).contiguous())


def numpy_dtype(dtype: torch.dtype) -> Any:
    """numpy's name of what kernels compute in."""
    return np.float64 if dtype == torch.float64 else np.float32
