"""Products of tall, narrow matrices, for numba kernels and as an operator.

`block_matmul` is what kernels call on blocks of rows that lie in the caches. A tile of ROWS x 4 vectors of the result
stays in registers while one row of w after the other is multiplied with ROWS numbers of a. Every number of the result
is a sum from left to right, whatever block or tile it falls into, so results do not depend on the number of threads.

Source: Goto and van de Geijn 2008, sections 3 and 5 (which operand stays in which cache, and in registers).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core.errors import RequireLiteralValue, TypingError

from gnnrec import device as devices
from gnnrec.ops import _arguments
from gnnrec.ops._numba import VERSION, inline
from gnnrec.ops._parallel import consecutive, kernel
from gnnrec.ops._vector import LINE, RowType, declare, fma, intrinsic, row_load, row_pointer, row_store, splat

ROWS = 6  # of a tile: with 4 vectors, 24 of the 32 AVX-512 registers accumulate
VECTORS = 4
BLOCK = 48  # rows of x that a thread works on at once: whole tiles that fit the first-level cache at 64 columns
STRIP = 128  # rows that a weight's gradient takes at once: both matrices' fit the second-level cache
CHUNKS = 64  # partial sums of a weight's gradient at the most
CHUNK_ROWS = 512  # rows of a partial sum at the least
LANES = 16  # numbers that are converted between halves and float32 at once, where a row has as many

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)


@intrinsic(prefer_literal=True)
def _tile(
    typingctx: Any, a: Any, row: Any, w: Any, column: Any, lanes: Any, out: Any, accumulate: Any, vectors: Any
) -> Any:
    """out[row:row + ROWS, column:] = (out +) a[row:row + ROWS] @ w[:, column:] over `vectors` vectors of columns.

    Only `lanes` lanes of the last vector are read and written. Rows beyond the end repeat the last one: they compute
    and store the same numbers again.
    """
    if not isinstance(vectors, types.IntegerLiteral):
        raise RequireLiteralValue("the number of vectors must be a compile-time constant")
    if not a.dtype == w.dtype == out.dtype or a.dtype not in (types.float32, types.float64):
        raise TypingError(f"products take float32 or float64 arrays of one type, not {a}, {w} and {out}")
    size = a.dtype.bitwidth // 8
    kind = RowType(a.dtype, vectors.literal_value * (LINE // size))
    scalar, last = kind.vector.element, kind.count - 1

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a_view = context.make_array(a)(context, builder, args[0])
        w_view = context.make_array(w)(context, builder, args[2])
        first_row, first_column, used, initial = args[1], args[3], args[4], args[6]

        def constant(number: int) -> ir.Constant:
            return ir.Constant(_I64, number)

        lanes_type = ir.VectorType(_I64, kind.lanes)
        one = builder.insert_element(ir.Constant(lanes_type, ir.Undefined), used, ir.Constant(_I32, 0))
        limits = builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_I32, kind.lanes), None))
        mask = builder.icmp_signed("<", ir.Constant(lanes_type, list(range(kind.lanes))), limits)
        zero = ir.Constant(kind.vector, None)

        def load(base: Any) -> list[Any]:
            loaded = []
            for index in range(kind.count):
                pointer = builder.bitcast(builder.gep(base, [constant(index * LINE)]), kind.vector.as_pointer())
                if index < last:
                    value = builder.load(pointer)
                    value.align = size
                else:
                    name = f"llvm.masked.load.{kind.suffix}.p0"
                    function = declare(builder, name, kind.vector, [pointer.type, _I32, mask.type, kind.vector])
                    value = builder.call(function, [pointer, ir.Constant(_I32, size), mask, zero])
                loaded.append(value)
            return loaded

        rows, depth = builder.extract_value(a_view.shape, 0), builder.extract_value(a_view.shape, 1)
        a_step, w_step = builder.extract_value(a_view.strides, 1), builder.extract_value(w_view.strides, 0)
        column_bytes = builder.mul(first_column, constant(size))
        a_rows, out_rows = [], []
        for offset in range(ROWS):
            at = builder.add(first_row, constant(offset))
            at = builder.select(builder.icmp_signed("<", at, rows), at, builder.sub(rows, constant(1)))
            a_rows.append(row_pointer(context, builder, a, args[0], at))
            out_rows.append(builder.gep(row_pointer(context, builder, out, args[5], at), [column_bytes]))
        w_base = builder.gep(builder.bitcast(w_view.data, _I8.as_pointer()), [column_bytes])

        entry = builder.basic_block
        prior, loop = builder.append_basic_block("prior"), builder.append_basic_block("loop")
        body, done = builder.append_basic_block("body"), builder.append_basic_block("done")
        builder.cbranch(initial, prior, loop)
        builder.position_at_end(prior)
        before = [load(pointer) for pointer in out_rows]
        builder.branch(loop)

        builder.position_at_end(loop)
        k, a_offset, w_offset = (builder.phi(_I64) for _ in range(3))
        for counter in (k, a_offset, w_offset):
            counter.add_incoming(constant(0), entry)
            counter.add_incoming(constant(0), prior)
        sums = [[builder.phi(kind.vector) for _ in range(kind.count)] for _ in range(ROWS)]
        for totals, old in zip(sums, before):
            for total, value in zip(totals, old):
                total.add_incoming(zero, entry)
                total.add_incoming(value, prior)
        builder.cbranch(builder.icmp_signed("<", k, depth), body, done)

        builder.position_at_end(body)
        w_vectors = load(builder.gep(w_base, [w_offset]))
        for totals, pointer in zip(sums, a_rows):
            number = builder.load(builder.bitcast(builder.gep(pointer, [a_offset]), scalar.as_pointer()))
            number.align = size
            factor = splat(builder, kind, number)
            for total, vector in zip(totals, w_vectors):
                total.add_incoming(fma(builder, kind, factor, vector, total), body)
        for counter, step in ((k, constant(1)), (a_offset, a_step), (w_offset, w_step)):
            counter.add_incoming(builder.add(counter, step), body)
        builder.branch(loop)

        builder.position_at_end(done)
        for totals, base in zip(sums, out_rows):
            for index, total in enumerate(totals):
                pointer = builder.bitcast(builder.gep(base, [constant(index * LINE)]), kind.vector.as_pointer())
                if index < last:
                    builder.store(total, pointer).align = size
                else:
                    name = f"llvm.masked.store.{kind.suffix}.p0"
                    function = declare(builder, name, ir.VoidType(), [kind.vector, pointer.type, _I32, mask.type])
                    builder.call(function, [total, pointer, ir.Constant(_I32, size), mask])
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(a, i64, w, i64, i64, out, types.boolean, vectors), codegen


def _define_block_matmul() -> Any:
    version = VERSION

    @inline
    def block_matmul(a: Any, w: Any, out: Any, accumulate: Any) -> None:
        """out = a @ w, or out += a @ w where accumulate: a [R, K] of any strides, w [K, N] and out [R, N] with
        contiguous rows, all float32 or all float64. out must not share memory with the others."""
        _ = version  # part of the cache key
        lanes = LINE // a.itemsize
        for column in range(0, w.shape[1], VECTORS * lanes):
            width = min(w.shape[1] - column, VECTORS * lanes)
            vectors = (width + lanes - 1) // lanes
            used = width - (vectors - 1) * lanes
            for row in range(0, a.shape[0], ROWS):
                if vectors == 4:
                    _tile(a, row, w, column, used, out, accumulate, 4)
                elif vectors == 3:
                    _tile(a, row, w, column, used, out, accumulate, 3)
                elif vectors == 2:
                    _tile(a, row, w, column, used, out, accumulate, 2)
                else:
                    _tile(a, row, w, column, used, out, accumulate, 1)

    return block_matmul


block_matmul = _define_block_matmul()


def matmul(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x @ weight.T for many rows of x and a small weight.

    Differentiable with respect to both to any order. Sums run in float32 where halves are stored. The result and the
    gradients are bit-equal for any number of threads. On a GPU it is torch.mm, which computes as torch is told to:
    float32 in IEEE arithmetic unless torch.backends.cuda.matmul.allow_tf32 is set.

    Args:
        x: [rows, in], float32, float64, bfloat16 or float16, any strides.
        weight: [out, in], of the same dtype, any strides.

    Returns:
        [rows, out], of x's dtype.

    Raises:
        ValueError: another type, dtype, device or shape, with what was received.
    """
    _arguments.check_dense("matmul", "x", x)
    _arguments.check_dense("matmul", "weight", weight, cols=x.shape[1], dtypes=[x.dtype])
    if weight.shape[0] == 0:
        raise ValueError(f"matmul: weight must have shape [out >= 1, in], got {list(weight.shape)}")
    _arguments.check_device("matmul", x, weight=weight)
    result: torch.Tensor = _matmul(x, weight)
    return result


@torch.library.custom_op("gnnrec::matmul", mutates_args=())
def _matmul(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    out = devices.empty(x, (x.shape[0], weight.shape[0]), "the result of matmul")
    if devices.on_gpu(x):
        # Contiguous, since cuBLAS has other kernels for other strides, whose results differ in their last bits.
        return torch.mm(x.contiguous(), weight.contiguous().T, out=out)
    run = _compile_matmul(_lanes(x), _lanes(out))
    run(
        -(-len(x) // BLOCK),
        _arguments.array(x),
        _arguments.array(weight.T.to(_arguments.compute_dtype(x.dtype)).contiguous()),
        _arguments.array(out),
    )
    return out


@torch.library.custom_op("gnnrec::matmul_weight", mutates_args=())
def _matmul_weight(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """grad.T @ x of [rows, out] and [rows, in]."""
    if devices.on_gpu(x):
        out = devices.empty(x, (grad.shape[1], x.shape[1]), "the gradient of a weight")
        return torch.mm(grad.contiguous().T, x.contiguous(), out=out)
    chunks = min(max(x.shape[0] // CHUNK_ROWS, 1), CHUNKS)
    partial = torch.zeros((chunks, grad.shape[1], x.shape[1]), dtype=_arguments.compute_dtype(x.dtype))
    run = _compile_matmul_weight(_lanes(grad), _lanes(x))
    run(chunks, _arguments.array(grad), _arguments.array(x), partial.numpy())
    for chunk in range(1, chunks):
        partial[0] += partial[chunk]
    return partial[0].to(x.dtype, copy=True)


@_matmul.register_fake
def _(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]))


@_matmul_weight.register_fake
def _(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return x.new_empty((grad.shape[1], x.shape[1]))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _matmul_backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    x_wanted, weight_wanted = ctx.needs_input_grad
    return _matmul(grad, weight.T) if x_wanted else None, _matmul_weight(grad, x) if weight_wanted else None


def _matmul_weight_backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    grad, x = ctx.saved_tensors
    grad_wanted, x_wanted = ctx.needs_input_grad
    return _matmul(x, upstream) if grad_wanted else None, _matmul(grad, upstream.T) if x_wanted else None


_matmul.register_autograd(_matmul_backward, setup_context=_setup_context)
_matmul_weight.register_autograd(_matmul_weight_backward, setup_context=_setup_context)


def _lanes(x: torch.Tensor) -> int:
    """Numbers of a row that are converted at once, 0 where x needs no conversion."""
    return 0 if x.dtype == _arguments.compute_dtype(x.dtype) else min(x.shape[1], LANES)


@numba.njit(inline="always")
def _convert(source: Any, target: Any, lanes: Any) -> None:
    """target[:] = source between halves and float32. The last `lanes` columns of a row may overlap those before."""
    for start in range(0, source.shape[1], lanes):
        first = min(start, source.shape[1] - lanes)
        columns, target_columns = source[:, first:], target[:, first:]
        for i in range(len(source)):
            row_store(target_columns, i, row_load(columns, i, lanes), False)


@cache
def _compile_matmul(x_lanes: int, out_lanes: int) -> Any:
    version = VERSION

    @kernel
    def run(team: Any, x: Any, weight: Any, out: Any) -> None:
        """out = x @ weight; weight [in, out]."""
        _ = version  # part of the cache key
        rows, dim = x.shape
        for block in consecutive(team):
            first, stop = block * BLOCK, min(rows, (block + 1) * BLOCK)
            if x_lanes == 0:
                block_matmul(x[first:stop], weight, out[first:stop], False)
            else:
                wide = np.empty((stop - first, dim), np.float32)
                result = np.empty((stop - first, weight.shape[1]), np.float32)
                _convert(x[first:stop], wide, x_lanes)
                block_matmul(wide, weight, result, False)
                _convert(result, out[first:stop], out_lanes)

    return run


@cache
def _compile_matmul_weight(grad_lanes: int, x_lanes: int) -> Any:
    version = VERSION

    @kernel
    def run(team: Any, grad: Any, x: Any, partial: Any) -> None:
        """partial [chunks, out, in], zeros, becomes grad.T @ x of a part of the rows each."""
        _ = version  # part of the cache key
        rows, chunks = len(x), len(partial)
        for chunk in consecutive(team):
            stop = rows * (chunk + 1) // chunks
            for first in range(rows * chunk // chunks, stop, STRIP):
                strip = slice(first, min(first + STRIP, stop))
                if x_lanes == 0:
                    block_matmul(grad[strip].T, x[strip], partial[chunk], True)
                else:
                    wide_grad = np.empty((strip.stop - strip.start, grad.shape[1]), np.float32)
                    wide = np.empty((strip.stop - strip.start, x.shape[1]), np.float32)
                    _convert(grad[strip], wide_grad, grad_lanes)
                    _convert(x[strip], wide, x_lanes)
                    block_matmul(wide_grad.T, wide, partial[chunk], True)

    return run
