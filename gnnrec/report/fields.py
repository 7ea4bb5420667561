"""Fields of JSON objects, checked as they are read: whoever damaged a record is told where."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from gnnrec.errors import CheckpointError

T = TypeVar("T")

_KINDS = {dict: "a section", list: "a list", str: "a text", float: "a number", int: "a whole number"}

# An absolute path but for its last name: neither a part of a word, nor of another path or an address but a file's.
_FOLDERS = re.compile(
    r"(?:(?<=file:)|(?<=file://)|(?<![\w./…~:)\]]))/(?:[^\s/:,;'\"()\[\]{}]+/)*(?=[^\s/:,;'\"()\[\]{}])"
)


def elided(text: str) -> str:
    """Without the folders that absolute paths begin with: "/mnt/me/disk (stream)" becomes "…/disk (stream)". A page is
    shown to others, whom they tell about a machine and its user, but nothing about a run."""
    return _FOLDERS.sub("…/", text)


def json_object(file: Path) -> dict[str, Any] | None:
    """The object in a file, its texts `elided`; None where there is no file."""
    try:
        values = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise damaged(f"cannot be read: {error}", str(file)) from error
    if not isinstance(values, dict):
        raise damaged("holds no JSON object", str(file))
    shown: dict[str, Any] = _shown(values)
    return shown


def get(values: Any, name: str, kind: type[T], where: str) -> T:
    """A field of a JSON object, of the given kind. Whole numbers are numbers too."""
    if not isinstance(values, dict):
        raise damaged(f"has {values!r} where a section should be", where)
    if name not in values:
        raise damaged(f"has no {name!r}", where)
    value = values[name]
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise damaged(f"{name!r} is {value!r}, not {_KINDS[kind]}", where)
    return cast(T, value)


def optional(values: Mapping[str, Any], name: str, kind: type[T], where: str) -> T | None:
    """As `get`, or None where it is missing or null."""
    return None if values.get(name) is None else get(values, name, kind, where)


def _shown(value: Any) -> Any:
    """Texts and keys of a JSON value, elided; of two keys that would then be one the second stays."""
    if isinstance(value, str):
        return elided(value)
    if isinstance(value, list):
        return [_shown(one) for one in value]
    if not isinstance(value, dict):
        return value
    found: dict[str, Any] = {}
    for key, one in value.items():
        short = elided(key)
        found[key if short in found else short] = _shown(one)
    return found


def damaged(found: str, where: str) -> CheckpointError:
    """The error of a record that is not as runs write it."""
    return CheckpointError(found, where=where, remedy="Restore it from a copy, or train anew")
