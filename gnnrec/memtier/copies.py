"""Copies between DRAM and a GPU, on CUDA streams of their own; where tests pretend a GPU, one after the other."""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from gnnrec.memtier.files import Direction, TierMemoryError, aligned
from gnnrec.units import in_bytes

Tensors = Sequence[torch.Tensor]


class Event(Protocol):
    """A point in the order of what a GPU does."""

    def query(self) -> bool: ...
    def synchronize(self) -> None: ...


class Copies(Protocol):
    """Copies both ways, in the order in which they are asked for each way."""

    def read(self, targets: Tensors, sources: Tensors, after: Event | None) -> Event:
        """Copy to the GPU, after an event, or what was asked of the GPU so far; gives the event of the end."""
        ...

    def write(self, targets: Tensors, sources: Tensors) -> Event:
        """Copy to DRAM what the computation has made so far; gives the event of the end."""
        ...

    def wait(self, event: Event) -> None:
        """Let the computation go on after the event."""
        ...

    def settle(self) -> tuple[dict[Direction, float], float]:
        """Wait for the computation; gives seconds of copies, of those that have ended since the last call, and in which
        the computation waited for them."""
        ...


class CudaCopies:
    """Copies on two streams of a GPU, beside the stream that is current when they are asked for.

    Args:
        device: the GPU. Memory in DRAM must be `pinned`.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._streams: dict[Direction, torch.cuda.Stream] = {
            "read": torch.cuda.Stream(device),
            "write": torch.cuda.Stream(device),
        }
        self._copies: dict[Direction, deque[tuple[torch.cuda.Event, torch.cuda.Event]]] = {
            "read": deque(),
            "write": deque(),
        }
        self._waits: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def read(self, targets: Tensors, sources: Tensors, after: Event | None) -> Event:
        """As Copies.read."""
        if after is None:  # the memory may have been the computation's before
            after = self._event(torch.cuda.current_stream(self.device))
        assert isinstance(after, torch.cuda.Event)
        self._streams["read"].wait_event(after)
        return self._copy("read", targets, sources)

    def write(self, targets: Tensors, sources: Tensors) -> Event:
        """As Copies.write."""
        self._streams["write"].wait_event(self._event(torch.cuda.current_stream(self.device)))
        return self._copy("write", targets, sources)

    def wait(self, event: Event) -> None:
        """As Copies.wait."""
        assert isinstance(event, torch.cuda.Event)
        stream = torch.cuda.current_stream(self.device)
        before = self._event(stream)
        stream.wait_event(event)
        self._waits.append((before, self._event(stream)))

    def settle(self) -> tuple[dict[Direction, float], float]:
        """As Copies.settle."""
        torch.cuda.current_stream(self.device).synchronize()
        spent: dict[Direction, float] = {}
        for direction, copies in self._copies.items():
            spent[direction] = 0.0
            while copies and copies[0][1].query():
                spent[direction] += _seconds(*copies.popleft())
        waits, self._waits = self._waits, []
        return spent, sum(_seconds(*wait) for wait in waits)

    def _copy(self, direction: Direction, targets: Tensors, sources: Tensors) -> torch.cuda.Event:
        stream = self._streams[direction]
        with torch.cuda.stream(stream):
            start = self._event(stream)
            for target, source in zip(targets, sources, strict=True):
                target.copy_(source, non_blocking=True)
            end = self._event(stream)
        self._copies[direction].append((start, end))
        return end

    def _event(self, stream: torch.cuda.Stream) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(stream)
        return event


class _Past:
    """An event that has come."""

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        return None


class CopiesInOrder:
    """Copies that are done when they are asked for."""

    def __init__(self) -> None:
        self._spent: dict[Direction, float] = {"read": 0.0, "write": 0.0}

    def read(self, targets: Tensors, sources: Tensors, after: Event | None) -> Event:
        """As Copies.read."""
        return self._copy("read", targets, sources)

    def write(self, targets: Tensors, sources: Tensors) -> Event:
        """As Copies.write."""
        return self._copy("write", targets, sources)

    def wait(self, event: Event) -> None:
        """As Copies.wait."""

    def settle(self) -> tuple[dict[Direction, float], float]:
        """As Copies.settle; the computation waits for all of them."""
        spent, self._spent = self._spent, {"read": 0.0, "write": 0.0}
        return spent, sum(spent.values())

    def _copy(self, direction: Direction, targets: Tensors, sources: Tensors) -> Event:
        started = time.perf_counter()
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)
        self._spent[direction] += time.perf_counter() - started
        return _Past()


def copies(device: torch.device) -> Copies:
    """Copies between DRAM and this device."""
    return CudaCopies(device) if device.type == "cuda" else CopiesInOrder()


def pinned(count: int, device: torch.device) -> npt.NDArray[np.uint8]:
    """Fresh zeroed memory as `aligned` gives it, which a GPU can copy from and to while the host goes on. Not by
    torch's own allocator, which makes a power of two of the bytes.

    Raises:
        TierMemoryError: the system does not give that much, or does not let it be pinned.
    """
    memory = aligned(count)
    if device.type != "cuda" or not count:
        return memory
    address, runtime = memory.ctypes.data, torch.cuda.cudart()
    with torch.cuda.device(device):
        failed = int(runtime.cudaHostRegister(address, memory.nbytes, 0))
    if failed:
        found = f"{in_bytes(count)} cannot be pinned: {runtime.cudaGetErrorString(runtime.cudaError(failed))}"
        raise TierMemoryError(found, remedy="Free DRAM, lower model.dim, or stream into files by memory.folder")
    weakref.finalize(memory, runtime.cudaHostUnregister, address).atexit = False
    return memory


def _seconds(start: torch.cuda.Event, end: torch.cuda.Event) -> float:
    milliseconds: float = start.elapsed_time(end)
    return milliseconds / 1e3
