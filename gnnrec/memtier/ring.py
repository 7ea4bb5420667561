"""A ring of buffers that threads fill ahead of the computation and empty behind it.

A buffer goes FREE -> LOADING -> READY -> IN_USE -> DIRTY -> WRITING -> FREE.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from gnnrec import profiler
from gnnrec.memtier.files import Direction, aligned

FEWEST = 4  # buffers: one at work, one that is read, one that is written, one to spare


def read_only(readers: int) -> int:
    """Buffers of a ring that is read alone: one at work, one that is ready, one for every reader."""
    return max(FEWEST, 2 + readers)


@dataclass(frozen=True)
class Ring:
    """How a stream's buffers and threads are used.

    Args:
        buffer_bytes: of all buffers; at least FEWEST are made.
        readers, writers: the most transfers each way at a time; a buffer is one transfer.
        phased: read and write in turns, for devices that are slow when both go on.
    """

    buffer_bytes: int
    readers: int = 2
    writers: int = 2
    phased: bool = False

    def transfers(self) -> dict[str, int | bool]:
        """How blocks pass, for `plan.json`."""
        return {"readers": self.readers, "writers": self.writers, "phased": self.phased}


@dataclass
class Slot:
    """A buffer of the ring, in parts, such as one for every matrix, and what reading it took: names, bytes, seconds."""

    buffers: list[npt.NDArray[np.uint8]]
    free: bool = True
    ready: bool = False
    read: list[tuple[str, int, float]] = field(default_factory=list)


@dataclass
class StreamTimes:
    """Seconds of the wall clock: the computation waiting for blocks, and any transfer at work."""

    waiting: float = 0.0
    transferring: float = 0.0
    _active: int = field(default=0, repr=False)
    _since: float = field(default=0.0, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)  # streams may share it

    def begin(self) -> None:
        with self._lock:
            if self._active == 0:
                self._since = time.perf_counter()
            self._active += 1

    def transferred(self) -> float:
        """`transferring` up to now."""
        with self._lock:
            return self.transferring + (time.perf_counter() - self._since if self._active else 0.0)

    def end(self) -> None:
        with self._lock:
            self._active -= 1
            if self._active == 0:
                self.transferring += time.perf_counter() - self._since


class RingOfBuffers(ABC):
    """Blocks that come and go in a fixed, cyclic order.

    Buffers and threads are made for the first block, and given up by `close`. An error of a thread is raised in the
    thread that computes, by whatever it calls next.

    Args:
        sizes: bytes of the parts of a buffer.
        total: blocks of a round.
        ring: buffers and threads.
        memory: makes a part of so many bytes, aligned.
        times: where seconds are counted.

    Attributes:
        buffers: how many there are.
        times: by the clock.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        total: int,
        ring: Ring,
        memory: Callable[[int], npt.NDArray[np.uint8]] = aligned,
        times: StreamTimes | None = None,
    ) -> None:
        self.ring, self.buffers = ring, buffer_count(sum(sizes), total, ring.buffer_bytes)
        self.times = StreamTimes() if times is None else times
        self._sizes, self._total, self._memory = sizes, total, memory
        self._end: float = inf  # blocks that are read
        self._limits: dict[Direction, int] = {"read": ring.readers, "write": ring.writers}
        self._changed = threading.Condition()
        self._slots: list[Slot] = []
        self._threads: list[threading.Thread] = []
        self.opened = 0  # times: what was taken before it was closed is no longer there to be released
        self._reset()

    @abstractmethod
    def _transfer(self, direction: Direction, position: int) -> None:
        """Fill the buffer of a position, counted over all rounds, or write what is in it."""

    def _reset(self) -> None:
        self._at_work: dict[Direction, int] = {"read": 0, "write": 0}
        self._turn: Direction = "read"
        self._in_turn = 0  # transfers one way since the other way's, where they are phased
        # The next block, counted over all rounds, to be read, to be computed on, and to be given back.
        self._load = self._use = self._release = 0
        self._dirty: deque[int] = deque()  # blocks to be written
        self._error: BaseException | None = None
        self._closing = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(drain=error is None)

    def close(self, *, drain: bool = True) -> None:
        """End the threads and give up the buffers, by default after everything is written that was computed. The next
        block is the first."""
        with profiler.kernel(profiler.WAITING):
            try:
                if drain:
                    self.drain()
            finally:
                with self._changed:
                    self._closing = True
                    self._changed.notify_all()
                for thread in self._threads:
                    thread.join()
                self._slots, self._threads = [], []
                self._reset()

    def _open(self) -> None:
        self.opened += 1
        self._slots = [Slot([self._memory(size) for size in self._sizes]) for _ in range(self.buffers)]
        for number in range(self.ring.readers + self.ring.writers):
            thread = threading.Thread(target=self._work, name=f"gnnrec-io-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def _take(self, number: int) -> Slot:
        """Wait for the next block, which must be the one of this number in its round. No more than `buffers` can be
        taken at a time."""
        with profiler.kernel(profiler.WAITING):
            if not self._threads:
                self._open()
            return self._wait_for(number)

    def _wait_for(self, number: int) -> Slot:
        started = time.perf_counter()
        with self._changed:
            position = self._use
            assert position % self._total == number, "blocks must be taken in their order"
            self._use += 1
            slot = self._slot(position)
            self._wait_until(lambda: slot.ready)
            slot.ready = False
            self.times.waiting += time.perf_counter() - started
            return slot

    @property
    def is_open(self) -> bool:
        """Whether blocks are read."""
        return bool(self._threads)

    def release(self) -> None:
        """Give back the block that was taken first, to be written."""
        with self._changed:
            self._dirty.append(self._release)
            self._release += 1
            self._changed.notify_all()

    def spent(self) -> tuple[float, float]:
        """Seconds up to now in which any transfer went on, and in which the computation waited for one."""
        return self.times.transferred(), self.times.waiting

    def drain(self) -> None:
        """Wait until everything that was computed is in the files, so that others may read these."""
        with self._changed:
            self._wait_until(lambda: not self._dirty and not self._at_work["write"])

    def _wait_until(self, condition: Any) -> None:
        self._changed.wait_for(lambda: self._error is not None or condition())
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        """What a thread does: transfer after transfer, either way, until the stream is closed or fails."""
        while (task := self._next_task()) is not None:
            direction, position = task
            try:
                self._transfer(direction, position)
            # Whatever it is: it is raised again where the computation waits, which would else wait forever.
            except BaseException as error:  # noqa: BLE001
                with self._changed:
                    self.times.end()
                    self._error = self._error or error
                    self._changed.notify_all()
                return
            self._done(direction, position)

    def _next_task(self) -> tuple[Direction, int] | None:
        with self._changed:
            while not (self._closing or self._error):
                direction = self._direction()
                if direction is not None:
                    self._at_work[direction] += 1
                    self.times.begin()
                    if direction == "write":
                        return direction, self._dirty.popleft()
                    position = self._load
                    self._load += 1
                    self._slot(position).free = False
                    return direction, position
                self._changed.wait()
            return None

    def _direction(self) -> Direction | None:
        """Which way the next transfer goes: writing comes first, for it makes room to read into."""
        more = self._load < self._end and self._slot(self._load).free
        possible: dict[Direction, bool] = {"read": more, "write": bool(self._dirty)}
        free = {way: possible[way] and self._at_work[way] < self._limits[way] for way in possible}
        if not self.ring.phased:
            return "write" if free["write"] else "read" if free["read"] else None
        other: Direction = "read" if self._turn == "write" else "write"
        if possible[other] and (self._in_turn >= len(self._slots) // 2 or not possible[self._turn]):
            if self._at_work[self._turn]:  # let them end
                return None
            self._turn, self._in_turn, other = other, 0, self._turn
        if free[self._turn] and not self._at_work[other]:
            self._in_turn += 1
            return self._turn
        return None

    def _done(self, direction: Direction, position: int) -> None:
        with self._changed:
            self._at_work[direction] -= 1
            self.times.end()
            slot = self._slot(position)
            if direction == "read":
                slot.ready = True
            else:
                slot.free = True
            self._changed.notify_all()

    def _slot(self, position: int) -> Slot:
        return self._slots[position % len(self._slots)]


def buffer_count(size: int, total: int, buffer_bytes: int) -> int:
    """How many buffers of a size a ring of so many bytes has. No more than there are blocks: a block that is read again
    must have been written before, which its buffer's turn then ensures."""
    return min(max(FEWEST, buffer_bytes // size), total)
