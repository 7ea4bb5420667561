"""A reader: takes a file's path, returns gnnrec.Interactions."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from gnnrec import Interactions


def read_json_lines(path: Path) -> Interactions:
    """Reads a file with one object a line: {"who": ..., "what": ...}."""
    return Interactions.from_pandas(pd.read_json(path, lines=True), user="who", item="what", name=str(path))
