"""Bandwidths of a GPU: its own memory, rows at random in it, copies from and to pinned memory of the host."""

from __future__ import annotations

import torch
from bandwidth_matrix import Cell

from gnnrec.errors import GnnrecError
from gnnrec.memtier import measure_gpu
from gnnrec.memtier.stopwatch import Stopwatch
from gnnrec.memtier.tiers import Rate, Tier

# What calibration calls its patterns, as this matrix does: operation and order.
_CELLS = {
    "to_gpu": ("host_to_device", "sequential"),
    "from_gpu": ("device_to_host", "sequential"),
    "read": ("read", "sequential"),
    "write": ("write", "sequential"),
    "mixed": ("copy", "sequential"),
    "gather": ("read", "random"),
    "scatter": ("copy", "random"),  # rows are read in order, and written at random
}
_CHECKED = 1 << 20  # numbers


def measure(tier: Tier, watch: Stopwatch) -> tuple[list[tuple[Cell, Rate]], str]:
    """Measure a GPU's figures until the time is up.

    Returns:
        What was measured, and what is to be known of it.

    Raises:
        GnnrecError: torch sees no GPU, or one that cannot run the kernels, or other numbers come back than were moved.
    """
    found = measure_gpu.measure(tier, watch)
    check(torch.device("cuda", int(tier.name.removeprefix("gpu"))))
    return [(cell_of(rate), rate) for rate in found.rates], "; ".join(found.notes)


def cell_of(rate: Rate) -> Cell:
    """The place of one of calibration's rates in the matrix."""
    op, pattern = _CELLS[rate.pattern]
    return Cell(op, pattern, rate.row_bytes, rate.threads)


def check(device: torch.device) -> None:
    """Move numbers in each of the ways that are timed, and compare them.

    Raises:
        GnnrecError: others come back.
    """
    host = torch.rand(_CHECKED, pin_memory=device.type == "cuda").view(-1, 16)
    back = torch.empty_like(host)
    x = torch.empty_like(host, device=device).copy_(host, non_blocking=True)
    places = torch.randperm(len(host))
    y = torch.empty_like(x).index_copy_(0, places.to(device), x)
    sums = torch.nn.functional.embedding_bag(places.view(-1, 32).to(device), x, mode="sum").cpu()
    back.copy_(x)
    moved = torch.equal(back, host) and torch.equal(y.cpu()[places], host)
    if not moved or not torch.allclose(sums, host[places.view(-1, 32)].sum(1), rtol=1e-5):
        raise GnnrecError("other numbers come back than were moved", where=str(device), remedy="Test this GPU's memory")
