"""Ranks that are threads of this process: what they do together, without a network. One runs at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from gnnrec.errors import GnnrecError
from gnnrec.ranks import Ranks

T = TypeVar("T")
SECONDS = 60.0  # after which a rank that waits for another fails its test


class Meeting:
    """Where ranks put what they have, and take what all have put there."""

    def __init__(self, size: int) -> None:
        self.baton, self.barrier = threading.Lock(), threading.Barrier(size)
        self.table: list[Any] = [None] * size


class Pretended(Ranks):
    backend = "threads"

    def __init__(self, rank: int, size: int, meeting: Meeting) -> None:
        self.rank, self.size, self._meeting = rank, size, meeting

    def total(self, *parts: torch.Tensor) -> None:
        whole = torch.cat([part.flatten() for part in parts])
        self.totalled += 4 * (len(whole) + 2)
        first, *others = self._exchanged(whole)
        found = sum(others, first.clone()).split([part.numel() for part in parts])
        for part, values in zip(parts, found, strict=True):
            part.copy_(values.view_as(part))

    def all_columns(self, part: torch.Tensor) -> torch.Tensor:
        return self._joined(part, dim=1)

    def all_rows(self, part: torch.Tensor) -> torch.Tensor:
        return self._joined(part, dim=0)

    def spread(self, matrix: torch.Tensor, shares: Sequence[Sequence[slice]]) -> None:
        every = self._exchanged([matrix[rows].clone() for rows in shares[self.rank]])
        for share, parts in zip(shares, every, strict=True):
            for rows, part in zip(share, parts, strict=True):
                matrix[rows] = part
                self.gathered += part.nbytes

    def _joined(self, part: torch.Tensor, dim: int) -> torch.Tensor:
        whole = torch.cat(self._exchanged(part.clone()), dim=dim)
        self.gathered += whole.nbytes
        return whole

    def first(self, work: Callable[[], T]) -> T | None:
        found: list[T | None] = self._worked(work if self.leads else lambda: None)
        return found[0] if self.leads else None

    def tell(self, text: str) -> str:
        return str(self._worked(lambda: text)[0])

    def each(self, work: Callable[[], Any]) -> list[Any]:
        return self._worked(work)

    def fail(self, error: GnnrecError) -> None:
        self._exchanged(error)

    def _worked(self, work: Callable[[], Any]) -> list[Any]:
        found: Any
        try:
            found = work()
        except GnnrecError as error:
            found = error
        values = self._exchanged(found)
        for value in values:
            if isinstance(value, GnnrecError):
                raise value
        return values

    def _exchanged(self, value: Any) -> list[Any]:
        meeting = self._meeting
        meeting.table[self.rank] = value
        meeting.baton.release()
        try:
            meeting.barrier.wait(SECONDS)
            values = list(meeting.table)
            meeting.barrier.wait(SECONDS)  # before anyone puts something else there
        finally:
            meeting.baton.acquire()
        return values


def together(size: int, work: Callable[[Ranks], T]) -> list[T]:
    """What `work` gives on each of so many ranks; raises the error of the first rank that has one."""
    meeting = Meeting(size)
    results: list[Any] = [None] * size
    errors: dict[int, BaseException] = {}

    def run(rank: int) -> None:
        with meeting.baton:
            try:
                results[rank] = work(Pretended(rank, size, meeting))
            except Exception as error:  # noqa: BLE001 - raised below
                errors[rank] = error
                meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _, error in sorted(errors.items(), key=lambda item: isinstance(item[1], threading.BrokenBarrierError)):
        raise error
    return results
