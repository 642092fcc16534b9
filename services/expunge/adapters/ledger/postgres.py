"""PostgreSQL behind the `Ledger` port: a pool, named queries, COPY, migrations.

SQL lives in `sql/*.sql` under `-- name:` lines; Python passes parameters. Foreign exceptions are translated here, once.
"""

from __future__ import annotations

import re
import struct
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Final, LiteralString, Self, cast

import numpy as np
import psycopg
from psycopg import sql
from psycopg.abc import Buffer, DumperKey
from psycopg.adapt import Dumper, PyFormat
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Format
from psycopg.types.array import ListDumper
from psycopg.types.json import set_json_dumps
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_random_exponential

from expunge.domain import canonical
from expunge.domain.errors import Misconfigured, Retryable

if TYPE_CHECKING:
    from expunge.ports import Ledger, Outgoing, Row

MIGRATION_LOCK: Final = 0x45585000
"""Advisory lock that keeps two workers from migrating at once."""
LOCK_WAIT: Final = "2s"
MIGRATION_SECONDS: Final = 300
IDLE_LIMIT: Final = "300s"
"""A worker that stands still in a transaction (paused, cut off) holds rows that others need: the server ends it after this.
Longer than sealing the largest order works between two of its statements. `options` in the DSN may say otherwise."""
_KEEPALIVES: Final = {
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
"""A server that vanished without a word (its machine lost, its address another's) is missed after a minute."""

_NULL: Final = struct.pack(">i", -1)
"""Length of an array's element that is null."""

_PASSING: Final = (
    psycopg.errors.SerializationFailure,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.QueryCanceled,
    psycopg.errors.AdminShutdown,
    psycopg.errors.CrashShutdown,
    psycopg.errors.CannotConnectNow,
    psycopg.errors.TooManyConnections,
    psycopg.errors.DiskFull,
    psycopg.errors.IdleInTransactionSessionTimeout,
    psycopg.OperationalError,
    PoolTimeout,
)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except _PASSING as error:
        message = f"the database did not take it this time ({type(error).__name__})"
        raise Retryable(message) from error


@cache
def queries() -> Mapping[str, LiteralString]:
    """All named queries. Raises `Misconfigured` when two share a name."""
    found: dict[str, LiteralString] = {}
    for file in sorted(resources.files(__package__).joinpath("sql").iterdir(), key=lambda f: f.name):
        if not file.name.endswith(".sql"):
            continue
        for part in re.split(r"^-- name: ", file.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
            name, _, text = part.partition("\n")
            if name.strip() in found:
                message = f"two queries are named {name.strip()}"
                raise Misconfigured(message)
            # The text comes from our own package data, never from input.
            found[name.strip()] = cast("LiteralString", text.strip())
    return found


class PostgresTx:
    """`Tx` on one psycopg connection."""

    def __init__(self, connection: psycopg.AsyncConnection) -> None:
        self._connection = connection
        self.outbox: list[tuple[str, Outgoing]] = []
        self.deferred = False

    async def fetch(self, query: str, **parameters: object) -> list[Row]:
        with _translated():
            return await _fetch(self._connection, query, parameters)

    async def execute(self, query: str, **parameters: object) -> int:
        with _translated():
            return await _execute(self._connection, query, parameters)

    async def copy(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> int:
        statement = sql.SQL("copy {} ({}) from stdin").format(
            sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
        )
        with _translated():
            async with self._connection.cursor() as cursor:
                async with cursor.copy(statement) as copying:
                    for row in rows:
                        await copying.write_row(row)
                return cursor.rowcount


async def _fetch(connection: psycopg.AsyncConnection, query: str, parameters: Mapping[str, object]) -> list[Row]:
    async with connection.cursor(binary=True) as cursor:
        await cursor.execute(queries()[query], parameters)
        return await cursor.fetchall()


async def _execute(connection: psycopg.AsyncConnection, query: str, parameters: Mapping[str, object]) -> int:
    async with connection.cursor() as cursor:
        await cursor.execute(queries()[query], parameters)
        return cursor.rowcount


class PostgresLedger:
    """`Ledger` over a psycopg pool. `open` before use, `close` after.

    `read_only`: every transaction refuses to write; `wait_seconds`: longest wait for a connection; `statement_seconds`:
    longest one statement may take (0: no limit).
    """

    def __init__(
        self, dsn: str, *, connections: int = 4, application: str = "expunge", read_only: bool = False,
        wait_seconds: float = 30, statement_seconds: float = 0,
    ) -> None:  # fmt: skip
        try:
            given = conninfo_to_dict(dsn)
        except psycopg.ProgrammingError as error:  # its text quotes the DSN, password and all
            raise Misconfigured("expected a PostgreSQL URI or conninfo as the database, got something else") from error
        options = [f"-c idle_in_transaction_session_timeout={IDLE_LIMIT}", str(given.get("options") or "")]
        options += ["-c default_transaction_read_only=on"] if read_only else []
        options += [f"-c statement_timeout={statement_seconds * 1000:.0f}"] if statement_seconds else []
        self._pool = AsyncConnectionPool(
            dsn,
            min_size=1,
            max_size=connections,
            open=False,
            timeout=wait_seconds,
            kwargs={name: value for name, value in _KEEPALIVES.items() if name not in given}
            | {
                "application_name": application,
                "prepare_threshold": 2,
                "autocommit": True,
                "options": " ".join(filter(None, options)),
            },
            configure=_configure,
        )

    async def open(self) -> None:
        """Connect. Raises `Retryable` when the database does not answer within 30 s."""
        with _translated():
            await self._pool.open(wait=True, timeout=30)

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.close()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Self]:
        """Open for as long as this lasts; once."""
        await self.open()
        try:
            yield self
        finally:
            await self.close()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[PostgresTx]:
        """One transaction on a pooled connection."""
        with _translated():
            async with self._pool.connection() as connection, connection.transaction():
                yield PostgresTx(connection)

    async def fetch(self, query: str, **parameters: object) -> list[Row]:
        with _translated():
            async with self._pool.connection() as connection:
                return await _fetch(connection, query, parameters)

    async def execute(self, query: str, **parameters: object) -> int:
        with _translated():
            async with self._pool.connection() as connection:
                return await _execute(connection, query, parameters)


class _Int64s(Dumper):
    """An int64 array as bigint[], in PostgreSQL's binary format (`array_recv`): psycopg dumps lists one by one."""

    format = Format.BINARY
    oid = psycopg.postgres.types["int8"].array_oid

    def dump(self, obj: np.ndarray) -> Buffer:
        """Raises TypeError for another type or shape."""
        if obj.dtype != np.int64 or obj.ndim != 1:
            message = f"expected a flat int64 array, got {obj.dtype} with {obj.ndim} dimensions"
            raise TypeError(message)
        items = np.empty(len(obj), [("length", ">i4"), ("value", ">i8")])
        items["length"], items["value"] = 8, obj
        element = psycopg.postgres.types["int8"].oid
        head = (
            struct.pack(">iiI", 1, 0, element) + struct.pack(">ii", len(obj), 1)
            if len(obj)
            else struct.pack(">iiI", 0, 0, element)
        )
        return head + items.tobytes()


class _Lists(ListDumper):
    """As psycopg dumps lists, but for byte strings: these it would escape as text one by one, and twice their size."""

    def get_key(self, obj: list[object], format: PyFormat) -> DumperKey:  # noqa: A002 - psycopg's name
        return (self.cls, bytes) if obj and type(obj[0]) is bytes else super().get_key(obj, format)

    def upgrade(  # type: ignore[override] # any dumper will do
        self, obj: list[object], format: PyFormat  # noqa: A002 - psycopg's name
    ) -> Dumper:  # fmt: skip
        return _ByteStrings(self.cls) if obj and type(obj[0]) is bytes else super().upgrade(obj, format)


class _ByteStrings(Dumper):
    """A list of byte strings as bytea[], in PostgreSQL's binary format (`array_recv`)."""

    format = Format.BINARY
    oid = psycopg.postgres.types["bytea"].array_oid

    def dump(self, obj: list[bytes | None]) -> Buffer:
        """The first of them is not None."""
        head = struct.pack(">iiI", 1, int(None in obj), psycopg.postgres.types["bytea"].oid)
        parts = [part for one in obj for part in ((_NULL,) if one is None else (struct.pack(">i", len(one)), one))]
        return b"".join([head, struct.pack(">ii", len(obj), 1), *parts])


async def _configure(connection: psycopg.AsyncConnection) -> None:
    set_json_dumps(canonical.dumps, connection)
    connection.adapters.register_dumper(np.ndarray, _Int64s)
    connection.adapters.register_dumper(list, _Lists)


def migrations() -> list[tuple[int, str]]:
    """All migrations in order: number and text."""
    files = sorted(resources.files(__package__).joinpath("migrations").iterdir(), key=lambda f: f.name)
    return [(int(file.name[:4]), file.read_text(encoding="utf-8")) for file in files if file.name.endswith(".sql")]


def migrate(dsn: str, *, until: int | None = None) -> int:
    """Bring a database to the newest schema, or to that of migration `until`; how many migrations ran.

    Safe to call from several processes at once, and while workers of the version before run: migrations only add (a
    guard reads them), and none waits for a table longer than `LOCK_WAIT`, because everything else that wants the table
    would queue behind it; it tries again instead. Raises `Retryable` when a table was in use for `MIGRATION_SECONDS`.
    """
    ran = 0
    with _translated(), psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("select pg_advisory_lock(%s)", (MIGRATION_LOCK,))
        connection.execute(
            "create table if not exists schema_migration (number integer primary key, at timestamptz not null default now())"
        )
        done = {row[0] for row in connection.execute("select number from schema_migration")}
        for number, text in migrations():
            if number in done or (until is not None and number > until):
                continue
            _migrate(connection, number, text)
            ran += 1
    return ran


@retry(
    retry=retry_if_exception_type(psycopg.errors.LockNotAvailable),
    wait=wait_random_exponential(max=5),
    stop=stop_after_delay(MIGRATION_SECONDS),
    reraise=True,
)
def _migrate(connection: psycopg.Connection, number: int, text: str) -> None:
    with connection.transaction():
        connection.execute(sql.SQL("set local lock_timeout = {}").format(LOCK_WAIT))
        connection.execute(text)
        connection.execute("insert into schema_migration (number) values (%s)", (number,))


async def check_schema(ledger: Ledger) -> None:
    """Raises `Misconfigured` where a migration that this version needs has not run. One that it does not know is no
    obstacle: those only add."""
    async with ledger.transaction() as tx:
        ((there,),) = await tx.fetch("schema_is_there")
        done = {number for (number,) in await tx.fetch("schema_migrations")} if there else set()
    lacking = [str(number) for number, _ in migrations() if number not in done]
    if lacking:
        message = (
            f"the database's schema lacks migrations {', '.join(lacking)}: run `expunge migrate`, then start again"
        )
        raise Misconfigured(message)
