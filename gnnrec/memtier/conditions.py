"""What a calibration depends on: the machine, and for each tier the device behind it."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gnnrec.memtier import sysfs
from gnnrec.memtier.tiers import Tier

CACHE_BYTES = 32 << 20  # of the last level, where the system does not say
KERNELS = "2"  # that calibration times; another when what they measure changes, as it does with PREFETCH_BYTES
BUSY = 0.5  # load average a core from which figures are too low

_MEMORY_STEP = 256 << 20  # what the kernel keeps for itself varies from start to start

Conditions = dict[str, str | int]


def machine(root: Path = Path("/")) -> Conditions:
    """What figures of all tiers depend on.

    Args:
        root: where /sys and /proc are found.
    """
    memory = sysfs.sizes(root / "proc/meminfo").get("MemTotal", 0)
    return {
        "cpu_model": _cpu_model(root),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "last_level_cache_bytes": last_level_cache(root)[0],
        "memory_bytes": round(memory / _MEMORY_STEP) * _MEMORY_STEP,
        "numba_version": version("numba"),
        "gnnrec_version": _own_version(),
        "calibration_kernels": KERNELS,
    }


def _own_version() -> str:
    try:
        return version("gnnrec")
    except PackageNotFoundError:  # a checkout that is on the path
        return "not installed"


def of_tier(tier: Tier, root: Path = Path("/")) -> Conditions:
    """What figures of this tier depend on; equal for folders on one file system."""
    if tier.kind not in ("file", "pmem"):
        return {"kind": tier.kind, "device": f"{tier.facts.get('name', '')} {tier.where}".strip()}
    mount = sysfs.mount_of(Path(os.path.realpath(tier.where)), sysfs.mounts(root))
    if mount is None:
        return {"kind": tier.kind, "device": tier.where}
    options = ",".join(sorted(set(mount.options)))
    device = f"{mount.device} {mount.source}"
    return {"kind": tier.kind, "device": device, "file_system": mount.kind, "mount_options": options}


def differences(then: Mapping[str, str | int], now: Mapping[str, str | int]) -> list[str]:
    """What changed, in words: "calibrated with cores 4, now 2"."""
    names = dict.fromkeys([*then, *now])
    return [
        f"calibrated with {name.replace('_', ' ')} {then.get(name, 'unknown')}, now {now.get(name, 'unknown')}"
        for name in names
        if then.get(name) != now.get(name)
    ]


def last_level_cache(root: Path = Path("/")) -> tuple[int, str]:
    """Bytes of the last-level caches that this process's cores use, all of them together, and how that is known.

    A virtual machine may be shown more than it gets: buffers are several times as large for that too.
    """
    caches: dict[tuple[int, str], int] = {}
    for core in os.sched_getaffinity(0):
        for folder in root.glob(f"sys/devices/system/cpu/cpu{core}/cache/index[0-9]*"):
            size = re.fullmatch(r"(\d+)K", sysfs.text(folder / "size") or "")
            if size and sysfs.text(folder / "type") != "Instruction":
                level = sysfs.number(folder / "level") or 0
                caches[level, sysfs.text(folder / "shared_cpu_list") or str(core)] = int(size[1]) << 10
    last = max((level for level, _ in caches), default=0)
    total = sum(size for (level, _), size in caches.items() if level == last)
    return (total, "sysfs") if total else (CACHE_BYTES, "assumed, the system does not say")


def load_per_core() -> float:
    """The load average of the last minute, a core."""
    return os.getloadavg()[0] / len(os.sched_getaffinity(0))


def _cpu_model(root: Path) -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", sysfs.text(root / "proc/cpuinfo") or "", re.MULTILINE)
    return found[1].strip() if found else platform.machine()
