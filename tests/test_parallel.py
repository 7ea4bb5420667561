"""How the items of a kernel come to threads, and that compiled kernels are found again."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gnnrec.ops._numba import num_threads
from gnnrec.ops._parallel import consecutive, items, kernel

REST = 2**62  # bytes that no machine has


@kernel
def count_items(team, counts, threads):
    for item in items(team):
        counts[item] += 1
        threads[item] = team.thread


@kernel
def count_consecutive(team, counts, threads):
    for item in consecutive(team):
        counts[item] += 1
        threads[item] = team.thread


@kernel
def fill_nested(team, arrays, nothing, number):
    for item in items(team):
        arrays[1][item] = arrays[0][item] + number if nothing is None else 0


@kernel
def ask_for_memory(team, size):
    for _item in items(team):
        np.empty(size, np.int8)[0] = 1


@pytest.mark.parametrize("run", [count_items, count_consecutive])
@pytest.mark.parametrize("total", [0, 1, 2, 3, 7, 5000])
def test_every_item_is_taken_once(run, total, thread_counts):
    for count in thread_counts:
        counts, threads = np.zeros(total + 2, np.int64), np.full(total + 2, -1)
        with num_threads(count):
            run(total, counts[1:-1], threads[1:-1])
        assert counts.tolist() == [0] + [1] * total + [0]
        assert total == 0 or 0 <= threads[1:-1].min() <= threads.max() < min(count, total)
        if run is count_consecutive and total:
            assert (np.diff(threads[1:-1]) >= 0).all()
            assert np.ptp(np.bincount(threads[1:-1], minlength=min(count, total))) <= 1


def test_arguments_in_tuples_and_none():
    x, out = np.arange(100.0), np.zeros(100)
    fill_nested(100, (x, out), None, 2.0)
    assert out.tolist() == (x + 2).tolist()


def test_memory_that_there_is_not(thread_counts):
    for total in (1, 5):
        for count in thread_counts:
            with num_threads(count), pytest.raises(MemoryError, match="ask_for_memory: no memory"):
                ask_for_memory(total, REST)


SCRIPT = """
import numba.core.event as event, numpy as np, torch
from gnnrec import ops
matrix = ops.SparseMatrix.from_csr([0, 1, 3], [0, 1, 0], shape=(2, 2))
with event.install_recorder("numba:compile") as recorder:
    print(ops.spmm(matrix, torch.ones(2, 5), reduce="max").sum().item(), len(recorder.buffer) > 0)
"""


def test_another_process_finds_what_is_compiled(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    command = [sys.executable, "-c", SCRIPT]
    for compiles in (True, False):
        printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent).stdout
        assert printed == f"10.0 {compiles}\n"


WIDTHS = """
import sys, numpy as np
from gnnrec.ops.adam.cpu import _compile_squares
for dim in map(int, sys.argv[1:]):
    sums = np.zeros(3)
    _compile_squares(dim)(3, np.ones((3, dim), np.float32), sums)
    print(*sums)
"""


def test_kernels_of_several_widths_out_of_the_cache(tmp_path, monkeypatch):
    """Each process has compiled one of them; nothing else about them differs."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    for widths in (["64"], ["128"], ["64", "128"], ["128", "64"]):
        printed = subprocess.run([sys.executable, "-c", WIDTHS, *widths], check=True, capture_output=True, text=True)
        assert printed.stdout.split() == [f"{width}.0" for width in widths for _ in range(3)]


def test_a_changed_launcher_compiles_again(tmp_path, monkeypatch):
    """Also kernels whose closure says nothing of its version."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    script = """
import sys, numba.core.event as event, numpy as np
from gnnrec.ops import _parallel
_parallel.VERSION = sys.argv[1]
from gnnrec.memtier.kernels import fill
with event.install_recorder("numba:compile") as recorder:
    fill(np.zeros(8, np.uint32), 1)
    print(len(recorder.buffer) > 0)
"""
    for version, compiles in (("a", True), ("a", False), ("b", True)):
        printed = subprocess.run([sys.executable, "-c", script, version], check=True, capture_output=True, text=True)
        assert printed.stdout == f"{compiles}\n"


KILLED = """
import os, signal, time, numpy as np
from gnnrec.ops import set_num_threads
from gnnrec.ops.adam.cpu import _compile_squares
set_num_threads(1)  # GNU's OpenMP has no threads after a fork
run, x, sums = _compile_squares(16), np.ones((3, 16), np.float32), np.zeros(3)
run(3, x, sums)
for _ in range(60):
    child = os.fork()
    while child == 0:
        run(3, x, sums)
    time.sleep(0.003)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    run(3, x, sums)
print(*sums)
"""


def test_a_killed_child_holds_nothing_that_its_parent_needs():
    done = subprocess.run([sys.executable, "-c", KILLED], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "16.0 16.0 16.0\n"
