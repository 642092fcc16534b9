"""Dead letters, as the operator's commands see them. Bytes stay sealed: they are opened only to see that a retry can be
read at all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from uuid import UUID

from expunge.cli.deployed import reachable
from expunge.domain import events, topics
from expunge.domain.cloudevents import from_kafka
from expunge.domain.errors import Rejected
from expunge.ports import Tx
from expunge.wiring import Deployment
from expunge.workers.delivery import Parking, Record

T = TypeVar("T")

WORK: Final = frozenset({topics.PURGE.name, topics.INVALIDATE.name, topics.RESCAN.name})
"""Topics of work orders."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which dead letters are meant. `store`: of the work orders that name a run in it."""

    letter: int | None = None
    worker: str | None = None
    topic: str | None = None
    reason: str | None = None
    store: str | None = None

    @property
    def everything(self) -> bool:
        return self == Filter()


def listed(which: Filter, limit: int) -> list[dict[str, Any]]:
    """The oldest first."""

    async def work(tx: Tx, found: Deployment) -> list[dict[str, Any]]:
        return [about for about, _ in await _found(tx, found, which, limit)]

    return _in_transaction(work)


def retried(which: Filter, limit: int) -> list[int]:
    """Put them among what is tried again; which. What can never be read stays, and is `unreadable` if it was asked for
    alone. Raises `Rejected`: `unknown-letter`, `unreadable`."""

    async def work(tx: Tx, found: Deployment) -> list[int]:
        done = []
        for about, record in await _some(tx, found, which, limit):
            if record is None:
                if which.letter is None:
                    continue
                raise Rejected("unreadable", "expected a message that can be read, this one never will be")
            await tx.execute("deadletter_retry", id=about["id"], event_id=f"dead-letter-{about['id']}")
            done.append(int(about["id"]))
        return done

    return _in_transaction(work)


def dropped(which: Filter, limit: int) -> list[int]:
    """Remove them; which. Raises `Rejected("unknown-letter")`."""

    async def work(tx: Tx, found: Deployment) -> list[int]:
        gone = [int(about["id"]) for about, _ in await _some(tx, found, which, limit)]
        for letter in gone:
            await tx.execute("deadletter_drop", id=letter)
        return gone

    return _in_transaction(work)


async def _some(tx: Tx, found: Deployment, which: Filter, limit: int) -> list[tuple[dict[str, Any], Record | None]]:
    rows = await _found(tx, found, which, limit)
    if not rows and which.letter is not None:
        raise _unknown()
    return rows


async def _found(tx: Tx, found: Deployment, which: Filter, limit: int) -> list[tuple[dict[str, Any], Record | None]]:
    """What is shown of each, and its message if it can be read."""
    columns = ("id", "worker", "event_id", "topic", "partition", "offset", "reason", "at")
    rows = await tx.fetch(
        "deadletter_list", id=which.letter, worker=which.worker, topic=which.topic, reason=which.reason, limit=limit
    )
    parking = found.parking()
    letters = [
        (dict(zip(columns, row[:-1], strict=True)), _read(parking, row[3], row[4], row[5], bytes(row[-1])))
        for row in rows
    ]
    stores = await _stores(tx, letters)
    for about, _ in letters:
        about["store"] = stores.get(about["id"])
    return [one for one in letters if which.store is None or one[0]["store"] == which.store]


def _read(parking: Parking, topic: str, partition: int, offset: int, sealed: bytes) -> Record | None:
    try:
        record = parking.open(topic, partition, offset, sealed)
        from_kafka(record.key, record.value, record.headers)
    except Rejected:
        return None
    return record


async def _stores(tx: Tx, letters: Sequence[tuple[dict[str, Any], Record | None]]) -> dict[int, str]:
    """By letter, the store of the work order that it is, if it is one."""
    orders = {}
    for about, record in letters:
        if record is not None and about["topic"] in WORK:
            with suppress(Rejected):
                event = events.from_cloudevent(from_kafka(record.key, record.value, record.headers))
                if isinstance(event, events.WorkOrdered):
                    orders[int(about["id"])] = event
    if not orders:
        return {}
    rows = await tx.fetch(
        "deadletter_stores", n=list(orders), sweeps=[UUID(one.sweep_id) for one in orders.values()],
        trees=[one.tree for one in orders.values()],
    )  # fmt: skip
    return {letter: store for letter, store in rows if store is not None}


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
