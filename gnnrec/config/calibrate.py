"""What `gnnrec calibrate` is told."""

from __future__ import annotations

from dataclasses import dataclass, field

from gnnrec.config.checks import positive


@dataclass
class CalibrateConfig:
    """What `gnnrec calibrate` is told."""

    folders: list[str] = field(default_factory=list)
    seconds: float = 90.0
    out: str | None = None

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used."""
        positive("seconds", self.seconds)
