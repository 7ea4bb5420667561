"""What follows from the study's figures, for whoever buys or configures memory: functions of the table alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import ceil, log2
from statistics import median
from typing import Any

from study_places import here, persistent, streamed_here, tensors_away
from study_records import Json, of_cell

from gnnrec.memtier.costs import ENOUGH, UnknownRateError, transfers
from gnnrec.memtier.tiers import Rate, Tier
from gnnrec.report.profile_findings import Finding
from gnnrec.report.profiles import GATHERING
from gnnrec.units import in_bytes, in_seconds

FREE = 1.5  # times the step of the smallest batch: a larger one that costs no more is as good as free
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
        found += [*here(model, by_placement, content), *streamed_here(model, by_placement, content)]
        found += persistent(model, by_placement)
        found += tensors_away(model, content["tensors"], by_placement.get("app_direct_in_place"))
        in_dram = [row for row in rows if row["placement"] == "dram"]
        found += _batch(model, around(in_dram, content["centre"], "batch"))
        found += _sizes(model, in_dram, content["centre"])
    return [*found, *_threads(content["rates"])]


def around(rows: Sequence[Json], centre: Mapping[str, Any], factor: str) -> list[Json]:
    """Those that have all of the centre but this factor, in its order."""
    others = {name: value for name, value in centre.items() if name != factor}
    found = [row for row in rows if others.items() <= row.items()]
    return sorted(found, key=lambda row: row[factor]) if factor in ("layers", "dim", "batch") else found


def epoch_seconds(row: Json) -> float:
    """Of all steps that make an epoch."""
    seconds: float = row["seconds_per_step"] * ceil(row["interactions_count"] / row["batch"])
    return seconds


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
