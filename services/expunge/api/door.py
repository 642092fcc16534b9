"""Requests over HTTP: looked at where they come in, then put on Kafka as they came, byte for byte.

What is checked here is checked again by intake, which alone decides. The point is to say at once what can never be
accepted. Nothing is signed here, and nothing counts as taken before Kafka's replicas have it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from expunge.adapters.broker.kafka import KafkaBroker
from expunge.api.problems import RETRY_SECONDS, Problem
from expunge.api.tokens import Token
from expunge.domain import cloudevents, dsse
from expunge.domain import request as requests
from expunge.domain.cloudevents import STRUCTURED, CloudEvent
from expunge.domain.dsse import PublicKey
from expunge.domain.errors import Rejected, Retryable, Tampered
from expunge.domain.request import ENVELOPE_TYPE, Approved, Request
from expunge.domain.topics import REQUESTS
from expunge.domain.words import Role
from expunge.ports import Clock, Ledger, Outgoing, Row, Tx

TAKEN: Final = (ENVELOPE_TYPE, STRUCTURED)
"""Media types of what may be handed in."""

STALE: Final = timedelta(seconds=30)
"""A submission that was begun this long ago and never ended was left by a crash: whoever repeats it takes it over."""
KAFKA_SECONDS: Final = 5.0
CLOCK_SKEW: Final = timedelta(minutes=5)
_STATUS: Final = {"oversized": 413, "too-large": 413}


@dataclass(frozen=True, slots=True)
class Handed:
    """A request as it came: the media type, the CloudEvents headers of its HTTP message by lower-case name, the body."""

    media_type: str
    headers: Mapping[str, str]
    body: bytes


class Door:
    """`ledger`: may write, for Idempotency-Keys. The producer connects when the first request comes."""

    def __init__(self, *, ledger: Ledger, kafka: str, client_id: str, audience: str, clock: Clock) -> None:
        self._ledger = ledger
        self._kafka = kafka
        self._client_id = client_id
        self._audience = audience
        self._clock = clock
        self._broker: KafkaBroker | None = None
        self._starting = asyncio.Lock()

    async def submit(self, handed: Handed, token: Token, key: str | None) -> UUID:
        """Put a request on Kafka; its id. `key`: the Idempotency-Key. Raises `Problem`."""
        at = self._clock()
        async with self._ledger.transaction() as tx:
            request, message = await self._checked(handed, token, at, tx)
        request_id = UUID(request.id)
        if key is None:
            await self._publish(message)
            return request_id
        name = {"token_id": token.token_id, "key_digest": hashlib.sha256(key.encode()).digest()}
        if not await self._begin(name, handed, request_id):
            return request_id
        try:
            await self._publish(message)
        except Problem:
            async with self._ledger.transaction() as tx:
                await tx.execute("api_undone", **name)
            raise
        async with self._ledger.transaction() as tx:
            await tx.execute("api_done", **name)
        return request_id

    async def close(self) -> None:
        """Flush and disconnect."""
        if self._broker is not None:
            await self._broker.stop()

    async def _checked(self, handed: Handed, token: Token, at: datetime, tx: Tx) -> tuple[Request, Outgoing]:
        try:
            event, headers = _event(handed)
            envelope = dsse.parse(event.data)
            found = await tx.fetch("api_keys", ids=[one.key_id for one in envelope.signatures], at=at)
            payload, role, name = _verified(envelope, found)
            request = requests.parse_request(payload)
            requests.check_agrees(request, event)
            self._admit(request, role, at)
        except Rejected as error:
            raise Problem(_STATUS.get(error.code, 422), str(error), code=error.code) from None
        if token.publisher is not None and name != token.publisher:
            raise Problem(422, "expected a signature by a key that this token is bound to", code="unknown-key")
        key = requests.partition_key(request).encode()
        return request, Outgoing(REQUESTS.name, key, handed.body, headers)

    def _admit(self, request: Request, role: Role, at: datetime) -> None:
        wanted = Role.APPROVER if isinstance(request, Approved) else Role.PUBLISHER
        if role is not wanted:
            raise Rejected("wrong-role", f"expected a key of role {wanted}, got {role}")
        if request.audience != self._audience:
            raise Rejected("wrong-audience", "expected a request made for this deployment")
        if request.expires_at <= at:
            raise Rejected("expired", "expected a request that has not expired")
        if request.issued_at > at + CLOCK_SKEW:
            raise Rejected("issued-in-future", "expected a time of issue that has passed")

    async def _begin(self, name: Mapping[str, object], handed: Handed, request_id: UUID) -> bool:
        """Whether to publish; False for what was published under this key before."""
        digest = hashlib.sha256(handed.body).digest()
        async with self._ledger.transaction() as tx:
            if await tx.fetch("api_begin", **name, body_digest=digest, request_id=request_id, stale=STALE):
                return True
            rows = await tx.fetch("api_begun", **name)
        body, _, done = rows[0] if rows else (digest, request_id, False)
        if bytes(body) != digest:
            raise Problem(422, "expected an Idempotency-Key that no other request was sent under", code="key-reused")
        if not done:
            raise Problem(
                409, "expected the first try to have ended; try again", headers={"Retry-After": str(RETRY_SECONDS)}
            )
        return False

    async def _publish(self, message: Outgoing) -> None:
        try:
            await (await self._connected()).publish([message])
        except Retryable:
            # A record that was sent and not acknowledged may have arrived: the same bytes again are taken once.
            raise Problem.unavailable("expected Kafka to acknowledge, it did not: nothing counts as taken") from None

    async def _connected(self) -> KafkaBroker:
        async with self._starting:
            if self._broker is None:
                broker = KafkaBroker(self._kafka, client_id=self._client_id, give_up_seconds=KAFKA_SECONDS)
                try:
                    await broker.start()
                except Retryable:
                    await broker.stop()
                    raise
                self._broker = broker
            return self._broker


def _event(handed: Handed) -> tuple[CloudEvent, list[tuple[str, bytes]]]:
    """The event, and the Kafka headers that it goes out with."""
    if handed.media_type == STRUCTURED:
        headers = [("content-type", STRUCTURED.encode())]
        event = cloudevents.from_kafka(None, handed.body, headers)
        if event.partitionkey is None:
            # In the Kafka binding the record's key may carry it: here the signed request does.
            request = requests.parse_request(dsse.parse(event.data).payload)
            event = cloudevents.from_kafka(requests.partition_key(request).encode(), handed.body, headers)
        return event, headers
    payload = dsse.parse(handed.body).payload
    request = requests.parse_request(payload)
    told = requests.to_cloudevent(request, handed.body, handed.headers.get("ce-source", "urn:expunge:http"))
    key, _, headers = cloudevents.to_kafka(told)
    given = {name.replace("ce-", "ce_", 1): text for name, text in handed.headers.items()}
    headers = [(name, given[name].encode() if name in given else value) for name, value in headers]
    return cloudevents.from_kafka(key, handed.body, headers), headers


def _verified(envelope: dsse.Envelope, keys: Sequence[Row]) -> tuple[bytes, Role, str]:
    """Payload, role and name of the registered key that signed it."""
    for _, role, name, public in keys:
        try:
            return dsse.verify(envelope, PublicKey(bytes(public)), requests.PAYLOAD_TYPE), Role(role), name
        except Tampered:
            raise Rejected("bad-signature", "expected a signature that verifies") from None
    raise Rejected("unknown-key", "expected a signature by a key that is registered and valid now")
