"""What a file system really does, found by trying it on an open file."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os

_PAGE = mmap.PAGESIZE
# linux/mman.h and linux/stat.h.
_MAP_SHARED_VALIDATE, _MAP_SYNC = 0x03, 0x80000
_AT_EMPTY_PATH, _STATX_DIOALIGN = 0x1000, 0x2000
_STATX_BYTES, _MASK_AT, _DIO_MEM_ALIGN_AT, _DIO_OFFSET_ALIGN_AT = 256, 0, 152, 156


def map_sync(descriptor: int) -> int:
    """Map a page of an open file with MAP_SYNC, as only fsdax allows: stores then reach the medium itself.

    Args:
        descriptor: of a file of at least a page, open for reading and writing.

    Returns:
        0, or the errno: EOPNOTSUPP where the page cache stands in between. Source: mmap(2).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    address = libc.mmap(None, _PAGE, protection, _MAP_SHARED_VALIDATE | _MAP_SYNC, descriptor, 0)
    if address == ctypes.c_void_p(-1).value:
        return ctypes.get_errno()
    libc.munmap(address, _PAGE)
    return 0


def direct_io(descriptor: int) -> int:
    """Write a page to an open file with O_DIRECT, past the page cache; some file systems accept the flag alone.

    Args:
        descriptor: of a file open for writing; its first page is overwritten.

    Returns:
        0, or the errno: EINVAL where the file system has no direct I/O. Source: open(2).
    """
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    with mmap.mmap(-1, _PAGE) as page:  # aligned as any device asks
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
            os.pwrite(descriptor, page, 0)
        except OSError as error:
            return error.errno or errno.EIO
        finally:
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
    return 0


def direct_alignment(descriptor: int) -> int | None:
    """Bytes that offsets, lengths and addresses of direct I/O on a file must be multiples of.

    0 where there is no direct I/O; None where kernel (before 6.1) or file system do not say. Source: statx(2).
    """
    statx = getattr(ctypes.CDLL(None, use_errno=True), "statx", None)  # not every libc has it
    found = ctypes.create_string_buffer(_STATX_BYTES)
    if statx is None or statx(descriptor, b"", _AT_EMPTY_PATH, _STATX_DIOALIGN, found) != 0:
        return None
    if not _field(found, _MASK_AT) & _STATX_DIOALIGN:
        return None
    return max(_field(found, _DIO_MEM_ALIGN_AT), _field(found, _DIO_OFFSET_ALIGN_AT))


def _field(buffer: ctypes.Array[ctypes.c_char], offset: int) -> int:
    return ctypes.c_uint32.from_buffer(buffer, offset).value
