"""Config files of the user's own, in the folder that --config-dir names: they hold values, and run nothing.

Hydra instantiates what its own section names (`hydra.callbacks`, loggers), so a config of others must not reach it.
"""

from __future__ import annotations

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
            for file in sorted(found for found in folder.rglob("*") if found.suffix in (".yaml", ".yml")):
                _check_file(file, folder)


def _check_file(file: Path, folder: Path) -> None:
    import yaml

    try:
        text = file.read_text()
        headers = [line for line in text.splitlines() if line.lstrip().startswith("#") and "@package" in line]
        words = [*file.relative_to(folder).parts, *headers, *_strings(list(yaml.safe_load_all(text)))]
    except (OSError, ValueError, yaml.YAMLError) as error:
        found = " ".join(str(error).split())
        raise ConfigError(f"cannot be read: {found}", where=str(file), remedy="Correct or remove it") from error
    if named := next((word for word in WORDS if any(word in text.lower() for text in words)), None):
        remedy = "Take it out, and give options of Hydra's on the command line"
        raise ConfigError(f"mentions {named!r}, which could run code", where=str(file), remedy=remedy)


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
