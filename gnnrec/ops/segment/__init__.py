"""segment_reduce, gather_segment_reduce, index_scatter: reductions over groups of rows, the tensor-centric base.

On a CPU all three are spmm over a pattern that is made of the given numbers. On a GPU sums and means have kernels of
their own, which nothing waits for; only max and min take the matrix, whose making waits. Where the same numbers come
again and again, make the SparseMatrix once and call `spmm`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from gnnrec import device as devices
from gnnrec.graph import _build
from gnnrec.graph.sparse import SparseMatrix
from gnnrec.ops import _arguments, autotune
from gnnrec.ops._operator import Operator
from gnnrec.ops.segment import reference
from gnnrec.ops.spmm import check_reduce, spmm

__all__ = ["OPS", "gather_segment_reduce", "index_scatter", "segment_reduce", "sum_by_index"]


def segment_reduce(x: torch.Tensor, indptr: torch.Tensor, *, reduce: str = "sum") -> torch.Tensor:
    """Reduce consecutive rows: y[i] = reduce of x[indptr[i]:indptr[i + 1]].

    Differentiable as `spmm` is, and bit-equal for any number of threads. Not for use inside torch.compile, as are the
    other two: which work there is to do depends on the numbers. On a GPU, numbers that are wrong end the process's work
    there with torch's assertion, in all three: no sum or mean waits for the GPU.

    Args:
        x: float32, float64, bfloat16 or float16 [n, dim].
        indptr: int64 [segments + 1], from 0 to n, not falling.
        reduce: sum, mean, max or min; empty segments are 0.

    Returns:
        [segments, dim], of x's dtype.

    Raises:
        ValueError: another dtype, device or shape; on a CPU, pointers that fall or do not end at n.
    """
    _arguments.check_dense("segment_reduce", "x", x)
    check_reduce("segment_reduce", reduce)
    pointers = _pointers("segment_reduce", indptr, x)
    if devices.on_gpu(x) and reduce in ("sum", "mean"):
        total: torch.Tensor = _group_sum(x, None, pointers, _shares(pointers, x) if reduce == "mean" else None)
        return total
    rows, counts = len(pointers) - 1, pointers.diff()
    if reduce in ("max", "min"):
        places = torch.arange(len(x), dtype=torch.int32, device=x.device)
        matrix = SparseMatrix(pointers, places, (rows, len(x)))
        if x.requires_grad:
            _link(matrix, torch.repeat_interleave(counts).int())
        return spmm(matrix, x, reduce=reduce)
    # The rows are the values of a matrix that multiplies ones, whose columns nobody looks at.
    scale = 1 / counts.clamp(min=1).double() if reduce == "mean" else None
    matrix = SparseMatrix(pointers, torch.empty(len(x), dtype=torch.int32, device=x.device), (rows, 1), scale)
    graph = _arguments.pack(_scheduled(matrix, x))
    result: torch.Tensor = torch.ops.gnnrec.spmm(graph, [], None, x, "sum", 1.0, None, 0.0, matrix.prefetch)
    return result


def gather_segment_reduce(
    x: torch.Tensor, indices: torch.Tensor, indptr: torch.Tensor, *, reduce: str = "sum"
) -> torch.Tensor:
    """Gather and reduce: y[i] = reduce of x[indices[indptr[i]:indptr[i + 1]]], without the gathered rows.

    Args:
        x: float32, float64, bfloat16 or float16 [rows, dim].
        indices: integers [n] within the rows, in any order, also repeatedly.
        indptr: int64 [segments + 1], from 0 to n, not falling.
        reduce: sum, mean, max or min; empty segments are 0.

    Returns:
        [segments, dim], of x's dtype.

    Raises:
        ValueError: another dtype, device or shape; on a CPU, pointers that fall or do not end at n, numbers outside the
            rows.
    """
    _arguments.check_dense("gather_segment_reduce", "x", x)
    check_reduce("gather_segment_reduce", reduce)
    if devices.on_gpu(x):
        numbers = _numbers("gather_segment_reduce", "indices", indices, x, len(x))
        pointers = _pointers("gather_segment_reduce", indptr, numbers)
        if reduce in ("sum", "mean"):
            # Copies: a backward pass trusts what was checked here.
            places = numbers.to(torch.int64, copy=True)
            result: torch.Tensor = _group_sum(x, places, pointers, _shares(pointers, x) if reduce == "mean" else None)
            return result
        matrix = SparseMatrix(pointers, numbers.to(torch.int32, copy=True), (len(pointers) - 1, len(x)))
    else:
        matrix = SparseMatrix.from_csr(indptr, indices, shape=(len(indptr) - 1, len(x)))
    return spmm(_scheduled(matrix, x), x, reduce=reduce)


def index_scatter(
    src: torch.Tensor, index: torch.Tensor, size: int, *, reduce: str = "sum", deterministic: bool = True
) -> torch.Tensor:
    """Scatter and reduce: y[i] = reduce of the rows src[k] with index[k] = i, in the order of k.

    Args:
        src: float32, float64, bfloat16 or float16 [n, dim].
        index: integers [n] within 0 and size - 1, sorted or not; sorted ones save the counting sort.
        size: rows of the result.
        reduce: sum, mean, max or min; rows that no index names are 0.
        deterministic: False lets a sum or mean on a GPU add in any order, with atomics and without a sort, unless
            torch.use_deterministic_algorithms is on; on a CPU, and for max and min, it changes nothing.

    Returns:
        [size, dim], of src's dtype.

    Raises:
        ValueError: another dtype, device or shape; on a CPU, numbers outside the size.
    """
    _arguments.check_dense("index_scatter", "src", src)
    check_reduce("index_scatter", reduce)
    if devices.on_gpu(src):
        numbers = _numbers("index_scatter", "index", index, src, size)
        _check_count(len(numbers), src)
        if reduce in ("sum", "mean"):
            places = numbers.to(torch.int64, copy=True)
            shares = None
            if reduce == "mean":
                counts = torch.zeros(size, dtype=torch.int64, device=src.device)
                shares = _share(counts.index_add_(0, places, torch.ones_like(places)), src)
            result: torch.Tensor = _index_sum(src, places, size, deterministic, shares)
            return result
        return spmm(_index_matrix(numbers, size, src), src, reduce=reduce)
    array = _build.numbers("index", index, size)
    _check_count(len(array), src)
    indptr, columns = _build.group_by(array, np.arange(len(array), dtype=np.int32), size)
    matrix = SparseMatrix(torch.from_numpy(indptr), torch.from_numpy(columns), (size, len(src)))
    if src.requires_grad:
        _link(matrix, torch.from_numpy(array.astype(np.int32)))
    return spmm(_scheduled(matrix, src), src, reduce=reduce)


def sum_by_index(src: torch.Tensor, index: torch.Tensor, size: int) -> torch.Tensor:
    """index_scatter of a sum for numbers that were checked: on a GPU nothing waits for it."""
    return _index_sum(src, index, size, True, None) if devices.on_gpu(src) else index_scatter(src, index, size)


def _check_count(count: int, src: torch.Tensor) -> None:
    if count != len(src):
        raise ValueError(f"index_scatter: index must have {len(src)} numbers, got {count}")


@torch.library.custom_op("gnnrec::index_sum", mutates_args=())
def _index_sum(
    src: torch.Tensor, index: torch.Tensor, size: int, deterministic: bool, shares: torch.Tensor | None
) -> torch.Tensor:
    """The sum of an index_scatter on a GPU, every row times its share."""
    from gnnrec.ops.segment import cuda

    out = devices.empty(src, (size, src.shape[1]), "the sums")
    cuda.index_sum(src, index, out, deterministic or torch.are_deterministic_algorithms_enabled(), shares)
    return out


@_index_sum.register_fake
def _(
    src: torch.Tensor, index: torch.Tensor, size: int, deterministic: bool, shares: torch.Tensor | None
) -> torch.Tensor:
    return src.new_empty((size, src.shape[1]))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(inputs[1], inputs[4])


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    return _spread(grad, *ctx.saved_tensors), None, None, None, None


_index_sum.register_autograd(_backward, setup_context=_setup_context)


@torch.library.custom_op("gnnrec::group_sum", mutates_args=())
def _group_sum(
    x: torch.Tensor, places: torch.Tensor | None, indptr: torch.Tensor, shares: torch.Tensor | None
) -> torch.Tensor:
    """y[i] = shares[i] * sum of x[places[indptr[i]:indptr[i + 1]]], or of x[indptr[i]:indptr[i + 1]], on a GPU."""
    from gnnrec.ops.segment import cuda

    out = devices.empty(x, (len(indptr) - 1, x.shape[1]), "the sums")
    count = len(x) if places is None else len(places)
    keys = torch.repeat_interleave(indptr.diff(), output_size=count).int()
    cuda.group_sum(x, cuda.Groups(keys, places, indptr.int()), out, shares)
    return out


@_group_sum.register_fake
def _(x: torch.Tensor, places: torch.Tensor | None, indptr: torch.Tensor, shares: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty((indptr.shape[0] - 1, x.shape[1]))


def _setup_groups(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, *saved = inputs
    ctx.rows = x.shape[0]
    ctx.save_for_backward(*saved)


def _groups_backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    places, indptr, shares = ctx.saved_tensors
    count = ctx.rows if places is None else len(places)
    keys = torch.repeat_interleave(indptr.diff(), output_size=count)
    if places is None:
        return _spread(grad, keys, shares), None, None, None
    dtype = grad.dtype
    if shares is not None:  # not yet rounded to halves
        grad = grad.to(_arguments.compute_dtype(dtype)) * shares[:, None]
    # The same over the transpose: which groups a row of x is in, in their order.
    numbers, order = places.sort(stable=True)
    starts = torch.searchsorted(numbers, torch.arange(ctx.rows + 1, device=numbers.device))
    return _group_sum(grad, keys[order], starts, None).to(dtype), None, None, None


_group_sum.register_autograd(_groups_backward, setup_context=_setup_groups)


@torch.library.custom_op("gnnrec::spread", mutates_args=())
def _spread(x: torch.Tensor, index: torch.Tensor, shares: torch.Tensor | None) -> torch.Tensor:
    """y[k] = shares[index[k]] * x[index[k]], on a GPU: the gradient of a sum of groups."""
    from gnnrec.ops.segment import cuda

    out = devices.empty(x, (len(index), x.shape[1]), "the gradient of the rows")
    cuda.spread(x, index, shares, out)
    return out


@_spread.register_fake
def _(x: torch.Tensor, index: torch.Tensor, shares: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty((index.shape[0], x.shape[1]))


def _setup_spread(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, *saved = inputs
    ctx.rows = x.shape[0]
    ctx.save_for_backward(*saved)


def _spread_backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    index, shares = ctx.saved_tensors
    return _index_sum(grad, index, ctx.rows, True, shares), None, None


_spread.register_autograd(_spread_backward, setup_context=_setup_spread)


def _shares(pointers: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return _share(pointers.diff(), like)


def _share(counts: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """1 / counts, in what is computed in for `like`; 1 for empty groups."""
    return (1 / counts.clamp(min=1).double()).to(_arguments.compute_dtype(like.dtype))


def _scheduled(matrix: SparseMatrix, x: torch.Tensor) -> SparseMatrix:
    """The matrix with the schedule that was chosen for its like; on a GPU its product finds that by itself."""
    return matrix if devices.on_gpu(x) else autotune.apply(matrix, x.shape[1], x.dtype)


def _index_matrix(numbers: torch.Tensor, size: int, src: torch.Tensor) -> SparseMatrix:
    """The matrix of an index_scatter on a GPU."""
    row_of = numbers.to(torch.int32, copy=True)
    keys, places = row_of.sort(stable=True)
    indptr = torch.searchsorted(keys, torch.arange(size + 1, dtype=torch.int32, device=keys.device))
    matrix = SparseMatrix(indptr, places.int(), (size, len(src)))
    if src.requires_grad:
        _link(matrix, row_of)
    return matrix


def _pointers(operator: str, indptr: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A copy of row pointers into x, int64."""
    wanted = f"{operator}: indptr must rise from 0 to {len(x)}"
    if devices.on_gpu(x):
        pointers = _numbers(operator, "indptr", indptr, x).to(torch.int64, copy=True)
        if len(pointers) == 0:
            raise ValueError(f"{wanted}, got {pointers}")
        torch._assert_async(_rises(pointers, len(x)), wanted)
        return pointers
    pointers = torch.from_numpy(np.array(_build.numbers("indptr", indptr), np.int64))
    if len(pointers) == 0 or not bool(_rises(pointers, len(x))):
        raise ValueError(f"{wanted}, got {pointers}")
    return pointers


def _rises(pointers: torch.Tensor, end: int) -> torch.Tensor:
    """Whether pointers rise from 0 to the end, one number."""
    return (pointers[0] == 0) & (pointers[-1] == end) & (pointers.diff() >= 0).all()


def _numbers(
    operator: str, name: str, numbers: torch.Tensor, x: torch.Tensor, count: int | None = None
) -> torch.Tensor:
    """`_build.numbers` for numbers beside x on a GPU, whose size is looked at there."""
    if not isinstance(numbers, torch.Tensor):
        raise ValueError(f"{operator}: {name} must be a torch.Tensor on {x.device}, got {type(numbers).__name__}")
    _arguments.check_device(operator, x, **{name: numbers})
    if numbers.dim() != 1 or (len(numbers) and numbers.dtype not in INTEGERS):
        kind = str(numbers.dtype).removeprefix("torch.")
        raise ValueError(f"{name} must be a one-dimensional integer array, got {kind} {list(numbers.shape)}")
    if count is not None and len(numbers):
        numbers = numbers.to(torch.int64)  # a smaller type may not hold the count
        low, high = numbers.aminmax()
        torch._assert_async((low >= 0) & (high < count), f"{operator}: {name} must lie within 0 and {count - 1}")
    return numbers


INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def _link(matrix: SparseMatrix, row_of: torch.Tensor) -> None:
    """The transpose of a matrix with one entry a column is known: that entry's row."""
    rows, cols = matrix.shape
    back = SparseMatrix(torch.arange(cols + 1, device=row_of.device), row_of, (cols, rows))
    matrix.__dict__["T"], back.__dict__["T"] = back, matrix


OPS = tuple(
    Operator(
        function.__name__,
        function,
        oracle,
        cases,
        reference.bytes_moved,
        twice_differentiable=lambda case: case.options.get("reduce", "sum") in ("sum", "mean"),
    )
    for function, oracle, cases in (
        (segment_reduce, reference.segment_reduce, reference.segment_cases),
        (gather_segment_reduce, reference.gather_segment_reduce, reference.gather_cases),
        (index_scatter, reference.index_scatter, reference.scatter_cases),
    )
)
