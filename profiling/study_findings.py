"""What follows from the study's figures, for whoever buys or configures memory: functions of the table alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import ceil, log2
from statistics import median
from typing import Any

from study_records import Json, of_cell

from gnnrec.memtier.costs import ENOUGH, UnknownRateError, transfers
from gnnrec.memtier.tiers import Rate, Tier
from gnnrec.report.profile_findings import Finding
from gnnrec.report.profiles import GATHERING
from gnnrec.units import in_bytes, in_seconds

CHEAP = 2.0  # times what the cheapest tensor costs a byte on the slow tier: what costs no more goes there first
FREE = 1.5  # times the step of the smallest batch: a larger one that costs no more is as good as free
BEARABLE = 1.25  # times the step with all in DRAM
UNSTEADY = 0.3  # of a step: what the steps of half of all cells may differ by
NAMED = 3  # classes, the longest


def findings(content: Json) -> list[Finding]:
    """In order of reading: what there is; by model where time and memory go, what goes where, batch, size; threads."""
    found = [_counts(content["cells"]), *_steadiness(content["cells"])]
    for model in dict.fromkeys(row["model"] for row in content["cells"]):
        rows = [row for row in content["cells"] if row["model"] == model and row["status"] == "done"]
        by_placement = {row["placement"]: row for row in around(rows, content["centre"], "placement")}
        if (row := by_placement.get("dram")) is not None:
            found += [*_kernels(row, content["operators"]), _footprint(row)]
        found += [*_here(model, by_placement, content), *_simulated(model, by_placement, content)]
        found += _persistent(model, by_placement)
        found += _tensors(model, content["tensors"], by_placement.get("app_direct_in_place"))
        in_dram = [row for row in rows if row["placement"] == "dram"]
        found += _batch(model, around(in_dram, content["centre"], "batch"))
        found += _sizes(model, in_dram, content["centre"])
    return [*found, *_threads(content["rates"])]


def around(rows: Sequence[Json], centre: Mapping[str, Any], factor: str) -> list[Json]:
    """Those that have all of the centre but this factor, in its order."""
    others = {name: value for name, value in centre.items() if name != factor}
    found = [row for row in rows if others.items() <= row.items()]
    return sorted(found, key=lambda row: row[factor]) if factor in ("layers", "dim", "batch") else found


def stamp(row: Mapping[str, Any]) -> str:
    """Before figures that no step on this machine has shown."""
    return "" if row["provenance"] == "measured" else f"{row['provenance']} "


def epoch_seconds(row: Json) -> float:
    """Of all steps that make an epoch."""
    seconds: float = row["seconds_per_step"] * ceil(row["interactions_count"] / row["batch"])
    return seconds


def slow_tier(rates: Sequence[Json]) -> str:
    """The kind of this machine's, "" where its rates are not known."""
    return next((str(row["tier"]) for row in rates if row["hardware"] == "here"), "")


def _counts(rows: Sequence[Json]) -> Finding:
    states = [row["status"] for row in rows]
    words = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    helps = "The same command goes on with them." if {"waiting", "failed"} & set(states) else ""
    return Finding(f"{len(rows)} cells: {words}.", helps)


def _steadiness(rows: Sequence[Json]) -> Iterator[Finding]:
    """How far figures can be trusted, where that is not far."""
    spreads = [row["spread_ratio"] for row in rows if row["spread_ratio"] is not None]
    if spreads and median(spreads) > UNSTEADY:
        words = f"Steps of a cell differ by {median(spreads):.0%} of their median: something else used the machine."
        yield Finding(words, "Measure again on an idle machine, into another folder, before you rely on what follows.")


def _kernels(row: Json, operators: Sequence[Json]) -> Iterator[Finding]:
    seconds: dict[str, float] = {}
    for one in of_cell(operators, row):
        seconds[one["class"]] = seconds.get(one["class"], 0.0) + one["seconds"]
    if not seconds:
        return
    longest, total = sorted(seconds, key=lambda kind: -seconds[kind]), sum(seconds.values())
    parts = ", ".join(f"{kind} {seconds[kind] / total:.0%}" for kind in longest[:NAMED])
    gathering = sum(seconds[kind] for kind in seconds if kind in GATHERING) / total
    words = f"{row['model']}, {row['layers']} layers of {row['dim']}, {row['data']}: a step takes"
    words += f" {in_seconds(row['seconds_per_step'])} in DRAM: {parts}."
    helps = f"{gathering:.0%} gather rows: buy bandwidth at random, and keep what they gather in the fastest memory."
    yield Finding(words, helps if gathering > 0.5 else "Most of it gathers nothing: cores count for as much as memory.")


def _footprint(row: Json) -> Finding:
    needed, edge_wise = row["all_dram_bytes"], row["edge_wise_dram_bytes"]
    numbers = (row["users_count"] + row["items_count"]) * row["dim"] * 4
    words = f"{row['model']}: its tensors take {in_bytes(needed)} of DRAM, with edge-wise kernels at least"
    words += f" {in_bytes(edge_wise)}, {edge_wise / needed:.1f} times."
    words += f" The process held {in_bytes(row['peak_rss_bytes'])} at its peak, rankings not among it."
    grows = row["node_dram_bytes"] + row["edge_dram_bytes"]
    # Rankings and batch are in `needed`, Python, libraries, the log and what a graph is made of in the peak.
    beside = needed - grows + max(row["peak_rss_bytes"] - grows, 0)
    helps = f"Buy, all tiers together, {row['node_dram_bytes'] / numbers:.1f} x (users + items) x dim x 4 bytes"
    helps += f" + {row['edge_dram_bytes'] / row['interactions_count']:.1f} bytes x interactions"
    return Finding(words, f"{helps}, and {in_bytes(beside)} for the batch, rankings, the log and Python.")


def _here(model: str, rows: Mapping[str, Json], content: Json) -> Iterator[Finding]:
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


def _bearable(row: Json, option: str) -> str:
    if row["slowdown_ratio"] <= BEARABLE:
        longer = max(row["slowdown_ratio"] - 1, 0.0)
        return f"Take {option} and buy less DRAM: a step takes {longer:.0%} longer."
    return f"Where a step must not take that long, buy {in_bytes(row['all_dram_bytes'])} of DRAM; else take {option}."


def _simulated(model: str, rows: Mapping[str, Json], content: Json) -> Iterator[Finding]:
    """A stream that was run here: on other threads and other DRAM than the declared machine's, so ranked with none."""
    row, threads = rows.get("app_direct"), content["simulated_threads_count"]
    if row is None or not row["slowdown_ratio"]:
        return
    share = f", what {threads} threads get of them" if threads else ""
    yield Finding(f"{stamp(row)}{model} streamed here at {simulated(content)}{share}: {_times(row)}.")


def simulated(content: Json) -> str:
    """The rates of the simulated device, beside the most that the declared DIMMs give to any number of threads."""
    declared, words = [row for row in content["rates"] if row["hardware"] != "here"], []
    for way, pattern in (("read", "read"), ("written", "write")):
        rate = content["simulated_gb_per_s"][way]
        most = max((row["gb_per_s"] for row in declared if row["pattern"] == pattern), default=None)
        words.append(f"{rate:.2f} GB/s {way}" + (f" ({rate / most:.0%} of the DIMMs')" if most else ""))
    return " and ".join(words)


def _persistent(model: str, rows: Mapping[str, Json]) -> Iterator[Finding]:
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


def _times(row: Json) -> str:
    return f"{row['slowdown_ratio']:.2f} times the step in DRAM"


def _tensors(model: str, tensors: Sequence[Json], row: Json | None) -> Iterator[Finding]:
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


def _batch(model: str, rows: Sequence[Json]) -> Iterator[Finding]:
    """Up to where a larger batch is as good as free."""
    if len(rows) < 2:
        return
    smallest, best = rows[0], rows[0]
    for row in rows[1:]:
        if row["seconds_per_step"] > FREE * smallest["seconds_per_step"]:
            break
        best = row
    words = f"{model}: a step of batch {smallest['batch']:,} takes {in_seconds(smallest['seconds_per_step'])},"
    words += f" of {rows[-1]['batch']:,} {in_seconds(rows[-1]['seconds_per_step'])}; an epoch"
    words += f" {in_seconds(epoch_seconds(smallest))} and {in_seconds(epoch_seconds(rows[-1]))}."
    if best is smallest:
        yield Finding(
            words, f"Batch {smallest['batch']:,} is enough for speed: the next larger one costs in proportion."
        )
        return
    cost = best["seconds_per_step"] / smallest["seconds_per_step"]
    helps = f"Batch at least {best['batch']:,}: there a step costs {cost:.2f} times that of {smallest['batch']:,}"
    helps += f", an epoch {epoch_seconds(best) / epoch_seconds(smallest):.2f} times; with trainer.lr_scaling, since an"
    yield Finding(words, f"{helps} epoch has fewer steps, and look at the accuracy: these are seconds alone.")


def _sizes(model: str, rows: Sequence[Json], centre: Mapping[str, Any]) -> Iterator[Finding]:
    """What a layer more, and a wider embedding, cost."""
    words = []
    layers, dims = around(rows, centre, "layers"), around(rows, centre, "dim")
    if len(layers) > 1:
        more = layers[-1]["seconds_per_step"] - layers[0]["seconds_per_step"]
        words.append(f"a layer more takes {in_seconds(more / (layers[-1]['layers'] - layers[0]['layers']))} a step")
    if len(dims) > 1:
        power = log2(dims[-1]["seconds_per_step"] / dims[0]["seconds_per_step"])
        times = 2 ** (power / log2(dims[-1]["dim"] / dims[0]["dim"]))
        words.append(f"twice the width takes {times:.2f} times as long (from {dims[0]['dim']} to {dims[-1]['dim']})")
    if words:
        yield Finding(f"{model}: {'; '.join(words)}.")


def _threads(rates: Sequence[Json]) -> Iterator[Finding]:
    """Readers and writers that a tier is fastest with."""
    for place in dict.fromkeys((row["hardware"], row["tier"], row["provenance"]) for row in rates):
        mine = [row for row in rates if (row["hardware"], row["tier"], row["provenance"]) == place]
        try:
            best = transfers(_tier(place[1], place[2], mine))
        except UnknownRateError:
            continue
        readers, writers = _count(best.readers, "reader"), _count(best.writers, "writer")
        words = f"{place[1]} of {place[0]} ({place[2]}): {best.read_gb_per_s:.2f} GB/s with {readers}"
        words += f" and {best.write_gb_per_s:.2f} GB/s with {writers}, at least {ENOUGH:.0%} of the most"
        most = max((row for row in mine if row["pattern"] == "write"), key=lambda row: row["threads_count"])
        if most["threads_count"] > best.writers and most["gb_per_s"] < ENOUGH * best.write_gb_per_s:
            words += f"; {most['gb_per_s']:.2f} with {most['threads_count']} writers"
        turns = ", reading and writing in turns" if best.phased else ""
        yield Finding(f"{words}.", f"Use {readers} and {writers}{turns}.")


def _count(number: int, what: str) -> str:
    return f"{number} {what} thread{'s' if number > 1 else ''}"


def _tier(name: str, provenance: str, rows: Sequence[Json]) -> Tier:
    rates = tuple(Rate(row["pattern"], row["gb_per_s"], threads=row["threads_count"]) for row in rows)
    return Tier(name, "pmem", None, None, 256, provenance=provenance, rates=rates)
