"""Figures of what bandwidth.py wrote, as SVG documents in the style of reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bandwidth_records import Json
from bandwidth_tables import label

from gnnrec.report.cells import STAMP
from gnnrec.report.svg import figure, legend, line
from gnnrec.units import in_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def figures(content: Json) -> dict[str, str]:
    """SVG by name: loaded latency, and bandwidth by access size of each tier that processors reach.

    Raises:
        GnnrecError: matplotlib is not installed.
    """
    found = {}
    if content["loaded_latency"]:
        found["loaded-latency"] = loaded(content["loaded_latency"])
    for tier in dict.fromkeys(row["tier"] for row in content["bandwidth"] if row["kind"] != "gpu"):
        rows = [row for row in content["bandwidth"] if row["tier"] == tier and row["distance"] != "far"]
        if rows:
            found[f"access-size-{tier.strip('/').replace('/', '-')}"] = by_size(rows)
    return found


def loaded(rows: Sequence[Json]) -> str:
    """Latency against the traffic beside it: a line for each tier and operation."""
    series = list(dict.fromkeys((label(row), row["op"]) for row in rows))
    places = list(dict.fromkeys(place for place, _ in series))

    def draw(axes: Axes) -> None:
        for number, (place, op) in enumerate(series):
            mine = [row for row in rows if (label(row), row["op"]) == (place, op)]
            mine.sort(key=lambda row: row["delay_ns"])
            points = [(row["gb_per_s"], row["latency_ns"]) for row in mine]
            axes.plot(*zip(*points, strict=True), **line(number, op if len(places) == 1 else f"{place}, {op}"))
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.set_xlabel(f"traffic, GB/s; {places[0]}" if len(places) == 1 else "traffic, GB/s")
        axes.set_ylabel("latency, ns")
        legend(axes, columns=2 if len(places) == 1 else 1)

    height = 2.7 if len(places) == 1 else 2.5 + 0.2 * len(series)
    return figure("loaded-latency", "Loaded latency", draw, height, transparent=False).drawn


def by_size(rows: Sequence[Json]) -> str:
    """Bandwidth against the bytes of an access, by most threads: a line for reads and writes in each order."""
    threads = max(row["threads_count"] for row in rows)
    series: dict[tuple[str, str], list[Json]] = {}
    for row in rows:
        if row["threads_count"] == threads and row["pattern"] != "strided":
            series.setdefault((row["op"], row["pattern"]), []).append(row)
    shown = {key: mine for key, mine in series.items() if key[0] in ("read", "write", "write_nt")}
    sizes = sorted({row["access_bytes"] for row in rows})

    def draw(axes: Axes) -> None:
        for number, ((op, pattern), mine) in enumerate(shown.items()):
            points = sorted((row["access_bytes"], row["gb_per_s"]) for row in mine)
            axes.plot(*zip(*points, strict=True), **line(number, f"{_stamp(mine)}{op}, {pattern}"))
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [in_bytes(size).replace(".00", "").replace(" bytes", "") for size in sizes])
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"bytes of an access; {label(rows[0])}, {threads} threads")
        axes.set_ylabel(f"{_stamp(rows)}GB/s")
        legend(axes)

    return figure("access-size", "Bandwidth by access size", draw, 2.9, transparent=False).drawn


def _stamp(rows: Sequence[Json]) -> str:
    return f"{STAMP} " if any(row["provenance"] == STAMP for row in rows) else ""
