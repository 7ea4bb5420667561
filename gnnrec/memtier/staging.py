"""Blocks that pass through a GPU: from DRAM, or from files through DRAM, and back, beside the computation.

A buffer on the GPU is filled once what it held before was copied back, and computed on once it is filled. The host only
starts all this, a ring of buffers ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import torch

from gnnrec import device as devices
from gnnrec.memtier.copies import Event, copies, pinned
from gnnrec.memtier.files import Direction, Traffic
from gnnrec.memtier.layout import ITEM, Layout
from gnnrec.memtier.matrices import BlockMatrix, rows_in
from gnnrec.memtier.ring import buffer_count
from gnnrec.memtier.stream import Block

# Of a block of one matrix: its copy takes longer than the host takes to start what is done with it; but the ring takes
# no more than half a panel has to.
BLOCK_BYTES, BLOCKS = 16 << 20, 8
LINE = 64  # bytes that blocks of rows are a multiple of


def host_layout(rows: int, columns: int, width: int) -> Layout:
    """How a matrix lies in DRAM beside a GPU."""
    return Layout.of(rows, columns, width, LINE, min(BLOCK_BYTES, rows * width * ITEM // BLOCKS))


class HostMatrix(BlockMatrix):
    """A matrix in DRAM, panel after panel, pinned for a GPU."""

    def __init__(self, name: str, layout: Layout, device: torch.device) -> None:
        super().__init__(name, layout)
        shape = layout.panels, layout.rows, layout.width
        memory = pinned(shape[0] * shape[1] * shape[2] * ITEM, device)
        self.panels = rows_in(memory, shape[0] * shape[1], shape[2]).view(shape)

    def read_block(self, panel: int, block: int, out: torch.Tensor) -> None:
        """As BlockMatrix.read_block."""
        out.copy_(self.panels[panel, self.layout.rows_of(block)])

    def write_block(self, panel: int, block: int, values: torch.Tensor) -> None:
        """As BlockMatrix.write_block."""
        self.panels[panel, self.layout.rows_of(block)] = values

    def copy_from(self, other: Self) -> None:
        """As BlockMatrix.copy_from."""
        self.panels.copy_(other.panels)


class Source(Protocol):
    """Where blocks come from, in DRAM: `stream.Stream`, from files; `Held`, of matrices that lie there.

    Attributes:
        buffers: the most blocks that may be taken at a time.
        moved: what it moves itself, by the names of the matrices.
    """

    layout: Layout
    buffers: int
    moved: dict[str, Traffic]

    def take(self, panel: int, block: int) -> Block: ...
    def release(self) -> None: ...
    def drain(self) -> None: ...
    def close(self, *, drain: bool = True) -> None: ...
    def spent(self) -> tuple[float, float]: ...


class Held:
    """Blocks of matrices that lie in DRAM: nothing is to be moved before they are."""

    def __init__(self, matrices: Sequence[HostMatrix]) -> None:
        self.matrices, self.layout = list(matrices), matrices[0].layout
        self.buffers = self.layout.panels * self.layout.blocks
        self.moved: dict[str, Traffic] = {}

    def take(self, panel: int, block: int) -> Block:
        """The block as it lies."""
        rows = self.layout.rows_of(block)
        return Block(panel, rows, [matrix.panels[panel, rows] for matrix in self.matrices])

    def release(self) -> None:
        """As Source.release."""

    def drain(self) -> None:
        """As Source.drain."""

    def close(self, *, drain: bool = True) -> None:
        """As Source.close."""

    def spent(self) -> tuple[float, float]:
        """As Source.spent."""
        return 0.0, 0.0


@dataclass
class _Slot:
    """A buffer on the GPU, with room for a block of every matrix; `free`: when it was last copied back."""

    buffers: list[torch.Tensor]
    free: Event | None = None


class _Coming(NamedTuple):
    """A block in DRAM, the slot on the GPU and the tensors in it that it is copied into, and when it is there."""

    block: Block
    slot: _Slot
    tensors: list[torch.Tensor]
    there: Event


class Staged:
    """A source's blocks on a GPU, as `stream.Stream` has them in DRAM: copied there ahead of the computation, also
    across the ends of panels and rounds, and back behind it.

    Args:
        source: of the blocks.
        names: of the matrices, in the order of a block's tensors.
        device: the GPU.
        buffer_bytes: of all buffers on it; at least `ring.FEWEST` are made.
    """

    def __init__(self, source: Source, names: Sequence[str], device: torch.device, buffer_bytes: int) -> None:
        self.source, self.layout, self.device = source, source.layout, device
        size, total = len(names) * self.layout.block_bytes, self.layout.panels * self.layout.blocks
        self.buffers = min(buffer_count(size, total, buffer_bytes), source.buffers)
        self._moved = {name: Traffic() for name in names}
        self._copies = copies(device)
        self._waiting = 0.0
        self._slots: list[_Slot] = []
        self._reset()

    def _reset(self) -> None:
        # The next block, counted over all rounds, to be copied in, to be computed on, and to be given back.
        self._load = self._use = self._release = 0
        self._coming: deque[_Coming] = deque()
        self._leaving: deque[Event] = deque()  # the ends of copies back, of blocks that were not given back yet

    @property
    def moved(self) -> dict[str, Traffic]:
        """Bytes and seconds of files, or where there are none, of copies to and from the GPU, by matrix."""
        return self.source.moved or self._moved

    def spent(self) -> tuple[float, float]:
        """Seconds up to now of transfers, of copies the way that took longer, and in which the computation waited for
        them. Waits for the computation."""
        transferring, waiting = self.source.spent()
        ways, waited = self._copies.settle()
        self._waiting += waited
        for moved in self._moved.values():
            for way, seconds in ways.items():
                moved.add(way, 0, seconds / len(self._moved))
        reading = sum(moved.read_seconds for moved in self._moved.values())
        writing = sum(moved.write_seconds for moved in self._moved.values())
        return max(transferring, reading, writing), waiting + self._waiting

    def panel(self, number: int) -> Iterator[Block]:
        """The blocks of a panel, in order, on the GPU. A block is copied back once the next one is asked for."""
        if not self._slots:
            self._open()
        for block in range(self.layout.blocks):
            assert self._place(self._use) == (number, block), "panels must be taken in their order"
            self._use += 1
            while self._load < self._use + self.buffers - 1:
                self._fetch()
            coming = self._coming.popleft()
            self._copies.wait(coming.there)
            yield Block(number, coming.block.rows, coming.tensors)
            coming.slot.free = self._copies.write(coming.block.tensors, coming.tensors)
            self._count("write", coming.tensors)
            self._leaving.append(coming.slot.free)

    def drain(self) -> None:
        """Wait until everything that was computed lies where it came from, so that others may read it."""
        while self._leaving:
            self._give_back()
        self.source.drain()

    def close(self, *, drain: bool = True) -> None:
        """Give up the buffers, by default after everything that was computed is back. The next block is that of the
        first panel."""
        try:
            if drain:
                self.drain()
            for coming in self._coming:
                coming.there.synchronize()
            for event in self._leaving:
                event.synchronize()
        finally:
            self.source.close(drain=drain)
            self._slots = []
            self._reset()

    def _open(self) -> None:
        rows, width = self.layout.block_rows, self.layout.width
        for _ in range(self.buffers):
            like = torch.empty(0, device=self.device)
            slot = [devices.empty(like, (rows, width), "a staging buffer") for _ in self._moved]
            self._slots.append(_Slot(slot))

    def _fetch(self) -> None:
        """Start to copy the next block in."""
        while self._leaving and (self._leaving[0].query() or self._load - self._release >= self.source.buffers):
            self._give_back()
        block, slot = self.source.take(*self._place(self._load)), self._slots[self._load % len(self._slots)]
        tensors = [buffer[: len(x)] for buffer, x in zip(slot.buffers, block.tensors, strict=True)]
        self._coming.append(_Coming(block, slot, tensors, self._copies.read(tensors, block.tensors, slot.free)))
        self._count("read", tensors)
        self._load += 1

    def _give_back(self) -> None:
        """The block that has been leaving longest, once it is back in DRAM."""
        self._leaving.popleft().synchronize()
        self.source.release()
        self._release += 1

    def _place(self, position: int) -> tuple[int, int]:
        """Panel and block of a position."""
        return divmod(position % (self.layout.panels * self.layout.blocks), self.layout.blocks)

    def _count(self, way: Direction, tensors: Sequence[torch.Tensor]) -> None:
        for moved, tensor in zip(self._moved.values(), tensors, strict=True):
            moved.add(way, tensor.nbytes, 0.0)
