"""Measures one tier after the other: latencies, then the bandwidth matrix in the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import bandwidth_files
import bandwidth_gpu
import bandwidth_latency
import bandwidth_memory
import bandwidth_records as records
import numpy as np
import torch
from bandwidth_latency import Latency, working_sets
from bandwidth_matrix import Cell
from bandwidth_nodes import FAR, Processors, distances, others_than, pinned
from bandwidth_settings import Settings

from gnnrec.errors import GnnrecError
from gnnrec.memtier import conditions, kernels, measure_file, measure_memory
from gnnrec.memtier.files import BLOCK, Throttle
from gnnrec.memtier.stopwatch import Stopwatch
from gnnrec.memtier.tiers import Rate, Tier
from gnnrec.units import in_bytes

Progress = Callable[[str], None]
Found = tuple[list[tuple[Cell, Rate]], int, list[str]]  # bandwidths, cells of the whole matrix, notes

_SETUP_SECONDS_PER_BYTE = 1e-9  # of buffers: zeroed, then filled
_LATENCIES = 0.5  # of the time at most


def measure(
    tiers: Sequence[Tier],
    settings: Settings,
    groups: Sequence[Processors],
    content: records.Json,
    progress: Progress,
    keep: Callable[[], None],
) -> None:
    """Measure the tiers into the content of a file. Each gets an equal share of the budget; one that cannot be measured
    is named in `left_out`.

    Args:
        progress: is told what is being measured.
        keep: is called after each tier.

    Raises:
        GnnrecError: there is nothing to measure.
    """
    wanted = [tier for tier in tiers if tier.kind in settings.tiers]
    for tier in [tier for tier in wanted if tier.unavailable]:
        content["left_out"].append(f"{tier.name}: unavailable: {tier.unavailable}")
    ready = [tier for tier in wanted if not tier.unavailable]
    for tier in ready:
        start = time.perf_counter()
        part = _Tier(tier, settings, groups, content, progress)
        try:
            found, cells, notes = part.measure(settings.budget / len(ready))
        except GnnrecError as error:
            content["left_out"].append(f"{tier.name}: {error}")
            continue
        content["bandwidth"] += [records.bandwidth_row(tier, part.provenance, *each) for each in found]
        seconds = time.perf_counter() - start
        content["measured"].append(records.tier_row(tier, part.provenance, notes, cells, len(found), seconds))
        keep()
    if not content["measured"]:
        words = "; ".join(content["left_out"]) or f"there is none of kind {', '.join(settings.tiers)}"
        raise GnnrecError(f"no tier was measured: {words}", where="tiers", remedy="`gnnrec tiers` lists what there is")


class _Tier:
    """What is measured of one tier."""

    def __init__(
        self,
        tier: Tier,
        settings: Settings,
        groups: Sequence[Processors],
        content: records.Json,
        progress: Progress,
    ) -> None:
        self.tier, self.settings, self.groups = tier, settings, groups
        self.content, self.progress = content, lambda words: progress(f"{tier.name}: {words}")
        self.provenance = records.provenance(tier, settings)

    def measure(self, seconds: float) -> Found:
        """Latencies go into the content.

        Raises:
            GnnrecError: it cannot be measured.
        """
        return {"file": self._file, "gpu": self._gpu}.get(self.tier.kind, self._memory)(seconds)

    def _gpu(self, seconds: float) -> Found:
        found, notes = bandwidth_gpu.measure(self.tier, self._watch(seconds))
        return found, len(found), [notes]

    def _file(self, seconds: float) -> Found:
        throttle = Throttle(*self.settings.slower) if self.settings.slower else None
        chosen, watch = bandwidth_files.plan(self.settings, seconds), self._watch(seconds)
        with measure_file.opened(self.tier, seconds, run="profiling/bandwidth.py", throttle=throttle) as (blocks, note):
            found, missing = bandwidth_files.measure(blocks, chosen, watch)
            size = blocks.size
        for cell, rate in found:
            if (cell.op, cell.pattern, cell.access_bytes, cell.threads) == ("read", "random", BLOCK, 1):
                latency = Latency(BLOCK / rate.gb_per_s, rate.spread, rate.count)
                row = records.idle_row(self.tier, self.provenance, "", "", size, latency)
                self.content["idle_latency"].append(row)
        every = len(bandwidth_files.every_cell(self.settings))
        self._left_out(every, len(chosen), missing)
        return found, every, [note]

    def _memory(self, seconds: float) -> Found:
        tier, settings, groups = self.tier, self.settings, self.groups
        far = distances(tier, groups)
        cache, known = conditions.last_level_cache()
        size = measure_memory.buffer_size(tier, cache)
        sets = working_sets(settings.chased_bytes, cache, size)
        beside = min(size, measure_memory.CHASED * cache)  # traffic: beyond the cache whatever sets are asked for
        setup = _SETUP_SECONDS_PER_BYTE * (2 * size + max(*sets, beside))
        rest = seconds - setup - min(self._latency_seconds(sets), _LATENCIES * seconds)
        chosen = bandwidth_memory.plan(settings, groups, far, rest)
        self.progress("compiling")
        bandwidth_memory.compile_kernels(chosen)
        bandwidth_latency.compile_kernels(settings.loaded_ops)
        watch = self._watch(seconds)
        with measure_memory.opened(tier, huge=settings.huge_pages) as arena:
            self.progress("writing the buffers")
            placed = [
                arena.allocate(name, (count,), torch.uint8)
                for name, count in (("x", size), ("out", size), ("chased", max(*sets, beside)))
            ]
            x, out, chased = (each.tensor.numpy() for each in placed)
            near = next(number for number, distance in enumerate(far) if distance != FAR)
            with pinned(groups[near].cpus):
                for seed, memory in enumerate((x, out)):
                    kernels.fill(memory.view(np.uint32), np.uint32(seed))
            huge = measure_memory.huge_share(x)
            self._idle(chased, sets, far, near)
            self._loaded(chased[:beside], x, out, near, far[near], watch.end - (1 - _LATENCIES) * seconds)
            buffers = bandwidth_memory.Buffers(x, out, cache)
            found, missing = bandwidth_memory.measure(buffers, chosen, groups, settings, watch)
            notes = [f"two buffers of {in_bytes(size)}, on the tier {placed[0].share()}, huge pages {huge}"]
        every = len(bandwidth_memory.every_cell(settings, groups, far))
        self._left_out(every, len(chosen), missing)
        return found, every, [*notes, f"last-level cache {in_bytes(cache)} ({known})"]

    def _latency_seconds(self, sets: Sequence[int]) -> float:
        """What the latencies are planned to take."""
        chased = len(sets) * bandwidth_latency.IDLE_SECONDS
        cycles = sum(sets) + (len(self.groups) + len(self.settings.loaded_ops)) * max(sets)
        loaded = len(self.settings.loaded_ops) * len(self.settings.delays) * bandwidth_latency.LOADED_SECONDS
        return chased + cycles * bandwidth_latency.CYCLE_SECONDS_PER_BYTE + loaded

    def _idle(self, chased: Any, sets: Sequence[int], far: Sequence[str], near: int) -> None:
        """By working set from the near processors, in the largest one from all others."""
        for number, (group, distance) in enumerate(zip(self.groups, far, strict=True)):
            for size in sets if number == near else sets[-1:]:
                self.progress(f"latency in {in_bytes(size)} from {group.node}")
                latency = bandwidth_latency.idle(chased[:size].view(np.int64), group.cpus[0])
                row = records.idle_row(self.tier, self.provenance, group.node, distance, size, latency)
                self.content["idle_latency"].append(row)

    def _loaded(self, chased: Any, x: Any, out: Any, near: int, distance: str, until: float) -> None:
        group = self.groups[near]
        x, out = (each.view(np.float32).reshape(-1, kernels.WIDE) for each in (x, out))
        generators = len(others_than(group.cpus[0], group.cpus))
        if not generators and self.settings.loaded_ops:
            reason = f"{group.node} has one core that this process may use, and traffic takes another"
            self.content["left_out"].append(f"{self.tier.name}: loaded latency: {reason}")
            return
        for op in self.settings.loaded_ops:
            words = chased.view(np.int64)
            for delay, latency in bandwidth_latency.loaded(words, x, out, group.cpus, op, self.settings.delays):
                self.progress(f"latency beside {op} with a delay of {delay:g} ns")
                place = self.tier, self.provenance, group.node, distance
                self.content["loaded_latency"].append(
                    records.loaded_row(*place, op, generators, len(chased), delay, latency)
                )
                if time.perf_counter() > until and delay != self.settings.delays[-1]:
                    words = f"latency beside {op}: the time was up after a delay of {delay:g} ns"
                    self.content["left_out"].append(f"{self.tier.name}: {words}")
                    break

    def _watch(self, seconds: float) -> Stopwatch:
        return Stopwatch(time.perf_counter() + seconds, self.progress)

    def _left_out(self, every: int, chosen: int, missing: str) -> None:
        if chosen < every:
            words = f"{every - chosen} of {every} bandwidths, which the budget has no time for"
            self.content["left_out"].append(f"{self.tier.name}: {words}")
        if missing:
            self.content["left_out"].append(f"{self.tier.name}: {missing}")
