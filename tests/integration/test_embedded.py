from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from kafka import KafkaConsumer, KafkaProducer

from expunge.domain.errors import Misconfigured, Tampered
from expunge.embedded import kafka
from expunge.embedded.kafka import EmbeddedKafka
from expunge.embedded.postgres import EmbeddedPostgres
from expunge.embedded.process import EmbeddedServer, ServerCommand, ServerFailed, ServerProcess
from expunge.wiring import up
from tests.conftest import KafkaServer


def sleeper(directory: Path, *argv: str, grace: float = 5.0) -> ServerProcess:
    return ServerProcess.spawn(
        ServerCommand(
            argv=argv or ("/bin/sleep", "600"),
            cwd=directory,
            log=directory / "log",
            stop_signal=signal.SIGTERM,
            grace=grace,
        )
    )


def alive(pid: int) -> bool:
    try:
        # A zombie still answers to kill(pid, 0), so its state is read.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_dead(pid: int) -> None:
    give_up = time.monotonic() + 10
    while alive(pid):
        assert time.monotonic() < give_up, f"process {pid} is still there"
        time.sleep(0.02)


def consume(bootstrap: str, topic: str, count: int) -> list[bytes]:
    consumer = KafkaConsumer(
        topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest", consumer_timeout_ms=20_000
    )
    try:
        return [record.value for _, record in zip(range(count), consumer, strict=False)]
    finally:
        consumer.close()


def produce(bootstrap: str, topic: str, *values: bytes) -> None:
    producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all")
    try:
        for sent in [producer.send(topic, value) for value in values]:
            sent.get(timeout=20)
    finally:
        producer.close()


def test_postgres_measures_vectors(database: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("CREATE EXTENSION vector")
        row = connection.execute("SELECT '[3,4]'::vector <-> '[0,0]'").fetchone()
    assert row == (5.0,)


def test_each_test_has_an_empty_database(database: str) -> None:
    with psycopg.connect(database) as connection:
        rows = connection.execute("SELECT extname FROM pg_extension").fetchall()
    assert rows == [("plpgsql",)]


def test_kafka_returns_what_was_produced(kafka_server: KafkaServer) -> None:
    kafka_server.create_topics({"embedded.roundtrip": 2})
    kafka_server.create_topics({"embedded.roundtrip": 2})  # a second time changes nothing
    produce(kafka_server.bootstrap, "embedded.roundtrip", b"one", b"two", b"three")
    assert sorted(consume(kafka_server.bootstrap, "embedded.roundtrip", 3)) == [b"one", b"three", b"two"]


def test_postgres_keeps_committed_rows_when_killed(tmp_path: Path) -> None:
    with EmbeddedPostgres.start(tmp_path / "pg", durable=False) as server:
        dsn = server.create_database("kept")
        assert server.create_database("kept") == dsn
        with psycopg.connect(dsn) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
        server.kill()
        assert server.pid is None
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(dsn)
        server.restart()
        with psycopg.connect(dsn) as connection:
            assert connection.execute("SELECT number FROM kept").fetchone() == (7,)


def test_postgres_opens_the_data_of_an_earlier_run(tmp_path: Path) -> None:
    with EmbeddedPostgres.start(tmp_path / "pg") as server, psycopg.connect(server.dsn) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
    with EmbeddedPostgres.start(tmp_path / "pg") as server, psycopg.connect(server.dsn) as connection:
        assert connection.execute("SELECT number FROM kept").fetchone() == (7,)
    # Under pytest's private folder the server could not have walked to its data by path, had it needed to.
    assert (tmp_path / "pg").stat().st_mode & 0o077 == 0


def test_postgres_refuses_strangers(tmp_path: Path) -> None:
    with (
        EmbeddedPostgres.start(tmp_path / "pg", durable=False) as server,
        pytest.raises(psycopg.OperationalError, match="password authentication failed"),
    ):
        psycopg.connect(server.dsn, password="wrong")


def test_postgres_names_the_version_that_made_foreign_data(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(Misconfigured, match="got data of PostgreSQL 9"):
        EmbeddedPostgres.start(tmp_path)


def test_a_cluster_id_that_begins_with_a_dash_is_an_id_and_no_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr("expunge.embedded.kafka.uuid.uuid4", lambda: UUID(bytes=b"\xf8" * 16))
    with EmbeddedKafka.start(tmp_path / "kafka") as broker:
        assert broker.pid is not None


def test_kafka_keeps_records_when_killed(tmp_path: Path) -> None:
    with EmbeddedKafka.start(tmp_path / "kafka") as broker:
        broker.create_topics({"kept": 1})
        produce(broker.bootstrap, "kept", b"seven")
        broker.kill()
        assert broker.pid is None
        broker.restart()
        assert consume(broker.bootstrap, "kept", 1) == [b"seven"]


def test_a_stopped_process_is_gone(tmp_path: Path) -> None:
    server = sleeper(tmp_path)
    assert alive(server.pid)
    server.stop()
    assert not server.running
    assert not alive(server.pid)
    server.stop()  # a second time changes nothing


def test_a_process_that_ignores_the_stop_is_killed_after_its_grace(tmp_path: Path) -> None:
    server = sleeper(tmp_path, "/bin/sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.1; done", grace=0.2)
    server.await_ready(lambda: "deaf" in (tmp_path / "log").read_text(), limit=10)
    server.stop()
    assert not alive(server.pid)


def test_what_a_killed_server_leaves_behind_is_killed_too(tmp_path: Path) -> None:
    server = sleeper(tmp_path, "/bin/sh", "-c", "setsid sleep 600 & echo $!; wait")
    log = tmp_path / "log"
    server.await_ready(lambda: log.read_text().endswith("\n"), limit=10)
    server.kill()
    assert not alive(int(log.read_text()))


def test_a_server_does_not_outlive_a_killed_starter(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, time; from tests.integration.test_embedded import sleeper;"
        "print(sleeper(pathlib.Path(sys.argv[1])).pid, flush=True); time.sleep(600)"
    )
    starter = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    with starter, starter.stdout as announced:
        server = int(announced.readline())
        assert alive(server)
        starter.kill()
    wait_until_dead(server)


def test_a_server_does_not_outlive_a_killed_guardian(tmp_path: Path) -> None:
    server = sleeper(tmp_path)
    guardian = int(Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(guardian, signal.SIGKILL)
    server.stop()
    wait_until_dead(server.pid)


def test_a_failed_start_quotes_the_log(tmp_path: Path) -> None:
    server = sleeper(tmp_path, "/bin/sh", "-c", "echo no such disk >&2; exit 3")
    with pytest.raises(ServerFailed, match="no such disk"):
        server.await_ready(lambda: False, limit=10)


def test_a_program_that_cannot_run_is_named(tmp_path: Path) -> None:
    server = sleeper(tmp_path, "/nonexistent/server")
    with pytest.raises(ServerFailed, match="/nonexistent/server"):
        server.await_ready(lambda: False, limit=10)


@pytest.mark.parametrize("harm", ["changed", "missing", "added"])
def test_a_jar_that_is_not_as_pinned_is_refused(harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = kafka.ensure_jars()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "expunge" / "kafka" / kafka.DEFAULT_VERSION
    folder.mkdir(parents=True)
    for jar in genuine.iterdir():
        (folder / jar.name).symlink_to(jar)
    assert kafka.ensure_jars() == folder
    victim = folder / f"kafka-clients-{kafka.DEFAULT_VERSION}.jar"
    if harm == "added":
        victim = folder / "evil-1.0.jar"
    else:
        victim.unlink()
    if harm != "missing":
        victim.write_bytes(b"evil")
    with pytest.raises(Tampered, match=victim.name):
        kafka.ensure_jars()


def test_a_version_that_is_not_pinned_is_refused() -> None:
    with pytest.raises(Misconfigured, match=r"Kafka 0\.8\.0 is not pinned"):
        kafka.ensure_jars("0.8.0")


class Full(EmbeddedServer):
    """A server whose disk is full for the first few starts."""

    def __init__(self, failures: list[Exception]) -> None:
        self.failures = failures
        self.up = False

    @property
    def running(self) -> bool:
        return self.up

    def _run(self) -> None:
        if self.failures:
            raise self.failures.pop()
        self.up = True


def test_a_server_that_does_not_start_is_tried_again_until_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(up, "SERVER_WAIT_SECONDS", 0.0)
    embedded = up.Embedded(tmp_path, audience="test:full", workers=())
    first, second = Full([ServerFailed("no"), OSError(errno.ENOSPC, "No space left on device")]), Full([])
    embedded.__dict__ |= {"postgres": first, "kafka": second}
    said: list[str] = []
    for _ in range(3):
        embedded.revive(said.append)
    assert first.up
    assert second.up
    assert sum("did not start" in one for one in said) == 2
    assert "No space left on device" in said[1]
