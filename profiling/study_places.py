"""What follows from the study's figures for where tensors go: this machine's slow tier, persistent memory, tensor by
tensor; functions of the table alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from study_records import Json, of_cell

from gnnrec.report.profile_findings import Finding
from gnnrec.units import in_bytes, in_seconds

CHEAP = 2.0  # times what the cheapest tensor costs a byte on the slow tier: what costs no more goes there first
BEARABLE = 1.25  # times the step with all in DRAM


def here(model: str, rows: Mapping[str, Json], content: Json) -> Iterator[Finding]:
    """What this machine's slow tier is good for."""
    planned, kind = rows.get("auto"), slow_tier(content["rates"])
    if (direct := rows.get("direct")) is not None and direct["slowdown_ratio"]:
        words = f"{stamp(direct)}{model} on {kind or 'the slow tier'} as it lies: {_times(direct)}."
        cached = "Files are mapped through the page cache, which is DRAM: this saves none." if kind == "file" else ""
        yield Finding(words, cached or _bearable(direct, "memory=direct"))
    if planned is not None and planned["slowdown_ratio"] and planned["dram_bytes"] is not None:
        words = f"{stamp(planned)}{model} with {in_bytes(planned['dram_bytes'])} of DRAM instead of"
        words += f" {in_bytes(planned['all_dram_bytes'])}, as the planner chooses ({planned['mode']})"
        words += f": {_times(planned)}."
        yield Finding(words, _bearable(planned, "memory=auto"))


def streamed_here(model: str, rows: Mapping[str, Json], content: Json) -> Iterator[Finding]:
    """A stream that was run here: on other threads and other DRAM than the declared machine's, so ranked with none."""
    row, threads = rows.get("app_direct"), content["simulated_threads_count"]
    if row is None or not row["slowdown_ratio"]:
        return
    share = f", what they give with threads={threads}" if threads else ""
    yield Finding(f"{stamp(row)}{model} streamed here at {simulated(content)}{share}: {_times(row)}.")


def persistent(model: str, rows: Mapping[str, Json]) -> Iterator[Finding]:
    """Which of the ways to use persistent memory costs least, all of them on the declared machine."""
    ways = {"app_direct_streamed": "streamed", "app_direct_in_place": "as it lies", "memory_mode": "Memory mode"}
    found = {name: rows[name] for name in ways if name in rows and rows[name]["slowdown_ratio"]}
    if not found:
        return
    best, *others = sorted(found, key=lambda name: found[name]["slowdown_ratio"])
    words = ", ".join(f"{ways[name]} {_times(found[name])}" for name in (best, *others))
    how = {
        "app_direct_streamed": "Take App Direct and memory=stream: all is read and written once a step, in order.",
        "app_direct_in_place": "Take App Direct and memory=direct: kernels work on what lies there, nothing is copied.",
        "memory_mode": "Take Memory mode: the DRAM before the slow memory holds enough of what a step moves.",
    }
    words = f"{stamp(found[best])}{model} on a socket with persistent memory: {words}."
    yield Finding(words, how[best] if others else "")


def tensors_away(model: str, tensors: Sequence[Json], row: Json | None) -> Iterator[Finding]:
    """What goes to the slow tier first, by the seconds that it costs a byte there."""
    mine = [] if row is None else [one for one in of_cell(tensors, row) if one["bytes"]]
    if not mine:
        return
    assert row is not None
    cost = {one["tensor"]: max(one["extra_seconds_per_step"], 0.0) / one["bytes"] for one in mine}
    by_cost = sorted(mine, key=lambda one: cost[one["tensor"]])
    words = f"{stamp(row)}{model}: alone on the slow tier {', '.join(map(_cost, by_cost))}."
    first = [one for one in by_cost if cost[one["tensor"]] <= CHEAP * cost[by_cost[0]["tensor"]]]
    last = [one for one in by_cost if one not in first]
    if not last:
        yield Finding(words, "All cost about the same a byte: put the largest there first.")
        return
    freed = in_bytes(sum(one["bytes"] for one in first))
    helps = f"Put {_named(first)} there first, which frees {freed} of DRAM, because {_because(first)};"
    kept = " and ".join(f"{one['tensor']}, because {_because([one])}" for one in reversed(last))
    yield Finding(words, f"{helps} keep in DRAM {kept}.")


def stamp(row: Mapping[str, Any]) -> str:
    """Before figures that no step on this machine has shown."""
    return "" if row["provenance"] == "measured" else f"{row['provenance']} "


def slow_tier(rates: Sequence[Json]) -> str:
    """The kind of this machine's, "" where its rates are not known."""
    return next((str(row["tier"]) for row in rates if row["hardware"] == "here"), "")


def simulated(content: Json) -> str:
    """The rates of the simulated device, beside the most that the declared DIMMs give to any number of threads."""
    declared, words = [row for row in content["rates"] if row["hardware"] != "here"], []
    for way, pattern in (("read", "read"), ("written", "write")):
        rate = content["simulated_gb_per_s"][way]
        most = max((row["gb_per_s"] for row in declared if row["pattern"] == pattern), default=None)
        words.append(f"{rate:.2f} GB/s {way}" + (f" ({rate / most:.0%} of the DIMMs')" if most else ""))
    return " and ".join(words)


def _bearable(row: Json, option: str) -> str:
    if row["slowdown_ratio"] <= BEARABLE:
        longer = max(row["slowdown_ratio"] - 1, 0.0)
        return f"Take {option} and buy less DRAM: a step takes {longer:.0%} longer."
    return f"Where a step must not take that long, buy {in_bytes(row['all_dram_bytes'])} of DRAM; else take {option}."


def _times(row: Json) -> str:
    return f"{row['slowdown_ratio']:.2f} times the step in DRAM"


def _cost(one: Json) -> str:
    return f"{one['tensor']} costs {in_seconds(max(one['extra_seconds_per_step'], 0.0))} a step"


def _named(tensors: Sequence[Json]) -> str:
    names = [one["tensor"] for one in tensors]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _because(tensors: Sequence[Json]) -> str:
    moved = sum(one["moved_bytes_per_step"] for one in tensors)
    gathered = sum(one["gathered_ratio"] * one["moved_bytes_per_step"] for one in tensors)
    often = moved / sum(one["bytes"] for one in tensors)
    if moved and gathered > 0.25 * moved:
        return f"a step moves {often:.0f} times their bytes, {gathered / moved:.0%} of it gathered row by row"
    return f"a step passes over their bytes {often:.0f} times, in order"
