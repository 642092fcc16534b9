"""A database of the first schema, with work under way, comes to the newest while others use it; the work goes on."""

from __future__ import annotations

import re
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from tenacity import stop_after_attempt

from expunge.adapters.ledger import postgres
from expunge.adapters.ledger.postgres import PostgresLedger, check_schema, migrate, migrations
from expunge.domain.errors import Misconfigured, Retryable
from expunge.domain.request import BySource
from expunge.pipeline import WORKERS
from tests.coordination import PHOTOS, Deployment, album, deployed

FIRST = migrations()[0][0]
NEWEST = migrations()[-1][0]


@pytest.fixture
async def live(database: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployed(database, tmp_path) as made:
        yield made


@pytest.fixture
def old(database: str) -> Iterator[str]:
    """DSN of another empty database on the same server."""
    name = f"{conninfo_to_dict(database)['dbname']}_old"
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(sql.SQL("create database {} template template0").format(sql.Identifier(name)))
        yield make_conninfo(database, dbname=name)
        admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


COLUMNS = """
select c.table_name, array_agg(c.column_name::text order by c.ordinal_position)
from information_schema.columns c join information_schema.tables t using (table_schema, table_name)
where table_schema = 'public' and t.table_type = 'BASE TABLE' and is_generated = 'NEVER' and table_name <> 'schema_migration'
group by 1
"""


def carry(source_dsn: str, target_dsn: str) -> int:
    """Copy what the target's tables have room for, as a deployment that never knew more would hold it; rows copied."""
    rows = 0
    with psycopg.connect(source_dsn) as giving, psycopg.connect(target_dsn) as taking:
        taking.execute("set session_replication_role = replica")  # foreign keys: tables come in any order
        for table, columns in taking.execute(COLUMNS).fetchall():
            listed = sql.SQL(", ").join(map(sql.Identifier, columns))
            name = sql.Identifier(table)
            taking.execute(sql.SQL("delete from {}").format(name))
            reads, writes = sql.SQL("copy (select {} from {}) to stdout"), sql.SQL("copy {} ({}) from stdin")
            with (
                giving.cursor().copy(reads.format(listed, name)) as out,
                taking.cursor() as cursor,
            ):
                with cursor.copy(writes.format(name, listed)) as into:
                    for block in out:
                        into.write(block)
                rows += cursor.rowcount
        for (sequence,) in taking.execute("select relname from pg_class where relkind = 'S'").fetchall():
            name = sql.Identifier(sequence)
            ((last, called),) = giving.execute(sql.SQL("select last_value, is_called from {}").format(name)).fetchall()
            taking.execute("select setval(%s, %s, %s)", (sequence, last, called))
    return rows


async def test_work_under_way_goes_on_after_an_upgrade_from_the_first_schema(live: Deployment, old: str) -> None:
    await live.seed(*album(1), *album(2), *album(3), *album(4, source="scraped"))
    await live.trained("faces@1", [*album(1), *album(2)])
    proved, models, waits, order = (
        live.deletion(1), live.deletion(2), live.deletion(3), live.order(BySource(source="scraped")),
    )  # fmt: skip
    live.ask(proved, models)
    await live.settle()
    before = await live.verify(proved)
    half = replace(live, only=frozenset({"register", "coordinate"}))
    half.ask(waits, order)
    await half.settle()
    assert {live.state(waits), live.state(order)} & {"complete"} == set()

    migrate(old, until=FIRST)
    assert carry(live.dsn, old) > 100
    ledger = PostgresLedger(old)
    await ledger.open()
    try:
        with pytest.raises(Misconfigured, match=rf"lacks migrations .*{NEWEST}: run `expunge migrate`"):
            await check_schema(ledger)
        assert migrate(old) == len(migrations()) - 1
        await check_schema(ledger)
        new = replace(half, dsn=old, ledger=ledger, only=frozenset(WORKERS))
        await new.approve(order)
        await new.settle()
        assert new.left(PHOTOS) == set()
        for one in (waits, order):
            assert (await new.verify(one)).ok
        assert (before.ok, (await new.verify(proved)).ok) == (True, True)
        assert [new.state(one) for one in (proved, waits, order)] == ["data-certified", "completed", "completed"]
        assert not new.letters()
    finally:
        await ledger.close()


def columns(dsn: str, table: str) -> set[str]:
    with psycopg.connect(dsn) as asking:
        found = asking.execute("select column_name from information_schema.columns where table_name = %s", (table,))
        return {name for (name,) in found}


async def test_nobody_waits_behind_a_migration_that_waits(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backup reads a table for long: the migration asks for the table, gives way, and asks again; writers go on."""
    monkeypatch.setattr(postgres, "LOCK_WAIT", "20ms")
    migrate(old, until=FIRST)
    held_up = 0
    failed: list[BaseException] = []

    def migrating() -> None:
        try:
            migrate(old)
        except BaseException as error:  # noqa: BLE001 - shown below
            failed.append(error)

    with psycopg.connect(old) as backup, psycopg.connect(old, autocommit=True) as worker:
        backup.execute("select count(*) from log_checkpoint")
        other = threading.Thread(target=migrating)
        other.start()
        worker.execute("set statement_timeout = '10s'")
        while held_up < 5:
            assert other.is_alive(), failed
            worker.execute("select count(*) from log_checkpoint")
            ((waiting,),) = worker.execute(
                "select count(*) from pg_locks where not granted and mode = 'AccessExclusiveLock'"
            ).fetchall()
            held_up += waiting
        assert columns(old, "log_checkpoint").isdisjoint({"made_at"})
        backup.rollback()
        other.join(60)
    assert not other.is_alive()
    assert failed == []
    assert "made_at" in columns(old, "log_checkpoint")


def test_a_table_that_is_never_free_is_said(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "LOCK_WAIT", "1ms")
    monkeypatch.setattr(postgres._migrate.retry, "stop", stop_after_attempt(3))
    migrate(old, until=FIRST)
    with psycopg.connect(old) as backup:
        backup.execute("select count(*) from log_checkpoint")
        with pytest.raises(Retryable, match="LockNotAvailable"):
            migrate(old)
    assert migrate(old) == len(migrations()) - 1


ADDS = re.compile(
    r"create table \w+ \(.*\)"
    r"|create view \w+ as .*"
    r"|create (unique )?index \w+ on (?P<on>\w+) \(.*\)( where .*)?"
    r"|alter table \w+ add column \w+ \w+( not null default [^ ]+)?",
    flags=re.DOTALL,
)


def test_migrations_only_add() -> None:
    """Workers of the version before go on while one runs. (An index on a table that is there already holds up its
    writers while it is built: the one that does is of tables with one row a request.)"""
    for number, text in migrations()[1:]:
        plain = re.sub(r"--[^\n]*", "", text)
        made = set(re.findall(r"create table (\w+)", plain))
        for statement in filter(None, map(str.strip, plain.split(";"))):
            found = ADDS.fullmatch(statement)
            assert found is not None, (number, statement)
            assert found["on"] in {None, "request", *made}, (number, statement)
