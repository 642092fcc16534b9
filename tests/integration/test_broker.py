"""The outbox's way into Kafka: whole batches, in order, on the partition that every client would choose."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.partitioner.default import murmur2

from expunge.adapters.broker.kafka import KafkaBroker
from expunge.domain.errors import Retryable
from expunge.ports import Outgoing
from tests.conftest import KafkaServer

TOPIC = "broker-batches"
PARTITIONS = 3


@pytest.fixture
async def broker(kafka_server: KafkaServer) -> AsyncIterator[KafkaBroker]:
    kafka_server.create_topics({TOPIC: PARTITIONS})
    made = KafkaBroker(kafka_server.bootstrap, client_id="batches")
    await made.start()
    yield made
    await made.stop()


def received(server: KafkaServer, count: int) -> dict[int, list[tuple[bytes | None, bytes, list[tuple[str, bytes]]]]]:
    """The last `count` messages, by partition, in order."""
    consumer = KafkaConsumer(bootstrap_servers=server.bootstrap, enable_auto_commit=False)
    parts = [TopicPartition(TOPIC, number) for number in range(PARTITIONS)]
    consumer.assign(parts)
    consumer.seek_to_beginning(*parts)
    found: dict[int, list[tuple[bytes | None, bytes, list[tuple[str, bytes]]]]] = {n: [] for n in range(PARTITIONS)}
    while sum(map(len, found.values())) < count:
        for part, records in consumer.poll(timeout_ms=1000).items():
            found[part.partition] += [(one.key, one.value, list(one.headers)) for one in records]
    consumer.close()
    return found


async def test_messages_arrive_whole_in_order_and_where_their_keys_belong(
    kafka_server: KafkaServer, broker: KafkaBroker
) -> None:
    keys = [b"key-%d" % (number % 7) if number % 11 else b"" for number in range(2000)]
    sent = [Outgoing(TOPIC, key, b"%05d" % at + bytes(400), [("ce_id", b"%d" % at)]) for at, key in enumerate(keys)]
    await broker.publish(sent)  # more than one batch for some partition
    found = received(kafka_server, len(sent))
    assert sorted(value for every in found.values() for _, value, _ in every) == [one.value for one in sent]
    for partition, every in found.items():
        assert [value for _, value, _ in every] == sorted(value for _, value, _ in every)
        for key, value, headers in every:
            assert headers == [("ce_id", b"%d" % int(value[:5]))]
            assert key is None or (murmur2(key) & 0x7FFFFFFF) % PARTITIONS == partition
    with pytest.raises(Retryable):
        await broker.publish([Outgoing(TOPIC, b"k", bytes(2_000_000), [])])
