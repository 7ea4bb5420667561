"""What study.py leaves: a row a cell with one value a field, operators, tensors and rates beside them, and for every
field its unit and meaning."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from study_cell import RECORD
from study_settings import Settings

from gnnrec.config import SimulateConfig
from gnnrec.errors import ConfigError
from gnnrec.memtier.calibrate import rates_of
from gnnrec.memtier.tiers import Tier
from gnnrec.report.cells import MODELLED, STAMP
from gnnrec.report.fields import elided, get, optional
from gnnrec.report.profiles import read_profile

FORMAT, VERSION = "gnnrec-study", 2
Json = dict[str, Any]

_TEXT, _COUNT, _BYTES, _RATIO, _S, _GB = "text", "1", "bytes", "ratio", "s", "GB/s (10^9 bytes/s)"
GIVEN = {  # field: (unit, meaning)
    "model": (_TEXT, "lightgcn or ngcf, with BPR and Adam"),
    "layers": (_COUNT, "of the model"),
    "dim": (_COUNT, "numbers of an embedding"),
    "batch": (_COUNT, "interactions of a step"),
    "data": (_TEXT, "of the sources in study.yaml"),
    "placement": (_TEXT, "where tensors lie, see study.yaml"),
}
CELLS = GIVEN | {
    "status": (_TEXT, "done, infeasible, failed, or waiting"),
    "reason": (_TEXT, "why there are no figures"),
    "provenance": (
        _TEXT,
        f"of the seconds: measured, {STAMP} (a device was slowed down), {MODELLED} (no step was run)",
    ),
    "users_count": (_COUNT, "of the data"),
    "items_count": (_COUNT, "of the data"),
    "interactions_count": (_COUNT, "of the training part"),
    "seconds_per_step": (_S, "the median of the timed steps, compilation excluded; where MODELLED, of the plan"),
    "spread_ratio": (_RATIO, "(largest - smallest) / median of the timed steps"),
    "steps_count": (_COUNT, "timed"),
    "dram_seconds_per_step": (_S, "of the same training on the same hardware with all in DRAM"),
    "slowdown_ratio": (_RATIO, "seconds of a step / with all in DRAM"),
    "predicted_seconds_per_step": (_S, "by the plan of the run"),
    "mode": (_TEXT, "dram, direct (kernels work on the slow tier), stream, cache (DRAM is one of the slow tier)"),
    "panel_columns": (_COUNT, "of the embeddings that are in DRAM at a time, where they are streamed"),
    "readers_count": (_COUNT, "reads at a time of a stream"),
    "writers_count": (_COUNT, "writes at a time of a stream"),
    "threads_count": (_COUNT, "of the hardware of a MODELLED step; of a rate: at work"),
    "dram_bytes": (_BYTES, "of tensors and buffers in DRAM"),
    "slow_bytes": (_BYTES, "of tensors on the slow tier"),
    "all_dram_bytes": (_BYTES, "of tensors and buffers with all in DRAM"),
    "node_dram_bytes": (_BYTES, "of these, what grows with (users + items) x dim"),
    "edge_dram_bytes": (_BYTES, "of these, what grows with the interactions"),
    "edge_wise_dram_bytes": (_BYTES, "the same, at the least, with kernels that make messages edge by edge"),
    "peak_rss_bytes": (_BYTES, "of the process, Python, libraries and data included"),
}
OPERATORS = GIVEN | {
    "class": (_TEXT, "of the operator"),
    "operator": (_TEXT, "as profile.json has it"),
    "direction": (_TEXT, "forward, backward, or empty"),
    "seconds": (_S, "of a recorded step"),
    "bytes": (_BYTES, "that it moves in a step by its byte model; of a tensor: its size"),
    "flop": (_COUNT, "floating-point operations in a step"),
}
TENSORS = GIVEN | {
    "tensor": (_TEXT, "that may lie on another tier"),
    "moved_bytes_per_step": (_BYTES, "of it"),
    "gathered_ratio": (_RATIO, "of these, what is gathered row by row; the rest is passed over in order"),
    "extra_seconds_per_step": (_S, f"that a step takes longer with it alone on the slow tier, {MODELLED}"),
}
RATES = {
    "tier": (_TEXT, "kind of this machine's, or name of a preset's"),
    "hardware": (_TEXT, "here, or a preset of conf/hardware"),
    "provenance": (_TEXT, "measured, or declared by the preset's sources"),
    "pattern": (_TEXT, "read, write or mixed (half each way), in order"),
    "gb_per_s": (_GB, "of payload"),
}
ROWS = {"cells": CELLS, "operators": OPERATORS, "tensors": TENSORS, "rates": RATES, "conditions": GIVEN}
FIELDS = {**OPERATORS, **TENSORS, **RATES, **CELLS} | {
    "dram_share_ratio": (_RATIO, "of the DRAM that a training needs: what it may take where it is given less"),
    "simulated_gb_per_s": (_GB, "of app_direct, or those of this machine's device where it is slower"),
    "simulated_threads_count": (_COUNT, "that the hardware's figures give these to; null where they were set"),
}


def gather(
    settings: Settings,
    tiers: Sequence[Tier],
    hardware: Sequence[Tier],
    slower: SimulateConfig,
    threads: int,
) -> Json:
    """What lies in the cells' folders, as the content of the JSON file.

    Args:
        settings: of the study.
        tiers: this machine's, the slow ones of which have their rates told.
        hardware: the declared ones of App Direct.
        slower: speeds of the simulated device.
        threads: of the steps that are run.

    Raises:
        CheckpointError: the profile of a cell is damaged.
    """
    rows, conditions, operators, tensors = [], [], [], []
    for cell in settings.cells():
        folder, factors = Path(settings.out, "runs", cell.name), asdict(cell)
        record = read(folder) or {"status": "waiting", "reason": "it was not begun"}
        rows.append(dict.fromkeys(CELLS) | {name: record[name] for name in CELLS if name in record} | factors)
        rows[-1]["reason"] = elided(rows[-1]["reason"])
        conditions += [factors | record["conditions"]] if "conditions" in record else []
        tensors += [factors | row for row in record.get("tensors", ())]
        if record["status"] == "done" and (profile := read_profile(folder)) is not None:
            operators += [
                factors
                | {"class": one.kind, "operator": one.name, "direction": one.direction}
                | {"seconds": one.seconds, "bytes": one.bytes, "flop": one.flop}
                for one in profile.operators
            ]
    _compare(rows)
    slow = [("here", tier.kind, tier) for tier in tiers if tier.kind not in ("dram", "gpu")]
    slow += [(settings.hardware.app_direct, tier.name, tier) for tier in hardware if tier.kind != "dram"]
    content: Json = {"format": FORMAT, "version": VERSION}
    content["fields"] = {name: {"unit": unit, "meaning": meaning} for name, (unit, meaning) in FIELDS.items()}
    content |= {"preset": settings.preset, "centre": asdict(settings.centre), "dram_share_ratio": settings.dram_share}
    content["simulated_gb_per_s"] = {"read": slower.read_gb_per_s, "written": slower.write_gb_per_s}
    content["simulated_threads_count"] = threads if settings.simulate.read_gb_per_s is None else None
    content |= {"conditions": conditions, "cells": rows, "operators": operators, "tensors": tensors}
    return content | {"rates": [row for place in slow for row in _rates(*place)]}


def read(folder: Path) -> Json | None:
    """How a cell ended; None where it has not.

    Raises:
        ConfigError: the record is damaged.
    """
    file = folder / RECORD
    try:
        record = json.loads(file.read_bytes())
        _ = record["status"], record["reason"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"cannot be read: {error!r}", where=str(file), remedy="Remove it") from error
    return dict(record)


def check(content: Json, where: str) -> None:
    """Raise a CheckpointError where a part is missing that `gather` gives, or a value is of another kind."""
    for name, fields in ROWS.items():
        for row in get(content, name, list, where):
            for field, (unit, _) in fields.items():
                if not (isinstance(row, dict) and row.get(field, 0) is None):
                    get(row, field, str if unit == _TEXT else float, f"{where}, {name}")
    for name in GIVEN.keys() - {"model", "placement"}:
        get(get(content, "centre", dict, where), name, str if name == "data" else int, f"{where}, centre")
    for way in ("read", "written"):
        get(get(content, "simulated_gb_per_s", dict, where), way, float, f"{where}, simulated_gb_per_s")
    optional(content, "simulated_threads_count", int, where)


def training(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What is trained, wherever tensors lie."""
    return tuple(row[name] for name in GIVEN if name != "placement")


def of_cell(rows: Sequence[Json], cell: Mapping[str, Any]) -> list[Json]:
    """Those of operators or tensors that belong to this one."""
    return [row for row in rows if all(row[name] == cell[name] for name in GIVEN)]


def _compare(rows: Sequence[Json]) -> None:
    """Set the slowdowns, and what they are against."""
    in_dram = {
        training(row): row["seconds_per_step"] for row in rows if (row["placement"], row["status"]) == ("dram", "done")
    }
    for row in rows:
        if row["status"] == "done":
            row["dram_seconds_per_step"] = row["dram_seconds_per_step"] or in_dram.get(training(row))
            if row["dram_seconds_per_step"]:
                row["slowdown_ratio"] = row["seconds_per_step"] / row["dram_seconds_per_step"]


def _rates(hardware: str, name: str, tier: Tier) -> list[Json]:
    """In order, of a tier."""
    provenance = {"tier": name, "hardware": hardware, "provenance": tier.provenance}
    return [
        provenance | {key: rate[key] for key in ("pattern", "threads_count", "gb_per_s")}
        for rate in rates_of(tier)
        if rate["pattern"] in ("read", "write", "mixed") and not rate["row_bytes"]
    ]
