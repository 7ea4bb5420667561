"""Config files of the user's own, in the folder that --config-dir names: they hold values, and run nothing.

Hydra instantiates what its own section names (`hydra.callbacks`, loggers), so a config of others must not reach it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gnnrec.errors import ConfigError

WORDS = ("hydra", "_target_")


def check(args: Sequence[str]) -> None:
    """Raise a ConfigError where a file of a folder that these arguments add mentions Hydra's section or code to run.

    Args:
        args: of the command line.
    """
    for place, arg in enumerate(args):
        option, _, value = arg.partition("=")
        if option.lstrip("+~") == "hydra.searchpath":
            raise ConfigError("cannot be set", where=option, remedy="Name the folder with --config-dir DIR")
        if option in ("-cd", "--config-dir"):
            folder = Path(value or "".join(args[place + 1 : place + 2]))
            for path in _below(folder):
                words = list(path.relative_to(folder).parts) + ([] if path.is_dir() else _words(path))
                if named := next((word for word in WORDS if any(word in text.lower() for text in words)), None):
                    remedy = "Take it out, and give options of Hydra's on the command line"
                    raise ConfigError(f"mentions {named!r}, which could run code", where=str(path), remedy=remedy)


def _below(folder: Path) -> Iterator[Path]:
    """The config files of a folder, through links as Hydra goes. Of a folder that has several names the files come
    under one of these, and for the others itself."""
    seen = {os.path.realpath(folder)}
    for path, names, files in os.walk(folder, followlinks=True):
        yield from (Path(path, name) for name in sorted(files) if name.endswith((".yaml", ".yml")))
        for name in sorted(names):
            real = os.path.realpath(os.path.join(path, name))
            if real in seen:
                names.remove(name)
                yield Path(path, name)
            seen.add(real)
        names.sort()


def _words(file: Path) -> list[str]:
    """Where a config file may name a section or code: its headers, keys and texts."""
    import yaml

    try:
        text = file.read_text()
        headers = [line for line in text.splitlines() if line.lstrip().startswith("#") and "@package" in line]
        return [*headers, *_strings(list(yaml.safe_load_all(text)))]
    except (OSError, ValueError, yaml.YAMLError) as error:
        found = " ".join(str(error).split())
        raise ConfigError(f"cannot be read: {found}", where=str(file), remedy="Correct or remove it") from error


def _strings(value: Any) -> Iterator[str]:
    """All keys and texts of nested values."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield str(key)
            yield from _strings(entry)
    elif isinstance(value, list | tuple | set):
        for entry in value:
            yield from _strings(entry)
    elif isinstance(value, str):
        yield value
