"""topk_scores on a GPU: panels of scores by torch.mm, then a Triton kernel that selects every row's best.

A row is dealt out to buckets, item i to bucket i % BUCKETS. The k best items lie in the k buckets whose best items are
the best: than any other bucket's items, at least these k are better. So a row is read once, for the buckets' best, and
then only k buckets of it. Both times a bitonic network selects, which sorts no more than K = 2^LOG_K >= k numbers.

What is compared are 64-bit keys: the bits of a score in an order of integers, then the item, the lower one greater. No
two are equal, so there is one result.
"""

# mypy: ignore-errors

import torch
import triton
import triton.language as tl

from gnnrec import device as devices
from gnnrec.ops import tuning
from gnnrec.ops._launch import launch, rows_contiguous

PANEL_BYTES = 2**28  # of scores at once
LOG_MOST = 10  # of the most that the kernel selects; more are sorted
REGISTERS = 128

NONE = tl.constexpr(-(2**63))
RISING, FALLING, BOTH = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


def topk_scores(
    users: torch.Tensor,
    items: torch.Tensor,
    k: int,
    seen: tuple[torch.Tensor, torch.Tensor] | None,
    out_items: torch.Tensor,
    out_scores: torch.Tensor,
) -> None:
    """Fill the results; see `select`. `seen`: pointers and columns of what is left out."""
    users, items, scores = users.detach(), items.detach(), None
    for first, last in _panels(len(users), len(items), k):
        scores = _room(users, last - first, len(items)) if scores is None else scores
        panel = scores[: last - first, : len(items)]
        torch.mm(users[first:last], items.T, out=panel)
        _mask(panel, first, seen)
        select(panel, k, out_items[first:last], out_scores[first:last], scores.shape[1])


def topk_dense(
    given: torch.Tensor,
    k: int,
    seen: tuple[torch.Tensor, torch.Tensor] | None,
    out_items: torch.Tensor,
    out_scores: torch.Tensor,
) -> None:
    """The same from scores that are there already."""
    if seen is None and k <= 2**LOG_MOST:
        select(rows_contiguous(given), k, out_items, out_scores, given.shape[1])
        return
    scores, items = None, given.shape[1]
    for first, last in _panels(len(given), items, k):
        scores = _room(given, last - first, items) if scores is None else scores
        panel = scores[: last - first, :items]
        panel.copy_(given[first:last].detach())
        _mask(panel, first, seen)
        select(panel, k, out_items[first:last], out_scores[first:last], scores.shape[1])


def select(scores: torch.Tensor, k: int, out_items: torch.Tensor, out_scores: torch.Tensor, width: int) -> None:
    """Every row's k best columns and their scores, the lower column first among equals; -1 and -inf where no score is
    above -inf.

    Args:
        scores: [rows, items], rows contiguous.
        out_items: int32 [rows, k]; out_scores: float32 [rows, k].
        width: how many numbers may be read of a row; those behind its end are -inf.
    """
    rows, items = scores.shape
    if k > 2**LOG_MOST:
        usable = torch.where(scores > -torch.inf, scores, -torch.inf).add_(0.0)  # -0 becomes 0
        best, order = usable.sort(dim=1, descending=True, stable=True)
        out_scores.copy_(best[:, :k])
        out_items.copy_(order[:, :k].masked_fill_(best[:, :k] == -torch.inf, -1))
        return
    log_k = max(4, (k - 1).bit_length())
    # The number of rows is the last batch's rest at times: it is no part of the case.
    shape = tuning.choose("topk_scores", log_k, 1, scores.dtype, tuning.magnitudes(items), scores.device)
    log_buckets = max(log_k, min(shape["log_buckets"], (items - 1).bit_length()))
    steps = -(-items // 2**log_buckets)  # items of a bucket
    log_width = min(max(shape["log_found"], log_k) - log_k, (steps - 1).bit_length())
    at_once = 2 ** max(0, shape["log_buckets"] - log_buckets)
    given = scores, scores.stride(0), rows, width, k, out_items, out_scores
    sizes = {"ROWS": at_once, "LOG_BUCKETS": log_buckets, "LOG_K": log_k, "LOG_WIDTH": log_width, "SINGLE": steps == 1}
    launch(_select, (-(-rows // at_once),), *given, warps=shape["warps"], registers=REGISTERS, **sizes)


def _panels(rows: int, items: int, k: int) -> list[tuple[int, int]]:
    """Rows of scores that are worked on together, in panels of equal size."""
    most = max(1, PANEL_BYTES // (4 * (items + 16)))
    if k > 2**LOG_MOST:
        most = max(1, most // 8)  # a sort needs room for numbers and 64-bit places, twice
    count = -(-rows // most)
    size = -(-rows // max(1, count))
    return [(first, min(first + size, rows)) for first in range(0, rows, max(1, size))]


def _room(like: torch.Tensor, rows: int, items: int) -> torch.Tensor:
    """Rows that begin at multiples of 64 bytes, with -inf behind their ends, so that whole vectors can be read."""
    scores = devices.empty(like, (rows, -(-items // 16) * 16), "a panel of scores", torch.float32)
    scores[:, items:] = -torch.inf
    return scores


def _mask(scores: torch.Tensor, first: int, seen: tuple[torch.Tensor, torch.Tensor] | None) -> None:
    """Write -inf where an item was seen; the scores' rows are those from `first` on."""
    if seen is not None:
        indptr, columns = seen
        launch(_mask_row, (len(scores),), indptr[first:], columns, scores, scores.stride(0), warps=1, BLOCK=128)


@triton.jit
def _mask_row(indptr, columns, scores, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    start, stop = tl.load(indptr + row), tl.load(indptr + row + 1)
    for k in range(start, stop, BLOCK):
        place = k + tl.arange(0, BLOCK)
        item = tl.load(columns + place, mask=place < stop, other=0)
        tl.store(scores + row * stride + item, tl.full((BLOCK,), float("-inf"), tl.float32), mask=place < stop)


@triton.jit
def _keys(score, item):
    """Keys of scores; NONE for those that are not above -inf."""
    bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)  # -0 is 0
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    key = (order.to(tl.int64) << 32) | (0x7FFFFFFF - item).to(tl.int64)
    return tl.where(score > float("-inf"), key, NONE)


@triton.jit
def _item(key):
    return (0x7FFFFFFF - (key & 0x7FFFFFFF)).to(tl.int32)


@triton.jit
def _bit(axes: tl.constexpr, j: tl.constexpr):
    """Bit j of the places of a cube [rows, 2, 2, ...] with so many axes of 2, the last of which is bit 0."""
    return tl.reshape(tl.arange(0, 2), [1] * (axes - j) + [2] + [1] * j)


@triton.jit
def _swap(x, falls, axes: tl.constexpr, j: tl.constexpr):
    """Put the two numbers that differ in bit j of their places in order; Batcher's comparator."""
    other = tl.sum(x, axis=axes - j, keep_dims=True) - x
    return tl.where((x > other) != ((falls ^ _bit(axes, j)) != 0), other, x)


@triton.jit
def _merge(x, stage: tl.constexpr, axes: tl.constexpr, order: tl.constexpr):
    """Sort bitonic sequences of 2^stage; rising, falling, or both in turns."""
    falls = _bit(axes, stage) if order == BOTH else order
    for i in tl.static_range(stage):
        x = _swap(x, falls, axes, stage - 1 - i)
    return x


@triton.jit
def _halve(x, axes: tl.constexpr, LOG_K: tl.constexpr, order: tl.constexpr):
    """Of two sequences of K numbers, one of which rises and one of which falls, the K greatest; `axes` are left."""
    x = tl.max(x, axis=axes - LOG_K + 1)
    return _merge(x, LOG_K, axes, BOTH if axes > LOG_K else order)


@triton.jit
def _greatest(keys, ROWS: tl.constexpr, LOG_N: tl.constexpr, LOG_K: tl.constexpr, order: tl.constexpr):
    """The K greatest of every row's N keys, [ROWS, K], falling or rising."""
    x = tl.reshape(keys, [ROWS] + [2] * LOG_N)
    for stage in tl.static_range(1, LOG_K + 1):
        x = _merge(x, stage, LOG_N, BOTH if stage < LOG_N else order)
    for gone in tl.static_range(1, LOG_N - LOG_K + 1):
        x = _halve(x, LOG_N - gone, LOG_K, order)
    return tl.reshape(x, [ROWS, 2**LOG_K])


@triton.jit(do_not_specialize=["rows", "k"])
def _select(
    scores,
    stride,  # not a constant, for which every number of items would be compiled
    rows,
    width,
    k,
    out_items,
    out_scores,
    ROWS: tl.constexpr,
    LOG_BUCKETS: tl.constexpr,
    LOG_K: tl.constexpr,
    LOG_WIDTH: tl.constexpr,
    SINGLE: tl.constexpr,
):
    BUCKETS: tl.constexpr = 2**LOG_BUCKETS
    K: tl.constexpr = 2**LOG_K
    WIDTH: tl.constexpr = 2**LOG_WIDTH
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = (row < rows)[:, None]
    begin = scores + (row * stride)[:, None]
    best = tl.full((ROWS, BUCKETS), float("-inf"), tl.float32)
    place = tl.zeros((ROWS, BUCKETS), tl.int32)
    for first in range(0, width, BUCKETS):
        item = (first + tl.arange(0, BUCKETS))[None, :]
        score = tl.load(begin + item, mask=there & (item < width), other=float("-inf"))
        better = score > best  # false for NaN, and for an equal score of a higher item
        best = tl.where(better, score, best)
        place = tl.where(better, item, place)
    result = _greatest(_keys(best, place), ROWS, LOG_BUCKETS, LOG_K, FALLING)
    if not SINGLE:
        bucket = _item(result) % BUCKETS
        held = (result != NONE)[:, :, None]
        result = tl.full((ROWS, K), NONE, tl.int64)
        for first in range(0, width, BUCKETS * WIDTH):
            item = bucket[:, :, None] + (first + BUCKETS * tl.arange(0, WIDTH))[None, None, :]
            score = tl.load(begin[:, :, None] + item, mask=held & (item < width), other=float("-inf"))
            keys = tl.reshape(_keys(score, item), [ROWS, K * WIDTH])
            found = _greatest(keys, ROWS, LOG_K + LOG_WIDTH, LOG_K, RISING)
            joined = tl.reshape(tl.maximum(result, found), [ROWS] + [2] * LOG_K)
            result = tl.reshape(_merge(joined, LOG_K, LOG_K, FALLING), [ROWS, K])
    order = (result >> 32).to(tl.int32)
    score = (order ^ ((order >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    at = tl.arange(0, K)[None, :]
    target = row[:, None] * k + at
    here = there & (at < k)
    tl.store(out_items + target, tl.where(result == NONE, -1, _item(result)), mask=here)
    tl.store(out_scores + target, tl.where(result == NONE, float("-inf"), score), mask=here)
