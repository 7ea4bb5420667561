"""A tier: folders on several disks as one, stripe by stripe in turn, as RAID 0 has them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Self

import numpy as np
import numpy.typing as npt

from gnnrec.errors import ConfigError
from gnnrec.memtier.files import TierFile, TierFolder


class Striped:
    """Folders in which stripes of every store lie in turn. Each is locked, and what a killed run left there is removed,
    as gnnrec does it with its own.

    Args:
        folders: one a disk.
        stripe: bytes; a block of training has four million.
        run: whom the files belong to.
    """

    def __init__(self, folders: list[str], stripe: int = 1 << 20, *, run: str = "") -> None:
        self.folders, self.stripe = [TierFolder(folder, run=run) for folder in folders], stripe
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as failed:
            for folder in self.folders:
                failed.enter_context(folder)
            if not self.folders or self.stripe < 1 or self.stripe % self.alignment:
                found = f"{len(self.folders)} folders, stripes of {self.stripe} bytes"
                remedy = f"Give at least one folder, and a multiple of {self.alignment} bytes"
                raise ConfigError(found, where="memory.custom.options", remedy=remedy)
            self._open = failed.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    @property
    def alignment(self) -> int:
        """Bytes: what the pickiest disk takes."""
        return max((folder.access.alignment for folder in self.folders), default=1)

    @property
    def capacity(self) -> int:
        """Bytes: as much on every disk as the smallest has."""
        return self._together("f_blocks")

    @property
    def free(self) -> int:
        """Bytes: as much on every disk as the fullest has left."""
        return self._together("f_bavail")

    def create(self, name: str, size: int) -> Stripes:
        """A store in as many files as there are folders."""
        each = -(-size // (self.stripe * len(self.folders))) * self.stripe
        return Stripes([folder.create(name, each) for folder in self.folders], self.stripe)

    def _together(self, blocks: str) -> int:
        """Folders on one disk share its bytes."""
        disks = [os.stat(folder.path).st_dev for folder in self.folders]
        spaces = [os.statvfs(folder.path) for folder in self.folders]
        shares = [
            getattr(space, blocks) * space.f_frsize // Counter(disks)[disk]
            for disk, space in zip(disks, spaces, strict=True)
        ]
        return len(shares) * min(shares)


class Stripes:
    """A store: stripe number n is in file n modulo their number."""

    def __init__(self, files: list[TierFile], stripe: int) -> None:
        self.files, self.stripe = files, stripe

    def read(self, offset: int, buffer: npt.NDArray[np.uint8]) -> int:
        """Fill the buffer; returns its bytes."""
        for file, place, part in self._parts(offset, buffer):
            file.read(place, part)
        return buffer.nbytes

    def write(self, offset: int, buffer: npt.NDArray[np.uint8]) -> int:
        """Write the buffer; returns its bytes."""
        for file, place, part in self._parts(offset, buffer):
            file.write(place, part)
        return buffer.nbytes

    def flush(self) -> None:
        """Wait for all disks."""
        for file in self.files:
            file.sync()

    def close(self) -> None:
        """Give up the files."""
        for file in self.files:
            file.close()
            file.path.unlink(missing_ok=True)

    def _parts(
        self, offset: int, buffer: npt.NDArray[np.uint8]
    ) -> Iterator[tuple[TierFile, int, npt.NDArray[np.uint8]]]:
        """Which part of the buffer belongs into which file, and at which byte."""
        at = 0
        while at < buffer.nbytes:
            stripe, within = divmod(offset + at, self.stripe)
            row, disk = divmod(stripe, len(self.files))
            end = min(buffer.nbytes, at + self.stripe - within)
            yield self.files[disk], row * self.stripe + within, buffer[at:end]
            at = end
