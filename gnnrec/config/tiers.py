"""What `gnnrec tiers` is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from gnnrec.errors import ConfigError


@dataclass
class TiersConfig:
    """The folders to look at, and where to write what was found."""

    folders: list[str] = field(default_factory=list)
    out: str | None = None

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used."""
        if self.out is not None and Path(self.out).suffix != ".json":
            raise ConfigError(f"is {self.out!r}", where="out", remedy="Give a name that ends in .json")
