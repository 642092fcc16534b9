"""`pgvector+postgresql://...`: a unit is a plain table (`id bigint primary key, embedding vector(n)`), a locator an id.

Hide deletes the rows, so every query is blind to them at once, and notes them in `expunge_hidden`. Erase rewrites
table, TOAST and indexes (`VACUUM FULL`), because nothing less empties all three: plain VACUUM may skip the index, and
TOAST and page holes keep bytes. The planner's statistics can hold whole vectors too. The statements stay here, not in a
`.sql` file, for most are composed with the table's name.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import Connection, sql
from psycopg.errors import InsufficientPrivilege, LockNotAvailable
from psycopg_pool import ConnectionPool, PoolTimeout

from expunge.adapters.stores import CrashPoint, all_outcomes, count_needles, nowhere, windows
from expunge.domain.errors import FencedOff, Misconfigured, Rejected, Retryable
from expunge.domain.words import Level, Outcome
from expunge.ports import Capabilities, Erasure, Outcomes

WAL: Final = "write-ahead log until its segments are overwritten, and its archives, replicas and base backups"
FREE_BLOCKS: Final = "free blocks of the server's file system until reused or trimmed"
FILES_NOT_READ: Final = "the server's files: not readable from here, so nothing was scanned"
STILL_VISIBLE: Final = "rows still visible to an open transaction, prepared transaction or replication slot"
NO_LOCK: Final = "rows in the table's files: the rewrite did not get its lock in time"
STATISTICS: Final = "sampled values in the planner's statistics: their clearing was not permitted"

Db = Connection[tuple[Any, ...]]

_METHOD: Final = "delete and rewrite of the table"
_UNIT: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}(\.[a-z_][a-z0-9_]{0,62})?", re.ASCII)
_NEEDLE_BYTES: Final = 16
_VECTOR_HEADER: Final = 4
_POLL_SECONDS: Final = 0.05
_LOCK_TIMEOUT = "10s"
"""A rewrite that waits for its lock blocks everyone behind it, so it does not wait long."""
_IDLE_LIMIT = "30s"
"""A worker that was paused in a transaction holds the unit's row, whatever became of its lease: the server ends it. Nothing
is done between two statements of a transaction here."""
_SCHEMA_LOCK: Final = 0x65787075_6E676501

_SCHEMA: Final = """
    CREATE TABLE IF NOT EXISTS expunge_unit (unit text PRIMARY KEY, fence bigint NOT NULL);
    CREATE TABLE IF NOT EXISTS expunge_hidden (
        unit text, id bigint, deleted_by xid8 NOT NULL, PRIMARY KEY (unit, id));
"""
_CLAIM: Final = """
    INSERT INTO expunge_unit AS u VALUES (%s, %s)
    ON CONFLICT (unit) DO UPDATE SET fence = excluded.fence WHERE u.fence <= excluded.fence RETURNING fence
"""
_DELETE: Final = """
    WITH gone AS (DELETE FROM {table} WHERE id = ANY(%(ids)s) RETURNING id)
    INSERT INTO expunge_hidden SELECT %(unit)s, id, pg_current_xact_id() FROM gone
    ON CONFLICT (unit, id) DO UPDATE SET deleted_by = excluded.deleted_by
"""
_HIDDEN: Final = "SELECT id, deleted_by::text FROM expunge_hidden WHERE unit = %s AND id = ANY(%s)"
# a transaction that began before the delete, or whose id makes later snapshots reach back before it, keeps dead rows
_HELD_BACK: Final = """
    SELECT EXISTS (
        SELECT FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND (age(backend_xid) >= age(%(xid)s::xid8::xid)
            OR (datid IS NULL OR datname = current_database()) AND age(backend_xmin) >= age(%(xid)s::xid8::xid))
        UNION ALL SELECT FROM pg_prepared_xacts WHERE age(transaction) >= age(%(xid)s::xid8::xid)
        UNION ALL SELECT FROM pg_replication_slots WHERE age(xmin) >= age(%(xid)s::xid8::xid))
"""
_FILES: Final = """
    WITH tables AS (
        SELECT unnest(ARRAY[oid, reltoastrelid]) AS oid FROM pg_class
        WHERE oid IN (to_regclass(%s), 'pg_statistic'::regclass))
    SELECT pg_relation_filepath(oid) FROM tables WHERE oid <> 0
    UNION SELECT pg_relation_filepath(indexrelid) FROM pg_index JOIN tables ON indrelid = oid
"""
_KIND: Final = "SELECT relkind = 'r' FROM pg_class WHERE oid = to_regclass(%s)"
_NORMALISED: Final = """
    SELECT EXISTS (SELECT FROM pg_index i JOIN pg_opclass o ON o.oid = ANY(i.indclass)
                   WHERE i.indrelid = to_regclass(%s) AND o.opcname LIKE '%%cosine%%')
"""
_SAMPLED: Final = """
    SELECT EXISTS (SELECT FROM pg_attribute a JOIN pg_stats s ON s.attname = a.attname
                   JOIN pg_class c ON c.oid = a.attrelid AND c.relname = s.tablename
                       AND c.relnamespace = s.schemaname::regnamespace
                   WHERE a.attrelid = to_regclass(%s) AND a.attname = 'embedding'
                     AND (s.most_common_vals IS NOT NULL OR s.histogram_bounds IS NOT NULL))
"""
_MAY_CHECKPOINT: Final = """
    SELECT pg_has_role('pg_read_all_settings', 'USAGE') AND pg_has_role('pg_checkpoint', 'USAGE')
"""
_WHERE_FILES_ARE: Final = """
    SELECT current_setting('data_directory'), pg_backend_pid(), system_identifier FROM pg_control_system()
"""


class PgVectorReader:
    """L2 needs the server's data directory readable here and the right to CHECKPOINT; else `max_level` is L1."""

    def __init__(self, pool: ConnectionPool[Db], name: str, data_directory: str | None) -> None:
        self.name = name
        level = Level.UNREACHABLE if data_directory is None else Level.FILE_ABSENT
        self.capabilities = Capabilities(rewrites_unit=True, max_level=level)
        self._pool = pool
        self._data_directory = data_directory

    def close(self) -> None:
        self._pool.close()

    def probe(self, unit: str, locators: Sequence[str]) -> NDArray[np.bool_]:
        ids = _ids(locators)
        with self._connected() as db:
            if not _is_there(db, unit):
                return np.zeros(len(locators), dtype=np.bool_)
            query = sql.SQL("SELECT id FROM {table} WHERE id = ANY(%s)").format(table=_table(unit))
            there = {row[0] for row in db.execute(query, (ids,), binary=True)}
        return np.fromiter((i in there for i in ids), dtype=np.bool_, count=len(ids))

    def needles(self, unit: str, locators: Sequence[str]) -> list[tuple[bytes, ...]]:
        """Three windows of 16 bytes of each vector as the server stores it, and of its unit vector where an index
        keeps that. The server is taken to be little-endian."""
        ids = _ids(locators)
        with self._connected() as db:
            if not _is_there(db, unit):
                return [()] * len(locators)
            normalised = _one(db, _NORMALISED, unit)
            query = sql.SQL("SELECT id, vector_send(embedding) FROM {table} WHERE id = ANY(%s)")
            rows = db.execute(query.format(table=_table(unit)), (ids,), binary=True).fetchall()
        found = {i: _needles(sent, normalised=normalised) for i, sent in rows if sent is not None}
        return [found.get(i, ()) for i in ids]

    def scan(self, unit: str, needles: Sequence[bytes]) -> list[int]:
        """Reads the files of the table, its TOAST, its indexes and the planner's statistics, after a checkpoint. The
        write-ahead log is all tables' and no part of it: it is residue. `Rejected`, code `files-not-readable`, where
        `max_level` is L1."""
        if self._data_directory is None:
            raise Rejected("files-not-readable", "expected the server's data directory to be readable, and it is not")
        with self._connected() as db:
            _table(unit)
            db.execute("CHECKPOINT")
            # Asked anew: after a failover another server answers, and the files of the first say nothing of its own.
            directory = _data_directory(db)
            if directory is None:
                raise Rejected(
                    "files-not-readable", "the server's data directory was readable, and that of today's is not"
                )
            files = [os.path.join(directory, row[0]) for row in db.execute(_FILES, (unit,)) if row[0]]
        try:
            return count_needles((s for f in files for s in _segments(f)), needles)
        except OSError as e:
            raise Retryable("a file of the server could not be read") from e

    @contextmanager
    def _connected(self) -> Iterator[Db]:
        with _faults(), self._pool.connection() as db:
            yield db


class PgVectorStore(PgVectorReader):
    """`settle_seconds`: how long an erase waits for transactions older than its delete before it answers OPEN. The role
    needs to own the tables, and `pg_read_all_stats` to see such transactions of others."""

    def __init__(
        self,
        pool: ConnectionPool[Db],
        name: str,
        data_directory: str | None,
        *,
        settle_seconds: float = 5.0,
        crash_point: CrashPoint = nowhere,
    ) -> None:
        super().__init__(pool, name, data_directory)
        self._settle_seconds = settle_seconds
        self._crash_point = crash_point

    def create_table(self, unit: str, dimensions: int) -> None:
        """A table of the documented shape, without statistics on the vectors: they would copy them."""
        with self._connected() as db:
            create = sql.SQL("CREATE TABLE {table} (id bigint PRIMARY KEY, embedding vector({dimensions}) NOT NULL)")
            db.execute(create.format(table=_table(unit), dimensions=sql.Literal(int(dimensions))))
            quiet = sql.SQL("ALTER TABLE {table} ALTER COLUMN embedding SET STATISTICS 0")
            db.execute(quiet.format(table=_table(unit)))

    def hide(self, unit: str, locators: Sequence[str]) -> Outcomes:
        ids = _ids(locators)
        with self._connected() as db:
            if not _is_there(db, unit):
                return all_outcomes(len(locators), Outcome.ABSENT_BEFORE)
            with db.transaction():
                hidden = _delete(db, unit, ids)
                self._crash_point("deleting")
        self._crash_point("hidden")
        return _outcomes(ids, hidden, Outcome.GONE)

    def erase(self, unit: str, locators: Sequence[str], fence: int) -> Erasure:
        """1. in one transaction: refuse an old fence, delete what is left of the rows, note what a rewrite is due for
        2. wait until no transaction can still see the rows
        3. rewrite table, TOAST and indexes; clear statistics that hold vectors; checkpoint, so that old files go
        4. drop the notes
        """
        ids = _ids(locators)
        self._crash_point("called")
        with self._connected() as db:
            if not _is_there(db, unit):
                return self._erasure(ids, {}, Outcome.ABSENT_BEFORE)
            with db.transaction():  # 1
                _claim(db, unit, fence)
                hidden = _delete(db, unit, ids)
                self._crash_point("deleting")
            self._crash_point("deleted")
            if not hidden:
                return self._erasure(ids, {}, Outcome.ABSENT_BEFORE)
            if not self._settled(db, max(hidden.values())):  # 2
                return self._erasure(ids, hidden, Outcome.OPEN, STILL_VISIBLE)
            with db.transaction():  # 3
                _claim(db, unit, fence)
            try:
                db.execute(sql.SQL("VACUUM (FULL) {table}").format(table=_table(unit)))
            except LockNotAvailable:
                return self._erasure(ids, hidden, Outcome.OPEN, NO_LOCK)
            self._crash_point("rewritten")
            cleared = _clear_statistics(db, unit)
            self._crash_point("cleared")
            if self._data_directory is not None:
                db.execute("CHECKPOINT")
            self._crash_point("checkpointed")
            with db.transaction():  # 4
                _claim(db, unit, fence)
                db.execute("DELETE FROM expunge_hidden WHERE unit = %s AND id = ANY(%s)", (unit, ids))
            self._crash_point("unhidden")
        return self._erasure(ids, hidden, Outcome.GONE, *(() if cleared else (STATISTICS,)))

    def _settled(self, db: Db, deleted_by: int) -> bool:
        deadline = time.monotonic() + self._settle_seconds
        while db.execute(_HELD_BACK, {"xid": str(deleted_by)}).fetchone() == (True,):
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def _erasure(self, ids: list[int], hidden: dict[int, int], outcome: Outcome, *left: str) -> Erasure:
        if self._data_directory is None:
            left = (*left, FILES_NOT_READ)
        level = Level.UNREACHABLE if left else Level.FILE_ABSENT
        return Erasure(_outcomes(ids, hidden, outcome), level, _METHOD, (*left, WAL, FREE_BLOCKS))


def open_store(url: str, name: str) -> PgVectorStore:
    pool, data_directory = _open(url)
    with _faults(), pool.connection() as db, db.transaction():
        db.execute("SELECT pg_advisory_xact_lock(%s)", (_SCHEMA_LOCK,))  # IF NOT EXISTS races with itself
        db.execute(_SCHEMA)
    return PgVectorStore(pool, name, data_directory)


def open_reader(url: str, name: str) -> PgVectorReader:
    pool, data_directory = _open(url)
    return PgVectorReader(pool, name, data_directory)


def _open(url: str) -> tuple[ConnectionPool[Db], str | None]:
    dsn = "postgresql:" + url.partition(":")[2]
    try:
        psycopg.conninfo.conninfo_to_dict(dsn)
    except psycopg.ProgrammingError as e:
        raise Misconfigured("expected pgvector+postgresql://user@host:port/database, got something else") from e
    limits = f"-c lock_timeout={_LOCK_TIMEOUT} -c idle_in_transaction_session_timeout={_IDLE_LIMIT}"
    settings = {"autocommit": True, "options": limits}
    pool: ConnectionPool[Db] = ConnectionPool(dsn, kwargs=settings, min_size=1, max_size=2, open=True, name="pgvector")
    try:
        with _faults(), pool.connection() as db:
            return pool, _data_directory(db)
    except BaseException:
        pool.close()
        raise


def _data_directory(db: Db) -> str | None:
    """Where the server's files are, if they can be read here and are this server's: a path from another machine or
    container may name another server's files here, and a scan of those would find nothing."""
    if not _one(db, _MAY_CHECKPOINT):
        return None
    path, pid, identifier = _row(db, _WHERE_FILES_ARE)
    path = os.path.realpath(path.replace("/proc/self/", f"/proc/{pid}/", 1))
    try:
        with open(os.path.join(path, "global", "pg_control"), "rb") as control:
            found = int.from_bytes(control.read(8), "little", signed=True)
    except OSError:
        return None
    readable = os.access(os.path.join(path, "base"), os.R_OK | os.X_OK)
    return path if readable and found == identifier else None


@contextmanager
def _faults() -> Iterator[None]:
    try:
        yield
    except InsufficientPrivilege as e:
        raise Rejected("not-permitted", "the database role may not do this to the table") from e
    except (psycopg.Error, PoolTimeout) as e:
        raise Retryable(f"the database answered {type(e).__name__}") from e


def _ids(locators: Sequence[str]) -> list[int]:
    for locator in locators:
        if not (locator.isascii() and locator.isdigit() and str(int(locator[:20])) == locator) or int(locator) >> 63:
            raise Rejected("hostile-locator", "expected ids in decimal, 0 to 2**63 - 1, without leading zeros")
    return [int(locator) for locator in locators]


def _table(unit: str) -> sql.Identifier:
    if not _UNIT.fullmatch(unit) or unit.rpartition(".")[2].startswith(("expunge_", "pg_")):
        raise Rejected("hostile-unit", "expected a plain lower-case table name as the unit")
    return sql.Identifier(*unit.split("."))


def _is_there(db: Db, unit: str) -> bool:
    _table(unit)
    row = db.execute(_KIND, (unit,)).fetchone()
    if row == (False,):
        raise Rejected("hostile-unit", "expected a plain table, got a view, an index or a partitioned table")
    return row is not None


def _claim(db: Db, unit: str, fence: int) -> None:
    if db.execute(_CLAIM, (unit, fence)).fetchone() is None:
        raise FencedOff


def _delete(db: Db, unit: str, ids: list[int]) -> dict[int, int]:
    """Delete what is there, and return the ids that await a rewrite with the transaction that deleted each."""
    db.execute(sql.SQL(_DELETE).format(table=_table(unit)), {"ids": ids, "unit": unit})
    return {i: int(deleted_by) for i, deleted_by in db.execute(_HIDDEN, (unit, ids))}


def _clear_statistics(db: Db, unit: str) -> bool:
    """False where vectors stay in the planner's samples. Old samples are dead rows of the catalogue until rewritten."""
    if not _one(db, _SAMPLED, unit):
        return True
    try:
        quiet = sql.SQL("ALTER TABLE {table} ALTER COLUMN embedding SET STATISTICS 0")
        db.execute(quiet.format(table=_table(unit)))
        db.execute("DELETE FROM pg_statistic WHERE starelid = to_regclass(%s)", (unit,))
        db.execute("VACUUM (FULL) pg_statistic")
        db.execute(sql.SQL("ANALYZE {table}").format(table=_table(unit)))
    except (InsufficientPrivilege, LockNotAvailable):
        return False
    return True


def _outcomes(ids: list[int], hidden: dict[int, int], outcome: Outcome) -> Outcomes:
    values = (outcome if i in hidden else Outcome.ABSENT_BEFORE for i in ids)
    return np.fromiter(values, dtype=np.uint8, count=len(ids))


def _needles(sent: bytes, *, normalised: bool) -> tuple[bytes, ...]:
    vector = np.frombuffer(sent, dtype=">f4", offset=_VECTOR_HEADER).astype("<f4")
    stored = [vector]
    if normalised:
        wide = vector.astype(np.float64)
        stored.append((wide / np.sqrt(np.dot(wide, wide))).astype("<f4"))
    return tuple(needle for v in stored for needle in _windows(v.tobytes()))


def _windows(content: bytes) -> tuple[bytes, ...]:
    return windows(len(content), lambda at, width: content[at : at + width], _NEEDLE_BYTES)


def _segments(path: str) -> Iterator[str]:
    """The file and its continuations: one per gibibyte."""
    yield path
    number = 1
    while os.path.exists(f"{path}.{number}"):
        yield f"{path}.{number}"
        number += 1


def _row(db: Db, query: Any, *parameters: object) -> tuple[Any, ...]:  # noqa: ANN401 - LiteralString, checked above
    row = db.execute(query, parameters).fetchone()
    if row is None:
        raise Retryable("the database answered no row")
    return row


def _one(db: Db, query: Any, *parameters: object) -> bool:  # noqa: ANN401 - as above
    return bool(_row(db, query, *parameters)[0])
