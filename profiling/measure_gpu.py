"""Seconds, bytes and bandwidth of calls on a CUDA GPU.

Time is that between two events around a call. A wait on the GPU comes first, as long as the host takes to launch the
call, so that the GPU and not the host is measured; training steps run one after another instead, as in training, and
what the host costs counts. Peak memory is that of torch's allocator above what was allocated before.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from functools import cache
from statistics import median
from typing import Any

import measure
import torch

from gnnrec import ops
from gnnrec.errors import GnnrecError

SETS = 16  # of inputs, at the most
CYCLES = 2e9  # a second, at the most: torch's wait counts them
LONGEST_WAIT = 0.05  # seconds
STEPS, STEPS_SECONDS = 20, 0.2  # training steps in a row: as many as fit into the time, at the most
COPIED = 2 << 30  # bytes
ENTRIES = 1 << 24  # random rows that are gathered


class GpuClock(measure.Clock):
    """How contenders are measured on a GPU, the current one."""

    def __init__(self, device: torch.device) -> None:
        from triton.errors import TritonError

        self.device = device
        self.properties = torch.cuda.get_device_properties(device)
        # Memory may be too small for one, a library may lack a kernel: the others are worth the machine's time.
        usual = RuntimeError, ValueError, TypeError, AssertionError, AttributeError, LookupError
        self.failures = *usual, GnnrecError, TritonError
        self.copy_bandwidth = _copy_bandwidth(device)

    def cache_bytes(self) -> int:
        """Size of the L2."""
        return int(self.properties.L2_cache_size)

    def sets(self, size: int) -> int:
        """So many that a set's numbers have left the L2 when its turn comes again."""
        return max(1, min(SETS, -(-3 * self.cache_bytes() // size)))

    def peak_bytes(self, call: Callable[[], Any]) -> int:
        """Bytes that a call allocates at once above what is allocated before."""
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        result = call()
        torch.cuda.synchronize(self.device)
        peak = torch.cuda.max_memory_allocated(self.device) - before
        del result
        return int(peak)

    def seconds(self, call: Callable[[], Any], last: float | None) -> float:
        """Seconds that a call keeps the GPU busy."""
        wait = LONGEST_WAIT
        torch.cuda.synchronize(self.device)
        if last is None or last < measure.SHORT:
            start = time.perf_counter()
            call()
            wait = min(1.5 * (time.perf_counter() - start) + 1e-4, LONGEST_WAIT)
            torch.cuda.synchronize(self.device)
        torch.cuda._sleep(int(CYCLES * wait))
        return _between(call, 1)

    def step_seconds(self, call: Callable[[], Any], last: float | None) -> float:
        """Seconds of one of several training steps in a row."""
        torch.cuda.synchronize(self.device)
        once = _between(call, 1)
        times = min(STEPS, int(STEPS_SECONDS / once))
        return _between(call, times) if times > 1 else once

    def gather_bandwidth(self, operand_bytes: int, threads: int) -> float:
        """Bytes a second of gathering random rows of measure.LINE bytes out of a buffer."""
        return _gather_bandwidth(self.device, operand_bytes)

    def machine(self) -> dict[str, Any]:
        """What the numbers depend on."""
        p = self.properties
        return super().machine() | {
            "gpu": p.name,
            "compute_capability": f"{p.major}.{p.minor}",
            "multiprocessors": p.multi_processor_count,
            "gpu_memory_bytes": p.total_memory,
            "l2_bytes": p.L2_cache_size,
            "driver": _driver(),
            "cuda": torch.version.cuda,
            "tf32": torch.backends.cuda.matmul.allow_tf32,
        }


def _driver() -> str | None:
    """The driver's version; None where nvidia-smi is not there to tell."""
    if shutil.which("nvidia-smi") is None:
        return None
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(asked, capture_output=True, text=True).stdout.partition("\n")[0]


def _between(call: Callable[[], Any], times: int) -> float:
    """Seconds of a call, between events around so many."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / times


def _median(call: Callable[[], Any]) -> float:
    """Median seconds, after a call that loads and compiles what there is to."""
    call()
    times = []
    for _ in range(20):
        torch.cuda.synchronize()
        torch.cuda._sleep(int(CYCLES * 1e-3))  # longer than a launch
        times.append(_between(call, 1))
    return median(times)


def _copy_bandwidth(device: torch.device) -> float:
    source = torch.randn(COPIED // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _median(lambda: target.copy_(source))


@cache
def _gather_bandwidth(device: torch.device, operand_bytes: int) -> float:
    """The better of torch's index_select, whose rows are read and written, and of our spmm, which sums 64 at a time."""
    generator = torch.Generator(device).manual_seed(7)
    rows, width = max(1, operand_bytes // measure.LINE), measure.LINE // 4
    x = torch.randn(rows, width, generator=generator, device=device)
    places = torch.randint(rows, (ENTRIES,), generator=generator, device=device)
    pointers = torch.arange(0, ENTRIES + 1, 64)
    matrix = ops.SparseMatrix.from_csr(pointers, places, shape=(ENTRIES // 64, rows))
    out = torch.empty(ENTRIES, width, device=device)
    selected = 2 * ENTRIES / _median(lambda: torch.index_select(x, 0, places, out=out))
    summed = ENTRIES / _median(lambda: ops.spmm(matrix, x))
    return measure.LINE * max(selected, summed)
