"""Arithmetic of Rows (see `_vector`), for numba kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.errors import RequireLiteralValue

from gnnrec.ops._dropout import GROUP, LANES, _every_lane, _words
from gnnrec.ops._vector import (
    RowType,
    declare,
    fma,
    horizontal_sum,
    intrinsic,
    pack,
    splat,
    unpack,
    without_tail,
)

_I32, _I64 = ir.IntType(32), ir.IntType(64)
FOLD = 16  # columns that are added up at a time


def _elementwise(function: Callable[..., Any], rows: int, scalars: int = 0) -> Callable[..., Any]:
    """The typing and code of an intrinsic of `rows` equal Rows, then scalars of their type, vector by vector;
    function(builder, row, *vectors, *splats) emits one."""

    def typed(value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            splats = [splat(builder, value, scalar) for scalar in args[rows:]]
            vectors = zip(*(unpack(builder, value, packed) for packed in args[:rows]))
            return pack(builder, value, [function(builder, value, *group, *splats) for group in vectors])

        return value(*[value] * rows, *[value.dtype] * scalars), codegen

    return typed


def _named(name: str) -> Callable[..., Any]:
    """A vector function that LLVM has under this name."""

    def emit(builder: Any, row: RowType, *vectors: Any) -> Any:
        function = declare(builder, f"llvm.{name}.{row.suffix}", row.vector, [row.vector] * len(vectors))
        return builder.call(function, vectors)

    return emit


@intrinsic
def row_add(typingctx: Any, a: Any, b: Any) -> Any:
    """a + b."""
    return _elementwise(lambda builder, row, x, y: builder.fadd(x, y), 2)(a)


@intrinsic
def row_sub(typingctx: Any, a: Any, b: Any) -> Any:
    """a - b."""
    return _elementwise(lambda builder, row, x, y: builder.fsub(x, y), 2)(a)


@intrinsic
def row_mul(typingctx: Any, a: Any, b: Any) -> Any:
    """a * b."""
    return _elementwise(lambda builder, row, x, y: builder.fmul(x, y), 2)(a)


@intrinsic
def row_div(typingctx: Any, a: Any, b: Any) -> Any:
    """a / b."""
    return _elementwise(lambda builder, row, x, y: builder.fdiv(x, y), 2)(a)


@intrinsic
def row_max(typingctx: Any, a: Any, b: Any) -> Any:
    """The greater of a and b, NaN where either is."""
    return _elementwise(_named("maximum"), 2)(a)


@intrinsic
def row_min(typingctx: Any, a: Any, b: Any) -> Any:
    """The smaller of a and b, NaN where either is."""
    return _elementwise(_named("minimum"), 2)(a)


@intrinsic
def row_sqrt(typingctx: Any, value: Any) -> Any:
    """The square roots, rounded once."""
    return _elementwise(_named("sqrt"), 1)(value)


@intrinsic
def row_mul_add(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c of Rows, rounded once."""
    return _elementwise(fma, 3)(a)


@intrinsic
def row_scale(typingctx: Any, value: Any, factor: Any) -> Any:
    """value * factor, a number."""
    return _elementwise(lambda builder, row, x, y: builder.fmul(x, y), 1, 1)(value)


@intrinsic
def row_fma(typingctx: Any, value: Any, factor: Any, addend: Any) -> Any:
    """value * factor, a number, + addend, rounded once."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        scale = splat(builder, value, args[1])
        pairs = zip(unpack(builder, value, args[0]), unpack(builder, value, args[2]))
        return pack(builder, value, [fma(builder, value, v, scale, a) for v, a in pairs])

    return value(value, value.dtype, value), codegen


@intrinsic
def row_splat(typingctx: Any, number: Any, like: Any) -> Any:
    """A Row of one number, as wide as another."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return pack(builder, like, [splat(builder, like, args[0])] * like.count)

    return like(like.dtype, like), codegen


@intrinsic
def row_where_equal(typingctx: Any, a: Any, b: Any, chosen: Any) -> Any:
    """chosen where a == b, else 0."""

    def emit(builder: Any, row: RowType, x: Any, y: Any, value: Any) -> Any:
        return builder.select(builder.fcmp_ordered("==", x, y), value, ir.Constant(row.vector, None))

    return _elementwise(emit, 3)(a)


@intrinsic
def row_where_positive(typingctx: Any, value: Any, yes: Any, no: Any) -> Any:
    """yes where value > 0, else no."""

    def emit(builder: Any, row: RowType, x: Any, y: Any, n: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", x, ir.Constant(row.vector, None)), y, n)

    return _elementwise(emit, 3)(value)


@intrinsic
def row_signed(typingctx: Any, value: Any, sign: Any) -> Any:
    """value, which is not negative, with the sign of another Row; 0 where that is 0."""

    def emit(builder: Any, row: RowType, x: Any, y: Any) -> Any:
        zero = ir.Constant(row.vector, None)
        return builder.select(builder.fcmp_unordered("!=", y, zero), _named("copysign")(builder, row, x, y), zero)

    return _elementwise(emit, 2)(value)


@intrinsic
def row_sum(typingctx: Any, value: Any) -> Any:
    """The sum of a Row's numbers."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        first, *rest = without_tail(builder, value, unpack(builder, value, args[0]))
        for vector in rest:
            first = builder.fadd(first, vector)
        return horizontal_sum(builder, value, first)

    return value.dtype(value), codegen


@intrinsic
def row_dot(typingctx: Any, a: Any, b: Any) -> Any:
    """The dot product of two Rows."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        left, right = unpack(builder, a, args[0]), unpack(builder, a, args[1])
        left, right = without_tail(builder, a, left), without_tail(builder, a, right)
        total = builder.fmul(left[0], right[0])
        for x, y in zip(left[1:], right[1:]):
            total = fma(builder, a, x, y, total)
        return horizontal_sum(builder, a, total)

    return a.dtype(a, a), codegen


@intrinsic
def row_fold(typingctx: Any, start: Any, value: Any) -> Any:
    """start plus the sums of 16 columns each, from left to right: the same bits for a row and for its panels in turn,
    as long as their widths are multiples of 16."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        total, vectors = args[0], without_tail(builder, value, unpack(builder, value, args[1]))
        group = FOLD // value.lanes
        for first in range(0, len(vectors), group):
            block = vectors[first]
            for vector in vectors[first + 1 : first + group]:
                block = builder.fadd(block, vector)
            total = builder.fadd(total, horizontal_sum(builder, value, block))
        return total

    return value.dtype(value.dtype, value), codegen


@intrinsic
def row_exp(typingctx: Any, value: Any) -> Any:
    """e^value; in float32 within 2 units of the last place, 0 below -87 and no more than e^88."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors = unpack(builder, value, args[0])
        emit = _exp_float32 if value.dtype.bitwidth == 32 else _named("exp")
        return pack(builder, value, [emit(builder, value, vector) for vector in vectors])

    return value(value), codegen


def _exp_float32(builder: Any, row: RowType, x: Any) -> Any:
    """2^n * e^r with n the nearest integer to x / ln 2 and e^r, |r| <= ln 2 / 2, by its Taylor series."""

    def number(v: float) -> ir.Constant:
        return ir.Constant(row.vector, [v] * row.lanes)

    clipped = _named("minimum")(builder, row, x, number(88.0))
    n = _named("rint")(builder, row, builder.fmul(clipped, number(1.4426950408889634)))
    # ln 2 in two parts, the first with so few bits that n times it is exact.
    r = fma(builder, row, n, number(-0.693359375), clipped)
    r = fma(builder, row, n, number(2.12194440e-4), r)
    total = number(1 / 5040)
    for factorial in (720, 120, 24, 6, 2, 1, 1):
        total = fma(builder, row, total, r, number(1 / factorial))
    exponent = builder.add(builder.fptosi(n, row.bits), ir.Constant(row.bits, [127] * row.lanes))
    power = builder.bitcast(builder.shl(exponent, ir.Constant(row.bits, [23] * row.lanes)), row.vector)
    tiny = builder.fcmp_ordered("<", x, number(-87.0))
    return builder.select(tiny, number(0.0), builder.fmul(total, power))


@intrinsic(prefer_literal=True)
def row_expand(typingctx: Any, value: Any, dim: Any) -> Any:
    """A Row of one number a group as a Row of `dim` columns, each with the number of its group of dim / groups."""
    if not isinstance(dim, types.IntegerLiteral):
        raise RequireLiteralValue("the width of a row must be a compile-time constant")
    result = RowType(value.dtype, dim.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        numbers, each = unpack(builder, value, args[0]), result.dim // value.dim
        vectors = []
        for index in range(result.count):
            groups = [min(index * result.lanes + lane, result.dim - 1) // each for lane in range(result.lanes)]
            # At most two source vectors: neighbouring columns lie in neighbouring groups.
            first = groups[0] // value.lanes
            left, right = numbers[first], numbers[min(first + 1, value.count - 1)]
            lanes = [ir.Constant(_I32, group - first * value.lanes) for group in groups]
            mask = ir.Constant(ir.VectorType(_I32, result.lanes), lanes)
            vectors.append(builder.shuffle_vector(left, right, mask))
        return pack(builder, result, vectors)

    return result(value, dim), codegen


@intrinsic(prefer_literal=True)
def row_group_sum(typingctx: Any, value: Any, groups: Any) -> Any:
    """The sums of `groups` equal runs of columns of a Row, as a Row; the inverse way of `row_expand`."""
    if not isinstance(groups, types.IntegerLiteral):
        raise RequireLiteralValue("the number of groups must be a compile-time constant")
    result = RowType(value.dtype, groups.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors, each = unpack(builder, value, args[0]), value.dim // result.dim
        zero = ir.Constant(result.vector, None)
        sums = [zero] * result.count
        for group in range(result.dim):
            first, last = group * each, group * each + each - 1
            total = None
            for index in range(first // value.lanes, last // value.lanes + 1):
                columns = range(index * value.lanes, (index + 1) * value.lanes)
                inside = [ir.Constant(ir.IntType(1), first <= column <= last) for column in columns]
                mask = ir.Constant(ir.VectorType(ir.IntType(1), value.lanes), inside)
                part = builder.select(mask, vectors[index], zero)
                total = part if total is None else builder.fadd(total, part)
            scalar, at = horizontal_sum(builder, value, total), group // result.lanes
            sums[at] = builder.insert_element(sums[at], scalar, ir.Constant(_I32, group % result.lanes))
        return pack(builder, result, sums)

    return result(value, groups), codegen


@intrinsic
def row_words(typingctx: Any, like: Any, array: Any, seed: Any, a: Any, b: Any, stream: Any, first: Any) -> Any:
    """What `row_round` needs to round a Row to what an array holds: the 32-bit words of elements (a, b, column) under a
    seed and a stream, see `_dropout`, for columns from `first` on, a multiple of 64, as the bits of a Row as wide."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if array.dtype != types.uint16:
            return ir.Constant(ir.ArrayType(like.vector, like.count), None)
        words = _column_words(builder, like, *args[2:])
        vectors = [builder.bitcast(builder.trunc(word, like.bits), like.vector) for word in words]
        return pack(builder, like, vectors[: like.count])

    i64 = types.int64
    return like(like, array, i64, i64, i64, i64, i64), codegen


@intrinsic
def row_random(typingctx: Any, like: Any, seed: Any, a: Any, b: Any, stream: Any, first: Any) -> Any:
    """A Row of uniform whole numbers within 0 and 2^24 - 1, which every type holds, as wide as another: the upper 24
    bits of the words that `row_words` takes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        words, eight = _column_words(builder, like, *args[1:]), ir.Constant(ir.VectorType(_I64, LANES), [8] * LANES)
        vectors = []
        for index in range(like.count):
            column = index * like.lanes
            part = [ir.Constant(_I32, column % LANES + lane) for lane in range(like.lanes)]
            upper = builder.trunc(builder.lshr(words[column // LANES], eight), ir.VectorType(_I32, LANES))
            upper = builder.shuffle_vector(upper, upper, ir.Constant(ir.VectorType(_I32, like.lanes), part))
            vectors.append(builder.sitofp(upper, like.vector))
        return pack(builder, like, vectors)

    i64 = types.int64
    return like(like, i64, i64, i64, i64, i64), codegen


def _column_words(builder: Any, row: RowType, seed: Any, a: Any, b: Any, stream: Any, first: Any) -> list[Any]:
    """The words of a row's columns from `first` on, a multiple of 64, in vectors of LANES 64-bit numbers."""
    numbers = [_every_lane(builder, word) for word in (a, b, stream)]
    # A group of 64 columns has 16 lanes.
    start = _every_lane(builder, builder.lshr(first, ir.Constant(_I64, 2)))
    words: list[Any] = []
    for group in range(-(-row.dim // GROUP)):
        own = ir.Constant(ir.VectorType(_I64, LANES), [group * LANES + lane for lane in range(LANES)])
        words += _words(builder, seed, [*numbers[:2], builder.add(start, own), numbers[2]])
    return words


@intrinsic(prefer_literal=True)
def row_round(typingctx: Any, value: Any, words: Any, shift: Any, array: Any) -> Any:
    """A Row rounded at random to what an array holds, if that is bfloat16: up with the probability of the part that is
    cut off, so that the mean is the value. 16 bits of every word decide, those from bit `shift` on. Infinities and NaN
    stay; a value beyond the largest bfloat16 may become infinite. Otherwise the value as it is."""
    if not isinstance(shift, types.IntegerLiteral):
        raise RequireLiteralValue("the shift must be a compile-time constant")

    def constant(number: int) -> ir.Constant:
        return ir.Constant(value.bits, [number] * value.lanes)

    def emit(builder: Any, row: RowType, x: Any, word: Any) -> Any:
        number = builder.bitcast(x, row.bits)
        random = builder.and_(
            builder.lshr(builder.bitcast(word, row.bits), constant(shift.literal_value)), constant(0xFFFF)
        )
        # A NaN could become a number by the sum. The low bits are cleared last: the compiler then sees that they are.
        nan = builder.fcmp_unordered("uno", x, x)
        chosen = builder.select(nan, builder.or_(number, constant(1 << 22)), builder.add(number, random))
        return builder.bitcast(builder.and_(chosen, constant(0xFFFF0000)), row.vector)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if array.dtype != types.uint16:
            return args[0]
        pairs = zip(unpack(builder, value, args[0]), unpack(builder, value, args[1]))
        return pack(builder, value, [emit(builder, value, x, word) for x, word in pairs])

    return value(value, value, shift, array), codegen
