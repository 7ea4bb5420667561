"""Whether the disks have room for all that a streamed run will write, before it begins."""

from __future__ import annotations

import os
from pathlib import Path

from gnnrec.errors import StorageError
from gnnrec.extensions import is_path
from gnnrec.memtier.demands import STATE
from gnnrec.memtier.plans import Plan
from gnnrec.storage import remove_leftovers, storage_errors
from gnnrec.training import checkpoint
from gnnrec.training.placing import in_dram
from gnnrec.units import in_bytes


def check(plan: Plan, checkpoints: Path, folder: Path, saves: int) -> None:
    """Refuse a run that would find a disk full after hours.

    Args:
        plan: of the run, whose files are not made yet.
        checkpoints: the folder that holds them; those that lie there are counted.
        folder: of streamed tensors.
        saves: how often a checkpoint will be written at the most.

    Raises:
        StorageError: too little room.
    """
    sizes = {placement.name: placement.bytes for placement in plan.placements}
    one = sum(sizes.get(name, 0) for name in ("embedding", *STATE, "best"))
    if checkpoints.exists():
        remove_leftovers(checkpoints)  # of a save that was killed, which the next one would remove
    count = max(min(checkpoint.MOST - checkpoint.count(checkpoints), saves), 0)
    streamed = [placement for placement in plan.placements if placement.mode == "stream"]
    elsewhere = [placement for placement in streamed if in_dram(placement.tier) or is_path(placement.tier)]
    files = sum(placement.bytes for placement in streamed if placement not in elsewhere)
    written = [
        (checkpoints.parent, count * one, f"checkpoints ({count} of {in_bytes(one)})"),
        (folder, files, f"streamed tensors ({in_bytes(files)})"),
    ]
    written = [entry for entry in written if entry[1]]
    for path, *_ in written:
        with storage_errors(path):
            same = [entry for entry in written if os.stat(entry[0]).st_dev == os.stat(path).st_dev]
            space = os.statvfs(path)
        needed, free = sum(size for _, size, _ in same), space.f_bavail * space.f_frsize
        if needed > free:
            what = " and ".join(words for *_, words in same)
            found = f"{what} will take {in_bytes(needed)}, {in_bytes(free)} are free"
            remedy = "Free some space there, or take another disk by hydra.run.dir (checkpoints) or memory.folder"
            raise StorageError(found, where=str(path), remedy=remedy)
