"""How kernels are compiled and how many threads they use."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
import torch

# What kernels call is part of them: nothing else may call it, and it has no cache of its own, which would not notice
# changes in other files.
njit: Any = numba.njit  # takes options that its annotations do not know
_BARE = {"nogil": True, "error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
inline: Any = njit(**_BARE)
inline_always: Any = njit(**_BARE, forceinline=True)  # for what is called for each row

# numba keys its disk cache by a kernel's own file and closure variables, not by what it calls in other files. Kernels
# that call such code have this hash of it as a closure variable, which keeps stale machine code out. The schedule's
# constants are compiled in as well.
_SHARED = (
    "_dropout.py",
    "_matmul.py",
    "_numba.py",
    "_parallel.py",
    "_philox.py",
    "_row_math.py",
    "_vector.py",
    "../graph/schedule.py",
)
VERSION = hashlib.sha256(b"".join((Path(__file__).parent / name).read_bytes() for name in _SHARED)).hexdigest()[:16]

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


def most_threads() -> int:
    """The most threads that `set_num_threads` takes."""
    return _LAUNCHED


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
