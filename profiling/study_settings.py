"""What study.py is told, and the cells that follow: study.yaml, a preset of it, and the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import presets
from presets import not_empty

from gnnrec.config import SimulateConfig
from gnnrec.config.checks import at_least, one_of, positive
from gnnrec.config.recipes import CONF

FILE = Path(__file__).with_name("study.yaml")
MODELS = ("lightgcn", "ngcf")
RUN = ("dram", "direct", "auto", "app_direct")  # placements in which steps are run
PLANNED = ("app_direct_streamed", "app_direct_in_place", "memory_mode")  # of which a plan tells


@dataclass(frozen=True)
class Cell:
    """A training in one placement."""

    model: str
    layers: int
    dim: int
    batch: int
    data: str
    placement: str

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.model}-l{self.layers}-d{self.dim}-b{self.batch}-{self.data}-{self.placement}"


@dataclass
class Centre:
    """Around which factors vary."""

    layers: int
    dim: int
    batch: int
    data: str


@dataclass
class HardwarePresets:
    """Names of files in conf/hardware."""

    app_direct: str
    memory_mode: str


@dataclass
class Settings:
    """See study.yaml."""

    preset: str
    out: str
    title: str
    every_combination: bool
    models: list[str]
    layers: list[int]
    dim: list[int]
    batch: list[int]
    data: list[str]
    placements: list[str]
    centre: Centre
    dram_share: float
    folder: str | None
    hardware: HardwarePresets
    sources: dict[str, list[str]]
    options: list[str]
    steps: int
    step_budget: float
    timeout: float
    simulate: SimulateConfig = field(default_factory=SimulateConfig)

    def validate(self) -> None:
        """Raise a ConfigError for a value that cannot be used."""
        known = {"models": MODELS, "data": tuple(self.sources), "placements": (*RUN, *PLANNED)}
        for name, values in known.items():
            for value in getattr(self, name):
                one_of(name, value, values)
        one_of("centre.data", self.centre.data, tuple(self.sources))
        for name in ("models", "layers", "dim", "batch", "data", "placements"):
            not_empty(name, getattr(self, name))
        for name in ("layers", "dim", "batch"):
            for value in getattr(self, name):
                at_least(name, value, 1)
            at_least(f"centre.{name}", getattr(self.centre, name), 1)
        for name in ("layers", "dim", "batch", "data") if self.every_combination else ():
            one_of(f"centre.{name}", str(getattr(self.centre, name)), tuple(map(str, getattr(self, name))))
        positive("dram_share", self.dram_share)
        at_least("steps", self.steps, 1)
        positive("step_budget", self.step_budget)
        positive("timeout", self.timeout)
        self.simulate.validate()
        hardware = tuple(file.stem for file in (CONF / "hardware").glob("*.yaml"))
        for name in ("app_direct", "memory_mode"):
            one_of(f"hardware.{name}", getattr(self.hardware, name), hardware)

    def cells(self) -> list[Cell]:
        """Each once, in the order in which they are measured."""
        factors = {name: getattr(self, name) for name in ("layers", "dim", "batch", "data")}
        if self.every_combination:
            every = product(self.models, *factors.values(), self.placements)
            return [Cell(*values) for values in every]
        found = []
        for model in self.models:
            centre = Cell(model, self.centre.layers, self.centre.dim, self.centre.batch, self.centre.data, "dram")
            found += [replace(centre, placement=placement) for placement in ("dram", *self.placements)]
            found += [replace(centre, **{name: value}) for name, values in factors.items() for value in values]
        return list(dict.fromkeys(found))


def settings(overrides: Sequence[str] = ()) -> Settings:
    """study.yaml with its preset and these `key=value`.

    Raises:
        ConfigError: an unknown key or preset, a value that cannot be used.
    """
    found = presets.settings(Settings, FILE, overrides)
    found.validate()
    return found
