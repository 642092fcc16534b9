"""Dead letters, as the operator's commands see them. Bytes stay sealed: they are opened only to see that a retry can be
read at all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from expunge.cli.deployed import reachable
from expunge.domain.cloudevents import from_kafka
from expunge.domain.errors import Rejected
from expunge.ports import Tx
from expunge.wiring import Deployment

T = TypeVar("T")


def listed(limit: int) -> list[dict[str, Any]]:
    """The oldest first."""

    async def work(tx: Tx, _deployment: Deployment) -> list[dict[str, Any]]:
        columns = ("id", "worker", "event_id", "topic", "partition", "offset", "reason", "at")
        return [dict(zip(columns, row, strict=True)) for row in await tx.fetch("deadletter_list", limit=limit)]

    return _in_transaction(work)


def retried(letter: int) -> None:
    """Put it among what is tried again. Raises `Rejected`: `unknown-letter`, `unreadable`, or why it cannot be read."""

    async def work(tx: Tx, found: Deployment) -> None:
        rows = await tx.fetch("deadletter_sealed", id=letter)
        if not rows:
            raise _unknown()
        topic, partition, offset, sealed = rows[0]
        record = found.parking().open(topic, partition, offset, bytes(sealed))
        from_kafka(record.key, record.value, record.headers)
        await tx.execute("deadletter_retry", id=letter, event_id=f"dead-letter-{letter}")

    _in_transaction(work)


def dropped(letter: int) -> None:
    """Remove it. Raises `Rejected("unknown-letter")`."""

    async def work(tx: Tx, _deployment: Deployment) -> None:
        if not await tx.execute("deadletter_drop", id=letter):
            raise _unknown()

    _in_transaction(work)


def _unknown() -> Rejected:
    return Rejected("unknown-letter", "expected the id of a dead letter, there is none of this id")


def _in_transaction(work: Callable[[Tx, Deployment], Awaitable[T]]) -> T:
    async def run() -> T:
        found = reachable()
        await found.ledger.open()
        try:
            async with found.ledger.transaction() as tx:
                return await work(tx, found)
        finally:
            await found.ledger.close()

    return asyncio.run(run())
