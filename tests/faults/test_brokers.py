"""Three brokers of which the leader is killed; and the oldest Kafka that is supported."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from kafka import KafkaAdminClient

from expunge.embedded.kafka import LOCK
from tests.faults.cluster import OLDEST, Cluster, OnTheOldestKafka, OnThreeBrokers
from tests.faults.ground import Beating, Report, certified
from tests.faults.small import Small

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


def test_the_oldest_version_delivers(tmp_path: Path) -> None:
    if OLDEST not in tomllib.loads(LOCK.read_text()):
        pytest.skip(f"NOT RUN: Kafka {OLDEST} is not pinned")
    report = Report()
    with Small(tmp_path, embedded=OnTheOldestKafka) as small, Beating(small):
        people = small.register(12)
        requests = small.delete_all(people[:6])
        small.restart_killed("coordinate")
        small.restart_killed("purge")
        requests += small.delete_all(people[6:])
        certified(small, requests, report)
        small.embedded.kafka.kill()  # the supervisor brings it back
        certified(small, [small.delete(small.register(1)[0])], report)
    assert report.violations == []
