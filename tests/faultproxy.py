"""A proxy in front of an S3 server that does to DeleteObjects what stores do: too busy, half an answer, none, a lie."""

from __future__ import annotations

import http.client
import random
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)


@dataclass
class Faults:
    """What is done to a share of the requests (mutable, at any time). Shares are between 0 and 1; `seed` makes runs alike.

    `slow`: 503 SlowDown, nothing is done. `partial`: half of the keys are left out of the answer. `errors`: half of them
    are told as InternalError, although they were deleted. `lost`: it is done, and no answer comes. `lie`: it is answered
    as done, and nothing is."""

    slow: float = 0.0
    partial: float = 0.0
    errors: float = 0.0
    lost: float = 0.0
    lie: float = 0.0
    seed: int = 7
    counts: Counter[str] = field(default_factory=Counter)
    keys: int = 0
    """Of all requests to delete so far, repeats included."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._lock = threading.Lock()

    def drawn(self, keys: int) -> str:
        """What is done to this request, which is about that many keys."""
        with self._lock:
            self.keys += keys
            for kind in ("slow", "partial", "errors", "lost", "lie"):
                if self._random.random() < getattr(self, kind):
                    self.counts[kind] += 1
                    return kind
            self.counts["passed"] += 1
            return ""


@contextmanager
def faulty(endpoint: str, faults: Faults) -> Iterator[str]:
    """The proxy's own endpoint."""
    upstream = urlsplit(endpoint).netloc

    class Handler(_Handler):
        server_name = upstream
        what = faults

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_name: str
    what: Faults

    def handle_any(self) -> None:
        body = self._body()
        deleting = self.command == "POST" and "delete" in urlsplit(self.path).query
        fault = self.what.drawn(body.count(b"<Object>")) if deleting else ""
        if fault == "slow":
            self._answer(503, {"Content-Type": "application/xml"}, SLOW_DOWN)
            return
        if fault == "lie":
            self._answer(200, {"Content-Type": "application/xml"}, _as_deleted(body))
            return
        status, headers, answer = self._forward(body)
        if fault == "lost":
            self.close_connection = True
            self.connection.close()
            return
        if fault in {"partial", "errors"}:
            answer = _changed(answer, as_errors=fault == "errors")
        self._answer(status, headers, answer)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815 - names of the base class

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", "0")))

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.server_name, timeout=60)
        try:
            headers = {k: v for k, v in self.headers.items() if k.lower() not in {"expect", "transfer-encoding"}}
            headers["Content-Length"] = str(len(body))
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        left_out = {"content-length", "transfer-encoding", "connection", "server", "date"}
        for name, value in headers.items():
            if name.lower() not in left_out:
                self.send_header(name, value)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name upstream
        """Nothing: tests read no access log."""


_DELETED = re.compile(rb"<Deleted>.*?</Deleted>", re.DOTALL)


def _changed(answer: bytes, *, as_errors: bool) -> bytes:
    """Every second key left out of an answer, or told as an error."""
    number = 0

    def change(found: re.Match[bytes]) -> bytes:
        nonlocal number
        number += 1
        if number % 2:
            return found[0]
        if not as_errors:
            return b""
        code = b"<Code>InternalError</Code><Message>Please try again.</Message>"
        return b"<Error>" + found[0].removeprefix(b"<Deleted>").removesuffix(b"</Deleted>") + code + b"</Error>"

    return _DELETED.sub(change, answer)


def _as_deleted(request: bytes) -> bytes:
    objects = re.findall(rb"<Object>(.*?)</Object>", request, re.DOTALL)
    told = b"".join(b"<Deleted>" + one + b"</Deleted>" for one in objects)
    return b"<?xml version='1.0'?><DeleteResult>" + told + b"</DeleteResult>"
