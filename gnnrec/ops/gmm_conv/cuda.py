"""Triton kernels of gmm_conv, for the forward pass over the matrix and the backward pass over its transpose.

A program computes the Gaussian weights of its entries once, for several kernels side by side, gathers a neighbour's row
once and adds it to a sum for each of these. The sums of a block of rows are a temporary of at most BLOCK bytes, which
cuBLAS multiplies: memory does not grow with rows times kernels. Pieces of long rows have an ordered second stage.
"""

# mypy: ignore-errors

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from gnnrec import device as devices
from gnnrec.ops import _arguments
from gnnrec.ops._launch import (
    MOST_REGISTERS,
    Matrix,
    Tile,
    launch,
    power_of_2,
    rows_contiguous,
    tile,
    walk_entries,
)
from gnnrec.ops._tiles import TYPES, entry_factors, row_range

BLOCK = 256 * 2**20  # bytes of a temporary with every kernel's sums of some rows
WEIGHTS = 64  # of a warp at once, at the most: neighbours times kernels
ONCE = 32  # bytes of the kernels' numbers that a walk serves: 8 kernels in float32, or it would spill


def gmm(
    matrix: Matrix,
    x: torch.Tensor,
    pseudo: torch.Tensor,
    mu: torch.Tensor,
    inv_sigma: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """out = sum over kernels k of (the matrix weighted by the k-th Gaussian) @ x @ weight[k].T.

    Args:
        matrix: as `_launch.unpack` gives it.
        x: [cols, in]; pseudo: [nnz, p]; mu, inv_sigma: [kernels, p]; weight: [kernels, out, in]; out: [rows, out].
    """
    dim, dtype = x.shape[1], _arguments.compute_dtype(x.dtype)
    x, pseudo = rows_contiguous(x), rows_contiguous(pseudo)
    mu, inv_sigma, parts = mu.to(dtype).contiguous(), inv_sigma.to(dtype).contiguous(), _parts(len(mu), dtype)
    factors = [weight[part].to(dtype).mT.reshape(-1, out.shape[1]).contiguous() for part in parts]
    width = max(map(len, factors))
    most = _rows_at_once(matrix, width, dtype)
    memory = devices.empty(x, most * width, "the sums of a block of rows", dtype)
    products = devices.empty(x, (most, out.shape[1]), "the product of a block of rows", dtype)
    for rows, some in _blocks(matrix, most):
        product = products[: len(rows)]
        for number, (part, factor) in enumerate(zip(parts, factors)):
            sums = memory[: len(rows) * len(factor)].view(len(rows), len(factor))
            shape = _tile(some, dim, len(mu[part]), x.dtype, one_warp=False)
            given = some.row_scale, some.col_scale, some.entries, x, x.stride(0)
            gaussians = pseudo, pseudo.stride(0), mu[part], inv_sigma[part]
            _collect(_aggregate, some, shape, (*given, *gaussians), sums, **_constants(dim, mu[part], shape))
            torch.addmm(product, sums, factor, beta=min(number, 1), out=product)
        _scatter(rows, product, out)


def gmm_backward(
    transposed: Matrix,
    grad: torch.Tensor,
    x: torch.Tensor,
    pseudo: torch.Tensor,
    mu: torch.Tensor,
    inv_sigma: torch.Tensor,
    weight: torch.Tensor,
) -> list[torch.Tensor]:
    """The gradients of x, pseudo, mu, inv_sigma and weight, in dtypes of which x's can be made.

    Args:
        transposed: the transpose of the forward pass's matrix, its entries naming those of the matrix.
        grad: [rows, out].
        x, ..., weight: as in the forward pass.
    """
    dim, dtype = grad.shape[1], _arguments.compute_dtype(x.dtype)
    grad, pseudo = rows_contiguous(grad), rows_contiguous(pseudo)
    mu, inv_sigma, parts = mu.to(dtype).contiguous(), inv_sigma.to(dtype).contiguous(), _parts(len(mu), dtype)
    factors = [weight[part].to(dtype).reshape(-1, x.shape[1]).contiguous() for part in parts]
    width = max(map(len, factors))
    most = _rows_at_once(transposed, width, dtype)
    memory = devices.empty(x, most * width, "the sums of a block of rows", dtype)
    ends = devices.empty(x, max(most, len(transposed.pieces)) * width, "the features of a block of rows", dtype)
    products = devices.empty(x, (most, x.shape[1]), "the gradients of a block of rows", dtype)
    grad_x = devices.empty(x, x.shape, "the gradient of x")
    # Walks for some kernels each add up.
    grad_pseudo = devices.empty(x, pseudo.shape, "the gradient of pseudo", x.dtype if len(parts) == 1 else dtype)
    grad_gaussians = [mu.new_zeros(2, *mu[part].shape) for part in parts]
    grad_weight = [torch.zeros_like(factor) for factor in factors]
    for rows, some in _blocks(transposed, most):
        product, features = products[: len(rows)], x.index_select(0, rows).to(dtype)
        own = x.index_select(0, some.pieces[:, 0]).to(dtype) if len(some.pieces) else features
        for number, (part, factor) in enumerate(zip(parts, factors)):
            sums = memory[: len(rows) * len(factor)].view(len(rows), len(factor))
            end = ends[: len(own) * len(factor)].view(len(own), len(factor))
            torch.mm(own, factor.T, out=end)
            shape = _tile(some, dim, len(mu[part]), grad.dtype, one_warp=True)  # sums over entries stay within a warp
            given = some.row_scale, some.col_scale, some.entries, grad, grad.stride(0)
            gaussians = pseudo, pseudo.stride(0), mu[part], inv_sigma[part]
            programs = -(-len(own) // (shape.lanes if len(some.short) and shape.sharing else 1))
            changes = devices.empty(x, (programs, *grad_gaussians[number].shape), "the Gaussians' gradients", dtype)
            arguments, constants = (*given, *gaussians, end, grad_pseudo, changes), _constants(dim, mu[part], shape)
            constants |= {"ADD": number > 0, "registers": MOST_REGISTERS}
            if shape.panels == 1:
                _collect(_differentiate, some, shape, arguments, sums, **constants, SUM=True, DOT=True)
            else:
                _collect(_differentiate, some, shape, arguments, sums, **constants, SUM=True, DOT=False)
                whole = shape._replace(panels=1)
                walk_entries(_differentiate, some, whole, *arguments, sums, **constants, SUM=False, DOT=True)
            torch.addmm(product, sums, factor, beta=min(number, 1), out=product)
            grad_weight[number].addmm_(sums.T, features)
            grad_gaussians[number] += changes.sum(dim=0)
        _scatter(rows, product, grad_x)
    of_gaussians = (torch.cat([part[number] for part in grad_gaussians]) for number in range(2))
    return [grad_x, grad_pseudo, *of_gaussians, torch.cat(grad_weight).view(weight.shape)]


def _parts(kernels: int, dtype: torch.dtype) -> list[slice]:
    """The kernels in as few ranges of almost equal length as walks can take."""
    once = -(-kernels // -(-kernels // (ONCE // dtype.itemsize)))
    return [slice(first, min(first + once, kernels)) for first in range(0, kernels, once)]


def _constants(dim: int, mu: torch.Tensor, shape: Tile) -> dict[str, object]:
    kernels, coordinates = mu.shape
    # With as many weights as a warp has lanes, each lane computes one.
    wide = {"KERNELS": kernels, "LANES": max(power_of_2(kernels), 32 // shape.lanes), "COORDINATES": coordinates}
    return {"dim": dim, **wide, "WORK": TYPES[mu.dtype]}


def _tile(matrix: Matrix, dim: int, kernels: int, dtype: torch.dtype, *, one_warp: bool) -> Tile:
    """The tile of a walk over a block of rows that has a sum for each kernel."""
    shape, together = tile("gmm_conv", matrix, dim, dtype), power_of_2(kernels)
    if one_warp:
        shape = shape._replace(warps=1, lanes=shape.lanes // shape.warps)
    lanes = max(1, min(shape.lanes, shape.warps * WEIGHTS // together))
    if len(matrix.short):
        # Every row that shares a program holds all sums; fewer than four leave less to do at once than a row has alone.
        shape = shape._replace(sharing=shape.sharing and lanes >= 4 * together)
        lanes = lanes // together if shape.sharing else lanes
    return shape._replace(lanes=lanes)


def _rows_at_once(matrix: Matrix, width: int, dtype: torch.dtype) -> int:
    """How many rows with sums of this width a block has at the most: BLOCK bytes', but all long rows, which are few."""
    fitting = max(1, BLOCK // (width * dtype.itemsize) // 128) * 128  # slices of row lists stay aligned
    return max(min(fitting, max(len(matrix.short), len(matrix.medium))), len(matrix.long))


def _blocks(matrix: Matrix, most: int) -> Iterator[tuple[torch.Tensor, Matrix]]:
    """Blocks of rows of a kind, at most so many, each with a matrix that has no others."""
    nothing = matrix.alone[:0]
    none = matrix._replace(pieces=nothing, medium=nothing, alone=nothing, short=nothing)
    if len(matrix.long):
        yield matrix.long[:, 0], none._replace(pieces=matrix.pieces, alone=matrix.pieces)
    for kinds in (("medium", "alone"), ("short",)):
        rows = getattr(matrix, kinds[0])
        for some in rows.split(most) if len(rows) else ():
            yield some[:, 0], none._replace(**dict.fromkeys(kinds, some))


def _collect(kernel, matrix: Matrix, shape: Tile, args: tuple, sums: torch.Tensor, **constants) -> None:
    """Launch a kernel whose last argument receives the sums of a block's rows, [rows, width]."""
    if len(matrix.pieces) == 0:
        walk_entries(kernel, matrix, shape, *args, sums, **constants)
        return
    partial = devices.empty(sums, (len(matrix.pieces), sums.shape[1]), "the sums of long rows' pieces")
    walk_entries(kernel, matrix, shape, *args, partial, **constants)
    width, dim = sums.shape[1], min(128, power_of_2(sums.shape[1]))
    launch(_join, (len(sums), -(-width // dim)), matrix.long, partial, sums, width=width, DIM=dim, warps=1)


def _scatter(rows: torch.Tensor, product: torch.Tensor, out: torch.Tensor) -> None:
    """out[rows] = product, in out's dtype; rows differ."""
    dim = out.shape[1]
    columns = min(256, power_of_2(dim))
    at_once = 1024 // columns
    grid = -(-len(rows) // at_once), -(-dim // columns)
    launch(_place, grid, rows, rows.stride(0), len(rows), product, out, dim=dim, ROWS=at_once, DIM=columns, warps=4)


@triton.jit
def _parameter(table, p, KERNELS: tl.constexpr, LANES: tl.constexpr, COORDINATES: tl.constexpr):
    """A parameter [KERNELS, COORDINATES] of every kernel in a coordinate, [1, 1, LANES]; 0 beyond the last kernel."""
    kernel = tl.arange(0, LANES)
    return tl.load(table + kernel * COORDINATES + p, mask=kernel < KERNELS, other=0)[None, None, :]


@triton.jit
def _weights(
    pseudo,
    pseudo_stride: tl.constexpr,
    mu,
    inv_sigma,
    e,
    inside,
    factor,
    KERNELS: tl.constexpr,
    LANES: tl.constexpr,
    COORDINATES: tl.constexpr,
    WORK: tl.constexpr,
):
    """What every kernel weighs entries by, [ROWS, NEIGHBOURS, LANES]; 0 beyond the end."""
    exponent = tl.zeros((e.shape[0], e.shape[1], LANES), WORK)
    for p in tl.static_range(COORDINATES):
        coordinate = tl.load(pseudo + e * pseudo_stride + p, mask=inside, other=0).to(WORK)[:, :, None]
        distance = coordinate - _parameter(mu, p, KERNELS, LANES, COORDINATES)
        distance *= _parameter(inv_sigma, p, KERNELS, LANES, COORDINATES)
        exponent += distance * distance
    return tl.where(inside[:, :, None], tl.exp(-0.5 * exponent) * factor[:, :, None], 0)


@triton.jit(do_not_specialize=["count"])
def _aggregate(
    rows,
    count,
    indices,
    row_scale,
    col_scale,
    entries,
    x,
    x_stride: tl.constexpr,
    pseudo,
    pseudo_stride: tl.constexpr,
    mu,
    inv_sigma,
    sums,
    dim: tl.constexpr,
    KERNELS: tl.constexpr,
    LANES: tl.constexpr,
    COORDINATES: tl.constexpr,
    WORK: tl.constexpr,
    ROWS: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    DIM: tl.constexpr,
):
    """sums[place, k] = the row's neighbours in x, weighted by the k-th kernel."""
    place, there, row, start, length = row_range(rows, count, ROWS)
    cols = tl.program_id(1) * DIM + tl.arange(0, DIM)
    lane, kernel = tl.arange(0, NEIGHBOURS), tl.arange(0, LANES)[None, None, :]
    totals = ()
    for _ in tl.static_range(KERNELS):
        totals += (tl.zeros((ROWS, DIM), WORK),)
    for first in range(0, tl.max(length, 0), NEIGHBOURS):
        inside = (first + lane)[None, :] < length[:, None]
        e = start[:, None] + (first + lane)[None, :]
        j = tl.load(indices + e, mask=inside, other=0).to(tl.int64)
        if entries is not None:
            e = tl.load(entries + e, mask=inside, other=0)
        here = inside[:, :, None] & (cols < dim)[None, None, :]
        neighbours = tl.load(x + j[:, :, None] * x_stride + cols[None, None, :], mask=here, other=0).to(WORK)
        factor = entry_factors(row, j, e, inside, row_scale, col_scale, None, False, WORK)
        weights = _weights(pseudo, pseudo_stride, mu, inv_sigma, e, inside, factor, KERNELS, LANES, COORDINATES, WORK)
        after = ()
        for k in tl.static_range(KERNELS):
            weight = tl.sum(tl.where(kernel == k, weights, 0), axis=2)
            after += (totals[k] + tl.sum(weight[:, :, None] * neighbours, axis=1),)
        totals = after
    here = there[:, None] & (cols < dim)[None, :]
    for k in tl.static_range(KERNELS):
        tl.store(sums + place[:, None] * (KERNELS * dim) + k * dim + cols[None, :], totals[k], mask=here)


@triton.jit(do_not_specialize=["count"])
def _differentiate(
    rows,
    count,
    indices,
    row_scale,
    col_scale,
    entries,
    grad,
    grad_stride: tl.constexpr,
    pseudo,
    pseudo_stride: tl.constexpr,
    mu,
    inv_sigma,
    ends,
    grad_pseudo,
    changes,
    sums,
    dim: tl.constexpr,
    KERNELS: tl.constexpr,
    LANES: tl.constexpr,
    COORDINATES: tl.constexpr,
    WORK: tl.constexpr,
    ADD: tl.constexpr,
    SUM: tl.constexpr,
    DOT: tl.constexpr,
    ROWS: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    DIM: tl.constexpr,
):
    """Over the transpose: with SUM, the rows' sums of the upstream gradient, weighted by each kernel; with DOT, whose
    programs have all columns, the gradients of the coordinates and a program's part of those of the Gaussians.

    Args:
        ends: [places, kernels, dim]: the rows' features, multiplied by every kernel's weight. Their dot products with
            the neighbour's upstream gradient are the gradients of an entry's weights.
        grad_pseudo: [nnz, coordinates], is added to with ADD.
        changes: [programs, 2, kernels, coordinates]: of mu, then of inv_sigma.
    """
    place, there, row, start, length = row_range(rows, count, ROWS)
    lane, kernel = tl.arange(0, NEIGHBOURS), tl.arange(0, LANES)[None, None, :]
    totals, of_mu, of_inv_sigma = (), (), ()
    for _ in tl.static_range(KERNELS if SUM else 0):
        totals += (tl.zeros((ROWS, DIM), WORK),)
    for _ in tl.static_range(COORDINATES if DOT else 0):
        of_mu += (tl.zeros((ROWS, NEIGHBOURS, LANES), WORK),)
        of_inv_sigma += (tl.zeros((ROWS, NEIGHBOURS, LANES), WORK),)
    for first in range(0, tl.max(length, 0), NEIGHBOURS):
        inside = (first + lane)[None, :] < length[:, None]
        e = start[:, None] + (first + lane)[None, :]
        i = tl.load(indices + e, mask=inside, other=0).to(tl.int64)
        if entries is not None:
            e = tl.load(entries + e, mask=inside, other=0)
        factor = entry_factors(row, i, e, inside, row_scale, col_scale, None, False, WORK)
        weights = _weights(pseudo, pseudo_stride, mu, inv_sigma, e, inside, factor, KERNELS, LANES, COORDINATES, WORK)
        change = tl.zeros((ROWS, NEIGHBOURS, LANES), WORK)
        for panel in tl.static_range(0, dim if DOT else 1, DIM):
            cols = tl.program_id(1) * DIM + panel + tl.arange(0, DIM)
            here = inside[:, :, None] & (cols < dim)[None, None, :]
            upstream = tl.load(grad + i[:, :, None] * grad_stride + cols[None, None, :], mask=here, other=0).to(WORK)
            after = ()
            for k in tl.static_range(KERNELS):
                if SUM:
                    weight = tl.sum(tl.where(kernel == k, weights, 0), axis=2)
                    after += (totals[k] + tl.sum(weight[:, :, None] * upstream, axis=1),)
                if DOT:
                    own = there[:, None] & (cols < dim)[None, :]
                    end = tl.load(ends + place[:, None] * (KERNELS * dim) + k * dim + cols[None, :], mask=own, other=0)
                    change += tl.where(kernel == k, tl.sum(end[:, None, :] * upstream, axis=2)[:, :, None], 0)
            totals = after
        if DOT:
            change *= weights
            mus, inv_sigmas = (), ()
            for p in tl.static_range(COORDINATES):
                # Loaded for every kernel, or all lanes that share an entry's columns would compute all of its kernels.
                spread = (pseudo + e * pseudo_stride + p)[:, :, None] + tl.zeros_like(kernel)
                coordinate = tl.load(spread, mask=inside[:, :, None], other=0).to(WORK)
                distance = coordinate - _parameter(mu, p, KERNELS, LANES, COORDINATES)
                slope = _parameter(inv_sigma, p, KERNELS, LANES, COORDINATES)
                step = change * (distance * slope)
                mus += (of_mu[p] + step,)
                inv_sigmas += (of_inv_sigma[p] - step * distance,)
                target, of_pseudo = grad_pseudo + e * COORDINATES + p, -tl.sum(step * slope, axis=2)
                if ADD:
                    of_pseudo += tl.load(target, mask=inside, other=0)
                tl.store(target, of_pseudo.to(grad_pseudo.dtype.element_ty), mask=inside)
            of_mu, of_inv_sigma = mus, inv_sigmas
    if SUM:
        cols = tl.program_id(1) * DIM + tl.arange(0, DIM)
        here = there[:, None] & (cols < dim)[None, :]
        for k in tl.static_range(KERNELS):
            tl.store(sums + place[:, None] * (KERNELS * dim) + k * dim + cols[None, :], totals[k], mask=here)
    if DOT:
        number = tl.arange(0, LANES)
        target = changes + tl.program_id(0).to(tl.int64) * (2 * KERNELS * COORDINATES) + number * COORDINATES
        for p in tl.static_range(COORDINATES):
            slope = _parameter(inv_sigma, p, KERNELS, LANES, COORDINATES)
            tl.store(target + p, tl.sum(tl.sum(of_mu[p] * slope, axis=1), axis=0), mask=number < KERNELS)
            total = tl.sum(tl.sum(of_inv_sigma[p], axis=1), axis=0)
            tl.store(target + KERNELS * COORDINATES + p, total, mask=number < KERNELS)


@triton.jit
def _join(long, partial, out, width: tl.constexpr, DIM: tl.constexpr):
    """The second stage of long rows: out[l] = the sum of its pieces, in an order of their own."""
    place = tl.program_id(0).to(tl.int64)
    first, last = tl.load(long + place * 3 + 1), tl.load(long + place * 3 + 2)
    cols = tl.program_id(1) * DIM + tl.arange(0, DIM)
    total = tl.zeros((8, DIM), partial.dtype.element_ty)
    for piece in range(first, last, 8):
        pieces = piece + tl.arange(0, 8)
        here = (pieces < last)[:, None] & (cols < width)[None, :]
        total += tl.load(partial + pieces[:, None] * width + cols[None, :], mask=here, other=0)
    tl.store(out + place * width + cols, tl.sum(total, axis=0), mask=cols < width)


@triton.jit(do_not_specialize=["count"])
def _place(rows, rows_stride, count, product, out, dim: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = tl.program_id(1) * DIM + tl.arange(0, DIM)
    row = tl.load(rows + place * rows_stride, mask=place < count, other=0).to(tl.int64)
    here = (place < count)[:, None] & (cols < dim)[None, :]
    numbers = tl.load(product + place[:, None] * dim + cols[None, :], mask=here, other=0)
    tl.store(out + row[:, None] * dim + cols[None, :], numbers.to(out.dtype.element_ty), mask=here)
