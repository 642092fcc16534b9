from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import psycopg
import pytest

from expunge.adapters.ledger.postgres import PostgresLedger, migrate
from expunge.adapters.stores.local import LocalReader, LocalStore
from expunge.adapters.stores.memory import MemoryReader, MemoryStore, Space
from expunge.chunks.scopes import Sweep
from expunge.domain import dsse, events, needles, statement
from expunge.domain.errors import FencedOff, Misconfigured, Retryable
from expunge.domain.events import SweepId, WorkOrdered
from expunge.domain.words import Kind, Level, Role, Step
from expunge.ports import Delivery, Refused
from expunge.record import event_id
from expunge.stages.invalidate import Invalidate
from expunge.stages.purge import Purge
from expunge.stages.rescan import Rescan
from expunge.tasks import Lease, run_one, run_tasks
from tests.scopes import BUCKET, Sealing, SeedSigner, TreeOf

AT = datetime(2026, 11, 23, 4, 5, 6, tzinfo=UTC)
ONE = UUID("11111111-1111-4111-8111-111111111111")
TWO = UUID("22222222-2222-4222-8222-222222222222")
EXECUTOR, RESCANNER = SeedSigner(Role.EXECUTOR, 1), SeedSigner(Role.RESCANNER, 2)
Handler = Purge | Invalidate | Rescan


def content(unit: str, locator: str) -> bytes:
    return b"".join(hashlib.sha256(f"{unit}/{locator}/{n}".encode()).digest() for n in range(4))


@dataclass
class World:
    """One database, one memory store `fs`, and the handlers over them."""

    dsn: str
    ledger: PostgresLedger
    space: Space = field(default_factory=Space)
    sealing: Sealing = field(default_factory=Sealing)
    calls: Counter[str] = field(default_factory=Counter)
    rewrites_unit: bool = True

    def __post_init__(self) -> None:
        self.space.on_call = lambda call: self.calls.update([call])

    def sql(self, query: str, *parameters: object) -> list[Any]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(query.encode(), parameters)
            return cursor.fetchall() if cursor.description else []

    def purge(self, holder: str = "purge-1", **options: Any) -> Purge:
        store = MemoryStore(self.space, "fs", rewrites_unit=self.rewrites_unit)
        return Purge(
            ledger=self.ledger, scopes=self.sealing.scopes(), stores={"fs": store}, signers={"fs": EXECUTOR},
            clock=lambda: AT, holder=holder, **options,
        )  # fmt: skip

    def rescan(self, **options: Any) -> Rescan:
        reader = MemoryReader(self.space, "fs", rewrites_unit=self.rewrites_unit)
        given = {"max_attempts": 5, **options}
        return Rescan(
            ledger=self.ledger, scopes=self.sealing.scopes(), sealed=self.sealing.sealed, readers={"fs": reader},
            signer=RESCANNER, clock=lambda: AT, **given,
        )  # fmt: skip

    def plan(
        self,
        sweep_id: UUID,
        artifacts: Sequence[tuple[str, str]],
        *,
        state: str = "published",
        kind: Kind = Kind.IMAGE,
        overlaps: Sequence[int] = (),
        store: str = "fs",
    ) -> Sweep:
        sweep = self.sealing.seal(sweep_id, [TreeOf(kind, store, artifacts, overlaps)])
        self.sql(
            """insert into sweep (sweep_id, class, state, bucket, requests, images, leaves, trees, scope_digest,
                   scope_envelope, scope_index, file_digest, ordinals, sealed_at)
               values (%s, 'people', %s, %s, 1, 1, %s, %s, %s, '', 0, %s, '', now())""",
            sweep_id, state, BUCKET, len(artifacts), json.dumps([{"root": root.hex()} for root in sweep.roots]),
            sweep.scope_digest, sweep.file_digest,
        )  # fmt: skip
        chunks = -(-len(artifacts) // 1024)
        self.sql(
            "insert into work (sweep_id, tree, first_chunk, end_chunk, step) values (%s, 0, 0, %s, '-')",
            sweep_id,
            chunks,
        )
        self.sql("insert into log_checkpoint (size, root) values (5, %s) on conflict do nothing", bytes(range(32)))
        return sweep

    def fill(self, artifacts: Sequence[tuple[str, str]]) -> None:
        for unit, locator in artifacts:
            self.space.insert(unit, {locator: content(unit, locator)})

    def left(self) -> set[tuple[str, str]]:
        return {(unit, locator) for unit, held in self.space.units.items() for locator in (*held.visible, *held.hidden)}

    def order(self, sweep_id: UUID, step: Step, attempt: int = 0, *, tell: bool = True) -> WorkOrdered:
        if tell:
            self.sql("update work set step = %s, attempt = %s where sweep_id = %s", step, attempt, sweep_id)
        ((end,),) = self.sql("select end_chunk from work where sweep_id = %s", sweep_id)
        return WorkOrdered(
            step=step, sweep_id=SweepId(str(sweep_id)), tree=0, first_chunk=0, end_chunk=end, attempt=attempt
        )  # fmt: skip

    async def handle(self, handler: Handler, *orders: WorkOrdered) -> list[Refused]:
        acted: Any = await handler.act([delivery(order) for order in orders])
        async with self.ledger.transaction() as tx:
            return await handler.commit(acted, tx)

    async def do(self, handler: Handler, sweep_id: UUID, step: Step, attempt: int = 0) -> list[Refused]:
        return await self.handle(handler, self.order(sweep_id, step, attempt))

    def outcomes(self, sweep_id: UUID, step: Step, attempt: int = 0) -> list[int]:
        rows = self.sql(
            "select outcomes from outcome where sweep_id = %s and step = %s and attempt = %s order by chunk",
            sweep_id, step, attempt,
        )  # fmt: skip
        return [code for (row,) in rows for code in row]

    def statement(self, sweep_id: UUID, step: Step, attempt: int = 0, chunk: int = 0) -> statement.Chunk:
        key = RESCANNER if step in {Step.PRESENCE, Step.ABSENCE} else EXECUTOR
        payload = dsse.verify(
            dsse.parse(self.envelope(sweep_id, step, attempt, chunk)), key.public, statement.PAYLOAD_TYPE
        )
        said = statement.parse(payload).predicate
        assert isinstance(said, statement.Chunk)
        return said

    def envelope(self, sweep_id: UUID, step: Step, attempt: int = 0, chunk: int = 0) -> bytes:
        ((found,),) = self.sql(
            "select envelope from outcome where sweep_id = %s and step = %s and attempt = %s and chunk = %s",
            sweep_id, step, attempt, chunk,
        )  # fmt: skip
        assert isinstance(found, bytes)
        return found

    def said(self) -> list[str]:
        """Types of the events in the outbox, in order."""
        rows = self.sql("select value from outbox order by id")
        return [type(events.parse_event(bytes(value))).__name__ for (value,) in rows]

    def steps(self) -> list[tuple[UUID, str]]:
        """Sweeps and steps of which ImagesPurged is in the outbox, in order."""
        rows = self.sql("select value from outbox order by id")
        said = (events.parse_event(bytes(value)) for (value,) in rows)
        return [(UUID(one.sweep_id), one.step.value) for one in said if isinstance(one, events.ImagesPurged)]

    async def hide(self, sweep_id: UUID) -> None:
        """And no more: unit u is another worker's meanwhile."""
        self.sql("insert into unit_lease values ('fs', 'u', nextval('fence'), 'other', now() + interval '1 hour')")
        await self.do(self.purge(), sweep_id, Step.HIDE)
        self.sql("delete from unit_lease")

    async def erase_all(self, sweep_id: UUID) -> None:
        await self.do(self.rescan(), sweep_id, Step.PRESENCE)
        if self.rewrites_unit:
            await self.do(self.purge(), sweep_id, Step.HIDE)
        await self.do(self.purge(), sweep_id, Step.ERASE)


def delivery(event: events.Event) -> Delivery:
    return Delivery("topic", 0, 0, events.to_cloudevent(event, event_id(event), "test"))


@pytest.fixture
async def world(database: str) -> AsyncIterator[World]:
    migrate(database)
    ledger = PostgresLedger(database)
    await ledger.open()
    yield World(database, ledger)
    await ledger.close()


ABC = [("u", "a"), ("u", "b"), ("v", "c")]


async def test_a_run_goes_from_presence_to_verified_absence(world: World) -> None:
    world.plan(ONE, [*ABC, ("v", "never")])
    world.fill([*ABC, ("v", "kept")])
    await world.erase_all(ONE)
    assert world.left() == {("v", "kept")}
    await world.do(world.rescan(), ONE, Step.ABSENCE)
    assert world.outcomes(ONE, Step.PRESENCE) == [7, 7, 7, 3]
    assert world.outcomes(ONE, Step.HIDE) == [1, 1, 1, 3]
    assert world.outcomes(ONE, Step.ERASE) == [1, 1, 1, 3]
    assert world.outcomes(ONE, Step.ABSENCE) == [1, 1, 1, 3]
    assert world.said() == ["PresenceRecorded", "ImagesPurged", "ImagesPurged", "AbsenceVerified"]
    before, after = world.statement(ONE, Step.PRESENCE), world.statement(ONE, Step.ABSENCE)
    assert (before.sampled, after.sampled, after.level, after.method) == (3, 3, Level.FILE_ABSENT, "probe+scan")
    assert after.residue == ("memory of this process until reused",)
    assert world.statement(ONE, Step.HIDE).level is Level.UNREACHABLE
    assert world.sql("select intent_at is not null from work") == [(True,)]
    assert world.sql("select count(*) from unit_lease") == [(0,)]


async def test_what_is_hidden_is_erased_in_the_same_batch(world: World) -> None:
    world.plan(ONE, [("u", "a")])
    world.plan(TWO, [("v", "c")])
    world.fill(ABC)
    for sweep in (ONE, TWO):
        await world.do(world.rescan(), sweep, Step.PRESENCE)
    world.sql("insert into unit_lease values ('fs', 'v', nextval('fence'), 'other', now() + interval '1 hour')")
    await world.handle(world.purge(), world.order(ONE, Step.HIDE), world.order(TWO, Step.HIDE))
    assert world.left() == {("u", "b"), ("v", "c")}
    assert "c" not in world.space.units["v"].visible  # hidden all the same
    assert world.steps() == [(ONE, "hide"), (ONE, "erase"), (TWO, "hide")]
    assert world.sql("select count(*) from task") == [(0,)]  # the order to erase it is still to come
    world.calls.clear()
    await world.do(world.purge(), ONE, Step.ERASE)  # answered from its rows
    assert not world.calls
    world.sql("delete from unit_lease")
    await world.do(world.purge(), TWO, Step.ERASE)
    assert world.left() == {("u", "b")}
    assert world.steps() == [(ONE, "hide"), (ONE, "erase"), (TWO, "hide"), (TWO, "erase")]
    assert world.outcomes(TWO, Step.ERASE) == [1]


@pytest.mark.parametrize("state", ["sealed", "awaiting-approval", "void"])
async def test_nothing_of_an_unpublished_scope_is_touched(world: World, state: str) -> None:
    world.plan(ONE, ABC)
    world.fill(ABC)
    await world.do(world.rescan(), ONE, Step.PRESENCE)
    world.sql("update sweep set state = %s", state)
    world.calls.clear()
    for handler, step in ((world.purge(), Step.HIDE), (world.purge(), Step.ERASE), (world.rescan(), Step.ABSENCE)):
        (refused,) = await world.do(handler, ONE, step)
        assert (refused.code, refused.later) == ("scope-not-published", False)
    assert world.left() == set(ABC)
    assert not world.calls
    assert world.sql("select intent_at from work") == [(None,)]
    assert world.said() == ["PresenceRecorded"]


async def test_orders_that_do_not_fit_are_refused_by_name(world: World) -> None:
    world.plan(ONE, ABC)
    purge, rescan = world.purge(), world.rescan()
    stale = world.order(ONE, Step.ERASE, 3, tell=False)
    unknown = stale.model_copy(update={"sweep_id": str(TWO)})
    wider = stale.model_copy(update={"end_chunk": 2})
    assert [one.code for one in await world.handle(purge, stale, unknown, wider)] == [
        "stale-order", "unknown-work", "unknown-work",
    ]  # fmt: skip
    assert [one.code for one in await world.do(purge, ONE, Step.ERASE)] == ["presence-not-recorded"]
    assert [one.code for one in await world.do(purge, ONE, Step.PRESENCE)] == ["wrong-step"]
    assert [one.code for one in await world.do(rescan, ONE, Step.ERASE)] == ["wrong-step"]
    other = events.TaintOrdered(sweep_id=SweepId(str(ONE)))
    acted = await purge.act([delivery(other)])
    async with world.ledger.transaction() as tx:
        assert [one.code for one in await purge.commit(acted, tx)] == ["unexpected-type"]


async def test_an_order_for_a_store_that_is_not_ours_waits(world: World) -> None:
    world.plan(ONE, ABC, store="elsewhere")
    (refused,) = await world.do(world.rescan(), ONE, Step.PRESENCE)
    assert (refused.code, refused.later) == ("unknown-store", True)


async def test_purge_does_not_take_embeddings(world: World) -> None:
    world.plan(ONE, ABC, kind=Kind.EMBEDDING)
    world.fill(ABC)
    await world.do(world.rescan(), ONE, Step.PRESENCE)
    (refused,) = await world.do(world.purge(), ONE, Step.ERASE)
    assert refused.code == "wrong-kind"
    assert world.left() == set(ABC)
    store = MemoryStore(world.space, "fs")
    invalidate = Invalidate(
        ledger=world.ledger, scopes=world.sealing.scopes(), stores={"fs": store}, signers={"fs": EXECUTOR},
        clock=lambda: AT, holder="invalidate-1",
    )  # fmt: skip
    await world.do(invalidate, ONE, Step.HIDE)
    await world.do(invalidate, ONE, Step.ERASE)
    assert world.left() == set()
    assert world.said()[1:] == ["VectorsInvalidated", "VectorsInvalidated"]


async def test_excluded_leaves_are_not_touched(world: World) -> None:
    world.plan(ONE, ABC)
    world.fill(ABC)
    world.sql(
        "insert into excluded values (%s, 0, 'held', %s, %s)", ONE, TWO, np.array([1], "<u4").tobytes()
    )  # fmt: skip
    await world.erase_all(ONE)
    await world.do(world.rescan(), ONE, Step.ABSENCE)
    assert world.left() == {("u", "b")}
    assert world.space.read("u").keys() == {"b"}
    for step in (Step.HIDE, Step.ERASE, Step.ABSENCE):
        assert world.outcomes(ONE, step) == [1, 4, 1]
    assert world.said()[-1] == "AbsenceVerified"


async def test_a_repeated_order_gives_the_same_bytes_and_no_second_effect(world: World) -> None:
    world.plan(ONE, ABC)
    world.fill(ABC)
    await world.erase_all(ONE)
    await world.do(world.rescan(), ONE, Step.ABSENCE)
    before = world.sql("select * from outcome order by step")
    sent = world.sql("select event_id, value from outbox order by id")
    world.sql("delete from outbox")
    world.calls.clear()
    world.sql("update sweep set state = 'done'")
    for step in Step:
        handler: Handler = world.purge() if step in {Step.HIDE, Step.ERASE} else world.rescan()
        order = world.order(ONE, step, tell=False)
        assert not await world.handle(handler, order, order)
    assert world.sql("select * from outcome order by step") == before
    assert world.sql("select event_id, value from outbox order by id") == sent
    assert not world.calls


async def test_two_sweeps_on_one_unit_are_one_rewrite(world: World) -> None:
    world.plan(ONE, [("u", "a"), ("u", "b")])
    world.plan(TWO, [("u", "b"), ("u", "c")])
    world.fill([("u", name) for name in "abcd"])
    for sweep in (ONE, TWO):
        await world.do(world.rescan(), sweep, Step.PRESENCE)
    world.calls.clear()
    await world.handle(world.purge(), world.order(ONE, Step.ERASE), world.order(TWO, Step.ERASE))
    assert world.calls["erase"] == 1
    assert world.left() == {("u", "d")}
    assert world.outcomes(ONE, Step.ERASE) == world.outcomes(TWO, Step.ERASE) == [1, 1]


async def test_what_an_earlier_sweep_took_is_told_apart(world: World) -> None:
    world.plan(ONE, [("u", "a"), ("u", "b"), ("u", "c")], overlaps=[0, 1])
    world.fill([("u", "b")])
    await world.erase_all(ONE)
    await world.do(world.rescan(), ONE, Step.ABSENCE)
    assert world.outcomes(ONE, Step.PRESENCE) == [2, 7, 3]
    assert world.outcomes(ONE, Step.ABSENCE) == [2, 1, 3]


async def test_what_is_hidden_already_is_looked_for_where_its_bytes_can_be_read(world: World) -> None:
    world.plan(ONE, [("u", "a"), ("u", "b"), ("u", "c")])
    world.fill([("u", "a"), ("u", "b")])
    MemoryStore(world.space, "fs").hide("u", ["a"])
    world.space.cuts_hidden = True
    await world.do(world.rescan(), ONE, Step.PRESENCE)
    assert world.outcomes(ONE, Step.PRESENCE) == [7, 7, 3]
    assert world.statement(ONE, Step.PRESENCE).sampled == 2
    await world.hide(ONE)
    world.space.lying = True
    await world.do(world.purge(), ONE, Step.ERASE)
    await world.do(world.rescan(), ONE, Step.ABSENCE)
    assert world.outcomes(ONE, Step.ABSENCE) == [7, 7, 3]
    world.space.lying = False
    await world.do(world.purge(), ONE, Step.ERASE, 1)
    await world.do(world.rescan(), ONE, Step.ABSENCE, 1)
    assert world.outcomes(ONE, Step.ABSENCE, 1) == [1, 1, 0]


async def test_an_open_leaf_is_all_that_the_next_attempt_covers(world: World) -> None:
    world.plan(ONE, ABC)
    world.fill(ABC)
    await world.do(world.rescan(), ONE, Step.PRESENCE)
    stuck = world.purge()
    stuck._eraser._stores = {"fs": Stuck(world.space, unit="v")}
    await world.do(stuck, ONE, Step.ERASE)
    assert world.outcomes(ONE, Step.ERASE) == [1, 1, 0]
    await world.do(world.rescan(), ONE, Step.ABSENCE)
    assert world.outcomes(ONE, Step.ABSENCE) == [1, 1, 0]
    assert world.said()[-2:] == ["ArtifactsBlocked", "ResidueFound"]

    await world.do(world.purge(), ONE, Step.ERASE, 1)
    await world.do(world.rescan(), ONE, Step.ABSENCE, 1)
    assert world.outcomes(ONE, Step.ERASE, 1) == world.outcomes(ONE, Step.ABSENCE, 1) == [0, 0, 1]
    assert world.said()[-2:] == ["ImagesPurged", "AbsenceVerified"]
    for step in (Step.ERASE, Step.ABSENCE):
        first = dsse.parse(world.envelope(ONE, step)).payload
        assert world.statement(ONE, step, 1).previous == hashlib.sha256(first).hexdigest()
        assert world.statement(ONE, step).previous is None
    assert world.statement(ONE, Step.ABSENCE, 1).level is Level.FILE_ABSENT


class Stuck(MemoryStore):
    """One unit cannot be reached for writing."""

    def __init__(self, space: Space, unit: str) -> None:
        super().__init__(space, "fs")
        self.stuck = unit

    def erase(self, unit: str, locators: Sequence[str], fence: int) -> Any:
        if unit == self.stuck:
            raise Retryable
        return super().erase(unit, locators, fence)


async def test_a_store_that_lies_is_found_out(world: World) -> None:
    world.plan(ONE, ABC)
    world.fill(ABC)
    world.space.lying = True
    await world.erase_all(ONE)
    await world.do(world.rescan(), ONE, Step.ABSENCE)
    assert world.outcomes(ONE, Step.ERASE) == [1, 1, 1]
    assert world.outcomes(ONE, Step.ABSENCE) == [7, 7, 7]
    assert world.said()[-2:] == ["ImagesPurged", "ResidueFound"]
    world.space.lying = False
    await world.do(world.purge(), ONE, Step.ERASE, 1)
    await world.do(world.rescan(), ONE, Step.ABSENCE, 1)
    assert world.outcomes(ONE, Step.ABSENCE, 1) == [1, 1, 1]


async def test_bytes_that_stay_behind_a_clean_listing_are_residue(world: World) -> None:
    world.plan(ONE, ABC)
    world.fill(ABC)
    await world.do(world.rescan(), ONE, Step.PRESENCE)
    await world.hide(ONE)
    store = MemoryStore(world.space, "fs")
    store.erase("v", ["c"], 1)
    world.space.lying = True
    await world.do(world.purge(), ONE, Step.ERASE)
    await world.do(world.rescan(), ONE, Step.ABSENCE)
    assert world.outcomes(ONE, Step.ABSENCE) == [7, 7, 1]
    assert world.statement(ONE, Step.ABSENCE).level is Level.UNREACHABLE


async def test_residue_of_the_last_attempt_is_failed(world: World) -> None:
    world.plan(ONE, ABC)
    world.fill(ABC)
    world.space.lying = True
    await world.erase_all(ONE)
    await world.do(world.rescan(max_attempts=1), ONE, Step.ABSENCE)
    assert world.outcomes(ONE, Step.ABSENCE) == [6, 6, 6]


async def test_what_a_store_blocks_stays_blocked_until_it_lets_go(world: World) -> None:
    world.plan(ONE, ABC)
    world.fill(ABC)
    world.rewrites_unit = False
    world.space.blocked.add(("u", "b"))
    await world.erase_all(ONE)
    await world.do(world.rescan(), ONE, Step.ABSENCE)
    assert world.outcomes(ONE, Step.ERASE) == world.outcomes(ONE, Step.ABSENCE) == [1, 5, 1]
    world.space.blocked.clear()
    await world.do(world.purge(), ONE, Step.ERASE, 1)
    await world.do(world.rescan(), ONE, Step.ABSENCE, 1)
    assert world.outcomes(ONE, Step.ABSENCE, 1) == [0, 1, 0]


@pytest.mark.parametrize("rewrites_unit", [True, False])
async def test_a_kill_between_act_and_commit_is_repeated_right(world: World, rewrites_unit: bool) -> None:  # noqa: FBT001
    world.rewrites_unit = rewrites_unit
    world.plan(ONE, [*ABC, ("v", "never")])
    world.fill(ABC)
    await world.rescan().act([delivery(world.order(ONE, Step.PRESENCE))])
    await world.do(world.rescan(), ONE, Step.PRESENCE)
    for step in (Step.HIDE, Step.ERASE) if rewrites_unit else (Step.ERASE,):
        await world.purge().act([delivery(world.order(ONE, step))])
        await world.do(world.purge(), ONE, step)
        assert world.outcomes(ONE, step) == [1, 1, 1, 3]
    assert world.left() == set()


async def test_a_unit_that_another_worker_holds_is_left_for_later(world: World) -> None:
    world.plan(ONE, ABC)
    world.fill(ABC)
    await world.do(world.rescan(), ONE, Step.PRESENCE)
    world.sql("insert into unit_lease values ('fs', 'u', nextval('fence'), 'other', now() + interval '1 hour')")
    assert not await world.do(world.purge(), ONE, Step.ERASE)
    assert world.left() == set(ABC)
    assert world.outcomes(ONE, Step.ERASE) == []
    purge = world.purge()
    world.sql("update task set not_before = now()")
    assert await run_one(ledger=world.ledger, kinds={purge.task_kind: purge.task}, stop=asyncio.Event())
    assert world.left() == set(ABC)
    assert world.sql("select done_at, lease_until, not_before > now() from task") == [(None, None, True)]

    world.sql("update unit_lease set lease_until = now() - interval '1 second'")
    world.sql("update task set not_before = now()")
    assert await run_one(ledger=world.ledger, kinds={purge.task_kind: purge.task}, stop=asyncio.Event())
    assert world.left() == set()
    assert world.outcomes(ONE, Step.ERASE) == [1, 1, 1]
    assert world.said()[-1] == "ImagesPurged"
    assert world.sql("select done_at is not null from task") == [(True,)]
    assert world.sql("select count(*) from unit_lease") == [(0,)]


async def test_a_holder_whose_unit_was_taken_over_changes_nothing(world: World) -> None:
    world.plan(ONE, ABC)
    world.fill(ABC)
    await world.do(world.rescan(), ONE, Step.PRESENCE)
    world.space.units["u"].fence = 10**6
    await world.do(world.purge(), ONE, Step.ERASE)
    assert {("u", "a"), ("u", "b")} <= world.left()
    assert world.outcomes(ONE, Step.ERASE) == []
    assert world.sql("select kind, done_at from task") == [("purge-erase", None)]


async def test_leases_are_renewed_while_a_store_is_slow(world: World) -> None:
    world.plan(ONE, ABC)
    world.fill(ABC)
    await world.do(world.rescan(), ONE, Step.PRESENCE)
    first: list[Any] = []

    def until_renewed(call: str) -> None:
        if call != "erase":
            return
        first.extend(now := world.sql("select max(lease_until) from unit_lease"))
        while now <= first[:1]:
            now = world.sql("select max(lease_until) from unit_lease")

    world.space.on_call = until_renewed
    await world.do(world.purge(lease_seconds=0.3), ONE, Step.ERASE)
    assert world.outcomes(ONE, Step.ERASE) == [1, 1, 1]
    assert world.sql("select count(*) from unit_lease") == [(0,)]


async def test_what_exceeds_the_bound_is_done_beside_the_agent_and_resumed(world: World) -> None:
    artifacts = [(f"u{n // 100:02}", f"{n:04}") for n in range(2500)]
    world.plan(ONE, artifacts)
    world.fill(artifacts)
    await world.do(world.rescan(inline_leaves=100), ONE, Step.PRESENCE)
    rescan = world.rescan()
    world.sql("update task set not_before = now()")
    kinds = {rescan.task_kind: rescan.task}
    assert await run_one(ledger=world.ledger, kinds=kinds, stop=asyncio.Event())
    assert world.outcomes(ONE, Step.PRESENCE) == [7] * 2500

    await world.do(world.purge(inline_leaves=1000), ONE, Step.ERASE)
    assert len(world.left()) == 2500
    world.sql("update task set not_before = now()")
    purge = world.purge(inline_leaves=1000)
    store = MemoryStore(world.space, "fs")
    purge._eraser._stores = {"fs": store}
    erased: list[str] = []

    def die(call: str) -> None:
        erased.append(call)
        if len(erased) == 15:
            raise RuntimeError("killed")

    world.space.on_call = die
    assert await run_one(ledger=world.ledger, kinds={purge.task_kind: purge.task}, stop=asyncio.Event())
    world.space.on_call = lambda call: world.calls.update([call])
    assert world.sql("select (cursor->>'units')::int from task where done_at is null") == [(10,)]

    world.calls.clear()
    world.sql("update task set not_before = now()")
    purge = world.purge(inline_leaves=1000)
    assert await run_one(ledger=world.ledger, kinds={purge.task_kind: purge.task}, stop=asyncio.Event())
    assert world.calls["erase"] == 15
    assert world.left() == set()
    assert world.outcomes(ONE, Step.ERASE) == [1] * 2500
    await world.do(world.rescan(), ONE, Step.ABSENCE)
    assert world.said() == ["PresenceRecorded", "ImagesPurged", "AbsenceVerified"]
    assert world.statement(ONE, Step.ABSENCE, chunk=2).sampled == 8


async def test_only_trouble_makes_an_order_wait_and_the_task_runner_can_be_woken(world: World) -> None:
    world.plan(ONE, ABC)
    world.fill(ABC)
    rescan = world.rescan(inline_leaves=1)
    stop, wake, looked, finished = asyncio.Event(), asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def first(_: Lease) -> Any:
        looked.set()
        return nothing

    async def published() -> None:
        if world.outcomes(ONE, Step.PRESENCE):
            finished.set()

    await put_task(world)
    kinds = {"k": first, rescan.task_kind: rescan.task}
    runner = asyncio.create_task(
        run_tasks(ledger=world.ledger, kinds=kinds, stop=stop, wake=wake, finished=published, poll_seconds=3600)
    )
    await asyncio.wait_for(looked.wait(), 10)
    await world.do(rescan, ONE, Step.PRESENCE)
    assert world.sql("select not_before <= now() from task where kind = 'rescan'") == [(True,)]
    wake.set()
    await asyncio.wait_for(finished.wait(), 10)
    stop.set()
    await runner


async def test_a_task_whose_order_was_refused_opens_again_when_ordered_again(world: World) -> None:
    world.plan(ONE, ABC)
    world.fill(ABC)
    await world.do(world.rescan(), ONE, Step.PRESENCE)
    purge = world.purge(inline_leaves=1)
    await world.do(purge, ONE, Step.ERASE)
    for state, left in (("void", 3), ("published", 0)):
        world.sql("update sweep set state = %s", state)
        world.sql("update task set not_before = now()")
        assert await run_one(ledger=world.ledger, kinds={purge.task_kind: purge.task}, stop=asyncio.Event())
        assert len(world.left()) == left
        assert world.sql("select done_at is not null from task") == [(True,)]
        if left:
            world.sql("update sweep set state = 'published'")
            await world.do(purge, ONE, Step.ERASE)
    assert world.outcomes(ONE, Step.ERASE) == [1, 1, 1]


async def test_an_unreachable_store_costs_no_attempt(world: World) -> None:
    world.plan(ONE, ABC)
    world.fill(ABC)
    world.space.failures = 10
    await world.do(world.rescan(), ONE, Step.PRESENCE)
    assert world.outcomes(ONE, Step.PRESENCE) == []
    assert world.sql("select kind, not_before > now() from task") == [("rescan", True)]
    world.space.failures = 0
    await world.do(world.rescan(), ONE, Step.PRESENCE)
    world.space.failures = 10
    await world.do(world.purge(), ONE, Step.ERASE)
    assert world.outcomes(ONE, Step.ERASE) == []
    assert world.sql("select kind from task order by task_id") == [("rescan",), ("purge-erase",)]


async def test_the_sample_of_a_run_is_bounded_but_every_chunk_has_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("expunge.stages.rescan.RUN_SAMPLE", 5)
    artifacts = [("u", f"{n:04}") for n in range(2500)]
    world.rewrites_unit = True
    world.plan(ONE, artifacts)
    world.fill(artifacts)
    await world.do(world.rescan(sample=8), ONE, Step.PRESENCE)
    assert [world.statement(ONE, Step.PRESENCE, chunk=chunk).sampled for chunk in range(3)] == [1, 1, 1]
    world.plan(TWO, artifacts[:2000])
    await world.do(world.rescan(sample=8), TWO, Step.PRESENCE)
    assert [world.statement(TWO, Step.PRESENCE, chunk=chunk).sampled for chunk in range(2)] == [2, 2]


async def test_needles_are_of_the_sample_and_sealed(world: World) -> None:
    artifacts = [("u", f"{n:04}") for n in range(100)]
    sweep = world.plan(ONE, artifacts)
    world.fill(artifacts)
    await world.do(world.rescan(sample=4), ONE, Step.PRESENCE)
    name = f"{ONE}.0.0.needles"
    sealed = world.sealing.sealed.files[name]
    kept = needles.unseal(world.sealing.scopes().open(sweep).key, name, sealed)
    drawn = needles.sample(bytes(range(32)), ONE, tree=0, chunk=0, leaves=100, count=4)
    assert sorted({needle.index for needle in kept}) == drawn
    assert all(needle.before == 1 and needle.window in content(*artifacts[needle.index]) for needle in kept)
    assert not any(needle.window[:8] in sealed for needle in kept)
    await world.do(world.rescan(), ONE, Step.PRESENCE)
    assert world.sealing.sealed.files[name] == sealed


async def test_files_are_scanned_for_people_only_where_asked(world: World) -> None:
    world.rewrites_unit = False
    world.plan(ONE, ABC)
    world.plan(TWO, [("u", "d")])
    world.fill([*ABC, ("u", "d")])
    for sweep, scan in ((ONE, False), (TWO, True)):
        await world.do(world.rescan(scan_files=scan), sweep, Step.PRESENCE)
        await world.do(world.purge(), sweep, Step.ERASE)
        await world.do(world.rescan(scan_files=scan), sweep, Step.ABSENCE)
    one, two = world.statement(ONE, Step.ABSENCE), world.statement(TWO, Step.ABSENCE)
    assert (one.level, one.method, one.sampled) == (Level.FILE_ABSENT, "listing", 0)
    assert (two.level, two.method, two.sampled) == (Level.FILE_ABSENT, "listing+scan", 1)


def test_the_rescanner_takes_no_store_that_can_erase() -> None:
    sealing = Sealing()
    with pytest.raises(Misconfigured):
        Rescan(
            ledger=PostgresLedger(""), scopes=sealing.scopes(), sealed=sealing.sealed, signer=RESCANNER,
            readers={"fs": MemoryStore(Space(), "fs")}, clock=lambda: AT, max_attempts=5,
        )  # fmt: skip


def test_a_store_without_an_executor_key_is_a_fault_of_the_settings() -> None:
    with pytest.raises(Misconfigured):
        Purge(
            ledger=PostgresLedger(""), scopes=Sealing().scopes(), stores={"fs": MemoryStore(Space(), "fs")}, signers={},
            clock=lambda: AT, holder="purge-1",
        )  # fmt: skip


async def test_no_locator_or_unit_is_logged(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.plan(ONE, [("unit-of-eve", "photo-of-eve")])
    world.fill([("unit-of-eve", "photo-of-eve")])
    world.space.failures = 1
    await world.erase_all(ONE)
    await world.do(world.rescan(), ONE, Step.ABSENCE)
    assert "of-eve" not in "".join(capsys.readouterr())


async def test_vectors_go_from_a_real_index_in_one_rewrite(world: World, tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss", reason="NOT TESTED: faiss is not installed (extra `faiss`)")
    from expunge.adapters.stores.faiss import FaissReader, FaissStore

    store, reader = FaissStore(str(tmp_path), "index"), FaissReader(str(tmp_path), "index")
    vectors = np.random.default_rng(3).normal(size=(3000, 16)).astype(np.float32)
    store.create("faces.index", faiss.IndexIDMap2(faiss.IndexFlatL2(16)))
    store.add("faces.index", np.arange(3000), vectors)
    gone = [("faces.index", str(n)) for n in range(0, 3000, 2)]
    world.plan(ONE, gone, kind=Kind.EMBEDDING, store="index")
    invalidate = Invalidate(
        ledger=world.ledger, scopes=world.sealing.scopes(), stores={"index": store}, signers={"index": EXECUTOR},
        clock=lambda: AT, holder="invalidate-1",
    )  # fmt: skip
    rescan = Rescan(
        ledger=world.ledger, scopes=world.sealing.scopes(), sealed=world.sealing.sealed, readers={"index": reader},
        signer=RESCANNER, clock=lambda: AT, max_attempts=5,
    )  # fmt: skip
    await world.do(rescan, ONE, Step.PRESENCE)
    inode = (tmp_path / "faces.index").stat().st_ino
    await world.do(invalidate, ONE, Step.HIDE)
    assert (tmp_path / "faces.index").stat().st_ino != inode
    await world.do(rescan, ONE, Step.ABSENCE)
    assert world.outcomes(ONE, Step.ABSENCE) == [1] * 1500
    assert reader.probe("faces.index", [str(n) for n in range(3000)]).sum() == 1500
    said = world.statement(ONE, Step.ABSENCE, chunk=1)
    assert (said.level, said.sampled, said.start, said.end) == (Level.FILE_ABSENT, 8, 1024, 1500)


async def test_files_of_an_order_go_from_a_real_directory(world: World, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for name in ("a", "b", "kept"):
        (tmp_path / "d" / name).write_bytes(content("d", name))
    store, reader = LocalStore(str(tmp_path), "fs"), LocalReader(str(tmp_path), "fs")
    world.plan(ONE, [("d", "a"), ("d", "b"), ("d", "../kept")])
    world.sql("update sweep set class = 'order'")
    purge, rescan = world.purge(), world.rescan()
    purge._eraser._stores, rescan._readers = {"fs": store}, {"fs": reader}
    await world.do(rescan, ONE, Step.PRESENCE)
    assert [one.code for one in await world.do(purge, ONE, Step.HIDE)] == ["cannot-hide"]
    await world.do(purge, ONE, Step.ERASE)
    (tmp_path / "d" / "copy").write_bytes(content("d", "b"))
    await world.do(rescan, ONE, Step.ABSENCE)
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == ["copy", "kept"]
    assert world.outcomes(ONE, Step.ERASE) == [6, 1, 1]
    assert world.outcomes(ONE, Step.ABSENCE) == [6, 1, 7]


# --- tasks


async def put_task(world: World, kind: str = "k") -> None:
    async with world.ledger.transaction() as tx:
        await tx.execute("execute_defer", kind=kind, keys=["key"], inputs=["{}"], seconds=0.0)


async def nothing(_: object) -> None:
    return


async def test_a_lost_lease_ends_the_task_and_keeps_its_result_out(world: World) -> None:
    await put_task(world)
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def slow(lease: Lease) -> Any:
        started.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return nothing

    running = asyncio.create_task(
        run_one(ledger=world.ledger, kinds={"k": slow}, stop=asyncio.Event(), lease_seconds=0.3)
    )
    await started.wait()
    world.sql("update task set token = token + 1, lease_until = now() + interval '1 hour'")
    assert await running
    assert cancelled.is_set()
    assert world.sql("select done_at, token from task") == [(None, 2)]


async def test_a_fenced_task_cannot_save_or_finish(world: World) -> None:
    await put_task(world)
    wrote = False

    async def commit(_: object) -> None:
        nonlocal wrote
        wrote = True

    async def overtaken(lease: Lease) -> Any:
        world.sql("update task set token = token + 1")
        with pytest.raises(FencedOff):
            await lease.save({"at": 1})
        return commit

    assert await run_one(ledger=world.ledger, kinds={"k": overtaken}, stop=asyncio.Event())
    assert not wrote
    assert world.sql("select done_at, cursor from task") == [(None, {})]


async def test_tasks_run_until_told_to_stop_and_the_last_is_given_back(world: World) -> None:
    await put_task(world)
    stop, began, published = asyncio.Event(), asyncio.Event(), 0

    async def finished() -> None:
        nonlocal published
        published += 1

    async def work(lease: Lease) -> Any:
        if lease.key == "long":
            began.set()
            await asyncio.sleep(60)
        return nothing

    runner = asyncio.create_task(
        run_tasks(ledger=world.ledger, kinds={"k": work}, stop=stop, finished=finished, poll_seconds=0.01)
    )
    async with world.ledger.transaction() as tx:
        await tx.execute("execute_defer", kind="k", keys=["long"], inputs=["{}"], seconds=0.0)
    await began.wait()
    stop.set()
    await runner
    assert published >= 1
    assert world.sql("select done_at is null, lease_until from task where key = 'long'") == [(True, None)]


async def test_a_task_that_fails_is_parked_and_tried_again_later(world: World) -> None:
    await put_task(world)

    async def broken(_: Lease) -> Any:
        raise ZeroDivisionError

    assert await run_one(ledger=world.ledger, kinds={"k": broken}, stop=asyncio.Event())
    assert not await run_one(ledger=world.ledger, kinds={"k": broken}, stop=asyncio.Event())
    assert world.sql("select done_at, lease_until, attempts, not_before > now() from task") == [(None, None, 1, True)]
