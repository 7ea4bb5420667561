"""What a training shows meanwhile: a dashboard on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from gnnrec.training.runlog import Logger, Phase


def views(kind: str = "auto", stream: TextIO | None = None) -> list[Logger]:
    """The logger that shows a training.

    Args:
        kind: auto (a dashboard where a person looks on), live, plain, or quiet, for which there is none.
        stream: where to write; standard output by default.
    """
    if kind == "quiet":
        return []
    stream = stream or sys.stdout
    if kind == "live" or (kind == "auto" and _watched(stream)):
        from gnnrec.training.dashboard import Dashboard  # rich is not imported where nobody sees it

        return [Dashboard(stream)]
    return [Lines(stream)]


def _watched(stream: TextIO) -> bool:
    """Whether somebody looks at it, on a terminal that can move its cursor."""
    dumb = os.environ.get("TERM", "").lower() in ("dumb", "unknown")
    in_ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
    return stream.isatty() and not dumb and not in_ci


class Lines(Logger):
    """A line of text for each epoch.

    Args:
        stream: where to write.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._settings: Mapping[str, Any] = {}  # of the trainer

    def phase(self, phase: Phase) -> None:
        """Say what a person would otherwise wonder at."""
        if phase == "loading":
            self.line("loading kernels; the first run compiles them, in seconds, and keeps them on disk")

    def event(self, event: str, fields: Mapping[str, Any]) -> None:
        """Write the line of an epoch, or why there are no more."""
        if event == "settings":
            self._settings = fields["trainer"]
            return
        monitor = self._settings.get("monitor")
        if event == "epoch":
            scores = f"  valid {monitor} {fields['valid'][monitor]:.4f}" if monitor in fields["valid"] else ""
            self.line(f"epoch {fields['epoch']}/{self._settings['epochs']}  loss {fields['loss']:.4f}{scores}")
        elif event == "stopped":
            self.line(f"no better {monitor} for {fields['evaluations']} evaluations: stopped")

    def line(self, text: str) -> None:
        """Write a line."""
        print(text, file=self._stream, flush=True)
