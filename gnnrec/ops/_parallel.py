"""How the items of a parallel loop come to threads: each takes the next one as it becomes free.

    counter = new_counter()
    for _worker in numba.prange(workers(total)):
        for item in items(counter, total):
            ...

numba's own loops give every thread an equal number of consecutive items beforehand, and all wait for the slowest: with
2 threads, spmm on Gowalla's graph took 1.2 times as long. What an item computes must not depend on who takes it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from gnnrec.ops._numba import inline
from gnnrec.ops._vector import intrinsic

MOST_WORKERS = 1024  # at least as many as there are threads; those that find no item left cost a load

_I64 = ir.IntType(64)


@inline
def workers(total: Any) -> Any:
    """Iterations of the outer loop; a single item does not wake a second thread."""
    return min(MOST_WORKERS, total)


@inline
def new_counter() -> Any:
    """No item is taken yet."""
    counter = np.empty(1, np.int64)  # np.zeros would take the compiler longer than the rest of a small kernel
    counter[0] = 0
    return counter


@inline
def items(counter: Any, total: Any) -> Any:
    """Those of the items 0 to total - 1 that this thread gets."""
    item = _take(counter, total)
    while item < total:
        yield item
        item = _take(counter, total)


@intrinsic
def _take(typingctx: Any, counter: Any, total: Any) -> Any:
    """The next item, which no other thread gets; `total` or more when all are taken."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = context.make_array(counter)(context, builder, args[0]).data
        taken = builder.load_atomic(place, "monotonic", 8)
        before = builder.basic_block
        with builder.if_then(builder.icmp_signed("<", taken, args[1])):
            mine = builder.atomic_rmw("add", place, ir.Constant(_I64, 1), "monotonic")
            inside = builder.basic_block
        item = builder.phi(_I64)
        item.add_incoming(taken, before)
        item.add_incoming(mine, inside)
        return item

    return types.int64(counter, types.int64), codegen
