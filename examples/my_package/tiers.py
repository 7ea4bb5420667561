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
        # Options of a config may be anything.
        several = isinstance(folders, list) and all(isinstance(folder, str) for folder in folders)
        if not several or not 0 < len(folders) == len({os.path.realpath(folder) for folder in folders}):
            where, remedy = "memory.custom.options.folders", "Give a list of folders, none of them twice"
            raise ConfigError(f"is {folders!r}", where=where, remedy=remedy)
        if not isinstance(stripe, int) or stripe < 1:
            raise ConfigError(f"is {stripe!r}", where="memory.custom.options.stripe", remedy="Give a number of bytes")
        self.folders, self.stripe = [TierFolder(folder, run=run) for folder in folders], stripe
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as failed:
            for folder in self.folders:
                failed.enter_context(folder)
            if self.stripe % self.alignment:
                where, remedy = "memory.custom.options.stripe", f"Give a multiple of {self.alignment} bytes"
                raise ConfigError(f"is {self.stripe}", where=where, remedy=remedy)
            self._open = failed.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    @property
    def alignment(self) -> int:
        """Bytes: what the pickiest disk takes."""
        return max(folder.access.alignment for folder in self.folders)

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
    """A store: stripe number n is in file n modulo their number. The disks of a block are waited for one after the
    other: several at a time are kept busy by blocks that training moves at the same time."""

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
