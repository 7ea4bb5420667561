"""Triton kernels of adam_step: one that knows the step's number, one that takes a block of rows from its loads to its
stores."""

# mypy: ignore-errors

from math import inf, log

import torch
import triton
import triton.language as tl

from gnnrec import device as devices
from gnnrec.ops import _arguments
from gnnrec.ops._launch import MOST_REGISTERS, bits, launch, panel, rows_contiguous
from gnnrec.ops._tiles import TYPES, number, row_words
from gnnrec.ops.adam import cpu

NUMBERS, WARPS = 1024, 4  # of a program's tile in float32, and its warps: two vectors of 16 bytes a thread
_MOMENTS, _PARAMETER = tl.constexpr(cpu.MOMENTS), tl.constexpr(cpu.PARAMETER)


def step(
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    mean: torch.Tensor,
    square: torch.Tensor,
    master: torch.Tensor | None,
    rate: float | torch.Tensor,
    count: int | torch.Tensor,
    numbers: list[float],
    seed: int,
) -> None:
    """A step in place on [rows, dim]; master is None, or float32.

    Args:
        rate, count: lr and the step's number, each itself or a tensor on the GPU that holds it.
        numbers: both betas, eps, decay in the gradient, decay of the parameter beside it, the greatest norm of a row.
    """
    first, second, eps, decay, shrinking, clip = numbers
    dim, work = parameter.shape[1], _arguments.compute_dtype(parameter.dtype)
    gradient, columns = rows_contiguous(gradient), panel(dim)
    factors = devices.empty(parameter, 4, "the factors of adam_step", torch.float64)
    given = rate if isinstance(rate, torch.Tensor) else bits(rate), bits(shrinking)
    powers = (bits(log(beta) if beta else -inf) for beta in (first, second))
    pointers = {"RATE": isinstance(rate, torch.Tensor), "COUNT": isinstance(count, torch.Tensor)}
    launch(_factors, (1,), factors, count, *given, *powers, warps=1, **pointers)
    tensors = parameter, gradient, mean, square, master
    strides = [0 if x is None else x.stride(0) for x in tensors]
    scalars = map(bits, (decay, first, 1 - first, second, 1 - second, eps, clip))
    rows = max(1, NUMBERS * 4 // work.itemsize // columns)
    grid = -(-len(parameter) // rows), -(-dim // columns)
    kinds = {"dim": dim, "CLIP": clip < inf, "WORK": TYPES[work], "ROWS": rows, "DIM": columns}
    options = {"warps": WARPS, "registers": MOST_REGISTERS}
    launch(_step, grid, *tensors, *strides, len(parameter), factors, *scalars, seed, **options, **kinds)


@triton.jit
def _rest(step, power):
    """1 - beta^step of power = log(beta), exact near 0, too (Higham, "Accuracy and Stability", 1.14.1)."""
    x = step * number(power, tl.float64)
    u = tl.exp(x)
    near = (u > 0.5) & (u < 1)
    exact = (1 - u) * x / tl.log(tl.where(near, u, 0.5))
    return tl.where(near, exact, tl.where(u == 1, -x, 1 - u))


@triton.jit(do_not_specialize=["step", "lr", "shrinking", "first", "second"])
def _factors(
    out, step, lr, shrinking: tl.int64, first: tl.int64, second: tl.int64, RATE: tl.constexpr, COUNT: tl.constexpr
):
    """Size of the step, factor of the root, number of the step, factor of the parameter, float64."""
    count = tl.load(step) if COUNT else step
    rate = tl.load(lr).to(tl.float64) if RATE else number(lr, tl.float64)
    count = count.to(tl.float64)
    tl.store(out, rate / _rest(count, first))
    tl.store(out + 1, 1 / tl.sqrt(_rest(count, second)))
    tl.store(out + 2, count)
    tl.store(out + 3, 1 - rate * number(shrinking, tl.float64))


@triton.jit
def _round(x, random):
    """To what bfloat16 holds, by 16 random bits: up with the probability of the part that is cut off."""
    sum_ = (x.to(tl.uint32, bitcast=True) + (random & 0xFFFF)) & 0xFFFF0000
    return tl.where(x == x, sum_.to(tl.float32, bitcast=True), x).to(tl.bfloat16)


@triton.jit(do_not_specialize=["count", "seed", "decay", "beta1", "rest1", "beta2", "rest2", "eps", "clip"])
def _step(
    parameter,
    gradient,
    mean,
    square,
    master,
    parameter_stride: tl.constexpr,
    gradient_stride: tl.constexpr,
    mean_stride: tl.constexpr,
    square_stride: tl.constexpr,
    master_stride: tl.constexpr,
    count,
    factors,
    decay: tl.int64,
    beta1: tl.int64,
    rest1: tl.int64,
    beta2: tl.int64,
    rest2: tl.int64,
    eps: tl.int64,
    clip: tl.int64,
    seed: tl.int64,
    dim: tl.constexpr,
    CLIP: tl.constexpr,
    WORK: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
):
    """A block of rows, DIM of their columns."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(1) * DIM
    there = (row < count)[:, None]
    cols = (first + tl.arange(0, DIM))[None, :]
    here = there & (cols < dim)
    g = tl.load(gradient + row[:, None] * gradient_stride + cols, mask=here, other=0).to(WORK)
    parameter += row[:, None] * parameter_stride + cols
    source = parameter
    if master is not None:
        master += row[:, None] * master_stride + cols
        source = master
    w = tl.load(source, mask=here, other=0).to(WORK)
    mean += row[:, None] * mean_stride + cols
    square += row[:, None] * square_stride + cols
    m, v = tl.load(mean, mask=here, other=0).to(WORK), tl.load(square, mask=here, other=0).to(WORK)
    if CLIP:
        total = g * g
        if dim > DIM:
            total = tl.zeros((ROWS, DIM), WORK)
            for start in range(0, dim, DIM):
                column = (start + tl.arange(0, DIM))[None, :]
                part = gradient + row[:, None] * gradient_stride + column
                part = tl.load(part, mask=there & (column < dim), other=0).to(WORK)
                total += part * part
        norm, most = tl.sqrt(tl.sum(total, axis=1)), number(clip, WORK)
        g *= (most / tl.maximum(norm, most))[:, None]
    g += number(decay, WORK) * w
    m = number(beta1, WORK) * m + number(rest1, WORK) * g
    v = number(beta2, WORK) * v + number(rest2, WORK) * (g * g)
    size, root = tl.load(factors).to(WORK), tl.load(factors + 1).to(WORK)
    w = tl.load(factors + 3).to(WORK) * w - size * (m / (tl.sqrt(v) * root + number(eps, WORK)))
    step = tl.load(factors + 2).to(tl.int64).to(tl.uint32)
    if mean.dtype.element_ty == tl.bfloat16:
        random = row_words(seed, row, step, _MOMENTS, first, DIM)
        tl.store(mean, _round(m, random), mask=here)
        tl.store(square, _round(v, random >> 16), mask=here)
    else:
        tl.store(mean, m, mask=here)
        tl.store(square, v, mask=here)
    if master is not None:
        tl.store(master, w, mask=here)
        w = w.to(tl.bfloat16)
    elif parameter.dtype.element_ty == tl.bfloat16:
        w = _round(w, row_words(seed, row, step, _PARAMETER, first, DIM))
    tl.store(parameter, w, mask=here)
