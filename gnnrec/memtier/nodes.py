"""Memory that processors reach as ordinary memory: DRAM, and nodes without processors (CXL, PMEM through kmem)."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from gnnrec.memtier import cgroup, devdax, sysfs
from gnnrec.memtier.tiers import Rate, Tier
from gnnrec.units import in_bytes

_LINE = 64  # bytes of a cache line, where the system does not say
_HMAT = ("read_bandwidth", "write_bandwidth", "read_latency", "write_latency")
_BOUNDING = {"Max address space": ("RLIMIT_AS", "VmSize"), "Max data size": ("RLIMIT_DATA", "VmData")}


def tiers(root: Path) -> list[Tier]:
    """One tier a NUMA node with memory; a single one, dram, where the system has no nodes.

    Free is what can be taken without swapping: free pages and page cache, within the limits of control groups and of
    the process. Those limits bound all nodes together.

    Args:
        root: where /sys and /proc are found.
    """
    folders = sorted(root.glob("sys/devices/system/node/node[0-9]*"), key=_id)
    folders = [folder for folder in folders if sysfs.sizes(folder / "meminfo").get("MemTotal", 0) > 0]
    if len(folders) < 2:
        return [_whole(root, folders[0] if folders else None)]
    with_processors = [folder for folder in folders if sysfs.text(folder / "cpulist") != ""]
    return [_node(root, folder, with_processors) for folder in folders]


def room(root: Path) -> int | None:
    """Bytes of DRAM that this process may still take, of all nodes together; None where nothing says.

    Args:
        root: where /sys and /proc are found.
    """
    usable = [tier for tier in tiers(root) if tier.kind == "dram" and not tier.unavailable]
    known = [free for tier in usable if (free := tier.capacity if tier.free is None else tier.free) is not None]
    lefts = [left for limit in _limits(root) if (left := limit.left) is not None]
    return min([*lefts, *([sum(known)] if known else [])], default=None)


def cache_line(root: Path) -> int:
    """Bytes of a cache line."""
    return sysfs.number(root / "sys/devices/system/cpu/cpu0/cache/index0/coherency_line_size") or _LINE


def memory_facts(root: Path) -> dict[str, str]:
    """What bounds memory and pages on this machine: limits, huge pages, locked memory."""
    enabled = sysfs.told(root / "sys/kernel/mm/transparent_hugepage/enabled")
    chosen = re.search(r"\[(\w+)\]", enabled)
    return {
        "limits": "; ".join(map(str, _limits(root))) or "none",
        "transparent huge pages": chosen[1] if chosen else enabled,
        "locked memory": _locked(root),
    }


def _whole(root: Path, node: Path | None) -> Tier:
    """All memory as one tier. (/proc/meminfo knows more than the only node: memory that a host adds on demand.)"""
    meminfo = root / "proc/meminfo"
    sizes = sysfs.sizes(meminfo)
    facts = {} if sizes else {"memory": sysfs.told(meminfo).partition("\n")[0]}
    facts |= _facts(node) if node else {}
    tier = Tier("dram", "dram", sizes.get("MemTotal"), sizes.get("MemAvailable"), cache_line(root), facts=facts)
    return _bounded(root, tier, node)


def _node(root: Path, folder: Path, with_processors: list[Path]) -> Tier:
    node, sizes = _id(folder), sysfs.sizes(folder / "meminfo")
    available = sum(sizes.get(name, 0) for name in ("MemFree", "Active(file)", "Inactive(file)"))
    facts = _facts(folder) | {"distance": f"{sysfs.told(folder / 'distance')} to nodes {_online(folder)}"}
    if folder in with_processors:
        several, kind = len(with_processors) > 1, "dram"
        name = f"dram{with_processors.index(folder)}" if several else "dram"
        facts["processors"] = sysfs.told(folder / "cpulist")
    else:
        name, kind = f"node{node}", "numa"
        facts["behind it"] = devdax.behind(root, node)
    tier = Tier(name, kind, sizes["MemTotal"], available, cache_line(root), where=folder.name, facts=facts)
    return _bounded(root, tier, folder)


def _bounded(root: Path, tier: Tier, node: Path | None) -> Tier:
    """The tier with its free memory within all limits, and what else is known of its node."""
    bounds = {} if tier.free is None else {"available memory": tier.free}
    bounds |= {limit.name: left for limit in _limits(root) if (left := limit.left) is not None}
    binding = min(bounds, key=lambda bound: bounds[bound], default=None)
    bound = {"free is bound by": f"{binding}, {in_bytes(bounds[binding])}"} if binding else {}
    rates, latency, prior = _hmat(node) if node else ((), None, {})
    return replace(
        tier,
        free=bounds[binding] if binding else None,
        rates=rates,
        latency_ns=latency,
        unavailable=_forbidden(root, node) if node else "",
        facts=bound | tier.facts | prior | memory_facts(root),
    )


def _facts(folder: Path) -> dict[str, str]:
    pools = []
    for pool in sorted(folder.glob("hugepages/hugepages-*kB"), key=lambda pool: len(pool.name)):
        size = in_bytes(1024 * int(pool.name.removeprefix("hugepages-").removesuffix("kB")))
        count, free = (sysfs.told(pool / name) for name in ("nr_hugepages", "free_hugepages"))
        pools.append(f"{size}: {free} of {count} free")
    return {"huge page pools": "; ".join(pools)} if pools else {}


def _hmat(folder: Path) -> tuple[tuple[Rate, ...], float | None, dict[str, str]]:
    """What the firmware's HMAT says: rates, latency in ns, and both as a fact.

    Class 1 is of access by processors alone, class 0 by whatever is nearest. Source: the kernel's
    ABI/stable/sysfs-devices-node (MB/s and ns).
    """
    for access in ("access1", "access0"):
        values = folder / access / "initiators"
        given = {name: sysfs.number(values / name) for name in _HMAT}
        if any(given.values()):
            source = f"HMAT, {access}"
            bandwidths = {pattern: given[f"{pattern}_bandwidth"] for pattern in ("read", "write")}
            rates = tuple(Rate(pattern, mb / 1000, source=source) for pattern, mb in bandwidths.items() if mb)
            fact = ", ".join(f"{name.replace('_', ' ')} {value or 'unknown'}" for name, value in given.items())
            return rates, given["read_latency"] or None, {source: f"{fact} (MB/s, ns)"}
    return (), None, {}


def _forbidden(root: Path, folder: Path) -> str:
    status = sysfs.text(root / "proc/self/status") or ""
    allowed = re.search(r"^Mems_allowed_list:\s*(\S+)", status, re.MULTILINE)
    if allowed is None or _id(folder) in sysfs.id_list(allowed[1]):
        return ""
    return f"cpuset.mems allows nodes {allowed[1]} only. Add {_id(folder)} to it"


def _limits(root: Path) -> list[cgroup.Limit]:
    sizes = sysfs.sizes(root / "proc/self/status")
    found = cgroup.limits(root)
    for words, (name, used) in _BOUNDING.items():
        limit = _soft_limit(root, words)
        if limit is not None and limit.isdecimal():
            found.append(cgroup.Limit(name, int(limit), sizes.get(used), "/proc/self/status does not say"))
    return found


def _locked(root: Path) -> str:
    limit = _soft_limit(root, "Max locked memory")
    if limit is None:
        return sysfs.told(root / "proc/self/limits").partition("\n")[0]
    return f"{in_bytes(int(limit)) if limit.isdecimal() else limit} (RLIMIT_MEMLOCK)"


def _soft_limit(root: Path, words: str) -> str | None:
    match = re.search(rf"^{words}\s+(\S+)", sysfs.text(root / "proc/self/limits") or "", re.MULTILINE)
    return match[1] if match else None


def _online(folder: Path) -> str:
    return sysfs.told(folder.parent / "online")


def _id(folder: Path) -> int:
    return int(folder.name.removeprefix("node"))
