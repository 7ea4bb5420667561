"""What bandwidth.py writes: rows with one value a field, and for every field its unit and meaning."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from bandwidth_latency import Latency
from bandwidth_matrix import Cell
from bandwidth_nodes import Processors
from bandwidth_settings import OPS, Settings

from gnnrec.errors import ConfigError
from gnnrec.memtier import conditions
from gnnrec.memtier.tiers import Rate, Tier
from gnnrec.report.cells import STAMP

FORMAT, VERSION = "gnnrec-bandwidth", 1
Json = dict[str, Any]

_TEXT, _COUNT, _BYTES, _RATIO, _GB, _NS, _S = "text", "1", "bytes", "ratio", "GB/s (10^9 bytes/s)", "ns", "s"
FIELDS = {  # field: (unit, meaning); of a list, each element's
    "format": (_TEXT, "of this file"),
    "version": (_COUNT, "of the format"),
    "date": (_TEXT, "when the measuring began, ISO 8601 with the offset from UTC"),
    "seconds": (_S, "that the tier took, compilation included"),
    "left_out": (_TEXT, "what was not measured, and why"),
    # The machine.
    "cpu_model": (_TEXT, "of the first processor"),
    "cores": (_COUNT, "processors that this process may use"),
    "kernel": (_TEXT, "release of Linux"),
    "last_level_cache_bytes": (_BYTES, "of all that these processors use"),
    "memory_bytes": (_BYTES, "of the machine"),
    "numba_version": (_TEXT, "which compiled the kernels"),
    "gnnrec_version": (_TEXT, "of this package"),
    "calibration_kernels": (_TEXT, "which of their versions was timed"),
    "load_per_core": (_COUNT, "load average of the minute before, a processor: above 0.5 figures are too low"),
    "node": (_TEXT, "of NUMA"),
    "cpus": (_COUNT, "numbers of the processors of a node that this process may use"),
    # Tiers, and the place of a row.
    "tier": (_TEXT, "name, as `gnnrec tiers` has it"),
    "name": (_TEXT, "of the tier"),
    "kind": (_TEXT, "dram, numa (a node without processors), pmem, devdax, file, gpu"),
    "where": (_TEXT, "node, device or folder"),
    "capacity_bytes": (_BYTES, "of the tier"),
    "free_bytes": (_BYTES, "before the measuring"),
    "provenance": (_TEXT, f"measured, or {STAMP} where a device was slowed down"),
    "notes": (_TEXT, "how it was measured"),
    "cells_count": (_COUNT, "bandwidths of the whole matrix"),
    "measured_cells_count": (_COUNT, "of these, those in this file"),
    "cpu_node": (_TEXT, "node of the processors at work; empty where they are not chosen"),
    "distance": (_TEXT, "of the memory from these processors: only node, near, far, unknown"),
    # Figures.
    "op": (_TEXT, "read, write (each line is read first), write_nt (past the caches), copy, mix_2_1, mix_3_1, ..."),
    "mix": ("rows read : rows written", "of payload"),
    "pattern": (_TEXT, "sequential, random, strided (every fourth row)"),
    "access_bytes": (_BYTES, "of a row or block; 0: not chosen"),
    "threads_count": (_COUNT, "at work; of a loaded latency, those that make the traffic"),
    "gb_per_s": (_GB, "payload, the median of the runs; of a loaded latency, the traffic's"),
    "latency_ns": (
        _NS,
        "of a load that waits for the one before, of a file of a read of 4 KiB; the median of the runs",
    ),
    "spread_ratio": (_RATIO, "(largest - smallest) / median of the runs"),
    "measurements_count": (_COUNT, "runs"),
    "working_set_bytes": (_BYTES, "that the loads are spread over"),
    "delay_ns": (_NS, "pause of each thread of the traffic after 1024 bytes each way"),
    # Settings: bandwidth.yaml says more.
    "preset": (_TEXT, "of settings"),
    "out": (_TEXT, "file"),
    "tables": (_TEXT, "folder"),
    "budget": (_S, "for everything but compilation"),
    "tiers": (_TEXT, "kinds"),
    "folders": (_TEXT, "of files"),
    "read_gb_per_s": (_GB, "of a simulated device"),
    "write_gb_per_s": (_GB, "of a simulated device"),
    "latency_us": ("us", "of a simulated device"),
    "ops": (_TEXT, "operations that were asked for"),
    "patterns": (_TEXT, "orders that were asked for"),
    "sizes": (_BYTES, "of rows"),
    "threads": (_COUNT, "empty: powers of two and all"),
    "huge_pages": ("true or false", "asked for"),
    "file_sizes": (_BYTES, "of blocks"),
    "file_threads": (_COUNT, "at work on a file"),
    "working_sets": (_BYTES, "empty: powers of two"),
    "loaded_ops": (_TEXT, "traffic beside which loads wait"),
    "delays": (_NS, "pauses of the traffic"),
    "run_seconds": (_S, "of a run"),
}
ROWS = ("bandwidth", "idle_latency", "loaded_latency")


def begin(settings: Settings, groups: Sequence[Processors]) -> Json:
    """The content of a file without rows."""
    words = {"sizes": settings.row_bytes, "file_sizes": settings.block_bytes, "working_sets": settings.chased_bytes}
    machine: Json = conditions.machine() | {"load_per_core": conditions.load_per_core()}
    return {
        "format": FORMAT,
        "version": VERSION,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "fields": {name: {"unit": unit, "meaning": meaning} for name, (unit, meaning) in FIELDS.items()},
        "settings": asdict(settings) | words,
        "machine": machine | {"nodes": [{"node": group.node, "cpus": list(group.cpus)} for group in groups]},
        "measured": [],
        "left_out": [],
    } | {rows: [] for rows in ROWS}


def provenance(tier: Tier, settings: Settings) -> str:
    """Of the tier's figures."""
    return STAMP if settings.slower and tier.kind == "file" else "measured"


def tier_row(tier: Tier, provenance: str, notes: Sequence[str], cells: int, measured: int, seconds: float) -> Json:
    """A tier that was measured."""
    row: Json = {"name": tier.name, "kind": tier.kind, "where": tier.where}
    row |= {"capacity_bytes": tier.capacity, "free_bytes": tier.free, "provenance": provenance, "notes": list(notes)}
    return row | {"cells_count": cells, "measured_cells_count": measured, "seconds": round(seconds, 2)}


def bandwidth_row(tier: Tier, provenance: str, cell: Cell, rate: Rate) -> Json:
    """A bandwidth; copies between a GPU and its host have a row read for each that is written too."""
    reads, writes = OPS.get(cell.op, (1, 1))
    row = _place(tier, provenance, cell.cpu_node, cell.distance)
    row |= {"op": cell.op, "mix": f"{reads}:{writes}", "pattern": cell.pattern, "access_bytes": cell.access_bytes}
    row |= {"threads_count": cell.threads, "gb_per_s": rate.gb_per_s}
    return row | {"spread_ratio": rate.spread, "measurements_count": rate.count}


def idle_row(tier: Tier, provenance: str, cpu_node: str, distance: str, working_set: int, latency: Latency) -> Json:
    """The latency of an idle machine."""
    row = _place(tier, provenance, cpu_node, distance) | {"working_set_bytes": working_set}
    return row | _latency(latency)


def loaded_row(
    tier: Tier,
    provenance: str,
    cpu_node: str,
    distance: str,
    op: str,
    threads: int,
    working_set: int,
    delay: float,
    latency: Latency,
) -> Json:
    """A latency in a working set of so many bytes beside traffic."""
    reads, writes = OPS[op]
    row = _place(tier, provenance, cpu_node, distance) | {"op": op, "mix": f"{reads}:{writes}"}
    row |= {"threads_count": threads, "working_set_bytes": working_set, "delay_ns": delay}
    return row | {"gb_per_s": latency.gb_per_s} | _latency(latency)


def without_unit(content: Any, name: str = "") -> Iterator[str]:
    """The fields of a file whose unit nobody knows: none, as it should be."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            if key != "fields":
                yield from without_unit(value, key)
    elif isinstance(content, list):
        for value in content:
            yield from without_unit(value, name)
    elif name not in FIELDS:
        yield name


def checked(content: Any, where: os.PathLike[str] | str) -> Json:
    """The content of a file, if it is one of ours.

    Raises:
        ConfigError: it is of another kind or version.
    """
    found = (content.get("format"), content.get("version")) if isinstance(content, dict) else None
    if found != (FORMAT, VERSION):
        remedy = f"Give a file that bandwidth.py wrote ({FORMAT}, version {VERSION})"
        raise ConfigError(f"is of another kind: {found}", where=str(where), remedy=remedy)
    return dict(content)


def _place(tier: Tier, provenance: str, cpu_node: str, distance: str) -> Json:
    row = {"tier": tier.name, "kind": tier.kind, "provenance": provenance}
    return row | {"cpu_node": cpu_node, "distance": distance}


def _latency(latency: Latency) -> Json:
    return {"latency_ns": latency.ns, "spread_ratio": latency.spread, "measurements_count": latency.count}
