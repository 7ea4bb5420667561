"""Triton kernel of softmax_loss: what happens between two products, a program for each row of a panel."""

# mypy: ignore-errors

import torch
import triton
import triton.language as tl

from gnnrec.ops._launch import MOST_REGISTERS, launch
from gnnrec.ops._tiles import TYPES

BLOCK = 1024  # columns that a program has in registers
WARPS = 4


def exponentials(panel: torch.Tensor, shift: torch.Tensor, largest: torch.Tensor, sums: torch.Tensor) -> None:
    """As on the CPU: replace x by exp(x - shift - the largest of its row), 0 in rows of -inf; the largest is 0 there.

    Args:
        panel: [rows, columns], contiguous, a multiple of 64 columns.
        shift: [columns], largest, sums: [rows], in the dtype of the computation.
    """
    rows, columns = panel.shape
    kinds = {"WORK": TYPES[shift.dtype], "BLOCK": BLOCK}
    launch(_exponentials, (rows,), panel, columns, shift, largest, sums, warps=WARPS, registers=MOST_REGISTERS, **kinds)


@triton.jit
def _exponentials(panel, columns, shift, largest, sums, WORK: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    begin = panel + row * columns
    lane = tl.arange(0, BLOCK)
    top = tl.full((BLOCK,), float("-inf"), WORK)
    for first in range(0, columns, BLOCK):
        here = first + lane < columns
        x = tl.load(begin + first + lane, mask=here, other=float("-inf")).to(WORK)
        x -= tl.load(shift + first + lane, mask=here, other=0)
        top = tl.maximum(top, x, propagate_nan=tl.PropagateNan.ALL)
    most = tl.max(top, axis=0)
    most = tl.where(tl.sum((top != top).to(tl.int32), axis=0) > 0, float("nan"), most)
    most = tl.where(most == float("-inf"), 0, most)
    total = tl.zeros((BLOCK,), WORK)
    for first in range(0, columns, BLOCK):
        here = first + lane < columns
        x = tl.load(begin + first + lane, mask=here, other=float("-inf")).to(WORK)
        x -= tl.load(shift + first + lane, mask=here, other=0)
        x = tl.exp(x - most)
        tl.store(begin + first + lane, x.to(panel.dtype.element_ty), mask=here)
        total += x
    tl.store(largest + row, most)
    tl.store(sums + row, tl.sum(total, axis=0))
