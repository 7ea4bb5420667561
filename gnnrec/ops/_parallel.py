"""Kernels that all threads run, and how their items come to threads.

    @kernel
    def run(team, x, out):
        for item in items(team):
            ...

    run(total, x, out)  # fills out

Every thread calls the function; it takes the next of the `total` items as it becomes free. numba's own parallel loops
give every thread an equal number of consecutive items beforehand, and all wait for the slowest: with 2 threads, spmm on
Gowalla's graph took 1.2 times as long. They also compile what is in the loop twice: kernels took twice as long to
compile. What an item computes must not depend on who takes it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.caching import FunctionCache
from numba.np.ufunc import parallel

from gnnrec.ops._numba import VERSION, inline, inline_always, njit
from gnnrec.ops._vector import intrinsic

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_POINTER, _POINTERS, _SIZES = _I8.as_pointer(), _I8.as_pointer().as_pointer(), _I64.as_pointer()


class Team(NamedTuple):
    """What a thread knows of a kernel's call.

    Args:
        taken: where the number of items that are taken is counted.
        total: items.
        thread: its number; threads: how many there are.
    """

    taken: int
    total: int
    thread: int
    threads: int


_TEAM = types.NamedUniTuple(types.int64, len(Team._fields), Team)


class _Cache(FunctionCache):
    """By the function's file, name and closure, and by the version of what all kernels call."""

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        return *super()._index_key(sig, codegen), VERSION  # type: ignore[no-untyped-call]


def kernel(function: Any) -> Callable[..., None]:
    """Compile function(team, *arguments), which returns nothing, for every thread to call; what comes out takes the
    number of items in the team's place. It runs without the interpreter's lock, never divides by zero in a way that
    Python's check would catch, and takes no more threads than there are items.

    A forked process cannot use GNU's OpenMP with several threads, and numba's own pool (workqueue) serves one Python
    thread at a time: numba ends the process that tries.
    """
    # Always inlined: by itself the body would be a symbol whose name does not tell closures apart, and of those that
    # come out of the cache the first one loaded would run for all.
    body = inline_always(function)
    failed = f"{function.__qualname__}: no memory for what a kernel needs, or it failed"

    @njit(nogil=True, error_model="numpy", no_cfunc_wrapper=True)
    def launch(threads: Any, total: Any, *arguments: Any) -> None:
        if _fork(body, threads, total, arguments):
            raise MemoryError(failed)

    launch._cache = _Cache(function)  # type: ignore[no-untyped-call]

    @wraps(function)
    def run(total: int, *arguments: Any) -> None:
        if total > 0:
            launch(min(_num_threads(), total), total, *arguments)

    return run


def _num_threads() -> int:
    """numba's number of threads, which are running then. Its own function takes a lock every time that processes share
    after a fork: one that is killed in it leaves the others waiting."""
    layer: Any = parallel
    threads: int = (layer._get_num_threads if layer._is_initialized else numba.get_num_threads)()
    return threads


@inline
def items(team: Any) -> Any:
    """Those of the items 0 to total - 1 that this thread gets."""
    item = _take(team)
    while item < team.total:
        yield item
        item = _take(team)


@inline
def consecutive(team: Any) -> Any:
    """The same as an equal share of items one after the other: where an item is next to no work."""
    return range(team.total * team.thread // team.threads, team.total * (team.thread + 1) // team.threads)


@intrinsic
def _take(typingctx: Any, team: Any) -> Any:
    """The next item, which no other thread gets; `total` or more when all are taken."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        taken, total, *_ = cgutils.unpack_tuple(builder, args[0])
        place = builder.inttoptr(taken, _SIZES)
        seen = builder.load_atomic(place, "monotonic", 8)
        before = builder.basic_block
        with builder.if_then(builder.icmp_signed("<", seen, total)):
            mine = builder.atomic_rmw("add", place, ir.Constant(_I64, 1), "monotonic")
            inside = builder.basic_block
        item = builder.phi(_I64)
        item.add_incoming(seen, before)
        item.add_incoming(mine, inside)
        return item

    return types.int64(team), codegen


@intrinsic
def _fork(typingctx: Any, body: Any, threads: Any, total: Any, arguments: Any) -> Any:
    """Call body(team, *arguments) in so many threads, in this one where it is one; whether a call has failed, as it
    does where there is no memory."""
    given = (_TEAM, *arguments.types)
    body.get_call_type(typingctx, given, {})  # compiles it

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        compiled = body.dispatcher.overloads[given]
        context.add_linking_libs([compiled.library])
        zero, one, nothing = ir.Constant(_I64, 0), ir.Constant(_I64, 1), ir.Constant(_POINTER, None)
        taken = cgutils.alloca_once_value(builder, zero)
        failed = cgutils.alloca_once_value(builder, ir.Constant(_I32, 0))
        lent = _lent(context, builder, arguments, args[3])
        shared = [builder.ptrtoint(taken, _I64), args[2], args[1], failed, lent]
        packed = cgutils.alloca_once_value(builder, cgutils.pack_struct(builder, shared))
        call = _call(context, builder.module, packed.type, compiled, given)
        # As numba's generalised functions are called: a thread's arguments lie its number times a step behind the
        # first one's. The first argument is that number, the second the same for all.
        bases = cgutils.alloca_once_value(builder, ir.Constant(ir.ArrayType(_POINTER, 2), None))
        builder.store(builder.bitcast(packed, _POINTER), builder.gep(bases, [zero, one]))
        steps = cgutils.alloca_once_value(builder, ir.Constant(ir.ArrayType(_I64, 2), [1, 0]))
        count = cgutils.alloca_once_value(builder, args[1])
        bases, steps = (builder.gep(array, [zero, zero]) for array in (bases, steps))
        with builder.if_else(builder.icmp_signed("==", args[1], one)) as (alone, together):
            with alone:
                builder.call(call, [bases, count, steps, nothing])
            with together:
                kind = [_POINTER, _POINTERS, _SIZES, _SIZES, _POINTER, _I64, _I64, _I64]
                kind = ir.FunctionType(ir.VoidType(), kind)
                parallel_for = cgutils.get_or_insert_function(builder.module, kind, "numba_parallel_for")
                # Always with as many threads as there are: GNU's OpenMP ends those that a call has no use for.
                kind = ir.FunctionType(_I64, [])
                all_threads = builder.call(cgutils.get_or_insert_function(builder.module, kind, "get_num_threads"), [])
                function, two = builder.bitcast(call, _POINTER), ir.Constant(_I64, 2)
                builder.call(parallel_for, [function, bases, count, steps, nothing, zero, two, all_threads])
        return builder.icmp_signed("!=", builder.load(failed), ir.Constant(_I32, 0))

    return types.boolean(body, types.int64, types.int64, arguments), codegen


def _lent(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """A value whose arrays nobody counts the users of: threads would do that in turn."""
    if isinstance(kind, types.BaseTuple):
        kinds: tuple[Any, ...] = tuple(kind)  # type: ignore[arg-type]
        parts = [_lent(context, builder, *p) for p in zip(kinds, cgutils.unpack_tuple(builder, value, len(kinds)))]
        return context.make_tuple(builder, kind, parts)
    if isinstance(kind, types.Array):
        array = context.make_array(kind)(context, builder, value)
        array.meminfo, array.parent = (cgutils.get_null_value(x.type) for x in (array.meminfo, array.parent))
        return array._getvalue()
    return value


def _call(context: Any, module: Any, packed: Any, compiled: Any, given: Any) -> ir.Function:
    """What a thread calls: the compiled function on what is packed, once for each of `count` threads' numbers."""
    kind = ir.FunctionType(ir.VoidType(), [_POINTERS, _SIZES, _SIZES, _POINTER])
    function = ir.Function(module, kind, f"{compiled.fndesc.mangled_name}.thread")
    function.linkage = "internal"
    bases, count, *_ = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    first = builder.ptrtoint(builder.load(bases), _I64)
    shared = builder.bitcast(builder.load(builder.gep(bases, [ir.Constant(_I64, 1)])), packed)
    taken, total, threads, failed, arguments = cgutils.unpack_tuple(builder, builder.load(shared), 5)
    arguments = cgutils.unpack_tuple(builder, arguments, len(given) - 1)
    body = context.declare_function(module, compiled.fndesc)
    with cgutils.for_range(builder, builder.load(count)) as loop:
        team = cgutils.pack_array(builder, [taken, total, builder.add(first, loop.index), threads])
        status, _ = context.call_conv.call_function(builder, body, types.none, given, [team, *arguments])
        with cgutils.if_unlikely(builder, status.is_error):
            builder.store(ir.Constant(_I32, 1), failed)
    builder.ret_void()
    return function
