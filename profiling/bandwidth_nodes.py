"""Processors by NUMA node, how far memory is from them, and threads that stay on them."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gnnrec.memtier import sysfs
from gnnrec.memtier.tiers import Tier

ONLY, NEAR, FAR, UNKNOWN = "only node", "near", "far", "unknown"
_NODES = "sys/devices/system/node"


@dataclass(frozen=True)
class Processors:
    """Those of a node that this process may use. node: as the system names it, such as node0."""

    node: str
    cpus: tuple[int, ...]


def processors(root: Path = Path("/")) -> list[Processors]:
    """A group for each node with processors, by number; a single one, node0, where the system has no nodes.

    Args:
        root: where /sys is found.
    """
    allowed, found = os.sched_getaffinity(0), []
    for folder in sorted(root.glob(f"{_NODES}/node[0-9]*"), key=lambda folder: int(folder.name[4:])):
        cpus = sysfs.id_list(sysfs.text(folder / "cpulist") or "") & allowed
        if cpus:
            found.append(Processors(folder.name, tuple(sorted(cpus))))
    return found or [Processors("node0", tuple(sorted(allowed)))]


def distances(tier: Tier, groups: Sequence[Processors], root: Path = Path("/")) -> list[str]:
    """How far the tier's memory is from each group: near is what the firmware's table (SLIT) has nothing nearer to.

    UNKNOWN where there are several groups and the tier's node is not known.
    """
    memory = re.fullmatch(r"node(\d+)", tier.where)
    if memory is None:
        return [ONLY if len(groups) == 1 else UNKNOWN] * len(groups)
    online = sorted(sysfs.id_list(sysfs.text(root / _NODES / "online") or ""))
    found = []
    for group in groups:
        row = (sysfs.text(root / _NODES / group.node / "distance") or "").split()
        known = dict(zip(online, row, strict=False))
        found.append(int(known.get(int(memory[1]), 0)))
    return [NEAR if distance == min(found) else FAR for distance in found]


@contextlib.contextmanager
def pinned(cpus: Sequence[int]) -> Iterator[None]:
    """Keep all threads of this process on these processors for a while, numba's too."""
    before = os.sched_getaffinity(0)
    _pin_all(cpus)
    try:
        yield
    finally:
        _pin_all(sorted(before))


def _pin_all(cpus: Sequence[int]) -> None:
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread), cpus)


def others_than(cpu: int, cpus: Sequence[int], root: Path = Path("/")) -> list[int]:
    """The processors that share no core with this one (its SMT siblings would slow it down by themselves)."""
    listed = sysfs.text(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    siblings = sysfs.id_list(listed or "") | {cpu}
    return [other for other in cpus if other not in siblings]
