"""The bandwidth matrix of files: blocks past the page cache, in order and at random."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bandwidth_matrix import LEAST, Cell, cells, thinned
from bandwidth_settings import Settings

from gnnrec.memtier import measure_file
from gnnrec.memtier.stopwatch import RUNS, Figure, Stopwatch
from gnnrec.memtier.tiers import Rate

_KINDS = {"read": "r", "write": "w", "copy": "rw", "mix_2_1": "rrw", "mix_3_1": "rrrw"}  # no caches to write past
_FILLING = 0.35  # of the time goes into writing the file
_CELL_SECONDS = 0.2 * (RUNS + 3)  # measure_file's runs, whose length is its own; one more shows how long they are


def every_cell(settings: Settings) -> list[Cell]:
    """The whole matrix of a folder."""
    ops = [op for op in settings.ops if op in _KINDS]
    patterns = [pattern for pattern in settings.patterns if pattern != "strided"]
    return cells(ops, patterns, settings.block_bytes, [("", "", sorted(set(settings.file_threads)))])


def plan(settings: Settings, seconds: float) -> list[Cell]:
    """The cells that are measured in the time there is, by importance."""
    return thinned(every_cell(settings), (1 - _FILLING) * seconds, _CELL_SECONDS)


def measure(
    blocks: measure_file.Blocks, chosen: Sequence[Cell], watch: Stopwatch
) -> tuple[list[tuple[Cell, Rate]], str]:
    """Measure the cells in their order until the time is up; then look whether blocks come back as they were written.

    Returns:
        What was measured, and what is missing, "" where nothing is.

    Raises:
        GnnrecError: the device failed, or other bytes came back.
    """
    rates, missing = watch.rates(_figures(blocks, chosen), least=LEAST)
    blocks.check()
    return list(zip(chosen, rates, strict=False)), missing


def _figures(blocks: measure_file.Blocks, chosen: Sequence[Cell]) -> Iterator[Figure]:
    for cell in chosen:
        name, shuffled = f"{cell.op}, {cell.pattern}", cell.pattern == "random"
        yield measure_file.figure(blocks, name, _KINDS[cell.op], cell.access_bytes, cell.threads, shuffled=shuffled)
