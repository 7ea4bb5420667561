"""Where the matrices of a streamed training lie, and how their blocks come to where it computes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import torch

from gnnrec.memtier.copies import pinned
from gnnrec.memtier.files import TierFolder
from gnnrec.memtier.layout import Layout
from gnnrec.memtier.matrices import BlockFolder, BlockMatrix, PanelMatrix, empty, mapped
from gnnrec.memtier.ring import Ring, StreamTimes
from gnnrec.memtier.staging import Held, HostMatrix, Staged
from gnnrec.memtier.stream import Stream

CPU = torch.device("cpu")


class Store(Protocol):
    """Memory for matrices, and the device that computes on their blocks. Streams take matrices of the same store."""

    @property
    def device(self) -> torch.device: ...

    def matrix(self, name: str, layout: Layout) -> BlockMatrix:
        """A matrix of this name."""
        ...

    def dense(self, name: str, rows: int, columns: int) -> torch.Tensor:
        """A float32 matrix [rows, columns], row after row, which processors use as it lies."""
        ...

    def stream(self, matrices: Sequence[Any]) -> Stream | Staged:
        """The blocks of matrices, on the device."""
        ...


class FileStore:
    """Files of a tier.

    Args:
        folder: where they are made.
        ring: buffers in DRAM, and threads; as large on a GPU.
        device: that computes.
        blocks: where matrices are made that nobody maps, if not there.
    """

    def __init__(
        self, folder: TierFolder, ring: Ring, device: torch.device = CPU, blocks: BlockFolder | None = None
    ) -> None:
        self.folder, self.ring, self.device = folder, ring, device
        self.blocks = blocks or folder
        self.times = StreamTimes()  # of all streams

    def matrix(self, name: str, layout: Layout) -> PanelMatrix:
        """As Store.matrix."""
        return PanelMatrix(self.blocks, name, layout)

    def dense(self, name: str, rows: int, columns: int) -> torch.Tensor:
        """As Store.dense, mapped."""
        return mapped(self.folder.create(f"{name}.bin", rows * columns * 4), rows, columns)

    def stream(self, matrices: Sequence[PanelMatrix]) -> Stream | Staged:
        """As Store.stream."""
        if self.device.type == "cpu":
            return Stream(matrices, self.ring, times=self.times)
        blocks = Stream(matrices, self.ring, partial(pinned, device=self.device), self.times)
        return Staged(blocks, [matrix.name for matrix in matrices], self.device, self.ring.buffer_bytes)


class HostStore:
    """DRAM, for a GPU.

    Args:
        device: the GPU.
        buffer_bytes: of the staging buffers on it.
    """

    def __init__(self, device: torch.device, buffer_bytes: int) -> None:
        self.device, self.buffer_bytes = device, buffer_bytes

    def matrix(self, name: str, layout: Layout) -> HostMatrix:
        """As Store.matrix."""
        return HostMatrix(name, layout, self.device)

    def dense(self, name: str, rows: int, columns: int) -> torch.Tensor:
        """As Store.dense."""
        return empty(rows, columns)

    def stream(self, matrices: Sequence[HostMatrix]) -> Staged:
        """As Store.stream."""
        return Staged(Held(matrices), [matrix.name for matrix in matrices], self.device, self.buffer_bytes)
