"""A real worker process on real Kafka, killed and stopped: nothing is lost, nothing is taken twice."""

from __future__ import annotations

import hashlib
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from expunge.client import Publisher
from expunge.domain.request import Regulation
from expunge.wiring.up import Embedded, register_key
from tests.coordination import AUDIENCE, PUBLISHER, subject

REQUESTS = 300
DEADLINE_SECONDS = 60.0
WORKER = "coordinate"


class Running:
    """Servers, and one coordinate worker that is started and stopped by the test."""

    def __init__(self, embedded: Embedded) -> None:
        self.embedded = embedded
        self.database = psycopg.connect(embedded.settings.database, autocommit=True)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return self.database.execute(query.encode()).fetchall()

    def seed(self, people: int) -> None:
        """A photo of each, without artifacts: what intake needs to know them."""
        self.database.execute("insert into source (name, provenance) values ('studio', '{}')")
        self.database.execute("insert into purpose values (0, 'account')")
        self.database.execute("insert into ordinal_block values (0, 1, %s)", (people,))
        with self.database.cursor() as cursor:
            cursor.executemany(
                "insert into image values (%s, 1, %s, %s, '2020-01-02')",
                [(one, f"k{one}", hashlib.sha256(b"%d" % one).digest()) for one in range(people)],
            )
            cursor.executemany("insert into image_subject values (%s, %s)", [(subject(n), n) for n in range(people)])

    def accepted(self) -> int:
        return int(self.rows("select count(*) from request")[0][0])

    def accepted_over(self, count: int) -> bool:
        return self.accepted() > count

    def waits_until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not happen"
            self.database.execute("select pg_sleep(0.02)")


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with Embedded(tmp_path / "up", audience=AUDIENCE, durable=False, workers=(WORKER,)) as embedded:
        embedded.deployment.prepare()
        made = Running(embedded)
        key = PUBLISHER.key
        register_key(embedded.settings.database, role="publisher", name="p", public=key.public.raw, key_id=key.key_id)
        made.seed(REQUESTS)
        yield made
        made.database.close()


def publish(running: Running, first: int, end: int) -> None:
    received = datetime.now(UTC) - timedelta(hours=1)
    with Publisher(running.embedded.settings.kafka, PUBLISHER.key, AUDIENCE, str(uuid4())) as publisher:
        for person in range(first, end):
            publisher.delete(subject(person), regulation=Regulation.GDPR, received_at=received)
        publisher.flush()


def test_a_worker_that_is_killed_twice_takes_every_request_exactly_once(running: Running) -> None:
    embedded = running.embedded
    third = REQUESTS // 3
    for life in range(3):
        publish(running, life * third, (life + 1) * third)
        embedded.start_worker(WORKER)
        if life < 2:  # in the middle of it, as near as one gets
            running.waits_until(partial(running.accepted_over, life * third), "a first batch")
            embedded.kill_worker(WORKER)
    embedded.wait_ready(WORKER)
    running.waits_until(lambda: running.accepted() >= REQUESTS, "the last request")
    assert running.rows("select count(*), count(distinct subject_ref) from request") == [(REQUESTS, REQUESTS)]
    assert running.rows("select reason from dead_letter") == []
    handled = "select coalesce(sum(next_offset), 0) from consumer_offset where topic = 'expunge.requests'"
    running.waits_until(lambda: running.rows(handled)[0][0] == REQUESTS, "the last offset")
    assert running.accepted() == REQUESTS
    assert embedded.stop_worker(WORKER) == 0  # within its grace, or it would have been killed


def test_a_worker_stopped_in_the_middle_of_its_work_leaves_nothing_to_do_again(running: Running) -> None:
    embedded = running.embedded
    publish(running, 0, REQUESTS)
    embedded.start_worker(WORKER)
    running.waits_until(partial(running.accepted_over, 0), "a first batch")
    assert embedded.stop_worker(WORKER) == 0  # within its grace, or it would have been killed
    taken = running.accepted()
    handled = "select coalesce(sum(next_offset), 0) from consumer_offset where topic = 'expunge.requests'"
    assert running.rows(handled)[0][0] == taken
    embedded.start_worker(WORKER)
    embedded.wait_ready(WORKER)
    running.waits_until(lambda: running.rows(handled)[0][0] == REQUESTS, "the last offset")
    url = f"{embedded.health_url(WORKER)}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - loopback
        told = answer.read().decode()
    labels = f'outcome="{{}}",topic="expunge.requests",worker="{WORKER}"'
    values = dict(line.rsplit(" ", 1) for line in told.splitlines() if line.startswith("expunge_deliveries_total{"))
    assert float(values[f"expunge_deliveries_total{{{labels.format('duplicate')}}}"]) == 0
    assert float(values[f"expunge_deliveries_total{{{labels.format('handled')}}}"]) == REQUESTS - taken
    assert embedded.stop_worker(WORKER) == 0
