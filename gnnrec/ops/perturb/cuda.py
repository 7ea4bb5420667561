"""Triton kernel of perturb: a block of rows, its random numbers in registers."""

# mypy: ignore-errors

import torch
import triton
import triton.language as tl

from gnnrec.ops import _arguments
from gnnrec.ops._launch import MOST_REGISTERS, bits, launch, panel, rows_contiguous
from gnnrec.ops._tiles import TYPES, number, row_words
from gnnrec.ops.perturb import cpu

NUMBERS, WARPS = 1024, 4  # of a program's tile in float32, and its warps: two vectors of 16 bytes a thread
_NOISE = tl.constexpr(cpu.NOISE)


def perturb(x: torch.Tensor, eps: float, seed: int, out: torch.Tensor) -> None:
    """Fill out [rows, dim], contiguous."""
    x, dim, work = rows_contiguous(x), x.shape[1], _arguments.compute_dtype(x.dtype)
    columns = panel(dim)
    rows = max(1, NUMBERS * 4 // work.itemsize // columns)
    kinds = {"dim": dim, "WORK": TYPES[work], "ROWS": rows, "DIM": columns}
    options = {"warps": WARPS, "registers": MOST_REGISTERS}
    launch(_perturb, (-(-len(x) // rows),), x, x.stride(0), len(x), bits(eps), seed, out, **options, **kinds)


@triton.jit
def _noise(seed, row, start, dim: tl.constexpr, WORK: tl.constexpr, DIM: tl.constexpr):
    """The numbers of DIM columns from `start` on, 0 beyond dim: [ROWS, DIM]."""
    upper = (row_words(seed, row, tl.full((), 0, tl.uint32), _NOISE, start, DIM) >> 8).to(tl.int32).to(WORK)
    return tl.where((start + tl.arange(0, DIM))[None, :] < dim, upper, 0)


@triton.jit
def _write(x, stride: tl.constexpr, row, there, start, dim: tl.constexpr, noise, size, out):
    """Columns from `start` on with size [ROWS] times noise added in the direction of their sign."""
    cols = (start + tl.arange(0, noise.shape[1]))[None, :]
    here = there & (cols < dim)
    given = tl.load(x + row[:, None] * stride + cols, mask=here, other=0).to(noise.dtype)
    step = noise * size[:, None]
    moved = given + tl.where(given > 0, step, tl.where(given < 0, -step, 0))
    tl.store(out + row[:, None] * dim + cols, moved.to(out.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=["count", "eps", "seed"])
def _perturb(
    x,
    stride: tl.constexpr,
    count,
    eps: tl.int64,
    seed: tl.int64,
    out,
    dim: tl.constexpr,
    WORK: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = (row < count)[:, None]
    noise = _noise(seed, row, 0, dim, WORK, DIM)
    total = tl.sum(noise * noise, axis=1)
    for start in range(DIM, dim, DIM):
        more = _noise(seed, row, start, dim, WORK, DIM)
        total += tl.sum(more * more, axis=1)
    size = number(eps, WORK) / tl.sqrt(tl.where(total > 0, total, 1))
    _write(x, stride, row, there, 0, dim, noise, size, out)
    for start in range(DIM, dim, DIM):
        _write(x, stride, row, there, start, dim, _noise(seed, row, start, dim, WORK, DIM), size, out)
