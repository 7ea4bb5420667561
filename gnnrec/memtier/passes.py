"""Streams that go over their matrices once, several at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gnnrec.memtier.files import Direction, Traffic
from gnnrec.memtier.matrices import PanelMatrix
from gnnrec.memtier.ring import Ring, StreamTimes
from gnnrec.memtier.stream import Stream

SOURCES = 1 / 5  # of a ring that two streams share, for what a panel is read from; up to four matrices are made of it


class Passes:
    """Streams that go over their matrices once each, several at a time, with one account.

    Args:
        ring: of all streams of a time.
        times: where their seconds are counted.

    Attributes:
        moved, times: as a Stream's, of all of them.
    """

    def __init__(self, ring: Ring, times: StreamTimes | None = None) -> None:
        self.ring, self.moved = ring, dict[str, Traffic]()
        self.times = StreamTimes() if times is None else times
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
        super().__init__([*read, *change, *write], ring, times=passes.times)
        self._end = self._total
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
