"""Around every request: metrics, one log line, safe headers, and a problem for whatever nobody caught.

The log line has fixed keys, none of which can hold what came in: a route's template, never a path or a query.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from expunge import metrics
from expunge.api.problems import Problem
from expunge.domain.errors import Retryable, Unpublished
from expunge.domain.limits import MESSAGE_BYTES

UNMATCHED: Final = "unmatched"
"""The route of a path that is none."""
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER: Final = "other"
WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})
BODY_SECONDS: Final = 10.0
"""Longest time a body may take to come in."""
_CLOSE: Final = {"Connection": "close"}

# Swagger UI starts from a script inside the page. Nothing is loaded from elsewhere.
_PAGE: Final = (
    b"default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}
"""What every answer has, unless its route says otherwise."""

_log = structlog.get_logger()


class Watched:
    """ASGI middleware, the outermost. `docs`: the path of the documentation page, which runs scripts."""

    def __init__(self, app: ASGIApp, docs: str) -> None:
        self._app = app
        self._docs = docs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = self._with_ours(message.get("headers", []), scope)
            await send(message)

        try:
            await self._app(scope, _limited(scope, receive), sending)
        except Exception as error:  # noqa: BLE001 - the outermost place: an answer, and its type in the log
            if not isinstance(error, Retryable):
                _log.error("unexpected", error=type(error).__name__, route=_route(scope))
            if not status:
                why = str(error) if isinstance(error, Unpublished) else "expected the database to answer in time"
                unavailable = Problem.unavailable(why)
                problem = unavailable if isinstance(error, Retryable) else Problem(500, "something failed here")
                await problem.response()(scope, receive, sending)
        finally:
            self._tell(scope, status, time.perf_counter() - began)

    def _with_ours(self, headers: list[tuple[bytes, bytes]], scope: Scope) -> list[tuple[bytes, bytes]]:
        ours = _HEADERS | ({b"content-security-policy": _PAGE} if scope["path"] == self._docs else {})
        given = {name.lower() for name, _ in headers}
        return [*headers, *((name, value) for name, value in ours.items() if name not in given)]

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        route = _route(scope)
        method = scope["method"] if scope["method"] in METHODS else OTHER
        kind = f"{status // 100}xx" if status else "none"
        metrics.API_REQUESTS.labels(route, method, kind).inc()
        metrics.API_SECONDS.labels(route).observe(seconds)
        token = scope.get("state", {}).get("token_id", "")
        _log.info("http", route=route, method=method, status=status, ms=round(seconds * 1000, 1), token=token)


def _limited(scope: Scope, receive: Receive) -> Receive:
    """A body within limits of size and time. Raises `Problem` 408, 413; the connection is closed with the rest unread."""
    headers = dict(scope["headers"])
    declared, read, deadline = headers.get(b"content-length", b"0"), 0, time.monotonic() + BODY_SECONDS

    async def receiving() -> Message:
        nonlocal read
        if read == 0 and declared.isdigit() and int(declared) > MESSAGE_BYTES:
            raise _too_large()
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                message = await receive()
        except TimeoutError:
            raise Problem(408, f"expected the whole body within {BODY_SECONDS:.0f} s", headers=_CLOSE) from None
        read += len(message.get("body", b""))
        if read > MESSAGE_BYTES:
            raise _too_large()
        return message

    return receiving if scope["method"] in WITH_BODY else receive


def _too_large() -> Problem:
    return Problem(413, f"expected a body of at most {MESSAGE_BYTES} bytes", headers=_CLOSE)


def _route(scope: Scope) -> str:
    return str(getattr(scope.get("route"), "path", UNMATCHED))
