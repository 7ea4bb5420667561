"""Matrices that are kept in panels of columns: passes over all of one, a block after the other."""

from __future__ import annotations

import mmap
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import replace
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch

from gnnrec.memtier.files import Access, TierFile, aligned
from gnnrec.memtier.layout import ITEM, Layout
from gnnrec.memtier.placement import map_file


class BlockFile(Protocol):
    """A place of a fixed size that blocks are read from and written to, by several threads: `files.TierFile`, or
    `custom.CustomStore`."""

    def read(self, offset: int, buffer: npt.NDArray[Any]) -> None: ...
    def write(self, offset: int, buffer: npt.NDArray[Any]) -> None: ...


class BlockFolder(Protocol):
    """Where such places are made: `files.TierFolder`, or `custom.CustomTier`."""

    access: Access

    def create(self, name: str, size: int) -> BlockFile: ...


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

    def __init__(self, folder: BlockFolder, name: str, layout: Layout) -> None:
        super().__init__(name, layout)
        self.file: BlockFile = folder.create(f"{name}.bin", layout.file_bytes)
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


def empty(rows: int, columns: int) -> torch.Tensor:
    """Fresh memory in huge pages, float32 [rows, columns], zeros."""
    return rows_in(aligned(rows * columns * ITEM), rows, columns)


def mapped(file: TierFile, rows: int, columns: int) -> torch.Tensor:
    """A float32 matrix [rows, columns], row after row, in a file that is mapped into memory, and whose space is
    reserved: what is written goes there. What no check can find is said in `map_file`."""
    return rows_in(map_file(str(file.path), file.fileno(), file.size, mmap.MAP_SHARED), rows, columns)


def rows_in(buffer: npt.NDArray[np.uint8], rows: int, width: int) -> torch.Tensor:
    """The first rows in a buffer, float32 [rows, width]."""
    return torch.from_numpy(buffer[: rows * width * ITEM].view(np.float32).reshape(rows, width))
