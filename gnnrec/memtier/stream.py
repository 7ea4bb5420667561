"""Matrices in files of a slow tier that pass through DRAM in blocks of rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from gnnrec.memtier.files import Direction, Traffic, aligned
from gnnrec.memtier.matrices import PanelMatrix, rows_in
from gnnrec.memtier.ring import Ring, RingOfBuffers, StreamTimes


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


class Stream(RingOfBuffers):
    """Blocks of several matrices of one layout, read ahead of the computation and written back behind it.

    `panel(p)` is to be called for p = 0, 1, ..., panels - 1, 0, ...: reading goes on across the end.

    Args:
        matrices: of one layout.
        ring, memory, times: as `RingOfBuffers` has it.

    Attributes:
        moved: bytes and seconds of transfers, by the names of the matrices; a block counts as read once it is taken,
            so that what is read ahead belongs to whoever takes it.
    """

    def __init__(
        self,
        matrices: Sequence[PanelMatrix],
        ring: Ring,
        memory: Callable[[int], npt.NDArray[np.uint8]] = aligned,
        times: StreamTimes | None = None,
    ) -> None:
        self.matrices, self.layout = list(matrices), matrices[0].layout
        self.moved = {matrix.name: Traffic() for matrix in self.matrices}
        sizes = [self.layout.block_bytes] * len(self.matrices)
        super().__init__(sizes, self.layout.panels * self.layout.blocks, ring, memory, times)

    def panel(self, number: int) -> Iterator[Block]:
        """The blocks of a panel, in order. A block is written back once the next one is asked for."""
        for block in range(self.layout.blocks):
            yield self.take(number, block)
            self.release()

    def take(self, panel: int, block: int) -> Block:
        """Wait for the next block, which must be this one. No more than `buffers` can be taken at a time."""
        slot, rows = self._take(panel * self.layout.blocks + block), self.layout.rows_of(block)
        for name, count, seconds in slot.read:
            self.moved[name].add("read", count, seconds)
        return Block(panel, rows, [rows_in(x, rows.stop - rows.start, self.layout.width) for x in slot.buffers])

    def _transfer(self, direction: Direction, position: int) -> None:
        panel, block = divmod(position % self._total, self.layout.blocks)
        slot, took = self._slot(position), list[tuple[str, int, float]]()
        for matrix, buffer in zip(self.matrices, slot.buffers):
            if not self._moves(direction, matrix):
                continue
            offset, length = matrix.layout.place(panel, block)
            move = matrix.file.read if direction == "read" else matrix.file.write
            started = time.perf_counter()
            move(offset, buffer[:length])
            took.append((matrix.name, length, time.perf_counter() - started))
        if direction == "read":
            slot.read = took
            return
        for name, count, seconds in took:
            self.moved[name].add("write", count, seconds)

    def _moves(self, direction: Direction, matrix: PanelMatrix) -> bool:
        """Whether blocks of a matrix go this way."""
        return True
