"""Dropout whose decisions are a function of (seed, element): a backward pass draws them again, nothing is stored.

An element is named by a stream, two numbers a and b below 2^32, and a column. Its 32-bit word is number
column % 64 // 16 of the four that Philox4x32-10 makes of the counter words (a, b, column // 64 * 16 + column % 16,
stream) under the seed, so that 16 lanes of Philox decide 64 columns. It is kept where word >= p * 2^32, and then scaled
by 1 / (1 - p). Streams keep the decisions of one seed apart; the names of elements are the operator's:

- a message's column: a = row, b = 0;
- an entry of a matrix: a = its row, b = its column, column 0. Both passes, over the matrix and over its transpose, know
  them, so none needs the other's order. Entries that repeat (row, column) share their decision;
- an attention weight: a = row, b = column, one column a head.

Outside kernels: `check_probability`, `draw_seed`, `threshold`, and the oracles `words` and `keep`. In kernels:
`row_dropout` on a Row, `kept_entries` on the entries of a row.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from llvmlite import ir
from numba import types

from gnnrec.ops._numba import inline
from gnnrec.ops._vector import RowType, at, declare, intrinsic, pack, splat, unpack

LANES = 16  # of Philox at once
GROUP = 4 * LANES  # columns that they decide

_I1, _I32, _I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(_I64, LANES)
_LOW = 0xFFFFFFFF
_MULTIPLIERS, _WEYL = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def check_probability(operator: str, name: str, p: float) -> None:
    """Raise a ValueError that says what was received unless p lies in [0, 1)."""
    if not 0 <= p < 1:
        raise ValueError(f"{operator}: {name} must lie in [0, 1), got {p}")


def draw_seed(given: torch.Tensor | None = None, what: str = "dropout") -> torch.Tensor:
    """The given seed, or one from torch's default generator: int64, 0-d, not negative, on the CPU.

    Raises:
        ValueError: something else was given; a CUDA graph is being captured, which would draw the same in every replay.
    """
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise ValueError(f"{what}: a CUDA graph would draw the same numbers in every replay; capture without {what}")
    if given is None:
        return torch.randint(2**63 - 1, ())
    if not isinstance(given, torch.Tensor):
        raise ValueError(f"{what}: seed must be a torch.Tensor, got {type(given).__name__}")
    if (given.dtype, given.device.type, given.dim()) != (torch.int64, "cpu", 0):
        found = f"{given.dtype} {list(given.shape)} on {given.device}"
        raise ValueError(f"{what}: seed must be torch.int64 [] on the CPU, got {found}")
    return given


def threshold(p: float) -> int:
    """The smallest word that is kept."""
    return math.ceil(p * 2**32)


def words(seed: int, a: torch.Tensor, b: torch.Tensor, stream: int, columns: int) -> torch.Tensor:
    """The words in plain torch: int64 [*shape, columns] for int64 a and b of a common shape."""
    column = torch.arange(columns)
    shape = torch.broadcast_shapes(a[..., None].shape, b[..., None].shape, column.shape)
    lane = column // GROUP * LANES + column % LANES
    c0, c1, c2, c3 = (c.expand(shape) for c in (a[..., None], b[..., None], lane, torch.tensor(stream)))
    k0, k1 = seed & _LOW, seed >> 32
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]  # modulo 2^64, whose bits are right
        c0, c1 = (p1 >> 32 & _LOW) ^ c1 ^ k0, p1 & _LOW
        c2, c3 = (p0 >> 32 & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = k0 + _WEYL[0] & _LOW, k1 + _WEYL[1] & _LOW
    return torch.stack([c0, c1, c2, c3]).gather(0, (column % GROUP // LANES).expand(1, *shape))[0]


def keep(seed: int, a: torch.Tensor, b: torch.Tensor, stream: int, columns: int, p: float) -> torch.Tensor:
    """What is kept, in plain torch: bool [*shape, columns]; a and b as for `words`."""
    return words(seed, a, b, stream, columns) >= threshold(p)


def _every_lane(builder: Any, scalar: Any) -> Any:
    one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), scalar, ir.Constant(_I32, 0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_I32, LANES), None))


def _words(builder: Any, seed: Any, counter: list[Any]) -> list[Any]:
    """Four vectors of words for four vectors of counter words.

    Words are the low halves of 64-bit lanes, whose high halves are cleared only where they would count: then a product
    is one instruction.
    """

    def constant(number: int) -> ir.Constant:
        return ir.Constant(_VECTOR, [number] * LANES)

    def low(value: Any) -> Any:
        return builder.and_(value, constant(_LOW))

    def high(value: Any) -> Any:
        return builder.lshr(value, constant(32))

    keys = [builder.and_(seed, ir.Constant(_I64, _LOW)), builder.lshr(seed, ir.Constant(_I64, 32))]
    c0, c1, c2, c3 = counter
    for _ in range(_ROUNDS):
        p0 = builder.mul(low(c0), constant(_MULTIPLIERS[0]))
        p1 = builder.mul(low(c2), constant(_MULTIPLIERS[1]))
        k0, k1 = (_every_lane(builder, key) for key in keys)
        c0, c1 = builder.xor(builder.xor(high(p1), c1), k0), p1
        c2, c3 = builder.xor(builder.xor(high(p0), c3), k1), p0
        keys = [builder.add(key, ir.Constant(_I64, step)) for key, step in zip(keys, _WEYL)]
    return [low(word) for word in (c0, c1, c2, c3)]


@intrinsic
def row_dropout(typingctx: Any, value: Any, seed: Any, a: Any, b: Any, stream: Any, threshold: Any, scale: Any) -> Any:
    """A Row with the columns that (seed, stream, a, b) drops as 0 and the others times scale, a number of its type;
    threshold is that of a probability. The same columns whatever the Row's type."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        packed, key, first, second, stream_word, limit, factor = args
        row: RowType = value
        limits, factors, zero = _every_lane(builder, limit), splat(builder, row, factor), ir.Constant(row.vector, None)
        words: list[Any] = []
        for group in range(-(-row.dim // GROUP)):
            lanes = ir.Constant(_VECTOR, [group * LANES + lane for lane in range(LANES)])
            a_words, b_words, stream_words = (_every_lane(builder, word) for word in (first, second, stream_word))
            words += _words(builder, key, [a_words, b_words, lanes, stream_words])
        vectors = []
        for index, vector in enumerate(unpack(builder, row, packed)):
            first_column = index * row.lanes
            kept = builder.icmp_unsigned(">=", words[first_column // LANES], limits)
            if row.lanes != LANES:
                part = [ir.Constant(_I32, first_column % LANES + lane) for lane in range(row.lanes)]
                kept = builder.shuffle_vector(kept, kept, ir.Constant(ir.VectorType(_I32, row.lanes), part))
            vectors.append(builder.select(kept, builder.fmul(vector, factors), zero))
        return pack(builder, row, vectors)

    i64 = types.int64
    return value(value, i64, i64, i64, i64, i64, value.dtype), codegen


@intrinsic
def _kept_lanes(
    typingctx: Any,
    indices: Any,
    k: Any,
    stop: Any,
    row: Any,
    transposed: Any,
    seed: Any,
    stream: Any,
    threshold: Any,
) -> Any:
    """Bit l is set where entry k + l of a row comes before `stop` and is kept; see `kept_entries`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        index_array, first, end, row_word, swap, key, stream_word, limit = args
        view = context.make_array(indices)(context, builder, index_array)
        narrow = ir.VectorType(_I32, LANES)
        pointer = builder.bitcast(builder.gep(view.data, [first]), narrow.as_pointer())
        numbers = ir.Constant(_VECTOR, list(range(LANES)))
        inside = builder.icmp_signed("<", numbers, _every_lane(builder, builder.sub(end, first)))
        load = declare(builder, "llvm.masked.load.v16i32.p0", narrow, [pointer.type, _I32, inside.type, narrow])
        loaded = builder.call(load, [pointer, ir.Constant(_I32, 4), inside, ir.Constant(narrow, None)])
        columns, rows = builder.zext(loaded, _VECTOR), _every_lane(builder, row_word)
        a, b = builder.select(swap, columns, rows), builder.select(swap, rows, columns)
        word = _words(builder, key, [a, b, ir.Constant(_VECTOR, None), _every_lane(builder, stream_word)])[0]
        kept = builder.icmp_unsigned(">=", word, _every_lane(builder, limit))
        return builder.zext(builder.bitcast(builder.and_(kept, inside), ir.IntType(LANES)), _I64)

    i64 = types.int64
    return i64(indices, i64, i64, i64, types.boolean, i64, i64, i64), codegen


@inline
def kept_entries(
    indices: Any,
    start: Any,
    stop: Any,
    row: Any,
    transposed: Any,
    seed: Any,
    stream: Any,
    threshold: Any,
    kept: Any,
    count: Any,
) -> Any:
    """Write the columns indices[start:stop] of a row's kept entries, in their order, to kept[count:].

    Args:
        indices: int32 [nnz] of a matrix, or, where `transposed`, of its transpose, whose rows are the matrix's columns.
        kept: int32, with room for all the entries that it is offered.

    Returns:
        The end of what is written.
    """
    for k in range(start, stop, LANES):
        mask = _kept_lanes(indices, k, stop, row, transposed, seed, stream, threshold)
        for lane in range(min(LANES, stop - k)):
            kept[count] = at(indices, k + lane)
            count += (mask >> lane) & 1
    return count
