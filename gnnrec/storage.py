"""Writing files and folders so that a reader sees the old one or the whole new one, never a part.

The order is the one that survives a power cut: write under a temporary name in the same folder, fsync, rename, fsync
the folder. What the operating system refuses becomes a `StorageError` that names the path, the error and the remedy.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from gnnrec.errors import StorageError

_TEMPORARY = re.compile(r"\.tmp-.+-(\d{1,7})(?:\.[^.]*)?")

_NO_ROOM = "Free some space, or write to another disk"
_NOT_ALLOWED = "Give this user permission to write there, or write to another folder"
_NO_FOLDER = "Create the folder first, or correct the path"
_IN_THE_WAY = "Remove what stands there, or choose another name"
_REMEDIES = {
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.EFBIG: "Raise the limit on file sizes (ulimit -f), or write to another file system",
    errno.EACCES: _NOT_ALLOWED,
    errno.EPERM: _NOT_ALLOWED,
    errno.EROFS: "The file system is mounted read-only: write to another folder",
    errno.EIO: "The disk failed to write: look into the system's log (dmesg), and write to another disk",
    errno.ENOENT: _NO_FOLDER,
    errno.ENOTDIR: _NO_FOLDER,
    errno.EEXIST: _IN_THE_WAY,
    errno.ENOTEMPTY: _IN_THE_WAY,
    errno.EISDIR: _IN_THE_WAY,
    errno.ENAMETOOLONG: "Choose a shorter name",
}


@contextlib.contextmanager
def storage_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an `OSError` that a user can mend into a `StorageError` about `path`; let any other one pass as it is."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        found = f"cannot be written: {os.strerror(error.errno)} ({errno.errorcode[error.errno]})"
        raise StorageError(found, where=str(path), remedy=_REMEDIES[error.errno]) from error


def atomic_write(path: str | os.PathLike[str], data: bytes | Callable[[Path], object]) -> None:
    """Write a file so that `path` holds the old content or all of the new one, also after a crash.

    Args:
        path: the final name; its folder must exist. Through a symbolic link, the file it points to is replaced.
        data: the content, or a function that writes it to the path it is given (which keeps the suffix of `path`).

    Raises:
        StorageError: no space, no permission, no such folder, an I/O error. `path` is then as it was before.
    """
    final = Path(os.path.realpath(path))
    temporary = _temporary(final)
    with storage_errors(path):
        try:
            if isinstance(data, bytes):
                temporary.write_bytes(data)
            else:
                data(temporary)
            fsync(temporary)
            os.replace(temporary, final)
            fsync(final.parent)
        finally:
            with contextlib.suppress(OSError):  # gone after the rename; a failure here must not hide the first one
                temporary.unlink()


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a folder so that `path` does not exist or holds everything, also after a crash.

    Yields a temporary folder beside `path`, to write into. On success its files are fsynced and it takes the name
    `path`; on any error it is removed.

    Raises:
        StorageError: as `atomic_write`, and where `path` exists already.
    """
    final = Path(path)
    temporary = _temporary(final)
    with storage_errors(path):
        if os.path.lexists(final):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        if temporary.exists():  # from an earlier process that had our number: common in containers
            shutil.rmtree(temporary)
        try:
            temporary.mkdir()
            yield temporary
            for folder, _, names in os.walk(temporary, topdown=False):
                for name in names:
                    fsync(Path(folder, name))
                fsync(Path(folder))
            os.rename(temporary, final)
            fsync(final.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path, found: str) -> Iterator[None]:
    """Hold the lock file `path` (created where missing) against other processes; it goes with the process.

    Raises:
        StorageError: another process holds it; the message says `found`.
    """
    with storage_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageError(found, where=str(path.parent), remedy="Wait for it, or use another folder") from error
        yield
    finally:
        os.close(descriptor)


def remove_folder(path: Path) -> None:
    """Remove a folder so that no part of it is ever seen under its own name.

    Raises:
        StorageError: no permission, an I/O error.
    """
    doomed = _temporary(path)
    with storage_errors(path):
        os.rename(path, doomed)
        shutil.rmtree(doomed)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders that killed processes left in `folder`.

    Those of a live process stay, except our own: call it where this process is not writing anything else into `folder`.
    """
    with storage_errors(folder):
        entries = list(folder.iterdir())
    for entry in entries:
        match = _TEMPORARY.fullmatch(entry.name)
        if match is None or _is_running(int(match[1])):
            continue
        with storage_errors(entry):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def fsync(path: Path) -> None:
    """Wait until the file, or the names in the folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and user-space file systems cannot sync a folder; there is nothing more to be had from them.
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def _temporary(path: Path) -> Path:
    return path.with_name(f".tmp-{path.stem}-{os.getpid()}{path.suffix}")


def _is_running(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's process: it exists
        return True
    return True
