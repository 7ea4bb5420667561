"""Sums within a tile whose order is written out. That of tl.sum follows from how a tile lies over threads, and so from
its width; with these, columns have the same bits whichever others share their tile."""

import triton
import triton.language as tl

FOLD = 64  # columns of a tile that `fold` takes, at the most


@triton.jit
def halves(x):
    """The sums [ROWS, DIM] over the second dimension of x [ROWS, N, DIM]: its halves are added, again and again."""
    for _ in tl.static_range(16):
        if x.shape[1] > 1:
            parts = tl.reshape(x, (x.shape[0], 2, x.shape[1] // 2, x.shape[2]))
            first, second = tl.split(tl.permute(parts, (0, 2, 3, 1)))
            x = first + second
    return tl.reshape(x, (x.shape[0], x.shape[2]))


@triton.jit
def fold(total, terms):
    """total [ROWS] plus the sums of 16 columns each of terms [ROWS, DIM], from left to right; DIM: 16, 32 or 64."""
    groups: tl.constexpr = terms.shape[1] // 16
    x = tl.reshape(terms, (terms.shape[0], groups, 16))
    for _ in tl.static_range(4):
        even, odd = tl.split(tl.reshape(x, (x.shape[0], groups, x.shape[2] // 2, 2)))
        x = even + odd
    if groups == 1:
        total += tl.reshape(x, (x.shape[0],))
    elif groups == 2:
        first, second = tl.split(tl.reshape(x, (x.shape[0], 2)))
        total = total + first + second
    else:
        even, odd = tl.split(tl.reshape(x, (x.shape[0], 2, 2)))
        first, third = tl.split(even)
        second, fourth = tl.split(odd)
        total = total + first + second + third + fourth
    return total
