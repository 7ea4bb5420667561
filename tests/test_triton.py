"""The Triton kernels without a GPU, in processes of their own: interpreted against the oracles, and compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gnnrec import ops

TESTS = Path(__file__).parent
OPERATORS = [pytest.param(op, id=op.name) for op in ops.OPS]
OTHERS = [file.name for file in sorted((TESTS / "interpreter").glob("test_*.py")) if file.name != "test_walk.py"]
REGISTERS = 255  # of a thread at the most
SHARED = 164 << 10  # bytes of a program at the most, compute capability 8.0


def interpreted(*arguments: str) -> None:
    """Run tests of tests/interpreter; what fails there is shown here."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=TESTS / "interpreter", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " skipped" not in done.stdout


@pytest.mark.parametrize("op", OPERATORS)
def test_the_walk_through_the_interpreter(op):
    interpreted("test_walk.py", f"--operator={op.name}")


@pytest.mark.parametrize("file", OTHERS)
def test_through_the_interpreter(file):
    interpreted(file)


def compiled(operator: str) -> list[dict]:
    """What the compiler made of every kernel that the operator launches, for compute capability 8.0 and 9.0."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", str(TESTS / "compiled.py"), operator]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("op", OPERATORS)
def test_every_kernel_compiles_for_both_architectures(op):
    """Without spills, within a program's shared memory, with loads of whole vectors."""
    rows = compiled(op.name)
    assert {row["architecture"] for row in rows} == {80, 90}
    spilled = [row for row in rows if row["spilled_bytes"]]
    assert not spilled, json.dumps(spilled, indent=1)
    assert all(0 < row["registers"] <= REGISTERS for row in rows)
    assert all(row["shared_bytes"] <= SHARED for row in rows)
    # Rows of 64 numbers are loaded 16 bytes at a time.
    wide = [row for row in rows if row["constants"].get("dim") == "64" and row["pointers"].get("x") == "*fp32"]
    assert all(any("v4" in load for load in row["loads"]) for row in wide), json.dumps(wide, indent=1)
