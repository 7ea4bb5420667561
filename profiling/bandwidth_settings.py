"""What bandwidth.py is told: bandwidth.yaml, a preset of it, and the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import presets
from presets import not_empty

from gnnrec.config import SimulateConfig
from gnnrec.config.checks import at_least, one_of, positive, within
from gnnrec.errors import ConfigError
from gnnrec.memtier import measure_file
from gnnrec.memtier.files import BLOCK
from gnnrec.memtier.measure_memory import thread_counts
from gnnrec.memtier.tiers import KINDS
from gnnrec.units import in_bytes, parse_bytes

FILE = Path(__file__).with_name("bandwidth.yaml")
# Rows that are read and written in turn.
OPS = {"read": (1, 0), "write": (0, 1), "write_nt": (0, 1), "copy": (1, 1), "mix_2_1": (2, 1), "mix_3_1": (3, 1)}
LOADED_OPS = tuple(op for op, (reads, _) in OPS.items() if reads)
PATTERNS = ("sequential", "random", "strided")
LINE = 64  # bytes: rows are made of whole cache lines
LARGEST_PIECE = 1024  # bytes that a kernel takes at a time; larger rows are several of them


@dataclass
class Settings:
    """See bandwidth.yaml. Sizes there may be words; the properties give bytes."""

    preset: str
    out: str
    tables: str | None
    budget: float
    tiers: list[str]
    folders: list[str]
    ops: list[str]
    patterns: list[str]
    sizes: list[str]
    threads: list[int]
    huge_pages: bool
    file_sizes: list[str]
    file_threads: list[int]
    working_sets: list[str]
    loaded_ops: list[str]
    delays: list[float]
    run_seconds: float
    simulate: SimulateConfig = field(default_factory=SimulateConfig)

    @property
    def row_bytes(self) -> list[int]:
        """Of the matrix of memory."""
        return [parse_bytes("sizes", size) for size in self.sizes]

    @property
    def block_bytes(self) -> list[int]:
        """Of the matrix of files."""
        return [parse_bytes("file_sizes", size) for size in self.file_sizes]

    @property
    def chased_bytes(self) -> list[int]:
        """Of the pointer chases; empty for the usual ones."""
        return [parse_bytes("working_sets", size) for size in self.working_sets]

    @property
    def slower(self) -> tuple[float, float, float] | None:
        """GB/s of reading and writing and microseconds of latency of a simulated device; None without one."""
        speeds = self.simulate.read_gb_per_s, self.simulate.write_gb_per_s
        return None if None in speeds else (*speeds, self.simulate.latency_us)  # type: ignore[return-value]

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used, or has no effect."""
        positive("budget", self.budget)
        positive("run_seconds", self.run_seconds)
        known = {"tiers": KINDS, "ops": tuple(OPS), "patterns": PATTERNS, "loaded_ops": LOADED_OPS}
        for name, values in known.items():
            for value in getattr(self, name):
                one_of(name, value, values)
        for name in ("tiers", "ops", "patterns", "sizes", "file_sizes", "file_threads"):
            not_empty(name, getattr(self, name))
        for count in self.threads:
            within("threads", count, 1, thread_counts()[0])
        for delay in self.delays:
            at_least("delays", delay, 0)
        for size in self.row_bytes:
            if size % LINE or (size > LARGEST_PIECE and size % LARGEST_PIECE):
                remedy = (
                    f"A row is whole cache lines of {LINE} bytes, and beyond {LARGEST_PIECE} bytes a multiple of that"
                )
                raise ConfigError(f"is {size}", where="sizes", remedy=remedy)
        for size in self.chased_bytes:
            if size % LINE:
                raise ConfigError(f"is {size}", where="working_sets", remedy=f"Give multiples of {LINE} bytes")
        self._validate_files()

    def _validate_files(self) -> None:
        for size in self.block_bytes:
            if size % BLOCK or size > measure_file.LARGEST:
                remedy = f"Give multiples of {BLOCK} bytes up to {in_bytes(measure_file.LARGEST)}"
                raise ConfigError(f"is {size}", where="file_sizes", remedy=remedy)
        for count in self.file_threads:
            within("file_threads", count, 1, max(measure_file.THREADS))
        self.simulate.validate()
        if self.slower and "file" not in self.tiers:
            remedy = "Only files are slowed down: add file to tiers, or leave it out"
            raise ConfigError("has no effect", where="simulate", remedy=remedy)


def settings(overrides: Sequence[str] = ()) -> Settings:
    """bandwidth.yaml with its preset and these `key=value`.

    Raises:
        ConfigError: an unknown key or preset, a value that cannot be used.
    """
    found = presets.settings(Settings, FILE, overrides)
    found.validate()
    return found
