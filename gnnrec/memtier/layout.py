"""How a matrix lies in a file of a slow tier: a panel of columns after the other, each in blocks of rows."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

ITEM = 4  # bytes of a float32
BLOCK_BYTES = 4 << 20  # of one matrix: large enough for the bandwidth of a disk, small enough for many in the ring
ROWS_BYTES = 2 << 20  # of a block with all columns, where several matrices at a time are taken row by row
# Of a block of a graph's columns: the bytes, how many blocks there are at least, and the fewest pages that one has: the
# last of them is read again with the next block.
GRAPH_BYTES, GRAPH_BLOCKS, GRAPH_PAGES = 2 << 20, 32, 16


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


def columns_block_bytes(entries: int, longest: int, alignment: int = 4096) -> int:
    """Bytes that a block of an adjacency's columns has at the most: a small part of them all, so that a ring of blocks
    is smaller than they are; as many as the longest row has; whole pages, of which it begins and ends within one."""
    least = max(min(GRAPH_BYTES, entries * ITEM // GRAPH_BLOCKS), longest * ITEM, GRAPH_PAGES * alignment)
    return -(-least // alignment) * alignment + 2 * alignment
