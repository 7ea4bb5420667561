"""Seconds, bytes, bandwidth and load, measured in this process; for calls on a GPU see measure_gpu.py.

Peak memory is the high-water mark of the resident memory (VmHWM) above what was resident before the call. Free heap
goes back to the system first (malloc_trim), so that memory which a call reuses counts as well, and "5" written to
/proc/self/clear_refs resets the mark. Inputs, formats and what a first call caches are there before: they do not count.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import limit
import numpy as np
import torch
from contender import Missing

import gnnrec
from gnnrec import ops

LEAST = 3  # timed calls
SHORT = 0.2  # seconds: shorter calls follow an untimed one, so that none pays for the caches its predecessor left
LINE = 256  # bytes of a gathered row
BUSY = 0.1  # share of the processor's time in other programs above which timings are doubtful
PACKAGES = ("torch", "triton", "numpy", "scipy", "numba", "dgl", "torch_geometric", "faiss-cpu")


def peak_bytes(call: Callable[[], Any]) -> int | None:
    """Bytes of resident memory that a call needs above what is there; None where the system does not tell."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    result = call()
    peak = _resident("VmHWM") - before
    del result
    return max(peak, 0)


def _resident(kind: str) -> int:
    return int(Path("/proc/self/status").read_text().split(f"{kind}:")[1].split()[0]) * 1024


def seconds_of(call: Callable[[], Any], last: float | None) -> float:
    """Seconds of a call that took `last` seconds when it was measured before."""
    if last is not None and last < SHORT:
        call()
    begin = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - begin
    del result
    return seconds


Timer = Callable[[Callable[[], Any], float | None], float]  # as seconds_of


def interleave(
    calls: Mapping[str, Callable[[], Any]],
    budget: float,
    repeats: int,
    timer: Timer = seconds_of,
    rotated: bool = False,
) -> dict[str, list[float]]:
    """Seconds of each call, measured in turn; a call that has used its share of the budget sits out after LEAST rounds.

    Args:
        calls: by name.
        budget: seconds for all of them together.
        repeats: the most rounds.
        timer: measures a call.
        rotated: whether every round starts with the next call, so that none always follows the same one.
    """
    order = list(calls.items())
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    spent = dict.fromkeys(calls, 0.0)
    gc.collect()
    gc.disable()
    try:
        for number in range(repeats):
            first = number % len(order) if rotated and order else 0
            for name, call in order[first:] + order[:first]:
                done = seconds[name]
                if len(done) >= LEAST and spent[name] > budget / len(calls):
                    continue
                start = time.perf_counter()
                done.append(timer(call, done[-1] if done else None))
                spent[name] += time.perf_counter() - start
    finally:
        gc.enable()
    return seconds


@dataclass
class Load:
    """How busy other programs keep the processor while a block runs; `others` is their share of its time."""

    others: float = 0.0
    _begin: tuple[float, float, float] = field(default=(0.0, 0.0, 0.0), repr=False)

    def __enter__(self) -> Load:
        self._begin = _clocks()
        return self

    def __exit__(self, *_: object) -> None:
        busy, own, wall = (end - begin for end, begin in zip(_clocks(), self._begin))
        self.others = min(max(0.0, busy - own) / max(wall, 1e-9) / (os.cpu_count() or 1), 1.0)


def _clocks() -> tuple[float, float, float]:
    """Seconds of all processors' work, of this process's, and of the clock."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split(maxsplit=9)[1:9])
    ticks = user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK"), time.process_time(), time.perf_counter()


def last_level_cache() -> int:
    """Bytes of the largest cache, 32 MiB where the system does not tell."""
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    return max((int(size.read_text().strip().removesuffix("K")) * 1024 for size in sizes), default=32 << 20)


@cache
def gather_bandwidth(operand_bytes: int, threads: int) -> float:
    """Bytes a second of gathering random rows of LINE bytes out of a buffer: sums of 64 random rows, by our spmm and by
    the C++ limit; the best of all calls. The buffer holds written random numbers."""
    rows, width = max(1, operand_bytes // LINE), LINE // 4
    nnz = 1 << 20 if operand_bytes < last_level_cache() else 1 << 22
    generator = torch.Generator().manual_seed(7)
    matrix = ops.SparseMatrix.from_csr(
        torch.arange(0, nnz + 1, 64), torch.randint(rows, (nnz,), generator=generator), shape=(nnz // 64, rows)
    )
    x = torch.randn(rows, width, generator=generator)
    calls: dict[str, Callable[[], Any]] = {"ours": lambda: ops.spmm(matrix, x)}
    with contextlib.suppress(Missing):
        calls["limit"] = limit.spmm(matrix, x, threads)
    for call in calls.values():
        call()
    seconds = interleave(calls, 1.0, 10)
    return nnz * LINE / min(map(min, seconds.values()))


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "last_level_cache_bytes": last_level_cache(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
    }


def openmp_runtimes() -> list[str]:
    """Files of the OpenMP runtimes that are loaded, each with its folder."""
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    found = [Path(path) for path in mapped if Path(path).name.startswith(("libgomp", "libomp", "libiomp"))]
    return sorted("/".join(path.parts[-2:]) for path in found)


def versions(*more: str) -> dict[str, str | None]:
    """Versions of what is measured, and of more packages; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "gnnrec": gnnrec.__version__}
    for package in (*PACKAGES, *more):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    found["g++"] = None
    if limit.COMPILER:
        asked = subprocess.run([limit.COMPILER, "-dumpfullversion"], capture_output=True, text=True)
        found["g++"] = asked.stdout.strip()
    return found


class Clock:
    """How contenders are measured on the CPU.

    Attributes:
        copy_bandwidth: bytes a second, read and written, of a large copy; None where results are not compared with it.
        failures: what a contender may raise without ending the run: nothing here, since memory and kernels are enough.
    """

    copy_bandwidth: float | None = None
    failures: tuple[type[Exception], ...] = ()

    def cache_bytes(self) -> int:
        """Size of the largest cache."""
        return last_level_cache()

    def sets(self, size: int) -> int:
        """How many sets of inputs of that many bytes the calls go through in turn."""
        return 1

    def peak_bytes(self, call: Callable[[], Any]) -> int | None:
        """Bytes that a call needs above what is there; None where the system does not tell."""
        return peak_bytes(call)

    def seconds(self, call: Callable[[], Any], last: float | None) -> float:
        """Seconds of a call that took `last` seconds when it was measured before."""
        return seconds_of(call, last)

    def step_seconds(self, call: Callable[[], Any], last: float | None) -> float:
        """Seconds of a training step among others."""
        return seconds_of(call, last)

    def gather_bandwidth(self, operand_bytes: int, threads: int) -> float:
        """Bytes a second of gathering random rows of LINE bytes out of a buffer."""
        return gather_bandwidth(operand_bytes, threads)

    def machine(self) -> dict[str, Any]:
        """What the numbers depend on."""
        return machine()


def quartiles(seconds: list[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    low, median, high = np.quantile(seconds, (0.25, 0.5, 0.75)).tolist()
    return low, median, high
