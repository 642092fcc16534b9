"""Expunge's topics on a broker: whether it answers, and creating what is missing."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Final

from kafka import KafkaAdminClient, KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaError, TopicAlreadyExistsError

from expunge.domain.errors import Misconfigured, Retryable
from expunge.domain.topics import TOPICS

ANSWER_SECONDS: Final = 5.0
"""How long a command waits for a broker: the client's own half a minute is long for a person."""


def expect_answer(bootstrap: str) -> None:
    """Raises `Retryable` unless one of the bootstrap servers takes a connection, `Misconfigured` for what is no list of
    servers."""
    for server in bootstrap.split(","):
        host, colon, port = server.strip().rpartition(":")
        if not colon or not port.isdecimal():
            raise Misconfigured("EXPUNGE_KAFKA: expected host:port[,host:port...]")
        try:
            socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
        except (OSError, OverflowError):
            continue
        return
    raise Retryable("expected a broker at EXPUNGE_KAFKA to answer, none does")


def create_topics(bootstrap: str, replication: int) -> list[str]:
    """Create what is missing; its names. Topics that exist stay as they are: partitions never change."""
    expect_answer(bootstrap)
    made = []
    try:
        admin = KafkaAdminClient(bootstrap_servers=bootstrap)
        try:
            for name, topic in TOPICS.items():
                wanted = {
                    "num_partitions": topic.partitions,
                    "replication_factor": replication,
                    "configs": topic.config,
                }
                try:
                    admin.create_topics({name: wanted}, wait_for_metadata=True)
                except TopicAlreadyExistsError:
                    continue
                made.append(name)
        finally:
            admin.close()
    except KafkaError as error:
        raise Retryable(f"expected Kafka to answer, got {type(error).__name__}") from error
    return made


def set_offsets(bootstrap: str, offsets: Mapping[tuple[str, str, int], int]) -> None:
    """Set where consumer groups go on: by group, topic and partition. No member of a group may run. Raises `Retryable`
    where the broker does not take it."""
    expect_answer(bootstrap)
    groups = {group for group, _, _ in offsets}
    try:
        for group in sorted(groups):
            consumer = KafkaConsumer(bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False)
            try:
                wanted = {TopicPartition(topic, part): at for (of, topic, part), at in offsets.items() if of == group}
                consumer.assign(list(wanted))
                consumer.commit({place: OffsetAndMetadata(at, "", -1) for place, at in wanted.items()})
            finally:
                consumer.close()
    except KafkaError as error:
        raise Retryable(
            f"expected the broker to take offsets of stopped workers, got {type(error).__name__}"
        ) from error


def expect_room(bootstrap: str, group: str, instance: str, partitions: int) -> None:
    """Raises `Misconfigured` when others than `instance` are as many as there are partitions: a worker that gets none does
    nothing, and cannot join again (aiokafka issue 1187). A broker that does not answer is for the consumer to wait for."""
    try:
        admin = KafkaAdminClient(bootstrap_servers=bootstrap)
        try:
            members = admin.describe_groups([group])[group]["members"]
        finally:
            admin.close()
    except KafkaError:
        return
    others = sum(one["group_instance_id"] != instance for one in members)
    if others >= partitions:
        raise Misconfigured(
            f"expected at most {partitions} workers in group {group}, for its topics have as many partitions; got one more: "
            f"{others} others are running. Stop one, or start this one in its place under its EXPUNGE_INSTANCE"
        )
