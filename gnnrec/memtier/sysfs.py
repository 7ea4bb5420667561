"""Small files of /sys and /proc, and the mounts that this process sees."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gnnrec.errors import StorageError


def text(path: Path) -> str | None:
    """The content without surrounding space; None where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def number(path: Path) -> int | None:
    """The whole number (decimal, or 0x...) in a file; None where there is none to read."""
    try:
        return int(text(path) or "", 0)
    except ValueError:
        return None


def told(path: Path) -> str:
    """The content for people: why it is unavailable, where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError as error:
        return f"unavailable: {why(error)}: {path}"


def why(error: OSError) -> str:
    """What the system said, and where it is known the remedy."""
    if isinstance(error, StorageError):
        return f"{error.found}. {error.remedy}" if error.remedy else error.found
    return error_text(error.errno or 0)


def error_text(number: int) -> str:
    """An error number in words, with its name."""
    # Python knows this one by its other name, which no manual page of ours uses.
    name = "EOPNOTSUPP" if number == errno.EOPNOTSUPP else errno.errorcode.get(number, str(number))
    return f"{os.strerror(number)} ({name})"


def id_list(words: str) -> set[int]:
    """The numbers in a list such as "0-3,8", as the kernel writes processors and nodes."""
    ranges = [[int(end) for end in part.split("-")] for part in words.split(",") if part]
    return {number for ends in ranges for number in range(ends[0], ends[-1] + 1)}


def sizes(path: Path) -> dict[str, int]:
    """The lines of a meminfo or status file that are sizes (`MemFree:  12 kB`), in bytes."""
    lines = re.findall(r"([\w()]+):\s+(\d+) kB", text(path) or "")
    return {name: 1024 * int(count) for name, count in lines}


@dataclass(frozen=True)
class Mount:
    """A line of mountinfo.

    Args:
        device: major:minor.
        root: the folder of the file system that is mounted.
        point: where it is mounted.
        options: of the mount and of the file system.
        kind: of the file system, such as ext4.
        source: the device, or whatever the file system takes for one.
    """

    device: str
    root: str
    point: str
    options: tuple[str, ...]
    kind: str
    source: str


def mounts(root: Path) -> list[Mount]:
    """The mounts of this process, oldest first. Source: proc_pid_mountinfo(5)."""
    found = []
    for line in (text(root / "proc/self/mountinfo") or "").splitlines():
        own, _, system = line.partition(" - ")
        (_, _, device, folder, point, options), (kind, source, more) = own.split(" ")[:6], system.split(" ", 2)
        options = f"{options},{more}"
        found.append(Mount(device, _plain(folder), _plain(point), tuple(options.split(",")), kind, _plain(source)))
    return found


def mount_of(path: Path, mounts: Sequence[Mount]) -> Mount | None:
    """The mount that an absolute path without links lies on; of several at one place the last, which hides others."""
    return max((mount for mount in reversed(mounts) if path.is_relative_to(mount.point)), key=_depth, default=None)


def _depth(mount: Mount) -> int:
    return len(Path(mount.point).parts)


def _plain(field: str) -> str:
    """Without the octal escapes that stand for spaces, tabs, newlines and backslashes."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
