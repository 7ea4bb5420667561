"""Figures of a GPU: its own memory, rows at random in it, and copies from and to pinned memory of the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from gnnrec import device as devices
from gnnrec.memtier.measure_memory import ROWS
from gnnrec.memtier.stopwatch import Figure, Measured, Stopwatch
from gnnrec.memtier.tiers import Tier
from gnnrec.units import in_bytes

_WANTED = 1 << 30  # bytes of each of the buffers: twenty times the caches of today's largest GPUs
_SHARE = 8  # each of two buffers takes at most the free bytes divided by this
_NEIGHBOURS = 32  # rows of a sum, as in a graph


def measure(tier: Tier, watch: Stopwatch) -> Measured:
    """Sequential access, gather and scatter in the GPU's memory, copies between it and the host.

    Raises:
        DeviceError: torch sees no GPU, or one that cannot run the kernels.
    """
    devices.resolve("cuda")
    device = torch.device("cuda", int(tier.name.removeprefix("gpu")))
    size = min(_WANTED, (tier.free or _WANTED) // _SHARE) // (1 << 20) * (1 << 20)
    with devices.memory_errors(f"calibration of {tier.name}", device=device):
        rates, missing = watch.rates(figures(device, size))
    notes = (f"buffers of {in_bytes(size)}", "latency unavailable: a GPU hides it")
    return Measured(tuple(rates), None, tuple(filter(None, [*notes, missing])))


def figures(device: torch.device, size: int) -> Iterator[Figure]:
    """The figures of a device.

    Args:
        size: bytes of each buffer, a multiple of 1 MiB.
    """
    x = torch.rand(size // 4, device=device)
    y = torch.rand(size // 4, device=device)
    host = torch.rand(size // 4, pin_memory=device.type == "cuda")
    yield _figure(device, "to_gpu", lambda: x.copy_(host, non_blocking=True), size)
    yield _figure(device, "from_gpu", lambda: host.copy_(x, non_blocking=True), size)
    yield _figure(device, "read", x.sum, size)
    yield _figure(device, "write", lambda: x.fill_(1.0), size)
    yield _figure(device, "mixed", lambda: y.copy_(x), 2 * size)
    for row_bytes in ROWS:
        yield from _rows(device, x.view(-1, row_bytes // 4), y.view(-1, row_bytes // 4), row_bytes)


def _rows(device: torch.device, x: torch.Tensor, y: torch.Tensor, row_bytes: int) -> Iterator[Figure]:
    indices = torch.randint(len(x), (len(x) // _NEIGHBOURS, _NEIGHBOURS), device=device)
    moved = indices.numel() * row_bytes
    sums = torch.nn.functional.embedding_bag
    yield _figure(device, "gather", lambda: sums(indices, x, mode="sum"), moved, row_bytes)
    places = torch.randperm(len(y), device=device)
    scattered = 2 * y.nbytes  # its operand is read in order, so half of the bytes go each way
    yield _figure(device, "scatter", lambda: y.index_copy_(0, places, x), scattered, row_bytes)


def _figure(device: torch.device, pattern: str, work: Callable[[], object], moved: int, row_bytes: int = 0) -> Figure:
    def run() -> int:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return moved

    return Figure(pattern, run, row_bytes=row_bytes)
