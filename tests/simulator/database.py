"""The real database under the scheduler's hand: one connection, one transaction per schedule, rolled back at its end.

Each `Ledger.transaction` that writes is a savepoint, so that production SQL runs unchanged on PostgreSQL and a schedule
costs no commit; the savepoint, and the time where it is asked for, go out in one pipeline with the first statement that
needs them. Time is the schedule's: the schema `sim` comes before pg_catalog on the search path and has `now()` and
`clock_timestamp()` of its own. Because there is one connection, transactions never overlap: what two open transactions
do to each other's rows and locks is for the suites with several connections.
"""

from __future__ import annotations

import binascii
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime
from functools import cache
from typing import Any, Final, cast
from uuid import UUID

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
create or replace function sim.now() returns timestamptz language sql stable
    as $$ select pg_catalog.current_setting('sim.now')::pg_catalog.timestamptz $$;
"""

_SESSION: Final = """
set search_path = sim, public, pg_catalog;
set sim.now = '2026-01-01 00:00:00+00';
set jit = off;
set plan_cache_mode = force_generic_plan;
set client_min_messages = error;
set track_activities = off;
set track_counts = off;
"""

_UNLOGGED: Final = """
do $$ declare one record; begin
    while exists (select from pg_class where relnamespace = 'sim'::regnamespace and relkind = 'r' and relpersistence = 'p') loop
        for one in select oid::regclass as name from pg_class
            where relnamespace = 'sim'::regnamespace and relkind = 'r' and relpersistence = 'p' loop
            begin
                execute format('alter table %s set unlogged', one.name);
            exception when invalid_table_definition then  -- what refers to it goes first
            end;
        end loop;
    end loop;
end $$
"""
"""No schedule outlives its server, so that no table needs a journal."""

_STAGED: Final = ("staged_image", "staged_artifact", "settled_image", "settled_artifact")
"""Temporary tables of register, emptied at its commit."""

_OF_TRANSACTIONS: Final = {
    "release": "release savepoint step",
    "savepoint": "savepoint step",
    "clock": "select set_config('sim.now', $1, true)",
}

_STATISTICS: Final = frozenset(name for name, text in queries().items() if text.startswith("analyze "))
"""What only tells the planner how much there is: plans here are generic, made once, and would be made anew."""

_TIDY_EVERY: Final = 200
"""Schedules after which what they left behind (dead rows) is vacuumed away."""


@cache
def changes(query: str) -> bool:
    """Whether a query may change rows."""
    return re.search(r"\b(?<!for )(insert into|delete from|update) \w", queries()[query]) is not None


@cache
def tables(query: str) -> frozenset[str]:
    """Tables of which a query may change rows."""
    return frozenset(re.findall(r"\b(?<!for )(?:insert into|delete from|update) (\w+)", queries()[query]))


def ordered(text: str) -> bool:
    """Whether a query says in which order it wants its rows: outside of all parentheses."""
    text = _plain(text)
    while (fewer := re.sub(r"\([^()]*\)", "", text)) != text:
        text = fewer
    return "order by" in text


def _plain(text: str) -> str:
    """SQL without its comments."""
    return re.sub(r"--.*", "", text).strip().lower()


class Database:
    """`dsn`: an empty database of our own. Blocking: nothing else runs meanwhile."""

    def __init__(self, dsn: str) -> None:
        with psycopg.connect(dsn, autocommit=True) as made:
            made.execute(_CLOCK.encode())
            made.execute(_SESSION.encode())
            for _, text in migrations():
                with made.transaction():
                    made.execute(text)
            made.execute(_UNLOGGED)
        self.connection = psycopg.connect(dsn, autocommit=True, prepare_threshold=0)
        self.connection.prepared_max = None
        set_json_dumps(canonical.dumps, self.connection)
        self.run(_SESSION)
        for name in ("images", "artifacts", "settled", "leaves"):
            self.run(queries()[f"register_stage_{name}"])
        self._restart = _restarts(self.connection)
        self._statements: dict[str, Statement] = {}
        for name, text in _OF_TRANSACTIONS.items():
            self.prepare(name, text)
        self._schedules = 0
        self._open = False
        self._now: datetime | None = None
        self._unguarded = True
        self._savepoints = 0
        self.random = random.Random(0)
        """Decides on the order of rows where the query leaves it open."""
        self.executed: set[str] = set()
        self.changed: dict[str, int] = {}
        """Rows that each query of the last transaction changed."""
        self.committed: Callable[[set[str]], None] = lambda _names: None
        """Told after each commit which queries it had."""

    def close(self) -> None:
        self.connection.close()

    def run(self, statements: str) -> None:
        """Plain statements, no parameters, no result: one round trip however many."""
        result = self.connection.pgconn.exec_(statements.encode())
        if result.status not in {psycopg.pq.ExecStatus.COMMAND_OK, psycopg.pq.ExecStatus.TUPLES_OK}:
            raise psycopg.errors.InternalError(result.error_message.decode())

    def begin(self, seed: int) -> None:
        """Start a schedule on an empty catalogue, its sequences at their start."""
        self.run(f"begin; {self._restart}; select setseed({(seed % 1000) / 1000})")
        self._savepoints = 0
        self.random = random.Random(seed)

    def end(self) -> None:
        """Forget the schedule."""
        self.run("rollback")
        self._open = False
        self._schedules += 1
        if self._schedules % _TIDY_EVERY == 0:
            self.run("vacuum")

    def statement(self, query: str) -> Statement:
        """A named query, prepared."""
        if (found := self._statements.get(query)) is None:
            found = self._statements[query] = Statement(self, query, queries()[query])
        return found

    def cursor(self) -> psycopg.Cursor[Any]:
        """For COPY, which writes."""
        for name, parameters in self._before(guarded=True, timed=True):
            _checked(self.connection.pgconn.exec_prepared(name, cast("Any", parameters), None, 1))
        return self.connection.cursor()

    def ask(self, query: str, **parameters: object) -> list[Any]:
        """What the test wants to know, between transactions; a query's text is its name."""
        if (found := self._statements.get(query)) is None:
            found = self._statements[query] = Statement(self, f"ask{len(self._statements)}", query, ours=True)
        return found.rows(found.run(parameters))

    def tell(self, query: str, *parameters: object) -> None:
        """What the test does itself."""
        self.connection.execute(query.encode(), parameters)

    def transaction(self, now: datetime, before_commit: Callable[[], None]) -> Transaction:
        """A savepoint, if anything is written. `before_commit` may raise: then nothing was done."""
        return Transaction(self, now, before_commit)

    def begun(self, now: datetime) -> None:
        """A transaction begins, at this time."""
        if self._open:
            raise AssertionError("expected one transaction at a time, got one inside another")
        self._open, self._unguarded, self._now = True, True, now
        self.executed, self.changed = set(), {}

    def ended(self, *, committed: bool) -> None:
        """The transaction ends."""
        self._open = False
        if not committed:
            if not self._unguarded:
                self.run("rollback to savepoint step")
            return
        if "plan_pages_create" in self.executed:
            self.run("drop table plan_page")
        if "register_stage_images" in self.executed:
            self.run(";".join(f"delete from pg_temp.{name}" for name in _STAGED))
        self.committed(self.executed)

    def _before(self, *, guarded: bool, timed: bool) -> list[tuple[bytes, list[bytes] | None]]:
        """What has to go ahead of a statement of the open transaction: a savepoint before the first that may write, the
        time before the first that may ask for it."""
        ahead: list[tuple[bytes, list[bytes] | None]] = []
        if guarded and self._unguarded:
            ahead += [(b"release", None)] * (self._savepoints > 0) + [(b"savepoint", None)]
            self._savepoints, self._unguarded = 1, False
        if timed and self._now is not None:
            ahead.append((b"clock", [self._now.isoformat().encode()]))
            self._now = None
        return ahead

    def send(self, name: bytes, values: Any, *, guarded: bool, timed: bool) -> PGresult:
        """Run a prepared statement, with what has to go ahead of it, in one round trip."""
        pgconn = self.connection.pgconn
        ahead = self._before(guarded=guarded, timed=timed)
        if not ahead:
            return _checked(pgconn.exec_prepared(name, values, None, 1))
        pgconn.enter_pipeline_mode()
        try:
            for one, parameters in ahead:
                pgconn.send_query_prepared(one, cast("Any", parameters), None, 1)
            pgconn.send_query_prepared(name, values, None, 1)
            pgconn.pipeline_sync()
            results: list[PGresult] = []
            while (result := pgconn.get_result()) is None or result.status != ExecStatus.PIPELINE_SYNC:
                if result is not None:
                    results.append(result)
        finally:
            pgconn.exit_pipeline_mode()
        return [_checked(one) for one in results][-1]

    def prepare(self, name: str, text: str) -> None:
        _checked(self.connection.pgconn.prepare(name.encode(), text.encode()))


class Transaction:
    """One transaction, as a context."""

    __slots__ = ("_before_commit", "_database", "_now")

    def __init__(self, database: Database, now: datetime, before_commit: Callable[[], None]) -> None:
        self._database = database
        self._now = now
        self._before_commit = before_commit

    async def __aenter__(self) -> Tx:
        self._database.begun(self._now)
        return Tx(self._database)

    async def __aexit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if error is None:
            try:
                self._before_commit()
            except BaseException:
                self._database.ended(committed=False)
                raise
        self._database.ended(committed=error is None)


class Tx:
    """`ports.Tx` on the one connection."""

    __slots__ = ("_database", "deferred", "outbox")

    def __init__(self, database: Database) -> None:
        self._database = database
        self.outbox: list[tuple[str, Outgoing]] = []
        self.deferred = False

    async def fetch(self, query: str, **parameters: object) -> list[tuple[Any, ...]]:
        statement = self._database.statement(query)
        return statement.rows(self._ran(statement, parameters))

    async def execute(self, query: str, **parameters: object) -> int:
        if query in _STATISTICS:
            return 0
        return self._ran(self._database.statement(query), parameters).command_tuples or 0

    async def copy(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> int:
        statement = sql.SQL("copy {} ({}) from stdin").format(
            sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
        )
        with self._database.cursor() as cursor:
            with cursor.copy(statement) as copying:
                for row in rows:
                    copying.write_row(row)
            return cursor.rowcount

    def _ran(self, statement: Statement, parameters: Mapping[str, object]) -> PGresult:
        database, query = self._database, statement.query
        database.executed.add(query)
        result = statement.run(parameters)
        if statement.changes:
            database.changed[query] = database.changed.get(query, 0) + (result.command_tuples or 0)
        return result


class Statement:
    """A query, prepared once for all schedules. psycopg's cursors would cost more than the query itself here.

    Parameters go as text and take their types from the query, as its casts and columns say. `ours`: not the product's."""

    def __init__(self, database: Database, name: str, query: str, *, ours: bool = False) -> None:
        self.query = name
        self.changes = not ours and changes(name)
        """Whether it may change rows."""
        self._database = database
        self._name = name.encode()
        self._order: list[str] = []
        text = re.sub(r"%\((\w+)\)s", self._placed, query).replace("%%", "%")
        plain = _plain(query)
        self.ordered = ordered(query)
        self._guarded = not ours and (
            not plain.startswith(("select", "with"))
            or re.search(r"\b(insert into|delete from|update) \w", plain) is not None
        )
        """A savepoint goes before it. Also where it only locks: in another transaction than the one that then changes
        the row, PostgreSQL would have to make a multixact of the two."""
        self._timed = not ours and re.search(r"\b(clock_timestamp|now)\(\)|\binsert into\b", plain) is not None
        """Asks for the time, if only by a column's default."""
        database.prepare(name, text)
        self._reader = Transformer(database.connection)

    def run(self, parameters: Mapping[str, object]) -> PGresult:
        values = [_text(parameters[name]) for name in self._order]
        return self._database.send(self._name, values, guarded=self._guarded, timed=self._timed)

    def rows(self, result: PGresult) -> list[tuple[Any, ...]]:
        rows = self.read(result)
        if len(rows) > 1 and not self.ordered:
            # Else they come as they lie, which what earlier schedules left behind decides.
            rows.sort(key=repr)
            self._database.random.shuffle(rows)
        return rows

    def read(self, result: PGresult) -> list[tuple[Any, ...]]:
        """As they came."""
        self._reader.set_pgresult(result)
        return self._reader.load_rows(0, result.ntuples, tuple)

    def _placed(self, match: re.Match[str]) -> str:
        if match[1] not in self._order:
            self._order.append(match[1])
        return f"${self._order.index(match[1]) + 1}"


def _checked(result: PGresult) -> PGresult:
    if result.status not in {ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK}:
        raise psycopg.errors.error_from_result(result)
    return result


def _text(value: Any) -> bytes | None:
    """As PostgreSQL reads it."""
    return None if value is None else _DUMPS.get(type(value), _other)(value)


def _other(value: Any) -> bytes:
    """Subclasses, and what only has a text: UUIDs, enumerations, floats."""
    return next((dump for kind, dump in _DUMPS.items() if isinstance(value, kind)), lambda one: str(one).encode())(
        value
    )


def _hexadecimal(value: bytes | bytearray | memoryview) -> bytes:
    return b"\\x" + binascii.hexlify(value)


def _array(values: Iterable[Any]) -> bytes:
    return b"{" + b",".join([_element(one) for one in values]) + b"}"


def _element(value: Any) -> bytes:
    if type(value) is int:
        return b"%d" % value
    text = _text(value)
    if text is None:
        return b"null"
    return b'"' + text.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def _moment(value: date) -> bytes:
    return value.isoformat().encode()


_DUMPS: Final[Mapping[type, Callable[[Any], bytes]]] = {
    str: str.encode,
    bool: lambda value: b"t" if value else b"f",
    int: lambda value: b"%d" % value,
    UUID: lambda value: str(value).encode(),
    bytes: _hexadecimal,
    bytearray: _hexadecimal,
    memoryview: _hexadecimal,
    datetime: _moment,
    date: _moment,
    list: _array,
    tuple: _array,
    np.ndarray: lambda value: _array(value.tolist()),
}
"""By type; of a subclass, the first that fits."""


def _restarts(connection: psycopg.Connection[Any]) -> str:
    """Sets every sequence back: that is not undone by a rollback, and so has to be done."""
    rows = connection.execute(
        "select format('select setval(%L, %s, false)', quote_ident(schemaname) || '.' || quote_ident(sequencename),"
        " start_value) from pg_sequences where schemaname = 'sim' order by 1"
    ).fetchall()
    assert rows, "expected sequences in the schema that comes first on the search path, where the tables are made"
    return "; ".join(row[0] for row in rows)
