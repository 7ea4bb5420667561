"""Triton kernels of ngcf_layer: one multiplies blocks of rows and finishes them, every kind of gradient has its own.

The aggregates come from spmm's kernels and lie in memory in between. Products are sums over panels of columns in IEEE
arithmetic, of operands x_i + s_i and x_i * s_i that exist in registers only.
"""

# mypy: ignore-errors

import torch
import triton
import triton.language as tl

from gnnrec import device as devices
from gnnrec.ops import _dropout, tuning
from gnnrec.ops._launch import Matrix, Tile, bits, launch, power_of_2, rows_contiguous, walk_entries
from gnnrec.ops._tiles import TYPES, kept_columns, kept_entries, number, row_range
from gnnrec.ops.ngcf_layer import cpu
from gnnrec.ops.ngcf_layer.passes import Dropout
from gnnrec.ops.spmm import cuda as spmm_cuda

WHOLE = 256  # columns at the most that one program has all of, so that it can divide them by their norm
PANEL = 64  # columns of a program that need not be whole
NUMBERS = 16  # of a block that a thread sums up, 4 x 4, so that it uses 4 times what it loads
STEP = 16  # terms of a sum at once, the least that tl.dot takes: a thread holds all of its operands
SHARES = 256  # programs, about, that sums over rows are shared out among

THIN = Tile(dim=1, panels=1, lanes=32, sharing=True, warps=1)  # of walks over entries that gather no rows

_FLOOR = tl.constexpr(cpu.NORM_FLOOR)
_MESSAGES, _ENTRIES = tl.constexpr(cpu.MESSAGES), tl.constexpr(cpu.ENTRIES)


def forward(
    matrix: Matrix,
    x: torch.Tensor,
    x_rows: torch.Tensor,
    weights: torch.Tensor,
    biases: torch.Tensor,
    slope: float,
    dropout: Dropout,
    edge_bias: bool,
    out: torch.Tensor,
    norms: torch.Tensor,
    aggregates: torch.Tensor,
) -> None:
    """Fill out [rows, out], norms [rows] and aggregates [rows, in], the last two where they are not empty.

    Args:
        matrix: as `_launch.unpack` gives it.
        x, x_rows: [cols, in] and [rows, in].
        weights: [out, 2 in], of x_i + s_i and then of x_i * s_i.
        biases: [2, out], of rows and of the sums of their entries.
    """
    sums, totals = _sums(matrix, x, weights, dropout, edge_bias, aggregates)
    dim, columns, normalised = x.shape[1], out.shape[1], norms.numel() > 0
    at_once = normalised and columns <= WHOLE
    width = _width(columns, WHOLE if at_once else PANEL)
    # A wide row's columns meet once they are all there; halves are rounded after that.
    target = out if at_once or not normalised else devices.empty(weights, out.shape, "the rows before their division")
    rows, warps = _block(matrix, x, width)
    x_rows = rows_contiguous(x_rows)
    # Transposed: threads that read neighbouring columns of a product then find them in different banks.
    weights = weights.T.contiguous()
    launch(
        _forward,
        (-(-matrix.rows // rows), -(-columns // width)),
        *(x_rows, x_rows.stride(0), sums, weights, biases.contiguous(), totals, matrix.rows, bits(slope)),
        *(*_messages(dropout), target, norms if at_once else None),
        **{"dim": dim, "columns": columns, "DROP": dropout.messages > 0, "WORK": TYPES[weights.dtype]},
        **{"ROWS": rows, "IN": STEP, "OUT": width},
        warps=warps,
    )
    if target is not out:
        launch(_divide, (matrix.rows,), target, norms, out, columns=columns, OUT=min(power_of_2(columns), 1024))


def backward(
    matrix: Matrix,
    x: torch.Tensor,
    x_rows: torch.Tensor,
    weights: torch.Tensor,
    slope: float,
    dropout: Dropout,
    edge_bias: bool,
    out: torch.Tensor,
    norms: torch.Tensor,
    aggregates: torch.Tensor,
    grad: torch.Tensor,
    grad_rows: torch.Tensor | None,
    grad_aggregates: torch.Tensor,
    grad_weights: torch.Tensor,
    grad_biases: torch.Tensor,
) -> None:
    """Fill the gradients.

    Args:
        matrix, x, x_rows, weights, slope, dropout: as for `forward`.
        out, norms, aggregates: of the forward pass; aggregates are computed again where they are empty.
        grad: of out.
        grad_rows, grad_aggregates: of x_rows and of the aggregates, [rows, in]; neither is computed for None.
        grad_weights, grad_biases: of the weights and of the biases.
    """
    dim, columns, work = x.shape[1], out.shape[1], TYPES[weights.dtype]
    x_rows, grad, weights = rows_contiguous(x_rows), rows_contiguous(grad), weights.contiguous()
    upstream = devices.empty(weights, out.shape, "the gradient of the products")
    width = min(power_of_2(columns), 512)
    rows = max(1, 8192 // weights.dtype.itemsize // width)
    launch(
        _upstream,
        (-(-matrix.rows // rows),),
        *(grad, grad.stride(0), out, norms if norms.numel() else None, matrix.rows, bits(slope)),
        *(*_messages(dropout), upstream),
        **{"columns": columns, "DROP": dropout.messages > 0, "WORK": work, "ROWS": rows, "OUT": width},
    )
    known = aggregates.numel() > 0
    sums, totals = _sums(matrix, x, weights, dropout, edge_bias, aggregates, known)
    _sum_over_rows(matrix, x_rows, sums, upstream, totals, grad_weights, grad_biases)
    if grad_rows is None:
        return
    width = _width(dim, PANEL)
    rows, warps = _block(matrix, x, width)
    launch(
        _gradients,
        (-(-matrix.rows // rows), -(-dim // width)),
        *(x_rows, x_rows.stride(0), sums, weights, upstream, matrix.rows, grad_rows, grad_aggregates),
        **{"dim": dim, "columns": columns, "WORK": work, "ROWS": rows, "IN": width, "OUT": STEP},
        warps=warps,
    )


def aggregate(
    matrix: Matrix,
    x: torch.Tensor | None,
    out: torch.Tensor,
    dropout: Dropout,
    base: torch.Tensor | None = None,
    *,
    transposed: bool = False,
    kept: torch.Tensor | None = None,
) -> None:
    """out = matrix @ x + base without the dropped entries.

    Args:
        x: [cols, dim], or None for ones.
        base: [rows, dim], out itself perhaps.
        transposed: whether this is the transpose of the matrix whose entries are dropped.
        kept: what `_kept` makes, where it has been made.
    """
    if kept is None and dropout.entries:
        kept = _kept(matrix, dropout, transposed)
    shape = THIN if x is None else None
    spmm_cuda.spmm(matrix, x, None, out, "sum", 1 / (1 - dropout.entries), base, 1.0, kept=kept, shape=shape)


def _sums(
    matrix: Matrix,
    x: torch.Tensor,
    weights: torch.Tensor,
    dropout: Dropout,
    edge_bias: bool,
    aggregates: torch.Tensor,
    known: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The aggregates [rows, in], in `aggregates` where that is not empty, where they may be `known`; and, for
    `edge_bias`, the sums of the rows' entries [rows, 1]."""
    kept = _kept(matrix, dropout, False) if dropout.entries and (edge_bias or not known) else None
    sums, totals = aggregates, None
    if not known:
        if not aggregates.numel():
            sums = devices.empty(weights, (matrix.rows, x.shape[1]), "the aggregates")
        aggregate(matrix, x, sums, dropout, kept=kept)
    if edge_bias:
        totals = devices.empty(weights, (matrix.rows, 1), "the sums of rows' entries")
        aggregate(matrix, None, totals, dropout, kept=kept)
    return sums, totals


def _kept(matrix: Matrix, dropout: Dropout, transposed: bool) -> torch.Tensor:
    """Which entries are kept, uint8 [nnz], in memory while one aggregation runs. Drawn where they are gathered, every
    thread that has a part of a row of x would draw them anew, and wait for them."""
    kept = devices.empty(matrix.indices, (matrix.nnz,), "which entries are kept", torch.uint8)
    walk_entries(_keep, matrix, THIN, *_drawn(dropout.seed, dropout.entries), kept, SWAPPED=transposed)
    return kept


def _drawn(seed: int, p: float) -> tuple[int, int]:
    return seed, _dropout.threshold(p)


def _messages(dropout: Dropout) -> tuple[int, int, int]:
    """Seed, threshold and scale as kernels take them."""
    return *_drawn(dropout.seed, dropout.messages), bits(1 / (1 - dropout.messages))


def _width(columns: int, most: int) -> int:
    """Of panels of so many columns."""
    return max(STEP, min(power_of_2(columns), most))


def _block(matrix: Matrix, x: torch.Tensor, width: int) -> tuple[int, int]:
    """Rows of a program that has `width` columns of them, and its warps: a thread has NUMBERS of the block or less."""
    shape = tuning.choose("ngcf_layer", x.shape[1], 1, x.dtype, matrix.histogram.tolist(), x.device)
    rows = max(16, min(shape["rows"], 32 * NUMBERS * shape["warps"] // width))
    return rows, max(shape["warps"], rows * width // (32 * NUMBERS))


def _sum_over_rows(
    matrix: Matrix,
    x_rows: torch.Tensor,
    sums: torch.Tensor,
    upstream: torch.Tensor,
    totals: torch.Tensor | None,
    grad_weights: torch.Tensor,
    grad_biases: torch.Tensor,
) -> None:
    """Fill the gradients of weights and biases: shares of the rows are summed up, then their sums in their order."""
    dim, columns = x_rows.shape[1], upstream.shape[1]
    most = PANEL * 4 // upstream.dtype.itemsize
    wide, deep = _width(columns, most), _width(dim, most)
    tiles = -(-columns // wide), -(-dim // deep)
    shares = max(1, SHARES // (tiles[0] * tiles[1]))
    share = STEP * max(1, -(-matrix.rows // (STEP * shares)))
    shares = -(-matrix.rows // share)
    # Numbers that are fetched one by one have an address in registers each, a second time where they are fetched ahead.
    single = dim % 4 > 0 or columns % 4 > 0
    partial = devices.empty(upstream, (shares, *grad_weights.shape), "the partial gradients of the weights")
    partial_biases = devices.empty(upstream, (shares, *grad_biases.shape), "the partial gradients of the biases")
    launch(
        _weights,
        (shares, *tiles),
        *(x_rows, x_rows.stride(0), sums, upstream, totals, matrix.rows, share, partial, partial_biases),
        **{"dim": dim, "columns": columns, "WORK": TYPES[upstream.dtype], "ROWS": STEP, "IN": deep, "OUT": wide},
        warps=max(1, wide * deep // (32 * NUMBERS)),
        stages=1 if single else 2,
    )
    torch.sum(partial, 0, out=grad_weights)
    torch.sum(partial_biases, 0, out=grad_biases)


@triton.jit(do_not_specialize=["count", "seed", "threshold"])
def _keep(
    rows,
    count,
    indices,
    seed: tl.int64,
    threshold: tl.int64,
    out,
    SWAPPED: tl.constexpr,
    ROWS: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    DIM: tl.constexpr,
):
    """Decides about entries; `SWAPPED` where their rows are the columns of the matrix whose entries are dropped."""
    _, _, row, start, length = row_range(rows, count, ROWS)
    lane = tl.arange(0, NEIGHBOURS)
    for k in range(0, tl.max(length, 0), NEIGHBOURS):
        inside = (k + lane)[None, :] < length[:, None]
        entry = start[:, None] + (k + lane)[None, :]
        j = tl.load(indices + entry, mask=inside, other=0)
        if SWAPPED:
            keep = kept_entries(seed, j, row[:, None], _ENTRIES, threshold)
        else:
            keep = kept_entries(seed, row[:, None], j, _ENTRIES, threshold)
        tl.store(out + entry, keep.to(tl.uint8), mask=inside)


@triton.jit
def _tile(x, stride, first, rows, ROWS: tl.constexpr, columns, start, COLUMNS: tl.constexpr, WORK: tl.constexpr):
    """x[first : first + ROWS, start : start + COLUMNS] of a tensor [rows, columns]; 0 beyond its ends."""
    row, column = tl.arange(0, ROWS), start + tl.arange(0, COLUMNS)
    here = (row < rows - first)[:, None] & (column < columns)[None, :]
    # Offsets are small: what is large in an address belongs to the program.
    return tl.load(x + first * stride + (row[:, None] * stride + column[None, :]), mask=here, other=0).to(WORK)


@triton.jit
def _put(x, stride, first, rows, columns, start, tile):
    """x[first : first + ROWS, start : start + COLUMNS] = tile, as far as there is such a thing."""
    row, column = tl.arange(0, tile.shape[0]), start + tl.arange(0, tile.shape[1])
    here = (row < rows - first)[:, None] & (column < columns)[None, :]
    target = x + first * stride + (row[:, None] * stride + column[None, :])
    tl.store(target, tile.to(x.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=["rows", "slope", "seed", "threshold", "scale"])
def _forward(
    x_rows,
    x_stride: tl.constexpr,
    sums,
    weights,
    biases,
    totals,
    rows,
    slope: tl.int64,
    seed: tl.int64,
    threshold: tl.int64,
    scale: tl.int64,
    out,
    norms,
    dim: tl.constexpr,
    columns: tl.constexpr,
    DROP: tl.constexpr,
    WORK: tl.constexpr,
    ROWS: tl.constexpr,
    IN: tl.constexpr,
    OUT: tl.constexpr,
):
    """Product, bias, leaky_relu and dropout of OUT columns of a block of rows; where there are norms, the division."""
    first, start = tl.program_id(0).to(tl.int64) * ROWS, tl.program_id(1) * OUT
    total = tl.zeros((ROWS, OUT), WORK)
    for k in range(0, dim, IN):
        own = _tile(x_rows, x_stride, first, rows, ROWS, dim, k, IN, WORK)
        near = _tile(sums, dim, first, rows, ROWS, dim, k, IN, WORK)
        of_sum = _tile(weights, columns, k, dim, IN, columns, start, OUT, WORK)
        of_product = _tile(weights + dim * columns, columns, k, dim, IN, columns, start, OUT, WORK)
        total = tl.dot(own + near, of_sum, total, input_precision="ieee", out_dtype=WORK)
        total = tl.dot(own * near, of_product, total, input_precision="ieee", out_dtype=WORK)
    row, o = tl.arange(0, ROWS), start + tl.arange(0, OUT)
    total += tl.load(biases + o, mask=o < columns, other=0)[None, :]
    if totals is not None:
        of_entries = tl.load(biases + columns + o, mask=o < columns, other=0)
        total += tl.load(totals + first + row, mask=row < rows - first, other=0)[:, None] * of_entries[None, :]
    total = tl.where(total > 0, total, total * number(slope, WORK))
    if DROP:
        keep = kept_columns(seed, first + row, _MESSAGES, start, threshold, OUT)
        total = tl.where(keep, total * number(scale, WORK), 0)
    if norms is not None:
        norm = tl.maximum(tl.sqrt(tl.sum(total * total, axis=1)), tl.full((ROWS,), _FLOOR, WORK))
        tl.store(norms + first + row, norm, mask=row < rows - first)
        total *= (1 / norm)[:, None]
    _put(out, columns, first, rows, columns, start, total)


@triton.jit
def _divide(wide, norms, out, columns: tl.constexpr, OUT: tl.constexpr):
    """Divides a row by its norm."""
    row, one = tl.program_id(0).to(tl.int64), tl.arange(0, 1)
    squares = tl.zeros((1, OUT), wide.dtype.element_ty)
    for start in range(0, columns, OUT):
        part = _tile(wide, columns, row, row + 1, 1, columns, start, OUT, wide.dtype.element_ty)
        squares += part * part
    # Compared as a tensor: some versions of Triton round a number by itself to float32.
    norm = tl.maximum(tl.sqrt(tl.sum(squares, axis=1)), tl.full((1,), _FLOOR, wide.dtype.element_ty))
    tl.store(norms + row + one, norm)
    for start in range(0, columns, OUT):
        part = _tile(wide, columns, row, row + 1, 1, columns, start, OUT, wide.dtype.element_ty)
        _put(out, columns, row, row + 1, columns, start, part * (1 / norm)[:, None])


@triton.jit(do_not_specialize=["rows", "slope", "seed", "threshold", "scale"])
def _upstream(
    grad,
    grad_stride: tl.constexpr,
    out,
    norms,
    rows,
    slope: tl.int64,
    seed: tl.int64,
    threshold: tl.int64,
    scale: tl.int64,
    upstream,
    columns: tl.constexpr,
    DROP: tl.constexpr,
    WORK: tl.constexpr,
    ROWS: tl.constexpr,
    OUT: tl.constexpr,
):
    """The gradient of what leaky_relu was given."""
    first, row = tl.program_id(0).to(tl.int64) * ROWS, tl.arange(0, ROWS)
    inverse, dot = tl.full((ROWS,), 1, WORK), tl.zeros((ROWS,), WORK)
    if norms is not None:
        norm = tl.load(norms + first + row, mask=row < rows - first, other=1)
        inverse = 1 / norm
        for start in tl.static_range(0, columns, OUT):
            g = _tile(grad, grad_stride, first, rows, ROWS, columns, start, OUT, WORK)
            dot += tl.sum(g * _tile(out, columns, first, rows, ROWS, columns, start, OUT, WORK), axis=1)
        dot = tl.where(norm > tl.full((ROWS,), _FLOOR, WORK), dot, 0)
    for start in tl.static_range(0, columns, OUT):
        g = _tile(grad, grad_stride, first, rows, ROWS, columns, start, OUT, WORK)
        y = _tile(out, columns, first, rows, ROWS, columns, start, OUT, WORK)
        g = (g - dot[:, None] * y) * inverse[:, None]
        if DROP:
            keep = kept_columns(seed, first + row, _MESSAGES, start, threshold, OUT)
            g = tl.where(keep, g * number(scale, WORK), 0)
        # y has the sign of what leaky_relu was given, save where it was dropped.
        _put(upstream, columns, first, rows, columns, start, tl.where(y > 0, g, g * number(slope, WORK)))


@triton.jit(do_not_specialize=["rows"])
def _gradients(
    x_rows,
    x_stride: tl.constexpr,
    sums,
    weights,
    upstream,
    rows,
    grad_rows,
    grad_aggregates,
    dim: tl.constexpr,
    columns: tl.constexpr,
    WORK: tl.constexpr,
    ROWS: tl.constexpr,
    IN: tl.constexpr,
    OUT: tl.constexpr,
):
    """The gradients of IN columns of a block of rows and of their aggregates."""
    first, start = tl.program_id(0).to(tl.int64) * ROWS, tl.program_id(1) * IN
    of_sum, of_product = tl.zeros((ROWS, IN), WORK), tl.zeros((ROWS, IN), WORK)
    for k in range(0, columns, OUT):
        g = _tile(upstream, columns, first, rows, ROWS, columns, k, OUT, WORK)
        w1 = _tile(weights, 2 * dim, k, columns, OUT, dim, start, IN, WORK)
        w2 = _tile(weights + dim, 2 * dim, k, columns, OUT, dim, start, IN, WORK)
        of_sum = tl.dot(g, w1, of_sum, input_precision="ieee", out_dtype=WORK)
        of_product = tl.dot(g, w2, of_product, input_precision="ieee", out_dtype=WORK)
    own = _tile(x_rows, x_stride, first, rows, ROWS, dim, start, IN, WORK)
    near = _tile(sums, dim, first, rows, ROWS, dim, start, IN, WORK)
    _put(grad_rows, dim, first, rows, dim, start, of_sum + of_product * near)
    _put(grad_aggregates, dim, first, rows, dim, start, of_sum + of_product * own)


@triton.jit(do_not_specialize=["rows", "share"])
def _weights(
    x_rows,
    x_stride: tl.constexpr,
    sums,
    upstream,
    totals,
    rows,
    share,
    partial,
    partial_biases,
    dim: tl.constexpr,
    columns: tl.constexpr,
    WORK: tl.constexpr,
    ROWS: tl.constexpr,
    IN: tl.constexpr,
    OUT: tl.constexpr,
):
    """A tile of the weights' gradients, and its part of the biases', summed over a share of the rows."""
    place = tl.program_id(0).to(tl.int64)
    begin, o_start, i_start = place * share, tl.program_id(1) * OUT, tl.program_id(2) * IN
    of_sum, of_product = tl.zeros((OUT, IN), WORK), tl.zeros((OUT, IN), WORK)
    own_bias, entry_bias = tl.zeros((OUT,), WORK), tl.zeros((OUT,), WORK)
    for first in range(begin, tl.minimum(begin + share, rows), ROWS):
        g = _tile(upstream, columns, first, rows, ROWS, columns, o_start, OUT, WORK)
        own = _tile(x_rows, x_stride, first, rows, ROWS, dim, i_start, IN, WORK)
        near = _tile(sums, dim, first, rows, ROWS, dim, i_start, IN, WORK)
        of_sum = tl.dot(tl.trans(g), own + near, of_sum, input_precision="ieee", out_dtype=WORK)
        of_product = tl.dot(tl.trans(g), own * near, of_product, input_precision="ieee", out_dtype=WORK)
        if tl.program_id(2) == 0:
            own_bias += tl.sum(g, axis=0)
            if totals is not None:
                row = tl.arange(0, ROWS)
                total = tl.load(totals + first + row, mask=row < rows - first, other=0)
                entry_bias += tl.sum(g * total[:, None], axis=0)
    target = partial + place * (2 * dim * columns)
    _put(target, 2 * dim, o_start, columns, dim, i_start, of_sum)
    _put(target + dim, 2 * dim, o_start, columns, dim, i_start, of_product)
    if tl.program_id(2) == 0:
        o = o_start + tl.arange(0, OUT)
        tl.store(partial_biases + place * (2 * columns) + o, own_bias, mask=o < columns)
        tl.store(partial_biases + place * (2 * columns) + columns + o, entry_bias, mask=o < columns)
