"""Tests that count what others leave behind in a process: compiled code, garbage, memory."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

VARIABLE = "GNNREC_TEST_ALONE"


def alone(test: Callable[..., None]) -> Callable[..., None]:
    """The test in a process of its own."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        if VARIABLE in os.environ:
            return test(*args, **kwargs)
        name = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", name]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")} | {
            VARIABLE: "1"
        }
        root = Path(__file__).parent.parent
        done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "100%" in done.stdout, done.stdout
        return None

    return run
