from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from expunge.adapters.broker.memory import MemoryBroker
from expunge.adapters.ledger.postgres import PostgresLedger, migrate
from expunge.domain import events
from expunge.domain.cloudevents import CloudEvent, to_kafka
from expunge.domain.errors import FencedOff, Rejected, Retryable
from expunge.domain.events import SweepId, TaintOrdered
from expunge.ports import Delivery, Outgoing, Refused, Tx
from expunge.record import emit, event_id, pack_headers, unpack_headers
from expunge.wiring import retry_parked
from expunge.workers.delivery import ATTEMPTS, CRASHES, DeliveryHost, InFlight, Parking, Record

TOPIC, OTHER = "in", "also-in"
AT = datetime(2026, 11, 23, 4, 5, 6, tzinfo=UTC)
SECRET = b"k1.subject000000000001"


class Boom(Exception):  # noqa: N818 - stands for any bug
    pass


def nothing(_: Delivery) -> None:
    """What `Scripted` does about a delivery unless told otherwise."""


@dataclass
class Scripted:
    """A handler that does as told. `act_on`, `commit_on` may raise, or (commit) name a reason and whether it passes."""

    ledger: PostgresLedger
    dedupe: bool = True
    act_on: Callable[[Delivery], None] = nothing
    commit_on: Callable[[Delivery], tuple[str, bool] | None] = nothing
    seen: list[str] = field(default_factory=list)

    async def act(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        for one in deliveries:
            self.act_on(one)
        return list(deliveries)

    async def commit(self, acted: Any, tx: Tx) -> list[Refused]:
        refused = []
        for one in acted:
            answer = self.commit_on(one)
            if answer is not None:
                refused.append(Refused(one, *answer))
                continue
            self.seen.append(one.event.id)
            await emit(tx, "w", [TaintOrdered(sweep_id=SweepId(one.event.id))])
        return refused


@dataclass
class Rig:
    """One worker's host around a scripted handler, and a log of Kafka records."""

    dsn: str
    ledger: PostgresLedger
    directory: Path
    broker: MemoryBroker = field(default_factory=MemoryBroker)
    parking: Parking = field(default_factory=lambda: Parking(b"p" * 32))

    def __post_init__(self) -> None:
        self.handler = Scripted(self.ledger)
        self.host = self.restarted()

    def restarted(self, handler: Any = None, ledger: PostgresLedger | None = None, **more: Any) -> DeliveryHost:
        """Another life of the worker, or another worker: with the same in-flight files."""
        handlers: Mapping[str, Sequence[Any]] = {topic: [handler or self.handler] for topic in (TOPIC, OTHER)}
        return DeliveryHost(
            worker="w", ledger=ledger or self.ledger, broker=self.broker, handlers=handlers, parking=self.parking,
            in_flight={topic: InFlight(self.directory / topic) for topic in handlers}, clock=lambda: AT,
            **more,
        )  # fmt: skip

    def sql(self, query: str, *parameters: object) -> list[Any]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(query.encode(), parameters)
            return cursor.fetchall() if cursor.description else []

    def letters(self) -> list[tuple[int, str]]:
        return self.sql('select "offset", reason from dead_letter order by id')

    def published(self) -> list[str]:
        """Ids of the sweeps that were published, in order."""
        found = [events.parse_event(one.value) for one in self.broker.published]
        return [one.sweep_id for one in found if isinstance(one, TaintOrdered)]

    async def retry(self) -> None:
        self.sql("update retry set not_before = clock_timestamp()")
        await self.host.retry_due()

    def handled(self) -> list[str]:
        """What is applied for good: the outbox holds or has published its event."""
        waiting = self.sql("select value from outbox order by id")
        return self.published() + [TaintOrdered.model_validate_json(bytes(value)).sweep_id for (value,) in waiting]


def record(offset: int, name: str, key: str | None = None, topic: str = TOPIC) -> Record:
    value = CloudEvent(id=name, source="test", type="t", data=SECRET, partitionkey=key or name)
    packed, data, headers = to_kafka(value)
    return Record(topic, 0, offset, packed, data, list(headers))


def names(count: int) -> list[str]:
    return [str(uuid4()) for _ in range(count)]


@pytest.fixture
async def rig(database: str, tmp_path: Path) -> AsyncIterator[Rig]:
    migrate(database)
    ledger = PostgresLedger(database)
    await ledger.open()
    yield Rig(database, ledger, tmp_path)
    await ledger.close()


async def test_a_batch_is_applied_once_whatever_is_delivered_again(rig: Rig) -> None:
    a, b = names(2)
    await rig.host.process(TOPIC, [record(0, a), record(1, b), record(2, a)])
    await rig.host.process(TOPIC, [record(1, b), record(3, a)])
    assert sorted(rig.handler.seen) == sorted([a, b])
    assert sorted(rig.published()) == sorted([a, b])
    assert rig.sql("select next_offset from consumer_offset") == [(4,)]
    assert rig.sql("select count(*) from outbox") == [(0,)]


async def test_the_offset_only_goes_forwards(rig: Rig) -> None:
    a, b = names(2)
    await rig.host.process(TOPIC, [record(7, a)])
    await rig.host.process(TOPIC, [record(3, b)])
    assert rig.sql("select topic, next_offset from consumer_offset") == [(TOPIC, 8)]


async def test_a_handler_that_answers_repeats_gets_each_delivery_but_no_position_twice(rig: Rig) -> None:
    rig.handler.dedupe = False
    (a,) = names(1)
    await rig.host.process(TOPIC, [record(0, a), record(1, a)])
    await rig.host.process(TOPIC, [record(1, a)])
    assert rig.handler.seen == [a, a]


async def test_our_own_events_are_known_by_their_id(rig: Rig) -> None:
    event = TaintOrdered(sweep_id=SweepId(names(1)[0]))
    cloud = events.to_cloudevent(event, event_id(event), "expunge")
    key, value, headers = to_kafka(cloud)
    for offset, padding in enumerate((b"", b" ")):
        await rig.host.process(TOPIC, [Record(TOPIC, 0, offset, key, value + padding, list(headers))])
    assert rig.handler.seen == [cloud.id]


async def test_a_passing_fault_parks_and_later_events_of_the_scope_queue_behind(rig: Rig) -> None:
    a, b, c, other = names(4)
    down = True

    def fail(delivery: Delivery) -> None:
        if down and delivery.event.partitionkey == "person":
            raise Retryable

    rig.handler.act_on = fail
    await rig.host.process(TOPIC, [record(0, a, "person")])
    down = False
    await rig.host.process(TOPIC, [record(1, b, "person"), record(2, other)])
    await rig.host.process(TOPIC, [record(3, c, "person")])
    assert rig.handler.seen == [other]
    assert rig.sql("select reason from retry order by seq") == [("retryable",), ("queued",), ("queued",)]
    scopes = rig.sql("select distinct scope from retry")
    assert len(scopes) == 1
    assert "person" not in scopes[0][0]
    for done in ([other, a], [other, a, b], [other, a, b, c]):
        await rig.retry()
        assert rig.handler.seen == done
    assert rig.published() == rig.handler.seen
    assert rig.sql("select count(*) from retry") == [(0,)]


async def test_redelivery_of_what_is_parked_changes_nothing(rig: Rig) -> None:
    (a,) = names(1)
    rig.handler.act_on = lambda _: _raise(Retryable())
    for _ in range(2):
        await rig.host.process(TOPIC, [record(0, a)])
    assert rig.sql("select count(*), min(attempts) from retry") == [(1, 0)]
    rig.handler.act_on = nothing
    await rig.retry()
    await rig.host.process(TOPIC, [record(0, a)])
    assert rig.handler.seen == [a]


def _raise(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("error", [Retryable(), FencedOff()])
@pytest.mark.parametrize("place", ["act", "commit"])
async def test_passing_faults_in_act_and_commit_park_the_batch_whole(rig: Rig, place: str, error: Exception) -> None:
    a, b = names(2)

    def fail(delivery: Delivery) -> None:
        if delivery.event.id == b:
            raise error

    setattr(rig.handler, f"{place}_on", fail)
    await rig.host.process(TOPIC, [record(0, a), record(1, b)])
    assert rig.handled() == []
    assert rig.sql("select count(*) from retry") == [(2,)]
    assert rig.sql("select next_offset from consumer_offset") == [(2,)]
    await rig.retry()
    assert rig.handled() == [a]
    setattr(rig.handler, f"{place}_on", nothing)
    await rig.retry()
    assert rig.handled() == [a, b]


async def test_what_waits_for_its_precondition_lets_later_events_of_its_scope_pass(rig: Rig) -> None:
    a, b = names(2)
    rig.handler.commit_on = lambda one: ("unknown-request", True) if one.event.id == a else None
    await rig.host.process(TOPIC, [record(0, a, "order")])
    await rig.host.process(TOPIC, [record(1, b, "order")])
    assert rig.handled() == [b]
    rig.handler.commit_on = nothing
    await rig.retry()
    assert rig.handled() == [b, a]


@pytest.mark.parametrize("how", ["refused", "retryable"])
async def test_a_parked_event_is_dead_after_its_attempts(rig: Rig, how: str) -> None:
    (a,) = names(1)
    if how == "refused":
        rig.handler.commit_on = lambda _: ("unknown-request", True)
    else:
        rig.handler.act_on = lambda _: _raise(Retryable())
    await rig.host.process(TOPIC, [record(0, a)])
    for attempt in range(ATTEMPTS):
        assert rig.sql("select attempts from retry") == [(attempt,)]
        await rig.retry()
    reason = "unknown-request" if how == "refused" else "retryable"
    assert rig.letters() == [(0, reason)]
    assert rig.handled() == []
    (letter,) = (events.parse_event(one.value) for one in rig.broker.published)
    assert letter == events.DeadLettered(event_id=a, topic=TOPIC, partition=0, offset=0, reason=reason, at=AT)


async def test_attempts_lie_further_and_further_apart(rig: Rig) -> None:
    rig.handler.act_on = lambda _: _raise(Retryable())
    await rig.host.process(TOPIC, [record(0, names(1)[0])])
    waits = []
    for _ in range(ATTEMPTS - 1):
        await rig.retry()
        ((wait,),) = rig.sql("select extract(epoch from not_before - clock_timestamp())::float8 from retry")
        waits.append(wait)
    assert all(later > sooner for sooner, later in pairwise(waits))
    assert waits[-1] <= 900


async def test_a_refusal_for_good_is_a_dead_letter_and_the_rest_is_applied(rig: Rig) -> None:
    a, b = names(2)
    rig.handler.commit_on = lambda one: ("unsigned", False) if one.event.id == a else None
    await rig.host.process(TOPIC, [record(0, a), record(1, b)])
    assert rig.letters() == [(0, "unsigned")]
    assert rig.handled() == [b]
    await rig.host.process(TOPIC, [record(0, a)])
    assert rig.letters() == [(0, "unsigned")]


BROKEN: dict[str, tuple[str, Callable[[int], Record]]] = {
    "a tombstone": ("malformed", lambda at: Record(TOPIC, 0, at, b"key", None, [])),
    "no headers": ("malformed", lambda at: Record(TOPIC, 0, at, None, SECRET, [])),
    "not UTF-8": ("malformed", lambda at: Record(TOPIC, 0, at, b"\xff", b"{}", [("ce_id", b"\xff")])),
    "too large": ("oversized", lambda at: Record(TOPIC, 0, at, None, SECRET * 50_000, record(0, "a").headers)),
    "a header too large for a short": (
        "malformed",
        lambda at: Record(TOPIC, 0, at, None, SECRET, [("x" * 70_000, b"y" * 70_000), ("ce_id", None)]),
    ),
    "headers beyond number": ("oversized", lambda at: Record(TOPIC, 0, at, None, SECRET, [("x", b"y")] * 65)),
}


@pytest.mark.parametrize("case", BROKEN)
async def test_what_cannot_be_read_is_a_dead_letter_that_opens_again(rig: Rig, case: str) -> None:
    reason, make = BROKEN[case]
    broken, good = make(0), names(1)[0]
    await rig.host.process(TOPIC, [broken, record(1, good)])
    await rig.host.process(TOPIC, [broken])
    assert rig.letters() == [(0, reason)]
    assert rig.handled() == [good]
    (letter,) = (one for one in rig.broker.published if one.topic == "expunge.dead-letter")
    assert events.parse_event(letter.value) == events.DeadLettered(
        topic=TOPIC, partition=0, offset=0, reason=reason, at=AT
    )
    ((event, sealed),) = rig.sql("select event_id, sealed from dead_letter")
    assert event is None
    assert SECRET not in bytes(sealed)
    assert SECRET not in letter.value
    opened = rig.parking.open(TOPIC, 0, 0, bytes(sealed))
    assert (opened.key, opened.value) == (broken.key, broken.value or b"")
    assert [(name, value) for name, value in opened.headers] == [(name, value or b"") for name, value in broken.headers]


def test_parked_bytes_open_under_their_key_and_topic_only() -> None:
    one = record(0, "a")
    sealed = Parking(b"p" * 32).seal(one)
    assert Parking(b"p" * 32).open(TOPIC, 0, 0, sealed) == one
    for parking, topic, data in (
        (Parking(b"q" * 32), TOPIC, sealed),
        (Parking(b"p" * 32), OTHER, sealed),
        (Parking(b"p" * 32), TOPIC, sealed[:-1] + b"\0"),
    ):
        with pytest.raises(Rejected, match="parking key"):
            parking.open(topic, 0, 0, data)


def test_headers_of_any_length_are_packed() -> None:
    headers = [("ä" * 40_000, b"x" * 70_000), ("", b"")]
    assert unpack_headers(pack_headers(headers)) == headers
    assert struct.calcsize("<II") == len(pack_headers([("", b"")]))


@pytest.mark.parametrize("place", ["act", "commit"])
async def test_a_bug_leaves_nothing_applied_and_the_records_are_suspects(rig: Rig, place: str) -> None:
    a, b = names(2)
    setattr(rig.handler, f"{place}_on", lambda one: _raise(Boom()) if one.event.id == b else None)
    with pytest.raises(Boom):
        await rig.host.process(TOPIC, [record(0, a), record(1, b)])
    for table in ("applied_event", "outbox", "consumer_offset", "retry", "dead_letter"):
        assert rig.sql(f"select count(*) from {table}") == [(0,)]
    assert rig.broker.published == []
    assert rig.host.progress == 0
    assert InFlight(rig.directory / TOPIC).left() == [(TOPIC, 0, 0), (TOPIC, 0, 1)]


async def test_the_message_that_kills_is_found_out_and_the_others_are_cleared(rig: Rig) -> None:
    a, b, c = names(3)
    rig.handler.act_on = lambda one: _raise(Boom()) if one.event.id == b else None
    batch = [record(0, a), record(1, b), record(2, c)]
    for life in range(CRASHES):
        host = rig.restarted()
        await host.recover()
        assert rig.handled() == ([] if life < 2 else [a])
        with pytest.raises(Boom):
            await host.process(TOPIC, batch)
    assert rig.handled() == [a]
    host = rig.restarted()
    await host.recover()
    await host.process(TOPIC, batch)
    assert rig.handled() == [a, c]
    assert rig.letters() == [(1, "poison")]
    assert rig.sql("select event_id from dead_letter") == [(b,)]  # so that its sender can be told
    assert rig.sql('select "offset" from crash') == [(1,)]
    again = rig.restarted()  # quarantined still, should the acknowledgement have been lost
    await again.recover()
    await again.process(TOPIC, batch)
    assert rig.handled() == [a, c]
    assert rig.letters() == [(1, "poison")]


async def test_a_retryable_commit_that_cannot_even_be_parked_leaves_no_suspects(rig: Rig) -> None:
    (a,) = names(1)

    @dataclass
    class Away(Scripted):
        async def commit(self, acted: Any, tx: Tx) -> list[Refused]:  # noqa: ARG002 - the port's shape
            raise Retryable

    handler = Away(rig.ledger)
    host = rig.restarted(handler)

    async def no_parking(*_: object) -> None:
        raise Retryable

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "_park", no_parking)
        with pytest.raises(Retryable):
            await host.process(TOPIC, [record(0, a)])
    assert InFlight(rig.directory / TOPIC).left() == []
    await rig.host.process(TOPIC, [record(0, a)])
    assert rig.handled() == [a]


async def test_a_shutdown_in_a_batch_makes_no_suspects(rig: Rig) -> None:
    (a,) = names(1)
    reached = asyncio.Event()

    @dataclass
    class Slow(Scripted):
        async def act(self, deliveries: Sequence[Delivery]) -> list[Delivery]:  # noqa: ARG002 - the port's shape
            reached.set()
            await asyncio.Event().wait()
            return []

    task = asyncio.create_task(rig.restarted(Slow(rig.ledger)).process(TOPIC, [record(0, a)]))
    await reached.wait()
    assert InFlight(rig.directory / TOPIC).left() == [(TOPIC, 0, 0)]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert InFlight(rig.directory / TOPIC).left() == []


async def test_a_parked_event_that_kills_the_worker_ends_as_poison(rig: Rig) -> None:
    (a,) = names(1)
    rig.handler.act_on = lambda _: _raise(Retryable())
    await rig.host.process(TOPIC, [record(0, a)])
    rig.handler.act_on = lambda _: _raise(Boom())
    for _ in range(ATTEMPTS):
        with pytest.raises(Boom):
            await rig.retry()
    await rig.retry()
    assert rig.letters() == [(0, "poison")]
    assert rig.sql("select count(*) from retry") == [(0,)]


async def test_two_workers_that_retry_at_once_apply_it_once(rig: Rig) -> None:
    some = names(5)
    rig.handler.act_on = lambda _: _raise(Retryable())
    await rig.host.process(TOPIC, [record(at, one) for at, one in enumerate(some)])
    rig.handler.act_on = nothing
    rig.sql("update retry set not_before = clock_timestamp()")
    await asyncio.gather(rig.host.retry_due(), rig.restarted().retry_due())
    assert sorted(rig.handler.seen) == sorted(some)
    assert sorted(rig.handled()) == sorted(some)


async def test_looks_for_parked_events_get_rarer_until_one_is_parked(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("expunge.wiring.TICK_SECONDS", 0.01)
    monkeypatch.setattr("expunge.wiring.IDLE_TICK_SECONDS", 3600)
    some, looks, look = names(1), 0, rig.host.retry_due
    idle, done = asyncio.Event(), asyncio.Event()

    async def counted() -> int:
        nonlocal looks
        looks += 1
        found = await look()
        if looks == 6:
            idle.set()
        if rig.handler.seen == some:
            done.set()
        return found

    monkeypatch.setattr(rig.host, "retry_due", counted)
    retrying = asyncio.create_task(retry_parked(rig.host))
    await asyncio.wait_for(idle.wait(), 10)
    rig.handler.act_on = lambda _: _raise(Retryable())
    await rig.host.process(TOPIC, [record(0, *some)])
    rig.handler.act_on = nothing
    rig.sql("update retry set not_before = clock_timestamp()")
    await asyncio.wait_for(done.wait(), 10)
    retrying.cancel()


async def test_two_workers_with_the_same_records_apply_them_once(rig: Rig) -> None:
    some = names(20)
    batch = [record(at, one) for at, one in enumerate(some)]
    met = asyncio.Barrier(2)

    @dataclass
    class Meeting(Scripted):
        """Both have looked before either commits."""

        met_already: bool = False

        async def act(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
            if not self.met_already:
                self.met_already = True
                await met.wait()
            return list(deliveries)

    hosts = [rig.restarted(Meeting(rig.ledger)) for _ in range(2)]
    await asyncio.gather(hosts[0].process(TOPIC, batch), hosts[1].process(TOPIC, [*batch, record(99, names(1)[0])]))
    assert len(rig.handled()) == 21
    assert set(some) < set(rig.handled())


async def test_a_broker_that_refuses_keeps_the_rows_and_the_batch_stands(rig: Rig) -> None:
    (a,) = names(1)
    rig.broker.fail_next = 1
    await rig.host.process(TOPIC, [record(0, a)])
    assert rig.published() == []
    assert rig.sql("select count(*) from outbox") == [(1,)]
    assert rig.host.progress == 1
    assert await rig.host.publish_outbox() == 1
    assert rig.published() == [a]


async def test_who_runs_tasks_is_told_of_batches_that_put_some_and_of_no_others(rig: Rig) -> None:
    told: list[str] = []

    class Deferring(Scripted):
        async def commit(self, acted: Any, tx: Tx) -> list[Refused]:
            tx.deferred = any(one.event.id == b for one in acted)
            return await super().commit(acted, tx)

    a, b, c = names(3)
    host = rig.restarted(Deferring(rig.ledger), deferred=lambda: told.append("now"))
    for offset, (one, expected) in enumerate(((a, []), (b, ["now"]), (c, ["now"]))):
        await host.process(TOPIC, [record(offset, one)])
        assert told == expected


async def test_what_was_not_published_goes_before_what_came_later(rig: Rig) -> None:
    a, b, c, d = names(4)
    await rig.host.process(TOPIC, [record(0, a)])
    rig.broker.fail_next = 1
    await rig.host.process(TOPIC, [record(1, b)])
    await rig.host.process(TOPIC, [record(2, c)])
    await rig.host.process(TOPIC, [record(3, d)])
    assert rig.published() == [a, b, c, d]
    assert rig.sql("select count(*) from outbox") == [(0,)]


async def test_what_an_earlier_life_left_goes_first(rig: Rig) -> None:
    a, b = names(2)
    async with rig.ledger.transaction() as tx:
        await emit(tx, "w", [TaintOrdered(sweep_id=SweepId(a))])
    await rig.host.process(TOPIC, [record(0, b)])
    assert rig.published() == [a, b]


async def test_a_relay_leaves_what_is_new_to_whoever_publishes_it(rig: Rig) -> None:
    a, b = names(2)
    for one, age in ((a, 20), (b, 0)):
        async with rig.ledger.transaction() as tx:
            await emit(tx, "w", [TaintOrdered(sweep_id=SweepId(one))])
        rig.sql("update outbox set at = at - make_interval(secs => %s) where event_id = %s", age, tx.outbox[0][0])
    assert await rig.host.publish_outbox(age=1e9, own=10) == 1
    assert rig.published() == [a]
    assert await rig.host.publish_outbox() == 1


async def test_a_list_in_flight_that_was_longer_leaves_nothing_behind(tmp_path: Path) -> None:
    held = InFlight(tmp_path / "held")
    held.hold([record(offset, "a") for offset in range(100)])
    held.hold([record(7, "a")])
    assert InFlight(tmp_path / "held").left() == [(TOPIC, 0, 7)]
    held.release()
    assert InFlight(tmp_path / "held").left() == []


async def test_what_a_crash_left_in_the_outbox_is_published_by_any_relay_once_it_is_old(rig: Rig) -> None:
    a, b = names(2)
    for worker, one, age in (("dead", a, 20), ("busy", b, 0)):
        async with rig.ledger.transaction() as tx:
            await emit(tx, worker, [TaintOrdered(sweep_id=SweepId(one))])
        rig.sql("update outbox set at = at - make_interval(secs => %s) where worker = %s", age, worker)
    assert await rig.host.publish_outbox() == 0
    assert await rig.host.publish_outbox(age=10) == 1
    assert rig.published() == [a]


async def test_the_outbox_is_published_in_order_and_in_parts(rig: Rig) -> None:
    some = names(1203)
    async with rig.ledger.transaction() as tx:
        await emit(tx, "w", [TaintOrdered(sweep_id=SweepId(one)) for one in some])
    assert await rig.host.publish_outbox() == 1203
    assert rig.published() == some


async def test_two_workers_publish_one_outbox_without_duplicates(rig: Rig) -> None:
    some = names(1800)

    class Slow(MemoryBroker):
        async def publish(self, messages: Sequence[Outgoing]) -> None:
            await asyncio.to_thread(rig.sql, "select 1")  # the other one gets its turn
            await super().publish(messages)

    rig.broker = Slow()
    async with rig.ledger.transaction() as tx:
        await emit(tx, "w", [TaintOrdered(sweep_id=SweepId(one)) for one in some])
    hosts = [rig.restarted() for _ in range(2)]
    counts = await asyncio.gather(*(host.publish_outbox() for host in hosts))
    assert sum(counts) == 1800
    assert sorted(rig.published()) == sorted(some)


async def test_the_same_event_is_in_the_outbox_once(rig: Rig) -> None:
    event = TaintOrdered(sweep_id=SweepId(names(1)[0]))
    for _ in range(2):
        async with rig.ledger.transaction() as tx:
            await emit(tx, "w", [event, event], at=AT)
            await emit(tx, "w", [])
    assert rig.sql("select count(*) from outbox") == [(1,)]


def test_an_in_flight_file_that_was_cut_short_suspects_no_one(tmp_path: Path) -> None:
    file = InFlight(tmp_path / os.urandom(4).hex())
    assert file.left() == []
    (tmp_path / "cut").write_bytes(b'[["in",0')
    assert InFlight(tmp_path / "cut").left() == []


async def test_each_topic_has_its_own_offsets(rig: Rig) -> None:
    a, b = names(2)
    assert rig.host.topics == (TOPIC, OTHER)
    await asyncio.gather(
        rig.host.process(TOPIC, [record(0, a)]), rig.host.process(OTHER, [record(0, b, topic=OTHER)])
    )  # fmt: skip
    assert sorted(rig.handled()) == sorted([a, b])
    assert rig.sql("select count(*) from consumer_offset") == [(2,)]


async def test_what_went_out_by_row_is_not_published_again_by_who_had_it_in_hand_and_is_forgotten_under_load(
    rig: Rig,
) -> None:
    a, b, c = names(3)
    mine, another = ExitStack(), ExitStack()
    mine.enter_context(rig.host.in_hand())
    emitted = {}
    for one in (a, b):
        async with rig.ledger.transaction() as tx:
            await emit(tx, "w", [TaintOrdered(sweep_id=SweepId(one))])
        emitted[one] = tx.outbox
    assert await rig.host.publish_outbox() == 2
    another.enter_context(rig.host.in_hand())
    await rig.host.publish_emitted(emitted[a])
    await rig.host.process(TOPIC, [record(0, c)])
    await rig.host.publish_emitted(emitted[b])
    assert rig.published() == [a, b, c]
    assert rig.host.remembered == 2
    mine.close()
    assert rig.host.remembered == 0  # though another, which began later, is still under way
    another.close()
