"""Tables, and cells that know their unit and whether they were measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gnnrec.report.records import Run
from gnnrec.units import in_bytes, in_seconds

STAMP, MODELLED = "SIMULATED", "MODELLED"


@dataclass(frozen=True)
class Cell:
    """A value, its unit (bytes, seconds, ns, share, change, times, GB/s, GFLOP/s, flop/byte, or none), what is seen
    beside it; whether a simulated device has touched it, or nothing was run for it.

    The unit of a text is that of the numbers beside or below it, which a CSV file holds without one.
    """

    value: str | int | float | None
    unit: str = ""
    simulated: bool = False
    mark: str = ""
    modelled: bool = False

    @property
    def is_number(self) -> bool:
        return isinstance(self.value, int | float)

    @property
    def text(self) -> str:
        """For a reader; stamped, and marked."""
        if self.value is None:
            return ""
        words = f"{self._stamp}{self.value if isinstance(self.value, str) else self._number(self.value)}"
        return f"{words} ({self.mark})" if self.mark else words

    @property
    def raw(self) -> str:
        """For a program: the number as it is, in the unit that row or column names; stamped too."""
        if self.value is None:
            return ""
        if isinstance(self.value, str):
            return f"{self.value} ({self.unit})" if self.unit else self.value
        return f"{self._stamp}{self.value!r}"

    @property
    def _stamp(self) -> str:
        return f"{STAMP} " if self.simulated else f"{MODELLED} " if self.modelled else ""

    def _number(self, value: float) -> str:
        match self.unit:
            case "bytes":
                return in_bytes(value)
            case "seconds":
                return in_seconds(value)
            case "ns":
                return f"{value:.1f} ns"
            case "share":
                return f"{value:.1%}"
            case "change":
                return f"{value:+.0%}"
            case "times":
                return f"{value:.2f}"
            case "GB/s" if value < 1:
                return f"{value:.3g} GB/s"
            case "GB/s" | "GFLOP/s" | "flop/byte":
                return f"{value:,.2f} {self.unit}"
        return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


@dataclass(frozen=True)
class Table:
    """A table. name: of its CSV file; note: what has to be said about it."""

    name: str
    title: str
    header: tuple[Cell, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Which columns hold numbers."""
        return tuple(any(row[column].is_number for row in self.rows) for column in range(len(self.header)))


Line = tuple[Cell, list[Cell]]


def line(runs: Sequence[Run], name: str, unit: str, values: Sequence[Any], *, touched: bool = False) -> Line:
    """A quantity of every run. touched: by the speed of devices, so by simulated ones."""
    cells = [Cell(value, unit, touched and run.simulated) for run, value in zip(runs, values, strict=True)]
    return Cell(name, unit), cells


def beside(name: str, title: str, runs: Sequence[Run], lines: Sequence[Line], note: str = "") -> Table:
    """Quantities by runs; of every run but the first also the difference from the first and the ratio to it."""
    labels = [run.label for run in runs]
    header = [Cell(""), *map(Cell, labels)]
    header += [Cell(f"{label} {sign} {labels[0]}") for label in labels[1:] for sign in ("−", "/")]
    rows = [
        (label, *cells, *(cell for other in cells[1:] for cell in _compared(cells[0], other)))
        for label, cells in lines
        if any(cell.value is not None for cell in cells)
    ]
    return Table(name, title, tuple(header), tuple(rows), note)


def filled(table: Table) -> Table:
    """Without columns in which nothing stands."""
    kept = [number for number in range(len(table.header)) if any(row[number].text for row in table.rows)]
    rows = tuple(tuple(row[number] for number in kept) for row in table.rows)
    return replace(table, header=tuple(table.header[number] for number in kept), rows=rows)


def _compared(first: Cell, other: Cell) -> tuple[Cell, Cell]:
    if not isinstance(first.value, int | float) or not isinstance(other.value, int | float):
        return Cell(None), Cell(None)
    simulated = first.simulated or other.simulated
    ratio = other.value / first.value if first.value else None
    return Cell(other.value - first.value, first.unit, simulated), Cell(ratio, simulated=simulated)


def facts_beside(name: str, title: str, runs: Sequence[Run], found: Sequence[Mapping[str, Any]]) -> Table:
    """Facts by runs; those that differ are marked."""
    rows = []
    for key in dict.fromkeys(key for values in found for key in values):
        cells = [values.get(key) for values in found]
        mark = "differs" if len(set(map(str, cells))) > 1 and name != "differences" else ""
        rows.append((Cell(key), *(Cell(None if cell is None else str(cell)) for cell in cells), Cell(mark)))
    if not any(row[-1].value for row in rows):
        rows = [row[:-1] for row in rows]
        return Table(name, title, (Cell(""), *(Cell(run.label) for run in runs)), tuple(rows))
    return Table(name, title, (Cell(""), *(Cell(run.label) for run in runs), Cell("")), tuple(rows))
