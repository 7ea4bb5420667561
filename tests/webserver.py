"""A web server on the loopback interface that answers as a test tells it to."""

from __future__ import annotations

import contextlib
import http.server
import re
import threading

BODY = bytes(range(256)) * 4000  # 1,024,000 bytes: several chunks


class Server(http.server.ThreadingHTTPServer):
    """Answers each request with the next of `answers` (the last one again and again), and remembers the requests."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.requests = [], []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """A client that goes away in the middle is part of the tests."""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append((self.path, dict(self.headers)))
        answers = self.server.answers
        (answers.pop(0) if len(answers) > 1 else answers[0])(self)

    def log_message(self, *args):
        """Quiet."""


@contextlib.contextmanager
def serving():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def send(handler, status, body=b"", length=None, **headers):
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    if length != "none":
        handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    handler.wfile.write(body)


def good(body=BODY, etag='"v1"'):
    """A server that does all as it should: ranges, If-Range, 416."""
    versions = {} if etag is None else {"ETag": etag}

    def answer(handler):
        asked = handler.headers.get("Range")
        if asked is None or handler.headers.get("If-Range", etag) != etag:
            return send(handler, 200, body, **versions)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
        if start >= len(body):
            return send(handler, 416, Content_Range=f"bytes */{len(body)}")
        return send(handler, 206, body[start:], Content_Range=f"bytes {start}-{len(body) - 1}/{len(body)}", **versions)

    return answer


def always(status, body=b"", **headers):
    return lambda handler: send(handler, status, body, **headers)


def ranges(server):
    """The ranges that were asked for, in the order of the requests."""
    return [headers.get("Range") for _, headers in server.requests]


def names(folder):
    return sorted(each.name for each in folder.iterdir())
