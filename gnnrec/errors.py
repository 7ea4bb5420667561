"""Errors that a user can mend.

Each carries three parts: what was found, where, and what to do about it. The command line prints them as one message
and ends with exit code 2; anything else that escapes is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import signal
from pathlib import Path


class GnnrecError(Exception):
    """A mistake that the user can mend.

    Args:
        found: what is wrong, with the value received.
        where: the file, line, config field or tensor it was found in.
        remedy: what to do about it.
    """

    def __init__(self, found: str, *, where: str | None = None, remedy: str | None = None) -> None:
        self.found, self.where, self.remedy = found, where, remedy
        message = f"{where}: {found}" if where else found
        super().__init__(f"{message}. {remedy}" if remedy else message)


class ConfigError(GnnrecError, ValueError):
    """A configuration value that cannot be used."""


class DataError(GnnrecError, ValueError):
    """A data file, table or split that cannot be used."""


class DownloadError(GnnrecError):
    """A data set that could not be fetched or did not verify."""


class CheckpointError(GnnrecError):
    """A checkpoint or run directory that is missing, damaged or belongs to another configuration."""


class StorageError(GnnrecError, OSError):
    """Writing failed: no space left, no permission, an I/O error."""


class Interrupted(GnnrecError):
    """SIGINT or SIGTERM ended the training; a checkpoint is written where there is a place for it."""

    def __init__(self, signum: int, checkpoint: Path | None) -> None:
        self.signum = signum
        kept = f"the state is kept in {checkpoint}" if checkpoint else "nothing is kept"
        super().__init__(f"interrupted by {signal.Signals(signum).name}; {kept}")


class Pruned(Exception):
    """The training of a search was given up, since others are better by now."""


class LoggerError(GnnrecError):
    """A package that a run was to be logged with is missing, or failed."""
