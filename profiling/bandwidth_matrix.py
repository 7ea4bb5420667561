"""The cells of the bandwidth matrix, and which of them are measured in the time there is."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

USUAL_OP, USUAL_BYTES = "read", 256  # a float32 row of 64 columns
USUAL_PATTERNS = ("sequential", "random")
LEAST = len(USUAL_PATTERNS)  # cells, whatever the time


@dataclass(frozen=True)
class Cell:
    """One bandwidth to measure.

    Args:
        op: of bandwidth_settings.OPS.
        pattern: sequential, random or strided.
        access_bytes: of a row, or of a block of a file.
        threads: that move them.
        cpu_node: where the threads run, "" where that is not chosen.
        distance: of the memory from there: near, far or only node; "" as above.
    """

    op: str
    pattern: str
    access_bytes: int
    threads: int
    cpu_node: str = ""
    distance: str = ""


def cells(
    ops: Sequence[str], patterns: Sequence[str], sizes: Sequence[int], places: Sequence[tuple[str, str, Sequence[int]]]
) -> list[Cell]:
    """All of them.

    Args:
        places: node of the processors, distance of the memory, and numbers of threads.
    """
    return [
        Cell(op, pattern, size, threads, node, distance)
        for node, distance, counts in places
        for op, pattern, size, threads in itertools.product(ops, patterns, sizes, counts)
    ]


def by_importance(cells: Sequence[Cell]) -> list[Cell]:
    """First what all tables cross in: reads of rows of USUAL_BYTES from near memory by most threads, in order and at
    random. Then what differs from that in one respect, in two, and so on: however few are measured, they are the same
    ones every time, and each axis is seen before any plane is filled."""
    if not cells:
        return []
    most = {node: max(cell.threads for cell in cells if cell.cpu_node == node) for node in {c.cpu_node for c in cells}}
    usual_bytes = min({cell.access_bytes for cell in cells}, key=lambda size: abs(size - USUAL_BYTES))

    def respects(cell: Cell) -> int:
        unusual = (
            cell.op != USUAL_OP,
            cell.pattern not in USUAL_PATTERNS,
            cell.access_bytes != usual_bytes,
            cell.threads != most[cell.cpu_node],
            cell.distance == "far",
        )
        return sum(unusual)

    return sorted(cells, key=respects)


def thinned(cells: Sequence[Cell], seconds: float, each: float) -> list[Cell]:
    """The most important cells that fit into the time, at least those of the crossing; by importance.

    Args:
        seconds: there are.
        each: that a cell takes, as planned: which cells these are does not depend on the clock.
    """
    return by_importance(cells)[: max(LEAST, int(seconds / each))]
