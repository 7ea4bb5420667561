"""Matrices in files of a slow tier, kept a panel of columns after the other, that pass through DRAM in blocks of rows.

A matrix [rows, columns] is kept as panels [rows, width], each contiguous. `Stream` walks over the same blocks of
several matrices in a fixed, cyclic order: reader threads fill a ring of buffers ahead of the computation, writer
threads empty it behind. A buffer goes FREE -> LOADING -> READY -> IN_USE -> DIRTY -> WRITING -> FREE.
"""

from __future__ import annotations

import mmap
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from math import gcd, inf
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from gnnrec.memtier.files import Direction, TierFile, TierFolder, Traffic, aligned

ITEM = 4  # bytes of a float32
BLOCK_BYTES = 4 << 20  # of one matrix: large enough for the bandwidth of a disk, small enough for many in the ring
ROWS_BYTES = 2 << 20  # of a block with all columns, where several matrices at a time are taken row by row
FEWEST = 4  # buffers: one at work, one that is read, one that is written, one to spare
SOURCES = 1 / 5  # of a ring that two streams share, for what a panel is read from; up to four matrices are made of it


@dataclass(frozen=True)
class Layout:
    """How a float32 matrix lies in a file.

    Args:
        rows, columns: of the matrix.
        width: of a panel; divides the columns.
        block_rows: of a block; their bytes are a multiple of the alignment of the file.
        alignment: of the file, bytes.
        first: panels of the file before these.
    """

    rows: int
    columns: int
    width: int
    block_rows: int
    alignment: int
    first: int = 0

    @classmethod
    def of(cls, rows: int, columns: int, width: int, alignment: int, block_bytes: int = BLOCK_BYTES) -> Layout:
        """A layout whose blocks have about that many bytes, and no more than a panel needs."""
        step = alignment // gcd(alignment, width * ITEM)
        block = min(max(step, block_bytes // (width * ITEM) // step * step), -(-rows // step) * step)
        return cls(rows, columns, width, block, alignment)

    @property
    def panels(self) -> int:
        return self.columns // self.width

    @property
    def blocks(self) -> int:
        """Of one panel."""
        return -(-self.rows // self.block_rows)

    @property
    def block_bytes(self) -> int:
        return self.block_rows * self.width * ITEM

    @property
    def file_bytes(self) -> int:
        return (self.first + self.panels) * self._panel_bytes

    @property
    def _panel_bytes(self) -> int:
        return self._rounded(self.rows * self.width * ITEM)

    def rows_of(self, block: int) -> slice:
        """The rows of a block, the last one shorter."""
        return slice(block * self.block_rows, min((block + 1) * self.block_rows, self.rows))

    def place(self, panel: int, block: int) -> tuple[int, int]:
        """Offset and length of a block in the file, both multiples of the alignment."""
        rows = self.rows_of(block)
        length = self._rounded((rows.stop - rows.start) * self.width * ITEM)
        return (self.first + panel) * self._panel_bytes + rows.start * self.width * ITEM, length

    def _rounded(self, count: int) -> int:
        return -(-count // self.alignment) * self.alignment


class BlockMatrix(ABC):
    """A float32 matrix that is kept in panels, see `Layout`; for passes over all of it, one at a time.

    Args:
        name: by which its bytes are counted.
        layout: its parts.
    """

    def __init__(self, name: str, layout: Layout) -> None:
        self.name, self.layout, self.shape = name, layout, (layout.rows, layout.columns)

    @abstractmethod
    def read_block(self, panel: int, block: int, out: torch.Tensor) -> None:
        """Fill out, [rows of the block, width], on any device."""

    @abstractmethod
    def write_block(self, panel: int, block: int, values: torch.Tensor) -> None:
        """Take [rows of the block, width]."""

    @abstractmethod
    def copy_from(self, other: Self) -> None:
        """Take the content of another matrix of the same layout."""

    def read_panel(self, panel: int, out: torch.Tensor) -> None:
        """Fill out, [rows, width], on any device."""
        for block in range(self.layout.blocks):
            self.read_block(panel, block, out[self.layout.rows_of(block)])

    def rows(self, block: int) -> torch.Tensor:
        """All columns of a block of rows, fresh, [rows of the block, columns]."""
        layout = self.layout
        rows = layout.rows_of(block)
        out = torch.empty(rows.stop - rows.start, layout.columns)
        for panel in range(layout.panels):
            self.read_block(panel, block, out[:, panel * layout.width : (panel + 1) * layout.width])
        return out

    def fill(self, blocks: Iterable[torch.Tensor]) -> None:
        """Take the matrix from its blocks of rows, with all columns each."""
        layout = self.layout
        for block, values in enumerate(blocks):
            for panel in range(layout.panels):
                self.write_block(panel, block, values[:, panel * layout.width : (panel + 1) * layout.width])

    def fill_from(self, read: Callable[[slice], torch.Tensor]) -> None:
        """Take the matrix from a function that gives its rows."""
        self.fill(read(self.layout.rows_of(block)) for block in range(self.layout.blocks))


class PanelMatrix(BlockMatrix):
    """A matrix in a file of a tier.

    Args:
        folder: where the file is made.
        name: of the file.
        layout: its parts.
    """

    def __init__(self, folder: TierFolder, name: str, layout: Layout) -> None:
        super().__init__(name, layout)
        self.file: TierFile = folder.create(f"{name}.bin", layout.file_bytes)
        self._buffer = aligned(layout.block_bytes)

    def column_panels(self) -> list[PanelMatrix]:
        """Its panels as matrices of one panel each, in the same file."""
        layout, panels = self.layout, [copy(self) for _ in range(self.layout.panels)]
        for number, panel in enumerate(panels):
            panel.layout = replace(layout, columns=layout.width, first=layout.first + number)
            panel.shape = layout.rows, layout.width
        return panels

    def read_block(self, panel: int, block: int, out: torch.Tensor) -> None:
        """As BlockMatrix.read_block."""
        offset, length = self.layout.place(panel, block)
        self.file.read(offset, self._buffer[:length])
        out.copy_(rows_in(self._buffer, len(out), self.layout.width))

    def write_block(self, panel: int, block: int, values: torch.Tensor) -> None:
        """As BlockMatrix.write_block."""
        offset, length = self.layout.place(panel, block)
        rows_in(self._buffer, len(values), self.layout.width).copy_(values)
        self.file.write(offset, self._buffer[:length])

    def copy_from(self, other: Self) -> None:
        """As BlockMatrix.copy_from."""
        for panel in range(self.layout.panels):
            for block in range(self.layout.blocks):
                offset, length = self.layout.place(panel, block)
                other.file.read(offset, self._buffer[:length])
                self.file.write(offset, self._buffer[:length])


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
class Block:
    """The same rows of a panel of every matrix, where the computation is, until the next block is asked for.

    Args:
        panel: its number.
        rows: which of the matrix.
        tensors: float32 [rows, width], one a matrix; what is written into them is written back.
    """

    panel: int
    rows: slice
    tensors: list[torch.Tensor]


@dataclass
class _Slot:
    """A buffer of the ring, with room for a block of every matrix."""

    buffers: list[npt.NDArray[np.uint8]]
    free: bool = True
    ready: bool = False


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


class Stream:
    """Blocks of several matrices of one layout, read ahead of the computation and written back behind it.

    `panel(p)` is to be called for p = 0, 1, ..., panels - 1, 0, ...: reading goes on across the end. Buffers and
    threads are made for the first block, and given up by `close`. An error of a thread is raised in the thread that
    computes, by whatever it calls next.

    Args:
        matrices: of one layout.
        ring: buffers and threads.
        memory: makes a buffer of so many bytes, aligned.

    Attributes:
        moved: bytes and seconds of transfers, by the names of the matrices.
        times: by the clock.
    """

    def __init__(
        self, matrices: Sequence[PanelMatrix], ring: Ring, memory: Callable[[int], npt.NDArray[np.uint8]] = aligned
    ) -> None:
        self.matrices, self.layout, self.ring, self._memory = list(matrices), matrices[0].layout, ring, memory
        self.buffers = buffer_count(self.layout, len(self.matrices), ring.buffer_bytes)
        self.times = StreamTimes()
        self.moved = {matrix.name: Traffic() for matrix in self.matrices}
        self._total = self.layout.panels * self.layout.blocks
        self._end: float = inf  # blocks that are read
        self._limits: dict[Direction, int] = {"read": ring.readers, "write": ring.writers}
        self._changed = threading.Condition()
        self._slots: list[_Slot] = []
        self._threads: list[threading.Thread] = []
        self._reset()

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
        block is that of the first panel."""
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
        size = self.layout.block_bytes
        self._slots = [_Slot([self._memory(size) for _ in self.matrices]) for _ in range(self.buffers)]
        for number in range(self.ring.readers + self.ring.writers):
            thread = threading.Thread(target=self._work, name=f"gnnrec-io-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def panel(self, number: int) -> Iterator[Block]:
        """The blocks of a panel, in order. A block is written back once the next one is asked for."""
        for block in range(self.layout.blocks):
            yield self.take(number, block)
            self.release()

    def take(self, panel: int, block: int) -> Block:
        """Wait for the next block, which must be this one. No more than `buffers` can be taken at a time."""
        if not self._threads:
            self._open()
        slot, rows = self._slot(self._take(panel, block)), self.layout.rows_of(block)
        return Block(panel, rows, [rows_in(x, rows.stop - rows.start, self.layout.width) for x in slot.buffers])

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

    def _take(self, panel: int, block: int) -> int:
        """Wait for the next block, which must be this one; gives its position."""
        with self._changed:
            position = self._use
            assert position % self._total == panel * self.layout.blocks + block, "panels must be taken in their order"
            self._use += 1
            slot, started = self._slot(position), time.perf_counter()
            self._wait_until(lambda: slot.ready)
            slot.ready = False
            self.times.waiting += time.perf_counter() - started
            return position

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

    def _transfer(self, direction: Direction, position: int) -> None:
        panel, block = divmod(position % self._total, self.layout.blocks)
        for matrix, buffer in zip(self.matrices, self._slot(position).buffers):
            if not self._moves(direction, matrix):
                continue
            offset, length = matrix.layout.place(panel, block)
            move = matrix.file.read if direction == "read" else matrix.file.write
            started = time.perf_counter()
            move(offset, buffer[:length])
            self.moved[matrix.name].add(direction, length, time.perf_counter() - started)

    def _moves(self, direction: Direction, matrix: PanelMatrix) -> bool:
        """Whether blocks of a matrix go this way."""
        return True

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

    def _slot(self, position: int) -> _Slot:
        return self._slots[position % len(self._slots)]


class Passes:
    """Streams that go over their matrices once each, several at a time, with one account.

    Args:
        ring: of all streams of a time.

    Attributes:
        moved, times: as a Stream's, of all of them.
    """

    def __init__(self, ring: Ring) -> None:
        self.ring, self.moved, self.times = ring, dict[str, Traffic](), StreamTimes()
        self.streams: list[Stream] = []  # that are open

    def close(self) -> None:
        """End the threads of streams that were given up in the middle."""
        while self.streams:
            self.streams.pop().close(drain=False)

    def open(
        self,
        read: Sequence[PanelMatrix] = (),
        change: Sequence[PanelMatrix] = (),
        write: Sequence[PanelMatrix] = (),
        *,
        share: float = 1.0,
    ) -> Stream:
        """A stream of matrices that are read, of some that are changed and of some that are written alone, in this
        order; it is closed at the end of the pass.

        Args:
            share: of the ring's buffers.
        """
        return _Pass(self, read, change, write, share)


class _Pass(Stream):
    """See `Passes`."""

    def __init__(
        self,
        passes: Passes,
        read: Sequence[PanelMatrix],
        change: Sequence[PanelMatrix],
        write: Sequence[PanelMatrix],
        share: float,
    ) -> None:
        ring = replace(passes.ring, buffer_bytes=int(share * passes.ring.buffer_bytes))
        super().__init__([*read, *change, *write], ring)
        self._end, self.times = self._total, passes.times
        self.moved = {name: passes.moved.setdefault(name, traffic) for name, traffic in self.moved.items()}
        self._all = passes.streams
        self._all.append(self)
        self._left_out: dict[Direction, list[PanelMatrix]] = {"read": list(write), "write": list(read)}

    def close(self, *, drain: bool = True) -> None:
        if self in self._all:
            self._all.remove(self)
        super().close(drain=drain)

    def _moves(self, direction: Direction, matrix: PanelMatrix) -> bool:
        return not any(matrix is other for other in self._left_out[direction])


def buffer_count(layout: Layout, matrices: int, buffer_bytes: int) -> int:
    """How many buffers a ring of so many bytes has. No more than there are blocks: a block that is read again must have
    been written before, which its buffer's turn then ensures."""
    asked = max(FEWEST, buffer_bytes // (matrices * layout.block_bytes))
    return min(asked, layout.panels * layout.blocks)


def empty(rows: int, columns: int) -> torch.Tensor:
    """Fresh memory in huge pages, float32 [rows, columns], zeros."""
    return rows_in(aligned(rows * columns * ITEM), rows, columns)


def mapped(file: TierFile, rows: int, columns: int) -> torch.Tensor:
    """A float32 matrix [rows, columns], row after row, in a file that is mapped into memory."""
    memory = mmap.mmap(file.fileno(), file.size)  # shared: what is written goes to the file
    return rows_in(np.frombuffer(memory, np.uint8), rows, columns)


def rows_in(buffer: npt.NDArray[np.uint8], rows: int, width: int) -> torch.Tensor:
    """The first rows in a buffer, float32 [rows, width]."""
    return torch.from_numpy(buffer[: rows * width * ITEM].view(np.float32).reshape(rows, width))
