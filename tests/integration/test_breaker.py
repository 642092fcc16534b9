"""The blast-radius breaker, circuits of stores, and blocks that end: the real stages on a real database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from expunge import breaker
from expunge.chunks.circuits import FAILURES, REST_SECONDS, Circuits
from expunge.chunks.units import UnitWork
from expunge.domain import events, request
from expunge.domain.dsse import parse, verify
from expunge.domain.errors import Overloaded, Rejected, Retryable
from expunge.domain.policy import Policy
from tests.coordination import ANN, BOB, PHOTOS, PUBLISHER, Deployment, album, deployed

CAP = 10
POLICY = Policy(window=timedelta(0), attempts=3, breaker_share=0.25, breaker_floor=CAP)
SOURCE = "source:studio"


@pytest.fixture
async def world(database: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployed(database, tmp_path, policy=POLICY) as made:
        yield made


async def close(world: Deployment, scope: str = SOURCE, by: object = ANN) -> None:
    async with world.ledger.transaction() as tx:
        await breaker.close(tx, scope, by.key, "looked at", world.clock.now)  # type: ignore[attr-defined]


def people_left(world: Deployment) -> int:
    return len(world.left(PHOTOS)) // 4


async def test_a_flood_stops_at_the_cap_and_goes_on_when_a_person_has_looked(world: Deployment) -> None:
    await world.seed(*(photo for person in range(1, 9) for photo in album(person)))
    asked = [world.deletion(person) for person in range(1, 9)]
    for one in asked:  # one sweep each
        world.ask(one)
        await world.settle()
    assert people_left(world) == 8 - CAP // 4
    (opened,) = world.said(events.BreakerOpened)
    assert (opened.scope, opened.counted, opened.cap) == (SOURCE, 12, CAP)
    assert [world.state(one) for one in asked].count("completed") == CAP // 4
    world.clock.pass_(days=1)  # time alone closes nothing
    await world.upkeep()
    await world.settle()
    assert people_left(world) == 8 - CAP // 4
    await close(world)
    await world.upkeep()
    await world.settle()
    assert [world.state(one) for one in asked] == ["completed"] * 8
    assert people_left(world) == 0
    assert len(world.said(events.BreakerClosed)) == 1
    ((letter,),) = world.sql("select closing from breaker")
    assert b"looked at" in verify(parse(bytes(letter)), ANN.key.public, breaker.CLOSING_TYPE)


async def test_the_hour_begins_anew_after_closing_and_slides_by_itself(world: Deployment) -> None:
    await world.seed(*(photo for person in range(1, 9) for photo in album(person)))
    for person in (1, 2):
        world.ask(world.deletion(person))
        await world.settle()
    world.clock.pass_(days=1)
    for person in (3, 4):
        world.ask(world.deletion(person))
        await world.settle()
    assert people_left(world) == 4
    assert world.said(events.BreakerOpened) == []
    world.ask(world.deletion(5))
    await world.settle()
    assert (people_left(world), len(world.said(events.BreakerOpened))) == (4, 1)
    await close(world)
    await world.upkeep()
    await world.settle()
    assert people_left(world) == 3
    for person in (6, 7, 8):
        world.ask(world.deletion(person))
        await world.settle()
    assert (people_left(world), len(world.said(events.BreakerOpened))) == (1, 2)


async def test_only_an_approver_closes_and_only_what_is_open(world: Deployment) -> None:
    await world.seed(*(photo for person in range(1, 5) for photo in album(person)))
    with pytest.raises(Rejected, match="a scope whose breaker is open"):
        await close(world)
    world.ask(*(world.deletion(person) for person in range(1, 5)))
    await world.settle()
    assert people_left(world) == 4  # all in one sweep, over the cap by itself
    with pytest.raises(Rejected, match="the key of an approver"):
        await close(world, by=PUBLISHER)
    await close(world, by=BOB)
    await world.upkeep()
    await world.settle()
    assert people_left(world) == 0


async def test_an_order_that_two_people_approved_neither_counts_nor_waits(world: Deployment) -> None:
    await world.seed(*(photo for person in range(1, 9) for photo in album(person)))
    order = world.order(request.BySource(source="studio"))
    world.ask(order)
    await world.settle()
    await world.approve(order)
    await world.settle()
    assert (world.state(order), people_left(world)) == ("completed", 0)
    assert world.said(events.BreakerOpened) == []


async def test_what_is_blocked_is_planned_again_when_its_block_ends(world: Deployment) -> None:
    await world.seed(*album(1, 1))
    space = world.spaces[PHOTOS]
    (unit,) = (name for name, held in space.units.items() if held.visible)
    space.blocked = {(unit, name) for name in space.units[unit].visible}
    space.blocked_until = world.clock.now + timedelta(days=3)
    asked = world.deletion(1)
    world.ask(asked)
    await world.settle()
    assert (world.state(asked), world.result(asked)) == ("data-certified", "blocked")
    space.blocked.clear()
    world.clock.pass_(days=2)
    await world.upkeep()
    await world.settle()
    assert world.result(asked) == "blocked"
    world.clock.pass_(days=1, seconds=1)
    await world.upkeep()
    await world.settle()
    assert (world.state(asked), world.result(asked)) == ("completed", "complete")
    assert world.left(PHOTOS) == set()
    assert (await world.verify(asked)).verified().result == "complete"


def test_a_store_that_fails_over_and_over_is_left_alone_and_tried_once_after_a_rest() -> None:
    now = 0.0
    circuits = Circuits("purge", now=lambda: now)
    calls: list[str] = []
    up = False

    def call(work: UnitWork) -> None:
        calls.append(work.store)
        if work.store == "a" and not up:
            raise Retryable

    guarded = circuits.guarded(call)

    def go(store: str) -> bool:
        try:
            guarded(UnitWork(store, "u", []))
        except Retryable:
            return False
        return True

    assert [go("a") for _ in range(FAILURES + 3)] == [False] * (FAILURES + 3)
    assert len(calls) == FAILURES
    assert circuits.open("a")
    assert go("b")
    now = REST_SECONDS + 0.1
    assert not go("a")
    assert not go("a")  # the one that tried has failed: it rests twice as long
    assert calls.count("a") == FAILURES + 1
    now += 2 * REST_SECONDS + 0.1
    up = True
    assert go("a")
    assert not circuits.open("a")
    up = False
    assert [go("a") for _ in range(FAILURES)] == [False] * FAILURES
    assert calls.count("a") == 2 * FAILURES + 2


def test_a_store_that_was_asked_over_and_over_already_is_left_alone_at_once() -> None:
    circuits = Circuits("purge")

    def busy(_: UnitWork) -> None:
        raise Overloaded

    with pytest.raises(Overloaded):
        circuits.guarded(busy)(UnitWork("a", "u", []))
    assert circuits.open("a")


def test_why_a_call_failed_is_logged_and_what_it_was_about_is_not() -> None:
    circuits = Circuits("purge")

    def full(_: UnitWork) -> None:
        raise Retryable("the file system answered ENOSPC")

    guarded = circuits.guarded(full)
    with capture_logs() as lines:
        for _ in range(FAILURES + 3):  # nothing is asked of a store that is left alone, so nothing is said of it
            with pytest.raises(Retryable):
                guarded(UnitWork("a", "somebody.bin", []))
    told = {"event": "call to a store failed", "log_level": "warning", "action": "retry", "store": "a"}
    assert lines == [{**told, "reason": "the file system answered ENOSPC"}] * FAILURES


def test_what_a_store_refuses_is_an_answer() -> None:
    circuits = Circuits("purge")

    def refuse(_: UnitWork) -> None:
        raise Rejected("hostile-unit", "expected another")

    for _ in range(2 * FAILURES):
        with pytest.raises(Rejected):
            circuits.guarded(refuse)(UnitWork("a", "u", []))
    assert not circuits.open("a")
