"""Code of a user's own package that a config names, as `my_package.models:MyModel`.

A config file alone never runs code: only packages are imported that the environment variable GNNREC_EXTENSIONS named
when the process began (comma-separated), or that Python code has allowed; what these import themselves is not called.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping
from typing import Any

from gnnrec.errors import ConfigError

VARIABLE = "GNNREC_EXTENSIONS"
_PATH = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)")
# Read once, as gnnrec is imported: what Hydra puts into the environment for a job comes from configs.
_allowed = {name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()}


def allow(package: str) -> None:
    """Let configs name code of this package, with all of its modules."""
    _allowed.add(package)


def is_path(text: str) -> bool:
    """Whether the text names code, as PACKAGE.MODULE:NAME."""
    return _PATH.fullmatch(text) is not None


def check(where: str, path: str | None) -> None:
    """Raise a ConfigError unless the path names code of an allowed package; nothing is imported.

    Args:
        where: the config field, for the message.
    """
    match = _PATH.fullmatch(path or "")
    if match is None:
        raise ConfigError(
            f"is {path!r}", where=where, remedy="Give PACKAGE.MODULE:NAME, such as my_package.models:MyModel"
        )
    _check_allowed(where, path, match[1])


def _check_allowed(where: str, path: str | None, module: str) -> None:
    parts = module.split(".")
    if not _allowed & {".".join(parts[:depth]) for depth in range(1, len(parts) + 1)}:
        listed = f"allowed are {', '.join(sorted(_allowed))}" if _allowed else "no package is allowed to"
        remedy = (
            f"If you trust its code, set the environment variable {VARIABLE}={','.join(sorted({*_allowed, parts[0]}))}"
        )
        raise ConfigError(f"is {path!r}, which would run code of {parts[0]}; {listed}", where=where, remedy=remedy)


def load(where: str, path: str | None) -> Any:
    """The class or function of this path, imported.

    Raises:
        ConfigError: it is not allowed, not there, or of a package that is not allowed and that the module imports.
            Errors within its own module pass as they are.
    """
    check(where, path)
    assert path is not None
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # of something that it imports itself
        remedy = "Install the package, or set PYTHONPATH to the folder it lies in"
        raise ConfigError(f"is {path!r}, but there is no module {error.name}", where=where, remedy=remedy) from error
    except AttributeError as error:
        if hasattr(importlib.import_module(module), name):
            raise
        raise ConfigError(f"is {path!r}, but {module} has no {name}", where=where) from error
    if not callable(found):
        raise ConfigError(f"is {path!r}, which is no class or function but a {type(found).__name__}", where=where)
    _check_allowed(where, path, str(found.__module__))
    return found


def make(
    where: str, path: str | None, needs: tuple[str, ...], options: Mapping[str, Any] | None, *args: Any, **given: Any
) -> Any:
    """What the class or function of this path makes of the arguments, and of the options that a user gives.

    Raises:
        ConfigError: as `load`; it takes other arguments, or what it makes lacks one of the attributes `needs`; an
            option is one of the arguments.
    """
    import inspect

    maker, options = load(f"{where}.path", path), options or {}
    if taken := sorted(given.keys() & options.keys()):
        remedy = "Leave it out: gnnrec gives it"
        raise ConfigError(f"is {options[taken[0]]!r}", where=f"{where}.options.{taken[0]}", remedy=remedy)
    try:
        inspect.signature(maker).bind(*args, **given, **options)
    except TypeError as error:
        remedy = f"Correct {where}.options; it is called as {maker.__name__}{inspect.signature(maker)}"
        raise ConfigError(f"{path} cannot be called: {error}", where=f"{where}.options", remedy=remedy) from error
    made = maker(*args, **given, **options)
    if missing := [name for name in needs if not hasattr(made, name)]:
        found = f"{path} makes a {type(made).__name__} without {', '.join(missing)}"
        raise ConfigError(found, where=f"{where}.path", remedy="See CONTRIBUTING.md for what it must have")
    return made
