"""Memory of large results on the CPU, kept from step to step of a training.

malloc gives blocks of more than 32 MiB back to the system when they are freed. The next ones are new pages, which the
system fills with zeros: with matrices of 70 MB that took a fifth of a step. Those of a step are all equally large, so a
block serves again where just its size is asked for, and no more are held than were once in use together.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

LEAST = 32 << 20  # bytes; malloc keeps what is smaller, see process.prepare

_serving: ContextVar[Kept | None] = ContextVar("serving", default=None)


class Kept:
    """Blocks of memory, each for one tensor at a time."""

    def __init__(self) -> None:
        self._blocks: list[mmap.mmap] = []
        self._most = 0  # bytes that were taken at once

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Within, `empty` takes blocks from here."""
        token = _serving.set(self)
        try:
            yield
        finally:
            _serving.reset(token)

    def take(self, size: int) -> mmap.mmap:
        """A block of so many bytes that no tensor has, with whatever it holds. It is taken while others refer to it, as
        an array over it does, and a tensor to that array."""
        idle = self._idle()
        others = sum(map(len, self._blocks)) - sum(map(len, idle))
        self._most = max(self._most, others + size)
        for block in idle:
            if len(block) == size:
                return block
        self._drop(idle, self._most - others - size)
        self._blocks.append(_mapped(size))
        return self._blocks[-1]

    def release(self) -> None:
        """Give the system the blocks that no tensor has."""
        self._drop(self._idle(), 0)

    def _idle(self) -> list[mmap.mmap]:
        """Blocks that nothing but this object refers to: its list, and here a variable and getrefcount."""
        return [block for block in self._blocks if sys.getrefcount(block) <= 3]

    def _drop(self, idle: list[mmap.mmap], room: int) -> None:
        """Give up idle blocks, the oldest first, until the rest takes no more than this."""
        held = sum(map(len, idle))
        given_up = set[int]()
        for block in idle:
            if held > room:
                given_up.add(id(block))
                held -= len(block)
        self._blocks = [block for block in self._blocks if id(block) not in given_up]


def empty(shape: torch.Size, dtype: torch.dtype) -> torch.Tensor | None:
    """A tensor in memory that was kept, where a training keeps some and it is worth it, else None."""
    import torch

    kept, size = _serving.get(), shape.numel() * dtype.itemsize
    if kept is None or size <= LEAST:
        return None
    # A view only of what numpy does not know: autograd adds gradients up in place in memory that nothing else has.
    known = dtype if dtype in (torch.float32, torch.float64) else torch.uint8
    length = [*shape] if known == dtype else [size]
    try:
        block = kept.take(size)
    except OSError:  # no memory: torch says so, with the size that it asks for
        return None
    found = torch.from_numpy(np.ndarray(length, str(known).removeprefix("torch."), block))
    return found if known == dtype else found.view(dtype).view(shape)


def _mapped(size: int) -> mmap.mmap:
    if not hasattr(mmap, "MAP_ANONYMOUS"):  # on Windows
        return mmap.mmap(-1, size)
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            block.madvise(mmap.MADV_HUGEPAGE)
    return block
