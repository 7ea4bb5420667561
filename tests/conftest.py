"""Fixtures that several test files share."""

from __future__ import annotations

import gc
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# The first example of many tests compiles a kernel.
hypothesis.settings.register_profile("no_deadline", deadline=None)
hypothesis.settings.load_profile("no_deadline")

# Compilers make millions of objects, beside torch's that stay: looking through them took an eighth of the time.
gc.set_threshold(200_000, 20, 100)

# Before numba is imported: on a machine with one core, tests still compare one thread with two.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line does
os.environ.setdefault("NUMBA_NUM_THREADS", str(max(2, len(os.sched_getaffinity(0)))))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One process for all tests of an operator or a file: what it has compiled, the others find.

    By the tests' names: pytest 9.2 does not show the xdist_group that xdist 3.8 adds to them.
    """
    if config.getvalue("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByOperator(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return scope(nodeid)

    return ByOperator(config, log)


def scope(nodeid: str) -> str:
    """What a test shares its process with. Those of test_triton.py have one of their own."""
    file, _, test = nodeid.partition("::")
    if Path(file).name == "test_ops.py" and "[" in test:
        return f"{file}::{re.split('[]-]', test.partition('[')[2])[0]}"
    return nodeid if Path(file).name == "test_triton.py" else file


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of the real data sets."""
    root = os.environ.get("GNNREC_DATA")
    if not root:
        pytest.skip("GNNREC_DATA is not set; it names the folder where the real data sets lie")
    return Path(root)


@pytest.fixture(scope="session")
def thread_counts() -> list[int]:
    """Numbers of threads between which results must not differ, 1 first."""
    import numba

    return sorted({1, 2, numba.config.NUMBA_NUM_THREADS})


@pytest.fixture(scope="session")
def peak_memory() -> Callable[[Callable[[], Any]], tuple[Any, int]]:
    """Calls a function; returns its result and by how many bytes the process's resident memory rose at the most.

    Arrays of 32 MiB and more come from the system and count in full; small ones may reuse memory that was free already.
    """
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("this system does not let a process reset the peak of its resident memory")

    from gnnrec import process

    def resident(kind: str) -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split(f"{kind}:")[1].split()[0]) * 1024

    def measure(function: Callable[[], Any]) -> tuple[Any, int]:
        process.trim()
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        return function(), resident("VmHWM") - before

    return measure


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Fresh memory holds NaN, or a number no result has. Returns the list of what was handed out."""
    import numpy as np
    import torch

    handed_out = []

    def poisoned(make: Callable[..., Any]) -> Callable[..., Any]:
        def fresh(*args: Any, **kwargs: Any) -> Any:
            memory = make(*args, **kwargs)
            floating = memory.is_floating_point() if isinstance(memory, torch.Tensor) else memory.dtype.kind == "f"
            memory[...] = math.nan if floating else -77
            handed_out.append(memory)
            return memory

        return fresh

    for module, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty"), (np, "empty")):
        monkeypatch.setattr(module, name, poisoned(getattr(module, name)))
    return handed_out
