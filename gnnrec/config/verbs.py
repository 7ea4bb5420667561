"""What the verbs besides `train` are told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from gnnrec.config.checks import at_least, cutoffs, one_of
from gnnrec.config.data import ColumnsConfig, DataConfig
from gnnrec.device import NAMES as DEVICES
from gnnrec.errors import ConfigError

DTYPES = ("float32", "float64", "bfloat16", "float16")


@dataclass
class EvaluateConfig:
    """What `gnnrec evaluate` is told."""

    run: list[str] = field(default_factory=list)
    k: list[int] | None = None
    out: str | None = None
    threads: int | None = None
    device: str = "auto"

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used."""
        if not self.run:
            raise _no_run()
        if self.k is not None:
            cutoffs("k", self.k)
        at_least("threads", self.threads, 1)
        one_of("device", self.device, DEVICES)


@dataclass
class RecommendConfig:
    """What `gnnrec recommend` is told."""

    run: str | None = None
    users: str | None = None
    items: str | None = None
    history: str | None = None
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    k: int = 20
    exclude_seen: bool = True
    out: str | None = None
    threads: int | None = None
    device: str = "auto"

    def validate(self, verb: str) -> None:
        """Raise a ConfigError for a value that cannot be used, or has no effect with this verb."""
        if self.run is None:
            raise _no_run()
        effective = {
            "": {"users", "k", "exclude_seen"},
            "new_users": {"history", "columns", "k"},
            "similar_items": {"items", "k"},
            "embeddings": set[str](),
        }
        for name in sorted(set().union(*effective.values()) - effective[verb]):
            if getattr(self, name) != getattr(RecommendConfig(), name):
                command = f"gnnrec recommend {verb}".strip()
                raise ConfigError(f"has no effect on `{command}`", where=name, remedy="Leave it out")
        if verb == "new_users" and self.history is None:
            raise ConfigError("is not set", where="history", remedy="Give a table with the columns user and item")
        if verb == "embeddings" and self.out is None:
            raise ConfigError("is not set", where="out", remedy="Give a folder for users.parquet and items.parquet")
        at_least("k", self.k, 1)
        at_least("threads", self.threads, 1)
        one_of("device", self.device, DEVICES)


@dataclass
class ReportConfig:
    """What `gnnrec report` is told."""

    run: list[str] = field(default_factory=list)
    sweep: str | None = None
    out: str | None = None

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used."""
        if self.run and self.sweep is not None:
            raise ConfigError("is set beside run", where="sweep", remedy="Give one of them")
        if not self.run and self.sweep is None:
            raise _no_run()
        if self.out is None:
            return
        if Path(self.out).suffix != ".html":
            raise ConfigError(f"is {self.out!r}", where="out", remedy="Give a name that ends in .html")
        if not (folder := Path(self.out).parent).is_dir():
            found = f"is {self.out!r}, but there is no folder {str(folder)!r}"
            raise ConfigError(found, where="out", remedy="Create it")


@dataclass
class TuneConfig:
    """What `gnnrec tune` is told."""

    data: DataConfig = field(default_factory=DataConfig)
    operators: list[str] | None = None
    dims: list[int] = field(default_factory=lambda: [64])
    heads: int = 4
    dtypes: list[str] = field(default_factory=lambda: ["float32"])
    batches: list[int] = field(default_factory=lambda: [65_536])
    ks: list[int] = field(default_factory=lambda: [20])
    out: str | None = None

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used."""
        self.data.validate()
        at_least("heads", self.heads, 1)
        for dim in self.dims:
            at_least("dims", dim, 1)
            if dim % self.heads:
                raise ConfigError(f"is {dim}", where="dims", remedy=f"It must be a multiple of heads={self.heads}")
        for dtype in self.dtypes:
            one_of("dtypes", dtype, DTYPES)
        for name in ("batches", "ks"):
            for number in getattr(self, name):
                at_least(name, number, 1)


@dataclass
class CatalogConfig:
    """What `gnnrec data` is told."""

    name: str | None = None
    root: str | None = None


def _no_run() -> ConfigError:
    return ConfigError("is not set", where="run", remedy="Add run=DIR, the directory that a training left")
