"""What a run leaves in its directory beside checkpoints (events.jsonl, summary.json), and what it shows meanwhile."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, SupportsFloat, TextIO

from gnnrec.errors import CheckpointError
from gnnrec.memtier import cgroup
from gnnrec.storage import atomic_write, storage_errors

if TYPE_CHECKING:
    import rich.progress
    import torch

_PACKAGES = ("gnnrec", "torch", "numpy", "numba", "hydra-core")
_GPU_PACKAGES = ("triton",)
_REFRESH_SECONDS = 0.1


class RunLog:
    """The records of a run: `events.jsonl`, one JSON object a line, and `summary.json`.

    Each event reaches the operating system at once, in one write, so a killed process loses at most the line it was
    writing; such a torn line is cut off when the log is opened again. A NaN becomes null, infinities become the strings
    "Infinity" and "-Infinity": every line is valid JSON.

    Args:
        run_dir: the run's directory; created where missing.

    Raises:
        StorageError: here and in the methods: no space, no permission, an I/O error.
    """

    def __init__(self, run_dir: str | os.PathLike[str]) -> None:
        self.run_dir = Path(run_dir)
        self.path = self.run_dir / "events.jsonl"
        with storage_errors(self.path):
            self.run_dir.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what a full disk refused is not tried again, and complained of again, when the file is closed.
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - open as long as this log
            self._file.truncate(_end_of_whole_lines(self.path.read_bytes()))

    def event(self, event: str, **fields: Any) -> None:
        """Append an event with the time (seconds since 1970) and the given fields: numbers, strings, arrays, dicts."""
        record = {"event": event, "time": time.time()} | fields
        line = memoryview(_json(record).encode() + b"\n")
        with storage_errors(self.path):
            while line:
                line = line[self._file.write(line) :]

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`: the old one or the whole new one is there, also after a crash."""
        atomic_write(self.run_dir / "summary.json", (_json(summary, indent=2) + "\n").encode())

    def close(self) -> None:
        """Close the log."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
        "ram_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "os": platform.platform(),
    }
    limit = cgroup.memory_limit()
    if limit is not None and limit < facts["ram_bytes"]:
        facts["memory_limit_bytes"] = limit
    return facts


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
    """Let `peak_rss_bytes` count from now on, where the system allows it: of the jobs of a sweep each has its own."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


class Progress:
    """How far training is: a bar with loss, rate and time left on a terminal, else only the lines given to `line`.

    Args:
        total_steps: the number of steps at the end.
        initial: the steps done before, by the run that this one resumes.
        stream: where to write; standard output by default.
    """

    def __init__(self, total_steps: int, *, initial: int = 0, stream: TextIO | None = None) -> None:
        self.total_steps, self.done = total_steps, initial
        self._stream = stream or sys.stdout
        self._loss: SupportsFloat | None = None
        self._next = 0.0
        self._bar: rich.progress.Progress | None = None

    def __enter__(self) -> Self:
        if self._stream.isatty() and os.environ.get("TERM") != "dumb":
            self._bar = _bar(self._stream)
            self._bar.add_task("", total=self.total_steps, completed=self.done, loss="", rate="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._show(self._bar)
            self._bar.stop()
            self._bar = None

    def advance(self, steps: int = 1, loss: SupportsFloat | None = None) -> None:
        """Count `steps` more. A loss that is a tensor is read when the bar is drawn: at most ten times a second."""
        self.done += steps
        self._loss = loss
        if self._bar is not None and time.monotonic() >= self._next:
            self._show(self._bar)
            self._next = time.monotonic() + _REFRESH_SECONDS

    def line(self, text: str) -> None:
        """Write a line of text, above the bar where there is one."""
        if self._bar is not None:
            self._bar.console.out(text, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def _show(self, bar: rich.progress.Progress) -> None:
        (task,) = bar.tasks
        bar.update(
            task.id,
            completed=self.done,
            loss="" if self._loss is None else f"loss {float(self._loss):.4f}",
            rate="" if task.speed is None else f"{task.speed:.1f} steps/s",
        )
        bar.refresh()


def _bar(stream: TextIO) -> rich.progress.Progress:
    import rich.console
    from rich import progress

    return progress.Progress(
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[loss]}"),
        progress.TextColumn("{task.fields[rate]}"),
        progress.TimeRemainingColumn(),
        progress.TextColumn("left"),
        console=rich.console.Console(file=stream),
        auto_refresh=False,  # no thread: `advance` draws
    )
