"""For product backends: publish signed requests, and lineage, to Kafka.

    with Publisher("kafka:9092", key, audience="expunge:acme-eu", client_id="accounts") as publisher:
        request_id = publisher.delete(subject_ref, regulation=Regulation.GDPR)

Methods return at once; `flush` says whether everything since the last one has been acknowledged by all replicas. Ids,
nonces and times are drawn here, or given as `Drawn`: publishing the same request with the same `Drawn` gives the same
bytes, which Expunge takes once. Thread-safe, except that `flush` reports what any thread published.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Self

from kafka import KafkaProducer
from kafka.errors import KafkaError
from kafka.net.compat import KafkaNetClient
from pydantic import ValidationError

from expunge.domain import dsse, lineage, topics, tracing
from expunge.domain import request as requests
from expunge.domain.cloudevents import CloudEvent, to_kafka
from expunge.domain.errors import Rejected, Retryable
from expunge.domain.limits import MESSAGE_BYTES
from expunge.domain.request import RequestId

if TYPE_CHECKING:
    from types import TracebackType

    from expunge.domain.request import (
        Authority,
        BySource,
        BySubject,
        OrderProvision,
        Regulation,
        Request,
        SubjectRef,
    )

LIFETIME: Final = timedelta(days=1)
"""How long a request may wait to be read before it expires."""
FLUSH_SECONDS: Final = 30.0
_LINGER_MS: Final = 5
_BLOCK_MS: Final = 10_000
"""Longest that publishing waits for metadata or for room in the buffer, ms."""


class Unacknowledged(Retryable):
    """Some messages were not acknowledged; `ids` are theirs. They may have arrived: publish them again as they were."""

    def __init__(self, ids: tuple[str, ...], cause: str) -> None:
        super().__init__(f"expected every message to be acknowledged, {len(ids)} were not: {cause}")
        self.ids = ids


@dataclass(frozen=True, slots=True)
class Drawn:
    """What makes two equal requests different: drawn once, and kept by who wants to repeat one exactly."""

    id: RequestId
    nonce: str
    issued_at: datetime
    expires_at: datetime
    traceparent: str | None = None
    """W3C trace context that the request belongs to: carried beside it, not signed."""

    @classmethod
    def now(cls, lifetime: timedelta = LIFETIME) -> Self:
        issued_at = datetime.now(UTC)
        return cls(RequestId(str(uuid.uuid4())), secrets.token_hex(16), issued_at, issued_at + lifetime, tracing.new())


class Publisher:
    """`key` signs every request; its id and scope are registered with Expunge. `settings` go to the Kafka client as
    they are (security, timeouts). Raises `Retryable` when no broker answers."""

    def __init__(
        self,
        bootstrap: str,
        key: dsse.SigningKey,
        audience: str,
        client_id: str,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._key = key
        self._audience = audience
        self._source = f"urn:expunge:publisher:{client_id}"
        self._failed: list[tuple[str, str]] = []
        with _translated(), ExitStack() as on_failure:

            def net(**configs: object) -> Any:  # noqa: ANN401 - the Kafka client is untyped
                client = KafkaNetClient(**configs)
                on_failure.callback(client.close)  # a KafkaProducer that fails to start leaves its sockets open
                return client

            self._producer = KafkaProducer(
                kafka_client=net,
                bootstrap_servers=bootstrap,
                client_id=client_id,
                **{
                    "enable_idempotence": True,
                    "acks": "all",
                    "linger_ms": _LINGER_MS,
                    "max_block_ms": _BLOCK_MS,
                    "allow_auto_create_topics": False,
                    **(settings or {}),
                },
            )
            on_failure.pop_all()

    def delete(
        self,
        subject_ref: SubjectRef,
        *,
        regulation: Regulation,
        received_at: datetime | None = None,
        deadline: datetime | None = None,
        drawn: Drawn | None = None,
    ) -> RequestId:
        """A person asks to be deleted. `received_at`: when they asked, if not just now."""
        drawn = drawn or Drawn.now()
        return self._request(
            requests.DeletionRequested,
            drawn,
            subject_ref=subject_ref,
            regulation=regulation,
            received_at=received_at or drawn.issued_at,
            deadline=deadline,
        )

    def expire(
        self, subject_ref: SubjectRef, purposes: tuple[str, ...] | None = None, *, drawn: Drawn | None = None
    ) -> RequestId:
        """The retention period has ended: for all purposes, or for these."""
        return self._request(requests.RetentionExpired, drawn, subject_ref=subject_ref, purposes=purposes)

    def give_consent(
        self, subject_ref: SubjectRef, purposes: tuple[str, ...], *, drawn: Drawn | None = None
    ) -> RequestId:
        return self._request(requests.ConsentGiven, drawn, subject_ref=subject_ref, purposes=purposes)

    def withdraw(
        self,
        subject_ref: SubjectRef,
        purposes: tuple[str, ...],
        *,
        regulation: Regulation,
        received_at: datetime | None = None,
        drawn: Drawn | None = None,
    ) -> RequestId:
        drawn = drawn or Drawn.now()
        return self._request(
            requests.ConsentWithdrawn,
            drawn,
            subject_ref=subject_ref,
            purposes=purposes,
            regulation=regulation,
            received_at=received_at or drawn.issued_at,
        )

    def order(
        self,
        selection: requests.Selection,
        *,
        authority: Authority,
        reference: str,
        provisions: tuple[OrderProvision, ...],
        drawn: Drawn | None = None,
    ) -> RequestId:
        return self._request(
            requests.OrderIssued,
            drawn,
            selection=selection,
            authority=authority,
            reference=reference,
            provisions=provisions,
        )

    def hold(
        self,
        target: BySubject | BySource,
        *,
        authority: Authority,
        reference: str,
        until: datetime | None = None,
        drawn: Drawn | None = None,
    ) -> RequestId:
        return self._request(
            requests.HoldPlaced, drawn, target=target, authority=authority, reference=reference, until=until
        )

    def release(self, hold_id: RequestId, *, drawn: Drawn | None = None) -> RequestId:
        return self._request(requests.HoldReleased, drawn, hold_id=hold_id)

    def cancel(self, request_id: RequestId, *, drawn: Drawn | None = None) -> RequestId:
        return self._request(requests.Cancelled, drawn, request_id=request_id)

    def approve(self, request_id: RequestId, scope_root: str, *, drawn: Drawn | None = None) -> RequestId:
        """Let the scope be erased that ApprovalAwaited named."""
        return self._request(requests.Approved, drawn, request_id=request_id, scope_root=scope_root)

    def lineage(
        self, event: lineage.Lineage, *, event_id: str | None = None, traceparent: str | None = None
    ) -> str:  # fmt: skip
        """Tell of a source, images, artifacts, a snapshot or a model. Returns the event id."""
        event_id = event_id or str(uuid.uuid4())
        self._send(topics.LINEAGE, _traced(lineage.to_cloudevent(event, event_id, self._source), traceparent))
        return event_id

    def flush(self, seconds: float = FLUSH_SECONDS) -> None:
        """Returns when all that was published is acknowledged. Raises `Unacknowledged`, or `Retryable` on time-out."""
        with _translated():
            self._producer.flush(timeout=seconds)
        failed, self._failed = self._failed, []
        if failed:
            raise Unacknowledged(tuple(event_id for event_id, _ in failed), failed[0][1])

    def close(self) -> None:
        """Stop, without telling what was not acknowledged: flush first. Raises `Retryable` when it takes too long."""
        with _translated():
            self._producer.close(timeout=FLUSH_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self.close()

    def _request(self, kind: type[requests.Message], drawn: Drawn | None, **fields: object) -> RequestId:
        drawn = drawn or Drawn.now()
        common = {"id": drawn.id, "nonce": drawn.nonce, "issued_at": drawn.issued_at, "expires_at": drawn.expires_at}
        request = _fitting({"type": _type_of(kind), "audience": self._audience, **common, **fields})
        envelope = dsse.sign(requests.dump_request(request), requests.PAYLOAD_TYPE, self._key)
        event = requests.to_cloudevent(request, envelope, self._source)
        self._send(topics.REQUESTS, _traced(event, drawn.traceparent))
        return request.id

    def _send(self, topic: topics.Topic, event: CloudEvent) -> None:
        key, value, headers = to_kafka(event)
        if len(value) > MESSAGE_BYTES:
            raise Rejected("oversized", f"expected a message of at most {MESSAGE_BYTES} bytes, got {len(value)}")
        try:
            self._producer.send(topic.name, value, key, headers).add_errback(self._note, event.id)
        except KafkaError as error:
            self._note(event.id, error)

    def _note(self, event_id: str, error: BaseException) -> None:
        self._failed.append((event_id, type(error).__name__))


def _traced(event: CloudEvent, traceparent: str | None) -> CloudEvent:
    """The event in its trace. Raises `Rejected` for what is no traceparent."""
    if traceparent is not None and tracing.accepted(traceparent) is None:
        raise Rejected("malformed", "expected a W3C traceparent of version 00")
    return replace(event, traceparent=traceparent)


def _type_of(kind: type[requests.Message]) -> str:
    return next(name for name, known in requests.REQUEST_TYPES.items() if known is kind)


def _fitting(fields: dict[str, object]) -> Request:
    try:
        return requests.REQUEST_ADAPTER.validate_python(fields)
    except ValidationError as error:
        refusal = requests.refused(requests.REQUEST_ADAPTER, error)
    raise refusal


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except KafkaError as error:
        raise Retryable(f"expected Kafka to answer, got {type(error).__name__}") from error
