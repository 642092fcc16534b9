"""What is done around every batch, whichever host took it from Kafka.

1. decode; what cannot be read goes to the dead letter, 2. drop what was applied before, queue what must wait behind a
parked event of its scope, 3. let the handlers act, 4. in one transaction: dedupe ids, what the handlers record, parked
and dead events, outgoing events, input offsets, 5. publish the outbox. Acknowledging is the host's, after all of it.

Nothing is lost: every message is applied, parked in `retry`, or in `dead_letter` with its bytes sealed.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import UUID

import structlog
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from structlog.contextvars import bound_contextvars

from expunge import metrics
from expunge.crashing import crash_point
from expunge.domain import canonical, events, topics, tracing
from expunge.domain.cloudevents import CloudEvent, from_kafka
from expunge.domain.errors import FencedOff, Rejected, Retryable
from expunge.ports import Broker, Clock, Delivery, Handler, Ledger, Outgoing, Refused, Tx
from expunge.record import emit, pack_headers, unpack_headers

ATTEMPTS: Final = 8
"""Tries of a parked event before it is dead: 0.25 s x 4^n with jitter, at most 15 minutes apart."""

CRASHES: Final = 3
"""A message that was in flight when its worker died this often is quarantined."""

OUTBOX_BATCH: Final = 500
TRACES: Final = 8
"""Most trace ids that the log lines of one batch carry."""
LEFT_BEHIND_SECONDS: Final = 10.0
"""Outbox rows this old were left by a crash: any worker's relay publishes them."""

_log = structlog.get_logger()
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Record:
    """One Kafka record as it came."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]

    def packed(self) -> bytes:
        """All of it in one byte string, to be sealed."""
        headers = [(name, value or b"") for name, value in self.headers]
        return canonical.dumps(
            {
                "key": canonical.base64_encode(self.key) if self.key is not None else None,
                "value": canonical.base64_encode(self.value or b""),
                "headers": canonical.base64_encode(pack_headers(headers)),
            }
        )

    @classmethod
    def unpacked(cls, topic: str, partition: int, offset: int, packed: bytes) -> Record:
        """The inverse of `packed`."""
        read: Any = canonical.loads(packed)
        key = canonical.base64_decode(read["key"]) if read["key"] is not None else None
        headers = unpack_headers(canonical.base64_decode(read["headers"]))
        return cls(topic, partition, offset, key, canonical.base64_decode(read["value"]), list(headers))


class Parking:
    """Seals messages that wait or were given up. `key`: 32 bytes, from the key store, not from Postgres."""

    def __init__(self, key: bytes) -> None:
        self._cipher = ChaCha20Poly1305(key)

    def seal(self, record: Record) -> bytes:
        """Nonce (12 bytes) and ciphertext."""
        nonce = os.urandom(12)
        return nonce + self._cipher.encrypt(nonce, record.packed(), record.topic.encode())

    def open(self, topic: str, partition: int, offset: int, sealed: bytes) -> Record:
        """The message back. Raises `Rejected("unreadable")` when it does not authenticate."""
        try:
            packed = self._cipher.decrypt(sealed[:12], sealed[12:], topic.encode())
        except Exception as error:
            raise Rejected("unreadable", "expected a message sealed under this parking key") from error
        return Record.unpacked(topic, partition, offset, packed)


class InFlight:
    """Which records a worker holds right now, in a file that survives it: what it holds when it dies are suspects."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def hold(self, records: Sequence[Record]) -> None:
        """Remember. Not synced: it has to survive the process, not the machine."""
        self._write(canonical.dumps([[one.topic, one.partition, one.offset] for one in records]))

    def release(self) -> None:
        """Forget."""
        self._write(b"[]")

    def _write(self, positions: bytes) -> None:
        # Twice a batch: the file stays open, and what an earlier, longer list leaves behind the line's end is not read.
        if self._file is None:
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        os.pwrite(self._file, positions + b"\n", 0)

    def left(self) -> list[tuple[str, int, int]]:
        """What an earlier life of this worker held when it died."""
        try:
            read: Any = canonical.loads(self._path.read_bytes().partition(b"\n")[0])
        except (FileNotFoundError, Rejected):
            return []
        return [(topic, partition, offset) for topic, partition, offset in read]


class _OvertakenError(Exception):
    """Another worker applied some of the batch since it was looked up: look again."""


class DeliveryHost:
    """Runs handlers on batches for one worker. `committed`: called after each commit, to wake what waits for rows;
    `deferred`: after each that put tasks."""

    def __init__(
        self,
        *,
        worker: str,
        ledger: Ledger,
        broker: Broker,
        handlers: Mapping[str, Sequence[Handler]],
        parking: Parking,
        in_flight: Mapping[str, InFlight],
        clock: Clock,
        committed: Callable[[], None] = lambda: None,
        deferred: Callable[[], None] = lambda: None,
    ) -> None:
        self.worker = worker
        self.ledger = ledger
        self._broker = broker
        self._handlers = handlers
        self._parking = parking
        self._in_flight = in_flight
        self._clock = clock
        self._committed = committed
        self._deferred = deferred
        self._suspects: dict[tuple[str, int, int], int] = {}
        self._spent: dict[str, float] = {}
        self._publishing = asyncio.Lock()
        self._behind = True
        """Whether rows of ours may be in the outbox that were not published when they should have been: they go first."""
        self._begun = 0
        """Batches and others `in_hand` so far."""
        self._under_way: dict[int, None] = {}
        """Numbers of those that may have committed and not yet published, ascending."""
        self._by_row: deque[tuple[int, list[tuple[str, str]]]] = deque()
        """What went out by row, and how many had begun by then: one that is under way may have it in memory still. Under
        load there is always one, so it is forgotten piece by piece."""
        self._published: set[tuple[str, str]] = set()
        """Ids and topics of `_by_row`."""
        self.progress = 0
        """Batches finished, for liveness."""
        self.parked: Final = asyncio.Event()
        """Set when an event was parked: `retry_due` will find it before long."""

    @property
    def topics(self) -> tuple[str, ...]:
        """Topics this worker consumes."""
        return tuple(self._handlers)

    async def recover(self) -> None:
        """At start: what the last life held when it died is suspected of having killed it."""
        left = [position for one in self._in_flight.values() for position in one.left()]
        async with self.ledger.transaction() as tx:
            if left:
                names, partitions, offsets = map(list, zip(*left, strict=True))
                await tx.execute(
                    "crash_count", worker=self.worker, topics=names, partitions=partitions, offsets=offsets
                )  # fmt: skip
            rows = await tx.fetch("crash_suspects", worker=self.worker)
        self._suspects = {(topic, partition, offset): crashes for topic, partition, offset, crashes in rows}
        for one in self._in_flight.values():
            one.release()

    async def process(self, topic: str, records: Sequence[Record]) -> None:
        """Apply a batch of one topic. Returning means that it may be acknowledged."""
        suspects = [one for one in records if (one.topic, one.partition, one.offset) in self._suspects]
        if suspects:
            # One at a time, so that the one that kills is found out and the others are cleared.
            for record in records:
                await self._process(topic, [record])
        else:
            await self._process(topic, records)
        self.progress += 1

    async def _process(self, topic: str, records: Sequence[Record]) -> None:
        with self.in_hand():
            await self._carry_out(topic, records)

    @contextmanager
    def in_hand(self) -> Iterator[None]:
        """Around a transaction and the `publish_emitted` of its outbox: what goes out by row between the two is left out of
        the latter."""
        self._begun += 1
        number = self._begun
        self._under_way[number] = None
        try:
            yield
        finally:
            del self._under_way[number]
            oldest = next(iter(self._under_way), self._begun + 1)
            while self._by_row and self._by_row[0][0] < oldest:
                self._published.difference_update(self._by_row.popleft()[1])

    @property
    def remembered(self) -> int:
        """Events that went out by row and that somebody may still have in hand."""
        return len(self._published)

    async def _carry_out(self, topic: str, records: Sequence[Record]) -> None:
        dead: list[tuple[Record, str | None, str]] = []
        deliveries: dict[str, tuple[Delivery, Record]] = {}
        handlers = self._handlers[topic]
        with metrics.BATCH_SECONDS.labels(self.worker, topic).time():
            for record in records:
                if self._suspects.get((record.topic, record.partition, record.offset), 0) >= CRASHES:
                    dead.append((record, _claimed_id(record), "poison"))
                    continue
                try:
                    event = from_kafka(record.key, record.value, record.headers)
                except Rejected as error:
                    dead.append((record, None, error.code))
                    continue
                identity = dedupe_id(event, record, dedupe=handlers[0].dedupe)
                deliveries[identity] = (Delivery(topic, record.partition, record.offset, event), record)
            self._in_flight[topic].hold(records)
            crash_point("delivery.held")
            try:
                with bound_contextvars(**_traced(deliveries)):
                    emitted = await self._apply(topic, records, deliveries, dead)
                    _log.debug("batch handled", worker=self.worker, topic=topic, count=len(records))
            except (Retryable, asyncio.CancelledError):
                # The database's doing, or a shutdown: no reason to suspect the messages.
                self._in_flight[topic].release()
                raise
            self._in_flight[topic].release()
        for handler in handlers:
            if spent := self._spent.pop(type(handler).__name__.lower(), 0.0):
                metrics.STAGE_SECONDS.labels(type(handler).__name__.lower()).observe(spent)
        await self._clear(records)
        await self.publish_emitted(emitted)
        self._committed()

    async def _apply(
        self,
        topic: str,
        records: Sequence[Record],
        deliveries: Mapping[str, tuple[Delivery, Record]],
        dead: list[tuple[Record, str | None, str]],
    ) -> Sequence[tuple[str, Outgoing]]:
        """What it put into the outbox."""
        fresh, waiting = await self._sort(deliveries)
        parked = [(identity, "queued") for identity in waiting]
        batch = [deliveries[identity][0] for identity in fresh]
        try:
            acted = (
                [await self._timed(handler, handler.act(batch)) for handler in self._handlers[topic]] if batch else []
            )
            crash_point("delivery.acted")
            return await self._commit(topic, records, deliveries, dead, fresh, parked, acted)
        except _OvertakenError:
            return await self._apply(topic, records, deliveries, dead)
        except (Retryable, FencedOff) as error:
            # Nothing was applied. Should the database be away altogether, parking raises too, and nothing is acknowledged.
            _log.warning("parked", worker=self.worker, topic=topic, count=len(batch), kind=type(error).__name__)
            parked += [(identity, "retryable") for identity in fresh]
            return await self._commit(topic, records, deliveries, dead, [], parked, [])

    async def _timed(self, handler: Handler, doing: Awaitable[T]) -> T:
        """Its result; its time is added to the stage's, which bears the name of the handler's class."""
        started = time.perf_counter()
        try:
            return await doing
        finally:
            stage = type(handler).__name__.lower()
            self._spent[stage] = self._spent.get(stage, 0.0) + time.perf_counter() - started

    async def _commit(
        self,
        topic: str,
        records: Sequence[Record],
        deliveries: Mapping[str, tuple[Delivery, Record]],
        unreadable: Sequence[tuple[Record, str | None, str]],
        fresh: Sequence[str],
        waiting: Sequence[tuple[str, str]],
        acted: Sequence[Any],
    ) -> Sequence[tuple[str, Outgoing]]:
        """The one transaction; what it put into the outbox."""
        parked, dead = list(waiting), list(unreadable)
        identities = {id(delivery): identity for identity, (delivery, _) in deliveries.items()}
        async with self.ledger.transaction() as tx:
            if await self._applied(tx, fresh, records) < len(fresh):
                raise _OvertakenError
            for handler, one in zip(self._handlers[topic], acted, strict=bool(fresh)):
                for refused in await self._timed(handler, handler.commit(one, tx)) or ():
                    self._sort_refused(refused, identities, deliveries, parked, dead)
            if parked:
                await self._park(tx, [(one, deliveries[one], reason) for one, reason in parked])
            if dead:
                await self._bury(tx, dead)
            crash_point("delivery.recorded")
        crash_point("delivery.committed")
        if tx.deferred:
            self._deferred()
        if parked:
            self.parked.set()
        metrics.DELIVERIES.labels(self.worker, topic, "handled").inc(len(fresh))
        metrics.DELIVERIES.labels(self.worker, topic, "duplicate").inc(len(deliveries) - len(fresh) - len(waiting))
        metrics.DELIVERIES.labels(self.worker, topic, "parked").inc(len(parked))
        metrics.DELIVERIES.labels(self.worker, topic, "dead").inc(len(dead))
        return tx.outbox

    def _sort_refused(
        self,
        refused: Refused,
        identities: Mapping[int, str],
        deliveries: Mapping[str, tuple[Delivery, Record]],
        parked: list[tuple[str, str]],
        dead: list[tuple[Record, str | None, str]],
    ) -> None:
        identity = identities[id(refused.delivery)]
        if refused.later:
            parked.append((identity, refused.code))
        else:
            dead.append((deliveries[identity][1], refused.delivery.event.id, refused.code))

    async def _sort(self, deliveries: Mapping[str, tuple[Delivery, Record]]) -> tuple[list[str], list[str]]:
        """Identities to handle now, and those that queue behind a parked event of their scope."""
        if not deliveries:
            return [], []
        scopes = {identity: scope_of(delivery) for identity, (delivery, _) in deliveries.items()}
        rows = await self.ledger.fetch(
            "delivery_sort", worker=self.worker, ids=list(deliveries), scopes=list(scopes.values())
        )
        known = {identity for identity, applied, _ in rows if applied}
        behind = {identity for identity, _, waits in rows if waits}
        new = [identity for identity in deliveries if identity not in known]
        return [one for one in new if one not in behind], [one for one in new if one in behind]

    async def _park(self, tx: Tx, parked: Sequence[tuple[str, tuple[Delivery, Record], str]]) -> None:
        records = [record for _, (_, record), _ in parked]
        await tx.execute(
            "retry_put",
            worker=self.worker,
            ids=[identity for identity, _, _ in parked],
            scopes=[scope_of(delivery) for _, (delivery, _), _ in parked],
            topics=[one.topic for one in records],
            partitions=[one.partition for one in records],
            offsets=[one.offset for one in records],
            sealed=[self._parking.seal(one) for one in records],
            reasons=[reason for _, _, reason in parked],
            delay=0.25,
        )

    async def _bury(self, tx: Tx, dead: Sequence[tuple[Record, str | None, str]]) -> None:
        at = self._clock()
        records = [record for record, _, _ in dead]
        rows = await tx.fetch(
            "delivery_dead",
            worker=self.worker,
            ids=[_uuid(identity) for _, identity, _ in dead],
            topics=[one.topic for one in records],
            partitions=[one.partition for one in records],
            offsets=[one.offset for one in records],
            reasons=[reason for _, _, reason in dead],
            sealed=[self._parking.seal(one) for one in records],
        )
        letters = [
            events.DeadLettered(
                event_id=_uuid(identity),
                topic=one.topic,
                partition=one.partition,
                offset=one.offset,
                reason=reason,
                at=at,
            )
            for one, identity, reason in dead
            if (one.topic, one.partition, one.offset) in rows  # else it was said before
        ]
        await emit(tx, self.worker, letters, at=at, topic=topics.DEAD_LETTER)

    async def _applied(self, tx: Tx, fresh: Sequence[str], records: Sequence[Record]) -> int:
        """Enter the ids of what is applied, and the offsets of all that came; how many ids were new."""
        last: dict[tuple[str, int], int] = {}
        for one in records:
            last[one.topic, one.partition] = max(last.get((one.topic, one.partition), 0), one.offset + 1)
        ((new,),) = await tx.fetch(
            "delivery_apply",
            worker=self.worker,
            ids=sorted(fresh),
            topics=[topic for topic, _ in last],
            partitions=[partition for _, partition in last],
            offsets=list(last.values()),
        )
        return int(new)

    async def _clear(self, records: Sequence[Record]) -> None:
        # What is quarantined stays known, should it be delivered once more.
        cleared = [
            position
            for one in records
            if 0 < self._suspects.get(position := (one.topic, one.partition, one.offset), 0) < CRASHES
        ]
        if not cleared:
            return
        names, partitions, offsets = map(list, zip(*cleared, strict=True))
        await self.ledger.execute(
            "crash_clear", worker=self.worker, topics=names, partitions=partitions, offsets=offsets
        )
        for position in cleared:
            del self._suspects[position]

    async def publish_emitted(self, emitted: Sequence[tuple[str, Outgoing]]) -> None:
        """Publish what a committed transaction put into the outbox (`Tx.outbox`), and take it out: one round trip, where
        reading it back takes four. What the broker does not take stays there, for a relay."""
        async with self._publishing:
            if emitted and self._behind:
                await self._publish_rows(1e9, 0.0)
                if self._behind:
                    return
            new = [one for one in emitted if (one[0], one[1].topic) not in self._published]
            if not new:
                return
            try:
                await self._broker.publish([message for _, message in new])
            except Retryable as error:
                self._left(len(new), error)
                return
            crash_point("delivery.published")
            await self.ledger.execute(
                "outbox_emitted", ids=[identity for identity, _ in new], topics=[message.topic for _, message in new]
            )

    async def publish_outbox(self, *, age: float = 1e9, own: float = 0.0) -> int:
        """Publish this worker's outbox rows that are `own` seconds old, and any worker's that are older than `age` seconds;
        how many. A relay leaves what is new to whoever is publishing it at this moment."""
        async with self._publishing:
            return await self._publish_rows(age, own)

    async def _publish_rows(self, age: float, own: float) -> int:
        published = 0
        while True:
            async with self.ledger.transaction() as tx:
                rows = await tx.fetch("outbox_take", worker=self.worker, age=age, own=own, limit=OUTBOX_BATCH)
                if rows:
                    messages = [Outgoing(row[1], row[2], row[4], unpack_headers(row[3])) for row in rows]
                    try:
                        await self._broker.publish(messages)
                    except Retryable as error:
                        # The rows stay; the relay tries again. What was applied must still be acknowledged.
                        self._left(len(rows), error)
                        return published
                    crash_point("delivery.published")
                    await tx.execute("outbox_published", ids=[row[0] for row in rows])
            if rows and self._under_way:
                out = [(row[5], row[1]) for row in rows]
                self._by_row.append((self._begun, out))
                self._published.update(out)
            published += len(rows)
            if len(rows) < OUTBOX_BATCH:
                self._behind = self._behind and own > 0
                return published

    def _left(self, count: int, error: Retryable) -> None:
        self._behind = True
        _log.warning("unpublished", worker=self.worker, count=count, kind=type(error).__name__)

    async def publish(self, messages: Sequence[Outgoing]) -> None:
        """Publish messages that have rows of their own to be repeated from. Raises `Retryable`."""
        await self._broker.publish(messages)

    async def retry_due(self) -> int:
        """Try parked events whose time has come, each on its own; how many were due."""
        rows = await self.ledger.fetch("retry_due", worker=self.worker, limit=64)
        for event_id, topic, partition, offset, sealed, attempts, _seq in sorted(rows, key=itemgetter(-1)):
            record = self._parking.open(topic, partition, offset, sealed)
            await self._retry(event_id, record, attempts)
        if rows:
            await self.publish_outbox()
            self._committed()
        return len(rows)

    async def _retry(self, event_id: str, record: Record, attempts: int) -> None:
        delivery = Delivery(
            record.topic, record.partition, record.offset, from_kafka(record.key, record.value, record.headers)
        )
        reason = "retryable"
        if attempts > ATTEMPTS:  # the last one killed the worker
            async with self.ledger.transaction() as tx:
                await tx.execute("retry_done", worker=self.worker, ids=[event_id])
                await self._bury(tx, [(record, delivery.event.id, "poison")])
            return
        try:
            with bound_contextvars(**_traced({event_id: (delivery, record)})):
                acted = [await handler.act([delivery]) for handler in self._handlers[record.topic]]
            crash_point("delivery.parked-acted")
            async with self.ledger.transaction() as tx:
                if not await tx.execute("retry_done", worker=self.worker, ids=[event_id]):
                    return  # another worker's by now
                refused: list[Refused] = []
                for handler, one in zip(self._handlers[record.topic], acted, strict=True):
                    refused += await handler.commit(one, tx) or ()
                waits = [one for one in refused if one.later]
                if not waits:
                    await self._applied(tx, [event_id], [])
                    if refused:
                        await self._bury(tx, [(record, delivery.event.id, refused[0].code)])
                    crash_point("delivery.parked-recorded")
                    return
                reason = waits[0].code
                raise Retryable  # noqa: TRY301 - rolls the transaction back, whatever else the handlers did
        except (Retryable, FencedOff):
            async with self.ledger.transaction() as tx:
                if attempts >= ATTEMPTS:
                    await tx.execute("retry_done", worker=self.worker, ids=[event_id])
                    await self._bury(tx, [(record, delivery.event.id, reason)])
                else:
                    await tx.execute("retry_again", worker=self.worker, id=event_id, reason=reason)


def dedupe_id(event: CloudEvent, record: Record, *, dedupe: bool) -> str:
    """What recognises a repeat. Our own events have ids that are functions of content. Where the handler answers
    duplicates itself, every delivery counts: its position, and its bytes lest a new topic reuses positions."""
    if dedupe and event.source == "expunge":
        return event.id
    digest = sha256(event.id.encode() + b"\0" + event.data).hexdigest()
    return digest if dedupe else f"{record.topic}/{record.partition}/{record.offset}/{digest}"


def _traced(deliveries: Mapping[str, tuple[Delivery, Record]]) -> dict[str, list[str]]:
    """What log lines say of the traces in a batch: the first few trace ids, if there is any."""
    contexts = [one.event.traceparent for one, _ in deliveries.values()]
    found = sorted({tracing.trace_id(one) for one in contexts if one is not None})[:TRACES]
    return {"trace": found} if found else {}


def scope_of(delivery: Delivery) -> str:
    """Later events of a scope wait behind a parked one: the record's key, hashed, because it may be a person's."""
    key = delivery.event.partitionkey or delivery.event.id
    return sha256(key.encode()).hexdigest()[:32]


def _claimed_id(record: Record) -> str | None:
    """The id in the headers of a message that is not to be read any more, so that its sender can be told."""
    found = next((value for name, value in record.headers if name == "ce_id" and value), b"")
    return found.decode("ascii", "replace")


def _uuid(identity: str | None) -> str | None:
    """The id, if it is a UUID: anything else may hold anything."""
    try:
        return str(UUID(identity)) if identity else None
    except ValueError:
        return None
