"""Times one figure after the other until the time is up: the median of several runs, the first thrown away."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from gnnrec.memtier.tiers import Rate
from gnnrec.units import in_bytes

RUNS = 5  # that count
FOLDER = "gnnrec-calibration"  # in a tier's folder, for as long as it is measured


class Measured(NamedTuple):
    """What is known of a tier now; `notes` say under which conditions, and what is missing."""

    rates: tuple[Rate, ...]
    latency_ns: float | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Figure:
    """Something to measure.

    Args:
        pattern, threads, row_bytes, working_set: as `tiers.Rate` has them.
        run: moves bytes and returns how many.
        before: what has to be done before each run, and is not timed.
    """

    pattern: str
    run: Callable[[], int]
    threads: int = 1
    row_bytes: int = 0
    working_set: int = 0
    before: Callable[[], None] | None = None

    def __str__(self) -> str:
        rows = f" of {self.row_bytes}-byte rows" if self.row_bytes else ""
        within = f" in {in_bytes(self.working_set)}" if self.working_set else ""
        return f"{self.pattern}{rows}{within}, {self.threads} thread{'s' * (self.threads > 1)}"


class Stopwatch:
    """Measures figures until a point in time.

    Args:
        end: of the time there is, as time.perf_counter() tells it.
        progress: is told each figure that begins.
    """

    def __init__(self, end: float, progress: Callable[[str], None]) -> None:
        self.end = end
        self._progress = progress

    @property
    def left(self) -> float:
        """Seconds, below 0 when the time is up."""
        return self.end - time.perf_counter()

    def begins(self, figure: str) -> None:
        """Tell of something that is measured otherwise."""
        self._progress(figure)

    def rates(self, figures: Iterable[Figure], least: int = 0) -> tuple[list[Rate], str]:
        """Measure in the order given; a figure that has begun is finished, and so many are measured whatever the time:
        a plan cannot do without a rate of each pattern.

        Returns:
            The rates, and what was not measured any more, "" where nothing is missing.
        """
        measured: list[Rate] = []
        for figure in figures:
            if self.left <= 0 and len(measured) >= least:
                return measured, f"the time was up before {figure}, give it more seconds"
            self._progress(str(figure))
            measured.append(_rate(figure))
        return measured, ""


def _rate(figure: Figure) -> Rate:
    _gb_per_s(figure)  # compiles, maps pages, wakes threads and devices
    found = sorted(_gb_per_s(figure) for _ in range(RUNS))
    median = statistics.median(found)
    return Rate(
        pattern=figure.pattern,
        gb_per_s=median,
        row_bytes=figure.row_bytes,
        threads=figure.threads,
        working_set=figure.working_set,
        spread=(found[-1] - found[0]) / median,
        count=RUNS,
    )


def _gb_per_s(figure: Figure) -> float:
    if figure.before is not None:
        figure.before()
    start = time.perf_counter()
    moved = figure.run()
    return moved / (time.perf_counter() - start) / 1e9
