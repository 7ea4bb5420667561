"""Direct placement: torch tensors whose memory lies on a tier that processors reach, for kernels to work on as it is.

    with Arena(tier) as arena:
        placed = arena.allocate("embedding", (rows, dim), torch.float32)
        placed.tensor, print(placed.share())

dram, numa: anonymous memory, bound to the tier's nodes before it is first touched. pmem: a file on a DAX file system,
mapped with MAP_SYNC, which a file system without DAX refuses. devdax: a range of the device. file: a mapped file, which
the processors see through the page cache only.

Source: mbind(2), move_pages(2), mincore(2), mmap(2); the system calls themselves, since not every machine has libnuma.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import math
import mmap
import os
import platform
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from gnnrec.errors import StorageError
from gnnrec.memtier import sysfs
from gnnrec.memtier.files import TierFolder, TierMemoryError, aligned
from gnnrec.memtier.tiers import Tier
from gnnrec.storage import locked, storage_errors
from gnnrec.units import in_bytes

_SYSCALLS = {  # asm/unistd.h
    "x86_64": {"mbind": 237, "move_pages": 279},
    "aarch64": {"mbind": 235, "move_pages": 239},
}
_MPOL_BIND, _MPOL_F_STATIC_NODES = 2, 1 << 15  # linux/mempolicy.h
_MAP_SHARED_VALIDATE, _MAP_SYNC = 0x03, 0x80000  # asm-generic/mman.h; Python 3.11 does not name them
_MAX_NODES = 1024
_PAGES_AT_A_TIME = 1 << 16
_NODES = Path("/sys/devices/system/node")
_DAX = Path("/sys/bus/dax/devices")
_OTHER_TIER = "Pin the tensor to another tier: `gnnrec tiers` lists them"
_REMEDIES = {
    errno.EPERM: "A container forbids it: allow the system calls mbind and move_pages (docker run --cap-add=SYS_NICE)",
    errno.ENOSYS: "This kernel has no NUMA support: use memory=dram",
    errno.EINVAL: "The node is not there, or this process may not use it (cpuset.mems): see `gnnrec tiers`",
}
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


@dataclass(frozen=True)
class Share:
    """How much of a tensor really lies on its tier.

    Args:
        fraction: of its pages; None where the system does not say.
        basis: how that is known, or why it is not.
    """

    fraction: float | None
    basis: str

    def __str__(self) -> str:
        return f"unavailable: {self.basis}" if self.fraction is None else f"{self.fraction:.1%}, {self.basis}"


# Bytes that start on a page, and how much of them lies on the tier; made for a tensor's name and a number of bytes.
_Mapped = tuple[npt.NDArray[np.uint8], Callable[[], Share]]
_Source = Callable[[str, int], _Mapped]


@dataclass(frozen=True)
class Placed:
    """A tensor on a tier.

    Args:
        name: of the tensor.
        tensor: zeros at first; its memory lives as long as a view of it.
        tier: where it lies.
        share: asks the system how much of it does.
    """

    name: str
    tensor: torch.Tensor
    tier: Tier
    share: Callable[[], Share]


class Arena:
    """Hands out tensors on one tier; a context manager, within which they are to be used.

    Args:
        tier: a direct one, or a file.
        huge: ask for huge pages, on dram and numa; DAX maps 2 MiB at a time by itself.
        run: whom files on the tier belong to, such as the run directory.

    Raises:
        TierMemoryError: a tier that is unavailable or has no memory for processors; huge pages of a file.
    """

    def __init__(self, tier: Tier, *, huge: bool = False, run: str = "") -> None:
        if tier.unavailable:
            raise TierMemoryError(f"is unavailable: {tier.unavailable}", where=tier.name, remedy=_OTHER_TIER)
        if tier.kind not in _SOURCES:
            found = f"kind {tier.kind} is no memory that processors work in"
            raise TierMemoryError(found, where=tier.name, remedy=_OTHER_TIER)
        if huge and tier.kind not in ("dram", "numa"):
            remedy = "Ask for huge pages on dram and numa only"
            raise TierMemoryError(f"huge pages have no effect on kind {tier.kind}", where=tier.name, remedy=remedy)
        self.tier = tier
        self._huge, self._run = huge, run
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Open the tier.

        Raises:
            GnnrecError: the folder or device is in use, missing or forbidden.
        """
        self._mapped = self._stack.enter_context(_SOURCES[self.tier.kind](self.tier, self._huge, self._run))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def allocate(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Placed:
        """A tensor of zeros on the tier.

        Args:
            name: of the tensor and its file, unique in this arena.
            shape: of any number of dimensions.
            dtype: of torch.

        Raises:
            GnnrecError: no room on the tier, or the system forbids what it takes.
        """
        size = math.prod(shape) * dtype.itemsize
        memory, share = self._mapped(name, max(size, 1))
        flat = torch.from_numpy(memory)
        if self.tier.kind != "file":  # its zeros need no writing, which would push the whole of it through DRAM
            flat.zero_()  # by all threads; this is the first touch, so pages are on the tier from here on
        return Placed(name, flat[:size].view(dtype).view(tuple(shape)), self.tier, share)


@contextlib.contextmanager
def _on_nodes(tier: Tier, huge: bool, run: str) -> Iterator[_Source]:
    named = re.search(r"\d+$", tier.where)  # none: all memory there is, so there is nothing to bind against
    nodes = [int(named[0])] if named else sorted(sysfs.id_list(sysfs.text(_NODES / "has_memory") or "0"))

    def mapped(name: str, size: int) -> _Mapped:
        where = f"{tier.name}: {name}"
        _check_free(where, size, nodes)
        memory = aligned(size, huge=huge)
        if named:
            _bind(where, memory, nodes)
        return memory, lambda: _share_on(memory, nodes)

    yield mapped


@contextlib.contextmanager
def _in_files(tier: Tier, huge: bool, run: str) -> Iterator[_Source]:
    def mapped(name: str, size: int) -> _Mapped:
        file = folder.create(name, size)
        if tier.kind == "pmem":
            memory = map_file(str(file.path), file.fileno(), file.size, _MAP_SHARED_VALIDATE | _MAP_SYNC)
            return memory, lambda: Share(1.0, "mapped with MAP_SYNC")
        memory = map_file(str(file.path), file.fileno(), file.size, mmap.MAP_SHARED)
        return memory, lambda: _share_outside_page_cache(memory)

    with TierFolder(tier.where, run=run) as folder:
        yield mapped


@contextlib.contextmanager
def _on_device(tier: Tier, huge: bool, run: str) -> Iterator[_Source]:
    path = Path(tier.where)
    size, alignment = (sysfs.number(_DAX / path.name / fact) for fact in ("size", "align"))
    if size is None or alignment is None:
        remedy = "Give a device in devdax mode, such as /dev/dax0.0: `gnnrec tiers` lists them"
        raise TierMemoryError(f"is no device of {_DAX}", where=str(path), remedy=remedy)
    ranges = Ranges(size, alignment)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        remedy = "Give this user, or this container, the device"
        raise TierMemoryError(f"cannot be opened: {sysfs.why(error)}", where=str(path), remedy=remedy) from error

    def mapped(name: str, size: int) -> _Mapped:
        where = f"{path}: {name}"
        offset, length = ranges.take(where, size)
        memory = map_file(where, descriptor, length, mmap.MAP_SHARED, offset)
        return memory, lambda: Share(1.0, f"mapped from {path}")

    try:
        with locked(path, f"another run keeps its tensors in {path.name}"):
            yield mapped
    finally:
        os.close(descriptor)


# Each opens a tier for a while and gives the function that maps bytes of it.
_SOURCES: dict[str, Callable[[Tier, bool, str], contextlib.AbstractContextManager[_Source]]] = {
    "dram": _on_nodes,
    "numa": _on_nodes,
    "pmem": _in_files,
    "devdax": _on_device,
    "file": _in_files,
}


class Ranges:
    """Hands out a device's bytes from its start on; all are free again with the next one.

    Args:
        size: bytes of the device.
        alignment: bytes of the least that can be mapped.
    """

    def __init__(self, size: int, alignment: int) -> None:
        self.size, self.alignment = size, alignment
        self._taken = 0

    def take(self, where: str, size: int) -> tuple[int, int]:
        """The offset and length, both aligned, of a range of at least `size` bytes.

        Raises:
            TierMemoryError: no room left.
        """
        length = -(-size // self.alignment) * self.alignment
        if length > self.size - self._taken:
            found = f"needs {in_bytes(length)}, {in_bytes(self.size - self._taken)} of {in_bytes(self.size)} are free"
            raise TierMemoryError(found, where=where, remedy=_OTHER_TIER)
        offset, self._taken = self._taken, self._taken + length
        return offset, length


def map_file(where: str, descriptor: int, size: int, flags: int, offset: int = 0) -> npt.NDArray[np.uint8]:
    """The mapping as an array, which ends with the last view of it.

    Whether a file is as long as it was made is looked at now. A device that fails to read a page later on, or somebody
    who cuts the file, cannot be told as an error: the system ends the process with SIGBUS, and a command of ours says
    no more than where it was (`process.prepare`). Checkpoints are no mapped files.

    Raises:
        StorageError: a file that is shorter.
        TierMemoryError: the system does not map it.
    """
    with storage_errors(where):
        there = os.fstat(descriptor)
    if stat.S_ISREG(there.st_mode) and there.st_size < offset + size:
        found = f"has {in_bytes(there.st_size)} where it was made with {in_bytes(offset + size)}"
        raise StorageError(found, where=where, remedy="The file was cut: let nothing else touch the folder")
    try:
        return np.frombuffer(mmap.mmap(descriptor, size, flags=flags, offset=offset), np.uint8)
    except OSError as error:
        if flags & _MAP_SYNC and error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            found = f"MAP_SYNC is refused ({sysfs.why(error)}): this file system is not DAX on persistent memory"
            remedy = "Mount it with -o dax=always on an fsdax namespace, or use the folder as a tier of kind file"
        else:
            found = f"{in_bytes(size)} cannot be mapped: {sysfs.why(error)}"
            remedy = "Raise this process's limit on memory (ulimit -v), or pin the tensor to another tier"
        raise TierMemoryError(found, where=where, remedy=remedy) from error


def _check_free(where: str, size: int, nodes: list[int]) -> None:
    """Refuse what does not fit now: the kernel would kill the process when it touches the pages."""
    sizes = [sysfs.sizes(_NODES / f"node{node}" / "meminfo") for node in nodes]
    if not all(sizes):  # the kernel does not say
        return
    # Copies of files give way.
    free = sum(found.get(name, 0) for found in sizes for name in ("MemFree", "Active(file)", "Inactive(file)"))
    if size > free:
        found = f"needs {in_bytes(size)}, but {in_bytes(free)} are free on node {_words(nodes)}"
        raise TierMemoryError(found, where=where, remedy=_OTHER_TIER)


def _bind(where: str, memory: npt.NDArray[np.uint8], nodes: list[int]) -> None:
    """Let pages come from these nodes and no other; before the first touch."""
    mask = np.zeros(_MAX_NODES // 64, np.uint64)
    for node in nodes:
        mask[node // 64] |= np.uint64(1 << node % 64)
    mode = _MPOL_BIND | _MPOL_F_STATIC_NODES  # static: a change of the cpuset does not move it to other nodes
    try:
        # The kernel takes one bit less than it is told.
        _system_call("mbind", _address(memory), memory.nbytes, mode, _address(mask), _MAX_NODES + 1, 0)
    except OSError as error:
        found = f"cannot be bound to node {_words(nodes)}: {sysfs.why(error)}"
        raise TierMemoryError(found, where=where, remedy=_REMEDIES.get(error.errno or 0, _OTHER_TIER)) from error


def _share_on(memory: npt.NDArray[np.uint8], nodes: list[int]) -> Share:
    """The share of an array's pages that lie on the nodes; pages that nobody touched lie nowhere."""
    first = _address(memory)
    pages = np.arange(first, first + memory.nbytes, mmap.PAGESIZE, dtype=np.uint64)
    found = 0
    for start in range(0, len(pages), _PAGES_AT_A_TIME):
        part = pages[start : start + _PAGES_AT_A_TIME]
        status = np.empty(len(part), np.int32)  # a node, or an error number below 0
        try:
            _system_call("move_pages", 0, len(part), _address(part), 0, _address(status), 0)
        except OSError as error:
            return Share(None, f"move_pages failed: {sysfs.why(error)}. {_REMEDIES.get(error.errno or 0, _OTHER_TIER)}")
        found += int(np.isin(status, nodes).sum())
    return Share(found / len(pages), f"pages on node {_words(nodes)} (move_pages)")


def _share_outside_page_cache(memory: npt.NDArray[np.uint8]) -> Share:
    """The share of a mapped file's pages that only the file has."""
    resident = np.empty(-(-memory.nbytes // mmap.PAGESIZE), np.uint8)
    arguments = (_address(memory), memory.nbytes, _address(resident))
    if _libc.mincore(*map(ctypes.c_void_p, arguments)):
        return Share(None, f"mincore failed: {os.strerror(ctypes.get_errno())}")
    cached = int((resident & 1).sum())
    return Share(1 - cached / len(resident), "the other pages lie in the page cache, in DRAM (mincore)")


def _system_call(name: str, *arguments: int) -> None:
    number = _SYSCALLS.get(platform.machine(), {}).get(name)
    if number is None:
        raise OSError(errno.ENOSYS, f"the number of {name} on {platform.machine()} is unknown")
    if _libc.syscall(*map(ctypes.c_long, (number, *arguments))):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _address(memory: npt.NDArray[Any]) -> int:
    return int(memory.ctypes.data)


def _words(nodes: list[int]) -> str:
    return " or ".join(map(str, nodes))
