"""What every stage does at the end of its transaction: put events in the outbox, put statements in the evidence log.

Both are idempotent by content: the same event has the same id, the same statement has the same leaf hash.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID, uuid5

from expunge.domain import events, merkle, topics, tracing
from expunge.domain.cloudevents import CloudEvent, to_kafka
from expunge.domain.limits import LOG_ENTRY_BYTES
from expunge.domain.topics import Topic
from expunge.ports import Outgoing, Tx

NAMESPACE: Final = UUID("6f0c7b1e-58d0-5d5e-9d6e-5a1e0c8f2b11")
"""UUIDv5 namespace of event ids."""

SOURCE: Final = "expunge"
"""CloudEvents source of everything Expunge emits."""

_PREFIXES: Final = (
    ("expunge.work.", topics.OUTCOMES),
    ("expunge.sweep.taint-ordered", topics.RETRAIN),
    ("expunge.sweep.model-arrived", topics.RETRAIN),
    ("expunge.sweep.successor-registered", topics.RETRAIN),
    ("expunge.sweep.destruction-ordered", topics.RETRAIN),
    ("expunge.sweep.", topics.OUTCOMES),
)
"""Where internal events go; public ones are in `events.TOPIC_OF`. Work orders go where `emit` is told."""


def topic_name(event: events.Event) -> str:
    """The topic an event goes to unless its emitter says otherwise."""
    public = events.TOPIC_OF.get(event.type)
    return public or next(topic.name for prefix, topic in _PREFIXES if event.type.startswith(prefix))


def event_id(event: events.Event) -> str:
    """The id of an event: a function of its content, so that a repeat is recognised everywhere."""
    return str(uuid5(NAMESPACE, events.dump_event(event).decode()))


async def emit(
    tx: Tx, worker: str, emitted: Sequence[events.Event], *, at: datetime | None = None, topic: Topic | None = None
) -> None:  # fmt: skip
    """Put events into the outbox of `worker`, in order. They leave after the commit; a repeat adds nothing.

    `topic`: overrides where they go (work orders name their worker's topic). `at`: the CloudEvents time, if any.
    """
    if not emitted:
        return
    traces = await _traces(tx, emitted)
    made = [outgoing(event, at=at, topic=topic, traceparent=_trace(event, traces)) for event in emitted]
    tx.outbox += made
    await tx.execute(
        "outbox_put", worker=worker, ids=[identity for identity, _ in made], topics=[one.topic for _, one in made],
        keys=[one.key for _, one in made], headers=[pack_headers(one.headers) for _, one in made],
        values=[one.value for _, one in made],
    )  # fmt: skip


def outgoing(
    event: events.Event, *, at: datetime | None, topic: Topic | None = None, traceparent: str | None = None
) -> tuple[str, Outgoing]:  # fmt: skip
    """The id of an event, and the message that carries it. Parameters as in `emit`; `traceparent`: the trace context of what
    the event is about, which the message's is a child of."""
    data = events.dump_event(event)
    identity = str(uuid5(NAMESPACE, data.decode()))
    cloud = CloudEvent(
        id=identity, source=SOURCE, type=event.type, data=data, partitionkey=events.partition_key(event), time=at,
        traceparent=None if traceparent is None else tracing.child(traceparent, identity),
    )  # fmt: skip
    key, value, headers = to_kafka(cloud)
    return identity, Outgoing(topic.name if topic else topic_name(event), key or b"", value, headers)


def _trace(event: events.Event, traces: Mapping[str, str]) -> str | None:
    """The trace context of what an event is about."""
    return next((traces[one] for one in _about(event) if one in traces), None)


def _about(event: events.Event) -> list[str]:
    """Ids of what an event is about, the request first."""
    ids = (getattr(event, name, None) for name in ("request_id", "sweep_id"))
    return [str(one) for one in ids if one is not None]


async def _traces(tx: Tx, emitted: Sequence[events.Event]) -> dict[str, str]:
    """The trace context of the requests and sweeps that events are about, by id: of those that have one."""
    about = sorted({one for event in emitted for one in _about(event)})
    return {str(row[0]): row[1] for row in await tx.fetch("record_traces", ids=about)} if about else {}


def pack_headers(headers: Sequence[tuple[str, bytes]]) -> bytes:
    """Kafka headers as one byte string: (u32 name length, u32 value length, name, value) repeated, bytes all."""
    named = [(name.encode(), value) for name, value in headers]
    return b"".join([struct.pack("<II", len(name), len(value)) + name + value for name, value in named])


def unpack_headers(packed: bytes) -> list[tuple[str, bytes]]:
    """The inverse of `pack_headers`."""
    found, position = [], 0
    while position < len(packed):
        name, value = struct.unpack_from("<II", packed, position)
        start, middle = position + 8, position + 8 + name
        found.append((packed[start:middle].decode(), packed[middle : middle + value]))
        position = middle + value
    return found


async def log(tx: Tx, entries: Sequence[tuple[str, bytes]]) -> list[int]:
    """Append statement envelopes (predicate type, envelope) to the evidence log's rows; their log indices.

    An entry that is already there keeps its index. Takes the log's row lock until the transaction ends, so that indices
    have no gaps: call it late. Raises ValueError for an entry over the tlog-tiles limit.
    """
    if not entries:
        return []
    unique: dict[bytes, tuple[str, bytes]] = {}
    hashes = []
    for predicate, envelope in entries:
        if len(envelope) > LOG_ENTRY_BYTES:
            message = f"a log entry may have {LOG_ENTRY_BYTES} bytes, this {predicate} has {len(envelope)}"
            raise ValueError(message)
        digest = merkle.leaf_hash(envelope)
        hashes.append(digest)
        unique.setdefault(digest, (predicate, envelope))
    ((start,),) = await tx.fetch("log_lock")
    rows = await tx.fetch(
        "log_append", start=start, hashes=list(unique), predicates=[predicate for predicate, _ in unique.values()],
        entries=[envelope for _, envelope in unique.values()],
    )  # fmt: skip
    known = {bytes(digest): index for digest, index in rows}
    return [known[digest] for digest in hashes]
