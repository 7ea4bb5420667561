"""Downloads over http(s) that resume, verify what came, and show a file under its name only when it is whole.

Bytes go to `NAME.part`, and what identifies the version they belong to (ETag or Last-Modified) to `NAME.part.json`. A
later try, or a later run, asks for the rest of that version; a server that has another one, or that does not know
ranges, sends all of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from email.message import Message
from pathlib import Path
from typing import IO, Any

from gnnrec.errors import DownloadError
from gnnrec.storage import fsync, storage_errors

Progress = Callable[[int, int | None], None]

_CHUNK_BYTES = 1 << 16
_RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504}
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")


def download(
    url: str,
    path: str | os.PathLike[str],
    sha256: str | None = None,
    size: int | None = None,
    progress: Progress | None = None,
    timeout: float = 30.0,
    *,
    attempts: int = 5,
    backoff_s: float = 0.5,
) -> Path:
    """Fetches a file.

    Args:
        url: http or https; redirects are followed, but not from https to http.
        path: where the file goes; its folder is made. What stands there is replaced when the new file has verified.
        sha256: expected digest, hexadecimal.
        size: expected number of bytes.
        progress: called with (bytes so far, bytes in all or None) as they come.
        timeout: seconds without an answer after which a try is given up.
        attempts: tries in all; each continues where the one before it ended, if that can be done safely.
        backoff_s: seconds before the second try; doubled for each one after it.

    Returns:
        `path`.

    Raises:
        DownloadError: the server refuses or cannot be reached (what came is kept for the next call), what it sends does
            not verify (nothing is kept), or another process is downloading to `path`.
        StorageError: the file cannot be written.
    """
    _check_scheme(url)
    target = Path(path)
    with contextlib.closing(_Part(target, url)) as part:
        for attempt in range(attempts):
            if attempt:
                time.sleep(backoff_s * 2 ** (attempt - 1))
            try:
                if sha256 is None or part.size != size:
                    _receive(part, size, sha256, progress, timeout)
            except _TryAgain as error:
                problem = str(error)
                continue
            problem = part.mismatch(size, sha256)
            if not problem:
                part.publish(target)
                return target
            came_whole = not part.pieced
            part.restart()
            if came_whole:  # so it would come again
                break
        kept = (
            f"What came is kept ({part.size} bytes): call again to go on from there, or check" if part.size else "Check"
        )
    raise DownloadError(
        f"{problem} (try {attempt + 1} of {attempts})",
        where=url,
        remedy=f"{kept} the network and the address, or put the file at {target} by hand",
    )


class _TryAgain(Exception):
    """A failure that another try may mend."""


class _Part:
    """The file that grows beside the target; one process at a time may hold it.

    Attributes:
        validator: ETag or Last-Modified of the version that the bytes belong to, None where the server gave none.
        pieced: the bytes came in more than one answer, or in another call.
    """

    def __init__(self, target: Path, url: str) -> None:
        self.path = target.with_name(target.name + ".part")
        self._notes = target.with_name(target.name + ".part.json")
        self.url = url
        with storage_errors(self.path):
            target.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (close() closes it)
        self._lock()
        self.pieced = True
        self.validator: str | None = None
        with contextlib.suppress(FileNotFoundError, ValueError):  # no notes, or half of them: then no validator
            notes = json.loads(self._notes.read_text())
            self.validator = notes.get("validator") if notes.get("url") == url else None

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.path))
        except (BlockingIOError, FileNotFoundError):
            ours = False
        if not ours:  # locked, or finished and renamed since we opened it
            self._file.close()
            found = f"another process is downloading to {self.path}"
            raise DownloadError(found, where=self.url, remedy="Wait until it has finished, and call again")

    @property
    def size(self) -> int:
        """Bytes so far."""
        return os.fstat(self._file.fileno()).st_size

    def restart(self) -> None:
        """Forgets all bytes and the version they belong to."""
        self.pieced, self.validator = False, None
        with storage_errors(self.path):
            if self.size:
                self._file.truncate(0)

    def note(self, validator: str | None) -> None:
        """Keeps on disk what version the bytes to come belong to."""
        self.validator = validator
        with storage_errors(self._notes):
            self._notes.write_text(json.dumps({"url": self.url, "validator": validator}))

    def append(self, chunk: bytes) -> None:
        left = memoryview(chunk)
        with storage_errors(self.path):
            while left:
                left = left[self._file.write(left) :]

    def mismatch(self, size: int | None, sha256: str | None) -> str:
        """What differs from the expectation; empty where nothing does."""
        if size is not None and self.size != size:
            return f"{self.size} bytes came, {size} were expected"
        if sha256 is not None:
            with self.path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != sha256.lower():
                return f"a file with SHA-256 {digest} came, {sha256.lower()} was expected"
        return ""

    def publish(self, target: Path) -> None:
        with storage_errors(target):
            os.fsync(self._file.fileno())
            os.replace(self.path, target)
            fsync(target.parent)
            self._notes.unlink(missing_ok=True)

    def close(self) -> None:
        if not self.size:
            self.path.unlink(missing_ok=True)
            self._notes.unlink(missing_ok=True)
        self._file.close()


def _receive(part: _Part, size: int | None, sha256: str | None, progress: Progress | None, timeout: float) -> None:
    """One request, for what is missing; its answer goes into the part.

    Raises:
        _TryAgain: it failed, or ended early. The part is left with what can be continued.
        DownloadError: to ask again is no use.
    """
    if part.validator is None and sha256 is None:  # nothing could tell whether the pieces belong together
        part.restart()
    headers = {"User-Agent": "gnnrec", "Accept-Encoding": "identity"}
    if part.size:
        headers["Range"] = f"bytes={part.size}-"
        if part.validator is not None:
            headers["If-Range"] = part.validator
    with _open(urllib.request.Request(part.url, headers=headers), timeout) as answer:
        if answer.status == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return _check_end(part, answer.headers)
        total = _begin(part, answer)
        if size is not None and total not in (None, size):
            part.restart()
            remedy = "The file there may be a new one: check the address and the version of what expects it"
            raise DownloadError(f"the server has {total} bytes, {size} were expected", where=part.url, remedy=remedy)
        total = size if total is None else total
        for chunk in _chunks(answer):
            part.append(chunk)
            if progress is not None:
                progress(part.size, total)
            if total is not None and part.size > total:
                break
    if total is not None and part.size < total:
        raise _TryAgain(f"the connection ended after {part.size} of {total} bytes")
    return None


def _begin(part: _Part, answer: Any) -> int | None:
    """Makes the part ready for an answer with content; returns the size of the whole file where the server tells it."""
    validator = _validator(answer.headers)
    if answer.status == http.HTTPStatus.PARTIAL_CONTENT:
        match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        same_version = validator in (None, part.validator) or part.validator is None
        if not (part.size and match and match[1] == str(part.size) and same_version):
            part.restart()
            raise _TryAgain("the server sent another range, or another version, than it was asked for")
        part.pieced = True
        return None if match[2] == "*" else int(match[2])
    if answer.status != http.HTTPStatus.OK:
        raise DownloadError(f"the server answered {answer.status} {answer.reason}", where=part.url)
    part.restart()
    part.note(validator)
    length: int | None = answer.length
    return length


def _check_end(part: _Part, headers: Message) -> None:
    """Handles the answer that there are no bytes from the part's end on: right, if that is the file's end."""
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    if not (match and match[2] == str(part.size)):
        part.restart()
        raise _TryAgain("the server has fewer bytes than came from it before")


def _validator(headers: Message) -> str | None:
    """What tells versions of a file apart; a weak ETag may stay when bytes change (RFC 9110, 8.8.1)."""
    etag = headers.get("ETag")
    return etag if etag is not None and not etag.startswith("W/") else headers.get("Last-Modified")


def _open(request: urllib.request.Request, timeout: float) -> Any:
    """The answer to a request; one that says the range is not satisfiable counts as an answer, too."""
    opener = urllib.request.OpenerDirector()  # build_opener would add handlers for file:, ftp: and data:
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        _Redirects(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    try:
        return opener.open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and request.has_header("Range"):
            return error
        error.close()
        found = f"the server answered {error.code} {' '.join(str(error.reason).split())}"
        if error.code in _RETRIED_STATUS:
            raise _TryAgain(found) from error
        remedy = "Check the address; the file may have moved"
        raise DownloadError(found, where=request.full_url, remedy=remedy) from error
    except (OSError, http.client.HTTPException) as error:
        raise _TryAgain(f"no answer: {getattr(error, 'reason', None) or error or type(error).__name__}") from error


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a few redirects, to http and https only, and never from https back to http."""

    max_redirections = 5

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        _check_scheme(newurl, req.full_url)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_scheme(url: str, redirected_from: str | None = None) -> None:
    allowed = {"https"} if redirected_from and redirected_from.startswith("https:") else {"https", "http"}
    if url.partition(":")[0].lower() not in allowed:
        raise DownloadError(
            f"{url!r} is no {' or '.join(sorted(allowed))} address",
            where=redirected_from and f"redirect from {redirected_from}",
            remedy="Give the address of the file on a web server",
        )


def _chunks(answer: Any) -> Iterator[bytes]:
    while True:
        try:
            chunk = answer.read(_CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise _TryAgain(f"the connection failed: {error or type(error).__name__}") from error
        if not chunk:
            return
        yield chunk
