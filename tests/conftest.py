"""Servers for every test: real PostgreSQL and real Kafka, embedded unless the environment names external ones."""

from __future__ import annotations

import os
import platform
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from expunge.embedded import kafka, postgres
from tests import adversary

EXTERNAL_POSTGRES = os.environ.get("EXPUNGE_TEST_POSTGRES")
"""A DSN whose role may create databases and the extension `vector`."""

EXTERNAL_KAFKA = os.environ.get("EXPUNGE_TEST_KAFKA")
"""`host:port` of a broker. Tests give their topics names of their own."""


KAFKA_VERSION = os.environ.get("EXPUNGE_TEST_KAFKA_VERSION", kafka.DEFAULT_VERSION)
"""Of the embedded broker: one of those that are pinned."""


@dataclass(frozen=True, slots=True)
class PostgresServer:
    """`dsn`: a maintenance database, whose role may create others."""

    dsn: str


@dataclass(frozen=True, slots=True)
class KafkaServer:
    """`bootstrap`: `host:port`."""

    bootstrap: str

    def create_topics(self, partitions: dict[str, int]) -> None:
        """Each name with that many partitions, unless it exists."""
        kafka.create_topics(self.bootstrap, partitions)


def pytest_report_header() -> list[str]:
    return [
        f"python: {platform.python_version()}",
        f"postgresql: {'external' if EXTERNAL_POSTGRES else f'{postgres.version()} (embedded)'}",
        f"kafka: {'external' if EXTERNAL_KAFKA else f'{KAFKA_VERSION} (embedded)'}",
    ]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mutations", action="store_true", help="list what was bent in evidence and refused, by class")


def pytest_runtest_setup(item: pytest.Item) -> None:
    adversary.begin(item.name)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not adversary.REFUSED:
        return
    total, classes = adversary.REFUSED.total(), len(adversary.REFUSED)
    terminalreporter.write_line(f"evidence: {total} mutations in {classes} classes tried, all refused")
    for name, count in adversary.REFUSED.items() if config.getoption("mutations") else ():
        terminalreporter.write_line(f"{count:8} {name}")
    for name, count in adversary.UNAUTHENTICATED.items():
        terminalreporter.write_line(f"{count:8} in {name}: not refused, documented as unauthenticated")


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    if EXTERNAL_POSTGRES:
        yield PostgresServer(EXTERNAL_POSTGRES)
        return
    with postgres.EmbeddedPostgres.start(tmp_path_factory.mktemp("postgres"), durable=False) as server:
        yield PostgresServer(server.dsn)


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[str]:
    """DSN of an empty database that is this test's own."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_server.dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
        yield make_conninfo(postgres_server.dsn, dbname=name)
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def kafka_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    if EXTERNAL_KAFKA:
        yield KafkaServer(EXTERNAL_KAFKA)
        return
    with kafka.EmbeddedKafka.start(tmp_path_factory.mktemp("kafka"), version=KAFKA_VERSION) as server:
        yield KafkaServer(server.bootstrap)
