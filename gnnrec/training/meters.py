"""Numbers of a training that goes on, for a person: a curve in bounded memory, rates, time left."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from itertools import pairwise

WINDOW = 5.0  # seconds of stepping that rates are taken over
APART = 0.25  # seconds of stepping between two marks that are kept
LEVELS, PLAIN_LEVELS = "▁▂▃▄▅▆▇█", "_.-=^"

Moved = Mapping[str, tuple[int, int]]  # bytes read and written, by tier


class Curve:
    """All numbers so far as a bounded number of means, each of as many numbers as the others.

    Args:
        points: means at most; even.
    """

    def __init__(self, points: int = 80) -> None:
        self._points = points
        self._means: list[float] = []
        self._each, self._sum, self._count = 1, 0.0, 0

    def add(self, value: float) -> None:
        """Take the next number."""
        self._sum, self._count = self._sum + value, self._count + 1
        if self._count < self._each:
            return
        self._means.append(self._sum / self._count)
        self._sum, self._count = 0.0, 0
        if len(self._means) == self._points:
            self._means = [(a + b) / 2 for a, b in zip(self._means[::2], self._means[1::2], strict=True)]
            self._each *= 2

    def drawn(self, width: int, *, plain: bool = False) -> str:
        """The curve in at most so many characters, between its lowest and highest point; plain ones are ASCII."""
        levels, means = PLAIN_LEVELS if plain else LEVELS, self._means
        count = min(width, len(means))
        borders = [number * len(means) // count for number in range(count + 1)] if count else []
        parts = [means[first:end] for first, end in pairwise(borders)]
        heights = [sum(part) / len(part) for part in parts]
        low, high = min(heights, default=0.0), max(heights, default=0.0)
        scale = (len(levels) - 1) / (high - low) if high > low else 0.0
        return "".join(levels[round((height - low) * scale)] for height in heights)


class Meter:
    """Rates over the last seconds of stepping, without what goes on between steps, and time left, with that."""

    def __init__(self) -> None:
        self.began = self._since = time.monotonic()
        self._stepping = 0.0  # seconds
        self._marks: deque[tuple[float, int, Moved]] = deque()
        self._first = self._last = (0.0, 0)  # when steps were done, and how many

    def resume(self) -> None:
        """Steps are made from now on; something else was done before."""
        self._since = time.monotonic()

    def add(self, step: int, moved: Moved) -> None:
        """So many steps are done, and so much is moved."""
        now = time.monotonic()
        self._stepping, self._since = self._stepping + now - self._since, now
        self._last = now, step
        if not self._marks:
            self._first = self._last
        if len(self._marks) > 1 and self._stepping - self._marks[-2][0] < APART:
            self._marks.pop()
        self._marks.append((self._stepping, step, moved))
        while len(self._marks) > 2 and self._marks[1][0] < self._stepping - WINDOW:
            self._marks.popleft()

    @property
    def steps(self) -> float | None:
        """A second; None before there are two."""
        if len(self._marks) < 2:
            return None
        (before, first, _), (now, last, _) = self._marks[0], self._marks[-1]
        return (last - first) / max(now - before, 1e-9)

    @property
    def bytes(self) -> dict[str, tuple[float, float]]:
        """Read and written a second, by tier; empty before there are two steps."""
        if len(self._marks) < 2:
            return {}
        (before, _, first), (now, _, last) = self._marks[0], self._marks[-1]
        seconds = max(now - before, 1e-9)
        return {
            tier: ((read - first[tier][0]) / seconds, (written - first[tier][1]) / seconds)
            for tier, (read, written) in last.items()
        }

    @property
    def passed(self) -> float:
        """Seconds since this was made."""
        return time.monotonic() - self.began

    def left(self, total: int) -> float | None:
        """Seconds until so many steps are done, as those since the first one went; None before there are two."""
        (began, first), (latest, last) = self._first, self._last
        if last == first:
            return None
        each = (latest - began) / (last - first)
        return max(each * (total - last) - (time.monotonic() - latest), 0.0)
