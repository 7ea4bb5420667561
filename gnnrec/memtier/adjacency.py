"""The adjacency of a streamed model: as it lies in memory, or with its columns in a file of a slow tier.

What a graph of nnz entries and N nodes needs is 4 nnz bytes of columns, 8 N of row pointers and 4 N of scales (its
transpose is itself). In a file lie the columns; pointers and scales stay in DRAM, besides a few buffers. Propagation by
one layer reads the columns, 4 nnz bytes, once for every panel of the embeddings: L layers, forward and backward, over P
panels read 8 L P nnz bytes a step. So wide panels pay, and the file is read in large blocks, one after the other.

A block is a range of rows with all their entries: a row is never cut, so that its terms are added up in the order, and
to the bits, that they have in memory. A buffer has room for the longest row, which takes 4 bytes a node at the most,
where a panel takes 64 or more.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from gnnrec import ops, profiler
from gnnrec.graph.bipartite import BipartiteGraph
from gnnrec.graph.schedule import Schedule
from gnnrec.graph.sparse import SparseMatrix
from gnnrec.memtier.files import Direction, TierFile, TierFolder, Traffic, aligned
from gnnrec.memtier.layout import BLOCK_BYTES, ITEM, columns_block_bytes
from gnnrec.memtier.placement import map_file
from gnnrec.memtier.ring import Ring, RingOfBuffers, StreamTimes, read_only

_SELECTING = "gnnrec::select_rows"  # in a profile

Part = tuple[slice, SparseMatrix]  # which of the rows that were asked for, and their matrix [rows, nodes]


class Adjacency(Protocol):
    """The symmetric matrix [nodes, nodes] by which a model propagates, and its rows.

    Attributes:
        matrix: itself; where its columns are streamed, mapped from their file, for what is no part of a step.
    """

    matrix: SparseMatrix

    def rows(self, rows: slice) -> Iterable[Part]:
        """Consecutive rows in parts, each needed until the next one is asked for. Rows are asked for from the first to
        the last, or from the first anew."""
        ...

    def chosen(self, nodes: torch.Tensor) -> Iterable[Part]:
        """Rows of nodes, int64 [n] in rising order, in parts: may be gone over several times."""
        ...

    def propagate(
        self,
        out: torch.Tensor,
        work: torch.Tensor,
        x: torch.Tensor,
        layer_weights: list[float],
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As `ops.lightgcn_propagate_into`."""
        ...

    def read(self) -> tuple[int, float]:
        """Bytes that were read so far, and the seconds that threads spent with it."""
        ...

    def close(self) -> None:
        """End threads and give up buffers; rows may be asked for again, from the first."""
        ...


class HeldAdjacency:
    """Where the computation is.

    Args:
        matrix: symmetric.
    """

    def __init__(self, matrix: SparseMatrix) -> None:
        self.matrix = matrix
        # Of blocks, by their rows: on a GPU what was made of them, elsewhere what threads take.
        self._blocks: dict[int, SparseMatrix] = {}
        self._schedules: dict[tuple[int, int], Schedule] = {}

    def rows(self, rows: slice) -> Iterable[Part]:
        """As Adjacency.rows; a GPU's schedule is waited for, and so made once."""
        block = self._blocks.get(rows.start)
        if block is None:
            with profiler.kernel(_SELECTING):
                block = self.matrix.row_block(rows, schedule=self._schedules.get((rows.start, rows.stop)))
        if self.matrix.device.type != "cpu":
            self._blocks[rows.start] = block
        else:
            self._schedules[rows.start, rows.stop] = Schedule(block.chunks, block.pieces, block.long)
        return [(slice(0, rows.stop - rows.start), block)]

    def chosen(self, nodes: torch.Tensor) -> Iterable[Part]:
        """As Adjacency.chosen."""
        with profiler.kernel(_SELECTING):
            return [(slice(0, len(nodes)), self.matrix.select_rows(nodes))]

    def propagate(
        self,
        out: torch.Tensor,
        work: torch.Tensor,
        x: torch.Tensor,
        layer_weights: list[float],
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As Adjacency.propagate."""
        return ops.lightgcn_propagate_into(out, work, self.matrix, x, layer_weights=layer_weights, rows=rows)

    def read(self) -> tuple[int, float]:
        """As Adjacency.read."""
        return 0, 0.0

    def close(self) -> None:
        """As Adjacency.close."""


class FileAdjacency:
    """Its columns in a file, from which they come block by block, read ahead of the computation.

    Args:
        folder: of the file.
        graph: whose columns are copied there.
        ring: threads.
        times: where the seconds of transfers are counted.
        block_bytes: the most of a block, unless a row needs more.

    Attributes:
        graph: the same one with the columns, and so the users of every item, mapped from the file.
    """

    def __init__(
        self,
        folder: TierFolder,
        graph: BipartiteGraph,
        ring: Ring,
        times: StreamTimes | None = None,
        block_bytes: int | None = None,
    ) -> None:
        entries = 2 * graph.num_edges
        file = folder.create("graph.bin", max(entries, 1) * ITEM)
        _write(file, graph)
        mapped = map_file(str(file.path), file.fileno(), file.size, mmap.MAP_SHARED).view(np.int32)
        self.graph = graph.with_columns(mapped[:entries])
        self.matrix = self.graph.norm_adjacency()
        indptr = self.matrix.indptr.numpy()
        if block_bytes is None:
            longest = int(np.diff(indptr).max(initial=0))
            block_bytes = columns_block_bytes(entries, longest, file.alignment) - 2 * file.alignment
        self._blocks = _Blocks.of(indptr, block_bytes // ITEM, file.alignment)
        buffers = read_only(ring.readers) * self._blocks.block_bytes
        ring = replace(ring, buffer_bytes=buffers, writers=1, phased=False)
        self._columns = _Columns(file, self._blocks, ring, times)
        self._next = 0  # row
        self._held: tuple[slice, torch.Tensor] | None = None  # rows and columns of the block that has it

    def rows(self, rows: slice) -> Iterator[Part]:
        """As Adjacency.rows."""
        start, nodes = rows.start, self.matrix.shape[0]
        if start == 0 and self._next:  # the last round was given up
            self.close()
        while start < rows.stop:
            assert start == self._next, "rows must be taken in their order"
            self._held = self._held or self._columns.block()
            (block, columns), opened = self._held, self._columns.opened
            here = slice(start, min(rows.stop, block.stop))
            self._next = here.stop % nodes
            first, *entries = self.matrix.indptr[[block.start, start, here.stop]].tolist()
            with profiler.kernel(_SELECTING):
                part = self.matrix.row_block(here, columns[slice(*(entry - first for entry in entries))])
            try:
                yield slice(start - rows.start, here.stop - rows.start), part
            finally:
                if here.stop == block.stop and self._columns.opened == opened and self._columns.is_open:
                    self._held = None
                    self._columns.release()
            start = here.stop

    def chosen(self, nodes: torch.Tensor) -> Iterable[Part]:
        """As Adjacency.chosen; every time the whole file is read."""
        return _Chosen(self, nodes)

    def propagate(
        self,
        out: torch.Tensor,
        work: torch.Tensor,
        x: torch.Tensor,
        layer_weights: list[float],
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As Adjacency.propagate."""

        def every() -> Iterator[Part]:
            return self.rows(slice(0, self.matrix.shape[0]))

        matrix = [self.matrix.indptr, self.matrix.indices, self.matrix.row_scale, self.matrix.col_scale]
        with profiler.kernel("gnnrec::lightgcn_propagate", matrix, x, layer_weights):
            return ops.lightgcn_propagate_blocks(out, work, every, x, layer_weights=layer_weights, rows=rows)

    def read(self) -> tuple[int, float]:
        """As Adjacency.read."""
        return self._columns.moved.read_bytes, self._columns.moved.read_seconds

    def close(self) -> None:
        """As Adjacency.close."""
        self._columns.close(drain=False)
        self._next, self._held = 0, None


class _Chosen:
    """Rows of an adjacency in a file, as often as they are gone over."""

    def __init__(self, adjacency: FileAdjacency, nodes: torch.Tensor) -> None:
        self.adjacency, self.nodes = adjacency, nodes

    def __iter__(self) -> Iterator[Part]:
        for rows, part in self.adjacency.rows(slice(0, self.adjacency.matrix.shape[0])):
            first, last = torch.searchsorted(self.nodes, torch.tensor([rows.start, rows.stop])).tolist()
            if first < last:
                with profiler.kernel(_SELECTING):
                    chosen = part.select_rows(self.nodes[first:last] - rows.start)
                yield slice(first, last), chosen


@dataclass(frozen=True)
class _Blocks:
    """Ranges of rows and of the entries that they have in a file: borders int64 [blocks + 1]."""

    rows: npt.NDArray[np.int64]
    entries: npt.NDArray[np.int64]
    alignment: int

    @classmethod
    def of(cls, indptr: npt.NDArray[np.int64], most: int, alignment: int) -> _Blocks:
        """As large ones as have no more than so many entries, or a single row."""
        rows, last = [0], len(indptr) - 1
        while rows[-1] < last:
            start = rows[-1]
            fitting = int(np.searchsorted(indptr, indptr[start] + most, side="right")) - 1
            rows.append(min(max(fitting, start + 1), last))
        borders = np.array(rows, np.int64)
        return cls(borders, indptr[borders], alignment)

    @property
    def blocks(self) -> int:
        return len(self.rows) - 1

    @property
    def block_bytes(self) -> int:
        """Of the largest one."""
        return max([self.place(number)[1] for number in range(self.blocks)], default=0) or self.alignment

    def rows_of(self, number: int) -> slice:
        return slice(int(self.rows[number]), int(self.rows[number + 1]))

    def place(self, number: int) -> tuple[int, int]:
        """Offset and length of a block in the file, both multiples of the alignment."""
        first, last = (int(self.entries[number + k]) * ITEM for k in (0, 1))
        start = first // self.alignment * self.alignment
        return start, -(-(last - start) // self.alignment) * self.alignment if last > first else 0

    def columns_in(self, number: int, buffer: npt.NDArray[np.uint8]) -> torch.Tensor:
        """The columns of a block in the buffer that it was read into, int32 [entries]."""
        first, last = (int(self.entries[number + k]) * ITEM for k in (0, 1))
        skipped = first - self.place(number)[0]
        return torch.from_numpy(buffer[skipped : skipped + last - first].view(np.int32))


class _Columns(RingOfBuffers):
    """The columns of an adjacency, block after block, in rounds."""

    def __init__(self, file: TierFile, blocks: _Blocks, ring: Ring, times: StreamTimes | None) -> None:
        super().__init__([blocks.block_bytes], blocks.blocks, ring, times=times)
        self.file, self.blocks, self.moved = file, blocks, Traffic()

    def block(self) -> tuple[slice, torch.Tensor]:
        """Rows and columns of the next block, until it is released."""
        number = self._use % self._total
        slot = self._take(number)
        for _, count, seconds in slot.read:  # not before: what is read ahead belongs to whoever takes it
            self.moved.add("read", count, seconds)
        return self.blocks.rows_of(number), self.blocks.columns_in(number, slot.buffers[0])

    def _transfer(self, direction: Direction, position: int) -> None:
        if direction == "write":  # there is nothing new in it
            return
        offset, length = self.blocks.place(position % self._total)
        slot, started = self._slot(position), time.perf_counter()
        self.file.read(offset, slot.buffers[0][:length])
        slot.read = [("graph", length, time.perf_counter() - started)]


def _write(file: TierFile, graph: BipartiteGraph) -> None:
    """The columns of a graph's adjacency, one after the other."""
    buffer, entries = aligned(min(BLOCK_BYTES, file.size)), 2 * graph.num_edges
    numbers = buffer.view(np.int32)
    for first in range(0, entries, BLOCK_BYTES // ITEM):
        count = min(BLOCK_BYTES // ITEM, entries - first)
        numbers[:count] = graph.adjacency_columns(first, first + count)
        length = -(-count * ITEM // file.alignment) * file.alignment
        file.write(first * ITEM, buffer[:length])
