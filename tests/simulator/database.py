"""The real database under the scheduler's hand: one connection, one transaction per schedule, rolled back at its end.

Each `Ledger.transaction` is a savepoint, so that production SQL runs unchanged on PostgreSQL and a schedule costs no
commit. Time is the schedule's: the schema `sim` comes before pg_catalog on the search path and has `now()` and
`clock_timestamp()` of its own. Because there is one connection, transactions never overlap: what two open transactions
do to each other's rows and locks is for the suites with several connections.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import date, datetime
from functools import cache
from typing import Any, Final, cast

import numpy as np
import psycopg
from psycopg import sql
from psycopg.adapt import Transformer
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGresult
from psycopg.types.json import set_json_dumps

from expunge.adapters.ledger.postgres import migrations, queries
from expunge.domain import canonical
from expunge.ports import Outgoing

_CLOCK: Final = """
create schema if not exists sim;
create or replace function sim.clock_timestamp() returns timestamptz language sql volatile
    as $$ select pg_catalog.current_setting('sim.now')::pg_catalog.timestamptz $$;
create or replace function sim.now() returns timestamptz language sql volatile
    as $$ select pg_catalog.current_setting('sim.now')::pg_catalog.timestamptz $$;
"""

_SESSION: Final = """
set search_path = sim, public, pg_catalog;
set sim.now = '2026-01-01 00:00:00+00';
set jit = off;
set plan_cache_mode = force_generic_plan;
set client_min_messages = error;
"""

_STAGED: Final = ("staged_image", "staged_artifact", "settled_image", "settled_artifact")
"""Temporary tables of register, emptied at its commit."""

_TIDY_EVERY: Final = 200
"""Schedules after which what they left behind (dead rows) is vacuumed away."""


@cache
def _writers(table: str) -> frozenset[str]:
    """Names of queries that write a table."""
    pattern = re.compile(rf"\b(update|insert into|delete from)\s+{table}\b")
    return frozenset(name for name, text in queries().items() if pattern.search(text))


@cache
def _changes(query: str) -> bool:
    """Whether a query may change rows."""
    return re.search(r"\b(?<!for )(insert into|delete from|update) \w", queries()[query]) is not None


class Database:
    """`dsn`: an empty database of our own. Blocking: nothing else runs meanwhile."""

    def __init__(self, dsn: str) -> None:
        with psycopg.connect(dsn, autocommit=True) as made:
            made.execute(_CLOCK.encode())
            made.execute(_SESSION.encode())
            for _, text in migrations():
                with made.transaction():
                    made.execute(text)
        self._connection = psycopg.connect(dsn, autocommit=True, prepare_threshold=0)
        self._connection.prepared_max = None
        set_json_dumps(canonical.dumps, self._connection)
        self.run(_SESSION)
        for name in ("images", "artifacts", "settled", "leaves"):
            self.run(queries()[f"register_stage_{name}"])
        self._restart = _restarts(self._connection)
        self._statements: dict[str, Statement] = {}
        self._schedules = 0
        self._open = False
        self._released = True
        self.executed: set[str] = set()
        self.changed: Counter[str] = Counter()
        """Rows that each query of the last transaction changed."""
        self.committed: Callable[[set[str]], None] = lambda _names: None
        """Told after each commit which queries it had."""

    def close(self) -> None:
        self._connection.close()

    def run(self, statements: str) -> None:
        """Plain statements, no parameters, no result: one round trip however many."""
        result = self._connection.pgconn.exec_(statements.encode())
        if result.status not in {psycopg.pq.ExecStatus.COMMAND_OK, psycopg.pq.ExecStatus.TUPLES_OK}:
            raise psycopg.errors.InternalError(result.error_message.decode())

    def begin(self, seed: int) -> None:
        """Start a schedule on an empty catalogue, its sequences at their start."""
        self.run(f"begin; {self._restart}; select setseed({(seed % 1000) / 1000})")
        self._released = True

    def end(self) -> None:
        """Forget the schedule."""
        self.run("rollback")
        self._open = False
        self._schedules += 1
        if self._schedules % _TIDY_EVERY == 0:
            self.run("vacuum")

    def statement(self, query: str) -> Statement:
        if (found := self._statements.get(query)) is None:
            found = self._statements[query] = Statement(self._connection, query)
        return found

    def cursor(self) -> psycopg.Cursor[Any]:
        return self._connection.cursor()

    def ask(self, query: str, *parameters: object) -> list[Any]:
        """What the test wants to know."""
        return self._connection.execute(query.encode(), parameters).fetchall()

    def tell(self, query: str, *parameters: object) -> None:
        """What the test does itself."""
        self._connection.execute(query.encode(), parameters)

    @asynccontextmanager
    async def transaction(self, now: datetime, before_commit: Callable[[], None]) -> AsyncIterator[Tx]:
        """A savepoint. `before_commit` may raise: then nothing was done."""
        if self._open:
            raise AssertionError("expected one transaction at a time, got one inside another")
        opening = "" if self._released else "release savepoint step;"
        self.run(f"{opening} savepoint step; set local sim.now = '{now.isoformat()}'")
        self._open, self._released = True, False
        self.executed, self.changed = set(), Counter()
        try:
            yield Tx(self)
            before_commit()
        except BaseException:
            self.run("rollback to savepoint step")
            raise
        else:
            if "plan_pages_create" in self.executed:
                self.run("drop table plan_page")
            if "register_stage_images" in self.executed:
                self.run(";".join(f"delete from pg_temp.{name}" for name in _STAGED))
        finally:
            self._open = False
        self.committed(self.executed)

    def wrote(self, table: str) -> bool:
        """Whether the last transaction may have changed a table."""
        return not self.executed.isdisjoint(_writers(table))


class Tx:
    """`ports.Tx` on the one connection."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.outbox: list[tuple[str, Outgoing]] = []
        self.deferred = False

    async def fetch(self, query: str, **parameters: object) -> list[tuple[Any, ...]]:
        return self._database.statement(query).rows(self._ran(query, parameters))

    async def execute(self, query: str, **parameters: object) -> int:
        return self._ran(query, parameters).command_tuples or 0

    async def copy(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> int:
        statement = sql.SQL("copy {} ({}) from stdin").format(
            sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
        )
        with self._database.cursor() as cursor:
            with cursor.copy(statement) as copying:
                for row in rows:
                    copying.write_row(row)
            return cursor.rowcount

    def _ran(self, query: str, parameters: Mapping[str, object]) -> PGresult:
        database = self._database
        database.executed.add(query)
        result = database.statement(query).run(parameters)
        if _changes(query):
            database.changed[query] += result.command_tuples or 0
        return result


class Statement:
    """A named query, prepared once for all schedules. psycopg's cursors would cost more than the query itself here.

    Parameters go as text and take their types from the query, as its casts and columns say."""

    def __init__(self, connection: psycopg.Connection[Any], name: str) -> None:
        self._connection = connection
        self._name = name.encode()
        self._order: list[str] = []
        text = re.sub(r"%\((\w+)\)s", self._placed, queries()[name]).replace("%%", "%")
        self._check(connection.pgconn.prepare(self._name, text.encode()))
        self._reader = Transformer(connection)

    def run(self, parameters: Mapping[str, object]) -> PGresult:
        values = [_text(parameters[name]) for name in self._order]
        return self._check(self._connection.pgconn.exec_prepared(self._name, cast("Any", values), None, 1))

    def rows(self, result: PGresult) -> list[tuple[Any, ...]]:
        self._reader.set_pgresult(result)
        return self._reader.load_rows(0, result.ntuples, tuple)

    def _placed(self, match: re.Match[str]) -> str:
        if match[1] not in self._order:
            self._order.append(match[1])
        return f"${self._order.index(match[1]) + 1}"

    def _check(self, result: PGresult) -> PGresult:
        if result.status not in {ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK}:
            raise psycopg.errors.error_from_result(result)
        return result


def _text(value: Any) -> bytes | None:
    """As PostgreSQL reads it."""
    match value:
        case None:
            return None
        case bool():
            return b"t" if value else b"f"
        case bytes() | bytearray() | memoryview():
            return b"\\x" + value.hex().encode()
        case int():
            return b"%d" % value
        case datetime() | date():
            return value.isoformat().encode()
        case np.ndarray():
            return _text(value.tolist())
        case list() | tuple():
            return b"{" + b",".join(map(_element, value)) + b"}"
        case np.ndarray():
            return _text(value.tolist())
        case _:
            return str(value).encode()


def _element(value: Any) -> bytes:
    text = _text(value)
    if text is None:
        return b"null"
    return b'"' + text.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def _restarts(connection: psycopg.Connection[Any]) -> str:
    """Sets every sequence back: that is not undone by a rollback, and so has to be done."""
    rows = connection.execute(
        "select format('select setval(%L, %s, false)', quote_ident(schemaname) || '.' || quote_ident(sequencename),"
        " start_value) from pg_sequences where schemaname = 'sim' order by 1"
    ).fetchall()
    assert rows, "expected sequences in the schema that comes first on the search path, where the tables are made"
    return "; ".join(row[0] for row in rows)
