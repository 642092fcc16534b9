"""The API as a process: uvicorn with limits against slow and greedy callers, and `/metrics` on a port of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final

import h11
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from expunge import __version__, metrics
from expunge.adapters.ledger.postgres import PostgresLedger, check_schema
from expunge.api.application import Services, application
from expunge.api.door import Door
from expunge.domain.errors import Misconfigured, Retryable
from expunge.readside import Reader
from expunge.settings import Settings
from expunge.wiring import Deployment, now
from expunge.wiring.logs import configure_logging
from expunge.workers.health import Health, serve

NAME: Final = "api"
"""Of the Compose service, the scrape target and the directory of its state, like a worker's."""

HEAD_SECONDS: Final = 5.0
"""Longest time that a request's head may take to come in, from its first byte or from the connection's start."""
HEAD_BYTES: Final = 16_384
CONNECTIONS: Final = 200
"""Beyond these, a connection is answered 503."""
STOP_SECONDS: Final = 10
STATEMENT_SECONDS: Final = 5.0
WAIT_SECONDS: Final = 3.0
"""Longest wait for a connection to the database."""


class ImpatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, but whoever does not send a whole head in time is cut off: uvicorn waits for ever."""

    head_seconds = HEAD_SECONDS
    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The clock starts."""
        super().connection_made(transport)  # type: ignore[arg-type] # uvicorn narrows asyncio's
        self._watch()

    def data_received(self, data: bytes) -> None:
        """The clock goes on until the head is whole, and starts again with the next request."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """No clock any more."""
        self._stop()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop()
        elif self._waiting is None:
            self._waiting = self.loop.call_later(self.head_seconds, self._cut_off)

    def _stop(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _cut_off(self) -> None:
        self._waiting = None
        if self.conn.their_state is h11.IDLE:
            self.transport.close()


@asynccontextmanager
async def services(deployment: Deployment) -> AsyncIterator[Services]:
    """What the API works with, while it is open. The ledger that answers questions refuses to write."""
    settings = deployment.settings
    reading = PostgresLedger(
        settings.database, application="expunge-api", read_only=True, wait_seconds=WAIT_SECONDS,
        statement_seconds=STATEMENT_SECONDS,
    )  # fmt: skip
    writing = PostgresLedger(
        settings.database, application="expunge-api-door", connections=2, wait_seconds=WAIT_SECONDS,
        statement_seconds=STATEMENT_SECONDS,
    )  # fmt: skip
    async with AsyncExitStack() as stack:
        for ledger in (reading, writing):
            stack.push_async_callback(ledger.close)
            await ledger.open()
        await check_schema(reading)
        door = Door(
            ledger=writing, kafka=settings.kafka, client_id=f"expunge-api-{settings.instance}",
            audience=settings.audience, clock=now,
        )  # fmt: skip
        stack.push_async_callback(door.close)
        reader = Reader(ledger=reading, sealed=deployment.sealed, keys=deployment.keys, tiles=deployment.tiles)
        yield Services(ledger=reading, reader=reader, door=door, clock=now)


class Server(uvicorn.Server):
    """uvicorn, stopped by us: it would raise a signal again once it has stopped, and so end in disorder. `listens` is
    called once connections are taken."""

    listens: Callable[[], None]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to take connections."""
        await super().startup(sockets)
        self.listens()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None are captured."""
        yield


def config(app: ASGIApp) -> uvicorn.Config:
    """uvicorn's settings: plain HTTP/1.1 behind whatever ends TLS, no logs of its own, limits."""
    return uvicorn.Config(
        app,
        http=ImpatientProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        backlog=CONNECTIONS,
        timeout_keep_alive=int(HEAD_SECONDS),
        timeout_graceful_shutdown=STOP_SECONDS,
        h11_max_incomplete_event_size=HEAD_BYTES,
    )


def run(settings: Settings, ready: Callable[[str], None] = lambda _: None) -> None:
    """Serve until SIGTERM or Ctrl-C. `ready` is told the URL. Raises `Retryable` when the database does not answer."""
    configure_logging(settings.log_level)
    asyncio.run(_run(settings, ready))


async def _run(settings: Settings, ready: Callable[[str], None]) -> None:
    deployment = Deployment(settings)
    directory = deployment.worker_directory(NAME)
    directory.mkdir(parents=True, exist_ok=True)
    app = application()
    async with services(deployment) as found:
        app.state.services = found
        metrics.BUILD.info({"version": __version__})
        health = Health(ready=lambda: _answers(found), progress=lambda: 0, waiting=lambda: False)
        runner = await serve(health, host=settings.metrics_host, port=settings.metrics_port)
        try:
            await _until_told(app, settings, directory, runner.addresses[0][:2], ready)
        finally:
            await runner.cleanup()


async def _until_told(
    app: FastAPI, settings: Settings, directory: Path, health: tuple[str, int], ready: Callable[[str], None]
) -> None:
    """Announce where it listens, and stop in order at a signal."""
    listening = _bound(settings.api_host, settings.api_port)
    server = Server(config(app))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, lambda: setattr(server, "should_exit", True))
    host, port = listening.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    told = {"worker": NAME, "host": health[0], "port": health[1], "pid": os.getpid(), "url": url}

    def listens() -> None:
        new = directory / "listening.json.new"
        new.write_text(json.dumps(told), encoding="ascii")
        new.replace(directory / "listening.json")
        ready(url)

    server.listens = listens
    await server.serve(sockets=[listening])


def _bound(host: str, port: int) -> socket.socket:
    """Raises `Misconfigured` for an address that is no place to listen on, or is taken."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise Misconfigured(
            f"EXPUNGE_API_HOST, EXPUNGE_API_PORT: expected to listen there, got {error.strerror}"
        ) from error


async def _answers(found: Services) -> bool:
    with suppress(Retryable):
        async with found.ledger.transaction() as tx:
            await tx.fetch("ready")
        return True
    return False
