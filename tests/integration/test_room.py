"""Never more workers than partitions: one that gets none does nothing, so it is refused before it joins."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from kafka import KafkaConsumer

from expunge.adapters.broker.topics import expect_room
from expunge.domain.errors import Misconfigured
from tests.conftest import KafkaServer

GROUP = "expunge-room"


@contextmanager
def member(server: KafkaServer, topic: str, instance: str) -> Iterator[None]:
    """A static member of the group, with partitions."""
    consumer = KafkaConsumer(topic, bootstrap_servers=server.bootstrap, group_id=GROUP, group_instance_id=instance)
    try:
        deadline = time.monotonic() + 60
        while not consumer.assignment():
            assert time.monotonic() < deadline, "the member did not join"
            consumer.poll(timeout_ms=200)
        yield
    finally:
        consumer.close()


def test_one_worker_more_than_partitions_is_refused_and_told_why(kafka_server: KafkaServer) -> None:
    topic = "room"
    kafka_server.create_topics({topic: 1})
    expect_room(kafka_server.bootstrap, GROUP, "a", 1)
    with member(kafka_server, topic, "a"):
        expect_room(kafka_server.bootstrap, GROUP, "a", 1)  # the same one, after a restart
        expect_room(kafka_server.bootstrap, GROUP, "b", 2)
        with pytest.raises(Misconfigured, match="expected at most 1 workers in group expunge-room"):
            expect_room(kafka_server.bootstrap, GROUP, "b", 1)
