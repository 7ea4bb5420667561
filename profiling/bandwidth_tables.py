"""Tables in the manner of Intel's Memory Latency Checker and NVIDIA's nvbandwidth, from the content of a file alone."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bandwidth_records import Json

from gnnrec.report.cells import STAMP, Cell, Table
from gnnrec.units import in_bytes

# As MLC calls them; its writes of the mixes read each line first, which these do not.
_NAMES = {
    "read": "all reads",
    "mix_3_1": "3:1 reads-writes",
    "mix_2_1": "2:1 reads-writes (STREAM add)",
    "copy": "1:1 reads-writes (STREAM copy)",
    "write_nt": "all writes, past the caches",
    "write": "all writes, each line read first",
}
_COPIES = {"host_to_device": "CPU(row) -> GPU(column)", "device_to_host": "CPU(row) <- GPU(column)"}
_USUAL = 256  # bytes of a row
_FACTS = ("cpu_model", "cores", "kernel", "memory_bytes", "last_level_cache_bytes", "load_per_core")

Place = tuple[str, str, str]  # tier, node of the processors, distance


def tables(content: Json) -> list[Table]:
    """All tables for which there are rows."""
    rows = content["bandwidth"]
    found = [_conditions(content), *_latency_tables(content), *_node_bandwidths(rows)]
    for place in _places(rows):
        mine = [row for row in rows if _place(row) == place]
        if mine[0]["kind"] != "gpu":
            found += [*_mixes(place, mine), *_by_size(place, mine), *_by_threads(place, mine)]
    return [*found, *_gpus([row for row in rows if row["kind"] == "gpu"])]


def label(row: Json) -> str:
    """The place of a row in words: "dram from node0 (far)"."""
    return _words(_place(row))


def best(rows: Sequence[Json]) -> Json | None:
    """The row with the highest bandwidth."""
    return max(rows, key=lambda row: row["gb_per_s"], default=None)


def usual_size(rows: Sequence[Json]) -> int:
    """The access size nearest to a row of 256 bytes."""
    sizes: set[int] = {row["access_bytes"] for row in rows}
    return min(sizes, key=lambda size: (abs(size - _USUAL), size))


def _conditions(content: Json) -> Table:
    machine = content["machine"]
    rows = [(Cell("date"), Cell(content["date"]))]
    for name in _FACTS:
        unit = "bytes" if name.endswith("_bytes") else ""
        rows.append((Cell(name.removesuffix("_bytes").replace("_", " ")), Cell(machine[name], unit)))
    nodes = [(node["node"], f"processors {', '.join(map(str, node['cpus']))}") for node in machine["nodes"]]
    rows += [(Cell(name), Cell(words)) for name, words in nodes]
    if len(machine["nodes"]) == 1:
        rows.append((Cell("near and far"), Cell("a single node has processors: there is no far one")))
    for tier in content["measured"]:
        counts = f"{tier['measured_cells_count']} of {tier['cells_count']} bandwidths in {tier['seconds']:.0f} s"
        words = "; ".join([tier["kind"], counts, *tier["notes"]])
        rows.append((Cell(tier["name"]), Cell(words, simulated=tier["provenance"] == STAMP)))
    return Table("conditions", "Conditions", (Cell("condition"), Cell("value")), tuple(rows))


def _latency_tables(content: Json) -> Iterator[Table]:
    rows = [row for row in content["idle_latency"] if row["cpu_node"]]
    if rows:
        largest = [
            max((row for row in rows if _place(row) == place), key=lambda row: row["working_set_bytes"])
            for place in _places(rows)
        ]
        title = "Idle latency between nodes, ns (a load that waits for the one before, in the largest working set)"
        yield _matrix("idle-latency", title, largest, "cpu_node", "tier", "latency_ns", "ns", "processors of")
        several = [row for row in rows if sum(_place(row) == _place(other) for other in rows) > 1]
        title = "Idle latency by working set, ns"
        yield _grid(
            "latency-by-working-set", title, several or rows, ("working set", "working_set_bytes", "bytes"), label
        )
    if files := [row for row in content["idle_latency"] if not row["cpu_node"]]:
        lines = [
            (Cell(row["tier"]), Cell(row["latency_ns"] / 1e9, "seconds", row["provenance"] == STAMP)) for row in files
        ]
        header = Cell("tier"), Cell("latency", "seconds")
        yield Table(
            "file-latency", "Latency of reading 4 KiB of a file at random", header, tuple(lines), _spread(files)
        )
    for place in _places(content["loaded_latency"]):
        yield _loaded(place, [row for row in content["loaded_latency"] if _place(row) == place])


def _loaded(place: Place, rows: Sequence[Json]) -> Table:
    """As MLC's: the longer the delay, the less traffic beside which loads wait."""
    ops = list(dict.fromkeys(row["op"] for row in rows))
    header = [Cell("delay", "ns")]
    for op in ops:
        header += [Cell(f"{op}: latency", "ns"), Cell(f"{op}: traffic", "GB/s")]
    lines = []
    for delay in sorted({row["delay_ns"] for row in rows}):
        line = [Cell(delay, "ns")]
        for op in ops:
            row = next((row for row in rows if (row["op"], row["delay_ns"]) == (op, delay)), None)
            line += [_cell(row, "latency_ns", "ns"), _cell(row, "gb_per_s", "GB/s")]
        lines.append(tuple(line))
    threads = rows[0]["threads_count"]
    note = f"{threads} of the processors make traffic, one chases; its own loads are not counted. {_spread(rows)}"
    return Table(
        f"loaded-latency-{_slug(place)}", f"Loaded latency, {_words(place)}", tuple(header), tuple(lines), note
    )


def _node_bandwidths(rows: Sequence[Json]) -> Iterator[Table]:
    reads = [row for row in rows if row["cpu_node"] and (row["op"], row["pattern"]) == ("read", "sequential")]
    if reads:
        found = [best([row for row in reads if _place(row) == place]) for place in _places(reads)]
        title = "Bandwidth between nodes, GB/s (reads in order, best of access sizes and threads)"
        yield _matrix("node-bandwidth", title, found, "cpu_node", "tier", "gb_per_s", "GB/s", "processors of")


def _mixes(place: Place, rows: Sequence[Json]) -> Iterator[Table]:
    """MLC's peak injection bandwidths, and the same at random."""
    size, threads = usual_size(rows), max(row["threads_count"] for row in rows)
    patterns = list(dict.fromkeys(row["pattern"] for row in rows))
    columns = [f"{pattern}, {in_bytes(size)}, {threads} threads" for pattern in patterns]
    lines = []
    for op in (op for op in _NAMES if any(row["op"] == op for row in rows)):
        mine = [row for row in rows if row["op"] == op]
        usual = [row for row in mine if (row["access_bytes"], row["threads_count"]) == (size, threads)]
        cells = [best([row for row in usual if row["pattern"] == pattern]) for pattern in patterns]
        peak = best([row for row in mine if row["pattern"] == "sequential"])
        mix = f"{_NAMES[op]}" if mine[0]["kind"] != "file" else f"{mine[0]['mix']} reads-writes"
        lines.append((Cell(mix), *(_cell(row, "gb_per_s", "GB/s") for row in (peak, *cells))))
    header = (Cell("traffic"), Cell("peak, in order", "GB/s"), *(Cell(column, "GB/s") for column in columns))
    yield Table(
        f"mixes-{_slug(place)}", f"Bandwidth by read:write mix, {_words(place)}", header, tuple(lines), _spread(rows)
    )


def _by_size(place: Place, rows: Sequence[Json]) -> Iterator[Table]:
    threads = max(row["threads_count"] for row in rows)
    for pattern in dict.fromkeys(row["pattern"] for row in rows):
        mine = [row for row in rows if (row["pattern"], row["threads_count"]) == (pattern, threads)]
        if mine:
            name, title = f"size-{pattern}-{_slug(place)}", f"Bandwidth by access size, {pattern}, {threads} threads"
            axis = ("access", "access_bytes", "bytes")
            yield _grid(name, f"{title}, {_words(place)}", mine, axis, _op, "gb_per_s", "GB/s")


def _by_threads(place: Place, rows: Sequence[Json]) -> Iterator[Table]:
    size = usual_size(rows)
    for pattern in dict.fromkeys(row["pattern"] for row in rows):
        mine = [row for row in rows if (row["pattern"], row["access_bytes"]) == (pattern, size)]
        if mine:
            name, title = f"threads-{pattern}-{_slug(place)}", f"Bandwidth by threads, {pattern}, {in_bytes(size)}"
            axis = ("threads", "threads_count", "")
            yield _grid(name, f"{title}, {_words(place)}", mine, axis, _op, "gb_per_s", "GB/s")


def _gpus(rows: Sequence[Json]) -> Iterator[Table]:
    """As nvbandwidth's: a matrix for each kind of copy, then what the GPU's own memory does."""
    for op, direction in _COPIES.items():
        copies = [row | {"host": "0"} for row in rows if row["op"] == op]
        if copies:
            title = f"{op}_memcpy: {direction} bandwidth, GB/s"
            yield _matrix(f"gpu-{op.replace('_', '-')}", title, copies, "host", "tier", "gb_per_s", "GB/s", "CPU")
    local = [row for row in rows if row["op"] not in _COPIES]
    for tier in dict.fromkeys(row["tier"] for row in local):
        mine = [row for row in local if row["tier"] == tier]
        axis = ("row", "access_bytes", "bytes")
        title = f"device_local: bandwidth within {tier}, GB/s (row 0: in order)"
        yield _grid(
            f"gpu-local-{tier}", title, mine, axis, lambda row: f"{row['op']}, {row['pattern']}", "gb_per_s", "GB/s"
        )


def _matrix(
    name: str, title: str, rows: Sequence[Any], down: str, across: str, value: str, unit: str, corner: str
) -> Table:
    """One value for each pair of two fields."""
    columns = list(dict.fromkeys(row[across] for row in rows))
    found = {(row[down], row[across]): row for row in rows}
    lines = [
        (Cell(head), *(_cell(found.get((head, column)), value, unit) for column in columns))
        for head in dict.fromkeys(row[down] for row in rows)
    ]
    return Table(name, title, (Cell(corner), *(Cell(column, unit) for column in columns)), tuple(lines))


def _grid(
    name: str,
    title: str,
    rows: Sequence[Json],
    axis: tuple[str, str, str],
    column_of: Callable[[Json], str],
    value: str = "latency_ns",
    unit: str = "ns",
) -> Table:
    """Values by a number (its title, field and unit) downwards and words across."""
    head, field, head_unit = axis
    found = {(row[field], column_of(row)): row for row in rows}
    columns = list(dict.fromkeys(column for _, column in found))
    lines = [
        (Cell(number, head_unit), *(_cell(found.get((number, column)), value, unit) for column in columns))
        for number in sorted({number for number, _ in found})
    ]
    header = Cell(head, head_unit), *(Cell(column, unit) for column in columns)
    return Table(name, title, header, tuple(lines), _spread(rows))


def _spread(rows: Sequence[Json]) -> str:
    """How far apart the runs were, for whoever wants to know what the numbers are worth."""
    spreads = [row["spread_ratio"] for row in rows]
    return f"(Largest - smallest) / median of the runs: {statistics.median(spreads):.0%}, {max(spreads):.0%} at worst."


def _cell(row: Json | None, field: str, unit: str) -> Cell:
    return Cell(None) if row is None else Cell(float(row[field]), unit, row["provenance"] == STAMP)


def _op(row: Json) -> str:
    return str(row["op"])


def _places(rows: Sequence[Json]) -> list[Place]:
    return list(dict.fromkeys(map(_place, rows)))


def _place(row: Json) -> Place:
    return row["tier"], row["cpu_node"], row["distance"]


def _words(place: Place) -> str:
    tier, node, distance = place
    return f"{tier} from {node} ({distance})" if node else tier


def _slug(place: Place) -> str:
    return re.sub(r"\W+", "-", " ".join(place[:2])).strip("-")
