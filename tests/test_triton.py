"""The Triton kernels compiled without a GPU, in a process of their own. tests/interpreter runs them without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gnnrec import ops

TESTS = Path(__file__).parent
OPERATORS = [pytest.param(op, id=op.name) for op in ops.OPS]
REGISTERS = 255  # of a thread at the most
SHARED = 164 << 10  # bytes of a program at the most, compute capability 8.0


@pytest.fixture(scope="session")
def compiled() -> Iterator[Callable[[str], list[dict]]]:
    """What the compiler made of every kernel that an operator launches, for compute capability 8.0 and 9.0."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", str(TESTS / "compiled.py")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as compiler:

        def rows(operator: str) -> list[dict]:
            print(operator, file=compiler.stdin, flush=True)
            answer = compiler.stdout.readline()
            assert answer, f"the compiler ended at {operator}: its message is in the captured stderr"
            return json.loads(answer)

        yield rows
        compiler.stdin.close()


@pytest.mark.parametrize("op", OPERATORS)
def test_every_kernel_compiles_for_both_architectures(op, compiled):
    """Without spills, within a program's shared memory, with loads of whole vectors."""
    rows = compiled(op.name)
    assert not [row for row in rows if "error" in row]
    assert {row["architecture"] for row in rows} == {80, 90}
    spilled = [row for row in rows if row["spilled_bytes"]]
    assert not spilled, json.dumps(spilled, indent=1)
    assert all(0 < row["registers"] <= REGISTERS for row in rows)
    assert all(row["shared_bytes"] <= SHARED for row in rows)
    # Rows of 64 numbers are loaded 16 bytes at a time.
    wide = [row for row in rows if row["constants"].get("dim") == "64" and row["pointers"].get("x") == "*fp32"]
    assert all(any("v4" in load for load in row["loads"]) for row in wide), json.dumps(wide, indent=1)
