"""Three brokers of which the leader is killed; and the oldest Kafka that is supported."""

from __future__ import annotations

import tomllib
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError

from expunge.domain.topics import PURGE, TOPICS
from expunge.embedded.kafka import LOCK
from expunge.embedded.process import listening
from tests.faults.cluster import OLDEST, Cluster, OnTheOldestKafka, OnThreeBrokers
from tests.faults.ground import Beating, Report, certified
from tests.faults.small import Small, eventually

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(900)]


def test_a_broker_that_leads_is_killed_under_load_and_nothing_is_lost_or_done_twice(tmp_path: Path) -> None:
    report = Report()
    with Small(tmp_path, embedded=OnThreeBrokers) as small, Beating(small):
        cluster = small.embedded.kafka
        assert isinstance(cluster, Cluster)
        people = small.register(30)
        requests = small.delete_all(people[:10])
        leader = leader_of(small.kafka, "expunge.requests")
        cluster.nodes[leader - 1].kill()
        requests += small.delete_all(people[10:20])
        certified(small, requests, report)
        cluster._run()
        certified(small, small.delete_all(people[20:]), report)
        assert small.replayed()["differences"] == []
    assert report.violations == []


def leader_of(bootstrap: str, topic: str) -> int:
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        (found,) = admin.describe_topics([topic])
        return int(found["partitions"][0]["leader_id"])
    finally:
        admin.close()


def test_an_unclean_election_loses_orders_and_they_are_given_again(tmp_path: Path) -> None:
    """Purge's topic is on two brokers. One falls behind, the other is lost, and the one that fell behind leads."""
    report, topic = Report(), PURGE.name
    with Small(tmp_path, embedded=OnThreeBrokers) as small:
        cluster = small.embedded.kafka
        assert isinstance(cluster, Cluster)
        people = small.register(8)
        certified(small, [small.delete(people[0])], report)
        on_two(small.kafka, topic)
        small.embedded.stop_worker("purge")
        cluster.nodes[1].kill()
        eventually(lambda: partitions(small.kafka, topic, "isr_nodes") == {(1,)} or None, "the other to fall behind")
        requests = small.delete_all(people[1:])
        erase = "select count(*) from work where step in ('hide', 'erase')"
        eventually(lambda: small.one(erase) or None, "work orders for purge")
        eventually(lambda: small.one("select count(*) from outbox") == 0 or None, "the outbox to be published")
        ends = total(small.kafka, topic)
        cluster.nodes[0].kill()
        cluster.nodes[1]._run()
        eventually(lambda: partitions(small.kafka, topic, "leader_id") == {2} or None, "the unclean election")
        lost = ends - total(small.kafka, topic)
        cluster.nodes[0]._run()
        small.embedded.start_worker("purge")
        with Beating(small):
            certified(small, requests, report)
        assert small.replayed()["differences"] == []
        assert not any(any(small.left(one).values()) for one in people)
    assert lost > 0
    assert report.violations == []


def on_two(bootstrap: str, topic: str) -> None:
    """Copies of a topic on brokers 1 and 2, led by 1; whoever is left may lead, whatever it lacks."""
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        names = [TopicPartition(topic, number) for number in range(TOPICS[topic].partitions)]
        admin.alter_partition_reassignments({one: [1, 2] for one in names})
        eventually(lambda: not admin.list_partition_reassignments() or None, "the copies to be moved")
        loose = {"unclean.leader.election.enable": "true", "min.insync.replicas": "1"}
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, loose)])
        admin.elect_leaders(0, {topic: [one.partition for one in names]}, raise_errors=False)
        eventually(lambda: partitions(bootstrap, topic, "leader_id") == {1} or None, "broker 1 to lead")
    finally:
        admin.close()


def partitions(bootstrap: str, topic: str, what: str) -> set[Any]:
    """What is said of the partitions of a topic, each value once; nothing while the brokers find each other."""
    with suppress(KafkaError), closing(KafkaAdminClient(bootstrap_servers=bootstrap)) as admin:
        (found,) = admin.describe_topics([topic])
        values = [one[what] for one in found["partitions"]]
        return {tuple(sorted(value)) if isinstance(value, list) else value for value in values}
    return set()


def total(bootstrap: str, topic: str) -> int:
    """Records that the leaders of a topic's partitions have."""
    consumer = KafkaConsumer(bootstrap_servers=bootstrap)
    try:
        ends = consumer.end_offsets([TopicPartition(topic, number) for number in range(TOPICS[topic].partitions)])
        return sum(ends.values())
    finally:
        consumer.close()


def test_the_oldest_version_delivers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if OLDEST not in tomllib.loads(LOCK.read_text()):
        pytest.skip(f"NOT RUN: Kafka {OLDEST} is not pinned")
    report = Report()
    with Small(tmp_path, embedded=OnTheOldestKafka) as small, Beating(small):
        assert f"/{OLDEST}/" in Path(f"/proc/{small.embedded.kafka.pid}/cmdline").read_text()
        with capsys.disabled():
            print(f"\nKafka {OLDEST} runs, the oldest version that is supported")
        people = small.register(12)
        requests = small.delete_all(people[:6])
        small.restart_killed("coordinate")
        small.restart_killed("purge")
        requests += small.delete_all(people[6:])
        certified(small, requests, report)
        small.embedded.kafka.kill()  # the supervisor brings it back
        eventually(lambda: listening(int(small.kafka.rpartition(":")[2])) or None, "the broker to be back")
        certified(small, [small.delete(small.register(1)[0])], report)
    assert report.violations == []
