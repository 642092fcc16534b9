"""An older database and older stores are restored, step by step as ops/BACKUP.md says: what came back goes again."""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from kafka import KafkaConsumer, TopicPartition
from psycopg import sql
from psycopg.conninfo import make_conninfo

from expunge import backup
from expunge.adapters.ledger.postgres import migrate
from expunge.cli.app import main
from expunge.cli.console import Exit
from expunge.domain import events, request, suppression
from expunge.domain.errors import Tampered
from expunge.domain.request import BySource, BySuppressed
from expunge.domain.suppression import Action, Record
from expunge.domain.words import Provision
from expunge.embedded.postgres import programs
from expunge.restored import Standing
from expunge.settings import Settings
from expunge.wiring import Deployment
from tests.conftest import KafkaServer, PostgresServer
from tests.coordination import ORIGIN, PHOTOS, PUBLISHER, SHARDS, album, batch, deployed, source, subject
from tests.coordination import Deployment as World


@pytest.fixture
def deployment(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kafka_server: KafkaServer) -> Deployment:
    settings = Settings(
        database=database, kafka=kafka_server.bootstrap, data=tmp_path / "data", audience=ORIGIN.removesuffix("/log"),
        stores={"photos": "file:///x"},
    )  # fmt: skip
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    migrate(database)
    found = Deployment(settings)
    found.prepare()
    return found


@asynccontextmanager
async def world_of(found: Deployment, dsn: str, folder: Path, **options: Any) -> AsyncIterator[World]:
    """Real stages on this deployment's own log, keys, sealed files and journal."""
    files: dict[str, Any] = {
        "keys": found.keys, "sealed": found.sealed, "tiles": found.tiles, "journal": found.journal, **options,
    }  # fmt: skip
    async with deployed(dsn, folder, **files) as world:
        world._log_key = found.signers.log_key()
        yield world


@pytest.fixture
def restored_database(postgres_server: PostgresServer, database: str) -> Iterator[Callable[[bytes], str]]:
    """Restore a dump into a new database, as an operator does; its DSN."""
    name = f"{psycopg.conninfo.conninfo_to_dict(database)['dbname']}_restored"

    def restore(dump: bytes) -> str:
        with psycopg.connect(postgres_server.dsn, autocommit=True) as admin:
            admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
        dsn = make_conninfo(postgres_server.dsn, dbname=name)
        subprocess.run([programs() / "pg_restore", "--no-owner", "--dbname", dsn], input=dump, check=True)
        return dsn

    yield restore
    with psycopg.connect(postgres_server.dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def dump_of(dsn: str) -> bytes:
    made = subprocess.run([programs() / "pg_dump", "--format=custom", dsn], capture_output=True, check=True)
    return made.stdout


async def test_what_came_back_with_an_old_backup_goes_again(  # noqa: PLR0915 - one story, step by step
    deployment: Deployment, tmp_path: Path, restored_database: Callable[[bytes], str],
) -> None:  # fmt: skip
    web = [replace(one, key=f"w{one.key}", source="web") for one in album(4)]
    async with world_of(deployment, deployment.settings.database, tmp_path) as world:
        await world.seed(*album(1), *album(2), *album(3), *album(9, 2))
        await world.register(source("web"), batch(*web))
        world.fill(*web)
        early = world.deletion(9)
        world.ask(early)
        await world.settle()
        # 1. The backup: the database, and the stores.
        dump, stores = dump_of(deployment.settings.database), copied(world)
        gone, order, withdrawn = world.deletion(1), world.order(BySource(source="web")), world.withdrawal(2)
        world.ask(gone, order, withdrawn)
        await world.settle()
        await world.approve(order)
        await world.settle()
        size = len(world.logged())
        kept, kept_shards = world.left(PHOTOS), world.left(SHARDS)
        assert kept == {f"p{person}-{number}.bin" for person in (2, 3) for number in range(4)}
    # 2. The disaster: both come back as they were.
    dsn = restored_database(dump)
    async with world_of(deployment, dsn, tmp_path / "again", spaces=stores) as world:
        (tmp_path / "again").mkdir()
        assert world.left(PHOTOS) > kept
        with pytest.raises(Tampered, match="expunge log recover"):
            await world.prove.check()
        # 3. What is wrong with it, and nothing has changed.
        found = await backup.verify(deployment, dsn)
        assert (found.usable, found.clean, found.diverged, found.unread) == (True, False, False, 0)
        assert (found.entries, found.images, found.people) == (size, 8, 1)
        assert found.behind > 0
        assert found.projection_behind
        assert await backup.verify(deployment, dsn) == found
        # 4. The way back.
        done = await backup.finish(deployment, dsn)
        assert (done.entries, done.images) == (found.behind, 8)
        assert done.people == {subject(2): ("training",)}
        assert done.projected > 0
        assert (await backup.finish(deployment, dsn)).entries == 0
        await world.prove.check()
        # 5. What came back is erased again by requests like any other, with certificates of their own.
        again = world.order(BySuppressed())
        (person,) = done.people
        expired = request.RetentionExpired(**world.common(subject_ref=person, purposes=done.people[person]))
        world.ask(again, expired)
        await world.settle()
        assert world.left(PHOTOS) > kept, "not before it is approved"
        await world.approve(again)
        await world.settle()
        assert world.left(PHOTOS) == kept
        assert world.left(SHARDS) == kept_shards
        for one in (again, expired):
            assert world.result(one) == "complete"
            assert (await world.verify(one, Provision.DATA)).ok
        assert (await backup.verify(deployment, dsn)).clean
        # 6. And nobody who was erased is registered again.
        await world.register(batch(*album(1, 1)))
        (refused,) = world.said(events.RegistrationRefused)
        assert sum(refused.codes.values()) == 1


def copied(world: World) -> dict[str, Any]:
    """The stores' contents, as a backup of them has it."""
    made = {}
    for name, space in world.spaces.items():
        made[name] = type(space)(units=copy.deepcopy(space.units))
    return made


async def test_a_database_that_went_on_is_of_no_use_and_said_to_be(
    deployment: Deployment, tmp_path: Path, restored_database: Callable[[bytes], str],
) -> None:  # fmt: skip
    async with world_of(deployment, deployment.settings.database, tmp_path) as world:
        await world.seed(*album(1), *album(2))
        await world.coordinator.turn()
        dump = dump_of(deployment.settings.database)
        world.ask(world.deletion(1))
        await world.settle()
    dsn = restored_database(dump)
    with psycopg.connect(dsn) as connection:
        connection.execute(
            "insert into log_entry (index, leaf_hash, predicate, entry) select next, sha256('x'), 'x', 'x' from log_head"
        )
        connection.execute("update log_head set next = next + 1")
    found = await backup.verify(deployment, dsn)
    assert (found.diverged, found.usable, found.clean) == (True, False, False)
    with pytest.raises(Tampered, match="went on"):
        await backup.finish(deployment, dsn)


async def test_an_open_sweep_whose_scope_file_is_gone_is_found(deployment: Deployment, tmp_path: Path) -> None:
    async with world_of(deployment, deployment.settings.database, tmp_path) as world:
        await world.seed(*album(1))
        order = world.order(BySource(source="studio"))
        world.ask(order)
        await world.settle()  # waits for approval
        assert (await backup.verify(deployment, deployment.settings.database)).clean
        (deployment.settings.data / "sealed" / f"{world.sweep_of(order)}.scope").unlink()
    found = await backup.verify(deployment, deployment.settings.database)
    assert (found.unread, found.usable) == (1, False)


def test_finish_puts_requests_and_offsets_on_a_real_broker(
    deployment: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str], kafka_server: KafkaServer
) -> None:
    async def live() -> None:
        async with world_of(deployment, deployment.settings.database, tmp_path) as world:
            await world.seed(*album(1), *album(2))
            await world.coordinator.turn()

    asyncio.run(live())
    # Nothing of these people was erased in this database: as after a restoration.
    journal, key = deployment.journal, deployment.journal.key
    macs = [(subject(1), "*"), (subject(2), "training")]
    journal.append(suppression.encode([
        Record("subject", Action.ADD, suppression.purpose_digest(why), suppression.mac(key, "subject", why, who.encode()))
        for who, why in macs
    ]))  # fmt: skip
    topic = "expunge.requests"
    kafka_server.create_topics({topic: 12})
    with psycopg.connect(deployment.settings.database) as connection:
        connection.execute("delete from consumer_offset")
        connection.execute("insert into consumer_offset values ('coordinate', %s, 3, 0)", (topic,))
    signing = tmp_path / "publisher.key"
    signing.write_text(hashlib.sha256(PUBLISHER.name.encode()).hexdigest())
    signing.chmod(0o600)
    capsys.readouterr()
    assert main(["backup", "verify", "--json"]) == Exit.NEGATIVE
    assert json.loads(capsys.readouterr().out)["images"] == 4
    before = ends(kafka_server, topic)
    assert main(["backup", "finish", "--key", str(signing), "--reference", "restore 7", "--json"]) == Exit.OK
    told = json.loads(capsys.readouterr().out)
    assert (told["images_back"], told["people_withdrawn_again"], told["suppressions_put_back"]) == (4, 1, 2)
    assert told["order"]
    assert str(subject(2)) not in json.dumps(told)
    assert sum(ends(kafka_server, topic)) - sum(before) == 2
    consumer = KafkaConsumer(bootstrap_servers=kafka_server.bootstrap, group_id="expunge-coordinate")
    assert consumer.committed(TopicPartition(topic, 3)) == 0
    consumer.close()


def ends(server: KafkaServer, topic: str) -> list[int]:
    consumer = KafkaConsumer(bootstrap_servers=server.bootstrap)
    parts = [TopicPartition(topic, part) for part in sorted(consumer.partitions_for_topic(topic) or ())]
    found = consumer.end_offsets(parts)
    consumer.close()
    return [found[part] for part in parts]


def test_the_last_record_of_a_person_counts_and_a_photos_is_never_lifted() -> None:
    def record(field: Any, action: Action, mac: bytes) -> Record:
        return Record(field, action, bytes(16), mac)

    one, two, photo = b"1" * 32, b"2" * 32, b"3" * 32
    found = Standing.of(
        [
            record("subject", Action.ADD, one),
            record("subject", Action.ADD, two),
            record("subject", Action.LIFT, one),
            record("digest", Action.ADD, photo),
        ]
    )
    assert found.suppressed == {two}
    assert found.digests == {photo}
