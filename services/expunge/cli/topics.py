"""Creating Expunge's topics on any broker."""

from __future__ import annotations

from kafka import KafkaAdminClient
from kafka.errors import KafkaError, TopicAlreadyExistsError

from expunge.domain.errors import Retryable
from expunge.domain.topics import TOPICS


def create_topics(bootstrap: str, replication: int) -> list[str]:
    """Create what is missing; its names. Topics that exist stay as they are: partitions never change."""
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
