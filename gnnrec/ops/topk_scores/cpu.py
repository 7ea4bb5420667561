"""numba kernels of topk_scores and topk_dense.

A tile of 32 items is scored for 6 users at a time: 12 accumulators of 16 floats for the running partial sum and 12 for
the score stay in registers. Scores are compared with each user's k-th best so far there too, so nearly all of them
never reach memory. Items come in ascending order, so among equal scores the one that is in already has the lower number
and stays.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from gnnrec.ops._numba import VERSION, inline
from gnnrec.ops._parallel import consecutive, items, kernel
from gnnrec.ops._vector import intrinsic

PANEL = 16  # columns of a partial sum
TILE = 32  # items
GROUP = 6  # users
BLOCK = 48  # users a thread works on at once; their vectors and a tile fit the first-level cache at dim 64
STRIP = 64  # entries of a dense row looked at at once
PACKED_BYTES = 16 << 20  # of items that are packed at a time


def topk_scores(users: Any, items: Any, k: int, indptr: Any, seen: Any, out_items: Any, out_scores: Any) -> None:
    """Fill out_items int32 and out_scores float32 [users, k]; seen[indptr[u]:indptr[u + 1]] is left out, sorted."""
    run, most, padded = _compile_scores(), packed_items(items.shape[1]), -(-items.shape[1] // PANEL) * PANEL
    sizes, cursors = np.zeros((2, len(users)), np.int64)  # of every user's list, and among what the user has seen
    for first in range(0, len(items), most):
        some = items[first : first + most]
        tiles = np.empty((-(-len(some) // TILE), padded, TILE), np.float32)
        _pack_items(len(tiles), some, tiles)
        blocks = -(-len(users) // BLOCK)
        run(blocks, users, tiles, first, len(items), k, indptr, seen, sizes, cursors, out_items, out_scores)


def packed_items(dim: int) -> int:
    """How many items are packed at a time: whole tiles."""
    return max(PACKED_BYTES // (4 * -(-dim // PANEL) * PANEL) // TILE, 1) * TILE


@inline
def _sinks(scores: Any, items: Any, a: Any, b: Any) -> Any:
    """Whether entry a is worse than entry b: a lower score, or an equal one and a higher item."""
    return scores[a] < scores[b] or (scores[a] == scores[b] and items[a] > items[b])


@inline
def _sift_down(scores: Any, items: Any, size: Any) -> None:
    """Restore the heap (worst entry on top) after its top has changed."""
    at = 0
    while True:
        worst, left = at, 2 * at + 1
        if left < size and _sinks(scores, items, left, worst):
            worst = left
        if left + 1 < size and _sinks(scores, items, left + 1, worst):
            worst = left + 1
        if worst == at:
            return
        scores[at], scores[worst] = scores[worst], scores[at]
        items[at], items[worst] = items[worst], items[at]
        at = worst


@inline
def _offer(scores: Any, items: Any, size: Any, score: Any, item: Any) -> Any:
    """Put an entry into the heap where it belongs there; returns the heap's size."""
    k = len(scores)
    if size < k:
        scores[size], items[size] = score, item
        at = size
        while at > 0 and _sinks(scores, items, at, (at - 1) // 2):
            up = (at - 1) // 2
            scores[at], scores[up] = scores[up], scores[at]
            items[at], items[up] = items[up], items[at]
            at = up
        return size + 1
    if score > scores[0]:
        scores[0], items[0] = score, item
        _sift_down(scores, items, k)
    return k


@inline
def _finish(scores: Any, items: Any, size: Any) -> None:
    """Turn the heap into a list from best to worst; places without an item hold item -1 and score -inf."""
    for end in range(size - 1, 0, -1):
        scores[0], scores[end] = scores[end], scores[0]
        items[0], items[end] = items[end], items[0]
        _sift_down(scores, items, end)
    for at in range(size, len(scores)):
        scores[at], items[at] = -np.inf, -1


@kernel
def _pack_items(team: Any, items: Any, packed: Any) -> None:
    """Fill tiles [tiles, dim padded to panels, TILE]: a column of a tile is contiguous."""
    count, dim = items.shape
    for tile in consecutive(team):
        for column in range(packed.shape[1]):
            for lane in range(TILE):
                item = tile * TILE + lane
                packed[tile, column, lane] = items[item, column] if item < count and column < dim else 0.0


@cache
def _compile_scores() -> Any:
    version = VERSION

    @kernel
    def run(
        team: Any,
        users: Any,
        tiles: Any,
        first_item: Any,
        num_items: Any,
        k: Any,
        indptr: Any,
        seen: Any,
        sizes: Any,
        cursors: Any,
        out_items: Any,
        out_scores: Any,
    ) -> None:
        _ = version  # part of the cache key
        last = first_item + len(tiles) * TILE >= num_items
        num_users, dim = users.shape
        padded = tiles.shape[1]
        for block in items(team):
            first = block * BLOCK
            count = min(BLOCK, num_users - first)
            groups = (count + GROUP - 1) // GROUP
            packed = np.zeros((groups, padded, GROUP), np.float32)
            for u in range(count):
                for column in range(dim):
                    packed[u // GROUP, column, u % GROUP] = users[first + u, column]
            thresholds = np.full(BLOCK, np.inf, np.float32)
            for u in range(count):
                thresholds[u] = out_scores[first + u, 0] if sizes[first + u] == k else -np.inf
            scores = np.empty((GROUP, TILE), np.float32)
            masks = np.empty(GROUP, np.int32)
            for tile in range(len(tiles)):
                for group in range(groups):
                    if _score_tile(packed, group, tiles, tile, thresholds, scores, masks) == 0:
                        continue
                    for lane_user in range(GROUP):
                        mask = masks[lane_user]
                        if mask == 0:
                            continue
                        u = group * GROUP + lane_user
                        user = first + u
                        for lane in range(TILE):
                            item = first_item + tile * TILE + lane
                            if (mask >> lane) & 1 == 0 or item >= num_items:
                                continue
                            at = indptr[user] + cursors[user]
                            while at < indptr[user + 1] and seen[at] < item:
                                at += 1
                            cursors[user] = at - indptr[user]
                            if at < indptr[user + 1] and seen[at] == item:
                                continue
                            sizes[user] = _offer(
                                out_scores[user], out_items[user], sizes[user], scores[lane_user, lane], item
                            )
                        if sizes[user] == k:
                            thresholds[u] = out_scores[user, 0]
            for u in range(count if last else 0):
                _finish(out_scores[first + u], out_items[first + u], sizes[first + u])

    return run


@kernel
def topk_dense(team: Any, scores: Any, k: Any, indptr: Any, seen: Any, out_items: Any, out_scores: Any) -> None:
    """The same from scores [users, items] that are there already."""
    num_items = scores.shape[1]
    for user in consecutive(team):
        size, at, last = 0, indptr[user], indptr[user + 1]
        threshold = np.float32(-np.inf)
        for start in range(0, num_items, STRIP):
            stop = min(start + STRIP, num_items)
            hit = False
            for item in range(start, stop):
                hit |= scores[user, item] > threshold
            if not hit:
                continue
            for item in range(start, stop):
                if not scores[user, item] > threshold:
                    continue
                while at < last and seen[at] < item:
                    at += 1
                if at < last and seen[at] == item:
                    continue
                size = _offer(out_scores[user], out_items[user], size, scores[user, item], item)
                if size == k:
                    threshold = out_scores[user, 0]
        _finish(out_scores[user], out_items[user], size)


@intrinsic
def _score_tile(
    typingctx: Any, users: Any, group: Any, tiles: Any, tile: Any, thresholds: Any, scores: Any, masks: Any
) -> Any:
    """Score one tile of items for one group of users.

    A score is a left fold over partial sums of PANEL columns. Writes scores [GROUP, TILE] and, for each user, the mask
    of items above the user's threshold; returns the masks joined by or.
    """
    f32, i32, i64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
    lanes = 16
    vector = ir.VectorType(f32, lanes)
    per_tile = TILE // lanes

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        views = {
            name: context.make_array(kind)(context, builder, value)
            for name, kind, value in zip(
                ("users", "tiles", "thresholds", "scores", "masks"),
                (users, tiles, thresholds, scores, masks),
                (args[0], args[2], args[4], args[5], args[6]),
            )
        }

        def constant(value: int) -> ir.Constant:
            return ir.Constant(i64, value)

        def splat(scalar: Any) -> Any:
            one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(i32, 0))
            return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(i32, lanes), None))

        def vector_pointer(base: Any, offset: Any) -> Any:
            return builder.bitcast(builder.gep(base, [offset]), vector.as_pointer())

        fma_type = ir.FunctionType(vector, [vector] * 3)
        fma = builder.module.globals.get("llvm.fma.v16f32") or ir.Function(builder.module, fma_type, "llvm.fma.v16f32")
        padded = builder.extract_value(views["tiles"].shape, 1)
        user_base = builder.gep(views["users"].data, [builder.mul(args[1], builder.mul(padded, constant(GROUP)))])
        tile_base = builder.gep(views["tiles"].data, [builder.mul(args[3], builder.mul(padded, constant(TILE)))])

        entry, loop = builder.basic_block, builder.append_basic_block("panel")
        done = builder.append_basic_block("scored")
        builder.branch(loop)
        builder.position_at_end(loop)
        column = builder.phi(i64)
        column.add_incoming(constant(0), entry)
        totals = [[builder.phi(vector) for _ in range(per_tile)] for _ in range(GROUP)]
        zero = ir.Constant(vector, None)
        partial: list[list[Any]] = [[zero] * per_tile for _ in range(GROUP)]
        for offset in range(PANEL):
            at = builder.add(column, constant(offset))
            item_at, user_at = builder.mul(at, constant(TILE)), builder.mul(at, constant(GROUP))
            item_vectors = []
            for part in range(per_tile):
                load = builder.load(vector_pointer(tile_base, builder.add(item_at, constant(part * lanes))))
                load.align = 4
                item_vectors.append(load)
            for u in range(GROUP):
                value = splat(builder.load(builder.gep(user_base, [builder.add(user_at, constant(u))])))
                for part in range(per_tile):
                    partial[u][part] = builder.call(fma, [value, item_vectors[part], partial[u][part]])
        following = builder.add(column, constant(PANEL))
        column.add_incoming(following, loop)
        sums = [[builder.fadd(totals[u][part], partial[u][part]) for part in range(per_tile)] for u in range(GROUP)]
        for u in range(GROUP):
            for part in range(per_tile):
                totals[u][part].add_incoming(zero, entry)
                totals[u][part].add_incoming(sums[u][part], loop)
        builder.cbranch(builder.icmp_signed("<", following, padded), loop, done)

        builder.position_at_end(done)
        joined: Any = ir.Constant(i32, 0)
        first_user = builder.mul(args[1], constant(GROUP))
        for u in range(GROUP):
            threshold = builder.load(builder.gep(views["thresholds"].data, [builder.add(first_user, constant(u))]))
            mask: Any = ir.Constant(i32, 0)
            for part in range(per_tile):
                store = builder.store(
                    sums[u][part], vector_pointer(views["scores"].data, constant(u * TILE + part * lanes))
                )
                store.align = 4
                above = builder.fcmp_ordered(">", sums[u][part], splat(threshold))
                bits = builder.zext(builder.bitcast(above, ir.IntType(lanes)), i32)
                mask = builder.or_(mask, builder.shl(bits, ir.Constant(i32, part * lanes)))
            builder.store(mask, builder.gep(views["masks"].data, [constant(u)]))
            joined = builder.or_(joined, mask)
        return joined

    return types.int32(users, types.int64, tiles, types.int64, thresholds, scores, masks), codegen
