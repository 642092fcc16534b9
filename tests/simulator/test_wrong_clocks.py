"""A database whose clock ran ahead and was set right again: what it dated ahead holds nothing up (schedules 8, 13, 23)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from tests.conftest import PostgresServer
from tests.simulator.__main__ import own_database
from tests.simulator.database import Database

NOW = datetime(2026, 11, 23, 4, 5, 6, tzinfo=UTC)
AHEAD = NOW + timedelta(days=30)
SWEEP = UUID("11111111-1111-4111-8111-111111111111")


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[Database]:
    made = own_database(postgres_server.dsn)
    made.begin(0)
    yield made
    made.end()
    made.close()


async def ask(database: Database, at: datetime, query: str, **parameters: Any) -> list[Any]:
    async with database.transaction(at, lambda: None) as tx:
        return await tx.fetch(query, **parameters)


async def test_a_parked_event_is_tried_although_its_time_was_set_ahead(database: Database) -> None:
    columns = {"ids": ["a"], "scopes": ["s"], "topics": ["t"], "partitions": [0], "offsets": [0], "sealed": [b"x"]}
    async with database.transaction(AHEAD, lambda: None) as tx:
        await tx.execute("retry_put", worker="purge", reasons=["retryable"], delay=0.25, **columns)
    assert len(await ask(database, NOW, "retry_due", worker="purge", limit=64)) == 1
    # Its next time is right, and is kept.
    assert await ask(database, NOW, "retry_due", worker="purge", limit=64) == []


async def test_a_task_is_leased_although_its_lease_was_given_ahead(database: Database) -> None:
    async with database.transaction(AHEAD, lambda: None) as tx:
        await tx.execute("execute_defer", kind="rescan", keys=["k"], inputs=["{}"], seconds=1.0)
    ((*_, token, _attempts),) = await ask(
        database, AHEAD + timedelta(seconds=2), "task_lease", kinds=["rescan"], seconds=60
    )
    ((*_, later, _),) = await ask(database, NOW, "task_lease", kinds=["rescan"], seconds=60)
    assert later > token
    assert await ask(database, NOW, "task_lease", kinds=["rescan"], seconds=60) == []


async def test_a_unit_is_leased_although_its_lease_was_given_ahead(database: Database) -> None:
    unit = {"stores": ["faces"], "units": ["index"], "seconds": 120.0}
    ((*_, token),) = await ask(database, AHEAD, "execute_lease", holder="one", **unit)
    ((*_, later),) = await ask(database, NOW, "execute_lease", holder="two", **unit)
    assert later > token
    assert await ask(database, NOW, "execute_lease", holder="three", **unit) == []


async def test_work_is_ordered_again_although_it_was_ordered_ahead(database: Database) -> None:
    row = {"sweep_id": SWEEP, "trees": [0], "first": [0], "end": [1]}
    async with database.transaction(AHEAD, lambda: None) as tx:
        await tx.execute("plan_put_work", **row)
        await tx.fetch("dispatch_start", ids=[SWEEP])
    assert len(await ask(database, NOW, "dispatch_stalled", age=30.0)) == 1
    assert await ask(database, AHEAD, "dispatch_stalled", age=30.0) == []
