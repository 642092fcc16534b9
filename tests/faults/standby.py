"""PostgreSQL with a streaming standby that confirms every commit, and takes over when the first is lost."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Self

import psycopg

from expunge.embedded import postgres
from expunge.embedded.postgres import ROLE, EmbeddedPostgres
from expunge.embedded.process import LOOPBACK, SERVER_ENVIRONMENT, ServerFailed, free_ports
from expunge.wiring.up import Embedded
from tests.faults.small import eventually


class Pair(EmbeddedPostgres):
    """Both as one server: its URIs name both, and a client takes the one that takes writes."""

    standby: EmbeddedPostgres | None = None

    @classmethod
    def start(cls, directory: Path, *, durable: bool = True) -> Self:
        pair = super().start(directory / "first", durable=durable)
        pair.standby = _standby_of(pair, directory / "second", durable=durable)
        with psycopg.connect(pair.dsn, autocommit=True) as connection:
            connection.execute("alter system set synchronous_standby_names to '*'")
            connection.execute("select pg_reload_conf()")
            query = "select count(*) from pg_stat_replication where sync_state = 'sync' and state = 'streaming'"
            eventually(lambda: connection.execute(query).fetchone() == (1,) or None, "a synchronous standby")
        return pair

    def _dsn(self, database: str) -> str:
        if self.standby is None:
            return super()._dsn(database)
        hosts = f"{LOOPBACK}:{self._port},{LOOPBACK}:{self.standby._port}"
        return (
            f"postgresql://{ROLE}:{self._password}@{hosts}/{database}?target_session_attrs=read-write&connect_timeout=5"
        )

    def fail_over(self) -> None:
        """SIGKILL to the first; the second takes its place."""
        assert self.standby is not None
        self.kill()
        with psycopg.connect(self.standby.dsn, autocommit=True) as connection:
            assert connection.execute("select pg_promote(true, 60)").fetchone() == (True,)
        self._process = self.standby._process

    def stop(self) -> None:
        super().stop()
        if self.standby is not None:
            self.standby.stop()


def _standby_of(first: EmbeddedPostgres, directory: Path, *, durable: bool) -> EmbeddedPostgres:
    directory.mkdir(mode=0o700)
    made = subprocess.run(
        [postgres.programs() / "pg_basebackup", "-D", directory / "data", "-d", first.dsn, "-R", "-X", "stream",
         "-c", "fast", "--no-sync"],
        env=SERVER_ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if made.returncode:
        raise ServerFailed(f"pg_basebackup ended with {made.returncode}: {made.stderr[-500:]}")
    owner = (first.directory / "data").stat()
    for path in (directory, *directory.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)
    standby = EmbeddedPostgres(directory, first._password, durable=durable)
    (standby._port,) = free_ports(1)
    standby._run()
    return standby


class WithStandby(Embedded):
    def start_postgres(self, directory: Path) -> EmbeddedPostgres:
        return Pair.start(directory, durable=self._durable)
