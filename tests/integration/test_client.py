"""The publisher against a real broker: what a backend publishes is what intake can read, and losses are told."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.record import util as checksums

from expunge.client import Drawn, Publisher, Unacknowledged
from expunge.domain import dsse, lineage, request
from expunge.domain.cloudevents import CloudEvent, from_kafka
from expunge.domain.errors import Rejected
from expunge.domain.request import RequestId, SubjectRef
from expunge.domain.topics import LINEAGE, REQUESTS
from expunge.domain.words import Provision, Remedy

if TYPE_CHECKING:
    from tests.conftest import KafkaServer

KEY = dsse.SigningKey.from_seed(bytes(range(32)))
PERSON = SubjectRef("k1.0123456789abcdef")
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
DRAWN = Drawn(RequestId("00000001-0000-4000-8000-000000000001"), "0" * 32, NOW, NOW + timedelta(days=1))
SCOPE_ROOT = "5" * 64
SOURCE = request.BySource(source="okface")
PROVISION = request.OrderProvision(number=1, covers=Provision.MODELS, deadline=NOW, remedy=Remedy.DESTROY)


@pytest.fixture
def bootstrap(kafka_server: KafkaServer) -> str:
    kafka_server.create_topics({REQUESTS.name: 12, LINEAGE.name: 12})
    return kafka_server.bootstrap


@pytest.fixture
def client_id() -> str:
    return f"test-{uuid.uuid4().hex}"


@pytest.fixture
def publisher(bootstrap: str, client_id: str) -> Iterator[Publisher]:
    with Publisher(bootstrap, KEY, "expunge:test", client_id) as publisher:
        yield publisher


def published(bootstrap: str, topic: str, client_id: str) -> list[CloudEvent]:
    """Everything on the topic that came from this client, up to its present end."""
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False, auto_offset_reset="earliest")
    try:
        partitions = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))]
        consumer.assign(partitions)
        ends = consumer.end_offsets(partitions)
        records: list[Any] = []
        while any(consumer.position(partition) < ends[partition] for partition in partitions):
            for batch in consumer.poll(timeout_ms=1000).values():
                records += batch
    finally:
        consumer.close()
    found = [from_kafka(record.key, record.value, record.headers) for record in records]
    return [event for event in found if event.source == f"urn:expunge:publisher:{client_id}"]


def opened(event: CloudEvent) -> request.Request:
    parsed = request.parse_request(dsse.verify(dsse.parse(event.data), KEY.public, request.PAYLOAD_TYPE))
    request.check_agrees(parsed, event)
    return parsed


EACH: dict[str, Callable[[Publisher], RequestId]] = {
    "expunge.request.deletion.v1": lambda p: p.delete(PERSON, regulation=request.Regulation.GDPR),
    "expunge.request.retention.v1": lambda p: p.expire(PERSON),
    "expunge.request.consent-given.v1": lambda p: p.give_consent(PERSON, ("training",)),
    "expunge.request.consent-withdrawal.v1": lambda p: p.withdraw(
        PERSON, ("training",), regulation=request.Regulation.BIPA
    ),
    "expunge.request.order.v1": lambda p: p.order(
        SOURCE, authority=request.Authority.REGULATOR, reference="C-4743", provisions=(PROVISION,)
    ),
    "expunge.request.hold.v1": lambda p: p.hold(SOURCE, authority=request.Authority.COURT, reference="2 O 17/26"),
    "expunge.request.hold-release.v1": lambda p: p.release(DRAWN.id),
    "expunge.request.cancel.v1": lambda p: p.cancel(DRAWN.id),
    "expunge.request.approval.v1": lambda p: p.approve(DRAWN.id, SCOPE_ROOT),
}


def test_every_kind_of_request_arrives_signed_and_in_agreement_with_its_headers(
    publisher: Publisher, bootstrap: str, client_id: str
) -> None:
    assert set(EACH) == set(request.REQUEST_TYPES)
    ids = {name: publish(publisher) for name, publish in EACH.items()}
    publisher.flush()
    arrived = [opened(event) for event in published(bootstrap, REQUESTS.name, client_id)]
    assert {one.type: one.id for one in arrived} == ids
    assert {one.audience for one in arrived} == {"expunge:test"}


def test_checksums_are_computed_in_c() -> None:
    """In Python they are a fifth of what publishing a request costs."""
    assert checksums.crc32c_c is not None
    assert checksums._crc32c is checksums.crc32c_c


def test_what_is_asked_about_one_person_arrives_in_order(publisher: Publisher, bootstrap: str, client_id: str) -> None:
    asked = [publisher.give_consent(PERSON, ("training",)) for _ in range(50)]
    publisher.flush()
    events = published(bootstrap, REQUESTS.name, client_id)
    assert [event.id for event in events] == asked
    assert {event.partitionkey for event in events} == {PERSON}


def test_the_same_draw_gives_the_same_bytes(publisher: Publisher, bootstrap: str, client_id: str) -> None:
    for _ in range(2):
        assert publisher.delete(PERSON, regulation=request.Regulation.GDPR, drawn=DRAWN) == DRAWN.id
    publisher.flush()
    first, second = published(bootstrap, REQUESTS.name, client_id)
    assert first == second


def test_lineage_arrives_unsigned(publisher: Publisher, bootstrap: str, client_id: str) -> None:
    event = lineage.SourceRegistered(
        source="okface",
        supplier="OkFace",
        agreement="DTA-1",
        licence="research",
        consent_basis=lineage.ConsentBasis.NONE_RECORDED,
        acquired_on=date(2014, 9, 24),
        approved_by="role:head-of-data",
    )
    event_id = publisher.lineage(event)
    publisher.flush()
    (arrived,) = published(bootstrap, LINEAGE.name, client_id)
    assert (arrived.id, lineage.from_cloudevent(arrived)) == (event_id, event)


def test_leaving_the_context_flushes(bootstrap: str, client_id: str) -> None:
    with Publisher(bootstrap, KEY, "expunge:test", client_id) as publisher:
        asked = publisher.cancel(DRAWN.id)
    assert [event.id for event in published(bootstrap, REQUESTS.name, client_id)] == [asked]


def test_an_error_inside_the_context_is_not_hidden(bootstrap: str, client_id: str) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        Publisher(bootstrap, KEY, "expunge:test", client_id),
    ):
        _ = 1 / 0


def test_what_does_not_fit_the_schema_is_refused_at_once_and_not_repeated(publisher: Publisher) -> None:
    with pytest.raises(Rejected) as refused:
        publisher.delete(SubjectRef("jane@example.org"), regulation=request.Regulation.GDPR)
    assert refused.value.code == "malformed"
    assert "subject_ref" in str(refused.value)
    assert "jane" not in str(refused.value)


def test_an_oversized_message_is_refused_at_once(publisher: Publisher) -> None:
    people = tuple(SubjectRef(f"k1.{number:086d}") for number in range(10_000))
    with pytest.raises(Rejected) as refused:
        publisher.order(
            request.ByList(subjects=people),
            authority=request.Authority.COURT,
            reference="all",
            provisions=(PROVISION,),
        )
    assert refused.value.code == "oversized"


def test_flush_names_what_was_not_acknowledged_and_then_starts_afresh(bootstrap: str, client_id: str) -> None:
    publisher = Publisher(bootstrap, KEY, "expunge:test", client_id, {"max_request_size": 300})
    try:
        lost = publisher.cancel(DRAWN.id)
        with pytest.raises(Unacknowledged) as told:
            publisher.flush()
        assert told.value.ids == (lost,)
        publisher.flush()
    finally:
        publisher.close()


def test_no_broker_is_retryable() -> None:
    """Apart: kafka-python 3.0.12 leaves refused sockets to the collector, and that warns later."""
    program = """if True:
        from expunge.client import Publisher, dsse
        from expunge.domain.errors import Retryable
        try:
            Publisher("127.0.0.1:1", dsse.SigningKey.from_seed(bytes(32)), "x", "x", {"bootstrap_timeout_ms": 500})
        except Retryable as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert done.stdout == "expected Kafka to answer, got KafkaTimeoutError\n"
