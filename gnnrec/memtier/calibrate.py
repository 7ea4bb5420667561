"""Calibration: what each tier of this machine can do, measured, kept in a file, and found again while it is valid.

Figures are kept with the conditions they were taken under (`conditions`). When one of these changes they are not used
any more, and `calibrated` says which one it was.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from gnnrec.errors import ConfigError, GnnrecError
from gnnrec.memtier import conditions
from gnnrec.memtier.conditions import Conditions
from gnnrec.memtier.stopwatch import Stopwatch
from gnnrec.memtier.tiers import Rate, Tier
from gnnrec.storage import atomic_write, storage_errors

FORMAT, VERSION = "gnnrec-calibration", 1
FACT = "calibration"  # of Tier.facts: when and how, or why not

Progress = Callable[[str], None]


def measure(tiers: Sequence[Tier], *, seconds: float = 90.0, progress: Progress = lambda words: None) -> list[Tier]:
    """Measure the tiers, one after the other; each gets an equal share of the time that is left, and where one has
    taken too long, as on a busy machine, no less than an equal share of all.

    Args:
        seconds: for all of it; the figure that runs when the time is up is finished, and so is what no plan can do
            without.
        progress: is told each figure that begins.

    Returns:
        The tiers in their order, with rates and latency, provenance measured. One that could not be measured is as it
        was; its fact "calibration" says why.
    """
    end, result = time.perf_counter() + seconds, []
    waiting = count = sum(not tier.unavailable for tier in tiers)
    for tier in tiers:
        if tier.unavailable:
            result.append(_with_fact(tier, f"unavailable: {tier.unavailable}"))
            continue
        now = time.perf_counter()
        watch = Stopwatch(now + max((end - now) / waiting, seconds / count), _of(tier, progress))
        waiting -= 1
        result.append(_measured(tier, watch))
    return result


def keep(tiers: Sequence[Tier], file: Path | None = None) -> Path:
    """Write what was measured into a file, beside what it holds of other machines and other tiers; returns the file.

    Args:
        file: None for the user's, where `calibrated` looks.

    Raises:
        ConfigError: the file is damaged.
        StorageError: it cannot be written.
    """
    file = user_file() if file is None else file
    machine, found = conditions.machine(), [_to_dict(tier) for tier in tiers if tier.provenance == "measured"]
    calibrations = _load(file)
    mine: list[dict[str, Any]] = next((known["tiers"] for known in calibrations if known["machine"] == machine), [])
    replaced = [_device(tier["conditions"]) for tier in found]
    together = [tier for tier in mine if _device(tier["conditions"]) not in replaced] + found
    others = [known for known in calibrations if known["machine"] != machine]
    content = {"format": FORMAT, "version": VERSION}
    content |= {"calibrations": [*others, {"machine": machine, "tiers": together}]}
    with storage_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, json.dumps(content, indent=1).encode())
    return file


def calibrated(tiers: Sequence[Tier], file: Path | None = None) -> list[Tier]:
    """The tiers with the rates that were kept for them, where these are still valid.

    Args:
        file: None for the user's.

    Returns:
        The tiers in their order; the fact "calibration" of each says when it was measured, or why there is nothing.

    Raises:
        ConfigError: the file is damaged.
    """
    machine = conditions.machine()
    # The last one first: of those that differ by as much, it is the one that people remember.
    known = sorted(reversed(_load(file or user_file())), key=lambda one: len(_changes(one, machine)))
    return [_found(tier, known, machine) for tier in tiers]


def user_file() -> Path:
    """gnnrec/calibration.json in the user's cache folder (XDG_CACHE_HOME)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gnnrec" / "calibration.json"


def rates_of(tier: Tier) -> list[dict[str, Any]]:
    """The tier's rates as files keep them, units in the names."""
    return [
        {
            "pattern": rate.pattern,
            "row_bytes": rate.row_bytes,
            "working_set_bytes": rate.working_set,
            "threads_count": rate.threads,
            "gb_per_s": rate.gb_per_s,
            "spread_ratio": rate.spread,
            "measurements_count": rate.count,
        }
        for rate in tier.rates
    ]


def _measured(tier: Tier, watch: Stopwatch) -> Tier:
    from gnnrec.memtier import measure_file, measure_gpu, measure_memory

    kinds = {"file": measure_file.measure, "gpu": measure_gpu.measure}
    start, load = time.perf_counter(), conditions.load_per_core()
    try:
        rates, latency, notes = kinds.get(tier.kind, measure_memory.measure)(tier, watch)
    except GnnrecError as error:
        return _with_fact(tier, f"unavailable: {error}")
    if not rates:
        return _with_fact(tier, f"unavailable: {'; '.join(notes)}")
    when = f"{datetime.now():%Y-%m-%d %H:%M}, {time.perf_counter() - start:.0f} s, load {load:.2f} a core"
    words = "; ".join([f"{when}, {len(rates)} figures", *notes])
    return _with_fact(replace(tier, rates=rates, latency_ns=latency, provenance="measured"), words)


def _of(tier: Tier, progress: Progress) -> Progress:
    return lambda figure: progress(f"{tier.name}: {figure}")


def _with_fact(tier: Tier, words: str) -> Tier:
    return replace(tier, facts=tier.facts | {FACT: words})


def _found(tier: Tier, known: Sequence[dict[str, Any]], machine: Conditions) -> Tier:
    """The tier with its rates from the calibration that fits best, or with the reason why there are none."""
    now = conditions.of_tier(tier)
    for calibration in known:
        for saved in calibration["tiers"]:
            if _device(saved["conditions"]) != _device(now):
                continue
            changes = _changes(calibration, machine) + conditions.differences(saved["conditions"], now)
            if not changes:
                return _from_dict(tier, saved)
            return _with_fact(tier, f"no longer valid: {'; '.join(changes)}. Run {_command(tier)} again")
    return _with_fact(tier, f"none yet: run {_command(tier)}")


def _changes(calibration: dict[str, Any], machine: Conditions) -> list[str]:
    return conditions.differences(calibration["machine"], machine)


def _device(of_tier: Conditions) -> tuple[str | int, ...]:
    """What stays when a file system is mounted in another way."""
    return of_tier["kind"], of_tier["device"]


def _command(tier: Tier) -> str:
    return f"gnnrec calibrate folders=[{tier.where}]" if tier.kind == "file" else "gnnrec calibrate"


def _to_dict(tier: Tier) -> dict[str, Any]:
    words = {"name": tier.name, "calibration": tier.facts[FACT]}
    return words | {"conditions": conditions.of_tier(tier), "latency_ns": tier.latency_ns, "rates": rates_of(tier)}


def _from_dict(tier: Tier, saved: dict[str, Any]) -> Tier:
    rates = tuple(
        Rate(
            pattern=rate["pattern"],
            gb_per_s=rate["gb_per_s"],
            row_bytes=rate["row_bytes"],
            threads=rate["threads_count"],
            working_set=rate["working_set_bytes"],
            spread=rate["spread_ratio"],
            count=rate["measurements_count"],
        )
        for rate in saved["rates"]
    )
    measured = replace(tier, rates=rates, latency_ns=saved["latency_ns"], provenance="measured")
    return _with_fact(measured, saved["calibration"])


def _load(file: Path) -> list[dict[str, Any]]:
    """The calibrations of a file, none where there is no file."""
    if not file.exists():
        return []
    remedy = "Remove it and run `gnnrec calibrate` again"
    try:
        content = json.loads(file.read_text())
        if (content["format"], content["version"]) != (FORMAT, VERSION):
            raise ConfigError("is of another version", where=str(file), remedy=remedy)
        return list(content["calibrations"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"is damaged: {error!r}", where=str(file), remedy=remedy) from error
