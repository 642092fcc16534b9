"""Artifacts that two sweeps hold at once, in stores that hide before they rewrite: what one sweep knows counts for both."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest

from expunge.adapters.stores import nowhere
from expunge.domain import request
from expunge.domain.errors import Retryable
from expunge.pipeline import WORKERS
from tests.coordination import FACES, SHARDS, Deployment, Photo, deployed, subject

EVERYBODY = frozenset(WORKERS)
GROUP = "group.bin"


@pytest.fixture
async def world(database: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    """A photo of persons 1 and 2, and one of 2 and 3, which 3's hold keeps. Only the first has an embedding: when their
    store lies, that is the one lie."""
    async with deployed(database, tmp_path) as made:
        await made.seed(Photo("group", (1, 2)), Photo("other", (2, 3)))
        made.sql("delete from artifact where locator = 'other.bin' and kind = 'embedding'")
        yield made


async def hand(world: Deployment, worker: str, sweep_id: UUID) -> None:
    """Deliver what is ordered of a worker for one sweep alone, and let the coordinator have the answers. What was
    answered before is answered again by the rows."""
    host = world.hosts[worker]
    for topic in host.topics:
        records = [one for one in world.records(topic) if str(sweep_id).encode() in (one.value or b"")]
        await host.process(topic, records)
    world.only = frozenset({"coordinate"})
    await world._deliver()
    world.only = EVERYBODY


async def hide(world: Deployment, sweep_id: UUID) -> None:
    """Let a sweep look for its embeddings and hide them, and no more: the store cannot erase just then."""
    space = world.spaces[FACES]

    def away(call: str) -> None:
        if call == "erase":
            raise Retryable("the store is away")

    space.on_call = away
    for worker in ("rescan", "invalidate"):
        await hand(world, worker, sweep_id)
    space.on_call = nowhere
    assert (GROUP in space.units["index"].visible, GROUP in space.units["index"].hidden) == (False, True)


async def hidden_by_the_second(world: Deployment) -> tuple[request.Request, request.Request, request.HoldPlaced]:
    """Two deletions, each in a sweep of its own, of which the second has hidden the embedding of the photo that they share
    before the first has looked for it. The second is held for its other photo."""
    hold = world.hold(request.BySubject(subject_ref=subject(3)))
    await world.take(hold)
    first, second = world.deletion(1), world.deletion(2)
    for one in (first, second):
        await world.take(one)
        await world.plan.seal_people()
    while await world.coordinator.turn():
        pass
    await hide(world, world.sweep_of(second))
    return first, second, hold


async def test_what_one_sweep_found_again_is_not_gone_because_another_saw_it_hidden(world: Deployment) -> None:
    first, second, hold = await hidden_by_the_second(world)
    world.spaces[FACES].lying = True
    await world.settle()
    assert GROUP in world.left(FACES)
    assert (world.result(first), world.result(second)) == ("partial", "held")
    world.ask(world.release(hold))
    await world.settle()
    assert (world.result(first), world.result(second)) == ("partial", "partial")
    for one in (first, second):
        report = await world.verify(one)
        assert {store.store: store.outcomes for store in report.verified().stores}[FACES] == {"failed": 1}
    assert world.sql("select count(*) from artifact where locator = %s", GROUP) == [(1,)]


async def test_a_row_stays_while_another_sweep_has_found_its_artifact_since(world: Deployment) -> None:
    """The first looks for what is gone before the second has sealed its windows, and is certified after they were found."""
    first, second, hold = await hidden_by_the_second(world)
    world.spaces[FACES].lying = True
    late = {name: world.sealed.files.pop(name) for name in [*world.sealed.files] if name.endswith(".needles")}
    assert late
    for worker in ("rescan", "invalidate", "rescan"):  # no photo is erased, so that it is not certified yet
        await hand(world, worker, world.sweep_of(first))
    world.sealed.files |= late
    for worker in ("invalidate", "rescan"):
        await hand(world, worker, world.sweep_of(second))
    await world.settle()
    assert (world.result(first), world.result(second)) == ("complete", "held")
    world.ask(world.release(hold))
    await world.settle()
    assert world.result(second) == "partial"
    (await world.verify(second)).verified()


async def test_what_was_given_up_is_looked_for_again_when_the_request_is_planned_anew(world: Deployment) -> None:
    """Its sweep has ended, and the artifact is hidden from the start: what was cut of it then is still known."""
    hold, asked = world.hold(request.BySubject(subject_ref=subject(3))), world.deletion(2)
    await world.take(hold)
    await world.take(asked)
    await world.plan.seal_people()
    while await world.coordinator.turn():
        pass
    await hide(world, world.sweep_of(asked))
    world.spaces[FACES].lying = True
    await world.settle()
    assert world.result(asked) == "held"
    world.ask(world.release(hold))
    await world.settle()
    assert GROUP in world.spaces[FACES].units["index"].hidden
    assert world.result(asked) == "partial"


async def test_what_both_see_gone_is_complete_for_both_and_its_rows_go(world: Deployment) -> None:
    first, second, hold = await hidden_by_the_second(world)
    await world.settle()
    assert (world.result(first), world.result(second)) == ("complete", "held")
    assert GROUP not in world.left(FACES) | world.left(SHARDS)
    assert world.sql("select count(*) from artifact where locator = %s", GROUP) == [(0,)]
    world.ask(world.release(hold))
    await world.settle()
    assert world.result(second) == "complete"
    assert world.sql("select count(*) from artifact") == [(0,)]
    for one in (first, second):
        (await world.verify(one)).verified()
