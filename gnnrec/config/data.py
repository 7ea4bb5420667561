"""The section `data`."""

from __future__ import annotations

from dataclasses import dataclass, field

from gnnrec.config.checks import at_least, one_of, within
from gnnrec.errors import ConfigError

SPLITS = ("random", "per_user", "leave_one_out", "temporal", "per_user_temporal", "per_user_order")
SOURCES = ("catalog", "files", "synthetic", "fractal")
DUPLICATES = ("first", "last", "keep")


@dataclass
class ColumnsConfig:
    """Names (or, without a header, 0-based numbers) of a table's columns; null for one that is not there."""

    user: str = "user"
    item: str = "item"
    rating: str | None = None
    timestamp: str | None = None


@dataclass
class SplitConfig:
    """How a single log is cut into training and test part."""

    by: str = "random"
    test_ratio: float = 0.2


@dataclass
class SyntheticConfig:
    """Size and shape of the generated data set."""

    num_users: int = 3000
    num_items: int = 2000
    num_interactions: int = 120000
    communities: int = 10
    popularity_exponent: float = 0.8
    noise: float = 0.1


@dataclass
class DataConfig:
    """Where interactions come from and what is done to them before training."""

    source: str = "files"
    name: str = "files"
    root: str | None = None
    format: str | None = None
    log: str | None = None
    train: str | None = None
    valid: str | None = None
    test: str | None = None
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    delimiter: str | None = None
    header: bool = True
    split: SplitConfig = field(default_factory=SplitConfig)
    min_rating: float | None = None
    k_core: int = 0
    duplicates: str = "first"
    valid_ratio: float = 0.1
    valid_by: str = "per_user"
    seed: int = 0
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    # The last four are for an expansion, source=fractal.
    base: str | None = None
    num_users: int | None = None
    num_items: int | None = None
    num_interactions: int | None = None

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used."""
        one_of("data.source", self.source, SOURCES)
        one_of("data.duplicates", self.duplicates, DUPLICATES)
        one_of("data.split.by", self.split.by, SPLITS)
        within("data.valid_ratio", self.valid_ratio, 0, 0.9)
        one_of("data.valid_by", self.valid_by, tuple(by for by in SPLITS if by != "leave_one_out"))
        within("data.split.test_ratio", self.split.test_ratio, 0.001, 0.9)
        at_least("data.k_core", self.k_core, 0)
        self._validate_expansion()
        if self.source == "files" and (self.log is None) == (self.train is None):
            raise ConfigError(
                "neither data.log nor data.train is set"
                if self.log is None
                else "both data.log and data.train are set",
                where="data",
                remedy="Give data.log=FILE for one log that is to be split, or data.train=FILE data.test=FILE",
            )
        beside = "data.test" if self.test is not None else "data.valid"
        if self.log is not None and (self.test is not None or self.valid is not None):
            raise ConfigError(
                "has no effect beside data.log, which is split",
                where=beside,
                remedy=f"Give the training part as data.train=FILE, or leave {beside} out",
            )
        if self.source == "files" and self.train is not None and self.test is None:
            raise ConfigError(
                f"data.train is {self.train!r} but data.test is not set",
                where="data",
                remedy="Add data.test=FILE, or give the whole log as data.log=FILE to have it split",
            )

    def _validate_expansion(self) -> None:
        for name in ("base", "num_users", "num_items", "num_interactions"):
            where, value = f"data.{name}", getattr(self, name)
            if self.source == "fractal" and not value:
                raise ConfigError(f"is {value!r}", where=where, remedy="Say what to expand, and to how large a graph")
            if self.source != "fractal" and value is not None:
                remedy = "Leave it out, or take data=fractal"
                raise ConfigError(f"has no effect with data.source={self.source}", where=where, remedy=remedy)
