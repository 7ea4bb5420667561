"""Plain values into checked dataclasses, and configs from and to YAML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from gnnrec.config.checks import did_you_mean
from gnnrec.errors import ConfigError

T = TypeVar("T")


def fill(schema: type[T], values: dict[str, Any], where: str = "") -> T:
    """An instance of the dataclass `schema` from plain values, converted and checked by type.

    A single value where a list is expected becomes a list of one.

    Raises:
        ConfigError: an unknown key or a value of a wrong type, with its name under `where`.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

    hints = get_type_hints(schema)
    listed = {
        name: [value] if isinstance(value, str | int | float) and "list" in _kind(hints.get(name)) else value
        for name, value in values.items()
    }
    try:
        result = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), listed))
    except OmegaConfBaseException as error:
        name = ".".join(part for part in (where, error.full_key) if part)
        if isinstance(error, ConfigKeyError | ConfigAttributeError):
            known = list(get_type_hints(error.object_type))
            raise ConfigError("unknown key", where=name, remedy=did_you_mean(str(error.key), known)) from error
        if not error.full_key:
            raise ConfigError(str(error).splitlines()[0], where=name) from error
        hint: Any = schema
        for part in re.findall(r"[a-z]\w*", error.full_key):
            hint = get_type_hints(hint)[part]
        raise ConfigError(f"is {error.value!r}", where=name, remedy=f"It must be {_kind(hint)}") from error
    assert isinstance(result, schema)
    return result


def optional(schema: type[T], values: dict[str, Any] | None, where: str) -> T | None:
    """As `fill`; None for a section that is left out."""
    return None if values is None else fill(schema, values, where)


def from_yaml(file: Path) -> dict[str, Any]:
    """The values of a config file.

    Raises:
        ConfigError: it cannot be read, or is no YAML mapping.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        values = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"cannot be read: {error}", where=str(file)) from error
    if not isinstance(values, dict):
        raise ConfigError("holds no configuration", where=str(file))
    return {str(key): value for key, value in values.items()}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested sections by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return found


def _kind(hint: Any) -> str:
    """A type in words."""
    if get_origin(hint) in (list, tuple):
        return f"a list of {_kind(get_args(hint)[0]).removeprefix('a ')}s"
    kinds = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    return " or ".join(_kind(part) for part in get_args(hint)) or kinds.get(hint, "a section with keys of its own")
