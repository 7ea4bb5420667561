"""Rows of a matrix in vector registers, for numba kernels.

Numba has no vector types and no prefetch. A `Row` is `dim` numbers held as LLVM vectors of 64 bytes, so that a sum over
neighbours keeps its accumulators in registers; every function below is emitted as straight-line LLVM code for one
`dim`, and the last, partial vector is loaded and stored under a mask, so any `dim` up to MAX_DIM works. Kernels walk
wider matrices in column blocks. All 2-d arrays need contiguous rows (any stride between rows).

Arrays hold float32, float64, bfloat16 as uint16 (numpy has none) or float16 as int16 (numba has none). A row of halves
is a row of float32 in registers; storing rounds it to the array's type. Lanes beyond `dim` are undefined in the last
vector of a computed row.

Kernels are closures over `dim` and `_numba.VERSION`; see there. What is compiled for itself and called by kernels
cannot have `dim` as a constant: there a Row stands for it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import RequireLiteralValue, TypingError
from numba.extending import intrinsic as _intrinsic
from numba.extending import models, register_model

from gnnrec.graph.schedule import prefetch_distance

MAX_DIM = 256  # 16 accumulators of 16 floats: half of the AVX-512 registers
LINE = 64  # bytes of a cache line and of a vector

intrinsic: Any = _intrinsic  # what it decorates is called from kernels, without the typing context
_I8, _I16, _I32, _I64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_STORED = {types.float32: types.float32, types.float64: types.float64}
_STORED |= {types.int16: types.float32, types.uint16: types.float32}  # what halves are in registers


class RowType(types.Type):
    """Numba type of a row in registers."""

    def __init__(self, dtype: Any, dim: int) -> None:
        self.dtype, self.dim = dtype, dim
        self.lanes: int = LINE // (dtype.bitwidth // 8)
        super().__init__(name=f"Row({dtype}, {dim})")

    @property
    def count(self) -> int:
        """Number of vectors."""
        return -(-self.dim // self.lanes)

    @property
    def vector(self) -> ir.VectorType:
        return ir.VectorType(_float_type(self.dtype), self.lanes)

    @property
    def bits(self) -> ir.VectorType:
        """The vector's numbers as integers."""
        return ir.VectorType(ir.IntType(self.dtype.bitwidth), self.lanes)

    @property
    def suffix(self) -> str:
        """How LLVM names the vector in intrinsics."""
        return f"v{self.lanes}f{self.dtype.bitwidth}"


@register_model(RowType)
class _RowModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: RowType) -> None:
        super().__init__(dmm, fe_type, ir.ArrayType(fe_type.vector, fe_type.count))  # type: ignore[no-untyped-call]


def _float_type(dtype: Any) -> ir.Type:
    return {32: ir.FloatType(), 64: ir.DoubleType()}[dtype.bitwidth]


def row_type(array: Any, dim: Any) -> RowType:
    """The type of a row of the first `dim` columns of an array type; `dim` is a constant, or a Row as wide."""
    if not isinstance(dim, types.IntegerLiteral | RowType):
        raise RequireLiteralValue("the width of a row must be a compile-time constant or a Row")
    if not (isinstance(array, types.Array) and array.dtype in _STORED):
        raise TypingError(
            f"rows are taken from float32, float64, uint16 (bfloat16) or int16 (float16) arrays, not {array}"
        )
    return RowType(_STORED[array.dtype], dim.dim if isinstance(dim, RowType) else dim.literal_value)


def row_pointer(context: Any, builder: Any, array_type: Any, array: Any, row: Any) -> Any:
    """Byte pointer to element [row, 0], by byte strides."""
    view = context.make_array(array_type)(context, builder, array)
    stride = builder.extract_value(view.strides, 0)
    return builder.gep(builder.bitcast(view.data, _I8.as_pointer()), [builder.mul(row, stride)])


def declare(builder: Any, name: str, result: ir.Type, args: list[ir.Type]) -> Any:
    """An LLVM intrinsic of that signature."""
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, args), name)


def tail_mask(row: RowType, index: int) -> ir.Constant | None:
    """Mask of the last vector where it is partial, else None."""
    used = min(row.lanes, row.dim - index * row.lanes)
    if used == row.lanes:
        return None
    bits = [ir.Constant(ir.IntType(1), lane < used) for lane in range(row.lanes)]
    return ir.Constant(ir.VectorType(ir.IntType(1), row.lanes), bits)


def _memory_type(array: Any, row: RowType) -> ir.VectorType:
    """A vector's numbers as the array holds them; halves as integers."""
    return row.vector if array.dtype.bitwidth == row.dtype.bitwidth else ir.VectorType(_I16, row.lanes)


def _memory_suffix(array: Any, row: RowType) -> str:
    return row.suffix if array.dtype.bitwidth == row.dtype.bitwidth else f"v{row.lanes}i16"


def _widen(builder: Any, array: Any, row: RowType, value: Any) -> Any:
    """From memory to registers."""
    if array.dtype == types.int16:
        return builder.fpext(builder.bitcast(value, ir.VectorType(ir.HalfType(), row.lanes)), row.vector)
    if array.dtype == types.uint16:
        shifted = builder.shl(builder.zext(value, row.bits), ir.Constant(row.bits, [16] * row.lanes))
        return builder.bitcast(shifted, row.vector)
    return value


def _narrow(builder: Any, array: Any, row: RowType, value: Any) -> Any:
    """From registers to memory, rounded to nearest even."""
    if array.dtype == types.int16:
        half = builder.fptrunc(value, ir.VectorType(ir.HalfType(), row.lanes))
        return builder.bitcast(half, ir.VectorType(_I16, row.lanes))
    if array.dtype == types.uint16:

        def constant(number: int) -> ir.Constant:
            return ir.Constant(row.bits, [number] * row.lanes)

        bits = builder.bitcast(value, row.bits)
        top = builder.lshr(bits, constant(16))
        odd = builder.and_(top, constant(1))
        rounded = builder.lshr(builder.add(bits, builder.add(odd, constant(0x7FFF))), constant(16))
        nan = builder.fcmp_unordered("uno", value, value)
        chosen = builder.select(nan, builder.or_(top, constant(0x40)), rounded)
        return builder.trunc(chosen, ir.VectorType(_I16, row.lanes))
    return value


def _vector_pointer(builder: Any, array: Any, row: RowType, base: Any, index: int) -> Any:
    offset = index * row.lanes * (array.dtype.bitwidth // 8)
    pointer = builder.gep(base, [ir.Constant(_I64, offset)])
    return builder.bitcast(pointer, _memory_type(array, row).as_pointer())


def load_vectors(builder: Any, array: Any, row: RowType, base: Any) -> list[Any]:
    """The vectors of the row at a byte pointer; lanes beyond `dim` are 0."""
    vectors, align, memory = [], array.dtype.bitwidth // 8, _memory_type(array, row)
    for index in range(row.count):
        pointer, mask = _vector_pointer(builder, array, row, base, index), tail_mask(row, index)
        if mask is None:
            value = builder.load(pointer)
            value.align = align
        else:
            name = f"llvm.masked.load.{_memory_suffix(array, row)}.p0"
            function = declare(builder, name, memory, [pointer.type, _I32, mask.type, memory])
            value = builder.call(function, [pointer, ir.Constant(_I32, align), mask, ir.Constant(memory, None)])
        vectors.append(_widen(builder, array, row, value))
    return vectors


def splat(builder: Any, row: RowType, scalar: Any) -> Any:
    """A vector of one number."""
    one = builder.insert_element(ir.Constant(row.vector, ir.Undefined), scalar, ir.Constant(_I32, 0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_I32, row.lanes), None))


def fma(builder: Any, row: RowType, a: Any, b: Any, c: Any) -> Any:
    """a * b + c of vectors, rounded once."""
    return builder.call(declare(builder, f"llvm.fma.{row.suffix}", row.vector, [row.vector] * 3), [a, b, c])


def pack(builder: Any, row: RowType, vectors: list[Any]) -> Any:
    """Vectors as the value of a Row."""
    packed = ir.Constant(ir.ArrayType(row.vector, row.count), ir.Undefined)
    for index, vector in enumerate(vectors):
        packed = builder.insert_value(packed, vector, index)
    return packed


def unpack(builder: Any, row: RowType, packed: Any) -> list[Any]:
    """The vectors of a Row."""
    return [builder.extract_value(packed, index) for index in range(row.count)]


def horizontal_sum(builder: Any, row: RowType, vector: Any) -> Any:
    """The sum of a vector's lanes, halves folded onto each other."""
    width = row.lanes // 2
    while width:
        lanes = [ir.Constant(_I32, lane + width if lane < width else lane) for lane in range(row.lanes)]
        mask = ir.Constant(ir.VectorType(_I32, row.lanes), lanes)
        vector = builder.fadd(vector, builder.shuffle_vector(vector, vector, mask))
        width //= 2
    return builder.extract_element(vector, ir.Constant(_I32, 0))


def without_tail(builder: Any, row: RowType, vectors: list[Any]) -> list[Any]:
    """The vectors with 0 in lanes beyond `dim`."""
    mask = tail_mask(row, row.count - 1)
    if mask is None:
        return vectors
    return [*vectors[:-1], builder.select(mask, vectors[-1], ir.Constant(row.vector, None))]


def _prefetch(builder: Any, array: Any, row: RowType, base: Any) -> None:
    function = declare(builder, "llvm.prefetch.p0", ir.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32])
    read, locality, data = ir.Constant(_I32, 0), ir.Constant(_I32, 3), ir.Constant(_I32, 1)
    for offset in range(0, row.dim * (array.dtype.bitwidth // 8), LINE):
        builder.call(function, [builder.gep(base, [ir.Constant(_I64, offset)]), read, locality, data])


def can_stream(array: Any) -> bool:
    """Whether every row of the 2-d numpy array is aligned as streaming stores need it."""
    return bool(array.ctypes.data % LINE == 0 and array.strides[0] % LINE == 0)


@intrinsic
def at(typingctx: Any, array: Any, k: Any) -> Any:
    """array[k] of a contiguous 1-d array without the check for a negative k; integers as int64."""
    integer = isinstance(array.dtype, types.Integer)
    result = types.int64 if integer else array.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        view = context.make_array(array)(context, builder, args[0])
        value = builder.load(builder.gep(view.data, [args[1]]))
        return builder.sext(value, _I64) if integer and array.dtype.bitwidth < 64 else value

    return result(array, types.int64), codegen


@intrinsic(prefer_literal=True)
def row_zero(typingctx: Any, array: Any, dim: Any) -> Any:
    """A Row of zeros, as wide and of the type as array[:, :dim] has them in registers."""
    result = row_type(array, dim)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(ir.ArrayType(result.vector, result.count), None)

    return result(array, dim), codegen


@intrinsic(prefer_literal=True)
def row_load(typingctx: Any, array: Any, row: Any, dim: Any) -> Any:
    """array[row, :dim] as a Row."""
    result = row_type(array, dim)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        base = row_pointer(context, builder, array, args[0], args[1])
        return pack(builder, result, load_vectors(builder, array, result, base))

    return result(array, types.int64, dim), codegen


@intrinsic(prefer_literal=True)
def row_prefetch(typingctx: Any, array: Any, row: Any, dim: Any) -> Any:
    """Ask for array[row, :dim], which must exist, to be brought into the caches."""
    kind = row_type(array, dim)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _prefetch(builder, array, kind, row_pointer(context, builder, array, args[0], args[1]))
        return context.get_dummy_value()

    return types.void(array, types.int64, dim), codegen


@intrinsic
def row_store(typingctx: Any, array: Any, row: Any, value: Any, stream: Any) -> Any:
    """array[row, :dim] = value. With stream=True whole vectors go past the caches: the array's rows must then be
    aligned to 64 bytes, and the writing thread must call `fence` before others read."""
    if not isinstance(stream, types.BooleanLiteral):
        raise RequireLiteralValue("stream must be a compile-time constant")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        base = row_pointer(context, builder, array, args[0], args[1])
        nontemporal = builder.module.add_metadata([ir.Constant(_I32, 1)])
        align = array.dtype.bitwidth // 8
        for index, vector in enumerate(unpack(builder, value, args[2])):
            pointer, mask = _vector_pointer(builder, array, value, base, index), tail_mask(value, index)
            narrow = _narrow(builder, array, value, vector)
            if mask is None:
                store = builder.store(narrow, pointer)
                store.align = align
                if stream.literal_value:
                    store.align = value.lanes * align
                    store.set_metadata("nontemporal", nontemporal)
            elif value.dim % value.lanes == 1:
                # LLVM would make a masked store of one rounded half 32 bits wide.
                number = builder.extract_element(narrow, ir.Constant(_I32, 0))
                builder.store(number, builder.bitcast(pointer, number.type.as_pointer())).align = align
            else:
                name = f"llvm.masked.store.{_memory_suffix(array, value)}.p0"
                function = declare(builder, name, ir.VoidType(), [narrow.type, pointer.type, _I32, mask.type])
                builder.call(function, [narrow, pointer, ir.Constant(_I32, align), mask])
        return context.get_dummy_value()

    return types.void(array, types.int64, value, stream), codegen


@intrinsic(prefer_literal=True)
def row_gather_sum(typingctx: Any, array: Any, indices: Any, start: Any, stop: Any, weights: Any, dim: Any) -> Any:
    """sum over k in [start, stop) of weights[indices[k]] * array[indices[k], :dim], left to right; weights may be None.

    The rows that come `prefetch_distance` later are prefetched, beyond this row's end too: they are the next row's.
    """
    return _gather_sum(array, indices, weights, row_type(array, dim), [dim])


@intrinsic(prefer_literal=True)
def row_gather_sum_ahead(
    typingctx: Any, array: Any, indices: Any, start: Any, stop: Any, weights: Any, dim: Any, distance: Any
) -> Any:
    """The same with rows prefetched at a given distance."""
    return _gather_sum(array, indices, weights, row_type(array, dim), [dim, types.int64])


@intrinsic(prefer_literal=True)
def row_gather_sum_placed(
    typingctx: Any, array: Any, places: Any, indices: Any, count: Any, weights: Any, dim: Any, distance: Any
) -> Any:
    """The same over the first `count` indices, of rows array[places[indices[k]]]."""
    return _gather_sum(array, indices, weights, row_type(array, dim), [dim, types.int64], places)


def _gather_sum(
    array: Any, indices: Any, weights: Any, result: RowType, rest: list[Any], places: Any | None = None
) -> Any:
    weighted = not isinstance(weights, types.NoneType)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if places is None:
            x, index_array, first, last, weight_array, _, *given = args
        else:
            x, place_array, index_array, last, weight_array, _, *given = args
            first, place_view = ir.Constant(_I64, 0), context.make_array(places)(context, builder, place_array)
        row_bytes = result.dim * (array.dtype.bitwidth // 8)
        distance = given[0] if given else ir.Constant(_I64, prefetch_distance(row_bytes))
        index_view = context.make_array(indices)(context, builder, index_array)
        weight_view = context.make_array(weights)(context, builder, weight_array) if weighted else None
        count = builder.extract_value(index_view.shape, 0) if places is None else last  # beyond it nothing is listed
        last_index = builder.sub(count, ir.Constant(_I64, 1))

        def neighbour(k: Any) -> Any:
            found = builder.load(builder.gep(index_view.data, [k]))
            if places is not None:
                found = builder.load(builder.gep(place_view.data, [builder.sext(found, _I64)]))
            return builder.sext(found, _I64)

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
        ahead = builder.add(k, distance)
        ahead = builder.select(builder.icmp_signed("<", ahead, last_index), ahead, last_index)
        _prefetch(builder, array, result, row_pointer(context, builder, array, x, neighbour(ahead)))
        j = neighbour(k)
        vectors = load_vectors(builder, array, result, row_pointer(context, builder, array, x, j))
        if weight_view is None:
            updated = [builder.fadd(total, v) for total, v in zip(sums, vectors)]
        else:
            scale = splat(builder, result, builder.load(builder.gep(weight_view.data, [j])))
            updated = [fma(builder, result, v, scale, total) for total, v in zip(sums, vectors)]
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
        return pack(builder, result, results)

    if places is not None:
        return result(array, places, indices, types.int64, weights, *rest), codegen
    return result(array, indices, types.int64, types.int64, weights, *rest), codegen


@intrinsic
def fence(typingctx: Any) -> Any:
    """Order this thread's streaming stores before whatever it does next."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen
