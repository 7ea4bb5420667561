"""What the command line sets before torch is loaded."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
from gnnrec import process
process.prepare()
import os, resource, sys
assert "torch" not in sys.modules
print(os.environ["OMP_WAIT_POLICY"], os.environ["THP_MEM_ALLOC_ENABLE"])
import torch
faults = []
for _ in range(24):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    pair = torch.zeros(18 << 18), torch.zeros(18 << 18)  # 18 MiB each
    del pair
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(*faults)
"""


def run(**given):
    inherited = {
        k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY" and not k.startswith(("MALLOC_", "THP_"))
    }
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=inherited | given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    settings, faults = done.stdout.splitlines()
    return settings, [int(number) for number in faults.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this system's malloc is not glibc's")
def test_fresh_tensors_take_few_page_faults():
    settings, faults = run()
    assert settings == "passive 1"
    assert faults[-1] < 9216 / 4  # huge pages from the first on, without them malloc's own after a few


def test_what_the_environment_sets_stays():
    settings, faults = run(OMP_WAIT_POLICY="active", THP_MEM_ALLOC_ENABLE="0", MALLOC_TRIM_THRESHOLD_="65536")
    assert settings == "active 0"
    assert min(faults) > 1000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this system's malloc is not glibc's")
def test_what_is_freed_and_kept_goes_back_when_asked():
    script = """
from gnnrec import process
process.prepare()
from pathlib import Path
def resident(): return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20
before = resident()
blocks = [b"x" * (1 << 20) for _ in range(128)]
del blocks
kept = resident() - before
process.trim()
print(kept, resident() - before)
"""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", script], env=inherited, capture_output=True, text=True, check=True)
    kept, left = map(int, done.stdout.split())
    assert kept > 100
    assert left < 20
