"""Where tensors of training go, and what the verbs about memory are told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gnnrec import extensions
from gnnrec.config.checks import at_least, mapping, one_of, positive
from gnnrec.errors import ConfigError
from gnnrec.units import parse_bytes

MODES = ("auto", "dram", "direct", "stream")
STREAMED = ("auto", "stream")


@dataclass
class SimulateConfig:
    """A slower device, made of a faster one: every number it touches is stamped SIMULATED."""

    read_gb_per_s: float | None = None
    write_gb_per_s: float | None = None
    latency_us: float = 0.0

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used, or has no effect."""
        speeds = {"read_gb_per_s": self.read_gb_per_s, "write_gb_per_s": self.write_gb_per_s}
        for name, speed in speeds.items():
            if speed is not None:
                positive(f"memory.simulate.{name}", speed)
            elif any(value is not None for value in speeds.values()) or self.latency_us:
                raise ConfigError("is not set", where=f"memory.simulate.{name}", remedy="A device needs both speeds")
        at_least("memory.simulate.latency_us", self.latency_us, 0)


@dataclass
class CustomTierConfig:
    """A tier of a user's own package, for what is streamed."""

    path: str | None = None
    options: Any = None  # dict[str, Any] | None

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used, or has no effect, or code that is not allowed."""
        if self.path is not None:
            extensions.check("memory.custom.path", self.path)
        elif self.options is not None:
            remedy = "Name the tier that takes them, or leave them out"
            raise ConfigError("has no effect without memory.custom.path", where="memory.custom.options", remedy=remedy)
        mapping("memory.custom.options", self.options)


@dataclass
class MemoryConfig:
    """Where the embeddings, the optimizer's state and the graph lie."""

    name: str = "dram"
    limit: str | None = None
    folder: str | None = None
    pin: dict[str, str | None] = field(default_factory=dict)
    panel: int | None = None
    buffer: str | None = None
    simulate: SimulateConfig = field(default_factory=SimulateConfig)
    custom: CustomTierConfig = field(default_factory=CustomTierConfig)

    @property
    def pins(self) -> dict[str, str]:
        """Tiers by the tensors that are to lie there."""
        return {tensor: tier for tensor, tier in self.pin.items() if tier is not None}

    @property
    def slower(self) -> tuple[float, float, float] | None:
        """GB/s of reading and writing and microseconds of latency of a simulated device; None without one."""
        read, write = self.simulate.read_gb_per_s, self.simulate.write_gb_per_s
        return None if read is None or write is None else (read, write, self.simulate.latency_us)

    @property
    def limit_bytes(self) -> int | None:
        """The most memory of what computes, DRAM or a GPU's, that tensors and buffers may take."""
        return None if self.limit is None else parse_bytes("memory.limit", self.limit)

    @property
    def buffer_bytes(self) -> int | None:
        """Of the staging buffers."""
        return None if self.buffer is None else parse_bytes("memory.buffer", self.buffer)

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used, or has no effect."""
        one_of("memory.name", self.name, MODES)
        _ = self.limit_bytes, self.buffer_bytes
        self.simulate.validate()
        self.custom.validate()
        if self.panel is not None and (self.panel < 16 or self.panel % 16):
            remedy = "It must be a multiple of 16: scores are summed 16 columns at a time, for equal bits at any width"
            raise ConfigError(f"is {self.panel}", where="memory.panel", remedy=remedy)
        effects = {
            "limit": ("auto", "direct", "stream"),
            "folder": ("auto", "direct", "stream"),
            "pin": ("auto", "direct", "stream"),
            "panel": STREAMED,
            "buffer": STREAMED,
            "simulate": STREAMED,
            "custom": STREAMED,
        }
        given = {name: getattr(self, name) for name in effects} | {"pin": self.pins or None, "simulate": self.slower}
        given["custom"] = self.custom.path
        for name, modes in effects.items():
            if given[name] is not None and self.name not in modes:
                remedy = f"Leave it out, or take memory={' or memory='.join(modes)}"
                raise ConfigError(f"has no effect with memory={self.name}", where=f"memory.{name}", remedy=remedy)
        if self.custom.path is not None and self.slower is not None:
            found, remedy = (
                "has no effect on memory.custom",
                "Leave one of them out: an own tier is as slow as its code",
            )
            raise ConfigError(found, where="memory.simulate", remedy=remedy)
