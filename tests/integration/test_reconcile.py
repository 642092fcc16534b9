"""Reconciliation on a real database: registered - erased = present, counted in the stores."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from expunge.adapters.stores.memory import MemoryReader, MemoryStore
from expunge.domain import challenge, note, request
from expunge.domain import replay as fold
from expunge.domain.errors import Misconfigured, Rejected, Tampered
from expunge.domain.statement import Completion, ReconciledCount, Reconciliation
from expunge.domain.words import Kind, Provision, Role
from expunge.replay import replay
from expunge.stages.reconcile import Reconcile
from expunge.tasks import run_one
from expunge.verify import verify_challenge
from tests.coordination import FACES, ORIGIN, PHOTOS, SHARDS, THUMBS, Deployment, album, deployed

STUDIO = request.BySource(source="studio")


@pytest.fixture
async def world(database: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployed(database, tmp_path) as made:
        yield made


async def reconciled(world: Deployment, key: str = "now", **options: object) -> dict[tuple[str, Kind], ReconciledCount]:
    """The counts of a run that begins now."""
    before = len(world.logged(Reconciliation))
    await world.reconcile.ask(key, **options)  # type: ignore[arg-type]
    await world.settle()
    (said,) = world.logged(Reconciliation)[before:]
    return {(one.source, one.kind): one for one in said.counts}


def numbers(one: ReconciledCount) -> tuple[int, int, int, int, int]:
    return one.registered, one.erased, one.under_way, one.present, one.difference


async def test_what_came_in_is_what_went_and_what_is_there(world: Deployment) -> None:
    await world.seed(*album(1), *album(2), *(replace(one, key=f"w-{one.key}", source="web") for one in album(3)))
    found = await reconciled(world)
    assert {at: numbers(one) for at, one in found.items() if at[0] == "web"} == {
        ("web", kind): (4, 0, 0, 4, 0) for kind in (Kind.IMAGE, Kind.DERIVATIVE, Kind.SHARD_ROW, Kind.EMBEDDING)
    }
    asked = world.deletion(1)
    world.ask(asked)
    await world.settle()
    found = await reconciled(world, "later")
    assert {numbers(one) for (source, _), one in found.items() if source == "studio"} == {(8, 4, 0, 4, 0)}
    only = await reconciled(world, "some", sources=["web"])
    assert {source for source, _ in only} == {"web"}
    again = await world.verify(asked)
    assert not again.verified().reconciled
    state = replay(world.tiles, world.trust).state
    assert not state.differences()
    assert len(state.reconciled) == 8


async def test_page_by_page_gives_the_same(world: Deployment) -> None:
    await world.seed(*album(1), *album(2))
    world.__dict__["reconcile"] = world.reconciler(page=3)
    assert {numbers(one) for one in (await reconciled(world)).values()} == {(8, 0, 0, 8, 0)}


async def test_what_is_missing_and_in_no_sweep_is_a_difference(world: Deployment) -> None:
    await world.seed(*album(1), *album(2))
    unit = next(iter(world.spaces[PHOTOS].units.values()))
    unit.visible.pop(min(unit.visible))
    found = await reconciled(world)
    assert numbers(found["studio", Kind.IMAGE]) == (8, 0, 0, 7, 1)
    assert numbers(found["studio", Kind.EMBEDDING]) == (8, 0, 0, 8, 0)
    (differs,) = replay(world.tiles, world.trust).state.differences()
    assert (differs.source, differs.kind, differs.difference) == ("studio", Kind.IMAGE, 1)


async def test_rows_that_go_without_a_sweep_are_a_difference(world: Deployment) -> None:
    await world.seed(*album(1), *album(2))
    world.sql("delete from artifact where kind = 'embedding' and artifact_id %% 2 = 0")
    found = await reconciled(world)
    one = found["studio", Kind.EMBEDDING]
    assert one.difference == one.registered - one.present
    assert one.difference > 0


async def test_an_order_is_followed_by_a_reconciliation_in_its_bundle(world: Deployment) -> None:
    await world.seed(*album(1), *album(2), *(replace(one, key=f"w-{one.key}", source="web") for one in album(3)))
    order = world.order(STUDIO)
    world.ask(order)
    await world.settle()
    await world.approve(order)
    await world.settle()
    (said,) = world.logged(Reconciliation)
    assert said.sweep is not None
    assert (said.sweep.leaves, said.sweep.present) == (32, 0)
    assert said.sweep.sweep == str(world.sweep_of(order))
    assert {numbers(one) for one in said.counts} == {(8, 8, 0, 0, 0)}
    assert {one.source for one in said.counts} == {"studio"}
    (completed,) = world.logged(Completion)
    assert world.logged().index(completed) < world.logged().index(said)
    report = await world.verify(order)
    assert report.verified().reconciled == said.counts
    assert any("reconciled: image from studio: 8 registered - 8 erased, 0 present" in one for one in report.lines())
    assert all(not world.left(store) - {f"w-p3-{n}.bin" for n in range(4)} for store in (PHOTOS, THUMBS, SHARDS, FACES))


async def test_what_comes_back_after_an_order_fails_its_certificate(world: Deployment) -> None:
    photos = album(1)
    await world.seed(*photos)
    order = world.order(STUDIO)
    world.ask(order)
    await world.settle()
    await world.approve(order)
    await world.settle()
    (await world.verify(order)).verified()
    world.fill(photos[0])
    world.sql(
        "insert into task (kind, key, input) values ('reconcile', 'again', jsonb_build_object('sweep', %s::uuid))",
        world.sweep_of(order),
    )
    await world.settle()
    report = await world.verify(order)
    assert not report.ok
    assert report.steps[-1].name == "reconciliation"
    assert "at most 0 artifacts of the scope present, got 4" in report.steps[-1].detail


async def test_a_scope_whose_key_is_gone_is_not_looked_for(world: Deployment) -> None:
    await world.seed(*album(1))
    order = world.order(STUDIO)
    world.ask(order)
    await world.settle()
    await world.approve(order)
    await world.settle()
    ((bucket,),) = world.sql("select bucket from sweep")
    world.keys.destroy(bucket)
    world.sql("insert into task (kind, key, input) values ('reconcile', 'x', jsonb_build_object('sweep', %s::uuid))",
              world.sweep_of(order))  # fmt: skip
    world.__dict__["reconcile"] = world.reconciler()
    await world.settle()
    assert [one.sweep is None for one in world.logged(Reconciliation)] == [False, True]


async def test_a_run_is_asked_for_once_in_its_time(world: Deployment) -> None:
    await world.seed(*album(1))
    for _ in range(2):
        await world.reconcile.ask_every(24)
    world.clock.pass_(hours=24)
    await world.reconcile.ask_every(24)
    await world.settle()
    assert len(world.logged(Reconciliation)) == 2


async def test_only_who_may_only_look_reconciles(world: Deployment) -> None:
    rest = {"ledger": world.ledger, "scopes": None, "clock": world.clock}
    stores = {PHOTOS: MemoryStore(world.spaces[PHOTOS], PHOTOS, rewrites_unit=False)}
    with pytest.raises(Misconfigured, match="without erase"):
        Reconcile(readers=stores, signer=world._signers[Role.RESCANNER, None], **rest)  # type: ignore[arg-type]
    with pytest.raises(Misconfigured, match="role rescanner"):
        Reconcile(readers={}, signer=world._signers[Role.SCOPE, None], **rest)  # type: ignore[arg-type]


def test_nothing_is_registered_before_the_first_batch() -> None:
    assert fold.State().registered_at("studio", Kind.IMAGE, 5) == 0


async def test_a_bundle_is_of_its_own_reconciliation(world: Deployment) -> None:
    await world.seed(*album(1))
    order = world.order(STUDIO)
    world.ask(order)
    await world.settle()
    await world.approve(order)
    await world.settle()
    files = await world.reader.certificate(UUID(order.id), Provision.DATA)
    assert files["sweep/statements.jsonl"].count(b"\n") == len(world.logged()) - 1  # all but the batch


async def test_what_is_missing_in_an_open_sweep_is_under_way(world: Deployment) -> None:
    await world.seed(*album(1), *album(2))
    world.ask(world.deletion(1))
    await world.settle()
    world.ask(world.deletion(2))
    real = world.certify.commit

    async def never(*_: object) -> None:
        """Certify is late."""

    world.certify.commit = never  # type: ignore[assignment, method-assign]
    await world.settle()
    found = await reconciled(world)
    assert {numbers(one) for one in found.values()} == {(8, 4, 4, 0, 0)}
    world.certify.commit = real  # type: ignore[method-assign]
    await world.upkeep(age=-1)
    assert {numbers(one) for one in (await reconciled(world, "later")).values()} == {(8, 8, 0, 0, 0)}


async def test_what_goes_during_a_run_is_erased(world: Deployment) -> None:
    """One person between two pages: before its page, and between looking and asking for the row again."""
    await world.seed(*album(1), *album(2))
    world.__dict__["reconcile"] = reconcile = world.reconciler(page=20)
    once: list[int] = []
    look = reconcile._seen

    async def erase(person: int) -> None:
        world.ask(world.deletion(person))
        world.__dict__["reconcile"] = world.reconciler()
        await world.settle()

    def seen(rows: list[tuple[object, ...]]) -> set[tuple[int, int]]:
        if not once:
            once.append(1)
            asyncio.run_coroutine_threadsafe(erase(2), loop).result(60)
        return look(rows)

    loop = asyncio.get_running_loop()
    reconcile._seen = seen  # type: ignore[assignment, method-assign]
    await reconcile.ask("now")
    assert await run_one(ledger=world.ledger, kinds={"reconcile": reconcile.task}, stop=asyncio.Event())
    (said,) = world.logged(Reconciliation)
    assert {numbers(one) for one in said.counts} == {(8, 4, 0, 4, 0)}


async def challenged(world: Deployment) -> tuple[request.OrderIssued, dict[str, bytes], bytes]:
    """An order that was carried out, its bundle, and a checkpoint from after that."""
    await world.seed(*album(1), *album(2))
    order = world.order(STUDIO)
    world.ask(order)
    await world.settle()
    await world.approve(order)
    await world.settle()
    return order, await world.reader.certificate(UUID(order.id), Provision.DATA), world.tiles.read("checkpoint")


async def answer(world: Deployment, order: request.Request, point: bytes, count: int) -> bytes:
    readers = {name: MemoryReader(space, name, rewrites_unit=False) for name, space in world.spaces.items()}
    said = await world.reader.challenge(
        UUID(order.id), point, count, trust=world.trust, readers=readers, at=world.clock()
    )
    return signed(world, said)


def signed(world: Deployment, said: bytes) -> bytes:
    """As `expunge challenge` signs it."""
    return world._signers[Role.RESCANNER, None].sign(said, challenge.PAYLOAD_TYPE)


async def test_a_challenge_is_answered_and_checked(world: Deployment) -> None:
    order, files, point = await challenged(world)
    data = await answer(world, order, point, 12)
    found = verify_challenge(data, files, world.trust, point, 12)
    assert (found.leaves, found.present) == (12, ())
    world.fill(*album(1))
    data = await answer(world, order, point, 1000)
    found = verify_challenge(data, files, world.trust, point, 1000)
    assert (found.leaves, len(found.present)) == (32, 16)


async def test_a_challenge_is_answered_as_it_was_put_or_not_at_all(world: Deployment) -> None:
    order, files, point = await challenged(world)
    data = await answer(world, order, point, 3)
    said = challenge.parse(data)
    one = said.openings[0]

    def refused(where: str, detail: str, *, count: int = 3, note: bytes = point, **changes: object) -> None:
        put = signed(world, challenge.dump(said.model_copy(update=changes)))
        with pytest.raises(Tampered, match=detail) as caught:
            challenge.verify(put, files, world.trust, note, count)
        assert caught.value.where == where

    refused("challenge", "the bundle's order", scope="1" * 64)
    refused("challenge", "this checkpoint", checkpoint="")
    refused("challenge", "asks for", count=4)
    refused("challenge", "asks for", openings=said.openings[1:])
    wrong = one.model_copy(update={"artifact": one.artifact + 1})
    refused(f"tree {one.tree} leaf {one.index}", "lead to the root", openings=(wrong, *said.openings[1:]))
    refused("checkpoint", "expected", note=b"no note")
    with pytest.raises(Tampered, match="DSSE envelope"):
        verify_challenge(challenge.dump(said), files, world.trust, point, 3)
    early = note.sign_checkpoint(note.Checkpoint(ORIGIN, 1, bytes(32)), world._log_key, ORIGIN)
    refused("checkpoint", "of more than", note=early)
    with pytest.raises(Rejected, match="signature lines"):
        await world.reader.challenge(UUID(order.id), b"x", 3, trust=world.trust, readers={}, at=world.clock())
    for count in (0, challenge.MOST + 1):
        with pytest.raises(Rejected, match="count from 1"):
            await answer(world, order, point, count)
    with pytest.raises(Rejected, match="a reader of store"):
        await world.reader.challenge(UUID(order.id), point, 3, trust=world.trust, readers={}, at=world.clock())


async def test_a_shared_sweep_is_not_opened(world: Deployment) -> None:
    await world.seed(*album(1), *album(2))
    asked, other = world.deletion(1), world.deletion(2)
    world.ask(asked, other)
    await world.settle()
    with pytest.raises(Rejected, match="expected an order"):
        await answer(world, asked, world.tiles.read("checkpoint"), 3)
