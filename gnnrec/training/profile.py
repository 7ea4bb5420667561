"""`profile=on`: where the time and the bytes of training steps go, in `profile.json` and `trace.json`.

A bounded number of steps is recorded, see `recording`, with every operator, since all are torch.library's or say so.
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numba
import torch
from torch.profiler import record_function

from gnnrec import process
from gnnrec.memtier import calibrate
from gnnrec.memtier.account import Actual, hidden
from gnnrec.memtier.costs import Access, UnknownRateError, bandwidth, product_flops
from gnnrec.memtier.discover import discover
from gnnrec.memtier.tiers import Tier
from gnnrec.storage import atomic_write
from gnnrec.training import recording, trace
from gnnrec.training.runlog import peak_rss_bytes, rss_bytes
from gnnrec.training.sampler import Sampler

if TYPE_CHECKING:
    from gnnrec.training.trainer import Learner

PROFILE, TRACE = "profile.json", "trace.json"
SKIPPED = 3  # steps before: the first compiles kernels, the second may capture a CUDA graph
STEPS, SECONDS = 15, 5.0  # are recorded at most, and one step at least
SAMPLES, APART = 1000, 1.0  # of resident memory at most, and seconds between them at first
LARGEST = 20e6  # bytes of a trace that is not compressed


class StepProfile:
    """Records some of the steps of a training, and its resident memory from begin to end.

    Args:
        folder: of the run.
        row_bytes: of the embeddings, whose gathers give a ceiling.
        precision: of dense products, whose rate is another.

    Raises:
        ConfigError: the calibration of the machine, if there is one, is damaged.
    """

    def __init__(self, folder: Path, row_bytes: int, precision: torch.dtype = torch.float32) -> None:
        self.folder, self._row_bytes, self._precision = folder, row_bytes, precision
        self._tiers = calibrate.calibrated(discover())
        self._skip, self._left = 0, STEPS  # steps before, and those that are to be recorded
        self._first: int | None = None
        self._end = 0.0
        self._recording: recording.Recording | None = None
        self._trace = b'{"traceEvents": []}'
        self._started, self._every = time.perf_counter(), APART
        self._memory: list[dict[str, float]] = []
        self._before = self._after = _Transfers(Actual(0, 0.0))
        self._device = torch.device("cpu")

    @contextmanager
    def watch(self, learner: Learner, steps: int) -> Iterator[None]:
        """Take part in a training that has so many steps before it."""
        self._skip, self._device = max(min(SKIPPED, steps - 1), 0), learner.device
        plain, learner.sampler = learner.sampler, cast(Sampler, _Recorded(learner.sampler))
        self.sample()
        try:
            yield
        finally:
            if self._recording is not None:
                self._stop(self._recording, learner)
            learner.sampler = plain
            self.sample()

    def step(self, learner: Learner, step: int, lr: float) -> torch.Tensor:
        """A step of the learner, recorded where it is time for that."""
        if time.perf_counter() - self._started > self._memory[-1]["seconds"] + self._every:
            self.sample()
        if self._skip or not self._left:
            self._skip = max(self._skip - 1, 0)
            return learner.step(step, lr)
        recorded = self._recording or self._start(learner, step)
        with recorded.step():
            loss = learner.step(step, lr)
        self._left -= 1
        if not self._left or time.perf_counter() > self._end:
            self._left = 0
            self._stop(recorded, learner)
        return loss

    def sample(self) -> None:
        """Note the resident memory."""
        self._memory.append({"seconds": time.perf_counter() - self._started, "rss_bytes": rss_bytes()})
        if len(self._memory) > SAMPLES:
            self._memory, self._every = self._memory[::2], 2 * self._every

    def write(self) -> None:
        """Leave both files in the run's folder.

        Raises:
            StorageError: they cannot be written.
        """
        for name in (TRACE, f"{TRACE}.gz"):  # of a part of the run before
            (self.folder / name).unlink(missing_ok=True)
        name, data = TRACE, self._trace
        if len(data) > LARGEST:
            name, data = f"{TRACE}.gz", gzip.compress(data)
        atomic_write(self.folder / name, data)
        with process.uncollected():
            content = json.dumps(self._content() | {"trace": name}, indent=1)
        atomic_write(self.folder / PROFILE, content.encode())

    def _start(self, learner: Learner, step: int) -> recording.Recording:
        self._recording = recording.begin(self._device, self.folder)
        self._first, self._before = step, _Transfers(learner.actual)
        self._end = time.perf_counter() + SECONDS
        return self._recording

    def _stop(self, recorded: recording.Recording, learner: Learner) -> None:
        self._after, self._recording = _Transfers(learner.actual), None
        with process.uncollected():
            self._trace = recorded.end()

    def _content(self) -> dict[str, Any]:
        found = trace.rows_of(json.loads(self._trace)["traceEvents"])
        transfers = self._after.since(self._before)
        steps = max(found.steps, 1)
        rows = [_row(key, row, steps, found.seconds) for key, row in found.rows.items()]
        content: dict[str, Any] = {"device": self._device.type, "steps": found.steps, "first_step": self._first}
        content |= {"steps_seconds": found.seconds, "seconds_per_step": found.seconds / steps}
        content["operators"] = sorted(rows, key=lambda row: -row["seconds"])
        content["layers"] = [
            {"operator": operator, "direction": trace.LAYERED[operator], "layer": number}
            | {"seconds_per_step": seconds / steps}
            for (operator, number), seconds in sorted(found.layers.items())
        ]
        content |= {"ceilings": self._ceilings(), "products": self._products(), "bandwidths": self._bandwidths()}
        content["transfers"] = transfers
        # The kernel counts pages by processor and adds them up now and then: a sample may be above its own peak.
        peak = max([peak_rss_bytes(), *(int(sample["rss_bytes"]) for sample in self._memory)])
        return content | {"memory": {"peak_rss_bytes": peak, "timeline": self._memory}}

    def _ceilings(self) -> list[dict[str, Any]]:
        """Measured rates of the memory that operators work in; null where there are none."""
        kinds = ("gpu",) if self._device.type == "cuda" else ("dram",)
        return [
            {
                "tier": tier.name,
                "read_gb_per_s": _rate(tier, Access("read", 1)),
                "gather_gb_per_s": _rate(tier, Access("gather", 1, self._row_bytes)),
                "gather_row_bytes": self._row_bytes,
                "calibration": tier.facts.get(calibrate.FACT),
            }
            for tier in self._tiers
            if tier.kind in kinds
        ]

    def _products(self) -> dict[str, Any]:
        """The rate of dense products, measured here and now; null on a GPU."""
        found = None
        if self._device.type == "cpu":
            with torch.random.fork_rng(devices=[]):
                found = product_flops(self._precision) / 1e9
        return {"dtype": str(self._precision).removeprefix("torch."), "gflop_per_s": found}

    def _bandwidths(self) -> list[dict[str, Any]]:
        """All that was measured of the machine's tiers."""
        return [
            {"tier": tier.name, "kind": tier.kind, "latency_ns": tier.latency_ns}
            | {"calibration": tier.facts.get(calibrate.FACT), "rates": calibrate.rates_of(tier)}
            for tier in self._tiers
            if tier.provenance == "measured"
        ]


class _Recorded:
    """A sampler whose draws are a range of the trace."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler, self.steps_per_epoch = sampler, sampler.steps_per_epoch

    def batch(self, step: int) -> tuple[torch.Tensor, ...]:
        """The batch of a step."""
        with record_function(trace.SAMPLING):
            return self.sampler.batch(step)


class _Transfers:
    """What a stream had moved when this was made."""

    def __init__(self, actual: Actual) -> None:
        self.actual = actual
        names = ("read_bytes", "write_bytes", "read_seconds", "write_seconds")
        self.files = {file: {name: getattr(moved, name) for name in names} for file, moved in actual.moved.items()}

    def since(self, before: _Transfers) -> dict[str, Any]:
        """What it has moved since then, by file, and the seconds of that; seconds of files are those of threads."""
        files = [
            {"file": file} | {name: count - before.files.get(file, {}).get(name, 0) for name, count in moved.items()}
            for file, moved in self.files.items()
        ]
        seconds, transferring, waiting = (
            getattr(self.actual, name) - getattr(before.actual, name) for name in ("seconds", "transferring", "waiting")
        )
        return {
            "transferring_seconds": transferring,
            "waiting_seconds": waiting,
            "hidden_share": hidden(seconds, transferring, waiting) if files else None,
            "files": files,
        }


def _row(key: trace.Key, row: trace.Row, steps: int, seconds: float) -> dict[str, Any]:
    def rate(count: int | None) -> float | None:
        return count / row.seconds / 1e9 if count and row.seconds > 0 else None

    moved, flop = (row.bytes, row.flop) if row.calls else (None, None)
    return {
        "operator": key.operator,
        "direction": key.direction,
        "class": key.kind,
        "calls": row.calls,
        "calls_per_step": row.calls / steps,
        "seconds": row.seconds,
        "seconds_per_step": row.seconds / steps,
        "share_ratio": row.seconds / seconds if seconds > 0 else 0.0,
        "bytes": moved,
        "flop": flop,
        "gb_per_s": rate(moved),
        "gflop_per_s": rate(flop),
    }


def _rate(tier: Tier, access: Access) -> float | None:
    """GB/s by the user's calibration, None without one."""
    try:
        return bandwidth(tier, access, numba.get_num_threads()).gb_per_s if tier.provenance == "measured" else None
    except UnknownRateError:
        return None
