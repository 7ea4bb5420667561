"""Dropout in Triton kernels takes the decisions of the CPU's: `_dropout.keep` is the oracle."""

import pytest
import torch
import triton
import triton.language as tl

from gnnrec.ops import _dropout, _tiles

SEEDS = (0, 2**31 - 1, 2**32 + 5, 2**63 - 1, 0x123456789ABCDEF0)


@triton.jit(do_not_specialize=["seed", "threshold"])
def masks(
    a,
    b,
    every,
    entries,
    columns,
    seed: tl.int64,
    threshold: tl.int64,
    FIRST: tl.constexpr,
    COLUMNS: tl.constexpr,
    STREAM: tl.constexpr,
):
    i, c = tl.arange(0, 8), tl.arange(0, COLUMNS)
    first, second = tl.load(a + i), tl.load(b + i)
    place = i[:, None] * COLUMNS + c[None, :]
    tl.store(every + place, _tiles.kept(seed, first[:, None], second[:, None], STREAM, FIRST + c[None, :], threshold))
    tl.store(columns + place, _tiles.kept_columns(seed, first, STREAM, FIRST, threshold, COLUMNS))
    tl.store(entries + i, _tiles.kept_entries(seed, first, second, STREAM, threshold))


@pytest.mark.parametrize("p", [0.0, 2**-32, 0.1, 0.5, 1 - 2**-32, 1 - 2**-53])
@pytest.mark.parametrize(("first", "width"), [(0, 1), (0, 32), (0, 512), (192, 64)])
@pytest.mark.parametrize("stream", [0, 1])
def test_masks_are_the_oracles(stream, first, width, p):
    a = torch.tensor([0, 1, 7, 2**16, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1])
    b = a.flip(0) ^ 5
    for seed in SEEDS:
        every, columns = (torch.empty(8, width, dtype=torch.bool) for _ in range(2))
        entries = torch.empty(8, dtype=torch.bool)
        threshold = _dropout.threshold(p)
        masks[(1,)](a, b, every, entries, columns, seed, threshold, FIRST=first, COLUMNS=width, STREAM=stream)
        expected = _dropout.keep(seed, a, b, stream, first + width, p)
        assert torch.equal(every, expected[:, first:])
        assert torch.equal(entries, expected[:, 0])
        assert torch.equal(columns, _dropout.keep(seed, a, 0 * b, stream, first + width, p)[:, first:])
