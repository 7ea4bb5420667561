"""Checks of single values: a message names the field, its value and the remedy."""

from __future__ import annotations

import math
from typing import Any

from gnnrec.errors import ConfigError


def did_you_mean(name: str, known: list[str]) -> str:
    """A sentence with the nearest known names, or all of them where none is near."""
    import difflib

    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"Did you mean {' or '.join(near)}?" if near else f"Known are: {', '.join(sorted(known))}"


def one_of(where: str, value: Any, known: tuple[str, ...]) -> None:
    """Raise a ConfigError, with the nearest known values, unless the value is one of these."""
    if value not in known:
        raise ConfigError(f"is {value!r}", where=where, remedy=did_you_mean(str(value), list(known)))


def within(where: str, value: float, low: float, high: float) -> None:
    """Raise a ConfigError unless low <= value <= high; NaN is outside."""
    if not low <= value <= high:
        raise ConfigError(f"is {value}", where=where, remedy=f"It must lie within {low} and {high}")


def at_least(where: str, value: float | None, low: float) -> None:
    """Raise a ConfigError unless the value is at least `low`, or None."""
    if value is not None and not value >= low:
        raise ConfigError(f"is {value}", where=where, remedy=f"It must be at least {low}")


def positive(where: str, value: float) -> None:
    """Raise a ConfigError unless the value is above 0 and finite."""
    if not 0 < value < math.inf:
        raise ConfigError(f"is {value}", where=where, remedy="It must be above 0, and finite")


def cutoffs(where: str, ks: list[int]) -> None:
    """Raise a ConfigError unless there is a cut-off K, and each is at least 1."""
    if not ks:
        raise ConfigError("is empty", where=where, remedy="Give at least one cut-off, such as [20]")
    for k in ks:
        at_least(where, k, 1)


def mapping(where: str, value: Any) -> None:
    """Raise a ConfigError unless the value is None or has names as keys."""
    if value is not None and not (isinstance(value, dict) and all(str(key).isidentifier() for key in value)):
        raise ConfigError(f"is {value!r}", where=where, remedy="Give options by their names, such as {dim: 64}")
