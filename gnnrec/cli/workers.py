"""Processes of a parallel sweep: how many there is room for, and the cores of each."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

from gnnrec.config import MemoryConfig, NGCFConfig, TrainConfig, fill
from gnnrec.errors import ConfigError, GnnrecError, StorageError
from gnnrec.storage import locked
from gnnrec.units import in_bytes

# What a process holds beside its tensors: small trainings peak at 0.6 GiB in all.
INTERPRETER_BYTES = 512 << 20
TRAINED = 5 * 4  # bytes a number of the embeddings: itself, its gradient, two moments, what is propagated
GRAPH = 20  # bytes an interaction: its log, columns both ways, items by user
PATIENCE = 60.0  # seconds until a place must be free whose process has ended
_held = ExitStack()  # the lock of this process's place, as long as it lives


def needed(values: dict[str, Any]) -> int | None:
    """Bytes of DRAM that a job takes, from its configuration; None where nothing limits it.

    Its memory.limit, or with memory=dram, about what its tensors are. On a GPU the limit is that of its memory.
    """
    import torch

    memory, device = fill(MemoryConfig, values["memory"], "memory"), values["device"]
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        return INTERPRETER_BYTES
    if memory.name == "dram":
        return INTERPRETER_BYTES + _tensors(values)
    return None if memory.limit_bytes is None else memory.limit_bytes + INTERPRETER_BYTES


def _tensors(values: dict[str, Any]) -> int:
    """About the bytes of a training's tensors; 0 of files, whose size nobody knows before they are read, and of what
    cannot be trained, which the job says."""
    from gnnrec.data import dataset

    if "data" not in values:  # not known before the job begins
        return 0
    try:
        config = TrainConfig.from_dict(values)
        sizes = dataset.sizes(config.data)
    except GnnrecError:
        return 0
    if sizes is None:
        return 0
    users, items, interactions = sizes
    width = getattr(config.model, "dim", 0) * (1 + config.model.layers if isinstance(config.model, NGCFConfig) else 1)
    return TRAINED * (users + items) * width + GRAPH * interactions


def at_a_time(asked: int, needs: Sequence[int | None], cores: int, free: int | None) -> int:
    """How many jobs run at a time.

    Args:
        asked: for; below 1 for as many as there is room for.
        needs: bytes of every job, as `needed` gives them.
        cores: that this process may use. A job has one at least.
        free: bytes of memory; None where it is unknown.

    Raises:
        ConfigError: more are asked for than there is room for; several jobs of which one would take all memory.
    """
    where = "hydra.launcher.n_jobs"
    if asked > cores:
        remedy = f"Lower it to {cores}, or leave it out"
        raise ConfigError(f"is {asked}, but this process may use {cores} cores", where=where, remedy=remedy)
    most = min(asked if asked > 0 else cores, len(needs))
    if most > 1 and None in needs:
        share = "" if free is None else f"={max(1, (free // most - INTERPRETER_BYTES) >> 20)}MiB"
        raise ConfigError(
            f"is not set, and each of {most} jobs at a time would count on all memory there is",
            where="memory.limit",
            remedy=f"Set memory.limit{share}, or hydra.launcher.n_jobs=1",
        )
    largest = sorted((need or 0 for need in needs), reverse=True)
    fitting = most if free is None else sum(sum(largest[: n + 1]) <= free for n in range(most))
    if asked > 0 and fitting < most:
        found = f"jobs at a time may take {in_bytes(sum(largest[:most]))} of {in_bytes(free or 0)} that are free"
        remedy = f"Lower it to {max(1, fitting)}, or lower memory.limit"
        raise ConfigError(f"is {asked}, but {most} {found}", where=where, remedy=remedy)
    return max(1, fitting)


def shares(cores: Sequence[int], places: int) -> list[Sequence[int]]:
    """Disjoint sets of equally many cores."""
    size = len(cores) // places
    return [cores[place * size : (place + 1) * size] for place in range(places)]


@cache  # a process keeps its place for all of its jobs
def take_place(sweep: Path, places: int) -> int:
    """Pin this process to a share of the cores that no other one of the sweep has; gives how many threads suit it.

    torch and numba look at the cores when they are imported, so call it before.

    Raises:
        StorageError: all places are taken.
        ValueError: there are none, or more than cores.
    """
    mine = sorted(os.sched_getaffinity(0))
    if not 1 <= places <= len(mine):
        raise ValueError(f"{places} places on {len(mine)} cores")
    deadline = time.monotonic() + PATIENCE
    while True:
        for place, cores in enumerate(shares(mine, places)):
            try:
                _held.enter_context(locked(sweep / f".place-{place}", "another process of this sweep has these cores"))
            except StorageError:
                if place + 1 == places and time.monotonic() > deadline:
                    raise
                continue
            os.sched_setaffinity(0, cores)
            return min(len(cores), int(os.environ.get("NUMBA_NUM_THREADS", len(cores))))
        time.sleep(0.1)
