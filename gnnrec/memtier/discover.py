"""Which tiers of memory this machine has, and which of them this process may use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gnnrec.memtier import devdax, directories, gpus, nodes
from gnnrec.memtier.tiers import Tier


def discover(folders: Sequence[str | Path] = (), *, root: Path = Path("/")) -> list[Tier]:
    """Find GPUs, DRAM by NUMA node, nodes without processors, fsdax mounts, dax devices and folders.

    Nothing is measured: rates and latencies are the firmware's, where it has any, of provenance prior. What may not
    be used, or looked at, is there too and says why (`Tier.unavailable`, and facts that begin with "unavailable:").

    Args:
        folders: to list; none: the current one and TMPDIR, and of those on one device the first.
        root: where /sys, /proc and /dev are found.

    Raises:
        ConfigError: a folder that does not exist, or is none.
    """
    return [*gpus.tiers(root), *nodes.tiers(root), *devdax.tiers(root), *directories.tiers(folders, root)]
