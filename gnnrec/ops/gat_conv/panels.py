"""Which columns of gat_conv a kernel takes at once."""

from __future__ import annotations

WIDTH = 128  # two sums of that many columns fill half of the AVX-512 registers


def parts(dim: int) -> int:
    """Into how many equal parts a head's columns must fall."""
    return -(-dim // WIDTH)


def panels(columns: int, heads: int) -> list[tuple[slice, slice, int, int]]:
    """What a kernel takes at once, as many whole heads as fit or an equal part of one: the heads, the columns, and how
    many columns and heads these are."""
    dim = columns // heads
    width, count = dim // parts(dim), 1
    if width == dim:
        count = max(n for n in range(1, heads + 1) if n == 1 or (heads % n == 0 and n * dim <= WIDTH))
        width *= count
    starts = range(0, columns, width)
    return [(slice(s // dim, s // dim + count), slice(s, s + width), width, count) for s in starts]
