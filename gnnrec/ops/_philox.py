"""Philox4x32-10: random numbers that are a function of (seed, counter), so any of them can be drawn again alone.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gnnrec.ops._numba import inline

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


@inline
def philox(seed: Any, stream: Any, counter: Any) -> Any:
    """Four 32-bit words (as uint64) of the 128-bit counter (counter, stream) under the 64-bit key `seed`."""
    c0, c1, c2, c3 = counter & _LOW, counter >> _HALF, stream & _LOW, stream >> _HALF
    k0, k1 = seed & _LOW, seed >> _HALF
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _LOW, (p0 >> _HALF) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


@inline
def below(word: Any, bound: Any) -> Any:
    """A 32-bit word as a number in [0, bound), int64; off from uniform by at most bound / 2^32."""
    return np.int64((word * np.uint64(bound)) >> _HALF)
