"""The read API over a deployment in one process: real application, real database, no socket."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import httpx

from expunge.adapters.ledger.postgres import PostgresLedger
from expunge.api import tokens
from expunge.api.application import Services, application
from expunge.api.door import Door
from expunge.api.tokens import Scope
from expunge.readside import Reader
from tests.coordination import AUDIENCE, Deployment

NOWHERE = "127.0.0.1:9"
"""A port on which nothing listens."""


class Api:
    """Asks as the holder of a token."""

    def __init__(self, world: Deployment, client: httpx.AsyncClient) -> None:
        self.world = world
        self.client = client

    async def token(
        self, *scopes: Scope, publisher: str | None = None, days: float | None = None, name: str = "test"
    ) -> str:  # fmt: skip
        at = self.world.clock()
        until = None if days is None else at + timedelta(days=days)
        _, text = await tokens.create(
            self.world.ledger, name=name, scopes=scopes or tuple(Scope), publisher=publisher, at=at, until=until
        )
        return text

    async def get(self, path: str, token: str, **options: Any) -> httpx.Response:
        return await self.ask("GET", path, token, **options)

    async def ask(self, method: str, path: str, token: str | None, **options: Any) -> httpx.Response:
        headers = {**options.pop("headers", {}), **({"Authorization": f"Bearer {token}"} if token else {})}
        return await self.client.request(method, path, headers=headers, **options)


@asynccontextmanager
async def served(world: Deployment, kafka: str = NOWHERE) -> AsyncIterator[Api]:
    """The API of this deployment, reading by a connection that refuses to write."""
    reading = PostgresLedger(world.dsn, read_only=True)
    await reading.open()
    door = Door(ledger=world.ledger, kafka=kafka, client_id="test", audience=AUDIENCE, clock=world.clock)
    app = application()
    app.state.services = Services(
        ledger=reading,
        reader=Reader(ledger=reading, sealed=world.sealed, keys=world.keys, tiles=world.tiles),
        door=door,
        clock=world.clock,
    )
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            yield Api(world, client)
    finally:
        await door.close()
        await reading.close()


def is_problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem in an answer, which must be that one."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = json.loads(answer.content)
    assert {"type", "title", "status", "detail"} <= found.keys() <= {"type", "title", "status", "detail", "errors"}
    assert (found["status"], found["type"]) == (status, f"urn:expunge:problem:{code}")
    return found


def same(answers: Iterable[httpx.Response]) -> None:
    """Nothing tells these answers apart."""
    assert len({(one.status_code, one.content, tuple(sorted(one.headers.items()))) for one in answers}) == 1
