"""Which schedule a matrix is walked with: measured once, kept in a file as data.

The choices are how far ahead rows are prefetched and in how many chunks rows are handed to threads. Neither changes a
result of spmm by a bit. The file belongs to one machine.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import median

import numba
import torch

from gnnrec import device as devices
from gnnrec.graph.schedule import BY_WIDTH, MAX_CHUNKS, balanced_chunks
from gnnrec.graph.sparse import SparseMatrix
from gnnrec.ops.spmm import spmm
from gnnrec.storage import atomic_write

REPEATS = 7
VERSION = 2  # of the candidates: choices among others are not found


@dataclass(frozen=True)
class Choice:
    """How a matrix is walked.

    Args:
        prefetch: entries between a row's prefetch and its use, or BY_WIDTH.
        chunks: at most so many chunks of rows.
    """

    prefetch: int = BY_WIDTH
    chunks: int = MAX_CHUNKS


CANDIDATES = [Choice(prefetch, chunks) for prefetch in (BY_WIDTH, 0, 8, 16, 32) for chunks in (64, 256, 1024)]


def path() -> Path:
    """Where choices are kept: gnnrec/schedules.json in the user's cache folder (XDG_CACHE_HOME)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gnnrec" / "schedules.json"


def autotune(matrix: SparseMatrix, *, dim: int = 64, dtype: torch.dtype = torch.float32) -> SparseMatrix:
    """Time spmm of the matrix under every candidate schedule, keep the fastest in the file, and apply it.

    On a GPU the candidates are launch shapes, forward and backward are timed together, and every later product finds
    the choice by itself; see `tuner.tune` for the other operators.

    Matrices of about the same rows, entries and degree histogram, under the same width, dtype and number of threads,
    are one key: `segment_reduce`, `gather_segment_reduce` and `index_scatter` find the choice by it.

    Args:
        matrix: SparseMatrix [rows, cols].
        dim: width of the dense operand.
        dtype: its dtype.

    Returns:
        The matrix with the chosen schedule; its transpose keeps the usual one unless it is tuned itself.
    """
    if devices.on_gpu(matrix.indptr):
        from gnnrec.ops import tuner, tuning  # here, since the tuner calls operators that look for choices of this file

        for tuned in tuner.tune(matrix, operators=("spmm",), dims=(dim,), heads=1, dtypes=(dtype,)):
            tuning.keep(dict.fromkeys(tuned.keys, tuned.shape))
        return matrix
    x = torch.zeros(matrix.shape[1], dim, dtype=dtype)
    candidates = [with_choice(matrix, choice) for choice in CANDIDATES]
    seconds: list[list[float]] = [[] for _ in CANDIDATES]
    spmm(matrix, x)  # compiles
    for _ in range(REPEATS):  # in turns, so that a disturbance meets all of them
        for candidate, times in zip(candidates, seconds):
            start = time.perf_counter()
            spmm(candidate, x)
            times.append(time.perf_counter() - start)
    best = min(range(len(CANDIDATES)), key=lambda index: median(seconds[index]))
    choices = dict(_load(path())) | {_key(matrix, dim, dtype): CANDIDATES[best]}
    path().parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({key: asdict(choice) for key, choice in sorted(choices.items())}, indent=1)
    atomic_write(path(), text.encode())
    _load.cache_clear()
    return candidates[best]


def apply(matrix: SparseMatrix, dim: int, dtype: torch.dtype) -> SparseMatrix:
    """The matrix with the schedule that was once chosen for its like, or as it is."""
    choices = _load(path())
    choice = choices.get(_key(matrix, dim, dtype)) if choices else None
    return matrix if choice is None else with_choice(matrix, choice)


def with_choice(matrix: SparseMatrix, choice: Choice) -> SparseMatrix:
    """The matrix with that schedule."""
    result = matrix.variant()
    result.prefetch, result.chunks = choice.prefetch, balanced_chunks(matrix.indptr, choice.chunks)
    if matrix.symmetric:
        result.__dict__["T"] = result
    return result


@cache
def _load(file: Path) -> dict[str, Choice]:
    """The choices of the file; none where there is no file."""
    if not file.exists():
        return {}
    return {key: Choice(**fields) for key, fields in json.loads(file.read_text()).items()}


def _key(matrix: SparseMatrix, dim: int, dtype: torch.dtype) -> str:
    """Rows and entries by powers of two, the shares of rows by powers of two of their degree in tenths."""
    degrees = matrix.indptr.diff()
    buckets = torch.bincount(torch.log2(degrees + 1.0).long(), minlength=1)
    shares = (10 * buckets / max(1, len(degrees))).round().long().tolist()
    sizes = [int(n).bit_length() for n in (matrix.shape[0], matrix.nnz)]
    parts = [
        VERSION,
        *sizes,
        dim,
        str(dtype).removeprefix("torch."),
        "".join(map(str, shares)),
        numba.get_num_threads(),
    ]
    return "-".join(map(str, parts))
