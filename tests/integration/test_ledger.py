"""Arrays and byte strings go to PostgreSQL as they are in memory; statements on their own; what a transaction emits."""

from __future__ import annotations

from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from expunge.adapters.ledger.postgres import PostgresLedger, _configure, migrate
from expunge.domain.errors import Misconfigured, Retryable
from expunge.domain.events import SweepId, TaintOrdered, dump_event
from expunge.record import emit


@pytest.mark.parametrize("values", [[], [7], [0, -1, 2**63 - 1, -(2**63), 65_536]])
async def test_an_array_of_integers_comes_back_as_it_was(database: str, values: list[int]) -> None:
    async with await psycopg.AsyncConnection.connect(database) as connection:
        await _configure(connection)
        cursor = await connection.execute("select %s::bigint[]", (np.array(values, np.int64),))
        assert await cursor.fetchall() == [(values,)]


@pytest.mark.parametrize("wrong", [np.zeros(2, np.int32), np.zeros((2, 2), np.int64)])
async def test_other_arrays_are_refused(database: str, wrong: np.ndarray) -> None:
    async with await psycopg.AsyncConnection.connect(database) as connection:
        await _configure(connection)
        with pytest.raises(TypeError, match="expected a flat int64 array"):
            await connection.execute("select %s::bigint[]", (wrong,))


async def test_a_worker_that_stands_still_in_a_transaction_is_ended_and_others_get_on(database: str) -> None:
    migrate(database)
    limited = make_conninfo(database, options="-c idle_in_transaction_session_timeout=200ms")
    lease: dict[str, Any] = {"stores": ["faces"], "units": ["index"], "seconds": 60}
    async with PostgresLedger(limited).opened() as paused, PostgresLedger(database).opened() as other:
        async with other._pool.connection() as connection:
            assert await (await connection.execute("show idle_in_transaction_session_timeout")).fetchone() == ("5min",)
        with pytest.raises(Retryable):
            await _overtaken(paused, other, lease)
        async with paused.transaction() as tx:  # another connection took the place of the ended one
            assert await tx.fetch("execute_lease", holder="paused", **lease) == []


async def _overtaken(paused: PostgresLedger, other: PostgresLedger, lease: dict[str, Any]) -> None:
    async with paused.transaction() as tx:
        await tx.fetch("execute_lease", holder="paused", **lease)
        async with other.transaction() as later:  # waits for the row, and gets it
            assert len(await later.fetch("execute_lease", holder="other", **lease)) == 1
        await tx.fetch("execute_lease", holder="paused", **lease)


def test_a_database_that_is_no_conninfo_is_refused_without_a_word_of_it() -> None:
    with pytest.raises(Misconfigured, match="expected a PostgreSQL URI") as refused:
        PostgresLedger("postgresql://u:secret@h/x?nonsense=secret")
    assert "secret" not in str(refused.value)


async def test_a_statement_on_its_own_is_a_transaction(database: str) -> None:
    """Its effect is there for others at once, and it does not hold what it locked."""
    migrate(database)
    async with PostgresLedger(database).opened() as ledger:
        assert await ledger.fetch("log_lock") == [(0,)]
        assert await ledger.execute("recover_advance", next=3) == 1
        async with PostgresLedger(database).opened() as other:
            assert await other.fetch("log_lock") == [(3,)]


async def test_what_a_transaction_emits_is_with_it(database: str) -> None:
    migrate(database)
    event = TaintOrdered(sweep_id=SweepId("5b1f6f9e-0000-4000-8000-000000000001"))
    async with PostgresLedger(database).opened() as ledger:
        async with ledger.transaction() as tx:
            await emit(tx, "w", [event])
        ((identity, message),) = tx.outbox
        assert message.value == dump_event(event)
        assert await ledger.execute("outbox_emitted", ids=[identity], topics=[message.topic]) == 1


@pytest.mark.parametrize(
    "values", [[], [b"a"], [b"", b'\x00\\"{}', bytes(range(256)) * 300], [b"x", None], [None, b"x"]]
)
async def test_a_list_of_byte_strings_comes_back_as_it_was(database: str, values: list[bytes | None]) -> None:
    async with await psycopg.AsyncConnection.connect(database) as connection:
        await _configure(connection)
        cursor = await connection.execute("select %s::bytea[], %s::text[], %s::integer[]", (values, ["a", None], [1]))
        assert await cursor.fetchall() == [(values, ["a", None], [1])]
