"""Downloads from a local server that breaks off, redirects and lies."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import threading
import urllib.request

import pytest
from webserver import BODY, always, good, names, ranges, send, serving

from gnnrec.data import download as module
from gnnrec.data.download import _CHUNK_BYTES, _Redirects, download
from gnnrec.errors import DownloadError, StorageError

SHA = hashlib.sha256(BODY).hexdigest()
NEW = BODY[::-1]


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving() as server:
        yield server


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data" / "file"  # its folder does not exist


def breaks(after, body=BODY, etag='"v1"', **headers):
    """A server that promises all and closes the connection after some bytes."""
    headers |= {} if etag is None else {"ETag": etag}
    return lambda handler: send(handler, 200, body[:after], length=len(body), **headers)


def fetch(server, path, **kwargs):
    return download(f"{server.url}/file", path, timeout=5, backoff_s=0, **kwargs)


def test_download_and_progress(server, path):
    server.answers = [good()]
    seen = []
    assert fetch(server, path, sha256=SHA.upper(), size=len(BODY), progress=lambda *now: seen.append(now)) == path
    assert path.read_bytes() == BODY
    assert names(path.parent) == ["file"]
    assert seen[-1] == (len(BODY), len(BODY))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {total for _, total in seen} == {len(BODY)}
    assert len(server.requests) == 1
    assert server.requests[0][1]["Accept-Encoding"] == "identity"


def test_without_expectations_and_without_length(server, path):
    server.answers = [lambda handler: send(handler, 200, BODY, length="none")]
    seen = []
    fetch(server, path, progress=lambda *now: seen.append(now))
    assert path.read_bytes() == BODY
    assert seen[-1] == (len(BODY), None)


def test_empty_file(server, path):
    server.answers = [always(200)]
    fetch(server, path, size=0)
    assert path.read_bytes() == b""
    assert names(path.parent) == ["file"]


def test_replaces_an_older_file_only_when_verified(server, path):
    path.parent.mkdir()
    path.write_text("old")
    server.answers = [always(200, b"wrong")]
    with pytest.raises(DownloadError, match="SHA-256"):
        fetch(server, path, sha256=SHA)
    assert path.read_text() == "old"
    assert names(path.parent) == ["file"]
    server.answers = [good()]
    fetch(server, path, sha256=SHA)
    assert path.read_bytes() == BODY


@pytest.mark.parametrize("known", [{}, {"sha256": SHA}, {"size": len(BODY)}])
def test_continues_where_the_connection_broke(server, path, known):
    server.answers = [breaks(300_000), good()]
    fetch(server, path, **known)
    assert path.read_bytes() == BODY
    assert ranges(server) == [None, "bytes=300000-"]
    assert server.requests[1][1]["If-Range"] == '"v1"'
    assert names(path.parent) == ["file"]


def test_breaks_again_and_again(server, path):
    def bit_by_bit(handler):
        start = int((handler.headers.get("Range") or "bytes=0-")[6:-1])
        status = 206 if start else 200
        span = {"Content_Range": f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"} if start else {}
        send(handler, status, BODY[start : start + 100_000], length=len(BODY) - start, ETag='"v1"', **span)

    server.answers = [bit_by_bit]
    with pytest.raises(DownloadError, match=r"ended after 300000 of 1024000 bytes \(try 3 of 3\)") as error:
        fetch(server, path, sha256=SHA, attempts=3)
    assert "What came is kept (300000 bytes)" in str(error.value)
    assert f"put the file at {path} by hand" in str(error.value)
    assert names(path.parent) == ["file.part", "file.part.json"]
    fetch(server, path, sha256=SHA, attempts=8)
    assert ranges(server)[3] == "bytes=300000-"
    assert path.read_bytes() == BODY


def test_broken_chunked_answer(server, path):
    def chunked(handler):
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.send_header("ETag", '"v1"')
        handler.end_headers()
        handler.wfile.write(b"4E20\r\n" + BODY[:20000] + b"\r\n4E20\r\n" + BODY[20000:30000])
        handler.close_connection = True

    server.answers = [chunked, good()]
    fetch(server, path, sha256=SHA)
    assert path.read_bytes() == BODY
    assert len(server.requests) == 2


def test_a_server_without_ranges_sends_all_again(server, path):
    server.answers = [breaks(300_000), always(200, BODY, ETag='"v1"')]
    fetch(server, path, sha256=SHA)
    assert path.read_bytes() == BODY
    assert ranges(server) == [None, "bytes=300000-"]


def test_file_that_changes_between_tries(server, path):
    server.answers = [breaks(300_000), good(NEW, '"v2"')]  # If-Range does not match: the new file whole
    fetch(server, path)
    assert path.read_bytes() == NEW


def test_file_that_changes_on_a_server_that_ignores_if_range(server, path):
    def careless(handler):
        if handler.headers.get("Range") is None:
            return send(handler, 200, NEW, ETag='"v2"')
        return send(handler, 206, NEW[300_000:], Content_Range="bytes 300000-1023999/1024000", ETag='"v2"')

    server.answers = [breaks(300_000), careless]
    fetch(server, path)
    assert path.read_bytes() == NEW
    assert ranges(server) == [None, "bytes=300000-", None]


def test_pieces_of_two_versions_without_validators_do_not_verify(server, path):
    server.answers = [breaks(300_000, NEW, etag=None), good(etag=None)]
    fetch(server, path, sha256=SHA)
    assert path.read_bytes() == BODY
    assert ranges(server) == [None, "bytes=300000-", None]  # continued, did not verify, all again


def test_no_validator_and_no_checksum_starts_again(server, path):
    server.answers = [breaks(300_000, etag=None), good(etag=None)]
    fetch(server, path)
    assert ranges(server) == [None, None]
    assert path.read_bytes() == BODY


def test_weak_etag_is_no_validator_but_the_date_is(server, path):
    server.answers = [breaks(300_000, etag='W/"v1"', Last_Modified="Mon, 01 Jan 2024 00:00:00 GMT"), good(etag=None)]
    fetch(server, path, sha256=SHA)
    assert server.requests[1][1]["If-Range"] == "Mon, 01 Jan 2024 00:00:00 GMT"


@pytest.mark.parametrize(
    "span", ["bytes 0-1023999/1024000", "bytes 299999-1023999/1024000", "nonsense", "bytes */1024000"]
)
def test_wrong_content_range_is_not_appended(server, path, span):
    server.answers = [breaks(300_000), always(206, BODY[300_000:], Content_Range=span, ETag='"v1"'), good()]
    fetch(server, path, size=len(BODY))
    assert path.read_bytes() == BODY
    assert ranges(server) == [None, "bytes=300000-", None]


def test_partial_content_that_nobody_asked_for(server, path):
    server.answers = [always(206, BODY[5:], Content_Range="bytes 5-1023999/1024000")]
    with pytest.raises(DownloadError, match="another range"):
        fetch(server, path, attempts=2)
    assert names(path.parent) == []


def test_part_that_was_complete(server, path):
    server.answers = [breaks(300_000)]
    with pytest.raises(DownloadError):
        fetch(server, path, attempts=1)
    (path.parent / "file.part").write_bytes(BODY)
    server.answers = [good()]
    fetch(server, path, sha256=SHA)  # the server says 416: there is no more
    assert ranges(server)[1:] == ["bytes=1024000-"]
    assert path.read_bytes() == BODY
    (path.parent / "file.part").write_bytes(BODY)
    fetch(server, path, sha256=SHA, size=len(BODY))  # known to be all: no request
    assert len(server.requests) == 2
    (path.parent / "file.part").write_bytes(NEW)
    fetch(server, path, size=len(BODY))  # as long as it should be, but of no known version
    assert ranges(server)[2:] == [None]
    assert path.read_bytes() == BODY


def test_part_that_is_too_long(server, path):
    path.parent.mkdir()
    (path.parent / "file.part").write_bytes(BODY + b"more")
    server.answers = [good()]
    fetch(server, path, sha256=SHA)
    assert ranges(server) == ["bytes=1024004-", None]
    assert path.read_bytes() == BODY
    server.answers = [breaks(300_000), always(416, Content_Range="bytes */1000"), good(BODY[:1000])]
    fetch(server, path)
    assert path.read_bytes() == BODY[:1000]


def test_part_of_another_address_has_no_validator(server, path):
    server.answers = [breaks(300_000), good()]
    with pytest.raises(DownloadError):
        fetch(server, path, attempts=1)
    download(f"{server.url}/other", path, timeout=5, backoff_s=0)
    assert ranges(server) == [None, None]


@pytest.mark.parametrize("notes", ["", "{", '{"url": 1}', "\xff"])
def test_damaged_notes_are_no_validator(server, path, notes):
    path.parent.mkdir()
    (path.parent / "file.part").write_bytes(NEW[:1000])
    (path.parent / "file.part.json").write_bytes(notes.encode("latin-1"))
    server.answers = [good()]
    fetch(server, path)
    assert path.read_bytes() == BODY


def test_length_that_is_too_long(server, path):
    server.answers = [lambda handler: send(handler, 200, BODY, length=len(BODY) + 1000)]
    with pytest.raises(DownloadError, match=r"ended after 1024000 of 1025000 bytes \(try 3 of 3\)"):
        fetch(server, path, attempts=3)
    with pytest.raises(DownloadError, match="the server has 1025000 bytes, 1024000 were expected"):
        fetch(server, path, size=len(BODY))
    assert names(path.parent) == []


def test_length_that_is_too_short(server, path):
    server.answers = [lambda handler: send(handler, 200, BODY, length=1000)]
    with pytest.raises(DownloadError, match="the server has 1000 bytes, 1024000 were expected"):
        fetch(server, path, size=len(BODY))
    server.requests.clear()
    with pytest.raises(DownloadError, match=f"SHA-256 .* came, {SHA} was expected"):
        fetch(server, path, sha256=SHA)
    assert len(server.requests) == 1  # it came whole: no use to ask again
    assert names(path.parent) == []


def test_more_bytes_than_expected_are_not_read_to_their_end(server, path):
    server.answers = [lambda handler: send(handler, 200, BODY, length="none")]
    with pytest.raises(DownloadError, match=f"{_CHUNK_BYTES} bytes came, 10 were expected"):
        fetch(server, path, size=10)
    assert names(path.parent) == []


def test_fewer_bytes_than_expected_from_a_server_that_names_no_length(server, path):
    server.answers = [lambda handler: send(handler, 200, BODY[:1000], length="none")]
    with pytest.raises(DownloadError, match="ended after 1000 of 1024000 bytes"):
        fetch(server, path, size=len(BODY), attempts=2)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_follows_redirects_and_keeps_the_range(server, path, status):
    def answer(handler):
        if handler.path == "/file":
            return send(handler, status, Location="/real")
        return good()(handler)

    path.parent.mkdir()
    (path.parent / "file.part").write_bytes(BODY[:1000])
    server.answers = [answer]
    fetch(server, path, sha256=SHA)
    assert path.read_bytes() == BODY
    assert [(name, headers["Range"]) for name, headers in server.requests] == [
        ("/file", "bytes=1000-"),
        ("/real", "bytes=1000-"),
    ]


def test_redirect_loops_end(server, path):
    server.answers = [always(302, Location="/file")]
    with pytest.raises(DownloadError, match="infinite loop"):
        fetch(server, path)
    assert len(server.requests) <= 6
    server.requests.clear()
    server.answers = [lambda handler: send(handler, 302, Location=handler.path + "x")]  # never the same address
    with pytest.raises(DownloadError, match="infinite loop"):
        fetch(server, path)
    assert len(server.requests) <= 6


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/file", "data:,abc", "gopher://x/"])
def test_redirects_to_other_schemes_are_refused(server, path, target):
    server.answers = [always(302, Location=target)]
    with pytest.raises(DownloadError, match=re.escape(target)):
        fetch(server, path)
    assert len(server.requests) == 1
    assert names(path.parent) == []


def test_redirect_from_https_to_http_is_refused():
    request = urllib.request.Request("https://example.org/file")
    redirects = _Redirects()
    with pytest.raises(DownloadError, match=r"'http://example\.org/file' is no https address"):
        redirects.redirect_request(request, None, 302, "Found", {}, "http://example.org/file")
    assert redirects.redirect_request(request, None, 302, "Found", {}, "https://example.org/x").host == "example.org"


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://x/y", "data:,abc", "/etc/hostname", "", "://"])
def test_only_web_addresses(tmp_path, url):
    with pytest.raises(DownloadError, match="no http or https address"):
        download(url, tmp_path / "new" / "file")
    assert names(tmp_path) == []


@pytest.mark.parametrize("status", [204, 400, 401, 403, 404, 410, 416, 501])
def test_refusals_are_final(server, path, status):
    server.answers = [always(status)]
    with pytest.raises(DownloadError, match=rf"{server.url}/file: the server answered {status} \w+"):
        fetch(server, path)
    assert len(server.requests) == 1
    assert names(path.parent) == []


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_passing_failures_are_tried_again(server, path, status):
    server.answers = [always(status), always(status), good()]
    fetch(server, path)
    assert path.read_bytes() == BODY
    server.answers, server.requests[:] = [always(status)], []
    with pytest.raises(DownloadError, match=rf"answered {status} .*\(try 4 of 4\)"):
        fetch(server, path, attempts=4)
    assert len(server.requests) == 4


def test_connection_refused_and_reset(server, path):
    server.answers = [lambda handler: handler.connection.close(), good()]
    fetch(server, path, sha256=SHA)
    assert path.read_bytes() == BODY
    with pytest.raises(DownloadError, match=r"no answer: .*refused.*\(try 2 of 2\)"):
        download("http://127.0.0.1:1/file", path, backoff_s=0, attempts=2)


def test_silence_times_out(server, path):
    done = threading.Event()

    def silent(handler):
        done.wait(20)

    def stalls(handler):
        breaks(300_000)(handler)
        handler.wfile.flush()
        done.wait(20)

    server.answers = [silent, stalls, good()]
    download(f"{server.url}/file", path, sha256=SHA, timeout=0.2, backoff_s=0)
    done.set()
    assert ranges(server) == [None, None, f"bytes={300_000 // _CHUNK_BYTES * _CHUNK_BYTES}-"]
    assert path.read_bytes() == BODY


def test_backoff_doubles(server, path, monkeypatch):
    waits = []
    monkeypatch.setattr("gnnrec.data.download.time.sleep", waits.append)
    server.answers = [always(503)]
    with pytest.raises(DownloadError):
        download(f"{server.url}/file", path, timeout=5)
    assert waits == [0.5, 1, 2, 4]


def test_interruption_keeps_the_part(server, path):
    def interrupt(done, total):
        if done > 250_000:
            raise KeyboardInterrupt

    server.answers = [good()]
    with pytest.raises(KeyboardInterrupt):
        fetch(server, path, progress=interrupt)
    part = path.parent / "file.part"
    kept = part.stat().st_size
    assert 250_000 < kept < len(BODY)
    assert part.read_bytes() == BODY[:kept]
    fetch(server, path)
    assert ranges(server) == [None, f"bytes={kept}-"]
    assert path.read_bytes() == BODY


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_no_space_left(server, path):
    path.parent.mkdir()
    (path.parent / "file.part").symlink_to("/dev/full")
    server.answers = [good()]
    with pytest.raises(StorageError, match=r"file\.part: .*No space left.*ENOSPC"):
        fetch(server, path, sha256=SHA)
    assert len(server.requests) == 1  # not taken for a failure of the network
    assert not path.exists()


def test_no_space_left_keeps_the_part(server, path, monkeypatch):
    append = module._Part.append

    def full(part, chunk):
        if part.size > 250_000:
            with module.storage_errors(part.path):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(part, chunk)

    server.answers = [good()]
    with monkeypatch.context() as patch:
        patch.setattr(module._Part, "append", full)
        with pytest.raises(StorageError, match="No space left on device"):
            fetch(server, path)
    kept = (path.parent / "file.part").stat().st_size
    fetch(server, path)
    assert ranges(server) == [None, f"bytes={kept}-"]
    assert path.read_bytes() == BODY


def test_folder_that_cannot_be_made(server, tmp_path):
    (tmp_path / "plain").write_text("a file")
    with pytest.raises(StorageError, match="plain"):
        fetch(server, tmp_path / "plain" / "file")
    assert server.requests == []


def test_two_processes_do_not_write_one_part(server, path):
    path.parent.mkdir()
    server.answers = [good()]
    with (path.parent / "file.part").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DownloadError, match=r"another process is downloading to .*file\.part"):
            fetch(server, path)
    assert server.requests == []
    fetch(server, path)
    assert path.read_bytes() == BODY
