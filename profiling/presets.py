"""Settings of a tool: its YAML file, a preset of it, and `key=value` of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from gnnrec.config import fill, from_yaml
from gnnrec.config.checks import did_you_mean
from gnnrec.errors import ConfigError

T = TypeVar("T")


def settings(schema: type[T], file: Path, overrides: Sequence[str]) -> T:
    """The file with its preset and these overrides, as a dataclass; not validated.

    Raises:
        ConfigError: an unknown key or preset, a value of a wrong type.
    """
    try:
        given: Any = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
    except (YAMLError, OmegaConfBaseException) as error:
        remedy = "Give KEY=VALUE, lists as KEY=[a,b]"
        raise ConfigError(f"cannot be read: {error}", where=" ".join(overrides), remedy=remedy) from error
    values = from_yaml(file)
    presets, preset = values.pop("presets"), str(given.get("preset", values["preset"]))
    if preset not in presets:
        raise ConfigError(f"is {preset!r}", where="preset", remedy=did_you_mean(preset, list(presets)))
    merged: Any = OmegaConf.to_container(OmegaConf.merge(values, presets[preset], given))
    return fill(schema, merged)


def not_empty(where: str, values: Sequence[Any]) -> None:
    """Raise a ConfigError for an empty list."""
    if not values:
        raise ConfigError("is empty", where=where, remedy="Give at least one")
