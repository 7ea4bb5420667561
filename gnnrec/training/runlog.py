"""What a run tells: `RunLog` passes it on to loggers, one of which keeps events.jsonl. Facts about the machine."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import mmap
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from gnnrec import process
from gnnrec.errors import CheckpointError, GnnrecError, Interrupted, Pruned
from gnnrec.memtier import cgroup
from gnnrec.storage import atomic_write, storage_errors

if TYPE_CHECKING:
    import torch

_PACKAGES = ("gnnrec", "torch", "numpy", "numba", "hydra-core")
_GPU_PACKAGES = ("triton",)

Phase = Literal["loading", "training", "validating", "saving", "stopping", "computing", "testing"]
Status = Literal["finished", "interrupted", "pruned", "failed"]


@dataclass(frozen=True)
class Progress:
    """Where a training is.

    Args:
        step, epoch: that are done.
        steps, epochs: at the end, unless validation ends it before.
        loss: of the latest step.
        best, best_epoch: metrics of the best validation so far, and its epoch; empty and 0 before one.
        moved: bytes read and written so far, by the tier that is streamed from.
    """

    step: int
    steps: int
    epoch: int
    epochs: int
    loss: float
    best: Mapping[str, float] = field(default_factory=dict)
    best_epoch: int = 0
    moved: Mapping[str, tuple[int, int]] = field(default_factory=dict)


class Logger:
    """The protocol: what anything is told that wants to know of a run, in this order, by the thread that trains.

    A subclass leaves out what it has no use for. What it raises ends the run.
    """

    def start(self, config: Mapping[str, Any], run_dir: Path) -> None:
        """The run begins: its composed configuration, and its directory."""

    def phase(self, phase: Phase) -> None:
        """From now on it does this. Also called by a signal's handler, in between."""

    def steps(self, progress: Progress) -> None:
        """One step is done, or on a GPU several."""

    def event(self, event: str, fields: Mapping[str, Any]) -> None:
        """Something for the records: start, settings, epoch, stopped, pruned, interrupted or end."""

    def close(self, status: Status) -> None:
        """The run is over; also called where `start` never was."""


class RunLog:
    """Passes on to loggers what a run tells. A context manager that closes them, the last one first.

    Args:
        run_dir: the run's directory, for `EventsFile`, which is told before all others; None keeps no records.
        loggers: the others.

    Raises:
        StorageError: here and in the methods: no space, no permission, an I/O error.
    """

    def __init__(self, run_dir: str | os.PathLike[str] | None = None, loggers: Sequence[Logger] = ()) -> None:
        self._loggers = [*([] if run_dir is None else [EventsFile(run_dir)]), *loggers]

    def start(self, config: Mapping[str, Any], run_dir: Path) -> None:
        """As Logger.start."""
        for logger in self._loggers:
            logger.start(config, run_dir)

    def phase(self, phase: Phase) -> None:
        """As Logger.phase."""
        for logger in self._loggers:
            logger.phase(phase)

    def steps(self, progress: Progress) -> None:
        """As Logger.steps."""
        for logger in self._loggers:
            logger.steps(progress)

    def event(self, event: str, **fields: Any) -> None:
        """As Logger.event; fields are numbers, strings, arrays, dicts."""
        for logger in self._loggers:
            logger.event(event, fields)

    def close(self, status: Status = "finished") -> None:
        """Close every logger, whatever the others do."""
        with contextlib.ExitStack() as stack:
            for logger in self._loggers:
                stack.callback(logger.close, status)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            return self.close()
        stopped = isinstance(error, Interrupted | KeyboardInterrupt | SystemExit)
        with contextlib.suppress(GnnrecError):  # must not hide what failed before
            self.close("pruned" if isinstance(error, Pruned) else "interrupted" if stopped else "failed")
        return None


class EventsFile(Logger):
    """`events.jsonl`, one JSON object a line.

    Each event reaches the operating system at once, in one write, so a killed process loses at most the line it was
    writing; such a torn line is cut off when the file is opened again. A NaN becomes null, infinities become the
    strings "Infinity" and "-Infinity": every line is valid JSON.

    Args:
        run_dir: the run's directory; created where missing.
    """

    def __init__(self, run_dir: str | os.PathLike[str]) -> None:
        self.path = Path(run_dir, "events.jsonl")
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what a full disk refused is not tried again, and complained of again, when the file is closed.
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - open as long as this log
            self._file.truncate(_end_of_whole_lines(self.path.read_bytes()))

    def event(self, event: str, fields: Mapping[str, Any]) -> None:
        """Append an event with the time (seconds since 1970) and its fields."""
        record = {"event": event, "time": time.time(), **fields}
        line = memoryview(_json(record).encode() + b"\n")
        with storage_errors(self.path):
            while line:
                line = line[self._file.write(line) :]

    def close(self, status: Status) -> None:
        """Close the file."""
        self._file.close()


def write_summary(run_dir: Path, summary: Mapping[str, Any]) -> None:
    """Write `summary.json`: the old one or the whole new one is there, also after a crash."""
    atomic_write(run_dir / "summary.json", (_json(summary, indent=2) + "\n").encode())


def read_events(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The events of an `events.jsonl`, without a torn last line.

    Raises:
        CheckpointError: the file cannot be read, or a line in it is not an event; with the line's number.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        remedy = "Give the run directory of a training that has started"
        raise CheckpointError(f"cannot be read: {error.strerror}", where=str(path), remedy=remedy) from error
    events = []
    for number, line in enumerate(data[: _end_of_whole_lines(data)].splitlines(), start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or "event" not in record:
            found = f"is not an event: {line[:80].decode(errors='replace')!r}"
            raise CheckpointError(found, where=f"{path}, line {number}", remedy="Remove this line")
        events.append(record)
    return events


def _end_of_whole_lines(data: bytes) -> int:
    return data.rfind(b"\n") + 1


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(_plain(value), allow_nan=False, indent=indent)


def _plain(value: Any) -> Any:
    """The value in JSON's types. Arrays, tensors and their scalars all have `tolist`."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return value


def machine() -> dict[str, Any]:
    """The machine of this process.

    `cpu` model, `cores` it may run on, `threads` of the operators and `torch_threads`, `ram_bytes`, `os`, and, where a
    control group limits it, `memory_limit_bytes`.
    """
    import numba
    import torch

    facts: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": numba.get_num_threads(),
        "torch_threads": torch.get_num_threads(),
        "ram_bytes": _ram_bytes(),
        "os": platform.platform(),
    }
    limit = cgroup.memory_limit()
    if limit is not None and limit < facts["ram_bytes"]:
        facts["memory_limit_bytes"] = limit
    return facts


def memory_bytes() -> int:
    """What this process may use of memory, in bytes: all of it, or what a control group allows."""
    return min(_ram_bytes(), cgroup.memory_limit() or _ram_bytes())


def _ram_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cpu_model() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions(*, gpu: bool = False) -> dict[str, str]:
    """Versions of Python and of the packages that decide a result, and gnnrec's commit where it runs from a checkout.

    The commit ends in `-dirty` where tracked files differ from it. With `gpu` also triton's, and that of CUDA.
    """
    found = {"python": platform.python_version()}
    if gpu:
        import torch

        found["cuda"] = str(torch.version.cuda)
    for package in _PACKAGES + (_GPU_PACKAGES if gpu else ()):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    root = Path(__file__).resolve().parents[2]
    if (root / ".git").exists():  # not a repository further up, which may be the user's own
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):  # no git, or a repository that it refuses
            found["commit"] = subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
    return found


def device_facts(device: torch.device) -> dict[str, Any]:
    """`device` (cpu or cuda) and `device_name`; of a GPU also `peak_gpu_bytes`, the most that tensors have held."""
    import torch

    if device.type != "cuda":
        return {"device": device.type, "device_name": _cpu_model()}
    name, peak = torch.cuda.get_device_name(device), torch.cuda.max_memory_allocated(device)
    return {"device": device.type, "device_name": name, "peak_gpu_bytes": peak}


def peak_rss_bytes() -> int:
    """The most resident memory this process has had, in bytes. A forked process starts from its parent's."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_rss() -> None:
    """Let `peak_rss_bytes` count from now on, where the system allows it: of the jobs of a sweep each has its own.

    What the job before has freed goes back to the system first, so that memory which this one uses again counts.
    """
    process.trim()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def rss_bytes() -> int:
    """The resident memory of this process now, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def gpu_bytes() -> tuple[int, int] | None:
    """What tensors hold of the GPU's memory, and all of that; None where this process uses none."""
    import torch

    if not torch.cuda.is_initialized():
        return None
    return torch.cuda.memory_allocated(), torch.cuda.get_device_properties().total_memory
