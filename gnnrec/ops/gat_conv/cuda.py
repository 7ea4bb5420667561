"""Triton kernels of gat_conv: a tile [ROWS, NEIGHBOURS, HEADS, columns of a head] walks over the entries of its rows.

The sums and identities are those of `cpu`. h and the scores lie side by side in one matrix, whose gradient takes its
place, so that two products give the gradients of x and of both weights. An entry's weights are a vector over HEADS, and
every lane of a row has a maximum and a sum of its own until the row ends. A product with a row's own columns is summed
over VECTOR of them at once, which one thread has, and over all at the row's end.
"""

# mypy: ignore-errors

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from gnnrec import device as devices
from gnnrec.ops import tuning
from gnnrec.ops._launch import PANELS, Matrix, Tile, bits, launch, power_of_2, rows_contiguous, walk, walk_pieces
from gnnrec.ops._tiles import TYPES, number, row_range, words
from gnnrec.ops.edge_softmax.cuda import over_lanes, running
from gnnrec.ops.gat_conv.panels import panels, parts

LINE = 8  # columns of which h's rows have a multiple, so that they begin where 32 bytes do, as memory is read
JOINED = 4  # pieces that are joined at once
BLOCK = 128  # columns that a program joins


class Attention(NamedTuple):
    """What decides about weights.

    Args:
        row_scores: [rows, heads], or None where `score_weight` gives them, too.
        slope: of leaky_relu.
        dropout: None, or seed, threshold and scale.
    """

    row_scores: torch.Tensor | None
    slope: float
    dropout: tuple[int, int, float] | None


class Layer(NamedTuple):
    """What kernels are told of a layer.

    Args:
        h: [cols, at least heads * (dim + 1)]: h, column scores and, where they are not given, row scores.
        row_scores: [rows, heads], maybe a part of h.
        numbers: slope and dropout.
        constants: of kernels that walk over entries.
    """

    h: torch.Tensor
    row_scores: torch.Tensor
    heads: int
    dim: int
    numbers: tuple[int | None, ...]
    constants: dict[str, object]


def forward(
    matrix: Matrix,
    x: torch.Tensor,
    weight: torch.Tensor,
    score_weight: torch.Tensor,
    attention: Attention,
    stats: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """Fill out [rows, heads * dim] and stats [rows, 2, heads]: shift, the greatest logit, and norm, 1 / sum of
    exp(logit - shift); 0 and 1 for rows without entries.

    Args:
        x: [cols, in]; weight: [heads * dim, in]; score_weight: [heads, in], or [2 * heads, in] for the row scores, too.
    """
    layer = _layer(x, torch.cat([weight, score_weight]), stats.shape[2], len(weight) // stats.shape[2], attention)
    shape, tiles = _tile(matrix, layer, x.dtype)
    given = layer.h, layer.row_scores, layer.row_scores.stride(0), *layer.numbers
    if pieces := len(matrix.pieces):
        totals = devices.empty(x, (pieces, 2, layer.heads), "the weights of long rows' pieces")
        sums = devices.empty(x, (pieces, len(weight)), "the sums of long rows' pieces")
        walk_pieces(_forward, matrix, shape, *given, totals, sums, **tiles, **layer.constants)
        sizes = {"heads": layer.heads, "dim": layer.dim, "WORK": TYPES[x.dtype], "DIM": shape.dim, "AT_ONCE": JOINED}
        grid = len(matrix.long), shape.panels
        launch(_join_forward, grid, matrix.long, totals, sums, stats, out, **tiles, **sizes)
    walk(_forward, matrix, shape, *given, stats, out, **tiles, **layer.constants)


def backward(
    matrix: Matrix,
    transposed: Matrix,
    x: torch.Tensor,
    weight: torch.Tensor,
    score_weight: torch.Tensor,
    attention: Attention,
    stats: torch.Tensor,
    grad: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of x, weight, score_weight and of the row scores, empty where these are not given.

    Args:
        stats: what `forward` gave; grad: [rows, heads * dim] of its result.
    """
    heads, both, grad = stats.shape[2], torch.cat([weight, score_weight]), rows_contiguous(grad)
    layer = _layer(x, both, heads, len(weight) // heads, attention)
    # Score, shift, norm and <grad, y> of a row and head lie side by side, where its neighbours gather them.
    nodes = devices.empty(x, (len(stats), heads, 4), "the numbers of rows")
    grad_scores = layer.row_scores
    if attention.row_scores is not None:
        grad_scores = devices.empty(x, (len(stats), heads), "the gradient of the row scores")
    _row_gradient(matrix, layer, stats, grad, nodes, grad_scores)
    _column_gradient(transposed, layer, nodes, grad)
    del nodes
    gradients = layer.h[:, : len(both)]
    grad_both = torch.mm(gradients.T, x)
    grad_x = torch.mm(gradients, both, out=devices.empty(x, x.shape, "the gradient of x"))
    weights = grad_both[: len(weight)], grad_both[len(weight) :].clone()  # results must not share memory
    return grad_x, *weights, x.new_empty(0) if attention.row_scores is None else grad_scores


def _row_gradient(
    matrix: Matrix,
    layer: Layer,
    stats: torch.Tensor,
    grad: torch.Tensor,
    nodes: torch.Tensor,
    grad_scores: torch.Tensor,
) -> None:
    """Fill nodes and the gradient of the row scores, which may lie where these do: a row's own are read by it alone."""
    shape, tiles = _tile(matrix, layer, grad.dtype)
    scores = layer.row_scores, layer.row_scores.stride(0)
    results = nodes, grad_scores, grad_scores.stride(0)
    given = layer.h, *scores, *layer.numbers, stats, grad, grad.stride(0), *results
    kinds = tiles | layer.constants | {"VECTOR": 16 // grad.element_size()}
    if pieces := len(matrix.pieces):
        sums = devices.empty(grad, (pieces, 3, layer.heads), "the sums of long rows' pieces")
        walk_pieces(_rows, matrix, shape, *given, sums, **kinds)
        joined = matrix.long, sums, *scores, layer.numbers[0], stats, *results
        sizes = {"heads": layer.heads, "WORK": TYPES[grad.dtype], "HEADS": tiles["HEADS"], "AT_ONCE": JOINED}
        launch(_join_rows, (len(matrix.long), shape.panels), *joined, **sizes)
    walk(_rows, matrix, shape, *given, None, **kinds)


def _column_gradient(transposed: Matrix, layer: Layer, nodes: torch.Tensor, grad: torch.Tensor) -> None:
    """Put the gradients of h and the column scores where these lie: a column's own are read by it alone."""
    shape, tiles = _tile(transposed, layer, grad.dtype)
    given = layer.h, *layer.numbers, nodes, grad, grad.stride(0)
    kinds = tiles | layer.constants | {"VECTOR": 16 // grad.element_size()}
    if pieces := len(transposed.pieces):
        columns, stride = layer.heads * (layer.dim + 1), layer.h.stride(0)
        sums = devices.empty(grad, (pieces, stride), "the sums of long columns' pieces")
        walk_pieces(_columns, transposed, shape, *given, sums, **kinds)
        grid = len(transposed.long), -(-columns // BLOCK)
        sizes = {"columns": columns, "stride": stride, "WORK": TYPES[grad.dtype], "DIM": BLOCK, "AT_ONCE": JOINED}
        launch(_join_columns, grid, transposed.long, sums, layer.h, **sizes)
    walk(_columns, transposed, shape, *given, layer.h, **kinds)


def _layer(x: torch.Tensor, both: torch.Tensor, heads: int, dim: int, attention: Attention) -> Layer:
    """The products of x with weight and score_weight, which `both` are, and what else kernels are told."""
    h = devices.empty(x, (len(x), -(-len(both) // LINE) * LINE), "h of gat_conv")
    torch.mm(x, both.T, out=h[:, : len(both)])
    scores = attention.row_scores
    scores = h[:, heads * (dim + 1) : len(both)] if scores is None else rows_contiguous(scores)
    seed, threshold, scale = (None, None, None) if attention.dropout is None else attention.dropout
    numbers = bits(attention.slope), seed, threshold, None if scale is None else bits(scale)
    # The streams of dropout are those of the CPU's panels, which take padded heads.
    _, _, _, count = panels(heads * (dim + -dim % parts(dim)), heads)[0]
    constants = {"heads": heads, "dim": dim, "stride": h.stride(0), "COUNT": count, "WORK": TYPES[x.dtype]}
    return Layer(h, scores, heads, dim, numbers, constants)


def _tile(matrix: Matrix, layer: Layer, dtype: torch.dtype) -> tuple[Tile, dict[str, int]]:
    """The tile, of as many whole heads as fit or a part of one, and HEADS and PARTS of it."""
    heads, dim = layer.heads, layer.dim
    whole = power_of_2(dim)
    width = min((min(whole, panel) for panel in PANELS), key=lambda columns: -(-dim // columns) * columns)
    together = min(power_of_2(heads), PANELS[0] // width)
    shape = tuning.choose("gat_conv", heads * dim, heads, dtype, matrix.histogram.tolist(), matrix.indices.device)
    # Columns that are read one by one have an address in registers each, exp of a float64 and parts of heads take many.
    few = dim * dtype.itemsize % 16 > 0 or dtype == torch.float64 or width < dim
    lanes = shape["numbers"] // (4 if few else 1) // (width * together)
    if layer.numbers[1] is not None:
        lanes = min(lanes, 32 * shape["warps"] // together)  # a thread draws for an entry and head at a time
    lanes = max(1, lanes)
    kinds = {"HEADS": together, "PARTS": -(-dim // width)}
    return Tile(width * together, -(-heads // together), lanes, bool(shape["sharing"]), shape["warps"]), kinds


@triton.jit
def _heads(inside, head, heads: tl.constexpr, HEADS: tl.constexpr):
    """Which heads of entries, or of rows, there are."""
    there = tl.expand_dims(inside, -1)
    if heads % HEADS != 0:
        there = there & (head < heads)
    return there


@triton.jit
def _offsets(part, heads: tl.constexpr, dim: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr):
    """Where in a row of h the columns of a part of the program's heads are, and which of them there are, both [DIM]."""
    wide: tl.constexpr = DIM // HEADS
    dense: tl.constexpr = HEADS == 1 or dim == wide
    place = tl.arange(0, DIM)
    head, col = tl.program_id(1) * HEADS + place // wide, part * wide + place % wide
    there = col < dim
    if heads % HEADS != 0:
        there = there & (head < heads)
    # The compiler sees by itself that columns without gaps follow each other only here, and reads 16 bytes at once.
    return tl.program_id(1) * HEADS * dim + part * wide + place if dense else head * dim + col, there


@triton.jit
def _columns_of(there, real, dim: tl.constexpr, heads: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr):
    """Which columns of entries, or of rows, there are."""
    there = tl.expand_dims(there, -1)
    if heads % HEADS != 0 or dim % (DIM // HEADS) != 0:
        there = there & real
    return there


@triton.jit
def _others(indices, start, k, length):
    """The other ends of entries k of rows, int32 [ROWS, NEIGHBOURS]. Kernels load them a step ahead, and all that a
    step needs before it computes, so that a row waits for memory once a step."""
    return tl.load(indices + start[:, None] + k[None, :], mask=k[None, :] < length[:, None], other=0)


@triton.jit
def _leaky(s, slope):
    return tl.where(s > 0, s, s * slope)


@triton.jit
def _dropped(w, i, j, head, seed, threshold, scale, COUNT: tl.constexpr, WORK: tl.constexpr):
    """Weights [ROWS, NEIGHBOURS, HEADS] of entries (i, j) after dropout, whose streams are panels of COUNT heads."""
    if seed is not None:
        stream = (head // COUNT * COUNT)[None, None, :]
        a, b, column = i[:, :, None].to(tl.uint32), j[:, :, None].to(tl.uint32), head[None, None, :] - stream
        if COUNT <= 16:
            word, _, _, _ = tl.philox(seed, a, b, column, stream)  # the first of four, as `words` would find
        else:
            word = words(seed, a, b, stream, column)
        w = tl.where(word.to(tl.int64) >= threshold, w * number(scale, WORK), 0)
    return w


@triton.jit(do_not_specialize=["count", "slope", "seed", "threshold", "scale"])
def _forward(
    rows,
    count,
    indices,
    h,
    row_scores,
    row_scores_stride: tl.constexpr,
    slope: tl.int64,
    seed,
    threshold,
    scale,
    stats,
    out,
    heads: tl.constexpr,
    dim: tl.constexpr,
    stride: tl.constexpr,
    WORK: tl.constexpr,
    COUNT: tl.constexpr,
    HEADS: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    DIM: tl.constexpr,
    PIECES: tl.constexpr,
):
    """Rows of stats and out; of PIECES the greatest logit, the sum of exp(logit - it) and that of h's rows times it."""
    place, there, row, start, length = row_range(rows, count, ROWS)
    head, lane = tl.program_id(1) * HEADS + tl.arange(0, HEADS), tl.arange(0, NEIGHBOURS)
    own_heads = _heads(there, head, heads, HEADS)
    own = tl.load(row_scores + row[:, None] * row_scores_stride + head[None, :], mask=own_heads, other=0)
    steep = number(slope, WORK)
    target = place if PIECES else row
    for part in range(PARTS):
        offset, real = _offsets(part, heads, dim, HEADS, DIM)
        top = tl.full((ROWS, NEIGHBOURS, HEADS), float("-inf"), WORK)
        total = tl.zeros((ROWS, NEIGHBOURS, HEADS), WORK)
        y = tl.zeros((ROWS, NEIGHBOURS, HEADS, DIM // HEADS), WORK)
        following = _others(indices, start, lane, length)
        for k in range(0, tl.max(length, 0), NEIGHBOURS):
            j, inside = following.to(tl.int64), (k + lane)[None, :] < length[:, None]
            following = _others(indices, start, k + NEIGHBOURS + lane, length)
            entry_heads = _heads(inside, head, heads, HEADS)
            scores = h + j[:, :, None] * stride + heads * dim + head[None, None, :]
            source = h + j[:, :, None] * stride + offset[None, None, :]
            mask = _columns_of(inside, real, dim, heads, HEADS, DIM)
            s, messages = tl.load(scores, mask=entry_heads, other=0), tl.load(source, mask=mask, other=0)
            messages = tl.reshape(messages, (ROWS, NEIGHBOURS, HEADS, DIM // HEADS))
            logit = tl.where(entry_heads, _leaky(own[:, None, :] + s, steep), float("-inf"))
            top, factor, w = running(top, logit)
            total = total * factor + w
            w = _dropped(w, row[:, None], j, head, seed, threshold, scale, COUNT, WORK)
            y = y * factor[:, :, :, None] + w[:, :, :, None] * messages
        best, shift, factor = over_lanes(top)
        total = tl.sum(total * factor, axis=1)
        y = tl.sum(y * factor[:, :, :, None], axis=1)
        if not PIECES:
            best, total = shift, 1 / tl.where((length > 0)[:, None], total, 1)
            y *= total[:, :, None]
        at = stats + target[:, None] * (2 * heads) + head[None, :]
        tl.store(at, best, mask=own_heads)
        tl.store(at + heads, total, mask=own_heads)
        mask = _columns_of(there, real, dim, heads, HEADS, DIM)
        tl.store(out + target[:, None] * (heads * dim) + offset[None, :], tl.reshape(y, (ROWS, DIM)), mask=mask)


@triton.jit
def _join_forward(
    long,
    totals,
    sums,
    stats,
    out,
    heads: tl.constexpr,
    dim: tl.constexpr,
    WORK: tl.constexpr,
    HEADS: tl.constexpr,
    PARTS: tl.constexpr,
    DIM: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """The second stage of long rows: a row's pieces in their order, as `_forward` takes entries."""
    item = tl.program_id(0).to(tl.int64)
    row, first, last = tl.load(long + item * 3), tl.load(long + item * 3 + 1), tl.load(long + item * 3 + 2)
    head, lane = tl.program_id(1) * HEADS + tl.arange(0, HEADS), tl.arange(0, AT_ONCE)
    own_heads = _heads(tl.full((1,), True, tl.int1), head, heads, HEADS)
    for part in range(PARTS):
        offset, real = _offsets(part, heads, dim, HEADS, DIM)
        top = tl.full((1, AT_ONCE, HEADS), float("-inf"), WORK)
        total = tl.zeros((1, AT_ONCE, HEADS), WORK)
        y = tl.zeros((1, AT_ONCE, HEADS, DIM // HEADS), WORK)
        for start in range(first, last, AT_ONCE):
            piece = (start + lane)[None, :]
            piece_heads = _heads(piece < last, head, heads, HEADS)
            at = totals + piece[:, :, None] * (2 * heads) + head[None, None, :]
            top, factor, w = running(top, tl.load(at, mask=piece_heads, other=float("-inf")))
            total = total * factor + w * tl.load(at + heads, mask=piece_heads, other=0)
            source = sums + piece[:, :, None] * (heads * dim) + offset[None, None, :]
            mask = _columns_of(piece < last, real, dim, heads, HEADS, DIM)
            part_of_y = tl.reshape(tl.load(source, mask=mask, other=0), (1, AT_ONCE, HEADS, DIM // HEADS))
            y = y * factor[:, :, :, None] + w[:, :, :, None] * part_of_y
        _, shift, factor = over_lanes(top)
        norm = 1 / tl.sum(total * factor, axis=1)
        y = tl.sum(y * factor[:, :, :, None], axis=1) * norm[:, :, None]
        at = stats + row * (2 * heads) + head[None, :]
        tl.store(at, shift, mask=own_heads)
        tl.store(at + heads, norm, mask=own_heads)
        tl.store(out + row * (heads * dim) + offset, tl.reshape(y, (DIM,)), mask=real)


@triton.jit(do_not_specialize=["count", "slope", "seed", "threshold", "scale"])
def _rows(
    rows,
    count,
    indices,
    h,
    row_scores,
    row_scores_stride: tl.constexpr,
    slope: tl.int64,
    seed,
    threshold,
    scale,
    stats,
    grad,
    grad_stride: tl.constexpr,
    nodes,
    grad_scores,
    grad_scores_stride: tl.constexpr,
    sums,
    heads: tl.constexpr,
    dim: tl.constexpr,
    stride: tl.constexpr,
    WORK: tl.constexpr,
    COUNT: tl.constexpr,
    VECTOR: tl.constexpr,
    HEADS: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    DIM: tl.constexpr,
    PIECES: tl.constexpr,
):
    """What `_finish_rows` writes of rows, or of PIECES what it is made of, sums [pieces, 3, heads]."""
    wide: tl.constexpr = DIM // HEADS
    inner: tl.constexpr = min(VECTOR, wide)
    place, there, row, start, length = row_range(rows, count, ROWS)
    head, lane = tl.program_id(1) * HEADS + tl.arange(0, HEADS), tl.arange(0, NEIGHBOURS)
    own_heads = _heads(there, head, heads, HEADS)
    own = tl.load(row_scores + row[:, None] * row_scores_stride + head[None, :], mask=own_heads, other=0)
    at = stats + row[:, None] * (2 * heads) + head[None, :]
    shift, norm = tl.load(at, mask=own_heads, other=0), tl.load(at + heads, mask=own_heads, other=0)
    steep = number(slope, WORK)
    dot = tl.zeros((ROWS, NEIGHBOURS, HEADS, wide // inner), WORK)
    positive_dot = tl.zeros((ROWS, NEIGHBOURS, HEADS, wide // inner), WORK)
    positive = tl.zeros((ROWS, NEIGHBOURS, HEADS), WORK)
    for part in range(PARTS):
        offset, real = _offsets(part, heads, dim, HEADS, DIM)
        own_columns = _columns_of(there, real, dim, heads, HEADS, DIM)
        upstream = tl.load(grad + row[:, None] * grad_stride + offset[None, :], mask=own_columns, other=0)
        following = _others(indices, start, lane, length)
        for k in range(0, tl.max(length, 0), NEIGHBOURS):
            j, inside = following.to(tl.int64), (k + lane)[None, :] < length[:, None]
            following = _others(indices, start, k + NEIGHBOURS + lane, length)
            entry_heads = _heads(inside, head, heads, HEADS)
            scores = h + j[:, :, None] * stride + heads * dim + head[None, None, :]
            source = h + j[:, :, None] * stride + offset[None, None, :]
            mask = _columns_of(inside, real, dim, heads, HEADS, DIM)
            s, messages = tl.load(scores, mask=entry_heads, other=0), tl.load(source, mask=mask, other=0)
            s += own[:, None, :]
            a = tl.where(entry_heads, tl.exp(_leaky(s, steep) - shift[:, None, :]) * norm[:, None, :], 0)
            positive += tl.where((s > 0) & (part == 0), a, 0)
            w = _dropped(a, row[:, None], j, head, seed, threshold, scale, COUNT, WORK)
            product = messages * upstream[:, None, :]
            product = tl.sum(tl.reshape(product, (ROWS, NEIGHBOURS, HEADS, wide // inner, inner)), axis=4)
            dot += w[:, :, :, None] * product
            positive_dot += tl.where(s > 0, w, 0)[:, :, :, None] * product
    dot, positive_dot = tl.sum(tl.sum(dot, axis=3), axis=1), tl.sum(tl.sum(positive_dot, axis=3), axis=1)
    positive = tl.sum(positive, axis=1)
    if PIECES:
        at = sums + place[:, None] * (3 * heads) + head[None, :]
        tl.store(at, dot, mask=own_heads)
        tl.store(at + heads, positive_dot, mask=own_heads)
        tl.store(at + 2 * heads, positive, mask=own_heads)
    else:
        target = grad_scores + row[:, None] * grad_scores_stride + head[None, :]
        at = nodes + row[:, None] * (4 * heads) + head[None, :] * 4
        _finish_rows(dot, positive_dot, positive, own, shift, norm, steep, at, target, own_heads)


@triton.jit
def _finish_rows(dot, positive_dot, positive, own, shift, norm, slope, at, target, mask):
    """Write a row's numbers for the columns' pass and the gradient of its scores, all [ROWS, HEADS]."""
    tl.store(at, own, mask=mask)
    tl.store(at + 1, shift, mask=mask)
    tl.store(at + 2, norm, mask=mask)
    tl.store(at + 3, dot, mask=mask)
    tl.store(target, (1 - slope) * (positive_dot - dot * positive), mask=mask)


@triton.jit(do_not_specialize=["slope"])
def _join_rows(
    long,
    sums,
    row_scores,
    row_scores_stride: tl.constexpr,
    slope: tl.int64,
    stats,
    nodes,
    grad_scores,
    grad_scores_stride: tl.constexpr,
    heads: tl.constexpr,
    WORK: tl.constexpr,
    HEADS: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """The second stage of long rows."""
    item = tl.program_id(0).to(tl.int64)
    row, first, last = tl.load(long + item * 3), tl.load(long + item * 3 + 1), tl.load(long + item * 3 + 2)
    head, lane = tl.program_id(1) * HEADS + tl.arange(0, HEADS), tl.arange(0, AT_ONCE)
    dot = tl.zeros((AT_ONCE, HEADS), WORK)
    positive_dot = tl.zeros((AT_ONCE, HEADS), WORK)
    positive = tl.zeros((AT_ONCE, HEADS), WORK)
    for start in range(first, last, AT_ONCE):
        mask = _heads(start + lane < last, head, heads, HEADS)
        at = sums + (start + lane)[:, None] * (3 * heads) + head[None, :]
        dot += tl.load(at, mask=mask, other=0)
        positive_dot += tl.load(at + heads, mask=mask, other=0)
        positive += tl.load(at + 2 * heads, mask=mask, other=0)
    mask = head < heads
    own = tl.load(row_scores + row * row_scores_stride + head, mask=mask, other=0)
    at = stats + row * (2 * heads) + head
    shift, norm = tl.load(at, mask=mask, other=0), tl.load(at + heads, mask=mask, other=0)
    dot, positive_dot, positive = tl.sum(dot, axis=0), tl.sum(positive_dot, axis=0), tl.sum(positive, axis=0)
    target = grad_scores + row * grad_scores_stride + head
    at = nodes + row * (4 * heads) + head * 4
    _finish_rows(dot, positive_dot, positive, own, shift, norm, number(slope, WORK), at, target, mask)


@triton.jit(do_not_specialize=["count", "slope", "seed", "threshold", "scale"])
def _columns(
    rows,
    count,
    indices,
    h,
    slope: tl.int64,
    seed,
    threshold,
    scale,
    nodes,
    grad,
    grad_stride: tl.constexpr,
    out,
    heads: tl.constexpr,
    dim: tl.constexpr,
    stride: tl.constexpr,
    WORK: tl.constexpr,
    COUNT: tl.constexpr,
    VECTOR: tl.constexpr,
    HEADS: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    DIM: tl.constexpr,
    PIECES: tl.constexpr,
):
    """Over the transpose: the gradients of h's rows and their scores, or of PIECES their summands, into rows as h's."""
    wide: tl.constexpr = DIM // HEADS
    inner: tl.constexpr = min(VECTOR, wide)
    place, there, column, start, length = row_range(rows, count, ROWS)
    head, lane = tl.program_id(1) * HEADS + tl.arange(0, HEADS), tl.arange(0, NEIGHBOURS)
    own_heads = _heads(there, head, heads, HEADS)
    own = tl.load(h + column[:, None] * stride + heads * dim + head[None, :], mask=own_heads, other=0)
    steep = number(slope, WORK)
    target = place if PIECES else column
    # The gradient of a score: of every entry <grad, h> times its weight, less <grad, y> of its row times that.
    gained = tl.zeros((ROWS, NEIGHBOURS, HEADS, wide // inner), WORK)
    lost = tl.zeros((ROWS, NEIGHBOURS, HEADS), WORK)
    for part in range(PARTS):
        offset, real = _offsets(part, heads, dim, HEADS, DIM)
        mask = _columns_of(there, real, dim, heads, HEADS, DIM)
        mine = tl.load(h + column[:, None] * stride + offset[None, :], mask=mask, other=0)
        mine = tl.reshape(mine, (ROWS, 1, HEADS, wide // inner, inner))
        y = tl.zeros((ROWS, NEIGHBOURS, HEADS, wide // inner, inner), WORK)
        following = _others(indices, start, lane, length)
        for k in range(0, tl.max(length, 0), NEIGHBOURS):
            i, inside = following.to(tl.int64), (k + lane)[None, :] < length[:, None]
            following = _others(indices, start, k + NEIGHBOURS + lane, length)
            entry_heads = _heads(inside, head, heads, HEADS)
            at = nodes + i[:, :, None, None] * (4 * heads) + (head * 4)[None, None, :, None] + tl.arange(0, 4)
            node = tl.load(at, mask=entry_heads[:, :, :, None], other=0)
            source = grad + i[:, :, None] * grad_stride + offset[None, None, :]
            entry_columns = _columns_of(inside, real, dim, heads, HEADS, DIM)
            upstream = tl.load(source, mask=entry_columns, other=0)
            upstream = tl.reshape(upstream, (ROWS, NEIGHBOURS, HEADS, wide // inner, inner))
            even, odd = tl.split(tl.reshape(node, (ROWS, NEIGHBOURS, HEADS, 2, 2)))
            s, norm = tl.split(even)
            shift, dot = tl.split(odd)
            s += own[:, None, :]
            a = tl.where(entry_heads, tl.exp(_leaky(s, steep) - shift) * norm, 0)
            sloped = tl.where(s > 0, 1, steep)
            lost += tl.where(part == 0, a * sloped * dot, 0)
            w = _dropped(a, i, column[:, None], head, seed, threshold, scale, COUNT, WORK)
            y += w[:, :, :, None, None] * upstream
            gained += (w * sloped)[:, :, :, None] * tl.sum(upstream * mine, axis=4)
        y = tl.reshape(tl.sum(y, axis=1), (ROWS, DIM))
        tl.store(out + target[:, None] * stride + offset[None, :], y, mask=mask)
    gradient = tl.sum(tl.sum(gained, axis=3), axis=1) - tl.sum(lost, axis=1)
    tl.store(out + target[:, None] * stride + heads * dim + head[None, :], gradient, mask=own_heads)


@triton.jit
def _join_columns(
    long,
    sums,
    out,
    columns: tl.constexpr,
    stride: tl.constexpr,
    WORK: tl.constexpr,
    DIM: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """The second stage of long columns: the columns of h and the scores, of all pieces in their order."""
    item = tl.program_id(0).to(tl.int64)
    row, first, last = tl.load(long + item * 3), tl.load(long + item * 3 + 1), tl.load(long + item * 3 + 2)
    col, lane = tl.program_id(1) * DIM + tl.arange(0, DIM), tl.arange(0, AT_ONCE)
    total = tl.zeros((AT_ONCE, DIM), WORK)
    for start in range(first, last, AT_ONCE):
        mask = (start + lane < last)[:, None] & (col < columns)[None, :]
        total += tl.load(sums + (start + lane)[:, None] * stride + col[None, :], mask=mask, other=0)
    tl.store(out + row * stride + col, tl.sum(total, axis=0), mask=col < columns)
