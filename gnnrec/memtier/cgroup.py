"""Bounds that control groups (versions 1, 2 and both at once) put on the memory of this process.

Source: the kernel's admin-guide/cgroup-v2 and admin-guide/cgroup-v1/memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gnnrec.memtier import sysfs
from gnnrec.memtier.sysfs import Mount
from gnnrec.units import in_bytes

_UNLIMITED = 1 << 62  # version 1 writes the greatest whole number of pages instead of "max"


class _Version(NamedTuple):
    """What a version calls things; memory.stat counts the page cache that can be dropped under `cache`."""

    file_system: str
    limits: tuple[str, ...]
    usage: str
    cache: tuple[str, str]


_V1 = _Version(
    "cgroup", ("memory.limit_in_bytes",), "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")
)
# Beyond memory.high a process is not killed, but held back until it crawls.
_V2 = _Version("cgroup2", ("memory.max", "memory.high"), "memory.current", ("inactive_file", "active_file"))


@dataclass(frozen=True)
class Limit:
    """A bound on this process's memory.

    Args:
        name: what bounds it: the file and the group, or the resource limit.
        limit: bytes; None where it cannot be read.
        used: bytes of it that are taken and cannot be dropped; None where it cannot be read.
        unavailable: why something could not be read.
    """

    name: str
    limit: int | None
    used: int | None
    unavailable: str = ""

    @property
    def left(self) -> int | None:
        """Bytes that may still be taken; the whole limit where the use is unknown."""
        return None if self.limit is None else max(0, self.limit - (self.used or 0))

    def __str__(self) -> str:
        if self.limit is None:
            return f"{self.name} unavailable: {self.unavailable}"
        used = f"use unavailable: {self.unavailable}" if self.used is None else f"{in_bytes(self.used)} used"
        return f"{self.name} {in_bytes(self.limit)}, {used}"


def limits(root: Path = Path("/")) -> list[Limit]:
    """The bounds of this process's control group and of those above it.

    Args:
        root: where /proc and /sys are found.
    """
    membership = root / "proc/self/cgroup"
    try:
        lines = membership.read_text().splitlines()
    except FileNotFoundError:
        if membership.parent.exists():  # a kernel without control groups
            return []
        return [Limit("control groups", None, None, "/proc is not mounted")]
    except OSError as error:
        return [Limit("control groups", None, None, f"{sysfs.why(error)}: {membership}")]
    groups = list(_groups(lines))
    mounts = sysfs.mounts(root)
    places = [(version, group, mount) for version, group in groups if (mount := _mount(version, mounts))]
    if groups and not places:
        return [Limit("control groups", None, None, "not mounted, so that nothing says what they limit")]
    return [
        limit
        for version, group, mount in places
        for folder, name in _up(root / mount.point.lstrip("/"), os.path.relpath(group, mount.root))
        for limit in _limits_of(folder, name, version)
    ]


def memory_limit(root: Path = Path("/")) -> int | None:
    """The lowest limit, in bytes, of this process's control group and those above it; None without one."""
    return min((limit.limit for limit in limits(root) if limit.limit is not None), default=None)


def _groups(lines: Sequence[str]) -> Iterator[tuple[_Version, str]]:
    """This process's groups that may limit memory."""
    for hierarchy, controllers, group in (line.split(":", 2) for line in lines):
        if hierarchy == "0":
            yield _V2, group
        elif "memory" in controllers.split(","):
            yield _V1, group


def _mount(version: _Version, mounts: Sequence[Mount]) -> Mount | None:
    """Where the groups of a version are; mounted a second time, they would say the same."""
    for mount in mounts:
        if mount.kind == version.file_system and (version is _V2 or "memory" in mount.options):
            return mount
    return None


def _up(top: Path, group: str) -> Iterator[tuple[Path, str]]:
    """The folder of a group and those above it up to the top, which stands for a group outside; each with its name."""
    parts = [] if group.startswith("..") or group == "." else group.split("/")
    for depth in range(len(parts), -1, -1):
        yield top.joinpath(*parts[:depth]), "/" + "/".join(parts[:depth])


def _limits_of(folder: Path, name: str, version: _Version) -> Iterator[Limit]:
    for file in version.limits:
        try:
            limit = int((folder / file).read_text())
        except (FileNotFoundError, NotADirectoryError, ValueError):  # none at the top; "max"
            continue
        except OSError as error:
            yield Limit(f"{file} of {name}", None, None, sysfs.why(error))
            continue
        if limit < _UNLIMITED:
            used = _used(folder, version)
            problem = "" if used is not None else sysfs.told(folder / version.usage).removeprefix("unavailable: ")
            yield Limit(f"{file} of {name}", limit, used, problem)


def _used(folder: Path, version: _Version) -> int | None:
    """Bytes in use, without the page cache: the kernel drops that before it refuses memory."""
    usage = sysfs.number(folder / version.usage)
    if usage is None:
        return None
    lines = (line.split() for line in (sysfs.text(folder / "memory.stat") or "").splitlines())
    return max(0, usage - sum(int(value) for key, value in lines if key in version.cache))
