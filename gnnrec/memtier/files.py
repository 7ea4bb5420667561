"""Files that hold tensors of a running training: reserved before use, moved past the page cache, gone afterwards.

A folder of them belongs to one process at a time. It is no checkpoint: files are written in place, and a crash leaves
them half new. What is left over carries a marker, by which the next run knows it for its own and removes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import mmap
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from gnnrec.errors import GnnrecError, StorageError
from gnnrec.memtier import probes, sysfs
from gnnrec.storage import atomic_write, locked, storage_errors
from gnnrec.units import in_bytes

MARKER = "gnnrec-tier.json"
FORMAT = "gnnrec-tier"
VERSION = 1
BLOCK = 4096  # kernels that do not tell the alignment of direct I/O (before 6.1) know no larger logical blocks

Direction = Literal["read", "write"]

_LOCK = ".gnnrec-tier.lock"
_NAME = re.compile(r"\w[\w.-]*")
_IN_MEMORY = ("tmpfs", "ramfs")
_LOG = "look into the system's log (dmesg)"
_FREE = "Free some space there, or take another folder"
REMEDIES = {
    errno.ENOSPC: _FREE,
    errno.EDQUOT: _FREE,
    errno.EFBIG: "Raise the limit on file sizes (ulimit -f), or take another file system",
    errno.EOPNOTSUPP: "This file system cannot reserve space for a file: take a folder on ext4 or xfs",
    errno.EIO: f"The device failed: {_LOG}, and take another device",
    errno.ENODEV: f"The device is gone: {_LOG}",
    errno.ENXIO: f"The device is gone: {_LOG}",
    errno.ESTALE: "The network file system no longer knows the file: mount it again, or take a local disk",
}
_libc = ctypes.CDLL(None, use_errno=True)


class TierMemoryError(GnnrecError, MemoryError):
    """Memory that the system does not give."""


def aligned(count: int, *, huge: bool = True) -> npt.NDArray[np.uint8]:
    """Fresh zeroed memory that starts on a page, as direct I/O needs it; freed with the last array that refers to it.

    Args:
        count: bytes.
        huge: ask for huge pages; the system may give small ones.

    Raises:
        TierMemoryError: the system does not give that much.
    """
    try:
        # Not shared, as Python's default would be: that is shmem, which has no huge pages.
        memory = mmap.mmap(-1, max(count, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        remedy = "Lower memory.buffer or memory.limit, or raise the limit on this process's memory (ulimit -v)"
        raise TierMemoryError(f"{in_bytes(count)} are refused: {sysfs.why(error)}", remedy=remedy) from error
    if huge:
        with contextlib.suppress(OSError):  # a kernel without them; it is advice
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8, count)


class Throttle:
    """The speed of a slower device, kept by waiting until a transfer's share of the bandwidth has passed.

    All threads share one device, which reads and writes in turn. `latency_us` passes once for each transfer, and the
    device serves others meanwhile. What the system makes a sleep too long is taken off the next transfer.

    Args:
        read_gb_per_s, write_gb_per_s: 10^9 bytes a second.
        latency_us: microseconds.
    """

    def __init__(self, read_gb_per_s: float, write_gb_per_s: float, latency_us: float = 0.0) -> None:
        self._seconds_per_byte: dict[Direction, float] = {"read": 1e-9 / read_gb_per_s, "write": 1e-9 / write_gb_per_s}
        self._latency = latency_us * 1e-6
        self._lock = threading.Lock()
        self._free = 0.0  # when the device has done all that was asked of it
        self._late = 0.0  # by how much sleeps were too long, as far as the device stood idle for it

    def reserve(self, direction: Direction, count: int) -> float:
        """Take the device's next share for `count` bytes; returns when it is over, as time.perf_counter()."""
        with self._lock:
            # Who woke up late would have asked earlier. Without this, threads that are woken 60 us late see a device
            # of 1 ms transfers 6 % slower than it was asked to be.
            now = time.perf_counter()
            self._free = max(now - self._late, self._free) + count * self._seconds_per_byte[direction]
            self._late = max(now - self._free, 0.0)
            return self._free + self._latency

    def wait(self, until: float) -> None:
        """Sleep until the time that `reserve` returned."""
        rest = until - time.perf_counter()
        if rest > 0:
            time.sleep(rest)
            with self._lock:
                self._late += time.perf_counter() - until


@dataclass
class Traffic:
    """What was moved, and the seconds that threads spent moving it: with two threads, twice what passed."""

    read_bytes: int = 0
    write_bytes: int = 0
    read_seconds: float = 0.0
    write_seconds: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, direction: Direction, count: int, seconds: float) -> None:
        """Count one transfer."""
        with self._lock:
            if direction == "read":
                self.read_bytes += count
                self.read_seconds += seconds
            else:
                self.write_bytes += count
                self.write_seconds += seconds


@dataclass(frozen=True)
class Access:
    """How files of a folder are read and written.

    Args:
        alignment: bytes; offsets, lengths and addresses of transfers are multiples of it.
        buffered: why the page cache stands between, "" for direct I/O.
    """

    alignment: int
    buffered: str = ""


class TierFile:
    """A file of a fixed size, all of it reserved on the device, for blocks that are read and written in place.

    Safe for several threads that work on different parts. Use `TierFolder.create`.

    Args:
        path: a name that is still free.
        size: bytes, rounded up to a multiple of the alignment.
        access: of the folder.
        throttle: for a simulated device.

    Raises:
        StorageError: no space, no permission, the name is taken, a file system that cannot reserve space.
    """

    def __init__(self, path: Path, size: int, access: Access, throttle: Throttle | None = None) -> None:
        self.path = path
        self.alignment = access.alignment
        self.buffered = access.buffered
        self.size = -(-size // self.alignment) * self.alignment
        self._throttle = throttle
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | (os.O_DIRECT if self.direct else 0)
        with storage_errors(path):
            self._descriptor = os.open(path, flags, 0o600)
        with contextlib.ExitStack() as failed:
            failed.callback(path.unlink, missing_ok=True)
            failed.callback(self.close)
            _reserve(path, self._descriptor, self.size)
            failed.pop_all()

    @property
    def direct(self) -> bool:
        """Whether transfers go past the page cache."""
        return not self.buffered

    def fileno(self) -> int:
        """The descriptor, for mappings of the file."""
        return self._descriptor

    def read(self, offset: int, buffer: npt.NDArray[Any]) -> None:
        """Fill a contiguous array with the bytes from `offset` on.

        Raises:
            ValueError: offset, length or address are not multiples of `alignment`, or reach past the end.
            StorageError: the device failed, or the file is shorter than it was made.
        """
        self._transfer("read", offset, buffer)
        if self.buffered:
            os.posix_fadvise(self._descriptor, offset, buffer.nbytes, os.POSIX_FADV_DONTNEED)

    def write(self, offset: int, buffer: npt.NDArray[Any]) -> None:
        """Write a contiguous array from `offset` on. On the device for certain only after `sync`.

        Raises:
            ValueError, StorageError: as `read`.
        """
        self._transfer("write", offset, buffer)

    def sync(self) -> None:
        """Wait until all that was written is on the device.

        Raises:
            StorageError: the device failed.
        """
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise self._failed("sync", 0, error) from error
        if self.buffered:
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Close the file; a second time does nothing. Mappings of it stay."""
        descriptor, self._descriptor = self._descriptor, -1  # the number may soon belong to another file
        if descriptor >= 0:
            os.close(descriptor)

    def _transfer(self, direction: Direction, offset: int, buffer: npt.NDArray[Any]) -> None:
        self._check(direction, offset, buffer)
        due = self._throttle.reserve(direction, buffer.nbytes) if self._throttle else 0.0
        view = buffer.reshape(-1).view(np.uint8).data
        done = 0
        while done < len(view):
            try:
                if direction == "read":
                    moved = os.preadv(self._descriptor, [view[done:]], offset + done)
                else:
                    moved = os.pwritev(self._descriptor, [view[done:]], offset + done)
            except OSError as error:
                raise self._failed(direction, offset + done, error) from error
            if moved < self.alignment:
                found = f"{direction} at byte {offset + done}: {moved} of {len(view) - done} bytes were moved"
                remedy = f"The file was cut or the device is failing: let nothing else touch the folder, and {_LOG}"
                raise StorageError(found, where=str(self.path), remedy=remedy)
            done += moved - moved % self.alignment  # a transfer may be cut short anywhere, and the next is aligned
        if self._throttle:
            self._throttle.wait(due)

    def _check(self, direction: Direction, offset: int, buffer: npt.NDArray[Any]) -> None:
        address = buffer.__array_interface__["data"][0]
        for name, value in (("offset", offset), ("length", buffer.nbytes), ("address", address)):
            if value % self.alignment:
                raise ValueError(f"{direction} {self.path}: {name} {value} is no multiple of {self.alignment} bytes")
        if not buffer.flags.c_contiguous:
            raise ValueError(f"{direction} {self.path}: the array is not contiguous, its strides are {buffer.strides}")
        if not 0 <= offset <= self.size - buffer.nbytes:
            raise ValueError(f"{direction} {self.path}: {buffer.nbytes} bytes at {offset} of a file of {self.size}")

    def _failed(self, doing: str, offset: int, error: OSError) -> StorageError:
        found = f"{doing} at byte {offset} failed: {sysfs.why(error)}"
        return StorageError(found, where=str(self.path), remedy=_remedy(error))


class TierFolder:
    """A folder for the live tensors of one run; a context manager that leaves nothing of its own behind but a lock.

    Entering creates the folder, takes its lock and removes the files of a killed run, which that run's marker names;
    whatever else lies there stays. Leaving removes the files and the marker, after an error too.

    Args:
        path: the folder.
        run: what the marker says of whom the files belong to, such as the run directory.
        throttle: makes it a simulated device.
    """

    def __init__(self, path: str | os.PathLike[str], *, run: str = "", throttle: Throttle | None = None) -> None:
        self.path = Path(path)
        self.run = run
        self.throttle = throttle
        self.access = Access(BLOCK)
        self._files: dict[str, TierFile] = {}
        self._stack = contextlib.ExitStack()

    @property
    def provenance(self) -> str:
        """Of times taken here: simulated behind a throttle."""
        return "simulated" if self.throttle else "measured"

    def __enter__(self) -> Self:
        """Make the folder ready.

        Raises:
            StorageError: another run holds it, no permission, a marker that is not ours, a failing disk.
        """
        with contextlib.ExitStack() as stack:
            with storage_errors(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_held(self.path))
            _remove_leftovers(self.path)
            self._write_marker([])
            self.access = _access(self.path)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A disk that fails on the way out must not hide what failed before.
        with contextlib.suppress(*([StorageError] if error else [])), self._stack:
            for file in self._files.values():
                file.close()
            _remove(self.path / name for name in (*self._files, MARKER))  # the marker last
            self._files.clear()

    def create(self, name: str, size: int) -> TierFile:
        """A new file in the folder, closed and removed with it.

        Args:
            name: free in the folder; letters, digits, "_", "-" and ".".
            size: bytes, rounded up to a multiple of `access.alignment`.

        Raises:
            StorageError: no space, the name is taken, a file system that cannot reserve space.
        """
        path = self.path / name
        if not _NAME.fullmatch(name) or name == MARKER:
            raise ValueError(f"{name!r} cannot be the name of a file in {self.path}")
        if os.path.lexists(path):  # a name is free again once its file is removed
            remedy = "Remove it if nobody needs it, or take another folder: only files that gnnrec made are overwritten"
            raise StorageError("is in the way", where=str(path), remedy=remedy)
        self._write_marker([*dict.fromkeys([*self._files, name])])  # first: what a killed run leaves is always named
        self._files[name] = TierFile(path, size, self.access, self.throttle)
        return self._files[name]

    def _write_marker(self, names: list[str]) -> None:
        content = {
            "format": FORMAT,
            "version": VERSION,
            "state": "dirty",  # always: there is no moment at which the files could be taken for a checkpoint
            "pid": os.getpid(),
            "run": self.run,
            "files": names,
        }
        atomic_write(self.path / MARKER, json.dumps(content, indent=1).encode())


def is_tier_folder(path: str | os.PathLike[str]) -> bool:
    """Whether live tensors of a run lie in this folder, or were left there: nothing that can be resumed from."""
    return os.path.lexists(Path(path, MARKER))


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed run left in the folder, by its marker; nothing where there is none.

    Raises:
        StorageError: another run holds it, a marker that is not ours.
    """
    if is_tier_folder(folder):
        with _held(folder):
            _remove_leftovers(folder)
            _remove([folder / MARKER])


def _held(folder: Path) -> contextlib.AbstractContextManager[None]:
    return locked(folder / _LOCK, "another run keeps its tensors in this folder")


def _remove_leftovers(folder: Path) -> None:
    """Remove what a killed run made, by its marker; the lock is ours, so nobody is at work here."""
    marker = folder / MARKER
    _remove(folder.glob(f".tmp-{marker.stem}-*{marker.suffix}"))  # of a run that was killed while it wrote the marker
    if not is_tier_folder(folder):
        return
    with storage_errors(marker):
        text = marker.read_bytes()
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    known = isinstance(content, dict) and (content.get("format"), content.get("version")) == (FORMAT, VERSION)
    names = content.get("files") if known else None
    if not isinstance(names, list) or not all(isinstance(name, str) and _NAME.fullmatch(name) for name in names):
        remedy = "Another version may have written it: empty the folder if nobody needs it, or take another one"
        raise StorageError("is no marker that this version reads", where=str(marker), remedy=remedy)
    _remove(folder / name for name in names)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with storage_errors(path):
            path.unlink(missing_ok=True)


def _reserve(path: Path, descriptor: int, size: int) -> None:
    """Give the file its blocks now, so that no later write, and no store into a mapping, finds the disk full.

    fallocate(2) itself: the C library's posix_fallocate writes to every block where the file system cannot.
    """
    space = os.fstatvfs(descriptor)
    free = space.f_bavail * space.f_frsize
    try:
        if size > free:  # not even for a moment is the disk filled to the brim
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        _fallocate(descriptor, size)
    except OSError as error:
        found = f"{in_bytes(size)} cannot be reserved, {in_bytes(free)} are free: {sysfs.why(error)}"
        raise StorageError(found, where=str(path), remedy=_remedy(error)) from error


def _fallocate(descriptor: int, size: int) -> None:
    while size and _libc.fallocate(descriptor, 0, ctypes.c_int64(0), ctypes.c_int64(size)):
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


def _remedy(error: OSError) -> str:
    return REMEDIES.get(error.errno or 0, f"The device or its file system refuses: {_LOG}, or take another folder")


def _access(folder: Path) -> Access:
    """How files of this folder are read and written: past the page cache if its file system does that."""
    mount = sysfs.mount_of(folder.resolve(), sysfs.mounts(Path("/")))
    if mount and mount.kind in _IN_MEMORY:  # tmpfs takes O_DIRECT since Linux 6.6, to no effect
        return Access(BLOCK, f"{mount.kind} lies in DRAM")
    with storage_errors(folder), tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
        probe.truncate(BLOCK)
        alignment = probes.direct_alignment(probe.fileno())
        if alignment == 0 or (alignment is None and probes.direct_io(probe.fileno())):
            return Access(BLOCK, "the file system refuses O_DIRECT: transfers pass through the page cache")
        return Access(max(BLOCK, alignment or 0))
