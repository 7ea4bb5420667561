"""How kernels are compiled and how many threads they use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numba
import torch

# Kernels never divide by zero in a way that Python's check would catch, and they run without the interpreter's lock.
kernel: Any = numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
inline: Any = numba.njit(cache=True, nogil=True, error_model="numpy")

_LAUNCHED = int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]


def set_num_threads(threads: int) -> None:
    """Number of threads of the project's kernels and of torch's.

    Raises:
        ValueError: fewer than 1 or more than numba started with (NUMBA_NUM_THREADS, by default the machine's cores).
    """
    if not 1 <= threads <= _LAUNCHED:
        raise ValueError(f"threads must lie within 1 and {_LAUNCHED}, got {threads}")
    numba.set_num_threads(threads)
    torch.set_num_threads(threads)


@contextmanager
def num_threads(threads: int) -> Iterator[None]:
    """Set the number of threads for a while."""
    before, torch_before = numba.get_num_threads(), torch.get_num_threads()
    set_num_threads(threads)
    try:
        yield
    finally:
        numba.set_num_threads(before)
        torch.set_num_threads(torch_before)
