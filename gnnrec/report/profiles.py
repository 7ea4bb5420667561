"""Where the time and the bytes of steps went, `profile.json`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gnnrec.report.fields import get, json_object, optional
from gnnrec.training.trace import DRAWS, ELEMENTS, FUSED, GEMM, IO, LOSS, OPTIMIZER, OTHER, SDDMM, SELECTION, SPMM

CLASSES = (SPMM, SDDMM, FUSED, GEMM, ELEMENTS, LOSS, OPTIMIZER, DRAWS, SELECTION, IO, OTHER)
GATHERING = (SPMM, SDDMM, FUSED, LOSS)  # whose bytes are rows from anywhere; those of others come in order


@dataclass(frozen=True)
class Operator:
    """A row of the profile: of a step, but for the rates. Bytes and operations are None where nobody counts them.

    Args:
        name, direction, kind: of the operator; direction is empty where that means nothing.
        share: of the time of the step.
        bytes, flop: by the operator's models.
    """

    name: str
    direction: str
    kind: str
    calls: float
    seconds: float
    share: float
    bytes: float | None
    flop: float | None

    @property
    def label(self) -> str:
        """For a plot or a sentence."""
        return f"{self.name}, {self.direction}" if self.direction else self.name

    @property
    def gb_per_s(self) -> float | None:
        """10^9 bytes a second."""
        return self.bytes / self.seconds / 1e9 if self.bytes and self.seconds > 0 else None

    @property
    def gflop_per_s(self) -> float | None:
        """10^9 operations a second."""
        return self.flop / self.seconds / 1e9 if self.flop and self.seconds > 0 else None

    @property
    def intensity(self) -> float | None:
        """Operations for every byte."""
        return self.flop / self.bytes if self.flop and self.bytes else None


@dataclass(frozen=True)
class Layer:
    """Seconds of a step of a layer, by its number from 1, in one direction, with all that it calls."""

    number: int
    direction: str
    seconds: float


@dataclass(frozen=True)
class Ceiling:
    """Measured rates of memory that operators work in, 10^9 bytes a second; None before a calibration."""

    tier: str
    read: float | None
    gather: float | None
    row_bytes: int


@dataclass(frozen=True)
class MeasuredRate:
    """A figure of a calibration, as `gnnrec.memtier.tiers.Rate`."""

    pattern: str
    row_bytes: int
    working_set: int
    threads: int
    gb_per_s: float
    spread: float
    count: int


@dataclass(frozen=True)
class MeasuredTier:
    """What the calibration of a tier had found. words: when and how."""

    name: str
    latency_ns: float | None
    words: str
    rates: tuple[MeasuredRate, ...]


@dataclass(frozen=True)
class Moved:
    """What was streamed of a file in a step. Seconds are those of threads, several of which work at a time."""

    file: str
    read_bytes: float
    write_bytes: float
    read_seconds: float
    write_seconds: float


@dataclass(frozen=True)
class Profile:
    """`profile.json`.

    Args:
        device: cpu or cuda.
        steps: that were recorded, from number `first` on.
        step_seconds: of one of them.
        operators: the longest first.
        layers: of models whose layers are calls of their own.
        product_type, products: 10^9 operations a second that dense products of this type reach; None: not measured.
        memory: seconds since the begin of the training and resident bytes.
    """

    device: str
    steps: int
    first: int
    step_seconds: float
    operators: tuple[Operator, ...]
    layers: tuple[Layer, ...]
    ceilings: tuple[Ceiling, ...]
    product_type: str
    products: float | None
    tiers: tuple[MeasuredTier, ...]
    moved: tuple[Moved, ...]
    memory: tuple[tuple[float, int], ...]
    peak_rss_bytes: int

    def seconds(self) -> dict[str, float]:
        """Of a step, by class, in a fixed order."""
        found = dict.fromkeys(CLASSES, 0.0)
        for operator in self.operators:
            found[operator.kind] = found.get(operator.kind, 0.0) + operator.seconds
        return {kind: seconds for kind, seconds in found.items() if seconds > 0}

    def bandwidth(self, kind: str) -> float | None:
        """The measured rate of the fastest memory, of the way in which operators of this class move their bytes."""
        rates = [ceiling.gather if kind in GATHERING else ceiling.read for ceiling in self.ceilings]
        return max((rate for rate in rates if rate), default=None)

    def is_memory_bound(self, operator: Operator) -> bool | None:
        """Whether its bytes take longer than its operations at the measured rates; None where one is not known."""
        rate = self.bandwidth(operator.kind)
        if not operator.bytes or operator.flop is None or rate is None or self.products is None:
            return None
        return operator.bytes / rate > operator.flop / self.products


def read_profile(folder: Path) -> Profile | None:
    """The profile of the run, None where it has none.

    Raises:
        CheckpointError: it is damaged.
    """
    file = folder / "profile.json"
    values, where = json_object(file), str(file)
    if values is None:
        return None
    steps = get(values, "steps", int, where)
    products = get(values, "products", dict, where)
    memory, transfers = get(values, "memory", dict, where), get(values, "transfers", dict, where)
    samples = get(memory, "timeline", list, where)
    return Profile(
        device=get(values, "device", str, where),
        steps=steps,
        first=optional(values, "first_step", int, where) or 0,
        step_seconds=get(values, "seconds_per_step", float, where),
        operators=tuple(_operator(row, max(steps, 1), where) for row in get(values, "operators", list, where)),
        layers=tuple(_layer(entry, where) for entry in get(values, "layers", list, where)),
        ceilings=tuple(_ceiling(entry, where) for entry in get(values, "ceilings", list, where)),
        product_type=get(products, "dtype", str, where),
        products=optional(products, "gflop_per_s", float, where),
        tiers=tuple(_tier(entry, where) for entry in get(values, "bandwidths", list, where)),
        moved=tuple(_moved(entry, max(steps, 1), where) for entry in get(transfers, "files", list, where)),
        memory=tuple((get(one, "seconds", float, where), get(one, "rss_bytes", int, where)) for one in samples),
        peak_rss_bytes=get(memory, "peak_rss_bytes", int, where),
    )


def _operator(row: Any, steps: int, where: str) -> Operator:
    name = get(row, "operator", str, where)
    moved, flop = (optional(row, count, int, where) for count in ("bytes", "flop"))
    return Operator(
        name=name.removeprefix("gnnrec::").removeprefix("gnnrec "),
        direction=optional(row, "direction", str, where) or "",
        kind=get(row, "class", str, where),
        calls=get(row, "calls_per_step", float, where),
        seconds=get(row, "seconds_per_step", float, where),
        share=get(row, "share_ratio", float, where),
        bytes=None if moved is None else moved / steps,
        flop=None if flop is None else flop / steps,
    )


def _layer(entry: Any, where: str) -> Layer:
    number, direction = get(entry, "layer", int, where), get(entry, "direction", str, where)
    return Layer(number, direction, get(entry, "seconds_per_step", float, where))


def _ceiling(entry: Any, where: str) -> Ceiling:
    tier, row = get(entry, "tier", str, where), get(entry, "gather_row_bytes", int, where)
    read, gather = (optional(entry, f"{way}_gb_per_s", float, where) for way in ("read", "gather"))
    return Ceiling(tier, read, gather, row)


def _tier(entry: Any, where: str) -> MeasuredTier:
    rates = tuple(_rate(rate, where) for rate in get(entry, "rates", list, where))
    latency, words = optional(entry, "latency_ns", float, where), optional(entry, "calibration", str, where)
    return MeasuredTier(get(entry, "tier", str, where), latency, words or "", rates)


def _rate(entry: Any, where: str) -> MeasuredRate:
    names = ("row_bytes", "working_set_bytes", "threads_count")
    row, within, threads = (get(entry, name, int, where) for name in names)
    speed, spread = (get(entry, name, float, where) for name in ("gb_per_s", "spread_ratio"))
    count = get(entry, "measurements_count", int, where)
    return MeasuredRate(get(entry, "pattern", str, where), row, within, threads, speed, spread, count)


def _moved(entry: Any, steps: int, where: str) -> Moved:
    names = ("read_bytes", "write_bytes", "read_seconds", "write_seconds")
    return Moved(get(entry, "file", str, where), *(get(entry, name, float, where) / steps for name in names))
