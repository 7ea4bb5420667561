"""The tables of the study's report, from its content alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from study_findings import around, epoch_seconds
from study_places import simulated
from study_records import CELLS, GIVEN, Json, of_cell

from gnnrec.memtier.costs import FAR
from gnnrec.report.cells import MODELLED, STAMP, Cell, Table, filled

_UNITS = {"bytes": "bytes", "s": "seconds"}  # of a field: of a cell
FACTORS = ("layers", "dim", "batch", "data")


def placements(content: Json) -> Table:
    """Models x placements at the centre."""
    header = [*map(Cell, ("model", "placement", "mode")), Cell("step", "seconds"), Cell("beside all in DRAM", "times")]
    header += [Cell(name, "bytes") for name in ("in DRAM", "on the slow tier")]
    header += [Cell(name) for name in ("panel", "readers", "writers")] + [Cell("predicted", "seconds")]
    rows = []
    for row in around(_done(content), content["centre"], "placement"):
        given = [row[name] for name in ("panel_columns", "readers_count", "writers_count")]
        held = row["all_dram_bytes"] if row["placement"] == "dram" else row["dram_bytes"]
        cells = [
            Cell(row["model"]),
            Cell(row["placement"]),
            Cell(row["mode"]),
            timed(row, "seconds_per_step", "seconds"),
        ]
        cells += [
            timed(row, "slowdown_ratio", "times"),
            Cell(held, "bytes"),
            Cell(row["slow_bytes"], "bytes"),
            *map(Cell, given),
        ]
        rows.append((*cells, timed(row, "predicted_seconds_per_step", "seconds") if row["steps_count"] else Cell(None)))
    note = (
        f"{STAMP}: a device was slowed down to another's speed. {MODELLED}: no step was run; a plan says it for "
        "declared hardware, whose processors are taken to make dense products as fast as those here, and is compared "
        "with the plan for that hardware's DRAM. Memory mode: what a step moves is taken to be found in DRAM where "
        f"this holds all tensors, missed where they are {FAR} times as large, and to lie between by the logarithm "
        "of their size does. Files that are mapped (direct) pass through the page cache."
    )
    if any(row["placement"] == "app_direct" for row in content["cells"]):
        note += f" app_direct: {simulated(content)}, or as fast as this machine's device is where that is slower."
    return filled(Table("placements", "Models by placements", tuple(header), tuple(rows), note))


def factors(content: Json) -> Iterator[Table]:
    """A table for each factor, all in DRAM."""
    in_dram = [row for row in _done(content) if row["placement"] == "dram"]
    for factor in FACTORS:
        header = [
            Cell("model"),
            Cell(factor),
            Cell("step", "seconds"),
            Cell("spread", "share"),
            Cell("epoch", "seconds"),
        ]
        header += [Cell("interactions a second"), Cell("tensors in DRAM", "bytes"), Cell("edge-wise", "bytes")]
        header += [Cell("edge-wise / ours", "times"), Cell("peak memory of the process", "bytes")]
        rows = [
            (
                Cell(row["model"]),
                Cell(row[factor]),
                timed(row, "seconds_per_step", "seconds"),
                Cell(row["spread_ratio"], "share"),
                Cell(epoch_seconds(row), "seconds"),
                Cell(round(row["interactions_count"] / epoch_seconds(row))),
                Cell(row["all_dram_bytes"], "bytes"),
                Cell(row["edge_wise_dram_bytes"], "bytes"),
                Cell(row["edge_wise_dram_bytes"] / row["all_dram_bytes"], "times"),
                Cell(row["peak_rss_bytes"], "bytes"),
            )
            for model in dict.fromkeys(row["model"] for row in in_dram)
            for row in around([row for row in in_dram if row["model"] == model], content["centre"], factor)
        ]
        if len(rows) > len({row[0] for row in rows}):
            yield Table(factor, f"By {factor}, all in DRAM", tuple(header), tuple(rows), _elsewhere(content, factor))


def kernels(content: Json) -> Table:
    """A step by class of operator, at the centre."""
    header = [*map(Cell, ("model", "placement", "class")), Cell("time", "seconds"), Cell("share", "share")]
    header += [Cell("moved", "bytes"), Cell("bandwidth", "GB/s")]
    rows = []
    for row, seconds in by_class(content):
        moved = _moved(content, row)
        for kind in sorted(seconds, key=lambda kind: -seconds[kind]):
            taken, count, slow = seconds[kind], moved.get(kind), row["provenance"] == STAMP
            rate = count / taken / 1e9 if count and taken else None
            line = [Cell(row["model"]), Cell(row["placement"]), Cell(kind), Cell(taken, "seconds", slow)]
            line += [Cell(taken / sum(seconds.values()), "share", slow), Cell(count, "bytes"), Cell(rate, "GB/s", slow)]
            rows.append(tuple(line))
    note = (
        "Of recorded steps, the profiler's own time included. Bytes are those of the operators' models: rows each time "
        "they are gathered. What is no operator in a streamed step counts as other."
    )
    return filled(Table("kernels", "A step by class of operator", tuple(header), tuple(rows), note))


def by_class(content: Json) -> list[tuple[Json, dict[str, float]]]:
    """The cells of models by placements that have a profile, with seconds by class."""
    found = []
    for row in around(_done(content), content["centre"], "placement"):
        seconds: dict[str, float] = {}
        for one in of_cell(content["operators"], row):
            seconds[one["class"]] = seconds.get(one["class"], 0.0) + one["seconds"]
        if seconds:
            found.append((row, seconds))
    return found


def tensors(content: Json) -> Table:
    """What each tensor costs on the slow tier."""
    header = [Cell("model"), Cell("tensor"), Cell("size", "bytes"), Cell("moved in a step", "bytes")]
    header += [Cell("of it gathered", "share"), Cell("a step longer", "seconds"), Cell("for each GiB", "seconds")]
    rows = []
    for one in around(content["tensors"], content["centre"], "placement"):
        extra = one["extra_seconds_per_step"]
        line = [Cell(one["model"]), Cell(one["tensor"]), Cell(one["bytes"], "bytes")]
        line += [Cell(one["moved_bytes_per_step"], "bytes"), Cell(one["gathered_ratio"], "share")]
        line.append(Cell(extra, "seconds", modelled=True))
        rows.append((*line, Cell(extra / one["bytes"] * 2**30 if one["bytes"] else None, "seconds", modelled=True)))
    note = "With it alone on the declared hardware's slow tier, where kernels work on it as it lies."
    return Table("tensors", "Tensors on the slow tier, one by one", tuple(header), tuple(rows), note)


def rates(content: Json) -> Table:
    """Bandwidths in order by threads."""
    places = dict.fromkeys((row["hardware"], row["tier"], row["provenance"]) for row in content["rates"])
    found = {
        (row["hardware"], row["tier"], row["pattern"], row["threads_count"]): row["gb_per_s"]
        for row in content["rates"]
    }
    columns = [(*place[:2], pattern) for place in places for pattern in ("read", "write", "mixed")]
    names = [f"{tier} of {hardware}, {pattern}" for hardware, tier, pattern in columns]
    threads = sorted({row["threads_count"] for row in content["rates"]})
    rows = tuple((Cell(count), *(Cell(found.get((*column, count)), "GB/s") for column in columns)) for count in threads)
    about = ", ".join(f"{tier} of {hardware}: {how}" for hardware, tier, how in places)
    header = Cell("threads"), *(Cell(name, "GB/s") for name in names)
    return filled(Table("rates", "Bandwidth in order by threads", header, rows, f"{about}." if about else ""))


def cells(content: Json) -> Table:
    """Every cell with every field."""
    rows = []
    for row in content["cells"]:
        line = []
        for name, (unit, _) in CELLS.items():
            touched = "seconds" in name or name in ("slowdown_ratio", "spread_ratio")
            line.append(timed(row, name, _UNITS.get(unit, "")) if touched else Cell(row[name], _UNITS.get(unit, "")))
        rows.append(tuple(line))
    header = tuple(Cell(name, _UNITS.get(unit, "")) for name, (unit, _) in CELLS.items())
    return filled(Table("cells", "All cells", header, tuple(rows)))


def machine(content: Json) -> Table:
    """Days, machine and what is installed: every value that a cell was run with, and how many were."""
    found: Counter[tuple[str, Any]] = Counter()
    for one in content["conditions"]:
        found.update(
            (name, value) for name, value in one.items() if name not in GIVEN and not name.endswith("_version")
        )
    rows = tuple(
        (
            Cell(name.removesuffix("_bytes").replace("_", " ")),
            Cell(value, "bytes" * name.endswith("_bytes")),
            Cell(count),
        )
        for (name, value), count in found.items()
    )
    note = "Where a fact has several values, cells were run by several calls."
    return Table("machine", "Conditions of the cells", (Cell(""), Cell("value"), Cell("cells")), rows, note)


def timed(row: Json, name: str, unit: str = "") -> Cell:
    """A field that the provenance of a cell touches."""
    return Cell(row[name], unit, row["provenance"] == STAMP, modelled=row["provenance"] == MODELLED)


def _done(content: Json) -> list[Json]:
    return [row for row in content["cells"] if row["status"] == "done"]


def _moved(content: Json, row: Json) -> dict[str, float]:
    """Bytes by class."""
    found: dict[str, float] = {}
    for one in of_cell(content["operators"], row):
        if one["bytes"]:
            found[one["class"]] = found.get(one["class"], 0.0) + one["bytes"]
    return found


def _elsewhere(content: Json, factor: str) -> str:
    others = ", ".join(f"{name} {value}" for name, value in content["centre"].items() if name != factor)
    return f"With {others}. Edge-wise: at least so much with kernels that make messages edge by edge."
