"""The embedded mode: real PostgreSQL and Kafka from wheels, one process per worker, all on loopback, stopped together.

For a first look, development, tests and benchmarks. Directory layout: `postgres/`, `kafka/`, `data/` (keys, sealed
files, evidence log, journal), `logs/`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg

from expunge.adapters.broker.topics import create_topics
from expunge.adapters.ledger.postgres import migrate
from expunge.domain.errors import ExpungeError
from expunge.embedded.kafka import EmbeddedKafka
from expunge.embedded.postgres import EmbeddedPostgres
from expunge.embedded.process import EmbeddedServer, ServerCommand, ServerFailed, ServerProcess
from expunge.pipeline import WORKERS
from expunge.settings import Settings
from expunge.wiring import Deployment

API = "api"
"""The read API: a process like a worker's, of no stage."""
START_SECONDS = 60.0
SHORT_LIFE_SECONDS = 60.0
SHORT_LIVES = 10
"""A worker that ended this often in a row, each time within `SHORT_LIFE_SECONDS`, is not started again."""
LONGEST_WAIT_SECONDS = 30.0
STOP_SECONDS = 10.0
SERVER_WAIT_SECONDS = 5.0
"""How long after a server did not start it is tried again."""


class WorkerFailed(ExpungeError):  # noqa: N818 - as ServerFailed
    """A worker ended or never became ready; its log says why."""


@dataclass(slots=True)
class _Lives:
    """How a worker's lives went (mutable). `short`: short ones in a row; `next`: when it is started again."""

    name: str
    instance: str
    began: float = 0.0
    short: int = 0
    next: float | None = None


class Embedded:
    """Servers and workers of one embedded deployment. Use as a context manager, or `start` and `stop`."""

    replication = 1
    """Copies of each topic's partitions."""

    def __init__(
        self, directory: Path, *, audience: str, issuer: str = "", stores: Mapping[str, str] | None = None,
        workers: Sequence[str] = tuple(WORKERS), durable: bool = True, overrides: Mapping[str, Any] | None = None,
        variables: Callable[[str], Mapping[str, str]] = lambda _: {},
    ) -> None:  # fmt: skip
        """`variables`: of a worker's process beside its settings, by its key (`NAME`, or `NAME-INSTANCE`)."""
        self.directory = directory
        self._audience = audience
        self._issuer = issuer
        self._stores = dict(stores or {})
        self._names = workers
        self._durable = durable
        self._overrides = dict(overrides or {})
        self._variables = variables
        self._lives: dict[str, _Lives] = {}
        self._processes: dict[str, ServerProcess] = {}
        self._servers: dict[str, float] = {}
        """When a server that did not start is tried again, by its title."""
        self.postgres: EmbeddedPostgres
        self.kafka: EmbeddedKafka
        self.settings: Settings

    def __enter__(self) -> Self:
        """Start servers (not the workers, so that stores can be made first)."""
        self.start_servers()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:  # fmt: skip
        """Stop everything."""
        self.stop()

    def start_servers(self, progress: Callable[[str], None] = lambda _: None) -> None:
        """PostgreSQL and Kafka, at once; schema, topics, keys."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(2) as pool:
            kafka = pool.submit(self.start_kafka, self.directory / "kafka")
            try:
                self.postgres = self.start_postgres(self.directory / "postgres")
                progress("PostgreSQL is up")
            finally:
                self.kafka = kafka.result()
        progress("Kafka is up")
        dsn = self.postgres.create_database("expunge")
        migrate(dsn)
        create_topics(self.kafka.bootstrap, replication=self.replication)
        self.settings = Settings(
            database=dsn,
            kafka=self.kafka.bootstrap,
            data=self.directory / "data",
            audience=self._audience,
            issuer=self._issuer,
            stores=self._stores,
            **self._overrides,
        )

    def start_postgres(self, directory: Path) -> EmbeddedPostgres:
        """One server. Tests put others here."""
        return EmbeddedPostgres.start(directory, durable=self._durable)

    def start_kafka(self, directory: Path) -> EmbeddedKafka:
        """One broker of the default version. Tests put other brokers here."""
        return EmbeddedKafka.start(directory)

    def use_stores(self, stores: Mapping[str, str]) -> None:
        """Set the stores before workers start."""
        self._stores = dict(stores)
        self.settings = self.settings.model_copy(update={"stores": self._stores})

    @property
    def deployment(self) -> Deployment:
        """The adapters of this deployment, for its own process."""
        return Deployment(self.settings)

    def start_workers(self, progress: Callable[[str], None] = lambda _: None) -> None:
        """One process per worker; returns when all are ready. Raises `WorkerFailed`."""
        self.deployment.prepare()
        for name in self._names:
            self.start_worker(name)
        for name in self._names:
            self.wait_ready(name)
            progress(f"worker {name} is ready")

    def start_worker(self, name: str, instance: str = "0") -> ServerProcess:
        """Start one worker instance; it may not be ready yet."""
        return self._start(name, instance, ("expunge.wiring.run", name))

    def start_api(self) -> str:
        """Start the read API beside the workers; its URL, once it answers. Raises `WorkerFailed`."""
        self._start(API, "0", ("expunge.api",))
        self.wait_ready(API)
        return str(self._listening(API, "0")["url"])

    def _start(self, name: str, instance: str, module: tuple[str, ...]) -> ServerProcess:
        key = name if instance == "0" else f"{name}-{instance}"
        state = self.settings.data / "workers" / f"{name}-{instance}"
        state.mkdir(parents=True, exist_ok=True)
        (state / "listening.json").unlink(missing_ok=True)
        logs = self.directory / "logs"
        logs.mkdir(exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("EXPUNGE_")}
        environment |= self.settings.model_copy(update={"instance": instance}).environment()
        # Workers do small linear algebra at most; one BLAS thread each keeps two cores for everybody.
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        environment |= self._variables(key)
        process = ServerProcess.spawn(
            ServerCommand(
                argv=(sys.executable, "-m", *module),
                cwd=self.directory,
                log=logs / f"{key}.log",
                stop_signal=signal.SIGTERM,
                grace=STOP_SECONDS,
                environment=environment,
            )
        )
        self._processes[key] = process
        self._lives.setdefault(key, _Lives(name, instance)).began = time.monotonic()
        return process

    def wait_ready(self, name: str, instance: str = "0") -> None:
        """Wait until a worker answers `/readyz`. Raises `WorkerFailed` when it ends or takes over 60 s."""
        key = name if instance == "0" else f"{name}-{instance}"
        deadline = time.monotonic() + START_SECONDS
        while not self._answers(name, instance):
            if not self._processes[key].running or time.monotonic() > deadline:
                message = f"worker {name} did not become ready; see {self.directory / 'logs' / (key + '.log')}"
                raise WorkerFailed(message)
            time.sleep(0.05)

    def health_url(self, name: str, instance: str = "0") -> str | None:
        """Where a worker serves `/metrics`, once it does."""
        found = self._listening(name, instance)
        return f"http://{found['host']}:{found['port']}" if found else None

    def _listening(self, name: str, instance: str) -> dict[str, Any]:
        """What a process announced when it was ready to be asked; nothing before."""
        path = self.settings.data / "workers" / f"{name}-{instance}" / "listening.json"
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            return {}
        return found

    def _answers(self, name: str, instance: str) -> bool:
        url = self.health_url(name, instance)
        if url is None:
            return False
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=2) as answer:  # noqa: S310 - loopback, our own worker
                return bool(answer.status == 200)  # noqa: PLR2004 - HTTP OK
        except (urllib.error.URLError, OSError):
            return False

    def ended(self) -> list[str]:
        """Workers that have ended."""
        return [name for name, process in self._processes.items() if not process.running]

    def revive(self, tell: Callable[[str], None] = lambda _: None) -> None:
        """Start again what has ended by itself, as a service manager would: servers at once, and until they start, workers
        after a wait that doubles with each end. Call it often. Raises `WorkerFailed` for one that ends over and over."""
        for title, server in (("PostgreSQL", self.postgres), ("Kafka", self.kafka)):
            if not server.running and time.monotonic() >= self._servers.get(title, 0.0):
                tell(f"{title} ended; it is started again")
                self._restart(title, server, tell)
        for key in self.ended():
            lives, at = self._lives[key], time.monotonic()
            if lives.next is None:
                lives.short = lives.short + 1 if at - lives.began < SHORT_LIFE_SECONDS else 1
                if lives.short > SHORT_LIVES:
                    message = f"worker {key} ended {lives.short} times in a row; see {self.directory / 'logs'}"
                    raise WorkerFailed(message)
                wait = min(LONGEST_WAIT_SECONDS, 0.5 * 2.0**lives.short)
                lives.next = at + wait
                tell(f"worker {key} ended; it is started again in {wait:.0f} s")
            elif at >= lives.next:
                lives.next = None
                self.start_worker(lives.name, lives.instance)

    def _restart(self, title: str, server: EmbeddedServer, tell: Callable[[str], None]) -> None:
        try:
            server.restart()
        except (ServerFailed, OSError) as error:  # its disk is full, say: it starts once that is over
            self._servers[title] = time.monotonic() + SERVER_WAIT_SECONDS
            tell(f"{title} did not start, and is tried again in {SERVER_WAIT_SECONDS:.0f} s: {str(error)[-200:]}")

    def kill_worker(self, name: str) -> None:
        """SIGKILL, for tests of crashes."""
        self._processes.pop(name).kill()

    def stop_worker(self, name: str) -> int:
        """SIGTERM, and SIGKILL if it has not gone after 10 s; its exit status (128 + 9 if it was killed)."""
        return self._processes.pop(name).stop()

    def stop_workers(self) -> None:
        """Stop all, at once."""
        with ThreadPoolExecutor(max(1, len(self._processes))) as pool:
            list(pool.map(ServerProcess.stop, self._processes.values()))
        self._processes.clear()

    def stop(self) -> None:
        """Workers, then servers. May be called at any point of a start."""
        self.stop_workers()
        for server in ("kafka", "postgres"):
            if hasattr(self, server):
                getattr(self, server).stop()


def register_key(
    dsn: str, *, role: str, name: str, public: bytes, key_id: str, scope: Mapping[str, Any] | None = None
) -> None:
    """Let a publisher's or approver's key sign requests. Registering it again changes nothing."""
    with psycopg.connect(dsn) as connection:
        connection.execute(
            "insert into trusted_key (key_id, role, name, public, scope, valid_from)"
            " values (%s, %s, %s, %s, %s, clock_timestamp()) on conflict do nothing",
            (key_id, role, name, public, json.dumps(dict(scope or {}))),
        )
