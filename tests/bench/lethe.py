"""`lethe-delete` at its own job, in a process of its own: `tests.bench.beside` starts it with its wheel on the path."""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from importlib import import_module
from typing import Any

import psycopg

from tests.bench.beside import SALT, TABLE, tag


def main() -> None:
    """Read a job from standard input, print what came of it."""
    job: dict[str, Any] = json.load(sys.stdin)
    lethe: Any = import_module("lethe")
    made = [_made(lethe, psycopg.connect(job["dsn"])) for _ in range(job["threads"])]
    for part in (made[0].ledger, made[0].audit):
        part.init_schema()
    tag(job["dsn"], job["subjects"], made[0]._subject_hash)
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for subject in job["subjects"]:
        waiting.put(subject)
    taken: list[float] = []
    errors: list[str] = []

    def run(one: Any) -> None:
        while True:
            try:
                subject = waiting.get_nowait()
            except queue.Empty:
                return
            at = time.perf_counter()
            try:
                if one.forget(subject).payload["all_verified"]:
                    taken.append(time.perf_counter() - at)
                else:
                    errors.append("NotVerified")
            except Exception as error:  # noqa: BLE001 - whatever it raises, the request is lost
                one.ledger.conn.rollback()
                errors.append(type(error).__name__)

    threads = [threading.Thread(target=run, args=(one,)) for one in made]
    at = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - at
    with psycopg.connect(job["dsn"]) as connection:
        ((left,),) = connection.execute(f"select count(*) from {TABLE}".encode()).fetchall()
    found = {"requests": len(job["subjects"]), "lost": len(errors), "errors": sorted(set(errors)), "wall": wall}
    print(json.dumps(found | {"rate": len(taken) / wall, "rows_left": left, "cpu": time.process_time()}))


def _made(lethe: Any, connection: psycopg.Connection) -> Any:
    """As its README makes one."""
    part = {name: import_module(f"lethe.{name}") for name in ("ledger", "audit", "signing", "connectors.pgvector")}
    return lethe.Lethe(
        ledger=part["ledger"].Ledger(connection),
        audit=part["audit"].AuditLog(connection),
        signer=part["signing"].Signer.from_private_bytes(b"k" * 32),
        connectors={"pgvector": part["connectors.pgvector"].PgVectorConnector(connection)},
        salt=SALT,
    )


if __name__ == "__main__":
    main()
