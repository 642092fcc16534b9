"""The log's appender on a real database: one tree per size whatever is paused, killed or restored."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from expunge import replay
from expunge.adapters.ledger.postgres import PostgresLedger, migrate
from expunge.adapters.log.files import FileTiles
from expunge.adapters.log.memory import MemoryTiles
from expunge.domain import merkle, note
from expunge.domain.errors import Rejected, Retryable, Tampered
from expunge.domain.note import NoteKey
from expunge.domain.words import Role
from expunge.ports import TileStore
from expunge.record import log
from expunge.stages.prove import Prove, recover
from tests import evidence
from tests.evidence import ORIGIN, START

KEY = evidence.signing_key(Role.LOG)
LOG_KEY = NoteKey.log(ORIGIN, KEY.public)


def entry(number: int, branch: int = 0) -> tuple[str, bytes]:
    """A statement like no other."""
    batch = evidence.batch().model_copy(update={"batch": str(UUID(int=(branch << 64) + number, version=4))})
    return batch.type, evidence.sign(batch)


def prover(ledger: PostgresLedger, store: TileStore) -> Prove:
    return Prove(ledger=ledger, store=store, key=KEY, origin=ORIGIN, clock=lambda: START)


@dataclass
class Log:
    """A log with its database. `signed`: every note that is known to have been signed, by size."""

    dsn: str
    ledger: PostgresLedger
    store: MemoryTiles = field(default_factory=MemoryTiles)
    signed: dict[int, set[bytes]] = field(default_factory=dict)

    async def append(self, count: int, branch: int = 0) -> None:
        ((start,),) = self.sql("select next from log_head")
        async with self.ledger.transaction() as tx:
            await log(tx, [entry(n, branch) for n in range(start, start + count)])

    async def publish(self, prove: Prove, *, record: bool = True) -> int:
        published = await prove.publish()
        assert published is not None
        self.signed.setdefault(published.size, set()).add(published.note)
        if record:
            async with self.ledger.transaction() as tx:
                await prove.record(published, tx)
        return published.size

    def sql(self, query: str, *parameters: object) -> list[Any]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(query.encode(), parameters)
            return cursor.fetchall() if cursor.description else []

    def restore(self, size: int) -> None:
        """As an older backup of the database would have it: `size` entries, and the checkpoints up to there."""
        self.sql("alter table log_entry disable trigger log_entry_immutable")
        self.sql("delete from log_entry where index >= %s", size)
        self.sql("delete from log_checkpoint where size > %s", size)
        self.sql("update log_head set next = %s", size)
        self.sql("alter table log_entry enable trigger log_entry_immutable")

    def check(self, store: TileStore | None = None) -> int:
        """The whole log verifies, and every note ever signed is of one tree; the published size."""
        found = replay.replay(store or self.store, evidence.trust())
        tree = merkle.Tree(found.hashes)
        for size, notes in self.signed.items():
            assert len(notes) == 1, f"two trees of size {size}"
            checkpoint = note.open_checkpoint(next(iter(notes)), [LOG_KEY], ORIGIN)
            path = merkle.consistency_path(tree, size)
            merkle.verify_consistency(size, tree.size, checkpoint.root, tree.root, path)
        return found.checkpoint.size


@pytest.fixture
async def world(database: str) -> AsyncIterator[Log]:
    migrate(database)
    ledger = PostgresLedger(database)
    await ledger.open()
    try:
        yield Log(database, ledger)
    finally:
        await ledger.close()


class Pausing:
    """A `TileStore` that stops before its call number `at`, until it is let go."""

    def __init__(self, store: MemoryTiles, at: int) -> None:
        self._store = store
        self._left = at
        self.reached = threading.Event()
        self.go = threading.Event()

    def _pause(self) -> None:
        if self._left == 0:
            self.reached.set()
            assert self.go.wait(60)
        self._left -= 1

    def write(self, files: Mapping[str, bytes]) -> None:
        self._pause()
        self._store.write(files)

    def read(self, path: str) -> bytes:
        self._pause()
        return self._store.read(path)

    def swap(self, path: str, data: bytes, old: bytes | None) -> bool:
        self._pause()
        return self._store.swap(path, data, old)


@pytest.mark.parametrize("step", range(1, 7))
async def test_an_appender_that_was_paused_signs_no_second_tree_and_takes_nothing_back(world: Log, step: int) -> None:
    """Steps: read tile, read bundle, write tiles, archive, look at the checkpoint, replace it. (0 is under the lock.)"""
    await world.append(3)
    await world.publish(prover(world.ledger, world.store))
    pausing = Pausing(world.store, step)
    paused, other = prover(world.ledger, pausing), prover(world.ledger, world.store)
    await world.append(4)
    waking = asyncio.ensure_future(world.publish(paused, record=False))
    assert await asyncio.to_thread(pausing.reached.wait, 60)
    await world.append(5)
    assert await world.publish(other) == 7, "what was intended is finished first"
    assert await world.publish(other) == 12
    newest = world.store.read("checkpoint")
    pausing.go.set()
    assert await waking == 7
    assert world.store.read("checkpoint") == newest
    assert world.check() == 12
    await world.append(1)
    assert await world.publish(paused) == 13
    assert world.check() == 13


async def test_an_appender_that_holds_the_lock_keeps_others_out(world: Log) -> None:
    await world.append(3)
    pausing = Pausing(world.store, 0)
    waking = asyncio.ensure_future(world.publish(prover(world.ledger, pausing)))
    assert await asyncio.to_thread(pausing.reached.wait, 60)
    other = prover(world.ledger, world.store)
    assert await other.publish() is None
    assert await other.check() is None
    pausing.go.set()
    assert await waking == 3
    assert await other.check() == 3


async def test_what_was_published_but_not_recorded_is_published_again_as_it_was(world: Log) -> None:
    await world.append(3)
    await world.publish(prover(world.ledger, world.store), record=False)
    await world.append(2)
    again = prover(world.ledger, world.store)
    await again.check()
    assert await world.publish(again) == 3
    assert await world.publish(again) == 5
    assert world.check() == 5


async def test_every_published_checkpoint_is_archived_by_size(world: Log) -> None:
    prove = prover(world.ledger, world.store)
    for count in (3, 1, 300):
        await world.append(count)
        size = await world.publish(prove)
        assert {world.store.read(f"checkpoints/{size}")} == world.signed[size]


# Restored databases


async def grown(world: Log) -> None:
    """Two checkpoints, of 3 and of 7 entries."""
    prove = prover(world.ledger, world.store)
    for count in (3, 4):
        await world.append(count)
        await world.publish(prove)


@pytest.mark.parametrize("size", [0, 3, 5])
async def test_a_restored_database_signs_nothing_and_says_how_to_recover(world: Log, size: int) -> None:
    await grown(world)
    world.restore(size)
    for call in (prover(world.ledger, world.store).check, prover(world.ledger, world.store).publish):
        if call.__name__ == "publish" and size != 5:  # something to sign
            await world.append(1)
        with pytest.raises(Tampered, match="expunge log recover"):
            await call()
    assert world.check() == 7


@pytest.mark.parametrize("more", [4, 5, 300])
async def test_a_restored_database_that_went_on_signs_nothing(world: Log, more: int) -> None:
    """The dangerous one: as many entries as were published or more, but others."""
    await grown(world)
    files = dict(world.store.files)
    world.restore(3)
    await world.append(more, branch=1)
    for call in (prover(world.ledger, world.store).check, prover(world.ledger, world.store).publish):
        with pytest.raises(Tampered, match="restored from an older backup and went on"):
            await call()
    assert world.store.files == files
    with pytest.raises(Tampered, match="went on"):
        await recover(world.ledger, world.store, LOG_KEY)


async def test_a_database_with_the_checkpoint_but_other_rows_signs_nothing(world: Log) -> None:
    await grown(world)
    world.sql("alter table log_entry disable trigger log_entry_immutable")
    world.sql("update log_entry set leaf_hash = sha256(leaf_hash) where index = 1")
    await world.append(1)
    for call in (prover(world.ledger, world.store).check, prover(world.ledger, world.store).publish):
        with pytest.raises(Tampered, match="expected the root that was signed for size 7"):
            await call()


@pytest.mark.parametrize("size", [0, 3, 5])
async def test_the_missing_entries_are_put_back_from_the_files(world: Log, size: int) -> None:
    await grown(world)
    before = world.sql("select index, leaf_hash, predicate, entry from log_entry order by index")
    world.restore(size)
    assert await recover(world.ledger, world.store, LOG_KEY) == 7 - size
    assert world.sql("select index, leaf_hash, predicate, entry from log_entry order by index") == before
    assert await recover(world.ledger, world.store, LOG_KEY) == 0
    prove = prover(world.ledger, world.store)
    assert await prove.check() == 7
    await world.append(2)
    assert await world.publish(prove) == 9
    assert world.check() == 9


async def test_there_is_nothing_to_recover_from_without_files(world: Log) -> None:
    with pytest.raises(Rejected, match="published checkpoint"):
        await recover(world.ledger, world.store, LOG_KEY)


@pytest.mark.parametrize("kept", [0, 3])
async def test_files_that_were_lost_are_written_anew_from_the_rows(world: Log, kept: int) -> None:
    await world.append(3)
    prove = prover(world.ledger, world.store)
    await world.publish(prove)
    old = dict(world.store.files) if kept else {}
    await world.append(300)
    await world.publish(prove)
    files = dict(world.store.files)
    world.store.files = old
    assert await prover(world.ledger, world.store).check() == 303
    assert world.store.read("checkpoint") == files["checkpoint"]
    assert world.check() == 303


async def test_a_checkpoint_that_somebody_else_signed_stops_the_log(world: Log) -> None:
    await world.append(3)
    await world.publish(prover(world.ledger, world.store))
    point = note.Checkpoint(ORIGIN, 3, merkle.EMPTY_ROOT)
    world.store.write({"checkpoint": note.sign_checkpoint(point, evidence.signing_key(Role.SCOPE), ORIGIN)})
    with pytest.raises(Tampered):
        await prover(world.ledger, world.store).check()


async def test_a_fault_of_the_disk_may_pass(world: Log) -> None:
    await world.append(3)
    prove = prover(world.ledger, world.store)
    world.store.fail_next = 1
    with pytest.raises(Retryable):
        await prove.publish()
    await world.append(2)
    assert await world.publish(prove) == 3
    assert await world.publish(prove) == 5
    assert world.check() == 5


# Killed

KILLED = textwrap.dedent(
    """
    import asyncio, os, signal, sys
    from pathlib import Path
    from expunge.adapters.ledger.postgres import PostgresLedger
    from expunge.adapters.log.files import FileTiles
    from tests.integration.test_prove import prover

    left = int(sys.argv[3])

    def dying(call):
        def counted(*arguments, **named):
            global left
            left -= 1
            if left == -1:
                os.kill(os.getpid(), getattr(signal, sys.argv[4]))
            return call(*arguments, **named)
        return counted

    async def run():
        ledger = PostgresLedger(sys.argv[1])
        await ledger.open()
        prove = prover(ledger, FileTiles(Path(sys.argv[2])))
        os.fsync, os.link, Path.replace = dying(os.fsync), dying(os.link), dying(Path.replace)
        published = await prove.publish()
        dying(lambda: None)()
        async with ledger.transaction() as tx:
            await prove.record(published, tx)
        await ledger.close()
        sys.stdout.write(published.note.decode())

    asyncio.run(run())
    """
)


async def test_killed_between_any_two_writes_the_log_goes_on_as_one_tree(world: Log, tmp_path: Path) -> None:
    store = FileTiles(tmp_path)
    await world.append(3)
    await world.publish(prover(world.ledger, store))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    point, size = 0, 3
    while True:
        await world.append(2)
        ran = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", KILLED, world.dsn, str(tmp_path), str(point), "SIGKILL"],
            capture_output=True,
            check=False, env=environment,
        )  # fmt: skip
        left = store.read("checkpoint")
        found = note.open_checkpoint(left, [LOG_KEY], ORIGIN)
        assert found.size in {size, size + 2}
        world.signed.setdefault(found.size, set()).add(left)
        size += 2
        assert world.check(store) == found.size, "what is published is whole"
        again = prover(world.ledger, store)
        await again.check()
        if ran.returncode == 0:
            assert await again.publish() is None
            break
        assert ran.returncode == -9, ran.stderr
        assert await world.publish(again) == size
        assert world.check(store) == size
        point += 1
    assert point >= 8


@pytest.mark.parametrize(("step", "in_the_middle"), [(0, False), (3, False), (6, True), (7, True), (8, True)])
async def test_a_process_that_was_stopped_wakes_to_no_second_tree(
    world: Log, tmp_path: Path, *, step: int, in_the_middle: bool
) -> None:  # fmt: skip
    """A real process, stopped by a signal before one of its writes; another appends and publishes, at once or, where it was
    stopped in the middle of the checkpoint's own replacement, when it has let go of that; it is woken."""
    store = FileTiles(tmp_path)
    await world.append(3)
    await world.publish(prover(world.ledger, store))
    await world.append(2)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", KILLED, world.dsn, str(tmp_path), str(step), "SIGSTOP"]
    with await asyncio.to_thread(subprocess.Popen, command, stdout=subprocess.PIPE, env=environment) as stopped:
        _, status = await asyncio.to_thread(os.waitpid, stopped.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        await world.append(4)
        other = prover(world.ledger, store)
        try:
            assert await world.publish(other) == 5, "what the stopped one intended is finished first"
            assert await world.publish(other) == 9
            newest = store.read("checkpoint")
        except Retryable:
            newest = None
        stopped.send_signal(signal.SIGCONT)
        said, _ = await asyncio.to_thread(stopped.communicate)
    assert (newest is None) == in_the_middle, "others wait for that one replacement and for nothing else"
    assert stopped.returncode == 0
    world.signed.setdefault(5, set()).add(said)
    if newest is None:
        assert await world.publish(other) == 9
    else:
        assert store.read("checkpoint") == newest, "it takes nothing back"
    assert world.check(store) == 9
    await world.append(1)
    assert await world.publish(prover(world.ledger, store)) == 10
    assert world.check(store) == 10
