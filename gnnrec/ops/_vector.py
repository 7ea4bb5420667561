"""Rows of a matrix in vector registers, for numba kernels.

Numba has no vector types and no prefetch. A `Row` is `dim` numbers held as LLVM vectors of 64 bytes, so that a sum over
neighbours keeps its accumulators in registers; every function below is emitted as straight-line LLVM code for one
`dim`, and the last, partial vector is loaded and stored under a mask, so any `dim` up to MAX_DIM works. Kernels walk
wider matrices in column blocks. All 2-d arrays need contiguous rows (any stride between rows).

Kernels are closures over `dim` and `_numba.VERSION`; see there.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import RequireLiteralValue, TypingError
from numba.extending import intrinsic as _intrinsic
from numba.extending import models, register_model

MAX_DIM = 256  # 16 accumulators of 16 floats: half of the AVX-512 registers
PREFETCH_DISTANCE = 16  # rows ahead; 8 was 16 % slower on Gowalla's graph with dim 64

intrinsic: Any = _intrinsic  # what it decorates is called from kernels, without the typing context
_I32, _I64 = ir.IntType(32), ir.IntType(64)


class RowType(types.Type):
    """Numba type of a row in registers."""

    def __init__(self, dtype: Any, dim: int) -> None:
        self.dtype, self.dim = dtype, dim
        self.lanes: int = 64 // (dtype.bitwidth // 8)
        super().__init__(name=f"Row({dtype}, {dim})")

    @property
    def count(self) -> int:
        """Number of vectors."""
        return -(-self.dim // self.lanes)

    @property
    def vector(self) -> ir.VectorType:
        return ir.VectorType(_float_type(self.dtype), self.lanes)


@register_model(RowType)
class _RowModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: RowType) -> None:
        super().__init__(dmm, fe_type, ir.ArrayType(fe_type.vector, fe_type.count))  # type: ignore[no-untyped-call]


def _float_type(dtype: Any) -> ir.Type:
    return {32: ir.FloatType(), 64: ir.DoubleType()}[dtype.bitwidth]


def _row_type(array: Any, dim: Any) -> RowType:
    if not isinstance(dim, types.IntegerLiteral):
        raise RequireLiteralValue("the width of a row must be a compile-time constant")
    if not (isinstance(array, types.Array) and array.dtype in (types.float32, types.float64)):
        raise TypingError(f"rows are taken from float32 or float64 arrays, not {array}")
    return RowType(array.dtype, dim.literal_value)


def _row_pointer(context: Any, builder: Any, array_type: Any, array: Any, row: Any) -> Any:
    """Pointer to element [row, 0], by byte strides."""
    view = context.make_array(array_type)(context, builder, array)
    stride = builder.extract_value(view.strides, 0)
    address = builder.add(builder.ptrtoint(view.data, _I64), builder.mul(row, stride))
    return builder.inttoptr(address, view.data.type)


def _declare(builder: Any, name: str, result: ir.Type, args: list[ir.Type]) -> Any:
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, args), name)


def _tail_mask(row: RowType, index: int) -> ir.Constant | None:
    """Mask of the last vector where it is partial, else None."""
    used = min(row.lanes, row.dim - index * row.lanes)
    if used == row.lanes:
        return None
    bits = [ir.Constant(ir.IntType(1), lane < used) for lane in range(row.lanes)]
    return ir.Constant(ir.VectorType(ir.IntType(1), row.lanes), bits)


def _vector_pointer(builder: Any, row: RowType, base: Any, index: int) -> Any:
    element = builder.gep(base, [ir.Constant(_I64, index * row.lanes)])
    return builder.bitcast(element, row.vector.as_pointer())


def _load_vectors(builder: Any, row: RowType, base: Any) -> list[Any]:
    vectors, align = [], row.dtype.bitwidth // 8
    for index in range(row.count):
        pointer, mask = _vector_pointer(builder, row, base, index), _tail_mask(row, index)
        if mask is None:
            value = builder.load(pointer)
            value.align = align
        else:
            suffix = f"v{row.lanes}f{row.dtype.bitwidth}"
            function = _declare(
                builder,
                f"llvm.masked.load.{suffix}.p0",
                row.vector,
                [pointer.type, _I32, mask.type, row.vector],
            )
            value = builder.call(function, [pointer, ir.Constant(_I32, align), mask, ir.Constant(row.vector, None)])
        vectors.append(value)
    return vectors


def _splat(builder: Any, row: RowType, scalar: Any) -> Any:
    one = builder.insert_element(ir.Constant(row.vector, ir.Undefined), scalar, ir.Constant(_I32, 0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_I32, row.lanes), None))


def _fma(builder: Any, row: RowType, a: Any, b: Any, c: Any) -> Any:
    suffix = f"v{row.lanes}f{row.dtype.bitwidth}"
    function = _declare(builder, f"llvm.fma.{suffix}", row.vector, [row.vector] * 3)
    return builder.call(function, [a, b, c])


def _pack(builder: Any, row: RowType, vectors: list[Any]) -> Any:
    packed = ir.Constant(ir.ArrayType(row.vector, row.count), ir.Undefined)
    for index, vector in enumerate(vectors):
        packed = builder.insert_value(packed, vector, index)
    return packed


def _unpack(builder: Any, row: RowType, packed: Any) -> list[Any]:
    return [builder.extract_value(packed, index) for index in range(row.count)]


def _prefetch(builder: Any, row: RowType, base: Any) -> None:
    byte = ir.IntType(8).as_pointer()
    function = _declare(builder, "llvm.prefetch.p0", ir.VoidType(), [byte, _I32, _I32, _I32])
    read, locality, data = ir.Constant(_I32, 0), ir.Constant(_I32, 3), ir.Constant(_I32, 1)
    for index in range(row.count):  # a vector is a cache line
        pointer = builder.gep(base, [ir.Constant(_I64, index * row.lanes)])
        builder.call(function, [builder.bitcast(pointer, byte), read, locality, data])


def can_stream(array: Any) -> bool:
    """Whether every row of the 2-d numpy array is aligned as streaming stores need it."""
    return bool(array.ctypes.data % 64 == 0 and array.strides[0] % 64 == 0)


@intrinsic(prefer_literal=True)
def row_load(typingctx: Any, array: Any, row: Any, dim: Any) -> Any:
    """array[row, :dim] as a Row."""
    result = _row_type(array, dim)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        base = _row_pointer(context, builder, array, args[0], args[1])
        return _pack(builder, result, _load_vectors(builder, result, base))

    return result(array, types.int64, dim), codegen


@intrinsic
def row_store(typingctx: Any, array: Any, row: Any, value: Any, stream: Any) -> Any:
    """array[row, :dim] = value. With stream=True whole vectors go past the caches: the array's rows must then be
    aligned to 64 bytes, and the writing thread must call `fence` before others read."""
    if not isinstance(stream, types.BooleanLiteral):
        raise RequireLiteralValue("stream must be a compile-time constant")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        base = _row_pointer(context, builder, array, args[0], args[1])
        nontemporal = builder.module.add_metadata([ir.Constant(_I32, 1)])
        align = value.dtype.bitwidth // 8
        for index, vector in enumerate(_unpack(builder, value, args[2])):
            pointer, mask = _vector_pointer(builder, value, base, index), _tail_mask(value, index)
            if mask is None:
                store = builder.store(vector, pointer)
                store.align = align
                if stream.literal_value:
                    store.align = 64
                    store.set_metadata("nontemporal", nontemporal)
            else:
                suffix = f"v{value.lanes}f{value.dtype.bitwidth}"
                args_types = [value.vector, pointer.type, _I32, mask.type]
                function = _declare(builder, f"llvm.masked.store.{suffix}.p0", ir.VoidType(), args_types)
                builder.call(function, [vector, pointer, ir.Constant(_I32, align), mask])
        return context.get_dummy_value()

    return types.void(array, types.int64, value, stream), codegen


@intrinsic
def row_scale(typingctx: Any, value: Any, factor: Any) -> Any:
    """value * factor."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        splat = _splat(builder, value, args[1])
        return _pack(builder, value, [builder.fmul(v, splat) for v in _unpack(builder, value, args[0])])

    return value(value, value.dtype), codegen


@intrinsic
def row_fma(typingctx: Any, value: Any, factor: Any, addend: Any) -> Any:
    """value * factor + addend, rounded once."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        splat = _splat(builder, value, args[1])
        pairs = zip(_unpack(builder, value, args[0]), _unpack(builder, value, args[2]))
        return _pack(builder, value, [_fma(builder, value, v, splat, a) for v, a in pairs])

    return value(value, value.dtype, value), codegen


@intrinsic(prefer_literal=True)
def row_gather_sum(typingctx: Any, array: Any, indices: Any, start: Any, stop: Any, weights: Any, dim: Any) -> Any:
    """sum over k in [start, stop) of weights[indices[k]] * array[indices[k], :dim], left to right; weights may be None.

    The rows that come PREFETCH_DISTANCE later are prefetched, beyond this row's end too: they are the next row's.
    """
    result = _row_type(array, dim)
    weighted = not isinstance(weights, types.NoneType)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, index_array, first, last, weight_array, _ = args
        index_view = context.make_array(indices)(context, builder, index_array)
        weight_view = context.make_array(weights)(context, builder, weight_array) if weighted else None
        last_index = builder.sub(builder.extract_value(index_view.shape, 0), ir.Constant(_I64, 1))

        def neighbour(k: Any) -> Any:
            return builder.sext(builder.load(builder.gep(index_view.data, [k])), _I64)

        entry = builder.basic_block
        body, done = builder.append_basic_block("gather"), builder.append_basic_block("gathered")
        zero = ir.Constant(result.vector, None)
        builder.cbranch(builder.icmp_signed("<", first, last), body, done)

        builder.position_at_end(body)
        k = builder.phi(_I64)
        k.add_incoming(first, entry)
        sums = [builder.phi(result.vector) for _ in range(result.count)]
        for total in sums:
            total.add_incoming(zero, entry)
        ahead = builder.add(k, ir.Constant(_I64, PREFETCH_DISTANCE))
        ahead = builder.select(builder.icmp_signed("<", ahead, last_index), ahead, last_index)
        _prefetch(builder, result, _row_pointer(context, builder, array, x, neighbour(ahead)))
        j = neighbour(k)
        vectors = _load_vectors(builder, result, _row_pointer(context, builder, array, x, j))
        if weight_view is None:
            updated = [builder.fadd(total, v) for total, v in zip(sums, vectors)]
        else:
            splat = _splat(builder, result, builder.load(builder.gep(weight_view.data, [j])))
            updated = [_fma(builder, result, v, splat, total) for total, v in zip(sums, vectors)]
        following = builder.add(k, ir.Constant(_I64, 1))
        builder.cbranch(builder.icmp_signed("<", following, last), body, done)
        tail = builder.basic_block
        k.add_incoming(following, tail)
        for total, new in zip(sums, updated):
            total.add_incoming(new, tail)

        builder.position_at_end(done)
        results = []
        for new in updated:
            total = builder.phi(result.vector)
            total.add_incoming(zero, entry)
            total.add_incoming(new, tail)
            results.append(total)
        return _pack(builder, result, results)

    return result(array, indices, types.int64, types.int64, weights, dim), codegen


@intrinsic
def fence(typingctx: Any) -> Any:
    """Order this thread's streaming stores before whatever it does next."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen
