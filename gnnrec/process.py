"""Settings of a process that computes, as the command line and the benchmarks make them before torch is loaded."""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# mallopt's names of its parameters, from malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def prepare() -> None:
    """Threads that do not spin while they wait, memory that stays when it is freed. What the environment sets, stays. A
    process that a fault ends says where: a disk that fails under a mapped file sends SIGBUS, which nobody can answer.

    torch's idle OpenMP threads would spin on the cores that the kernels' threads need. Results that go back to the
    system when they are freed cost a page fault for every 4 KiB of the next ones, a fourth of a LightGCN step on
    Gowalla; those of more than 32 MiB, which malloc never keeps, take huge pages and 500 times fewer faults.
    """
    if sys.__stderr__ is not None and not faulthandler.is_enabled():
        faulthandler.enable(sys.__stderr__)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None  # glibc's
    given = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & set(os.environ)
    if mallopt and not given and "glibc.malloc" not in os.environ.get("GLIBC_TUNABLES", ""):
        mallopt(_MMAP_THRESHOLD, 32 << 20)  # the most it takes
        mallopt(_TRIM_THRESHOLD, 1 << 30)


@contextmanager
def uncollected() -> Iterator[None]:
    """Without the garbage collector, which looks at all that there is again and again while many objects are made."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def trim() -> None:
    """Give the system the memory that is free, and only kept."""
    gc.collect()
    if give := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc's
        give(0)
